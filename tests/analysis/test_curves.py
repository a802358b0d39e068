"""Laws of one input by groups: what they are, where they cross, what they are worth, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from reference_data import reference
from synthetic_sweep import LAWS, sweep

from analysis.curve_figures import FigureError, figure
from analysis.curves import fit_curves, render
from analysis.figures import PALETTE
from analysis.fitting import FitError, fit_law
from analysis.pair import crossing_of_segments

SIZES = ((16, 2), (24, 2), (32, 2), (48, 3), (64, 3), (96, 4))
LENGTHS = (8_000, 16_000, 32_000, 64_000, 128_000)


def ladder(points=8, noise=0.005, seed=0, **arms):
    """Curves gfid = E + A C^-alpha by arm, one run a compute; `arms` gives (E, A, alpha)."""
    rng = np.random.default_rng(seed)
    compute = np.geomspace(1e9, 1e12, points)
    rows = [
        {
            "run": f"{arm}-{i}",
            "state": "done",
            "arm": arm,
            "compute": c,
            "params": 10_000 * 2**i,
            "images_seen": 1_000,
            "codebook_size": 256,
            "tokens_per_image": 16,
            "gfid": (floor + size * (c / 1e10) ** -alpha) * np.exp(noise * rng.standard_normal()),
        }
        for arm, (floor, size, alpha) in arms.items()
        for i, c in enumerate(compute)
    ]
    return pd.DataFrame(rows).assign(loss=lambda table: table["gfid"] / 10)


BASE, TWICE = (5.0, 20.0, 0.4), (5.0, 20.0 * 2**-0.4, 0.4)
STEEP = (1.0, 30.0, 0.45)


@pytest.fixture(scope="module")
def report():
    return fit_curves(
        ladder(base=BASE, twice=TWICE, steep=STEEP, seed=2), "gfid", x="compute", law="power_floor", draws=200
    )


def test_each_group_has_its_law_with_intervals_around_the_truth(report):
    assert [group.name for group in report.groups] == ["base", "twice", "steep"]
    for group, (floor, _, alpha) in zip(report.groups, (BASE, TWICE, STEEP), strict=True):
        assert group.parameters["E"].low < floor < group.parameters["E"].high
        assert group.parameters["alpha"].low < alpha < group.parameters["alpha"].high
        assert (group.points, group.distinct, group.decades) == (8, 8, pytest.approx(3))
        assert group.residual < 0.012
        assert group.rolling < 0.05


def test_a_group_that_needs_half_the_compute_has_a_multiplier_of_two(report):
    twice = next(one for one in report.multipliers if one.group == "twice")
    assert report.base == "base"
    assert twice.p_value >= 0.05
    assert twice.shared.low < 2 < twice.shared.high
    assert twice.shared.value == pytest.approx(2, rel=0.1)
    assert twice.values == ()


def test_a_group_of_another_shape_has_its_multiplier_as_a_curve(report):
    steep = next(one for one in report.multipliers if one.group == "steep")
    assert steep.p_value < 0.05
    assert steep.shared is None
    for one in steep.values:
        base = ((one.at - BASE[0]) / BASE[1]) ** (-1 / BASE[2])
        other = ((one.at - STEEP[0]) / STEEP[1]) ** (-1 / STEEP[2])
        assert one.value == pytest.approx(base / other, rel=0.1)
        assert one.low < one.value < one.high
    assert len(steep.values) == 3


def test_the_leader_changes_where_the_curves_cross(report):
    meeting = next(one for one in report.crossings if (one.first, one.second) == ("twice", "steep"))
    (crossing,) = meeting.crossings
    grid = np.geomspace(1e9, 1e12, 100_001)
    values = [floor + size * (grid / 1e10) ** -alpha for floor, size, alpha in (TWICE, STEEP)]
    truth = grid[np.argmax(values[1] < values[0])]
    assert crossing.low < truth < crossing.high
    assert crossing.absent == 0
    assert [one.group for one in report.leaders] == ["twice", "steep"]
    assert report.leaders[0].high == pytest.approx(crossing.x, rel=0.05)


def test_curves_that_do_not_cross_say_which_is_lower_and_how_surely(report):
    meeting = next(one for one in report.crossings if (one.first, one.second) == ("base", "twice"))
    assert meeting.crossings == ()
    assert (meeting.lower, meeting.agreement) == ("twice", pytest.approx(1.0, abs=0.1))


def test_a_prediction_names_its_distance_and_holds_the_truth(report):
    for group, (floor, size, alpha) in zip(report.groups, (BASE, TWICE, STEEP), strict=True):
        ahead = group.predicted
        assert ahead.x == pytest.approx(1e13)
        assert ahead.decades == pytest.approx(1)
        assert ahead.low < floor + size * 1e3**-alpha < ahead.high
        assert ahead.forms is not None
    assert "1.0 decades beyond the data" in render(report)


def test_the_report_is_json_in_full_precision_and_text_within_its_width(report):
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["groups"][0]["parameters"]["alpha"]["value"] == report.groups[0].parameters["alpha"].value
    assert "fits" not in told
    text = render(report, 110)
    assert max(map(len, text.splitlines())) <= 170
    for part in ("CROSSINGS", "MULTIPLIER over base", "twice -> steep", "exact matmul", "* the largest x predicted"):
        assert part in text


def test_equal_seeds_give_equal_reports_and_groups_do_not_depend_on_row_order():
    table = ladder(base=BASE, twice=TWICE)
    first = fit_curves(table, "gfid", x="C", draws=50)
    second = fit_curves(table, "gfid", x="compute", draws=50)
    assert first.to_dict() == second.to_dict()


def test_a_floor_whose_interval_reaches_zero_is_not_identified():
    report = fit_curves(ladder(base=(0.5, 20.0, 0.1), points=6), "gfid", x="compute", draws=50)
    assert report.groups[0].floor_identified is False
    assert "not identified" in render(report)
    assert any("floor not identified" in text for text in report.warnings)


def test_auto_weighs_the_laws_by_aicc():
    report = fit_curves(ladder(base=BASE, points=12), "gfid", x="compute", law="auto", draws=50)
    (group,) = report.groups
    assert group.law == "power_floor"
    assert sum(weight for _, weight in group.weights) == pytest.approx(1)
    assert "AICc weighs power_floor" in render(report)


@pytest.mark.parametrize("law", ["power", "shifted", "m4", "broken", "paper"])
def test_every_law_of_one_input_can_be_asked_for(law):
    report = fit_curves(ladder(base=BASE, points=9), "gfid", x="compute", law=law, draws=50)
    assert [group.law for group in report.groups] == [law]
    assert law in render(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_another_objective_has_its_intervals_from_draws():
    table = ladder(base=BASE, steep=STEEP, points=12)
    report = fit_curves(table, "gfid", x="compute", objective="huber", delta=1e-3, draws=100)
    assert "Huber" in report.objective
    assert report.groups[0].parameters["alpha"].low < 0.4 < report.groups[0].parameters["alpha"].high
    assert report.groups[0].predicted.low < report.groups[0].predicted.high
    assert "by least squares" in report.multipliers[0].reason
    assert len(report.multipliers[0].values) == 3


def test_groups_without_a_law_are_named_with_the_reason():
    table = ladder(base=BASE, twice=TWICE)
    few = table[(table["arm"] == "base") | (table["compute"] < 3e9)]
    report = fit_curves(few, "gfid", x="compute", draws=50)
    (left,) = report.left_out
    assert left.group == "twice"
    assert "2 distinct values of compute" in left.reason
    assert report.notes["multipliers"] == "none: one group has a law"
    assert "left out: twice" in render(report)


def test_three_points_have_a_law_without_intervals():
    report = fit_curves(ladder(base=BASE, steep=STEEP, points=3), "gfid", x="compute", draws=50)
    group = report.groups[0]
    assert (group.parameters["alpha"].low, group.residual, group.predicted.low) == (None, None, None)
    assert "[unknown]" in render(report)


def test_the_loss_of_different_codes_is_never_compared():
    table = sweep()
    report = fit_curves(table, "loss", x="compute", draws=50)
    assert len(report.groups) == 4
    assert (report.crossings, report.multipliers, report.leaders) == ([], [], [])
    assert "nats per token do not compare" in render(report)
    same = fit_curves(table[table["arm"].isin(["base", "crt"])], "loss", x="compute", draws=50)
    assert same.multipliers
    assert any("not a better image" in text for text in same.warnings)


def test_groups_by_a_number_are_in_its_order_and_mixed_arms_and_seeds_are_told():
    report = fit_curves(sweep(), "gfid", x="params", by="tokens_per_image", draws=50)
    assert [group.name for group in report.groups] == ["16", "36"]
    assert any(text.startswith("16 holds 3 arms (") for text in report.warnings)
    assert any("several training lengths" in text for text in report.warnings)
    assert "are not independent" in report.multipliers[0].reason


def test_repeats_of_a_run_count_once():
    once, thrice = (
        fit_curves(sweep(laws={"crt": LAWS["crt"]}, repeats=repeats), "gfid", x="compute", draws=50).groups[0]
        for repeats in (1, 3)
    )
    assert (once.points, thrice.points) == (12, 12)
    assert thrice.parameters["alpha"].value == pytest.approx(once.parameters["alpha"].value)


def test_on_the_frontier_the_intervals_choose_again_and_edges_are_named():
    table = sweep(sizes=SIZES, lengths=LENGTHS, laws={name: LAWS[name] for name in ("base", "more-tokens")})
    report = fit_curves(table, "gfid", x="compute", law="paper", points="frontier", draws=100)
    for group in report.groups:
        assert set(group.edges) < set(group.on_frontier)
        assert group.points == len(group.on_frontier) - len(group.edges)
    (meeting,) = report.crossings
    assert meeting.crossings[0].bracketed
    assert len(report.multipliers[0].values) == 3
    text = render(report)
    assert "on the Pareto frontier, edge sizes left out" in text
    assert "the points are chosen" in text
    with pytest.raises(FitError, match="least squares of ln y alone"):
        fit_curves(table, "gfid", x="compute", points="frontier", objective="lad")


def test_a_frontier_of_too_few_sizes_names_its_groups():
    report = fit_curves(sweep(sizes=SIZES[:2]), "gfid", x="compute", points="frontier", draws=50)
    assert not report.groups
    assert "add sizes: 5 or more" in report.left_out[0].reason
    assert "left out: base" in render(report)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": "flops"}, "no column 'flops'"),
        ({"by": "tokenizer"}, "no column 'tokenizer'"),
        ({"law": "chinchilla"}, "a law of one input"),
        ({"points": "some"}, "none of all, frontier"),
        ({"base": "nobody"}, "none of the groups by arm: base, twice"),
        ({"draws": 3}, "draws 3 be at least 20"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, said):
    with pytest.raises(FitError, match=said):
        fit_curves(ladder(base=BASE, twice=TWICE), "gfid", **({"x": "compute"} | change))


# ---------------------------------------------------------------------------------------- a published ladder


def llamagen():
    table = reference("vision_tables/gfid_vs_params.csv")
    return table[table["family"] == "LlamaGen"].rename(columns={"gen_params": "params", "gFID": "gfid"})


def test_llamagens_small_model_prefers_256_tokens_and_the_next_576_and_the_report_says_where():
    report = fit_curves(llamagen(), "gfid", x="params", by="tokens_per_image", draws=50)
    (left,) = report.left_out
    assert left.group == "256"
    (meeting,) = report.crossings
    assert meeting.segments
    (crossing,) = meeting.crossings
    assert 111e6 < crossing.x < 343e6
    assert crossing.x == pytest.approx(162.6e6, rel=0.01)
    assert crossing.after == 1
    assert "256 -> 576  163M" in render(report)
    assert "straight lines between measured points" in render(report)
    few, many = (rows for _, rows in llamagen().groupby("tokens_per_image"))
    assert crossing_of_segments(few, many, "params", "gfid") == [crossing]


def test_a_power_law_of_two_sizes_is_refused_too():
    report = fit_curves(llamagen(), "gfid", x="params", by="tokens_per_image", law="power", draws=50)
    assert "2 distinct values of params" in report.left_out[0].reason


def test_llamagen_at_576_tokens_has_the_published_law_which_its_noise_rejects():
    """The reference (alpha 1.215, chi-square 14.2) took residuals relative to y, this one those of ln y."""
    table = llamagen().query("tokens_per_image == 576")
    fit = fit_law(table, "power_floor", "params", "gfid", noise=0.013)
    assert fit.params["E"] == pytest.approx(2.152, abs=0.001)
    assert fit.params["alpha"] == pytest.approx(1.215, abs=0.006)
    assert fit.dof == 2
    assert 2 * fit.objective_value == pytest.approx(14.2, abs=0.25)
    group = fit_curves(llamagen(), "gfid", x="params", by="tokens_per_image", draws=50).groups[0]
    assert group.parameters["E"].value == pytest.approx(2.152, abs=0.001)
    assert group.residual > 2 * 0.013


# --------------------------------------------------------------------------------------------------- figure


def test_the_figure_names_x_and_protocol_and_draws_each_group_in_its_colour(report):
    axes = figure(report, ladder(base=BASE, twice=TWICE, steep=STEEP, seed=2)).axes[0]
    assert "compute [FLOPs]: generator training, exact matmul" in axes.get_xlabel()
    assert axes.get_xlabel().endswith("protocol unknown")
    assert axes.get_ylabel() == "gFID (log)"
    solid = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_linewidth() == 2.0]
    assert [line.get_color() for line in solid] == list(PALETTE[:3])
    for line in solid:
        assert line.get_xdata()[-1] == pytest.approx(1e12)
    assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == 3


def test_edges_of_the_frontier_are_hollow():
    table = sweep(sizes=SIZES, lengths=LENGTHS, laws={"base": LAWS["base"]})
    report = fit_curves(table, "gfid", x="compute", law="paper", points="frontier", draws=50)
    hollow = [one for one in figure(report, table).axes[0].collections if np.allclose(one.get_facecolor(), 1.0)]
    assert [len(one.get_offsets()) for one in hollow] == [len(report.groups[0].edges)]


def test_a_figure_of_no_run_is_refused(report):
    with pytest.raises(FigureError, match="nothing to draw"):
        figure(report, ladder(base=BASE).assign(state="failed"))
