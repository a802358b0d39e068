"""The optimum of one knob: its interval's coverage on known valleys, what a wide design does to it, and refusals."""

import numpy as np
import pytest

from analysis.fitting import FitError
from analysis.valley import Valley, moves_with, valley, valley_batch

MINIMUM, SIGMA, DRAWS = 335.0, 0.013, 2_000
NARROW, WIDE = np.geomspace(128, 512, 5), np.geomspace(64, 1024, 5)
LEVELS = np.array([64.0, 128, 256, 512, 1024])


def truth(tokens, minimum=MINIMUM):
    """ln of 2 + 2 u^-.9 + 2 u^.6, u scaled so that it is least at `minimum` (at u = 1.5^(1/1.5))."""
    u = np.asarray(tokens) / minimum * 1.5 ** (1 / 1.5)
    return np.log(2 + 2 * u**-0.9 + 2 * u**0.6)


def draws(x, seeds=1, count=DRAWS, sigma=SIGMA):
    x = np.repeat(x, seeds)
    return x, truth(x) + sigma * np.random.default_rng(0).standard_normal((count, len(x)))


def covers(found: Valley) -> bool:
    return (found.low is None or found.low <= MINIMUM) and (found.high is None or found.high >= MINIMUM)


def simulate(x, seeds, noise, degree=2, count=DRAWS) -> list[Valley]:
    points, log_y = draws(x, seeds, count)
    return [valley(points, row, noise, degree=degree) for row in log_y]


def rejected(found: Valley) -> bool:
    return found.lack_of_fit is not None and found.lack_of_fit < 0.05


def bias(found: list[Valley]) -> float:
    return float(np.mean([np.log(one.best / MINIMUM) for one in found if one.best]))


# --------------------------------------------------------------------------------- coverage, bias, power


@pytest.mark.parametrize(("seeds", "noise"), [(1, SIGMA), (3, None)], ids=["known noise", "noise from three seeds"])
def test_the_interval_of_a_narrow_design_covers_the_optimum_at_its_level(seeds, noise):
    found = simulate(NARROW, seeds, noise)
    shown = [one for one in found if not rejected(one)]
    assert 0.93 < np.mean([covers(one) for one in shown]) < 0.97
    assert abs(bias(found)) < 0.02
    assert 0.03 < np.mean([rejected(one) for one in found]) < 0.08  # the test's own level, where the shape is right
    best = NARROW[np.argmin(truth(NARROW))]
    assert np.mean([np.isclose(one.near, best).any() for one in found]) > 0.95


def test_a_noise_estimated_from_two_spare_points_still_covers_and_says_unbounded_more_often():
    known, estimated = simulate(NARROW, 1, SIGMA, count=1000), simulate(NARROW, 1, None, count=1000)
    assert 0.92 < np.mean([covers(one) for one in estimated]) < 0.97
    bracketed = [np.mean([one.bracketed for one in group]) for group in (known, estimated)]
    assert bracketed[0] > 0.85
    assert bracketed[1] < 0.6


def test_a_wide_design_is_confidently_wrong_and_its_lack_of_fit_is_seldom_seen():
    found = simulate(WIDE, 3, None)
    assert 0.04 < bias(found) < 0.07
    assert 0.1 < np.mean([rejected(one) for one in found]) < 0.25  # five of six wrong valleys pass
    assert np.mean([covers(one) for one in found if one.bracketed]) < 0.1
    best = WIDE[np.argmin(truth(WIDE))]
    assert np.mean([np.isclose(one.near, best).any() for one in found]) > 0.95  # levels need no shape


def test_a_wide_design_is_found_out_with_many_seeds_and_then_no_interval_is_given():
    found = simulate(WIDE, 20, None, count=200)
    assert np.mean([rejected(one) for one in found]) > 0.7
    for one in found:
        if rejected(one):
            assert not one.bracketed
            assert one.low is None
            assert one.high is None
            assert one.regret_best is None
            assert "lack of fit" in one.reason


def test_a_cubic_halves_the_bias_of_a_wide_design():
    parabola, cubic = simulate(WIDE, 3, SIGMA, count=500), simulate(WIDE, 3, SIGMA, degree=3, count=500)
    assert abs(bias(cubic)) < 0.6 * abs(bias(parabola))
    freer = np.mean([np.log(one.freer / MINIMUM) for one in parabola if one.freer])
    assert freer == pytest.approx(bias(cubic), abs=0.01)


def test_the_truly_best_level_is_among_the_near_ones_at_least_as_often_as_promised():
    x, log_y = np.array([64.0, 128, 256, 512]), 0.01 * np.array([0, 0, 0, 1.0])
    noise = SIGMA * np.random.default_rng(3).standard_normal((1000, 4))
    kept = [64.0 in valley(x, log_y + row, SIGMA).near for row in noise]
    assert np.mean(kept) >= 0.95


def test_the_regret_of_the_best_level_stays_under_its_bound():
    found = [one for one in simulate(NARROW, 3, None, count=500) if one.regret_best]
    lost = [truth(one.regret_best.level) - truth(MINIMUM) for one in found]
    assert np.mean([true <= one.regret_best.high for true, one in zip(lost, found, strict=True)]) > 0.92
    assert np.median([one.regret_best.high for one in found]) < 0.005


# ------------------------------------------------------------------------------------- one valley at a time


def test_a_noiseless_parabola_is_found_exactly():
    log_y = 0.3 + 0.05 * np.log(LEVELS / 300) ** 2
    found = valley(LEVELS, log_y, SIGMA)
    assert found.best == pytest.approx(300)
    assert found.bracketed
    assert found.reason == ""
    assert found.low < 300 < found.high
    assert found.best_level == 256
    assert found.regret_nearest.level == 256
    assert found.regret_nearest.value == pytest.approx(0.05 * np.log(256 / 300) ** 2)
    np.testing.assert_allclose(found.curve(LEVELS), log_y)
    exact = valley(LEVELS, log_y)
    assert exact.low == pytest.approx(300)
    assert exact.high == pytest.approx(300)


def test_the_set_is_fiellers_closed_form():
    rng = np.random.default_rng(5)
    z = np.log(LEVELS)
    log_y = 0.05 * (z - 5.6) ** 2 + 0.005 * rng.standard_normal(5)
    found = valley(LEVELS, log_y, 0.005)
    design = np.stack([np.ones(5), z, z * z], axis=1)
    cov = 0.005**2 * np.linalg.inv(design.T @ design)
    _, b, c = np.linalg.lstsq(design, log_y, rcond=None)[0]
    q = 1.959963984540054**2
    ends = np.roots(
        [4 * (c * c - q * cov[2, 2]), 4 * (b * c - q * cov[1, 2]), b * b - q * cov[1, 1]],
    )
    assert [found.low, found.high] == pytest.approx(sorted(np.exp(ends)), rel=1e-5)


def test_a_vertex_outside_the_data_is_refused_and_the_side_is_said():
    found = valley(LEVELS, 0.05 * np.log(LEVELS / 20) ** 2, SIGMA)
    assert found.best is None
    assert not found.bracketed
    assert found.reason == "vertex outside the data: below 64"
    assert "above 1024" in valley(LEVELS, 0.05 * np.log(LEVELS / 9000) ** 2, SIGMA).reason


def test_a_ridge_and_a_flat_line_are_no_valleys():
    for log_y in (-0.05 * np.log(LEVELS / 300) ** 2, np.zeros(5)):
        found = valley(LEVELS, log_y, SIGMA)
        assert found.reason.startswith("curvature <= 0")
        assert (found.best, found.low, found.high, found.regret_best) == (None, None, None, None)
    assert valley(LEVELS, np.zeros(5), SIGMA).near == tuple(LEVELS)


def test_a_curvature_within_the_noise_leaves_the_set_unbounded():
    found = valley(LEVELS, 0.0005 * np.log(LEVELS / 300) ** 2, SIGMA)
    assert found.best == pytest.approx(300)
    assert found.reason == "set unbounded: below 64 and above 1024"
    assert not found.bracketed


def test_a_set_that_leaves_the_data_on_one_side_keeps_its_other_end():
    found = valley(LEVELS, 0.02 * np.log(LEVELS / 130) ** 2, SIGMA)
    assert found.low is None
    assert 130 < found.high < 1024
    assert found.reason == "set unbounded: below 64"


def test_the_lowest_level_at_an_end_opens_that_end():
    log_y = 0.05 * np.log(LEVELS / 110) ** 2
    log_y[0] = log_y[1] - 0.001
    found = valley(LEVELS, log_y, 0.1)
    assert found.best_level == 64
    assert found.reason == "best at an edge: 64; add levels beyond it"
    assert found.low is None


def test_a_parabola_that_cannot_bend_enough_gives_no_interval():
    log_y = 0.05 * np.log(LEVELS / 300) ** 2 + 0.03 * np.log(LEVELS / 300) ** 3
    found = valley(LEVELS, log_y, 0.002)
    assert found.lack_of_fit < 1e-6
    assert found.reason.startswith("lack of fit")
    assert found.freer == pytest.approx(300)
    assert valley(LEVELS, log_y, 0.002, degree=3).best == pytest.approx(300)


def test_lack_of_fit_is_only_tested_where_levels_or_repeats_allow():
    three = LEVELS[:3]
    assert valley(three, truth(three), SIGMA).lack_of_fit is None
    assert valley(LEVELS, truth(LEVELS) + np.array([0, 0.01, 0, 0, 0.01])).lack_of_fit is None
    assert valley(np.repeat(LEVELS, 2), np.repeat(truth(LEVELS), 2) + np.tile([0, 0.01], 5)).lack_of_fit is not None
    assert valley(LEVELS, truth(LEVELS), SIGMA).lack_of_fit is not None


def test_noise_may_be_a_number_one_a_point_or_a_covariance():
    log_y = truth(LEVELS)
    one = valley(LEVELS, log_y, SIGMA)
    for noise in (np.full(5, SIGMA), np.diag(np.full(5, SIGMA**2))):
        assert (valley(LEVELS, log_y, noise).low, valley(LEVELS, log_y, noise).high) == pytest.approx(
            (one.low, one.high)
        )
    shared = SIGMA**2 * (np.eye(5) + 3)  # an effect on all levels alike moves no optimum
    assert valley(LEVELS, log_y, shared).high == pytest.approx(one.high)
    assert valley(LEVELS, log_y, shared).near == one.near
    doubt = valley(LEVELS, log_y + np.array([0, 0, 0, 0, 0.2]), np.array([1, 1, 1, 1, 100]) * SIGMA)
    assert doubt.best == pytest.approx(valley(LEVELS[:4], log_y[:4], SIGMA).best, rel=0.01)


def test_levels_within_the_margin_are_near_in_practice_though_worse_beyond_noise():
    log_y = 0.02 * np.log(LEVELS / 256) ** 2
    found = valley(LEVELS, log_y, 0.0005)
    assert found.near == (256.0,)
    assert found.near_practical == (128.0, 256.0, 512.0)
    assert valley(LEVELS, log_y, 0.0005, margin=0.05).near_practical == tuple(LEVELS)


# --------------------------------------------------------------------------------------- a knob of 0


def test_a_minimum_well_below_0_beats_it_and_one_within_noise_does_not():
    weights = np.array([0.5, 1, 2, 4, 8])
    log_y = 0.02 * np.log(weights / 2) ** 2
    beaten = valley(weights, log_y, SIGMA, zero=(0.08, SIGMA))
    assert beaten.zero.beaten
    assert beaten.zero.gap == pytest.approx(0.08)
    assert 0.0 not in beaten.near
    assert beaten.levels[0] == 0
    equal = valley(weights, log_y, SIGMA, zero=(0.01, SIGMA))
    assert not equal.zero.beaten
    assert equal.zero.low < 0 < equal.zero.high
    assert equal.near[0] == 0
    assert valley(weights, log_y, SIGMA, zero=(-0.1, SIGMA)).best_level == 0
    assert valley(weights, log_y, SIGMA).zero is None
    assert valley(weights, -log_y, SIGMA, zero=(0.5, SIGMA)).zero is None  # no interior minimum to compare


def test_a_0_as_good_as_the_minimum_is_seldom_called_beaten():
    weights = np.array([0.5, 1, 2, 4, 8])
    noise = SIGMA * np.random.default_rng(1).standard_normal((1000, 6))
    log_y = 0.02 * np.log(weights / 2) ** 2
    found = [valley(weights, log_y + row[1:], SIGMA, zero=(row[0], SIGMA)).zero for row in noise]
    assert np.mean([one.beaten for one in found if one]) < 0.05


# -------------------------------------------------------------------------------- batches, and over compute


@pytest.mark.parametrize("degree", [2, 3])
def test_a_batch_has_the_vertices_of_its_rows(degree):
    x, log_y = draws(WIDE, 3, 40)
    noise = np.linspace(1, 2, len(x)) * SIGMA
    alone = [valley(x, row, noise, degree=degree).best for row in log_y]
    np.testing.assert_allclose(valley_batch(x, log_y, noise, degree=degree), np.log(alone))


def test_a_batch_marks_ridges_and_vertices_beyond_either_end():
    rows = [0.05 * np.log(LEVELS / at) ** 2 for at in (300, 20, 9000)]
    found = valley_batch(LEVELS, np.stack([*rows, -rows[0]]))
    assert found[0] == pytest.approx(np.log(300))
    assert list(found[1:3]) == [-np.inf, np.inf]
    assert np.isnan(found[3])


def test_the_exponent_with_which_an_optimum_moves_is_found_and_covered():
    log_c = np.log(np.geomspace(1e17, 1e19, 4))
    best = 256 * np.exp(0.15 * (log_c - log_c.mean()))
    covered = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        vertices = []
        for at in best:
            log_y = 0.08 * np.log(LEVELS / at) ** 2 + SIGMA * rng.standard_normal(5)
            again = log_y + SIGMA * rng.standard_normal((300, 5))
            vertices.append(valley_batch(LEVELS, np.r_[log_y[None], again], SIGMA))
        found = moves_with(log_c, np.stack(vertices, axis=1))
        covered.append(found.low < 0.15 < found.high)
        assert found.lost < 0.1
    assert 0.88 < np.mean(covered) <= 1


def test_draws_without_a_vertex_are_left_out_of_the_exponent_and_counted():
    vertices = np.array([[1.0, 2.0], [1.0, 2.2], [1.0, np.inf], [np.nan, 2.0], [1.0, 1.8]])
    found = moves_with(np.array([0.0, 2.0]), vertices)
    assert found.exponent == 0.5
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))
    assert found.lost == 0.5


@pytest.mark.parametrize(
    ("log_c", "vertices", "message"),
    [
        ([1.0], [[1.0], [1.0]], "two different budgets"),
        ([1.0, 1.0], [[1.0, 2.0], [1.0, 2.0]], "two different budgets"),
        ([1.0, 2.0], [[1.0, 2.0]], "draw or more"),
        ([1.0, 2.0], [[1.0, np.nan], [1.0, 2.0]], "budget 1 has no minimum"),
        ([1.0, 2.0], [[1.0, 2.0], [1.0, np.inf]], "none of 1 draws"),
    ],
)
def test_an_exponent_over_compute_is_refused_without_budgets_vertices_or_draws(log_c, vertices, message):
    with pytest.raises(FitError, match=message):
        moves_with(np.array(log_c), np.array(vertices))


@pytest.mark.parametrize(
    ("x", "log_y", "options", "message"),
    [
        ([1, 2, 2], [0, 1, 1], {"noise": 0.1}, "2 distinct x"),
        ([1, 2, 3], [1, 0, 1], {"noise": 0.1, "degree": 3}, "3 distinct x"),
        ([1, 2, 3], [1, 0, 1], {}, "leave the noise unknown"),
        ([1, 2, 3], [1, 0, 1], {"noise": 0.0}, "noise is not above 0"),
        ([1, 2, 3], [1, 0, 1], {"noise": [0.1, 0.1]}, "noise is"),
        ([1, 2, 3], [1, 0, 1], {"noise": np.ones((3, 3))}, "no covariance"),
        ([0, 2, 3], [1, 0, 1], {"noise": 0.1}, "point 0"),
        ([1, 2, 3], [1, np.nan, 1], {"noise": 0.1}, "point 1"),
        ([1, 2, 3], [1, 0], {"noise": 0.1}, "values"),
        ([1, 2, 3], [1, 0, 1], {"noise": 0.1, "degree": 4}, "degree is 4"),
        ([1, 2, 3], [1, 0, 1], {"noise": 0.1, "level": 1.0}, "level is 1"),
        ([1, 2, 3], [1, 0, 1], {"noise": 0.1, "zero": (0.1, 0.0)}, "zero is"),
    ],
)
def test_bad_input_is_refused_in_one_line(x, log_y, options, message):
    with pytest.raises(FitError, match=message) as caught:
        valley(np.array(x), np.array(log_y), **options)
    assert "\n" not in str(caught.value)
