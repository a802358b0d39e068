"""The results database: plans, stages, runs, what was measured and fitted. Files are the truth, this is the index.

Only drivers and the commands that mend or import write; workers never open it. Every method is one transaction, or
part of the one around it (`with store.transaction():`), so a stage's summary and its state change together.
Opening and transactions are `scaling.database`'s, claims `scaling.leases`'s, imports `scaling.imports`'s, the tidy rows
`scaling.tidy`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scaling.database import NoResults, StoreError, open_database
from scaling.imports import ImportRow, Imports, imported_columns, tidy_table
from scaling.leases import Attempt, AttemptRow, DriverLease, LeaseLost, Leases, Locked, StageCancelled
from scaling.schema import artifacts, edges, fits, imports, metrics, plan_stages, plans, runs, stages, summaries
from scaling.tidy import Scalar, decode, encode, tidy_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "STATES",
    "Attempt",
    "AttemptRow",
    "DriverLease",
    "FitRow",
    "ImportRow",
    "LeaseLost",
    "Locked",
    "NoResults",
    "PlanRow",
    "RunRecord",
    "StageCancelled",
    "StageRecord",
    "StageRow",
    "Store",
    "StoreError",
]

STATES = ("pending", "running", "done", "diverged", "failed", "cancelled")  # of a stage


@dataclass(frozen=True)
class StageRecord:
    """A stage as a plan asks for it. `payload` is what the fingerprint hashes; `why` says why this plan needs it."""

    fingerprint: str
    kind: str
    name: str
    payload: Mapping[str, Any]
    recipe: int
    flops: float | None = None
    params: int | None = None
    why: str = ""


@dataclass(frozen=True)
class StageRow(StageRecord):
    """A stage as recorded, with its state, its newest attempt's number (0: none) and its parents' fingerprints."""

    state: str = "pending"
    attempt: int = 0
    message: str = ""
    created: float = 0.0
    updated: float = 0.0
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """A run: its static columns and its stages, {"tokenizer": fingerprint, ..., "evaluations": [fingerprint, ...]}.

    `evaluations`: static columns of each evaluation (evaluation_seed, guidance), in the order of those stages.
    """

    name: str
    columns: Mapping[str, Any]
    stages: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]] = field(default=())


@dataclass(frozen=True)
class PlanRow:
    """A plan as it was last swept."""

    id: int
    name: str
    sha256: str
    text: str
    resolved: Mapping[str, Any]
    created: float
    updated: float
    git_commit: str | None
    dirty: bool | None
    versions: Mapping[str, str] | None


@dataclass(frozen=True)
class FitRow:
    """A stored fit: what was asked, the points it saw, what came out."""

    id: int
    created: float
    plan: str | None
    metric: str
    protocol: str
    options: Any
    points: Any
    result: Any


class Store(Leases, Imports):
    """An open results database. Every method raises StoreError, one line, where the database cannot do as asked."""

    @classmethod
    def open(cls, location: str | Path, *, create: bool, readonly: bool = False) -> Store:
        """Open a path (SQLite) or URL (sqlite:///..., postgresql://...).

        `create` makes the database; without it a missing one is refused. An older one is brought up to date. `readonly`
        writes nothing at all, reads an older one as it is, and refuses every writing method. A newer one is refused.
        """
        engine, path = open_database(location, create=create, readonly=readonly)
        return cls(engine, path, readonly=readonly)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------- plans

    def record_plan(
        self, name: str, sha256: str, text: str, resolved: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> int:
        """Record a plan and return its id; a plan of that name keeps its id and takes the new text (none is kept).

        Raises StoreError where an import has that name.
        """
        now = time.time()
        code = {key: provenance.get(key) for key in ("git_commit", "dirty", "versions")}
        values = {"sha256": sha256, "text": text, "resolved": resolved, "updated": now, **code}
        with self.transaction() as connection:
            if connection.execute(sa.select(imports.c.id).where(imports.c.name == name)).first():
                raise StoreError(f"{self.place}: {name} is the name of an import; give the plan another")
            insert = self._insert(plans).values(name=name, created=now, **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))
            return int(connection.execute(sa.select(plans.c.id).where(plans.c.name == name)).scalar_one())

    def plans(self) -> list[PlanRow]:
        """All plans, in the order in which they were first recorded."""
        rows = self._query(lambda c: c.execute(sa.select(plans).order_by(plans.c.id)).mappings().all())
        return [PlanRow(**row) for row in rows]

    def plan(self, name: str) -> PlanRow | None:
        """The plan of that name."""
        return next((plan for plan in self.plans() if plan.name == name), None)

    def record_stages(
        self, plan_id: int, records: Sequence[StageRecord], parents: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Make `records` the plan's stages, in this order; `parents` are (child, parent) fingerprints.

        A stage that is known keeps its state and attempts; one that the plan no longer asks for leaves the plan only.
        """
        now = time.time()
        fresh = {"state": "pending", "attempt": 0, "message": "", "created": now, "updated": now}
        rows, places = [], []
        for position, record in enumerate(records):
            values = dict(vars(record))
            place = {"plan": plan_id, "stage": record.fingerprint, "position": position, "why": values.pop("why")}
            places.append(place)
            rows.append(values | fresh)
        links = [{"child": child, "parent": parent} for child, parent in parents]
        with self.transaction() as connection:
            connection.execute(sa.delete(plan_stages).where(plan_stages.c.plan == plan_id))
            if rows:
                connection.execute(self._upsert(stages, *fresh), rows)
                connection.execute(sa.insert(plan_stages), places)
            if links:
                connection.execute(self._insert(edges).on_conflict_do_nothing(), links)

    def record_runs(self, plan_id: int, records: Sequence[RunRecord]) -> None:
        """Make `records` the plan's runs, in this order."""
        rows = [{**vars(record), "plan": plan_id, "position": place} for place, record in enumerate(records)]
        with self.transaction() as connection:
            connection.execute(sa.delete(runs).where(runs.c.plan == plan_id))
            if rows:
                connection.execute(sa.insert(runs), rows)

    def runs(self, plan_id: int) -> list[RunRecord]:
        """The plan's runs in order."""
        query = sa.select(runs.c.name, runs.c.columns, runs.c.stages, runs.c.evaluations)
        query = query.where(runs.c.plan == plan_id).order_by(runs.c.position)
        return [RunRecord(**row) for row in self._query(lambda c: c.execute(query).mappings().all())]

    # -------------------------------------------------------------------------------------- stages

    def stages(self, plan_id: int | None = None) -> dict[str, StageRow]:
        """The stages of a plan by fingerprint, in the order recorded; without a plan, all (and no `why`)."""

        def read(connection: Connection) -> dict[str, StageRow]:
            links = sa.select(edges).order_by(edges.c.child, edges.c.parent)
            if plan_id is None:
                query = sa.select(stages).order_by(stages.c.created, stages.c.fingerprint)
            else:
                mine = plan_stages.c.plan == plan_id
                links = links.where(edges.c.child.in_(sa.select(plan_stages.c.stage).where(mine)))
                joined = plan_stages.c.stage == stages.c.fingerprint
                query = sa.select(stages, plan_stages.c.why).join(plan_stages, joined)
                query = query.where(mine).order_by(plan_stages.c.position)
            parents: dict[str, list[str]] = {}
            for child, parent in connection.execute(links):
                parents.setdefault(child, []).append(parent)
            found = [dict(row) for row in connection.execute(query).mappings()]
            rows = [StageRow(**row, parents=tuple(parents.get(row["fingerprint"], ()))) for row in found]
            return {row.fingerprint: row for row in rows}

        return self._query(read)

    def set_state(self, fingerprint: str, state: str, message: str = "", *, at: float | None = None) -> None:
        """Set a stage's state, one of STATES, with a line that says why; `at` (Unix seconds) is now by default."""
        if state not in STATES:
            raise ValueError(f"{state!r} is no state of a stage; use one of {', '.join(STATES)}")
        values = {"state": state, "message": message, "updated": time.time() if at is None else at}
        with self.transaction() as connection:
            if not connection.execute(
                sa.update(stages).where(stages.c.fingerprint == fingerprint).values(values)
            ).rowcount:
                raise StoreError(f"{self.place}: no stage {fingerprint[:12]}; record the plan's stages first")

    def status(self, plan_id: int) -> dict[str, dict[str, int]]:
        """How many of the plan's stages are in which state, by kind: {"tokenizer": {"done": 4}, ...}."""
        query = sa.select(stages.c.kind, stages.c.state, sa.func.count()).group_by(stages.c.kind, stages.c.state)
        query = query.join(plan_stages, plan_stages.c.stage == stages.c.fingerprint).where(
            plan_stages.c.plan == plan_id
        )
        counts: dict[str, dict[str, int]] = {}
        for kind, state, count in self._query(lambda c: c.execute(query).all()):
            counts.setdefault(kind, {})[state] = count
        return counts

    # ------------------------------------------------------------------------------------- results

    def record_result(
        self,
        fingerprint: str,
        status: str,
        attempt: int,
        files: Mapping[str, Mapping[str, Any]],
        summary: Mapping[str, Scalar],
        rows: Sequence[Mapping[str, Any]],
        *,
        at: float | None = None,
    ) -> None:
        """Record all of a committed result (see `artifacts.commit`) at once: state, files, summary and metrics.

        `at` (Unix seconds) is when the work ended, now by default.
        """
        with self.transaction():
            self.set_state(fingerprint, status, at=at)
            self.set_artifacts(fingerprint, attempt, files)
            self.set_summary(fingerprint, summary)
            self.add_metrics(fingerprint, rows, replace=True)

    def add_metrics(self, fingerprint: str, rows: Sequence[Mapping[str, Any]], *, replace: bool = False) -> None:
        """Record rows {"step": int, name: number, ...}; a step and name recorded before is overwritten.

        `replace` first forgets all of the stage's metrics. Raises TypeError for a value that is no number.
        """
        values = []
        for row in rows:
            for name, given in row.items():
                if name != "step":
                    value, text, status = encode(given)
                    if text is not None:
                        raise TypeError(f"metric {name} is text, not a number: {text!r}")
                    values.append(_of(fingerprint, name=name, step=int(row["step"]), value=value, status=status))
        with self.transaction() as connection:
            if replace:
                connection.execute(sa.delete(metrics).where(metrics.c.stage == fingerprint))
            if values:
                connection.execute(self._upsert(metrics), values)

    def metrics(self, fingerprint: str) -> list[dict[str, Any]]:
        """A stage's metrics as rows {"step": int, name: number, ...}, in order of steps."""
        query = sa.select(metrics).where(metrics.c.stage == fingerprint).order_by(metrics.c.step, metrics.c.name)
        rows: dict[int, dict[str, Any]] = {}
        for _, name, step, value, status in self._query(lambda c: c.execute(query).all()):
            rows.setdefault(step, {"step": step})[name] = decode(value, None, status)
        return list(rows.values())

    def set_summary(self, fingerprint: str, values: Mapping[str, Scalar]) -> None:
        """Make `values` the stage's summary; its keys are columns of the tidy table. Raises TypeError."""
        rows = []
        for name, given in values.items():
            value, text, status = encode(given)
            rows.append(_of(fingerprint, name=name, value=value, text=text, status=status))
        with self.transaction() as connection:
            connection.execute(sa.delete(summaries).where(summaries.c.stage == fingerprint))
            if rows:
                connection.execute(sa.insert(summaries), rows)

    def summary(self, fingerprint: str) -> dict[str, Scalar]:
        """The stage's summary."""
        query = sa.select(summaries).where(summaries.c.stage == fingerprint).order_by(summaries.c.name)
        rows = self._query(lambda c: c.execute(query).all())
        return {row.name: decode(row.value, row.text, row.status) for row in rows}

    def set_artifacts(self, fingerprint: str, attempt: int, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Record an attempt's result files as its result.json lists them: {name: {"sha256", "bytes"}}."""
        rows = [_of(fingerprint, attempt=attempt, file=name, **dict(about)) for name, about in files.items()]
        with self.transaction() as connection:
            mine = (artifacts.c.stage == fingerprint) & (artifacts.c.attempt == attempt)
            connection.execute(sa.delete(artifacts).where(mine))
            if rows:
                connection.execute(sa.insert(artifacts), rows)

    def artifacts(self, fingerprint: str) -> list[dict[str, Any]]:
        """The stage's recorded files: {"stage", "attempt", "file", "sha256", "bytes"}."""
        query = sa.select(artifacts).where(artifacts.c.stage == fingerprint)
        query = query.order_by(artifacts.c.attempt, artifacts.c.file)
        return [dict(row) for row in self._query(lambda c: c.execute(query).mappings().all())]

    def load_runs(self, plan: str | None = None) -> pd.DataFrame:
        """The tidy table of a plan or an import, or of all, plans first: one row a run and evaluation.

        Columns: plan, run, state (done, diverged, degenerate, failed, running, pending), the runs' static columns, and
        the summaries of their stages; of an import, what it has. Raises StoreError for a name that is not recorded.
        """
        rows, found = self._query(lambda connection: (tidy_rows(connection, plan), imported_columns(connection, plan)))
        if plan is not None and not rows and not found and self.plan(plan) is None:
            known = ", ".join([*(row.name for row in self.plans()), *(row.name for row in self.imports())]) or "none"
            raise StoreError(f"{self.place}: no plan {plan}; recorded are: {known}")
        return tidy_table(rows, found)

    # ---------------------------------------------------------------------------------------- fits

    def save_fit(self, *, plan: str | None, metric: str, protocol: str, options: Any, points: Any, result: Any) -> int:
        """Store a fit with all it saw, and return its id."""
        values = {"plan": plan, "metric": metric, "protocol": protocol, "options": options}
        with self.transaction() as connection:
            insert = sa.insert(fits).values(**values, points=points, result=result, created=time.time())
            key = connection.execute(insert).inserted_primary_key
            assert key is not None
            return int(key[0])

    def fits(self, plan: str | None = None, *, whole: bool = True) -> list[FitRow]:
        """The stored fits of a plan, or all, oldest first; not `whole`, their points and results are left unread."""
        columns = [one for one in fits.c if whole or one.name not in ("points", "result")]
        query = sa.select(*columns).order_by(fits.c.id)
        if plan is not None:
            query = query.where(fits.c.plan == plan)
        left: dict[str, Any] = {} if whole else {"points": None, "result": None}
        return [FitRow(**{**row, **left}) for row in self._query(lambda c: c.execute(query).mappings().all())]

    def fit(self, number: int) -> FitRow:
        """One stored fit, whole. Raises StoreError where there is none of that number."""
        query = sa.select(fits).where(fits.c.id == number)
        row = self._query(lambda c: c.execute(query).mappings().first())
        if row is None:
            raise StoreError(f"{self.place}: no fit {number}")
        return FitRow(**row)


def _of(fingerprint: str, **values: Any) -> dict[str, Any]:
    return {"stage": fingerprint, **values}
