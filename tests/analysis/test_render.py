"""A report as text: which sections stand where, what marks a doubt, and that it fits its width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.holdout import Score
from analysis.printing import COMPUTE_LINE, compute_line, flops, plain, within
from analysis.render import render_text
from analysis.report import FitReport, fit_report
from analysis.summaries import Quantity

PAIR = {name: LAWS[name] for name in ("base", "crt")}
LEVELS = (10, 13, 16, 20, 26)


def tokens_law(tokens: float, weight: float = 0.0) -> Mapping[str, float]:
    term = 6 * (tokens / 16) ** 0.6
    floor = 4 + 160 * tokens**-0.9
    shape = {"K": 256, "T": tokens, "lam": weight, "a": 0.7, "b": 0.7, "rfid": 3}
    return {**shape, "E": floor, "A": term, "B": term}


def with_knobs() -> pd.DataFrame:
    arms = {"base" if tokens == 16 else f"t{tokens}": tokens_law(tokens) for tokens in LEVELS}
    return sweep(laws=arms | {"light": tokens_law(16, 0.05), "heavy": tokens_law(16, 0.1)})


@lru_cache(maxsize=1)
def full() -> FitReport:
    return fit_report(with_knobs(), resamples=60)


@lru_cache(maxsize=1)
def pair() -> FitReport:
    return fit_report(sweep(laws=PAIR), resamples=60)


@lru_cache(maxsize=1)
def held_out() -> FitReport:
    return fit_report(sweep(laws=PAIR), resamples=60, hold_out=True)


def pending() -> pd.DataFrame:
    table = sweep(laws=PAIR)
    table.loc[table["size"] == "64x3", ["state", "gfid"]] = ["pending", np.nan]
    return table


def section(text: str, title: str) -> str:
    """The block under a title, its lines joined by one space."""
    block = next(part for part in text.split("\n\n") if part.startswith(title))
    return " ".join(block.split())


# ---------------------------------------------------------------------------------------------- the order


def test_the_sections_stand_in_the_order_in_which_they_are_read():
    text = render_text(full(), width=120)
    titles = ["synthetic   84 of 84 runs", "protocol    ", "compute     ", "law         ", "noise       ", "arm  "]
    titles += ["* fitted without", "OPTIMUM BY GENERATOR COMPUTE", "OPTIMUM ALONG T  10, 13, 16, 20, 26"]
    titles += ["OPTIMUM ALONG lambda  0, 0.05, 0.1", "CHANGES OF LEADER", "COMPUTE MULTIPLIER over base", "WARNINGS"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "PREDICTION BEFORE SIGHT" not in text
    assert text.endswith("\n")
    assert "\n\n\n" not in text


@pytest.mark.parametrize("width", [90, 120, 160])
def test_prose_keeps_to_the_width(width):
    tables = ("arm ", "FLOPs ", "base ", "light ", "heavy ", *(f"t{tokens} " for tokens in LEVELS))
    for report in (full(), pair(), held_out()):
        for line in render_text(report, width=width).splitlines():
            row = line.startswith(tables) or line[:1].isdigit() or "->" in line
            assert row or len(line) <= width, line


def test_wider_text_says_the_same():
    words = [render_text(full(), width=width).split() for width in (90, 200)]
    assert words[0] == words[1]


# ---------------------------------------------------------------------------------------- along the knobs


def test_along_a_knob_the_ways_stand_side_by_side_under_their_names():
    block = section(render_text(full()), "OPTIMUM ALONG T")
    assert "(K = 256, lambda = 0)" in block
    assert "FLOPs best T [95%] not worse regret up to parabola akima surface frontier" in block
    (knob,) = [one for one in full().knobs if one.knob == "tokens_per_image"]
    row = knob.by_compute[-1]
    assert f"{flops(row.at)} {plain(row.best)} [{plain(row.low)}, {plain(row.high)}]" in block
    for way in ("laws", "IsoFLOP parabola", "Akima", "joint surface", "Pareto frontier"):
        assert f"{way} " in block
    assert "best T moves as C^b, b by laws" in block
    assert "by size at its longest training: 16x2 " in block


def test_a_set_that_has_no_end_is_said_to_be_not_bracketed_with_its_reason():
    (knob, *_) = full().knobs
    row = replace(knob.by_compute[0], low=None, reason="best at an edge: 10; add levels beyond it")
    report = replace(full(), knobs=[replace(knob, by_compute=(row,))])
    block = section(render_text(report), "OPTIMUM ALONG T")
    assert f"{flops(row.at)} {plain(row.best)} [-, {plain(row.high)}]" in block
    assert f"at {flops(row.at)}: not bracketed: best at an edge: 10; add levels beyond it" in block
    none = replace(row, best=None, high=None, reason="curvature <= 0: no minimum between 10 and 26")
    block = section(render_text(replace(full(), knobs=[replace(knob, by_compute=(none,))])), "OPTIMUM ALONG T")
    assert f"{flops(row.at)} none " in block
    outside = replace(none, reason="vertex outside the data: above 26")
    block = section(render_text(replace(full(), knobs=[replace(knob, by_compute=(outside,))])), "OPTIMUM ALONG T")
    assert f"{flops(row.at)} not bracketed " in block


def test_ways_that_disagree_are_named_by_compute():
    (knob, *_) = full().knobs
    rows = tuple(replace(row, agree=i > 0) for i, row in enumerate(knob.by_compute))
    text = render_text(replace(full(), knobs=[replace(knob, by_compute=rows)]))
    assert f"DISAGREE at {flops(rows[0].at)}: another way's optimum lies a level away." in text
    assert "DISAGREE" not in render_text(replace(full(), knobs=[replace(knob, by_compute=rows[1:])]))


def test_an_axis_with_a_zero_says_whether_it_is_beaten_and_one_without_does_not():
    law = {"K": 256, "T": 16, "a": 0.7, "b": 0.7, "rfid": 12}
    arms = {}
    for weight in (0.0, 0.05, 0.1, 0.2, 0.4):
        strength = 1 + weight / 0.05
        term = 6 * strength**-0.5
        own = {"lam": weight, "E": 14 + 3 * strength**0.5, "A": term, "B": term}
        arms["base" if weight == 0 else f"w{weight:g}"] = {**law, **own}
    report = fit_report(sweep(laws=arms, noise=0.006), resamples=60)
    text = render_text(report)
    assert "frontier   beats 0" in text
    (knob,) = report.knobs
    told = {True: "yes", False: "no", None: "-"}
    block = [line for line in text.split("OPTIMUM ALONG lambda")[1].splitlines() if line[:1].isdigit()]
    assert [line.split()[-1] for line in block] == [told[row.zero_beaten] for row in knob.by_compute]
    assert True in [row.zero_beaten for row in knob.by_compute]
    assert "beats 0" not in render_text(full())


def test_why_an_axis_has_no_optimum_stands_in_its_place():
    block = section(render_text(full()), "OPTIMUM ALONG lambda")
    assert block.endswith("(T = 16, K = 256) none: 2 levels above 0; three make a valley")


def test_an_arm_that_lost_runs_withholds_its_axis():
    """Trap 21 of shared/reference/traps.md: no "optimum" above 10% of runs lost."""
    table = with_knobs()
    lost = table.index[(table["arm"] == "t13")][:2]
    table.loc[lost, ["state", "gfid"]] = ["diverged", np.nan]
    text = render_text(fit_report(table, resamples=60))
    assert section(text, "OPTIMUM ALONG T").endswith("none named: t13 lost too many runs")
    assert "none named: t13 lost 17% of its runs" in section(text, "OPTIMUM BY")


# ------------------------------------------------------------------------------------------------ doubts


def test_a_lead_below_the_bias_floor_is_marked_and_explained():
    """Trap 19 of shared/reference/traps.md: a gap below both is undecided."""
    report = fit_report(sweep(laws=PAIR).assign(bias_floor=10.0).drop(columns="gkid"), resamples=60)
    block = section(render_text(report), "OPTIMUM BY")
    assert len(report.undecided) == len(report.optimum)
    for one in report.optimum:
        assert f"{flops(one.compute)} {one.best}? " in block
    assert "? undecided: the lead is below FID's bias floor, and KID does not confirm it" in block
    clear = section(render_text(replace(pair(), undecided=[])), "OPTIMUM BY")
    assert "?" not in clear


def test_what_lies_outside_the_trained_is_marked_and_explained():
    report = pair()
    first = replace(report.optimum[0], params_outside=True, images_outside=False)
    block = section(render_text(replace(report, optimum=[first])), "OPTIMUM BY")
    assert "params!, " in block
    assert "images!" not in block
    assert "! outside the trained sizes (" in block
    inside = replace(first, params_outside=False)
    assert "!" not in section(render_text(replace(report, optimum=[inside])), "OPTIMUM BY")


def test_a_change_of_leader_whose_ends_leave_the_data_is_not_bracketed():
    assert any(not one.bracketed for one in full().changes)
    block = section(render_text(full()), "CHANGES OF LEADER")
    for one in full().changes:
        ends = f"[{flops(one.low) if one.low else 'below data'}, {flops(one.high) if one.high else 'above data'}]"
        note = "" if one.bracketed else f" not bracketed: absent in {one.absent:.0%} of resamples"
        assert f"{one.before} -> {one.after} {flops(one.compute)} {ends}{note}" in block
    alone = section(render_text(pair()), "CHANGES OF LEADER")
    assert alone == "CHANGES OF LEADER none within the data: crt throughout"


def test_the_bias_floor_and_the_noise_stand_in_the_head():
    """Trap 19 of shared/reference/traps.md: print the floor."""
    text = " ".join(render_text(pair()).split())
    assert "guidance 1.0; bias floor up to 0.69" in text
    assert "noise training 1.3% assumed: nothing was repeated" in text
    repeated = fit_report(sweep(laws=PAIR, tokenizer_seeds=2, seed_noise=0.02), resamples=60)
    assert "assumed" not in section(render_text(repeated), "synthetic")


def test_the_head_says_what_compute_is_and_of_an_import_what_it_was_said_to_be():
    """Trap 3 of shared/reference/traps.md: x is exact matmul FLOPs; others' counts are called theirs."""
    assert f"compute     {COMPUTE_LINE}" in render_text(pair(), width=200)
    theirs = "imported: t.csv; state it with --set protocol=..."
    assert compute_line([theirs]) == "FLOPs as imported: t.csv"
    assert compute_line(["gFID, shapes-cnn@1"]) == compute_line([]) == COMPUTE_LINE
    text = render_text(fit_report(sweep(laws=PAIR).assign(protocol=theirs), resamples=60))
    assert COMPUTE_LINE not in text
    assert "compute     FLOPs as imported: t.csv\n" in text


def test_a_law_that_misses_its_points_by_more_than_repeats_differ_is_said_to_and_no_r2_is_shown():
    """Trap 6 of shared/reference/traps.md: held-out error, residual over noise, lack of fit where repeats exist."""
    table = sweep(laws=PAIR, tokenizer_seeds=3, noise=0.004)
    text = render_text(fit_report(table, resamples=60))
    assert "lack of fit" not in text
    assert "R2" not in text
    bent = table["gfid"].where((table["size"] != "32x2") | (table["arm"] != "crt"), 1.08 * table["gfid"])
    report = fit_report(table.assign(gfid=bent), resamples=60)
    (line,) = [text for text in report.warnings if text.startswith("lack of fit: ")]
    assert line.startswith("lack of fit: crt (p = ")
    assert line in " ".join(render_text(report).split())


def test_arms_with_more_tokenizer_seeds_than_others_are_named():
    """Trap 22 of shared/reference/traps.md: extra seeds chosen after looking bring the winner back."""
    table = sweep(laws=PAIR, tokenizer_seeds=3)
    uneven = table[(table["arm"] == "base") | (table["tokenizer_seed"] == 0)]
    said = " ".join(render_text(fit_report(uneven, resamples=60)).split())
    assert "tokenizer seeds differ between arms (base 3, crt 1)" in said
    assert "seeds differ" not in render_text(fit_report(table, resamples=60))


def test_one_length_leaves_the_floor_unknown_and_no_arm_is_fitted():
    """Trap 1 of shared/reference/traps.md: at a fixed length the floor absorbs what the length leaves."""
    table = sweep(laws=PAIR)
    text = " ".join(render_text(fit_report(table[table["images_seen"] == 32_000], resamples=60)).split())
    assert "left out: base (4 runs done: 1 distinct values of tokens_seen" in text
    assert "OPTIMUM BY GENERATOR COMPUTE none: no arm can be fitted" in text


# --------------------------------------------------------------------------------- prediction before sight


def test_before_the_largest_is_trained_its_predictions_are_printed():
    report = fit_report(pending(), resamples=60, hold_out=True)
    text = render_text(report)
    block = section(text, "PREDICTION BEFORE SIGHT")
    assert "6 predictions of the largest size are in this fit; none of its runs is done yet" in block
    for one in report.predictions:
        band = f"{plain(one.value)} [{plain(one.low)}, {plain(one.high)}]"
        assert f"{one.arm} 64x3 {one.images_seen / 1000:.0f}k {band}" in block
    assert text.index("COMPUTE MULTIPLIER") < text.index("PREDICTION BEFORE SIGHT") < text.index("WARNINGS")
    assert "9 smaller points an arm" in " ".join(text.split())
    assert "* the size held out is not trained yet." in text


def test_after_it_is_trained_the_score_is_printed_and_called_after_the_fact():
    report = held_out()
    block = section(render_text(report), "PREDICTION BEFORE SIGHT")
    score = report.score
    assert f"size 64x3: {score.inside} of 6 runs inside the 95% band, error {score.error:.1%}; after the fact" in block
    assert "no fit without this size was stored before its first run ended" in block
    assert "best arm foreseen at " in block


def test_a_score_of_a_stored_fit_says_which_and_when_and_what_a_missed_choice_cost():
    """Trap 22 of shared/reference/traps.md: what was said before the runs is told from what was said after."""
    choices = ((16e3, "base", "crt", 0.021), (32e3, "crt", "crt", 0.0))
    score = Score("64x3", 5, 6, 0.0123, {"base": 0.0123}, choices, before=True, stored=1_700_000_000.0, number=7)
    block = section(render_text(replace(held_out(), score=score)), "PREDICTION BEFORE SIGHT")
    assert "as fit 7 said at 2023-11-14 22:13 UTC, before the first of these runs ended." in block
    assert "best arm foreseen at 1 of 2 lengths, regret at most 2.1% (16k images: base, not crt (+2.1%))." in block
    late = section(render_text(replace(held_out(), score=replace(score, before=False))), "PREDICTION BEFORE SIGHT")
    assert "after some of these runs had ended" in late


# ----------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (Quantity(28.41, 25.62, 29.83), "28.4 [25.6, 29.8]"),
        (Quantity(3.1416, 3.1402, 3.1431), "3.1416 [3.1402, 3.1431]"),
        (Quantity(1.8172, 1.769, 1.871), "1.82 [1.77, 1.87]"),
        (Quantity(0.35, 0.32, 0.38), ".35 [.32, .38]"),
        (Quantity(26.0, 0.0, float("inf")), "26.0 [0, inf]"),
        (Quantity(5.0, 5.0, 5.0), "5.0 [5.0, 5.0]"),
        (None, "-"),
    ],
)
def test_a_value_is_written_in_the_decimals_that_its_interval_bears(quantity, said):
    assert within(quantity) == said


def test_lengths_of_a_table_without_images_are_called_tokens():
    table = sweep(laws=PAIR).drop(columns=["images_seen", "tokens_per_image"])
    text = render_text(fit_report(table, resamples=60))
    assert " tokens" in section(text, "OPTIMUM BY")
    assert "images" not in section(text, "OPTIMUM BY")
