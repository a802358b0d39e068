"""How much less compute an arm needs than the base arm at an equal metric, and whether the floor decides that.

No fitting of its own beyond refits under another floor.

multiplier(g) = C_base(g) / C_arm(g) on the envelopes; above 1 the arm needs less compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting import Fit, fit_pinned, interval
from analysis.laws import Array
from analysis.optimum import Arm, envelope

REACH = 1e3  # compute beyond the data up to which a draw's envelope is followed to meet a metric value
STEPS = 301
NARROWEST = 0.08  # in ln: an overlap of two metric ranges below this holds no three values


@dataclass(frozen=True)
class Multiplier:
    """C_base / C_arm at metric value `at`; `low` and `high` bound 95% of draws (`high` may be infinite)."""

    at: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Floors:
    """The multiplier at one metric value by three floors (None: out of reach), and with one full tokenizer counted.

    own: each arm's fitted E. shared: one E for the pair, by profile likelihood. rfid: each arm's E at its rFID.
    """

    at: float
    own: float
    shared: float | None
    rfid: float | None
    counted: Multiplier

    @property
    def undecided(self) -> bool:
        """Whether the floors disagree on the side of 1."""
        known = [value for value in (self.own, self.shared, self.rfid) if value is not None]
        return min(known) < 1 < max(known)


@dataclass(frozen=True)
class ArmMultipliers:
    """One arm's multipliers over the base, one a target (None: out of range), and by floors at the lowest reached."""

    arm: str
    values: tuple[Multiplier | None, ...]
    floors: Floors | None


@dataclass
class Measured:
    """What the multiplier needs of an arm: its fit, the fitted arm, rFID (or None), and a full tokenizer's FLOPs."""

    fit: Fit
    arm: Arm
    rfid: float | None
    tokenizer_compute: float | None


def multipliers(base: Measured, others: list[Measured], wanted: int = 3) -> tuple[list[float], list[ArmMultipliers]]:
    """Targets inside the overlap of the envelopes within the data, and each arm's multipliers there.

    No targets where no arm's range of the metric overlaps the base's.
    """
    targets = _targets(base.arm, [other.arm for other in others], wanted)
    return targets, [_of_arm(base, other, targets) for other in others] if targets else []


def _metric_range(arm: Arm) -> tuple[float, float]:
    """ln of the metric that the point envelope takes within the arm's data: (best, worst)."""
    ends = envelope(arm, np.array(arm.compute)).log_value[0]
    return float(ends[1]), float(ends[0])


def _targets(base: Arm, others: list[Arm], wanted: int) -> list[float]:
    """Round values in the part of the base's range that as many arms as possible share."""
    own = _metric_range(base)
    shared = []
    for other in others:
        low, high = _metric_range(other)
        overlap = max(own[0], low), min(own[1], high)
        if overlap[1] - overlap[0] > NARROWEST:
            shared.append(overlap)
    shared.sort(key=lambda one: one[1] - one[0])
    while shared:
        low, high = max(one[0] for one in shared), min(one[1] for one in shared)
        if high - low > NARROWEST:
            marks = np.exp(high - (high - low) * np.linspace(0.15, 0.85, wanted))
            return _rounded(marks, np.exp(low), np.exp(high))
        shared.pop(0)
    return []


def _rounded(values: Array, low: float, high: float) -> list[float]:
    """Values with as few significant digits as keep them distinct and inside."""
    for digits in (2, 3, 4, 5):
        found = [float(f"{value:.{digits}g}") for value in values]
        if len(set(found)) == len(found) and all(low < value < high for value in found):
            return found
    return [float(value) for value in values]


def _compute_at(arm: Arm, target: float) -> Array:
    """ln of the least compute at which each row's envelope reaches `target`; -inf or inf outside the reach. [R]"""
    compute = np.geomspace(arm.compute[0] / REACH, arm.compute[1] * REACH, STEPS)
    curve = envelope(arm, compute)
    goal = np.log(target)
    falling = -np.minimum.accumulate(curve.log_value, axis=1)
    found = np.array([np.interp(-goal, row, curve.log_compute) for row in falling])
    found[falling[:, -1] < -goal] = np.inf
    found[falling[:, 0] > -goal] = -np.inf
    return found


def _inside(arm: Arm, log_compute: float) -> bool:
    return np.log(arm.compute[0]) - 1e-9 <= log_compute <= np.log(arm.compute[1]) + 1e-9


def _ratio(base: Array, other: Array, base_extra: float = 0.0, other_extra: float = 0.0) -> Array:
    """(C_base + extra) / (C_other + extra) from ln C; 1 where both are out of reach: neither is known better."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ratio = (np.exp(base) + base_extra) / (np.exp(other) + other_extra)
    return np.where(np.isnan(ratio), 1.0, ratio)


def _multiplier(at: float, ratio: Array) -> Multiplier:
    low, high = interval(ratio[1:])
    return Multiplier(at, float(ratio[0]), low, high)


def _of_arm(base: Measured, other: Measured, targets: list[float]) -> ArmMultipliers:
    values: list[Multiplier | None] = []
    lowest: tuple[float, Array, Array] | None = None
    for target in targets:
        of_base, of_other = _compute_at(base.arm, target), _compute_at(other.arm, target)
        if not (_inside(base.arm, of_base[0]) and _inside(other.arm, of_other[0])):
            values.append(None)
            continue
        values.append(_multiplier(target, _ratio(of_base, of_other)))
        if lowest is None or target < lowest[0]:
            lowest = target, of_base, of_other
    if lowest is None:
        return ArmMultipliers(other.arm.name, tuple(values), None)
    target, of_base, of_other = lowest
    extra = [one.tokenizer_compute or 0.0 for one in (base, other)]
    counted = _multiplier(target, _ratio(of_base, of_other, *extra))
    own = float(_ratio(of_base, of_other)[0])
    floors = Floors(target, own, _by_shared_floor(base, other, target), _by_rfid(base, other, target), counted)
    return ArmMultipliers(other.arm.name, tuple(values), floors)


def _pinned_ratio(base: Measured, other: Measured, floors: tuple[float, float], target: float) -> float | None:
    reached = []
    for one, floor in zip((base, other), floors, strict=True):
        solution = fit_pinned(one.fit, np.array([floor]))
        pinned = Arm(**{**vars(one.arm), "solution": solution})
        reached.append(_compute_at(pinned, target))
    ratio = float(_ratio(reached[0], reached[1])[0])
    return ratio if all(np.isfinite(one[0]) for one in reached) else None


def _by_rfid(base: Measured, other: Measured, target: float) -> float | None:
    if base.rfid is None or other.rfid is None:
        return None
    return _pinned_ratio(base, other, (base.rfid, other.rfid), target)


def _by_shared_floor(base: Measured, other: Measured, target: float) -> float | None:
    """The pair refitted with one E, where the sum of n/2 ln RSS is least (two passes over a grid)."""
    top = 0.995 * min(base.fit.y.min(), other.fit.y.min())
    grid = np.linspace(0.0, top, 41)
    for _ in range(2):
        cost = np.zeros(len(grid))
        for one in (base, other):
            cost += len(one.fit.y) / 2 * np.log(np.maximum(fit_pinned(one.fit, grid).objective, 1e-30))
        best, width = grid[int(np.argmin(cost))], grid[1] - grid[0]
        grid = np.linspace(max(0.0, best - width), min(top, best + width), 21)
    return _pinned_ratio(base, other, (float(best), float(best)), target)
