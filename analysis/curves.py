"""Laws of ONE input by groups of runs, where the curves cross, and how much less of the input one needs than another.

    report = fit_curves(table, "gfid", x="compute", by="arm", law="power_floor")
    report.groups[0].parameters["alpha"], report.crossings, report.to_dict(), render(report)

What a curve through runs of several sizes and lengths means is said by its warnings; the joint law of sizes and lengths
and the optimum are `analysis.report`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.curve_groups import Ask, Estimate, Fitted, Group, fit_group
from analysis.curve_printing import render
from analysis.fitting import Fit, interval
from analysis.form import Array
from analysis.inputs import ALIASES, FitError, column
from analysis.joint import together
from analysis.laws import LAWS
from analysis.multipliers import NARROWEST, REACH, Multiplier
from analysis.optimum import GRID
from analysis.pair import Crossing, crossing_of_segments, crossings, multiplier_draws, reaches, shared_shape
from analysis.report import json_values
from analysis.table import BY_NAME, by_run

__all__ = ["CurvesReport", "fit_curves", "render"]

ONE_INPUT = tuple(name for name, law in LAWS.items() if len(law.inputs) == 1)
MARKS = (0.15, 0.5, 0.85)  # where in the shared range of ln y multipliers are given
OF_CODES = ("loss", "loss_train", "loss_per_image", "bits_per_pixel")  # what another tokenizer's codes make anew
FEWEST_DRAWS = 20
# what by_run and the warnings read, and what stands in for a column that the table lacks
DESIGN = {"run": None, "arm": "all", "params": np.nan, "images_seen": np.nan}


@dataclass(frozen=True)
class LeftOut:
    """A group without a law, and why."""

    group: str
    reason: str


@dataclass(frozen=True)
class Meeting:
    """Where two groups' curves meet inside the data of both, by their laws or, without, by `segments` between points.

    `lower` leads throughout where they do not meet, in the share `agreement` of draws. `reason` says what forbids it.
    """

    first: str
    second: str
    segments: bool = False
    crossings: tuple[Crossing, ...] = ()
    lower: str | None = None
    agreement: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Led:
    """The group with the lowest curve from `low` to `high`, within the data of every group that has a law."""

    low: float
    high: float
    group: str


@dataclass(frozen=True)
class GroupMultiplier:
    """x of the base over x of `group` at an equal metric, above 1: the group needs less.

    `shared` holds where one shape is not rejected (`p_value`); else `values` at the report's targets for the group
    (None: out of range), with intervals of draws. `reason` says why there is neither, or no test.
    """

    group: str
    p_value: float | None = None
    shared: Estimate | None = None
    values: tuple[Multiplier, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class CurvesReport:
    """All that `scaling fit --x X --by COLUMN` says; `fits` and `rows` (points fitted) are by group, for more."""

    plan: str
    column: str
    x: str
    by: str
    law: str
    points: str
    objective: str
    level: float
    draws: int
    seed: int
    protocol: str
    base: str | None
    groups: list[Group]
    left_out: list[LeftOut]
    leaders: list[Led]
    crossings: list[Meeting]
    multipliers: list[GroupMultiplier]
    notes: dict[str, str]
    warnings: list[str]
    fits: dict[str, Fit] = field(default_factory=dict, repr=False)
    rows: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values in full precision; a number that is not finite becomes None."""
        plain = asdict(replace(self, fits={}, rows={}))
        return {key: json_values(value) for key, value in plain.items() if key not in ("fits", "rows")}


def fit_curves(
    table: pd.DataFrame,
    column: str,
    *,
    x: str,
    by: str = "arm",
    law: str = "power_floor",
    points: str = "all",
    base: str | None = None,
    objective: str = "ls",
    delta: float = 1e-3,
    residual: str = "log",
    level: float = 0.95,
    draws: int = 400,
    seed: int = 0,
) -> CurvesReport:
    """Fit `law` of `x` (columns or their symbols) to `column` for each value of `by`, and compare the curves.

    `table` is validated and tidy; its runs in state done count, repeats averaged. `law` is one of ONE_INPUT or auto
    (AICc). `points`: all, or frontier (`analysis.frontier`, with its intervals). `base` is the group that multipliers
    compare with (default: the group `base`, else the first). `objective`, `delta`, `residual`: `fit_law`'s.
    Groups that cannot be fitted are named with the reason. Same table and `seed`, same report.
    Raises FitError: unknown columns, laws, points, base; the frontier by anything but least squares of ln y.
    """
    x, column, by = (ALIASES.get(name, name) if name not in table else name for name in (x, column, by))
    options = {"objective": objective, "delta": delta, "residual": residual}
    ask = Ask(column, x, law, points, level, draws, options)
    _refuse(table, ask, by)
    runs = _runs(table, column, x, by)
    parts = _parts(runs, by)
    if base is not None and base not in parts:
        raise FitError(f"base {base!r} is none of the groups by {by}: {', '.join(parts) or 'none'}")
    fitted: dict[str, Fitted] = {}
    left: list[LeftOut] = []
    streams = np.random.SeedSequence(seed).generate_state(max(1, len(parts)))
    for (name, rows), stream in zip(parts.items(), streams, strict=False):
        try:
            fitted[name] = fit_group(name, rows, ask, int(stream))
        except FitError as error:
            left.append(LeftOut(name, f"{len(rows)} runs: {error}"))
    chosen = base or ("base" if "base" in parts else next(iter(fitted), None))
    forbidden, caution = _incomparable(column, list(parts.values()))
    notes = dict.fromkeys(("crossings", "multipliers"), forbidden) if forbidden else {}
    led, met, ratios = ([], [], []) if forbidden else _compared(fitted, parts, chosen, ask, notes)
    return CurvesReport(
        plan=str(table["plan"].iloc[0]) if "plan" in table and len(table) else "",
        column=column,
        x=x,
        by=by,
        law=law,
        points=points,
        objective=next((one.fit.loss.described() for one in fitted.values()), objective),
        level=level,
        draws=draws,
        seed=seed,
        protocol=_protocol(runs, column),
        base=chosen,
        groups=[one.group for one in fitted.values()],
        left_out=left,
        leaders=led,
        crossings=met,
        multipliers=ratios,
        notes=notes,
        warnings=[*caution, *_warnings(fitted, parts, x, by, points)],
        fits={name: one.fit for name, one in fitted.items()},
        rows={name: one.rows for name, one in fitted.items()},
    )


# ---------------------------------------------------------------------------------------------- the table


def _refuse(table: pd.DataFrame, ask: Ask, by: str) -> None:
    for name in (ask.column, ask.x, by):
        column(table, name)
    if ask.law not in (*ONE_INPUT, "auto"):
        raise FitError(f"a curve takes a law of one input ({', '.join((*ONE_INPUT, 'auto'))}), not {ask.law!r}")
    if ask.points not in ("all", "frontier"):
        raise FitError(f"points {ask.points!r} is none of all, frontier")
    if ask.points == "frontier" and (ask.options["objective"], ask.options["residual"]) != ("ls", "log"):
        raise FitError("the frontier is fitted by least squares of ln y alone; leave objective and residual")
    if not 0 < ask.level < 1 or ask.draws < FEWEST_DRAWS:
        raise FitError(f"level {ask.level} must lie between 0 and 1, draws {ask.draws} be at least {FEWEST_DRAWS}")


def _runs(table: pd.DataFrame, y: str, x: str, by: str) -> pd.DataFrame:
    """Finished runs, one row each, with all that by_run sorts by."""
    done = table[table["state"] == "done"] if "state" in table else table
    done = done.assign(**{name: value for name, value in DESIGN.items() if name not in done})
    if done["run"].isna().all():
        done = done.assign(run=[f"row {index}" for index in done.index])
    done = done[done[by].notna() & pd.to_numeric(done[x], errors="coerce").gt(0)]
    order = {value: place for place, value in enumerate(done[by].unique())}
    runs = by_run(done, y)
    if runs["run"].duplicated().any():  # a name stands once in an arm, not in a table
        runs["run"] = runs["arm"].map(str) + "/" + runs["run"].map(str)
    return runs.sort_values(by, key=lambda values: values.map(order), kind="stable").reset_index(drop=True)


def _parts(runs: pd.DataFrame, by: str) -> dict[str, pd.DataFrame]:
    """Rows by group: numbers ascending, words in the table's order."""
    numeric = pd.api.types.is_numeric_dtype(runs[by])
    return {
        f"{value:.12g}" if numeric else str(value): rows.reset_index(drop=True)
        for value, rows in runs.groupby(by, sort=bool(numeric))
    }


def runs_by_group(table: pd.DataFrame, report: CurvesReport) -> dict[str, pd.DataFrame]:
    """The runs of a report's groups, one row each, from the table it was made from."""
    return _parts(_runs(table, report.column, report.x, report.by), report.by)


def _protocol(runs: pd.DataFrame, y: str) -> str:
    if y in OF_CODES:
        return f"{BY_NAME[y].meaning}, {BY_NAME[y].unit}"
    said = runs["protocol"].dropna() if "protocol" in runs else pd.Series(dtype=object)
    return str(said.iloc[0]) if len(said) else "protocol unknown"


def _incomparable(y: str, parts: Sequence[pd.DataFrame]) -> tuple[str, list[str]]:
    """Why groups do not compare at all, and what to say where they do."""
    if y not in OF_CODES or len(parts) < 2:
        return "", []
    differing, unknown = [], []
    for name in ("codebook_size", "tokens_per_image"):
        values = {value for rows in parts for value in (rows[name].dropna().unique() if name in rows else ())}
        differing += [name] if len(values) > 1 else []
        unknown += [name] if not values else []
    unit = "nats per token" if y in ("loss", "loss_train") else f"{y} of another tokenizer's codes"
    if differing:
        return f"none: {' and '.join(differing)} differ, and {unit} do not compare; use gfid", []
    known = f" ({' and '.join(unknown)} not in the table)" if unknown else ""
    return "", [f"{y} compares only where the codes are the same: a lower one is not a better image{known}."]


def _warnings(
    fitted: Mapping[str, Fitted], parts: Mapping[str, pd.DataFrame], x: str, by: str, points: str
) -> list[str]:
    found = []
    if by == "arm" and all(
        rows["tokenizer_seed"].nunique() == 1 if "tokenizer_seed" in rows else False for rows in parts.values()
    ):
        found.append("1 tokenizer seed an arm: intervals hold for THESE tokenizers, not for what sets the arms apart.")
    mixed = {
        name: [key for key in ("params", "images_seen") if one.rows[key].nunique() > 1 and key != x]
        for name, one in fitted.items()
    }
    if points == "all" and x.startswith("compute") and any(len(one) == 2 for one in mixed.values()):
        found.append(
            "runs of several sizes and lengths on one curve of compute: those off the best size lie above it; "
            "use points = frontier or the joint law."
        )
    elif x in ("params", "tokens_seen", "images_seen"):
        other = "training lengths" if x == "params" else "sizes"
        what = f"several {other} on one curve" if any(mixed.values()) else f"{other} are not in the law"
        holds = "the floor holds" if any(one.group.floor for one in fitted.values()) else "the exponent bears"
        found.append(f"{what}: {holds} what the other input leaves, and is not of {x} alone.")
    for name, rows in parts.items():
        if by != "arm" and "arm" in rows and rows["arm"].nunique() > 1:
            found.append(f"{name} holds {rows['arm'].nunique()} arms ({', '.join(map(str, rows['arm'].unique()))}).")
    weak = [name for name, one in fitted.items() if one.group.floor_identified is False]
    if weak:
        found.append(f"{', '.join(weak)}: floor not identified (its interval reaches 0).")
    return found + together((name, text) for name, one in fitted.items() for text in one.group.warnings)


# -------------------------------------------------------------------------------------------- comparisons


def _compared(
    fitted: Mapping[str, Fitted], parts: Mapping[str, pd.DataFrame], base: str | None, ask: Ask, notes: dict[str, str]
) -> tuple[list[Led], list[Meeting], list[GroupMultiplier]]:
    """Leaders, meetings of each pair and multipliers over the base; `notes` gets the reason of what is missing."""
    if len(parts) < 2:
        notes |= dict.fromkeys(("crossings", "multipliers"), "none: one group")
        return [], [], []
    met = [_meeting(one, other, fitted, parts, ask) for one, other in combinations(parts, 2)]
    led = _leaders(list(fitted.values()))
    if not led and len(fitted) > 1:
        notes["leaders"] = f"none: no {ask.x} is covered by every group with a law"
    if base not in fitted or len(fitted) < 2:
        reason = "one group has a law" if base in fitted else f"the base {base!r} has no law"
        notes["multipliers"] = f"none: {reason}"
        return led, met, []
    others = [one for name, one in fitted.items() if name != base]
    return led, met, [_multiplier(fitted[str(base)], one, ask) for one in others]


def _grid(spans: Sequence[tuple[float, float]]) -> Array | None:
    """ln x over what all spans share, or None."""
    low, high = max(low for low, _ in spans), min(high for _, high in spans)
    return np.linspace(low, high, GRID) if low < high else None


def _rows(one: Fitted, other: Fitted, log_x: Array) -> tuple[Array, Array]:
    """Both curves [1 + draws, G]; the points alone where either has no draws."""
    first, second = one.logs(log_x), other.logs(log_x)
    count = min(len(first), len(second))
    return first[:count], second[:count]


def _meeting(
    one: str, other: str, fitted: Mapping[str, Fitted], parts: Mapping[str, pd.DataFrame], ask: Ask
) -> Meeting:
    if one not in fitted or other not in fitted:
        try:
            found = crossing_of_segments(parts[one], parts[other], ask.x, ask.column)
        except FitError as error:
            return Meeting(one, other, segments=True, reason=str(error))
        return Meeting(one, other, segments=True, crossings=tuple(found))
    log_x = _grid([fitted[one].span, fitted[other].span])
    if log_x is None:
        return Meeting(one, other, reason=f"no {ask.x} in the data of both")
    first, second = _rows(fitted[one], fitted[other], log_x)
    crossed = tuple(crossings(log_x, first, second, ask.level))
    if crossed:
        return Meeting(one, other, crossings=crossed)
    ahead = first < second if first[0, 0] < second[0, 0] else first > second
    agreement = float(np.mean(ahead[1:].all(axis=1))) if len(ahead) > 1 else None
    return Meeting(one, other, lower=one if first[0, 0] < second[0, 0] else other, agreement=agreement)


def _leaders(fits: Sequence[Fitted]) -> list[Led]:
    log_x = _grid([one.span for one in fits]) if len(fits) > 1 else None
    if log_x is None:
        return []
    best = np.argmin([one.logs(log_x)[0] for one in fits], axis=0)
    starts = np.r_[0, np.flatnonzero(np.diff(best)) + 1]
    ends = np.r_[starts[1:], len(best) - 1]
    return [
        Led(float(np.exp(log_x[i])), float(np.exp(log_x[j])), fits[best[i]].group.name)
        for i, j in zip(starts, ends, strict=True)
    ]


def _multiplier(base: Fitted, other: Fitted, ask: Ask) -> GroupMultiplier:
    """By one shape where it is not rejected; at three values of the metric by draws otherwise."""
    p_value, reason = None, ""
    if ask.points == "all":
        try:
            found = shared_shape(base.fit, other.fit, ask.level)
            if found.agree:
                return GroupMultiplier(other.group.name, found.p_value, Estimate(*found.kappa))
            p_value = found.p_value
        except FitError as error:
            reason = f"shapes not tested: {error}"
    else:
        reason = "shapes not tested: the points are chosen"
    values = _at_targets(base, other, ask.level)
    if not values:
        reason = "; ".join(filter(None, (reason, f"no {ask.column} that both curves take within their data")))
    return GroupMultiplier(other.group.name, p_value, values=tuple(values), reason=reason)


def _at_targets(base: Fitted, other: Fitted, level: float) -> list[Multiplier]:
    ends = [one.logs(np.array(one.span))[0] for one in (base, other)]  # ln y at the least and the greatest x
    low, high = max(end[1] for end in ends), min(end[0] for end in ends)
    if not high - low > NARROWEST:
        return []
    first, second = min(base.span[0], other.span[0]), max(base.span[1], other.span[1])
    log_x = np.linspace(first - np.log(REACH), second + np.log(REACH), 2 * GRID)
    curves = _rows(base, other, log_x)
    found = []
    for target in _round_between(high - (high - low) * np.array(MARKS), low, high):
        ratio = multiplier_draws(reaches(log_x, curves[0], target), reaches(log_x, curves[1], target))
        ends_of = interval(ratio[1:], level) if len(ratio) > 1 else (float("nan"), float("nan"))
        found.append(Multiplier(target, float(ratio[0]), *ends_of))
    return found


def _round_between(logs: Array, low: float, high: float) -> list[float]:
    """exp(logs) with as few significant digits as keep them distinct and inside (low, high), which are logs too."""
    for digits in (2, 3, 4):
        found = [float(f"{value:.{digits}g}") for value in np.exp(logs)]
        if len(set(found)) == len(found) and all(low < np.log(value) < high for value in found):
            return found
    return [float(value) for value in np.exp(logs)]
