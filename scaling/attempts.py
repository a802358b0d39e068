"""One try at a stage as its worker sees it: fenced writes into its own folder, checkpoints, metrics, the result.

An attempt writes only while lease.json names it, so that the writes of a late orphan are refused. Which attempt may
write, and which becomes the stage's result, is the driver's matter: `scaling.artifacts`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.files import (
    CorruptArtifact,
    from_json,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    sync_to_disk,
    to_json,
    write_json,
)
from scaling.layout import Layout

if TYPE_CHECKING:
    import torch

KEEP_CHECKPOINTS = 2

log = logging.getLogger(__name__)


class Fenced(Exception):
    """This attempt may no longer write: another one holds the stage's lease. Stop without a trace."""


@dataclass(frozen=True)
class Lease:
    """The attempt that may write into a stage now."""

    attempt: int
    token: str


def read_lease(stage_dir: Path) -> Lease | None:
    """The lease in force, if any was granted. Raises CorruptArtifact."""
    try:
        lease = read_json(Layout.lease(stage_dir))
        return Lease(int(lease["attempt"]), str(lease["token"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifact(f"{Layout.lease(stage_dir)}: not a lease; delete it and run the sweep again") from None


class AttemptFolder:
    """One attempt's folder as its worker sees it. Every write first reads lease.json and raises Fenced if it has moved.

    Between that look and the write the lease may still move; the write then lands in this attempt's own folder,
    where nobody looks for it.
    """

    def __init__(self, stage_dir: Path, number: int, token: str) -> None:
        self.stage_dir = Path(stage_dir)
        self.number = number
        self.token = token
        self.path = Layout.attempt(self.stage_dir, number)

    def check(self) -> None:
        """Raise Fenced unless this attempt holds the lease."""
        lease = read_lease(self.stage_dir)
        if lease != Lease(self.number, self.token):
            holder = f"attempt {lease.attempt} holds its lease" if lease else "it has no lease"
            raise Fenced(f"{self.stage_dir}: attempt {self.number} may not write, {holder}")

    def save_checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> str:
        """Save the whole state after `step` steps; the newest two stay. Returns the content's SHA-256.

        Append the metrics up to `step` before: what an attempt reported later than its last checkpoint is superseded.
        """
        self.check()
        with contextlib.suppress(FileNotFoundError):
            sync_to_disk(Layout.metrics(self.stage_dir, self.number))
        path = Layout.checkpoint(self.stage_dir, self.number, step)
        digest = save_tensors(path, tensors, {"step": step, "meta": dict(meta)})
        older = [other for _, other in _checkpoints(self.stage_dir, self.number) if other != path]
        for other in older[KEEP_CHECKPOINTS - 1 :]:
            other.unlink()
        return digest

    def load_checkpoint(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The (step, tensors, meta) to go on from: the newest whole checkpoint of this and the earlier attempts.

        Damaged ones are passed over with a warning. None: start from nothing. Which one it was is recorded, so that
        `read_stage_metrics` can join the attempts.
        """
        numbers = [number for number in Layout.attempt_numbers(self.stage_dir) if number <= self.number]
        found = [(step, number, path) for number in numbers for step, path in _checkpoints(self.stage_dir, number)]
        for step, number, path in sorted(found, reverse=True):
            try:
                tensors, stored = load_tensors(path)
            except (CorruptArtifact, FileNotFoundError) as error:
                log.warning("checkpoint passed over: %s", error)
                continue
            if number != self.number:
                self.check()
                write_json(Layout.resumed(self.stage_dir, self.number), {"attempt": number, "step": step})
            return step, tensors, stored["meta"]
        return None

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows {"step": int, name: number, ...}, one JSON line each, in one write."""
        if not rows:
            return
        self.check()
        path = Layout.metrics(self.stage_dir, self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(to_json({**row, "step": int(row["step"])}) + "\n" for row in rows)
        with open(path, "ab+") as file:
            if file.tell() and not _ends_line(path):
                lines = "\n" + lines  # an earlier write was torn, by a full disk for example
            file.write(lines.encode())

    def heartbeat(self, values: Mapping[str, Any]) -> None:
        """Say that the worker lives, with its pid, the time (Unix seconds) and `values`."""
        self.check()
        beat = {"pid": os.getpid(), "time": time.time(), **values}
        write_json(Layout.heartbeat(self.stage_dir, self.number), beat, sync=False)

    def should_stop(self) -> bool:
        """Whether the driver asked this attempt to save and return."""
        return Layout.stop(self.stage_dir, self.number).exists()

    def output(self, name: str) -> Path:
        """Where to write result file `name`; its folder exists on return. Raises Fenced, or ValueError for `..`."""
        folder = Layout.output(self.stage_dir, self.number)
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name}: outside the attempt's output folder")
        self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, summary: Mapping[str, Any], status: str) -> dict[str, Any]:
        """Checksum every output file and write the attempt's result.json, last of all; returns what it says."""
        self.check()
        folder = Layout.output(self.stage_dir, self.number)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".tmp-")):
            sync_to_disk(path)
            sync_to_disk(path.parent)
            files[path.relative_to(folder).as_posix()] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        self.check()
        result = {"attempt": self.number, "status": status, "files": files, "summary": dict(summary)}
        write_json(Layout.result(self.path), {**result, "finished": time.time()})
        return result


def _checkpoints(stage_dir: Path, number: int) -> list[tuple[int, Path]]:
    """(step, path) of an attempt's checkpoints, newest first."""
    folder = Layout.checkpoints(stage_dir, number)
    found = [(re.fullmatch(r"step-(\d+)", path.stem), path) for path in folder.glob("step-*.safetensors")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in the order written; a torn line is left out, no file is no rows."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
            rows.append({**row, "step": int(row["step"])})
        except (KeyError, TypeError, ValueError):
            if number < len(lines):  # the last line may be in the middle of being written
                log.warning("%s:%d: torn line left out", path, number)
    return rows


def read_stage_metrics(stage_dir: Path, number: int) -> list[dict[str, Any]]:
    """The rows of attempt `number` behind those of the attempts it went on from, one row a step, in order of steps.

    Of an earlier attempt only the steps up to the checkpoint taken over count, so the rows are those of an
    undisturbed run.
    """
    merged: dict[int, dict[str, Any]] = {}
    for earlier, last_step in _lineage(stage_dir, number):
        for row in read_metrics(Layout.metrics(stage_dir, earlier)):
            if last_step is None or row["step"] <= last_step:
                merged[row["step"]] = merged.get(row["step"], {}) | row
    return [merged[step] for step in sorted(merged)]


def _lineage(stage_dir: Path, number: int) -> list[tuple[int, int | None]]:
    """(attempt, its last step that counts) from the first attempt to `number`, whose steps all count."""
    chain: list[tuple[int, int | None]] = [(number, None)]
    while Layout.resumed(stage_dir, chain[0][0]).exists():
        current, limit = chain[0]
        resumed = read_json(Layout.resumed(stage_dir, current))
        if not resumed["attempt"] < current:
            raise CorruptArtifact(f"{Layout.resumed(stage_dir, current)}: names an attempt that is not an earlier one")
        step = resumed["step"] if limit is None else min(resumed["step"], limit)
        chain.insert(0, (resumed["attempt"], step))
    return chain


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
