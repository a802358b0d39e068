"""What the folders under artifacts/ hold, whatever a database says: stages by their config.json, attempts by their log.

Reads only. What a stage's files must be is `scaling.artifacts`'s; where they lie, `scaling.layout`'s.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import artifacts
from scaling.artifacts import CorruptArtifact, Layout
from scaling.leases import STALE_AFTER
from scaling.provenance import Owner, alive
from scaling.stages import KINDS, fingerprint

_NOT_IDENTITY = frozenset({"fingerprint", "name", "plan_data"})
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")
_ENDED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) INFO scaling\.worker: ended: (\w+) ?(.*)$", re.MULTILINE)
_STATES = {"fenced": "lost"}  # of an attempt, by the outcome its log names where they differ
_TAIL = 64 * 1024  # bytes of a log's end that are looked at


@dataclass(frozen=True)
class StageFolder:
    """A stage's folder whose config.json is whole. `identity` is what the fingerprint hashes."""

    path: Path
    fingerprint: str
    kind: str
    name: str
    identity: Mapping[str, Any]
    begun: float  # Unix time at which config.json was written


@dataclass(frozen=True)
class AttemptFacts:
    """What an attempt's files tell; state is "" where nothing says how it ended. Times are Unix seconds."""

    number: int
    state: str
    message: str
    owner: Owner
    started: float
    ended: float | None


def kind_folders(layout: Layout) -> Iterator[Path]:
    """Every folder in which a stage could lie, whole or not, in the order of kinds and names."""
    for kind in KINDS:
        parent = layout.root / "artifacts" / kind
        if parent.is_dir():
            yield from sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_stage_folder(path: Path) -> StageFolder:
    """The stage whose folder that is. Raises CorruptArtifact, one line."""
    file = Layout.config(path)
    try:
        config = artifacts.read_json(file)
        begun = file.stat().st_mtime
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: half-written, it has no config.json; delete the folder") from None
    except OSError as error:
        raise CorruptArtifact(f"{file}: cannot be read: {error.strerror}") from None
    try:
        key, kind, name = str(config["fingerprint"]), str(config["kind"]), str(config["name"])
        identity = {part: value for part, value in config.items() if part not in _NOT_IDENTITY}
        sound = fingerprint(identity) == key and kind in KINDS and isinstance(identity["parents"], dict)
        int(identity["recipe"])
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise CorruptArtifact(f"{file}: is not what its fingerprint says; delete the folder and run the sweep again")
    return StageFolder(path, key, kind, name, identity, begun)


def stage_folders(layout: Layout) -> tuple[dict[str, StageFolder], list[str]]:
    """The stages on disk by fingerprint, and a line for each folder that is none or lies where none is looked for."""
    found: dict[str, StageFolder] = {}
    problems = []
    for path in kind_folders(layout):
        try:
            stage = read_stage_folder(path)
        except CorruptArtifact as error:
            problems.append(str(error))
            continue
        chosen = layout.stage(stage.kind, stage.name, stage.fingerprint)
        if chosen != path:
            problems.append(f"{path}: not where its stage is looked for ({chosen.name}); delete it or rename it so")
            continue
        found[stage.fingerprint] = stage
    return found, problems


def attempt_facts(stage_dir: Path, number: int) -> AttemptFacts:
    """What an attempt left: its log's first and last lines, its result.json, its heartbeat."""
    folder, log = Layout.attempt(stage_dir, number), Layout.log(stage_dir, number)
    head, tail = _ends(log)
    started, ended, state, message = _time(head[:23]), None, "", ""
    last = list(_ENDED.finditer(tail))
    if last:
        ended, state, message = _time(last[-1][1]), _STATES.get(last[-1][2], last[-1][2]), last[-1][3]
    own = _json(Layout.result(folder))
    if own.get("status") in artifacts.RESULTS:
        state, ended = own["status"], _number(own.get("finished")) or ended
    beat = _json(Layout.heartbeat(stage_dir, number))
    pid = beat.get("pid")
    owner = Owner(str(beat.get("host", "")), pid if isinstance(pid, int) else 0, str(beat.get("boot_id", "")))
    return AttemptFacts(number, state, message, owner, started or _begun(folder), ended)


def is_written(stage_dir: Path, *, now: float | None = None) -> bool:
    """Whether the attempt with the stage's lease may be writing: it beat lately, and its process is not known dead."""
    now = time.time() if now is None else now
    try:
        lease = artifacts.read_lease(stage_dir)
    except CorruptArtifact:
        return False
    if lease is None:
        return False
    folder = Layout.attempt(stage_dir, lease.attempt)
    if folder.is_dir() and attempt_facts(stage_dir, lease.attempt).state:
        return False  # it says itself that it ended
    beat = _json(Layout.heartbeat(stage_dir, lease.attempt))
    if not beat:  # a worker that is about to start has none yet
        return Layout.lease(stage_dir).stat().st_mtime >= now - STALE_AFTER
    lives = alive(Owner(str(beat.get("host", "")), int(beat.get("pid") or 0), str(beat.get("boot_id", ""))))
    fresh = (_number(beat.get("time")) or 0.0) >= now - STALE_AFTER
    return lives is not False and fresh


def _ends(log: Path) -> tuple[str, str]:
    """The first line and the end of a log; empty where there is none."""
    try:
        with open(log, "rb") as file:
            head = file.readline(4096)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return head.decode(errors="replace"), file.read().decode(errors="replace")
    except OSError:
        return "", ""


def _time(stamp: str) -> float | None:
    found = _STAMP.match(f"{stamp} ")
    if found is None:
        return None
    try:
        return time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) + int(found[2]) / 1000
    except ValueError:
        return None


def _begun(folder: Path) -> float:
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return min(times, default=folder.stat().st_mtime)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = artifacts.read_json(path)
    except (OSError, CorruptArtifact):
        return {}
    return value if isinstance(value, dict) else {}
