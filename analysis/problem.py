"""What is minimised over which points: losses, problems in centred coordinates, their solutions. No minimising here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from analysis.form import TINY, Array, Law

OBJECTIVES = ("ls", "huber", "lad", "amae")
RESIDUALS = ("log", "raw")
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
