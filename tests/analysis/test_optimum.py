"""Envelopes, leaders, crossings and multipliers against laws known exactly, minimised here by other means."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize_scalar
from synthetic_sweep import LAWS, SIZES, body_and_head, flops_per_token, sweep, true_value

from analysis.fitting import fit_law
from analysis.optimum import envelope, fitted_arm, leaders, recommend, round_computes, shared_range
from analysis.report import fit_report


def true_envelope(name: str, compute: float) -> float:
    """The least value of a known law at `compute`, FLOPs per parameter interpolated linearly in ln N."""
    law = LAWS[name]
    params = np.array([sum(body_and_head(w, n, int(law["K"]))) for w, n in SIZES], dtype=float)
    cost = np.array([flops_per_token(w, n, law["T"], law["K"]) for w, n in SIZES]) / params

    def value(log_n: float) -> float:
        n = np.exp(log_n)
        return float(true_value(law, n, compute / n / np.exp(np.interp(log_n, np.log(params), np.log(cost)))))

    ends = np.log(params[0] / 4), np.log(params[-1] * 4)
    return minimize_scalar(value, bounds=ends, method="bounded", options={"xatol": 1e-8}).fun


def true_crossing(before: str, after: str) -> float:
    return brentq(lambda c: true_envelope(before, c) - true_envelope(after, c), 5e10, 9e11)


@lru_cache(maxsize=8)
def true_curve(name: str) -> tuple[np.ndarray, np.ndarray]:
    log_c = np.linspace(np.log(5e9), np.log(1e13), 120)
    return log_c, np.log([true_envelope(name, float(np.exp(c))) for c in log_c])


def compute_to_reach(name: str, value: float) -> float:
    log_c, log_value = true_curve(name)
    return float(np.exp(np.interp(-np.log(value), -log_value, log_c)))


def arm(name: str, noise: float = 0.0, seed: int = 0):
    rows = sweep(noise, seed, {name: LAWS[name]})
    fit = fit_law(rows, y="gfid")
    draws = fit.draws(200, seed, "noise")
    return fitted_arm(
        name, fit, draws, rows["compute"].to_numpy(), rows["images_seen"].to_numpy(), int(LAWS[name]["T"])
    )


@lru_cache(maxsize=1)
def noisy_report():
    return fit_report(sweep(noise=0.013, seed=0))


def test_the_envelope_is_the_least_value_at_equal_exact_compute():
    compute = np.array([2e10, 1e11, 5e11, 2e12])
    found = envelope(arm("more-tokens", noise=1e-6), compute)
    truth = [true_envelope("more-tokens", c) for c in compute]
    np.testing.assert_allclose(np.exp(found.log_value[0]), truth, rtol=2e-3)


def test_no_point_on_the_same_compute_lies_below_the_envelope():
    one, compute = arm("base", 0.013), 1e11
    found = envelope(one, np.array([compute]))
    s = one.solution
    for shift in (-0.3, -0.05, 0.05, 0.3):
        u = found.log_params[0, 0] + shift
        k = np.exp(np.interp(u, one.log_sizes, one.log_flops))
        d = compute / k / np.exp(u)
        other = (
            s.floor[0]
            + s.amplitudes[0, 0] * np.exp(-s.exponents[0, 0] * u)
            + s.amplitudes[0, 1] * d ** -s.exponents[0, 1]
        )
        assert other > np.exp(found.log_value[0, 0]) * (1 - 1e-4)


def test_recommended_parameters_and_tokens_spend_the_compute():
    one, compute = arm("base", 0.013), np.array([5e10, 5e11])
    found = envelope(one, compute)
    k = np.exp(np.interp(found.log_params, one.log_sizes, one.log_flops))
    np.testing.assert_allclose(k * np.exp(found.log_params + found.log_tokens), np.tile(compute, (201, 1)), rtol=0.02)


def test_a_term_that_vanished_sends_the_best_size_to_the_end_of_the_range():
    one = arm("base", 0.013)
    one.solution.amplitudes[0, 1] = 0.0  # no dependence on data: the largest size is best
    one.solution.amplitudes[1, 0] = 0.0  # no dependence on size: the smallest
    found = envelope(one, np.array([1e11]))
    assert found.log_params[0, 0] == pytest.approx(one.log_sizes[-1] + np.log(4))
    assert found.log_params[1, 0] == pytest.approx(one.log_sizes[0] - np.log(4))
    assert np.isfinite(found.log_value).all()


def test_the_order_of_arms_and_the_crossing_are_found_within_their_intervals():
    report = noisy_report()
    for one in report.optimum:
        truth = {name: true_envelope(name, one.compute) for name in LAWS}
        best = min(truth, key=truth.__getitem__)
        assert best in (one.best, *(name for name, _ in one.not_worse))
        assert one.low * 0.99 < truth[one.best] < one.high * 1.01
    change = report.changes[-1]
    assert (change.before, change.after) == ("crt", "more-tokens")
    assert change.bracketed
    assert change.low < true_crossing("crt", "more-tokens") < change.high
    assert change.absent == 0


def test_the_exponents_are_found_within_their_intervals():
    for summary in noisy_report().arms:
        law = LAWS[summary.arm]
        assert summary.exponent.low < law["a"] * law["b"] / (law["a"] + law["b"]) < summary.exponent.high


def test_the_multiplier_is_found_within_its_interval():
    report = noisy_report()
    checked = 0
    for one in report.multipliers:
        for multiplier in one.values:
            if multiplier is not None:
                truth = compute_to_reach("base", multiplier.at) / compute_to_reach(one.arm, multiplier.at)
                assert multiplier.low < truth < multiplier.high
                checked += 1
    assert checked >= 6


def test_intervals_of_crossing_and_multiplier_cover_about_as_often_as_they_say():
    pair = {name: LAWS[name] for name in ("base", "more-tokens")}
    truth = true_crossing("base", "more-tokens")
    covered = []
    for seed in range(20):
        report = fit_report(sweep(seed=seed, laws=pair).drop(columns="gkid"), resamples=80)
        change = next(one for one in report.changes if one.after == "more-tokens")
        covered.append((change.low or 0) <= truth <= (change.high or np.inf))
        multiplier = report.multipliers[0].values[1]
        kappa = compute_to_reach("base", multiplier.at) / compute_to_reach("more-tokens", multiplier.at)
        covered.append(multiplier.low <= kappa <= multiplier.high)
    assert np.mean(covered) >= 0.85


def test_equal_arms_are_not_told_apart():
    twins = {"base": LAWS["base"], "twin": LAWS["base"]}
    report = fit_report(sweep(seed=3, laws=twins), resamples=200)
    assert all(one.not_worse for one in report.optimum)
    assert all(not one.bracketed for one in report.changes)
    middle = report.multipliers[0].values[1]
    assert middle.low < 1 < middle.high


def test_a_crossing_outside_the_data_of_many_draws_is_not_bracketed():
    near = LAWS["base"] | {"E": 26.5, "A": 6, "B": 6}
    report = fit_report(sweep(seed=3, laws={"base": LAWS["base"], "near": near}), resamples=200)
    assert len(report.changes) == 1
    assert report.changes[0].absent > 0.05
    assert not report.changes[0].bracketed


def test_leaders_carry_the_share_of_draws_that_agree():
    arms = [arm("base", 0.013), arm("more-tokens", 0.013)]
    low, high = shared_range(arms)
    led = leaders(arms, low, high)
    assert led.best[0] == "base"
    assert led.best[-1] == "more-tokens"
    assert led.probability[0] > 0.95 < led.probability[-1]
    at = int(np.argmin(np.abs(led.compute - led.changes[0].compute)))
    assert 0.25 < led.probability[at] < 0.85


def test_a_recommendation_outside_what_was_trained_is_marked():
    one = arm("base", 0.013)
    inside, outside = recommend([one], [1e11, 5e13])
    assert not (inside.params_outside)
    assert not (inside.images_outside)
    assert outside.params_outside or outside.images_outside


def test_arms_without_common_compute_have_no_shared_range():
    small, large = sweep(laws={"base": LAWS["base"]}, sizes=SIZES[:3]), sweep(laws={"crt": LAWS["crt"]})
    large["compute"] *= 1e3
    report = fit_report(pd.concat([small, large]), resamples=50)
    assert report.optimum == []
    assert "no compute is covered by every arm" in report.notes["optimum"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (4.2e10, 1.4e13, [1e11, 1e12, 1e13]),
        (8e9, 4e11, [1e10, 3e10, 1e11, 3e11]),
        (4e10, 9e11, [5e10, 1e11, 2e11, 5e11]),
    ],
)
def test_round_computes_lie_within_the_data(low, high, expected):
    assert round_computes(low, high) == expected
