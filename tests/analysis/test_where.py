"""Which rows count (`--where`) and what groups them (`--by`)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.report import fit_report
from analysis.table import TableError
from analysis.where import grouped, known_column, where


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sweep()


# ------------------------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("images_seen=32000", lambda t: t["images_seen"] == 32_000),
        ("images_seen!=32000", lambda t: t["images_seen"] != 32_000),
        ("images_seen>16_000", lambda t: t["images_seen"] > 16_000),
        ("images_seen>=32e3", lambda t: t["images_seen"] >= 32_000),
        ("images_seen<64000", lambda t: t["images_seen"] < 64_000),
        ("images_seen <= 3.2e4", lambda t: t["images_seen"] <= 32_000),
        ("arm=crt", lambda t: t["arm"] == "crt"),
        ("arm != crt", lambda t: t["arm"] != "crt"),
        ("arm=base,crt", lambda t: t["arm"].isin(["base", "crt"])),
        ("arm!=base, crt", lambda t: ~t["arm"].isin(["base", "crt"])),
        ("images_seen=16e3,64_000", lambda t: t["images_seen"] != 32_000),
        ("crt_weight=.1", lambda t: t["arm"] == "crt"),
        ("crt_weight=0", lambda t: t["arm"] != "crt"),
        ("K=64", lambda t: t["codebook_size"] == 64),
        ("T>16", lambda t: t["tokens_per_image"] > 16),
        ("N>=4e4", lambda t: t["params"] >= 4e4),
        ("D<1e6", lambda t: t["tokens_seen"] < 1e6),
        ("C>1e11", lambda t: t["compute"] > 1e11),
        ("lambda>0", lambda t: t["crt_weight"] > 0),
        ("size=64x3", lambda t: t["size"] == "64x3"),
    ],
)
def test_a_condition_keeps_the_rows_that_meet_it(table, condition, kept):
    expected = table[kept(table)]
    assert 0 < len(expected) < len(table)
    pd.testing.assert_frame_equal(where(table, [condition]), expected)


def test_all_conditions_must_hold_and_none_keeps_all(table):
    kept = where(table, ["arm=base,crt", "images_seen>=32000", "size!=16x2"])
    assert len(kept) == 2 * 2 * 3
    assert len(where(table, [])) == 48


def test_a_tables_own_column_goes_before_a_symbol_of_the_same_name(table):
    assert len(where(table.assign(C=range(48)), ["C<5"])) == 5


def test_a_missing_value_meets_no_comparison_and_is_not_equal_to_any_value(table):
    gaps = table.assign(gfid=table["gfid"].where(table["arm"] != "base"))
    assert len(where(gaps, ["gfid>0"])) == 36
    assert len(where(gaps, ["gfid!=1"])) == 48
    assert set(where(gaps.assign(arm=gaps["arm"].where(gaps["arm"] != "crt")), ["arm!=base"])["run"]) == set(
        table.loc[table["arm"] != "base", "run"]
    )


def test_numbers_read_as_text_are_compared_as_numbers(table):
    texts = table.assign(images_seen=table["images_seen"].map(str))
    assert len(where(texts, ["images_seen>=32000"])) == 32
    assert len(where(texts, ["images_seen=3.2e4"])) == 16


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("arm", "--where 'arm' is no condition; write COLUMN=VALUE, or with !=, >=, <=, >, <"),
        ("=base", "--where '=base' is no condition"),
        ("arm=", "--where 'arm=' is no condition"),
        ("", "--where '' is no condition"),
        ("parms>=1e5", "--where: the table has no column 'parms'; did you mean params?"),
        ("nothing=1", "--where: the table has no column 'nothing'; it has plan, run, state, arm"),
        ("params>=many", "--where 'params>=many': 'many' is no number to compare with"),
        ("params>=1e5,2e5", "'1e5,2e5' is no number to compare with"),
        ("params>1e12", "--where 'params>1e12' leaves no run; see the values with: scaling runs"),
        ("arm=Base", "--where 'arm=Base' leaves no run"),
        ("params>=nan", "--where 'params>=nan' leaves no run"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused_in_one_line(table, condition, said):
    with pytest.raises(TableError) as refusal:
        where(table, [condition])
    assert str(refusal.value).startswith(said) or said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_condition_that_leaves_nothing_is_the_one_named(table):
    with pytest.raises(TableError, match="'images_seen=1' leaves no run"):
        where(table, ["arm=base", "images_seen=1", "size=16x2"])


def test_the_option_that_names_an_unknown_column_is_said(table):
    with pytest.raises(
        TableError, match=r"^--by: the table has no column 'codebok_size'; did you mean codebook_size\?"
    ):
        known_column(table, "codebok_size", "--by")


# ---------------------------------------------------------------------------------------------------- by


def test_by_arm_nothing_changes(table):
    found, cautions = grouped(table, "arm")
    pd.testing.assert_frame_equal(found, table)
    assert cautions == []


def test_by_a_knob_groups_carry_its_symbol_and_arms_pooled_are_named(table):
    found, cautions = grouped(table, "K")
    assert list(found["arm"].unique()) == ["K=256", "K=64"]
    assert (found["arm"] == "K=64").equals(table["codebook_size"] == 64)
    assert cautions == [
        "--by K: K=256 pools base, more-tokens, crt. What differs between them counts as noise of the law."
    ]
    pd.testing.assert_frame_equal(found.drop(columns="arm"), table.drop(columns="arm"))


def test_by_several_columns_each_group_is_a_setting_and_nothing_is_pooled(table):
    found, cautions = grouped(table, "codebook_size, T,lambda")
    assert list(found["arm"].unique()) == [
        "K=256, T=16, lambda=0",
        "K=64, T=16, lambda=0",
        "K=256, T=36, lambda=0",
        "K=256, T=16, lambda=0.1",
    ]
    assert cautions == []


def test_large_numbers_of_groups_are_written_out_and_never_run_together(table):
    wide = table.assign(codebook_size=np.where(table["codebook_size"] == 64, 1_048_576, 1_048_577))
    assert list(grouped(wide, "K,lambda")[0]["arm"].unique()) == [
        "K=1048577, lambda=0",
        "K=1048576, lambda=0",
        "K=1048577, lambda=0.1",
    ]


def test_by_an_unknown_column_is_refused_with_what_is_close(table):
    with pytest.raises(TableError, match=r"--by: the table has no column 'tokens_per_imag'; did you mean tokens_per_i"):
        grouped(table, "K,tokens_per_imag")


def test_a_report_by_codebook_fits_a_law_a_codebook():
    table, cautions = grouped(sweep(laws={name: LAWS[name] for name in ("base", "small-codebook")}), "K")
    report = fit_report(table, resamples=20)
    assert [arm.arm for arm in report.arms] == ["K=256", "K=64"]
    assert report.base == "K=256"
    assert cautions == []


def test_pooling_arms_that_differ_shows_as_residual_of_the_law():
    """Why pooling is cautioned: what differs between arms counts as noise."""
    pooled = fit_report(grouped(sweep(), "K")[0], resamples=20).arms
    apart = fit_report(sweep(), resamples=20).arms
    assert pooled[0].residual > 3 * max(arm.residual for arm in apart)
