"""One call of `scaling sweep`: from a plan to a graph, a store, a lease, and the scheduler's loop. Also its dry run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from models.data import DataError, ImageSource, open_source
from models.weights import shipped_hash
from scaling import artifacts
from scaling.artifacts import Layout
from scaling.executors import Executor, cpu_count, open_executor
from scaling.kept_plans import keep_plan
from scaling.plan import Plan
from scaling.progress import LineProgress
from scaling.provenance import provenance
from scaling.scheduler import Options, Result, Scheduler
from scaling.stages import RECIPES, Graph, Stage, build_graph, makespan
from scaling.store import DriverLease, LeaseLost, RunRecord, StageRecord, Store, StoreError

BEAT_SECONDS = 10.0


def plan_graph(plan: Plan) -> Graph:
    """The graph of a plan; opens the data source, for its identity and classes. Raises DataError."""
    source = open_source(plan.data)
    first = plan.runs[0].evaluations[0].settings
    _enough_images(plan, source)
    return build_graph(plan, source.identity(), source.classes, shipped_hash(first.features))


def _enough_images(plan: Plan, source: ImageSource) -> None:
    """Raise DataError where a split has fewer images than the plan uses of it."""
    evaluations = [one.settings for run in plan.runs for one in run.evaluations]
    asked = {
        "train": [("data.train_images", plan.data.train_images)],
        "validation": [("data.validation_images", plan.data.validation_images)],
        "held-out": [],
    }
    asked["validation"] += [("evaluation.samples", settings.samples) for settings in evaluations]
    for settings in evaluations:
        asked[settings.reference.split].append(("evaluation.reference.images", settings.reference.images))
    for split, wants in asked.items():
        size = source.size(split)
        key, most = max(wants, key=lambda want: want[1], default=("", 0))
        if size is not None and most > size:
            raise DataError(f"{plan.data.path}: the {split} split has {size} images, {key} asks for {most}")


def sweep(plan: Plan, *, database: str, root: Path, progress: LineProgress, options: Options, executor: str) -> Result:
    """Run what is missing of a plan; the same call starts, resumes and extends.

    Raises Locked where another driver runs the plan, StoreError, DataError, ExecutorError.
    """
    graph = plan_graph(plan)
    facts = provenance()
    with Store.open(database, create=True) as store:
        plan_id = store.record_plan(plan.name, plan.sha256, plan.text, plan.resolved(), facts)
        lease = store.acquire_driver(plan.name)
        try:
            record(store, plan_id, graph)
            keep_plan(Layout(root), store, plan.name)
            scheduler = Scheduler(graph, store, Layout(root), progress, options, facts, plan_id)
            workers = options.workers or cpu_count()
            gpus = plan.resources.each.gpus * workers if plan.resources.each.gpus else 0

            @contextlib.contextmanager
            def place() -> Iterator[Executor]:
                cpus = workers * plan.resources.each.cpus
                address = plan.resources.address
                opening = open_executor(executor, cpus=cpus, gpus=gpus, address=address)
                # in this order: Ray takes SIGTERM for itself when it starts
                with opening as opened, _signals(scheduler.request_stop):
                    yield opened

            with _signals(scheduler.request_stop), _beating(database, lease):
                return scheduler.run(place)
        finally:
            store.release_driver(lease)


def record(store: Store, plan_id: int, graph: Graph) -> None:
    """Put a plan's stages, edges and runs into the store; what is there keeps its state."""
    store.record_stages(plan_id, stage_records(graph), graph.edges())
    store.record_runs(plan_id, [RunRecord(**vars(run)) for run in graph.runs])


def stage_records(graph: Graph) -> list[StageRecord]:
    """A plan's stages as a store takes them."""
    return [
        StageRecord(s.fingerprint, s.kind, s.name, dict(s.identity), RECIPES[s.kind], s.flops, s.params)
        for s in graph.stages.values()
    ]


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` on SIGINT, SIGTERM and SIGHUP, whatever was set before; put that back at the end."""

    def handle(number: int, frame: FrameType | None) -> None:
        handler()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


@contextlib.contextmanager
def _beating(database: str, lease: DriverLease) -> Iterator[None]:
    """Keep the driver's lease fresh from a thread with a connection of its own; a long inline stage blocks the loop."""
    end = threading.Event()

    def beat() -> None:
        with Store.open(database, create=False) as store:
            while not end.wait(BEAT_SECONDS):
                try:
                    store.beat_driver(lease)
                except LeaseLost:
                    return  # the next write of the loop says so
                except StoreError:
                    continue

    thread = threading.Thread(target=beat, name="driver-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@dataclass(frozen=True)
class Forecast:
    """A stage in a dry run. state: cached | resumable | new; why: what made it so."""

    stage: Stage
    state: str
    why: str


def dry_run(graph: Graph, root: Path) -> list[Forecast]:
    """What a sweep would do, read from the files alone; nothing is written."""
    layout = Layout(root)
    return [Forecast(stage, *_state(stage, layout)) for stage in graph.stages.values()]


def _state(stage: Stage, layout: Layout) -> tuple[str, str]:
    folder = layout.stage(stage.kind, stage.name, stage.fingerprint)
    mark = artifacts.committed(folder)
    if mark is not None:
        return "cached", f"{mark['status']} by attempt {mark['attempt']}"
    if artifacts.damage(folder):
        return "new", "its artifact is damaged"
    if artifacts.adoptable(folder):
        return "cached", "finished, its driver died before saying so"
    steps = [int(path.stem.split("-")[1]) for path in Layout.attempts(folder).glob("*/checkpoints/step-*.safetensors")]
    if steps:
        return "resumable", f"from step {max(steps)}"
    if Layout.config(folder).exists():
        return "new", "tried before, without a checkpoint"
    return "new", _changed(stage, layout) or "never run"


def _changed(stage: Stage, layout: Layout) -> str:
    """In which fields the stage differs from the nearest of its kind and name that was run before, if any was."""
    now = _flat(dict(stage.identity))
    differences = []
    for path in sorted((layout.root / "artifacts" / stage.kind).glob("*/config.json")):
        config = artifacts.read_json(path)
        if config.get("name") == stage.name:
            was = _flat(config)
            differences.append([(key, was.get(key), now[key]) for key in now if was.get(key) != now[key]])
    if not differences:
        return ""
    nearest = min(differences, key=len)
    named = [f"{key} {was!r} -> {value!r}" for key, was, value in nearest if not key.startswith("parents")]
    return ", ".join(named[:3]) or "a parent changed"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return items


def estimated_seconds(graph: Graph, forecasts: list[Forecast], workers: int) -> float:
    """Time the missing stages would take on `workers` workers, by the cost model."""
    todo = [f.stage.fingerprint for f in forecasts if f.state != "cached"]
    return makespan(graph, {key: stage.seconds for key, stage in graph.stages.items()}, todo, workers)
