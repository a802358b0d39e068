"""From stored runs, stage states and summaries to the rows of the tidy table. Reads; knows no column's meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scaling.files import from_json
from scaling.schema import plan_stages, plans, runs, stages, summaries

ORDER = ("tokenizer", "tokens", "generator", "reconstruction")  # later stages win where they share a column's name
EXACT_INTEGER = 2**53  # up to here a float holds every integer
UNKNOWN = ("pending", 0.0)  # state and time of a stage that is not recorded

Scalar = float | int | str | None


def encode(value: Any) -> tuple[float | None, str | None, str]:
    """(value, text, status) of a scalar; status is what the value alone would not say. Raises TypeError."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return None, None, "null"
    if isinstance(value, bool):
        return float(value), None, "bool"
    if isinstance(value, int):
        return float(value), None, "int" if abs(value) <= EXACT_INTEGER else "ok"
    if isinstance(value, float):
        return (value, None, "ok") if math.isfinite(value) else (None, None, str(value))
    if isinstance(value, str):
        return None, value, "text"
    raise TypeError(f"{type(value).__name__} is neither number, text nor None: {value!r}")


def decode(value: float | None, text: str | None, status: str) -> Scalar:
    """The scalar that `encode` took."""
    if status == "ok":
        return value
    if status == "text":
        return text
    if value is None:
        return None if status == "null" else float(status)
    return bool(value) if status == "bool" else int(value)


def tidy_rows(connection: Connection, plan: str | None) -> list[dict[str, Any]]:
    """One row a run and evaluation (one a run without any), in the order of plans, runs and evaluations.

    `finished` is there where every stage is done: the Unix time at which the last of them was recorded so.
    Four queries whatever the number of runs.
    """
    chosen = sa.select(plans.c.id).where(plans.c.name == plan) if plan is not None else sa.select(plans.c.id)
    wanted = sa.select(plan_stages.c.stage).where(plan_stages.c.plan.in_(chosen))
    found = sa.select(stages.c.fingerprint, stages.c.state, stages.c.updated).where(stages.c.fingerprint.in_(wanted))
    states = {stage: (state, updated) for stage, state, updated in connection.execute(found).all()}
    values: dict[str, dict[str, Scalar]] = {}
    columns = (summaries.c.stage, summaries.c.name, summaries.c.value, summaries.c.text, summaries.c.status)
    # the driver's own tuples: a sweep has tens of summaries a run
    measured = connection.execute(sa.select(*columns).where(summaries.c.stage.in_(wanted))).cursor
    for stage, name, value, text, status in measured.fetchall() if measured is not None else ():
        values.setdefault(stage, {})[name] = value if status == "ok" else decode(value, text, status)
    texts = [sa.type_coerce(column, sa.Text) for column in (runs.c.columns, runs.c.stages, runs.c.evaluations)]
    query = (
        sa.select(plans.c.name, runs.c.name, *texts)
        .join(plans, plans.c.id == runs.c.plan)
        .where(runs.c.plan.in_(chosen))
        .order_by(plans.c.id, runs.c.position)
    )
    found_runs = connection.execute(query).all()
    # all of a column is decoded as one text: a decoder called for each would take most of the time
    parts = [from_json(f"[{','.join(row[i] for row in found_runs)}]") for i in (2, 3, 4)]
    return [
        row
        for run, *json in zip(found_runs, *parts, strict=True)
        for row in _rows_of_run((run[0], run[1], *json), states, values)
    ]


def _rows_of_run(
    run: Any, states: Mapping[str, tuple[str, float]], values: Mapping[str, Mapping[str, Scalar]]
) -> Iterator[dict[str, Any]]:
    plan, name, columns, parts, static = run
    shared = {part: parts[part] for part in _in_order(tuple(parts))}
    united = dict(columns)
    for stage in shared.values():
        united |= values.get(stage, {})
    degenerate = bool(values.get(shared.get("tokenizer", ""), {}).get("degenerate"))
    common = [states.get(stage, UNKNOWN) for stage in shared.values()]
    evaluations = parts.get("evaluations") or [None]
    for position, evaluation in enumerate(evaluations):
        own = static[position] if position < len(static) else {}
        found = common if evaluation is None else [*common, states.get(evaluation, UNKNOWN)]
        row = {"plan": plan, "run": name, "state": row_state((state for state, _ in found), degenerate)}
        ended = found and all(state == "done" for state, _ in found)
        last = {"finished": max(updated for _, updated in found)} if ended else {}
        yield {**row, **united, **own, **values.get(evaluation or "", {}), **last, **row}


@cache
def _in_order(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a run that all its rows share, later ones last."""
    shared = [part for part in parts if part != "evaluations"]
    return tuple(sorted(shared, key=lambda part: ORDER.index(part) if part in ORDER else -1))


def row_state(found: Iterable[str], degenerate: bool) -> str:
    """A row's state from those of its stages; a cancelled stage makes it failed."""
    states = set(found)
    if states <= {"done"}:
        return "degenerate" if degenerate else "done"
    if "diverged" in states:
        return "diverged"
    if degenerate:
        return "degenerate"
    if states & {"failed", "cancelled"}:
        return "failed"
    return "running" if "running" in states else "pending"
