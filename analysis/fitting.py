"""Fits one law to one table and says how well each parameter is known. Which arm is better is `analysis.optimum`'s.

    fit = fit_law(table, law="chinchilla", x=["N", "D"], y="loss", objective="huber", delta=1e-3)
    fit.params["alpha"], fit.interval("alpha"), fit.predict(table)

Formulas and reference numbers: docs/fitting.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.laws import LAWS, Array, Law, envelope_exponent
from analysis.resampling import CASES_ENOUGH, Noise, case_weights, estimate_noise, noise_values
from analysis.solver import EXPONENT_BOUNDS, Loss, Solution, jacobian, solve

ALIASES = {"N": "params", "D": "tokens_seen", "C": "compute"}
FEWEST_SCALES = 3
COMFORTABLE_SCALES = 5
COMFORTABLE_DECADES = 1.5
POINT_CELLS, POINT_STARTS, POINT_TOLERANCE = 48, 8, 1e-12
DRAW_CELLS = 16


class FitError(ValueError):
    """A fit that cannot be made or trusted; its message is one line saying what, where and what to do."""


@dataclass(frozen=True)
class Draws:
    """Refits of R resamples, the scheme that drew them, and the noise it used (None for cases)."""

    solution: Solution
    scheme: str
    noise: Noise | None = None


@dataclass
class Fit:
    """A fitted law. `x` [n, k] and `y` [n] are the points, `clusters` [n] their resampling clusters."""

    law: Law
    columns: tuple[str, ...]
    target: str
    x: Array
    y: Array
    weight: Array
    clusters: np.ndarray
    loss: Loss
    solution: Solution
    warnings: tuple[str, ...]
    _draws: dict[tuple[int, int, str], Draws] = field(default_factory=dict, repr=False)

    @property
    def params(self) -> dict[str, float]:
        """Fitted parameters by name, and for two inputs `exponent` = ab/(a+b)."""
        return {name: float(values[0]) for name, values in _named(self.law, self.solution).items()}

    @property
    def objective_value(self) -> float:
        return float(self.solution.objective[0])

    @property
    def fitted(self) -> Array:
        """The law at its own points [n]."""
        return self._evaluate(self.x, self.solution)[0]

    @property
    def residuals(self) -> Array:
        """ln y - ln f, [n]."""
        return np.log(self.y / self.fitted)

    @property
    def free_parameters(self) -> int:
        """Fitted parameters not held at a bound."""
        _, free = jacobian(self.x, self.solution, self.loss)
        return int(free[0].sum()) - (0 if self.law.floor else int(free[0][0]))

    @property
    def dof(self) -> int:
        """Points less the law's parameters."""
        return len(self.y) - len(self.law.parameters)

    @property
    def residual(self) -> float:
        """Residual standard deviation of ln y on `dof` degrees of freedom (a fraction: 0.01 is 1%), or NaN."""
        return float(np.sqrt(self.residuals @ self.residuals / self.dof)) if self.dof > 0 else float("nan")

    def noise(self) -> Noise:
        """The spread of this fit's residuals, by itself."""
        return estimate_noise([self.residuals], [self.clusters], [len(self.law.parameters)])[0]

    def predict(self, table: pd.DataFrame) -> Array:
        """The law at a table's rows [n]; columns as given to `fit_law`. Raises FitError where one is missing."""
        return self._evaluate(_inputs(table, self.columns), self.solution)[0]

    def bootstrap(
        self, resamples: int = 1000, seed: int = 0, scheme: str = "auto", noise: Noise | None = None
    ) -> Draws:
        """Refits of `resamples` draws, a fresh exponent grid each. `scheme` is `case`, `noise`, or `auto`.

        `auto` takes cases from 30 points and one cluster on, else noise around the fit; `noise` may be given where
        several fits share a cluster effect. Raises FitError without a degree of freedom to know the noise by.
        """
        if scheme == "auto":
            plain = len(self.y) >= CASES_ENOUGH and len(np.unique(self.clusters)) == 1 and noise is None
            scheme = "case" if plain else "noise"
        key = (resamples, seed, scheme)
        if key not in self._draws:
            used = (noise or self.noise()) if scheme == "noise" else None
            self._draws[key] = Draws(self._refit(resamples, np.random.default_rng(seed), scheme, used), scheme, used)
        return self._draws[key]

    def interval(self, name: str, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of a parameter (or of `exponent`). Raises FitError for a name that the law has not."""
        values = _named(self.law, self.bootstrap(resamples, seed).solution)
        if name not in values:
            raise FitError(f"law {self.law.name} has no parameter {name!r}; it has {', '.join(values)}")
        return interval(values[name], level)

    def _refit(self, resamples: int, rng: np.random.Generator, scheme: str, noise: Noise | None) -> Solution:
        y, weight = (
            np.broadcast_to(self.y, (resamples, len(self.y))),
            np.broadcast_to(self.weight, (resamples, len(self.y))),
        )
        if scheme == "case":
            weight = weight * case_weights(rng, len(self.y), resamples)
        elif scheme == "noise" and noise is not None:
            if noise.run_dof < 1:
                raise FitError(
                    f"{len(self.y)} points for {len(self.law.parameters)} parameters leave the noise unknown; "
                    f"add a run for intervals of {self.target}"
                )
            y = noise_values(rng, self.fitted, self.clusters, noise, resamples)
        else:
            raise FitError(f"bootstrap scheme {scheme!r} is none of auto, case, noise")
        return solve(
            self.x, np.ascontiguousarray(y), weight, self.loss, floor=_pin(self.law, resamples), cells=DRAW_CELLS
        )

    def _evaluate(self, x: Array, solution: Solution) -> Array:
        return self.law.evaluate(x, solution.floor, solution.amplitudes, solution.exponents)


def fit_law(
    table: pd.DataFrame,
    law: str = "chinchilla",
    x: Sequence[str] = ("N", "D"),
    y: str = "loss",
    *,
    objective: str = "ls",
    delta: float = 1e-3,
    residual: str = "log",
    cluster: str | None = None,
) -> Fit:
    """Fit `law` to the rows of `table`.

    `x` are columns (N, D, C stand for params, tokens_seen, compute where the table has no such column), `y` the column
    predicted. `objective` is `ls` or `huber` (with `delta`), summed over residuals `log` (ln y - ln f) or `linear`.
    `cluster` names a column whose values share noise. Raises FitError: unknown names, values not positive, fewer than
    three distinct values of an input, fewer points than parameters.
    """
    if law not in LAWS:
        raise FitError(f"law {law!r} is none of {', '.join(LAWS)}")
    form = LAWS[law]
    if objective not in ("ls", "huber") or residual not in ("log", "linear") or not delta > 0:
        raise FitError(f"objective {objective!r} (ls, huber), residual {residual!r} (log, linear), delta {delta} (> 0)")
    if len(x) != len(form.inputs):
        raise FitError(f"law {law} takes {len(form.inputs)} inputs ({', '.join(form.inputs)}), got {len(x)}")
    inputs, values = _inputs(table, tuple(x)), _values(table, y)
    warnings = _check_scales(inputs, tuple(x), values, form, y)
    loss = Loss(objective, float(delta), residual)
    clusters = np.zeros(len(values)) if cluster is None else pd.factorize(table[cluster])[0]
    ones = np.ones((1, len(values)))
    solution = solve(
        inputs,
        values[None],
        ones,
        loss,
        floor=_pin(form, 1),
        cells=POINT_CELLS,
        starts=POINT_STARTS,
        tolerance=POINT_TOLERANCE,
    )
    fit = Fit(form, tuple(x), y, inputs, values, ones[0], clusters, loss, solution, ())
    fit.warnings = (*warnings, *_at_bounds(fit))
    return fit


def fit_pinned(fit: Fit, floors: Array) -> Solution:
    """The same points refitted with E held at each of `floors` [R], one problem a floor."""
    floors = np.asarray(floors, dtype=float)
    shape = (len(floors), len(fit.y))
    y, weight = np.array(np.broadcast_to(fit.y, shape)), np.array(np.broadcast_to(fit.weight, shape))
    return solve(fit.x, y, weight, fit.loss, floor=floors, cells=24, starts=2, tolerance=1e-11)


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws; infinite draws stay in order, so an end may be infinite."""
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values), [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _named(law: Law, solution: Solution) -> dict[str, Array]:
    named = {"E": solution.floor} if law.floor else {}
    named |= {name: solution.amplitudes[:, j] for j, name in enumerate(law.amplitudes)}
    named |= {name: solution.exponents[:, j] for j, name in enumerate(law.exponents)}
    if len(law.inputs) == 2:
        named["exponent"] = envelope_exponent(solution.exponents[:, 0], solution.exponents[:, 1])
    return named


def _pin(law: Law, rows: int) -> Array | None:
    return None if law.floor else np.zeros(rows)


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    column = name if name in table.columns else ALIASES.get(name, name)
    if column not in table.columns:
        raise FitError(f"the table has no column {column!r}; it has {', '.join(map(str, table.columns[:12]))}")
    return table[column]


def _values(table: pd.DataFrame, name: str) -> Array:
    series = pd.to_numeric(_column(table, name), errors="coerce")
    values = series.to_numpy(dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        where = table.index[int(np.argmax(bad))]
        raise FitError(f"{name} must be positive and finite; row {where} holds {_column(table, name).loc[where]}")
    return values


def _inputs(table: pd.DataFrame, names: tuple[str, ...]) -> Array:
    return np.stack([_values(table, name) for name in names], axis=1)


def _check_scales(inputs: Array, names: tuple[str, ...], y: Array, law: Law, target: str) -> tuple[str, ...]:
    """Refuse what determines nothing, and say what is thin."""
    warnings = []
    for j, name in enumerate(names):
        scales = len(np.unique(np.round(np.log(inputs[:, j]), 6)))
        if scales < FEWEST_SCALES:
            raise FitError(
                f"{scales} distinct values of {name}: a law of {target} needs {FEWEST_SCALES}; add runs along it"
            )
        decades = float(np.log10(inputs[:, j].max() / inputs[:, j].min()))
        if scales < COMFORTABLE_SCALES or decades < COMFORTABLE_DECADES:
            warnings.append(
                f"{name} has {scales} values over {decades:.1f} decades (comfortable: {COMFORTABLE_SCALES} over "
                f"{COMFORTABLE_DECADES}): floor and exponents are weakly determined"
            )
    if len(y) < len(law.parameters):
        raise FitError(f"{len(y)} points cannot determine the {len(law.parameters)} parameters of {law.name}; add runs")
    return tuple(warnings)


def _at_bounds(fit: Fit) -> tuple[str, ...]:
    """Parameters that ended where the fit may not go further."""
    found = []
    if fit.law.floor and fit.solution.floor[0] <= 0:
        found.append("the floor E is 0: not identified by these points")
    for j, name in enumerate(fit.law.exponents):
        value, amplitude = fit.solution.exponents[0, j], fit.solution.amplitudes[0, j]
        if amplitude <= 0:
            found.append(f"the term in {fit.law.inputs[j]} vanished: no dependence on it is visible")
        elif value <= EXPONENT_BOUNDS[0] or value >= EXPONENT_BOUNDS[1]:
            found.append(f"{name} = {value:.2f} is at the bound of its search")
    if not fit.solution.converged[0]:
        found.append("the fit did not converge")
    return tuple(found)
