"""The answer of a sweep as numbers: laws per arm, optimum by compute, changes of leader, multipliers, cautions.

`fit_report` computes, `FitReport.to_dict` gives it all in full precision as JSON values, `render_text` (from
`analysis.render`) prints it, `analysis.figures` draws it. Every number is explained in docs/fitting.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import cautions, holdout
from analysis.arms import ArmFit, LeftOut, fit_arms, ranked_pairs
from analysis.entropy import rate_distortion
from analysis.knobs import KnobOptimum, knob_optima
from analysis.multipliers import ArmMultipliers, Measured, multipliers
from analysis.opinions import Guided, by_best_guidance, by_epochs, by_kid, by_protocols
from analysis.optimum import (
    Change,
    Leaders,
    Recommendation,
    leaders,
    recommend,
    round_computes,
    shared_range,
)
from analysis.printing import compute_line
from analysis.robustness import undecided, unequal_seeds
from analysis.spread import Spread, described, measured_spread, over_noise
from analysis.summaries import ArmSummary, Curve, Quantity, mean, reconstructions, summarise
from analysis.table import METRICS, select

RESAMPLES, FEW_ARMS, RESAMPLES_OF_MANY = (
    1000,
    8,
    400,
)  # 400 leave an end of an interval unsure by 3% of its width, 1,000 by 2%

__all__ = ["ArmSummary", "Curve", "FitReport", "Quantity", "fit_report", "json_values"]


@dataclass(frozen=True)
class FitReport:
    """All that `scaling fit` says. Empty sections carry their reason in `notes`.

    `undecided` are the computes of `optimum` at which finite samples alone could make the lead. `predictions` are of
    the size held out (`hold_out`), `score` how they came out; `rates` has rate and distortion by arm; `length_unit` is
    what a training length counts.
    """

    plan: str
    metric: str
    column: str
    guidance: float
    runs: int
    states: dict[str, int]
    protocol: str
    compute_said: str
    bias_floor: float | None
    objective: str
    spread: Spread | None
    noise: str
    resamples: int
    seed: int
    base: str | None
    length_unit: str
    arms: list[ArmSummary]
    rates: list[dict[str, Any]]
    left_out: list[LeftOut]
    ranked: tuple[int, int]
    optimum: list[Recommendation]
    undecided: list[float]
    second_optimum: list[Recommendation] | None
    guided: Guided | None
    leaders: Leaders | None
    knobs: list[KnobOptimum]
    targets: list[float]
    multipliers: list[ArmMultipliers]
    amortize_over: float
    hold_out: str | None
    predictions: list[holdout.Predicted]
    score: holdout.Score | None
    notes: dict[str, str]
    warnings: list[str]

    @property
    def changes(self) -> Sequence[Change]:
        return self.leaders.changes if self.leaders else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values in full precision; a number that is not finite becomes None."""
        return {key: json_values(value) for key, value in asdict(self).items()}


def json_values(value: Any) -> Any:
    """Dataclasses, arrays and NumPy numbers as plain JSON values; a number that is not finite becomes None."""
    if isinstance(value, np.ndarray):
        return json_values(value.tolist())
    if isinstance(value, dict):
        return {str(key): json_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(one) for one in value]
    if isinstance(value, np.generic):
        return json_values(value.item())
    if value is pd.NA:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json_values(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value


def fit_report(
    df: pd.DataFrame,
    metric: str = "fid",
    *,
    base: str | None = None,
    guidance: float = 1.0,
    resamples: int | None = None,
    seed: int = 0,
    hold_out: bool = False,
    amortize_over: float = 1.0,
    others: Mapping[str, pd.DataFrame] | None = None,
) -> FitReport:
    """Fit `metric` (fid, loss or rfid) of a tidy table and answer what it can.

    `base` names the arm that multipliers compare with (default: the arm `base`, else the first). FID is taken at
    `guidance`. `resamples` stand behind the intervals (default: 1,000; 400 for more than eight arms). `hold_out` fits
    without each arm's largest size, predicts it and scores the prediction. A tokenizer's
    FLOPs are counted to `amortize_over` generators. `others` are the same runs under other protocols, by name: the
    optimum must hold there. Same table and `seed`, same report. Arms that cannot be fitted are named and left out.
    Raises TableError.
    """
    column = METRICS.get(metric, metric)
    table = select(df, metric, guidance)
    resamples = resamples or (RESAMPLES if table["arm"].nunique() <= FEW_ARMS else RESAMPLES_OF_MANY)
    fitted, held = holdout.split_largest(table) if hold_out and metric != "rfid" else (table, table.iloc[:0])
    fits, left = ([], []) if metric == "rfid" else fit_arms(fitted, column, resamples, seed)
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
    targets, ratios = ([], []) if "multipliers" in notes else _multipliers(fits, str(chosen), over, amortize_over)
    if not targets:
        notes.setdefault("multipliers", "none: no arm's envelope takes the base's values within the data")
    spread = measured_spread(table, column)
    names = [fit.name for fit in fits]
    second, reason = by_kid(fitted, names, optimum) if metric == "fid" else (None, "")
    guided = by_best_guidance(_kept(df, fitted), column, optimum, resamples, seed)
    floor = _largest(table, "bias_floor")
    doubted = [] if metric != "fid" else _doubted(optimum, second, floor)
    knobs = [] if metric != "fid" else knob_optima(fits, column, [o.compute for o in optimum], spread.run, over, chosen)
    predictions = holdout.predict(fits, held, seed) if hold_out else []
    warnings = _warnings(metric, table, fits, optimum, second, reason, rates, doubted)
    if metric != "rfid":
        warnings += by_epochs(fitted, column, fits, optimum) + unequal_seeds(df)
    seen = {what: _kept(rows, fitted) for what, rows in (others or {}).items()}
    warnings += by_protocols(seen, column, names, optimum) + (guided.cautions if guided else [])
    return FitReport(
        plan=str(df["plan"].iloc[0]) if "plan" in df else "",
        metric=metric,
        column=column,
        guidance=guidance,
        runs=int(df["run"].nunique()),
        states={str(k): int(v) for k, v in df.groupby("run")["state"].first().value_counts().items()},
        protocol=_protocol(table, metric),
        compute_said=compute_line(table["protocol"].dropna().unique() if "protocol" in table else ()),
        bias_floor=floor,
        objective=fits[0].fit.objective if fits else "",
        spread=spread,
        noise=_noise_said(metric, spread, fits),
        resamples=resamples,
        seed=seed,
        base=chosen,
        length_unit=str(table["length_unit"].iloc[0]) if "length_unit" in table else "images",
        arms=reconstructions(table) if metric == "rfid" else [summarise(fit, table, seed) for fit in fits],
        rates=rate_distortion(table).to_dict("records") if metric == "rfid" else [],
        left_out=left,
        ranked=ranked_pairs(fits),
        optimum=optimum,
        undecided=doubted,
        second_optimum=second,
        guided=guided,
        leaders=led,
        knobs=knobs,
        targets=targets,
        multipliers=ratios,
        amortize_over=amortize_over,
        hold_out="largest" if hold_out else None,
        predictions=predictions,
        score=holdout.score(predictions, held, column) if hold_out else None,
        notes=notes,
        warnings=warnings,
    )


def _kept(rows: pd.DataFrame, fitted: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that the laws saw: what is held out must not speak through another metric either."""
    return rows[rows["run"].isin(fitted["run"])]


def _base(names: list[str]) -> str | None:
    return "base" if "base" in names else names[0] if names else None


def _notes(metric: str, fits: list[ArmFit], table: pd.DataFrame, left: list[LeftOut]) -> dict[str, str]:
    """Why a section has nothing to say."""
    if metric == "rfid":
        return dict.fromkeys(("optimum", "multipliers"), "rFID has no generator axis: no law, no optimum")
    if metric == "loss":
        if all(name not in table or table[name].nunique() < 2 for name in ("tokens_per_image", "codebook_size")):
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


def _multipliers(
    fits: list[ArmFit], base: str, over: list[str], amortize_over: float
) -> tuple[list[float], list[ArmMultipliers]]:
    measured = {
        fit.name: Measured(fit.fit, fit.arm, mean(fit.rows, "rfid"), mean(fit.rows, "tokenizer_compute"), fit.rows)
        for fit in fits
        if fit.name not in over
    }
    if base not in measured or len(measured) < 2:
        return [], []
    others = [one for name, one in measured.items() if name != base]
    return multipliers(measured[base], others, amortize_over=amortize_over)


def _noise_said(metric: str, spread: Spread, fits: list[ArmFit]) -> str:
    """What repeats measured, and how many times that the laws' residuals are."""
    if metric == "loss" and spread.assumed:
        return "not measured: nothing was repeated"
    times = [over_noise(fit.fit.residual, spread) for fit in fits]
    known = sorted(one for one in times if math.isfinite(one))
    if not known:
        return described(spread)
    span = f"{known[0]:.1f}" if f"{known[0]:.1f}" == f"{known[-1]:.1f}" else f"{known[0]:.1f} to {known[-1]:.1f}"
    return f"{described(spread)}; the laws' residuals are {span} times it"


def _doubted(optimum: list[Recommendation], second: list[Recommendation] | None, floor: float | None) -> list[float]:
    kid = {one.compute: one for one in second or ()}
    return [one.compute for one in optimum if undecided(one, floor, kid.get(one.compute))]


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
    doubted: list[float],
) -> list[str]:
    found = cautions.tokenizer_seeds(fits)
    found += cautions.held_out(fits) + cautions.lack_of_fit(fits)
    if metric == "fid":
        found += cautions.head_share(table) + cautions.learning_rate(table) + cautions.thin_axes(table)
        found += cautions.bias_floor(doubted, table) + cautions.second_metric(optimum, second, reason)
    if metric != "rfid":
        found += cautions.scales(fits) + cautions.floors(fits) + cautions.epochs(table)
    return found + cautions.lost(rates)
