import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import sweep

from analysis.table import BY_NAME, COLUMNS, TableError, by_run, select, validate


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sweep()


def test_every_column_is_named_once_and_says_what_it_is():
    assert len(BY_NAME) == len(COLUMNS)
    assert all(column.meaning for column in COLUMNS)


def test_a_whole_table_passes_unchanged_in_its_numbers(table):
    checked = validate(table, ("gfid", "params"))
    assert checked["gfid"].tolist() == table["gfid"].tolist()


def test_numbers_read_as_text_become_numbers(table):
    checked = validate(table.assign(params=table["params"].astype(str)), ("params",))
    assert checked["params"].tolist() == table["params"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.drop(columns=["gfid", "arm"]), "missing from the table: arm, gfid"),
        (lambda t: t.assign(params=-t["params"]), "params of run 'base-16x2-16000-s0' is -10240"),
        (lambda t: t.assign(compute=np.inf), "compute of run .* is inf"),
        (lambda t: t.assign(gfid=t["gfid"].where(t.index != 7)), "gfid of run 'base-48x3-32000-s0' is missing"),
        (lambda t: t.assign(gfid=["n/a", *t["gfid"][1:]]), "gfid of run .* is not a number: 'n/a'"),
        (lambda t: t.assign(state="finished"), "state 'finished' of run .* is none of done"),
    ],
)
def test_an_unusable_table_is_refused_in_one_line_that_names_the_place(table, change, message):
    with pytest.raises(TableError, match=message) as refusal:
        validate(change(table), ("gfid", "params"))
    assert "\n" not in str(refusal.value)


def test_mixed_protocols_are_refused_and_their_difference_shown(table):
    other = table.assign(protocol_hash="def", protocol=table["protocol"].str.replace("N = 2,000", "N = 5,000"))
    with pytest.raises(TableError, match="2 protocols in one table, N = 2 against N = 5") as refusal:
        validate(pd.concat([table, other.assign(run=other["run"] + "x")]).replace({"000": ""}))
    assert "never fitted together" in str(refusal.value)


def test_fid_is_taken_at_the_asked_guidance_alone(table):
    guided = table.assign(guidance=1.5, gfid=table["gfid"] / 2, protocol_hash="def")
    both = pd.concat([table, guided])
    assert select(both, "fid")["gfid"].tolist() == table["gfid"].tolist()
    assert select(both, "fid", guidance=1.5)["gfid"].tolist() == guided["gfid"].tolist()
    with pytest.raises(TableError, match=r"guidance 2 \(found: 1, 1.5\)"):
        select(both, "fid", guidance=2.0)


def test_a_sweep_with_nothing_done_is_refused_with_what_is_so(table):
    with pytest.raises(TableError, match="none of 48 runs is done"):
        select(table.assign(state="pending").drop(columns="gfid"), "fid")


def test_several_plans_are_refused(table):
    with pytest.raises(TableError, match=r"2 plans in one table \(other, synthetic\)"):
        select(pd.concat([table, table.assign(plan="other")]), "fid")


def test_an_unknown_metric_is_refused(table):
    with pytest.raises(TableError, match="metric 'is' is none of fid, loss, rfid"):
        select(table, "is")


def test_resampling_a_run_is_no_second_run():
    repeated = sweep(repeats=3)
    repeated["gfid"] *= np.tile([0.9, 1.0, 1 / 0.9], len(repeated) // 3)
    runs = by_run(validate(repeated), "gfid")
    assert len(runs) == 48
    whole = sweep().set_index("run")["gfid"]
    np.testing.assert_allclose(runs["gfid"], whole[runs["run"]], rtol=1e-12)
