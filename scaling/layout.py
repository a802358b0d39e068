"""Where every file lies, and by which name. This module names files; it reads folders and writes nothing.

artifacts/<kind>/<name>-<fingerprint[:12]>/   a stage
    config.json       its identity, written by the driver at the first attempt; not a result
    lease.json        the attempt that may write now
    attempts/0001/    one try: worker.log, heartbeat.json, metrics.jsonl, resumed.json, stop, checkpoints/,
                      output/, and last its own result.json
    result.json       the commit mark, written last by the driver; the files stay in the attempt's output/
artifacts/imports/<name>/<sha256[:12]>/       an imported table
    source.csv        a copy of the file, under its own suffix
    import.json       how it was read, written last
artifacts/plans/<name>-<sha256[:12]>.yaml     a swept plan's text
                <name>-<sha256[:12]>.json     what its last sweep recorded of it, written after the text
artifacts/.trash/<random>/                    what `scaling gc` is deleting
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SETTLED_NS = 2_000_000_000  # a folder changed later than this may change again without its time showing it


@dataclass(frozen=True)
class Layout:
    """Every file name. `root` is the folder that holds `artifacts/`; the static methods take a stage's folder."""

    root: Path

    def stage(self, kind: str, name: str, fingerprint: str) -> Path:
        """A stage's folder: the one that carries the fingerprint under whatever name, else where it would be made."""
        parent = self.root / "artifacts" / kind
        named = parent / f"{_slug(name)}-{fingerprint[:12]}"
        if named.is_dir() or not parent.is_dir():
            return named
        changed = parent.stat().st_mtime_ns
        settled = time.time_ns() - changed > SETTLED_NS
        folders = _known_folders(parent, changed) if settled else _folders(parent)
        return folders.get(fingerprint[:12], named)

    def stages(self) -> Iterator[Path]:
        """The folders of all stages that were ever begun, in the order of their names."""
        yield from sorted(path.parent for path in (self.root / "artifacts").glob("*/*/config.json"))

    def import_folder(self, name: str, sha256: str) -> Path:
        """The folder of an import: its name, and the file's SHA-256."""
        return self.root / "artifacts" / "imports" / name / sha256[:12]

    def imports(self) -> Iterator[Path]:
        """The folders of all imports that were kept whole, in the order of their names."""
        yield from sorted(path.parent for path in (self.root / "artifacts" / "imports").glob("*/*/import.json"))

    def plan_text(self, name: str, sha256: str) -> Path:
        """The copy of a swept plan's text: its name, and the text's SHA-256."""
        return self.root / "artifacts" / "plans" / f"{_slug(name)}-{sha256[:12]}.yaml"

    def plan_texts(self) -> Iterator[Path]:
        """The copies of all swept plans' texts, in the order of their names."""
        yield from sorted((self.root / "artifacts" / "plans").glob("*.yaml"))

    @staticmethod
    def plan_mark(text: Path) -> Path:
        """What was recorded of the plan whose copy `text` is."""
        return text.with_suffix(".json")

    @property
    def trash(self) -> Path:
        """Where things lie between being given up and being deleted; two levels below, so that none looks whole."""
        return self.root / "artifacts" / ".trash"

    @staticmethod
    def import_mark(folder: Path) -> Path:
        return folder / "import.json"

    @staticmethod
    def import_source(folder: Path, suffix: str) -> Path:
        return folder / f"source{suffix}"

    @staticmethod
    def config(stage_dir: Path) -> Path:
        return stage_dir / "config.json"

    @staticmethod
    def lease(stage_dir: Path) -> Path:
        return stage_dir / "lease.json"

    @staticmethod
    def withdrawn(attempt_dir: Path) -> Path:
        """What was an attempt's result mark before it was taken back: damaged, or diverged and set aside by hand."""
        return attempt_dir / "withdrawn.json"

    @staticmethod
    def result(folder: Path) -> Path:
        """The result of a stage or, given an attempt's folder, of that attempt."""
        return folder / "result.json"

    @staticmethod
    def attempts(stage_dir: Path) -> Path:
        return stage_dir / "attempts"

    @staticmethod
    def attempt_numbers(stage_dir: Path) -> list[int]:
        """Numbers of the attempt folders that exist, ascending."""
        folder = Layout.attempts(stage_dir)
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []

    @staticmethod
    def attempt(stage_dir: Path, number: int) -> Path:
        return stage_dir / "attempts" / f"{number:04d}"

    @staticmethod
    def log(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "worker.log"

    @staticmethod
    def heartbeat(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "heartbeat.json"

    @staticmethod
    def metrics(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "metrics.jsonl"

    @staticmethod
    def resumed(stage_dir: Path, number: int) -> Path:
        """Which checkpoint an attempt went on from: {"attempt", "step"}."""
        return Layout.attempt(stage_dir, number) / "resumed.json"

    @staticmethod
    def stop(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "stop"

    @staticmethod
    def checkpoints(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "checkpoints"

    @staticmethod
    def checkpoint(stage_dir: Path, number: int, step: int) -> Path:
        return Layout.checkpoints(stage_dir, number) / f"step-{step:08d}.safetensors"

    @staticmethod
    def output(stage_dir: Path, number: int) -> Path:
        return Layout.attempt(stage_dir, number) / "output"


def _folders(parent: Path) -> dict[str, Path]:
    """The stage folders of a kind by the first 12 digits of their fingerprints."""
    names = sorted(os.listdir(parent), reverse=True)
    return {name.rpartition("-")[2]: parent / name for name in names}


_known_folders = lru_cache(maxsize=16)(lambda parent, changed: _folders(parent))


def _slug(name: str) -> str:
    """A name as one path component that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", name).lstrip(".")[:80] or "stage"
