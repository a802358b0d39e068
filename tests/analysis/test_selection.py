"""AICc chooses, the rolling origin tells how far a choice carries, and the forms' spread widens what lies beyond."""

import numpy as np
import pandas as pd
import pytest

from analysis import compare, fit_law
from analysis.fitting import FitError
from analysis.selection import aicc, rolling_origin, with_forms


def points(formula, noise=0.003, count=14, seed=0):
    x = np.geomspace(1, 1e4, count)
    return pd.DataFrame({"x": x, "y": formula(x) * np.exp(noise * np.random.default_rng(seed).standard_normal(count))})


@pytest.mark.parametrize(
    ("law", "formula"),
    [
        ("power", lambda x: 5 * x**-0.4),
        ("power_floor", lambda x: 2 + 10 * x**-0.4),
        ("shifted", lambda x: 2 + 30 * (x + 20) ** -0.6),
        ("m4", lambda x: 2 + 8 / (1 + (x / 40) ** 0.7)),
    ],
)
def test_auto_finds_the_law_that_made_the_points(law, formula):
    fit = fit_law(points(formula), "auto", "x", "y")
    assert fit.law.name == law
    assert fit.selection["law"].iloc[0] == law
    assert fit.selection["weight"].sum() == pytest.approx(1)


def test_auto_of_two_inputs_weighs_chinchilla_against_kaplan():
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(1e4, 1e6, 4), np.geomspace(1e5, 1e7, 4)))
    y = (2 + 30 * n**-0.4 + 90 * d**-0.35) * np.exp(0.003 * np.random.default_rng(0).standard_normal(16))
    fit = fit_law(pd.DataFrame({"N": n, "D": d, "loss": y}), "auto", ["N", "D"], objective="huber")
    assert fit.law.name == "chinchilla"
    assert fit.loss.objective == "huber"


def test_aicc_is_its_formula():
    fit = fit_law(points(lambda x: 2 + 10 * x**-0.4), "power_floor", "x", "y")
    squares, n, k = float(fit.residuals @ fit.residuals), 14, 4
    assert aicc(fit) == pytest.approx(n * np.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def test_a_law_without_room_is_shown_with_its_reason_and_no_weight():
    found = compare(points(lambda x: 2 + 10 * x**-0.4, count=6), ["x"], "y").set_index("law")
    assert found.loc["broken", "weight"] == 0
    assert "no room" in found.loc["broken", "reason"]


def test_nothing_to_choose_from_is_said():
    with pytest.raises(FitError, match=r"no law of 1 inputs can be chosen: 2 distinct values of x"):
        compare(points(lambda x: 1 / x).iloc[:2], ["x"], "y")
    with pytest.raises(FitError, match="law auto needs its inputs"):
        fit_law(points(lambda x: 1 / x), "auto", None, "y")


def test_the_rolling_origin_predicts_each_value_from_those_before():
    table = points(lambda x: 2 + 10 * x**-0.4, count=6, noise=0.01)
    fit = fit_law(table, "power_floor", "x", "y")
    steps, last = rolling_origin(fit, table)
    assert [mark for mark, _ in steps] == pytest.approx(list(table["x"][3:]))
    small = fit_law(table.iloc[:5], "power_floor", "x", "y")
    assert last == pytest.approx(abs(np.log(table["y"].iloc[5] / small.predict(table.iloc[5:])[0])))


def test_a_wrong_form_fits_within_and_is_caught_by_the_rolling_origin():
    """A curve that bends late: a power law without floor fits its start well and misses its end."""
    table = points(lambda x: 2 + 30 * (x + 300) ** -0.6, noise=0.002)
    errors = {law: rolling_origin(fit_law(table, law, "x", "y"), table)[1] for law in ("power", "shifted")}
    assert errors["power"] > 5 * errors["shifted"]


def test_the_spread_over_forms_widens_what_lies_beyond_and_hardly_what_lies_within():
    table = points(lambda x: 2 + 30 * (x + 20) ** -0.6, noise=0.01, count=10)
    fit = fit_law(table, "auto", "x", "y")
    ahead = pd.DataFrame({"x": [100.0, 1e6]})
    plain, whole = fit.value_interval(ahead, new_run=True), with_forms(fit, table, ahead)
    ratio = np.log(whole["high"] / whole["low"]) / np.log(plain["high"] / plain["low"])
    assert ratio.iloc[0] < 1.2
    assert ratio.iloc[1] > ratio.iloc[0]
    assert list(whole["decades"]) == pytest.approx([0, 2])
