"""Where a stage runs. One interface, two places: `inline` in the driver's own process, `ray` on a cluster.

Contract of an Executor, kept by every implementation and tested by one suite:

- `submit(job)` takes a `worker.Job` that `fits`; it never blocks for the length of a stage.
- `wait(timeout)` returns the (fingerprint, Outcome) pairs that ended since the last call, each exactly once. It may
  run work itself, and then outlasts the timeout.
- A worker that dies (killed, exited, its node lost) is an Outcome failed/crash or failed/node_lost, not an exception.
- `kill(fingerprint)` ends a running stage without grace; its outcome follows from `wait`.
- `close()` leaves nothing running that this executor started. After it no other method is called.
- Nothing an executor starts writes to the driver's standard output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from scaling.worker import Job, Outcome, run_job

Run = Callable[[dict[str, Any]], dict[str, Any]]  # a Job as a dict to an Outcome as a dict

# one large arena instead of a page fault for every tensor: small models train up to a third faster (glibc)
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Capacity:
    """What an executor has in all."""

    cpus: float
    gpus: float


class ExecutorError(Exception):
    """The place where stages run is not to be had; the message is one line."""


class Executor(Protocol):
    """See the module's contract."""

    capacity: Capacity

    def submit(self, job: Job) -> None: ...

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]: ...

    def kill(self, fingerprint: str) -> None: ...

    def close(self) -> None: ...


def cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InlineExecutor:
    """Runs one stage at a time in this process, in `wait`. For tests, debuggers and machines without Ray.

    What `run` raises passes through `wait`; `kill` reaches only what has not begun.
    """

    def __init__(self, run: Run = run_job) -> None:
        self.capacity = Capacity(cpu_count(), 0)
        self._run = run
        self._queue: deque[Job] = deque()
        self._killed: list[tuple[str, Outcome]] = []

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        ended, self._killed = self._killed, []
        if ended or not self._queue:
            return ended
        job = self._queue.popleft()
        return [(job.fingerprint, Outcome(**self._run(asdict(job))))]

    def kill(self, fingerprint: str) -> None:
        if any(job.fingerprint == fingerprint for job in self._queue):
            self._queue = deque(job for job in self._queue if job.fingerprint != fingerprint)
            self._killed.append((fingerprint, Outcome("failed", "crash", "killed before it began")))

    def close(self) -> None:
        self._queue.clear()


class RayExecutor:
    """Runs stages as Ray Core tasks: on a local Ray of its own, or on the cluster at `address`.

    Ray keeps only what runs now; retries, order and state are the scheduler's. Raises ExecutorError where Ray cannot
    start or the address does not answer.
    """

    def __init__(
        self, cpus: int | None = None, gpus: float | None = None, address: str | None = None, run: Run = run_job
    ) -> None:
        self._quiet = _QuietStdout()
        _set_environment()
        import ray

        self._ray = ray
        options: dict[str, Any] = {"address": address or "local", "namespace": "scaling", "log_to_driver": False}
        if address is None:
            options |= {"num_cpus": cpus or cpu_count(), "include_dashboard": False, "object_store_memory": 100 * 2**20}
            if gpus is not None:
                options["num_gpus"] = gpus
        try:
            ray.init(logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self._quiet.restore()
            raise ExecutorError(f"Ray did not start at {address or 'this machine'}: {error}") from None
        total = ray.cluster_resources()
        self.capacity = Capacity(total.get("CPU", 0), total.get("GPU", 0))
        self._task = ray.remote(_ray_task)
        self._run = run
        self._running: dict[Any, str] = {}

    def submit(self, job: Job) -> None:
        options = {"num_cpus": job.cpus, "num_gpus": job.gpus, "max_retries": 0, "retry_exceptions": False}
        reference = self._task.options(name=job.name, **options).remote(self._run, asdict(job))
        self._running[reference] = job.fingerprint

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        if not self._running:
            return []
        pending = list(self._running)
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout, fetch_local=False)
        more, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False) if ready else ([], [])
        return [(self._running.pop(reference), self._outcome(reference)) for reference in more or ready]

    def _outcome(self, reference: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return Outcome(**self._ray.get(reference))
        except errors.NodeDiedError as error:
            return _lost("node_lost", error)
        except errors.OutOfMemoryError as error:
            return _lost("oom_host", error)
        except (errors.RayError, Exception) as error:
            return _lost("crash", error)

    def kill(self, fingerprint: str) -> None:
        for reference, running in self._running.items():
            if running == fingerprint:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()
        self._quiet.restore()


def _ray_task(run: Run, job: dict[str, Any]) -> dict[str, Any]:
    # since Ray 2.60 a task without GPUs sees them all
    if not job["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return run(job)


def _lost(failure_class: str, error: BaseException) -> Outcome:
    """The outcome of a worker that could not say how it ended."""
    first = str(error).strip().split("\n")[0][:300]
    return Outcome("failed", failure_class, f"{type(error).__name__}: {first}", str(error))


def _set_environment() -> None:
    """What Ray and its workers read from the environment; a user's own values win, but for the threads."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **MALLOC,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # each stage sets its own threads; a pool sized by the whole machine would fight the other stages
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    # workers import the packages from where the driver has them
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    if root not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([root, path]) if path else root


class _QuietStdout:
    """Sends what Ray prints to standard output into a file for as long as Ray lives."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._kept = os.dup(1)
        self._file = tempfile.NamedTemporaryFile(prefix="scaling-ray-", suffix=".log")  # noqa: SIM115
        os.dup2(self._file.fileno(), 1)

    def restore(self) -> None:
        if self._kept >= 0:
            sys.stdout.flush()
            os.dup2(self._kept, 1)
            os.close(self._kept)
            self._kept = -1
            self._file.close()


@contextlib.contextmanager
def open_executor(kind: str, *, cpus: int, gpus: float | None, address: str | None) -> Iterator[Executor]:
    """An executor of `kind` (inline | ray), closed at the end. `cpus` and `gpus` bound a local Ray."""
    executor: Executor = InlineExecutor() if kind == "inline" else RayExecutor(cpus, gpus, address)
    try:
        yield executor
    finally:
        executor.close()
