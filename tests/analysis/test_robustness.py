"""What is said of an answer that changes under fewer runs, another guidance, seed count, protocol or metric."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.arms import fit_arms
from analysis.inputs import FitError
from analysis.optimum import Recommendation, recommend
from analysis.robustness import (
    best_guidance,
    guidance_caution,
    second_opinion,
    shift,
    split_protocols,
    undecided,
    unequal_seeds,
    within_epochs,
    within_said,
)
from analysis.table import TableError, validate

PAIR = {name: LAWS[name] for name in ("base", "crt")}


def best(compute: float, arm: str, lead: float | None = 1.0, not_worse: tuple[str, ...] = ()) -> Recommendation:
    close = tuple((name, 31.0) for name in not_worse)
    return Recommendation(compute, arm, 30.0, 29.0, 31.0, 0.9, 1e5, 1e6, 1e4, False, False, close, lead)


def arm(name: str, **params: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, fit=SimpleNamespace(params=params))


# ------------------------------------------------------------------------------- repeated data


def test_runs_within_the_epochs_are_kept_and_counted():
    table = sweep(laws=PAIR)
    table.loc[table["images_seen"] == 64_000, "epochs"] = 9.0
    kept = within_epochs(table)
    assert set(kept["images_seen"]) == {16_000, 32_000}
    assert within_said(table, kept) == "within 4 epochs (16 of 24 runs)"
    assert len(within_epochs(table, 0.3)) == 8


def test_without_repetition_or_its_column_there_is_nothing_to_refit():
    table = sweep(laws=PAIR)
    assert within_epochs(table) is None
    assert within_epochs(table.drop(columns="epochs").assign(other=1)) is None
    assert within_epochs(table.assign(epochs=np.nan)) is None
    table.loc[0, ["epochs", "state"]] = [9.0, "pending"]
    assert within_epochs(table) is None


def test_the_shift_names_exponents_and_the_best_arm_that_change():
    found = shift(
        [arm("base", exponent=0.66), arm("crt", exponent=0.501)],
        [arm("base", exponent=0.71), arm("crt", exponent=0.502)],
        [best(1e11, "crt"), best(1e12, "crt")],
        [best(1e11, "base"), best(1e12, "crt")],
    )
    assert found.exponents == {"base": (0.66, 0.71), "crt": (0.501, 0.502)}
    assert found.texts("within 4 epochs (30 of 48 runs)") == [
        "within 4 epochs (30 of 48 runs): exponent of base .66 -> .71; best at 1e11 FLOPs crt -> base"
    ]


def test_an_answer_that_does_not_shift_is_said_to_be_the_same():
    same = [arm("base", exponent=0.66)]
    assert shift(same, same).texts("here") == ["here: exponents and the best arm are the same"]


def test_arms_that_can_no_longer_be_fitted_are_named_and_not_compared():
    found = shift(
        [arm("base", exponent=0.6), arm("crt", exponent=0.5)],
        [arm("base", exponent=0.6)],
        [best(1e11, "crt"), best(1e12, "base")],
        [best(1e11, "base"), best(1e12, "base")],
    )
    assert found.best == ()
    assert found.texts("kept") == [
        "kept: exponents and the best arm are the same",
        "kept: crt can no longer be fitted",
    ]


def test_repetition_that_bends_a_law_shows_as_a_shift_of_real_fits():
    lengths = (8_000, 16_000, 32_000, 64_000, 128_000)
    table = sweep(noise=0.002, laws={"base": LAWS["base"]}, lengths=lengths).assign(epochs=lambda t: t["images_seen"])
    table["gfid"] *= np.where(table["images_seen"] == 128_000, 1.06, 1.0)
    kept = within_epochs(table, 64_000)
    fits, _ = fit_arms(table, "gfid", 20, 0)
    fewer, _ = fit_arms(kept, "gfid", 20, 0)
    before, after = shift(fits, fewer).exponents["base"]
    assert abs(after - 0.4) < abs(before - 0.4)  # the truth: .8 * .8 / 1.6


# ------------------------------------------------------------------------------------ guidance


def guided(optima: dict[str, float], tried: tuple[float, ...] = (1.0, 1.5, 2.0), **kwargs: object) -> pd.DataFrame:
    """A sweep under several guidances: gfid least at an arm's own guidance; protocol and hash as the store has them."""
    tables = []
    for guidance in tried:
        table = sweep(laws=PAIR, **kwargs)
        table["gfid"] *= 1 + (guidance - table["arm"].map(optima)) ** 2
        said = table["protocol"].str.replace("guidance 1.0", f"guidance {guidance}")
        tables.append(table.assign(guidance=guidance, protocol=said, protocol_hash=f"hash-{guidance}"))
    return pd.concat(tables, ignore_index=True)


def test_each_run_is_taken_at_its_best_guidance():
    found = best_guidance(guided({"base": 1.4, "crt": 2.0}))
    assert len(found) == 24
    assert found.groupby("arm")["guidance"].unique().map(list).to_dict() == {"base": [1.5], "crt": [2.0]}
    assert found.groupby("arm")["guidance_edge"].all().to_dict() == {"base": False, "crt": True}
    assert found["protocol"].unique() == [
        "gFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000, best guidance",
    ]
    fits, left = fit_arms(validate(found, ("gfid", "params")), "gfid", 20, 0)
    assert [one.name for one in fits] == ["base", "crt"]
    assert left == []


def test_evaluation_seeds_of_a_run_share_the_guidance_of_their_mean():
    table = guided({"base": 1.4, "crt": 1.4}, repeats=3)
    one = (table["run"] == table["run"].iloc[0]) & (table["evaluation_seed"] == 0) & (table["guidance"] == 1.0)
    table.loc[one, "gfid"] *= 0.8
    found = best_guidance(table)
    assert len(found) == 72
    assert set(found["guidance"]) == {1.5}


@pytest.mark.parametrize(
    ("tried", "optimum", "edge"),
    [
        ((1.0, 1.5, 2.0), 1.0, False),  # guidance off is the natural end
        ((1.5, 2.0, 2.5), 1.5, True),
        ((1.5, 2.0, 2.5), 2.0, False),
        ((1.0, 1.5), 1.5, True),
        ((1.5,), 1.5, False),
    ],
)
def test_the_upper_end_and_a_lower_end_above_one_are_edges(tried, optimum, edge):
    found = best_guidance(guided({"base": optimum, "crt": optimum}, tried))
    assert (found["guidance_edge"] == edge).all()


def test_runs_at_the_edge_are_counted_by_arm():
    table = guided({"base": 1.4, "crt": 2.0})
    one = table["run"] == "base-16x2-16000-s0"
    table.loc[one & (table["guidance"] == 2.0), "gfid"] = 1.0
    said = [
        "guidance: the best is at the edge of what was tried in 13 of 24 runs (crt 12, base 1): extend the search; "
        "the law of the best is clipped there."
    ]
    assert guidance_caution(table) == said
    assert guidance_caution(best_guidance(table)) == said


def test_one_guidance_has_no_edge():
    assert guidance_caution(sweep()) == []
    assert guidance_caution(sweep().drop(columns="guidance")) == []
    assert guidance_caution(guided({"base": 1.4, "crt": 1.6})) == []


def test_runs_without_a_value_stay_for_their_rates_and_complaints():
    table = guided({"base": 1.4, "crt": 1.4})
    lost, empty = table["run"] == table["run"].iloc[0], table["run"] == table["run"].iloc[1]
    table.loc[lost, ["state", "gfid"]] = ["diverged", np.nan]
    table.loc[empty, "gfid"] = np.nan
    found = best_guidance(table)
    assert found["run"].nunique() == 24
    assert not found[found["state"] == "diverged"]["guidance_edge"].any()
    with pytest.raises(TableError, match="gfid of run"):
        validate(found, ("gfid",))
    assert len(best_guidance(table.assign(state="pending"))) == 72


def test_protocols_that_differ_in_more_than_guidance_are_not_mixed():
    table = guided({"base": 1.4, "crt": 1.4})
    other = table.assign(protocol=table["protocol"].str.replace("cnn@1", "cnn@2"), protocol_hash="other")
    with pytest.raises(TableError, match="2 protocols that differ in more than guidance"):
        best_guidance(pd.concat([table, other]))
    with pytest.raises(TableError, match="2 protocols at guidance 1: take"):
        best_guidance(pd.concat([table, table.assign(protocol_hash="other")]))
    with pytest.raises(TableError, match="needs column guidance"):
        best_guidance(table.drop(columns="guidance"))


# --------------------------------------------------------------------------------------- seeds


def test_unequal_tokenizer_seeds_are_said_and_equal_ones_are_not():
    table = sweep(laws=PAIR, tokenizer_seeds=3)
    assert unequal_seeds(table) == []
    fewer = table[(table["arm"] == "base") | (table["tokenizer_seed"] == 0)]
    assert unequal_seeds(fewer) == [
        "tokenizer seeds differ between arms (base 3, crt 1): an arm with more seeds is known better, not better; "
        "compare at equal seeds or rerun all arms near the optimum."
    ]


def test_seeds_that_differ_between_cells_alone_or_by_lost_runs_are_equal():
    table = sweep(laws=PAIR, tokenizer_seeds=3)
    at_one = table[(table["size"] == "32x2") | (table["tokenizer_seed"] == 0)]
    assert unequal_seeds(at_one) == []
    one_cell = at_one[~((at_one["arm"] == "crt") & (at_one["tokenizer_seed"] == 2))]
    assert "(base 3, crt 2)" in unequal_seeds(one_cell)[0]
    assert unequal_seeds(table.assign(state=np.where(table["tokenizer_seed"] == 2, "diverged", "done"))) == []
    assert unequal_seeds(table.drop(columns="tokenizer_seed")) == []


# ------------------------------------------------------------------------- protocols and metrics


def test_protocols_are_split_in_order_of_appearance():
    table = sweep(laws=PAIR)
    other = table.assign(protocol_hash="zzz", gfid=table["gfid"] * 2)
    both = pd.concat([other, table, table.assign(protocol_hash=None)], ignore_index=True)
    both.loc[0, "state"] = "failed"
    found = split_protocols(both)
    assert {key: len(rows) for key, rows in found.items()} == {"zzz": 23, "abc123": 24, "": 24}
    assert list(found) == ["zzz", "abc123", ""]
    assert list(split_protocols(table.drop(columns="protocol_hash"))) == [""]


def test_protocols_are_split_at_one_guidance():
    table = guided({"base": 1.4, "crt": 1.4})
    assert list(split_protocols(table)) == ["hash-1.0", "hash-1.5", "hash-2.0"]
    assert list(split_protocols(table, 1.5)) == ["hash-1.5"]


def test_a_second_opinion_says_where_it_differs_and_whether_within_noise():
    first = [best(1e10, "base"), best(1e11, "crt"), best(1e12, "crt")]
    second = [best(1e10, "base"), best(1e11, "base", not_worse=("crt",)), best(1e12, "base")]
    assert second_opinion(first, second, "dinov2") == [
        "dinov2 puts another arm first: base at 1e11 FLOPs (crt no worse within noise there), "
        "base at 1e12 FLOPs (crt worse there). The optimum is flagged there."
    ]
    assert second_opinion(first, first, "KID") == []
    with pytest.raises(FitError, match="by KID is at other computes"):
        second_opinion(first, second[:2], "KID")


def test_a_second_opinion_of_fitted_arms_finds_the_other_leader():
    table = sweep(laws=PAIR, noise=0.002)
    other = table.assign(gfid=table["gfid"] * np.where(table["arm"] == "crt", 1.2, 1.0))
    found = []
    for one in (table, other):
        fits, _ = fit_arms(one, "gfid", 20, 0)
        found.append(recommend([fit.arm for fit in fits], [1e11]))
    assert second_opinion(*found, "dinov2") == [
        "dinov2 puts another arm first: base at 1e11 FLOPs (crt worse there). The optimum is flagged there."
    ]


def test_a_small_lead_is_undecided_unless_kid_confirms_it():
    fid = best(1e11, "crt", lead=0.3)
    assert undecided(fid, 0.7)
    assert undecided(fid, 0.7, best(1e11, "base"))
    assert undecided(fid, 0.7, best(1e11, "crt", not_worse=("base",)))
    assert not undecided(fid, 0.7, best(1e11, "crt"))


def test_a_lead_above_the_floor_or_without_a_rival_is_decided():
    fid = best(1e11, "crt", lead=0.3)
    assert not undecided(fid, 0.2, best(1e11, "base"))
    assert not undecided(fid, None)
    assert not undecided(replace(fid, lead=None), 0.7)
