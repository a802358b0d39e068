"""Fits many problems of one law at once by batched, bounded Levenberg-Marquardt from `analysis.projection`'s starts.

Only NumPy, no table. Under the Huber loss the curvature outside the quadratic core shrinks from that of iteratively
reweighted least squares towards its true value of zero as steps succeed, so that it ends as Newton's method does.
Least absolute deviations are the limit of a narrowing core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from analysis.form import TINY, Array, Law
from analysis.projection import starts as grid_starts

MAX_STEPS = 400
OBJECTIVES = ("ls", "huber", "lad", "amae")
RESIDUALS = ("log", "raw")
CORES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # Huber cores, in spreads of the residuals, that lead to absolute deviations
OVERSHOOT = 10.0  # how much heavier `amae` weighs a fit above its point: kyo-takano/chinchilla's asymmetric_mae


@dataclass(frozen=True)
class Loss:
    """What is minimised, summed over points with their weights, of r = ln y - ln f (`log`) or y - f (`raw`).

    `ls`: r^2/2. `huber`: r^2/2 up to |r| = delta, then delta (|r| - delta/2). `lad`: |r|. `amae`: |r|, 10 times that
    where the fit lies above its point, so that the law follows the lower edge of the points.
    """

    objective: str = "ls"
    delta: float = 1e-3
    residual: str = "log"

    @property
    def absolute(self) -> bool:
        return self.objective in ("lad", "amae")

    def value(self, r: Array, weight: Array) -> Array:
        """The objective of residuals r [..., n]: [...]."""
        size = np.abs(r)
        if self.objective == "ls":
            return np.sum(weight * r * r, axis=-1) / 2
        inner = np.minimum(size, self.delta)
        return np.sum(weight * self._side(r) * inner * (size - inner / 2), axis=-1) / self._unit

    def pull(self, r: Array, weight: Array, outer: Array) -> tuple[Array, Array]:
        """The derivative by r and the curvature to use, [S, n] each; `outer` [S] scales it outside Huber's core."""
        if self.objective == "ls":
            return weight * r, weight
        outside = np.minimum(1.0, self.delta / np.maximum(np.abs(r), TINY))
        side = weight * self._side(r) / self._unit
        return side * r * outside, side * np.where(outside < 1, outside * outer[:, None], 1.0)

    def _side(self, r: Array) -> Array | float:
        return np.where(r < 0, OVERSHOOT, 1.0) if self.objective == "amae" else 1.0

    @property
    def _unit(self) -> float:
        return self.delta if self.absolute else 1.0

    def described(self) -> str:
        """One phrase for a report."""
        r = "ln y - ln f" if self.residual == "log" else "y - f"
        said = {
            "ls": f"least squares of {r}",
            "huber": f"Huber's loss of {r}, delta {self.delta:g}",
            "lad": f"least absolute deviations of {r}",
            "amae": f"asymmetric absolute deviations of {r} (x{OVERSHOOT:g} above a point)",
        }
        return said[self.objective]


@dataclass(frozen=True)
class Solution:
    """Natural parameters theta [R, p] of R problems of `law`; objective [R]; converged [R]."""

    law: Law
    theta: Array
    objective: Array
    converged: np.ndarray

    @property
    def floor(self) -> Array:
        """E [R], 0 where the law has none."""
        return self.theta[:, 0] if self.law.floor else np.zeros(len(self.theta))

    @property
    def amplitudes(self) -> Array:
        """Coefficients of the falling terms [R, m]."""
        return self.theta[:, int(self.law.floor) : self.law.linear]

    @property
    def exponents(self) -> Array:
        """The shape [R, q]: the exponents of a sum of powers."""
        return self.theta[:, self.law.linear :]

    def named(self) -> dict[str, Array]:
        """Every parameter and derived quantity by name, [R] each."""
        return dict(zip(self.law.names, self.theta.T, strict=True)) | self.law.derived(self.theta)

    def take(self, rows: np.ndarray) -> Solution:
        """The problems `rows` alone."""
        return Solution(self.law, self.theta[rows], self.objective[rows], self.converged[rows])


def stack(parts: Sequence[Solution]) -> Solution:
    """Batches of one law's solutions as one."""
    theta, objective, converged = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("theta", "objective", "converged")
    )
    return Solution(parts[0].law, theta, objective, converged)


class Penalty(Protocol):
    """Quadratic terms added to the objective of problems `rows`, at centred parameters [S, p]."""

    def terms(self, theta: Array, rows: np.ndarray) -> tuple[Array, Array, Array]:
        """Value [S], minus its gradient [S, p], its Gauss-Newton curvature [S, p, p]."""
        ...


@dataclass(frozen=True)
class Problem:
    """R problems that share inputs, in centred coordinates: u [n, k], y [R, n] in units of `unit` [R], weight [R, n].

    `held` [R, p] marks parameters that stay where they start. `prior` is (E0, weight), [R] each: the objective has
    weight/2 ((E - E0)/E0)^2 in it, a Gaussian prior on the floor.
    """

    law: Law
    u: Array
    centre: Array
    y: Array
    unit: Array
    weight: Array
    held: np.ndarray
    loss: Loss
    prior: tuple[Array, Array] | None = None

    @staticmethod
    def of(
        law: Law,
        x: Array,
        y: Array,
        weight: Array,
        loss: Loss,
        held: np.ndarray | None = None,
        prior: tuple[Array, Array] | None = None,
    ) -> Problem:
        """Centre inputs x [n, k] and scale y [R, n] (and E0)."""
        logs = np.log(x)
        centre = logs.mean(axis=0)
        unit = np.exp(np.mean(np.log(y), axis=1)) if loss.residual == "log" else np.ones(len(y))
        held = np.zeros((len(y), len(law.parameters)), dtype=bool) if held is None else held
        scaled = None if prior is None else (prior[0] / unit, prior[1])
        return Problem(law, logs - centre, centre, y / unit[:, None], unit, weight, held, loss, scaled)

    def take(self, rows: np.ndarray) -> Problem:
        """The problems `rows` alone (indices may repeat)."""
        y, unit, weight, held = self.y[rows], self.unit[rows], self.weight[rows], self.held[rows]
        prior = None if self.prior is None else (self.prior[0][rows], self.prior[1][rows])
        return replace(self, y=y, unit=unit, weight=weight, held=held, prior=prior)

    def residual(self, fitted: Array) -> Array:
        if self.loss.residual != "log":
            return self.y - fitted
        return np.log(self.y / fitted)

    def objective(self, theta: Array) -> Array:
        """The objective at centred parameters, [R]."""
        return self.value(self.residual(self.law.curve(self.u, theta)[0]), theta)

    def value(self, r: Array, theta: Array) -> Array:
        """The objective [R] of residuals r [R, n] that centred parameters theta leave."""
        found = self.loss.value(r, self.weight)
        return found if self.prior is None else found + self.prior[1] * (theta[:, 0] / self.prior[0] - 1) ** 2 / 2

    def add_prior(self, theta: Array, descent: Array, curvature: Array) -> None:
        """Add the prior's part to the descent direction [R, p] and the curvature [R, p, p]."""
        if self.prior is not None:
            centre, weight = self.prior
            descent[:, 0] -= weight * (theta[:, 0] / centre - 1) / centre
            curvature[:, 0, 0] += weight / centre**2


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


@dataclass(frozen=True)
class Cells:
    """Points [n] gathered by equal inputs: `x` [m, k], `index` [n] of a point's cell, `weight` [m] summed.

    Under least squares of ln y the mean of a cell under its weights says all that its points do.
    """

    x: Array
    index: np.ndarray
    weight: Array
    share: Array  # of a point in its cell's mean [n]

    @staticmethod
    def of(x: Array, weight: Array) -> Cells:
        """Gather inputs x [n, k] with weights [n]."""
        cells, index = np.unique(x, axis=0, return_inverse=True)
        index = index.ravel()
        total = np.asarray(np.bincount(index, weights=weight, minlength=len(cells)), dtype=float)
        return Cells(cells, index, total, weight / np.maximum(total[index], TINY))

    def gathered(self, y: Array) -> tuple[Array, Array, Array, Array]:
        """Inputs [m, k], means [R, m], weights [R, m], and half the squares within cells [R], of y [R, n]."""
        gather = np.zeros((len(self.index), len(self.x)))
        gather[np.arange(len(self.index)), self.index] = self.share
        logs = np.log(y)
        logs = logs - (middle := logs.mean(axis=1, keepdims=True))
        means = logs @ gather
        squares = logs**2 @ (self.share * self.weight[self.index]) - means**2 @ self.weight
        weight = np.tile(self.weight, (len(y), 1))
        return self.x, np.exp(means + middle), weight, np.maximum(squares, 0.0) / 2


def at_bound(law: Law, u: Array, theta: Array, descent: Array) -> np.ndarray:
    """Parameters held: at a bound that the descent direction would cross, or the shape of a vanished term."""
    low, high = law.bounds(u)
    held = ((theta <= low) & (descent <= 0)) | ((theta >= high) & (descent >= 0))
    for j, owner in enumerate(law.owners()):
        if owner is not None:
            held[:, law.linear + j] |= theta[:, owner] <= low[owner]
    return held


def polish(
    problem: Problem, theta: Array, tolerance: float, penalty: Penalty | None = None
) -> tuple[Array, Array, np.ndarray]:
    """Minimise R problems from centred theta [R, p]: where they end, the objective with its penalty, converged."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a trial far off is as bad as inf, and refused
        return _polish(problem, theta, tolerance, penalty)


def _polish(
    problem: Problem, theta: Array, tolerance: float, penalty: Penalty | None
) -> tuple[Array, Array, np.ndarray]:
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
