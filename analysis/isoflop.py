"""The IsoFLOP method: the best setting of a knob at each budget, and the power law of it. No floor, no loss law here.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): runs at a few equal budgets vary one knob (size, tokens); each
budget's minimum is read off a curve through its own runs; a straight line in logarithms joins the minima,
x* = k C^b. It assumes no functional form of the loss, but a wide or off-centre grid biases the parabola (Czech et al.,
arXiv 2603.22339); a minimum at the end of a budget's runs is no optimum and stays out of the law.

    found = isoflop(table, budget="compute", x="params", y="loss")
    found.exponent, found.interval(noise=0.003), found.predict(1e21), found.optima
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.interpolate import Akima1DInterpolator

from analysis.fitting import FitError, interval
from analysis.laws import Array

Method = Literal["akima", "parabola"]
OK, EDGE, NO_VALLEY, TOO_FEW = "ok", "edge", "not a valley", "too few points"
STATUSES = (OK, EDGE, NO_VALLEY, TOO_FEW)
FEWEST_POINTS = {"akima": 5, "parabola": 3}  # Akima's slope at a point looks two points to each side
FEWEST_BUDGETS = 2
SAME_BUDGET = 1e-6
FLAT = 1e-12  # curvature or spread below it, relative to y, is rounding


@dataclass(frozen=True)
class Budget:
    """The runs of one budget, sorted: knob x [n] (not distinct) and metric y [n]."""

    budget: float
    x: Array
    y: Array


@dataclass(frozen=True)
class IsoFlop:
    """Minima by budget and the law x* = coefficient * budget^exponent through those with status `ok`.

    `optima` has a row a budget: budget, x, y (the minimum; an `edge` has the end of its data, else NaN), points
    (distinct x) and status, one of STATUSES. With fewer than two `ok` budgets exponent and coefficient are NaN.
    """

    optima: pd.DataFrame
    exponent: float
    coefficient: float
    method: Method
    budgets: tuple[Budget, ...] = field(repr=False)

    def predict(self, budget: float | Array) -> Array:
        """The best x at budgets [G] (unit of the budget's column): [G]. Raises FitError without a law."""
        self._require_law()
        return np.asarray(self.coefficient * np.asarray(budget, dtype=float) ** self.exponent, dtype=np.float64)

    def exponents(self, noise: float, draws: int = 1000, seed: int = 0) -> Array:
        """Exponents [draws] of the law when every y is multiplied by new log-normal noise.

        `noise` is the relative spread of y from run to run (0.003 is 0.3 %). Each draw chooses anew which budgets have
        a minimum inside their data; one with fewer than two of them is NaN. Raises FitError for a bad noise or draws.
        """
        if not (np.isfinite(noise) and noise > 0):
            raise FitError(f"noise of y is {noise}; give its relative spread between runs, such as 0.013")
        if draws < 2:
            raise FitError(f"{draws} draws give no interval; ask for 1000")
        self._require_law()
        rng = np.random.default_rng(seed)
        log_x = np.full((draws, len(self.budgets)), np.nan)
        for g, one in enumerate(self.budgets):
            noisy = one.y * np.exp(noise * rng.standard_normal((draws, len(one.y))))
            best, _, status = _minima(one.x, noisy, self.method)
            log_x[:, g] = np.where(status == OK, best, np.nan)
        return _line(np.log([one.budget for one in self.budgets]), log_x)[0]

    def interval(self, noise: float, level: float = 0.95, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of `exponents`, draws without one left out. It knows nothing of a grid's bias.

        Raises FitError as `exponents` does.
        """
        found = self.exponents(noise, draws, seed)
        return interval(found[np.isfinite(found)], level)

    def _require_law(self) -> None:
        if not np.isfinite(self.exponent):
            good = int((self.optima["status"] == OK).sum())
            raise FitError(
                f"{good} of {len(self.optima)} budgets have a minimum inside their data, a law needs {FEWEST_BUDGETS}; "
                "widen the x of the budgets marked edge"
            )


def isoflop(table: pd.DataFrame, budget: str, x: str, y: str, method: Method = "akima") -> IsoFlop:
    """Minimum of column `y` over column `x` at each value of column `budget`, and the law of the minima.

    Budgets equal within 1e-6 are one. `akima` interpolates ln y in ln x through all points and takes the lowest value
    (Porian et al. 2024, arXiv 2406.19146); runs that share an x are averaged in ln y first. `parabola` is the least
    squares quadratic of y in log10 x over all runs and its vertex. All three columns must be finite and positive.

    Raises FitError: an unknown method, a missing column, no rows, or a value that is no positive number.
    """
    if method not in get_args(Method):
        raise FitError(f"method {method!r} is none of {', '.join(get_args(Method))}")
    values = {name: _positive(table, name) for name in (budget, x, y)}
    budgets = _budgets(values[budget], values[x], values[y])
    rows = []
    for one in budgets:
        log_x, value, status = _minima(one.x, one.y[None], method)
        distinct = len(np.unique(_rounded(one.x)))
        rows.append((one.budget, float(np.exp(log_x[0])), float(value[0]), distinct, str(status[0])))
    optima = pd.DataFrame(rows, columns=["budget", "x", "y", "points", "status"])
    kept = np.where(optima["status"] == OK, np.log(optima["x"]), np.nan)
    slope, intercept = _line(np.log(optima["budget"].to_numpy()), kept[None])
    return IsoFlop(optima, float(slope[0]), float(np.exp(intercept[0])), method, tuple(budgets))


def _positive(table: pd.DataFrame, name: str) -> Array:
    if name not in table.columns:
        raise FitError(f"column {name!r} is not in the table; it has {', '.join(map(str, table.columns))}")
    if not len(table):
        raise FitError(f"the table has no rows; nothing to find the best {name} of")
    values = np.asarray(pd.to_numeric(table[name], errors="coerce"), dtype=np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"{name} of row {row} is {table[name].iloc[row]}, not a positive number; leave out the rows without one"
        )
    return values


def _rounded(x: Array) -> Array:
    return np.asarray(np.round(np.log(x), 9), dtype=np.float64)


def _budgets(budget: Array, x: Array, y: Array) -> list[Budget]:
    """Runs by budget, smallest first; within one, by x."""
    order = np.lexsort((x, budget))
    starts = np.flatnonzero(np.diff(budget[order]) > SAME_BUDGET * budget[order][:-1]) + 1
    found = []
    for rows in np.split(order, starts):
        rows = rows[np.argsort(x[rows], kind="stable")]
        found.append(Budget(float(np.median(budget[rows])), x[rows], y[rows]))
    return found


def _line(log_budget: Array, log_x: Array) -> tuple[Array, Array]:
    """Slope and intercept [R] of the least squares lines through the known of log_x [R, G]; NaN under two budgets."""
    known = np.isfinite(log_x)
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (known @ log_budget) / count
        away = np.where(known, log_budget - centre[:, None], 0.0)
        values = np.where(known, log_x, 0.0)
        slope = np.sum(away * values, axis=1) / np.sum(away**2, axis=1)
        intercept = values.sum(axis=1) / count - slope * centre
    enough = count >= FEWEST_BUDGETS
    return np.where(enough, slope, np.nan), np.where(enough, intercept, np.nan)


# --------------------------------------------------------------------------------- one budget's minimum


def _minima(x: Array, y: Array, method: Method) -> tuple[Array, Array, np.ndarray]:
    """Minima over x [n] of R rows of values y [R, n]: ln x [R], y [R] and status [R]."""
    levels, index = np.unique(_rounded(x), return_inverse=True)
    if len(levels) < FEWEST_POINTS[method]:
        nothing = np.full(len(y), np.nan)
        return nothing, nothing, np.full(len(y), TOO_FEW)
    return _akima(levels, index, y) if method == "akima" else _parabola(np.log(x), y)


def _akima(levels: Array, index: np.ndarray, y: Array) -> tuple[Array, Array, np.ndarray]:
    """Exact minima of Akima's cubics: the lowest of the knots and of the zeros of every piece's derivative."""
    share = np.zeros((y.shape[1], len(levels)))
    share[np.arange(len(index)), index] = 1 / np.bincount(index)[index]
    log_y = np.log(y) @ share
    c = Akima1DInterpolator(levels, log_y.T).c  # [4, pieces, R], highest power first
    width = np.diff(levels)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(c[1] ** 2 - 3 * c[0] * c[2])
        # the minimum is the zero where the derivative rises; of its two forms the one without cancellation
        t = np.where(c[1] > 0, -c[2] / (c[1] + root), (root - c[1]) / (3 * c[0]))
        inside = (t > 0) & (t < width)
        low = np.where(inside, ((c[0] * t + c[1]) * t + c[2]) * t + c[3], np.inf)
    piece = np.argmin(low, axis=0)
    row = np.arange(len(y))
    between, at_knot = low[piece, row], log_y.min(axis=1)
    knot = np.argmin(log_y, axis=1)
    at = np.where(between < at_knot, levels[piece] + t[piece, row], levels[knot])
    # the published rule: a minimum between the end and its neighbour counts, though its end slope is extrapolated
    status = np.where((between >= at_knot) & ((knot == 0) | (knot == len(levels) - 1)), EDGE, OK)
    flat = np.ptp(log_y, axis=1) <= FLAT
    at, value = np.where(flat, np.nan, at), np.where(flat, np.nan, np.exp(np.minimum(between, at_knot)))
    return at, value, np.where(flat, NO_VALLEY, status)


def _parabola(log_x: Array, y: Array) -> tuple[Array, Array, np.ndarray]:
    """Vertices of the least squares quadratics; a vertex outside the data is an edge, moved to the data's end."""
    decades = log_x / np.log(10)
    centre = decades.mean()
    u = decades - centre
    constant, slope, bend = np.linalg.lstsq(np.stack([np.ones_like(u), u, u * u], axis=1), y.T, rcond=None)[0]
    valley = bend * np.ptp(u) ** 2 > FLAT * np.abs(y).max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        vertex = np.where(valley, -slope / (2 * bend), np.nan)
    at = np.clip(vertex, u.min(), u.max())
    value = constant + (slope + bend * at) * at
    status = np.where(~valley, NO_VALLEY, np.where((vertex <= u.min()) | (vertex >= u.max()), EDGE, OK))
    return (at + centre) * np.log(10), value, status
