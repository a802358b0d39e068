"""Prediction before sight: laws fitted without the largest size, their predictions there, and how they came out.

Predictions are plain values, so that a stored fit is scored by what it said when it was stored. No fitting here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import ArmFit
from analysis.fitting import FitError, interval
from analysis.resampling import Noise
from analysis.table import TableError, by_run


@dataclass(frozen=True)
class Predicted:
    """What an arm's law says of one cell of the size held out: value and 95% band of a new run, at (N, D)."""

    arm: str
    size: str
    images_seen: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """Predictions against what was measured since.

    `inside` of `total` runs lie in the 95% band; `error` is the RMS of ln measured - ln predicted, `errors` the same by
    arm. `choices` are
    (images, arm predicted best, arm measured best, regret): what following the prediction costs, a fraction of the
    metric. `before` says that the fit was stored before the first of these runs ended; `stored` is when (Unix
    seconds), `number` which.
    """

    size: str
    inside: int
    total: int
    error: float
    errors: dict[str, float]
    choices: tuple[tuple[float, str, str, float], ...]
    before: bool = False
    stored: float | None = None
    number: int | None = None

    @property
    def regret(self) -> float:
        """The largest over the lengths."""
        return max((one[3] for one in self.choices), default=0.0)


def split_largest(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows of smaller sizes, rows of the largest) of a table; the largest is an arm's greatest N, trained or not.

    Raises TableError where an arm has one size only.
    """
    if "params" not in df or "size" not in df:
        raise TableError("--hold-out largest needs the columns params and size")
    params = pd.to_numeric(df["params"], errors="coerce")
    largest = params.groupby(df["arm"]).transform("max")
    held = params == largest
    single = [str(arm) for arm, count in params.groupby(df["arm"]).nunique().items() if count < 2]
    if single:
        raise TableError(f"--hold-out largest: {', '.join(single)} has one size; there is nothing smaller to fit")
    return df[~held], df[held]


def predict(fits: Sequence[ArmFit], held: pd.DataFrame, seed: int = 0) -> list[Predicted]:
    """Each fitted arm's predictions of the cells (size x length) held out, trained or not."""
    found = []
    for fit in fits:
        cells = held[held["arm"] == fit.name].drop_duplicates(["size", "images_seen"])
        cells = cells[cells["params"].notna() & cells["tokens_seen"].notna()]
        if not len(cells):
            continue
        band = _band(fit, cells, seed)
        for (_, cell), (value, low, high) in zip(cells.iterrows(), band, strict=True):
            found.append(Predicted(fit.name, str(cell["size"]), float(cell["images_seen"]), value, low, high))
    return found


def _band(fit: ArmFit, cells: pd.DataFrame, seed: int) -> list[tuple[float, float, float]]:
    """Value and 95% band of a new run: by profile likelihood, or by draws where tokenizer seeds share noise."""
    if fit.fit.profiled:
        try:
            band = fit.fit.value_interval(cells, new_run=True)
            return [(float(a), float(b), float(c)) for a, b, c in band.to_numpy()]
        except FitError:
            pass
    x = cells[list(fit.fit.columns)].to_numpy(dtype=float)
    point = fit.fit.predict(cells)
    logs = np.log(fit.fit.law.value(x, fit.draws.solution.theta))
    noise = fit.draws.noise or Noise(fit.fit.residual, fit.fit.dof)
    logs += np.hypot(noise.run, noise.cluster) * np.random.default_rng(seed).standard_normal(logs.shape)
    ends = [interval(column) for column in logs.T]
    return [(float(p), float(np.exp(low)), float(np.exp(high))) for p, (low, high) in zip(point, ends, strict=True)]


def score(predictions: Sequence[Predicted], held: pd.DataFrame, column: str) -> Score | None:
    """Predictions against the finished runs of `held`; None where none of them is done.

    A run's evaluations are averaged in ln y, as they were for the law. Seeds of one cell are averaged for the choice;
    each counts for the band and the error.
    """
    done = by_run(held[(held["state"] == "done") & held[column].notna()], column)
    by_cell = {(one.arm, one.size, one.images_seen): one for one in predictions}
    inside = 0
    missed: dict[str, list[float]] = {}
    measured: dict[float, dict[str, list[float]]] = {}
    predicted: dict[float, dict[str, float]] = {}
    for _, run in done.iterrows():
        one = by_cell.get((str(run["arm"]), str(run["size"]), float(run["images_seen"])))
        if one is None:
            continue
        value = float(run[column])
        inside += int(one.low <= value <= one.high)
        missed.setdefault(one.arm, []).append(float(np.log(value / one.value)))
        measured.setdefault(one.images_seen, {}).setdefault(one.arm, []).append(np.log(value))
        predicted.setdefault(one.images_seen, {})[one.arm] = one.value
    if not missed:
        return None
    choices = []
    for images in sorted(measured):
        means = {arm: float(np.mean(values)) for arm, values in measured[images].items()}
        if len(means) > 1:
            chosen = min(predicted[images], key=lambda arm: predicted[images][arm])
            best = min(means, key=lambda arm: means[arm])
            choices.append((images, chosen, best, float(np.expm1(means[chosen] - means[best]))))
    sizes = sorted({one.size for one in predictions})
    errors = {arm: float(np.sqrt(np.mean(np.square(values)))) for arm, values in missed.items()}
    every = [one for values in missed.values() for one in values]
    error = float(np.sqrt(np.mean(np.square(every))))
    return Score(", ".join(sizes), inside, len(every), error, errors, tuple(choices))


def to_rows(predictions: Sequence[Predicted]) -> list[dict[str, Any]]:
    """Predictions as JSON values, for a store."""
    return [asdict(one) for one in predictions]


def from_rows(rows: Sequence[dict[str, Any]]) -> list[Predicted]:
    """The inverse of `to_rows`."""
    return [Predicted(**row) for row in rows]
