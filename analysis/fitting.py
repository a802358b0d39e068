"""Fits one law to one table and says how well each parameter is known. Which arm is better is `analysis.optimum`'s.

    fit = fit_law(table, law="chinchilla", x=["N", "D"], y="loss", objective="huber", delta=1e-3)
    fit.params["alpha"], fit.interval("alpha"), fit.predict(table), fit.bootstrap(1000)

Formulas and reference numbers: docs/fitting.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import fdtri

from analysis.asked import form_of, loss_of, weights_of
from analysis.form import EXPONENT_BOUNDS, Array, Law
from analysis.inputs import FitError, check_scales, column, input_array, positive, refuse_duplicates
from analysis.problem import Cells, Loss, Problem, Solution
from analysis.profile import Quantity, profile
from analysis.resampling import CASES_ENOUGH, Noise, case_weights, estimate_noise, noise_values, wild_values
from analysis.solver import solve

__all__ = ["Draws", "Fit", "FitError", "fit_law", "fit_pinned", "interval"]

POINT_CELLS, POINT_STARTS, POINT_TOLERANCE = 48, 8, 1e-10
DRAW_CELLS = 16
WELL_FIXED = 300  # points from which a resample's optimum lies near the fit's, so that it needs no grid of its own
SCHEMES = ("auto", "case", "wild", "noise")
KNOWN_DOF = 1e9  # degrees of freedom of a noise that was measured elsewhere


@dataclass(frozen=True)
class Draws:
    """Refits of R resamples, the scheme that drew them, and the noise it used (None for cases)."""

    solution: Solution
    scheme: str
    noise: Noise | None = None


@dataclass
class Fit:
    """A fitted law. `x` [n, k] and `y` [n] are the points, `clusters` [n] their resampling clusters.

    `known_noise`: `weight` is 1/variance of each residual, and intervals take it as known. `prior` is (E0, relative
    standard deviation) where the floor was drawn towards E0. `selection` is the table of forms that `auto` weighed.
    """

    law: Law
    columns: tuple[str, ...]
    target: str
    x: Array
    y: Array
    weight: Array
    clusters: np.ndarray
    loss: Loss
    solution: Solution
    known_noise: bool = False
    pinned: float | None = None
    prior: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    selection: pd.DataFrame | None = None
    _draws: dict[tuple[int, int, str], Draws] = field(default_factory=dict, repr=False)

    # --------------------------------------------------------------------------------------- the point

    @property
    def params(self) -> dict[str, float]:
        """Fitted parameters by name, and what is derived from them (`exponent` = ab/(a+b) of two inputs)."""
        return {name: float(values[0]) for name, values in self.solution.named().items()}

    @property
    def objective(self) -> str:
        """What was minimised, in words."""
        said = self.loss.described()
        said += ", weighted by measured noise" if self.known_noise else ""
        return (
            said
            + (f", floor held at {self.pinned:g}" if self.pinned is not None else "")
            + (f", floor drawn to {self.prior[0]:g} +- {self.prior[1]:.0%}" if self.prior is not None else "")
        )

    @property
    def objective_value(self) -> float:
        return float(self.solution.objective[0])

    @property
    def fitted(self) -> Array:
        """The law at its own points [n]."""
        return self.law.value(self.x, self.solution.theta)[0]

    @property
    def residuals(self) -> Array:
        """ln y - ln f, [n]."""
        return np.log(self.y / self.fitted)

    @property
    def dof(self) -> int:
        """Points less fitted parameters."""
        return len(self.y) - len(self.law.parameters) + (self.pinned is not None)

    @property
    def residual(self) -> float:
        """Residual standard deviation of ln y on `dof` degrees of freedom (a fraction: 0.01 is 1%), or NaN."""
        return float(np.sqrt(self.residuals @ self.residuals / self.dof)) if self.dof > 0 else float("nan")

    def noise(self) -> Noise:
        """The spread of this fit's residuals, by itself."""
        return estimate_noise([self.residuals], [self.clusters], [len(self.y) - self.dof])[0]

    def predict(self, table: pd.DataFrame) -> Array:
        """The law at a table's rows [n]; columns as given to `fit_law`. Raises FitError where one is missing."""
        return self.law.value(self.law.prepared(input_array(table, self.columns)), self.solution.theta)[0]

    # ------------------------------------------------------------------------------------ uncertainty

    def interval(
        self, name: str, level: float = 0.95, method: str = "auto", resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Interval of a parameter or derived quantity by `profile` likelihood or by `bootstrap` percentiles.

        `auto` takes the profile for least squares with one noise a point, unless a law of two inputs has 30 points for
        a case bootstrap; the bootstrap otherwise. An end may be infinite, or the bound of the search.
        Raises FitError for a name that the law has not.
        """
        self._check_name(name)
        if method not in ("auto", "profile", "bootstrap"):
            raise FitError(f"method {method!r} is none of auto, profile, bootstrap")
        if method == "auto":
            method = "profile" if self.profiled else "bootstrap"
        if method == "bootstrap":
            return interval(self.draws(resamples, seed).solution.named()[name], level)
        return self.profile_interval(self._quantity(name), level)[1:]

    @property
    def profiled(self) -> bool:
        """Whether intervals come from the profile likelihood by default."""
        few = len(self.law.inputs) == 1 or len(self.y) < CASES_ENOUGH
        return self.loss.objective == "ls" and len(np.unique(self.clusters)) == 1 and few

    def value_interval(self, table: pd.DataFrame, level: float = 0.95, new_run: bool = False) -> pd.DataFrame:
        """`value`, `low`, `high` of the law at each row by profile likelihood; `new_run` adds a run's own noise."""
        rows = []
        for x in self.law.prepared(input_array(table, self.columns)):
            point, low, high = np.log(self.profile_interval(Quantity(x=x), level))
            if new_run:
                noise = self._noise_reach(level)
                low, high = point - np.hypot(point - low, noise), point + np.hypot(high - point, noise)
            rows.append(np.exp([point, low, high]))
        return pd.DataFrame(rows, columns=["value", "low", "high"], index=table.index)

    def profile_interval(self, quantity: Quantity, level: float = 0.95) -> tuple[float, float, float]:
        """(value, low, high) of a quantity. Raises FitError without a sum of squares or a degree of freedom."""
        if self.loss.objective != "ls":
            raise FitError(f"a profile needs objective ls, this fit minimised {self.loss.described()}; use bootstrap")
        problem, theta = self.problem()
        rise = self._quantile(level) * self._variance()
        point, low, high = (float(one[0]) for one in profile(problem, theta, quantity, np.array([rise])))
        if quantity.logarithmic(problem):
            with np.errstate(over="ignore"):  # an end may be infinite
                point, low, high = (float(np.exp(one)) for one in (point, low, high))
        return point, low, high

    def problem(self) -> tuple[Problem, Array]:
        """This fit as one problem of the solver, and its optimum in the solver's coordinates [1, p]."""
        held = np.zeros((1, len(self.law.parameters)), dtype=bool)
        held[0, 0] = self.pinned is not None
        problem = Problem.of(self.law, self.x, self.y[None], self.weight[None], self.loss, held, self._prior(1))
        return problem, self.law.centred(self.solution.theta, problem.centre, problem.unit)

    def bootstrap(self, resamples: int = 1000, seed: int = 0, scheme: str = "auto") -> pd.DataFrame:
        """A row a resample, a column a parameter (and derived quantity). See `draws` for `scheme`."""
        return pd.DataFrame(self.draws(resamples, seed, scheme).solution.named())

    def draws(self, resamples: int = 1000, seed: int = 0, scheme: str = "auto", noise: Noise | None = None) -> Draws:
        """Refits of `resamples` draws, a fresh grid each; from 300 points on they start from the fit itself.

        `case` draws rows, whole clusters where there are several. `wild` turns residuals by random signs, one a
        cluster. `noise` draws log-normal noise of the residuals' spread; `noise` may be given where several fits share
        a cluster effect. `auto`: cases from 30 clusters (or 30 rows of one cluster) on, else noise.
        Raises FitError without a degree of freedom to know the noise by.
        """
        if scheme not in SCHEMES:
            raise FitError(f"scheme {scheme!r} is none of {', '.join(SCHEMES)}")
        units = len(np.unique(self.clusters))
        if scheme == "auto":
            plain = (units == 1 and len(self.y) >= CASES_ENOUGH) or units >= CASES_ENOUGH
            scheme = "case" if plain and noise is None else "noise"
        key = (resamples, seed, scheme)
        if key not in self._draws:
            used = (noise or self.noise()) if scheme == "noise" else None
            rng = np.random.default_rng(seed)
            self._draws[key] = Draws(self._refit(resamples, rng, scheme, used), scheme, used)
        return self._draws[key]

    # ------------------------------------------------------------------------------------------ inside

    def _refit(self, resamples: int, rng: np.random.Generator, scheme: str, noise: Noise | None) -> Solution:
        x, y = self.x, np.broadcast_to(self.y, (resamples, len(self.y)))
        weight = self.weight[None]
        if scheme == "case":
            weight = weight * case_weights(rng, self.clusters, resamples)
        elif self.dof < 1 or (noise is not None and noise.run_dof < 1):
            raise FitError(
                f"{len(self.y)} points for {len(self.law.parameters)} parameters of {self.law.name} leave the noise "
                "unknown: no interval; add runs"
            )
        elif scheme == "wild":
            y = wild_values(rng, self.fitted, self.residuals, self.leverage(), self.clusters, resamples)
        else:
            assert noise is not None
            cells = Cells.of(self.x, self.weight) if self.loss == Loss() and not self.known_noise else None
            index = None if cells is None else cells.index
            y = noise_values(rng, self.fitted, self.clusters, noise, resamples, index)
            if cells is not None:
                x, weight = cells.x, cells.weight[None]
        return self._solve(x, np.ascontiguousarray(y), np.ascontiguousarray(np.broadcast_to(weight, y.shape)))

    def _solve(self, x: Array, y: Array, weight: Array) -> Solution:
        rows = len(y)
        well_fixed = len(self.y) >= WELL_FIXED or self.law.costly_grid
        return solve(
            self.law,
            x,
            y,
            weight,
            self.loss,
            floor=None if self.pinned is None else np.full(rows, self.pinned),
            prior=self._prior(rows),
            near=self.solution.theta[0] if well_fixed else None,
            cells=DRAW_CELLS,
            tolerance=1e-3 if well_fixed else 1e-6,  # of what one more step promised, made from a linear one
        )

    def leverage(self) -> Array:
        """Diagonal of the hat matrix of the linearised fit [n], below 1."""
        problem, theta = self.problem()
        slope = self.law.slope(problem.u, theta, *self.law.curve(problem.u, theta))[0]
        slope = slope / self.law.curve(problem.u, theta)[0][0][:, None] * np.sqrt(self.weight)[:, None]
        basis, sizes, _ = np.linalg.svd(slope, full_matrices=False)
        basis = basis[:, sizes > 1e-10 * sizes.max()]
        return np.minimum(np.einsum("np,np->n", basis, basis), 0.999)

    def _variance(self) -> float:
        """Variance of a weighted residual: 1 where the noise is known, else estimated."""
        if self.known_noise:
            return 1.0
        if self.dof < 1:
            raise FitError(
                f"{len(self.y)} points for {len(self.law.parameters)} parameters of {self.law.name} leave the noise "
                "unknown: no interval; add runs"
            )
        return 2 * float(self.solution.objective[0]) / self.dof

    def _quantile(self, level: float) -> float:
        """Of F(1, dof), which is chi-square with one degree of freedom where the noise is known."""
        return float(fdtri(1, KNOWN_DOF if self.known_noise else self.dof, level))

    def _noise_reach(self, level: float) -> float:
        """Half width in ln y within which a new run lies around the law."""
        spread = float(np.sqrt(1 / np.mean(self.weight))) if self.known_noise else self.residual
        return spread * float(np.sqrt(self._quantile(level)))

    def _prior(self, rows: int) -> tuple[Array, Array] | None:
        if self.prior is None:
            return None
        centre, spread = self.prior
        scale = 1.0 if self.known_noise else _noise_scale(self)
        return np.full(rows, centre), np.full(rows, scale / spread**2)

    def _check_name(self, name: str) -> None:
        known = self.params
        if name not in known:
            raise FitError(f"law {self.law.name} has no parameter {name!r}; it has {', '.join(known)}")

    def _quantity(self, name: str) -> Quantity:
        if name == "lambda" and self.law.name == "paper":
            return Quantity(name=name)
        return Quantity(self.law.names.index(name)) if name in self.law.names else Quantity(name=name)


def _noise_scale(fit: Fit) -> float:
    """Residual variance of the fit without its prior: what a prior's strength is measured against."""
    free = solve(fit.law, fit.x, fit.y[None], fit.weight[None], fit.loss, cells=24, starts=2)
    return max(2 * float(free.objective[0]) / max(1, fit.dof), 1e-8)


def fit_law(
    table: pd.DataFrame,
    law: str | Law = "chinchilla",
    x: Sequence[str] | str | None = None,
    y: str = "loss",
    *,
    objective: str = "ls",
    delta: float = 1e-3,
    residual: str = "log",
    noise: float | str | None = None,
    floor: float | None = None,
    prior: tuple[float, float] | None = None,
    cluster: str | None = None,
) -> Fit:
    """Fit `law` (a name of `analysis.laws.LAWS`, `surface`, or `auto`) to the rows of `table`.

    `x` are columns (N, D, C, T, K stand for params, tokens_seen, compute, tokens_per_image, codebook_size where the
    table has no such column; default: the law's inputs), `y` the column predicted. `objective` is ls, huber (with
    `delta`), lad or amae, summed over residuals `log` (ln y - ln f) or `raw` (y - f). `noise` is the known standard
    deviation of a residual, one number or a column; points weigh by 1/noise^2. `floor` holds E there; `prior` = (E0,
    relative standard deviation) draws E towards E0. `cluster` names a column whose values share noise. `auto` chooses
    by AICc among the laws of that many inputs.
    Raises FitError: unknown names, missing columns, values not positive, a run twice, fewer than three distinct values
    of an input, fewer points than parameters.
    """
    names = (x,) if isinstance(x, str) else tuple(x) if x is not None else None
    if law == "auto":
        from analysis.selection import choose

        return choose(table, names, y, objective, delta, residual, noise, floor, prior, cluster)
    form = form_of(law, names, table)
    loss = loss_of(objective, delta, residual)
    names = names or tuple(form.inputs)
    if len(names) != len(form.inputs):
        raise FitError(f"law {form.name} takes {len(form.inputs)} inputs ({', '.join(form.inputs)}), got {len(names)}")
    refuse_duplicates(table)
    inputs, values = form.prepared(input_array(table, names)), positive(table, y)
    warnings = check_scales(inputs, names, len(values), form, y)
    if (floor is not None or prior is not None) and not form.floor:
        raise FitError(f"law {form.name} has no floor to hold or to draw; use power_floor or paper")
    weight = np.ones(len(values)) if noise is None else weights_of(table, noise)
    clusters = np.zeros(len(values), dtype=int) if cluster is None else pd.factorize(column(table, cluster))[0]
    empty = Solution(form, np.empty((0, len(form.parameters))), np.empty(0), np.empty(0, dtype=bool))
    fit = Fit(form, names, y, inputs, values, weight, clusters, loss, empty, noise is not None, floor, prior)
    fit.solution = solve(
        form,
        inputs,
        values[None],
        weight[None],
        loss,
        floor=None if floor is None else np.array([floor]),
        prior=fit._prior(1),
        cells=POINT_CELLS,
        starts=POINT_STARTS if len(values) < WELL_FIXED else 2,
        tolerance=POINT_TOLERANCE,
    )
    fit.warnings = (*warnings, *_at_bounds(fit))
    return fit


def fit_pinned(fit: Fit, floors: Array) -> Solution:
    """The same points refitted with E held at each of `floors` [R], one problem a floor."""
    floors = np.asarray(floors, dtype=float)
    shape = (len(floors), len(fit.y))
    y, weight = np.array(np.broadcast_to(fit.y, shape)), np.array(np.broadcast_to(fit.weight, shape))
    given = None
    if len(fit.y) >= WELL_FIXED:
        given = np.repeat(fit.solution.theta[None], len(floors), axis=0)
        given[:, 0, 0] = floors
    return solve(fit.law, fit.x, y, weight, fit.loss, floor=floors, given=given, cells=24, starts=2, tolerance=1e-7)


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws; infinite draws stay in order, so an end may be infinite."""
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values), [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _at_bounds(fit: Fit) -> tuple[str, ...]:
    """Parameters that ended where the fit may not go further."""
    found = []
    law, theta = fit.law, fit.solution.theta[0]
    if law.floor and theta[0] <= 0 and fit.pinned is None:
        found.append("the floor E is 0: not identified by these points")
    owners = law.owners()
    for j, parameter in enumerate(law.parameters[law.linear :]):
        value, owner = theta[law.linear + j], owners[j]
        if owner is not None and theta[owner] <= 0:
            found.append(f"the term in {_input_of(law, j)} vanished: no dependence on it is visible")
        elif parameter.unit == "1" and (value <= EXPONENT_BOUNDS[0] or value >= EXPONENT_BOUNDS[1]):
            found.append(f"{parameter.name} = {value:.2f} is at the bound of its search")
    if not fit.solution.converged[0]:
        found.append("the fit did not converge")
    return tuple(dict.fromkeys(found))


def _input_of(law: Law, shape: int) -> str:
    return law.inputs[min(shape, len(law.inputs) - 1)]
