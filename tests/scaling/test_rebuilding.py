"""The database made again from the files: the same digits, what is damaged left out, the old one kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pretended_sweep import Bench, attempt_of, content, everything, failing, plan, work, write_log

from scaling import rebuilding
from scaling.artifacts import Layout, write_json
from scaling.importing import prepare
from scaling.kept_imports import keep
from scaling.kept_plans import read_plan
from scaling.plan import PlanError
from scaling.provenance import Owner, owner
from scaling.rebuilding import Rebuilt, rebuild
from scaling.store import Locked, Store, StoreError

MORE = {"[16x1, 16x2]": "[16x1, 16x2, 16x3]"}


@pytest.fixture
def bench(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(weird_tmp_path, monkeypatch)


def lose(bench: Bench) -> None:
    """Delete the database as if it had never been."""
    for path in bench.root.glob("results.db*"):
        path.unlink()


def again(bench: Bench, *plans: str, **how: Any) -> Rebuilt:
    return rebuild(bench.database, bench.root, plans, **how)


def same(one: pd.DataFrame, other: pd.DataFrame, *, but: tuple[str, ...] = ()) -> None:
    pd.testing.assert_frame_equal(one.drop(columns=list(but)), other.drop(columns=list(but)), check_exact=True)


def add_import(bench: Bench, text: str = "N,D,loss\n1000,20000,3.5\n2000,40000,nan\n", **how: Any) -> None:
    path = bench.root / "theirs.csv"
    path.write_text(text)
    with Store.open(bench.database, create=True) as store:
        keep(store, prepare(path, "theirs"), bench.root, replace=how.get("replace", False))
    path.unlink()


# ------------------------------------------------------------------------------------------ same digits


def test_with_the_old_database_at_hand_everything_is_as_before(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x2"))
    bench.sweep(plan(**{"plan: small": "plan: other", **MORE}))
    bench.sweep(plan(), failing("16x2"))
    add_import(bench)
    with bench.store() as store:
        store.save_fit(plan="small", metric="fid", protocol="p", options={"a": 1}, points=[1.5], result={"e": 2})
        before, fits, table = content(store), store.fits(), store.load_runs()
        attempts = {key: store.attempts(key) for key in store.stages()}
    report = again(bench)
    with bench.store() as store:
        assert content(store) == before
        assert store.fits() == fits
        assert {key: store.attempts(key) for key in store.stages()} == attempts
        same(store.load_runs(), table)
    assert report.left_out == []
    assert report.kept_as == f"{bench.path}.old-1"
    assert report.lost == ["drivers: no lease is restored; a sweep takes its own"]


def test_from_the_files_alone_the_table_is_the_same_digit_for_digit(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x2"))
    bench.sweep(plan(**{"plan: small": "plan: another", **MORE}))
    add_import(bench)
    with bench.store() as store:
        before, table = content(store), store.load_runs()
    lose(bench)
    report = again(bench)
    with bench.store() as store:
        after = content(store)
        same(store.load_runs(), table, but=("finished",))
        finished = (store.load_runs()["finished"] - table["finished"]).abs().max()
    assert finished < 5.0
    for part in ("plans", "runs", "summaries", "metrics", "artifacts", "imports"):
        assert after[part] == before[part], part
    for key, row in before["all"].items():
        new = after["all"][key]
        changed = {name for name in vars(row) if getattr(row, name) != getattr(new, name)}
        assert changed <= {"updated"}, (row, new)
    assert list(after["all"]) == list(before["all"])
    assert report.kept_as is None
    assert report.counts["plans"] == 2
    assert "fits: no file holds them; run scaling fit again" in report.lost


def test_a_failed_stage_is_failed_again_with_its_message_and_the_next_sweep_tries_it(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x2"))
    lose(bench)
    again(bench)
    with bench.store() as store:
        failed = [row for row in store.stages().values() if row.state == "failed"]
        assert {row.message for row in failed} == {"ValueError: no luck"}
        (attempt,) = store.attempts(failed[0].fingerprint)
    assert (attempt.state, attempt.message, attempt.ended) == (
        "failed",
        "ValueError: no luck",
        time.mktime((2025, 1, 2, 3, 4, 9, 0, 0, -1)) + 0.5,
    )
    assert attempt.started == time.mktime((2025, 1, 2, 3, 4, 5, 0, 0, -1)) + 0.25
    assert bench.sweep(plan()).counts == {"done": 8}
    assert {name.split()[0] for name in bench.jobs} == {"generator", "evaluation"}


def test_attempts_come_back_as_far_as_their_files_tell(bench: Bench) -> None:
    killed = []

    def die_once(job: dict[str, Any]) -> dict[str, Any]:
        if job["name"].startswith("tokenizer") and not killed:
            killed.append(job)
            attempt_of(job).append_metrics([{"step": 10, "loss": 1.0}])
            write_log(attempt_of(job))
            return {"status": "failed", "failure_class": "crash", "message": "worker died"}
        return work(job)

    bench.sweep(plan(), die_once)
    with bench.store() as store:
        before = store.attempts(killed[0]["fingerprint"])
    lose(bench)
    report = again(bench)
    with bench.store() as store:
        first, second = store.attempts(killed[0]["fingerprint"])
        assert store.stages()[killed[0]["fingerprint"]].attempt == 2
    assert (first.state, first.failure_class, first.message) == ("lost", "driver_lost", "no file says how it ended")
    assert (second.state, second.token, second.fields["seed"]) == ("done", before[1].token, before[1].fields["seed"])
    assert second.owner == Owner("here", os.getpid(), "boot")
    assert second.fields["log_path"].endswith("worker.log")
    assert "1 attempts left nothing that says how they ended" in report.lost


def test_after_a_rebuild_the_same_sweep_finds_all_cached(bench: Bench) -> None:
    bench.sweep(plan())
    lose(bench)
    again(bench)
    assert bench.sweep(plan()).counts == {"done": 8}
    assert bench.jobs == []


# ------------------------------------------------------------------------------------------------ plans


def test_a_sweep_keeps_its_plan_s_text_and_what_it_recorded(bench: Bench) -> None:
    bench.sweep(plan())
    (text,) = Layout(bench.root).plan_texts()
    assert text.name == f"small-{plan().sha256[:12]}.yaml"
    assert text.read_text() == plan().text
    kept = read_plan(text)
    with bench.store() as store:
        row = store.plan("small")
        assert row is not None
        assert vars(kept.row) == {**vars(row), "id": 0}
        assert list(kept.runs) == store.runs(row.id)


def test_of_several_texts_of_a_plan_the_one_swept_last_counts(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**MORE))
    bench.sweep(plan())
    assert len(list(Layout(bench.root).plan_texts())) == 2
    table = bench.table()
    lose(bench)
    report = again(bench)
    same(bench.table(), table, but=("finished",))
    assert len(table) == 2
    assert any("2 stages on disk are in no plan" in line for line in report.lost)
    with bench.store() as store:
        assert len(store.stages()) == 10


def test_without_its_plan_a_stage_is_restored_and_the_plan_s_file_brings_its_rows(bench: Bench, tmp_path: Path) -> None:
    bench.sweep(plan())
    table = bench.table()
    shutil.rmtree(bench.root / "artifacts" / "plans")
    lose(bench)
    report = again(bench)
    with bench.store() as store:
        assert len(store.stages()) == 8
        assert store.plans() == []
    assert any("8 stages on disk are in no plan that is known" in line for line in report.lost)
    file = tmp_path / "plan.yaml"
    file.write_text(plan().text)
    again(bench, str(file))
    same(bench.table(), table, but=("finished",))
    assert not (bench.root / "artifacts" / "plans").exists()


def test_a_plan_s_text_without_its_record_is_read_again(bench: Bench) -> None:
    bench.sweep(plan())
    table = bench.table()
    (text,) = Layout(bench.root).plan_texts()
    Layout.plan_mark(text).write_text("{")
    lose(bench)
    report = again(bench)
    same(bench.table(), table, but=("finished",))
    assert len(report.left_out) == 1
    assert text.with_suffix(".json").name in report.left_out[0]


def test_a_plan_s_text_that_cannot_be_read_here_is_named_and_left_out(bench: Bench) -> None:
    bench.sweep(plan())
    (text,) = Layout(bench.root).plan_texts()
    Layout.plan_mark(text).unlink()
    text.write_text(plan().text.replace("extends: tiny@1", "extends: tiny@9"))
    lose(bench)
    (line,) = again(bench).left_out
    assert line.startswith(f"{text}: not readable as a plan here (")
    assert "\n" not in line.replace(str(text), "")


def test_a_given_plan_goes_before_what_is_kept(bench: Bench, tmp_path: Path) -> None:
    bench.sweep(plan())
    file = tmp_path / "plan.yaml"
    file.write_text(plan(**MORE).text)
    with bench.store() as store:
        before = store.plans()[0]
    again(bench, str(file))
    with bench.store() as store:
        after = store.plans()[0]
    assert (after.created, after.text) == (before.created, plan(**MORE).text)
    assert list(bench.table()["state"]) == ["done", "done", "pending"]


def test_a_given_plan_that_is_wrong_stops_before_anything_is_written(bench: Bench, tmp_path: Path) -> None:
    bench.sweep(plan())
    before = everything(bench.root)
    with pytest.raises(PlanError):
        again(bench, str(tmp_path / "none.yaml"))
    assert everything(bench.root) == before


# ----------------------------------------------------------------------------------------------- damage


def test_damaged_stages_are_named_left_out_counted_and_made_again(bench: Bench) -> None:
    bench.sweep(plan())
    wrong, torn = bench.folder("generator", "16x1"), bench.folder("generator", "16x2")
    data = (Layout.output(wrong, 1) / "result.bin").read_bytes()
    (Layout.output(wrong, 1) / "result.bin").write_bytes(data[::-1])
    Layout.result(torn).write_text('{"attempt": 1, ')
    half = bench.root / "artifacts" / "tokenizer" / "half-0123456789ab"
    half.mkdir()
    lose(bench)
    report = again(bench)
    assert report.counts["left out"] == len(report.left_out) == 3
    named = "\n".join(report.left_out)
    assert "SHA-256 differs" in named
    assert "not readable as JSON" in named
    assert f"{half}: half-written" in named
    assert report.counts["stages pending"] == 2
    assert list(bench.table()["state"]) == ["pending", "pending"]
    with bench.store() as store:
        assert not any(store.summary(k) for k, row in store.stages().items() if row.state == "pending")


def test_a_result_that_cannot_be_recorded_leaves_nothing_of_itself(bench: Bench) -> None:
    bench.sweep(plan())
    folder = bench.folder("tokenizer")
    with open(Layout.metrics(folder, 1), "a") as file:
        file.write('{"step": 40, "loss": "text"}\n')
    lose(bench)
    (line,) = again(bench).left_out
    assert "cannot be recorded" in line
    with bench.store() as store:
        (row,) = [one for one in store.stages().values() if one.kind == "tokenizer"]
        assert row.state == "pending"
        assert not store.summary(row.fingerprint)
        assert not store.artifacts(row.fingerprint)


def test_a_config_that_is_not_what_it_says_is_left_out(bench: Bench) -> None:
    bench.sweep(plan())
    path = Layout.config(bench.folder("tokenizer"))
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    (line,) = again(bench).left_out[:1]
    assert "is not what its fingerprint says" in line


def test_a_result_whose_folder_is_gone_is_named_with_the_old_database_at_hand(bench: Bench) -> None:
    bench.sweep(plan())
    shutil.rmtree(bench.folder("generator", "16x1"))
    (line,) = again(bench).left_out
    assert line.endswith("was done, its folder is gone; sweep it again")


def test_what_finished_unseen_is_left_to_the_next_sweep(bench: Bench) -> None:
    bench.sweep(plan())
    Layout.result(bench.folder("tokenizer")).unlink()
    before = everything(bench.root / "artifacts")
    report = again(bench)
    assert any("finished, but never made a result" in line for line in report.notes)
    assert everything(bench.root / "artifacts") == before
    assert bench.sweep(plan()).counts == {"done": 8}
    assert bench.jobs == []


# ---------------------------------------------------------------------------------------------- imports


def test_an_import_that_was_replaced_comes_back_as_it_was_last(bench: Bench) -> None:
    add_import(bench)
    add_import(bench, "N,D,loss\n5,6,7.25\n", replace=True)
    table = bench.table("theirs")
    lose(bench)
    assert again(bench).counts["imports"] == 1
    same(bench.table("theirs"), table)


def test_a_damaged_import_is_left_out_and_without_a_copy_the_old_rows_serve(bench: Bench) -> None:
    add_import(bench)
    table = bench.table("theirs")
    shutil.copy(bench.path, bench.root / "saved")
    (folder,) = Layout(bench.root).imports()
    (folder / "source.csv").write_text("N,D,loss\n1,2,3\n")
    lose(bench)
    report = again(bench)
    assert "SHA-256 differs" in report.left_out[0]
    assert report.counts.get("imports") is None
    shutil.copy(bench.root / "saved", bench.path)
    report = again(bench)
    same(bench.table("theirs"), table)
    assert any("its rows are the old database's" in line for line in report.notes)


# ---------------------------------------------------------------------------------------- the old database


def test_a_dry_run_tells_the_same_and_writes_nothing(bench: Bench) -> None:
    bench.sweep(plan())
    before = everything(bench.root)
    report = again(bench, dry_run=True)
    assert everything(bench.root) == before
    real = again(bench)
    assert (report.counts, report.notes, report.left_out, report.lost) == (
        real.counts,
        real.notes,
        real.left_out,
        real.lost,
    )


def test_the_old_database_keeps_its_bytes_under_a_number_of_its_own(bench: Bench) -> None:
    bench.sweep(plan())
    data = bench.path.read_bytes()
    assert again(bench).kept_as == f"{bench.path}.old-1"
    assert again(bench).kept_as == f"{bench.path}.old-2"
    assert (bench.root / "results.db.old-1").read_bytes() == data
    names = sorted(path.name for path in bench.root.iterdir())
    assert names == ["artifacts", "results.db", "results.db.old-1", "results.db.old-2"]


def test_the_log_of_a_killed_driver_goes_with_its_database(bench: Bench) -> None:
    bench.sweep(plan())
    holder = sqlite3.connect(bench.path)
    holder.execute("PRAGMA wal_autocheckpoint=0")
    holder.execute("INSERT INTO fits VALUES (9, 1.0, 'small', 'fid', 'p', '{}', '[]', '{}')")
    holder.commit()
    shutil.copy(bench.path, bench.root / "a")
    shutil.copy(f"{bench.path}-wal", bench.root / "a-wal")
    holder.close()
    (bench.root / "a").replace(bench.path)
    (bench.root / "a-wal").replace(f"{bench.path}-wal")
    report = again(bench)
    assert report.counts["fits"] == 1
    assert Path(f"{report.kept_as}-wal").exists()
    assert not Path(f"{bench.path}-wal").exists()
    with bench.store() as store:
        assert [fit.id for fit in store.fits()] == [9]


def test_while_a_driver_lives_nothing_is_rebuilt(bench: Bench) -> None:
    bench.sweep(plan())
    me = owner()
    with bench.store() as store:
        store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))
    before = everything(bench.root / "artifacts")
    with pytest.raises(Locked, match="plan small has driver process"):
        again(bench)
    assert everything(bench.root / "artifacts") == before
    assert not list(bench.root.glob("results.db.*"))
    with bench.store() as store:
        dead = Owner(me.host, 2**22 + 1, me.boot_id)
        store.release_driver(store.acquire_driver("small", now=time.time() + 1e4))
        store.acquire_driver("small", owner=dead)
    assert again(bench).kept_as


def test_a_driver_that_came_meanwhile_stops_the_rebuild_before_the_swap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sweep(plan())
    found = rebuilding.stage_folders

    def begin(layout: Layout) -> Any:
        me = owner()
        with bench.store() as store:
            store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))
        return found(layout)

    monkeypatch.setattr(rebuilding, "stage_folders", begin)
    with pytest.raises(Locked):
        again(bench)
    assert not list(bench.root.glob("results.db.*"))


def test_a_rebuild_that_breaks_leaves_the_old_database_in_place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sweep(plan())
    before = everything(bench.root)

    def break_down(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(rebuilding.Restorer, "_fits", break_down)
    with pytest.raises(RuntimeError, match="power cut"):
        again(bench)
    after = everything(bench.root)
    before.pop(str(bench.root))
    after.pop(str(bench.root))
    assert after == before


def test_a_database_that_cannot_be_read_is_kept_and_the_files_serve(bench: Bench) -> None:
    bench.sweep(plan())
    table = bench.table()
    lose(bench)
    bench.path.write_text("not a database at all, and long enough for a header" * 30)
    report = again(bench)
    assert any("the old database cannot be read" in line for line in report.notes)
    assert report.kept_as == f"{bench.path}.old-1"
    same(bench.table(), table, but=("finished",))


def test_a_newer_database_is_not_rebuilt(bench: Bench) -> None:
    bench.sweep(plan())
    raw = sqlite3.connect(bench.path)
    raw.execute("UPDATE scaling_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(StoreError, match="made by a newer scaling"):
        again(bench)


def test_what_cannot_be_rebuilt_is_refused_in_a_line(bench: Bench) -> None:
    with pytest.raises(StoreError, match="has no folder artifacts; say with --from"):
        again(bench)
    with pytest.raises(StoreError, match="give a path with --db, not a URL"):
        rebuild("postgresql://a/b", bench.root)
    (bench.root / "artifacts").mkdir()
    with pytest.raises(StoreError, match="is not a file"):
        rebuild(str(bench.root), bench.root)
    write_json(bench.root / "artifacts" / "tokenizer" / "x-0" / "config.json", [1])
    assert len(again(bench).left_out) == 1


def test_what_a_dead_driver_left_running_is_lost_and_to_be_done(bench: Bench) -> None:
    bench.sweep(plan(), failing("16x2"))
    me = owner()
    with bench.store() as store:
        key = next(key for key, row in store.stages().items() if row.state == "failed")
        assert store.begin_attempt(key, owner=Owner(me.host, 2**22 + 1, me.boot_id), now=123.0)
    again(bench)
    with bench.store() as store:
        first, second = store.attempts(key)
        row = store.stages()[key]
        assert store.running_attempts() == []
    assert (first.state, second.state, second.failure_class, second.started) == ("failed", "lost", "driver_lost", 123.0)
    assert (row.state, row.attempt) == ("pending", 2)


def test_an_old_database_of_the_first_version_serves_as_well(bench: Bench) -> None:
    shutil.copy(Path(__file__).parent / "databases" / "0001.db", bench.path)
    (bench.root / "artifacts").mkdir()
    report = again(bench)
    assert [line.rpartition(": ")[2] for line in report.left_out] == [
        "was done, its folder is gone; sweep it again"
    ] * 2
    with bench.store() as store:
        assert [plan.name for plan in store.plans()] == ["old"]
        assert [fit.id for fit in store.fits()] == [1]
        assert [one.state for one in store.attempts("b" * 64)] == ["failed", "done"]
    assert list(bench.table()["state"]) == ["pending"]
