"""The optimum along each knob against compute: one panel a knob, the ways to it side by side. No fitting here."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import PALETTE, STYLE, FigureError, compute_axis, footer, new_figure, round_axis
from analysis.knobs import KnobOptimum
from analysis.report import FitReport

WAYS = (
    ("parabola", "s", "IsoFLOP parabola"),
    ("akima", "D", "IsoFLOP Akima"),
    ("surface", "^", "joint surface"),
    ("frontier", "x", "Pareto frontier"),
)


def knob_figure(report: FitReport) -> Figure:
    """Best level of each knob by compute, with its Fieller set, and by the other ways. Raises FigureError."""
    drawn = [one for one in report.knobs if one.by_compute]
    if not drawn:
        raise FigureError("no optimum along a knob to draw: an axis needs three levels")
    with rc_context(STYLE):
        figure = new_figure(0.9 + 2.4 * len(drawn))
        panels = np.atleast_1d(figure.subplots(len(drawn), 1, sharex=True, squeeze=True))
        for axes, one in zip(panels, drawn, strict=True):
            _panel(axes, one)
        computes = [row.at for one in drawn for row in one.by_compute]
        compute_axis(panels[0], min(computes) / 1.6, max(computes) * 1.6)
        panels[0].legend(loc="best", frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
        panels[0].set_title(f"{report.plan}: the best setting of each knob by generator compute", loc="left")
        panels[-1].set_xlabel(footer(report))
    return figure


def _panel(axes: Axes, one: KnobOptimum) -> None:
    positive = [level for level in one.levels if level > 0]
    low, high = positive[0], positive[-1]
    round_axis(axes, low / 1.35, high * 1.35)
    for level in positive:
        axes.axhline(level, color="0.9", lw=0.8, zorder=0)
    color = PALETTE[0]
    for row in one.by_compute:
        if row.best is None:
            continue
        ends = row.low or low, row.high or high
        axes.plot([row.at, row.at], ends, color=color, lw=2.2, alpha=0.45, solid_capstyle="butt", zorder=2)
        for end, known, head in ((ends[0], row.low, "v"), (ends[1], row.high, "^")):
            if known is None:
                axes.plot([row.at], [end], color=color, marker=head, ms=5, lw=0, zorder=2)
    best = [(row.at, row.best) for row in one.by_compute if row.best is not None]
    if best:
        x, y = zip(*best, strict=True)
        axes.plot(x, y, color=color, marker="o", ms=6, lw=1.4, zorder=3, label="fitted laws, 95% Fieller set")
    for shift, (name, marker, label) in zip((0.94, 0.97, 1.03, 1.06), WAYS, strict=True):
        found = [(row.at * shift, value) for row in one.by_compute if (value := getattr(row, name)) is not None]
        found = [(at, value) for at, value in found if value > 0]
        if found:
            x, y = zip(*found, strict=True)
            axes.plot(x, y, color="0.35", marker=marker, ms=4.5, lw=0, zorder=4, label=label, mfc="none")
    fixed = ", ".join(f"{name} {value:g}" for name, value in one.fixed.items())
    axes.set_ylabel(f"best {one.knob}\n(log)" if not fixed else f"best {one.knob}\n(at {fixed})", fontsize=7.5)


__all__ = ["knob_figure"]
