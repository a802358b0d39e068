"""What the scheduler decides, shown with a scripted executor, a fake clock, a real store and real files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from models.settings import DataSettings
from scaling import artifacts
from scaling.artifacts import AttemptFolder, Layout
from scaling.executors import Capacity, ExecutorError
from scaling.plan import EachSettings, ResourceSettings
from scaling.provenance import Owner, owner
from scaling.recovery import ORPHAN_SECONDS
from scaling.scheduler import GRACE_SECONDS, RETRIES, Options, Result, Scheduler
from scaling.stages import Graph, Stage
from scaling.store import LeaseLost, Store
from scaling.sweep import record
from scaling.worker import Job, Outcome

NO_PROCESS = 2**22 + 1  # above Linux's largest process id
Behaviour = Callable[["Scripted", Job], Outcome | None]  # None: still running


# ------------------------------------------------------------------------------------------ the stage


class Clock:
    """Time that passes only where somebody waits; `at_sleep` sees each sleep of the scheduler."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps = 0
        self.at_sleep: Callable[[int], None] = lambda count: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        assert self.sleeps < 10_000, "the scheduler waits for ever"
        self.at_sleep(self.sleeps)


class Scripted:
    """An executor whose stages do what a script says: by name, one behaviour an attempt, the last one again."""

    def __init__(self, clock: Clock, script: Mapping[str, list[Behaviour]], slots: int) -> None:
        self.capacity = Capacity(slots, 0)
        self.clock, self.script = clock, script
        self.jobs: list[Job] = []
        self.running: dict[str, Job] = {}
        self.ended: list[tuple[str, Outcome]] = []
        self.killed: list[str] = []
        self.waits = 0

    def submit(self, job: Job) -> None:
        for role, folder in job.inputs.items():
            assert artifacts.committed(Path(folder)) is not None, f"{job.name} began before its {role}"
        self.jobs.append(job)
        self.running[job.fingerprint] = job
        assert len(self.running) <= self.capacity.cpus

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        self.waits += 1
        assert self.waits < 10_000, "the scheduler waits for ever"
        self.clock.now += timeout
        for key, job in list(self.running.items()):
            tried = [name for name in self.order() if name == job.name]
            behaviours = self.script.get(job.name.split()[1], [done()])
            outcome = behaviours[min(len(tried), len(behaviours)) - 1](self, job)
            if outcome is not None:
                del self.running[key]
                self.ended.append((key, outcome))
                break
        ended, self.ended = self.ended, []
        return ended

    def kill(self, fingerprint: str) -> None:
        self.killed.append(fingerprint)
        if self.running.pop(fingerprint, None):
            self.ended.append((fingerprint, Outcome("failed", "crash", "killed")))

    def close(self) -> None:
        assert not self.running

    def order(self) -> list[str]:
        return [job.name for job in self.jobs]


class Recorder:
    """A Progress that remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.beats: list[Mapping[str, Any]] = []
        self.forecasts: list[float] = []
        self.summaries: dict[str, Mapping[str, Any]] = {}

    def begin(self, stages: Mapping[str, Stage], states: Mapping[str, str]) -> None:
        self.calls.append(("begin", " ".join(sorted(states.values()))))

    def started(self, stage: Stage, attempt: int) -> None:
        self.calls.append(("started", f"{stage.name} {attempt}"))

    def advanced(self, stage: Stage, beat: Mapping[str, Any]) -> None:
        self.beats.append(beat)

    def ended(self, stage: Stage, state: str, outcome: Outcome, summary: Mapping[str, Any]) -> None:
        self.calls.append(("ended", f"{stage.name} {state}"))
        self.summaries[stage.name] = summary

    def note(self, text: str) -> None:
        self.notes.append(text)

    def remaining(self, seconds: float) -> None:
        self.forecasts.append(seconds)

    def end(self) -> None:
        self.calls.append(("end", ""))


def folder_of(job: Job) -> AttemptFolder:
    return AttemptFolder(Path(job.stage_dir), job.attempt, job.token)


def write_result(job: Job, status: str = "done", **summary: Any) -> None:
    """What a worker leaves behind: an output file, two rows of metrics, its own result.json."""
    attempt = folder_of(job)
    attempt.output("model.bin").write_bytes(b"weights of " + job.name.encode())
    attempt.append_metrics([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}])
    attempt.finish(summary, status)


def done(seconds: float = 2.0, **summary: Any) -> Behaviour:
    def behave(executor: Scripted, job: Job) -> Outcome:
        write_result(job, **{"loss": 1.5, **summary})
        return Outcome("done", seconds=seconds, facts={"device": "cpu", "peak_rss": 1234})

    return behave


finish = done()


def diverge(executor: Scripted, job: Job) -> Outcome:
    write_result(job, "diverged", diverged_step=7)
    return Outcome("diverged", message="loss is not finite at step 7")


def fail(failure_class: str, message: str = "no luck") -> Behaviour:
    return lambda executor, job: Outcome("failed", failure_class, message)


def run_until_asked_to_stop(executor: Scripted, job: Job) -> Outcome | None:
    return Outcome("stopped", message="stopped after step 5") if folder_of(job).should_stop() else None


def hang(executor: Scripted, job: Job) -> Outcome | None:
    return None


def stage(name: str, *parents: Stage, seconds: float = 1.0, kind: str = "tokenizer") -> Stage:
    key = (name.encode().hex() + "0" * 64)[:64]
    links = {f"parent{number}": parent.fingerprint for number, parent in enumerate(parents)}
    identity = {"kind": kind, "recipe": 1, "settings": {"name": name}, "seed": 3, "parents": links}
    return Stage(kind, name, key, identity, links, 3, 100, 1e6, seconds, DataSettings())


def graph_of(*stages: Stage) -> Graph:
    return Graph({one.fingerprint: one for one in stages}, ())


@dataclass
class Sweep:
    """What one call of the scheduler did."""

    result: Result
    executor: Scripted
    progress: Recorder
    clock: Clock
    scheduler: Scheduler
    opened: int

    def order(self) -> list[str]:
        return [name.split()[1] for name in self.executor.order()]


@dataclass
class Lab:
    """A folder and a database in which scheduler after scheduler runs."""

    root: Path
    store: Store
    clock: Clock = field(default_factory=Clock)

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def folder(self, stage: Stage) -> Path:
        return self.layout.stage(stage.kind, stage.name, stage.fingerprint)

    def plan(self, graph: Graph, name: str = "plan") -> int:
        number = self.store.record_plan(name, "a" * 64, "", {}, {})
        record(self.store, number, graph)
        return number

    def sweep(
        self,
        graph: Graph,
        *,
        slots: int = 1,
        plan: str = "plan",
        max_seconds: float | None = None,
        resources: ResourceSettings | None = None,
        workers: int | None = None,
        before: Callable[[Scheduler], None] = lambda scheduler: None,
        **script: Behaviour | list[Behaviour],
    ) -> Sweep:
        """Run a scheduler to its end. What holds after every sweep is asserted here."""
        behaviours = {name: given if isinstance(given, list) else [given] for name, given in script.items()}
        executor = Scripted(self.clock, behaviours, slots)
        progress, opened = Recorder(), []

        @contextmanager
        def place() -> Iterator[Scripted]:
            opened.append(1)
            yield executor
            executor.close()

        number = self.plan(graph, plan)
        options = Options(resources or ResourceSettings(), workers, max_seconds)
        scheduler = Scheduler(
            graph, self.store, self.layout, progress, options, {}, number, self.clock, self.clock.sleep
        )
        before(scheduler)
        result = scheduler.run(place)
        assert progress.calls[0][0] == "begin"
        assert progress.calls[-1] == ("end", "")
        rows = self.store.stages(number)
        assert {key: row.state for key, row in rows.items()} == scheduler.states, "the store says otherwise"
        assert "running" not in scheduler.states.values()
        assert [attempt for attempt in self.store.running_attempts() if attempt.owner == owner()] == []
        assert sum(result.counts.values()) == len(graph.stages)
        return Sweep(result, executor, progress, self.clock, scheduler, len(opened))

    def attempts(self, stage: Stage) -> list[str]:
        """States of a stage's attempts, with the failure's class."""
        return [f"{a.state} {a.failure_class}".strip() for a in self.store.attempts(stage.fingerprint)]


@pytest.fixture
def lab(weird_tmp_path: Path) -> Iterator[Lab]:
    with Store.open(weird_tmp_path / "results.db", create=True) as store:
        yield Lab(weird_tmp_path, store)


# ---------------------------------------------------------------------------------------------- order


def test_the_longest_remaining_path_runs_first(lab: Lab) -> None:
    short, long = stage("short", seconds=50), stage("long", seconds=1)
    tail, alone = stage("tail", long, seconds=100), stage("alone", seconds=70)
    swept = lab.sweep(graph_of(short, alone, long, tail))
    assert swept.order() == ["long", "tail", "alone", "short"]
    assert swept.result == Result("done", {"done": 4}, [])


def test_children_wait_for_all_their_parents_and_a_shared_stage_is_made_once(lab: Lab) -> None:
    root = stage("root")
    left, right = stage("left", root), stage("right", root)
    end = stage("end", left, right)
    swept = lab.sweep(graph_of(root, left, right, end), slots=4)
    assert swept.order() == ["root", "left", "right", "end"]
    # two were under way at once: the second began before the first ended
    calls = [text for _, text in swept.progress.calls]
    assert calls.index("right 1") < calls.index("left done")


def test_no_more_stages_run_at_once_than_workers_were_asked_for(lab: Lab) -> None:
    swept = lab.sweep(graph_of(*(stage(name) for name in "abc")), slots=4, workers=1)
    kinds = [kind for kind, _ in swept.progress.calls]
    assert kinds == ["begin", *["started", "ended"] * 3, "end"]


def test_a_stage_with_two_cpus_takes_two_of_the_places(lab: Lab) -> None:
    resources = ResourceSettings(each=EachSettings(cpus=2))
    swept = lab.sweep(graph_of(*(stage(name) for name in "abc")), slots=3, resources=resources)
    assert [kind for kind, _ in swept.progress.calls] == ["begin", *["started", "ended"] * 3, "end"]
    assert {job.cpus for job in swept.executor.jobs} == {2}


def test_a_stage_that_never_fits_is_refused_in_one_line_and_the_display_ends(lab: Lab) -> None:
    graph = graph_of(stage("a"))
    scheduler = Scheduler(
        graph,
        lab.store,
        lab.layout,
        progress := Recorder(),
        Options(ResourceSettings(each=EachSettings(cpus=3, gpus=1))),
        {},
        lab.plan(graph),
    )

    @contextmanager
    def place() -> Iterator[Scripted]:
        yield Scripted(lab.clock, {}, 2)

    with pytest.raises(ExecutorError, match=r"^a stage asks for 3 CPUs and 1 GPUs \(resources.each\), but .* 2 and 0$"):
        scheduler.run(place)
    assert progress.calls[-1] == ("end", "")


def test_a_job_carries_what_the_stage_needs(lab: Lab) -> None:
    parent = stage("parent")
    child = stage("child", parent, kind="generator")
    resources = ResourceSettings(checkpoint_seconds=5.0)
    job = lab.sweep(graph_of(parent, child), resources=resources).executor.jobs[1]
    assert (job.name, job.fingerprint, job.identity) == ("generator child", child.fingerprint, child.identity)
    assert job.inputs == {"parent0": str(lab.folder(parent))}
    assert (job.cpus, job.gpus, job.micro_batches, job.checkpoint_seconds) == (1, 0.0, 1, 5.0)
    assert DataSettings.model_validate(job.data) == child.data
    config = artifacts.read_json(Layout.config(lab.folder(child)))
    assert (config["fingerprint"], config["name"], config["seed"]) == (child.fingerprint, "child", 3)
    assert config["settings"] == child.identity["settings"]


# --------------------------------------------------------------------------------------- what is kept


def test_metrics_summary_files_and_facts_are_in_the_store_after_a_stage(lab: Lab) -> None:
    one = stage("one")
    swept = lab.sweep(graph_of(one), one=done(3.5, gfid=12.25, degenerate=False))
    assert lab.store.metrics(one.fingerprint) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    assert lab.store.summary(one.fingerprint) == {"loss": 1.5, "gfid": 12.25, "degenerate": False}
    assert [file["file"] for file in lab.store.artifacts(one.fingerprint)] == ["model.bin"]
    assert swept.progress.summaries["one"]["gfid"] == 12.25
    (attempt,) = lab.store.attempts(one.fingerprint)
    facts = attempt.fields
    assert (facts["device"], facts["peak_rss"], facts["seconds"], facts["seed"]) == ("cpu", 1234, 3.5, 3)
    assert facts["log_path"] == str(Layout.log(lab.folder(one), 1))


def test_a_second_sweep_runs_nothing_and_opens_no_executor(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b", a))
    lab.sweep(graph)
    again = lab.sweep(graph)
    assert (again.opened, again.order(), again.result.status) == (0, [], "done")


def test_a_lost_database_is_filled_again_from_the_artifacts_without_running_anything(lab: Lab) -> None:
    a = stage("a")
    graph = graph_of(a, b := stage("b", a), c := stage("c", a))
    lab.sweep(graph, a=done(perplexity=3.0), b=diverge, c=[fail("crash"), done()])
    lab.store.close()
    for file in lab.root.glob("results.db*"):
        file.unlink()
    with Store.open(lab.root / "results.db", create=True) as store:
        fresh = Lab(lab.root, store)
        again = fresh.sweep(graph)
        assert again.opened == 0
        assert again.result == Result("done", {"done": 2, "diverged": 1}, [])
        assert store.summary(a.fingerprint) == {"loss": 1.5, "perplexity": 3.0}
        assert store.summary(b.fingerprint) == {"diverged_step": 7}
        assert store.metrics(c.fingerprint) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


def test_an_attempt_after_a_lost_database_takes_a_number_that_no_folder_has(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=[fail("crash"), fail("user_error")])
    lab.store.close()
    (lab.root / "results.db").unlink()
    for number in (1, 2):  # scripted failures leave no folder
        Layout.attempt(lab.folder(a), number).mkdir(parents=True)
    with Store.open(lab.root / "results.db", create=True) as store:
        assert [job.attempt for job in Lab(lab.root, store).sweep(graph).executor.jobs] == [3]


def test_two_plans_share_a_stage(lab: Lab) -> None:
    shared = stage("shared")
    lab.sweep(graph_of(shared, stage("mine", shared)), plan="one")
    second = lab.sweep(graph_of(shared, stage("yours", shared)), plan="two")
    assert second.order() == ["yours"]
    assert second.progress.calls[0] == ("begin", "done pending")


def test_a_stage_is_found_under_another_plans_name_for_it(lab: Lab) -> None:
    one = stage("one")
    lab.sweep(graph_of(one))
    renamed = Stage(**{**vars(one), "name": "other/name"})
    assert lab.sweep(graph_of(renamed), plan="two").opened == 0


def test_a_result_of_a_worker_whose_files_are_not_there_is_tried_again(lab: Lab) -> None:
    def claim(executor: Scripted, job: Job) -> Outcome:
        return Outcome("done", seconds=1.0)

    swept = lab.sweep(graph_of(a := stage("a")), a=[claim, done()])
    assert swept.result.status == "done"
    assert lab.attempts(a) == ["failed crash", "done"]


# ------------------------------------------------------------------------------------------- failures


def test_a_diverged_stage_is_a_result_that_is_kept_and_its_children_stay_blocked(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b", a), stage("other"))
    swept = lab.sweep(graph, a=diverge)
    assert swept.result == Result("done", {"diverged": 1, "pending": 1, "done": 1}, [])
    assert lab.store.summary(a.fingerprint) == {"diverged_step": 7}
    assert lab.attempts(a) == ["diverged"]
    assert lab.attempts(b) == []
    again = lab.sweep(graph)
    assert (again.opened, again.result.status) == (0, "done")


@pytest.mark.parametrize(("failure_class", "retries"), [*RETRIES.items(), ("user_error", 0), ("unheard_of", 0)])
def test_a_failure_is_retried_as_often_as_its_class_allows(lab: Lab, failure_class: str, retries: int) -> None:
    graph = graph_of(a := stage("a"), stage("b", a), stage("other"))
    swept = lab.sweep(graph, a=fail(failure_class, "the reason"))
    assert swept.order().count("a") == retries + 1
    assert swept.result.status == "failed"
    assert swept.result.counts == {"failed": 1, "pending": 1, "done": 1}
    assert swept.result.failures == [("tokenizer a", f"{failure_class}: the reason")]
    assert lab.attempts(a) == [f"failed {failure_class}"] * (retries + 1)
    assert lab.store.stages()[a.fingerprint].message == "the reason"


@pytest.mark.parametrize("retries", [0, 3])
def test_a_crash_is_retried_as_often_as_the_plan_allows(lab: Lab, retries: int) -> None:
    resources = ResourceSettings(retries=retries)
    swept = lab.sweep(graph_of(a := stage("a")), a=fail("crash"), resources=resources)
    assert lab.attempts(a) == ["failed crash"] * (retries + 1)
    assert swept.result.status == "failed"


def test_a_crash_that_a_retry_mends_is_no_failure_of_the_sweep(lab: Lab) -> None:
    swept = lab.sweep(graph_of(a := stage("a")), a=[fail("crash"), done()])
    assert swept.result == Result("done", {"done": 1}, [])
    assert lab.attempts(a) == ["failed crash", "done"]
    assert swept.progress.notes == ["tokenizer a: crash, tried again (no luck)"]


def test_what_failed_is_tried_again_by_the_next_sweep(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=fail("user_error"))
    assert lab.sweep(graph).result.status == "done"
    assert lab.attempts(a) == ["failed user_error", "done"]
    assert lab.store.stages()[a.fingerprint].message == ""


def test_too_little_gpu_memory_halves_the_micro_batch_and_leaves_the_stage_itself_alone(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    swept = lab.sweep(graph, a=[fail("oom_gpu"), fail("oom_gpu"), done()])
    assert [job.micro_batches for job in swept.executor.jobs] == [1, 2, 4]
    assert all(job.identity == a.identity for job in swept.executor.jobs)
    assert {job.fingerprint for job in swept.executor.jobs} == {a.fingerprint}
    assert {job.stage_dir for job in swept.executor.jobs} == {str(lab.folder(a))}


def test_a_failure_of_one_stage_does_not_stop_the_others(lab: Lab) -> None:
    swept = lab.sweep(graph_of(stage("bad", seconds=9), *(stage(name) for name in "abc")), bad=fail("user_error"))
    assert swept.result.counts == {"failed": 1, "done": 3}


def test_a_full_disk_interrupts_the_sweep_and_fails_no_stage(lab: Lab) -> None:
    graph = graph_of(a := stage("a", seconds=9), b := stage("b"), stage("c"))
    swept = lab.sweep(graph, slots=2, a=fail("disk_full"), b=run_until_asked_to_stop)
    assert swept.result == Result("interrupted", {"pending": 3}, [])
    assert swept.order() == ["a", "b"]
    assert (lab.attempts(a), lab.attempts(b)) == (["failed disk_full"], ["stopped"])
    assert "free some space" in swept.progress.notes[0]
    assert lab.sweep(graph).result.status == "done"


def test_a_damaged_parent_is_made_again_and_then_its_child(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b", a))

    def spoil_parent(executor: Scripted, job: Job) -> Outcome:
        path = Layout.output(Path(job.inputs["parent0"]), 1) / "model.bin"
        path.write_bytes(path.read_bytes()[::-1])  # same size: only the checksum tells
        return Outcome("failed", "bad_artifact", "SHA-256 differs")

    swept = lab.sweep(graph, b=[spoil_parent, done()])
    assert swept.order() == ["a", "b", "a", "b"]
    assert swept.result.status == "done"
    assert artifacts.damage(lab.folder(a), verify=True) == []
    assert lab.attempts(b) == ["failed bad_artifact", "done"]


def test_a_bad_artifact_with_whole_parents_remakes_no_parent(lab: Lab) -> None:
    swept = lab.sweep(graph_of(a := stage("a"), stage("b", a)), b=fail("bad_artifact"))
    assert swept.order() == ["a", "b", "b", "b"]
    assert swept.result.counts == {"done": 1, "failed": 1}


@pytest.mark.parametrize("damage", ["missing", "truncated", "no mark"])
def test_a_stage_whose_files_are_not_as_recorded_is_run_again(lab: Lab, damage: str) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph)
    path = Layout.output(lab.folder(a), 1) / "model.bin"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        Layout.result(lab.folder(a)).write_text("{")
    swept = lab.sweep(graph)
    if damage == "no mark":
        assert swept.opened == 0, "the attempt's own result is whole, so it is adopted"
    else:
        assert [job.attempt for job in swept.executor.jobs] == [2]
    assert artifacts.committed(lab.folder(a), verify=True) is not None


# ------------------------------------------------------------------------------------- stop and budget


def stop_after(count: int) -> Callable[[Scheduler], None]:
    """Have the scheduler asked to stop by the fake clock's wait number `count`."""

    def arrange(scheduler: Scheduler) -> None:
        start = scheduler._start

        def started(stage: Stage) -> None:
            start(stage)
            if len(scheduler._running) == count:
                scheduler.request_stop()

        scheduler._start = started  # type: ignore[method-assign]

    return arrange


def test_a_stop_lets_running_stages_save_and_starts_no_more(lab: Lab) -> None:
    graph = graph_of(a := stage("a", seconds=9), b := stage("b", seconds=8), stage("c"), stage("d", a))
    wait = run_until_asked_to_stop
    swept = lab.sweep(graph, slots=2, before=stop_after(2), a=wait, b=wait)
    assert swept.result == Result("interrupted", {"pending": 4}, [])
    assert swept.order() == ["a", "b"]
    assert swept.executor.killed == []
    assert (lab.attempts(a), lab.attempts(b)) == (["stopped"], ["stopped"])
    second = lab.sweep(graph, slots=2)
    assert second.result == Result("done", {"done": 4}, [])
    assert [job.attempt for job in second.executor.jobs if job.name == "tokenizer a"] == [2]


def test_a_stop_reaches_a_stage_while_the_executor_blocks_the_loop(lab: Lab) -> None:
    def stop_within(executor: Scripted, job: Job) -> Outcome:
        scheduler.request_stop()
        assert folder_of(job).should_stop()
        return Outcome("stopped")

    scheduler: Any = None

    def keep(given: Scheduler) -> None:
        nonlocal scheduler
        scheduler = given

    assert lab.sweep(graph_of(stage("a")), before=keep, a=stop_within).result.status == "interrupted"


def test_a_stage_that_ends_well_while_stopping_counts(lab: Lab) -> None:
    def finish_when_asked(executor: Scripted, job: Job) -> Outcome | None:
        return finish(executor, job) if folder_of(job).should_stop() else None

    swept = lab.sweep(graph_of(stage("a")), before=stop_after(1), a=finish_when_asked)
    assert swept.result == Result("done", {"done": 1}, []), "nothing is left, so nothing was interrupted"


def test_a_second_stop_request_kills_and_fails_no_stage(lab: Lab) -> None:
    def stop_again(executor: Scripted, job: Job) -> None:
        scheduler.request_stop()

    scheduler: Any = None

    def keep(given: Scheduler) -> None:
        nonlocal scheduler
        scheduler = given

    graph, resources = graph_of(a := stage("a")), ResourceSettings(retries=0)
    swept = lab.sweep(graph, resources=resources, before=keep, a=stop_again)
    assert swept.executor.killed == [a.fingerprint]
    assert swept.result == Result("interrupted", {"pending": 1}, [])
    assert swept.clock.now - 1000 < GRACE_SECONDS


@pytest.mark.parametrize("max_seconds", [None, 10.0])
def test_a_stage_deaf_to_the_stop_is_killed_after_a_while_which_is_no_failure_of_its_own(
    lab: Lab, max_seconds: float | None
) -> None:
    resources = ResourceSettings(retries=0)
    before = stop_after(1) if max_seconds is None else lambda scheduler: None
    graph = graph_of(a := stage("a"))
    swept = lab.sweep(graph, before=before, max_seconds=max_seconds, resources=resources, a=hang)
    assert swept.executor.killed == [a.fingerprint]
    assert swept.result == Result("interrupted" if max_seconds is None else "budget", {"pending": 1}, [])
    assert GRACE_SECONDS < swept.clock.now - 1000 - (max_seconds or 0) < GRACE_SECONDS + 2


def test_the_budget_stops_at_a_checkpoint_and_says_so(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b", a))
    swept = lab.sweep(graph, max_seconds=10, a=run_until_asked_to_stop)
    assert swept.result == Result("budget", {"pending": 2}, [])
    assert swept.progress.notes == ["budget reached: running stages save and stop"]
    assert 10 <= swept.clock.now - 1000 < 12
    assert lab.sweep(graph, max_seconds=10).result.status == "done"


def test_a_budget_that_ends_with_the_last_stage_was_enough(lab: Lab) -> None:
    def slowly(executor: Scripted, job: Job) -> Outcome | None:
        executor.clock.now += 20
        return finish(executor, job)

    assert lab.sweep(graph_of(stage("a")), max_seconds=10, a=slowly).result.status == "done"


def test_metrics_of_a_resumed_stage_are_those_of_an_undisturbed_one(lab: Lab) -> None:
    def save_and_stop(executor: Scripted, job: Job) -> Outcome:
        attempt = folder_of(job)
        attempt.append_metrics([{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}])
        attempt.save_checkpoint(2, {"w": torch.zeros(1)}, {})
        attempt.append_metrics([{"step": 3, "loss": 99.0}])  # after the checkpoint: superseded
        return Outcome("failed", "crash", "lost its node")

    def go_on(executor: Scripted, job: Job) -> Outcome:
        attempt = folder_of(job)
        assert (attempt.load_checkpoint() or (0,))[0] == 2
        attempt.append_metrics([{"step": 3, "loss": 2.0}])
        attempt.finish({"loss": 2.0}, "done")
        return Outcome("done", seconds=1.0)

    lab.sweep(graph_of(a := stage("a")), a=[save_and_stop, go_on])
    rows = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": 2.0}]
    assert lab.store.metrics(a.fingerprint) == rows
    assert list(lab.folder(a).glob("attempts/*/checkpoints/*")) == [], "a finished stage needs no checkpoint"


# --------------------------------------------------------------------------------------- after a death


def leave_running(lab: Lab, graph: Graph, one: Stage, who: Owner) -> Job:
    """An attempt as a driver `who` left it: claimed in the store, leased on disk."""
    lab.plan(graph)
    attempt = lab.store.begin_attempt(one.fingerprint, owner=who)
    assert attempt is not None
    folder = lab.folder(one)
    artifacts.write_json(Layout.config(folder), {"fingerprint": one.fingerprint, "name": one.name, **one.identity})
    artifacts.grant_lease(folder, attempt.number, attempt.token)
    return Job(one.fingerprint, one.name, one.identity, {}, str(folder), {}, attempt.number, attempt.token)


def dead() -> Owner:
    me = owner()
    return Owner(me.host, NO_PROCESS, me.boot_id)


def test_an_attempt_of_a_dead_driver_is_lost_and_the_stage_tried_again(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    orphan = leave_running(lab, graph, a, dead())
    swept = lab.sweep(graph)
    assert [job.attempt for job in swept.executor.jobs] == [2]
    assert lab.attempts(a) == ["lost driver_lost", "done"]
    with pytest.raises(artifacts.Fenced):
        folder_of(orphan).heartbeat({})


def test_a_finished_attempt_that_nobody_committed_is_adopted_without_running(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b", a))
    write_result(leave_running(lab, graph, a, dead()), loss=0.5)
    swept = lab.sweep(graph)
    assert swept.order() == ["b"]
    assert lab.attempts(a) == ["done"]
    assert lab.store.summary(a.fingerprint) == {"loss": 0.5}
    assert artifacts.committed(lab.folder(a)) is not None


def test_a_dead_drivers_worker_is_awaited_and_what_it_finishes_is_adopted(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    job = leave_running(lab, graph, a, dead())
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = owner()
    folder_of(job).heartbeat({"pid": worker.pid, "host": me.host, "boot_id": me.boot_id})

    def at_sleep(count: int) -> None:
        if count == 3:
            write_result(job, loss=0.25)
            worker.communicate(b"\n", timeout=30)

    lab.clock.at_sleep = at_sleep
    swept = lab.sweep(graph)
    assert lab.clock.sleeps >= 3
    assert swept.opened == 0
    assert lab.store.summary(a.fingerprint) == {"loss": 0.25}


def test_a_dead_drivers_worker_that_will_not_die_is_not_waited_for_without_end(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    job = leave_running(lab, graph, a, dead())
    me = owner()
    folder_of(job).heartbeat({"pid": os.getppid(), "host": me.host, "boot_id": me.boot_id})
    swept = lab.sweep(graph)
    assert ORPHAN_SECONDS <= lab.clock.now - 1000 < ORPHAN_SECONDS + 5
    assert swept.result.status == "done"
    assert lab.attempts(a) == ["lost driver_lost", "done"]


def alive_elsewhere() -> Owner:
    """A process that lives for as long as this test."""
    me = owner()
    return Owner(me.host, os.getppid(), me.boot_id)


def test_a_stage_that_another_live_driver_makes_is_awaited_and_its_result_taken(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b", a))
    job = leave_running(lab, graph, a, alive_elsewhere())

    def at_sleep(count: int) -> None:
        if count == 5:
            write_result(job, loss=0.75)
            artifacts.commit(lab.folder(a), job.attempt)
            lab.store.finish_attempt(a.fingerprint, job.attempt, "done")

    lab.clock.at_sleep = at_sleep
    swept = lab.sweep(graph)
    assert swept.order() == ["b"]
    assert swept.progress.notes == ["tokenizer a: being made by the driver of another plan; waiting for it"]
    assert lab.store.summary(a.fingerprint) == {"loss": 0.75}
    assert lab.clock.sleeps >= 5


def test_a_stage_that_another_driver_gives_up_is_taken_over(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    job = leave_running(lab, graph, a, alive_elsewhere())

    def at_sleep(count: int) -> None:
        if count == 5:
            lab.store.finish_attempt(a.fingerprint, job.attempt, "stopped")

    lab.clock.at_sleep = at_sleep
    swept = lab.sweep(graph)
    assert swept.result.status == "done"
    assert lab.attempts(a) == ["stopped", "done"]


def test_other_stages_run_while_one_is_made_elsewhere(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b"), stage("c"))
    job = leave_running(lab, graph, a, alive_elsewhere())

    def finish_the_other(executor: Scripted, ours: Job) -> Outcome | None:
        write_result(job)
        artifacts.commit(lab.folder(a), job.attempt)
        lab.store.finish_attempt(a.fingerprint, job.attempt, "done")
        return finish(executor, ours)

    swept = lab.sweep(graph, c=finish_the_other)
    assert swept.order() == ["b", "c"]
    assert swept.result.counts == {"done": 3}


def test_a_result_is_refused_where_another_driver_took_the_stage_over(lab: Lab) -> None:
    def be_taken_over(executor: Scripted, job: Job) -> Outcome:
        write_result(job)
        lab.store.finish_attempt(job.fingerprint, job.attempt, "lost", "driver_lost")
        return Outcome("done", seconds=1.0)

    with pytest.raises(LeaseLost, match="attempt 1 runs no more"):
        lab.sweep(graph_of(a := stage("a")), a=be_taken_over)
    assert lab.store.summary(a.fingerprint) == {}


# --------------------------------------------------------------------------------------- what is shown


def test_progress_sees_heartbeats_once_each_and_a_forecast(lab: Lab) -> None:
    def beat(executor: Scripted, job: Job) -> Outcome | None:
        if executor.waits == 4:
            return finish(executor, job)
        folder_of(job).heartbeat({"step": executor.waits // 2, "steps": 2, "time": 0.0})
        return None

    swept = lab.sweep(graph_of(a := stage("a", seconds=30), stage("b", a, seconds=40)), a=beat)
    assert [seen["step"] for seen in swept.progress.beats] == [0, 1]
    assert 60 < swept.progress.forecasts[0] <= 70
    assert swept.progress.calls[1:3] == [("started", "a 1"), ("ended", "a done")]


def test_the_forecast_learns_from_the_stages_that_ended(lab: Lab) -> None:
    def take(executor: Scripted, job: Job) -> Outcome | None:
        executor.clock.now += 20  # long enough for the next forecast
        return done(20.0)(executor, job)

    stages = [stage(name, seconds=10) for name in "abcd"]
    swept = lab.sweep(graph_of(*stages), a=take, b=take, c=take, d=take)
    assert swept.progress.forecasts[0] == pytest.approx(60, abs=1), "three are left, at twice the estimate"
