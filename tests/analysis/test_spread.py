"""Spreads of nested repeats are found again, and the pure-error test rejects as often as it says."""

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.fitting import fit_law
from analysis.inputs import FitError
from analysis.spread import Spread, described, lack_of_fit, measured_spread, over_noise
from analysis.table import TableError


def nested(
    seed: int,
    cells: int = 12,
    tokenizers: int = 3,
    generators: int = 2,
    evaluations: int = 2,
    spreads: tuple[float, float, float] = (0.02, 0.012, 0.005),
) -> pd.DataFrame:
    """Cells x tokenizers x generators x evaluations, each level with its own effect on ln y; all nested."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell in range(cells):
        for t in range(tokenizers):
            tokenizer = spreads[0] * rng.standard_normal()
            for g in range(generators):
                generator = spreads[1] * rng.standard_normal()
                for e in range(evaluations):
                    value = 30 * np.exp(0.1 * cell + tokenizer + generator + spreads[2] * rng.standard_normal())
                    names = {"run": f"r{cell}-{t}-{g}", "arm": f"a{cell}", "size": "16x2", "images_seen": 1000}
                    seeds = {"tokenizer_seed": t, "generator_seed": g, "evaluation_seed": e}
                    rows.append(names | seeds | {"state": "done", "guidance": 1.0, "gfid": value})
    return pd.DataFrame(rows)


def test_components_of_nested_repeats_are_found_apart():
    found = measured_spread(nested(0, cells=300), "gfid")
    assert found.sampling == pytest.approx(0.005, rel=0.05)
    assert found.generator == pytest.approx(0.012, rel=0.06)
    assert found.tokenizer == pytest.approx(0.02, rel=0.08)
    assert (found.sampling_dof, found.generator_dof, found.tokenizer_dof) == (1800, 900, 600)
    assert found.training == pytest.approx(np.hypot(found.generator, found.tokenizer))
    assert found.training_dof == 1500
    assert not found.assumed


def test_variances_are_unbiased_where_cells_are_unequal():
    found = []
    for seed in range(60):
        table = nested(seed, cells=20, evaluations=3)
        rng = np.random.default_rng(seed + 1000)
        table = table[rng.uniform(size=len(table)) < 0.6]
        one = measured_spread(table, "gfid")
        found.append([one.tokenizer**2, one.generator**2, one.sampling**2])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(60)
    assert (np.abs(mean - np.array([0.02, 0.012, 0.005]) ** 2) < 3 * error).all()


def test_samplings_share_is_taken_out_of_the_generators():
    tables = [nested(seed, 300, 1, 3, spreads=(0, 0.01, 0.02)) for seed in range(8)]
    averaged = [measured_spread(table, "gfid").generator ** 2 for table in tables]
    assert np.sqrt(np.mean(averaged)) == pytest.approx(0.01, rel=0.12)
    once = measured_spread(tables[0][tables[0]["evaluation_seed"] == 0], "gfid")
    assert once.sampling is None
    assert once.generator == pytest.approx(np.hypot(0.01, 0.02), rel=0.05)


def test_tokenizers_hold_the_generators_share_where_no_generator_was_repeated():
    found = measured_spread(nested(0, cells=400, generators=1, evaluations=1), "gfid")
    assert found.generator is None
    assert found.training == found.tokenizer == pytest.approx(np.hypot(np.hypot(0.02, 0.012), 0.005), rel=0.06)


def test_a_tokenizer_that_serves_many_cells_counts_once():
    table = sweep(noise=0.01, seed_noise=0.02, tokenizer_seeds=3, laws={"base": LAWS["base"], "crt": LAWS["crt"]})
    found = measured_spread(table, "gfid")
    assert (found.tokenizer_dof, found.training_dof) == (4, 48)
    assert "(48 repeats, 4 more tokenizers)" in described(found)


def test_without_repeats_training_is_assumed():
    found = measured_spread(sweep(), "gfid")
    assert found == Spread(None, 0, None, 0, None, 0, 0.013, 0, True, 1.0)
    assert described(found) == "training 1.3% assumed: nothing was repeated"
    assert found.run == 0.013


def test_a_table_without_a_run_done_has_no_repeats():
    assert measured_spread(sweep().assign(state="pending"), "gfid").assumed
    assert measured_spread(sweep().assign(gkid=-0.001), "gkid").assumed


def test_values_that_an_evaluation_seed_leaves_as_they_are_are_no_repeats():
    table = sweep(repeats=2)
    assert measured_spread(table, "loss").sampling is None
    assert measured_spread(table.assign(rfid=24.0), "rfid").assumed


def test_only_rows_done_of_one_guidance_and_protocol_count():
    table = nested(0)
    doubled = pd.concat([table, table.assign(guidance=2.0, gfid=table["gfid"] ** 1.5).iloc[:-1]])
    assert measured_spread(doubled, "gfid") == measured_spread(table, "gfid")
    lost = pd.concat([table, table.assign(state="degenerate", gfid=500.0, evaluation_seed=9)])
    assert measured_spread(lost, "gfid") == measured_spread(table, "gfid")


def test_runs_that_differ_in_no_seed_are_no_repeats():
    table = nested(0, tokenizers=1, generators=1, evaluations=1)
    probe = pd.concat([table, table.assign(run=table["run"] + "-lr2", gfid=table["gfid"] * 1.2)])
    assert measured_spread(probe, "gfid").assumed
    assert measured_spread(table.drop(columns=["tokenizer_seed", "generator_seed", "evaluation_seed"]), "gfid").assumed


def test_learning_rates_are_cells_of_their_own():
    table = nested(0, generators=3)
    rates = pd.concat([table.assign(learning_rate=1e-3), table.assign(learning_rate=2e-3, gfid=table["gfid"] * 1.2)])
    rates["run"] += rates["learning_rate"].astype(str)
    assert measured_spread(rates, "gfid").generator == pytest.approx(measured_spread(table, "gfid").generator)


def test_a_missing_column_is_named():
    with pytest.raises(TableError, match="no column size, gfid"):
        measured_spread(nested(0).drop(columns=["size", "gfid"]), "gfid")


def test_the_phrase_for_a_reports_head_names_repeats():
    assert described(Spread(0.004, 30, 0.012, 12, None, 0, 0.012, 12, False, 2.0)) == (
        "training 1.2% (12 repeats), sampling .4% (30)"
    )
    assert described(Spread(0.004, 30, None, 0, None, 0, 0.013, 0, True, 2.0)) == (
        "training 1.3% assumed: no training was repeated, sampling .4% (30)"
    )


def test_a_right_law_leaves_residuals_of_the_noise():
    spread = Spread(0.004, 30, 0.012, 12, 0.02, 2, np.hypot(0.012, 0.02), 14, False, 4.0)
    assert over_noise(spread.run, spread) == 1
    assert over_noise(np.hypot(0.012, 0.002), spread, tokenizers=1) == pytest.approx(1)
    table = sweep(noise=0.01, repeats=1)
    fit = fit_law(table[table["arm"] == "base"], x=["N", "D"], y="gfid")
    assert 0.4 < over_noise(fit.residual, measured_spread(table, "gfid")) < 1.4


def simulated_p(bend: float, trials: int = 2000) -> np.ndarray:
    """p of straight lines fitted to ln y over 6 cells, 1 to 4 repeats a cell, the truth bent by `bend`."""
    cells = np.repeat(np.arange(6), [1, 4, 2, 1, 3, 2])
    x = np.stack([np.ones(len(cells)), cells], axis=1)
    hat = x @ np.linalg.pinv(x)
    rng = np.random.default_rng(0)
    y = bend * (cells - 2.5) ** 2 + 0.013 * rng.standard_normal((trials, len(cells)))
    found = [lack_of_fit(r, cells, 2) for r in y - y @ hat]
    return np.array([one.p for one in found if one is not None])


def test_the_pure_error_test_is_uniform_under_a_right_law():
    p = simulated_p(0.0)
    assert len(p) == 2000
    assert 0.03 <= np.mean(p < 0.05) <= 0.07
    assert np.abs(np.quantile(p, [0.1, 0.25, 0.5, 0.75, 0.9]) - [0.1, 0.25, 0.5, 0.75, 0.9]).max() < 0.04


def test_the_pure_error_test_rejects_a_wrong_law():
    assert np.mean(simulated_p(0.015, 300) < 0.05) > 0.95


def test_a_power_without_floor_is_rejected_where_the_truth_has_one():
    rng = np.random.default_rng(0)
    x = np.tile(np.geomspace(1e3, 1e6, 6), 3)
    table = pd.DataFrame({"params": x, "gfid": (10 + 300 * x**-0.5) * np.exp(0.01 * rng.standard_normal(18))})
    wrong, right = fit_law(table, "power", "N", "gfid"), fit_law(table, "power_floor", "N", "gfid")
    assert lack_of_fit(wrong.residuals, x, 2).p < 1e-6
    found = lack_of_fit(right.residuals, x, 3)
    assert found.p > 0.01
    assert (found.lack_dof, found.pure_dof) == (3, 12)
    assert found.pure == pytest.approx(0.01, rel=0.4)


def tokenizer_p(bend: float) -> np.ndarray:
    """p with and without clusters [trials, 2]: 3 tokenizers of 2% on each of 8 cells, runs of 1%, lines fitted."""
    cells, tokenizers = np.repeat(np.arange(8), 3), np.tile(np.arange(3), 8)
    x = np.stack([np.ones(24), cells], axis=1)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        y = bend * (cells - 3.5) ** 2 + 0.02 * rng.standard_normal(3)[tokenizers] + 0.01 * rng.standard_normal(24)
        r = y - x @ (np.linalg.pinv(x) @ y)
        found.append([lack_of_fit(r, cells, 2, tokenizers).p, lack_of_fit(r, cells, 2).p])
    return np.array(found)


def test_an_effect_shared_by_a_tokenizers_runs_is_taken_out_of_pure_error():
    right, wrong = tokenizer_p(0.0), tokenizer_p(0.003)
    assert 0.03 <= np.mean(right[:, 0] < 0.05) <= 0.07
    assert np.mean(wrong[:, 0] < 0.05) > 0.8
    assert np.mean(wrong[:, 1] < 0.05) < 0.6
    found = lack_of_fit(np.arange(24) % 7.0, np.repeat(np.arange(8), 3), 2, np.tile(np.arange(3), 8))
    assert (found.lack_dof, found.pure_dof) == (6, 14)


def test_without_repeats_or_freedom_there_is_no_test():
    r = np.array([0.1, -0.1, 0.2, 0.0])
    assert lack_of_fit(r, [1, 2, 3, 4], 2) is None
    assert lack_of_fit(r, [("16x2", 1), ("16x2", 1), ("32x2", 1), ("32x2", 1)], 2) is None
    assert lack_of_fit(np.repeat([0.1, -0.2, 0.1], 2), [1, 1, 2, 2, 3, 3], 2) is None
    assert lack_of_fit(r, [1, 1, 2, 2], 1, [1, 1, 2, 2]) is None


@pytest.mark.parametrize(("residuals", "said"), [([0.1, 0.2], "2 residuals for 3"), ([0.1, np.nan, 0], "residual 1")])
def test_residuals_that_cannot_be_tested_are_refused(residuals, said):
    with pytest.raises(FitError, match=said):
        lack_of_fit(np.array(residuals), [1, 1, 2], 1)
