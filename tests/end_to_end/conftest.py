"""A small study that every end-to-end test can afford, and ways to run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from scaling.artifacts import Layout, read_json
from scaling.store import Store

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
plan: small
extends: tiny@1
data: {source: shapes, resolution: 16, train_images: 4_096, validation_images: 256}
tokenizer:
  codebook_size: 32
  width: 16
  images_seen: 9_600
  arms: {base: {}, crt: {crt_weight: 0.1, crt: {flops_matched: false}}}
generator:
  size: [16x1, 16x2, 32x2]
  images_seen: [1_024, 2_048, 4_096]
evaluation:
  reference: {split: held-out, images: 400}
  samples: 200
resources: {executor: inline, workers: 1, checkpoint_seconds: 0.05}
"""
# what two runs of one plan may differ in: times, places and how often something was tried
UNSTABLE = ("seconds", "finished")


@dataclass
class Study:
    """A folder with the small plan; commands run in it as a user's would."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scaling.cli", *arguments]

    def environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return os.environ | threads | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(self.folder / ".mpl")}

    def run(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with open(self.folder / "started.log", "a") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment(), stderr=log, stdout=log, text=True
            )

    def table(self) -> pd.DataFrame:
        """The results without what may differ between two runs, in the order of runs."""
        with Store.open(self.folder / "results.db", create=False, readonly=True) as store:
            table = store.load_runs()
        return table.drop(columns=[name for name in UNSTABLE if name in table])

    def metrics(self) -> dict[str, list[dict[str, float]]]:
        """All metric rows by stage."""
        with Store.open(self.folder / "results.db", create=False, readonly=True) as store:
            plan = store.plans()[0]
            return {key: store.metrics(key) for key in store.stages(plan.id)}

    def weights(self) -> dict[str, str]:
        """SHA-256 of every result file by stage folder and name."""
        found = {}
        for stage in Layout(self.folder).stages():
            for name, about in read_json(Layout.result(stage))["files"].items():
                found[f"{stage.name}/{name}"] = about["sha256"]
        return found

    def attempts(self) -> int:
        return len(list(self.folder.glob("artifacts/*/*/attempts/*")))

    def wait_for(self, ready: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
        """Wait until `ready()`; fails where the process ends first."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert process.poll() is None, (self.folder / "started.log").read_text()
            assert time.monotonic() < deadline, "the awaited state did not come"
            time.sleep(0.02)

    def checkpoints(self, kind: str) -> int:
        return len(list(self.folder.glob(f"artifacts/{kind}/*/attempts/*/checkpoints/*.safetensors")))


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def new_study(folder: Path) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(PLAN)
    return Study(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The small study, swept without a disturbance. Tests read it and leave it as it is."""
    study = new_study(tmp_path_factory.mktemp("finished"))
    done = study.run("sweep", "plan.yaml")
    assert done.returncode == 0, done.stderr
    return study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The small study, not yet swept."""
    return new_study(tmp_path)
