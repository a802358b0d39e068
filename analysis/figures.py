"""Figures of a fit report: matplotlib Figure objects on the Agg canvas, no global pyplot state. No fitting here.

`fid_compute` shows measured runs against the fitted envelopes and who is best where; `fid_optimum` shows what to train.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.laws import Array
from analysis.optimum import Change
from analysis.printing import NAMES, amount, flops, percent, plain
from analysis.report import ArmSummary, Curve, FitReport
from analysis.table import by_run, select

# Okabe & Ito's colours, safe for the common colour blindnesses; yellow left out for its low contrast on white
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DECIDED = 0.95
_PLATE: dict[str, Any] = {"frameon": True, "facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
TICKS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1,))
MOST_TICKS = 8
RFID_IN_SIGHT = 1.8  # an rFID lower than the lowest metric by more than this factor is named at the edge, not reached
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "scaling",
    "hatch.linewidth": 0.7,
}


class FigureError(ValueError):
    """A figure that the report cannot give; its message is one line."""


def fid_compute(report: FitReport, df: pd.DataFrame) -> Figure:
    """Metric against generator compute: runs, envelopes, 95% bands of a new run; below, the best arm, how probably.

    `df` is the table that the report was made from. Raises FigureError where no arm was fitted.
    """
    arms = _fitted(report)
    runs = _runs(report, df)
    with rc_context(STYLE):
        figure = new_figure(5.4)
        if report.leaders:
            axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(13, 1))
        else:
            axes, strip = figure.subplots(), None
        for i, (arm, curve) in enumerate(arms):
            _draw_runs(axes, report.column, runs[runs["arm"] == arm.arm], _starred(report, arm), *look(i))
            _draw_curve(axes, arm, curve, PALETTE[i % len(PALETTE)])
        compute_axis(axes, runs["compute"].min() / 1.4, runs["compute"].max() * 2.6)
        _metric_axis(axes, report, runs[report.column].to_numpy(), with_rfid=report.metric == "fid")
        if report.metric == "loss":
            axes.set_ylim(bottom=axes.get_ylim()[0] * 0.8)
            axes.set_ylabel("loss, nats/token (log; arms do not compare)")
        axes.legend(handles=_keys(report, arms), loc="lower left", borderaxespad=0.1, **_PLATE)
        axes.set_title(_title(report), loc="left")
        if strip is not None:
            _draw_strip(strip, axes, report)
        (strip or axes).set_xlabel(footer(report))
    return figure


def fid_optimum(report: FitReport, df: pd.DataFrame) -> Figure:
    """The best reachable metric against compute, and below it the N and the images to train there.

    Raises FigureError where the report names no optimum.
    """
    arms = _fitted(report)
    if report.leaders is None:
        raise FigureError(f"no optimum to draw: {report.notes.get('optimum', 'none')}")
    runs = _runs(report, df)
    compute = report.leaders.compute
    with rc_context(STYLE):
        figure = new_figure(6.2)
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
        shown = []
        for i, (arm, curve) in enumerate(arms):
            leads = np.array([one == arm.arm for one in report.leaders.best])
            images = (np.asarray(curve.tokens) / (arm.tokens_per_image or 1.0)).tolist()
            for axes, y in zip(panels, (curve.value, curve.params, images), strict=True):
                along = np.exp(np.interp(np.log(compute), np.log(curve.compute), np.log(y)))
                axes.plot(compute, along, color=PALETTE[i % len(PALETTE)], lw=0.9, alpha=0.6, zorder=2)
                best = np.where(leads, along, np.nan)
                axes.plot(compute, best, color=PALETTE[i % len(PALETTE)], lw=3.2, solid_capstyle="butt", zorder=3)
                shown.append(along if axes is panels[0] else along[:0])
            panels[0].plot([], [], color=PALETTE[i % len(PALETTE)], lw=3.2, label=arm.arm)
        compute_axis(panels[0], compute[0], compute[-1])
        _metric_axis(panels[0], report, np.concatenate(shown), with_rfid=False)
        for axes, column, label in (
            (panels[1], "params", "parameters N"),
            (panels[2], "images_seen", "training images"),
        ):
            axes.axhspan(runs[column].min(), runs[column].max(), color="0.92", zorder=0)
            low, high = axes.dataLim.intervaly
            round_axis(axes, min(low, runs[column].min()) / 1.1, max(high, runs[column].max()) * 1.1)
            axes.set_ylabel(label)
        for axes in panels:
            for change in report.changes:
                axes.axvline(change.compute, color="0.35", lw=0.8, ls=":", zorder=1)
        panels[0].legend(title="thick where best", title_fontsize=8, loc="upper right", **_PLATE)
        panels[0].set_title(f"{report.plan}: what to train at a given compute (grey: trained range)", loc="left")
        panels[2].set_xlabel(footer(report))
    return figure


def save(figure: Figure, path_stem: str | Path) -> tuple[Path, Path]:
    """Write PATH.png (200 dpi) and PATH.svg, each whole or not at all, and return both; equal figures, equal SVG."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    choices: list[tuple[Path, dict[str, Any]]] = [(png, {"dpi": 200}), (svg, {"metadata": {"Date": None}})]
    for target, options in choices:
        handle, temporary = tempfile.mkstemp(dir=stem.parent, prefix=f".{stem.name}-", suffix=target.suffix)
        os.close(handle)
        try:
            with rc_context(STYLE):
                figure.savefig(temporary, **options)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return png, svg


# ------------------------------------------------------------------------------------- what is drawn


def new_figure(height: float) -> Figure:
    figure = Figure(figsize=(6.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _fitted(report: FitReport) -> list[tuple[ArmSummary, Curve]]:
    arms = [(arm, arm.curve) for arm in report.arms if arm.curve is not None]
    if not arms:
        raise FigureError(f"nothing to draw for {report.metric}: {report.notes.get('optimum', 'no arm was fitted')}")
    return arms


def look(index: int) -> tuple[str, str]:
    return PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]


def _runs(report: FitReport, df: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of the fitted arms, one row each."""
    table = select(df, report.metric, report.guidance)
    done = table[(table["state"] == "done") & table["arm"].isin([arm.arm for arm in report.arms])]
    return by_run(done, report.column)


def _draw_runs(axes: Axes, column: str, runs: pd.DataFrame, held_out: str | None, color: str, marker: str) -> None:
    """Runs joined along length a size, seeds as whiskers about their geometric mean; stars for the size held out."""
    for size, line in runs.groupby("size", sort=False):
        cells = line.groupby("images_seen")
        x = cells["compute"].mean().to_numpy()
        y = np.exp(cells[column].apply(lambda values: np.log(values).mean()).to_numpy())
        spread = np.stack([y - cells[column].min().to_numpy(), cells[column].max().to_numpy() - y]).clip(min=0)
        held = size == held_out
        axes.plot(x, y, color=color, lw=0.7, alpha=0.5, zorder=2)
        if spread.max() > 1e-12:
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=color, elinewidth=0.9, capsize=2, zorder=3)
        axes.scatter(x, y, marker="*" if held else marker, s=60 if held else 17, color=color, linewidths=0, zorder=4)


def _starred(report: FitReport, arm: ArmSummary) -> str | None:
    """The size drawn as stars: the one kept from this fit, or the one of its held-out test."""
    own = [one.size for one in report.predictions if one.arm == arm.arm]
    return own[0] if own else arm.held_out_size


def _draw_curve(axes: Axes, arm: ArmSummary, curve: Curve, color: str) -> None:
    """The envelope: solid within the arm's fitted data, dashed with its band beyond."""
    x, y = np.asarray(curve.compute), np.asarray(curve.value)
    low, high = arm.trained_compute or (x[0], x[-1])
    inside = (x >= low) & (x <= high)
    beyond = x >= x[inside].max()
    axes.plot(x[inside], y[inside], color=color, lw=2.0, zorder=3)
    axes.plot(x[beyond], y[beyond], color=color, lw=1.4, ls=(0, (3, 1.6)), zorder=3)
    band = np.asarray(curve.low), np.asarray(curve.high)
    axes.fill_between(x[beyond], band[0][beyond], band[1][beyond], color=color, alpha=0.18, lw=0, zorder=1)


def _draw_strip(strip: Axes, axes: Axes, report: FitReport) -> None:
    """Best arm by colour, the probability of being best by opacity, hatching where it is below DECIDED; crossings."""
    led = report.leaders
    assert led is not None
    colors = {arm.arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(report.arms)}
    edges = np.sqrt(led.compute[:-1] * led.compute[1:])
    edges = np.r_[led.compute[0], edges, led.compute[-1]]
    for i, (best, probability) in enumerate(zip(led.best, led.probability, strict=True)):
        shade = 1 - probability * (1 - np.array(to_rgb(colors[best])))  # opacity over white
        strip.axvspan(edges[i], edges[i + 1], color=tuple(shade), lw=0, antialiased=False)
    undecided = led.probability < DECIDED
    strip.fill_between(
        led.compute, 0, 1, where=undecided.tolist(), facecolor="none", edgecolor="0.25", hatch="////", lw=0
    )
    for change in report.changes:
        _draw_change(strip, axes, change, led.compute)
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.set_ylabel("best", rotation=0, ha="right", va="center")
    strip.spines["left"].set_visible(False)


def _draw_change(strip: Axes, axes: Axes, change: Change, compute: Array) -> None:
    """A crossing: a vertical through both panels and its interval, an arrow head where that leaves the data."""
    for one in (axes, strip):
        one.axvline(change.compute, color="0.25", lw=0.9, ls=":", zorder=2)
    low, high = change.low or float(compute[0]), change.high or float(compute[-1])
    strip.plot([low, high], [0.5, 0.5], color="black", lw=1.8, zorder=5, solid_capstyle="butt")
    for end, known, head in ((low, change.low, "<"), (high, change.high, ">")):
        strip.plot([end], [0.5], color="black", marker="|" if known else head, ms=7 if known else 5, zorder=5)


# -------------------------------------------------------------------------------------- axes and words


def _metric_axis(axes: Axes, report: FitReport, values: Array, *, with_rfid: bool) -> None:
    """Logarithmic, round ticks; rFID of the arms at the right edge and FID's bias floor as a band, where in sight."""
    low, high = float(np.min(values)), float(np.max(values))
    marks = [(i, arm.rfid) for i, arm in enumerate(report.arms) if with_rfid and arm.rfid]
    low = min([low * 0.75 if with_rfid else low, *(value for _, value in marks if value > low / RFID_IN_SIGHT)])
    margin = (high / low) ** 0.05
    bottom = low / margin
    round_axis(axes, bottom, high * margin)
    axes.set_ylabel(f"{NAMES[report.column]} (log)")
    across, beside = axes.get_yaxis_transform(), 0.985
    for i, value in marks:
        color = PALETTE[i % len(PALETTE)]
        if value > bottom:
            axes.plot([0.97, 1.0], [value, value], transform=across, color=color, lw=2.5, clip_on=False)
            continue
        axes.text(beside, 0.015, f"{plain(value)}\u25be", transform=axes.transAxes, color=color, ha="right", fontsize=8)
        beside -= 0.075
    if with_rfid and report.bias_floor and report.bias_floor > bottom:
        axes.axhspan(bottom, report.bias_floor, color="0.85", lw=0, zorder=0)


def round_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic y axis on [low, high] with plain numbers at round places."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(round_places(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value) if value >= 1000 else f"{value:.3g}"))


def compute_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic x axis on [low, high] FLOPs, labelled as the printed report writes them."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(round_places(low, high, skip=1)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: flops(value)))


def round_places(low: float, high: float, skip: int = 0) -> list[float]:
    """The finest set of round numbers within [low, high] that is not crowded; `skip` leaves out the finest sets."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found: list[float] = []
    for mantissas in TICKS[skip:]:
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) <= MOST_TICKS:
            break
    return found


def _keys(report: FitReport, arms: list[tuple[ArmSummary, Curve]]) -> list[Line2D | Patch]:
    """The legend: arms, then what the signs mean, each only where it is drawn."""
    keys: list[Line2D | Patch] = []
    for i, (arm, _) in enumerate(arms):
        color, marker = look(i)
        keys.append(Line2D([], [], color=color, marker=marker, ms=4.5, lw=2, label=arm.arm))
    if any(_starred(report, arm) for arm, _ in arms):
        keys.append(Line2D([], [], color="0.4", marker="*", ms=8, lw=0, label="largest size"))
    keys.append(Line2D([], [], color="0.4", lw=1.4, ls=(0, (3, 1.6)), label="beyond the data, 95% of new runs"))
    if report.metric == "fid":
        if any(arm.rfid for arm, _ in arms):
            keys.append(
                Line2D([], [], color="0.4", lw=0, marker="_", ms=8, mew=2.5, label="rFID (right edge; \u25be lower)")
            )
        if report.leaders is not None and (report.leaders.probability < DECIDED).any():
            keys.append(
                Patch(facecolor="white", edgecolor="0.25", hatch="////", lw=0, label=f"best in under {DECIDED:.0%}")
            )
    return keys


def _title(report: FitReport) -> str:
    errors = [arm.held_out for arm in report.arms if arm.held_out is not None]
    text = f"{report.plan}: {NAMES[report.column]}"
    if report.score is not None:
        one = report.score
        text += f"; {one.inside} of {one.total} stars inside the 95% band of new runs, error {percent(one.error)}"
        text += f"; regret of the predicted choice at most {percent(one.regret)}" if one.choices else ""
    elif errors:
        text += f"; largest size predicted to {percent(min(errors))}-{percent(max(errors))}"
        right, tested = report.ranked
        text += f", {right} of {tested} pairs right" if tested and report.metric == "fid" else ""
    return textwrap.fill(text, 92)


def footer(report: FitReport) -> str:
    """The x label: what compute is, and how the metric was measured."""
    floor = f"; bias floor up to {plain(report.bias_floor)}" if report.bias_floor and report.metric == "fid" else ""
    said = textwrap.fill(report.protocol + floor, 100)
    return f"generator training FLOPs (exact matmul: body, head, attention)\n{said}"
