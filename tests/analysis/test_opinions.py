"""The optimum asked again, by KID, in other feature spaces, within few epochs and at each run's best guidance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.opinions import by_best_guidance, by_epochs, by_kid, by_protocols, optimum_of
from analysis.optimum import Recommendation
from analysis.render import render_text
from analysis.report import FitReport, fit_report
from analysis.table import validate

PAIR = {name: LAWS[name] for name in ("base", "crt")}
NAMES = ["base", "crt"]


def pair(**options: object) -> pd.DataFrame:
    return validate(sweep(laws=PAIR, **options))  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def plain() -> FitReport:
    return fit_report(pair(), resamples=50)


def first() -> list[Recommendation]:
    return plain().optimum


def spoil(table: pd.DataFrame, arm: str, column: str = "gfid", times: float = 2.0) -> pd.DataFrame:
    return table.assign(**{column: table[column].where(table["arm"] != arm, times * table[column])})


# ------------------------------------------------------------------------------------------------ KID


def test_kid_gives_the_optimum_at_the_same_computes():
    found, reason = by_kid(pair(), NAMES, first())
    assert reason == ""
    assert [one.compute for one in found] == [one.compute for one in first()]
    assert {one.best for one in found} == {"crt"}
    assert found[0].value == pytest.approx(first()[0].value / 1000, rel=1e-6)
    spoilt, _ = by_kid(spoil(pair(), "crt", "gkid"), NAMES, first())
    assert {one.best for one in spoilt} == {"base"}


def test_kid_is_averaged_over_a_runs_evaluations_and_one_of_them_may_be_negative():
    """Trap 19 of shared/reference/traps.md: KID is unbiased, so that a sample of it may lie below 0."""
    table = pair(repeats=2)
    table.loc[0, "gkid"], table.loc[1, "gkid"] = -0.001, 2 * table.loc[1, "gkid"] + 0.001
    found, reason = by_kid(table, NAMES, first())
    assert reason == ""
    assert found[0].value == pytest.approx(first()[0].value / 1000, rel=0.05)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="gkid"), "no KID was measured"),
        (lambda t: t.assign(gkid=np.nan), "no KID was measured"),
        (lambda t: t.assign(gkid=t["gkid"].where(t.index > 2, -0.001)), "KID is not positive in 3 runs"),
        (lambda t: t.assign(gkid=t["gkid"].where(t["arm"] != "crt")), "KID is missing in 12 runs"),
    ],
)
def test_why_there_is_no_optimum_by_kid_is_said(change, reason):
    found, said = by_kid(change(pair()), NAMES, first())
    assert found is None
    assert said.startswith(reason)


def test_without_an_optimum_nothing_is_asked_again():
    assert by_kid(pair(), NAMES, []) == (None, "")
    assert by_protocols({"another": pair()}, "gfid", NAMES, []) == []


def test_an_arm_that_cannot_be_fitted_is_named():
    table = pair()
    few = table[(table["arm"] == "base") | (table["size"] == "16x2")]
    assert optimum_of(few, "gfid", NAMES, first()) == (None, "cannot be fitted for every arm (crt)")


# ------------------------------------------------------------------------------------------ protocols


def test_a_second_feature_space_that_agrees_is_said_to():
    """Trap 25 of shared/reference/traps.md: the optimum must hold in a second feature space."""
    other = pair(seed=1).assign(protocol="gFID, dinov2", protocol_hash="dino")
    assert by_protocols({"gFID, dinov2": other}, "gfid", NAMES, first()) == ["gFID, dinov2 puts the same arms first."]


def test_a_second_feature_space_with_another_winner_flags_the_optimum():
    """Trap 25 of shared/reference/traps.md."""
    (line,) = by_protocols({"dinov2": spoil(pair(), "crt")}, "gfid", NAMES, first())
    assert line.startswith("dinov2 puts another arm first: base at ")
    assert line.endswith("(crt worse there). The optimum is flagged there.")


def test_a_feature_space_that_says_nothing_says_why():
    table = pair()
    partly = table[(table["arm"] == "base") | (table["size"] == "16x2")]
    broken = table.drop(columns="compute")
    found = by_protocols({"partly": partly, "broken": broken}, "gfid", NAMES, first())
    assert found == [
        "partly: the optimum cannot be fitted for every arm (crt).",
        "broken: column missing from the table: compute",
    ]


def test_the_report_warns_by_each_of_the_other_protocols():
    report = fit_report(pair(), resamples=50, others={"alike": pair(seed=2), "unlike": spoil(pair(), "crt")})
    assert "alike puts the same arms first." in report.warnings
    assert any(text.startswith("unlike puts another arm first: base at") for text in report.warnings)
    text = " ".join(render_text(report).split())
    assert "unlike puts another arm first: base at" in text


# --------------------------------------------------------------------------------------------- epochs


def test_repetition_that_bends_the_law_shifts_exponent_and_says_which_runs_are_kept():
    """Trap 15 of shared/reference/traps.md: fit within e epochs and all, report the shift."""
    lengths = (4_000, 8_000, 16_000, 32_000, 64_000)
    table = validate(sweep(laws=PAIR, lengths=lengths, noise=0.002))
    repeats = table["images_seen"] > 16_000
    table["epochs"] = np.where(repeats, 9.0, 1.0)
    table["gfid"] = table["gfid"].where(~repeats, table["gfid"] * (table["images_seen"] / 16_000) ** 0.1)
    report = fit_report(table, resamples=50)
    (line,) = [text for text in report.warnings if text.startswith("within 4 epochs (24 of 40 runs): ")]
    assert "exponent of base" in line
    assert "->" in line
    assert line in " ".join(render_text(report).split())


def test_repetition_that_changes_nothing_is_said_to_change_nothing():
    lengths = (4_000, 8_000, 16_000, 32_000, 64_000)
    table = validate(sweep(laws=PAIR, lengths=lengths, noise=1e-7))
    table["epochs"] = np.where(table["images_seen"] > 32_000, 9.0, 1.0)
    report = fit_report(table, resamples=50)
    assert "within 4 epochs (32 of 40 runs): exponents and the best arm are the same." in report.warnings


def test_where_too_little_is_left_within_the_epochs_the_arms_are_named():
    table = pair()
    table["epochs"] = np.where(table["images_seen"] > 16_000, 9.0, 1.0)
    report = fit_report(table, resamples=50)
    assert "within 4 epochs (8 of 24 runs): base, crt can no longer be fitted." in report.warnings
    all_over = fit_report(table.assign(epochs=9.0), resamples=50)
    assert "within 4 epochs (0 of 24 runs): base, crt can no longer be fitted." in all_over.warnings


def test_without_repetition_nothing_is_fitted_again():
    assert not any(text.startswith("within") for text in plain().warnings)
    assert by_epochs(pair(), "gfid", [], first()) == []


# ------------------------------------------------------------------------------------------- guidance


def guided(best: dict[str, float], edge: bool = False) -> pd.DataFrame:
    """The pair at guidance 1 and at others, of which `best` lowers gFID most (by a fifth) for each arm."""
    parts = []
    for guidance in (1.0, 1.5, 2.0) if edge else (1.0, 1.5, 2.0, 3.0):
        table = sweep(laws=PAIR)
        away = np.array([abs(np.log(guidance / best[arm])) for arm in table["arm"]])
        gain = 1.0 if guidance == 1.0 else 0.8 + 0.3 * away
        said = table["protocol"].str.replace("guidance 1.0", f"guidance {guidance}")
        parts.append(
            table.assign(guidance=guidance, gfid=table["gfid"] * gain, protocol=said, protocol_hash=f"at-{guidance}")
        )
    return pd.concat(parts, ignore_index=True)


def test_the_law_of_each_runs_best_guidance_stands_beside_the_one_without():
    """Trap 20 of shared/reference/traps.md: law at guidance 1 beside best."""
    report = fit_report(guided({"base": 1.5, "crt": 1.5}), resamples=50)
    assert report.guidance == 1.0
    assert report.arms[0].floor.value == pytest.approx(plain().arms[0].floor.value, rel=1e-6)
    assert [arm.arm for arm in report.guided.arms] == ["base", "crt"]
    for free, best in zip(report.arms, report.guided.arms, strict=True):
        assert best.floor.value == pytest.approx(0.8 * free.floor.value, rel=1e-3)
        assert best.exponent.value == pytest.approx(free.exponent.value, rel=1e-3)
    assert report.guided.cautions == []
    text = render_text(report)
    section = text.split("AT EACH RUN'S BEST GUIDANCE")[1].split("\n\n")[0]
    assert "E [95%]" in section
    assert f"best: crt ({report.guided.optimum[0].value:.1f}) at" in section


def test_guidance_that_helps_one_arm_alone_may_change_the_winner():
    table = guided({"base": 1.5, "crt": 1.5})
    helped = table["gfid"].where((table["arm"] != "crt") | (table["guidance"] == 1), 1.4 * table["gfid"])
    report = fit_report(table.assign(gfid=helped), resamples=50)
    assert {one.best for one in report.optimum} == {"crt"}
    assert {one.best for one in report.guided.optimum} == {"base"}
    assert "best: base (" in render_text(report)


def test_a_best_guidance_at_the_edge_of_the_search_is_flagged():
    """Trap 20 of shared/reference/traps.md: guidance limited to a range clips: extend at edges and flag."""
    report = fit_report(guided({"base": 1.5, "crt": 2.0}, edge=True), resamples=50)
    (line,) = report.guided.cautions
    assert line.startswith("guidance: the best is at the edge of what was tried in 12 of 24 runs (crt 12)")
    assert line in report.warnings


def test_of_one_guidance_or_of_the_loss_there_is_no_second_law():
    assert plain().guided is None
    assert "BEST GUIDANCE" not in render_text(plain())
    table = guided({"base": 1.5, "crt": 1.5})
    assert by_best_guidance(table, "loss", first(), 20, 0) is None
    assert by_best_guidance(table[table["guidance"] == 2.0], "gfid", first(), 20, 0) is None
    assert by_best_guidance(table.drop(columns="state"), "gfid", first(), 20, 0) is None
