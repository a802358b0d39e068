"""How much less compute an arm needs than the base arm at an equal metric, and whether floor or cost decides that.

multiplier(g) = C_base(g) / C_arm(g) on the envelopes; above 1 the arm needs less compute. Where the two arms' laws have
one shape (`analysis.pair` tests it) a single number with a profile-likelihood interval stands beside the curve.
No fitting of its own beyond refits under another floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.fitting import Fit, FitError, fit_pinned, interval
from analysis.laws import Array
from analysis.optimum import Arm, envelope
from analysis.pair import shared_shape

REACH = 1e3  # compute beyond the data up to which a draw's envelope is followed to meet a metric value
STEPS = 141
NARROWEST = 0.08  # in ln: an overlap of two metric ranges below this holds no three values
FLOORS = 25


@dataclass(frozen=True)
class Multiplier:
    """C_base / C_arm at metric value `at`; `low` and `high` bound 95% of draws (`high` may be infinite)."""

    at: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Floors:
    """The multiplier at one metric value by three floors (None: out of reach), and by other counts of cost.

    own: each arm's fitted E. shared: one E for the pair, by profile likelihood. rfid: each arm's E at its rFID.
    `counted` adds one full tokenizer to both sides, `seconds` is of wall time (None where none was measured).
    """

    at: float
    own: float
    shared: float | None
    rfid: float | None
    counted: Multiplier
    seconds: Multiplier | None

    @property
    def undecided(self) -> bool:
        """Whether the floors disagree on the side of 1."""
        known = [value for value in (self.own, self.shared, self.rfid) if value is not None]
        return min(known) < 1 < max(known)


@dataclass(frozen=True)
class OneShape:
    """The pair fitted with one E, alpha, beta: p of the F test that they may be, and if so the multiplier of all g."""

    p_value: float
    value: float
    low: float
    high: float
    agree: bool


@dataclass(frozen=True)
class ArmMultipliers:
    """One arm's multipliers over the base, one a target (None: out of range), and by floors at the lowest reached.

    `shape` is None where one shape cannot be tested (tokenizer seeds share noise, or too few points).
    """

    arm: str
    values: tuple[Multiplier | None, ...]
    floors: Floors | None
    shape: OneShape | None


@dataclass
class Measured:
    """What the multiplier needs of an arm: its fit, the fitted arm, its runs, rFID, and a full tokenizer's FLOPs."""

    fit: Fit
    arm: Arm
    rfid: float | None
    tokenizer_compute: float | None
    rows: pd.DataFrame | None = None

    @cached_property
    def reach(self) -> _Reach:
        return _Reach.of(self.arm)

    @cached_property
    def by_rfid(self) -> _Reach | None:
        return None if self.rfid is None else self.with_floor(self.rfid)

    def with_floor(self, floor: float) -> _Reach:
        """The point envelope under E held at `floor`."""
        return _Reach.of(replace(self.arm, solution=fit_pinned(self.fit, np.array([floor]))))

    def floored(self, floors: Array) -> tuple[Array, _Reach]:
        """n/2 ln RSS with E held at each of `floors` [F] (inf above the least metric), and the envelopes [F]."""
        kept: dict[bytes, tuple[Array, _Reach]] = self.__dict__.setdefault("_floored", {})
        key = floors.tobytes()
        if key not in kept:
            below = floors < 0.995 * self.fit.y.min()
            found = fit_pinned(self.fit, np.where(below, floors, 0.0))
            squares = np.maximum(found.objective, 1e-30)
            cost = np.where(below, len(self.fit.y) / 2 * np.log(squares), np.inf)
            kept[key] = cost, _Reach.of(replace(self.arm, solution=found))
        return kept[key]

    @cached_property
    def pace(self) -> tuple[Array, Array] | None:
        """ln N of the trained sizes and ln of their median seconds a FLOP; None where none was measured."""
        if self.rows is None or "seconds" not in self.rows or not (self.rows["seconds"] > 0).all():
            return None
        ratio = np.log(self.rows["seconds"] / self.rows["compute"]).groupby(np.log(self.rows["params"])).median()
        return ratio.index.to_numpy(dtype=float), ratio.to_numpy(dtype=float)


@dataclass(frozen=True)
class _Reach:
    """An envelope along ln C [S], falling: ln y [R, S], and the point's ln N [S]."""

    log_compute: Array
    falling: Array
    log_params: Array

    @staticmethod
    def of(arm: Arm) -> _Reach:
        curve = envelope(arm, np.geomspace(arm.compute[0] / REACH, arm.compute[1] * REACH, STEPS))
        return _Reach(curve.log_compute, np.minimum.accumulate(curve.log_value, axis=1), curve.log_params[0])

    def at(self, target: float) -> Array:
        """ln of the least compute at which each row reaches `target`; -inf or inf outside the reach. [R]"""
        goal = np.log(target)
        below = self.falling <= goal
        first = np.argmax(below, axis=1)
        rows = np.arange(len(self.falling))
        after, before = self.falling[rows, first], self.falling[rows, np.maximum(first - 1, 0)]
        share = (before - goal) / np.maximum(before - after, 1e-300)
        step = self.log_compute[1] - self.log_compute[0]
        found = self.log_compute[first] - (1 - share) * step
        found = np.where(below.any(axis=1), found, np.inf)
        return np.where(below[:, 0], -np.inf, found)


def multipliers(
    base: Measured, others: list[Measured], wanted: int = 3, amortize_over: float = 1.0
) -> tuple[list[float], list[ArmMultipliers]]:
    """Targets inside the overlap of the envelopes within the data, and each arm's multipliers there.

    No targets where no arm's range of the metric overlaps the base's. `amortize_over` generators share a tokenizer
    where it is counted (1: each pays a full one, so that old points do not move as a grid grows).
    """
    targets = _targets(base.arm, [other.arm for other in others], wanted)
    if not targets:
        return [], []
    top = max(float(one.fit.y.min()) for one in (base, *others))
    grid = np.linspace(0.0, top, FLOORS)
    return targets, [_of_arm(base, other, targets, grid, amortize_over) for other in others]


def _metric_range(arm: Arm) -> tuple[float, float]:
    """ln of the metric that the point envelope takes within the arm's data: (best, worst)."""
    ends = envelope(arm.point, np.array(arm.compute)).log_value[0]
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


def _of_arm(base: Measured, other: Measured, targets: list[float], grid: Array, amortize_over: float) -> ArmMultipliers:
    values: list[Multiplier | None] = []
    lowest: tuple[float, Array, Array] | None = None
    for target in targets:
        of_base, of_other = base.reach.at(target), other.reach.at(target)
        if not (_inside(base.arm, of_base[0]) and _inside(other.arm, of_other[0])):
            values.append(None)
            continue
        values.append(_multiplier(target, _ratio(of_base, of_other)))
        if lowest is None or target < lowest[0]:
            lowest = target, of_base, of_other
    shape = _one_shape(base, other)
    if lowest is None:
        return ArmMultipliers(other.arm.name, tuple(values), None, shape)
    target, of_base, of_other = lowest
    extra = [(one.tokenizer_compute or 0.0) / amortize_over for one in (base, other)]
    floors = Floors(
        target,
        float(_ratio(of_base, of_other)[0]),
        _by_shared_floor(base, other, target, grid),
        _reached(base.by_rfid, other.by_rfid, target),
        _multiplier(target, _ratio(of_base, of_other, *extra)),
        _by_seconds(base, other, target, of_base, of_other),
    )
    return ArmMultipliers(other.arm.name, tuple(values), floors, shape)


def _reached(base: _Reach | None, other: _Reach | None, target: float) -> float | None:
    if base is None or other is None:
        return None
    ends = base.at(target), other.at(target)
    return float(_ratio(*ends)[0]) if all(np.isfinite(one[0]) for one in ends) else None


def _by_shared_floor(base: Measured, other: Measured, target: float, grid: Array) -> float | None:
    """The pair refitted with one E, where the sum of n/2 ln RSS is least: a grid, then a parabola through its best."""
    (base_cost, base_reach), (other_cost, other_reach) = base.floored(grid), other.floored(grid)
    cost = base_cost + other_cost
    i = int(np.argmin(cost))
    best = float(grid[i])
    if 0 < i < len(grid) - 1 and np.isfinite(cost[i + 1]):
        bend = cost[i - 1] - 2 * cost[i] + cost[i + 1]
        best += float((cost[i - 1] - cost[i + 1]) / (2 * bend) * (grid[1] - grid[0])) if bend > 0 else 0.0
    ends = [_between(grid, one.at(target), cost, best) for one in (base_reach, other_reach)]
    ratio = float(_ratio(np.array([ends[0]]), np.array([ends[1]]))[0])
    return ratio if np.isfinite(ends).all() else None


def _between(grid: Array, values: Array, cost: Array, at: float) -> float:
    """A value over the grid of floors at one between them; inf where a neighbour is out of reach."""
    usable = np.isfinite(cost)
    with np.errstate(invalid="ignore"):
        found = float(np.interp(at, grid[usable], values[usable]))
    return found if not np.isnan(found) else np.inf


def _by_seconds(base: Measured, other: Measured, target: float, of_base: Array, of_other: Array) -> Multiplier | None:
    """The ratio of wall times: each side's compute at the pace measured at its best size."""
    if base.pace is None or other.pace is None:
        return None
    logs = []
    for one, log_c in ((base, of_base), (other, of_other)):
        log_n = np.interp(log_c[0], one.reach.log_compute, one.reach.log_params)
        logs.append(float(np.interp(log_n, *one.pace)))  # type: ignore[misc]
    return _multiplier(target, _ratio(of_base + logs[0], of_other + logs[1]))


def _one_shape(base: Measured, other: Measured) -> OneShape | None:
    try:
        found = shared_shape(base.fit, other.fit, log_cost_ratio=_log_cost_ratio(base.arm, other.arm))
    except FitError:
        return None
    return OneShape(found.p_value, *found.kappa, found.agree)


def _log_cost_ratio(base: Arm, other: Arm) -> float:
    """ln of FLOPs per parameter and token, base over other, at equal N: the mean over the sizes that both cover."""
    low, high = max(base.log_sizes[0], other.log_sizes[0]), min(base.log_sizes[-1], other.log_sizes[-1])
    at = np.linspace(low, high, 9) if low < high else np.array([(low + high) / 2])
    costs = [np.interp(at, arm.log_sizes, arm.log_flops) for arm in (base, other)]
    return float(np.mean(costs[0] - costs[1]))
