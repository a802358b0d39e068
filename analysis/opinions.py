"""The optimum asked again: by KID, in other feature spaces, within few epochs, at each run's best guidance.

Each gives lines for the report's warnings, or a small result beside the main one; none replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.arms import ArmFit, fit_arms
from analysis.optimum import Recommendation, recommend
from analysis.robustness import best_guidance, guidance_caution, second_opinion, shift, within_epochs, within_said
from analysis.summaries import ArmSummary, summarise
from analysis.table import LAW_INPUTS, TableError, designed, validate

OPINION_DRAWS = 100  # enough for who is no worse; intervals of an opinion are not printed


def optimum_of(
    table: pd.DataFrame, column: str, names: Sequence[str], optimum: Sequence[Recommendation]
) -> tuple[list[Recommendation] | None, str]:
    """The optimum of `column` over the same arms at the same computes, or why there is none."""
    done = table[(table["state"] == "done") & table["arm"].isin(list(names))]
    fits, _ = fit_arms(done, column, OPINION_DRAWS, 0, tested=False)
    if [one.name for one in fits] != list(names):
        lacking = ", ".join(name for name in names if name not in [one.name for one in fits])
        return None, f"cannot be fitted for every arm ({lacking})"
    return recommend([one.arm for one in fits], [one.compute for one in optimum]), ""


def by_kid(
    table: pd.DataFrame, names: Sequence[str], optimum: Sequence[Recommendation]
) -> tuple[list[Recommendation] | None, str]:
    """The optimum by KID at the same computes, or why there is none."""
    if not optimum:
        return None, ""
    if "gkid" not in table.columns or not table["gkid"].notna().any():
        return None, "no KID was measured"
    done = table[(table["state"] == "done") & table["arm"].isin(list(names))]
    means = done.groupby("run")["gkid"].mean()
    if means.isna().any():
        return None, f"KID is missing in {int(means.isna().sum())} runs"
    if not (means > 0).all():
        return None, f"KID is not positive in {int((~(means > 0)).sum())} runs, so no law of it can be fitted"
    found, reason = optimum_of(done.assign(gkid=done["run"].map(means)), "gkid", names, optimum)
    return found, f"KID {reason}" if reason else ""


def by_protocols(
    others: Mapping[str, pd.DataFrame], column: str, names: Sequence[str], optimum: Sequence[Recommendation]
) -> list[str]:
    """Lines on the optimum under other protocols (feature spaces) of the same runs, by what they are called."""
    if not optimum:
        return []
    found = []
    for what, rows in others.items():
        try:
            table = validate(designed(rows), (column, *LAW_INPUTS))
        except TableError as error:
            found.append(f"{what}: {error}")
            continue
        other, reason = optimum_of(table, column, names, optimum)
        found += [f"{what}: the optimum {reason}."] if other is None else second_opinion(optimum, other, what)
        if other is not None and not second_opinion(optimum, other, what):
            found.append(f"{what} puts the same arms first.")
    return found


def by_epochs(table: pd.DataFrame, column: str, fits: Sequence[ArmFit], optimum: Sequence[Recommendation]) -> list[str]:
    """How exponents and optimum shift within few epochs; [] where no run repeats its data so often."""
    kept = within_epochs(table)
    if kept is None or not fits:
        return []
    said = within_said(table, kept)
    again, _ = fit_arms(kept, column, OPINION_DRAWS, 0, tested=False) if len(kept) else ([], [])
    same = recommend([one.arm for one in again], [one.compute for one in optimum]) if again and optimum else []
    return [f"{text}." for text in shift(fits, again, optimum, same).texts(said)]


@dataclass(frozen=True)
class Guided:
    """The laws of each run's best guidance, beside those at guidance 1, and the optimum by them."""

    arms: list[ArmSummary]
    optimum: list[Recommendation]
    cautions: list[str]


def by_best_guidance(
    df: pd.DataFrame, column: str, optimum: Sequence[Recommendation], resamples: int, seed: int
) -> Guided | None:
    """The same at each run's best guidance; None where one guidance was measured or metric is not FID."""
    if column != "gfid" or "guidance" not in df or "state" not in df:
        return None
    done = df[df["state"] == "done"]
    if pd.to_numeric(done["guidance"], errors="coerce").nunique() < 2:
        return None
    table = validate(designed(best_guidance(df)), (column, *LAW_INPUTS))
    fits, _ = fit_arms(table, column, resamples, seed, tested=False)
    best = recommend([one.arm for one in fits], [one.compute for one in optimum]) if fits and optimum else []
    return Guided([summarise(one, table, seed) for one in fits], best, guidance_caution(table))
