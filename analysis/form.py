"""What a law is: value, gradient, and the coordinates that the solver works in. The laws are `analysis.laws`'s.

A law is y = sum_j c_j g_j(x; s): coefficients c_j >= 0 enter linearly, the shape s does not. The solver works in
centred coordinates u = ln x - centre, in which a length scale is its logarithm and amplitudes are those at the centre;
`Law.natural` and `Law.centred` translate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENT_BOUNDS = (0.02, 3.0)
TINY = 1e-300


@dataclass(frozen=True)
class Parameter:
    """One parameter: its unit (`y`, `x` or `1`), and what it is. `scale` marks a length scale in x, fitted as ln."""

    name: str
    unit: str
    meaning: str
    scale: bool = False


FLOOR = Parameter("E", "y", "floor: the value at infinite x")


def amplitude(name: str, of: str = "x") -> Parameter:
    """The coefficient of a falling power of `of`."""
    return Parameter(name, "y", f"size of the term in {of}, at {of} = 1")


def exponent(name: str, of: str = "x") -> Parameter:
    """The exponent of a falling power of `of`."""
    return Parameter(name, "1", f"exponent of {of}: the term falls as {of}^-{name}")


class Law:
    """One form. `parameters` are the coefficients (`linear` of them), then the shape.

    Arrays: inputs x or u [n, k]; parameters theta [R, p] or shapes [R, q], a row a problem.
    """

    name: str
    formula: str
    source: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    linear: int
    floor: bool  # whether the first coefficient is E
    costly_grid = False  # whether resamples do better to start from the fit than from a grid of their own

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    # ------------------------------------------------------------------- what a form defines, centred

    def columns(self, u: Array, shape: Array) -> Array:
        """g_j at inputs u [n, k] for shapes [S, q]: [S, n, linear]."""
        raise NotImplementedError  # pragma: no cover - abstract

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        """dy/ds [S, n, q]."""
        raise NotImplementedError  # pragma: no cover - abstract

    def grid(self, u: Array, cells: int) -> Array:
        """Shapes [G, q] that cover what is plausible; `cells` along an exponent."""
        raise NotImplementedError  # pragma: no cover - abstract

    def axes(self, u: Array, cells: int) -> tuple[Array, Array] | None:
        """Where the columns are 1, f_i, s_j over a grid i x j: f [c, n] and s [d, n]. None for any other form."""
        return None

    def shape_bounds(self, u: Array) -> tuple[Array, Array]:
        """Least and greatest shape [q], centred."""
        low, high = EXPONENT_BOUNDS
        count = len(self.parameters) - self.linear
        return np.full(count, low), np.full(count, high)

    def amplitude_shift(self) -> Array:
        """[linear, q, k]: ln c_j at x = 1 exceeds ln c_j at the centre by shape . shift_j . centre."""
        raise NotImplementedError  # pragma: no cover - abstract

    def owners(self) -> tuple[int | None, ...]:
        """For each shape parameter the coefficient without which it means nothing, or None."""
        return (None,) * (len(self.parameters) - self.linear)

    def derived(self, theta: Array) -> dict[str, Array]:
        """Further quantities of natural parameters [R, p], by name: [R] each."""
        return {}

    def prepared(self, x: Array) -> Array:
        """Inputs as the form takes them [n, k], from those of a table, which may hold zeros for a CRT weight."""
        return x

    # ---------------------------------------------------------------------------- the same for every form

    def curve(self, u: Array, theta: Array) -> tuple[Array, Array]:
        """Values [S, n] and columns [S, n, linear] at centred parameters."""
        columns = self.columns(u, theta[:, self.linear :])
        return np.maximum(np.matmul(columns, theta[:, : self.linear, None])[..., 0], TINY), columns

    def slope(self, u: Array, theta: Array, fitted: Array, columns: Array) -> Array:
        """dy/dtheta [S, n, p] at centred parameters."""
        return np.concatenate([columns, self.shape_slope(u, theta, columns)], axis=2)

    def from_coefficients(self, coefficients: Array, shape: Array) -> Array:
        """Parameters from linear coefficients [..., linear] and shapes [..., q]."""
        return np.concatenate([coefficients, shape], axis=-1)

    def links(self, shape: Array) -> Iterator[tuple[np.ndarray, float]]:
        """(cells, b) over a grid of shapes: y^(1/b) is linear in the coefficients there. One group but for Kaplan."""
        yield np.arange(len(shape)), 1.0

    def bounds(self, u: Array) -> tuple[Array, Array]:
        """Least and greatest centred parameters [p]."""
        low, high = self.shape_bounds(u)
        return np.r_[np.zeros(self.linear), low], np.r_[np.full(self.linear, np.inf), high]

    def _log_shift(self, theta: Array, centre: Array) -> Array:
        shape = theta[:, self.linear :]
        return np.einsum("rq,jqk,k->rj", shape, self.amplitude_shift(), centre)

    def scale_inputs(self) -> dict[int, int]:
        """Index of a length scale among the parameters -> index of its input."""
        return {i: 0 for i, parameter in enumerate(self.parameters) if parameter.scale}

    def natural(self, theta: Array, centre: Array, unit: Array) -> Array:
        """Parameters in the units of x and y from centred ones [R, p], `centre` [k], `unit` of y [R]."""
        found = theta.copy()
        found[:, : self.linear] *= np.exp(self._log_shift(theta, centre)) * unit[:, None]
        for i, k in self.scale_inputs().items():
            found[:, i] = np.exp(theta[:, i] + centre[k])
        return found

    def centred(self, theta: Array, centre: Array, unit: Array) -> Array:
        """The inverse of `natural`."""
        found = theta.copy()
        found[:, : self.linear] *= np.exp(-self._log_shift(theta, centre)) / unit[:, None]
        for i, k in self.scale_inputs().items():
            found[:, i] = np.log(theta[:, i]) - centre[k]
        return found

    def value(self, x: Array, theta: Array) -> Array:
        """y [R, n] at inputs x [n, k] for natural parameters [R, p]."""
        logs = np.log(x)
        centre = logs.mean(axis=0)
        return self.curve(logs - centre, self.centred(theta, centre, np.ones(len(theta))))[0]

    def gradient(self, x: Array, theta: Array) -> Array:
        """dy/dtheta [R, n, p] at inputs x [n, k] for natural parameters [R, p]."""
        zero, logs = np.zeros(len(self.inputs)), np.log(x)
        inner = self.centred(theta, zero, np.ones(len(theta)))
        slope = self.slope(logs, inner, *self.curve(logs, inner))
        for i in self.scale_inputs():
            slope[..., i] /= theta[:, None, i]
        return slope


def exponent_axis(cells: int) -> Array:
    """Exponents to start from, evenly in ln."""
    return np.geomspace(EXPONENT_BOUNDS[0] * 2, EXPONENT_BOUNDS[1] / 1.25, cells)


def product(*axes: Array) -> Array:
    return np.stack([one.ravel() for one in np.meshgrid(*axes, indexing="ij")], axis=1)
