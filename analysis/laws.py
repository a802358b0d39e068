"""The functional forms that are fitted: formula, parameters with units, value, gradient, source. No fitting here.

What every form offers is `analysis.form.Law`'s; the joint surface over tokenizers is `analysis.surface`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from analysis.form import (
    EXPONENT_BOUNDS,
    FLOOR,
    TINY,
    Array,
    Law,
    Parameter,
    amplitude,
    exponent,
    exponent_axis,
    product,
)

__all__ = ["CANDIDATES", "CHINCHILLA", "LAWS", "PAPER", "PLAIN_POWER", "POWER", "Array", "Law"]


class PowerSum(Law):
    """y = E + sum_j c_j x_j^-a_j, one term an input, with or without E."""

    def __init__(
        self,
        name: str,
        formula: str,
        source: str,
        inputs: tuple[str, ...],
        amplitudes: tuple[str, ...],
        exponents: tuple[str, ...],
        floor: str | None = "E",
    ) -> None:
        self.name, self.formula, self.source, self.inputs = name, formula, source, inputs
        self.floor, self.linear = floor is not None, len(inputs) + (floor is not None)
        self.parameters = (
            *(() if floor is None else (Parameter(floor, "y", FLOOR.meaning),)),
            *(amplitude(one, of) for one, of in zip(amplitudes, inputs, strict=True)),
            *(exponent(one, of) for one, of in zip(exponents, inputs, strict=True)),
        )

    def columns(self, u: Array, shape: Array) -> Array:
        first = int(self.floor)
        found = np.empty((len(shape), len(u), self.linear))
        found[..., :first] = 1.0
        np.exp(-shape[:, None, :] * u[None], out=found[..., first:])
        return found

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        first = int(self.floor)
        return -columns[..., first:] * u[None] * theta[:, None, first : self.linear]

    def grid(self, u: Array, cells: int) -> Array:
        axis = exponent_axis(cells)
        return np.stack([one.ravel() for one in np.meshgrid(*[axis] * len(self.inputs), indexing="ij")], axis=1)

    def axes(self, u: Array, cells: int) -> tuple[Array, Array] | None:
        if len(self.inputs) != 2 or not self.floor:
            return None
        exponents = exponent_axis(cells)[:, None]
        return np.exp(-exponents * u[None, :, 0]), np.exp(-exponents * u[None, :, 1])

    def amplitude_shift(self) -> Array:
        count = len(self.inputs)
        shift = np.zeros((self.linear, count, count))
        for j in range(count):
            shift[int(self.floor) + j, j, j] = 1.0
        return shift

    def owners(self) -> tuple[int | None, ...]:
        return tuple(int(self.floor) + j for j in range(len(self.inputs)))

    def derived(self, theta: Array) -> dict[str, Array]:
        if len(self.inputs) != 2:
            return {}
        return {"exponent": envelope_exponent(theta[:, -2], theta[:, -1])}


class _OneTerm(Law):
    """y = E + A g(x; s), one input: what shifted, M4 and broken share."""

    inputs = ("x",)
    linear = 2
    floor = True

    def _log_term(self, u: Array, shape: Array) -> Array:
        """ln g [S, n]."""
        raise NotImplementedError  # pragma: no cover - abstract

    def columns(self, u: Array, shape: Array) -> Array:
        term = np.exp(self._log_term(u[:, 0], shape))
        return np.stack([np.ones_like(term), term], axis=2)

    def owners(self) -> tuple[int | None, ...]:
        return (1,) * (len(self.parameters) - 2)


class Shifted(_OneTerm):
    """y = E + A (x + s)^-alpha: a power law that bends at x = s."""

    name = "shifted"
    formula = "y = E + A (x + s)^-alpha"
    source = "M3 without its upper limit, Alabdulmohsin et al. 2022, arXiv 2209.06640"
    parameters = (FLOOR, amplitude("A"), exponent("alpha"), Parameter("s", "x", "shift of x", scale=True))

    def _log_term(self, u: Array, shape: Array) -> Array:
        return -shape[:, :1] * np.logaddexp(u[None], shape[:, 1:])

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        total = np.logaddexp(u[None, :, 0], theta[:, 3:])
        part = theta[:, 1:2] * columns[..., 1]
        return np.stack([-part * total, -part * theta[:, 2:3] * np.exp(theta[:, 3:] - total)], axis=2)

    def grid(self, u: Array, cells: int) -> Array:
        return product(exponent_axis(cells), np.linspace(u.min() - 4, u.max(), 9))

    def shape_bounds(self, u: Array) -> tuple[Array, Array]:
        # below e^-8 of the least x a shift cannot be seen
        return np.array([EXPONENT_BOUNDS[0], u.min() - 8]), np.array([EXPONENT_BOUNDS[1], u.max() + 1])

    def amplitude_shift(self) -> Array:
        shift = np.zeros((2, 2, 1))
        shift[1, 0, 0] = 1.0
        return shift


class Sigmoid(_OneTerm):
    """y = E + A / (1 + (x/s)^alpha): from E + A at x = 0 down to E, a power law far beyond x = s."""

    name = "m4"
    formula = "y = E + A / (1 + (x/s)^alpha)"
    source = "M4 with its exponent of the upper limit at 1, Alabdulmohsin et al. 2022, arXiv 2209.06640"
    parameters = (
        FLOOR,
        Parameter("A", "y", "range: the value at x = 0 less E"),
        exponent("alpha"),
        Parameter("s", "x", "x at which half the range is left", scale=True),
    )

    def _log_term(self, u: Array, shape: Array) -> Array:
        return -np.logaddexp(0.0, shape[:, :1] * (u[None] - shape[:, 1:]))

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        bend = theta[:, 1:2] * columns[..., 1] * (1 - columns[..., 1])
        return np.stack([-bend * (u[None, :, 0] - theta[:, 3:]), bend * theta[:, 2:3]], axis=2)

    def grid(self, u: Array, cells: int) -> Array:
        return product(exponent_axis(cells), np.linspace(u.min() - 4, u.max(), 9))

    def shape_bounds(self, u: Array) -> tuple[Array, Array]:
        return np.array([EXPONENT_BOUNDS[0], u.min() - 8]), np.array([EXPONENT_BOUNDS[1], u.max() + 1])

    def amplitude_shift(self) -> Array:
        return np.zeros((2, 2, 1))


class Broken(_OneTerm):
    """One break: y = E + A x^-a1 (1 + (x/s)^(1/f))^-((a2 - a1) f); slope a1 before s, a2 after, f its width in ln x."""

    name = "broken"
    formula = "y = E + A x^-a1 (1 + (x/s)^(1/f))^((a1 - a2) f)"
    source = "BNSL with one break, Caballero et al. 2022, arXiv 2210.14891"
    parameters = (
        FLOOR,
        amplitude("A"),
        exponent("a1"),
        Parameter("a2", "1", "exponent of x beyond the break"),
        Parameter("s", "x", "where it breaks", scale=True),
        Parameter("f", "1", "width of the break in ln x"),
    )

    def _parts(self, u: Array, shape: Array) -> tuple[Array, Array]:
        v = (u[None] - shape[:, 2:3]) / shape[:, 3:]
        return v, np.logaddexp(0.0, v)

    def _log_term(self, u: Array, shape: Array) -> Array:
        _, soft = self._parts(u, shape)
        return -shape[:, :1] * u[None] - (shape[:, 1:2] - shape[:, :1]) * shape[:, 3:] * soft

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        shape = theta[:, 2:]
        v, soft = self._parts(u[:, 0], shape)
        width, turn = shape[:, 3:], shape[:, 1:2] - shape[:, :1]
        side = np.exp(v - soft)
        part = theta[:, 1:2] * columns[..., 1]
        logs = (-u[None, :, 0] + width * soft, -width * soft, turn * side, -turn * (soft - v * side))
        return np.stack([part * one for one in logs], axis=2)

    def grid(self, u: Array, cells: int) -> Array:
        axis = exponent_axis(max(6, cells // 4))
        return product(axis, axis, np.linspace(u.min(), u.max(), 9)[1:-1], np.array([0.1, 0.5]))

    def shape_bounds(self, u: Array) -> tuple[Array, Array]:
        low, high = EXPONENT_BOUNDS
        return np.array([low, low, u.min(), 0.05]), np.array([high, high, u.max(), 2.0])

    def amplitude_shift(self) -> Array:
        shift = np.zeros((2, 4, 1))
        shift[1, 0, 0] = 1.0
        return shift


class Kaplan(Law):
    """y = [(A N^-alpha)^(1/beta) + (B D^-beta)^(1/beta)]^beta, no floor.

    With Nc = A^(1/alpha) and Dc = B^(1/beta) it is [(Nc/N)^(alpha/beta) + Dc/D]^beta, eq. 1.5 of the source.
    """

    name = "kaplan"
    formula = "y = [(A N^-alpha)^(1/beta) + (B D^-beta)^(1/beta)]^beta"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5"
    inputs = ("N", "D")
    parameters = (amplitude("A", "N"), amplitude("B", "D"), exponent("alpha", "N"), exponent("beta", "D"))
    linear = 2
    floor = False

    def _logs(self, u: Array, theta: Array) -> tuple[Array, Array, Array, Array]:
        beta = theta[:, 3:]
        with np.errstate(divide="ignore"):
            log_a, log_b = np.log(theta[:, :1]), np.log(theta[:, 1:2])
        of_n, of_d = (log_a - theta[:, 2:3] * u[None, :, 0]) / beta, log_b / beta - u[None, :, 1]
        total = np.logaddexp(of_n, of_d)
        return of_n, log_b, total, np.exp(of_n - total)

    def columns(self, u: Array, shape: Array) -> Array:
        alpha, beta = shape[:, :1], shape[:, 1:]
        of_n = np.exp(-alpha / beta * u[None, :, 0])
        return np.stack([of_n, np.broadcast_to(np.exp(-u[None, :, 1]), of_n.shape)], axis=2)

    def curve(self, u: Array, theta: Array) -> tuple[Array, Array]:
        fitted = np.exp(theta[:, 3:] * self._logs(u, theta)[2])
        return np.maximum(fitted, TINY), np.empty((len(theta), len(u), 0))

    def slope(self, u: Array, theta: Array, fitted: Array, columns: Array) -> Array:
        of_n, log_b, total, share = self._logs(u, theta)
        rest, beta = 1 - share, theta[:, 3:]
        floor = np.maximum(theta[:, :2], TINY)
        of_beta = total - share * np.where(share > 0, of_n, 0.0) - rest * np.where(rest > 0, log_b, 0.0) / beta
        parts = (share / floor[:, :1], rest / floor[:, 1:], -share * u[None, :, 0], of_beta)
        return np.stack([fitted * one for one in parts], axis=2)

    def from_coefficients(self, coefficients: Array, shape: Array) -> Array:
        return np.concatenate([np.maximum(coefficients, TINY) ** shape[..., 1:], shape], axis=-1)

    def links(self, shape: Array) -> Iterator[tuple[np.ndarray, float]]:
        for beta in np.unique(shape[:, 1]):
            yield np.flatnonzero(shape[:, 1] == beta), float(beta)

    def grid(self, u: Array, cells: int) -> Array:
        axis = exponent_axis(min(cells, 24))
        return product(axis, axis)

    def amplitude_shift(self) -> Array:
        shift = np.zeros((2, 2, 2))
        shift[0, 0, 0] = shift[1, 1, 1] = 1.0
        return shift

    def owners(self) -> tuple[int | None, ...]:
        return 0, 1

    def bounds(self, u: Array) -> tuple[Array, Array]:
        low, high = super().bounds(u)
        low[:2] = 1e-9  # at 0 its logarithm, and so every step from there, is infinite
        return low, high


HENIGHAN = "Henighan et al. 2020, arXiv 2010.14701"
PLAIN_POWER = PowerSum(
    "power", "y = A x^-alpha", "Hestness et al. 2017, arXiv 1712.00409", ("x",), ("A",), ("alpha",), None
)
POWER = PowerSum("power_floor", "y = E + A x^-alpha", HENIGHAN, ("x",), ("A",), ("alpha",))
CHINCHILLA = PowerSum(
    "chinchilla",
    "y = E + A N^-alpha + B D^-beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
    ("N", "D"),
    ("A", "B"),
    ("alpha", "beta"),
)


class Paper(PowerSum):
    """y = Lmin + C^-alpha e^lambda, the frontier law of arXiv 2412.16326 (its C is compute_paper, its sign of alpha -).

    `POWER` with Lmin = E and A = e^lambda, kept apart so that printed coefficients can be held against a fit.
    """

    def __init__(self) -> None:
        formula, source = "y = Lmin + C^-alpha e^lambda", "Ramanujan et al. 2024, arXiv 2412.16326, section 3.3"
        super().__init__("paper", formula, source, ("C",), ("A",), ("alpha",), "Lmin")

    def derived(self, theta: Array) -> dict[str, Array]:
        with np.errstate(divide="ignore"):
            return {"lambda": np.log(theta[:, 1])}


PAPER = Paper()
LAWS: dict[str, Law] = {
    law.name: law for law in (PLAIN_POWER, POWER, Shifted(), Sigmoid(), Broken(), CHINCHILLA, Kaplan(), PAPER)
}
CANDIDATES: Mapping[int, tuple[str, ...]] = {
    1: ("power", "power_floor", "shifted", "m4", "broken"),
    2: ("chinchilla", "kaplan"),
}  # what `auto` chooses from, by the number of inputs


def envelope_exponent(alpha: Array | float, beta: Array | float) -> Array:
    """ab/(a+b): how fast y - E falls with compute where N and D are chosen best and compute is proportional to N D.

    Hoffmann et al. 2022, eq. 4: the optimum has N ~ C^(b/(a+b)), so A N^-a ~ C^(-ab/(a+b)), and B D^-b likewise.
    """
    a, b = np.asarray(alpha, dtype=float), np.asarray(beta, dtype=float)
    return a * b / np.maximum(a + b, np.finfo(float).tiny)


def paper_frontier(compute: Array | float, alpha: float, scale: float, floor: float) -> Array:
    """gFID = Lmin + C^-alpha e^scale: the frontier curves of arXiv 2412.16326, Figures 4 to 7 (C is compute_paper)."""
    return floor + np.exp(scale - alpha * np.log(np.asarray(compute, dtype=float)))
