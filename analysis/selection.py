"""Which form fits, and how far it can be trusted beyond the data: AICc, rolling-origin error, spread over forms.

AICc selects; the rolling-origin error (fit the small, predict the larger) is reported and never selects: on 92 real
curves the first extrapolated twice as well (docs/fitting.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from analysis.fitting import Fit, FitError, fit_law
from analysis.form import Array
from analysis.inputs import input_array
from analysis.laws import CANDIDATES


def aicc(fit: Fit) -> float:
    """Akaike's criterion, corrected for few points, of a least-squares fit of ln y; inf where it has no room.

    n ln(RSS/n) + 2k + 2k(k+1)/(n-k-1), k the parameters and the noise (Hurvich & Tsai 1989).
    """
    n, k = len(fit.y), len(fit.y) - fit.dof + 1
    if n - k - 1 <= 0:
        return float("inf")
    squares = max(float(fit.residuals @ fit.residuals), 1e-300)
    return n * np.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def compare(
    table: pd.DataFrame, x: Sequence[str], y: str, laws: Sequence[str] | None = None, *, rolling: bool = True
) -> pd.DataFrame:
    """Each law of that many inputs fitted by least squares of ln y: law, parameters, residual, aicc, weight, rolling.

    `weight` is Akaike's; `rolling` (where asked) the error of predicting the largest, fitted without it. Laws that
    cannot be fitted have `reason`. Best first. Raises FitError where none can.
    """
    rows, reasons = [], []
    for name in laws or CANDIDATES.get(len(x), ()):
        try:
            fit = fit_law(table, name, x, y)
        except FitError as refusal:
            reasons.append(str(refusal))
            rows.append({"law": name, "aicc": np.inf, "reason": str(refusal)})
            continue
        score = aicc(fit)
        reason = "" if np.isfinite(score) else f"{len(fit.y)} points leave AICc no room"
        row = {"law": name, "parameters": len(fit.law.parameters), "residual": fit.residual, "aicc": score}
        error = rolling_origin(fit, table)[1] if rolling else float("nan")
        rows.append(row | {"rolling": error, "reason": reason})
    found = pd.DataFrame(rows).sort_values("aicc", kind="stable").reset_index(drop=True)
    if not np.isfinite(found["aicc"]).any():
        raise FitError(f"no law of {len(x)} inputs can be chosen: {reasons[0] if reasons else found['reason'].iloc[0]}")
    weight = np.exp(-(found["aicc"] - found["aicc"].min()) / 2)
    found["weight"] = weight / weight.sum()
    return found


def choose(
    table: pd.DataFrame,
    x: tuple[str, ...] | None,
    y: str,
    objective: str,
    delta: float,
    residual: str,
    noise: float | str | None,
    floor: float | None,
    prior: tuple[float, float] | None,
    cluster: str | None,
) -> Fit:
    """The law of least AICc, fitted as asked; `fit.selection` shows what it was weighed against. Raises FitError."""
    if x is None or len(x) not in CANDIDATES:
        raise FitError("law auto needs its inputs: x with one column (power laws) or two (chinchilla, kaplan)")
    found = compare(table, x, y)
    options = {"objective": objective, "delta": delta, "residual": residual, "noise": noise, "cluster": cluster}
    best = str(found["law"].iloc[0])
    fit = fit_law(table, best, x, y, **options, floor=floor, prior=prior)  # type: ignore[arg-type]
    fit.selection = found
    return fit


def rolling_origin(fit: Fit, table: pd.DataFrame) -> tuple[list[tuple[float, float]], float]:
    """Fit the points up to each value of the first input, predict the next: [(value, RMS of ln y - ln f)], the last.

    The last is the honest number to quote. Starts where the rest can be fitted; NaN where nothing can.
    """
    first = input_array(table, fit.columns)[:, 0]
    marks = np.unique(first)
    errors = []
    for before, mark in pairwise(marks):
        known, ahead = table[first <= before], table[first == mark]
        try:
            small = fit_law(known, fit.law, fit.columns, fit.target)
        except FitError:
            continue
        missed = np.log(ahead[fit.target].to_numpy(dtype=float) / small.predict(ahead))
        errors.append((float(mark), float(np.sqrt(np.mean(missed**2)))))
    return errors, errors[-1][1] if errors else float("nan")


def with_forms(fit: Fit, table: pd.DataFrame, ahead: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Values, intervals and the distance beyond the data at the rows of `ahead`, the choice of form included.

    The spread over the laws that fit, weighted by AICc, is added to the parameter's and a new run's noise in
    quadrature (Buckland et al. 1997): low, high. `forms` is that spread of ln y, `decades` how far the first input
    lies beyond the data.
    """
    found = fit.value_interval(ahead, level, new_run=True)
    weighed = compare(table, fit.columns, fit.target, rolling=False)
    usable = weighed[np.isfinite(weighed["aicc"])]
    logs = np.log([fit_law(table, str(name), fit.columns, fit.target).predict(ahead) for name in usable["law"]])
    weight = usable["weight"].to_numpy()[:, None]
    centre = np.log(found["value"].to_numpy())
    spread = np.sqrt(np.sum(weight * (logs - centre) ** 2, axis=0))
    reach = spread * np.sqrt(fit._quantile(level))
    found["low"] = np.exp(centre - np.hypot(centre - np.log(found["low"]), reach))
    found["high"] = np.exp(centre + np.hypot(np.log(found["high"]) - centre, reach))
    found["forms"] = spread
    found["decades"] = decades_beyond(input_array(ahead, fit.columns)[:, 0], fit.x[:, 0])
    return found


def decades_beyond(ahead: Array, known: Array) -> Array:
    """How many decades each value lies outside the known ones; 0 inside."""
    return np.maximum(0.0, np.maximum(np.log10(ahead / known.max()), np.log10(known.min() / ahead)))
