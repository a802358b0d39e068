"""A fit report as text for a terminal. Formatting alone: every number comes from the report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.report import ArmSummary, FitReport, Quantity

NAMES = {"gfid": "gFID", "loss": "loss", "rfid": "rFID"}
COMPUTE_LINE = "generator training FLOPs, exact matmul (body + head + attention)"


def render_text(report: FitReport, width: int = 150) -> str:
    """The report as lines of at most `width` characters where words allow, without colour."""
    parts = [_head(report, width), _arms(report, width)]
    if report.metric == "fid":
        parts += [_optimum(report, width), _changes(report), _multipliers(report, width)]
    elif "optimum" in report.notes:
        parts.append(_wrapped("optimum     ", report.notes["optimum"], width))
    parts.append(_warnings(report, width))
    return "\n\n".join(part for part in parts if part) + "\n"


# ------------------------------------------------------------------------------------------ numbers


def plain(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponent, no zero before the point: 28.4, 8.8, .66."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 2 if abs(value) < 1 else 1)}f}"
    if text.startswith("0."):
        return text[1:]
    return text


def ratio(value: float) -> str:
    """A multiplier: two decimals, 1.20 or .36; from 100 on without decimals; inf as >1000 cannot be told."""
    if math.isinf(value):
        return "inf"
    text = f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return text[1:] if text.startswith("0.") else text


def flops(value: float) -> str:
    """2.1e10, 1e11."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def amount(value: float) -> str:
    """23k, 1.2M, 450: two to three significant digits with a suffix."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            short = value / scale
            return f"{short:.1f}".removesuffix(".0") + suffix if short < 10 else f"{short:.0f}{suffix}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


def _within(quantity: Quantity | None, form: str = "plain") -> str:
    if quantity is None:
        return "-"
    if form == "exponent":
        return f"{ratio(quantity.value)} [{ratio(quantity.low)}, {ratio(quantity.high)}]"
    return f"{plain(quantity.value)} [{plain(quantity.low)}, {plain(quantity.high)}]"


# ------------------------------------------------------------------------------------------- layout


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "   ") -> list[str]:
    """Rows aligned in columns; `right` lists columns set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(cells).rstrip())
    return lines


def _wrapped(label: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)


def _head(report: FitReport, width: int) -> str:
    states = report.states
    counted = f"{states.get('done', 0)} of {report.runs} runs"
    counted += f", {states.get('diverged', 0)} diverged, {states.get('degenerate', 0)} degenerate"
    counted += "".join(f", {states[one]} {one}" for one in ("failed", "running", "pending") if states.get(one))
    floor = (
        f"; bias floor up to {report.bias_floor:.2g}"
        if report.bias_floor is not None and report.metric != "loss"
        else ""
    )
    lines = [f"{report.plan:<11} {counted}", _wrapped("protocol    ", report.protocol + floor, width)]
    if report.metric != "rfid":
        lines.append(_wrapped("compute     ", COMPUTE_LINE, width))
        lines.append(_wrapped("law         ", _law(report), width))
    return "\n".join(lines)


def _law(report: FitReport) -> str:
    counts = sorted({arm.runs for arm in report.arms})
    points = f"all {counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    name = NAMES[report.column]
    return f"{name} = E + A N^-a + B D^-b, {points} points an arm; exponent of the compute envelope = ab/(a+b)"


def _knobs(arm: ArmSummary) -> list[str]:
    codes, tokens, weight = arm.codebook_size, arm.tokens_per_image, arm.crt_weight
    shown_weight = "-" if weight is None else f"{weight:g}".removeprefix("0") or "0"
    return [arm.arm, "-" if codes is None else f"{codes:g}", "-" if tokens is None else f"{tokens:g}", shown_weight]


def _arms(report: FitReport, width: int) -> str:
    if not report.arms:
        lines = []
    elif report.metric == "rfid":
        lines = _columns(
            [
                ["arm", "K", "T", "lambda", "rFID", "bits/image", "bits/pixel of code", "seeds"],
                *(
                    [
                        *_knobs(arm),
                        plain(arm.rfid),
                        plain(arm.code_bits_per_image),
                        "-" if arm.code_bits_per_pixel is None else f"{arm.code_bits_per_pixel:.3f}",
                        str(arm.tokenizer_seeds or "-"),
                    ]
                    for arm in sorted(report.arms, key=lambda one: one.code_bits_per_image or 0.0)
                ),
            ],
            right=(1, 2, 3, 4, 5, 6, 7),
        )
    else:
        lines = _columns(
            [
                ["arm", "K", "T", "lambda", "rFID", "E [95%]", "exponent [95%]", "residual", "held-out*"],
                *(
                    [
                        *_knobs(arm),
                        plain(arm.rfid),
                        _within(arm.floor),
                        _within(arm.exponent, "exponent"),
                        percent(arm.residual),
                        percent(arm.held_out),
                    ]
                    for arm in report.arms
                ),
            ],
            right=(1, 2, 3, 4, 7, 8),
        )
        right, tested = report.ranked
        pairs = f" Pairs ranked as predicted: {right} of {tested}." if tested and report.metric == "fid" else ""
        lines.append(f"* fitted without the largest size, predicted there.{pairs}")
    for one in report.left_out:
        lines.append(_wrapped("", f"left out: {one.arm} ({one.reason})", width))
    return "\n".join(lines)


def _optimum(report: FitReport, width: int) -> str:
    title = "OPTIMUM BY GENERATOR COMPUTE"
    if not report.optimum:
        return f"{title}\n{_wrapped('', report.notes.get('optimum', 'none'), width)}"
    rows = [["FLOPs", "best", NAMES[report.column], "train it as", "not worse within noise"]]
    for one in report.optimum:
        trained = f"{amount(one.params)} params{'!' * one.params_outside}, "
        trained += f"{amount(one.images)} images{'!' * one.images_outside}"
        same = ", ".join(f"{name} ({plain(value)})" for name, value in one.not_worse) or "none"
        rows.append([flops(one.compute), one.best, plain(one.value), trained, same])
    lines = [title, *_columns(rows, right=(2,))]
    by_name = {arm.arm: arm for arm in report.arms}
    outside = []
    for flag, attribute, label in (
        ("images_outside", "trained_images", "lengths"),
        ("params_outside", "trained_params", "sizes"),
    ):
        limits = [getattr(by_name[one.best], attribute) for one in report.optimum if getattr(one, flag)]
        if limits:
            low, high = min(low for low, _ in limits), max(high for _, high in limits)
            unit = "images" if label == "lengths" else "params"
            outside.append(f"trained {label} ({amount(low)} to {amount(high)} {unit})")
    if outside:
        lines.append(_wrapped("", f"! outside the {' or '.join(outside)}", width))
    return "\n".join(lines)


def _changes(report: FitReport) -> str:
    if not report.changes:
        return f"CHANGES OF LEADER\nnone within the data: {report.optimum[0].best} throughout" if report.optimum else ""
    rows = []
    for one in report.changes:
        low = flops(one.low) if one.low is not None else "below data"
        high = flops(one.high) if one.high is not None else "above data"
        note = "" if one.bracketed else f"not bracketed: absent in {one.absent:.0%} of resamples"
        rows.append([one.before, "->", one.after, flops(one.compute), f"[{low}, {high}]", note])
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        pair = f"{row[0]:<{widths[0]}} -> {row[2]:<{widths[2]}}"
        lines.append(f"{pair}  {row[3]:<{widths[3]}}  {row[4]:<{widths[4]}}   {row[5]}".rstrip())
    return "\n".join(["CHANGES OF LEADER", *lines])


def _multipliers(report: FitReport, width: int) -> str:
    title = f"COMPUTE MULTIPLIER over {report.base} (above 1: needs less compute for the same {NAMES[report.column]})"
    if not report.targets:
        return (
            _wrapped("", f"COMPUTE MULTIPLIER\n{report.notes['multipliers']}", width)
            if report.base is None
            else (f"{title}\n{_wrapped('', report.notes['multipliers'], width)}")
        )
    digits = max(3, *(len(f"{target:g}".replace(".", "")) for target in report.targets))
    marks = [f"{target:.{digits}g}" for target in report.targets]
    rows = [["arm", f"at {NAMES[report.column]} {marks[0]}", *marks[1:]]]
    for arm in report.multipliers:
        cells = [
            "out of range" if one is None else f"{ratio(one.value)} [{ratio(one.low)}, {ratio(one.high)}]"
            for one in arm.values
        ]
        rows.append([arm.arm, *cells])
    lines = [title, *_columns(rows)]
    for arm in report.multipliers:
        if arm.floors is None:
            continue
        f = arm.floors
        shared, rfid = ("out of range" if one is None else ratio(one) for one in (f.shared, f.rfid))
        verdict = " UNDECIDED: the floors disagree on the side of 1." if f.undecided else ""
        counted = f"{ratio(f.counted.value)} [{ratio(f.counted.low)}, {ratio(f.counted.high)}]"
        text = f"{arm.arm} at {f.at:g} by floor: own {ratio(f.own)}, shared {shared}, rFID {rfid}.{verdict}"
        text += f"  Counting one full tokenizer: {counted}"
        lines.append(_wrapped("", text, width))
    return "\n".join(lines)


def _warnings(report: FitReport, width: int) -> str:
    if not report.warnings:
        return ""
    return "\n".join(
        [
            "WARNINGS",
            *(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ") for text in report.warnings),
        ]
    )
