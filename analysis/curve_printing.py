"""A curves report as text for a terminal. Formatting alone: every number comes from the report."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from analysis.printing import NAMES, amount, columns, flops, percent, plain, ratio, wrapped
from analysis.table import BY_NAME

if TYPE_CHECKING:
    from analysis.curve_groups import Estimate, Group
    from analysis.curves import CurvesReport, Meeting
    from analysis.pair import Crossing

BRIEF = ("A", "alpha", "a2", "lambda")  # shown in the table, or left to to_dict


def render(report: CurvesReport, width: int = 150) -> str:
    """The report as lines of at most `width` characters where words allow, without colour."""
    parts = [_head(report, width), _groups(report, width), _beyond(report)]
    parts += [_crossings(report, width), _multipliers(report, width), _warnings(report, width)]
    return "\n\n".join(part for part in parts if part) + "\n"


def named(column: str) -> str:
    """A metric as readers know it: gFID for gfid."""
    return NAMES.get(column, column)


def axis(column: str) -> str:
    """What a column is, with its unit: the convention of compute is in it."""
    known = BY_NAME.get(column)
    if known is None:
        return column
    unit = f" [{known.unit}]" if known.unit not in ("", "1") else ""
    return f"{column}{unit}: {known.meaning}"


def shown(value: float, column: str) -> str:
    """A value of x: FLOPs as 2.1e10, counts as 23k."""
    known = BY_NAME.get(column)
    if known is None or known.unit == "FLOPs":
        return flops(value) if value >= 1e5 or value < 1e-2 else f"{value:.4g}"
    return amount(value) if value >= 1000 else f"{value:.4g}"


def _head(report: CurvesReport, width: int) -> str:
    runs = sum(group.runs for group in report.groups)
    named_groups = len(report.groups) + len(report.left_out)
    lines = [
        f"{report.plan or 'table':<11} {runs} runs in {len(report.groups)} of {named_groups} groups by {report.by}"
    ]
    which = "on the Pareto frontier, edge sizes left out" if report.points == "frontier" else "all runs"
    formulas = sorted({group.formula for group in report.groups})
    law = formulas[0].replace("y =", f"{named(report.column)} =") if len(formulas) == 1 else report.law
    law = law.replace("x^", f"{report.x}^").replace("(x", f"({report.x}").replace("C^", f"{report.x}^")
    lines.append(wrapped("protocol    ", report.protocol, width))
    lines.append(wrapped("x           ", axis(report.x), width))
    lines.append(wrapped("law         ", f"{law}; {report.objective}; {which}", width))
    return "\n".join(lines)


def _within(one: Estimate | None, form: str = "plain") -> str:
    if one is None:
        return "-"
    say = ratio if form == "exponent" else plain
    ends = "[unknown]" if one.low is None or one.high is None else f"[{say(one.low)}, {say(one.high)}]"
    return f"{say(one.value)} {ends}"


def _groups(report: CurvesReport, width: int) -> str:
    lines = []
    if report.groups:
        level = f"[{report.level:.0%}]"
        head = [report.by, "runs", "fitted", "values of x", "decades", "law", f"floor {level}", f"exponent {level}"]
        rows = [[*head, "residual", "held-out*"]]
        rows += [_row(group) for group in report.groups]
        lines += columns(rows, right=(1, 2, 3, 4, 8, 9))
        lines.append("* the largest x predicted from the smaller ones.")
    for group in report.groups:
        rest = [name for name in group.parameters if name not in (*BRIEF, group.floor)]
        if rest:
            said = ", ".join(f"{name} {_value(group, name, report.x)}" for name in rest)
            lines.append(wrapped("", f"{group.name}: {said}", width))
        if group.weights:
            said = ", ".join(f"{law} {ratio(weight)}" for law, weight in group.weights)
            lines.append(wrapped("", f"{group.name}: AICc weighs {said}", width))
        if group.on_frontier:
            lines.append(
                f"{group.name}: {len(group.on_frontier)} runs on the frontier, {len(group.edges)} at an edge size"
            )
    for one in report.left_out:
        lines.append(wrapped("", f"left out: {one.group} ({one.reason})", width))
    return "\n".join(lines)


def _row(group: Group) -> list[str]:
    floor = group.parameters.get(group.floor or "")
    said = _within(floor) + (" not identified" if group.floor_identified is False else "")
    exponent = group.parameters.get("a2") or group.parameters.get("alpha")
    counts = [str(group.runs), str(group.points), str(group.distinct), f"{group.decades:.1f}"]
    return [
        group.name,
        *counts,
        group.law,
        said,
        _within(exponent, "exponent"),
        percent(group.residual),
        percent(group.rolling),
    ]


def _value(group: Group, name: str, x: str) -> str:
    one = group.parameters[name]
    if name != "s":
        return _within(one, "exponent")
    ends = "[unknown]" if one.low is None or one.high is None else f"[{shown(one.low, x)}, {shown(one.high, x)}]"
    return f"{shown(one.value, x)} {ends}"


def _beyond(report: CurvesReport) -> str:
    if not report.groups:
        return ""
    rows = []
    for group in report.groups:
        one = group.predicted
        ends = "[unknown]" if one.low is None or one.high is None else f"[{plain(one.low)}, {plain(one.high)}]"
        forms = "the choice of form not in it" if one.forms is None else f"forms differ by {percent(one.forms)}"
        where = f"predicted at {shown(one.x, report.x)}:"
        rows.append(
            [group.name, where, f"{plain(one.value)} {ends}", f"{one.decades:.1f} decades beyond the data", forms]
        )
    title = f"BEYOND THE DATA ({report.level:.0%} of new runs, the choice of form included where it can be weighed)"
    return "\n".join([title, *columns(rows)])


def _crossings(report: CurvesReport, width: int) -> str:
    title = "CROSSINGS (inside the data of both)"
    if "crossings" in report.notes:
        return f"{title}\n{wrapped('', report.notes['crossings'], width)}"
    lines = [title]
    if report.leaders:
        said = ", ".join(f"{one.group} to {shown(one.high, report.x)}" for one in report.leaders)
        lines.append(wrapped("", f"lowest from {shown(report.leaders[0].low, report.x)}: {said}", width))
    elif "leaders" in report.notes:
        lines.append(wrapped("", f"lowest: {report.notes['leaders']}", width))
    rows, apart = [], []
    for meeting in report.crossings:
        rows += [_crossing(meeting, one, report) for one in meeting.crossings]
        if not meeting.crossings:
            apart.append(wrapped("", _apart(meeting), width))
    return "\n".join([*lines, *(columns(rows, gap="  ") if rows else []), *apart])


def _crossing(meeting: Meeting, one: Crossing, report: CurvesReport) -> list[str]:
    pair = (meeting.first, meeting.second)
    before, after = pair[1 - one.after], pair[one.after]
    cells = [f"{before} -> {after}", shown(one.x, report.x), f"at {named(report.column)} {plain(one.value)}"]
    if one.absent is None:
        note = "by straight lines between measured points in log-log" if meeting.segments else "noise unknown"
        return [*cells, "no interval", note]
    low = shown(one.low, report.x) if one.low is not None else "below data"
    high = shown(one.high, report.x) if one.high is not None else "above data"
    note = "" if one.bracketed else f"not bracketed: absent in {one.absent:.0%} of draws"
    return [*cells, f"[{low}, {high}]", note]


def _apart(meeting: Meeting) -> str:
    pair = f"{meeting.first}, {meeting.second}: "
    if meeting.reason:
        return pair + meeting.reason
    if meeting.lower is None:
        return pair + "their segments do not cross"
    sure = "" if meeting.agreement is None else f", in {meeting.agreement:.0%} of draws"
    return f"{pair}no crossing, {meeting.lower} lower throughout{sure}"


def _multipliers(report: CurvesReport, width: int) -> str:
    if "multipliers" in report.notes:
        return f"MULTIPLIER\n{wrapped('', report.notes['multipliers'], width)}"
    if not report.multipliers:
        return ""
    lines = [f"MULTIPLIER over {report.base} (above 1: needs less {report.x} for the same {named(report.column)})"]
    rows = []
    for one in report.multipliers:
        if one.shared is not None:
            said = f"{_within(one.shared, 'exponent')} at every {named(report.column)}"
            rows.append([one.group, said, f"one shape not rejected (p {_p(one.p_value)})"])
            continue
        cells = [f"{ratio(m.value)} {_ends(m.low, m.high)} at {m.at:g}" for m in one.values]
        why = "" if one.p_value is None else f"one shape rejected (p {_p(one.p_value)}): by value of the metric"
        rows.append([one.group, "   ".join(cells) or "none", why])
    reasons: dict[str, list[str]] = {}
    for one in report.multipliers:
        if one.reason:
            reasons.setdefault(one.reason, []).append(one.group)
    notes = [wrapped("", f"{', '.join(groups)}: {reason}", width) for reason, groups in reasons.items()]
    return "\n".join([*lines, *(wrapped("", line, width) for line in columns(rows)), *notes])


def _ends(low: float, high: float) -> str:
    return f"[{ratio(low)}, {ratio(high)}]" if low <= high else "[unknown]"


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.3f}".lstrip("0") if value >= 0.001 else "< .001"


def _warnings(report: CurvesReport, width: int) -> str:
    if not report.warnings:
        return ""
    said = [textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ") for text in report.warnings]
    return "\n".join(["WARNINGS", *said])
