"""Joint laws without a compute envelope: what is fitted, what is left out, what a surface says of the knobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS as SWEPT
from synthetic_sweep import sweep

from analysis.inputs import FitError
from analysis.joint import JointReport, fit_joint, render_joint, together
from analysis.table import validate

PAIR = {name: SWEPT[name] for name in ("small-codebook", "base")}
SIZES = ((16, 2), (24, 2), (32, 2), (48, 3), (64, 3))
LENGTHS = (4_000, 8_000, 16_000, 32_000, 64_000)
LEVELS = (10, 13, 16, 20, 26)


def surface_law(tokens: float, codes: int = 256, weight: float = 0.0) -> Mapping[str, float]:
    """gFID whose valley along T rises with compute; more codes lose less and are harder, regularising the reverse."""
    strength = 1 + weight / 0.05
    lost = 160 * tokens**-0.9 * (codes / 256) ** -0.4 * strength**0.3
    term = 6 * (tokens / 16) ** 0.6 * (codes / 256) ** 0.4 * strength**-0.4
    shape = {"K": codes, "T": tokens, "lam": weight, "a": 0.7, "b": 0.7, "rfid": 3}
    return {**shape, "E": 4 + lost, "A": term, "B": term}


def grid(laws: Mapping[str, Mapping[str, float]] = PAIR, **options: object) -> pd.DataFrame:
    return validate(sweep(laws=laws, sizes=SIZES, lengths=LENGTHS, **options))  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def of_tokens() -> JointReport:
    laws = {f"t{tokens}": surface_law(tokens) for tokens in LEVELS}
    return fit_joint(validate(sweep(laws=laws)), "gfid", "surface", resamples=50)


def test_each_arm_has_the_law_that_made_it_in_the_tables_order():
    report = fit_joint(grid(noise=1e-6), "gfid", "chinchilla", resamples=50)
    assert [one.group for one in report.fits] == ["small-codebook", "base"]
    for one, law in zip(report.fits, PAIR.values(), strict=True):
        assert one.runs == 25
        assert one.parameters["E"].value == pytest.approx(law["E"], rel=1e-3)
        assert one.parameters["alpha"].value == pytest.approx(law["a"], rel=1e-3)
        assert one.parameters["exponent"].value == pytest.approx(law["a"] * law["b"] / (law["a"] + law["b"]), rel=1e-3)
        assert one.residual < 1e-4
        assert one.rolling < 1e-3
    turned = fit_joint(grid(dict(reversed(PAIR.items()))), "gfid", "chinchilla", resamples=50)
    assert [one.group for one in turned.fits] == ["base", "small-codebook"]


def test_intervals_hold_the_truth_about_as_often_as_they_say_and_widen_with_the_noise():
    held, widths = [], []
    for seed in range(5):
        calm, loud = (fit_joint(grid(noise=n, seed=seed), "gfid", "chinchilla", resamples=50) for n in (0.004, 0.02))
        for one, other, law in zip(calm.fits, loud.fits, PAIR.values(), strict=True):
            for name, true in (("E", law["E"]), ("alpha", law["a"]), ("beta", law["b"])):
                found, wide = one.parameters[name], other.parameters[name]
                held.append(found.low <= true <= found.high)
                widths.append((wide.high - wide.low) / (found.high - found.low))
    assert sum(held) >= 0.85 * len(held)
    assert np.median(widths) > 3


def test_kaplans_law_has_no_floor_and_misses_runs_that_have_one():
    table = grid(noise=0.004)
    kaplan = fit_joint(table, "gfid", "kaplan", resamples=50)
    chinchilla = fit_joint(table, "gfid", "chinchilla", resamples=50)
    for one, other in zip(kaplan.fits, chinchilla.fits, strict=True):
        assert "E" not in one.parameters
        assert one.residual > 2 * other.residual
        assert one.rolling > other.rolling
    assert "Kaplan et al. 2020" in render_joint(kaplan)


def test_auto_weighs_the_joint_laws_and_says_which_it_took():
    report = fit_joint(grid(noise=0.004), "gfid", "auto", resamples=50)
    assert {one.law for one in report.fits} == {"chinchilla"}
    assert all(one.weights["chinchilla"] > 0.99 for one in report.fits)
    assert "chinchilla (100%)" in render_joint(report)


def test_another_objective_is_named_and_an_outlier_moves_it_less():
    """Of two objectives of one law the robust one keeps the floor where a run is off."""
    table = grid(noise=0.004)
    table.loc[7, "gfid"] *= 1.5
    squares = fit_joint(table, "gfid", "chinchilla", resamples=50).fits[0]
    huber = fit_joint(table, "gfid", "chinchilla", objective="huber", resamples=50).fits[0]
    missed = [abs(one.parameters["alpha"].value - PAIR["small-codebook"]["a"]) for one in (squares, huber)]
    assert missed[1] < missed[0]
    assert "uber" in huber.objective
    assert "least squares" in squares.objective


def test_arms_that_cannot_be_fitted_are_left_out_by_name():
    table = grid()
    table = table[(table["arm"] == "base") | (table["size"] == "16x2")]
    report = fit_joint(table, "gfid", "chinchilla", resamples=50)
    assert [one.group for one in report.fits] == ["base"]
    assert report.left_out[0][0] == "small-codebook"
    assert "left out: small-codebook (5 runs: 1 distinct values of params" in render_joint(report)
    worthless = grid().assign(gfid=lambda t: t["gfid"].where(t["arm"] == "base", 0.0))
    assert [name for name, _ in fit_joint(worthless, "gfid", "chinchilla", resamples=50).left_out] == ["small-codebook"]


def test_runs_that_are_not_done_do_not_count_and_none_done_is_refused():
    table = grid()
    table.loc[table["images_seen"] == 4_000, "state"] = "diverged"
    assert [one.runs for one in fit_joint(table, "gfid", "chinchilla", resamples=50).fits] == [20, 20]
    with pytest.raises(FitError, match="no run is done; nothing to fit yet"):
        fit_joint(table.assign(state="pending"), "gfid", "kaplan")
    with pytest.raises(FitError, match="law 'power' is none of chinchilla, kaplan, auto, surface"):
        fit_joint(table, "gfid", "power")


def test_evaluations_of_a_run_count_once():
    assert [one.runs for one in fit_joint(grid(repeats=2), "gfid", "chinchilla", resamples=50).fits] == [25, 25]


# ----------------------------------------------------------------------------------------------- surface


def test_the_surface_is_one_law_over_all_arms_and_its_best_level_is_near_the_true_one():
    report = of_tokens()
    assert [one.group for one in report.fits] == ["all arms"]
    (knob,) = report.knobs
    assert knob.knob == "tokens_per_image"
    assert knob.exponent == pytest.approx(0.2, abs=0.04)
    best = [level for _, level in knob.best]
    assert best == sorted(best)
    by_compute = dict(knob.best)
    assert by_compute[1e11] == pytest.approx(15.5, rel=0.08)  # by brute force on the laws above
    text = render_joint(report)
    assert "OPTIMUM ALONG T\n" in text
    assert "it moves as C^.19" in text or "it moves as C^.2" in text


def test_the_surface_is_fitted_to_each_arms_frontier_and_says_so():
    """Trap 5 of shared/reference/traps.md: frontier points are chosen; what is fitted to them says so."""
    report = of_tokens()
    (one,) = report.fits
    assert one.runs < 60
    assert f"fitted to each arm's Pareto frontier over compute, {one.runs} of 60 measurements." in report.warnings


def test_the_surface_takes_every_knob_of_three_values_and_fixes_the_others_where_most_runs_are():
    arms = {"base": surface_law(16)}
    arms |= {f"t{t}": surface_law(t) for t in (10, 26)} | {f"k{k}": surface_law(16, k) for k in (64, 1024)}
    arms |= {"crt": surface_law(16, weight=0.1)}
    report = fit_joint(validate(sweep(laws=arms)), "gfid", "surface", resamples=50)
    assert [knob.knob for knob in report.knobs] == ["tokens_per_image", "codebook_size"]
    assert report.knobs[0].fixed == {"codebook_size": 256}
    assert "OPTIMUM ALONG T  (codebook_size = 256)" in render_joint(report)
    with pytest.raises(FitError, match="three values of tokens_per_image, codebook_size or crt_weight; add arms"):
        fit_joint(grid(), "gfid", "surface")


def test_a_surface_that_only_falls_has_no_optimum_and_json_has_no_nan():
    levels = (10, 20, 40, 80)
    falling = {f"t{t}": {**surface_law(t), "E": 4 + 160 / t, "A": 60 / t, "B": 60 / t} for t in levels}
    report = fit_joint(validate(sweep(laws=falling, noise=0.002)), "gfid", "surface", resamples=50)
    assert np.isnan(report.knobs[0].exponent)
    assert "OPTIMUM ALONG T\nnone: the surface falls or rises all along T\n" in render_joint(report)
    kept = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert kept["knobs"][0]["exponent"] is None
    assert kept["knobs"][0]["best"][0][1] is None


# ------------------------------------------------------------------------------------------------ printed


def test_the_dictionary_is_json_in_full_precision():
    report = of_tokens()
    kept = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert kept["fits"][0]["parameters"]["r"]["value"] == report.fits[0].parameters["r"].value
    assert kept["knobs"][0]["best"][0] == list(report.knobs[0].best[0])
    assert kept["law"] == "surface"


def test_the_text_has_protocol_compute_law_table_and_warnings_in_order():
    report = fit_joint(grid(), "gfid", "chinchilla", resamples=50)
    text = render_joint(report, width=100)
    marks = ["synthetic   gFID", "protocol    gFID, shapes-cnn@1", "compute     generator", "law         y = E + A"]
    marks += ["arm ", "* error of predicting", "WARNINGS"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    prose = [line for line in text.splitlines() if not line.startswith(("arm", "base", "small-codebook"))]
    assert max(map(len, prose)) <= 100
    assert f"{report.fits[1].residual:.1%}" in next(line for line in text.splitlines() if line.startswith("base"))


def test_a_warning_of_several_arms_is_said_once():
    assert together([("a", "thin"), ("b", "thin"), ("a", "noisy")]) == ["a, b: thin.", "a: noisy."]
    alike = grid({name: SWEPT[name] for name in ("base", "crt")})
    warnings = fit_joint(alike, "gfid", "chinchilla", resamples=50).warnings
    (line,) = [text for text in warnings if "params has 5 values" in text]
    assert line.startswith("base, crt: ")


def test_the_same_table_and_seed_give_the_same_report():
    first, again, other = (fit_joint(grid(), "gfid", "chinchilla", resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first.to_dict() == again.to_dict()
    assert first.fits[0].parameters["A"].value == other.fits[0].parameters["A"].value
