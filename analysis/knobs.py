"""The optimum along each knob of the tokenizer (T, K, lambda) by generator compute and by generator size.

Arms that differ in one knob alone form an axis. Three ways to the optimum stand side by side: the arms' fitted
envelopes with a valley through them (the answer), the IsoFLOP method on measured runs (parabola and Akima), and the
joint surface; the pooled Pareto frontier beside them. Where they disagree, that is said. No fitting of arms here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import ArmFit
from analysis.fitting import FitError, fit_law
from analysis.form import Array
from analysis.frontier import on_frontier
from analysis.isoflop import IsoFlop, isoflop
from analysis.optimum import envelope, shared_range
from analysis.surface import KNOBS, SYMBOLS, Surface, best_knob
from analysis.valley import LACK, Movement, Valley, moves_with, valley, valley_batch

FEWEST_LEVELS = 3
BUDGETS = 9
SYMBOL = {**SYMBOLS, "crt_weight": "lambda"}
OTHERS = ("tokens_by",)  # what else makes two arms incomparable along a knob


@dataclass(frozen=True)
class Axis:
    """Arms that differ in `knob` alone, by rising level; `fixed` holds the other knobs."""

    knob: str
    fits: tuple[ArmFit, ...]
    levels: tuple[float, ...]
    fixed: dict[str, float]

    @property
    def positive(self) -> list[int]:
        """Arms whose level has a logarithm."""
        return [i for i, level in enumerate(self.levels) if level > 0]


@dataclass(frozen=True)
class KnobAt:
    """The best level at one compute (FLOPs) or one size; [low, high] is its Fieller set, an end None where unbounded.

    `over` are the least and greatest level that the valley was fitted to.
    `near` are levels that none beats significantly, `regret` what the best level may cost against the optimum (a
    fraction of the metric, upper 95% bound). `parabola`, `akima` (IsoFLOP), `surface` and `frontier` are the other
    ways, None where they give nothing; `agree` is whether those that do lie within the set or one level's spacing.
    """

    at: float
    label: str
    best: float | None
    low: float | None
    high: float | None
    reason: str
    near: tuple[float, ...]
    regret: float | None
    lack_of_fit: float | None
    freer: float | None
    zero_beaten: bool | None
    over: tuple[float, float]
    parabola: float | None = None
    akima: float | None = None
    surface: float | None = None
    frontier: float | None = None
    agree: bool = True


@dataclass(frozen=True)
class Moves:
    """The best level moves as compute^exponent, [low, high] where known; `lost` draws had no optimum within."""

    exponent: float
    low: float | None = None
    high: float | None = None
    lost: float = 0.0


@dataclass(frozen=True)
class KnobOptimum:
    """One axis: its arms and levels, the optimum by compute and by size, how it moves by each way; or why not."""

    knob: str
    fixed: dict[str, float]
    arms: tuple[str, ...]
    levels: tuple[float, ...]
    by_compute: tuple[KnobAt, ...]
    by_size: tuple[KnobAt, ...]
    moves: dict[str, Moves]
    note: str = ""

    @property
    def symbol(self) -> str:
        return SYMBOL[self.knob]


def axes_of(fits: Sequence[ArmFit], base: str | None = None) -> list[Axis]:
    """For each knob the largest set of three or more arms that differ in it alone; ties go to that of `base`."""
    settings = {fit.name: _settings(fit.rows) for fit in fits}
    found = []
    for knob in KNOBS:
        groups: dict[tuple[Any, ...], dict[float, ArmFit]] = {}
        for fit in fits:
            own = settings[fit.name]
            if knob in own:
                rest = tuple(value for name, value in own.items() if name != knob)
                groups.setdefault(rest, {}).setdefault(float(own[knob]), fit)
        best = max(groups.values(), key=lambda arms: (len(arms), base in [a.name for a in arms.values()]), default={})
        if len(best) >= FEWEST_LEVELS:
            levels = tuple(sorted(best))
            own = settings[best[levels[0]].name]
            fixed = {name: float(own[name]) for name in KNOBS if name != knob and name in own}
            found.append(Axis(knob, tuple(best[level] for level in levels), levels, fixed))
    return found


def _settings(rows: pd.DataFrame) -> dict[str, Any]:
    first = rows.iloc[0]
    return {name: first[name] for name in (*KNOBS, *OTHERS) if name in rows and pd.notna(first[name])}


def knob_optima(
    fits: Sequence[ArmFit],
    column: str,
    computes: Sequence[float],
    noise: float,
    withheld: Sequence[str],
    base: str | None,
) -> list[KnobOptimum]:
    """The optimum along every axis of the fitted arms, at each of `computes` that the axis covers.

    `noise` is the relative spread between two runs, for the valleys by size. An axis with an arm of `withheld` (one
    that lost too many runs) names none.
    """
    needed = ("size", "images_seen", "params", "compute", column, *KNOBS, *OTHERS)
    slim = [replace(fit, rows=fit.rows[[name for name in needed if name in fit.rows]]) for fit in fits]
    return [_along(axis, column, computes, noise, withheld) for axis in axes_of(slim, base)]


def _along(axis: Axis, column: str, computes: Sequence[float], noise: float, withheld: Sequence[str]) -> KnobOptimum:
    names = tuple(fit.name for fit in axis.fits)
    lost = [name for name in names if name in withheld]
    shared = shared_range([fit.arm for fit in axis.fits])
    note = ""
    if lost:
        note = f"none named: {', '.join(lost)} lost too many runs"
    elif shared is None:
        note = "none: no compute is covered by every arm's runs"
    elif len(axis.positive) < FEWEST_LEVELS:
        note = f"none: {len(axis.positive)} levels above 0; three make a valley"
    if note or shared is None:
        return KnobOptimum(axis.knob, axis.fixed, names, axis.levels, (), (), {}, note)
    at = [c for c in computes if shared[0] <= c <= shared[1]] or [float(np.sqrt(shared[0] * shared[1]))]
    budgets = np.geomspace(*shared, BUDGETS)
    by_compute, moves = _by_compute(axis, column, np.array(at), budgets)
    return KnobOptimum(axis.knob, axis.fixed, names, axis.levels, by_compute, _by_size(axis, column, noise), moves)


# ----------------------------------------------------------------------------------- through the laws


def _by_compute(axis: Axis, column: str, at: Array, budgets: Array) -> tuple[tuple[KnobAt, ...], dict[str, Moves]]:
    everywhere = np.r_[at, budgets]
    values = np.stack([envelope(fit.arm, everywhere).log_value for fit in axis.fits])  # [arms, 1 + R, G]
    x = np.array(axis.levels)[axis.positive]
    degree = 3 if len(x) > FEWEST_LEVELS + 1 else 2  # over a wide range a cubic's vertex is less biased
    rows = [_valley_at(axis, values[:, :, g], float(c), f"{c:.3g}") for g, c in enumerate(at)]
    vertices = np.stack(
        [valley_batch(x, values[axis.positive, :, g].T, degree=degree) for g in range(len(at), len(everywhere))], axis=1
    )
    moves = {"laws": _moves(np.log(budgets), vertices)}
    flat = _iso_table(axis, column, everywhere)
    iso = {name: _isoflop(flat, axis.knob, name) for name in ("parabola", "akima")}
    for name, found in iso.items():
        if found is not None and np.isfinite(found.exponent):
            moves[name] = Moves(found.exponent)
    surface, surface_moves = _surface(axis, column, at)
    moves |= surface_moves
    pooled, pooled_moves = _pooled_frontier(axis, column, at)
    moves |= pooled_moves
    filled = []
    for g, row in enumerate(rows):
        others = {
            "parabola": _iso_at(iso["parabola"], at[g]),
            "akima": _iso_at(iso["akima"], at[g]),
            "surface": surface[g],
            "frontier": pooled[g],
        }
        agree = all(_agrees(row, other, axis.levels) for other in others.values() if other is not None)
        filled.append(KnobAt(**{**vars(row), **others, "agree": agree}))
    return tuple(filled), {name: one for name, one in moves.items() if one is not None}


def _valley_at(axis: Axis, values: Array, at: float, label: str) -> KnobAt:
    """The valley through ln y [arms, 1 + R] (row 0 the point), its noise the spread of the draws."""
    spread = np.maximum((np.quantile(values[:, 1:], 0.84, axis=1) - np.quantile(values[:, 1:], 0.16, axis=1)) / 2, 1e-6)
    positive = axis.positive
    zero = next((i for i, level in enumerate(axis.levels) if level == 0), None)
    known = None if zero is None else (float(values[zero, 0]), float(spread[zero]))
    found = fitting_valley(np.array(axis.levels)[positive], values[positive, 0], spread[positive], known)
    return _row(found, at, label)


def fitting_valley(x: Array, log_y: Array, spread: Array, zero: tuple[float, float] | None) -> Valley:
    """A parabola through all levels, or, where it does not fit, through those nearest the best, four or more.

    A parabola has the shape of a valley only near its bottom. Where none fits, the first is returned with its reason.
    """
    first = found = valley(x, log_y, spread, zero=zero)
    keep = np.arange(len(x))
    while found.lack_of_fit is not None and found.lack_of_fit < LACK and len(keep) > FEWEST_LEVELS + 1:
        middle = np.log(x[np.argmin(log_y)])
        keep = np.delete(keep, np.argmax(np.abs(np.log(x[keep]) - middle)))
        found = valley(x[keep], log_y[keep], spread[keep], zero=zero)
    return found if found.lack_of_fit is None or found.lack_of_fit >= LACK else first


def _row(found: Valley, at: float, label: str) -> KnobAt:
    regret, positive = found.regret_best, found.levels[found.levels > 0]
    return KnobAt(
        at=at,
        label=label,
        best=found.best,
        low=found.low,
        high=found.high,
        reason=found.reason,
        near=found.near,
        regret=float(np.expm1(regret.high)) if regret is not None else None,
        lack_of_fit=found.lack_of_fit,
        freer=found.freer,
        zero_beaten=found.zero.beaten if found.zero is not None else None,
        over=(float(positive[0]), float(positive[-1])),
    )


def _moves(log_c: Array, vertices: Array) -> Moves | None:
    """The movement over the budgets at which the point has an optimum; None with fewer than three."""
    usable = np.isfinite(vertices[0])
    if usable.sum() < 3:
        return None
    try:
        found: Movement = moves_with(log_c[usable], vertices[:, usable])
    except FitError:
        return None
    return Moves(found.exponent, found.low, found.high, found.lost)


# ------------------------------------------------------------------------------------------ other ways


def _frontier(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The runs that none of at most their compute beats, by rising compute."""
    on = on_frontier(rows["compute"].to_numpy(dtype=float), rows[column].to_numpy(dtype=float))
    return rows[on].sort_values(["compute", column], kind="stable")


def _iso_table(axis: Axis, column: str, budgets: Array) -> pd.DataFrame:
    """Metric of each arm's measured frontier at every budget, interpolated in logarithms."""
    parts = []
    for i in axis.positive:
        front = _frontier(axis.fits[i].rows, column)
        y = np.exp(np.interp(np.log(budgets), np.log(front["compute"]), np.log(front[column])))
        parts.append(pd.DataFrame({"budget": budgets, "level": axis.levels[i], "y": y}))
    return pd.concat(parts, ignore_index=True)


def _isoflop(table: pd.DataFrame, knob: str, method: str) -> IsoFlop | None:
    try:
        return isoflop(table, "budget", "level", "y", method)  # type: ignore[arg-type]
    except FitError:
        return None


def _iso_at(found: IsoFlop | None, compute: float) -> float | None:
    """The optimum at a budget of the table, None where that has none."""
    if found is None:
        return None
    rows = found.optima[(np.abs(np.log(found.optima["budget"] / compute)) < 1e-6) & (found.optima["status"] == "ok")]
    return float(rows["x"].iloc[0]) if len(rows) else None


def _surface(axis: Axis, column: str, at: Array) -> tuple[list[float | None], dict[str, Moves | None]]:
    """Optimum and movement by the joint surface through every arm's measured frontier; nothing where it cannot be."""
    none: list[float | None] = [None] * len(at)
    points = pd.concat([_frontier(fit.rows, column) for fit in axis.fits], ignore_index=True)
    try:
        fit = fit_law(points, "surface", ["compute", axis.knob], column)
    except FitError:
        return none, {}
    assert isinstance(fit.law, Surface)
    found = best_knob(fit.law, fit.solution.theta, axis.knob, at, {})
    inside = [value if axis.levels[0] <= value <= axis.levels[-1] else None for value in found.value[0].tolist()]
    if not np.isfinite(found.exponent[0]):
        return none, {}
    return inside, {"surface": Moves(float(found.exponent[0]))}


def _pooled_frontier(axis: Axis, column: str, at: Array) -> tuple[list[float | None], dict[str, Moves | None]]:
    """The level of the run that leads at each compute, over all arms' runs (Hoffmann et al. 2022, approach 1)."""
    rows = pd.concat([fit.rows.assign(level=level) for fit, level in zip(axis.fits, axis.levels, strict=True)])
    front = _frontier(rows, column)
    compute, level = front["compute"].to_numpy(), front["level"].to_numpy()
    leads: list[float | None] = [
        float(level[compute <= one * (1 + 1e-9)][-1]) if (compute <= one * (1 + 1e-9)).any() else None for one in at
    ]
    usable = level > 0
    if usable.sum() < 3 or len(np.unique(level[usable])) < 2:
        return leads, {}
    slope = float(np.polyfit(np.log(compute[usable]), np.log(level[usable]), 1)[0])
    return leads, {"frontier": Moves(slope)}


def _agrees(row: KnobAt, other: float, levels: Sequence[float]) -> bool:
    """Whether another way's optimum lies in the Fieller set, or within one level's spacing of the best."""
    if row.best is None or other <= 0:
        return True
    if row.low is not None and row.high is not None and row.low <= other <= row.high:
        return True
    positive = np.array([level for level in levels if level > 0])
    spacing = float(np.max(np.diff(np.log(positive))))
    return abs(np.log(other / row.best)) <= spacing * (1 + 1e-9)


# ------------------------------------------------------------------------------------------- by size


def _by_size(axis: Axis, column: str, noise: float) -> tuple[KnobAt, ...]:
    """The valley through measured runs of each size at its longest common length; sizes that an arm lacks are left."""
    cells = [_cells(fit.rows, column) for fit in axis.fits]  # (size, length) -> mean ln y, runs
    params = {str(size): float(n) for size, n in axis.fits[0].rows.groupby("size")["params"].mean().items()}
    common = set.intersection(*(set(one) for one in cells))
    found = []
    for size in sorted({size for size, _ in common}, key=lambda one: params[one]):
        longest = max(length for one, length in common if one == size)
        means = [one[size, longest][0] for one in cells]
        spread = [noise / np.sqrt(one[size, longest][1]) for one in cells]
        zero = next((i for i, level in enumerate(axis.levels) if level == 0), None)
        known = None if zero is None else (means[zero], spread[zero])
        positive = axis.positive
        valley_found = fitting_valley(
            np.array(axis.levels)[positive], np.array(means)[positive], np.array(spread)[positive], known
        )
        found.append(_row(valley_found, params[size], size))
    return tuple(found)


def _cells(rows: pd.DataFrame, column: str) -> dict[tuple[str, float], tuple[float, int]]:
    """Mean ln y and number of runs by (size, length)."""
    logs = np.log(rows[column].to_numpy(dtype=float))
    by_cell: dict[tuple[str, float], list[float]] = {}
    for size, length, value in zip(rows["size"], rows["images_seen"], logs.tolist(), strict=True):
        by_cell.setdefault((str(size), float(length)), []).append(value)
    return {cell: (float(np.mean(values)), len(values)) for cell, values in by_cell.items()}
