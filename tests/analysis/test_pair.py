"""Two curves of one shape: the shift covers as often as it says, the F test errs as often as it says, crossings."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import fdtri

from analysis.fitting import fit_law
from analysis.inputs import FitError
from analysis.laws import CHINCHILLA, POWER
from analysis.pair import (
    Pair,
    crossing_of_segments,
    crossings,
    join,
    log_curve,
    multiplier_draws,
    reaches,
    shape_test,
    shared_shape,
)
from analysis.problem import Loss, Problem
from analysis.profile import Quantity, profile
from analysis.solver import solve

DRAWS = 2000
KAPPA = 2.0


def simulated(law, single, x, first, second, sigma, given=None, seed=0):
    """DRAWS pairs of data sets: the fitted pairs' intervals of ln kappa by both noises, and both tests' p values."""
    n, extra = len(x), 2 * len(single.parameters) - len(law.parameters)
    noise = sigma * np.random.default_rng(seed).standard_normal((DRAWS, 2 * n))
    y = np.concatenate([first, second]) * np.exp(noise)
    weight, both = np.ones_like(y), join(x, x)
    start = None if given is None else np.broadcast_to(given, (DRAWS, 1, len(given)))
    shared = solve(law, both, y, weight, Loss(), given=start, cells=24, starts=2, tolerance=1e-10)
    separate = sum(
        solve(single, x, y[:, part], weight[:, part], Loss(), cells=24, starts=2, tolerance=1e-10).objective
        for part in (slice(0, n), slice(n, 2 * n))
    )
    problem = Problem.of(law, both, y, weight, Loss())
    theta, dof = law.centred(shared.theta, problem.centre, problem.unit), 2 * n - len(law.parameters)
    ends = {}
    for name, rise in (
        ("known", np.full(DRAWS, sigma**2 * fdtri(1, 1e9, 0.95))),
        ("estimated", fdtri(1, dof, 0.95) * 2 * shared.objective / dof),
    ):
        ends[name] = profile(problem, theta, Quantity(name="ln_kappa"), rise)[1:]
    free = 2 * n - 2 * len(single.parameters)
    p_f = shape_test(2 * shared.objective, 2 * separate, extra, free)[1]
    p_chi = shape_test(2 * shared.objective / sigma**2, 2 * separate / sigma**2, extra, None)[1]
    return ends, p_f, p_chi


def covered(ends, truth):
    return float(np.mean((ends[0] <= truth) & (truth <= ends[1])))


def width(ends):
    """The median interval as a factor: kappa x/ width."""
    return float(np.exp(np.median(ends[1] - ends[0]) / 2))


def one_input(points=5, decades=1.5, sigma=0.013, floor=2.0, size=10.0, alpha=0.4, other=None):
    x = np.geomspace(1, 10**decades, points)
    second = floor + size * (KAPPA * x) ** -(alpha if other is None else other)
    return simulated(Pair(), POWER, x[:, None], floor + size * x**-alpha, second, sigma)


@pytest.mark.parametrize(
    ("case", "factor"),
    [
        ({}, 1.062),
        ({"sigma": 0.03}, 1.156),
        ({"floor": 0.0}, 1.041),
        ({"alpha": 0.2}, 1.10),
        ({"size": 4.0}, 1.094),
        ({"points": 8, "decades": 2}, 1.051),
    ],
)
def test_the_shift_of_two_curves_is_as_sharp_as_the_noise_allows_and_covers_at_its_level(case, factor):
    """E = 2, A = 10, alpha = .4, 5 + 5 points over 1.5 decades, 1.3% noise, unless the case says otherwise."""
    ends, _, _ = one_input(**case)
    for known in ends.values():
        assert 0.93 <= covered(known, np.log(KAPPA)) <= 0.97
    assert width(ends["known"]) - 1 == pytest.approx(factor - 1, rel=0.17)
    assert width(ends["known"]) < width(ends["estimated"]) < 1 + 1.5 * (factor - 1)


def test_one_shape_is_rejected_in_about_a_twentieth_of_true_pairs_and_less_where_the_floor_is_at_its_bound():
    for case in ({}, {"sigma": 0.03}, {"points": 8, "decades": 2}):
        _, p_f, p_chi = one_input(**case)
        assert 0.035 <= np.mean(p_f < 0.05) <= 0.065
        assert 0.035 <= np.mean(p_chi < 0.05) <= 0.065
    assert np.mean(one_input(floor=0.0)[1] < 0.05) < 0.04


def test_exponents_of_the_papers_size_of_difference_need_low_noise_or_many_points_to_be_told_apart():
    """.65 against .73, E = 2, A = 10 over 1.5 decades: the metric falls from 12 to 3. Share told apart, F test."""
    expected = {(5, 0.013): 0.76, (5, 0.03): 0.22, (12, 0.03): 0.58, (24, 0.03): 0.90}
    for (points, sigma), share in expected.items():
        _, p_f, p_chi = one_input(points, 1.5, sigma, alpha=0.65, other=0.73)
        assert np.mean(p_f < 0.05) == pytest.approx(share, abs=0.05)
        assert np.mean(p_chi < 0.05) > np.mean(p_f < 0.05)  # noise known beforehand tells more


def test_the_shift_along_the_compute_envelope_of_two_joint_laws_covers_at_its_level():
    """4 sizes x 3 lengths each, 1.3% noise; N is worth 1.5 times as much to the second, D 1.4 times."""
    x = np.array([(n, d) for n in (8e3, 3e4, 9e4, 2e5) for d in (5e5, 1e6, 2e6)])

    def law(of_n=1.0, of_d=1.0):
        return 9 + 13 * (x[:, 0] * of_n / 4e4) ** -0.6 + 12 * (x[:, 1] * of_d / 8e5) ** -0.5

    sizes = [13 * 4e4**0.6, 13 * (4e4 / 1.5) ** 0.6, 12 * 8e5**0.5, 12 * (8e5 / 1.4) ** 0.5]
    given = np.array([9, *sizes, 0.6, 0.5])
    ends, p_f, _ = simulated(Pair(("N", "D")), CHINCHILLA, x, law(), law(1.5, 1.4), 0.013, given)
    assert 0.93 <= covered(ends["estimated"], np.log(1.5 * 1.4)) <= 0.97
    assert 1.05 < width(ends["estimated"]) < 1.1
    assert 0.03 <= np.mean(p_f < 0.05) <= 0.07


@pytest.mark.parametrize("law", [Pair(), Pair(floor=False), Pair(("N", "D"))])
def test_the_pairs_gradient_is_that_of_its_value(law):
    rng = np.random.default_rng(0)
    k = len(law.inputs) - 1
    x = join(np.exp(rng.normal(0, 1, (4, k))), np.exp(rng.normal(0, 1, (5, k))))
    theta = np.array([[*([2.0] * law.floor), *np.linspace(1, 3, 2 * k), *np.linspace(0.4, 0.7, k)]])
    slope = law.gradient(x, theta)[0]
    for i in range(theta.shape[1]):
        step = np.eye(theta.shape[1])[i] * 1e-6
        numeric = (law.value(x, theta + step)[0] - law.value(x, theta - step)[0]) / 2e-6
        assert slope[:, i] == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_a_pairs_value_does_not_depend_on_which_points_are_asked_for():
    law, theta = Pair(), np.array([[2.0, 10.0, 5.0, 0.4]])
    x = join(np.array([[1.0], [4.0]]), np.array([[1.0], [9.0]]))
    whole = law.value(x, theta)[0]
    assert [law.value(x[i : i + 1], theta)[0][0] for i in range(4)] == pytest.approx(whole)
    assert whole == pytest.approx([12, 2 + 10 * 4**-0.4, 7, 2 + 5 * 9**-0.4])


def curve(kappa=1.0, floor=2.0, alpha=0.4, points=6, noise=0.01, seed=0):
    x = np.geomspace(1, 100, points)
    y = (floor + 10 * (kappa * x) ** -alpha) * np.exp(noise * np.random.default_rng(seed).standard_normal(points))
    return pd.DataFrame({"x": x, "y": y})


@pytest.mark.parametrize("law", ["power_floor", "paper", "power"])
def test_a_curve_moved_along_x_is_found_with_its_factor(law):
    floor = 0.0 if law == "power" else 2.0
    fits = [fit_law(curve(kappa, floor=floor, noise=0), law, "x", "y", noise=0.01) for kappa in (1.0, 3.0)]
    found = shared_shape(*fits)
    assert found.kappa[0] == pytest.approx(3, rel=1e-4)
    assert found.kappa[1] < 3 < found.kappa[2]
    assert found.agree
    assert found.dof is None
    assert found.extra == (1 if law == "power" else 2)
    back = shared_shape(*fits[::-1])
    assert back.log_kappa == pytest.approx(-found.log_kappa, abs=1e-4)
    assert (back.log_low, back.log_high) == pytest.approx((-found.log_high, -found.log_low), abs=2e-3)


def test_the_cost_ratio_moves_the_shift_and_its_interval():
    first, second = (fit_law(curve(kappa, seed=i), "power_floor", "x", "y") for i, kappa in enumerate((1.0, 2.0)))
    plain, moved = shared_shape(first, second), shared_shape(first, second, log_cost_ratio=np.log(0.5))
    assert np.array(moved.kappa) == pytest.approx(np.array(plain.kappa) / 2)
    assert plain.dof == 6


def test_two_joint_laws_give_the_shift_of_their_envelopes():
    x = np.array([(n, d) for n in (1e4, 3e4, 9e4, 2e5) for d in (5e5, 1e6, 2e6)])
    tables = [
        pd.DataFrame({"N": x[:, 0], "D": x[:, 1], "y": 9 + 900 * (of_n * x[:, 0]) ** -0.5 + 5e4 * x[:, 1] ** -0.6})
        for of_n in (1.0, 1.7)
    ]
    found = shared_shape(*(fit_law(table, "chinchilla", ("N", "D"), "y", noise=0.01) for table in tables))
    assert found.kappa[0] == pytest.approx(1.7, rel=1e-3)
    assert found.extra == 3
    assert found.agree


def test_shapes_that_differ_are_said_to():
    first = fit_law(curve(noise=0.005, points=8), "power_floor", "x", "y")
    second = fit_law(curve(noise=0.005, points=8, alpha=0.9, seed=1), "power_floor", "x", "y")
    found = shared_shape(first, second)
    assert not found.agree
    assert found.p_value < 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"law": "shifted"}, "a shared shape takes power, power_floor, paper or chinchilla"),
        ({"objective": "huber"}, "by least squares"),
        ({"noise": 0.01}, "noise known or not"),
        ({"floor": 1.0}, "one is held or drawn"),
    ],
)
def test_fits_without_a_shared_shape_are_refused(change, said):
    first = fit_law(curve(), "power_floor", "x", "y")
    second = fit_law(curve(), **({"law": "power_floor", "x": "x", "y": "y"} | change))
    with pytest.raises(FitError, match=said):
        shared_shape(first, second)


def test_too_few_points_to_judge_two_shapes_by_are_refused():
    fits = [fit_law(curve(points=3, seed=i), "power_floor", "x", "y") for i in (0, 1)]
    with pytest.raises(FitError, match="leave nothing to judge by"):
        shared_shape(*fits)


# -------------------------------------------------------------------------------------------- crossings


def test_a_crossing_is_found_with_its_direction_and_the_interval_of_draws():
    log_x = np.linspace(0, np.log(100), 201)
    flat, steep = curve(floor=6.0, alpha=0.3, noise=0.01), curve(floor=0.5, noise=0.01, seed=1, alpha=0.35)
    fits = [fit_law(table, "power_floor", "x", "y") for table in (flat, steep.assign(y=1.8 * steep["y"]))]
    rows = [
        np.vstack([log_curve(f.solution, log_x), log_curve(f.draws(400, i).solution, log_x)])
        for i, f in enumerate(fits)
    ]
    (found,) = crossings(log_x, *rows)
    exact = log_x[np.argmin(np.abs(rows[0][0] - rows[1][0]))]
    assert np.log(found.x) == pytest.approx(exact, abs=0.03)
    assert found.after == 1
    assert found.bracketed
    assert found.low < found.x < found.high
    (back,) = crossings(log_x, *rows[::-1])
    assert (back.x, back.after, back.low) == pytest.approx((found.x, 0, found.low))


def test_draws_that_never_cross_are_counted_and_open_the_interval():
    log_x = np.linspace(0, 1, 11)
    first = np.zeros((11, 11))
    second = np.tile(0.55 - log_x, (11, 1))
    second[6:] += 1.0  # five draws in which the first leads throughout
    (found,) = crossings(log_x, first, second)
    assert found.x == pytest.approx(np.exp(0.55))
    assert found.absent == pytest.approx(0.5)
    assert found.high is None
    assert found.low == pytest.approx(np.exp(0.55))


def test_curves_that_meet_at_a_measured_point_cross_once():
    first = pd.DataFrame({"x": [1.0, 10.0, 100.0], "y": [4.0, 3.0, 2.0]})
    second = pd.DataFrame({"x": [1.0, 10.0, 100.0], "y": [5.0, 3.0, 1.0]})
    assert [one.x for one in crossing_of_segments(first, second, "x", "y")] == pytest.approx([10])
    assert [one.x for one in crossing_of_segments(second, first, "x", "y")] == pytest.approx([10])


def test_segments_are_straight_in_logarithms_and_average_repeats():
    first = pd.DataFrame({"x": [1.0, 100.0], "y": [1.0, 1.0]})
    second = pd.DataFrame({"x": [1.0, 1.0, 100.0], "y": [2.0, 8.0, 0.25]})
    (found,) = crossing_of_segments(first, second, "x", "y")
    assert found.x == pytest.approx(10)
    assert (found.after, found.low, found.absent) == (1, None, None)


def test_segments_without_an_overlap_are_refused():
    first = pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 1.0]})
    with pytest.raises(FitError, match="no segments to cross"):
        crossing_of_segments(first, first.assign(x=[3.0, 4.0]), "x", "y")


def test_the_x_at_which_a_curve_comes_down_to_a_value_is_open_where_it_does_not():
    log_x = np.linspace(0, 10, 101)
    curves = np.vstack([3 - 0.2 * log_x, np.full(101, 5.0), np.full(101, 0.1)])
    assert reaches(log_x, curves, np.exp(2.0)) == pytest.approx([5, np.inf, -np.inf])
    both = np.array([5.0, np.inf, -np.inf, np.inf])
    assert multiplier_draws(both, np.array([4.0, np.inf, 1.0, 1.0])) == pytest.approx([np.e, 1, 0, np.inf])
