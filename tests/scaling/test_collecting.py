"""What gc finds and deletes: never what a result needs or a worker writes, and a kill leaves nothing torn."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretended_sweep import Bench, attempt_of, content, everything, failing, plan, work, write_log

from scaling import collecting
from scaling.artifacts import AttemptFolder, Layout, grant_lease, read_json, read_stage_metrics, write_json
from scaling.checking import check
from scaling.collecting import Rubbish, delete_rubbish, find_rubbish, render_rubbish, size_text
from scaling.files import CorruptArtifact
from scaling.provenance import Owner, owner
from scaling.rebuilding import rebuild
from scaling.store import Locked, StoreError

SMALLER = {"[16x1, 16x2]": "16x1"}
OTHER = {"plan: small": "plan: other", "[16x1, 16x2]": "[16x2, 16x3]"}


@pytest.fixture
def bench(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(weird_tmp_path, monkeypatch)


def look(bench: Bench, **how: Any) -> Rubbish:
    with bench.store() as store:
        return find_rubbish(store, bench.root, **how)


def collect(bench: Bench, **how: Any) -> Rubbish:
    with bench.store() as store:
        found = find_rubbish(store, bench.root, **how)
        delete_rubbish(store, bench.root, found)
    return found


def kinds(found: Rubbish) -> list[str]:
    return [item.kind for item in found.items]


def checkpointing(job: dict[str, Any]) -> dict[str, Any]:
    """A worker whose first attempt at a generator is killed after a checkpoint and whose second goes on from it."""
    attempt = attempt_of(job)
    if not job["name"].startswith("generator"):
        return work(job)
    found = attempt.load_checkpoint()
    if found is None:
        attempt.append_metrics([{"step": 5, "loss": 9.0}])
        attempt.save_checkpoint(5, {"w": torch.zeros(100)}, {})
        attempt.output("half.bin").write_bytes(b"1" * 1000)
        write_log(attempt)
        return {"status": "failed", "failure_class": "crash", "message": "killed"}
    return work(job)


def consistent(bench: Bench) -> None:
    with bench.store() as store:
        assert check(store, bench.root, deep=True).findings == []


# --------------------------------------------------------------------------------------------- finding


def test_after_a_sweep_there_is_nothing_to_free(bench: Bench) -> None:
    bench.sweep(plan())
    assert look(bench) == Rubbish()


def test_looking_changes_nothing(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    before = everything(bench.root / "artifacts")
    assert kinds(look(bench)) == ["stage", "stage"]
    assert everything(bench.root / "artifacts") == before


def test_what_no_plan_asks_for_any_more_goes_and_the_rest_is_cached(bench: Bench) -> None:
    bench.sweep(plan())
    before = bench.table()
    bench.sweep(plan(**SMALLER))
    found = collect(bench)
    assert [(item.kind, item.why) for item in found.items] == [("stage", "no plan needs it")] * 2
    assert found.freed == found.bytes > 0
    assert not any("16x2" in str(path) for path in (bench.root / "artifacts").rglob("*"))
    assert not (bench.root / "artifacts" / ".trash").exists()
    with bench.store() as store:
        assert len(store.stages()) == 6
    consistent(bench)
    bench.sweep(plan(**SMALLER))
    assert bench.jobs == []
    bench.sweep(plan())
    assert len(bench.jobs) == 2
    assert list(bench.table()["loss"]) == list(before["loss"])


def test_a_stage_that_another_plan_needs_stays(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**OTHER))
    bench.sweep(plan(**SMALLER))
    assert look(bench) == Rubbish()


def test_plans_that_are_not_to_be_kept_go_with_what_only_they_need(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**OTHER))
    kept = bench.table("other")
    found = collect(bench, keep_plans=["other"])
    assert kinds(found) == ["plan", "stage", "stage"]
    assert {item.why for item in found.items[1:]} == {"only plan small needs it, which is not kept"}
    assert bench.table().equals(kept)
    consistent(bench)
    bench.sweep(plan(**OTHER))
    assert bench.jobs == []
    report = rebuild(bench.database, bench.root)
    assert report.counts["plans"] == 1
    assert bench.table().equals(kept)


def test_a_plan_to_keep_that_is_not_there_or_one_being_driven_is_refused(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**OTHER))
    with pytest.raises(StoreError, match="no plan mine to keep; recorded are: small, other"):
        look(bench, keep_plans=["mine"])
    me = owner()
    with bench.store() as store:
        store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))
    with pytest.raises(Locked):
        look(bench, keep_plans=["other"])
    assert look(bench, keep_plans=["small", "other"]) == Rubbish()


def test_attempts_behind_a_result_go_but_their_metrics_and_logs_stay_where_it_went_on_from_them(bench: Bench) -> None:
    bench.sweep(plan(), checkpointing)
    folder = bench.folder("generator", "16x1")
    curve = repr(read_stage_metrics(folder, 2))
    assert "9.0" in curve
    found = look(bench)
    assert kinds(found) == ["attempt"] * 2  # the scheduler itself deletes checkpoints
    assert found.bytes == 2000
    table = bench.table()
    collect(bench)
    assert repr(read_stage_metrics(folder, 2)) == curve
    first = Layout.attempt(folder, 1)
    assert sorted(path.name for path in first.iterdir()) == ["checkpoints", "metrics.jsonl", "worker.log"]
    consistent(bench)
    bench.sweep(plan())
    assert bench.jobs == []
    with bench.store() as store:
        before = content(store)
    for path in bench.root.glob("results.db*"):
        path.unlink()
    rebuild(bench.database, bench.root)
    with bench.store() as store:
        assert content(store)["metrics"] == before["metrics"]
    assert list(bench.table()["loss"]) == list(table["loss"])


def test_an_attempt_that_nothing_went_on_from_goes_whole(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x1"))
    bench.sweep(plan())
    folder = bench.folder("generator", "16x1")
    assert kinds(look(bench)) == ["attempt"]
    collect(bench)
    assert Layout.attempt_numbers(folder) == [2]
    with bench.store() as store:
        key = read_json(Layout.config(folder))["fingerprint"]
        first, second = store.attempts(key)
        assert (first.state, first.fields["log_path"]) == ("failed", None)
        assert second.fields["log_path"]
    consistent(bench)


def test_a_diverged_result_that_retry_set_aside_stays_and_a_damaged_one_goes(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x1"))
    bench.sweep(plan())
    first = Layout.attempt(bench.folder("generator", "16x1"), 1)
    Layout.withdrawn(first).write_text('{"status": "diverged"}')
    assert kinds(look(bench)) == []
    Layout.withdrawn(first).write_text('{"status": "done"}')
    assert kinds(look(bench)) == ["attempt"]


def test_checkpoints_of_a_stage_that_has_its_result_go_and_of_others_stay(bench: Bench) -> None:
    def save(job: dict[str, Any]) -> dict[str, Any]:
        attempt_of(job).save_checkpoint(5, {"w": torch.zeros(10)}, {})
        return failing("16x2")(job)

    bench.sweep(plan(), save)
    folder = bench.folder("tokenizer")
    write_json(Layout.checkpoints(folder, 1) / "step-00000009.safetensors", [1])
    failed = Layout.checkpoints(bench.folder("generator", "16x2"), 1)
    assert list(failed.iterdir())
    found = collect(bench)
    assert kinds(found) == ["checkpoints"]
    assert not Layout.checkpoints(folder, 1).exists()
    assert list(failed.iterdir())


def test_leftovers_of_killed_processes_go_once_nobody_can_be_writing_them(bench: Bench) -> None:
    bench.sweep(plan())
    base = bench.root / "artifacts"
    torn = bench.folder("tokenizer") / "attempts" / "0001" / ".tmp-7-abc"
    torn.write_bytes(b"1" * 50)
    begun = base / "tokens" / "x-0123456789ab"
    begun.mkdir()
    (begun / ".tmp-8-abc").write_bytes(b"1")
    trash = base / ".trash" / "0f" / "0" / "x-0123456789ab"
    trash.mkdir(parents=True)
    write_json(trash / "config.json", {})
    assert kinds(look(bench)) == ["trash"]
    found = look(bench, now=time.time() + 4000)
    assert sorted(kinds(found)) == ["leftover", "leftover", "trash"]
    with bench.store() as store:
        delete_rubbish(store, bench.root, found)
    assert not torn.exists()
    assert not begun.exists()
    assert not (base / ".trash").exists()
    consistent(bench)


def test_only_what_has_not_changed_for_so_long_goes(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x1"))
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    assert look(bench, older_than=1).items == []
    assert sorted(kinds(look(bench, older_than=1, now=time.time() + 2 * 86400))) == ["attempt", "stage", "stage"]
    found = look(bench, older_than=1, keep_plans=["small"])
    assert found.items == []
    bench.sweep(plan(**OTHER))
    assert look(bench, older_than=1, keep_plans=["other"]).kept == ["plan small: swept too lately"]


# --------------------------------------------------------------------------------------------- sparing


def test_a_stage_that_the_database_does_not_know_is_never_touched(bench: Bench) -> None:
    bench.sweep(plan())
    for path in bench.root.glob("results.db*"):
        path.unlink()
    bench.sweep(plan(**SMALLER))
    before = everything(bench.root / "artifacts")
    found = collect(bench)
    assert found.items == []
    assert "2 stages (" in found.kept[0]
    assert everything(bench.root / "artifacts") == before


def test_a_stage_that_a_worker_writes_is_never_touched(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    folder = bench.folder("generator", "16x2")
    grant_lease(folder, 2, "token")
    attempt = AttemptFolder(folder, 2, "token")
    me = owner()
    attempt.heartbeat({"host": me.host, "boot_id": me.boot_id})
    found = look(bench)
    assert [item.what for item in found.items] == [one.what for one in found.items if "evaluation" in one.what]
    assert "1 stages being made now" in found.kept
    write_json(
        Layout.heartbeat(folder, 2), {"pid": 2**22 + 1, "time": time.time(), "host": me.host, "boot_id": me.boot_id}
    )
    assert kinds(look(bench)) == ["stage", "stage"]


def test_a_stage_that_a_live_driver_claimed_is_never_touched(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    key = read_json(Layout.config(bench.folder("generator", "16x2")))["fingerprint"]
    with bench.store() as store:
        store.acquire_driver("third")
        assert store.begin_attempt(key, force=True)
    assert len(look(bench).items) == 1


def test_what_came_to_be_needed_between_looking_and_deleting_stays(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    found = look(bench)
    bench.sweep(plan())
    before = everything(bench.root / "artifacts")
    with bench.store() as store:
        delete_rubbish(store, bench.root, found)
    assert (found.items, found.freed) == ([], 0)
    assert all(line.endswith("a plan needs it now") for line in found.kept)
    assert everything(bench.root / "artifacts") == before


def test_what_lies_behind_a_link_is_named_and_left(bench: Bench, tmp_path: Path) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    folder = bench.folder("generator", "16x2")
    elsewhere = tmp_path / "disk"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    before = everything(elsewhere)
    found = collect(bench)
    assert len(found.items) == 1
    assert found.kept == [f"{folder}: reached through a link, so it is not touched"]
    assert everything(elsewhere) == before
    assert folder.is_symlink()


def test_imports_are_never_touched(bench: Bench) -> None:
    bench.sweep(plan())
    folder = bench.root / "artifacts" / "imports" / "theirs" / "0123"
    folder.mkdir(parents=True)
    (folder / ".tmp-1-a").write_bytes(b"1")
    assert look(bench, now=time.time() + 1e7) == Rubbish()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from(["16x1", "16x2", "16x3"]), min_size=1, max_size=3, unique=True),
    fails=st.sampled_from(["16x1", "16x2", "none"]),
    keep=st.booleans(),
)
def test_after_gc_the_same_sweeps_find_all_cached_and_the_table_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[str], fails: str, keep: bool
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        bench = Bench(tmp_path_factory.mktemp("gc"), monkeypatch)
        first = plan(**{"[16x1, 16x2]": "[16x1, 16x2, 16x3]"})
        bench.sweep(first, failing(fails))
        bench.sweep(first, checkpointing)
        last = plan(**{"[16x1, 16x2]": f"[{', '.join(sizes)}]"})
        bench.sweep(last)
        other = plan(**OTHER)
        if keep:
            bench.sweep(other)
        table = bench.table()
        collect(bench)
        assert bench.table().equals(table)
        consistent(bench)
        for one in [last, other] if keep else [last]:
            bench.sweep(one)
            assert bench.jobs == []
        assert look(bench).items == []


# --------------------------------------------------------------------------------------------- killed


def test_a_gc_that_is_killed_while_deleting_leaves_trash_that_the_next_one_takes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    monkeypatch.setattr(collecting.shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect(bench)
    monkeypatch.undo()
    assert list(Layout(bench.root).stages()) == [
        path for path in Layout(bench.root).stages() if ".trash" not in str(path)
    ]
    consistent(bench)
    found = collect(bench)
    assert sorted(kinds(found)) == ["stage", "trash"]
    assert not (bench.root / "artifacts" / ".trash").exists()


def test_where_the_database_refuses_the_files_go_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    found = look(bench)
    before = sorted(map(str, (bench.root / "artifacts").rglob("*")))
    rename, calls = Path.rename, []

    def fail_after(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        calls.append(self)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return moved

    monkeypatch.setattr(Path, "rename", fail_after)
    with bench.store() as store, pytest.raises(OSError, match="No space"):
        delete_rubbish(store, bench.root, found)
    monkeypatch.undo()
    with bench.store() as store:
        assert len(store.stages()) == 8
    after = sorted(map(str, (bench.root / "artifacts").rglob("*")))
    assert [path for path in after if not path.endswith(".trash")] == before
    consistent(bench)


def test_a_damaged_record_of_where_an_attempt_went_on_from_keeps_all(bench: Bench) -> None:
    bench.sweep(plan(), checkpointing)
    folder = bench.folder("generator", "16x1")
    Layout.resumed(folder, 2).write_text("{")
    with pytest.raises(CorruptArtifact):
        collecting.lineage(folder, 2)
    found = look(bench)
    assert len(found.items) == 1
    assert str(folder) in found.kept[0]


# --------------------------------------------------------------------------------------------- shown


def test_the_table_says_what_why_how_much_and_the_total(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**SMALLER))
    found = look(bench)
    lines = render_rubbish(found, deleted=False).splitlines()
    assert lines[0].split() == ["what", "why", "bytes"]
    assert len(lines) == 4
    assert lines[1].startswith("stage  ")
    assert lines[-1] == f"total {size_text(found.bytes)}; a dry run, nothing was deleted: scaling gc --yes deletes it"
    assert render_rubbish(Rubbish(), deleted=True) == "nothing to free"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_written_as_people_say_them(count: float, text: str) -> None:
    assert size_text(count) == text
