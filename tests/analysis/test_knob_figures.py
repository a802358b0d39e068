"""The figure of the best setting of each knob by compute: what it draws, and when there is nothing to draw."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from synthetic_sweep import LAWS, sweep

from analysis.figures import FigureError, save
from analysis.knob_figures import knob_figure
from analysis.report import FitReport, fit_report

LEVELS = (10, 13, 16, 20, 26)


def law(tokens: float = 16, codes: int = 256) -> Mapping[str, float]:
    term = 6 * (tokens / 16) ** 0.6 * (codes / 256) ** 0.4
    floor = 4 + 160 * tokens**-0.9 * (codes / 256) ** -0.4
    return {"K": codes, "T": tokens, "lam": 0.0, "E": floor, "A": term, "a": 0.7, "B": term, "b": 0.7, "rfid": 3}


@lru_cache(maxsize=1)
def report() -> FitReport:
    arms = {"base" if tokens == 16 else f"t{tokens}": law(tokens) for tokens in LEVELS}
    arms |= {f"k{codes}": law(codes=codes) for codes in (64, 1024)}
    return fit_report(sweep(laws=arms), resamples=60)


def texts(figure: Any) -> str:
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def test_each_knob_has_a_panel_that_names_it_and_what_is_held():
    figure = knob_figure(report())
    assert len(figure.axes) == 2
    said = texts(figure)
    assert "best tokens_per_image" in said
    assert "best codebook_size" in said
    assert "codebook_size 256" in said
    assert "tokens_per_image 16" in said
    assert "the best setting of each knob by generator compute" in said
    assert "exact matmul" in said
    assert all(one.get_yscale() == one.get_xscale() == "log" for one in figure.axes)


def test_the_fitted_best_is_drawn_at_its_compute_with_its_set_and_the_other_ways_beside():
    figure = knob_figure(report())
    (knob,) = [one for one in report().knobs if one.knob == "tokens_per_image"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    best = lines["fitted laws, 95% Fieller set"]
    assert list(best.get_xdata()) == [row.at for row in knob.by_compute if row.best is not None]
    assert list(best.get_ydata()) == [row.best for row in knob.by_compute if row.best is not None]
    ends = [tuple(line.get_ydata()) for line in figure.axes[0].get_lines() if line.get_alpha() == 0.45]
    assert ends == [(row.low or 10, row.high or 26) for row in knob.by_compute if row.best is not None]
    for name, attribute in (
        ("IsoFLOP parabola", "parabola"),
        ("joint surface", "surface"),
        ("Pareto frontier", "frontier"),
    ):
        found = [getattr(row, attribute) for row in knob.by_compute if getattr(row, attribute) is not None]
        assert list(lines[name].get_ydata()) == found


def test_an_open_end_is_drawn_to_the_last_level_with_an_arrow():
    (knob,) = [one for one in report().knobs if one.knob == "tokens_per_image"]
    open_row = replace(knob.by_compute[0], low=9.0, best=20.0, high=None)
    axes = knob_figure(replace(report(), knobs=[replace(knob, by_compute=(open_row,))])).axes[0]
    arrows = [line for line in axes.get_lines() if line.get_marker() == "^" and line.get_linewidth() == 0]
    assert (26.0,) in [tuple(line.get_ydata()) for line in arrows]
    assert [tuple(line.get_ydata()) for line in axes.get_lines() if line.get_alpha() == 0.45] == [(9.0, 26.0)]


def test_a_compute_without_an_optimum_has_no_point_of_the_laws():
    (knob,) = [one for one in report().knobs if one.knob == "tokens_per_image"]
    none = replace(knob.by_compute[0], best=None, low=None, high=None)
    axes = knob_figure(replace(report(), knobs=[replace(knob, by_compute=(none,))])).axes[0]
    assert "fitted laws, 95% Fieller set" not in [line.get_label() for line in axes.get_lines()]


def test_without_an_axis_of_three_levels_there_is_nothing_to_draw():
    two = fit_report(sweep(laws={name: LAWS[name] for name in ("base", "crt")}), resamples=20)
    with pytest.raises(FigureError, match="no optimum along a knob to draw: an axis needs three levels"):
        knob_figure(two)
    noted = replace(report(), knobs=[replace(one, by_compute=(), note="none") for one in report().knobs])
    with pytest.raises(FigureError):
        knob_figure(noted)


def test_it_is_saved_as_png_and_svg(tmp_path):
    png, svg = save(knob_figure(report()), tmp_path / "fid-knobs")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ET.fromstring(svg.read_bytes()).tag.endswith("svg")
