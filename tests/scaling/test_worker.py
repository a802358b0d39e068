"""One stage in its process: whatever a recipe does, the driver gets a typed outcome, and the folder tells the rest."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from models.settings import DataSettings
from models.training import Diverged, Stopped
from scaling import artifacts, recipes, worker
from scaling.artifacts import AttemptFolder, CorruptArtifact, Layout
from scaling.context import Context
from scaling.worker import Job, Outcome, run_job

FINGERPRINT = "0123456789abcdef" * 4
Recipe = Callable[[Context], dict[str, Any]]
Bench = Callable[..., tuple[Outcome, Path]]


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """A worker sets its process up for good; the tests share one."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def folder(weird_tmp_path: Path) -> Path:
    return Layout(weird_tmp_path).stage("tokenizer", "base", FINGERPRINT)


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run a recipe as attempt 1 of a stage; returns (outcome, the stage's folder)."""

    def run(recipe: Recipe, **more: Any) -> tuple[Outcome, Path]:
        monkeypatch.setattr(recipes, "RECIPE_OF", {"tokenizer": recipe})
        token = artifacts.new_token()
        artifacts.grant_lease(folder, 1, token)
        identity = {"kind": "tokenizer", "settings": {"width": 8}, "seed": 5}
        data = DataSettings().model_dump(mode="json")
        job = Job(FINGERPRINT, "tokenizer base", identity, data, str(folder), {}, 1, token)
        returned = run_job({**asdict(job), **more})
        return Outcome(**json.loads(json.dumps(returned))), folder  # plain data, or it could not travel

    return run


@pytest.fixture
def fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.01)


def wait_until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "the awaited state did not come"
        time.sleep(0.005)


def raising(error: BaseException) -> Recipe:
    def recipe(context: Context) -> dict[str, Any]:
        raise error

    return recipe


def log_of(folder: Path) -> str:
    return Layout.log(folder, 1).read_text()


def result_of(folder: Path) -> dict[str, Any]:
    return artifacts.read_json(Layout.result(Layout.attempt(folder, 1)))


# ---------------------------------------------------------------------------------------------- endings


def test_a_recipe_that_returns_is_done_and_its_files_are_sealed(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        context.attempt.output("model.bin").write_bytes(b"weights")
        return {"loss": 1.5, "settings_width": context.settings["width"], "seed": context.seed}

    outcome, folder = bench(recipe)
    assert (outcome.status, outcome.failure_class, outcome.message, outcome.traceback) == ("done", "", "", "")
    result = result_of(folder)
    assert result["status"] == "done"
    assert result["summary"] == {"loss": 1.5, "settings_width": 8, "seed": 5}
    assert result["files"]["model.bin"]["bytes"] == 7
    assert not Layout.result(folder).exists(), "the commit is the driver's"
    assert artifacts.adoptable(folder) == 1


def test_the_outcome_says_how_long_where_and_how_much_memory(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        time.sleep(0.05)
        return {}

    outcome, _ = bench(recipe)
    assert 0.05 <= outcome.seconds < 30
    assert outcome.facts["device"] == "cpu"
    assert outcome.facts["threads"] == 1
    assert 2**20 < outcome.facts["peak_rss"] < 2**40, "bytes"


def test_a_diverged_stage_is_sealed_as_such_with_its_step(bench: Bench) -> None:
    outcome, folder = bench(raising(Diverged(7)))
    assert (outcome.status, outcome.message) == ("diverged", "loss is not finite at step 7")
    result = result_of(folder)
    assert (result["status"], result["summary"]) == ("diverged", {"diverged_step": 7})


def test_a_stage_asked_to_stop_returns_without_a_result(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        assert not context.should_stop()
        artifacts.request_stop(context.attempt.stage_dir, 1)
        assert context.should_stop()
        raise Stopped(3)

    outcome, folder = bench(recipe)
    assert (outcome.status, outcome.message) == ("stopped", "stopped after step 3")
    assert not Layout.result(Layout.attempt(folder, 1)).exists()


def test_an_attempt_whose_lease_moves_may_write_no_more(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        context.attempt.output("mine.bin").write_bytes(b"early")
        artifacts.grant_lease(context.attempt.stage_dir, 2, artifacts.new_token())
        return {"loss": 1.0}

    outcome, folder = bench(recipe)
    assert outcome.status == "fenced"
    assert "attempt 2 holds its lease" in outcome.message
    assert not Layout.result(Layout.attempt(folder, 1)).exists()


@pytest.mark.usefixtures("fast_heart")
def test_the_heartbeat_notices_a_moved_lease_and_ends_the_loop(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        artifacts.grant_lease(context.attempt.stage_dir, 2, artifacts.new_token())
        wait_until(context.should_stop)
        raise AssertionError("should_stop returned in place of raising")

    outcome, _ = bench(recipe)
    assert outcome.status == "fenced"


def test_an_attempt_that_never_held_the_lease_does_no_work(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        raise AssertionError("ran")

    outcome, _ = bench(recipe, token="another")
    assert outcome.status == "fenced"


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (ValueError("batch of 7\nis odd"), "user_error"),
        (KeyError("width"), "user_error"),
        (RuntimeError("shapes differ"), "user_error"),
        (OSError(errno.ENOENT, "No such file", "images/"), "user_error"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (SafetensorError("header too large"), "user_error"),
        (CorruptArtifact("model.safetensors: truncated"), "bad_artifact"),
        (MemoryError(), "oom_host"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom_gpu"),
        (KeyboardInterrupt(), "crash"),
        (SystemExit(3), "crash"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_exception_becomes_a_failure_of_its_class(bench: Bench, error: BaseException, failure_class: str) -> None:
    outcome, folder = bench(raising(error))
    assert (outcome.status, outcome.failure_class) == ("failed", failure_class)
    assert outcome.message.startswith(type(error).__name__)
    assert "\n" not in outcome.message
    assert not Layout.result(Layout.attempt(folder, 1)).exists()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on file sizes")
def test_safetensors_says_why_the_system_refused_a_write_in_the_form_the_worker_reads(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, numpy; from safetensors.numpy import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: save_file({'a': numpy.zeros(10_000)}, sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error, end='')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith("SafetensorError")
    assert said.endswith(f"(os error {errno.EFBIG})")


def test_the_whole_traceback_is_in_the_log_and_in_the_outcome(bench: Bench) -> None:
    def helper_that_fails() -> None:
        raise ValueError("the user's mistake")

    def recipe(context: Context) -> dict[str, Any]:
        helper_that_fails()
        return {}

    outcome, folder = bench(recipe)
    assert outcome.message == "ValueError: the user's mistake"
    for text in (outcome.traceback, log_of(folder)):
        assert "Traceback (most recent call last)" in text
        assert "in helper_that_fails" in text


def test_a_kind_without_a_recipe_is_an_outcome_too(bench: Bench) -> None:
    outcome, _ = bench(lambda context: {}, identity={"kind": "sculpture", "settings": {}, "seed": 0})
    assert (outcome.status, outcome.failure_class) == ("failed", "user_error")


def test_settings_of_the_data_that_are_not_valid_are_an_outcome_too(bench: Bench) -> None:
    outcome, _ = bench(lambda context: {}, data={"resolution": 1})
    assert (outcome.status, outcome.failure_class) == ("failed", "user_error")
    assert "resolution" in outcome.message


def test_a_summary_that_cannot_be_written_is_a_failure_and_no_result(bench: Bench) -> None:
    outcome, folder = bench(lambda context: {"loss": object()})
    assert (outcome.status, outcome.failure_class) == ("failed", "user_error")
    assert not Layout.result(Layout.attempt(folder, 1)).exists()


def test_a_folder_that_cannot_be_made_is_an_outcome_too(bench: Bench, folder: Path) -> None:
    folder.mkdir(parents=True)
    Layout.attempts(folder).write_text("a file where the attempts' folder should be")
    outcome, _ = bench(lambda context: {})
    assert (outcome.status, outcome.failure_class) == ("failed", "user_error")
    assert "attempts" in outcome.message


def test_a_parent_whose_bytes_changed_is_a_bad_artifact(bench: Bench, weird_tmp_path: Path) -> None:
    parent = Layout(weird_tmp_path).stage("tokens", "base", "f" * 64)
    artifacts.write_json(Layout.config(parent), {"fingerprint": "f" * 64})
    artifacts.grant_lease(parent, 1, "token")
    attempt = AttemptFolder(parent, 1, "token")
    attempt.output("train.npy").write_bytes(b"tokens")
    attempt.finish({}, "done")
    artifacts.commit(parent, 1)

    def recipe(context: Context) -> dict[str, Any]:
        return {"bytes": len(context.input("tokens", "train.npy").read_bytes())}

    inputs = {"tokens": str(parent)}
    outcome, folder = bench(recipe, inputs=inputs)
    assert outcome.status == "done"
    assert result_of(folder)["summary"] == {"bytes": 6}
    (Layout.output(parent, 1) / "train.npy").write_bytes(b"snekot")
    outcome, _ = bench(recipe, inputs=inputs)
    assert (outcome.status, outcome.failure_class) == ("failed", "bad_artifact")
    assert "train.npy: SHA-256 differs" in outcome.message


# ------------------------------------------------------------------------------------- while it runs


@pytest.mark.usefixtures("fast_heart")
def test_the_heartbeat_carries_process_host_step_and_values(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    def recipe(context: Context) -> dict[str, Any]:
        path = Layout.heartbeat(context.attempt.stage_dir, 1)
        seen["first"] = artifacts.read_json(path)
        context.progress(3, 10, {"loss": 1.25})
        wait_until(lambda: "step" in artifacts.read_json(path))
        seen["later"] = artifacts.read_json(path)
        return {}

    assert bench(recipe)[0].status == "done"
    first, later = seen["first"], seen["later"]
    assert (first["pid"], first["host"]) == (os.getpid(), socket.gethostname())
    assert "boot_id" in first
    assert "step" not in first
    assert (later["step"], later["steps"], later["values"]) == (3, 10, {"loss": 1.25})
    assert later["time"] >= first["time"]


@pytest.mark.usefixtures("fast_heart")
def test_the_heart_has_stopped_when_the_outcome_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    beat, beats = AttemptFolder.heartbeat, 0

    def slow_beat(attempt: AttemptFolder, values: Mapping[str, Any]) -> None:
        nonlocal beats
        beats += 1
        beat(attempt, values)
        time.sleep(0.1)

    def recipe(context: Context) -> dict[str, Any]:
        wait_until(lambda: beats > 1)  # the thread is in the middle of a beat
        return {}

    monkeypatch.setattr(AttemptFolder, "heartbeat", slow_beat)
    assert bench(recipe)[0].status == "done"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_threads_are_the_jobs_and_arithmetic_is_deterministic(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "exact": torch.are_deterministic_algorithms_enabled()}

    outcome, folder = bench(recipe, cpus=2)
    assert result_of(folder)["summary"] == {"threads": 2, "exact": True}
    assert outcome.facts["threads"] == 2


def test_a_reused_process_carries_no_random_state_into_the_next_stage(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        return {"torch": float(torch.rand(())), "python": random.random()}

    _, folder = bench(recipe)
    first = result_of(folder)["summary"]
    bench(recipe)
    assert result_of(folder)["summary"] == first


def test_the_log_takes_records_and_warnings_and_is_let_go_at_the_end(bench: Bench) -> None:
    def recipe(context: Context) -> dict[str, Any]:
        logging.getLogger("somewhere").info("a line of the recipe")
        warnings.warn("a warning of the recipe", stacklevel=1)
        return {}

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    _, folder = bench(recipe)
    text = log_of(folder)
    assert "somewhere: a line of the recipe" in text
    assert "a warning of the recipe" in text
    assert f"attempt begins, pid {os.getpid()}" in text
    assert "ended: done" in text
    assert (root.handlers, root.level) == (handlers, level)
    logging.getLogger("somewhere").warning("after the end")
    assert log_of(folder) == text


def test_the_recipe_gets_its_micro_batches_data_and_device(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    def recipe(context: Context) -> dict[str, Any]:
        images = context.source().images("train", np.arange(2), context.data.resolution)
        seen.update(
            shape=images.shape, parts=context.micro_batches, device=context.device, due=context.checkpoint_seconds
        )
        return {}

    assert bench(recipe, micro_batches=4, checkpoint_seconds=7.5)[0].status == "done"
    assert seen == {"shape": (2, 3, 16, 16), "parts": 4, "device": torch.device("cpu"), "due": 7.5}
