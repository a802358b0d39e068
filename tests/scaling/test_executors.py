"""The contract of `scaling.executors`, held by one suite over every place where a stage can run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling.executors import Executor, InlineExecutor, RayExecutor, open_executor
from scaling.worker import Job, Outcome

Run = Callable[[dict[str, Any]], dict[str, Any]]
Place = Callable[[Run], Executor]
PATIENCE = 60.0  # seconds after which a missing outcome is a fault


def by_value() -> None:
    """Let Ray's workers have this module's functions without importing it."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def on_ray(ray_executor: RayExecutor) -> Iterator[Place]:
    by_value()

    def open_place(run: Run) -> Executor:
        ray_executor._run = run
        return ray_executor

    yield open_place
    assert ray_executor._running == {}, "an outcome was left behind"


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.ray)])
def place(request: pytest.FixtureRequest) -> Place:
    return InlineExecutor if request.param == "inline" else request.getfixturevalue("on_ray")


def job(name: str = "a", folder: Path | None = None, **more: Any) -> Job:
    """A job whose fingerprint is its name; `folder` travels as the stage's folder."""
    return Job(name, f"tokenizer {name}", {}, {}, str(folder or ""), {}, 1, "token", **more)


def collect(executor: Executor, count: int) -> dict[str, Outcome]:
    """The next `count` outcomes by fingerprint; more at once, or one twice, is a fault."""
    found: list[tuple[str, Outcome]] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        found += executor.wait(0.2)
    assert len(found) == count == len(dict(found))
    return dict(found)


# what workers do; each is a `run`


def succeed(job: dict[str, Any]) -> dict[str, Any]:
    return {"status": "done", "message": job["name"], "facts": {"cpus": job["cpus"]}}


def tell_environment(job: dict[str, Any]) -> dict[str, Any]:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {"status": "done", "facts": {name: os.environ.get(name) for name in names}}


def exit_at_once(job: dict[str, Any]) -> dict[str, Any]:
    os._exit(7)


def be_killed(job: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE)
    raise AssertionError("outlived SIGKILL")


def raise_what_cannot_travel(job: dict[str, Any]) -> dict[str, Any]:
    error = RuntimeError("boom")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def return_what_cannot_travel(job: dict[str, Any]) -> dict[str, Any]:
    return {"status": "done", "facts": {"lock": threading.Lock()}}


def return_no_outcome(job: dict[str, Any]) -> dict[str, Any]:
    return {"colour": "blue"}


def meet(job: dict[str, Any]) -> dict[str, Any]:
    """Done where another job is under way at the same time."""
    folder = Path(job["stage_dir"])
    (folder / job["fingerprint"]).touch()
    deadline = time.monotonic() + PATIENCE / 2
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            return {"status": "failed", "message": "alone"}
        time.sleep(0.01)
    return {"status": "done"}


def run_for_ever(job: dict[str, Any]) -> dict[str, Any]:
    (Path(job["stage_dir"]) / f"{job['fingerprint']}-{os.getpid()}").touch()
    time.sleep(10 * PATIENCE)
    return {"status": "done"}


# ------------------------------------------------------------------------------------------- contract


def test_an_outcome_comes_once(place: Place) -> None:
    executor = place(succeed)
    executor.submit(job("a", cpus=2))
    assert collect(executor, 1) == {"a": Outcome("done", message="tokenizer a", facts={"cpus": 2})}
    assert executor.wait(0.05) == []


def test_each_of_several_jobs_has_its_own_outcome(place: Place) -> None:
    executor = place(succeed)
    for name in "abc":
        executor.submit(job(name))
    outcomes = collect(executor, 3)
    assert {name: outcome.message for name, outcome in outcomes.items()} == {n: f"tokenizer {n}" for n in "abc"}


def test_waiting_for_nothing_returns_nothing(place: Place) -> None:
    executor = place(succeed)
    assert executor.wait(30.0) == []


def test_a_stage_that_was_tried_before_is_a_job_of_its_own(place: Place) -> None:
    executor = place(succeed)
    for _ in range(2):
        executor.submit(job("a"))
        assert collect(executor, 1)["a"].status == "done"


def test_submitting_does_not_run_the_stage_to_its_end(place: Place, tmp_path: Path) -> None:
    executor = place(run_for_ever)
    executor.submit(job("a", tmp_path))
    executor.kill("a")
    assert collect(executor, 1)["a"].status == "failed"


def test_a_killed_job_has_an_outcome_and_the_others_go_on(place: Place) -> None:
    executor = place(succeed)
    executor.submit(job("a"))
    executor.submit(job("b"))
    executor.kill("b")
    executor.kill("unknown")
    outcomes = collect(executor, 2)
    assert outcomes["a"].status == "done"
    assert outcomes["b"].failure_class in ("crash", "")  # Ray may have finished it before


def test_capacity_is_what_the_place_has(place: Place) -> None:
    executor = place(succeed)
    assert executor.capacity.cpus >= 1
    assert executor.capacity.gpus == 0


# ---------------------------------------------------------------------------------------- inline alone


def test_inline_lets_an_exception_through_for_the_debugger() -> None:
    executor = InlineExecutor(raise_what_cannot_travel)
    executor.submit(job())
    with pytest.raises(RuntimeError, match="boom"):
        executor.wait(0)


def test_leaving_an_inline_executor_forgets_what_had_not_begun() -> None:
    with open_executor("inline", cpus=1, gpus=None, address=None) as executor:
        executor.submit(job("a"))
    assert executor.wait(0) == []


# ------------------------------------------------------------------------------------------- Ray alone


@pytest.mark.ray
@pytest.mark.parametrize(
    "run", [exit_at_once, be_killed, raise_what_cannot_travel, return_what_cannot_travel, return_no_outcome]
)
def test_a_worker_that_cannot_say_how_it_ended_has_crashed(on_ray: Place, run: Run) -> None:
    executor = on_ray(run)
    executor.submit(job("a"))
    outcome = collect(executor, 1)["a"]
    assert (outcome.status, outcome.failure_class) == ("failed", "crash")
    assert outcome.message
    assert "\n" not in outcome.message


@pytest.mark.ray
def test_a_dead_worker_takes_no_other_job_with_it(on_ray: Place) -> None:
    executor = on_ray(be_killed)
    executor.submit(job("a"))
    executor = on_ray(succeed)
    executor.submit(job("b"))
    outcomes = collect(executor, 2)
    assert outcomes["a"].failure_class == "crash"
    assert outcomes["b"].status == "done"


@pytest.mark.ray
def test_two_processors_run_two_stages_at_once(on_ray: Place, tmp_path: Path) -> None:
    executor = on_ray(meet)
    executor.submit(job("a", tmp_path))
    executor.submit(job("b", tmp_path))
    assert {outcome.status for outcome in collect(executor, 2).values()} == {"done"}


@pytest.mark.ray
def test_kill_ends_a_running_stage_and_its_process(on_ray: Place, tmp_path: Path) -> None:
    executor = on_ray(run_for_ever)
    executor.submit(job("a", tmp_path))
    deadline = time.monotonic() + PATIENCE
    while not (begun := list(tmp_path.iterdir())) and time.monotonic() < deadline:
        assert executor.wait(0.05) == []
    executor.kill("a")
    outcome = collect(executor, 1)["a"]
    assert (outcome.status, outcome.failure_class) == ("failed", "crash")
    pid = int(begun[0].name.rpartition("-")[2])
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.ray
def test_a_task_without_gpus_sees_none_and_has_one_thread(on_ray: Place) -> None:
    executor = on_ray(tell_environment)
    executor.submit(job("a"))
    facts = collect(executor, 1)["a"].facts
    assert facts == {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


SESSION = """
import os, sys, time
import ray.cloudpickle
from scaling.executors import open_executor
from scaling.worker import Job

def noisy(job):
    print("from a worker", flush=True)
    os.write(1, b"from a worker's descriptor")
    return {"status": "done"}

def endless(job):
    time.sleep(600)

if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    with open_executor("ray", cpus=2, gpus=None, address=None) as executor:
        print("lost while Ray lives")
        for name, run in (("a", noisy), ("b", endless)):
            executor._run = run
            executor.submit(Job(name, name, {}, {}, "", {}, 1, "token"))
        found = []
        while not found:
            found = executor.wait(1.0)
        mark = ("MARK=" + os.environ["MARK"]).encode()
        others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
        alive = 0
        for pid in others:
            try:
                alive += mark in open(f"/proc/{pid}/environ", "rb").read()
            except OSError:
                pass
    print(found[0][1].status, alive > 0)
"""


def marked_processes(mark: str) -> list[str]:
    """Ids of the live processes that inherited MARK=mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"MARK={mark}".encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue  # it ended, or is another user's
    return found


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_ray_prints_nothing_to_stdout_and_leaves_no_process_behind(tmp_path: Path) -> None:
    script, mark = tmp_path / "session.py", uuid.uuid4().hex
    script.write_text(SESSION)
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "MARK": mark, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("done True\n", 0), ended.stderr
    deadline = time.monotonic() + 20
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
