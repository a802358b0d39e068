"""Rate and distortion of tokenizers: bits a pixel against rFID and MSE, the best gFID as colour. No fitting here."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from analysis.figures import STYLE, FigureError, new_figure, round_axis, round_places
from analysis.form import Array
from analysis.printing import plain
from analysis.report import FitReport

DISTORTIONS = (("rfid", "rFID (log)"), ("mse", "MSE of [0, 1] pixels (log)"))
RATES = (("code_bits_per_pixel", "o", "nominal"), ("entropy_bits_per_pixel", "|", "entropy-coded"))


def rate_figure(report: FitReport) -> Figure:
    """Distortion against bits a pixel, an arm a point, its best gFID as colour. Raises FigureError without a rate."""
    drawn = [(name, label) for name, label in DISTORTIONS if _known(report, RATES[0][0], name).any()]
    if not drawn:
        raise FigureError("no rate to draw: codebook size, tokens per image and pixels are not all known")
    best = np.array([_number(one["gfid"]) for one in report.rates])
    with rc_context(STYLE):
        figure = new_figure(3.9)
        panels = np.atleast_1d(figure.subplots(1, len(drawn), squeeze=True))
        for axes, (name, label) in zip(panels, drawn, strict=True):
            shades = _panel(axes, report, name, label, np.log(best))
        panels[0].set_title(f"{report.plan}: rate and distortion of {len(report.rates)} tokenizers", loc="left")
        if np.isfinite(best).any():
            bar = figure.colorbar(shades, ax=list(panels), pad=0.02, aspect=30)
            marks = round_places(float(np.nanmin(best)), float(np.nanmax(best)))
            bar.set_ticks([float(np.log(mark)) for mark in marks], labels=[plain(mark) for mark in marks])
            bar.set_label("best gFID of its generators (log)")
    return figure


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _known(report: FitReport, rate: str, distortion: str) -> np.ndarray:
    bits = np.array([_number(one[rate]) for one in report.rates])
    lost = np.array([_number(one[distortion]) for one in report.rates])
    return np.asarray(np.isfinite(bits) & np.isfinite(lost) & (lost > 0))


def _panel(axes: Axes, report: FitReport, distortion: str, label: str, shade: Array) -> PathCollection:
    """Points at their nominal rate, a tick at the entropy-coded one, the lower frontier joined."""
    known = _known(report, RATES[0][0], distortion)
    y = np.array([_number(one[distortion]) for one in report.rates])
    for rate, marker, _ in RATES:
        x = np.array([_number(one[rate]) for one in report.rates])
        at = known & np.isfinite(x)
        if marker == "o":
            order = np.argsort(x[at], kind="stable")
            low = np.minimum.accumulate(y[at][order]) == y[at][order]
            axes.plot(x[at][order][low], y[at][order][low], color="0.7", lw=1, zorder=1)
            coloured = np.where(np.isfinite(shade), shade, np.nanmax(shade) if np.isfinite(shade).any() else 0.0)
            shown = axes.scatter(
                x[at], y[at], c=coloured[at], cmap="viridis_r", s=46, zorder=3, edgecolors="0.25", lw=0.5
            )
            for label_at, names in _labels(
                x[at], y[at], [str(one["arm"]) for one, here in zip(report.rates, at, strict=True) if here]
            ):
                gap = np.log(x[at] / label_at[0])  # to a neighbour that a label beside the point would run into
                crowded = ((gap > 0.05) & (gap < 0.8) & (np.abs(np.log(y[at] / label_at[1])) < 0.1)).any()
                place = (-4, 7) if crowded else (7, -3)
                axes.annotate(names, label_at, xytext=place, textcoords="offset points", fontsize=7)
        else:
            axes.scatter(x[at], y[at], marker=marker, color="0.45", s=40, lw=1, zorder=2)
    x = np.array([_number(one[RATES[0][0]]) for one in report.rates])[known]
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.5, x.max() * 1.7)
    axes.set_xticks(round_places(x.min() / 1.5, x.max() * 1.7, skip=2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.minorticks_off()
    round_axis(axes, float(y[known].min()) / 1.15, float(y[known].max()) * 1.2)
    axes.set_xlabel("bits a pixel (T log2 K; | entropy-coded)")
    axes.set_ylabel(label)
    return shown


def _labels(x: Array, y: Array, names: list[str]) -> list[tuple[tuple[float, float], str]]:
    """Where to write which names: those of points that nearly coincide share a place."""
    near_x, near_y = 0.04 * max(np.ptp(np.log(x)), 0.1), 0.05 * max(np.ptp(np.log(y)), 0.1)
    groups: list[list[int]] = []
    for i in np.argsort(-y, kind="stable"):
        last = next(
            (g for g in groups if abs(np.log(x[g[-1]] / x[i])) < near_x and np.log(y[g[-1]] / y[i]) < near_y), None
        )
        groups.append([int(i)]) if last is None else last.append(int(i))
    return [((float(x[g[0]]), float(y[g[0]])), ", ".join(names[i] for i in g)) for g in groups]
