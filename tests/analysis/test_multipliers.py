"""How much less compute an arm needs: against brute force, by one shape, by floors, by wall time and by other costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.arms import ArmFit, fit_arms
from analysis.fitting import fit_pinned
from analysis.multipliers import ArmMultipliers, Measured, multipliers
from analysis.optimum import Arm, envelope
from analysis.render import render_text
from analysis.report import fit_report
from analysis.table import validate

BASE = LAWS["base"]
TWICE = 2**-0.4  # factor of both terms at exponents of .8 that halves the compute for the same value
HALF = {"base": BASE, "half": {**BASE, "A": BASE["A"] * TWICE, "B": BASE["B"] * TWICE}}
STEEP = {"base": BASE, "steep": {**BASE, "A": 8.0, "B": 8.0, "a": 1.6, "b": 1.6, "E": 29}}
Law = Mapping[str, float]


def measured(table: pd.DataFrame, resamples: int = 100, **more: float | None) -> tuple[Measured, Measured]:
    fits = fit_arms(validate(table), "gfid", resamples, 0)[0]
    given = {"rfid": 24.0, "tokenizer_compute": 4e9} | more
    first, second = (Measured(fit.fit, fit.arm, given["rfid"], given["tokenizer_compute"], fit.rows) for fit in fits)
    return first, second


def compared(
    table: pd.DataFrame, amortize_over: float = 1.0, **more: float | None
) -> tuple[list[float], ArmMultipliers]:
    first, second = measured(table, **more)
    targets, (one,) = multipliers(first, [second], amortize_over=amortize_over)
    return targets, one


@lru_cache(maxsize=1)
def half() -> tuple[list[float], ArmMultipliers]:
    return compared(sweep(laws=HALF, seed=1))


def least_compute(arm: Arm, target: float) -> float:
    """The least compute at which the point envelope takes `target`, searched for."""
    at = np.geomspace(arm.compute[0] / 10, arm.compute[1] * 10, 40_001)
    values = np.exp(envelope(arm.point, at).log_value[0])
    return float(at[np.argmax(values <= target)])


# ------------------------------------------------------------------------------------------- the curve


@pytest.mark.parametrize("seed", range(3))
def test_the_multiplier_is_the_ratio_of_the_least_computes_that_reach_the_value(seed):
    first, second = measured(sweep(laws=STEEP, seed=seed), 20)
    targets, (one,) = multipliers(first, [second])
    assert len(targets) == 3
    for target, found in zip(targets, one.values, strict=True):
        assert found.at == target
        expected = least_compute(first.arm, target) / least_compute(second.arm, target)
        assert found.value == pytest.approx(expected, rel=0.01)


def test_an_arm_that_needs_half_the_compute_has_a_multiplier_of_two():
    targets, one = half()
    assert targets == sorted(targets, reverse=True)
    for found in one.values:
        assert found.low < 2 < found.high
        assert found.value == pytest.approx(2, rel=0.2)
    _, turned = compared(sweep(laws={"half": HALF["half"], "base": BASE}))
    assert all(found.value == pytest.approx(0.5, rel=0.2) for found in turned.values)


# ------------------------------------------------------------------------------------------- one shape


def test_arms_of_one_shape_have_one_number_that_holds_the_truth():
    _, one = half()
    assert one.shape.agree
    assert one.shape.p_value >= 0.05
    assert one.shape.low < 2 < one.shape.high
    widest = max(found.high / found.low for found in one.values)
    assert one.shape.high / one.shape.low < widest, "one shape is known better than a curve"
    row = render_text(fit_report(sweep(laws=HALF, seed=1), resamples=50)).split("one shape\n")[1].splitlines()[0]
    assert row.startswith("half")
    assert row.rstrip().endswith("]")


def test_the_one_number_covers_about_as_often_as_it_says():
    held = [compared(sweep(laws=HALF, seed=seed), rfid=None)[1].shape for seed in range(12)]
    agreeing = [one for one in held if one.agree]
    assert len(agreeing) >= 10
    assert sum(one.low <= 2 <= one.high for one in agreeing) >= len(agreeing) - 2


def test_arms_of_another_shape_are_refused_one_number():
    table = sweep(laws=STEEP, noise=0.002)
    _, one = compared(table)
    assert not one.shape.agree
    assert one.shape.p_value < 0.05
    assert "no (p = " in render_text(fit_report(table, resamples=50))


def test_where_tokenizer_seeds_share_noise_one_shape_is_not_tested():
    """Trap 2 of shared/reference/traps.md: runs of one tokenizer are no independent repeats."""
    table = sweep(laws=HALF, tokenizer_seeds=2, seed_noise=0.02)
    _, one = compared(table)
    assert one.shape is None
    assert all(found is not None for found in one.values)
    row = render_text(fit_report(table, resamples=50)).split("one shape\n")[1].splitlines()[0]
    assert row.rstrip().endswith("-")


# ----------------------------------------------------------------------------------------------- floors


def own_floors(first: Measured, second: Measured) -> tuple[float, float]:
    return float(first.fit.params["E"]), float(second.fit.params["E"])


@pytest.mark.parametrize("seed", range(3))
def test_the_shared_floor_is_the_best_single_one_and_lies_between_the_own_floors(seed):
    """Trap 7 of shared/reference/traps.md: the multiplier hangs on the floor; three of them stand side by side."""
    first, second = measured(sweep(laws=STEEP, seed=seed), 20)
    _, (one,) = multipliers(first, [second])
    floors = np.linspace(0, 0.99 * min(first.fit.y.min(), second.fit.y.min()), 600)
    costs = [len(m.fit.y) / 2 * np.log(fit_pinned(m.fit, floors).objective) for m in (first, second)]
    best = float(floors[int(np.argmin(costs[0] + costs[1]))])
    low, high = sorted(own_floors(first, second))
    assert low - 0.1 <= best <= high + 0.1
    arms = [replace(m.arm, solution=fit_pinned(m.fit, np.array([best]))) for m in (first, second)]
    expected = least_compute(arms[0], one.floors.at) / least_compute(arms[1], one.floors.at)
    assert one.floors.shared == pytest.approx(expected, rel=0.04)


def test_equal_floors_leave_the_multiplier_as_it_is():
    _, one = compared(sweep(laws=HALF, noise=1e-5), rfid=BASE["E"])
    assert one.floors.own == pytest.approx(2, rel=0.02)
    assert one.floors.shared == pytest.approx(one.floors.own, rel=0.01)
    assert one.floors.rfid == pytest.approx(one.floors.own, rel=0.01)
    assert not one.floors.undecided


def test_an_rfid_above_the_value_is_out_of_reach_and_no_bound():
    """Trap 7 of shared/reference/traps.md: rFID is a weak prior, never a bound."""
    table = sweep(laws={name: {**law, "rfid": 60} for name, law in HALF.items()})
    _, one = compared(table, rfid=60.0)
    assert one.floors.rfid is None
    assert one.floors.own == pytest.approx(2, rel=0.25)
    assert "rFID out of range" in " ".join(render_text(fit_report(table, resamples=50)).split())
    _, unknown = compared(table, rfid=None)
    assert unknown.floors.rfid is None
    assert unknown.floors.own == one.floors.own


# --------------------------------------------------------------------------------------- other costs


def test_the_tokenizer_is_counted_to_as_many_generators_as_asked():
    """Trap 4 of shared/reference/traps.md: total = generator + one full tokenizer; amortise only where asked."""
    table = sweep(laws=HALF)
    first, second = measured(table)
    tokenizer = 1e11
    whole, ten = (compared(table, over, tokenizer_compute=tokenizer)[1].floors for over in (1, 10))
    at = whole.at
    spent = least_compute(first.arm, at), least_compute(second.arm, at)
    for found, share in ((whole.counted, tokenizer), (ten.counted, tokenizer / 10)):
        assert found.value == pytest.approx((spent[0] + share) / (spent[1] + share), rel=0.01)
        assert found.low <= found.value <= found.high
    assert 1 < whole.counted.value < ten.counted.value < whole.own


def test_the_report_says_over_how_many_generators_the_tokenizer_is_counted():
    table = sweep(laws=HALF).assign(tokenizer_compute=1e11)
    one, ten = (" ".join(render_text(fit_report(table, resamples=50, amortize_over=n)).split()) for n in (1, 10))
    assert "Counting one full tokenizer: " in one
    assert "Counting one full tokenizer over 10 generators: " in ten


def test_old_points_do_not_move_as_the_grid_grows():
    """Trap 4 of shared/reference/traps.md."""
    heavy = sweep(laws=HALF).assign(tokenizer_compute=1e11)
    wider = sweep(laws={**HALF, "crt": LAWS["crt"]}).assign(tokenizer_compute=1e11)
    counts = []
    for table in (heavy, wider):
        floors = {one.arm: one.floors for one in fit_report(table, resamples=50).multipliers}["half"]
        total = floors.counted.value
        counts.append((total, floors.at))
    assert counts[0][0] == pytest.approx(counts[1][0], rel=0.1)
    assert counts[0][0] < 1.9


def test_wall_time_is_compared_at_the_pace_of_each_sides_best_size():
    table = sweep(laws=HALF)
    slow = np.where(table["arm"] == "half", 3e-9, 1e-9)
    floors = compared(table.assign(seconds=table["compute"] * slow))[1].floors
    assert floors.seconds.value == pytest.approx(floors.own / 3, rel=1e-6)
    assert floors.seconds.low < floors.seconds.value < floors.seconds.high
    by_size = np.where(table["arm"] == "half", 1e-9, 1e-9) * (table["params"] / 4e4) ** 0.5
    first, second = measured(table)
    found = compared(table.assign(seconds=table["compute"] * by_size))[1].floors
    sizes = []
    for one in (first, second):
        at = least_compute(one.arm, found.at)
        sizes.append(float(np.exp(envelope(one.arm.point, np.array([at])).log_params[0, 0])))
    inside = [float(np.clip(size, *one.arm.sizes)) for size, one in zip(sizes, (first, second), strict=True)]
    assert found.seconds.value == pytest.approx(found.own * (inside[0] / inside[1]) ** 0.5, rel=0.02)


def test_without_every_runs_seconds_there_is_no_wall_time():
    table = sweep(laws=HALF).assign(seconds=100.0)
    assert compared(table)[1].floors.seconds is not None
    assert compared(table.drop(columns="seconds"))[1].floors.seconds is None
    for missing in (np.nan, 0.0):
        assert (
            compared(table.assign(seconds=table["seconds"].where(table.index > 0, missing)))[1].floors.seconds is None
        )


def test_the_text_has_the_wall_time_where_it_was_measured():
    table = sweep(laws=HALF)
    timed = table.assign(seconds=table["compute"] * 1e-9)
    said = " ".join(render_text(fit_report(timed, resamples=50)).split())
    assert ". By wall time: " in said
    assert "By wall time" not in render_text(fit_report(table, resamples=50))


def test_head_flops_are_in_the_compute_that_a_larger_codebook_needs():
    """Trap 3 of shared/reference/traps.md: at 52M the head is 62% of 6N for K = 1k and 2.3 times it for 131k."""
    wide = {**BASE, "K": 2048}
    table = sweep(laws={"base": BASE, "wide": wide}, noise=1e-5)
    # equal in body and law of N: only the head's FLOPs and parameters differ
    body = table["params_body"]
    same = table.assign(params=body, gfid=0.0)
    for name, law in (("base", BASE), ("wide", wide)):
        rows = table["arm"] == name
        n, images = body[rows] / 4e4, table.loc[rows, "images_seen"] / 32_000
        same.loc[rows, "gfid"] = law["E"] + law["A"] * n**-0.8 + law["B"] * images**-0.8
    _, one = compared(same)
    share = (table["compute_head"] / table["compute"]).groupby(table["arm"]).agg(["min", "max"])
    cheapest = (1 - share.loc["wide", "max"]) / (1 - share.loc["base", "max"])
    dearest = (1 - share.loc["wide", "min"]) / (1 - share.loc["base", "min"])
    for found in one.values:
        if found is not None:
            assert cheapest * 0.9 < found.value < dearest * 1.05 < 1


def fits_of(table: pd.DataFrame) -> list[ArmFit]:
    return fit_arms(validate(table), "gfid", 20, 0)[0]


def test_ranges_that_do_not_overlap_have_no_target():
    fits = fits_of(sweep(laws={"base": BASE, "far": {**BASE, "E": 90}}))
    first, second = (Measured(fit.fit, fit.arm, None, None, fit.rows) for fit in fits)
    assert multipliers(first, [second]) == ([], [])
