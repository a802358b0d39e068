"""One group's law of one input: its points (all, or the inner frontier), parameters, errors, the curve beyond the data.

Groups are compared by `analysis.curves`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting import Fit, fit_law, interval
from analysis.form import Array
from analysis.frontier import FrontierLaw, frontier_law, inner_points
from analysis.inputs import FEWEST_SCALES, FitError
from analysis.pair import log_curve
from analysis.problem import Solution
from analysis.selection import aicc, rolling_origin, with_forms

BEYOND = 10.0  # how far past a group's largest x its law is shown
INSIDE_POINTS, BEYOND_POINTS = 61, 9
BAND_POINTS = 3  # where a profile is walked; the half widths in ln y run straight between
FORMS_NEED = 6  # points from which AICc can weigh more than one form
CLUSTER = "tokenizer seed of an arm"


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; None where it cannot be known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Beyond:
    """The law at `x`, `decades` beyond the data, with the interval of a new run there, the choice of form included.

    `forms` is the spread of ln y over the forms that fit, None where only one could be weighed.
    """

    x: float
    value: float
    low: float | None
    high: float | None
    decades: float
    forms: float | None


@dataclass(frozen=True)
class CurveLine:
    """A fitted curve for figures: inside the data, then beyond it with the band of a new run (NaN where unknown)."""

    x: list[float]
    value: list[float]
    beyond: list[Beyond]


@dataclass(frozen=True)
class Group:
    """One group's law. `points` were fitted of `runs`, at `distinct` values of x over `decades`.

    `residual` and `rolling` are fractions: of ln y on the fit's degrees of freedom, and at the largest x from the rest.
    `weights` are Akaike's of the forms that `auto` weighed. `on_frontier`, `edges` name runs where points = frontier.
    """

    name: str
    runs: int
    points: int
    distinct: int
    decades: float
    law: str
    formula: str
    parameters: dict[str, Estimate]
    floor: str | None
    floor_identified: bool | None
    residual: float | None
    rolling: float | None
    weights: list[tuple[str, float]]
    line: CurveLine
    on_frontier: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def predicted(self) -> Beyond:
        return self.line.beyond[-1]


@dataclass(frozen=True)
class Ask:
    """What was asked for, the same for every group; `x` and `column` as the table names them."""

    column: str
    x: str
    law: str
    points: str
    level: float
    draws: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A group's law, the points it was fitted to, and its draws (None where the noise is unknown)."""

    group: Group
    rows: pd.DataFrame
    fit: Fit
    draws: Solution | None

    @property
    def span(self) -> tuple[float, float]:
        """ln of the least and greatest x."""
        return float(np.log(self.fit.x.min())), float(np.log(self.fit.x.max()))

    def logs(self, log_x: Array) -> Array:
        """ln y [1 + draws, G]: the point, then the draws."""
        point = log_curve(self.fit.solution, log_x)
        return point if self.draws is None else np.concatenate([point, log_curve(self.draws, log_x)])


def fit_group(name: str, rows: pd.DataFrame, ask: Ask, seed: int) -> Fitted:
    """The law of one group's runs (one row each). Raises FitError where there can be none."""
    if ask.points == "all":
        used, found = _clustered(rows), None
        fit = fit_law(used, ask.law, (ask.x,), ask.column, cluster=CLUSTER if CLUSTER in used else None, **ask.options)
        draws = _draws(fit, ask.draws, seed)
    else:
        used, found = _frontier(rows, ask, seed)
        fit, draws = found.free.fit, found.free.draws
    parameters = {one: _estimate(fit, found, one, ask, seed) for one in fit.params}
    floor = parameters[fit.law.names[0]] if fit.law.floor else None
    x = fit.x[:, 0]
    rolling = rolling_origin(fit, used)[1]
    group = Group(
        name=name,
        runs=len(rows),
        points=len(used),
        distinct=len(np.unique(np.round(np.log(x), 6))),
        decades=float(np.log10(x.max() / x.min())),
        law=fit.law.name,
        formula=fit.law.formula,
        parameters=parameters,
        floor=fit.law.names[0] if fit.law.floor else None,
        floor_identified=None if floor is None or floor.low is None else floor.low > 0,
        residual=_known(fit.residual),
        rolling=_known(rolling),
        weights=_weights(fit),
        line=_line(fit, used, draws, ask, chosen_again=found is not None),
        on_frontier=tuple(map(str, rows["run"][found.on])) if found else (),
        edges=tuple(map(str, rows["run"][found.edge])) if found else (),
        warnings=_said(fit, found),
    )
    return Fitted(group, used, fit, draws)


def _clustered(rows: pd.DataFrame) -> pd.DataFrame:
    """With a column of clusters where the group holds several tokenizers: their runs share noise."""
    if "tokenizer_seed" not in rows or rows["tokenizer_seed"].isna().any():
        return rows
    arms = rows["arm"].map(str) if "arm" in rows else ""
    keys = arms + "|" + rows["tokenizer_seed"].map(str)
    return rows.assign(**{CLUSTER: keys}) if 1 < keys.nunique() < len(rows) else rows


def _frontier(rows: pd.DataFrame, ask: Ask, seed: int) -> tuple[pd.DataFrame, FrontierLaw]:
    law, selection = ask.law, None
    if law == "auto":
        inner = rows[inner_points(rows, ask.column, ask.x)]
        selection = fit_law(inner, "auto", (ask.x,), ask.column).selection
        assert selection is not None
        law = str(selection["law"].iloc[0])
    found = frontier_law(rows, ask.column, ask.x, draws=ask.draws, seed=seed, law=law, level=ask.level)
    found.free.fit.selection = selection
    return rows[found.inner].reset_index(drop=True), found


def _draws(fit: Fit, draws: int, seed: int) -> Solution | None:
    try:
        return fit.draws(draws, seed).solution
    except FitError:
        return None


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _estimate(fit: Fit, found: FrontierLaw | None, name: str, ask: Ask, seed: int) -> Estimate:
    if found is not None:
        chosen = found.free.parameters[name]
        return Estimate(chosen.value, chosen.low, chosen.high)
    for method in ("auto", "bootstrap"):  # the walk of an amplitude far from x = 1 can meet a singular step
        try:
            with np.errstate(invalid="ignore"):
                ends = fit.interval(name, ask.level, method, resamples=ask.draws, seed=seed)
        except (FitError, np.linalg.LinAlgError):
            continue
        return Estimate(fit.params[name], *ends)
    return Estimate(fit.params[name])


def _weights(fit: Fit) -> list[tuple[str, float]]:
    if fit.selection is None:
        return []
    usable = fit.selection[np.isfinite(fit.selection["aicc"])]
    return [(str(law), float(weight)) for law, weight in zip(usable["law"], usable["weight"], strict=True)]


def _said(fit: Fit, found: FrontierLaw | None) -> tuple[str, ...]:
    """The fit's warnings, but for a floor at 0, which the report says of all groups at once."""
    said = [text for text in fit.warnings if not text.startswith("the floor E is 0")]
    if found is None:
        return tuple(said)
    sizes = found.rows["params"][found.inner].nunique()
    if sizes < FEWEST_SCALES:
        said.append(
            f"the points inside the frontier are of {sizes} size{'s' * (sizes > 1)}: it is theirs, not compute's"
        )
    if found.unfitted > 0:
        said.append(f"{found.unfitted:.0%} of draws leave fewer than three points inside the frontier")
    if found.noise_from.startswith("residual of the frontier"):
        said.append("noise taken from the frontier's own residual, which is too small")
    return tuple(said)


def _line(fit: Fit, rows: pd.DataFrame, draws: Solution | None, ask: Ask, *, chosen_again: bool) -> CurveLine:
    """The curve; beyond the data with the interval of a new run.

    Where draws know what a profile does not (clusters, the choice of points, another objective), it is widened to them.
    """
    low, high = float(fit.x.min()), float(fit.x.max())
    x = np.geomspace(low, high, INSIDE_POINTS)
    ahead = np.geomspace(high, high * BEYOND, BEYOND_POINTS)
    value = np.exp(log_curve(fit.solution, np.log(ahead))[0])
    band, forms = _band(fit, rows, ask.x, ahead, value, ask.level)
    if draws is not None and (chosen_again or not fit.profiled):
        curves = log_curve(draws, np.log(ahead))
        noise, centre = fit._noise_reach(ask.level), np.log(value)
        ends = np.array([interval(one, ask.level) for one in curves.T]).T
        reach = np.hypot(np.maximum([centre - ends[0], ends[1] - centre], 0.0), noise)
        band = np.array([np.fmin(band[0], np.exp(centre - reach[0])), np.fmax(band[1], np.exp(centre + reach[1]))])
    beyond = [
        Beyond(
            float(at),
            float(value[i]),
            _known(float(band[0, i])),
            _known(float(band[1, i])),
            float(np.log10(at / high)),
            None if forms is None else float(forms[i]),
        )
        for i, at in enumerate(ahead)
    ]
    return CurveLine(x.tolist(), np.exp(log_curve(fit.solution, np.log(x))[0]).tolist(), beyond)


def _band(fit: Fit, rows: pd.DataFrame, x: str, ahead: Array, value: Array, level: float) -> tuple[Array, Array | None]:
    """Low and high [2, G] of a new run, and the spread of forms in it, None where this one cannot be weighed."""
    at = np.linspace(0, len(ahead) - 1, BAND_POINTS).round().astype(int)
    places, forms = pd.DataFrame({x: ahead[at]}), None
    try:
        if len(fit.y) >= FORMS_NEED and np.isfinite(aicc(fit)):  # a simpler form weighed alone may fit far worse
            found = with_forms(fit, rows, places, level)
            forms = np.interp(np.log(ahead), np.log(ahead[at]), found["forms"])
        else:
            found = fit.value_interval(places, level, new_run=True)
    except FitError:  # no sum of squares, or no degree of freedom
        return np.full((2, len(ahead)), np.nan), None
    with np.errstate(divide="ignore"):
        reach = np.log(found[["low", "high"]].to_numpy().T / value[at])
    return value * np.exp([np.interp(np.log(ahead), np.log(ahead[at]), one) for one in reach]), forms
