"""Two fitted curves against each other: are they one curve shifted along ln x, by how much, and where do they meet.

B(C) = A(kappa C) with shared floor and exponents; kappa is the multiplier, above 1 where the second needs less of x for
the same value. Which arm is best at which compute is `analysis.optimum`'s, multipliers on envelopes that share no shape
are `analysis.multipliers`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.special import chdtrc, fdtrc

from analysis.fitting import POINT_CELLS, POINT_STARTS, POINT_TOLERANCE, Fit, interval
from analysis.form import FLOOR, TINY, Array, Law, amplitude, exponent, exponent_axis, product
from analysis.inputs import FitError
from analysis.laws import PowerSum, envelope_exponent
from analysis.problem import Solution
from analysis.profile import Quantity
from analysis.solver import solve

AGREES = 0.05  # shapes of one origin are called different this often
MARKS = (float(np.exp(-1)), float(np.e))  # what the input `group` holds for the first curve's points and the second's
SHAPE_CELLS = 7  # along each exponent, where two inputs rule the grid of the projection out


class Pair(Law):
    """y = E + A_g x^-alpha, or y = E + A_g N^-alpha + B_g D^-beta, with g the curve: 0 the first, 1 the second.

    The last input is `group`, one of MARKS. `ln_kappa`, derived, is sum_j ln(c_j0 / c_j1) / exponent_j: the shift in
    ln x, or of the compute envelope in ln(N D), along which both curves are one. On that envelope
    y - E = c (A^(1/alpha) B^(1/beta) / (N D))^(alpha beta / (alpha + beta)), Hoffmann et al. 2022, eq. 4.
    """

    source = "shared exponents with a factor a variant: arXiv 2602.07712; compute multiplier as in docs/fitting.md"

    def __init__(self, inputs: tuple[str, ...] = ("x",), floor: bool = True) -> None:
        self.name, self.floor, self.inputs = "pair", floor, (*inputs, "group")
        self.linear = int(floor) + 2 * len(inputs)
        letters, exponents = ("A", "B")[: len(inputs)], ("alpha", "beta")[: len(inputs)]
        self.formula = f"y = {'E + ' * floor}" + " + ".join(
            f"{letter}_g {of}^-{power}" for letter, of, power in zip(letters, inputs, exponents, strict=True)
        )
        self.parameters = (
            *((FLOOR,) if floor else ()),
            *(amplitude(f"{letter}{g}", of) for letter, of in zip(letters, inputs, strict=True) for g in (0, 1)),
            *(exponent(power, of) for power, of in zip(exponents, inputs, strict=True)),
        )

    def columns(self, u: Array, shape: Array) -> Array:
        found = np.zeros((len(shape), len(u), self.linear))
        found[..., : int(self.floor)] = 1.0
        second = u[:, -1] > 0
        for j in range(len(self.inputs) - 1):
            power, at = np.exp(-shape[:, j, None] * u[None, :, j]), int(self.floor) + 2 * j
            found[..., at], found[..., at + 1] = np.where(second, 0.0, power), np.where(second, power, 0.0)
        return found

    def shape_slope(self, u: Array, theta: Array, columns: Array) -> Array:
        first = int(self.floor)
        terms = columns[..., first:] * theta[:, None, first : self.linear]
        return -(terms[..., 0::2] + terms[..., 1::2]) * u[None, :, :-1]

    def grid(self, u: Array, cells: int) -> Array:
        return product(*[exponent_axis(cells)] * (len(self.inputs) - 1))

    def amplitude_shift(self) -> Array:
        count = len(self.inputs) - 1
        shift = np.zeros((self.linear, count, count + 1))
        for j in range(count):
            shift[int(self.floor) + 2 * j : int(self.floor) + 2 * j + 2, j, j] = 1.0
        return shift

    def derived(self, theta: Array) -> dict[str, Array]:
        logs = np.log(np.maximum(theta[:, int(self.floor) : self.linear], TINY))
        shape = theta[:, self.linear :]
        found = {"ln_kappa": np.sum((logs[:, 0::2] - logs[:, 1::2]) / shape, axis=1)}
        return found if shape.shape[1] == 1 else found | {"exponent": envelope_exponent(shape[:, 0], shape[:, 1])}

    def value(self, x: Array, theta: Array) -> Array:
        logs = np.log(x)
        centre = logs.mean(axis=0)
        centre[-1] = 0.0  # points of one curve alone must still show which
        return self.curve(logs - centre, self.centred(theta, centre, np.ones(len(theta))))[0]


def join(first: Array, second: Array) -> Array:
    """Inputs [n1, k] and [n2, k] of two curves as those of `Pair`, [n1 + n2, k + 1]."""
    marks = np.repeat(MARKS, [len(first), len(second)])
    return np.column_stack([np.concatenate([first, second]), marks])


@dataclass(frozen=True)
class SharedShape:
    """Two curves fitted with one floor and one set of exponents, against two free ones.

    `statistic` is F(`extra`, `dof`), or chi-square(`extra`) where the noise is known (`dof` None). `log_kappa` and its
    profile-likelihood interval at `level` are of the second over the first, where `agree`; else the ends are NaN.
    """

    fit: Fit
    statistic: float
    extra: int
    dof: int | None
    p_value: float
    level: float
    log_kappa: float
    log_low: float
    log_high: float

    @property
    def agree(self) -> bool:
        """Whether one shape is not rejected; with few points a true difference of exponents passes, too."""
        return self.p_value >= AGREES

    @property
    def kappa(self) -> tuple[float, float, float]:
        """The multiplier and its interval: how much less of x (or compute) the second needs; above 1 it needs less."""
        with np.errstate(over="ignore"):
            value, low, high = np.exp([self.log_kappa, self.log_low, self.log_high])
        return float(value), float(low), float(high)


def shared_shape(first: Fit, second: Fit, level: float = 0.95, log_cost_ratio: float = 0.0) -> SharedShape:
    """Test one shape for two fits of power, power_floor, paper (one input) or chinchilla (two), and measure the shift.

    `log_cost_ratio` is ln(k_first / k_second), k the FLOPs per parameter and token: with two inputs it turns a ratio
    of N D into one of compute. Points keep their weights; noise that is not known is taken as one for both.
    Raises FitError: laws or objectives that differ or have no shared form, clusters, too few points.
    """
    _refuse(first, second)
    law = Pair(first.law.inputs, first.law.floor)
    extra = len(first.law.parameters) * 2 - len(law.parameters)
    fit = _fit_pair(law, first, second)
    separate = first.objective_value + second.objective_value
    dof = None if first.known_noise else first.dof + second.dof
    if dof is not None and dof < 1:
        raise FitError(
            f"{len(fit.y)} points for twice {len(first.law.parameters)} parameters leave nothing to judge by; add runs"
        )
    statistic, p_value = shape_test(2 * fit.objective_value, 2 * separate, extra, dof)
    point = fit.params["ln_kappa"]
    low = high = float("nan")  # of shapes that differ no one shift is to be known
    if p_value >= AGREES:
        point, low, high = fit.profile_interval(Quantity(name="ln_kappa"), level)
    ends = (point + log_cost_ratio, low + log_cost_ratio, high + log_cost_ratio)
    return SharedShape(fit, float(statistic), extra, dof, float(p_value), level, *ends)


def shape_test(shared: Array | float, separate: Array | float, extra: int, dof: int | None) -> tuple[Array, Array]:
    """(statistic, p) from weighted sums of squares: F(extra, dof), or chi-square(extra) for a known noise, dof None.

    `dof` are the points less the parameters of the separate fits (Bates & Watts 1988, section 3.10). Arrays broadcast.
    """
    rise = np.maximum(np.asarray(shared, dtype=float) - separate, 0.0)
    if dof is None:
        return rise, np.asarray(chdtrc(extra, rise))
    statistic = rise / extra / np.maximum(np.asarray(separate, dtype=float) / dof, TINY)
    return statistic, np.asarray(fdtrc(extra, dof, statistic))


def _refuse(first: Fit, second: Fit) -> None:
    if not isinstance(first.law, PowerSum) or first.law is not second.law:
        raise FitError(
            f"a shared shape takes power, power_floor, paper or chinchilla for both curves, not {first.law.name}"
            + (f" and {second.law.name}" if second.law.name != first.law.name else "")
        )
    if first.loss != second.loss or first.loss.objective != "ls" or first.known_noise != second.known_noise:
        raise FitError("a shared shape needs both curves fitted by least squares of one residual, noise known or not")
    if any(one.pinned is not None or one.prior is not None for one in (first, second)):
        raise FitError("a shared shape needs floors that are free: one is held or drawn")
    if any(len(np.unique(one.clusters)) > 1 for one in (first, second)):
        raise FitError("runs that share a tokenizer seed are not independent: the F test does not hold; compare draws")


def _fit_pair(law: Pair, first: Fit, second: Fit) -> Fit:
    x, y = join(first.x, second.x), np.concatenate([first.y, second.y])
    weight = np.concatenate([first.weight, second.weight])
    given = None if len(law.inputs) == 2 else _starts(law, first, second, x, y, weight)
    solution = solve(
        law,
        x,
        y[None],
        weight[None],
        first.loss,
        given=given,
        cells=POINT_CELLS,
        starts=POINT_STARTS,
        tolerance=POINT_TOLERANCE,
    )
    columns, clusters = (*first.columns, "group"), np.zeros(len(y), dtype=int)
    return Fit(law, columns, first.target, x, y, weight, clusters, first.loss, solution, first.known_noise)


def _starts(law: Pair, first: Fit, second: Fit, x: Array, y: Array, weight: Array) -> Array:
    """The best POINT_STARTS shapes, natural [1, starts, p]: those of the separate fits, between them, and a grid.

    Five linear coefficients are more than the projection solves in a batch: non-negative least squares, one by one.
    """
    own = np.concatenate([first.solution.exponents, second.solution.exponents])
    shapes = np.concatenate([own, np.sqrt(own[:1] * own[1:]), own[:, ::-1], law.grid(x, SHAPE_CELLS)])
    logs = np.log(x)
    centre = logs.mean(axis=0)
    scale = np.sqrt(weight) / (y if first.loss.residual == "log" else 1.0)
    found = []
    for shape, columns in zip(shapes, law.columns(logs - centre, shapes), strict=True):
        coefficients, left = nnls(columns * scale[:, None], y * scale)
        coefficients[1:] = np.maximum(coefficients[1:], 1e-3 * y.min())
        found.append((left, np.r_[coefficients, shape]))
    best = np.stack([theta for _, theta in sorted(found, key=lambda one: one[0])[:POINT_STARTS]])
    return law.natural(best, centre, np.ones(len(best)))[None]


# ------------------------------------------------------------------------- curves as rows: the point, then draws


@dataclass(frozen=True)
class Crossing:
    """Where two curves meet: `after` is the curve (0 first, 1 second) that is lower beyond `x`.

    `low`, `high`: interval of draws, None where it leaves the range looked at. `absent`: the share of draws without
    such a crossing there. All three are None without draws.
    """

    x: float
    value: float
    after: int
    low: float | None = None
    high: float | None = None
    absent: float | None = None

    @property
    def bracketed(self) -> bool:
        return self.low is not None and self.high is not None


def log_curve(solution: Solution, log_x: Array) -> Array:
    """ln y [R, G] of R solutions of a law of one input at `log_x` [G]."""
    return np.log(solution.law.value(np.exp(log_x)[:, None], solution.theta))


def crossings(log_x: Array, first: Array, second: Array, level: float = 0.95) -> list[Crossing]:
    """Every crossing of two curves ln y [R, G] along `log_x` [G]; row 0 is the point, the other rows are draws.

    Each draw counts with its nearest crossing of the same direction; where it has none, the curve that leads where
    the point crosses tells on which side it lies.
    """
    gap = first - second
    leads: np.ndarray = np.asarray(gap < 0)  # the first does
    found = []
    for g in np.flatnonzero(np.logical_xor(leads[0, :-1], leads[0, 1:])):
        rising = bool(leads[0, g])
        signed, before = (gap, leads) if rising else (-gap, ~leads)
        turns = before[:, :-1] & ~before[:, 1:]
        step = np.where(turns, -signed[:, :-1] / np.where(turns, signed[:, 1:] - signed[:, :-1], 1.0), 0.0)
        at = log_x[:-1] + step * np.diff(log_x)
        point = float(at[0, g])
        value = float(np.exp(np.interp(point, log_x, first[0])))
        ends: tuple[float | None, float | None, float | None] = (None, None, None)
        if len(gap) > 1:
            nearest = np.argmin(np.where(turns, np.abs(at - point), np.inf), axis=1)
            crossing = at[np.arange(len(gap)), nearest]
            absent = ~turns.any(axis=1)
            crossing = np.where(absent, np.where(before[:, g], np.inf, -np.inf), crossing)
            low, high = interval(crossing[1:], level)
            ends = (_within(low), _within(high), float(np.mean(absent[1:])))
        found.append(Crossing(float(np.exp(point)), value, int(rising), *ends))
    return found


def _within(end: float) -> float | None:
    return float(np.exp(end)) if np.isfinite(end) else None


def crossing_of_segments(first: pd.DataFrame, second: pd.DataFrame, x: str, y: str) -> list[Crossing]:
    """Crossings of the straight lines that join measured points in ln x and ln y (repeats at one x averaged in ln y).

    For ladders too short for a law: no form, no interval, nothing beyond the points. Raises FitError where the two
    ranges of `x` do not overlap, or one has a single value.
    """
    lines = []
    for rows in (first, second):
        logs = np.log(rows[[x, y]].to_numpy(dtype=float))
        at, index = np.unique(logs[:, 0], return_inverse=True)
        lines.append((at, np.bincount(index, weights=logs[:, 1]) / np.bincount(index)))
    low, high = max(line[0][0] for line in lines), min(line[0][-1] for line in lines)
    if min(len(line[0]) for line in lines) < 2 or not low < high:
        raise FitError(f"no segments to cross: each curve needs two values of {x}, and their ranges an overlap")
    marks = np.unique(np.concatenate([line[0] for line in lines]))
    marks = marks[(marks >= low) & (marks <= high)]
    values = [np.interp(marks, *line)[None] for line in lines]
    return crossings(marks, values[0], values[1])


def reaches(log_x: Array, log_value: Array, target: float) -> Array:
    """ln of the least x at which each falling curve [R, G] over `log_x` [G] comes down to `target`: [R].

    -inf where it lies below `target` all along, inf where it never gets there.
    """
    goal = np.log(target)
    falling = -np.minimum.accumulate(log_value, axis=1)
    found = np.array([np.interp(-goal, row, log_x) for row in falling])
    found[falling[:, -1] < -goal] = np.inf
    found[falling[:, 0] > -goal] = -np.inf
    return found


def multiplier_draws(first: Array, second: Array) -> Array:
    """x_first / x_second [R] from `reaches` of both; 1 where neither is reached: neither is known better."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.nan_to_num(np.exp(first - second), nan=1.0, posinf=np.inf)
