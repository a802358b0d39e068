"""Fits many sums of decreasing powers at once: y = E + sum_j c_j x_j^-a_j, one or two inputs. Only NumPy, no table.

Variable projection (Golub & Pereyra 1973): for given exponents the rest is a linear least squares problem, solved
exactly, E and c_j >= 0, over a grid of exponents. The best cells start a batched, bounded Levenberg-Marquardt on the
wanted residuals. Under the Huber loss the curvature outside the quadratic core shrinks from that of iteratively
reweighted least squares towards its true value of zero as steps succeed, so that it ends as Newton's method does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.laws import Array

EXPONENT_BOUNDS = (0.02, 3.0)
CHUNK = 256  # problems a pass over the exponent grid: keeps its arrays within the cache
TINY = 1e-300


@dataclass(frozen=True)
class Loss:
    """What is minimised: the weighted sum of r^2/2 (`ls`) or of Huber's function (r^2/2 up to |r| = delta).

    `residual` is `log` (r = ln y - ln f) or `linear` (r = y - f).
    """

    objective: str = "ls"
    delta: float = 1e-3
    residual: str = "log"

    def value(self, r: Array, weight: Array) -> Array:
        """The objective of residuals r [..., n]: [...]."""
        size = np.abs(r)
        if self.objective == "ls":
            return np.sum(weight * r * r, axis=-1) / 2
        inner = np.minimum(size, self.delta)
        return np.sum(weight * inner * (size - inner / 2), axis=-1)


@dataclass(frozen=True)
class Solution:
    """Parameters of R problems: floor [R], amplitudes [R, k], exponents [R, k]; objective [R]; converged [R]."""

    floor: Array
    amplitudes: Array
    exponents: Array
    objective: Array
    converged: np.ndarray

    def take(self, rows: np.ndarray) -> Solution:
        """The problems `rows` alone."""
        return Solution(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def solve(
    x: Array,
    y: Array,
    weight: Array,
    loss: Loss,
    *,
    floor: Array | None = None,
    cells: int = 32,
    starts: int = 1,
    tolerance: float = 1e-9,
) -> Solution:
    """Fit R problems that share inputs x [n, k]: values y [R, n], weights [R, n].

    `floor` [R] pins E (NaN leaves it free); None leaves it free everywhere. `cells` is the exponent grid's side,
    `starts` the cells polished per problem, of which the best is kept.
    """
    rows = len(y)
    inputs = x.shape[1]
    centre = np.log(x).mean(axis=0)
    logs = np.log(x) - centre
    unit = np.exp(np.mean(np.log(y), axis=1)) if loss.residual == "log" else np.ones(rows)
    scaled = y / unit[:, None]
    pinned = np.full(rows, np.nan) if floor is None else np.asarray(floor, dtype=float) / unit
    starting = [
        _grid_starts(logs, scaled[part], weight[part], pinned[part], loss, cells, starts)
        for part in _chunks(rows, max(1, CHUNK * 1024 // cells**inputs))
    ]
    theta = np.concatenate(starting).reshape(rows * starts, -1)
    polished, objective, converged = _polish(
        logs,
        np.repeat(scaled, starts, axis=0),
        np.repeat(weight, starts, axis=0),
        theta,
        np.repeat(np.isfinite(pinned), starts),
        loss,
        tolerance,
    )
    best = np.argmin(objective.reshape(rows, starts), axis=1) + np.arange(rows) * starts
    theta = polished[best]
    exponents = theta[:, 1 + inputs :]
    amplitudes = theta[:, 1 : 1 + inputs] * np.exp(exponents * centre) * unit[:, None]
    return Solution(theta[:, 0] * unit, amplitudes, exponents, objective[best], converged[best])


def jacobian(x: Array, solution: Solution, loss: Loss) -> tuple[Array, np.ndarray]:
    """Derivatives of the fit (of its logarithm under log residuals) at the solutions, [R, n, p], and free [R, p].

    The order is E, amplitudes, exponents; amplitudes are those at the centred inputs, which spans the same space.
    """
    centre = np.log(x).mean(axis=0)
    inner = solution.amplitudes * np.exp(-solution.exponents * centre)
    theta = np.concatenate([solution.floor[:, None], inner, solution.exponents], axis=1)
    fitted, powers = _model(np.log(x) - centre, theta)
    free = ~_at_bound(theta, np.zeros_like(theta), x.shape[1])
    return _derivatives(np.log(x) - centre, theta, fitted, powers, loss), free


def _chunks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


# ------------------------------------------------------------------------------------- exponent grid


def _grid_starts(logs: Array, y: Array, weight: Array, pinned: Array, loss: Loss, cells: int, starts: int) -> Array:
    """The best `starts` cells of each problem as parameters [R, starts, 1 + 2k]."""
    inputs = logs.shape[1]
    axis = np.geomspace(EXPONENT_BOUNDS[0] * 2, EXPONENT_BOUNDS[1] / 1.25, cells)
    grids = np.meshgrid(*[axis] * inputs, indexing="ij")
    exponents = np.stack([grid.ravel() for grid in grids], axis=1)
    powers = [np.exp(-exponents[:, j, None] * logs[None, :, j]) for j in range(inputs)]

    linear = weight / y**2 if loss.residual == "log" else weight  # relative residuals stand in for logarithmic ones
    is_pinned = np.isfinite(pinned)
    target = y - np.where(is_pinned, pinned, 0.0)[:, None]
    columns = [np.ones_like(powers[0]), *powers]
    right = linear.T
    gram = {(i, j): (columns[i] * columns[j]) @ right for i in range(inputs + 1) for j in range(i, inputs + 1)}
    moments = [column @ (linear * target).T for column in columns]

    gain = np.full(gram[0, 0].shape, -np.inf)
    coefficients = [np.zeros_like(gain) for _ in columns]
    for size in range(1, inputs + 2):
        for subset in combinations(range(inputs + 1), size):
            values, explained, feasible = _least_squares(gram, moments, subset)
            better = feasible & (explained > gain)
            if 0 in subset:
                better &= ~is_pinned
            gain = np.where(better, explained, gain)
            for i in range(inputs + 1):
                coefficients[i] = np.where(better, values[subset.index(i)] if i in subset else 0.0, coefficients[i])
    best = np.argsort(-gain, axis=0)[:starts].T if starts > 1 else np.argmax(gain, axis=0)[:, None]
    problem = np.arange(len(y))[:, None]
    theta = np.empty((len(y), starts, 1 + 2 * inputs))
    theta[:, :, 0] = np.where(is_pinned[:, None], pinned[:, None], coefficients[0][best, problem])
    for j in range(inputs):
        theta[:, :, 1 + j] = coefficients[1 + j][best, problem]
        theta[:, :, 1 + inputs + j] = exponents[best, j]
    # a term the grid dropped starts small instead of at its bound, where its exponent would have no gradient
    theta[:, :, 1 : 1 + inputs] = np.maximum(theta[:, :, 1 : 1 + inputs], 1e-3)
    return theta


def _least_squares(
    gram: dict[tuple[int, int], Array], moments: list[Array], subset: tuple[int, ...]
) -> tuple[list[Array], Array, np.ndarray]:
    """Coefficients of `subset` by Cramer's rule, the sum of squares they explain, and whether all are >= 0."""

    def g(i: int, j: int) -> Array:
        return gram[min(subset[i], subset[j]), max(subset[i], subset[j])]

    b = [moments[i] for i in subset]
    with np.errstate(divide="ignore", invalid="ignore"):
        if len(subset) == 1:
            values = [b[0] / g(0, 0)]
        elif len(subset) == 2:
            det = g(0, 0) * g(1, 1) - g(0, 1) ** 2
            values = [(b[0] * g(1, 1) - b[1] * g(0, 1)) / det, (b[1] * g(0, 0) - b[0] * g(0, 1)) / det]
        else:
            c00, c11, c22 = (
                g(1, 1) * g(2, 2) - g(1, 2) ** 2,
                g(0, 0) * g(2, 2) - g(0, 2) ** 2,
                g(0, 0) * g(1, 1) - g(0, 1) ** 2,
            )
            c01 = g(0, 2) * g(1, 2) - g(0, 1) * g(2, 2)
            c02 = g(0, 1) * g(1, 2) - g(0, 2) * g(1, 1)
            c12 = g(0, 1) * g(0, 2) - g(0, 0) * g(1, 2)
            det = g(0, 0) * c00 + g(0, 1) * c01 + g(0, 2) * c02
            values = [
                (c00 * b[0] + c01 * b[1] + c02 * b[2]) / det,
                (c01 * b[0] + c11 * b[1] + c12 * b[2]) / det,
                (c02 * b[0] + c12 * b[1] + c22 * b[2]) / det,
            ]
        explained = sum(value * moment for value, moment in zip(values, b, strict=True))
        feasible = np.isfinite(explained) & np.all([value >= 0 for value in values], axis=0)
    return values, np.asarray(explained), feasible


# ------------------------------------------------------------------------------------------- polish


def _model(logs: Array, theta: Array) -> tuple[Array, Array]:
    """Values [S, n] and powers [S, n, k] of parameters theta [S, 1 + 2k]."""
    inputs = logs.shape[1]
    powers = np.exp(-theta[:, None, 1 + inputs :] * logs[None])
    fitted = theta[:, None, 0] + np.einsum("snk,sk->sn", powers, theta[:, 1 : 1 + inputs])
    return np.maximum(fitted, TINY), powers


def _derivatives(logs: Array, theta: Array, fitted: Array, powers: Array, loss: Loss) -> Array:
    inputs = logs.shape[1]
    slope = np.empty((*fitted.shape, 1 + 2 * inputs))
    slope[..., 0] = 1.0
    slope[..., 1 : 1 + inputs] = powers
    slope[..., 1 + inputs :] = -powers * logs[None] * theta[:, None, 1 : 1 + inputs]
    if loss.residual == "log":
        slope /= fitted[..., None]
    return slope


def _residual(y: Array, fitted: Array, loss: Loss) -> Array:
    return np.log(y / fitted) if loss.residual == "log" else y - fitted


def _bounds(inputs: int) -> tuple[Array, Array]:
    low = np.r_[np.zeros(1 + inputs), np.full(inputs, EXPONENT_BOUNDS[0])]
    return low, np.r_[np.full(1 + inputs, np.inf), np.full(inputs, EXPONENT_BOUNDS[1])]


def _at_bound(theta: Array, descent: Array, inputs: int) -> np.ndarray:
    """Parameters held: at a bound that the descent direction would cross, or the exponent of a vanished term."""
    low, high = _bounds(inputs)
    held = ((theta <= low) & (descent <= 0)) | ((theta >= high) & (descent >= 0))
    held[:, 1 + inputs :] |= theta[:, 1 : 1 + inputs] <= 0
    return held


def _polish(
    logs: Array, y: Array, weight: Array, theta: Array, pinned: np.ndarray, loss: Loss, tolerance: float
) -> tuple[Array, Array, np.ndarray]:
    """Bounded Levenberg-Marquardt on S problems at once; converged problems leave the batch."""
    state = _Batch(theta, np.arange(len(theta)), np.full(len(theta), 1e-3), np.ones(len(theta)), np.zeros(len(theta)))
    final, objective, converged = theta.copy(), np.empty(len(theta)), np.zeros(len(theta), dtype=bool)
    low, high = _bounds(logs.shape[1])
    fitted, powers = _model(logs, theta)
    r = _residual(y, fitted, loss)
    value = loss.value(r, weight)
    for _ in range(MAX_STEPS):
        descent, curvature = _step_equations(logs, state, fitted, powers, r, weight, pinned, loss)
        step = np.linalg.solve(curvature, descent[..., None])[..., 0]
        trial = np.clip(state.theta + step, low, high)
        trial_fitted, trial_powers = _model(logs, trial)
        trial_r = _residual(y, trial_fitted, loss)
        trial_value = loss.value(trial_r, weight)
        accept = trial_value < value
        gain = np.where(accept, (value - trial_value) / np.maximum(value, TINY), 0.0)
        row = accept[:, None]
        state = replace(
            state,
            theta=np.where(row, trial, state.theta),
            damping=np.where(accept, np.maximum(state.damping * 0.2, 1e-13), state.damping * 6),
            outer=np.where(accept, state.outer * 0.3, np.minimum(1.0, state.outer * 10 + 1e-4)),
            idle=np.where(gain > tolerance, 0.0, state.idle + np.where(accept, 1.0, 0.25)),
        )
        fitted, r, value = (
            np.where(row, trial_fitted, fitted),
            np.where(row, trial_r, r),
            np.where(accept, trial_value, value),
        )
        powers = np.where(row[..., None], trial_powers, powers)
        done = (state.idle >= 2) | (value <= TINY)
        if done.any():
            where = state.rows[done]
            final[where], objective[where], converged[where] = state.theta[done], value[done], True
            keep = ~done
            if not keep.any():
                return final, objective, converged
            state = state.take(keep)
            fitted, powers, r, value = fitted[keep], powers[keep], r[keep], value[keep]
            y, weight, pinned = y[keep], weight[keep], pinned[keep]
    final[state.rows], objective[state.rows] = state.theta, value
    return final, objective, converged


MAX_STEPS = 400


@dataclass(frozen=True)
class _Batch:
    """Problems under way. `outer` is the share of reweighted curvature kept outside Huber's core."""

    theta: Array
    rows: np.ndarray
    damping: Array
    outer: Array
    idle: Array

    def take(self, keep: np.ndarray) -> _Batch:
        return _Batch(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def _step_equations(
    logs: Array, state: _Batch, fitted: Array, powers: Array, r: Array, weight: Array, pinned: np.ndarray, loss: Loss
) -> tuple[Array, Array]:
    """Descent direction [S, p] and damped curvature [S, p, p], held parameters decoupled."""
    slope = _derivatives(logs, state.theta, fitted, powers, loss)
    pull, bend = weight * r, weight
    if loss.objective == "huber":
        outside = np.minimum(1.0, loss.delta / np.maximum(np.abs(r), TINY))
        pull, bend = pull * outside, weight * np.where(outside < 1, outside * state.outer[:, None], 1.0)
    descent = np.einsum("sn,snp->sp", pull, slope)
    curvature = np.matmul((slope * bend[..., None]).transpose(0, 2, 1), slope)
    held = _at_bound(state.theta, descent, logs.shape[1])
    held[:, 0] |= pinned
    descent = np.where(held, 0.0, descent)
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    diagonal = np.einsum("spp->sp", curvature)
    scale = np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True) + TINY)
    diagonal += np.where(held, 1.0, state.damping[:, None] * scale + 1e-14 * scale)
    return descent, curvature
