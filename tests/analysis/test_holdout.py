"""Prediction before sight: what is held out, the bands of new runs, and how a prediction is scored."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, LENGTHS, sweep

from analysis.arms import fit_arms
from analysis.holdout import Predicted, from_rows, predict, score, split_largest, to_rows
from analysis.report import fit_report
from analysis.table import TableError, validate

FIVE = ((16, 2), (24, 2), (32, 2), (48, 3), (64, 3))
PAIR = {name: LAWS[name] for name in ("base", "crt")}
ONE = {"base": LAWS["base"]}
Law = Mapping[str, float]


def predicted(table: pd.DataFrame, resamples: int = 50, cells: object = None) -> tuple[list[Predicted], pd.DataFrame]:
    """Predictions of the largest size (of its lengths `cells`, where given), and its runs."""
    small, held = split_largest(validate(table))
    if cells is not None:
        held = held[held["images_seen"] == cells]
    fits, left = fit_arms(small, "gfid", resamples, 0)
    assert left == []
    return predict(fits, held), held


def said(arm: str, images: float, value: float, reach: float = 1.1) -> Predicted:
    return Predicted(arm, "64x3", images, value, value / reach, value * reach)


def measured(rows: list[tuple[str, float, float]]) -> pd.DataFrame:
    """Finished runs of 64x3: (arm, images, gFID)."""
    table = pd.DataFrame(rows, columns=["arm", "images_seen", "gfid"])
    names = [f"run-{i}" for i in range(len(rows))]
    return table.assign(run=names, size="64x3", params=1e5, state="done")


# -------------------------------------------------------------------------------------- what is held out


def test_each_arms_largest_size_is_held_out_by_its_own_parameters():
    table = sweep(laws={"base": LAWS["base"], "small-codebook": LAWS["small-codebook"]})
    table = table[(table["arm"] == "base") | (table["size"] != "64x3")]
    small, held = split_largest(table)
    assert held.groupby("arm")["size"].unique().map(list).to_dict() == {"base": ["64x3"], "small-codebook": ["48x3"]}
    assert len(small) + len(held) == len(table)
    assert not set(small.index) & set(held.index)


def test_the_largest_is_held_out_before_it_is_trained():
    table = sweep()
    table.loc[table["size"] == "64x3", ["state", "gfid"]] = ["pending", np.nan]
    small, held = split_largest(table)
    assert set(held["size"]) == {"64x3"}
    assert set(held["state"]) == {"pending"}
    assert set(small["state"]) == {"done"}


def test_an_arm_of_one_size_has_nothing_smaller_to_fit():
    table = sweep()
    with pytest.raises(TableError, match="--hold-out largest: crt has one size; there is nothing smaller to fit"):
        split_largest(table[(table["arm"] != "crt") | (table["size"] == "32x2")])
    with pytest.raises(TableError, match="needs the columns params and size"):
        split_largest(table.drop(columns="size"))


def test_what_the_held_out_runs_measured_changes_no_prediction():
    table = sweep(laws=PAIR)
    spoilt = table.assign(gfid=table["gfid"].where(table["size"] != "64x3", 3 * table["gfid"]))
    pending = table.copy()
    pending.loc[table["size"] == "64x3", ["state", "gfid"]] = ["pending", np.nan]
    reports = [fit_report(one, resamples=50, hold_out=True) for one in (table, spoilt, pending)]
    assert reports[0].predictions == reports[1].predictions == reports[2].predictions
    assert [report.score is None for report in reports] == [False, False, True]
    assert reports[0].optimum == reports[1].optimum
    assert reports[0].score.inside > reports[1].score.inside == 0


# ---------------------------------------------------------------------------------------------- the bands


def test_every_cell_of_every_arm_is_predicted_near_what_made_the_runs():
    found, held = predicted(sweep(noise=1e-5, sizes=FIVE))
    assert {(one.arm, one.size, one.images_seen) for one in found} == {
        (arm, "64x3", images) for arm in LAWS for images in LENGTHS
    }
    values = held.set_index(["arm", "images_seen"])["gfid"]
    for one in found:
        assert one.value == pytest.approx(values[one.arm, one.images_seen], rel=1e-3)
        assert one.low < one.value < one.high


def test_about_95_percent_of_new_runs_lie_in_the_profile_band():
    """Trap 6 of shared/reference/traps.md: R2 passes any falling curve, what counts is what was not fitted."""
    inside = total = 0
    for seed in range(50):
        found, held = predicted(sweep(seed=seed, sizes=FIVE, laws=ONE), 2, LENGTHS[seed % 3])
        scored = score(found, held, "gfid")
        inside, total = inside + scored.inside, total + scored.total
    assert total == 50
    assert 0.90 <= inside / total <= 0.99


def test_about_95_percent_of_new_runs_lie_in_the_band_of_draws_where_tokenizer_seeds_share_noise():
    """Trap 2 of shared/reference/traps.md: runs of one tokenizer are no independent repeats of it."""
    inside = total = 0
    for seed in range(40):
        table = sweep(seed=seed, sizes=FIVE, laws=ONE, tokenizer_seeds=3, seed_noise=0.02)
        scored = score(*predicted(table, 200), "gfid")
        inside, total = inside + scored.inside, total + scored.total
    assert total == 40 * 9
    assert 0.90 <= inside / total <= 0.99


def test_tokenizers_that_differ_widen_the_band():
    def width(seed_noise: float) -> float:
        table = sweep(laws=ONE, sizes=FIVE, tokenizer_seeds=4, seed_noise=seed_noise, seed=3)
        return float(np.mean([np.log(one.high / one.low) for one in predicted(table, 400)[0]]))

    assert width(0.05) > 1.5 * width(0.0)


def test_the_band_is_of_a_new_run_its_own_noise_beside_the_laws_uncertainty():
    for seeds, spread in ((1, 0.0), (3, 0.03)):
        table = validate(sweep(laws=ONE, sizes=FIVE, tokenizer_seeds=seeds, seed_noise=spread, seed=3))
        small, held = split_largest(table)
        cells = held.drop_duplicates("images_seen")
        (fit,), _ = fit_arms(small, "gfid", 1000, 0)
        own = 1.96 * float(np.hypot(fit.draws.noise.run, fit.draws.noise.cluster))
        logs = np.log(fit.fit.law.value(cells[["params", "tokens_seen"]].to_numpy(), fit.draws.solution.theta))
        law = np.diff(np.quantile(logs, [0.025, 0.975], axis=0), axis=0)[0] / 2
        if fit.fit.profiled:
            ends = fit.fit.value_interval(cells)
            law = np.log(ends["high"] / ends["low"]).to_numpy() / 2
        band = np.array([np.log(one.high / one.low) / 2 for one in predict([fit], held)])
        assert fit.fit.profiled == (seeds == 1)
        assert (band > 0.93 * np.hypot(law, own)).all()
        assert (np.hypot(law, own) > 1.1 * law).all(), "without a run's own noise this would pass"


def test_noisier_runs_have_a_wider_band():
    def width(noise: float) -> float:
        return float(np.mean([np.log(one.high / one.low) for one in predicted(sweep(noise=noise, laws=ONE))[0]]))

    assert width(0.03) > 2 * width(0.01)


# --------------------------------------------------------------------------------------------- the score


def test_runs_inside_the_band_are_counted_and_the_error_is_of_logarithms():
    predictions = [said("base", 16_000, 40), said("base", 32_000, 30)]
    found = score(predictions, measured([("base", 16_000, 42), ("base", 32_000, 36)]), "gfid")
    assert (found.size, found.inside, found.total) == ("64x3", 1, 2)
    assert found.error == pytest.approx(np.sqrt((np.log(42 / 40) ** 2 + np.log(36 / 30) ** 2) / 2))
    assert found.choices == ()
    assert found.regret == 0
    assert (found.before, found.stored, found.number) == (False, None, None)


def test_the_regret_is_what_following_the_prediction_costs():
    """Trap 22 of shared/reference/traps.md: the choice is scored as it was made, not as the runs came out."""
    cells = [("a", 16e3, 40), ("b", 16e3, 41), ("a", 32e3, 30), ("b", 32e3, 29)]
    predictions = [said(*cell) for cell in cells]
    rows = [("a", 16e3, 44.0), ("b", 16e3, 40.0), ("a", 32e3, 31.0), ("b", 32e3, 29.5)]
    found = score(predictions, measured(rows), "gfid")
    assert [(images, chosen, best) for images, chosen, best, _ in found.choices] == [(16e3, "a", "b"), (32e3, "b", "b")]
    assert [lost for *_, lost in found.choices] == pytest.approx([0.1, 0.0])
    assert found.regret == pytest.approx(0.1)


def test_an_arm_alone_at_a_length_is_no_choice():
    predictions = [said("a", 16e3, 40), said("b", 16e3, 41), said("a", 32e3, 30)]
    found = score(predictions, measured([("a", 16e3, 41.0), ("a", 32e3, 31.0)]), "gfid")
    assert (found.total, found.choices) == (2, ())


def test_seeds_of_a_cell_each_count_for_the_band_and_are_averaged_for_the_choice():
    predictions = [said("a", 16e3, 40), said("b", 16e3, 41)]
    rows = [("a", 16e3, 36.0), ("a", 16e3, 46.0), ("b", 16e3, 40.5)]
    found = score(predictions, measured(rows), "gfid")
    assert (found.inside, found.total) == (1, 3)
    ((_, chosen, best, lost),) = found.choices
    assert (chosen, best) == ("a", "b")
    assert lost == pytest.approx(np.sqrt(36 * 46) / 40.5 - 1)


def test_evaluations_of_one_run_are_averaged_and_it_counts_once():
    """Trap 2 of shared/reference/traps.md: sampling a run again is no second training."""
    report = fit_report(sweep(repeats=3, laws=PAIR), resamples=50, hold_out=True)
    assert report.score.total == 6
    rows = measured([("base", 16e3, 36.0), ("base", 16e3, 44.5)])
    found = score([said("base", 16e3, 40)], rows.assign(run="one", evaluation_seed=[0, 1]), "gfid")
    assert (found.inside, found.total) == (1, 1)
    assert found.error == pytest.approx(abs(np.log(np.sqrt(36 * 44.5) / 40)))


def test_runs_that_are_not_done_or_were_not_predicted_do_not_count():
    rows = measured([("base", 16e3, 40.0), ("base", 32e3, 30.0), ("other", 16e3, 20.0)])
    predictions = [said("base", 16e3, 40), said("base", 32e3, 30)]
    assert score(predictions, rows, "gfid").total == 2
    rows.loc[1, "state"] = "diverged"
    assert score(predictions, rows, "gfid").total == 1
    assert score(predictions, rows.assign(state="pending"), "gfid") is None
    assert score(predictions, rows.assign(gfid=np.nan), "gfid") is None
    assert score([], rows, "gfid") is None


def test_predictions_survive_being_stored():
    found, held = predicted(sweep(laws=PAIR))
    again = from_rows(json.loads(json.dumps(to_rows(found))))
    assert again == found
    assert score(again, held, "gfid") == score(found, held, "gfid")


def test_a_report_says_what_it_held_out_and_predicts_cells_not_trained_yet():
    table = sweep(laws=PAIR)
    table.loc[(table["size"] == "64x3") & (table["images_seen"] < 64_000), ["state", "gfid"]] = ["pending", np.nan]
    report = fit_report(table, resamples=50, hold_out=True)
    assert report.hold_out == "largest"
    assert len(report.predictions) == 6
    assert report.score.total == 2
    assert [images for images, *_ in report.score.choices] == [64_000]
    assert all(arm.runs == 9 for arm in report.arms)


@pytest.mark.parametrize("metric", ["loss", "fid"])
def test_without_hold_out_nothing_is_predicted(metric):
    report = fit_report(sweep(laws=PAIR), metric, resamples=20)
    assert (report.hold_out, report.predictions, report.score) == (None, [], None)
    held = fit_report(sweep(laws=PAIR), metric, resamples=20, hold_out=True)
    assert held.score.total == 6


def test_what_is_held_out_speaks_through_no_other_metric():
    """KID of the largest size alone makes crt best by far: the laws of the smaller sizes must not hear of it."""
    table = sweep(laws=PAIR)
    largest = table["params"] == table.groupby("arm")["params"].transform("max")
    told = table.assign(gkid=table["gkid"].where(~(largest & (table["arm"] == "crt")), table["gkid"] / 50))
    reports = [fit_report(one, resamples=50, hold_out=True) for one in (table, told)]
    assert reports[0].second_optimum == reports[1].second_optimum
    assert reports[0].warnings == reports[1].warnings
