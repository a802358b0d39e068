"""The Pareto frontier's law: which points are on it, which are edges, and that its interval knows they are chosen."""

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.fitting import FitError
from analysis.frontier import at_edge, frontier_law, inner_points, on_frontier
from analysis.table import by_run

SIZES = ((16, 2), (24, 2), (32, 2), (48, 3), (64, 3), (96, 4))
LENGTHS = (8_000, 16_000, 32_000, 64_000, 128_000)


def runs(arm="more-tokens", noise=0.013, seed=0, **options):
    design = {"sizes": SIZES, "lengths": LENGTHS} | options
    return by_run(sweep(noise=noise, seed=seed, laws={arm: LAWS[arm]}, **design), "gfid")


def test_a_point_is_on_the_frontier_unless_another_is_as_cheap_and_better():
    compute, y = np.array([4.0, 1.0, 2.0, 3.0]), np.array([2.0, 5.0, 3.0, 4.0])
    assert on_frontier(compute, y).tolist() == [True, True, True, False]


def test_of_equal_values_the_cheapest_is_on_the_frontier_and_of_equal_computes_the_best():
    compute = np.array([1.0, 2.0, 2.0, 3.0, 4.0, 4.0])
    y = np.array([5.0, 4.0, 4.5, 4.0, 3.0, 3.0])
    assert on_frontier(compute, y).tolist() == [True, True, False, False, True, True]


def test_many_draws_are_judged_at_once_as_each_alone():
    rng = np.random.default_rng(0)
    compute, y = rng.integers(1, 8, 30).astype(float), rng.integers(1, 12, (50, 30)).astype(float)
    together = on_frontier(compute, y)
    for mask, values in zip(together, y, strict=True):
        beaten = ((compute[None] <= compute[:, None]) & (values[None] < values[:, None])) | (
            (compute[None] < compute[:, None]) & (values[None] <= values[:, None])
        )
        assert (mask == ~beaten.any(axis=1)).all()


def test_runs_of_the_smallest_and_the_largest_size_are_edges():
    assert at_edge(np.array([3.0, 1.0, 2.0, 3.0, 1.0])).tolist() == [True, True, False, True, True]
    rows = runs()
    found = frontier_law(rows, "gfid", draws=50)
    extremes = rows["params"].isin([rows["params"].min(), rows["params"].max()]).to_numpy()
    assert (found.edge == (found.on & extremes)).all()
    assert (found.inner == inner_points(rows, "gfid")).all()
    assert not (found.inner & extremes).any()
    assert found.counts == {
        "runs": 30,
        "frontier": found.on.sum(),
        "edge": found.edge.sum(),
        "inner": len(found.free.fit.y),
    }


def test_a_frontier_that_is_an_exact_law_gives_its_parameters():
    """One size is best at each compute, by 20%; the others are off the frontier."""
    rows = pd.DataFrame(
        [
            (c, 10.0**i, (2 + 50 * c**-0.5) * (1.2 if i != j else 1.0))
            for j, c in enumerate(np.geomspace(1, 1e4, 7))
            for i in range(7)
        ],
        columns=["compute", "params", "gfid"],
    )
    found = frontier_law(rows, "gfid", draws=50, noise=0.001)
    assert found.counts == {"runs": 49, "frontier": 7, "edge": 2, "inner": 5}
    values = {name: one.value for name, one in found.free.parameters.items()}
    assert values["Lmin"] == pytest.approx(2, rel=1e-5)
    assert values["alpha"] == pytest.approx(0.5, rel=1e-5)
    assert values["lambda"] == pytest.approx(np.log(50), rel=1e-5)
    assert found.r2 == pytest.approx(1)
    assert found.noise_from == "given"
    assert found.drawn is None


def test_the_interval_that_chooses_the_points_again_covers_and_is_wider_than_the_one_that_does_not():
    """30 runs of 1.3% noise; the truth is the frontier's law of the runs without noise."""
    truth = frontier_law(runs(noise=0), "gfid", draws=50, noise=0.013).free.fit.params["alpha"]
    found = [frontier_law(runs(seed=seed), "gfid", draws=200, seed=seed).free.parameters["alpha"] for seed in range(40)]
    again = np.array([(one.low, one.high) for one in found])
    given = np.array([(one.given_low, one.given_high) for one in found])
    assert np.mean((again[:, 0] <= truth) & (truth <= again[:, 1])) >= 0.92
    widths = [np.median(np.log(ends[:, 1] / ends[:, 0])) for ends in (again, given)]
    assert widths[0] > 1.15 * widths[1]


def test_the_floor_drawn_to_rfid_lies_nearer_to_it_than_the_fitted_one():
    found = frontier_law(runs(), "gfid", rfid=7.0, draws=200)
    free, drawn = found.free.parameters["Lmin"], found.drawn.parameters["Lmin"]
    assert abs(drawn.value - 7) < abs(free.value - 7)
    assert drawn.high - drawn.low < free.high - free.low


def test_the_noise_is_the_joint_laws_residual_unless_given_and_the_frontiers_own_without_a_joint_law():
    rows = runs()
    assert frontier_law(rows, "gfid", draws=50).noise == pytest.approx(0.013, rel=0.35)
    assert frontier_law(rows, "gfid", draws=50).noise_from == "residual of the joint law"
    assert frontier_law(rows, "gfid", draws=50, noise=0.05).noise == 0.05
    alone = frontier_law(rows.assign(tokens_seen=1e6), "gfid", draws=50)
    assert "too small" in alone.noise_from
    with pytest.raises(FitError, match="noise must be a positive"):
        frontier_law(rows, "gfid", noise=-1.0)


def test_equal_seeds_give_equal_intervals():
    first, second = (frontier_law(runs(), "gfid", draws=50, seed=3) for _ in range(2))
    assert first.free.parameters == second.free.parameters


def test_any_law_of_one_input_can_be_fitted_and_no_other():
    found = frontier_law(runs(), "gfid", draws=50, law="power")
    assert set(found.free.parameters) == {"A", "alpha"}
    with pytest.raises(FitError, match="takes a law of one input"):
        frontier_law(runs(), "gfid", law="chinchilla")


def test_fewer_than_three_inner_points_are_refused_with_what_to_add():
    with pytest.raises(FitError, match=r"0 of \d+ frontier points over compute are inside \(2 sizes.*5 or more"):
        frontier_law(runs(sizes=SIZES[:2]), "gfid")
    with pytest.raises(FitError, match=r"2 of \d+ frontier points .* add sizes beyond the smallest and the largest"):
        frontier_law(runs(sizes=SIZES[:3], lengths=LENGTHS[:2]), "gfid")
