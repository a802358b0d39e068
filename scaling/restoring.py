"""Filling a new results database from what was found: the rows of every table, with the times they had.

`scaling.rebuilding` decides what is to be restored and where the database comes to lie; nothing here writes a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from scaling import artifacts
from scaling.artifacts import CorruptArtifact, Layout
from scaling.database import StoreError
from scaling.files import read_json
from scaling.imports import imported_columns
from scaling.kept_imports import read_import
from scaling.kept_plans import RecordedPlan
from scaling.leases import ENDED
from scaling.recovery import ingest
from scaling.schema import attempts, edges, fits, imports, plans, stages
from scaling.stage_folders import AttemptFacts, StageFolder, attempt_facts
from scaling.store import Store

_UNREADABLE = (StoreError, ValueError, TypeError, KeyError)  # what reading a damaged database raises


class Restorer:
    """Restores into one new, empty database. What it made is in `counts`, what it has to say in the three lists."""

    def __init__(self, store: Store, layout: Layout, old: Store | None) -> None:
        self.store, self.layout, self.old = store, layout, old
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.lost: list[str] = []
        self._old_stages = {row["fingerprint"]: row for row in self._old_rows(stages)}
        self._old_attempts: dict[str, dict[int, dict[str, Any]]] = {}
        for row in self._old_rows(attempts):
            self._old_attempts.setdefault(row["stage"], {})[row["number"]] = row

    def restore(self, found: Sequence[RecordedPlan], folders: Mapping[str, StageFolder]) -> None:
        """Fill the database from `found`, in the order of their ids, and the stages on disk. Raises StoreError."""
        self._plans(found)
        created = {key: when for plan in found for key, when in plan.created.items()}
        self._loose_stages(folders)
        states = Counter(self._stage(key, folders.get(key), created.get(key)) for key in self.store.stages())
        names = {plan.row.name for plan in found}
        self._imports()
        self._fits()
        self.counts = {"plans": len(names), "runs": sum(len(plan.runs) for plan in found), **self.counts}
        self.counts |= {
            "stages": sum(states.values()),
            **{f"stages {state}": states[state] for state in sorted(states)},
        }

    # ----------------------------------------------------------------------------------------- plans

    def _plans(self, found: Sequence[RecordedPlan]) -> None:
        ids = {}
        for plan in found:
            row = plan.row
            code = {"git_commit": row.git_commit, "dirty": row.dirty, "versions": row.versions}
            ids[row.name] = self.store.record_plan(row.name, row.sha256, row.text, row.resolved, code)
        # a stage that several plans ask for has the name that the last of them gave it
        for plan in sorted(found, key=lambda one: one.row.updated):
            self.store.record_stages(ids[plan.row.name], plan.stages, plan.edges)
            self.store.record_runs(ids[plan.row.name], plan.runs)
        with self.store.transaction() as connection:
            for plan in found:
                times = {"created": plan.row.created, "updated": plan.row.updated}
                connection.execute(sa.update(plans).where(plans.c.id == ids[plan.row.name]).values(times))

    def _loose_stages(self, folders: Mapping[str, StageFolder]) -> None:
        """Stages on disk that no plan asks for any more, and how they hang together."""
        known = set(self.store.stages())
        loose = {key: folder for key, folder in folders.items() if key not in known}
        rows, links = [], []
        for key, folder in loose.items():
            was = self._old_stages.get(key, {})
            costs = {name: was.get(name) for name in ("flops", "params")}
            about = {"kind": folder.kind, "name": folder.name, "payload": dict(folder.identity)}
            state = {"state": "pending", "attempt": 0, "message": "", "created": folder.begun, "updated": folder.begun}
            rows.append({"fingerprint": key, **about, "recipe": int(folder.identity["recipe"]), **costs, **state})
            parents = sorted(set(folder.identity["parents"].values()))
            links += [{"child": key, "parent": parent} for parent in parents if parent in known or parent in loose]
        with self.store.transaction() as connection:
            if rows:
                connection.execute(sa.insert(stages), rows)
            if links:
                connection.execute(sa.insert(edges), links)
        if loose:
            self.lost.append(
                f"{len(loose)} stages on disk are in no plan that is known; are rows missing in `scaling runs`? "
                "Give their plan's file: scaling db rebuild PLAN"
            )

    # ---------------------------------------------------------------------------------------- stages

    def _stage(self, key: str, folder: StageFolder | None, created: float | None) -> str:
        """Restore a stage's result, attempts, state and times; returns its state."""
        was = self._old_stages.get(key, {})
        result = self._result(key, folder) if folder is not None else None
        if folder is None and was.get("state") in ENDED:
            self.left_out.append(f"{was['kind']} {was['name']}: was {was['state']}, its folder is gone; sweep it again")
        facts = {}
        if folder is not None:
            facts = {number: attempt_facts(folder.path, number) for number in Layout.attempt_numbers(folder.path)}
        newest = self._attempts(key, folder, facts, result)
        values = {"state": result["status"] if result else "pending", "message": ""}
        last = facts.get(newest)
        if not result and was.get("state") in ("failed", "cancelled"):
            values = {"state": was["state"], "message": was["message"]}
        elif not result and not was and last is not None and last.state == "failed":
            values = {"state": "failed", "message": last.message}
        times = {"created": created or (folder.begun if folder else None)}
        times["updated"] = self._ended(folder, facts, result) or times["created"]
        if was:
            times["created"] = was["created"]
            if (was["state"], was["attempt"]) == (values["state"], newest) or was["state"] == values["state"]:
                times["updated"] = was["updated"]
        values |= {"attempt": newest, **{name: when for name, when in times.items() if when is not None}}
        with self.store.transaction() as connection:
            connection.execute(sa.update(stages).where(stages.c.fingerprint == key).values(values))
        return str(values["state"])

    def _result(self, key: str, folder: StageFolder) -> dict[str, Any] | None:
        """Restore what was measured; None where the stage has no whole result."""
        path = Layout.result(folder.path)
        if not path.exists():
            if artifacts.adoptable(folder.path):
                self.notes.append(f"{folder.path}: finished, but never made a result; the next sweep takes it")
            return None
        found = artifacts.damage(folder.path, verify=True)
        if not found:
            try:
                mark = read_json(path)
                if mark.get("fingerprint") not in (None, key) or mark["status"] not in artifacts.RESULTS:
                    raise CorruptArtifact(f"{path}: not this stage's commit mark; delete it and run the sweep again")
                with self.store.transaction() as connection, connection.begin_nested():  # all of a result or nothing
                    ingest(self.store, folder.path, key, mark)
                return dict(mark)
            except CorruptArtifact as error:
                found = [str(error)]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                found = [f"{path}: cannot be recorded ({error!r}); delete it and run the sweep again"]
        self.left_out += found
        return None

    def _attempts(
        self,
        key: str,
        folder: StageFolder | None,
        facts: Mapping[int, AttemptFacts],
        result: Mapping[str, Any] | None,
    ) -> int:
        """Restore a stage's attempts: as the old database has them, else as their files tell; the newest's number."""
        known = self._old_attempts.get(key, {})
        rows = []
        for number in sorted(known.keys() | facts.keys()):
            about = facts.get(number)
            state = str(result["status"]) if result and result["attempt"] == number else about.state if about else ""
            row = known.get(number)
            if row is not None and row["state"] != "running":
                rows.append(row)
                continue
            ended = {"state": state or "lost", "ended": about.ended if about else None}
            ended["failure_class"] = "" if state else "driver_lost"
            ended["message"] = (about.message if about else "") or ("" if state else "no file says how it ended")
            if row is None:
                assert folder is not None
                assert about is not None
                row = {"stage": key, "number": number, "token": _token(folder, number), **vars(about.owner)}
                row |= {"started": about.started, "seed": folder.identity.get("seed")}
                row["log_path"] = str(Layout.log(folder.path, number))
                self.counts["attempts from files"] = self.counts.get("attempts from files", 0) + 1
                self.counts["attempts without an end"] = self.counts.get("attempts without an end", 0) + (not state)
            rows.append(row | ended)
        blank = dict.fromkeys(column.name for column in attempts.c)
        with self.store.transaction() as connection:
            if rows:
                connection.execute(sa.insert(attempts), [blank | row for row in rows])
        return max([*known, *facts], default=0)

    def _ended(
        self, folder: StageFolder | None, facts: Mapping[int, AttemptFacts], result: Mapping[str, Any] | None
    ) -> float | None:
        """When a stage came to its state by the files: the attempt's own time, for the mark itself has none."""
        if folder is None or not facts:
            return None
        about = facts.get(result["attempt"] if result else max(facts))
        if about is not None and about.ended is not None:
            return about.ended
        return Layout.result(folder.path).stat().st_mtime if result else None

    # ------------------------------------------------------------------------- imports, fits, the old

    def _imports(self) -> None:
        """Restore imports from their kept files, else from the old database; of several copies the last one counts."""
        copies: dict[str, list[tuple[float, Any]]] = {}
        for folder in self.layout.imports():
            try:
                created = float(read_json(Layout.import_mark(folder))["created"])
                table = read_import(folder)
            except CorruptArtifact as error:
                self.left_out.append(str(error))
            except (OSError, KeyError, TypeError, ValueError) as error:
                self.left_out.append(f"{folder}: not a kept import ({error!r}); import the original again")
            else:
                copies.setdefault(table.name, []).append((created, table))
        was = {row["name"]: row for row in self._old_rows(imports)}
        order = {name: (was[name]["created"] if name in was else min(c for c, _ in copies[name])) for name in copies}
        order |= {name: row["created"] for name, row in was.items()}
        place = {name: number for number, name in enumerate(was)}
        for name in sorted(order, key=lambda one: (place.get(one, len(place)), order[one])):
            try:
                with self.store.transaction() as connection, connection.begin_nested():
                    self._import(name, copies.get(name), was.get(name))
            except _UNREADABLE as error:
                self.left_out.append(f"import {name}: {error}")

    def _import(self, name: str, copies: list[tuple[float, Any]] | None, was: Mapping[str, Any] | None) -> None:
        if copies:
            created, table = max(copies, key=lambda copy: copy[0])
            about = (table.source.sha256, table.source.name, table.mapping, {"sets": table.sets}, table.columns)
        else:
            assert was is not None
            assert self.old is not None
            found = self.old._query(lambda c: imported_columns(c, name))
            options = {key: value for key, value in was["options"].items() if key not in ("columns", "rows")}
            about, created = (was["sha256"], was["file"], was["mapping"], options, found[0].columns), was["created"]
            self.notes.append(f"import {name}: no copy of its file is kept; its rows are the old database's")
        self.store.record_import(name, *about, created=created)
        self.counts["imports"] = self.counts.get("imports", 0) + 1

    def _fits(self) -> None:
        rows = self._old_rows(fits)
        if rows:
            with self.store.transaction() as connection:
                connection.execute(sa.insert(fits), rows)
            self.counts["fits"] = len(rows)
        if self.old is None:
            self.lost += [
                "fits: no file holds them; run scaling fit again",
                "cancellations: no file holds them; a cancelled stage is pending again",
                "times of results: those at which the work ended, some milliseconds before they were recorded",
            ]
            if self.counts.get("attempts from files"):
                self.lost.append(
                    "attempts: their devices, memory, durations, code versions and failure classes stand in no file"
                )
        if self.counts.get("attempts without an end"):
            self.lost.append(f"{self.counts['attempts without an end']} attempts left nothing that says how they ended")
        self.lost.append("drivers: no lease is restored; a sweep takes its own")

    def _old_rows(self, table: sa.Table) -> list[dict[str, Any]]:
        """All rows of a table of the old database in order of its keys; none, and a line, where it cannot be read."""
        if self.old is None:
            return []

        def read(connection: sa.Connection) -> list[dict[str, Any]]:
            if not sa.inspect(connection).has_table(table.name):
                return []
            rows = connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            return [dict(row) for row in rows]

        try:
            return self.old._query(read)
        except _UNREADABLE as error:
            self.left_out.append(f"{table.name} of the old database: {error}")
            return []


def _token(folder: StageFolder, number: int) -> str:
    try:
        lease = artifacts.read_lease(folder.path)
    except CorruptArtifact:
        return ""
    return lease.token if lease is not None and lease.attempt == number else ""
