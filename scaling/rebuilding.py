"""The results database made again from the files: stages, results, attempts, plans and imports under artifacts/.

The files are the truth. Of an old database that can still be read, only what no file holds is taken over: fits, times
at which results were recorded, what is known of attempts; it is read and renamed, never written. Nothing under
artifacts/ is written either. What a sweep keeps of its plan is `scaling.kept_plans`'s.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scaling.database import NoResults, StoreError
from scaling.files import CorruptArtifact, sync_to_disk
from scaling.kept_plans import RecordedPlan, read_plan, recorded_plan
from scaling.layout import Layout
from scaling.leases import STALE_AFTER, Locked
from scaling.provenance import Owner, alive
from scaling.restoring import Restorer
from scaling.schema import drivers
from scaling.stage_folders import stage_folders
from scaling.store import PlanRow, RunRecord, Store

BESIDE = ("", "-wal", "-shm")  # an SQLite database is these files


@dataclass
class Rebuilt:
    """What a rebuild found and made. `kept_as`: the old database's new name, None where there was none.

    `notes` say where things come from, `left_out` names damaged files, `lost` what no file holds; a line each.
    """

    path: str
    counts: dict[str, int] = field(default_factory=dict)
    kept_as: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def live_driver(store: Store, *, plans: Sequence[str] | None = None) -> Locked | None:
    """The refusal to raise while a driver of one of `plans` (None: of any) lives. Raises StoreError."""
    now = time.time()
    for row in store._query(lambda c: c.execute(sa.select(drivers).order_by(drivers.c.plan)).all()):
        holder = Owner(row.host, row.pid, row.boot_id)
        wanted = plans is None or row.plan in plans
        if wanted and alive(holder) is not False and row.heartbeat >= now - STALE_AFTER:
            return Locked(row.plan, holder, row.started)
    return None


def rebuild(database: str, root: Path, plan_files: Sequence[str] = (), *, dry_run: bool = False) -> Rebuilt:
    """Make the database at path `database` again from `root`/artifacts; a dry run makes it elsewhere and drops it.

    `plan_files` (or names of shipped plans) go before what is kept of plans of their names. The new database takes the
    old one's place when it is whole; the old one becomes `database`.old-N. Raises Locked while a driver of the old one
    lives, StoreError where there is nothing to read or the old one is of a newer version, PlanError, DataError.
    """
    if "://" in database:
        raise StoreError("rebuild makes an SQLite file; give a path with --db, not a URL")
    path, layout = Path(database).absolute(), Layout(root)
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: is not a file; give another --db")
    if not (root / "artifacts").is_dir():
        raise StoreError(f"{root}: has no folder artifacts; say with --from which folder has it")
    report = Rebuilt(str(path))
    with _old_database(path, report) as old:
        _refuse_driven(old)
        plans = _chosen_plans(layout, plan_files, old, report)
        folders, problems = stage_folders(layout)
        report.left_out += problems
        with _new_file(path, dry_run=dry_run) as new:
            with Store.open(new, create=True) as store:
                restorer = Restorer(store, layout, old)
                with store.transaction():
                    restorer.restore(plans, folders)
                report.counts = restorer.counts
                report.notes += restorer.notes
                report.left_out += restorer.left_out
                report.lost += restorer.lost
                report.counts["left out"] = len(report.left_out)
            if not dry_run:
                _refuse_driven(old)
                report.kept_as = _swap(new, path)
    return report


@contextlib.contextmanager
def _old_database(path: Path, report: Rebuilt) -> Iterator[Store | None]:
    """The database that is to be replaced, opened for reading; None where there is none or it cannot be read."""
    try:
        store = Store.open(path, create=False, readonly=True)
    except NoResults:
        yield None
        return
    except StoreError as error:
        if "newer scaling" in str(error):
            raise
        report.notes.append(f"the old database cannot be read ({error}); nothing is taken from it")
        yield None
        return
    with store:
        yield store


def _refuse_driven(old: Store | None) -> None:
    if old is None:
        return
    try:
        refusal = live_driver(old)
    except StoreError:
        return  # damaged; `restore` says so
    if refusal is not None:
        raise refusal


@contextlib.contextmanager
def _new_file(path: Path, *, dry_run: bool) -> Iterator[Path]:
    """Where to make the new database: beside the old one, or in a folder that goes away."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="scaling-rebuild-") as folder:
            yield Path(folder) / path.name
        return
    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        yield new
    finally:
        for suffix in BESIDE:
            new.with_name(new.name + suffix).unlink(missing_ok=True)


def _swap(new: Path, path: Path) -> str | None:
    """Give the new database its place; returns the old one's new name. A kill in between leaves both, renamed or not.

    The old one's log goes with it: beside the new one SQLite would play it into that.
    """
    if new.with_name(new.name + "-wal").exists():
        raise StoreError(f"{new}: still open elsewhere; try again")
    number = 1
    while any(path.with_name(f"{path.name}.old-{number}{suffix}").exists() for suffix in BESIDE):
        number += 1
    kept = path.with_name(f"{path.name}.old-{number}")
    there = [suffix for suffix in BESIDE if path.with_name(path.name + suffix).exists()]
    for suffix in there:
        path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    sync_to_disk(new)
    new.rename(path)
    sync_to_disk(path.parent)
    return str(kept) if "" in there else None


# ----------------------------------------------------------------------------------------------- plans


def _chosen_plans(layout: Layout, given: Sequence[str], old: Store | None, report: Rebuilt) -> list[RecordedPlan]:
    """One of each name, in the order in which they were first recorded: the given one, else the one swept last."""
    found: dict[str, list[RecordedPlan]] = {}
    for plan in [*_kept_plans(layout, report), *_old_plans(old, report)]:
        found.setdefault(plan.row.name, []).append(plan)
    chosen = {name: max(several, key=lambda one: one.row.updated) for name, several in found.items()}
    for file in given:
        plan = _planned(file)
        same = chosen.get(plan.row.name)
        chosen[plan.row.name] = _dated(plan, same.row) if same else plan
    first = {name: min(one.row.created for one in [chosen[name], *found.get(name, [])]) for name in chosen}
    for plan in chosen.values():
        report.notes.append(f"plan {plan.row.name}: {len(plan.runs)} runs, from {plan.origin}")
    return sorted(chosen.values(), key=lambda one: (first[one.row.name], one.row.name))


def _kept_plans(layout: Layout, report: Rebuilt) -> Iterator[RecordedPlan]:
    for text in layout.plan_texts():
        try:
            yield read_plan(text)
            continue
        except FileNotFoundError:
            pass
        except CorruptArtifact as error:
            report.left_out.append(str(error))
        try:
            plan = _planned(str(text))
        except Exception as error:  # the text may need images or variables that are not at hand
            from scaling.errors import exit_code

            if exit_code(error) is None and not isinstance(error, OSError):
                raise
            line = " ".join(str(error).split())
            report.left_out.append(f"{text}: not readable as a plan here ({line}); give the plan's file")
            continue
        when = text.stat().st_mtime
        yield _dated(plan, PlanRow(**{**vars(plan.row), "sha256": "", "created": when, "updated": when}), when)


def _old_plans(old: Store | None, report: Rebuilt) -> Iterator[RecordedPlan]:
    try:
        for row in old.plans() if old is not None else ():
            assert old is not None
            yield recorded_plan(old, row, "the old database")
    except (StoreError, ValueError, TypeError) as error:
        report.left_out.append(f"plans of the old database: {error}")


def _planned(file: str) -> RecordedPlan:
    """A plan file's plan, expanded by this version as a sweep would. Raises PlanError, DataError."""
    from scaling.plan import load_plan
    from scaling.sweep import plan_graph, stage_records

    plan, now = load_plan(file), time.time()
    graph = plan_graph(plan)
    row = PlanRow(0, plan.name, plan.sha256, plan.text, plan.resolved(), now, now, None, None, None)
    created: Mapping[str, float] = {}
    runs = tuple(RunRecord(**vars(run)) for run in graph.runs)
    return RecordedPlan(row, tuple(stage_records(graph)), tuple(graph.edges()), runs, created, file)


def _dated(plan: RecordedPlan, like: PlanRow, updated: float | None = None) -> RecordedPlan:
    """The plan first recorded when `like` was and, where it has the same text, with its provenance and last time."""
    values: dict[str, Any] = vars(plan.row) | {"created": like.created}
    if like.sha256 == plan.row.sha256:
        names = ("updated", "git_commit", "dirty", "versions")
        values |= {name: getattr(like, name) for name in names}
    if updated is not None:
        values["updated"] = updated
    return RecordedPlan(PlanRow(**values), plan.stages, plan.edges, plan.runs, plan.created, plan.origin)


def render_rebuilt(report: Rebuilt, *, dry_run: bool) -> str:
    """What was restored, from where, what was left out, what no file holds; a line each."""
    counts = [f"{count} {name}" for name, count in report.counts.items() if count or name == "left out"]
    lines = (
        report.notes + [f"left out: {line}" for line in report.left_out] + [f"not restored: {x}" for x in report.lost]
    )
    lines.append(f"{report.path}: " + ", ".join(counts))
    if report.kept_as:
        lines.append(f"the old database is kept as {report.kept_as}")
    if dry_run:
        lines.append("a dry run, nothing was written")
    return "\n".join(lines)
