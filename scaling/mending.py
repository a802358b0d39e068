"""Mending a sweep by hand: stages set back so that the next sweep tries them again, or cancelled so that it does not.

Nothing runs here. A sweep takes a stage's state from its files and only `cancelled` from the database, and it counts
failures from zero at every call; so what keeps a stage from being tried again is a committed `diverged` result or a
cancellation, and nothing else has to be undone. A stage that is done is never touched.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from scaling import artifacts
from scaling.inspecting import UnknownName, closure, find, known_plan, run_stages, stage_folder, title
from scaling.layout import Layout
from scaling.leases import DriverRow
from scaling.provenance import Owner, alive
from scaling.schema import stages as stage_table
from scaling.store import Locked, PlanRow, StageRow, Store
from scaling.yaml_nodes import did_you_mean

RETRIED = ("failed", "diverged", "cancelled")  # states that `retry` takes back
CANCELLED = ("pending", "running", "failed")  # states that `cancel` ends: a sweep would try a failed stage again
CLASSES = ("oom_gpu", "oom_host", "disk_full", "bad_artifact", "user_error", "crash", "node_lost")
DRAIN_SECONDS = 60.0  # a driver gives its stages 30 s to save before it kills them
POLL_SECONDS = 0.25
BY_HAND = "cancelled by hand"
_WAITS = {"pending": "waits", "running": "was left by a driver that died", "failed": "failed"}


class DriverElsewhere(Locked):
    """The driver that should stop cannot be asked from here."""

    def __init__(self, plan: str, owner: Owner, since: float) -> None:
        super().__init__(plan, owner, since)
        where = f"plan {plan} is driven by process {owner.pid} on {owner.host}, which cannot be asked from here"
        self.args = (f"{where}; run there: kill -INT {owner.pid}; or cancel only what waits: --state pending",)


@dataclass(frozen=True)
class Change:
    """A stage that was changed (or would be, on a dry run), and how."""

    stage: StageRow
    how: str


@dataclass
class Mended:
    """What `retry` or `cancel` did: `changed`, what was asked for and `skipped` with the reason, remarks in lines."""

    plan: PlanRow
    changed: list[Change] = field(default_factory=list)
    skipped: list[Change] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    draining: str = ""  # of `cancel`: says that the driver had not ended when this did


def the_plan(store: Store, name: str | None) -> PlanRow:
    """The plan that was named, or the only one there is. Raises UnknownName."""
    if name is not None:
        return known_plan(store, name)
    plans = store.plans()
    if len(plans) != 1:
        listed = ", ".join(plan.name for plan in plans)
        raise UnknownName(f"{store.place}: " + (f"name one with --plan: {listed}" if plans else "it has no plan"))
    return plans[0]


# ------------------------------------------------------------------------------------------------ retry


def retry(
    store: Store,
    root: Path,
    plan: PlanRow,
    state: str,
    *,
    failure_class: str | None = None,
    pattern: str | None = None,
    dry_run: bool = False,
) -> Mended:
    """Set the plan's stages in `state` back to pending; `root` holds `artifacts/`.

    `failure_class`: of failed stages those whose newest attempt failed so, whole (oom_gpu) or in part (oom). `pattern`:
    a glob over `NAME` and `KIND NAME`, or a fingerprint's first digits. A diverged result is set aside: its attempt's
    folder stays with result.json renamed to withdrawn.json, the database forgets its numbers. `dry_run` writes nothing.
    Raises Locked while a driver of the plan lives, UnknownName for a class or pattern that means nothing.
    """
    classes = _classes(failure_class, state)
    with _holding(store, plan, dry_run=dry_run):
        rows = store.stages(plan.id)
        matching = [row for row in rows.values() if pattern is None or _matches(row, pattern)]
        if not matching:
            names = [name for row in rows.values() for name in (row.name, title(row))]
            hint = did_you_mean(pattern or "", names)
            raise UnknownName(f"--stage {pattern}: no stage of plan {plan.name} matches{hint}; a pattern has * and ?")
        mended = Mended(plan)
        for row in matching:
            if row.state == state:
                _retry_one(store, root, row, classes, mended, dry_run=dry_run)
    _remark_on_retry(mended, rows, state)
    return mended


@contextlib.contextmanager
def _holding(store: Store, plan: PlanRow, *, dry_run: bool) -> Iterator[None]:
    """Keep drivers of the plan away, or only look whether there is one. Raises Locked."""
    if dry_run:
        driver = store.driver(plan.name)
        if driver is not None and driver.live:
            raise Locked(plan.name, driver.owner, driver.started)
        yield
        return
    lease = store.acquire_driver(plan.name)
    try:
        yield
    finally:
        store.release_driver(lease)


def _classes(asked: str | None, state: str) -> tuple[str, ...] | None:
    if asked is None:
        return None
    if state != "failed":
        raise UnknownName(f"--class {asked}: only failed stages have a class; leave it out with --state {state}")
    found = tuple(one for one in CLASSES if one == asked or one.startswith(f"{asked}_"))
    if not found:
        words = [*CLASSES, "oom", "user"]
        known = ", ".join(CLASSES)
        raise UnknownName(f"--class {asked}: no class of failure{did_you_mean(asked, words)}; use {known}, oom or user")
    return found


def _matches(row: StageRow, pattern: str) -> bool:
    names = (row.name, title(row))
    # names have brackets of their own only where a plan's do; compare those as they are, too
    globbed = pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return globbed or (len(pattern) >= 4 and row.fingerprint.startswith(pattern))


def _retry_one(
    store: Store, root: Path, row: StageRow, classes: tuple[str, ...] | None, mended: Mended, *, dry_run: bool
) -> None:
    attempts = store.attempts(row.fingerprint)
    kind = attempts[-1].failure_class if attempts else ""
    if classes is not None and kind not in classes:
        return
    folder = stage_folder(root, row)
    standing = _result(folder)
    if standing and standing[0] != row.state:
        why = f"its files say {standing[0]}, by attempt {standing[1]}; the next sweep records it"
        mended.skipped.append(Change(row, why))
        return
    tries = f"{len(attempts)} attempt{'s' if len(attempts) != 1 else ''}"
    how = f"{row.state}{f' ({kind})' if kind else ''} after {tries}; {_begins(folder)}"
    if standing:
        how += f"; its result is set aside as {Layout.withdrawn(Layout.attempt(folder, standing[1]))}"
    mended.changed.append(Change(row, how))
    if dry_run:
        return
    while (found := _result(folder)) and found[0] == "diverged":
        _set_aside(folder)  # files first: a sweep that finds them gone sets the state itself
    with store.transaction():
        if _move(store, row, "pending", "") and row.state == "diverged":
            store.set_summary(row.fingerprint, {})
            store.add_metrics(row.fingerprint, [], replace=True)
            store.set_artifacts(row.fingerprint, row.attempt, {})


def _result(folder: Path) -> tuple[str, int] | None:
    """(status, attempt) of the result that the next sweep would find: committed, or finished and to be adopted."""
    mark = artifacts.committed(folder)
    if mark is not None:
        return str(mark["status"]), int(mark["attempt"])
    number = artifacts.adoptable(folder)
    if number is None:
        return None
    return str(artifacts.read_json(Layout.result(Layout.attempt(folder, number)))["status"]), number


def _set_aside(folder: Path) -> None:
    """Keep a result's files but let nobody take it for the stage's; a second one lies in another attempt's folder."""
    if artifacts.committed(folder) is not None:
        artifacts.withdraw(folder)
        return
    number = artifacts.adoptable(folder)
    if number is not None:
        attempt = Layout.attempt(folder, number)
        Layout.result(attempt).replace(Layout.withdrawn(attempt))


def _begins(folder: Path) -> str:
    """Where the next attempt begins: at the newest checkpoint of any attempt, or at the start."""
    steps = [int(path.stem.split("-")[1]) for path in Layout.attempts(folder).glob("*/checkpoints/step-*.safetensors")]
    return f"goes on from step {max(steps)}" if steps else "begins anew"


def _remark_on_retry(mended: Mended, rows: dict[str, StageRow], state: str) -> None:
    if state == "diverged" and mended.changed:
        mended.remarks.append(
            "a diverged stage has the same seed and data order as before: without other code, versions or machine it "
            "diverges again; to train it otherwise, change the plan"
        )
    changed = {one.stage.fingerprint for one in mended.changed}
    failed = sum(row.state == "failed" and key not in changed for key, row in rows.items())
    if failed and mended.changed:
        mended.remarks.append(f"the next sweep tries what failed again, too: {failed} more")


# ----------------------------------------------------------------------------------------------- cancel


def cancel(
    store: Store,
    root: Path,
    plan: PlanRow,
    names: Sequence[str] = (),
    states: Sequence[str] = CANCELLED,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
    wait_seconds: float = DRAIN_SECONDS,
) -> Mended:
    """Cancel the plan's stages that are in `states`: all, or those of `names` (stages, or runs: what they alone need).

    Waiting stages are marked; a live driver leaves them out when their turn comes. Where stages to be cancelled run,
    their driver is asked to stop as by Ctrl-C, its end is awaited (`wait_seconds`), and they are marked after that.
    Raises DriverElsewhere where it runs on another host, UnknownName.
    """
    rows = store.stages(plan.id)
    mended = Mended(plan)
    driver = store.driver(plan.name)
    if driver is not None and not driver.live:
        driver = None
    waiting: list[Change] = []
    running: list[Change] = []
    for row in (rows[key] for key in _chosen(store, plan, rows, names)):
        live = [one.owner for one in store.attempts(row.fingerprint) if one.live] if row.state == "running" else []
        if row.state not in states:
            if names and row.state != "cancelled":
                mended.skipped.append(Change(row, f"is {row.state}"))
        elif not live:
            waiting.append(Change(row, _WAITS[row.state]))
        elif driver is not None and live[0] == driver.owner:
            running.append(Change(row, "runs; its driver stops it at a checkpoint"))
        else:
            made = f"is made by process {live[0].pid} on {live[0].host}, the driver of another plan"
            mended.skipped.append(Change(row, made))
    stops = driver is not None and (bool(running) or (not names and "running" in states))
    if driver is not None and stops and alive(driver.owner) is None:
        raise DriverElsewhere(plan.name, driver.owner, driver.started)
    mended.remarks += _shared(store, plan, [one.stage for one in waiting + running])
    if dry_run:
        mended.changed = waiting + running
        if driver is not None and stops:
            mended.remarks.append(f"the driver, process {driver.owner.pid}, would be asked to stop")
        return mended
    mended.changed = [one for one in waiting if _cancel_one(store, one.stage)]
    left = [one for one in waiting if one not in mended.changed] + running  # begun meanwhile, or before
    if driver is not None and stops:
        mended.draining = _stop_driver(store, plan, driver, say, wait_seconds)
    now = store.stages(plan.id)
    for row, how in ((now[one.stage.fingerprint], one.how) for one in left):
        if row.state == "pending" and _cancel_one(store, row):
            mended.changed.append(Change(row, how))
        else:
            mended.skipped.append(Change(row, f"is {row.state}"))
    return mended


def _chosen(store: Store, plan: PlanRow, rows: dict[str, StageRow], names: Sequence[str]) -> list[str]:
    """Fingerprints that the names mean; of runs, only what no other run needs."""
    if not names:
        return list(rows)
    keys: set[str] = set()
    runs: set[str] = set()
    for name in names:
        found = find(store, name, plan.name)
        if found.run is None:
            keys |= {stage.fingerprint for stage in found.stages}
        else:
            runs.add(found.run.name)
    every = store.runs(plan.id)
    theirs = closure(rows, [key for run in every if run.name in runs for key in run_stages(run)])
    others = set(closure(rows, [key for run in every if run.name not in runs for key in run_stages(run)]))
    keys |= {key for key in theirs if key not in others}
    return [key for key in rows if key in keys]


def _shared(store: Store, plan: PlanRow, stages: Sequence[StageRow]) -> list[str]:
    mine = {stage.fingerprint for stage in stages}
    lines = []
    for other in store.plans():
        both = len(mine & set(store.stages(other.id))) if other.id != plan.id else 0
        if both:
            lines.append(f"{both} of these are stages of plan {other.name}, too, which leaves them out as well")
    return lines


def _cancel_one(store: Store, row: StageRow) -> bool:
    return _move(store, row, "cancelled", f"{BY_HAND}; {row.message}" if row.state == "failed" else BY_HAND)


def _move(store: Store, row: StageRow, state: str, message: str) -> bool:
    """Set a stage's state unless it has changed since it was read; whether it was set."""
    table = stage_table.c
    as_read = (table.fingerprint == row.fingerprint) & (table.attempt == row.attempt) & (table.state == row.state)
    values = {"state": state, "message": message, "updated": time.time()}
    with store.transaction() as connection:
        return bool(connection.execute(sa.update(stage_table).where(as_read).values(values)).rowcount)


def _stop_driver(
    store: Store, plan: PlanRow, driver: DriverRow, say: Callable[[str], None], wait_seconds: float
) -> str:
    """Interrupt the driver and wait until it has let go of the plan; a line where it has not, else nothing."""
    pid = driver.owner.pid
    say(f"asking the driver (process {pid}) to stop; its running stages save first")
    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return f"the driver (process {pid}) is another user's; ask them to stop it, then run the same command again"
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        now = store.driver(plan.name)
        if now is None or not now.live or now.started != driver.started:
            return ""
        time.sleep(POLL_SECONDS)
    return f"the driver (process {pid}) still saves after {wait_seconds:.0f} s; run the same command again later"


# ------------------------------------------------------------------------------------------ what is next


def sweep_command(plan: PlanRow, folder: Path, database: str | None) -> str:
    """The command that goes on with a plan: with its file where one in `folder` or below has its very text."""
    from scaling.plan_files import shipped_plans

    option = f" --db {database}" if database else ""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml"), *folder.glob("*.yml")]):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if hashlib.sha256(path.read_text().encode()).hexdigest() == plan.sha256:
                return f"scaling sweep {path.relative_to(folder)}{option}"
    return f"scaling sweep {plan.name if plan.name in shipped_plans() else 'PLAN.yaml'}{option}"
