"""The answer of a sweep as numbers: laws per arm, optimum by compute, changes of leader, multipliers, cautions.

`fit_report` computes, `FitReport.to_dict` gives it all in full precision as JSON values, `render_text` (from
`analysis.printing`) prints it, `analysis.figures` draws it. Every number is explained in docs/fitting.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import cautions
from analysis.arms import ArmFit, LeftOut, fit_arms, ranked_pairs
from analysis.multipliers import ArmMultipliers, Measured, multipliers
from analysis.optimum import (
    Change,
    Leaders,
    Recommendation,
    leaders,
    recommend,
    round_computes,
    shared_range,
)
from analysis.summaries import ArmSummary, Curve, Quantity, mean, reconstructions, summarise
from analysis.table import METRICS, select

__all__ = ["ArmSummary", "Curve", "FitReport", "Quantity", "fit_report"]


@dataclass(frozen=True)
class FitReport:
    """All that `scaling fit` says. Empty sections carry their reason in `notes`."""

    plan: str
    metric: str
    column: str
    guidance: float
    runs: int
    states: dict[str, int]
    protocol: str
    bias_floor: float | None
    resamples: int
    seed: int
    base: str | None
    arms: list[ArmSummary]
    left_out: list[LeftOut]
    ranked: tuple[int, int]
    optimum: list[Recommendation]
    second_optimum: list[Recommendation] | None
    leaders: Leaders | None
    targets: list[float]
    multipliers: list[ArmMultipliers]
    notes: dict[str, str]
    warnings: list[str]

    @property
    def changes(self) -> Sequence[Change]:
        return self.leaders.changes if self.leaders else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values in full precision; a number that is not finite becomes None."""
        return {key: _json(value) for key, value in asdict(self).items()}


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _json(value.tolist())
    if isinstance(value, dict):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, np.generic):
        return _json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _json(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value


def fit_report(
    df: pd.DataFrame,
    metric: str = "fid",
    *,
    base: str | None = None,
    guidance: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> FitReport:
    """Fit `metric` (fid, loss or rfid) of a tidy table and answer what it can.

    `base` names the arm that multipliers compare with (default: the arm `base`, else the first). FID is taken at
    `guidance`. Same table and `seed`, same report. Arms that cannot be fitted are named and left out.
    Raises TableError.
    """
    column = METRICS.get(metric, metric)
    table = select(df, metric, guidance)
    fits, left = ([], []) if metric == "rfid" else fit_arms(table, column, resamples, seed)
    notes = _notes(metric, fits, table, left)
    rates = cautions.lost_rates(df)
    over = [arm for arm, rate in rates.items() if rate > cautions.LOST_LIMIT]
    if over and "optimum" not in notes:
        listed = ", ".join(f"{arm} lost {rates[arm]:.0%}" for arm in over)
        notes["optimum"] = f"none named: {listed} of its runs (diverged or degenerate; above {cautions.LOST_LIMIT:.0%})"
    optimum, led = ([], None) if "optimum" in notes else _optimum(fits)
    chosen = base if base is not None else _base([fit.name for fit in fits])
    if chosen is not None and fits and chosen not in [fit.name for fit in fits]:
        notes.setdefault("multipliers", f"none: the base arm {chosen!r} has no fit")
    targets, ratios = ([], []) if "multipliers" in notes else _multipliers(fits, str(chosen), over)
    if not targets:
        notes.setdefault("multipliers", "none: no arm's envelope takes the base's values within the data")
    second, reason = _second(table, fits, optimum) if metric == "fid" else (None, "")
    return FitReport(
        plan=str(df["plan"].iloc[0]) if "plan" in df else "",
        metric=metric,
        column=column,
        guidance=guidance,
        runs=int(df["run"].nunique()),
        states={str(k): int(v) for k, v in df.groupby("run")["state"].first().value_counts().items()},
        protocol=_protocol(table, metric),
        bias_floor=_largest(table, "bias_floor"),
        resamples=resamples,
        seed=seed,
        base=chosen,
        arms=reconstructions(table) if metric == "rfid" else [summarise(fit, table, seed) for fit in fits],
        left_out=left,
        ranked=ranked_pairs(fits),
        optimum=optimum,
        second_optimum=second,
        leaders=led,
        targets=targets,
        multipliers=ratios,
        notes=notes,
        warnings=_warnings(metric, table, fits, optimum, second, reason, rates),
    )


def _base(names: list[str]) -> str | None:
    return "base" if "base" in names else names[0] if names else None


def _notes(metric: str, fits: list[ArmFit], table: pd.DataFrame, left: list[LeftOut]) -> dict[str, str]:
    """Why a section has nothing to say."""
    if metric == "rfid":
        return dict.fromkeys(("optimum", "multipliers"), "rFID has no generator axis: no law, no optimum")
    if metric == "loss":
        if table["tokens_per_image"].nunique() == 1 and table["codebook_size"].nunique() == 1:
            reason = "the loss of one tokenizer's codes says nothing of another's"
        else:
            reason = "nats a token of different codebooks and token counts do not compare"
        return dict.fromkeys(("optimum", "multipliers"), f"none across arms: {reason}; use --metric fid")
    if not fits:
        lacking = "; ".join(f"{one.arm}: {one.reason}" for one in left)
        return dict.fromkeys(("optimum", "multipliers"), f"none: no arm can be fitted ({lacking})")
    notes = {}
    if len(fits) == 1:
        notes["multipliers"] = f"none: {fits[0].name} is the only arm"
    if shared_range([fit.arm for fit in fits]) is None:
        notes["optimum"] = "none: no compute is covered by every arm's runs"
    return notes


def _optimum(fits: list[ArmFit]) -> tuple[list[Recommendation], Leaders]:
    arms = [fit.arm for fit in fits]
    shared = shared_range(arms)
    assert shared is not None  # _notes has withheld the optimum otherwise
    return recommend(arms, round_computes(*shared)), leaders(arms, *shared)


def _multipliers(fits: list[ArmFit], base: str, over: list[str]) -> tuple[list[float], list[ArmMultipliers]]:
    measured = {
        fit.name: Measured(fit.fit, fit.arm, mean(fit.rows, "rfid"), mean(fit.rows, "tokenizer_compute"))
        for fit in fits
        if fit.name not in over
    }
    if base not in measured or len(measured) < 2:
        return [], []
    return multipliers(measured[base], [one for name, one in measured.items() if name != base])


def _second(
    table: pd.DataFrame, fits: list[ArmFit], optimum: list[Recommendation]
) -> tuple[list[Recommendation] | None, str]:
    """The optimum by KID at the same computes, or why there is none."""
    if not optimum:
        return None, ""
    if "gkid" not in table.columns or not table["gkid"].notna().any():
        return None, "no KID was measured"
    names = [fit.name for fit in fits]
    done = table[(table["state"] == "done") & table["arm"].isin(names)]
    means = done.groupby("run")["gkid"].mean()
    if not (means > 0).all():
        return None, f"KID is not positive in {int((~(means > 0)).sum())} runs, so no law of it can be fitted"
    second, _ = fit_arms(done.assign(gkid=done["run"].map(means)), "gkid", 40, 0)
    if [one.name for one in second] != names:
        return None, "KID cannot be fitted for every arm"
    return recommend([one.arm for one in second], [one.compute for one in optimum]), ""


def _protocol(table: pd.DataFrame, metric: str) -> str:
    if metric == "loss":
        return "validation cross-entropy, nats/token"
    said = table["protocol"].dropna() if "protocol" in table else pd.Series(dtype=object)
    text = str(said.iloc[0]) if len(said) else "protocol unknown"
    return text.replace("gFID", "rFID", 1) if metric == "rfid" else text


def _largest(table: pd.DataFrame, column: str) -> float | None:
    known = table[column].dropna() if column in table else ()
    return float(max(known)) if len(known) else None


def _warnings(
    metric: str,
    table: pd.DataFrame,
    fits: list[ArmFit],
    optimum: list[Recommendation],
    second: list[Recommendation] | None,
    reason: str,
    rates: dict[str, float],
) -> list[str]:
    found = cautions.tokenizer_seeds(fits)
    found += cautions.held_out(fits)
    if metric == "fid":
        found += cautions.head_share(table) + cautions.learning_rate(table) + cautions.thin_axes(table)
        found += cautions.bias_floor(optimum, table) + cautions.second_metric(optimum, second, reason)
    if metric != "rfid":
        found += cautions.scales(fits) + cautions.floors(fits) + cautions.epochs(table)
    return found + cautions.lost(rates)
