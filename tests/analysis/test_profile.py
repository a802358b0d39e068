"""Profile-likelihood intervals: they cover as often as they say, and say where there is no end."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, nnls
from scipy.special import fdtri
from synthetic_sweep import LAWS as ARMS
from synthetic_sweep import sweep, true_value

from analysis.fitting import FitError, fit_law
from analysis.form import EXPONENT_BOUNDS
from analysis.laws import CHINCHILLA, POWER
from analysis.problem import Loss, Problem
from analysis.profile import Quantity, profile
from analysis.solver import solve

DRAWS = 2000


def coverage(law, x, y, noise, checks, known, seed=0):
    """Share of DRAWS data sets whose 95% interval holds the truth, for each (quantity, truth)."""
    values = y * np.exp(noise * np.random.default_rng(seed).standard_normal((DRAWS, len(y))))
    weight = np.ones_like(values)
    found = solve(law, x, values, weight, Loss(), cells=24, starts=2, tolerance=1e-10)
    problem = Problem.of(law, x, values, weight, Loss())
    dof = len(y) - len(law.parameters)
    rise = np.full(DRAWS, noise**2 * fdtri(1, 1e9, 0.95)) if known else fdtri(1, dof, 0.95) * 2 * found.objective / dof
    shares = []
    for quantity, truth in checks:
        _, low, high = profile(problem, law.centred(found.theta, problem.centre, problem.unit), quantity, rise)
        shares.append(float(np.mean((low <= truth) & (truth <= high))))
    return shares


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("points", "decades", "floor"), [(5, 1.5, 2), (6, 2, 2), (8, 3, 2), (12, 3, 2), (6, 2, 0)])
def test_intervals_of_a_power_law_cover_at_their_level(points, decades, floor, known):
    """E + 10 x^-.4 with 1.3% noise: the exponent, and the value ten times beyond the data."""
    x = np.geomspace(1, 10**decades, points)
    beyond = np.array([10.0 ** (decades + 1)])
    checks = [(Quantity(2), 0.4), (Quantity(x=beyond), np.log(floor + 10 * beyond[0] ** -0.4))]
    for share in coverage(POWER, x[:, None], floor + 10 * x**-0.4, 0.013, checks, known):
        assert 0.93 <= share <= 0.97


def test_intervals_of_a_sweeps_joint_law_cover_at_their_level():
    """4 sizes x 3 lengths, 1.3% noise: floor, envelope exponent, and values within and twice beyond the data."""
    arm, law = ARMS["more-tokens"], CHINCHILLA
    table = sweep(noise=0, laws={"more-tokens": arm})
    inside, beyond = np.array([60_000, 40_000 * 36.0]), np.array([328_000, 128_000 * 36.0])
    checks = [
        (Quantity(0), arm["E"]),
        (Quantity(name="exponent"), arm["a"] * arm["b"] / (arm["a"] + arm["b"])),
        (Quantity(x=inside), np.log(true_value(arm, *inside))),
        (Quantity(x=beyond), np.log(true_value(arm, *beyond))),
    ]
    x = table[["params", "tokens_seen"]].to_numpy(float)
    for share in coverage(law, x, table["gfid"].to_numpy(), 0.013, checks, known=False):
        assert 0.93 <= share <= 0.97


def curve(noise=0.01, points=8, floor=2.0, seed=0):
    x = np.geomspace(1, 1e3, points)
    y = (floor + 10 * x**-0.4) * np.exp(noise * np.random.default_rng(seed).standard_normal(points))
    return pd.DataFrame({"x": x, "y": y})


def test_at_the_ends_of_an_interval_the_refitted_sum_of_squares_has_risen_by_the_quantile():
    table = curve()
    fit = fit_law(table, "power_floor", "x", "y")
    for end in fit.interval("E"):
        held = fit_law(table, "power_floor", "x", "y", floor=end)
        rise = 2 * (held.objective_value - fit.objective_value) / (2 * fit.objective_value / fit.dof)
        assert rise == pytest.approx(fdtri(1, fit.dof, 0.95), rel=5e-3)


def test_a_higher_level_is_wider_and_known_noise_uses_its_own_quantile():
    table = curve()
    fit, known = fit_law(table, "power_floor", "x", "y"), fit_law(table, "power_floor", "x", "y", noise=0.01)
    narrow, wide = fit.interval("alpha", 0.68), fit.interval("alpha", 0.95)
    assert wide[0] < narrow[0] < fit.params["alpha"] < narrow[1] < wide[1]
    assert np.diff(known.interval("alpha")) < np.diff(
        fit_law(table, "power_floor", "x", "y", noise=0.02).interval("alpha")
    )
    assert "weighted by measured noise" in known.objective


def test_a_floor_that_may_be_zero_has_an_interval_that_ends_there():
    fit = fit_law(curve(floor=0.0, points=6), "power_floor", "x", "y")
    assert fit.interval("E")[0] == 0


def test_an_end_that_the_data_do_not_hold_is_the_bound_of_the_search():
    """One degree of freedom over half a decade bounds no exponent above; a pure power law has no bend at s > 0."""
    x = np.array([1, 1.5, 2.2, 3.3])
    y = (5 + 10 / x) * np.exp([0.02, -0.02, 0.01, -0.01])
    assert fit_law(pd.DataFrame({"x": x, "y": y}), "power_floor", "x", "y").interval("alpha")[1] == EXPONENT_BOUNDS[1]
    low, high = fit_law(curve(points=12), "shifted", "x", "y").interval("s")
    assert low < 1e-3 < 0.1 < high < 1e3


def test_amplitudes_and_lengths_have_positive_intervals_in_their_own_units():
    x = np.geomspace(1, 1e4, 12)
    y = (2 + 30 * (x + 20) ** -0.6) * np.exp(0.002 * np.random.default_rng(0).standard_normal(12))
    fit = fit_law(pd.DataFrame({"x": x, "y": y}), "shifted", "x", "y")
    for name, truth in (("A", 30), ("s", 20)):
        low, high = fit.interval(name)
        assert 0 < low < truth < high


def test_a_new_run_lies_in_a_wider_band_than_the_law():
    fit = fit_law(curve(), "power_floor", "x", "y")
    ahead = pd.DataFrame({"x": [10.0, 1e4]})
    law, run = fit.value_interval(ahead), fit.value_interval(ahead, new_run=True)
    assert (run["low"] < law["low"]).all()
    assert (law["high"] < run["high"]).all()
    assert np.log(law["high"] / law["low"]).iloc[1] > np.log(law["high"] / law["low"]).iloc[0]


@pytest.mark.parametrize(
    ("options", "ask", "message"),
    [
        ({"objective": "lad"}, {"method": "profile"}, "a profile needs objective ls"),
        ({}, {"method": "exact"}, "method 'exact' is none of"),
    ],
)
def test_an_interval_that_cannot_be_given_is_refused(options, ask, message):
    with pytest.raises(FitError, match=message):
        fit_law(curve(), "power_floor", "x", "y", **options).interval("E", **ask)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_ends_of_a_weakly_fixed_law_are_those_of_a_search_over_all_its_valleys(seed):
    """Noise of 5% leaves several valleys: at an end of the exponent's interval the best refit has risen as it says."""
    table = sweep(noise=0.05, seed=seed, laws={"base": ARMS["base"]})
    fit = fit_law(table, y="gfid")
    u = np.log(fit.x) - np.log(fit.x).mean(axis=0)

    def left(exponent):
        """The least sum of squares over all shapes with ab/(a+b) = exponent."""
        best = np.inf
        for a in np.geomspace(max(exponent * 1.001, 0.02), 3, 40):
            b = exponent * a / (a - exponent)
            if not 0.02 <= b <= 3:
                continue
            columns = np.stack([np.ones(len(u)), np.exp(-a * u[:, 0]), np.exp(-b * u[:, 1])], axis=1)
            start = np.maximum(nnls(columns / fit.y[:, None], np.ones(len(u)))[0], 1e-6)
            found = least_squares(lambda c: np.log(fit.y / (columns @ c)), start, bounds=(1e-12, np.inf))  # noqa: B023
            best = min(best, 2 * found.cost)
        return best

    ends = [end for end in fit.interval("exponent") if 0.021 < end < 1.49]  # the bound of the search is no crossing
    assert ends
    for end in ends:
        rise = (left(end) - 2 * fit.objective_value) / (2 * fit.objective_value / fit.dof)
        assert rise == pytest.approx(fdtri(1, fit.dof, 0.95), rel=0.05)
