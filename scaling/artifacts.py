"""The driver's side of a stage's folder: lease, commit mark, adoption, damage. The one door to files for other modules.

An attempt writes into its own folder only, and only while lease.json names it; the driver's `commit` makes one attempt
the stage's result. The files are the truth: the database can be made again from them. Names are `scaling.layout`'s,
the worker's side is `scaling.attempts`, how bytes reach the disk is `scaling.files`; the database is `scaling.store`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.attempts import AttemptFolder, Fenced, Lease, read_lease, read_metrics, read_stage_metrics
from scaling.files import (
    CorruptArtifact,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_atomic,
    write_json,
)
from scaling.layout import Layout

__all__ = [
    "RESULTS",
    "AttemptFolder",
    "CorruptArtifact",
    "Fenced",
    "Layout",
    "Lease",
    "adoptable",
    "commit",
    "committed",
    "damage",
    "drop_checkpoints",
    "grant_lease",
    "last_attempt",
    "load_tensors",
    "new_token",
    "read_json",
    "read_lease",
    "read_metrics",
    "read_stage_metrics",
    "request_stop",
    "save_tensors",
    "sha256_file",
    "withdraw",
    "write_atomic",
    "write_json",
]

RESULTS = ("done", "diverged")  # statuses that end a stage with something to keep
log = logging.getLogger(__name__)


def new_token() -> str:
    """A token that no other attempt has, in this database or a lost one."""
    return secrets.token_hex(16)


def grant_lease(stage_dir: Path, number: int, token: str) -> None:
    """Let attempt `number` write, and no other any more."""
    write_json(Layout.lease(stage_dir), {"attempt": number, "token": token})


def last_attempt(stage_dir: Path) -> int:
    """Number of the newest attempt folder, 0 without any; a new attempt must be above it even with a new database."""
    return max(Layout.attempt_numbers(stage_dir), default=0)


def request_stop(stage_dir: Path, number: int) -> None:
    """Ask an attempt to save a checkpoint and return at its next step."""
    write_atomic(Layout.stop(stage_dir, number), b"")


def commit(stage_dir: Path, number: int, **extra: Any) -> dict[str, Any]:
    """Make attempt `number` the stage's result and return what result.json now says; committing twice changes nothing.

    The mark is {"fingerprint", "attempt", "status", "files": {name: {"sha256", "bytes"}}, "summary"} and `extra`.
    Raises CorruptArtifact where the attempt has no whole result.
    """
    found = _attempt_damage(stage_dir, number, verify=False)
    if found:
        raise CorruptArtifact(found[0])
    own = read_json(Layout.result(Layout.attempt(stage_dir, number)))
    fingerprint = read_json(Layout.config(stage_dir)).get("fingerprint")
    kept = {key: own[key] for key in ("status", "files", "summary")}
    mark = {"fingerprint": fingerprint, "attempt": number, **kept, **extra}
    write_json(Layout.result(stage_dir), mark)
    return mark


def committed(stage_dir: Path, *, verify: bool = False) -> dict[str, Any] | None:
    """The stage's commit mark if its files are present at their size (`verify`: with their SHA-256), else None.

    Read "status": a stage may be committed as diverged. What is wrong with a damaged one is logged; see `damage`.
    """
    if not Layout.result(stage_dir).exists():
        return None
    found = damage(stage_dir, verify=verify)
    for line in found:
        log.warning("%s", line)
    return None if found else read_json(Layout.result(stage_dir))


def damage(stage_dir: Path, *, verify: bool = False) -> list[str]:
    """One line for each thing wrong with a committed stage; empty where it is whole or was never committed."""
    path = Layout.result(stage_dir)
    try:
        mark = read_json(path)
    except FileNotFoundError:
        return []
    except CorruptArtifact as error:
        return [str(error)]
    if not isinstance(mark, dict) or not {"attempt", "status", "files", "summary"} <= set(mark):
        return [f"{path}: not a commit mark; delete it and run the sweep again"]
    return _files_damage(Layout.output(stage_dir, mark["attempt"]), mark["files"], verify=verify)


def withdraw(stage_dir: Path) -> None:
    """Take back a commit whose files are damaged, so that the stage is made again; nor is its attempt adopted."""
    with contextlib.suppress(CorruptArtifact, FileNotFoundError, KeyError, TypeError):
        attempt = Layout.attempt(stage_dir, read_json(Layout.result(stage_dir))["attempt"])
        Layout.result(attempt).replace(Layout.withdrawn(attempt))
    Layout.result(stage_dir).unlink(missing_ok=True)


def adoptable(stage_dir: Path) -> int | None:
    """The newest attempt that ended with a whole result though nobody committed it (the driver died), if any."""
    for number in reversed(Layout.attempt_numbers(stage_dir)):
        path = Layout.result(Layout.attempt(stage_dir, number))
        if path.exists() and not _attempt_damage(stage_dir, number, verify=False):
            return number
    return None


def _attempt_damage(stage_dir: Path, number: int, *, verify: bool) -> list[str]:
    path = Layout.result(Layout.attempt(stage_dir, number))
    try:
        own = read_json(path)
    except FileNotFoundError:
        return [f"{path}: attempt {number} did not finish"]
    except CorruptArtifact as error:
        return [str(error)]
    if own.get("status") not in RESULTS:
        return [f"{path}: attempt {number} ended as {own.get('status')}, which is no result"]
    return _files_damage(Layout.output(stage_dir, number), own["files"], verify=verify)


def _files_damage(folder: Path, files: Mapping[str, Mapping[str, Any]], *, verify: bool) -> list[str]:
    found = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing; run the sweep again to make it")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']}; run the sweep again")
        elif verify and sha256_file(path) != expected["sha256"]:
            found.append(f"{path}: SHA-256 differs from the recorded one; run the sweep again")
    return found


def drop_checkpoints(stage_dir: Path) -> int:
    """Delete the checkpoints of all attempts of a stage that needs none any more; returns the bytes freed."""
    freed = 0
    for path in sorted(Layout.attempts(stage_dir).glob("*/checkpoints/*")):
        freed += path.stat().st_size
        path.unlink()
    return freed
