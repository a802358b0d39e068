"""Fits of known laws: what is found, what is refused, and in which words. Published data: test_references."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from analysis.fitting import FitError, fit_law, fit_pinned, interval
from analysis.laws import CHINCHILLA, POWER, paper_frontier


def known(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 5)))
    y = 2 + 30 * n**-0.4 + 90 * d**-0.35
    return pd.DataFrame(
        {"N": n, "D": d, "loss": y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))}
    )


def test_a_noiseless_law_is_found_exactly():
    fit = fit_law(known())
    expected = {"E": 2, "A": 30, "B": 90, "alpha": 0.4, "beta": 0.35, "exponent": 0.4 * 0.35 / 0.75}
    assert fit.params == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(fit.predict(known()), known()["loss"], rtol=1e-8)


def test_no_general_optimiser_finds_a_lower_objective():
    table = known(noise=0.02)
    fit = fit_law(table)
    n, d, y = (table[name].to_numpy() for name in ("N", "D", "loss"))

    def cost(p):
        return (
            np.sum(np.log(y / (np.exp(p[0]) + np.exp(p[1] - p[3] * np.log(n)) + np.exp(p[2] - p[4] * np.log(d)))) ** 2)
            / 2
        )

    best = min(minimize(cost, [np.log(e), 3, 4, 0.4, 0.4], method="BFGS").fun for e in (0.5, 1.5, 2.2))
    assert fit.objective_value <= best * (1 + 1e-7)


def test_an_outlier_moves_huber_less_than_least_squares():
    table = known(noise=0.001)
    table.loc[24, "loss"] *= 1.3
    error = {name: abs(fit_law(table, objective=name, delta=1e-3).params["E"] - 2) for name in ("ls", "huber")}
    assert error["huber"] < error["ls"] / 5


@pytest.mark.parametrize(("law", "floor"), [("power", 0.0), ("power_floor", 3.0)])
def test_laws_of_one_input_are_found(law, floor):
    x = np.geomspace(10, 1e4, 8)
    fit = fit_law(pd.DataFrame({"compute": x, "gfid": floor + 50 * x**-0.5}), law, ["C"], "gfid")
    assert fit.params["alpha"] == pytest.approx(0.5, abs=1e-5)
    assert fit.params["A"] == pytest.approx(50, rel=1e-4)
    assert fit.params.get("E", 0.0) == pytest.approx(floor, abs=1e-3)


def test_linear_and_log_residuals_are_each_least_by_their_own_measure():
    table = known(noise=0.05)
    log, linear = fit_law(table), fit_law(table, residual="raw")
    assert np.sum((table["loss"] - linear.fitted) ** 2) < np.sum((table["loss"] - log.fitted) ** 2)
    assert np.sum(np.log(table["loss"] / log.fitted) ** 2) < np.sum(np.log(table["loss"] / linear.fitted) ** 2)


def test_a_floor_that_is_not_there_ends_at_zero_and_is_said():
    x = np.geomspace(10, 1e4, 8)
    y = 50 * x**-0.5 * np.exp([0, 0, 0, 0, 0, 0, -0.02, -0.05])
    fit = fit_law(pd.DataFrame({"x": x, "y": y}), "power_floor", ["x"], "y")
    assert fit.params["E"] == 0
    assert any("not identified" in text for text in fit.warnings)


def test_pinned_floors_are_kept_and_the_own_floor_is_the_best_of_them():
    fit = fit_law(known(noise=0.01))
    floors = np.array([0.5, 1.5, fit.params["E"], 2.2])
    solution = fit_pinned(fit, floors)
    np.testing.assert_array_equal(solution.floor, floors)
    assert np.argmin(solution.objective) == 2
    assert solution.objective[2] == pytest.approx(fit.objective_value, rel=1e-6)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_differs_for_another():
    one, same, other = (fit_law(known(0.01)).bootstrap(50, seed)["E"].to_numpy() for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_an_interval_covers_the_truth_and_narrows_with_the_noise():
    width = []
    for noise in (0.02, 0.005):
        low, high = fit_law(known(noise)).interval("E")
        assert low < 2 < high
        width.append(high - low)
    assert width[1] < width[0] / 2


def test_an_interval_with_infinite_draws_keeps_them_in_order():
    assert interval(np.r_[np.full(5, np.inf), np.arange(95.0)]) == (2.0, np.inf)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t[t["N"] <= t["N"].unique()[1]], {}, "2 distinct values of N: a law of loss needs 3"),
        (lambda t: t.iloc[[0, 6, 12]], {}, "3 points cannot determine the 5 parameters"),
        (lambda t: t.assign(loss=-1.0), {}, "loss must be positive and finite; row 0 holds -1.0"),
        (lambda t: t.assign(D=np.nan), {}, "D must be positive and finite"),
        (lambda t: t.drop(columns="D"), {}, "no column 'tokens_seen'"),
        (lambda t: t, {"law": "sigmoid"}, "law 'sigmoid' is none of"),
        (lambda t: t, {"x": ["N"]}, "takes 2 inputs"),
        (lambda t: t, {"objective": "l1"}, "objective 'l1'"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(change, options, message):
    with pytest.raises(FitError, match=message) as refusal:
        fit_law(change(known()), **options)
    assert "\n" not in str(refusal.value)


def test_a_name_that_the_law_has_not_is_refused():
    with pytest.raises(FitError, match="no parameter 'gamma'; it has E, A, B, alpha, beta, exponent"):
        fit_law(known(0.01)).interval("gamma")


def test_few_scales_are_said():
    narrow = known()[lambda t: t["N"].isin(t["N"].unique()[:3])]
    assert any(text.startswith("N has 3 values over 1.0 decades") for text in fit_law(narrow).warnings)
    assert fit_law(known()).warnings == ()


def test_a_fit_without_a_degree_of_freedom_gives_no_interval():
    exact = known(0.01).iloc[[0, 6, 12, 18, 24]]
    with pytest.raises(FitError, match="leave the noise unknown"):
        fit_law(exact).interval("E")


def test_the_papers_frontier_is_the_power_law_with_a_floor():
    compute = np.array([1e15, 1e17])
    law = POWER.value(compute[:, None], np.array([[2.21, np.exp(8.622), 0.255]]))[0]
    np.testing.assert_allclose(paper_frontier(compute, 0.255, 8.622, 2.21), law, rtol=1e-12)
    assert float(paper_frontier(1.2e15, 0.255, 8.622, 7.43)) == pytest.approx(8.22, abs=0.02)


def test_a_law_names_its_parameters_in_order():
    assert CHINCHILLA.names == ("E", "A", "B", "alpha", "beta")


def test_points_weigh_by_their_measured_noise():
    table = known(noise=0.001)
    table.loc[20:, "loss"] *= 1.2
    loose = table.assign(sd=np.where(table.index >= 20, 10.0, 0.001))
    assert fit_law(loose, noise="sd").params["E"] == pytest.approx(2, abs=0.1)
    with pytest.raises(FitError, match="noise must be a positive standard deviation"):
        fit_law(table, noise=-1.0)


def test_a_prior_draws_the_floor_as_far_as_it_is_strong_against_the_noise():
    x = np.geomspace(1, 30, 6)
    table = pd.DataFrame({"C": x, "gfid": (2 + 10 * x**-0.4) * np.exp([0.01, -0.01, 0.01, 0, -0.01, 0.01])})
    free = fit_law(table, "paper", "C", "gfid")
    weak = fit_law(table, "paper", "C", "gfid", prior=(2.5, 0.25))
    strong = fit_law(table, "paper", "C", "gfid", prior=(2.5, 0.001))
    held = fit_law(table, "paper", "C", "gfid", floor=2.5)
    assert strong.params["Lmin"] == pytest.approx(2.5, abs=0.01)
    assert held.params["Lmin"] == 2.5
    assert abs(weak.params["Lmin"] - 2.5) < abs(free.params["Lmin"] - 2.5)
    width = [np.diff(fit.interval("Lmin"))[0] for fit in (free, weak, strong)]
    assert width[0] > width[1] > width[2]
    assert "floor drawn to 2.5 +- 25%" in weak.objective
    with pytest.raises(FitError, match="law power has no floor to hold"):
        fit_law(table, "power", "C", "gfid", floor=1.0)


def test_a_run_that_stands_twice_is_refused_by_name():
    table = known(0.01).assign(run=[f"r{i}" for i in range(25)])
    with pytest.raises(FitError, match="run 'r0' stands twice"):
        fit_law(pd.concat([table, table.iloc[:1]]))


@pytest.mark.parametrize("scheme", ["case", "wild", "noise"])
def test_each_scheme_gives_errors_of_the_size_of_the_repeated_experiment(scheme):
    found = np.std([fit_law(known(0.01, seed)).params["exponent"] for seed in range(40)])
    drawn = fit_law(known(0.01, 100)).bootstrap(400, 0, scheme)["exponent"].std()
    assert 0.5 < drawn / found < 2


def test_the_case_scheme_draws_whole_training_runs():
    """Ten checkpoints of a run are one experiment: errors are those of runs, not of points."""
    rng = np.random.default_rng(0)
    table = known().loc[lambda t: t.index.repeat(10)].reset_index(drop=True)
    table["training"] = np.repeat(np.arange(25), 10)
    table["loss"] *= np.exp(0.02 * rng.standard_normal(25)[table["training"]])
    by_run = fit_law(table, cluster="training").draws(300, 0, "case").solution.named()["exponent"].std()
    by_row = fit_law(table).draws(300, 0, "case").solution.named()["exponent"].std()
    assert by_run > 2 * by_row


def test_the_result_names_what_was_minimised():
    said = fit_law(known(), objective="huber", delta=0.01).objective
    assert said == "Huber's loss of ln y - ln f, delta 0.01"
    assert "above a point" in fit_law(known(), objective="amae", residual="raw").objective


def test_fit_law_is_offered_by_the_package():
    import analysis

    assert analysis.fit_law is fit_law
    with pytest.raises(AttributeError, match="no attribute 'fit_lore'"):
        _ = analysis.fit_lore
