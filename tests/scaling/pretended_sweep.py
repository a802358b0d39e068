"""Sweeps whose stages are pretended, with all the files of real ones: for tests of what is made from those files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling import sweep
from scaling.artifacts import AttemptFolder, Layout
from scaling.executors import InlineExecutor
from scaling.plan import Plan, parse_plan
from scaling.progress import LineProgress
from scaling.scheduler import Options, Result
from scaling.store import Store

TEXT = """
plan: small
extends: tiny@1
data: {train_images: 128, validation_images: 64}
tokenizer: {codebook_size: 16, images_seen: 640, arms: {base: {}}}
generator: {size: [16x1, 16x2], images_seen: 640}
evaluation: {features: cnn, samples: 20, reference: {split: held-out, images: 30}}
resources: {executor: inline, workers: 2}
"""
Pretend = Callable[[dict[str, Any]], dict[str, Any]]


def plan(**changes: str) -> Plan:
    """The small plan, with texts of it replaced."""
    text = TEXT
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return parse_plan(text)


def attempt_of(job: dict[str, Any]) -> AttemptFolder:
    return AttemptFolder(Path(job["stage_dir"]), job["attempt"], job["token"])


def write_log(attempt: AttemptFolder, ended: str = "", at: str = "2025-01-02 03:04") -> None:
    """A worker.log as the worker writes it; without `ended` that of a killed one."""
    path = Layout.log(attempt.stage_dir, attempt.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = f"{at}:05,250 INFO scaling.worker: attempt begins, pid 7\n"
    path.write_text(lines + (f"{at}:09,500 INFO scaling.worker: ended: {ended}\n" if ended else ""))


def work(job: dict[str, Any]) -> dict[str, Any]:
    """A worker that makes a stage's files without the work; its numbers are awkward and follow from the stage."""
    attempt, seed = attempt_of(job), int(job["fingerprint"][:8], 16)
    attempt.heartbeat({"host": "here", "boot_id": "boot", "step": 20})
    attempt.append_metrics([{"step": step, "loss": seed / step / 3} for step in (10, 20)])
    attempt.append_metrics([{"step": 30, "loss": float("nan")}])
    attempt.output("result.bin").write_bytes(job["name"].encode())
    summary = {"loss": seed / 7, "steps": 30, "protocol": "p", "usage": None, "perplexity": float("inf")}
    attempt.finish(summary | ({"degenerate": False} if job["name"].startswith("tokenizer") else {}), "done")
    write_log(attempt, "done ")
    return {"status": "done", "seconds": 1.5, "facts": {"device": "cpu", "peak_rss": 12345}}


def failing(part: str, **outcome: str) -> Pretend:
    """`work`, but stages whose name has `part` fail."""

    def run(job: dict[str, Any]) -> dict[str, Any]:
        if part not in job["name"]:
            return work(job)
        write_log(attempt_of(job), "failed ValueError: no luck")
        return {"status": "failed", "failure_class": "user_error", "message": "ValueError: no luck", **outcome}

    return run


class Bench:
    """A folder in which sweeps run, one after the other, with a pretended worker."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.database, self.path = root, str(root / "results.db"), root / "results.db"
        self.jobs: list[str] = []
        self._monkeypatch = monkeypatch

    def sweep(self, plan: Plan, run: Pretend = work, **options: Any) -> Result:
        self.jobs = []

        def counted(job: dict[str, Any]) -> dict[str, Any]:
            self.jobs.append(job["name"])
            return run(job)

        @contextmanager
        def place(kind: str, **more: Any) -> Iterator[InlineExecutor]:
            executor = InlineExecutor(counted)
            yield executor
            executor.close()

        self._monkeypatch.setattr(sweep, "open_executor", place)
        with open(os.devnull, "w") as nowhere:
            progress, chosen = LineProgress(nowhere), Options(plan.resources, **options)
            return sweep.sweep(
                plan, database=self.database, root=self.root, progress=progress, options=chosen, executor="inline"
            )

    def store(self) -> Store:
        return Store.open(self.database, create=False)

    def folder(self, kind: str, part: str = "") -> Path:
        """The folder of the first stage of a kind whose name has `part`."""
        with self.store() as store:
            stage = next(one for one in store.stages().values() if one.kind == kind and part in one.name)
        return Layout(self.root).stage(stage.kind, stage.name, stage.fingerprint)

    def table(self, plan: str | None = None) -> pd.DataFrame:
        with self.store() as store:
            return store.load_runs(plan)


def content(store: Store) -> dict[str, Any]:
    """All that a database tells of plans, stages, results and imports."""
    stages = store.stages()
    return {
        "plans": [vars(row) for row in store.plans()],
        "stages": {row.id: store.stages(row.id) for row in store.plans()},
        "all": stages,
        "runs": {row.id: store.runs(row.id) for row in store.plans()},
        "summaries": {key: repr(store.summary(key)) for key in stages},
        "metrics": {key: repr(store.metrics(key)) for key in stages},
        "artifacts": {key: store.artifacts(key) for key in stages},
        "imports": store.imports(),
    }


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its time of change and its size."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]}
