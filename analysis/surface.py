"""The joint surface over compute and the tokenizer's knobs, and the optimum along a knob that it implies.

    y = E + R T^-r K^-q M^v + A C^-a T^s K^u M^-w,     M = 1 + lambda / lambda0

The first power is what the tokenizer loses (it falls with tokens and codes, rises with regularisation), the second
what the generator of compute C has not learned yet (the reverse). Along one knob the two balance at an optimum that
moves as a power of compute: for tokens T* = (r R' / (s A'))^(1/(r+s)) C^(a/(r+s)), R' and A' holding the other knobs.
lambda0 is the least weight above 0, so that a weight of 0 has M = 1. Knobs that do not vary are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.form import FLOOR, Array, Law, Parameter, exponent
from analysis.inputs import ALIASES, FitError

KNOBS = ("tokens_per_image", "codebook_size", "crt_weight")
SYMBOLS = {"tokens_per_image": "T", "codebook_size": "K", "crt_weight": "M"}
_NAMES = {"tokens_per_image": ("r", "s"), "codebook_size": ("q", "u"), "crt_weight": ("v", "w")}
STEEPEST = 3.0
CELLS_PER_SIDE = 14  # along each of three exponents
SPREAD_CELLS = 12_000  # over five exponents or more


class Surface(Law):
    """The surface over C and `knobs` (some of KNOBS). `lambda0` is the unit of the CRT weight."""

    linear = 3
    floor = True
    costly_grid = True
    source = "this project: rate-distortion power plus generator power, docs/fitting.md"

    def __init__(self, knobs: tuple[str, ...], lambda0: float = 1.0) -> None:
        unknown = [knob for knob in knobs if knob not in KNOBS]
        if unknown or not knobs or len(set(knobs)) < len(knobs):
            raise FitError(f"a surface takes compute and then some of {', '.join(KNOBS)} (T, K, lambda), got {knobs}")
        self.name, self.knobs, self.lambda0 = "surface", knobs, lambda0
        self.inputs = ("C", *knobs)
        lost = "".join(f" {SYMBOLS[k]}^{'' if k == 'crt_weight' else '-'}{_NAMES[k][0]}" for k in knobs)
        hard = "".join(f" {SYMBOLS[k]}^{'-' if k == 'crt_weight' else ''}{_NAMES[k][1]}" for k in knobs)
        self.formula = f"y = E + R{lost} + A C^-a{hard}"
        self.parameters = (
            FLOOR,
            Parameter("R", "y", "what the tokenizer loses, at knobs of 1"),
            Parameter("A", "y", "what the generator has not learned, at compute and knobs of 1"),
            exponent("a", "C"),
            *(Parameter(_NAMES[k][0], "1", f"exponent of {SYMBOLS[k]} in the tokenizer's loss") for k in knobs),
            *(Parameter(_NAMES[k][1], "1", f"exponent of {SYMBOLS[k]} in the generator's difficulty") for k in knobs),
        )
        # +1 where a larger knob loses less and is harder to learn, -1 for regularisation
        self._sign = np.array([-1.0 if knob == "crt_weight" else 1.0 for knob in knobs])

    def prepared(self, x: Array) -> Array:
        found = x.copy()
        for j, knob in enumerate(self.knobs):
            if knob == "crt_weight":
                found[:, 1 + j] = 1 + x[:, 1 + j] / self.lambda0
        return found

    def _split(self, shape: Array) -> tuple[Array, Array, Array]:
        """(a [S, 1], signed loss exponents [S, j], signed difficulty exponents [S, j])."""
        count = len(self.knobs)
        return shape[:, :1], shape[:, 1 : 1 + count] * self._sign, shape[:, 1 + count :] * self._sign

    def columns(self, u: Array, shape: Array) -> Array:
        a, lost, hard = self._split(shape)
        found = np.empty((len(shape), len(u), 3))
        found[..., 0] = 1.0
        np.exp(-lost @ u[:, 1:].T, out=found[..., 1])
        np.exp(hard @ u[:, 1:].T - a * u[None, :, 0], out=found[..., 2])
        return found

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        lost, hard = theta[:, 1:2] * columns[..., 1], theta[:, 2:3] * columns[..., 2]
        knobs = u[None, :, 1:] * self._sign
        return np.concatenate(
            [-(hard * u[None, :, 0])[..., None], -lost[..., None] * knobs, hard[..., None] * knobs], axis=2
        )

    def grid(self, u: Array, cells: int) -> Array:
        count = len(self.parameters) - 3
        if count == 3:
            axis = np.geomspace(0.05, 2.0, min(cells, CELLS_PER_SIDE))
            return np.stack([one.ravel() for one in np.meshgrid(axis, axis, axis, indexing="ij")], axis=1)
        points = _spread(SPREAD_CELLS, count)
        return np.exp(np.log(0.04) + points * np.log(2.0 / 0.04))

    def shape_bounds(self, u: Array) -> tuple[Array, Array]:
        count = len(self.parameters) - 3
        low = np.full(count, -STEEPEST)
        low[0] = 0.02
        return low, np.full(count, STEEPEST)

    def amplitude_shift(self) -> Array:
        count = len(self.knobs)
        shift = np.zeros((3, 1 + 2 * count, 1 + count))
        shift[2, 0, 0] = 1.0
        for j in range(count):
            shift[1, 1 + j, 1 + j] = self._sign[j]
            shift[2, 1 + count + j, 1 + j] = -self._sign[j]
        return shift

    def owners(self) -> tuple[int | None, ...]:
        return (2, *(1,) * len(self.knobs), *(2,) * len(self.knobs))

    def derived(self, theta: Array) -> dict[str, Array]:
        """`move_T` and so on: the best T moves as compute^move_T; NaN without an interior optimum."""
        none = dict.fromkeys(self.knobs, 1.0)
        return {f"move_{SYMBOLS[k]}": best_knob(self, theta, k, np.ones(1), none).exponent for k in self.knobs}


def _spread(count: int, dimensions: int) -> Array:
    """Points in [0, 1)^d by Roberts' additive recurrence (the generalised golden ratio), even and without chance."""
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    return np.mod(0.5 + np.arange(1, count + 1)[:, None] / ratio ** np.arange(1, dimensions + 1), 1.0)


def surface_of(names: tuple[str, ...], weights: Array | None) -> Surface:
    """The surface over columns `names`, compute first; `weights` are the table's CRT weights. Raises FitError."""
    knobs = tuple(ALIASES.get(name, name) for name in names[1:])
    positive = weights[weights > 0] if weights is not None else np.empty(0)
    return Surface(knobs, float(positive.min()) if len(positive) else 1.0)


@dataclass(frozen=True)
class KnobOptimum:
    """The best value of one knob over compute [G], for R rows of parameters: `value` [R, G], `exponent` [R] of compute.

    NaN where the two powers do not balance (an exponent has the wrong sign): the knob has no interior optimum.
    """

    knob: str
    value: Array
    exponent: Array


def best_knob(law: Surface, theta: Array, knob: str, compute: Array, others: dict[str, float]) -> KnobOptimum:
    """Where dy/d ln knob = 0 at each `compute` [G], for natural parameters theta [R, p]; `others` holds other knobs."""
    j = law.knobs.index(knob)
    count = len(law.knobs)
    sign = law._sign[j]
    a, lost, hard = law._split(theta[:, 3:])
    u = np.array([np.log(law.prepared(np.array([[1.0, *(others.get(k, 1.0) for k in law.knobs)]]))[0, 1:])])[0]
    rest = [k for k in range(count) if k != j]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_lost = np.log(theta[:, 1]) - lost[:, rest] @ u[rest]
        log_hard = np.log(theta[:, 2]) + hard[:, rest] @ u[rest]
        p, q = lost[:, j] * sign, hard[:, j] * sign
        total = p + q
        log_best = (np.log(p) + log_lost - np.log(q) - log_hard)[:, None] + a * np.log(compute)[None]
        value = np.exp(sign * log_best / total[:, None])
        slope = sign * a[:, 0] / total
    none = ~((p > 0) & (q > 0) & (theta[:, 1] > 0) & (theta[:, 2] > 0))
    value[none], slope[none] = np.nan, np.nan
    if knob == "crt_weight":
        value = np.maximum(0.0, (value - 1) * law.lambda0)
    return KnobOptimum(knob, value, slope)
