"""Does the answer survive? The same question asked of fewer runs, another guidance, another protocol or metric.

Pure functions over tidy tables, fits and recommendations; nothing is fitted here, and no number of a report changes.
A function that returns texts returns none where there is nothing to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arms import ArmFit
from analysis.inputs import FitError
from analysis.optimum import Recommendation
from analysis.printing import flops, ratio
from analysis.table import TableError

EPOCHS_LIMIT = 4.0  # repetition hardly costs up to here (Muennighoff et al. 2023, arXiv 2305.16264)
NO_GUIDANCE = 1.0  # the natural end of the search: below it guidance would be turned round
GUIDANCE_WORDS = re.compile(r"guidance [0-9.eE+-]+")  # as `models.fidelity.Protocol.describe` writes it


def _done(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["state"] == "done"] if "state" in table else table


# ------------------------------------------------------------------------------- repeated data


def within_epochs(table: pd.DataFrame, limit: float = EPOCHS_LIMIT) -> pd.DataFrame | None:
    """Rows of runs that repeat their data at most `limit` times, rows of unknown epochs among them.

    None where no done run exceeds the limit or the column `epochs` is missing: the answer is the same. May be empty.
    """
    if "epochs" not in table or not (_done(table)["epochs"] > limit).any():
        return None
    return table[~(table["epochs"] > limit)]


def within_said(table: pd.DataFrame, kept: pd.DataFrame, limit: float = EPOCHS_LIMIT) -> str:
    """The restriction in words, for `Shift.texts`: `within 4 epochs (30 of 48 runs)`; runs done are counted."""
    return f"within {limit:g} epochs ({_done(kept)['run'].nunique()} of {_done(table)['run'].nunique()} runs)"


@dataclass(frozen=True)
class Shift:
    """What changes where only some runs are fitted.

    `exponents` maps arm -> (all, kept) exponent of the compute envelope; `best` lists (compute in FLOPs, best arm of
    all, of kept) where they differ; `lost` names arms that can no longer be fitted. Where a lost arm was the best,
    nothing is said of the best.
    """

    exponents: dict[str, tuple[float, float]]
    best: tuple[tuple[float, str, str], ...]
    lost: tuple[str, ...]

    def texts(self, what: str) -> list[str]:
        """A line on what moved under the restriction `what`, and one on arms lost."""
        moved = [f"{arm} {ratio(a)} -> {ratio(b)}" for arm, (a, b) in self.exponents.items() if ratio(a) != ratio(b)]
        parts = [f"exponent of {', '.join(moved)}"] if moved else []
        if self.best:
            at = ", ".join(f"at {flops(compute)} FLOPs {before} -> {after}" for compute, before, after in self.best)
            parts.append(f"best {at}")
        found = [f"{what}: {'; '.join(parts)}"] if parts else []
        if not found and self.exponents:
            found = [f"{what}: exponents and the best arm are the same"]
        if self.lost:
            found.append(f"{what}: {', '.join(self.lost)} can no longer be fitted")
        return found


def shift(
    all_fits: Sequence[ArmFit],
    kept_fits: Sequence[ArmFit],
    optimum: Sequence[Recommendation] = (),
    kept_optimum: Sequence[Recommendation] = (),
) -> Shift:
    """From fits of all runs to fits of those kept, and the optimum of each at given computes (matched by compute).

    Of a fit only `name` and `fit.params["exponent"]` are read; an arm whose law has none is left out of `exponents`.
    """
    kept = {one.name: one.fit.params for one in kept_fits}
    exponents = {}
    for one in all_fits:
        before = one.fit.params.get("exponent", math.nan)
        after = kept.get(one.name, {}).get("exponent", math.nan)
        if math.isfinite(before) and math.isfinite(after):
            exponents[one.name] = (before, after)
    best = [
        (first.compute, first.best, second.best)
        for first in optimum
        for second in kept_optimum
        if math.isclose(first.compute, second.compute, rel_tol=1e-9)
        and first.best != second.best
        and first.best in kept
    ]
    return Shift(exponents, tuple(best), tuple(one.name for one in all_fits if one.name not in kept))


# ------------------------------------------------------------------------------------ guidance


def best_guidance(table: pd.DataFrame) -> pd.DataFrame:
    """Each run at the guidance of its lowest gfid: one row a run and evaluation seed, with `guidance_edge` (bool).

    The guidance is chosen by a run's mean ln gfid over its evaluation seeds, not seed by seed, so that one lucky
    sampling does not choose for itself; what is left of the choice still favours low values a little. The edge: at
    least 2 guidances were tried in the run and the best is the largest, or the smallest and above 1 (at 1 guidance is
    off and the search ends by itself). Rows not done stay, without an edge. A protocol's text and hash name its
    guidance; they become one, of the best guidance. Raises TableError: guidance or gfid missing, rows measured under
    protocols that differ in more than guidance.
    """
    missing = [name for name in ("run", "guidance", "gfid") if name not in table.columns]
    if missing:
        raise TableError(f"the best guidance needs column {', '.join(missing)}, which the table has not")
    rows = table.reset_index(drop=True)
    done = rows["state"].eq("done") if "state" in rows else pd.Series(True, index=rows.index)
    guidance = pd.to_numeric(rows["guidance"], errors="coerce").astype(float).round(9)
    value = pd.to_numeric(rows["gfid"], errors="coerce").astype(float)
    known = done & guidance.notna() & (value > 0)
    logs = pd.DataFrame({"run": rows["run"], "guidance": guidance, "log": np.log(value.where(known))})[known]
    means = logs.groupby(["run", "guidance"], sort=True)["log"].mean().reset_index()
    chosen = means.loc[means.groupby("run")["log"].idxmin()].set_index("run")["guidance"]
    tried = means.groupby("run")["guidance"].agg(["min", "max", "nunique"])
    upper = chosen == tried["max"]
    lower = (chosen == tried["min"]) & (chosen > NO_GUIDANCE)
    edge = (tried["nunique"] > 1) & (upper | lower)
    at_best = known & (guidance == rows["run"].map(chosen))
    # a done run without any value stays too, for `analysis.table.validate` to name it
    kept = rows[at_best | ~done | ~rows["run"].isin(chosen.index)].copy()
    kept["guidance_edge"] = (kept["run"].map(edge).eq(True) & at_best[kept.index]).astype(bool)
    return _one_best_protocol(rows.assign(guidance=guidance)[known], kept).reset_index(drop=True)


def _one_best_protocol(measured: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """`kept` under the one protocol that its guidances share."""
    if "protocol" in measured:
        said = measured["protocol"].dropna().astype(str).str.replace(GUIDANCE_WORDS, "best guidance", regex=True)
        if said.nunique() > 1:
            raise TableError(
                f"{said.nunique()} protocols that differ in more than guidance, such as {said.iloc[0]!r}: take the "
                "best guidance under each apart"
            )
        if len(said):
            kept["protocol"] = kept["protocol"].where(kept["protocol"].isna(), said.iloc[0])
    if "protocol_hash" in measured:
        hashes = measured.dropna(subset=["protocol_hash"])
        mixed = hashes.groupby("guidance")["protocol_hash"].nunique()
        if (mixed > 1).any():
            raise TableError(
                f"{mixed.max()} protocols at guidance {mixed.idxmax():g}: take the best guidance under each apart"
            )
        if hashes["protocol_hash"].nunique() > 1:
            one = "best of " + ", ".join(sorted(str(text)[:12] for text in hashes["protocol_hash"].unique()))
            kept["protocol_hash"] = kept["protocol_hash"].where(kept["protocol_hash"].isna(), one)
    return kept


def guidance_caution(table: pd.DataFrame) -> list[str]:
    """Runs whose best guidance is at the edge of what was tried; `table` holds all guidances, or is `best_guidance`'s.

    None where no run has an edge, as with one guidance or without FID. Raises TableError where protocols mix.
    """
    if not {"run", "arm", "guidance", "gfid"} <= set(table.columns):
        return []
    chosen = table if "guidance_edge" in table else best_guidance(table)
    runs = _done(chosen).groupby("run", sort=False)[["arm", "guidance_edge"]].first()
    edges = runs[runs["guidance_edge"].astype(bool)]["arm"].value_counts(sort=False)
    if not len(edges):
        return []
    order = sorted(edges.items(), key=lambda one: (-one[1], str(one[0])))
    by_arm = ", ".join(f"{arm} {count}" for arm, count in order)
    return [
        f"guidance: the best is at the edge of what was tried in {edges.sum()} of {len(runs)} runs ({by_arm}): "
        "extend the search; the law of the best is clipped there."
    ]


# --------------------------------------------------------------------------------------- seeds


def unequal_seeds(table: pd.DataFrame) -> list[str]:
    """Arms with more tokenizer seeds than others at the same size and length; counts are of the most unequal cell.

    All rows count, whatever their state: the trap is seeds declared after looking, and runs lost are said elsewhere.
    """
    if not {"arm", "size", "images_seen", "tokenizer_seed"} <= set(table.columns):
        return []
    known = table.dropna(subset=["tokenizer_seed"])
    if not len(known):
        return []
    counts = known.groupby(["size", "images_seen", "arm"])["tokenizer_seed"].nunique().unstack("arm")
    gap = counts.max(axis=1) - counts.min(axis=1)
    if gap.max() == 0:
        return []
    widest = counts.loc[gap.idxmax()]
    listed = ", ".join(f"{arm} {widest[arm]:.0f}" for arm in known["arm"].unique() if widest[arm] > 0)
    return [
        f"tokenizer seeds differ between arms ({listed}): an arm with more seeds is known better, not better; compare "
        "at equal seeds or rerun all arms near the optimum."
    ]


# ------------------------------------------------------------------------- protocols and metrics


def split_protocols(table: pd.DataFrame, guidance: float | None = None) -> dict[str, pd.DataFrame]:
    """Done rows by protocol_hash, in order of first appearance; rows without a hash, or all without the column, as "".

    A hash covers the guidance too: give `guidance` (1 is none) where the table has several and one feature space
    is to be compared with another.
    """
    done = _done(table)
    if guidance is not None and "guidance" in done:
        given = pd.to_numeric(done["guidance"], errors="coerce")
        done = done[(given - guidance).abs().lt(1e-9) | given.isna()]
    hashes = done["protocol_hash"] if "protocol_hash" in done else pd.Series(None, index=done.index, dtype=object)
    keys = hashes.where(hashes.notna(), "").astype(str)
    return {key: done[keys == key] for key in dict.fromkeys(keys)}


def second_opinion(optimum: Sequence[Recommendation], other: Sequence[Recommendation], what: str) -> list[str]:
    """Where `other`, the optimum at the same computes under `what` (a metric or feature space), has another best arm.

    Says of each whether the first's best is no worse within noise there (then they disagree within noise), or worse.
    Raises FitError where the computes differ.
    """
    if [one.compute for one in optimum] != [one.compute for one in other]:
        raise FitError(f"the optimum by {what} is at other computes; recommend at the first's computes")
    differ = []
    for first, second in zip(optimum, other, strict=True):
        if first.best != second.best:
            close = first.best in [name for name, _ in second.not_worse]
            verdict = "no worse within noise" if close else "worse"
            differ.append(f"{second.best} at {flops(second.compute)} FLOPs ({first.best} {verdict} there)")
    return [f"{what} puts another arm first: {', '.join(differ)}. The optimum is flagged there."] if differ else []


def undecided(recommendation: Recommendation, floor: float | None, kid: Recommendation | None = None) -> bool:
    """Whether finite samples alone could make the lead, and KID, which has no such bias, does not confirm it.

    `floor` is the bias floor (FID, same unit as `lead`), `kid` the recommendation by KID at that compute, None where
    KID was not measured or cannot be fitted. Undecided: lead < floor, and KID is missing, or has another best arm, or
    has the same one with others not worse within noise. An arm alone has no lead; without a floor nothing is known of
    the bias: both are decided.
    """
    if recommendation.lead is None or floor is None or not recommendation.lead < floor:
        return False
    return kid is None or kid.best != recommendation.best or len(kid.not_worse) > 0
