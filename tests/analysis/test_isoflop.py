"""The IsoFLOP method against two published ladders, and against valleys whose law is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import Akima1DInterpolator

from analysis.fitting import FitError
from analysis.isoflop import isoflop

FITDATA = Path(__file__).parents[2].parent / "shared" / "fitdata"
CONFIGURATION = ["source", "dataset", "hparams", "warmup", "decay", "param_count", "val"]


def reference(*parts: str) -> pd.DataFrame:
    path = FITDATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data not here: {path}")
    return pd.read_csv(path)


def ladder(budgets=5, points=7, noise=0.0, seed=0, exponent=0.5, shift=0.0, bend=0.05) -> pd.DataFrame:
    """Parabolic valleys of ln y with minima at 3 C^exponent, in a grid of +-`points` steps off by `shift`."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in np.geomspace(1e6, 1e9, budgets):
        best = np.log(3 * c**exponent)
        for u in np.linspace(-1.5, 1.5, points) + shift:
            value = 5 * c**-0.05 * np.exp(bend * u**2 + noise * rng.standard_normal())
            rows.append({"C": c, "N": np.exp(best + u), "loss": value})
    return pd.DataFrame(rows)


def test_all_fifteen_published_exponents_of_porian_are_reproduced_with_akima():
    points, published = reference("formll", "isoflop_points.csv"), reference("formll", "reference_fits.csv")
    expected = published.set_index(CONFIGURATION)["n_exponent_basic"]
    groups = {key: isoflop(rows, "flops", "n", "loss") for key, rows in points.groupby(CONFIGURATION)}
    assert len(groups) == 15
    errors = {key: found.exponent - expected.loc[key] for key, found in groups.items()}
    assert max(map(abs, errors.values())) < 0.004
    assert sum((found.optima["status"] == "edge").sum() for found in groups.values()) == 4


def test_the_optimal_tokens_of_llama_3_are_reproduced_with_a_parabola():
    points = reference("llama3_isoflops", "isoflops_points.csv")
    found = isoflop(points, "compute_budget", "training_tokens", "validation_loss", method="parabola")
    assert len(found.optima) == 10
    assert (found.optima["status"] == "ok").all()
    assert found.exponent == pytest.approx(0.5368, abs=0.002)
    assert found.coefficient == pytest.approx(0.2994, rel=0.03)
    assert float(found.predict(3.8e25)) == pytest.approx(16.1e12, rel=0.01)


@pytest.mark.parametrize("method", ["akima", "parabola"])
def test_a_known_law_is_found(method):
    found = isoflop(ladder(points=13), "C", "N", "loss", method)
    assert found.exponent == pytest.approx(0.5, abs=1e-6)
    assert found.coefficient == pytest.approx(3, rel=1e-3)
    np.testing.assert_allclose(found.predict(np.array([1e6, 1e12])), [3e3, 3e6], rtol=1e-3)
    np.testing.assert_allclose(found.optima["y"], 5 * found.optima["budget"] ** -0.05, rtol=1e-3)


def test_akimas_minimum_is_the_lowest_value_of_scipys_interpolant():
    table = ladder(budgets=1, points=9, noise=0.03, seed=4)
    found = isoflop(table, "C", "N", "loss")
    curve = Akima1DInterpolator(np.log(table["N"]), np.log(table["loss"]))
    grid = np.linspace(np.log(table["N"].min()), np.log(table["N"].max()), 200_001)
    assert np.log(found.optima["x"][0]) == pytest.approx(grid[np.argmin(curve(grid))], abs=2e-5)
    assert np.log(found.optima["y"][0]) == pytest.approx(curve(grid).min(), abs=1e-9)


@pytest.mark.parametrize("method", ["akima", "parabola"])
def test_budgets_with_their_minimum_at_an_end_are_marked_and_left_out_of_the_law(method):
    table = ladder(points=13)
    last = table["C"].max()
    table = table[(table["C"] < last) | (table["N"] > 3 * last**0.5 * np.exp(0.2))]
    found = isoflop(table, "C", "N", "loss", method)
    assert list(found.optima["status"]) == ["ok"] * 4 + ["edge"]
    assert found.optima["x"].iloc[-1] == pytest.approx(table.loc[table["C"] == last, "N"].min())
    assert found.exponent == pytest.approx(0.5, abs=0.005)


def test_a_ridge_is_no_valley_for_a_parabola_and_a_flat_budget_for_neither():
    ridge = isoflop(ladder(bend=-0.05), "C", "N", "loss", "parabola")
    assert set(ridge.optima["status"]) == {"not a valley"}
    for method in ("akima", "parabola"):
        assert set(isoflop(ladder(bend=0.0), "C", "N", "loss", method).optima["status"]) == {"not a valley"}


def test_a_budget_with_too_few_points_says_so_and_without_two_minima_there_is_no_law():
    found = isoflop(ladder(budgets=2, points=4), "C", "N", "loss", "akima")
    assert set(found.optima["status"]) == {"too few points"}
    assert np.isnan(found.exponent)
    for ask in (lambda: found.predict(1e9), lambda: found.interval(0.01)):
        with pytest.raises(FitError, match=r"0 of 2 budgets .* widen"):
            ask()


def test_budgets_that_differ_by_rounding_are_one_and_repeats_of_a_point_are_averaged():
    table = ladder()
    wobble = table["C"] * (1 + 1e-9 * np.arange(len(table)))
    twice = pd.concat(
        [table.assign(C=wobble, loss=table["loss"] * np.exp(0.02)), table.assign(loss=table["loss"] / np.exp(0.02))]
    )
    for method in ("akima", "parabola"):
        one, two = isoflop(table, "C", "N", "loss", method), isoflop(twice, "C", "N", "loss", method)
        assert len(two.optima) == 5
        assert list(two.optima["points"]) == [7] * 5
        assert two.exponent == pytest.approx(one.exponent, abs=1e-6)


def test_the_interval_covers_a_known_exponent_as_often_as_it_says():
    covered = []
    for seed in range(200):
        low, high = isoflop(ladder(noise=0.01, seed=seed), "C", "N", "loss", "parabola").interval(0.01, draws=200)
        covered.append(low < 0.5 < high)
    assert 0.9 < np.mean(covered) < 0.99


def test_draws_repeat_with_their_seed_and_widen_with_the_noise():
    found = isoflop(ladder(noise=0.003), "C", "N", "loss")
    np.testing.assert_array_equal(found.exponents(0.003, 50, 1), found.exponents(0.003, 50, 1))
    assert not np.array_equal(found.exponents(0.003, 50, 1), found.exponents(0.003, 50, 2))
    assert found.exponents(0.01).std() > 1.5 * found.exponents(0.003).std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "spline"}, "none of akima, parabola"),
        ({"x": "width"}, "column 'width' is not in the table"),
        ({"table": ladder().iloc[:0]}, "no rows"),
        ({"table": ladder().assign(loss=-1.0)}, "loss of row 0 is -1.0, not a positive number"),
        ({"table": ladder().assign(N=np.nan)}, "N of row 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    with pytest.raises(FitError, match=message) as caught:
        isoflop(**{"table": ladder(), "budget": "C", "x": "N", "y": "loss"} | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"noise": 0.0}, {"noise": float("nan")}, {"noise": 0.01, "draws": 1}])
def test_an_interval_needs_a_noise_and_draws(options):
    with pytest.raises(FitError):
        isoflop(ladder(), "C", "N", "loss").interval(**options)
