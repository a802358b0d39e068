"""What stored fits know: the points they saw, and what they said before the largest size was trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scaling.store import FitRow, Store

if TYPE_CHECKING:
    import pandas as pd

    from analysis.holdout import Score
    from analysis.report import FitReport
    from scaling.fit import FitOptions

KEY = ("run", "evaluation_seed", "guidance", "protocol_hash")
SEEN = ("params", "tokens_seen", "compute")
# options that change what a fit sees or says of its points; where these differ, points are not compared
SAME = ("metric", "law", "x", "by", "where", "points", "hold_out", "guidance")


@dataclass(frozen=True)
class FitPoints:
    """The finished measurements a fit saw: their names, inputs and values at full precision."""

    rows: tuple[tuple[Any, ...], ...]
    columns: tuple[str, ...]

    @staticmethod
    def of(table: pd.DataFrame, column: str) -> FitPoints:
        """The points of `column` in rows done."""
        done = table[table["state"] == "done"]
        columns = tuple(name for name in (*KEY, *SEEN, column) if name in done)
        values = done[list(columns)].astype(object).where(done[list(columns)].notna(), None)
        return FitPoints(tuple(values.itertuples(index=False, name=None)), columns)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sha256(self) -> str:
        """Of the points in any order."""
        lines = sorted(map(repr, self._plain))
        return hashlib.sha256("\n".join([repr(self.columns), *lines]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "rows": self._plain, "sha256": self.sha256}

    @cached_property
    def _plain(self) -> list[list[Any]]:
        return [[one.item() if hasattr(one, "item") else one for one in row] for row in self.rows]


def what_changed(store: Store, plan: str, options: FitOptions, points: FitPoints) -> list[str]:
    """A line where the last fit that was asked the same saw other points: how many are new, gone and changed."""
    alike = [fit.id for fit in store.fits(plan, whole=False) if _asked_alike(fit, options)]
    last = store.fit(alike[-1]) if alike else None
    if last is None or not isinstance(last.points, dict) or last.points.get("sha256") == points.sha256:
        return []
    before, now = _by_name(last.points), _by_name(points.to_json())
    new, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(before[key] != now[key] for key in before.keys() & now.keys())
    parts = [f"{count} {what}" for count, what in ((new, "new"), (gone, "gone"), (changed, "changed")) if count]
    when = datetime.fromtimestamp(last.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [f"the points changed since fit {last.id} ({when}): {', '.join(parts) or 'other columns'}."]


def _asked_alike(fit: FitRow, options: FitOptions) -> bool:
    asked = json.loads(json.dumps(asdict(options)))
    return isinstance(fit.options, dict) and all(fit.options.get(name) == asked[name] for name in SAME)


def _by_name(points: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    columns = points["columns"]
    keys = [i for i, name in enumerate(columns) if name in KEY]
    rest = [i for i in range(len(columns)) if i not in keys]
    return {tuple(row[i] for i in keys): tuple(row[i] for i in rest) for row in points["rows"]}


def said_before_sight(
    store: Store, plan: str, options: FitOptions, report: FitReport, table: pd.DataFrame
) -> Score | None:
    """How the last fit stored before any held-out run ended did; without one, the report's own score, made after.

    A stored fit counts where it was asked the same under the same protocol and predicted the same size.
    """
    from analysis.holdout import from_rows, score, split_largest
    from analysis.table import select

    ready = select(table, options.metric, options.guidance)
    held = split_largest(ready)[1]
    done = held[held["state"] == "done"]
    ended = done["finished"].dropna() if "finished" in done else ()
    if not len(ended):
        return report.score
    first = float(min(ended))
    sizes = {one.size for one in report.predictions}
    for head in reversed(store.fits(plan, whole=False)):
        if head.created >= first or not _asked_alike(head, options) or head.protocol not in ("", report.protocol):
            continue
        fit = store.fit(head.id)
        said = fit.result.get("predictions") if isinstance(fit.result, dict) else None
        if not said:
            continue
        predictions = from_rows(said)
        if {one.size for one in predictions} == sizes:
            found = score(predictions, held, report.column)
            return None if found is None else replace(found, before=True, stored=fit.created, number=fit.id)
    return report.score
