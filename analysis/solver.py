"""Fits many problems of one law at once by batched, bounded Levenberg-Marquardt from `analysis.projection`'s starts.

Only NumPy, no table. Under the Huber loss the curvature outside the quadratic core shrinks from that of iteratively
reweighted least squares towards its true value of zero as steps succeed, so that it ends as Newton's method does.
Least absolute deviations are the limit of a narrowing core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.form import TINY, Array, Law
from analysis.problem import Cells, Loss, Penalty, Problem, Solution
from analysis.projection import starts as grid_starts

MAX_STEPS = 400
CORES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # Huber cores, in spreads of the residuals, that lead to absolute deviations


def solve(
    law: Law,
    x: Array,
    y: Array,
    weight: Array,
    loss: Loss,
    *,
    floor: Array | None = None,
    prior: tuple[Array, Array] | None = None,
    given: Array | None = None,
    near: Array | None = None,
    cells: int = 32,
    starts: int = 1,
    tolerance: float = 1e-9,
) -> Solution:
    """Fit R problems that share inputs x [n, k]: values y [R, n], weights [R, n].

    `floor` [R] pins E (NaN leaves it free). `prior` is (E0, weight), [R] each: weight/2 ((E - E0)/E0)^2 is added.
    A grid of `cells` along an exponent gives the starts, of which the best `starts` are polished and the best end is
    kept. Instead, `given` [R, starts, p] are natural parameters to start from, or `near` [p] is an optimum of points
    much like all of these, from which each starts one linear step towards its own.
    """
    cells_of = Cells.of(x, weight[0]) if loss == Loss() and (weight == weight[0]).all() else None
    within: Array | float = 0.0
    if cells_of is not None and len(cells_of.x) < len(x):
        x, y, weight, within = cells_of.gathered(y)
    pinned = np.full(len(y), np.nan) if floor is None else np.asarray(floor, dtype=float)
    held = np.zeros((len(y), len(law.parameters)), dtype=bool)
    held[:, 0] |= np.isfinite(pinned)
    problem = Problem.of(law, x, y, weight, loss, held, prior)
    if near is not None:
        theta = _linear_starts(problem, near)[:, None]
    elif given is None:
        theta = grid_starts(
            law,
            problem.u,
            problem.y,
            weight,
            relative=loss.residual == "log",
            pinned=pinned / problem.unit,
            prior=problem.prior,
            cells=cells,
            count=starts,
        )
    else:
        flat = law.centred(given.reshape(-1, given.shape[2]), problem.centre, np.repeat(problem.unit, given.shape[1]))
        theta = flat.reshape(given.shape)
    count = theta.shape[1]
    rows = np.repeat(np.arange(len(y)), count)
    ends, objective, converged = polish(problem.take(rows), theta.reshape(len(rows), -1), tolerance)
    best = np.argmin(objective.reshape(len(y), count), axis=1) + np.arange(len(y)) * count
    theta = law.natural(ends[best], problem.centre, problem.unit)
    return Solution(law, theta, objective[best] + within, converged[best])


def at_bound(law: Law, u: Array, theta: Array, descent: Array) -> np.ndarray:
    """Parameters held: at a bound that the descent direction would cross, or the shape of a vanished term."""
    low, high = law.bounds(u)
    held = ((theta <= low) & (descent <= 0)) | ((theta >= high) & (descent >= 0))
    for j, owner in enumerate(law.owners()):
        if owner is not None:
            held[:, law.linear + j] |= theta[:, owner] <= low[owner]
    return held


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a trial far off is as bad as inf, and refused
def polish(
    problem: Problem, theta: Array, tolerance: float, penalty: Penalty | None = None
) -> tuple[Array, Array, np.ndarray]:
    """Minimise R problems from centred theta [R, p]: where they end, the objective with its penalty, converged."""
    if not problem.loss.absolute:
        return _descend(problem, theta, tolerance, penalty)
    fitted = problem.law.curve(problem.u, theta)[0]
    spread = float(np.median(np.abs(problem.residual(fitted)))) or 1.0
    for core in CORES:
        part = replace(problem, loss=replace(problem.loss, delta=core * spread))
        theta, objective, converged = _descend(part, theta, tolerance, penalty)
    return theta, objective, converged


@dataclass(frozen=True)
class _State:
    """Problems under way. `outer` is the share of reweighted curvature kept outside Huber's core."""

    theta: Array
    rows: np.ndarray
    damping: Array
    outer: Array
    idle: Array
    fitted: Array
    columns: Array
    r: Array
    value: Array

    def take(self, keep: np.ndarray) -> _State:
        return _State(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def _descend(
    problem: Problem, theta: Array, tolerance: float, penalty: Penalty | None
) -> tuple[Array, Array, np.ndarray]:
    """Bounded Levenberg-Marquardt on all problems at once; converged problems leave the batch."""
    low, high = problem.law.bounds(problem.u)
    quadratic = problem.loss.objective == "ls"
    count = len(theta)
    final, objective, converged = theta.copy(), np.empty(count), np.zeros(count, dtype=bool)
    rows = np.arange(count)
    theta = np.clip(theta, low, high)
    fitted, columns, r, value = _evaluate(problem, theta, rows, penalty)
    state = _State(theta, rows, np.full(count, 1e-3), np.ones(count), np.zeros(count), fitted, columns, r, value)
    for _ in range(MAX_STEPS):
        descent, curvature = _step_equations(problem, state, penalty)
        step = _solved(curvature, descent)
        promised = np.einsum("sp,sp->s", descent, step) / 2
        trial = np.clip(state.theta + step, low, high)
        fitted, columns, r, value = _evaluate(problem, trial, state.rows, penalty)
        accept = value < state.value
        gain = np.where(accept, (state.value - value) / np.maximum(state.value, TINY), 0.0)
        row = accept[:, None]
        state = _State(
            np.where(row, trial, state.theta),
            state.rows,
            np.where(accept, np.maximum(state.damping * 0.2, 1e-13), state.damping * 6),
            np.where(accept, state.outer * 0.3, np.minimum(1.0, state.outer * 10 + 1e-4)),
            np.where(gain > tolerance, 0.0, state.idle + np.where(accept, 1.0, 0.25)),
            np.where(row, fitted, state.fitted),
            np.where(row[..., None], columns, state.columns),
            np.where(row, r, state.r),
            np.where(accept, value, state.value),
        )
        done = (state.idle >= 2) | (state.value <= TINY)
        if quadratic:  # its model of the objective is then true to second order
            done |= (state.damping <= 1e-3) & (promised <= tolerance / 10 * state.value)
        if done.any():
            where = state.rows[done]
            final[where], objective[where], converged[where] = state.theta[done], state.value[done], True
            if done.all():
                return final, objective, converged
            state = state.take(~done)
            problem = problem.take(~done)
    final[state.rows], objective[state.rows] = state.theta, state.value
    return final, objective, converged


def _linear_starts(problem: Problem, near: Array) -> Array:
    """Starts [R, p], centred: from natural parameters `near` [p], one Gauss-Newton step with the Jacobian there."""
    law, rows = problem.law, len(problem.y)
    theta = law.centred(np.repeat(near[None], rows, axis=0), problem.centre, problem.unit)
    if problem.loss != Loss() or not (problem.weight == problem.weight[0]).all():
        return theta
    middle = law.centred(near[None], problem.centre, np.exp(np.mean(np.log(problem.unit)))[None])
    fitted, columns = law.curve(problem.u, middle)
    slope = (law.slope(problem.u, middle, fitted, columns) / fitted[..., None])[0]
    weight = problem.weight[0]
    curvature = (slope * weight[:, None]).T @ slope
    free = ~(problem.held[0] | at_bound(law, problem.u, middle, np.zeros_like(middle))[0])
    r = problem.residual(law.curve(problem.u, theta)[0])
    pull = (r * weight) @ slope[:, free]
    step = np.zeros_like(theta)
    step[:, free] = np.linalg.lstsq(curvature[np.ix_(free, free)], pull.T, rcond=None)[0].T
    low, high = law.bounds(problem.u)
    return np.clip(theta + step, low, high)


def _solved(curvature: Array, descent: Array) -> Array:
    """Steps [S, p], in units of each parameter's own curvature; a stiff spring alone is singular to rounding."""
    unit = 1 / np.sqrt(np.maximum(np.einsum("spp->sp", curvature), TINY))
    scaled = curvature * unit[:, :, None] * unit[:, None, :]
    np.einsum("spp->sp", scaled)[...] += 1e-14
    try:
        return np.linalg.solve(scaled, (descent * unit)[..., None])[..., 0] * unit
    except np.linalg.LinAlgError:
        np.einsum("spp->sp", scaled)[...] += 1e-10
        return np.linalg.solve(scaled, (descent * unit)[..., None])[..., 0] * unit


def _evaluate(
    problem: Problem, theta: Array, rows: np.ndarray, penalty: Penalty | None
) -> tuple[Array, Array, Array, Array]:
    fitted, columns = problem.law.curve(problem.u, theta)
    r = problem.residual(fitted)
    value = problem.value(r, theta)
    if penalty is not None:
        value = value + penalty.terms(theta, rows)[0]
    return fitted, columns, r, value


def _step_equations(problem: Problem, state: _State, penalty: Penalty | None) -> tuple[Array, Array]:
    """Descent direction [S, p] and damped curvature [S, p, p], held parameters decoupled."""
    slope = problem.law.slope(problem.u, state.theta, state.fitted, state.columns)
    if problem.loss.residual == "log":
        slope = slope / state.fitted[..., None]
    pull, bend = problem.loss.pull(state.r, problem.weight, state.outer)
    descent = np.matmul(pull[:, None, :], slope)[:, 0]
    curvature = np.matmul((slope * bend[..., None]).transpose(0, 2, 1), slope)
    diagonal = np.einsum("spp->sp", curvature)
    scale = np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True) + TINY)
    diagonal += (state.damping[:, None] + 1e-14) * scale
    problem.add_prior(state.theta, descent, curvature)
    if penalty is not None:  # after the damping, which measures the data's curvature alone
        _, more, bent = penalty.terms(state.theta, state.rows)
        descent, curvature = descent + more, curvature + bent
    held = problem.held | at_bound(problem.law, problem.u, state.theta, descent)
    descent = np.where(held, 0.0, descent)
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    np.einsum("spp->sp", curvature)[...] += held
    return descent, curvature
