"""The best setting of one knob at one budget, and how well it is known. No table here, no law of the metric.

A parabola of ln y in ln x (y a metric such as FID, x a knob: tokens T, codes K, weight lambda) is fitted by weighted
least squares. Its interval is the generalised Fieller set, the x at which the slope does not differ from zero, which
may be unbounded where delta and bootstrap intervals pretend otherwise. A polynomial has the shape of a valley only near
its bottom: more seeds of a wide design make a biased parabola confidently wrong, so the lack-of-fit test comes first,
and the levels not worse than the best, which assume no shape, are reported beside it.

    found = valley(x=[128, 181, 256, 362, 512], log_y=np.log(fid), noise=0.013)
    found.best, found.low, found.high, found.reason, found.near
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import block_diag, solve_triangular
from scipy.optimize import brentq
from scipy.special import chdtrc, fdtrc, ndtri, stdtrit

from analysis.fitting import FitError, interval
from analysis.laws import Array

MARGIN = 0.013  # median relative spread of FID from training to training (Dufour et al., arXiv 2606.20536)
LACK = 0.05  # a lack-of-fit p-value below it withholds the interval
FLAT = 1e-12  # curvature of ln y over the data that is rounding
SCAN = 200
Whiten = Callable[[Array], Array]


@dataclass(frozen=True)
class Regret:
    """ln y lost at `level` (of x) against the fitted minimum within the data, and its one-sided upper bound `high`.

    The bound is the largest over x of difference plus margin, so it holds wherever the minimum lies, given the shape.
    """

    level: float
    value: float
    high: float


@dataclass(frozen=True)
class ZeroTest:
    """ln y at a knob of 0 less that of the fitted minimum, its two-sided interval, whether 0 is beaten (low > 0)."""

    gap: float
    low: float
    high: float
    beaten: bool


@dataclass(frozen=True)
class Valley:
    """What the points say of the best x.

    `best` is the vertex (x), None without one inside the data. [`low`, `high`] is the Fieller set around it; an end is
    None where the set is unbounded or leaves the data, or where the lowest mean is at that end of the levels.
    `bracketed` says that both ends exist, else `reason` why not. `lack_of_fit` is the p-value of the shape, None where
    it cannot be tested. `noise` is the standard deviation of ln y of a point where estimated, on `dof` degrees.

    `levels` [k] are the distinct x, ascending (0 first where given), `means` [k] their mean ln y. `near` are the levels
    that no other beats significantly: they hold the truly best with probability `level` (Bonferroni over the
    comparisons). `near_practical` adds those whose mean is within `margin` (ln y) of the best.

    `freer` is a cubic's vertex (x) beside a parabola, None with under 4 levels or outside the data. The test of shape
    has little power: a `freer` outside [low, high] says that the shape moves the optimum more than the noise does.

    `regret_nearest` is of the level nearest the vertex, `regret_best` of the level with the lowest mean above 0: None
    without a vertex inside the data or with lack of fit; so is `zero`, which also needs runs at 0.
    """

    best: float | None
    low: float | None
    high: float | None
    bracketed: bool
    reason: str
    lack_of_fit: float | None
    freer: float | None
    noise: float | None
    dof: float
    level: float
    margin: float
    levels: Array
    means: Array
    best_level: float
    near: tuple[float, ...]
    near_practical: tuple[float, ...]
    regret_nearest: Regret | None
    regret_best: Regret | None
    zero: ZeroTest | None
    coefficients: Array = field(repr=False)  # of powers 0.. of ln x - centre
    centre: float = field(repr=False)

    def curve(self, x: Array) -> Array:
        """The fitted ln y at x [m] > 0: [m]."""
        return np.asarray(_powers(np.log(x) - self.centre, len(self.coefficients)) @ self.coefficients)


def valley(
    x: Array,
    log_y: Array,
    noise: float | Array | None = None,
    *,
    degree: int = 2,
    level: float = 0.95,
    margin: float = MARGIN,
    zero: tuple[float, float] | None = None,
) -> Valley:
    """Fit a polynomial of `degree` 2 or 3 to ln y [n] over ln x [n]: its minimum, and what is as good.

    `noise` is the known standard deviation of ln y of a point (number or [n]) or its covariance [n, n]; None estimates
    one from the residuals, and intervals become Student's. Lack of fit compares the level means with the curve: by
    chi-square under a known noise, by F against the spread of repeats otherwise. If it rejects (p < .05) the residuals
    are no noise: the repeats then give the noise of `near`.

    `zero` is (mean ln y, its standard deviation) of the runs at a knob of 0, which has no place on a logarithmic axis.

    Raises FitError: fewer distinct x than degree + 1, values not finite, x not above 0, a noise of the wrong shape or
    not positive, or no noise given and no degree of freedom to estimate it by.
    """
    log_x, y, white = _checked(x, log_y, noise, degree, 1)
    if not 0 < level < 1:
        raise FitError(f"level is {level}; give a probability such as 0.95")
    if zero is not None and not (np.isfinite(zero[0]) and np.isfinite(zero[1]) and zero[1] > 0):
        raise FitError(f"zero is {zero}; give the mean ln y at 0 and its standard deviation, above 0")
    centre = float(log_x.mean())
    z = log_x - centre
    at, first, index = np.unique(np.round(z, 9), return_index=True, return_inverse=True)
    real = np.asarray(x, dtype=np.float64)[first]
    count, levels, parameters = len(z), len(at), degree + 1
    curve, curve_cov, misfit = _least_squares(white(_powers(z, parameters)), white(y))
    means, means_cov, pure = _least_squares(white(np.eye(levels)[index]), white(y))
    lack = _lack_of_fit(misfit, pure, count, levels, parameters, known=noise is not None)
    rejected = lack is not None and lack < LACK
    dof, variance = np.inf, 1.0
    if noise is None:
        dof = count - levels if rejected else count - parameters
        if dof < 1:
            raise FitError(f"{count} points for {parameters} parameters leave the noise unknown; give it or add a seed")
        variance = (pure if rejected else misfit) / dof
    fit = _Fit(curve, curve_cov * variance, float(dof), level, float(z.min()), float(z.max()))
    vertex = float(_vertices(curve[None], fit.end - fit.start)[0])
    inside = fit.start < vertex < fit.end
    lowest = int(np.argmin(means))
    told = inside and not rejected
    low, high = _fieller(fit, vertex) if told else (None, None)
    low, high = None if lowest == 0 else low, None if lowest == levels - 1 else high
    best, ends = _to_x(vertex if inside else None, centre), (_to_x(low, centre), _to_x(high, centre))
    found, spread = real, means_cov * variance
    if zero is not None:
        found, means, spread = np.r_[0.0, real], np.r_[zero[0], means], block_diag(zero[1] ** 2, spread)
    worse = _beaten(means, spread, level, fit.dof)
    practical = ~worse | (means - means.min() <= margin)
    nearest = int(np.argmin(np.abs(at - vertex))) if inside else lowest
    return Valley(
        best=best,
        low=ends[0],
        high=ends[1],
        bracketed=None not in ends,
        reason=_reason(vertex, fit, real, lack if rejected else None, lowest, ends),
        lack_of_fit=lack,
        freer=_to_x(_freer(z, y, white, levels, degree), centre),
        noise=float(np.sqrt(variance)) if noise is None else None,
        dof=fit.dof,
        level=level,
        margin=margin,
        levels=found,
        means=means,
        best_level=float(found[np.argmin(means)]),
        near=tuple(found[~worse].tolist()),
        near_practical=tuple(found[practical].tolist()),
        regret_nearest=_regret(fit, vertex, real, at, nearest) if told else None,
        regret_best=_regret(fit, vertex, real, at, lowest) if told else None,
        zero=_zero(fit, vertex, zero) if told and zero is not None else None,
        coefficients=curve,
        centre=centre,
    )


def valley_batch(x: Array, log_y: Array, noise: float | Array | None = None, *, degree: int = 2) -> Array:
    """ln of the vertices [R] of R rows of ln y [R, n] over the same x [n]; `noise` as in `valley`, as weights only.

    NaN without a minimum (curvature <= 0), -inf or +inf where it lies below or above the data. Raises FitError as
    `valley` does, but a noise of None needs no degree of freedom.
    """
    log_x, y, white = _checked(x, log_y, noise, degree, 2)
    centre = float(log_x.mean())
    z = log_x - centre
    coefficients = np.linalg.lstsq(white(_powers(z, degree + 1)), white(y.T), rcond=None)[0].T
    vertices = _vertices(coefficients, float(np.ptp(z)))
    with np.errstate(invalid="ignore"):
        vertices = np.where(vertices <= z.min(), -np.inf, np.where(vertices >= z.max(), np.inf, vertices))
    return np.asarray(vertices + centre, dtype=np.float64)


@dataclass(frozen=True)
class Movement:
    """The exponent b of x* = k C^b, its interval, and the share of draws left out; a large one makes it too narrow."""

    exponent: float
    low: float
    high: float
    lost: float


def moves_with(log_compute: Array, log_vertices: Array, level: float = 0.95) -> Movement:
    """How the best x moves with compute: the least squares slope of ln x* [R, G] over ln C [G].

    Row 0 is the point, rows 1.. are draws, as `valley_batch` gives for each budget; a draw with a vertex not finite at
    any budget is left out. Raises FitError: fewer than two different budgets, a point without all its vertices, no
    draw left, or shapes that do not agree.
    """
    c, v = np.asarray(log_compute, dtype=float), np.atleast_2d(np.asarray(log_vertices, dtype=float))
    if c.ndim != 1 or v.shape[1:] != c.shape or len(v) < 2:
        raise FitError(f"vertices are {v.shape} for {c.shape} budgets; give [1 + draws, budgets] with a draw or more")
    if not np.isfinite(c).all() or np.ptp(c) <= 0:
        raise FitError("fewer than two different budgets: how the optimum moves with compute is unknown; add a budget")
    missing = np.flatnonzero(~np.isfinite(v[0]))
    if len(missing):
        raise FitError(f"budget {missing[0]} has no minimum inside its data; leave it out or widen its levels")
    whole = np.isfinite(v[1:]).all(axis=1)
    if not whole.any():
        raise FitError(f"none of {len(whole)} draws has a minimum inside the data at every budget; widen the levels")
    away = c - c.mean()
    slopes = np.r_[v[:1], v[1:][whole]] @ away / (away @ away)
    return Movement(float(slopes[0]), *interval(slopes[1:], level), lost=float(1 - whole.mean()))


# ------------------------------------------------------------------------------------------ least squares


def _checked(
    x: Array, log_y: Array, noise: float | Array | None, degree: int, axes: int
) -> tuple[Array, Array, Whiten]:
    """ln x [n], ln y [..., n] and the whitening of the noise, or FitError."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(log_y, dtype=np.float64)
    if degree not in (2, 3):
        raise FitError(f"degree is {degree}; give 2, or 3 where a parabola does not fit")
    if x.ndim != 1 or y.ndim != axes or y.shape[-1:] != x.shape or not y.size:
        raise FitError(f"x is {x.shape} and ln y {y.shape}; give {'n and n' if axes == 1 else 'n and [R, n]'} values")
    bad = ~(np.isfinite(x) & (x > 0) & np.isfinite(y).reshape(-1, len(x)).all(axis=0))
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise FitError(f"point {where}, x = {x[where]}, is not usable; x must be above 0 and every ln y finite")
    distinct = len(np.unique(np.round(np.log(x), 9)))
    if distinct <= degree:
        raise FitError(f"{distinct} distinct x cannot show a valley of degree {degree}; add levels up to {degree + 1}")
    return np.log(x), y, _whitening(noise, len(x))


def _whitening(noise: float | Array | None, count: int) -> Whiten:
    """Division of rows [n, ...] by the root of the noise, so that ordinary least squares become the weighted ones."""
    given = np.asarray(1.0 if noise is None else noise, dtype=np.float64)
    if given.shape not in ((), (count,), (count, count)):
        raise FitError(f"noise is {given.shape} for {count} points; give a number, one a point, or a square covariance")
    if given.ndim < 2:
        if not (np.isfinite(given) & (given > 0)).all():
            raise FitError("noise is not above 0 everywhere; give the standard deviation of ln y, such as 0.013")
        return lambda rows: (rows.T / given).T
    if not (np.isfinite(given).all() and np.allclose(given, given.T) and np.linalg.eigvalsh(given)[0] > 0):
        raise FitError("noise is no covariance: it must be symmetric and positive definite")
    root = np.linalg.cholesky(given)
    return lambda rows: np.asarray(solve_triangular(root, rows, lower=True))


def _powers(z: Array | float, parameters: int) -> Array:
    return np.asarray(np.asarray(z, dtype=float)[..., None] ** np.arange(parameters))


def _least_squares(design: Array, y: Array) -> tuple[Array, Array, float]:
    """Coefficients, their covariance under unit noise, and the residual sum of squares (0 where it is rounding)."""
    q, r = np.linalg.qr(design)
    inverse = np.linalg.inv(r)
    coefficients = inverse @ (q.T @ y)
    residual = y - design @ coefficients
    squares = float(residual @ residual)
    return coefficients, inverse @ inverse.T, squares if squares > (1e-13 * np.abs(y).max()) ** 2 * len(y) else 0.0


def _lack_of_fit(misfit: float, pure: float, count: int, levels: int, parameters: int, *, known: bool) -> float | None:
    """p-value of the part of the misfit that repeats do not explain; None where no level is to spare for it."""
    between, within = levels - parameters, count - levels
    if between < 1 or (not known and within < 1):
        return None
    excess = max(0.0, misfit - pure)
    if known:
        return float(chdtrc(between, excess))
    return float(fdtrc(between, within, (excess / between) / (pure / within))) if pure > 0 else float(excess <= 0)


# ------------------------------------------------------------------------------------ the vertex and its set


@dataclass(frozen=True)
class _Fit:
    """Coefficients [p] with covariance and its degrees of freedom, and the range of the centred ln x."""

    curve: Array
    cov: Array
    dof: float
    level: float
    start: float
    end: float

    def spread(self, rows: Array) -> Array:
        """Standard deviation of linear functionals [..., p] of the coefficients."""
        return np.sqrt(np.maximum(0.0, np.einsum("...i,ij,...j->...", rows, self.cov, rows)))


def _quantile(probability: float, dof: float) -> float:
    return float(ndtri(probability) if np.isinf(dof) else stdtrit(dof, probability))


def _vertices(coefficients: np.ndarray, width: float) -> Array:
    """Centred ln x of the minima of polynomials [R, p], NaN where there is none; within the data or not."""
    slope, bend = coefficients[:, 1], coefficients[:, 2]
    third = coefficients[:, 3] if coefficients.shape[1] > 3 else np.zeros_like(slope)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.where(third == 0, bend, np.sqrt(bend**2 - 3 * third * slope))  # half the curvature at the minimum
        at = np.where(bend > 0, -slope / (bend + half), (half - bend) / (3 * third))
        return np.where(half * width**2 > FLAT, at, np.nan)


def _fieller(fit: _Fit, vertex: float) -> tuple[float | None, float | None]:
    """Ends within the data of the set around the vertex where |slope| <= q sd(slope)."""
    q = _quantile((1 + fit.level) / 2, fit.dof)
    parameters = len(fit.curve)
    if parameters == 3 and fit.curve[2] ** 2 <= q**2 * fit.cov[2, 2]:
        return None, None  # the curvature itself may be zero: the set is a whole line, or all but a gap

    power = np.arange(parameters)

    def excess(z: Array | float) -> Array:
        rows = np.asarray(power * np.asarray(z, dtype=float)[..., None] ** np.maximum(power - 1, 0))
        return np.abs(rows @ fit.curve) - q * fit.spread(rows)

    def end(limit: float) -> float | None:
        steps = np.linspace(vertex, limit, SCAN)
        beyond = np.flatnonzero(excess(steps) > 0)
        if not len(beyond):
            return None
        first = int(beyond[0])
        return float(brentq(lambda z: float(excess(z)), steps[first - 1], steps[first])) if first else vertex

    return end(fit.start), end(fit.end)


def _freer(z: Array, y: Array, white: Whiten, levels: int, degree: int) -> float | None:
    if degree != 2 or levels < 4:
        return None
    cubic = np.linalg.lstsq(white(_powers(z, 4)), white(y), rcond=None)[0]
    vertex = float(_vertices(cubic[None], float(np.ptp(z)))[0])
    return vertex if z.min() < vertex < z.max() else None


def _to_x(z: float | None, centre: float) -> float | None:
    return None if z is None else float(np.exp(z + centre))


def _reason(vertex: float, fit: _Fit, x: Array, lack: float | None, lowest: int, ends: tuple[float | None, ...]) -> str:
    """Why there is no bracket, the gravest first, or nothing."""
    past = (f"below {x[0]:g}", f"above {x[-1]:g}")
    if np.isnan(vertex):
        return f"curvature <= 0: no minimum between {x[0]:g} and {x[-1]:g}"
    if not fit.start < vertex < fit.end:
        return f"vertex outside the data: {past[vertex > 0]}"
    if lack is not None:
        shape = "parabola" if len(fit.curve) == 3 else "cubic"
        return f"lack of fit (p = {lack:.2g}): no {shape} from {x[0]:g} to {x[-1]:g}; narrow the range"
    if lowest in (0, len(x) - 1):
        return f"best at an edge: {x[lowest]:g}; add levels beyond it"
    return "" if None not in ends else f"set unbounded: {' and '.join(past[i] for i in (0, 1) if ends[i] is None)}"


def _beaten(means: Array, cov: Array, level: float, dof: float) -> np.ndarray:
    """Levels [k] that some other one beats significantly (one-sided, Bonferroni over the k - 1 others)."""
    variance = np.diag(cov)
    spread = np.sqrt(np.maximum(0.0, variance[:, None] + variance - 2 * cov))
    q = _quantile(1 - (1 - level) / (len(means) - 1), dof)
    return np.asarray(np.any(means[:, None] - means > q * spread + FLAT, axis=1))


def _regret(fit: _Fit, vertex: float, x: Array, z: Array, i: int) -> Regret:
    anywhere = np.r_[vertex, np.linspace(fit.start, fit.end, 2 * SCAN)]
    rows = _powers(z[i], len(fit.curve)) - _powers(anywhere, len(fit.curve))
    lost = rows @ fit.curve
    high = lost + _quantile(fit.level, fit.dof) * fit.spread(rows)
    return Regret(float(x[i]), max(0.0, float(lost.max())), max(0.0, float(high.max())))


def _zero(fit: _Fit, vertex: float, zero: tuple[float, float]) -> ZeroTest:
    # the vertex moves with the fit, but at a minimum that changes its value only to second order
    row = _powers(vertex, len(fit.curve))
    gap = zero[0] - float(row @ fit.curve)
    reach = _quantile((1 + fit.level) / 2, fit.dof) * float(np.hypot(fit.spread(row), zero[1]))
    return ZeroTest(gap, gap - reach, gap + reach, gap > reach)
