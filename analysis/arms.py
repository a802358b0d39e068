"""From a table of runs to one fitted law an arm: which runs count, what is left out and why, and the held-out test.

Nothing here compares arms, but for pooling their tokenizer-seed noise and testing their ranking at the largest size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.fitting import Draws, Fit, FitError, fit_law
from analysis.laws import Array
from analysis.optimum import Arm, fitted_arm
from analysis.resampling import estimate_noise
from analysis.spread import LackOfFit, lack_of_fit
from analysis.table import by_run

LAW = "chinchilla"
INPUTS = ("params", "tokens_seen")


@dataclass(frozen=True)
class HeldOut:
    """Runs of the largest size against a law fitted without them. `error` is the RMS of ln y - ln f, a fraction."""

    size: str
    error: float
    measured: dict[tuple[str, float], float]
    predicted: dict[tuple[str, float], float]


@dataclass(frozen=True)
class ArmFit:
    """One arm: its finished runs (one row each), its law, its draws, the arm as `analysis.optimum` takes it.

    `lack` tests the law's form against the spread of repeats, None without repeats.
    """

    name: str
    rows: pd.DataFrame
    fit: Fit
    draws: Draws
    arm: Arm
    held_out: HeldOut | None
    lack: LackOfFit | None


@dataclass(frozen=True)
class LeftOut:
    """An arm that cannot be fitted, and what it lacks."""

    arm: str
    reason: str


def fit_arms(
    table: pd.DataFrame, column: str, resamples: int, seed: int, *, tested: bool = True
) -> tuple[list[ArmFit], list[LeftOut]]:
    """The joint law of `column` for every arm, in the table's order. Draws of different arms are independent.

    `tested` also fits each arm without its largest size, predicts that, and tests the form against repeats.
    """
    fits: list[tuple[str, pd.DataFrame, Fit]] = []
    left: list[LeftOut] = []
    done = table[table["state"] == "done"]
    runs_of = dict(iter(by_run(done, column).groupby("arm", sort=False))) if len(done) else {}
    for name in table["arm"].unique():
        runs = runs_of.get(name, done.iloc[:0])
        try:
            fits.append((str(name), runs, _fit(runs.reset_index(drop=True), column)))
        except FitError as error:
            left.append(LeftOut(str(name), f"{len(runs)} runs done: {error}" if len(runs) else "no run done"))
    noise = estimate_noise(
        [fit.residuals for _, _, fit in fits],
        [fit.clusters for _, _, fit in fits],
        [len(fit.law.parameters) for _, _, fit in fits],
    )
    streams = np.random.SeedSequence(seed).generate_state(max(1, len(fits)))
    found = []
    for (name, runs, fit), spread, stream in zip(fits, noise, streams, strict=False):
        try:
            draws = fit.draws(resamples, int(stream), "noise", spread)
        except FitError as error:
            left.append(LeftOut(name, str(error)))
            continue
        arm = fitted_arm(
            name,
            fit,
            draws,
            runs["compute"].to_numpy(dtype=float),
            runs["images_seen"].to_numpy(dtype=float),
            float(runs["tokens_per_image"].iloc[0]),
        )
        tests = (hold_out_largest(runs, column), _lack(runs, fit)) if tested else (None, None)
        found.append(ArmFit(name, runs, fit, draws, arm, *tests))
    return found, left


def _lack(runs: pd.DataFrame, fit: Fit) -> LackOfFit | None:
    cells = runs.groupby(["size", "images_seen"]).ngroup().to_numpy()
    clusters = fit.clusters if len(np.unique(fit.clusters)) > 1 else None
    return lack_of_fit(fit.residuals, cells, len(fit.law.parameters), clusters)


def _fit(runs: pd.DataFrame, column: str) -> Fit:
    if len(runs) == 0:
        raise FitError("no run done")
    cluster = "tokenizer_seed" if "tokenizer_seed" in runs else None
    return fit_law(runs, LAW, INPUTS, column, cluster=cluster)


def hold_out_largest(runs: pd.DataFrame, column: str) -> HeldOut | None:
    """Fit without the largest size and predict it; None where the rest cannot be fitted."""
    needed = (*INPUTS, column, "size", "images_seen", "tokenizer_seed")
    runs = runs[[name for name in needed if name in runs]]
    largest = runs["params"] == runs["params"].max()
    try:
        fit = _fit(runs[~largest], column)
    except FitError:
        return None
    held = runs[largest]
    predicted = fit.predict(held)
    measured = held[column].to_numpy(dtype=float)
    error = float(np.sqrt(np.mean(np.log(measured / predicted) ** 2)))
    size = str(held["size"].iloc[0])
    cells = [(size, float(images)) for images in held["images_seen"]]
    return HeldOut(size, error, _cell_means(cells, measured), _cell_means(cells, predicted))


def _cell_means(cells: list[tuple[str, float]], values: Array) -> dict[tuple[str, float], float]:
    """Mean of ln value a (size, length)."""
    return {
        cell: float(np.mean([np.log(value) for one, value in zip(cells, values, strict=True) if one == cell]))
        for cell in dict.fromkeys(cells)
    }


def ranked_pairs(fits: list[ArmFit]) -> tuple[int, int]:
    """Pairs of arms whose order at the held-out size, at equal lengths, came out as predicted; and pairs tested.

    The decision accuracy of DataDecide (arXiv 2504.11393) with the largest size as target.
    """
    right = tested = 0
    for first, second in combinations([fit.held_out for fit in fits if fit.held_out is not None], 2):
        cells = first.measured.keys() & second.measured.keys()
        if cells:
            gaps = [
                sum(getattr(first, kind)[cell] - getattr(second, kind)[cell] for cell in sorted(cells))
                for kind in ("measured", "predicted")
            ]
            tested += 1
            right += int(np.sign(gaps[0]) == np.sign(gaps[1]))
    return right, tested
