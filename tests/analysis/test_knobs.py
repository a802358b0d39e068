"""The optimum along a knob: which arms form an axis, and how near the known best level of a made-up sweep it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, SIZES, body_and_head, flops_per_token, sweep, true_value

from analysis.arms import ArmFit, fit_arms
from analysis.knobs import KnobOptimum, axes_of, fitting_valley, knob_optima
from analysis.table import validate
from analysis.valley import LACK, valley

Law = Mapping[str, float]
NOISE = 0.013
COMPUTES = [1e11, 1.5e11, 2e11, 3e11]
FINE = (10, 13, 16, 20, 26)


def tokens_law(tokens: float, learned: float = 0.6) -> Law:
    """Fewer tokens lose more of the image, more are harder to learn (or, `learned` below 0, easier)."""
    term = 6 * (tokens / 16) ** learned
    lost = 160 * tokens**-0.9 if learned > 0 else 0.06 * tokens**1.7
    return {"K": 256, "T": tokens, "lam": 0.0, "E": 4 + lost, "A": term, "a": 0.7, "B": term, "b": 0.7, "rfid": 3}


def weight_law(weight: float) -> Law:
    """A heavier regulariser loses more of the image and is easier to learn; at 0 nothing is easier."""
    strength = 1 + weight / 0.05
    term = 6 * strength**-0.5
    floor = 14 + 3 * strength**0.5
    return {"K": 256, "T": 16, "lam": weight, "E": floor, "A": term, "a": 0.7, "B": term, "b": 0.7, "rfid": 12}


def named(levels: tuple[float, ...], law: Callable[[float], Law], base: float) -> dict[str, Law]:
    return {"base" if level == base else f"at-{level:g}": law(level) for level in levels}


def fitted(laws: Mapping[str, Law], noise: float = NOISE, seed: int = 0, **options: object) -> list[ArmFit]:
    table = validate(sweep(noise=noise, seed=seed, laws=laws, **options))  # type: ignore[arg-type]
    return fit_arms(table, "gfid", 200, seed)[0]


def asked(fits: list[ArmFit], computes: list[float] = COMPUTES, **options: object) -> list[KnobOptimum]:
    given = {"noise": NOISE, "withheld": [], "base": "base"} | options
    return knob_optima(fits, "gfid", computes, **given)  # type: ignore[arg-type]


def true_best(law: Callable[[float], Law], levels: np.ndarray, compute: float) -> float:
    """The best level at a compute by brute force over level, N and D = C / (k N), with k between the trained sizes."""
    values = []
    for level in levels:
        one = law(level)
        codes, tokens = int(one["K"]), one["T"]
        params = np.array([sum(body_and_head(*size, codes)) for size in SIZES], dtype=float)
        costs = [flops_per_token(*size, tokens, codes) for size in SIZES]
        n = np.geomspace(params[0] / 4, params[-1] * 4, 800)
        k = np.exp(np.interp(np.log(n), np.log(params), np.log(np.array(costs) / params)))
        values.append(float(np.min(true_value(one, n, compute / (k * n)))))
    return float(levels[int(np.argmin(values))])


@lru_cache(maxsize=64)
def true_tokens(compute: float, learned: float = 0.6) -> float:
    return true_best(lambda tokens: tokens_law(tokens, learned), np.geomspace(6, 60, 400), compute)


def true_movement(learned: float, low: float, high: float) -> float:
    computes = np.geomspace(low, high, 9)
    return float(np.polyfit(np.log(computes), np.log([true_tokens(c, learned) for c in computes]), 1)[0])


@lru_cache(maxsize=1)
def fine() -> KnobOptimum:
    (found,) = asked(fitted(named(FINE, tokens_law, 16)))
    return found


# ---------------------------------------------------------------------------------- which arms form an axis

STAR = {
    "base": {},
    "few": {"T": 9},
    "many": {"T": 25},
    "small": {"K": 64},
    "large": {"K": 1024},
    "light": {"lam": 0.05},
    "heavy": {"lam": 0.2},
}


def star(**more: Law) -> list[ArmFit]:
    return fitted({name: {**LAWS["base"], **change} for name, change in {**STAR, **more}.items()})


def test_a_star_of_arms_has_an_axis_a_knob_each_through_the_base():
    axes = {axis.knob: axis for axis in axes_of(star(), "base")}
    assert {knob: [fit.name for fit in axis.fits] for knob, axis in axes.items()} == {
        "tokens_per_image": ["few", "base", "many"],
        "codebook_size": ["small", "base", "large"],
        "crt_weight": ["base", "light", "heavy"],
    }
    assert axes["tokens_per_image"].levels == (9, 16, 25)
    assert axes["crt_weight"].levels == (0, 0.05, 0.2)
    assert axes["tokens_per_image"].fixed == {"codebook_size": 256, "crt_weight": 0}
    assert axes["crt_weight"].fixed == {"codebook_size": 256, "tokens_per_image": 16}


def test_arms_that_differ_in_two_knobs_stay_out_of_an_axis():
    (tokens,) = [axis for axis in axes_of(star(both={"T": 36, "K": 64}), "base") if axis.knob == "tokens_per_image"]
    assert [fit.name for fit in tokens.fits] == ["few", "base", "many"]


def test_of_axes_as_long_the_bases_is_taken_and_else_the_longest():
    second = {"small-few": {"T": 9, "K": 64}, "small-many": {"T": 25, "K": 64}}
    fits = star(**second)
    for order in (fits, fits[::-1]):
        (axis,) = [one for one in axes_of(order, "base") if one.knob == "tokens_per_image"]
        assert [fit.name for fit in axis.fits] == ["few", "base", "many"]
        (axis,) = [one for one in axes_of(order, "small") if one.knob == "tokens_per_image"]
        assert [fit.name for fit in axis.fits] == ["small-few", "small", "small-many"]
    longer = star(**second, **{"small-most": {"T": 36, "K": 64}})
    (axis,) = [one for one in axes_of(longer, "base") if one.knob == "tokens_per_image"]
    assert axis.fixed["codebook_size"] == 64
    assert axis.levels == (9, 16, 25, 36)


def test_two_levels_make_no_axis_and_two_arms_of_one_level_count_once():
    two = {name: {**LAWS["base"], **STAR[name]} for name in ("base", "few", "small")}
    assert axes_of(fitted(two), "base") == []
    assert asked(fitted(two)) == []
    assert axes_of(fitted(two | {"again": {**LAWS["base"], "T": 9}}), "base") == []


def test_tokens_by_resolution_and_by_downsampling_are_not_one_axis():
    fits = star()
    ways = {"base": "resolution", "few": "resolution", "many": "downsample"}
    marked = [replace(fit, rows=fit.rows.assign(tokens_by=ways.get(fit.name, "resolution"))) for fit in fits]
    assert "tokens_per_image" in [axis.knob for axis in axes_of(fits, "base")]
    assert "tokens_per_image" not in [axis.knob for axis in axes_of(marked, "base")]


def test_an_arm_without_a_knob_is_on_no_axis_of_it():
    fits = [replace(fit, rows=fit.rows.assign(crt_weight=np.nan)) if fit.name == "heavy" else fit for fit in star()]
    assert [axis.knob for axis in axes_of(fits, "base")] == ["tokens_per_image", "codebook_size"]


# ------------------------------------------------------------------------------------ where the optimum is


def test_without_noise_the_best_level_is_the_true_one_at_every_compute():
    (found,) = asked(fitted(named(FINE, tokens_law, 16), noise=1e-6))
    assert len(found.by_compute) == 4
    for row in found.by_compute:
        assert row.best == pytest.approx(true_tokens(row.at), rel=0.03)


def test_with_noise_the_set_around_the_best_holds_the_true_level_within_three_percent():
    held = told = 0
    for seed in range(10):
        (found,) = asked(fitted(named(FINE, tokens_law, 16), seed=seed), [2e11])
        (row,) = found.by_compute
        if row.low is not None and row.high is not None:
            told += 1
            held += row.low * 0.97 <= true_tokens(2e11) <= row.high * 1.03
    assert told >= 8
    assert held >= told - 1


@pytest.mark.parametrize(("learned", "levels"), [(0.6, FINE), (-1.6, (12, 16, 21, 28, 37))])
def test_the_exponent_of_the_movement_holds_the_truth_whether_the_best_rises_or_falls(learned, levels):
    laws = named(levels, lambda tokens: tokens_law(tokens, learned), 16)
    held = []
    for seed in range(7):
        fits = fitted(laws, seed=seed)
        (found,) = asked(fits, [2e11])
        low, high = max(f.arm.compute[0] for f in fits), min(f.arm.compute[1] for f in fits)
        true = true_movement(learned, low, high)
        moves = found.moves["laws"]
        assert moves.low < moves.exponent < moves.high
        held.append(moves.low <= true <= moves.high)
    assert np.sign(true) == np.sign(learned)
    assert sum(held) >= 6


def test_the_other_ways_come_near_the_fitted_best_and_agree():
    found = fine()
    assert {"laws", "parabola", "akima", "surface", "frontier"} == set(found.moves)
    for row in found.by_compute:
        assert row.agree
        for other in (row.parabola, row.akima, row.surface):
            assert other == pytest.approx(row.best, rel=0.3)
        assert row.frontier in found.levels
    for name, tolerance in (("parabola", 0.15), ("akima", 0.15), ("surface", 0.08), ("frontier", 0.15)):
        assert found.moves[name].exponent == pytest.approx(found.moves["laws"].exponent, abs=tolerance)


def test_measured_runs_far_from_the_laws_are_a_disagreement():
    """Trap 5 of shared/reference/traps.md: the frontier of noisy runs is a check on the laws, not the answer."""
    fits = fitted(named(FINE, tokens_law, 16))
    moved = [
        replace(fit, rows=fit.rows.assign(gfid=fit.rows["gfid"] * (0.6 if fit.name == "at-26" else 1))) for fit in fits
    ]
    (told,), (apart,) = asked(fits), asked(moved)
    assert all(row.agree for row in told.by_compute)
    assert [row.best for row in apart.by_compute] == [row.best for row in told.by_compute]
    assert not any(row.agree for row in apart.by_compute)
    assert all(row.frontier == 26 for row in apart.by_compute)


def test_levels_that_none_beats_are_near_and_following_the_best_of_them_costs_little():
    found = fine()
    for row in found.by_compute:
        assert set(row.near) <= set(found.levels)
        nearest = min(found.levels, key=lambda level: abs(np.log(level / true_tokens(row.at))))
        assert nearest in row.near
        assert 10 not in row.near or row.at < 1.5e11
    (noisy,) = asked(fitted(named(FINE, tokens_law, 16), noise=0.05))
    assert sum(len(row.near) for row in noisy.by_compute) > sum(len(row.near) for row in found.by_compute)
    assert all(0 <= row.regret < 0.02 for row in found.by_compute if row.regret is not None)
    assert any(row.regret is not None for row in found.by_compute)


def test_an_optimum_beyond_the_levels_is_not_bracketed_and_says_on_which_side():
    """Trap 5 of shared/reference/traps.md: an edge is no optimum."""
    (found,) = asked(fitted(named((5, 6, 7, 9), tokens_law, 5)), [2e11])
    (row,) = found.by_compute
    assert (row.best, row.low, row.high, row.regret) == (None, None, None, None)
    assert row.reason == "vertex outside the data: above 9"
    assert row.near == (9,)


def test_an_optimum_before_the_last_level_that_is_best_has_an_open_end():
    assert 14 < true_tokens(1.2e11) < 17
    (found,) = asked(fitted(named((10, 12, 14, 17), tokens_law, 10), seed=1), [1.2e11])
    (row,) = found.by_compute
    assert row.low < row.best < 17
    assert row.high is None
    assert row.reason == "best at an edge: 17; add levels beyond it"


def test_by_size_the_best_level_of_measured_runs_rises_with_the_size():
    found = fine()
    assert [row.label for row in found.by_size] == ["16x2", "32x2", "48x3", "64x3"]
    params = [row.at for row in found.by_size]
    assert params == sorted(params)
    table = sweep(laws=named(FINE, tokens_law, 16))
    first = table[(table["size"] == "16x2") & (table["images_seen"] == 64_000)]
    row = found.by_size[0]
    assert row.best is not None
    # the fixed length's own optimum, from the laws that made the runs
    levels = np.geomspace(8, 40, 400)
    true = [true_value(tokens_law(t), float(first["params"].iloc[0]), 64_000 * t) for t in levels]
    assert row.best == pytest.approx(levels[int(np.argmin(true))], rel=0.25)
    assert first.loc[first["gfid"].idxmin(), "tokens_per_image"] in row.near


def test_a_size_that_an_arm_lacks_has_no_row():
    fits = fitted(named(FINE, tokens_law, 16))
    short = [replace(fit, rows=fit.rows[fit.rows["size"] != "32x2"]) if fit.name == "at-20" else fit for fit in fits]
    assert [row.label for row in asked(short)[0].by_size] == ["16x2", "48x3", "64x3"]


def test_sizes_are_compared_at_the_longest_training_that_every_arm_has():
    fits = fitted(named(FINE, tokens_law, 16))
    short = [
        replace(fit, rows=fit.rows[fit.rows["images_seen"] < 64_000]) if fit.name == "at-26" else fit for fit in fits
    ]
    longest = {row.label: row.best for row in asked(fits)[0].by_size}
    common = {row.label: row.best for row in asked(short)[0].by_size}
    only = [replace(fit, rows=fit.rows[fit.rows["images_seen"] <= 32_000]) for fit in fits]
    assert common == {row.label: row.best for row in asked(only)[0].by_size}
    assert common != longest


def test_computes_outside_every_arms_runs_are_left_out_and_without_any_the_middle_stands():
    fits = fitted(named(FINE, tokens_law, 16))
    assert [row.at for row in asked(fits, [1e5, 2e11, 1e20])[0].by_compute] == [2e11]
    (row,) = asked(fits, [1e5])[0].by_compute
    low, high = max(f.arm.compute[0] for f in fits), min(f.arm.compute[1] for f in fits)
    assert row.at == pytest.approx(np.sqrt(low * high))


# ---------------------------------------------------------------------------------------- lambda and its zero

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4)


def test_a_weight_of_zero_is_a_level_of_its_own_and_beaten_where_regularising_helps():
    (found,) = asked(fitted(named(WEIGHTS, weight_law, 0), noise=0.006), [1e11])
    assert found.symbol == "lambda"
    assert found.levels == WEIGHTS
    (row,) = found.by_compute
    true = true_best(weight_law, np.r_[0.0, np.geomspace(0.005, 0.5, 300)], 1e11)
    assert 0.1 < true < 0.2
    assert row.zero_beaten is True
    assert 0.0 not in row.near
    assert row.best == pytest.approx(true, rel=0.35)
    assert row.over[0] > 0


def test_a_weight_of_zero_that_is_as_good_is_not_beaten():
    same = {"base": {**weight_law(0.15), "lam": 0.0}}
    (found,) = asked(fitted(same | named(WEIGHTS[1:], weight_law, 0), noise=0.006), [1e11])
    (row,) = found.by_compute
    assert row.best is not None
    assert row.zero_beaten is False
    assert 0.0 in row.near


def test_two_weights_above_zero_make_no_valley_and_say_so():
    (found,) = asked(fitted(named((0.0, 0.05, 0.1), weight_law, 0)))
    assert found.levels == (0.0, 0.05, 0.1)
    assert found.by_compute == found.by_size == ()
    assert found.note == "none: 2 levels above 0; three make a valley"


# ----------------------------------------------------------------------------------------- what names none


def test_an_axis_with_an_arm_that_lost_too_many_runs_names_none():
    """Trap 21 of shared/reference/traps.md: dropping lost runs selects on the outcome."""
    (found,) = asked(fitted(named(FINE, tokens_law, 16)), withheld=["at-13", "elsewhere"])
    assert found.note == "none named: at-13 lost too many runs"
    assert found.by_compute == found.by_size == ()
    assert found.moves == {}
    assert found.levels == FINE


def test_an_axis_without_shared_compute_says_so():
    fits = fitted(named((10, 16, 26), tokens_law, 16))
    far = [replace(fit, arm=replace(fit.arm, compute=(1e15, 1e16))) if fit.name == "at-26" else fit for fit in fits]
    assert asked(far)[0].note == "none: no compute is covered by every arm's runs"


def test_three_levels_have_a_valley_without_a_freer_shape_or_akima():
    (found,) = asked(fitted(named((10, 16, 26), tokens_law, 16)), [2e11])
    (row,) = found.by_compute
    assert row.best is not None
    assert (row.akima, row.freer, row.lack_of_fit) == (None, None, None)
    assert row.parabola is not None


# --------------------------------------------------------------------------------------- narrowing a valley


def steep_valley(levels: np.ndarray) -> np.ndarray:
    """ln y of 2 + 2 u^-.9 + 2 u^.6, whose minimum is at 335 of 250 u: no parabola over a wide range."""
    u = levels / 250
    return np.log(2 + 2 * u**-0.9 + 2 * u**0.6)


def test_a_range_too_wide_for_a_parabola_is_narrowed_around_its_best():
    """shared/reference/fitting.md 4e: more seeds of a wide design make a biased parabola confidently wrong."""
    levels = np.geomspace(16, 8192, 13)
    spread = np.full(13, 0.004)
    whole = valley(levels, steep_valley(levels), spread)
    assert whole.lack_of_fit < LACK
    found = fitting_valley(levels, steep_valley(levels), spread, None)
    assert found.lack_of_fit >= LACK
    assert 4 <= len(found.levels) < 13
    true = 250 * 1.5 ** (1 / 1.5)
    assert found.levels[0] < true < found.levels[-1]
    assert abs(np.log(found.best / true)) < 0.25 * abs(np.log(whole.best / true))


def test_a_range_that_fits_is_left_whole_and_one_that_never_fits_keeps_its_reason():
    levels = np.geomspace(128, 512, 5)
    assert len(fitting_valley(levels, steep_valley(levels), np.full(5, 0.013), None).levels) == 5
    wide = np.geomspace(64, 1024, 5)
    jagged = steep_valley(wide) + np.array([0, 0.04, 0, 0.04, 0])
    never = fitting_valley(wide, jagged, np.full(5, 0.004), None)
    assert len(never.levels) == 5
    assert never.reason.startswith("lack of fit (p = ")
    assert never.low is None


def test_the_zero_level_is_kept_while_the_range_is_narrowed():
    levels = np.geomspace(16, 8192, 13)
    found = fitting_valley(levels, steep_valley(levels), np.full(13, 0.004), (3.0, 0.004))
    assert found.levels[0] == 0
    assert found.zero.beaten


def test_the_rows_say_which_levels_their_valley_was_fitted_to():
    wide = (8, 11, 15, 20, 27, 36)
    laws = named(wide, tokens_law, 8)
    (narrowed,) = asked(fitted(laws, noise=0.004), [2e11])[0].by_compute
    assert narrowed.over == (11, 27)
    assert narrowed.lack_of_fit >= LACK
    assert narrowed.low < true_tokens(2e11) < narrowed.high
    (whole,) = asked(fitted(laws), [2e11])[0].by_compute
    assert whole.over == (8, 36)


def test_tables_are_not_changed():
    table = validate(sweep(laws=named(FINE, tokens_law, 16)))
    before = table.copy()
    asked(fit_arms(table, "gfid", 50, 0)[0], [2e11])
    pd.testing.assert_frame_equal(table, before)
