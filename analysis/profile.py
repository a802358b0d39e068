"""Profile-likelihood intervals: how far a quantity can be moved, all else refitted, before the fit is clearly worse.

A quantity is a parameter, something derived from the parameters, or the law's value at some inputs. It is held by a
stiff spring in the same batched Levenberg-Marquardt that made the fit, and moved until the sum of squares has risen by
the quantile of F(1, n - p), or of chi-square where the noise is known (Venzon & Moolgavkar 1988; Bates & Watts 1988).
Nothing here draws random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.form import Array
from analysis.solver import Problem, at_bound, polish

STIFFNESS = 1e6  # of the spring over the quantity's own curvature: it yields by a millionth of its distance
MOVES = 40
FARTHEST = 200.0  # in half widths of the Wald interval; a quantity that moves farther is not bounded
LEAST_WIDTH = 0.1  # of ln or of an exponent (of y's unit for a floor): one held at its bound has no Wald width
TOLERANCE = 1e-3  # of the root of the rise


@dataclass(frozen=True)
class Quantity:
    """A parameter by `index` (an amplitude or length by its logarithm), a derived one by `name`, or ln y at `x` [k]."""

    index: int | None = None
    name: str = ""
    x: Array | None = None

    def value(self, problem: Problem, theta: Array) -> Array:
        """[R] at centred parameters [R, p] of the problem's rows."""
        law = problem.law
        if self.x is not None:
            u = (np.log(self.x) - problem.centre)[None]
            return np.log(law.curve(u, theta)[0][:, 0] * problem.unit)
        natural = law.natural(theta, problem.centre, problem.unit)
        if self.index is None:
            return law.derived(natural)[self.name]
        return (
            np.log(np.maximum(natural[:, self.index], 1e-300)) if self.logarithmic(problem) else natural[:, self.index]
        )

    def logarithmic(self, problem: Problem) -> bool:
        """Whether `value` is a logarithm."""
        law = problem.law
        if self.index is None:
            return self.x is not None
        return int(law.floor) <= self.index < law.linear or law.parameters[self.index].scale

    def gradient(self, problem: Problem, theta: Array) -> Array:
        """[R, p], by central differences; steps of a relative 1e-6."""
        found = np.empty_like(theta)
        for i in range(theta.shape[1]):
            step = 1e-6 * np.maximum(np.abs(theta[:, i]), 1e-3)
            up, down = theta.copy(), theta.copy()
            up[:, i] += step
            down[:, i] -= np.minimum(step, theta[:, i] / 2) if i < problem.law.linear else step
            found[:, i] = (self.value(problem, up) - self.value(problem, down)) / (up[:, i] - down[:, i] + 1e-300)
        return found

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
    ends = [
        _Walk(problem, theta, quantity, side, point, reach, np.sqrt(rise), path, variance).end(rows)
        for side in (-1.0, 1.0)
    ]
    return point, ends[0], ends[1]


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

    def end(self, rows: np.ndarray) -> Array:
        base = 2 * self._objective(self.theta, rows)
        limit = self.quantity.limits(self.problem)[0 if self.side < 0 else 1]
        found = np.full(len(rows), np.nan)
        inside, root_in = self.point.copy(), np.zeros(len(rows))
        outside, root_out = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        at, last = self.theta.copy(), self.point.copy()
        target = self._bounded(self.point + self.side * self.reach, limit)
        active = rows
        for _ in range(MOVES):
            goal = self.goal[active]
            start = at[active] + self.path[active] * (target[active] - last[active])[:, None]
            ends = self._refit(start, target[active], active)
            root = np.sqrt(np.maximum(2 * self._objective(ends, active) - base[active], 0.0))
            at[active], last[active] = ends, target[active]
            beyond = root >= goal
            inside[active[~beyond]], root_in[active[~beyond]] = target[active[~beyond]], root[~beyond]
            outside[active[beyond]], root_out[active[beyond]] = target[active[beyond]], root[beyond]
            met = np.abs(root - goal) <= TOLERANCE * goal
            at_limit = ~beyond & (target[active] == limit)
            least = LEAST_WIDTH * (self.problem.unit[active] if self.quantity.index == 0 else 1.0)
            moved = np.abs(target[active] - self.point[active])
            far = ~beyond & (moved > FARTHEST * np.maximum(self.reach[active], least))
            found[active[met]] = target[active[met]]
            found[active[at_limit & ~met]] = limit
            found[active[far & ~met & ~at_limit]] = self.side * np.inf
            active = active[~(met | at_limit | far)]
            if not len(active):
                return found
            target[active] = self._next(active, inside, root_in, outside, root_out, limit)
        found[active] = np.where(
            np.isfinite(outside[active]), (inside[active] + outside[active]) / 2, self.side * np.inf
        )
        return found

    def _next(
        self, active: np.ndarray, inside: Array, root_in: Array, outside: Array, root_out: Array, limit: float
    ) -> Array:
        goal, lo, hi = self.goal[active], inside[active], outside[active]
        stretch = np.clip(1.1 * goal / np.maximum(root_in[active], 1e-12), 1.3, 3.0)
        wider = (
            self.point[active]
            + np.maximum(np.abs(lo - self.point[active]), self.reach[active] / 3) * self.side * stretch
        )
        share = (goal - root_in[active]) / np.maximum(root_out[active] - root_in[active], 1e-300)
        closer = lo + np.clip(share, 0.05, 0.95) * (hi - lo)
        return np.where(np.isfinite(hi), closer, self._bounded(wider, limit))

    def _bounded(self, target: Array, limit: float) -> Array:
        return np.maximum(target, limit) if self.side < 0 else np.minimum(target, limit)

    def _refit(self, start: Array, target: Array, rows: np.ndarray) -> Array:
        part = self.problem.take(rows)
        spring = _Spring(self.quantity, part, target, STIFFNESS / self.variance[rows])
        return polish(part, start, 1e-9, spring)[0]

    def _objective(self, theta: Array, rows: np.ndarray) -> Array:
        return self.problem.take(rows).objective(theta)
