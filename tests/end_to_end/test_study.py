"""From a plan to an answer as a user's commands go, and what survives a kill on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.artifacts import Layout, read_json
from scaling.executors import RayExecutor
from scaling.plan import load_plan
from scaling.progress import LineProgress
from scaling.provenance import provenance
from scaling.scheduler import Options, Scheduler
from scaling.store import Store
from scaling.sweep import plan_graph, record
from tests.end_to_end.conftest import Study, kill


def assert_same_results(study: Study, finished: Study) -> None:
    pd.testing.assert_frame_equal(study.table(), finished.table(), check_exact=True)
    assert study.metrics() == finished.metrics()
    assert study.weights() == finished.weights()


def test_a_sweep_fills_the_table_of_every_run(finished: Study) -> None:
    table = finished.table()
    assert len(table) == 2 * 3 * 3
    assert (table["state"] == "done").all()
    for column in ("loss", "loss_per_image", "rfid", "gfid", "gkid", "usage", "predictability", "bias_floor"):
        assert np.isfinite(table[column].astype(float)).all(), column
    assert table["protocol_hash"].nunique() == 1
    assert (table["gfid"] > 0).all()


def test_shared_stages_run_once(finished: Study) -> None:
    counts = {
        kind: len(list(finished.folder.glob(f"artifacts/{kind}/*"))) for kind in ("features", "tokenizer", "tokens")
    }
    assert counts == {"features": 1, "tokenizer": 2, "tokens": 2}
    assert finished.attempts() == 1 + 2 + 2 + 18 + 2 + 18


def test_the_second_sweep_has_nothing_to_do_and_changes_nothing(finished: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.glob("artifacts/**/*")}
    again = finished.run("sweep", "plan.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert "0 to do" in again.stderr
    assert json.loads(again.stdout) == {"status": "done", "stages": {"done": 43}}
    assert {path: path.stat().st_mtime_ns for path in finished.folder.glob("artifacts/**/*")} == before


def test_fit_prints_the_answer_and_draws_the_figures(finished: Study) -> None:
    for metric in ("fid", "loss", "rfid"):
        done = finished.run("fit", "--metric", metric, "--bootstrap", "60")
        assert done.returncode == 0, done.stderr
        assert "crt" in done.stdout
        assert "Traceback" not in done.stderr
    assert list(finished.folder.glob("plots/*.svg"))
    assert list(finished.folder.glob("plots/*.png"))


def test_status_runs_and_export_read_what_a_sweep_wrote(finished: Study, tmp_path: Path) -> None:
    status = json.loads(finished.run("status", "--json").stdout)
    assert status[0]["counts"]["generator"] == {"done": 18}
    assert "18" in finished.run("status").stdout
    rows = json.loads(finished.run("runs", "--json").stdout)
    assert len(rows) == 18
    exported = finished.run("export", str(tmp_path / "out.csv"))
    assert exported.returncode == 0, exported.stderr
    table = pd.read_csv(tmp_path / "out.csv")
    assert np.allclose(table["gfid"], [row["gfid"] for row in rows])


def test_a_lost_database_is_filled_again_from_the_artifacts(finished: Study, study: Study) -> None:
    shutil.copytree(finished.folder / "artifacts", study.folder / "artifacts")
    again = study.run("sweep", "plan.yaml")
    assert again.returncode == 0, again.stderr
    assert "0 to do" in again.stderr
    assert study.attempts() == finished.attempts()
    assert_same_results(study, finished)


@pytest.mark.parametrize("kind", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"])
def test_a_driver_killed_in_the_middle_of_a_stage_loses_only_the_steps_since_its_checkpoint(
    kind: str, finished: Study, study: Study
) -> None:
    process = study.start("sweep", "plan.yaml")
    study.wait_for(lambda: study.checkpoints(kind) > 0, process)
    kill(process)
    again = study.run("sweep", "plan.yaml")
    assert again.returncode == 0, again.stderr
    assert list(study.folder.glob(f"artifacts/{kind}/*/attempts/0002/resumed.json"))
    assert_same_results(study, finished)


def test_ctrl_c_drains_and_the_same_command_goes_on(finished: Study, study: Study) -> None:
    process = study.start("sweep", "plan.yaml")
    study.wait_for(lambda: study.checkpoints("generator") > 0, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 3
    assert "resume with: scaling sweep plan.yaml" in (study.folder / "started.log").read_text()
    assert study.run("sweep", "plan.yaml").returncode == 0
    assert_same_results(study, finished)


@pytest.mark.ray
def test_a_worker_killed_in_the_middle_of_a_stage_is_resumed_bit_identical_on_ray(
    finished: Study, study: Study, ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.folder)
    plan = load_plan(study.folder / "plan.yaml")
    graph = plan_graph(plan)
    killers = [_Killer(study, kind) for kind in ("tokenizer", "generator")]
    with Store.open("results.db", create=True) as store:
        plan_id = store.record_plan(plan.name, plan.sha256, plan.text, plan.resolved(), provenance())
        lease = store.acquire_driver(plan.name)
        record(store, plan_id, graph)
        options = Options(plan.resources, workers=2)
        scheduler = Scheduler(graph, store, Layout(study.folder), LineProgress(), options, provenance(), plan_id)
        for killer in killers:
            killer.start()
        result = scheduler.run(lambda: nullcontext(ray_executor))
        store.release_driver(lease)
    assert result.status == "done"
    for killer in killers:
        killer.join()
        assert list(study.folder.glob(f"artifacts/{killer.kind}/*/attempts/0002/resumed.json"))
    assert_same_results(study, finished)


class _Killer(threading.Thread):
    """Kills a worker that has saved a checkpoint in a stage of its kind, until a stage needs a second try."""

    def __init__(self, study: Study, kind: str) -> None:
        super().__init__(daemon=True)
        self.study, self.kind = study, kind

    def run(self) -> None:
        tried: set[Path] = set()
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not list(
            self.study.folder.glob(f"artifacts/{self.kind}/*/attempts/0002")
        ):
            for saved in self.study.folder.glob(f"artifacts/{self.kind}/*/attempts/0001/checkpoints/*.safetensors"):
                attempt = saved.parents[1]
                if attempt not in tried and not (attempt / "result.json").exists():
                    tried.add(attempt)
                    with suppress(ProcessLookupError):
                        os.kill(read_json(attempt / "heartbeat.json")["pid"], signal.SIGKILL)
            time.sleep(0.01)
