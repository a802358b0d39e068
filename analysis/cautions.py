"""What a reader must know before believing the numbers: each caution is computed from the table, and says so in a line.

Nothing here changes a number. The traps behind them are explained in docs/fitting.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.arms import ArmFit
from analysis.fitting import interval
from analysis.inputs import COMFORTABLE_SCALES
from analysis.optimum import Recommendation

LOST_LIMIT = 0.10  # share of an arm's finished runs diverged or degenerate above which no optimum is named
EPOCHS_LIMIT = 4.0  # repetition hardly costs up to here (Muennighoff et al. 2023, arXiv 2305.16264)
HEAD_LIMIT = 0.10
HELD_OUT_RATIO = 2.0
LACK_LIMIT = 0.05
KNOBS = ("codebook_size", "tokens_per_image", "crt_weight")


def tokenizer_seeds(fits: Sequence[ArmFit]) -> list[str]:
    """One tokenizer an arm is n = 1 of what is compared."""
    counts = {fit.name: fit.rows["tokenizer_seed"].nunique() for fit in fits if "tokenizer_seed" in fit.rows}
    single = [name for name, count in counts.items() if count < 2]
    if not single:
        return []
    who = "an arm" if len(single) == len(fits) else f"for {', '.join(single)}"
    return [f"1 tokenizer seed {who}: intervals hold for THESE tokenizers, not for codebook, tokens or CRT as such."]


def held_out(fits: Sequence[ArmFit]) -> list[str]:
    """Extrapolation that fails its own test."""
    bad = [f for f in fits if f.held_out is not None and f.held_out.error >= HELD_OUT_RATIO * f.fit.residual]
    return [
        f"{fit.name}: held-out error is {_times(fit.held_out.error / fit.fit.residual)} the residual; "
        "do not extrapolate it."
        for fit in bad
        if fit.held_out is not None
    ]


def _times(ratio: float) -> str:
    return "twice" if ratio < 2.5 else f"{ratio:.0f} times"


def head_share(table: pd.DataFrame) -> list[str]:
    """Where arms differ in K, the head's FLOPs are part of the comparison."""
    if not {"compute", "compute_head"} <= set(table.columns) or table["codebook_size"].nunique() < 2:
        return []
    share = (table["compute_head"] / table["compute"]).where(table["compute"] > 0)
    if not share.max() > HEAD_LIMIT:
        return []
    row = table.iloc[int(np.nanargmax(share.to_numpy()))]
    same = table[(table["size"] == row["size"]) & (table["tokens_per_image"] == row["tokens_per_image"])]
    same = same if same["codebook_size"].nunique() > 1 else table[table["size"] == row["size"]]
    text = f"head is {share.max():.0%} of FLOPs at {row['size']}, K = {row['codebook_size']:g}"
    if same["codebook_size"].nunique() > 1:
        small = share[same.index[same["codebook_size"] == same["codebook_size"].min()]].max()
        text += f" ({small:.0%} at K = {same['codebook_size'].min():g})"
    return [f"{text}: the codebook comparison is by FLOPs, not by size."]


def learning_rate(table: pd.DataFrame) -> list[str]:
    """Without a probe of several peak rates, a lead may be a lead in tuning. A column `learning_rate` shows a probe."""
    probed = "learning_rate" in table and table.groupby("arm")["learning_rate"].nunique().ge(3).sum() >= 2
    return [] if probed or table["arm"].nunique() < 2 else ["learning rate unchecked across arms."]


def thin_axes(table: pd.DataFrame) -> list[str]:
    """A knob with two values has no optimum along it."""
    two = [name for name in KNOBS if name in table and table[name].nunique() == 2]
    if not two:
        return []
    verb, along = ("has", "that axis") if len(two) == 1 else ("have", "those axes")
    return [f"{', '.join(two)} {verb} 2 values: no optimum along {along}."]


def scales(fits: Sequence[ArmFit]) -> list[str]:
    """Few sizes or lengths leave floor and exponents to the form."""
    if not fits:
        return []
    sizes = min(fit.rows["size"].nunique() for fit in fits)
    lengths = min(fit.rows["images_seen"].nunique() for fit in fits)
    if min(sizes, lengths) >= COMFORTABLE_SCALES:
        return []
    return [
        f"{sizes} sizes x {lengths} lengths an arm: read floor and exponent by their intervals, not by their values."
    ]


def floors(fits: Sequence[ArmFit]) -> list[str]:
    """Arms whose floor may be 0, or whose fit ended at a bound."""
    found = []
    zero = [fit.name for fit in fits if interval(fit.draws.solution.floor)[0] < 1e-3 * float(fit.fit.y.min())]
    if zero:
        found.append(f"{', '.join(zero)}: floor not identified (its interval reaches 0).")
    for fit in fits:
        found += [
            f"{fit.name}: {text}."
            for text in fit.fit.warnings
            if "weakly determined" not in text and "floor" not in text
        ]
    return found


def lack_of_fit(fits: Sequence[ArmFit]) -> list[str]:
    """Forms that miss their points by more than repeats differ (pure-error F test)."""
    bad = [f"{fit.name} (p = {fit.lack.p:.1g})" for fit in fits if fit.lack is not None and fit.lack.p < LACK_LIMIT]
    if not bad:
        return []
    return [f"lack of fit: {', '.join(bad)}: the law misses by more than repeats differ; its intervals are too narrow."]


def bias_floor(doubted: Sequence[float], table: pd.DataFrame) -> list[str]:
    """Computes (FLOPs) at which the lead is smaller than what finite samples alone can make of FID."""
    if not doubted:
        return []
    limit = float(table["bias_floor"].max())
    where = ", ".join(f"{one:.2g}".replace("e+", "e") for one in doubted)
    return [
        f"at {where} FLOPs the lead is below FID's bias floor ({limit:.2g}) and KID does not confirm it: undecided."
    ]


def lost_rates(table: pd.DataFrame) -> dict[str, float]:
    """Share of each arm's ended runs that diverged or are degenerate."""
    states = table.groupby("run", sort=False)[["arm", "state"]].first()
    ended = states[states["state"].isin(["done", "diverged", "degenerate"])]
    lost = ended["state"].isin(["diverged", "degenerate"])
    return {str(arm): float(share) for arm, share in lost.groupby(ended["arm"], sort=False).mean().items()}


def lost(rates: dict[str, float]) -> list[str]:
    """Dropping lost runs selects on the outcome."""
    some = {arm: rate for arm, rate in rates.items() if rate > 0}
    if not some:
        return []
    listed = ", ".join(f"{arm} {rate:.0%}" for arm, rate in some.items())
    return [f"diverged or degenerate: {listed}; left out of the fits, which favours arms that lose runs."]


def epochs(table: pd.DataFrame) -> list[str]:
    """Repeated data bends a law in D."""
    if "epochs" not in table or not table["epochs"].max() > EPOCHS_LIMIT:
        return []
    over = table[table["epochs"] > EPOCHS_LIMIT]
    return [
        f"{over['run'].nunique()} runs repeat their data more than {EPOCHS_LIMIT:g} times (up to "
        f"{table['epochs'].max():.2g}): tokens seen overstate new data there."
    ]


def second_metric(optimum: Sequence[Recommendation], other: Sequence[Recommendation] | None, reason: str) -> list[str]:
    """An optimum under one metric alone; `other` is the optimum by KID, None with the `reason` where there is none."""
    if not optimum:
        return []
    if other is None:
        return [f"the optimum is by FID alone: {reason}."]
    differ = [
        f"{kid.best} at {kid.compute:.2g}".replace("e+", "e")
        for fid, kid in zip(optimum, other, strict=True)
        if fid.best != kid.best
    ]
    return [f"KID puts another arm first: {', '.join(differ)} FLOPs. The optimum is flagged there."] if differ else []
