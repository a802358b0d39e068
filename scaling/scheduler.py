"""The loop: what is ready runs by longest remaining path, what ends is committed, what fails is retried by its class.

The scheduler decides; where a stage runs is the executor's matter, what is remembered is the store's, and the files
under `artifacts/` are the truth from which a killed driver's successor goes on. Clock, executor, store and progress
are arguments, so that the same loop runs in tests without Ray and without waiting.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from scaling import artifacts
from scaling.artifacts import Layout
from scaling.executors import Executor, ExecutorError
from scaling.plan import ResourceSettings
from scaling.recovery import ingest, recover, stage_folder
from scaling.stages import Graph, Stage, critical_path, makespan
from scaling.store import StageCancelled, Store
from scaling.worker import Job, Outcome

POLL_SECONDS = 0.25
FORECAST_SECONDS = 5.0
GRACE_SECONDS = 30.0  # between asking running stages to save and killing them
FREE_CANCELLED = "free with: scaling retry --state cancelled"

# retries of a stage by failure class; what is not named here is not retried
RETRIES: Mapping[str, int] = {"node_lost": 20, "oom_gpu": 3, "oom_host": 2, "bad_artifact": 2}


class Progress(Protocol):
    """What the loop tells whoever watches. No call may raise or wait."""

    def begin(self, stages: Mapping[str, Stage], states: Mapping[str, str]) -> None: ...

    def started(self, stage: Stage, attempt: int) -> None: ...

    def advanced(self, stage: Stage, beat: Mapping[str, Any]) -> None: ...

    def ended(self, stage: Stage, state: str, outcome: Outcome, summary: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def remaining(self, seconds: float) -> None: ...

    def end(self) -> None: ...


@dataclass
class Options:
    """Limits of one call of `sweep`."""

    resources: ResourceSettings
    workers: int | None = None
    max_seconds: float | None = None


@dataclass
class Result:
    """How a sweep ended: done | failed | interrupted | budget, and how many stages are in each state."""

    status: str
    counts: Mapping[str, int]
    failures: list[tuple[str, str]]  # (stage name, message)


@dataclass
class _Attempt:
    stage: Stage
    number: int
    folder: Path
    started: float
    beat: dict[str, Any] = field(default_factory=dict)


class Scheduler:
    """Runs what is missing of a graph. One instance serves one call of `run`."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        layout: Layout,
        progress: Progress,
        options: Options,
        provenance: Mapping[str, Any],
        plan_id: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.graph, self.store, self.layout = graph, store, layout
        self.progress, self.options, self.provenance = progress, options, provenance
        self._plan_id, self._clock, self._sleep = plan_id, clock, sleep
        self.states: dict[str, str] = {}
        self._running: dict[str, _Attempt] = {}
        self._failures: dict[str, Counter[str]] = defaultdict(Counter)
        self._micro_batches: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._ratios: dict[str, list[float]] = defaultdict(list)
        self._stops = 0
        self._reason = ""
        self._elsewhere: set[str] = set()  # stages that a live driver of another plan is making
        self._forecast = float("-inf")

    # ------------------------------------------------------------------------------------------ outside

    def request_stop(self) -> None:
        """Once: running stages save and stop. Twice: they are killed. Safe in a signal handler."""
        self._stops += 1
        # at once, because an inline stage blocks the loop; a full disk is no reason to fail here
        with contextlib.suppress(OSError):
            self._ask_to_stop()

    def run(self, open_executor: Callable[[], AbstractContextManager[Executor]]) -> Result:
        """Run until nothing is left to do or a stop, a budget or failures end it.

        The executor is opened only where something is to be done, and closed before this returns.
        """
        self.reconcile()
        self.progress.begin(self.graph.stages, self.states)
        self._say_what_is_left_out()
        try:
            if any(self._ready()):
                with open_executor() as self.executor:
                    self._refuse_what_never_fits()
                    self._loop()
        finally:
            self.progress.end()
        return self._result()

    def _loop(self) -> None:
        started = self._clock()
        asked = killed = 0.0
        while True:
            now = self._clock()
            limit = self.options.max_seconds
            if self._stops and not self._reason:
                self._stop("interrupted", "stopping: running stages save and stop; press Ctrl-C again to kill them")
            if limit is not None and now - started >= limit and not self._reason:
                self._stop("budget", "budget reached: running stages save and stop")
            if self._reason and not asked:
                asked = now
                self._ask_to_stop()
            if asked and not killed and (self._stops > 1 or now - asked > GRACE_SECONDS):
                killed = now
                for key in list(self._running):
                    self.executor.kill(key)
            if not self._reason:
                self._launch()
            if not self._running:
                if not self._elsewhere or self._reason:
                    break
                self._sleep(POLL_SECONDS)
            for key, outcome in self.executor.wait(POLL_SECONDS):
                self._ended(key, outcome)
            self._watch()

    def reconcile(self) -> None:
        """Take every stage's state from its files; see `recovery.recover`."""
        self.states = recover(self.graph, self.store, self.layout, self._plan_id, clock=self._clock, sleep=self._sleep)

    def _say_what_is_left_out(self) -> None:
        names = [f"{one.kind} {one.name}" for key, one in self.graph.stages.items() if self.states[key] == "cancelled"]
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            self.progress.note(f"cancelled, left out with what needs it: {some}; {FREE_CANCELLED}")

    # ---------------------------------------------------------------------------------------- decisions

    def _launch(self) -> None:
        """Start ready stages, the longest remaining path first, as far as the executor has room."""
        self._look_elsewhere()
        ready = self._ready()
        if not ready:
            return
        priority = critical_path(self.graph, self._seconds())
        for key in sorted(ready, key=priority.__getitem__, reverse=True):
            if len(self._running) >= self._slots():
                return
            self._start(self.graph.stages[key])

    def _look_elsewhere(self) -> None:
        """Take over the results of stages that another plan's driver was making."""
        for key in list(self._elsewhere):
            stage = self.graph.stages[key]
            mark = artifacts.committed(stage_folder(self.layout, stage))
            if mark is not None:
                self._elsewhere.discard(key)
                self.states[key] = mark["status"]
                ingest(self.store, stage_folder(self.layout, stage), stage.fingerprint, mark)
                self.progress.ended(stage, mark["status"], Outcome(mark["status"]), mark["summary"])

    def _ready(self) -> list[str]:
        return [key for key, state in self.states.items() if state == "pending" and self._parents_done(key)]

    def _refuse_what_never_fits(self) -> None:
        """Raise ExecutorError where a stage asks for more than there is; Ray would wait for ever."""
        each, capacity = self.options.resources.each, self.executor.capacity
        if each.cpus > capacity.cpus or each.gpus > capacity.gpus:
            raise ExecutorError(
                f"a stage asks for {each.cpus} CPUs and {each.gpus:g} GPUs (resources.each), "
                f"but there are {capacity.cpus:g} and {capacity.gpus:g}"
            )

    def _parents_done(self, key: str) -> bool:
        return all(self.states[parent] == "done" for parent in self.graph.stages[key].parents.values())

    def _slots(self) -> int:
        each, capacity = self.options.resources.each, self.executor.capacity
        fits = int(capacity.cpus // each.cpus)
        if each.gpus:
            fits = min(fits, int(capacity.gpus / each.gpus + 1e-9))
        return min(fits, self.options.workers or fits)

    def _start(self, stage: Stage) -> None:
        folder = stage_folder(self.layout, stage)
        config = Layout.config(folder)
        if not config.exists():
            data = stage.data.model_dump(mode="json")
            artifacts.write_json(
                config, {"fingerprint": stage.fingerprint, "name": stage.name, **stage.identity, "plan_data": data}
            )
        each = self.options.resources.each
        try:
            attempt = self.store.begin_attempt(
                stage.fingerprint,
                after=artifacts.last_attempt(folder),
                threads=each.cpus,
                seed=stage.seed,
                provenance=self.provenance,
            )
        except StageCancelled:  # while this sweep ran
            self._elsewhere.discard(stage.fingerprint)
            self.states[stage.fingerprint] = "cancelled"
            self.progress.note(f"{stage.kind} {stage.name}: cancelled, left out; {FREE_CANCELLED}")
            return
        if attempt is None:
            if stage.fingerprint not in self._elsewhere:
                self._elsewhere.add(stage.fingerprint)
                self.progress.note(
                    f"{stage.kind} {stage.name}: being made by the driver of another plan; waiting for it"
                )
            return
        self._elsewhere.discard(stage.fingerprint)
        artifacts.grant_lease(folder, attempt.number, attempt.token)
        inputs = {
            role: str(stage_folder(self.layout, self.graph.stages[parent])) for role, parent in stage.parents.items()
        }
        job = Job(
            fingerprint=stage.fingerprint,
            name=f"{stage.kind} {stage.name}",
            identity=dict(stage.identity),
            data=stage.data.model_dump(mode="json"),
            stage_dir=str(folder),
            inputs=inputs,
            attempt=attempt.number,
            token=attempt.token,
            cpus=each.cpus,
            gpus=each.gpus,
            micro_batches=2 ** self._micro_batches[stage.fingerprint],
            checkpoint_seconds=self.options.resources.checkpoint_seconds,
        )
        self.states[stage.fingerprint] = "running"
        self._running[stage.fingerprint] = _Attempt(stage, attempt.number, folder, self._clock())
        self.progress.started(stage, attempt.number)
        self.executor.submit(job)

    def _ended(self, key: str, outcome: Outcome) -> None:
        attempt = self._running.pop(key)
        mark: Mapping[str, Any] = {}
        if outcome.status in artifacts.RESULTS:
            try:
                mark = artifacts.commit(attempt.folder, attempt.number, name=attempt.stage.name)
            except artifacts.CorruptArtifact as error:  # a worker's files may not have come to this node
                outcome = replace(outcome, status="failed", failure_class="crash", message=str(error))
        with self.store.transaction():
            self._settle(attempt, outcome, mark)
        self.progress.ended(attempt.stage, self.states[key], outcome, mark.get("summary", {}))

    def _settle(self, attempt: _Attempt, outcome: Outcome, mark: Mapping[str, Any]) -> None:
        """Record an attempt that ended, committed with `mark` or failed."""
        stage, key = attempt.stage, attempt.stage.fingerprint
        if mark:
            ingest(self.store, stage_folder(self.layout, stage), stage.fingerprint, mark)
            artifacts.drop_checkpoints(attempt.folder)
            self.states[key] = outcome.status
            self._ratios[stage.kind].append(outcome.seconds / stage.seconds)
        elif outcome.status == "stopped":
            self.states[key] = "pending"
        else:
            self.states[key] = self._after_failure(stage, outcome)
        if self.states[key] not in artifacts.RESULTS:
            self.store.set_state(key, self.states[key], outcome.message)
        self.store.finish_attempt(
            key,
            attempt.number,
            "lost" if outcome.status == "fenced" else outcome.status,
            outcome.failure_class,
            outcome.message,
            seconds=outcome.seconds,
            log_path=str(Layout.log(attempt.folder, attempt.number)),
            **{name: outcome.facts[name] for name in ("device", "peak_rss") if name in outcome.facts},
        )

    def _after_failure(self, stage: Stage, outcome: Outcome) -> str:
        """The state a failed attempt leaves its stage in: pending to try again, or failed."""
        key, kind = stage.fingerprint, outcome.failure_class or outcome.status
        self._failures[key][kind] += 1
        self._messages[key] = f"{kind}: {outcome.message}"
        if kind == "disk_full":
            self._stop("interrupted", "the disk is full: free some space and run the same command again")
            return "pending"
        if kind == "crash" and (self._stops or self._reason):
            return "pending"  # killed with the sweep, which is no failure of its own
        if kind == "bad_artifact":
            self._remake_parents(stage)
        if kind == "oom_gpu":
            self._micro_batches[key] += 1
        allowed = self.options.resources.retries if kind == "crash" else RETRIES.get(kind, 0)
        if self._failures[key][kind] > allowed:
            return "failed"
        self.progress.note(f"{stage.kind} {stage.name}: {kind}, tried again ({outcome.message})")
        return "pending"

    def _remake_parents(self, stage: Stage) -> None:
        """Take back the result of parents whose files do not match their checksums."""
        for parent in set(stage.parents.values()):
            folder = stage_folder(self.layout, self.graph.stages[parent])
            if artifacts.damage(folder, verify=True):
                artifacts.withdraw(folder)
                self.states[parent] = "pending"
                self.store.set_state(parent, "pending", "its artifact was damaged")

    # ------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        """Tell progress what the running stages' heartbeats say, and how long all will take."""
        for attempt in self._running.values():
            try:
                beat = artifacts.read_json(Layout.heartbeat(attempt.folder, attempt.number))
            except (FileNotFoundError, artifacts.CorruptArtifact):
                continue
            if beat != attempt.beat:
                attempt.beat = beat
                self.progress.advanced(attempt.stage, beat)
        now = self._clock()
        if now - self._forecast < FORECAST_SECONDS:
            return
        self._forecast = now
        todo = [key for key, state in self.states.items() if state in ("pending", "running")]
        seconds = self._seconds()
        for key, attempt in self._running.items():
            seconds[key] = max(0.5, seconds[key] - (now - attempt.started))
        self.progress.remaining(makespan(self.graph, seconds, todo, self._slots()))

    def _seconds(self) -> dict[str, float]:
        """Estimated seconds of each stage, corrected by what stages of its kind took in this sweep."""
        ratio = {kind: statistics.median(values) for kind, values in self._ratios.items()}
        return {key: stage.seconds * ratio.get(stage.kind, 1.0) for key, stage in self.graph.stages.items()}

    def _stop(self, reason: str, text: str) -> None:
        self._reason = reason
        self.progress.note(text)

    def _ask_to_stop(self) -> None:
        for attempt in self._running.values():
            artifacts.request_stop(attempt.folder, attempt.number)

    def _result(self) -> Result:
        counts = Counter(self.states.values())
        names = {key: f"{stage.kind} {stage.name}" for key, stage in self.graph.stages.items()}
        failures = [(names[key], self._messages.get(key, "")) for key, s in self.states.items() if s == "failed"]
        status = self._reason or ("failed" if failures else "done")
        if status in ("interrupted", "budget") and not any(s == "pending" for s in self.states.values()):
            status = "failed" if failures else "done"
        return Result(status, counts, failures)
