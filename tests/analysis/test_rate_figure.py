"""Rate and distortion: what is drawn of an rFID report, and what the report prints of it."""

import numpy as np
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.figures import FigureError
from analysis.rate_figure import rate_figure
from analysis.render import render_text
from analysis.report import FitReport, fit_report


def told() -> FitReport:
    table = sweep()
    return fit_report(
        table.assign(perplexity=table["codebook_size"] / 2, psnr=20 + table["tokens_per_image"] / 10), "rfid"
    )


def test_every_tokenizer_has_a_point_at_its_rate_and_its_distortion():
    figure = rate_figure(told())
    rfid, mse, bar = figure.axes
    places = np.sort(rfid.collections[0].get_offsets().data, axis=0)
    bits = sorted(law["T"] * np.log2(law["K"]) / 256 for law in LAWS.values())
    np.testing.assert_allclose(places[:, 0], bits, rtol=1e-6)
    np.testing.assert_allclose(places[:, 1], sorted(law["rfid"] for law in LAWS.values()), rtol=1e-6)
    assert (rfid.get_ylabel(), mse.get_ylabel()) == ("rFID (log)", "MSE of [0, 1] pixels (log)")
    assert "gFID" in bar.get_ylabel()
    assert {name for text in rfid.texts for name in text.get_text().split(", ")} == set(LAWS)


def test_colours_follow_the_best_gfid():
    report = told()
    shades = rate_figure(report).axes[0].collections[0].get_array()
    best = [one["gfid"] for one in report.rates]
    assert np.argsort(shades).tolist() == np.argsort(best).tolist()


def test_without_a_rate_nothing_is_drawn():
    with pytest.raises(FigureError, match="no rate to draw"):
        rate_figure(fit_report(sweep().drop(columns="loss_per_image"), "rfid"))


def test_the_table_has_nominal_coded_and_modelled_bits_and_marks_the_frontier():
    lines = {line.split()[0]: line.split() for line in render_text(told()).splitlines() if line.split()}
    base, small = lines["base"], lines["small-codebook"]
    assert base[:6] == ["base", "256", "16", "0", "128", "0.500"]
    assert base[6] == f"{16 * np.log2(128) / 256:.3f}"
    assert base[8] == "24.0*"
    assert small[8] == "30.0*"
    assert lines["crt"][8] == "25.0"
