"""The figure of a curves report: runs, laws and what they say beyond the data. No fitting here."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.curve_groups import CurveLine
from analysis.curve_printing import axis, named, shown
from analysis.curves import CurvesReport, runs_by_group
from analysis.figures import STYLE, FigureError, look, new_figure, round_axis, round_places

__all__ = ["FigureError", "figure"]

DASHES = (0, (3, 1.6))
PLATE: dict[str, Any] = {"frameon": True, "facecolor": "white", "edgecolor": "none", "framealpha": 0.85}


def figure(report: CurvesReport, table: pd.DataFrame) -> Figure:
    """`report.column` against `report.x` in logarithms, a colour a group; `table` is what the report was made from.

    Points are runs; laws are solid inside the data, dashed with the band of a new run beyond it. With points =
    frontier, runs that the law was fitted to are filled, those on the frontier at an edge size hollow, the rest faint.
    Groups without a law show their runs alone. Raises FigureError where there is no run.
    """
    parts = runs_by_group(table, report)
    if not parts:
        raise FigureError(f"nothing to draw: no run has {report.column} and {report.x}")
    fitted = {group.name: group for group in report.groups}
    with rc_context(STYLE):
        drawn = new_figure(4.6)
        axes = drawn.subplots()
        keys = []
        for i, (name, rows) in enumerate(parts.items()):
            color, marker = look(i)
            group = fitted.get(name)
            _draw_runs(axes, report, rows, name, color, marker)
            if group is not None:
                _draw_line(axes, group.line, color, report.level)
            label = name if group is not None else f"{name} (no law)"
            keys.append(
                Line2D([], [], color=color, marker=marker, ms=4.5, lw=2 if group is not None else 0, label=label)
            )
        _draw_crossings(axes, report)
        _limits(axes, report, parts)
        axes.legend(handles=[*keys, *_signs(report)], loc="best", **PLATE)
        axes.set_title(_title(report), loc="left")
        axes.set_xlabel(f"{textwrap.fill(axis(report.x), 100)}\n{textwrap.fill(report.protocol, 100)}")
        axes.set_ylabel(f"{named(report.column)} (log)")
    return drawn


def _draw_runs(axes: Axes, report: CurvesReport, rows: pd.DataFrame, name: str, color: str, marker: str) -> None:
    x, y = rows[report.x].to_numpy(dtype=float), rows[report.column].to_numpy(dtype=float)
    group = next((one for one in report.groups if one.name == name), None)
    if group is None:  # joined, as crossings without a law are read off straight lines
        logs = pd.DataFrame({"x": np.log(x), "y": np.log(y)}).groupby("x")["y"].mean()
        axes.plot(np.exp(logs.index), np.exp(logs), color=color, lw=0.9, alpha=0.7, zorder=2)
    if report.points == "all" or group is None:
        axes.scatter(x, y, marker=marker, s=17, color=color, linewidths=0, zorder=4)
        return
    on, edge = rows["run"].map(str).isin(group.on_frontier), rows["run"].map(str).isin(group.edges)
    axes.scatter(x[~on], y[~on], marker=marker, s=9, color=color, alpha=0.3, linewidths=0, zorder=2)
    axes.scatter(x[on & ~edge], y[on & ~edge], marker=marker, s=20, color=color, linewidths=0, zorder=4)
    axes.scatter(x[edge], y[edge], marker=marker, s=20, facecolors="white", edgecolors=color, linewidths=1.1, zorder=4)


def _draw_line(axes: Axes, line: CurveLine, color: str, level: float) -> None:
    axes.plot(line.x, line.value, color=color, lw=2.0, zorder=3)
    beyond = np.array([[one.x, one.value, one.low or np.nan, one.high or np.nan] for one in line.beyond], dtype=float)
    axes.plot(beyond[:, 0], beyond[:, 1], color=color, lw=1.4, ls=DASHES, zorder=3)
    axes.fill_between(beyond[:, 0], beyond[:, 2], beyond[:, 3], color=color, alpha=0.15, lw=0, zorder=1)


def _draw_crossings(axes: Axes, report: CurvesReport) -> None:
    """Where the leader changes, with the interval as a bar on the curves."""
    seen = {one.high for one in report.leaders[:-1]}
    for meeting in report.crossings:
        for one in meeting.crossings:
            leads = meeting.segments or any(abs(np.log(one.x / at)) < 0.03 for at in seen)
            if not leads:
                continue
            axes.axvline(one.x, color="0.35", lw=0.8, ls=":", zorder=1)
            if meeting.segments:
                axes.plot([one.x], [one.value], color="black", marker="x", ms=6, zorder=5)
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [one.value] * 2, color="black", lw=1.6, marker="|", ms=7, zorder=5)


def _limits(axes: Axes, report: CurvesReport, parts: dict[str, pd.DataFrame]) -> None:
    """Both axes logarithmic; wide enough for runs and laws, while a band may leave the picture."""
    x = np.concatenate([rows[report.x].to_numpy(dtype=float) for rows in parts.values()])
    y = [rows[report.column].to_numpy(dtype=float) for rows in parts.values()]
    y += [np.array([one.value for one in group.line.beyond]) for group in report.groups]
    top = max([x.max() * 1.25, *(group.predicted.x for group in report.groups)])
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.25, top * 1.02)
    axes.xaxis.set_major_locator(FixedLocator(round_places(x.min() / 1.25, top, skip=1)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, report.x)))
    low, high = float(np.min(np.concatenate(y))), float(np.max(np.concatenate(y)))
    margin = (high / low) ** 0.08
    round_axis(axes, low / margin, high * margin)


def _signs(report: CurvesReport) -> list[Line2D]:
    """What the signs mean, each only where it is drawn."""
    keys = []
    if report.points == "frontier" and report.groups:
        grey: dict[str, Any] = {"color": "0.4", "lw": 0, "marker": "o"}
        keys.append(Line2D([], [], ms=4.5, label="on the frontier, fitted", **grey))
        if any(group.edges for group in report.groups):
            keys.append(Line2D([], [], ms=4.5, mfc="white", label="on it at an edge size, left out", **grey))
        keys.append(Line2D([], [], ms=3, alpha=0.4, label="not on it", **grey))
    if report.groups:
        keys.append(
            Line2D([], [], color="0.4", lw=1.4, ls=DASHES, label=f"beyond the data, {report.level:.0%} of new runs")
        )
    if any(meeting.segments and meeting.crossings for meeting in report.crossings):
        keys.append(Line2D([], [], color="black", lw=0, marker="x", ms=6, label="crossing of lines between points"))
    return keys


def _title(report: CurvesReport) -> str:
    which = "the Pareto frontier" if report.points == "frontier" else "all runs"
    laws = sorted({group.law for group in report.groups}) or ["none"]
    named_laws = f"law{'s' * (len(laws) > 1)} {', '.join(laws)} through {which}"
    return textwrap.fill(f"{report.plan or 'table'}: {named(report.column)} by {report.by}, {named_laws}", 92)
