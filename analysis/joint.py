"""Joint laws without a compute envelope here: Kaplan's, Chinchilla's under other objectives, the surface.

    report = fit_joint(table, "loss", law="kaplan")            # a fit a group
    report = fit_joint(table, "gfid", law="surface")           # one fit over all tokenizers

Parameters with intervals and what a surface says of the knobs; the optimum between arms is `analysis.report`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting import Fit, FitError, fit_law
from analysis.frontier import on_frontier
from analysis.optimum import round_computes
from analysis.printing import NAMES, columns, compute_line, flops, percent, plain, ratio, within, wrapped
from analysis.report import json_values
from analysis.selection import rolling_origin
from analysis.summaries import Quantity
from analysis.surface import KNOBS, SYMBOLS, Surface, best_knob
from analysis.table import by_run

LAWS = ("chinchilla", "kaplan", "auto", "surface")


@dataclass(frozen=True)
class Estimated:
    """A parameter and its 95% interval; an end may be infinite or the bound of the search."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class JointFit:
    """One group's law: its parameters, residual, and the error of predicting the largest N (or compute) unseen."""

    group: str
    law: str
    formula: str
    runs: int
    parameters: dict[str, Estimated]
    residual: float
    rolling: float
    objective: str
    objective_value: float
    weights: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SurfaceKnob:
    """The best level of a knob at round computes (NaN where the surface has no interior optimum), others as fixed."""

    knob: str
    fixed: dict[str, float]
    best: tuple[tuple[float, float], ...]
    exponent: float


@dataclass(frozen=True)
class JointReport:
    """All that `scaling fit --law kaplan | surface` says."""

    plan: str
    column: str
    law: str
    source: str
    protocol: str
    fits: list[JointFit]
    left_out: list[tuple[str, str]]
    knobs: list[SurfaceKnob]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values in full precision; a number that is not finite becomes None."""
        return {key: json_values(value) for key, value in asdict(self).items()}


def fit_joint(
    table: pd.DataFrame,
    column: str,
    law: str = "kaplan",
    *,
    objective: str = "ls",
    delta: float = 1e-3,
    residual: str = "log",
    resamples: int = 400,
    seed: int = 0,
) -> JointReport:
    """Fit a joint law to finished runs of a validated table: one fit an arm, or for `surface` one over all arms.

    Runs of one tokenizer seed share noise where an arm has several. Arms that cannot be fitted are named.
    Raises FitError for an unknown law, or a surface that cannot be fitted.
    """
    if law not in LAWS:
        raise FitError(f"law {law!r} is none of {', '.join(LAWS)}")
    done = table[table["state"] == "done"]
    if not len(done):
        raise FitError("no run is done; nothing to fit yet")
    runs = by_run(done, column)
    if law == "surface":
        runs = _frontiers(runs, column)
    options = {"objective": objective, "delta": delta, "residual": residual}
    fits, left = [], []
    arms = runs["arm"].map(str)
    groups = (
        {"all arms": runs} if law == "surface" else {one: runs[arms == one] for one in done["arm"].map(str).unique()}
    )
    x = _surface_inputs(runs) if law == "surface" else ("params", "tokens_seen")
    made: dict[str, Fit] = {}
    for name, rows in groups.items():
        part = rows.reset_index(drop=True)
        try:
            cluster = "tokenizer_seed" if "tokenizer_seed" in part and law != "surface" else None
            fit = fit_law(part, law, x, column, cluster=cluster, **options)  # type: ignore[arg-type]
            fits.append(_described(name, fit, part, resamples, seed))
            made[name] = fit
        except FitError as error:
            if law == "surface":
                raise
            left.append((name, f"{len(part)} runs: {error}"))
    warnings = together((one.group, text) for one in fits for text in one.warnings)
    if law == "surface":
        warnings.append(f"fitted to each arm's Pareto frontier over compute, {len(runs)} of {len(done)} measurements.")
    said = protocol_of(done)
    source = next((fit.law.source for fit in made.values()), "")
    knobs = [] if law != "surface" else _surface_knobs(next(iter(made.values())), runs)
    plan = str(table["plan"].iloc[0]) if "plan" in table else ""
    return JointReport(plan, column, law, source, said, fits, left, knobs, warnings)


def together(texts: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each text, naming all that it is said of."""
    of: dict[str, list[str]] = {}
    for name, text in texts:
        of.setdefault(text, []).append(name)
    return [f"{', '.join(names)}: {text}." for text, names in of.items()]


def protocol_of(done: pd.DataFrame) -> str:
    """What the rows say of how they were measured, or nothing."""
    said = done["protocol"].dropna() if "protocol" in done else pd.Series(dtype=object)
    return str(said.iloc[0]) if len(said) else ""


def _frontiers(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    kept = [
        rows[on_frontier(rows["compute"].to_numpy(dtype=float), rows[column].to_numpy(dtype=float))]
        for _, rows in runs.groupby("arm", sort=False)
    ]
    return pd.concat(kept, ignore_index=True)


def _surface_inputs(runs: pd.DataFrame) -> tuple[str, ...]:
    """Compute and the knobs with three values or more."""
    knobs = [knob for knob in KNOBS if knob in runs and runs[knob].nunique() >= 3]
    if not knobs:
        raise FitError("law surface needs three values of tokens_per_image, codebook_size or crt_weight; add arms")
    return ("compute", *knobs)


def _described(name: str, fit: Fit, rows: pd.DataFrame, resamples: int, seed: int) -> JointFit:
    parameters = {}
    for one, value in fit.params.items():
        try:
            parameters[one] = Estimated(value, *fit.interval(one, resamples=resamples, seed=seed))
        except FitError:
            parameters[one] = Estimated(value, float("nan"), float("nan"))
    weights = {} if fit.selection is None else dict(zip(fit.selection["law"], fit.selection["weight"], strict=True))
    return JointFit(
        group=name,
        law=fit.law.name,
        formula=fit.law.formula,
        runs=len(fit.y),
        parameters=parameters,
        residual=fit.residual,
        rolling=rolling_origin(fit, rows)[1],
        objective=fit.objective,
        objective_value=fit.objective_value,
        weights=weights,
        warnings=fit.warnings,
    )


def _surface_knobs(fit: Fit, runs: pd.DataFrame) -> list[SurfaceKnob]:
    assert isinstance(fit.law, Surface)
    computes = np.array(round_computes(float(runs["compute"].min()), float(runs["compute"].max())))
    typical = {knob: float(runs[knob].mode().iloc[0]) for knob in fit.law.knobs}
    found = []
    for knob in fit.law.knobs:
        others = {name: value for name, value in typical.items() if name != knob}
        best = best_knob(fit.law, fit.solution.theta, knob, computes, others)
        rows = tuple(zip(computes.tolist(), best.value[0].tolist(), strict=True))
        found.append(SurfaceKnob(knob, others, rows, float(best.exponent[0])))
    return found


def render_joint(report: JointReport, width: int = 150) -> str:
    """The report as lines of at most `width` characters where words allow."""
    lines = [f"{report.plan:<11} {NAMES.get(report.column, report.column)}"]
    if report.protocol:
        lines.append(wrapped("protocol    ", report.protocol, width))
    lines.append(wrapped("compute     ", compute_line([report.protocol]), width))
    for formula in dict.fromkeys(f"{one.formula}; {one.objective}" for one in report.fits):
        lines.append(wrapped("law         ", f"{formula} ({report.source})", width))
    parts = ["\n".join(lines)]
    if report.fits:
        parts.append("\n".join(_table(report.fits)))
    parts += [wrapped("", f"left out: {name} ({reason})", width) for name, reason in report.left_out]
    for knob in report.knobs:
        parts.append(_knob(knob, width))
    if report.warnings:
        parts.append("\n".join(["WARNINGS", *(wrapped("  ", text, width) for text in report.warnings)]))
    return "\n\n".join(parts) + "\n"


def _table(fits: Sequence[JointFit]) -> list[str]:
    names = list(dict.fromkeys(name for one in fits for name in one.parameters))
    chosen = [["law"]] if any(one.weights for one in fits) else []
    rows = [
        ["arm", "runs", *(part[0] for part in chosen), *(f"{name} [95%]" for name in names), "residual", "largest*"]
    ]
    for one in fits:
        law = [f"{one.law} ({max(one.weights.values()):.0%})"] if one.weights else [""] * len(chosen)
        cells = [_shown(one.parameters[name]) if name in one.parameters else "-" for name in names]
        rows.append([one.group, str(one.runs), *law, *cells, percent(one.residual), percent(one.rolling)])
    return [*columns(rows, right=(1,)), "* error of predicting the largest first input, fitted without it"]


def _shown(one: Estimated) -> str:
    def text(value: float) -> str:
        if not np.isfinite(value):
            return "-" if np.isnan(value) else "inf" if value > 0 else "-inf"
        if abs(value) >= 1e5:
            return f"{value:.2g}".replace("e+", "e")
        return f"-{plain(-value)}" if value < 0 else plain(value)

    if abs(one.value) < 100 and np.isfinite(one.high - one.low):
        return within(Quantity(one.value, one.low, one.high))
    return f"{text(one.value)} [{text(one.low)}, {text(one.high)}]"


def _knob(knob: SurfaceKnob, width: int) -> str:
    symbol = "lambda" if knob.knob == "crt_weight" else SYMBOLS[knob.knob]
    fixed = ", ".join(f"{name} = {value:g}" for name, value in knob.fixed.items())
    title = f"OPTIMUM ALONG {symbol}" + (f"  ({fixed})" if fixed else "")
    if not np.isfinite(knob.exponent):
        return f"{title}\nnone: the surface falls or rises all along {symbol}"
    said = ", ".join(f"{flops(compute)} FLOPs {plain(value)}" for compute, value in knob.best)
    exponent = f"-{ratio(-knob.exponent)}" if knob.exponent < 0 else ratio(knob.exponent)
    return f"{title}\n{wrapped('', f'{said}; it moves as C^{exponent}', width)}"
