"""Retry and cancel: what they change, what the next sweep makes of it, and what they refuse. Stages are scripted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from scaling import artifacts, mending
from scaling.artifacts import Layout
from scaling.files import read_json
from scaling.inspecting import UnknownName
from scaling.leases import StageCancelled
from scaling.mending import DriverElsewhere, Mended, cancel, retry, sweep_command, the_plan
from scaling.provenance import Owner, owner
from scaling.scheduler import Result
from scaling.stages import Stage
from scaling.store import Locked, Store
from scaling.sweep import plan_graph, record
from scaling.worker import Job, Outcome
from tests.scaling.test_cli import everything
from tests.scaling.test_scheduler import (
    Lab,
    Scripted,
    alive_elsewhere,
    dead,
    diverge,
    done,
    fail,
    graph_of,
    leave_running,
    stage,
    write_result,
)
from tests.scaling.test_sweep import Bench, attempt_of, plan

ELSEWHERE = Owner("another-host", 4321, "boot")


@pytest.fixture
def lab(weird_tmp_path: Path) -> Iterator[Lab]:
    with Store.open(weird_tmp_path / "results.db", create=True) as store:
        yield Lab(weird_tmp_path, store)


@pytest.fixture
def bench(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(weird_tmp_path, monkeypatch)


@pytest.fixture
def scaling(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command


def try_again(lab: Lab, state: str, **options: Any) -> Mended:
    return retry(lab.store, lab.root, the_plan(lab.store, "plan"), state, **options)


def leave_out(lab: Lab, *names: str, **options: Any) -> Mended:
    return cancel(lab.store, lab.root, the_plan(lab.store, "plan"), names, **options)


def names(changes: list[mending.Change]) -> list[str]:
    return [one.stage.name for one in changes]


def states(lab: Lab, *stages: Stage) -> list[str]:
    rows = lab.store.stages()
    return [rows[one.fingerprint].state for one in stages]


def save_and_fail(failure_class: str, step: int) -> Callable[[Scripted, Job], Outcome]:
    def behave(executor: Scripted, job: Job) -> Outcome:
        path = Layout.checkpoint(Path(job.stage_dir), job.attempt, step)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a checkpoint's content is not read here")
        return Outcome("failed", failure_class, "no luck")

    return behave


# ---------------------------------------------------------------------------------------------- retry


def test_failed_stages_are_set_back_and_the_next_sweep_tries_them_again(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b", a), c := stage("c"))
    lab.sweep(graph, a=fail("user_error"))
    mended = try_again(lab, "failed")
    assert names(mended.changed) == ["a"]
    assert mended.changed[0].how == "failed (user_error) after 1 attempt; begins anew"
    assert states(lab, a, b, c) == ["pending", "pending", "done"]
    assert lab.store.stages()[a.fingerprint].message == ""
    swept = lab.sweep(graph)
    assert swept.order() == ["a", "b"]
    assert lab.attempts(a) == ["failed user_error", "done"], "what was tried before is still on record"


def test_a_stage_that_used_up_its_retries_has_them_all_again(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=fail("oom_gpu"))
    assert len(lab.attempts(a)) == 4
    try_again(lab, "failed", failure_class="oom")
    assert lab.sweep(graph, a=[fail("oom_gpu")] * 3 + [done()]).result.status == "done"


def test_a_stage_with_a_checkpoint_goes_on_from_it(lab: Lab) -> None:
    graph = graph_of(stage("a"))
    lab.sweep(graph, a=save_and_fail("user_error", 40))
    assert try_again(lab, "failed").changed[0].how == "failed (user_error) after 1 attempt; goes on from step 40"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [("oom", ["a", "b"]), ("oom_host", ["b"]), ("user", ["c"]), ("crash", ["d"]), ("disk_full", [])],
)
def test_a_class_chooses_by_the_newest_failure_whole_or_in_part(lab: Lab, asked: str, chosen: list[str]) -> None:
    graph = graph_of(*(stage(name) for name in "abcd"))
    lab.sweep(graph, a=fail("oom_gpu"), b=fail("oom_host"), c=fail("user_error"), d=fail("crash"))
    mended = try_again(lab, "failed", failure_class=asked)
    assert names(mended.changed) == chosen
    if chosen:
        left = 4 - len(chosen)
        assert mended.remarks == [f"the next sweep tries what failed again, too: {left} more"]


@pytest.mark.parametrize("pattern", ["left", "l*", "generator *", "generator left", "6c6566"])
def test_a_pattern_chooses_by_name_kind_and_name_or_fingerprint(lab: Lab, pattern: str) -> None:
    left = stage("left", kind="generator")
    lab.sweep(graph_of(left, stage("right")), left=fail("crash"), right=fail("crash"))
    assert names(try_again(lab, "failed", pattern=pattern).changed) == ["left"]


def test_a_dry_run_says_the_same_and_writes_nothing(lab: Lab) -> None:
    lab.sweep(graph_of(stage("a"), stage("b")), a=fail("user_error"), b=diverge)
    before = everything(lab.root / "artifacts"), lab.store.stages()
    failed, diverged = try_again(lab, "failed", dry_run=True), try_again(lab, "diverged", dry_run=True)
    assert (everything(lab.root / "artifacts"), lab.store.stages()) == before
    assert try_again(lab, "failed").changed == failed.changed
    assert try_again(lab, "diverged").changed == diverged.changed


def test_a_diverged_result_is_set_aside_whole_and_the_stage_is_really_run_again(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), stage("b", a))
    lab.sweep(graph, a=diverge)
    assert lab.sweep(graph).opened == 0, "without retry it stays as it is"
    mended = try_again(lab, "diverged")
    first = Layout.attempt(lab.folder(a), 1)
    assert str(first / "withdrawn.json") in mended.changed[0].how
    assert "diverges again" in mended.remarks[0]
    kept = read_json(first / "withdrawn.json")
    assert (kept["status"], kept["summary"]) == ("diverged", {"diverged_step": 7})
    assert (first / "output" / "model.bin").exists()
    assert len(artifacts.read_metrics(Layout.metrics(lab.folder(a), 1))) == 2
    assert not Layout.result(lab.folder(a)).exists()
    assert states(lab, a) == ["pending"]
    assert lab.store.summary(a.fingerprint) == {}
    assert lab.store.metrics(a.fingerprint) == lab.store.artifacts(a.fingerprint) == []
    swept = lab.sweep(graph)
    assert swept.order() == ["a", "b"]
    assert [job.attempt for job in swept.executor.jobs] == [2, 1]
    assert lab.attempts(a) == ["diverged", "done"]
    assert lab.store.summary(a.fingerprint) == {"loss": 1.5}


def test_a_stage_that_diverges_again_keeps_both_results(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    for _ in range(2):
        assert lab.sweep(graph, a=diverge).result.counts == {"diverged": 1}
        try_again(lab, "diverged")
    kept = [Layout.attempt(lab.folder(a), number) / "withdrawn.json" for number in (1, 2)]
    assert [read_json(path)["attempt"] for path in kept] == [1, 2]


def test_a_second_diverged_attempt_is_not_adopted_in_place_of_the_first(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=diverge)
    artifacts.grant_lease(lab.folder(a), 2, "token")
    write_result(Job(a.fingerprint, a.name, {}, {}, str(lab.folder(a)), {}, 2, "token"), "diverged")
    try_again(lab, "diverged")
    assert lab.sweep(graph).order() == ["a"]


def test_a_retry_cut_off_after_its_files_were_moved_is_finished_by_the_next_sweep(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=diverge)
    mending._set_aside(lab.folder(a))
    assert lab.sweep(graph).order() == ["a"]
    assert states(lab, a) == ["done"]


@pytest.mark.parametrize("state", ["failed", "cancelled", "diverged"])
def test_a_stage_whose_files_say_done_is_never_touched(lab: Lab, state: str) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph)
    lab.store.set_state(a.fingerprint, state)
    before = everything(lab.root / "artifacts")
    mended = try_again(lab, state)
    assert mended.changed == []
    assert mended.skipped[0].how == "its files say done, by attempt 1; the next sweep records it"
    assert everything(lab.root / "artifacts") == before
    assert lab.sweep(graph).opened == 0
    assert states(lab, a) == ["done"]


def test_a_result_that_nobody_committed_is_left_for_the_next_sweep(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    write_result(leave_running(lab, graph, a, dead()))
    lab.store.set_state(a.fingerprint, "failed")
    assert names(try_again(lab, "failed").skipped) == ["a"]
    assert lab.sweep(graph).opened == 0


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("who", [alive_elsewhere(), ELSEWHERE])
def test_a_live_driver_of_the_plan_is_in_the_way_of_a_retry(lab: Lab, who: Owner, dry_run: bool) -> None:
    lab.sweep(graph_of(a := stage("a")), a=diverge)
    lab.store.acquire_driver("plan", owner=who)
    before = everything(lab.root / "artifacts")
    with pytest.raises(Locked, match=f"plan plan has driver process {who.pid} on {who.host}"):
        try_again(lab, "diverged", dry_run=dry_run)
    assert everything(lab.root / "artifacts") == before
    assert states(lab, a) == ["diverged"]


def test_a_dead_driver_is_not_in_the_way_and_the_plan_is_free_afterwards(lab: Lab) -> None:
    graph = graph_of(stage("a"))
    lab.sweep(graph, a=fail("user_error"))
    lab.store.acquire_driver("plan", owner=dead())
    assert names(try_again(lab, "failed", dry_run=True).changed) == ["a"]
    assert names(try_again(lab, "failed").changed) == ["a"]
    assert lab.store.driver("plan") is None


def test_a_driver_of_another_plan_is_not_in_the_way(lab: Lab) -> None:
    lab.sweep(graph_of(stage("a")), a=fail("user_error"))
    lab.store.acquire_driver("other", owner=alive_elsewhere())
    assert names(try_again(lab, "failed").changed) == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure_class": "timeout"}, "--class timeout: no class of failure; use oom_gpu, oom_host, disk_full, "),
        ({"failure_class": "crsh"}, r"--class crsh: no class of failure \(did you mean crash\?\); use "),
        ({"failure_class": ""}, "--class : no class of failure; use "),
        ({"pattern": "lfet"}, r"--stage lfet: no stage of plan plan matches \(did you mean left\?\)"),
    ],
)
def test_a_class_or_pattern_that_means_nothing_is_one_line(lab: Lab, options: dict[str, str], message: str) -> None:
    lab.sweep(graph_of(stage("left")), left=fail("crash"))
    with pytest.raises(UnknownName, match=message) as caught:
        try_again(lab, "failed", **options)
    assert "\n" not in str(caught.value)


def test_only_failed_stages_have_a_class(lab: Lab) -> None:
    lab.plan(graph_of(stage("a")))
    with pytest.raises(UnknownName, match="--class oom: only failed stages have a class; leave it out with --state "):
        try_again(lab, "diverged", failure_class="oom")


# --------------------------------------------------------------------------------------------- cancel


def test_a_cancelled_stage_is_left_out_with_what_needs_it_and_the_sweep_says_so(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b", a), c := stage("c"))
    lab.plan(graph)
    mended = leave_out(lab, "a")
    assert (names(mended.changed), mended.remarks) == (["a"], [])
    for _ in range(2):
        swept = lab.sweep(graph)
        assert swept.result == Result("done", {"cancelled": 1, "pending": 1, "done": 1}, [])
        told = "cancelled, left out with what needs it: tokenizer a; free with: scaling retry --state cancelled"
        assert swept.progress.notes == [told]
    assert states(lab, a, b, c) == ["cancelled", "pending", "done"]
    assert lab.store.stages()[a.fingerprint].message == "cancelled by hand"
    assert names(try_again(lab, "cancelled").changed) == ["a"]
    assert lab.sweep(graph).order() == ["a", "b"]


def test_without_names_all_of_the_plan_is_cancelled(lab: Lab) -> None:
    graph = graph_of(*(stage(name) for name in "abcdef"))
    lab.plan(graph)
    assert names(leave_out(lab).changed) == list("abcdef")
    swept = lab.sweep(graph)
    assert swept.opened == 0
    assert "tokenizer a, tokenizer b, tokenizer c and 3 more; free with" in swept.progress.notes[0]


def test_a_stage_cancelled_while_the_sweep_runs_is_left_out_when_its_turn_comes(lab: Lab) -> None:
    graph = graph_of(a := stage("a", seconds=9), b := stage("b"), stage("c", b))

    def cancel_b(executor: Scripted, job: Job) -> Outcome:
        assert names(leave_out(lab, "b").changed) == ["b"]
        return done()(executor, job)

    swept = lab.sweep(graph, a=cancel_b)
    assert swept.order() == ["a"]
    assert swept.result == Result("done", {"done": 1, "cancelled": 1, "pending": 1}, [])
    assert swept.progress.notes == ["tokenizer b: cancelled, left out; free with: scaling retry --state cancelled"]
    assert states(lab, a, b) == ["done", "cancelled"]


def test_a_cancelled_stage_cannot_be_claimed(lab: Lab) -> None:
    lab.plan(graph_of(a := stage("a")))
    leave_out(lab, "a")
    with pytest.raises(StageCancelled, match="is cancelled; scaling retry --state cancelled frees it"):
        lab.store.begin_attempt(a.fingerprint)
    assert lab.attempts(a) == []


def test_a_cancelled_stage_that_another_driver_gave_up_is_not_waited_for(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    job = leave_running(lab, graph, a, alive_elsewhere())

    def at_sleep(count: int) -> None:
        if count == 3:
            lab.store.finish_attempt(a.fingerprint, job.attempt, "stopped")
            lab.store.set_state(a.fingerprint, "cancelled")

    lab.clock.at_sleep = at_sleep
    assert lab.sweep(graph).result.counts == {"cancelled": 1}


def test_a_result_wins_over_a_cancellation(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph)
    lab.store.set_state(a.fingerprint, "cancelled")
    assert lab.sweep(graph).result.counts == {"done": 1}


def test_what_a_dead_driver_left_running_is_cancelled_like_what_waits(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    leave_running(lab, graph, a, dead())
    assert leave_out(lab, states=("running",)).changed[0].how == "was left by a driver that died"
    assert lab.sweep(graph).result.counts == {"cancelled": 1}
    assert lab.attempts(a) == ["lost driver_lost"]


def test_a_failed_stage_is_cancelled_because_the_next_sweep_would_try_it_again(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    lab.sweep(graph, a=fail("user_error", "the reason"))
    assert leave_out(lab, "a", states=("pending", "running")).skipped[0].how == "is failed"
    assert leave_out(lab, "a").changed[0].how == "failed"
    assert lab.store.stages()[a.fingerprint].message == "cancelled by hand; the reason"
    assert lab.sweep(graph).result.counts == {"cancelled": 1}
    assert lab.attempts(a) == ["failed user_error"]


def test_a_stage_that_is_done_is_left_as_it_is_and_named(lab: Lab) -> None:
    lab.sweep(graph_of(stage("a"), stage("b")), b=diverge)
    mended = leave_out(lab, "a", "b")
    assert mended.changed == []
    assert [one.how for one in mended.skipped] == ["is done", "is diverged"]


def test_a_dry_run_of_cancel_writes_nothing_and_stops_nobody(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b"))
    leave_running(lab, graph, a, alive_elsewhere())
    lab.store.acquire_driver("plan", owner=alive_elsewhere())
    mended = leave_out(lab, dry_run=True)
    assert names(mended.changed) == ["b", "a"]
    assert mended.remarks == [f"the driver, process {os.getppid()}, would be asked to stop"]
    assert states(lab, a, b) == ["running", "pending"]


def test_a_run_is_cancelled_with_what_no_other_run_needs(bench: Bench) -> None:
    with Store.open(bench.database, create=True) as store:
        number = store.record_plan("small", "a" * 64, "", {}, {})
        record(store, number, graph := plan_graph(plan()))
        one = the_plan(store, None)
        mended = cancel(store, bench.root, one, [graph.runs[0].name])
        assert [row.stage.kind for row in mended.changed] == ["generator", "evaluation"]
        assert all("16x1" in row.stage.name for row in mended.changed)
        rest = cancel(store, bench.root, one, [run.name for run in graph.runs])
        assert len(rest.changed) == 6
        again = cancel(store, bench.root, one, [run.name for run in graph.runs])
        assert (again.changed, again.skipped) == ([], [])


def test_another_plan_that_shares_a_cancelled_stage_is_named(lab: Lab) -> None:
    shared = stage("shared")
    lab.plan(graph_of(shared, stage("mine", shared)), "plan")
    lab.plan(graph_of(shared, stage("yours", shared)), "other")
    assert leave_out(lab, "mine").remarks == []
    told = ["1 of these are stages of plan other, too, which leaves them out as well"]
    assert leave_out(lab, "shared").remarks == told


def test_a_stage_that_another_plans_driver_makes_is_left_to_it(lab: Lab) -> None:
    graph = graph_of(a := stage("a"))
    leave_running(lab, graph, a, alive_elsewhere())
    mended = leave_out(lab)
    assert mended.changed == []
    assert mended.skipped[0].how.startswith(f"is made by process {os.getppid()} on ")
    assert states(lab, a) == ["running"]


def test_a_driver_on_another_host_is_named_and_nothing_is_changed(lab: Lab) -> None:
    graph = graph_of(a := stage("a"), b := stage("b"))
    leave_running(lab, graph, a, ELSEWHERE)
    lab.store.acquire_driver("plan", owner=ELSEWHERE)
    with pytest.raises(
        DriverElsewhere, match=r"process 4321 on another-host, which cannot .* kill -INT 4321; or cancel"
    ):
        leave_out(lab)
    assert states(lab, a, b) == ["running", "pending"]
    assert names(leave_out(lab, states=("pending",)).changed) == ["b"]
    assert names(leave_out(lab, "b", states=("running",)).changed) == []


@pytest.fixture
def driven(lab: Lab) -> Iterator[tuple[Lab, Stage, Stage]]:
    """A plan that this process drives, with one stage running and one waiting; SIGINT does what a test sets."""
    graph = graph_of(a := stage("a"), b := stage("b"))
    before = signal.getsignal(signal.SIGINT)
    leave_running(lab, graph, a, owner())
    lab.store.acquire_driver("plan")
    yield lab, a, b
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["stopped", "done"])
def test_a_driver_here_is_interrupted_and_awaited_before_what_ran_is_cancelled(
    driven: tuple[Lab, Stage, Stage], how: str
) -> None:
    lab, a, b = driven
    said: list[str] = []

    def drain(number: int, frame: Any) -> None:
        assert states(lab, b) == ["cancelled"], "first what waits, or the driver might begin it"
        lab.store.finish_attempt(a.fingerprint, 1, how)
        lab.store.release_driver(lab.store.acquire_driver("plan", now=1e12))

    signal.signal(signal.SIGINT, drain)
    mended = leave_out(lab, say=said.append)
    assert said == [f"asking the driver (process {os.getpid()}) to stop; its running stages save first"]
    assert mended.draining == ""
    assert states(lab, a, b) == ["cancelled" if how == "stopped" else "done", "cancelled"]
    assert [one.how for one in mended.skipped] == ([] if how == "stopped" else ["is done"])


def test_a_driver_that_takes_its_time_is_told_of_and_its_stages_stay(driven: tuple[Lab, Stage, Stage]) -> None:
    lab, a, b = driven
    signal.signal(signal.SIGINT, lambda number, frame: None)
    mended = leave_out(lab, wait_seconds=0.1)
    assert (
        mended.draining == f"the driver (process {os.getpid()}) still saves after 0 s; run the same command again later"
    )
    assert states(lab, a, b) == ["running", "cancelled"]
    assert [one.how for one in mended.skipped] == ["is running"]


@pytest.mark.parametrize(("error", "says"), [(ProcessLookupError, ""), (PermissionError, "is another user's")])
def test_a_driver_that_cannot_be_signalled_is_told_of(
    driven: tuple[Lab, Stage, Stage], monkeypatch: pytest.MonkeyPatch, error: type[OSError], says: str
) -> None:
    def refuse(pid: int, number: int) -> None:
        if number:
            raise error

    monkeypatch.setattr(mending.os, "kill", refuse)
    assert says in leave_out(driven[0]).draining


def test_waiting_stages_by_name_do_not_stop_the_driver(driven: tuple[Lab, Stage, Stage]) -> None:
    lab, a, b = driven
    assert names(leave_out(lab, "b").changed) == ["b"]
    assert states(lab, a, b) == ["running", "cancelled"]


def test_a_stage_that_changed_since_it_was_looked_at_is_not_cancelled(lab: Lab) -> None:
    lab.plan(graph_of(a := stage("a")))
    seen = lab.store.stages()[a.fingerprint]
    lab.store.begin_attempt(a.fingerprint)
    assert not mending._move(lab.store, seen, "cancelled", "")
    assert states(lab, a) == ["running"]


def test_a_real_sweep_is_cancelled_by_the_command_from_another_process(bench: Bench) -> None:
    children: list[subprocess.Popen[str]] = []

    def be_cancelled(job: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-m", "scaling.cli", "cancel", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        if not children:
            children.append(
                subprocess.Popen(command, cwd=bench.root, env=environment, stdout=subprocess.PIPE, text=True)
            )
        while not attempt_of(job).should_stop():
            assert children[0].poll() is None
        return {"status": "stopped", "message": "stopped after step 1"}

    assert bench.sweep(plan(), be_cancelled).status == "interrupted"
    answer = json.loads(children[0].communicate(timeout=60)[0])
    assert children[0].returncode == 0
    assert len(answer["changed"]) == 8
    assert bench.sweep(plan()) == Result("done", {"cancelled": 8}, [])
    assert bench.jobs == []
    with bench.store() as store:
        retry(store, bench.root, the_plan(store, None), "cancelled")
    assert bench.sweep(plan()).counts == {"done": 8}


# ------------------------------------------------------------------------------------------- commands


def test_the_command_to_go_on_names_the_plans_file_where_it_is_found(lab: Lab) -> None:
    text = "plan: mine\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    lab.store.record_plan("mine", digest, text, {}, {})
    row = the_plan(lab.store, "mine")
    assert sweep_command(row, lab.root, None) == "scaling sweep PLAN.yaml"
    (lab.root / "other.yaml").write_text("plan: other\n")
    (lab.root / "bad.yaml").write_bytes(b"\xff\xfe")
    (lab.root / "plans").mkdir()
    (lab.root / "plans" / "it.yaml").write_text(text)
    assert sweep_command(row, lab.root, "x.db") == "scaling sweep plans/it.yaml --db x.db"
    lab.store.record_plan("quickstart", "b" * 64, "", {}, {})
    assert sweep_command(the_plan(lab.store, "quickstart"), lab.root, None) == "scaling sweep quickstart"


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Lab]:
    """In the commands' folder a plan with a failed, a diverged, a done and two waiting stages."""
    with Store.open(tmp_path / "results.db", create=True) as store:
        lab = Lab(tmp_path, store)
        graph = graph_of(stage("bad"), odd := stage("odd"), stage("good"), stage("last", odd))
        lab.sweep(graph, bad=fail("oom_gpu", "too big"), odd=diverge)
        yield lab


def test_retry_prints_stages_to_stdout_and_the_next_command_to_stderr(scaling: Command, results: Lab) -> None:
    dry = scaling("retry", "--state", "failed", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert dry.out == "would be tried again: tokenizer bad: failed (oom_gpu) after 4 attempts; begins anew\n"
    said = scaling("retry", "--state", "failed", "--class", "oom", "--stage", "b*")
    assert said.out == "set back to pending: tokenizer bad: failed (oom_gpu) after 4 attempts; begins anew\n"
    assert said.err == "go on with: scaling sweep PLAN.yaml\n"
    left = "nothing to do in plan plan: no failed stage is left to try again"
    assert scaling("retry", "--state", "failed").line == left


def test_retry_and_cancel_as_json_are_one_object(scaling: Command, results: Lab) -> None:
    said = scaling("retry", "--state", "diverged", "--json")
    assert (said.code, said.err) == (0, "")
    answer = json.loads(said.out)
    assert [one["name"] for one in answer["changed"]] == ["odd"]
    assert set(answer) == {"plan", "dry_run", "changed", "skipped", "remarks", "next"}
    answer = json.loads(scaling("cancel", "last", "good", "--json", "--dry-run").out)
    assert [one["name"] for one in answer["changed"]] == ["last"]
    assert [one["name"] for one in answer["skipped"]] == ["good"]


def test_cancel_prints_what_it_cancelled(scaling: Command, results: Lab) -> None:
    said = scaling("cancel", "last", "good")
    assert said.out == "cancelled: tokenizer last: waits\n"
    assert said.err == "left as it is: tokenizer good: is done\ngo on with: scaling sweep PLAN.yaml\n"
    assert scaling("cancel", "--state", "running").line == "nothing to do in plan plan: no stage is running"
    assert results.store.status(the_plan(results.store, None).id)["tokenizer"]["cancelled"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retry",), "scaling retry: which stages? give --state; use failed, diverged, cancelled"),
        (("retry", "--state", "done"), "--state done: cannot retry such stages; use failed, diverged, cancelled"),
        (("cancel", "--state", "done"), "--state done: cannot cancel such stages; use pending, running, failed"),
        (("retry", "--state", "failed", "--plan", "plam"), "no plan 'plam' (did you mean plan?); it has plan"),
        (("retry", "--state", "failed", "--class", "timeout"), "--class timeout: no class of failure"),
        (("retry", "--state", "failed", "--stage", "x"), "--stage x: no stage of plan plan matches"),
        (("cancel", "goood"), "no run, stage or fingerprint goood (did you mean good?)"),
        (("cancel", "--db", "no.db"), "no.db"),
        (("retry", "--state", "failed", "--db", "no.db", "--dry-run"), "no.db"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    scaling: Command, results: Lab, arguments: tuple[str, ...], message: str
) -> None:
    said = scaling(*arguments)
    assert said.code == 2
    assert message in said.line


def test_where_there_are_several_plans_one_must_be_named_and_without_any_it_is_said(
    scaling: Command, results: Lab, tmp_path: Path
) -> None:
    results.plan(graph_of(stage("z")), "second")
    assert scaling("cancel").line.endswith("results.db: name one with --plan: plan, second")
    Store.open(tmp_path / "empty.db", create=True).close()
    assert "it has no plan" in scaling("retry", "--state", "failed", "--db", "empty.db").line


def test_a_live_driver_is_code_4_and_named(scaling: Command, results: Lab) -> None:
    results.store.acquire_driver("plan", owner=ELSEWHERE)
    for dry_run in ((), ("--dry-run",)):
        said = scaling("retry", "--state", "failed", *dry_run)
        assert said.code == 4
        assert "process 4321 on another-host" in said.line
    said = scaling("cancel")
    assert said.code == 4
    assert "process 4321 on another-host, which cannot be asked from here" in said.line


def test_a_driver_that_still_saves_is_code_4(scaling: Command, results: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    results.store.acquire_driver("plan", owner=alive_elsewhere())
    monkeypatch.setattr(mending, "_stop_driver", lambda *given: "the driver still saves")
    said = scaling("cancel")
    assert said.code == 4
    assert said.err.splitlines()[-1] == "the driver still saves"
