import re
import xml.etree.ElementTree as ET
from functools import lru_cache

import pytest
from synthetic_sweep import LAWS, sweep

from analysis.figures import PALETTE, FigureError, fid_compute, fid_optimum, save
from analysis.report import FitReport, fit_report


@lru_cache(maxsize=1)
def report() -> FitReport:
    return fit_report(sweep(), resamples=60)


def texts(figure) -> str:
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def test_axes_name_the_compute_convention_and_the_protocol():
    for figure in (fid_compute(report(), sweep()), fid_optimum(report(), sweep())):
        said = texts(figure)
        assert "exact matmul: body, head, attention" in said
        assert "shapes-cnn@1 (64-d)" in said
        assert "N = 2,000" in said


def test_every_arm_has_its_key_and_its_points():
    figure = fid_compute(report(), sweep())
    assert all(arm in texts(figure) for arm in LAWS)
    points = [
        offset for one in figure.axes[0].collections for offset in one.get_offsets() if len(one.get_offsets()) == 3
    ]
    assert len(points) == 48


def test_the_strip_has_the_winners_colours_fading_where_unsure():
    strip = fid_compute(report(), sweep()).axes[1]
    first, last = (strip.patches[i].get_facecolor()[:3] for i in (0, -1))
    to_hex = lambda rgb: "#" + "".join(f"{round(255 * channel):02X}" for channel in rgb)  # noqa: E731
    assert to_hex(first) == PALETTE[3]  # crt
    assert to_hex(last) == PALETTE[2]  # more-tokens
    lightest = max(sum(patch.get_facecolor()[:3]) for patch in strip.patches)
    assert lightest > sum(first) + 0.3


def test_saving_twice_gives_the_same_svg_and_leaves_nothing_else(tmp_path):
    png, svg = save(fid_compute(report(), sweep()), tmp_path / "plots" / "fid-compute")
    once = svg.read_bytes()
    save(fid_compute(report(), sweep()), tmp_path / "plots" / "fid-compute")
    assert svg.read_bytes() == once
    assert ET.fromstring(once).tag.endswith("svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["fid-compute.png", "fid-compute.svg"]
    assert not re.search(rb"<dc:date>", once)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    figure = fid_optimum(report(), sweep())
    _, svg = save(figure, tmp_path / "a")
    old = svg.read_bytes()

    def fail(*_args, **_options):
        raise OSError("disk full")

    figure.savefig = fail
    with pytest.raises(OSError, match="disk full"):
        save(figure, tmp_path / "a")
    assert svg.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_tokenizer_seeds_are_drawn_as_whiskers():
    table = sweep(tokenizer_seeds=2, laws={"base": LAWS["base"], "crt": LAWS["crt"]}, seed_noise=0.03)
    seeds = fid_compute(fit_report(table, resamples=20), table)
    assert len(seeds.axes[0].containers) == 8  # one set of whiskers an arm and size
    assert len(fid_compute(report(), sweep()).axes[0].containers) == 0


def test_loss_is_drawn_without_a_strip_and_has_no_optimum_figure():
    loss = fit_report(sweep(), "loss", resamples=20)
    assert len(fid_compute(loss, sweep()).axes) == 1
    with pytest.raises(FigureError, match="no optimum to draw: none across arms"):
        fid_optimum(loss, sweep())


def test_what_has_no_law_is_refused_in_one_line():
    with pytest.raises(FigureError, match="nothing to draw for rfid: rFID has no generator axis"):
        fid_compute(fit_report(sweep(), "rfid"), sweep())


def test_drawing_touches_no_global_figure():
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    fid_compute(report(), sweep())
    assert matplotlib.rcParams["font.size"] == before
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
