"""How far a sweep is, from the store and the running attempts' heartbeats: one snapshot, shown as text or JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from scaling.artifacts import CorruptArtifact, Layout, read_json
from scaling.progress import duration
from scaling.stages import KINDS
from scaling.store import STATES, Store, StoreError


def snapshot(store: Store, plan_name: str, root: Path) -> dict[str, Any]:
    """Counts of stages by kind and state, what runs with its progress, what failed and why. Raises StoreError."""
    plan = store.plan(plan_name)
    if plan is None:
        known = ", ".join(row.name for row in store.plans()) or "none"
        raise StoreError(f"no plan {plan_name!r} in the database; it has {known}")
    stages = store.stages(plan.id)
    live = [attempt for attempt in store.running_attempts() if attempt.stage in stages and attempt.live]
    running = []
    for attempt in live:
        stage = stages[attempt.stage]
        folder = Layout(root).stage(stage.kind, stage.name, stage.fingerprint)
        beat = _beat(folder, attempt.number)
        running.append(
            {"kind": stage.kind, "name": stage.name, "attempt": attempt.number, "host": attempt.owner.host}
            | {"seconds": time.time() - attempt.started, "step": beat.get("step"), "steps": beat.get("steps")}
            | {"values": beat.get("values", {})}
        )
    failed = [
        {"kind": s.kind, "name": s.name, "state": s.state, "message": s.message}
        for s in stages.values()
        if s.state in ("failed", "diverged")
    ]
    # a stage left running by a killed driver runs no more: the next sweep takes it up
    counts = store.status(plan.id)
    abandoned = sum(s.state == "running" for s in stages.values()) - len(live)
    return {
        "plan": plan_name,
        "stages": len(stages),
        "counts": counts,
        "running": running,
        "abandoned": max(0, abandoned),
        "failed": failed,
    }


def _beat(folder: Path, number: int) -> dict[str, Any]:
    try:
        return dict(read_json(Layout.heartbeat(folder, number)))
    except (FileNotFoundError, CorruptArtifact):
        return {}


def render_status(found: dict[str, Any]) -> str:
    """The snapshot as a table of kinds by states, then the running and the failed stages."""
    counts = found["counts"]
    states = [state for state in STATES if any(state in by for by in counts.values())]
    done = sum(by.get("done", 0) + by.get("diverged", 0) for by in counts.values())
    lines = [f"{found['plan']}: {done} of {found['stages']} stages done"]
    lines.append("  " + "stage".ljust(12) + "".join(state.rjust(11) for state in states))
    for kind in KINDS:
        if kind in counts:
            cells = (str(counts[kind].get(state, "") or "") for state in states)
            lines.append("  " + kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
    for one in found["running"]:
        share = f"{100 * one['step'] / max(1, one['steps']):.0f}%" if one["step"] is not None else "starting"
        loss = f", loss {one['values']['loss']:.4g}" if "loss" in one["values"] else ""
        lines.append(f"  runs: {one['kind']} {one['name']}, {share}{loss}, {duration(one['seconds'])}")
    if found["abandoned"]:
        lines.append(f"  {found['abandoned']} left by a driver that died; the same sweep command goes on with them")
    for one in found["failed"]:
        lines.append(f"  {one['state']}: {one['kind']} {one['name']}: {one['message']}".rstrip(": "))
    return "\n".join(lines)
