"""The paper's way beside ours: the frontier's law of each arm, drawn to rFID, against the joint law's exponent."""

from __future__ import annotations

import json
from functools import lru_cache

import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.inputs import FitError
from analysis.paper_check import PaperReport, fit_paper, render_paper
from analysis.table import validate

SIZES = ((16, 2), (24, 2), (32, 2), (40, 3), (48, 3), (64, 3))
LENGTHS = (8_000, 16_000, 32_000, 64_000, 128_000)
PAIR = {name: LAWS[name] for name in ("base", "small-codebook")}


def grid(**options: object) -> pd.DataFrame:
    given = {"laws": PAIR, "sizes": SIZES, "lengths": LENGTHS} | options
    return validate(sweep(**given))  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def report() -> PaperReport:
    return fit_paper(grid(), "gfid", draws=100)


def test_every_arm_has_its_frontiers_law_beside_the_joint_exponent_in_the_tables_order():
    """Trap 1 of shared/reference/traps.md: the joint law decides, its exponent is ab/(a+b)."""
    assert [one.arm for one in report().arms] == ["base", "small-codebook"]
    for one in report().arms:
        assert set(one.fitted) >= {"Lmin", "A", "alpha", "lambda"}
        value, low, high = one.joint_exponent
        assert low < value < high
        assert low <= 0.4 <= high  # .8 * .8 / 1.6
        assert one.joint_floor[0] == pytest.approx(PAIR[one.arm]["E"], rel=0.1)
        assert one.joint_floor[1] < one.joint_floor[0] < one.joint_floor[2]
        assert one.r2 > 0.95
        assert one.agrees is True


def test_edge_sizes_are_left_out_and_counted():
    """Trap 5 of shared/reference/traps.md: edge sizes are no optima."""
    for one in report().arms:
        counts = one.counts
        assert counts["runs"] == 30
        assert counts["frontier"] == counts["edge"] + counts["inner"]
        assert counts["edge"] > 0
        law = report().laws[one.arm]
        assert set(law.rows.loc[law.edge, "size"]) <= {"16x2", "64x3"}
        assert not set(law.rows.loc[law.inner, "size"]) & {"16x2", "64x3"}


def test_the_floor_is_drawn_to_rfid_of_gfid_alone():
    """Trap 7 of shared/reference/traps.md: rFID is a weak prior, never a bound."""
    for one in report().arms:
        assert one.rfid == PAIR[one.arm]["rfid"]
        fitted, drawn = one.fitted["Lmin"].value, one.drawn["Lmin"].value
        assert abs(drawn - one.rfid) <= abs(fitted - one.rfid) + 1e-9
        assert drawn != pytest.approx(one.rfid, rel=1e-3)
    of_loss = fit_paper(grid(), "loss", draws=50)
    assert [one.drawn for one in of_loss.arms] == [None, None]
    unknown = fit_paper(grid().drop(columns="rfid"), "gfid", draws=50)
    assert [(one.rfid, one.drawn) for one in unknown.arms] == [(None, None)] * 2
    row = next(line for line in render_paper(unknown).splitlines() if line.startswith("base"))
    assert "   -   " in row


def test_exponents_that_disagree_are_flagged_and_the_joint_law_believed():
    """Trap 5 of shared/reference/traps.md: minima of noisy values are a check, the joint law comes first."""
    found = fit_paper(validate(sweep()), "gfid", draws=100)
    apart = [one.arm for one in found.arms if one.agrees is False]
    assert apart == ["more-tokens"]
    one = found.arms[2]
    assert one.fitted["alpha"].high < one.joint_exponent[1] or one.fitted["alpha"].value < one.joint_exponent[1]
    said = "more-tokens: the frontier's exponent and the joint law's disagree; believe the joint law."
    assert said in found.warnings
    rows = render_paper(found).splitlines()
    assert [row.split()[0] for row in rows if row.endswith("NO")] == ["more-tokens"]
    assert not any("disagree" in text for text in report().warnings)


def test_frontier_points_are_said_to_lie_low():
    assert any("minima of noisy values" in text for text in report().warnings)


def test_arms_without_enough_inner_points_are_left_out_by_name():
    table = grid()
    table = table[(table["arm"] == "base") | table["size"].isin(["16x2", "64x3"])]
    found = fit_paper(table, "gfid", draws=50)
    assert [one.arm for one in found.arms] == ["base"]
    assert [one.arm for one in found.left_out] == ["small-codebook"]
    assert "left out: small-codebook (0 of " in render_paper(found)
    none = fit_paper(grid().assign(gfid=lambda t: t["gfid"].where(t["arm"] == "base", 0.0)), "gfid", draws=50)
    assert [(one.arm, one.reason) for one in none.left_out] == [("small-codebook", "no run with a gfid above 0")]


def test_one_length_has_a_frontier_and_no_joint_law():
    table = grid(laws={"base": LAWS["base"]})
    found = fit_paper(table[table["images_seen"] == 32_000], "gfid", draws=50)
    (one,) = found.arms
    assert (one.joint_exponent, one.joint_floor, one.agrees) == (None, None, None)
    assert next(line for line in render_paper(found).splitlines() if line.startswith("base")).endswith("-")


def test_no_run_done_is_refused():
    with pytest.raises(FitError, match="no run is done; nothing to fit yet"):
        fit_paper(grid().assign(state="pending"), "gfid")


def test_the_papers_own_axis_can_be_asked_for_and_is_named():
    """Trap 3 of shared/reference/traps.md: 6N T steps only to reproduce the paper, exact FLOPs else."""
    table = grid()
    table["compute_paper"] = 6 * table["params"] * table["tokens_seen"] / 256
    found = fit_paper(table, "gfid", "compute_paper", draws=50)
    text = render_paper(found)
    assert "Pareto frontier over compute_paper" in text
    assert "x           compute_paper: 6 N T steps, no batch" in text
    assert "x           compute: generator training, exact matmul" in render_paper(report())
    assert found.arms[0].fitted["alpha"].value != report().arms[0].fitted["alpha"].value


def test_the_dictionary_is_json_in_full_precision():
    kept = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert kept["arms"][0]["fitted"]["alpha"]["value"] == report().arms[0].fitted["alpha"].value
    assert kept["arms"][0]["agrees"] is True
    assert "laws" not in kept
    assert kept["x"] == "compute"


def test_the_text_has_its_parts_in_order_and_its_prose_within_the_width():
    text = render_paper(report(), width=100)
    marks = [
        "synthetic   gFID on each arm's",
        "protocol    ",
        "x           ",
        "law         gFID = Lmin",
        "arm ",
        "WARNINGS",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert max(len(line) for line in text.splitlines() if not line.startswith(("arm", "base", "small"))) <= 100
    one = report().arms[0]
    row = next(line for line in text.splitlines() if line.startswith("base"))
    assert f"{one.counts['inner']} of {one.counts['frontier']} ({one.counts['edge']} edge)" in row
    assert f"{one.r2:.3f}" in row


def test_equal_seeds_give_equal_reports():
    assert fit_paper(grid(), "gfid", draws=100).to_dict() == report().to_dict()
