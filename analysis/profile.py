"""Profile-likelihood intervals: how far a quantity can be moved, all else refitted, before the fit is clearly worse.

A quantity is a parameter, something derived from the parameters, or the law's value at some inputs. A spring pulls it
towards a target in the same batched Levenberg-Marquardt that made the fit. Wherever it comes to rest, the fit is the
best there is at the value it has there, so the spring may be soft; the target moves until the sum of squares has risen
by the quantile of F(1, n - p), or of chi-square where the noise is known (Venzon & Moolgavkar 1988; Bates & Watts
1988). Nothing here draws random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from analysis.form import Array
from analysis.problem import Problem
from analysis.projection import MOST_COLUMNS, starts
from analysis.solver import at_bound, polish

STIFFNESS = 30.0  # of the spring over the quantity's own curvature: a stiffer one turns every step into many
MOVES = 40
FARTHEST = 200.0  # in half widths of the Wald interval; a quantity that moves farther is not bounded
LEAST_WIDTH = 0.1  # of ln or of an exponent (of y's unit for a floor): one held at its bound has no Wald width
TOLERANCE = 1e-3  # of the root of the rise
PRECISION = 1e-6  # relative, of the objective with its spring
FEW = 4  # problems at once up to which each refit also starts from the best cell of a grid
GRID_CELLS, FEW_CELLS = 32, 14  # along an exponent
STUCK = 1e-3  # share of the way to its target that a quantity at an end of its range still moves


@dataclass(frozen=True)
class Quantity:
    """A parameter by `index` (an amplitude or length by its logarithm), a derived one by `name`, or ln y at `x` [k]."""

    index: int | None = None
    name: str = ""
    x: Array | None = None

    def value(self, problem: Problem, theta: Array) -> Array:
        """[R] at centred parameters [R, p] of the problem's rows."""
        return self._value(problem, theta, problem.unit)

    def _value(self, problem: Problem, theta: Array, unit: Array) -> Array:
        law = problem.law
        if self.x is not None:
            u = (np.log(self.x) - problem.centre)[None]
            return np.log(law.curve(u, theta)[0][:, 0] * unit)
        natural = law.natural(theta, problem.centre, unit)
        if self.index is None:
            return law.derived(natural)[self.name]
        found = natural[:, self.index]
        return np.log(np.maximum(found, 1e-300)) if self.logarithmic(problem) else found

    def logarithmic(self, problem: Problem) -> bool:
        """Whether `value` is a logarithm."""
        law = problem.law
        if self.index is None:
            return self.x is not None
        return int(law.floor) <= self.index < law.linear or law.parameters[self.index].scale

    def gradient(self, problem: Problem, theta: Array) -> Array:
        """[R, p], by central differences; steps of a relative 1e-6."""
        rows, count = theta.shape
        step = 1e-6 * np.maximum(np.abs(theta), 1e-3)
        down = step.copy()
        linear = problem.law.linear
        down[:, :linear] = np.minimum(step[:, :linear], theta[:, :linear] / 2)  # coefficients stay at 0 or above
        shifted = np.repeat(theta[None], 2 * count, axis=0)
        for i in range(count):
            shifted[2 * i, :, i] += step[:, i]
            shifted[2 * i + 1, :, i] -= down[:, i]
        found = self._value(problem, shifted.reshape(-1, count), np.tile(problem.unit, 2 * count))
        pairs = found.reshape(count, 2, rows)
        return np.asarray((pairs[:, 0] - pairs[:, 1]).T / (step + down))

    def limits(self, problem: Problem) -> tuple[float, float]:
        """Least and greatest value that the fit admits."""
        law = problem.law
        if self.index is None or int(law.floor) <= self.index < law.linear:
            return -np.inf, np.inf
        low, high = law.bounds(problem.u)
        shift = problem.centre[law.scale_inputs()[self.index]] if law.parameters[self.index].scale else 0.0
        return float(low[self.index] + shift), float(high[self.index] + shift)


@dataclass(frozen=True)
class _Spring:
    """stiffness/2 (value - target)^2 on a quantity."""

    quantity: Quantity
    problem: Problem
    target: Array
    stiffness: Array

    def terms(self, theta: Array, rows: np.ndarray) -> tuple[Array, Array, Array]:
        part = self.problem.take(rows)
        gap, strength = self.quantity.value(part, theta) - self.target[rows], self.stiffness[rows]
        slope = self.quantity.gradient(part, theta)
        return (
            strength * gap**2 / 2,
            -(strength * gap)[:, None] * slope,
            strength[:, None, None] * slope[:, :, None] * slope[:, None, :],
        )


def profile(problem: Problem, theta: Array, quantity: Quantity, rise: Array) -> tuple[Array, Array, Array]:
    """Point, low and high [R] of a quantity for R problems at their optima theta [R, p] (centred).

    `rise` [R] is the increase of twice the objective that bounds the interval. An end is the quantity's limit where
    the objective never rises so far, and infinite where it has none.
    """
    point = quantity.value(problem, theta)
    variance, path = _curvature(problem, theta, quantity)
    reach = np.sqrt(np.maximum(rise * variance, 1e-24))
    rows = np.arange(len(theta))
    cells = _Cells.of(problem, quantity) if len(theta) <= FEW else None
    ends = [
        _Walk(problem, theta, quantity, side, point, reach, np.sqrt(rise), path, variance, cells).end(rows)
        for side in (-1.0, 1.0)
    ]
    return point, ends[0], ends[1]


@dataclass(frozen=True)
class _Cells:
    """The grid of shapes with its linear coefficients, as further starts: a weakly fixed law has several valleys.

    theta [R, G, p], the quantity there and the objective, [R, G] each.
    """

    theta: Array
    value: Array
    objective: Array

    @staticmethod
    def of(problem: Problem, quantity: Quantity) -> _Cells:
        rows, law = len(problem.y), problem.law
        if problem.held[:, 0].any():  # a floor held elsewhere than at 0 is the walk's own to start from
            return _Cells(np.empty((rows, 0, len(law.parameters))), np.empty((rows, 0)), np.empty((rows, 0)))
        if law.linear > MOST_COLUMNS:
            theta = np.stack([_one_by_one(problem.take(np.array([row]))) for row in range(rows)])
        else:
            theta = starts(
                law,
                problem.u,
                problem.y,
                problem.weight,
                relative=problem.loss.residual == "log",
                pinned=np.full(rows, np.nan),
                prior=problem.prior,
                cells=GRID_CELLS,
                count=len(law.grid(problem.u, GRID_CELLS)),
            )
        count = theta.shape[1]
        flat = problem.take(np.repeat(np.arange(rows), count))
        ends = theta.reshape(rows * count, -1)
        shape = (rows, count)
        return _Cells(theta, quantity.value(flat, ends).reshape(shape), flat.objective(ends).reshape(shape))

    def start(self, rows: np.ndarray, target: Array, stiffness: Array) -> Array:
        """The cell of each row that leaves the least with the spring at `target`: [S, p]."""
        spring = stiffness[:, None] / 2 * (self.value[rows] - target[:, None]) ** 2
        best = np.argmin(np.nan_to_num(self.objective[rows] + spring, nan=np.inf), axis=1)
        return np.asarray(self.theta[rows, best])


def _curvature(problem: Problem, theta: Array, quantity: Quantity) -> tuple[Array, Array]:
    """Variance of the quantity per unit of noise variance [R], and how all parameters move with it [R, p]."""
    law = problem.law
    fitted, columns = law.curve(problem.u, theta)
    slope = law.slope(problem.u, theta, fitted, columns)
    if problem.loss.residual == "log":
        slope = slope / fitted[..., None]
    curvature = np.matmul((slope * problem.weight[..., None]).transpose(0, 2, 1), slope)
    held = problem.held | at_bound(law, problem.u, theta, np.zeros_like(theta))
    problem.add_prior(theta, np.zeros_like(theta), curvature)
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    diagonal = np.einsum("rpp->rp", curvature)
    diagonal += np.where(held, 1.0, 1e-10 * diagonal + 1e-300)
    gradient = np.where(held, 0.0, quantity.gradient(problem, theta))
    along = np.linalg.solve(curvature, gradient[..., None])[..., 0]
    variance = np.einsum("rp,rp->r", gradient, along)
    # a quantity held at its bound still needs a first step to be moved from it
    size = np.einsum("rnp,rn->rp", np.abs(slope), problem.weight).max(axis=1)
    variance = np.where(variance > 0, variance, 1 / np.maximum(size, 1e-12) ** 2)
    return variance, along / np.maximum(variance, 1e-300)[:, None]


def _one_by_one(problem: Problem) -> Array:
    """The cells [G, p] of one problem whose law has more coefficients than the projection solves in a batch."""
    law, y, weight = problem.law, problem.y[0], problem.weight[0]
    shapes = law.grid(problem.u, FEW_CELLS)
    scale = np.sqrt(weight) / (y if problem.loss.residual == "log" else 1.0)
    found = []
    for shape, columns in zip(shapes, law.columns(problem.u, shapes), strict=True):
        coefficients, _ = nnls(columns * scale[:, None], y * scale)
        coefficients[int(law.floor) :] = np.maximum(coefficients[int(law.floor) :], 1e-3)
        found.append(np.r_[coefficients, shape])
    return np.stack(found)


@dataclass
class _Side:
    """The last target on one side of the end looked for, the value that came of it, and the root of the rise, [R]."""

    target: Array
    value: Array
    root: Array

    @staticmethod
    def at(value: Array) -> _Side:
        return _Side(value.copy(), value.copy(), np.zeros(len(value)))

    def put(self, rows: np.ndarray, target: Array, value: Array, root: Array) -> None:
        self.target[rows], self.value[rows], self.root[rows] = target[rows], value, root


@dataclass
class _Walk:
    """Moves a quantity to one `side` until the root of the objective's rise meets `goal`."""

    problem: Problem
    theta: Array
    quantity: Quantity
    side: float
    point: Array
    reach: Array
    goal: Array
    path: Array
    variance: Array
    cells: _Cells | None

    def end(self, rows: np.ndarray) -> Array:
        base = 2 * self._objective(self.theta, rows)
        limit = self.quantity.limits(self.problem)[0 if self.side < 0 else 1]
        found = np.full(len(rows), np.nan)
        inside, outside = _Side.at(self.point), _Side.at(np.full(len(rows), np.nan))
        at, last = self.theta.copy(), self.point.copy()
        target = self.point + self.side * self.reach * (1 + 1 / STIFFNESS)
        active = rows
        for _ in range(MOVES):
            goal = self.goal[active]
            start = at[active] + self.path[active] * (target[active] - last[active])[:, None]
            ends = self._refit(start, target[active], active)
            root = np.sqrt(np.maximum(2 * self._objective(ends, active) - base[active], 0.0))
            value = self.quantity.value(self.problem.take(active), ends)
            moved, asked = np.abs(value - inside.value[active]), np.abs(target[active] - inside.target[active])
            at[active], last[active] = ends, value
            beyond = root >= goal
            inside.put(active[~beyond], target, value[~beyond], root[~beyond])
            outside.put(active[beyond], target, value[beyond], root[beyond])
            met = np.abs(root - goal) <= TOLERANCE * goal
            stuck = ~beyond & ((np.abs(value - limit) <= 1e-9 * self.reach[active]) | (moved < STUCK * asked))
            least = LEAST_WIDTH * (self.problem.unit[active] if self.quantity.index == 0 else 1.0)
            gone = np.abs(value - self.point[active])
            far = ~beyond & (gone > FARTHEST * np.maximum(self.reach[active], least))
            found[active[met]] = value[met]
            found[active[stuck & ~met]] = value[stuck & ~met]
            found[active[far & ~met & ~stuck]] = self.side * np.inf
            active = active[~(met | stuck | far)]
            if not len(active):
                return found
            target[active] = self._next(active, inside, outside)
        middle = (inside.value[active] + outside.value[active]) / 2
        found[active] = np.where(np.isfinite(middle), middle, self.side * np.inf)
        return found

    def _next(self, active: np.ndarray, inside: _Side, outside: _Side) -> Array:
        """The next targets: farther while the rise is too small, then between the two that bracket it."""
        goal, lo, hi = self.goal[active], inside.target[active], outside.target[active]
        stretch = np.clip(1.1 * goal / np.maximum(inside.root[active], 1e-12), 1.3, 3.0)
        moved = np.maximum(np.abs(lo - self.point[active]), self.reach[active] / 3)
        wider = self.point[active] + self.side * moved * stretch
        share = (goal - inside.root[active]) / np.maximum(outside.root[active] - inside.root[active], 1e-300)
        closer = lo + np.clip(share, 0.05, 0.95) * (hi - lo)
        return np.where(np.isfinite(hi), closer, wider)

    def _refit(self, start: Array, target: Array, rows: np.ndarray) -> Array:
        stiffness = STIFFNESS / self.variance[rows]
        if self.cells is None or not self.cells.theta.shape[1]:
            part = self.problem.take(rows)
            return polish(part, start, PRECISION, _Spring(self.quantity, part, target, stiffness))[0]
        both = np.concatenate([start, self.cells.start(rows, target, stiffness)])
        part = self.problem.take(np.tile(rows, 2))
        spring = _Spring(self.quantity, part, np.tile(target, 2), np.tile(stiffness, 2))
        ends, objective, _ = polish(part, both, PRECISION, spring)
        second = objective[len(rows) :] < objective[: len(rows)]
        return np.where(second[:, None], ends[len(rows) :], ends[: len(rows)])

    def _objective(self, theta: Array, rows: np.ndarray) -> Array:
        return self.problem.take(rows).objective(theta)
