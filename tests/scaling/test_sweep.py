"""One call of `sweep` and its dry run: locks, signals, what would be done and why; stages are pretended."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import DataError
from scaling import artifacts, sweep
from scaling.artifacts import AttemptFolder, Layout
from scaling.executors import InlineExecutor
from scaling.plan import Plan, parse_plan
from scaling.progress import LineProgress
from scaling.provenance import Owner, owner
from scaling.scheduler import Options, Result
from scaling.stages import Graph, makespan
from scaling.store import Locked, Store
from scaling.sweep import dry_run, estimated_seconds, plan_graph

TEXT = """
plan: small
extends: tiny@1
data: {train_images: 128, validation_images: 64}
tokenizer: {codebook_size: 16, images_seen: 640, arms: {base: {}}}
generator: {size: [16x1, 16x2], images_seen: 640}
evaluation: {features: cnn, samples: 20, reference: {split: held-out, images: 30}}
resources: {executor: inline, workers: 2}
"""
Pretend = Callable[[dict[str, Any]], dict[str, Any]]


def plan(**changes: str) -> Plan:
    text = TEXT
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return parse_plan(text)


def attempt_of(job: dict[str, Any]) -> AttemptFolder:
    return AttemptFolder(Path(job["stage_dir"]), job["attempt"], job["token"])


def pretend(job: dict[str, Any]) -> dict[str, Any]:
    """A worker that makes a stage's result without the work."""
    attempt = attempt_of(job)
    attempt.output("result.bin").write_bytes(job["name"].encode())
    attempt.finish({"loss": 1.0}, "done")
    return {"status": "done", "seconds": 1.0}


class Bench:
    """A folder in which sweeps run, one after the other, with a pretended worker."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.database = root, str(root / "results.db")
        self.jobs: list[str] = []
        self._monkeypatch = monkeypatch

    def sweep(self, plan: Plan, run: Pretend = pretend, **options: Any) -> Result:
        self.jobs = []

        def counted(job: dict[str, Any]) -> dict[str, Any]:
            self.jobs.append(job["name"])
            return run(job)

        @contextmanager
        def place(kind: str, **more: Any) -> Iterator[InlineExecutor]:
            assert kind == "inline"
            executor = InlineExecutor(counted)
            yield executor
            executor.close()

        self._monkeypatch.setattr(sweep, "open_executor", place)
        with open(os.devnull, "w") as nowhere:
            return sweep.sweep(
                plan,
                database=self.database,
                root=self.root,
                progress=LineProgress(nowhere),
                options=Options(plan.resources, **options),
                executor="inline",
            )

    def store(self) -> Store:
        return Store.open(self.database, create=False)

    def forecast(self, plan: Plan) -> dict[str, tuple[str, str]]:
        """(state, why) of each stage in a dry run, by kind and name."""
        return {f"{f.stage.kind} {f.stage.name}": (f.state, f.why) for f in dry_run(plan_graph(plan), self.root)}


@pytest.fixture
def bench(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(weird_tmp_path, monkeypatch)


def stage_of(graph: Graph, kind: str, part: str = "") -> Any:
    return next(stage for stage in graph.stages.values() if stage.kind == kind and part in stage.name)


def folder_of(bench: Bench, kind: str, part: str = "") -> Path:
    stage = stage_of(plan_graph(plan()), kind, part)
    return Layout(bench.root).stage(stage.kind, stage.name, stage.fingerprint)


def everything(folder: Path) -> dict[str, int]:
    """Every path below a folder with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


# ---------------------------------------------------------------------------------------------- sweep


def test_a_sweep_runs_all_once_and_the_same_call_runs_nothing_more(bench: Bench) -> None:
    assert bench.sweep(plan()) == Result("done", {"done": 8}, [])
    assert len(bench.jobs) == len(set(bench.jobs)) == 8
    assert bench.sweep(plan()) == Result("done", {"done": 8}, [])
    assert bench.jobs == []


def test_an_extended_plan_runs_only_what_is_new(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**{"[16x1, 16x2]": "[16x1, 16x2, 16x3]"}))
    assert [name.split()[0] for name in bench.jobs] == ["generator", "evaluation"]
    assert all("16x3" in name for name in bench.jobs)


def test_a_plan_that_asks_for_less_keeps_the_other_results_on_disk(bench: Bench) -> None:
    bench.sweep(plan())
    kinds = [path for path in (bench.root / "artifacts").iterdir() if path.name != "plans"]
    before = [everything(path) for path in kinds]
    assert bench.sweep(plan(**{"[16x1, 16x2]": "16x1"})).counts == {"done": 6}
    assert [everything(path) for path in kinds] == before
    bench.sweep(plan())
    assert bench.jobs == []


def test_the_store_has_the_plan_its_runs_and_where_the_numbers_come_from(bench: Bench) -> None:
    bench.sweep(plan())
    with bench.store() as store:
        row = store.plan("small")
        assert row is not None
        assert (row.text, row.sha256, row.resolved) == (TEXT, plan().sha256, plan().resolved())
        assert row.versions
        assert "torch" in row.versions
        assert [run.name for run in store.runs(row.id)] == [run.name for run in plan().runs]
        table = store.load_runs("small")
    assert list(table["state"]) == ["done", "done"]
    assert list(table["size"]) == ["16x1", "16x2"]
    assert set(table["loss"]) == {1.0}


def test_the_lease_is_held_while_the_sweep_runs_and_given_back_after_it(bench: Bench) -> None:
    seen: list[str] = []

    def look(job: dict[str, Any]) -> dict[str, Any]:
        with bench.store() as store, pytest.raises(Locked):
            store.acquire_driver("small", owner=Owner("another-host", 1, "boot"))
        seen.append(job["name"])
        return pretend(job)

    bench.sweep(plan(), look)
    assert len(seen) == 8
    with bench.store() as store:
        store.release_driver(store.acquire_driver("small"))


def test_a_plan_that_another_driver_runs_is_refused_and_nothing_is_changed(bench: Bench) -> None:
    me = owner()
    with Store.open(bench.database, create=True) as store:
        store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))
    with pytest.raises(Locked, match=rf"plan small has driver process {os.getppid()} on ") as caught:
        bench.sweep(plan())
    assert "\n" not in str(caught.value)
    assert bench.jobs == []
    assert not (bench.root / "artifacts").exists()
    with bench.store() as store, pytest.raises(Locked):
        store.acquire_driver("small", owner=Owner("third", 1, "boot"))


def test_another_plan_may_be_driven_at_the_same_time(bench: Bench) -> None:
    me = owner()
    with Store.open(bench.database, create=True) as store:
        store.acquire_driver("other", owner=Owner(me.host, os.getppid(), me.boot_id))
    assert bench.sweep(plan()).status == "done"


def test_the_lease_of_a_dead_driver_is_taken_over(bench: Bench) -> None:
    me = owner()
    with Store.open(bench.database, create=True) as store:
        store.acquire_driver("small", owner=Owner(me.host, 2**22 + 1, me.boot_id))
    assert bench.sweep(plan()).status == "done"


def test_a_sweep_that_breaks_gives_its_lease_back(bench: Bench) -> None:
    def break_down(job: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("a fault of the tool")

    with pytest.raises(RuntimeError, match="a fault of the tool"):
        bench.sweep(plan(), break_down)
    with bench.store() as store:
        store.acquire_driver("small", owner=Owner("another-host", 1, "boot"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_a_checkpoint_and_the_next_sweep_goes_on(bench: Bench, number: int) -> None:
    def be_interrupted(job: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), number)
        assert attempt_of(job).should_stop()
        return {"status": "stopped", "message": "stopped after step 1"}

    before = signal.getsignal(number)
    result = bench.sweep(plan(), be_interrupted)
    assert result.status == "interrupted"
    assert result.counts == {"pending": 8}
    assert signal.getsignal(number) is before
    assert bench.sweep(plan()).counts == {"done": 8}


def test_a_signal_in_a_sweep_that_had_the_last_stage_under_way_interrupts_nothing(bench: Bench) -> None:
    def interrupted_at_the_end(job: dict[str, Any]) -> dict[str, Any]:
        if len(bench.jobs) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return pretend(job)

    assert bench.sweep(plan(), interrupted_at_the_end) == Result("done", {"done": 8}, [])


# -------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_of_a_new_plan_lists_every_stage_as_never_run_and_writes_nothing(bench: Bench) -> None:
    before = everything(bench.root)
    found = bench.forecast(plan())
    assert len(found) == 8
    assert set(found.values()) == {("new", "never run")}
    assert everything(bench.root) == before


def test_a_dry_run_after_a_sweep_lists_every_stage_as_cached_and_changes_nothing(bench: Bench) -> None:
    bench.sweep(plan())
    before = everything(bench.root)
    assert set(bench.forecast(plan()).values()) == {("cached", "done by attempt 1")}
    assert everything(bench.root) == before


def test_a_dry_run_says_which_setting_makes_a_stage_new(bench: Bench) -> None:
    bench.sweep(plan())
    found = bench.forecast(plan(**{"codebook_size: 16": "codebook_size: 32"}))
    assert found["tokenizer base.t0"] == ("new", "settings.tokenizer.codebook_size 16 -> 32")
    assert found["tokens base.t0"] == ("new", "settings.codebook_size 16 -> 32")
    features = next(state for name, state in found.items() if name.startswith("features"))
    assert features[0] == "cached"
    generators = [why for name, (_, why) in found.items() if name.startswith("generator")]
    assert generators == ["settings.codebook_size 16 -> 32"] * 2


def test_a_dry_run_says_where_only_a_parent_changed(bench: Bench) -> None:
    bench.sweep(plan())
    found = bench.forecast(plan(**{"images_seen: 640, arms": "images_seen: 1280, arms"}))
    assert found["tokenizer base.t0"] == ("new", "settings.tokenizer.images_seen 640 -> 1280")
    assert found["tokens base.t0"] == ("new", "a parent changed")


def test_the_reason_compares_with_the_nearest_of_the_earlier_ones(bench: Bench) -> None:
    bench.sweep(plan())
    for size in (64, 128):
        bench.sweep(plan(**{"codebook_size: 16, images_seen: 640": f"codebook_size: {size}, images_seen: 1280"}))
    found = bench.forecast(plan(**{"codebook_size: 16": "lr: 2e-3, codebook_size: 16"}))
    assert found["tokenizer base.t0"] == ("new", "settings.tokenizer.lr 0.001 -> 0.002")


def test_a_dry_run_tells_from_which_step_a_stage_would_go_on(bench: Bench) -> None:
    def save_and_stop(job: dict[str, Any]) -> dict[str, Any]:
        attempt_of(job).save_checkpoint(40, {"w": torch.zeros(1)}, {})
        os.kill(os.getpid(), signal.SIGTERM)
        return {"status": "stopped"}

    bench.sweep(plan(), save_and_stop)
    begun = bench.jobs[0]
    found = bench.forecast(plan())
    assert found[begun] == ("resumable", "from step 40")


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_a_dry_run_counts_what_a_dead_driver_left_finished(bench: Bench, status: str) -> None:
    bench.sweep(plan())
    folder = folder_of(bench, "tokenizer")
    mark = artifacts.read_json(Layout.result(folder))
    own = Layout.result(Layout.attempt(folder, 1))
    if status == "diverged":
        artifacts.write_json(own, {**artifacts.read_json(own), "status": "diverged"})
        artifacts.commit(folder, 1)
        assert bench.forecast(plan())["tokenizer base.t0"] == ("cached", "diverged by attempt 1")
    assert mark["attempt"] == 1
    Layout.result(folder).unlink()
    assert bench.forecast(plan())["tokenizer base.t0"][0] == "cached"


def test_a_dry_run_says_that_an_artifact_is_damaged(bench: Bench) -> None:
    bench.sweep(plan())
    (Layout.output(folder_of(bench, "tokenizer"), 1) / "result.bin").write_bytes(b"")
    assert bench.forecast(plan())["tokenizer base.t0"] == ("new", "its artifact is damaged")


def test_a_dry_run_says_that_a_stage_was_tried_before_in_vain(bench: Bench) -> None:
    result = bench.sweep(plan(), lambda job: {"status": "failed", "failure_class": "user_error", "message": "no"})
    assert result.status == "failed"
    found = bench.forecast(plan())
    assert {found[name] for name in bench.jobs} == {("new", "tried before, without a checkpoint")}
    assert {why for name, why in found.items() if name not in bench.jobs} == {("new", "never run")}


def test_the_estimate_counts_only_what_is_missing(bench: Bench) -> None:
    graph = plan_graph(plan())
    everything_new = estimated_seconds(graph, dry_run(graph, bench.root), 2)
    seconds = {key: stage.seconds for key, stage in graph.stages.items()}
    assert everything_new == makespan(graph, seconds, list(graph.stages), 2) > 0
    bench.sweep(plan())
    assert estimated_seconds(graph, dry_run(graph, bench.root), 2) == 0
    more = plan_graph(plan(**{"[16x1, 16x2]": "[16x1, 16x2, 16x3]"}))
    left = estimated_seconds(more, dry_run(more, bench.root), 2)
    assert left == stage_of(more, "generator", "16x3").seconds + stage_of(more, "evaluation", "16x3").seconds


# ----------------------------------------------------------------------------------------------- data


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """200 small images in two classes; about 160 of them to train on, 20 for each other split."""
    random = np.random.default_rng(0)
    for number in range(200):
        path = tmp_path / "images" / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def plan_of(images: Path, train: int = 64, validation: int = 16, samples: int = 10, reference: int = 10) -> Plan:
    text = TEXT.replace("data: {train_images: 128, validation_images: 64}", "")
    text = text.replace("samples: 20", f"samples: {samples}").replace("images: 30", f"images: {reference}")
    data = {"source": "image_folder", "path": str(images), "train_images": train, "validation_images": validation}
    return parse_plan(f"{text}data: {json.dumps(data)}\n")


def test_a_plan_that_asks_for_as_many_images_as_there_are_is_accepted(images: Path) -> None:
    assert len(plan_graph(plan_of(images)).stages) == 8


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"train": 1000}, r"the train split has \d+ images, data.train_images asks for 1000"),
        ({"validation": 900}, r"the validation split has \d+ images, data.validation_images asks for 900"),
        ({"samples": 800}, r"the validation split has \d+ images, evaluation.samples asks for 800"),
        ({"reference": 700}, r"the held-out split has \d+ images, evaluation.reference.images asks for 700"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_plan_that_asks_for_more_images_than_there_are_is_refused(
    images: Path, asked: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        plan_graph(plan_of(images, **asked))
    assert str(images) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_moved_images_are_the_same_images_and_changed_ones_are_not(images: Path) -> None:
    before = set(plan_graph(plan_of(images)).stages)
    moved = images.rename(images.with_name("moved"))
    assert set(plan_graph(plan_of(moved)).stages) == before
    next((moved / "cats").iterdir()).unlink()
    assert not set(plan_graph(plan_of(moved)).stages) & before


def test_a_lost_database_is_filled_again_with_the_times_at_which_the_work_ended(bench: Bench) -> None:
    """Else results would look younger than a prediction of them that was stored after they were known."""
    bench.sweep(plan())
    with Store.open(bench.database, create=False) as store:
        before = store.load_runs("small")
    hour = 3600
    for mark in bench.root.glob("artifacts/*/*/attempts/*/result.json"):
        os.utime(mark, (mark.stat().st_atime, mark.stat().st_mtime - hour))
    Path(bench.database).unlink()
    bench.sweep(plan())
    assert bench.jobs == []
    with Store.open(bench.database, create=False) as store:
        after = store.load_runs("small")
    assert (after["finished"] < before["finished"] - hour + 60).all()
