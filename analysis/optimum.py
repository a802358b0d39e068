"""Which arm is best at which compute: envelopes of fitted laws, their order, and where it changes. No fitting here.

The envelope of y = E + A N^-a + B D^-b at compute C is its minimum over N with D = C / (k(N) N), where k(N) is the
arm's own exact FLOPs per parameter and token, interpolated in ln N. Everything is done for the point estimate and for
all draws at once: row 0 of every array is the point, rows 1.. are draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

from analysis.fitting import Draws, Fit, interval
from analysis.laws import Array
from analysis.problem import Solution, stack

BEYOND_SIZES = 4.0  # the best N is sought up to this factor outside the trained sizes
SIZES = 101  # values of N in the table that an envelope is read from
GRID = 101  # computes at which the leader is looked for


@dataclass(frozen=True)
class Arm:
    """A fitted arm: its law and draws, its FLOPs per parameter and token at the trained sizes, its compute range.

    `tokens` is T; `lengths` and `sizes` are trained images and N, (low, high) each.
    """

    name: str
    solution: Solution
    log_sizes: Array
    log_flops: Array
    compute: tuple[float, float]
    lengths: tuple[float, float]
    tokens: float
    noise: float

    @property
    def point(self) -> Arm:
        """The arm without its draws."""
        return replace(self, solution=self.solution.take(np.arange(1)))

    @cached_property
    def best_at(self) -> tuple[Array, Array, Array]:
        """ln N = u [S], ln(k N) there [S], and ln of the compute at which each N is the best [R, S], rising along S."""
        u = np.linspace(self.log_sizes[0] - np.log(BEYOND_SIZES), self.log_sizes[-1] + np.log(BEYOND_SIZES), SIZES)
        spent, slope = _cost(self, u)
        s = self.solution
        alpha, beta = s.exponents[:, 0, None], s.exponents[:, 1, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_a, log_b = np.log(s.amplitudes[:, 0, None]), np.log(s.amplitudes[:, 1, None])
            balance = np.log(beta) + log_b + np.log(slope) - np.log(alpha) - log_a + alpha * u
        # a vanished term sends the compute to an end of the range
        found = np.clip(np.nan_to_num(spent + balance / beta, nan=0.0), -1e3, 1e3)
        return u, spent, np.maximum.accumulate(found, axis=1)

    @property
    def sizes(self) -> tuple[float, float]:
        return float(np.exp(self.log_sizes[0])), float(np.exp(self.log_sizes[-1]))


def fitted_arm(
    name: str, fit: Fit, draws: Draws, compute: Array, images: Array, tokens: float, solution: Solution | None = None
) -> Arm:
    """An arm from its fit over inputs (N, D); `compute` and `images` [n] belong to the fit's points.

    `solution` replaces point and draws (a refit under another floor).
    """
    log_n = np.log(fit.x[:, 0])
    log_k = np.log(compute) - log_n - np.log(fit.x[:, 1])
    sizes = np.asarray(np.unique(np.round(log_n, 9)), dtype=np.float64)
    flops = np.array([float(log_k[np.abs(log_n - size) < 1e-6].mean()) for size in sizes], dtype=float)
    both = solution or stack([fit.solution, draws.solution])
    return Arm(
        name,
        both,
        sizes,
        flops,
        (float(compute.min()), float(compute.max())),
        (float(images.min()), float(images.max())),
        tokens,
        fit.residual,
    )


@dataclass(frozen=True)
class Envelope:
    """The best of a law at given compute: ln y, ln N and ln D, each [R, G] over log_compute [G]."""

    log_compute: Array
    log_value: Array
    log_params: Array
    log_tokens: Array


def envelope(arm: Arm, compute: Array) -> Envelope:
    """Minimise the arm's law over N at each of `compute` [G] (FLOPs).

    At the minimum a A N^-a = b B D^-b (1 + dlnk/dlnN), from C = k N D. For a given N that equation yields the C whose
    best N it is, so the whole envelope follows from one table over ln N, without iteration.
    """
    log_c = np.log(np.asarray(compute, dtype=float))
    u, spent, of_n = arm.best_at
    s = arm.solution
    log_n = _rows_interp(log_c, of_n, u)
    log_d = log_c - np.interp(log_n, u, spent)
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(s.amplitudes[:, 0, None]), np.log(s.amplitudes[:, 1, None])
    alpha, beta = s.exponents[:, 0, None], s.exponents[:, 1, None]
    value = s.floor[:, None] + np.exp(log_a - alpha * log_n) + np.exp(log_b - beta * log_d)
    return Envelope(log_c, np.log(value), log_n, log_d)


def _rows_interp(at: Array, xs: Array, y: Array) -> Array:
    """np.interp of `at` [G] in every row of rising `xs` [R, S] with values `y` [S]: [R, G], in one call.

    Rows are laid end to end, each shifted beyond the one before.
    """
    shift = (float(xs.max() - xs.min()) + 1.0) * np.arange(len(xs))[:, None]
    queries = np.clip(at[None], xs[:, :1], xs[:, -1:]) + shift
    found = np.interp(queries.ravel(), (xs + shift).ravel(), np.tile(y, len(xs))).reshape(queries.shape)
    return np.where(at < xs[:, :1], y[0], np.where(at > xs[:, -1:], y[-1], found))


def _cost(arm: Arm, u: Array) -> tuple[Array, Array]:
    """ln(k N) at ln N = u and its derivative: monotone cubic through the sizes, straight beyond them."""
    inside = np.clip(u, arm.log_sizes[0], arm.log_sizes[-1])
    curve = PchipInterpolator(arm.log_sizes, arm.log_flops)
    bend = curve(inside, 1)
    return u + curve(inside) + bend * (u - inside), np.maximum(1.0 + bend, 0.05)


# ------------------------------------------------------------------------------------------ decisions


@dataclass(frozen=True)
class Recommendation:
    """The best arm at one compute, what to train there, and which arms are no worse within noise.

    `value` has interval [low, high]; `probability` is the share of draws in which the arm is best; `lead` is the gap to
    the next arm. `not_worse` lists (arm, value) whose difference from the best has a 95% interval that reaches 0.
    `images_outside` and `params_outside` say that the recommendation leaves what was trained.
    """

    compute: float
    best: str
    value: float
    low: float
    high: float
    probability: float
    params: float
    tokens: float
    images: float
    params_outside: bool
    images_outside: bool
    not_worse: tuple[tuple[str, float], ...]
    lead: float | None


def shared_range(arms: list[Arm]) -> tuple[float, float] | None:
    """Compute that every arm's runs cover, or None."""
    low, high = max(arm.compute[0] for arm in arms), min(arm.compute[1] for arm in arms)
    return (low, high) if low < high else None


def round_computes(low: float, high: float, wanted: int = 3) -> list[float]:
    """Round computes within [low, high]: decades, or 1-3 or 1-2-5 steps where there are fewer than `wanted`."""
    found: list[float] = []
    for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        found = [float(f"{m}e{e}") for e in exponents for m in mantissas if low <= float(f"{m}e{e}") <= high]
        if len(found) >= wanted:
            break
    return found or [float(np.sqrt(low * high))]


def recommend(arms: list[Arm], computes: list[float]) -> list[Recommendation]:
    """The best arm at each compute."""
    curves = [envelope(arm, np.array(computes)) for arm in arms]
    values = np.stack([curve.log_value for curve in curves])  # [arms, R, G]
    found = []
    for g, compute in enumerate(computes):
        order = np.argsort(values[:, 0, g])
        best = int(order[0])
        arm, curve = arms[best], curves[best]
        low, high = interval(values[best, 1:, g])
        equal = [i for i in order[1:] if interval(values[i, 1:, g] - values[best, 1:, g])[0] <= 0]
        params, tokens = float(np.exp(curve.log_params[0, g])), float(np.exp(curve.log_tokens[0, g]))
        images = tokens / arm.tokens
        point = np.exp(values[:, 0, g])
        found.append(
            Recommendation(
                compute=compute,
                best=arm.name,
                value=float(point[best]),
                low=float(np.exp(low)),
                high=float(np.exp(high)),
                probability=float(np.mean(np.argmin(values[:, 1:, g], axis=0) == best)),
                params=params,
                tokens=tokens,
                images=images,
                params_outside=not _within(params, arm.sizes),
                images_outside=not _within(images, arm.lengths),
                not_worse=tuple((arms[i].name, float(point[i])) for i in equal),
                lead=float(point[order[1]] - point[best]) if len(arms) > 1 else None,
            )
        )
    return found


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] * (1 - 1e-6) <= value <= limits[1] * (1 + 1e-6)


@dataclass(frozen=True)
class Change:
    """Where the best arm changes: at `compute`, with an interval whose end is None where it lies outside the data.

    `absent` is the share of draws in which the two envelopes do not cross within the data in this order.
    """

    before: str
    after: str
    compute: float
    low: float | None
    high: float | None
    absent: float

    @property
    def bracketed(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Leaders:
    """Over `compute` [G] within the data: best arm of the point estimate and the share of draws that agree."""

    compute: Array
    best: tuple[str, ...]
    probability: Array
    changes: tuple[Change, ...]


def leaders(arms: list[Arm], low: float, high: float) -> Leaders:
    """The best arm all along [low, high] FLOPs, and every change of it."""
    compute = np.geomspace(low, high, GRID)
    values = np.stack([envelope(arm, compute).log_value for arm in arms])
    best = np.argmin(values[:, 0], axis=0)
    agree = np.mean(np.argmin(values[:, 1:], axis=0) == best, axis=0)
    changes = []
    for g in np.flatnonzero(np.diff(best)):
        before, after = int(best[g]), int(best[g + 1])
        changes.append(_change(arms, before, after, np.log(compute), values[before] - values[after], int(g)))
    return Leaders(compute, tuple(arms[i].name for i in best), agree, tuple(changes))


def _change(arms: list[Arm], before: int, after: int, log_c: Array, gap: Array, near: int) -> Change:
    """The crossing of two envelopes; `gap` [R, G] is ln y before minus after, which rises through 0 there."""
    rises = (gap[:, :-1] < 0) & (gap[:, 1:] >= 0)
    step = np.where(rises, -gap[:, :-1] / np.where(rises, gap[:, 1:] - gap[:, :-1], 1.0), 0.0)
    at = log_c[:-1] + step * (log_c[1] - log_c[0])
    point = float(at[0, near])
    distance = np.where(rises, np.abs(at - point), np.inf)
    nearest = np.argmin(distance, axis=1)
    crossing = at[np.arange(len(gap)), nearest]
    # without a crossing, the arm that leads where the point estimate crosses tells on which side it lies
    absent = ~np.any(rises, axis=1)
    crossing = np.where(absent, np.where(gap[:, near] >= 0, -np.inf, np.inf), crossing)
    low, high = interval(crossing[1:])
    return Change(
        arms[before].name,
        arms[after].name,
        float(np.exp(point)),
        float(np.exp(low)) if np.isfinite(low) else None,
        float(np.exp(high)) if np.isfinite(high) else None,
        float(np.mean(absent[1:])),
    )
