"""A swept plan on disk: its text, and what the sweep recorded of it, so that a lost database can have it again.

artifacts/plans/NAME-<sha256[:12]>.yaml is the text, the .json beside it the plan's stages and runs as recorded: to make
them from the text again takes the same images, variables and version, which need not be at hand. Of several
copies under one name the one swept last counts. Names are `scaling.layout`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.files import CorruptArtifact, from_json, read_json, to_json, write_atomic
from scaling.layout import Layout
from scaling.store import PlanRow, RunRecord, StageRecord, Store

FORMAT = 1  # of the .json


@dataclass(frozen=True)
class RecordedPlan:
    """A plan with its stages and runs in order. `edges`: (child, parent) fingerprints; `created`: of each stage."""

    row: PlanRow
    stages: tuple[StageRecord, ...]
    edges: tuple[tuple[str, str], ...]
    runs: tuple[RunRecord, ...]
    created: Mapping[str, float]
    origin: str  # where it was found, for people


def recorded_plan(store: Store, row: PlanRow, origin: str = "") -> RecordedPlan:
    """A plan as a database has it. Raises StoreError."""
    rows = store.stages(row.id)
    names = [field.name for field in dataclasses.fields(StageRecord)]
    stages = tuple(StageRecord(**{name: getattr(one, name) for name in names}) for one in rows.values())
    edges = tuple((key, parent) for key, one in rows.items() for parent in one.parents)
    created = {key: one.created for key, one in rows.items()}
    return RecordedPlan(row, stages, edges, tuple(store.runs(row.id)), created, origin)


def keep_plan(layout: Layout, store: Store, name: str) -> Path:
    """Write a recorded plan's text and record under `artifacts/plans/`; returns the text's path. Raises OSError."""
    row = store.plan(name)
    assert row is not None  # the sweep has just recorded it
    plan = recorded_plan(store, row)
    path, text = layout.plan_text(row.name, row.sha256), row.text.encode()
    if not path.exists() or path.read_bytes() != text:
        write_atomic(path, text)
    about = {key: value for key, value in vars(row).items() if key not in ("id", "text")}
    mark = {
        "format": FORMAT,
        **about,
        "stages": [{**vars(one), "created": plan.created[one.fingerprint]} for one in plan.stages],
        "edges": plan.edges,
        "runs": [vars(one) for one in plan.runs],
    }
    if not _kept_alike(layout.plan_mark(path), mark):
        write_atomic(layout.plan_mark(path), to_json(mark).encode())
    return path


def _kept_alike(path: Path, mark: dict[str, Any]) -> bool:
    """Whether the file says the same but for the time of the sweep, and is the plan's newest: then nothing is written.

    Of several texts of one plan the one swept last counts, so that going back to an earlier one must be recorded.
    """
    before = _read_mark(path)
    if before is None or before | {"updated": 0} != from_json(to_json(mark)) | {"updated": 0}:
        return False
    others = [_read_mark(other) for other in path.parent.glob("*.json") if other != path]
    later = [one for one in others if one and one.get("name") == mark["name"] and one["updated"] > before["updated"]]
    return not later


def _read_mark(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (CorruptArtifact, FileNotFoundError):
        return None
    return found if isinstance(found, dict) and "updated" in found else None


def read_plan(text: Path) -> RecordedPlan:
    """The plan whose copy `text` is. Raises FileNotFoundError without a record, CorruptArtifact for a damaged one."""
    path = Layout.plan_mark(text)
    mark = read_json(path)
    try:
        if mark["format"] != FORMAT:
            raise CorruptArtifact(f"{path}: of another version of scaling (format {mark['format']}, not {FORMAT})")
        data = text.read_bytes()
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            raise CorruptArtifact(f"{text}: SHA-256 differs from the recorded one; delete it and sweep the plan again")
        row = PlanRow(id=0, text=data.decode(), **{name: mark[name] for name in _KEPT})
        created = {one["fingerprint"]: float(one.pop("created")) for one in mark["stages"]}
        stages = tuple(StageRecord(**one) for one in mark["stages"])
        edges = tuple((str(child), str(parent)) for child, parent in mark["edges"])
        runs = tuple(RunRecord(**one) for one in mark["runs"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifact(f"{path}: not the record of a plan ({error!r}); sweep the plan again") from None
    return RecordedPlan(row, stages, edges, runs, created, str(text))


_KEPT = [field.name for field in dataclasses.fields(PlanRow) if field.name not in ("id", "text")]
