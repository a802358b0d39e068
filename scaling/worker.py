"""Runs one stage in its process: attempt folder, heartbeat, log, threads, and a typed outcome in place of exceptions.

The worker never opens the database. Whatever happens it returns an `Outcome` that is plain data, so that no
exception has to cross a process; what it made lies in its attempt's folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import resource
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaling.artifacts import AttemptFolder, CorruptArtifact, Fenced, Layout
from scaling.provenance import owner

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One attempt at a stage, as plain data. `inputs` maps roles to the parents' stage folders."""

    fingerprint: str
    name: str
    identity: Mapping[str, Any]
    data: Mapping[str, Any]
    stage_dir: str
    inputs: Mapping[str, str]
    attempt: int
    token: str
    cpus: int = 1
    gpus: float = 0.0
    micro_batches: int = 1
    checkpoint_seconds: float = 20.0


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    status: done | diverged | stopped | fenced | failed. failure_class where failed: oom_gpu | oom_host | disk_full |
    bad_artifact | user_error | crash.
    """

    status: str
    failure_class: str = ""
    message: str = ""
    traceback: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)  # device, threads, peak_rss


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a `Job` given as a dict and return its `Outcome` as one; raises nothing but what ends the process."""
    try:
        return asdict(_run(Job(**job)))
    except Exception as error:  # not even its log could be opened
        return asdict(_classify(error))


def _run(job: Job) -> Outcome:
    started = time.monotonic()
    attempt = AttemptFolder(Path(job.stage_dir), job.attempt, job.token)
    facts: dict[str, Any] = {"threads": job.cpus}
    with _logging_to(Layout.log(attempt.stage_dir, attempt.number)) as log:
        try:
            device = _prepare(job)
            facts["device"] = str(device)
            with _Heart(attempt) as heart:
                status, message = _work(job, attempt, device, heart)
            outcome = Outcome(status, message=message)
        except BaseException as error:
            outcome = _classify(error)
            if outcome.status == "failed":
                log.error("%s", outcome.traceback)
        facts["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        log.info("ended: %s %s", outcome.status, outcome.message)
    return Outcome(
        outcome.status,
        outcome.failure_class,
        outcome.message,
        outcome.traceback,
        time.monotonic() - started,
        facts,
    )


def _work(job: Job, attempt: AttemptFolder, device: Any, heart: _Heart) -> tuple[str, str]:
    """Run the recipe and write the attempt's result; (status, message)."""
    from models.settings import DataSettings
    from models.training import Diverged, Stopped
    from scaling.recipes import Context, run_recipe

    context = Context(
        identity=job.identity,
        inputs={role: Path(folder) for role, folder in job.inputs.items()},
        data=DataSettings.model_validate(dict(job.data)),
        attempt=attempt,
        device=device,
        micro_batches=job.micro_batches,
        checkpoint_seconds=job.checkpoint_seconds,
        progress=heart.progress,
        should_stop=lambda: heart.fenced() or attempt.should_stop(),
    )
    try:
        summary = run_recipe(context)
    except Diverged as error:
        attempt.finish({"diverged_step": error.step}, "diverged")
        return "diverged", str(error)
    except Stopped as error:
        return "stopped", str(error)
    attempt.finish(summary, "done")
    return "done", ""


def _prepare(job: Job) -> Any:
    """Threads, determinism and the device. Worker processes are reused, so nothing may be left to defaults."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(job.cpus)
    # warn only: on a GPU some sums have no deterministic kernel
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    random.seed(0)
    torch.manual_seed(0)
    return torch.device("cuda" if job.gpus and torch.cuda.is_available() else "cpu")


class _Heart:
    """Writes heartbeat.json from a thread while the stage runs, with the progress last told to it."""

    def __init__(self, attempt: AttemptFolder) -> None:
        self._attempt = attempt
        me = owner()
        self._values: dict[str, Any] = {"host": me.host, "boot_id": me.boot_id}
        self._end = threading.Event()
        self._fenced = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Heart:
        self._attempt.heartbeat(self._values)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def progress(self, step: int, steps: int, values: Mapping[str, float]) -> None:
        self._values = {**self._values, "step": step, "steps": steps, "values": dict(values)}

    def fenced(self) -> bool:
        """Raise Fenced where another attempt took over; otherwise False, to stand in a condition."""
        if self._fenced.is_set():
            self._attempt.check()
        return False

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            try:
                self._attempt.heartbeat(self._values)
            except (Fenced, CorruptArtifact):
                self._fenced.set()
                return
            except OSError:
                continue  # a full disk shows in the work itself


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[logging.Logger]:
    """Send this process's log records to the attempt's worker.log for the time of the stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    log = logging.getLogger("scaling.worker")
    try:
        log.info("attempt begins, pid %d", os.getpid())
        yield log
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def _classify(error: BaseException) -> Outcome:
    """The outcome of an exception; its class decides what the scheduler does next."""
    text = "".join(traceback.format_exception(error))
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    if isinstance(error, Fenced):
        return Outcome("fenced", message=message)
    return Outcome("failed", _failure_class(error), message, text)


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors has one class for all, with the system's number in its text
    full = tuple(f"(os error {number})" for number in (errno.ENOSPC, errno.EDQUOT))
    return type(error).__name__ == "SafetensorError" and str(error).endswith(full)


def _failure_class(error: BaseException) -> str:
    name = type(error).__name__
    if name == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return "oom_gpu"
    if isinstance(error, MemoryError):
        return "oom_host"
    if _disk_is_full(error):
        return "disk_full"
    if isinstance(error, CorruptArtifact):
        return "bad_artifact"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "crash"
    return "user_error"
