"""What a new driver finds: results on disk, attempts that finished unseen, workers that outlive their driver.

The files are the truth. `recover` takes every stage's state from them and brings the store in line, so that a killed
driver, a lost database or a copied folder all end in the same place: what is there is used, the rest is to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import artifacts
from scaling.artifacts import Layout
from scaling.leases import AttemptRow
from scaling.provenance import Owner, alive, owner
from scaling.stages import Graph, Stage
from scaling.store import Store

ORPHAN_SECONDS = 15.0  # a dead driver's workers were seen to live some 3 s


def stage_folder(layout: Layout, stage: Stage) -> Path:
    """A stage's folder under `artifacts/`."""
    return layout.stage(stage.kind, stage.name, stage.fingerprint)


def ingest(store: Store, folder: Path, fingerprint: str, mark: Mapping[str, Any]) -> None:
    """Put a committed stage's result into the store: state, files, summary and metrics, with the time it was written.

    A lost database that is filled again must not make old results look younger than a prediction of them.
    """
    rows = artifacts.read_stage_metrics(folder, mark["attempt"])
    written = Layout.result(Layout.attempt(folder, mark["attempt"]))
    ended = written.stat().st_mtime if written.exists() else None
    store.record_result(fingerprint, mark["status"], mark["attempt"], mark["files"], mark["summary"], rows, at=ended)


def recover(
    graph: Graph,
    store: Store,
    layout: Layout,
    plan_id: int,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[str, str]:
    """The state of every stage by its files: done, diverged or pending; cancelled where the store says so.

    Commits what a dead driver's workers left finished, ends the attempts it left running, and fills in what the
    store does not know yet. A cancelled stage stays so until `scaling retry`, or until a result of it is there.
    """
    stale = [a for a in store.running_attempts() if a.stage in graph.stages and not a.live]
    await_orphans(graph, layout, stale, clock=clock, sleep=sleep)
    states: dict[str, str] = {}
    rows = store.stages(plan_id)
    for key, stage in graph.stages.items():
        folder = stage_folder(layout, stage)
        mark = artifacts.committed(folder)
        if mark is None:
            number = artifacts.adoptable(folder)
            mark = artifacts.commit(folder, number, name=stage.name) if number else None
        known = rows[key].state if key in rows else ""
        states[key] = mark["status"] if mark else "cancelled" if known == "cancelled" else "pending"
        if mark and known != mark["status"]:
            ingest(store, folder, key, mark)
        if not mark and known not in ("pending", "running", "cancelled"):
            store.set_state(key, "pending")
    for attempt in stale:
        if states[attempt.stage] in artifacts.RESULTS:
            store.finish_attempt(attempt.stage, attempt.number, states[attempt.stage])
        else:
            store.finish_attempt(attempt.stage, attempt.number, "lost", "driver_lost", "its driver was killed")
    return states


def await_orphans(
    graph: Graph,
    layout: Layout,
    stale: Sequence[AttemptRow],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Wait until the workers of a dead driver have died; they hold cores, and may be about to finish.

    Correctness does not hang on it: a new attempt takes the lease, and an orphan's writes are refused.
    """
    orphans = []
    for attempt in stale:
        folder = stage_folder(layout, graph.stages[attempt.stage])
        try:
            beat = artifacts.read_json(Layout.heartbeat(folder, attempt.number))
        except (FileNotFoundError, artifacts.CorruptArtifact):
            continue
        if beat["pid"] != owner().pid:
            orphans.append(Owner(beat.get("host", ""), int(beat["pid"]), beat.get("boot_id", "")))
    deadline = clock() + ORPHAN_SECONDS
    while any(alive(orphan) for orphan in orphans) and clock() < deadline:
        sleep(0.1)
