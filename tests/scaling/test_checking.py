"""What the check finds: each thing that is wrong is named once, with what to do, and doing it mends it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from pretended_sweep import Bench, everything, failing, plan

from scaling.artifacts import Layout, grant_lease, read_json, write_json
from scaling.checking import Checked, check, render_check
from scaling.importing import prepare
from scaling.kept_imports import keep
from scaling.provenance import owner
from scaling.rebuilding import rebuild
from scaling.store import Store


@pytest.fixture
def bench(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(weird_tmp_path, monkeypatch)
    bench.sweep(plan(), failing("16x2"))
    return bench


def look(bench: Bench, *, deep: bool = False) -> Checked:
    with Store.open(bench.path, create=False, readonly=True) as store:
        return check(store, bench.root, deep=deep)


def found(bench: Bench, *, deep: bool = False) -> tuple[str, str, str]:
    """The only finding."""
    (one,) = look(bench, deep=deep).findings
    assert "\n" not in one.what + one.todo
    return one.where, one.what, one.todo


def set_value(bench: Bench, statement: str) -> None:
    raw = sqlite3.connect(bench.path)
    raw.execute(statement)
    raw.commit()
    raw.close()


@pytest.mark.parametrize("deep", [False, True])
def test_after_a_sweep_nothing_is_wrong_and_looking_changes_nothing(bench: Bench, deep: bool) -> None:
    before = everything(bench.root)
    done = look(bench, deep=deep)
    assert (done.findings, done.stages, done.results, done.files, done.skipped) == ([], 8, 6, 6, 0)
    assert render_check(done).endswith("nothing is wrong")
    assert everything(bench.root) == before


def test_a_result_that_is_gone_is_to_be_made_again(bench: Bench) -> None:
    folder = bench.folder("tokenizer")
    shutil.rmtree(folder)
    assert found(bench) == (
        str(folder),
        "the database has its result (done), but there is no such folder",
        "scaling sweep PLAN makes it again",
    )
    bench.sweep(plan())
    assert look(bench).findings == []


def test_a_file_of_another_size_is_found_and_one_of_other_bytes_only_deep(bench: Bench) -> None:
    path = Layout.output(bench.folder("generator", "16x1"), 1) / "result.bin"
    data = path.read_bytes()
    path.write_bytes(data[::-1])
    assert look(bench).findings == []
    where, what, todo = found(bench, deep=True)
    assert (where, what) == (str(path), "SHA-256 differs from the recorded one")
    assert todo == "delete the stage's result.json and run the sweep again"
    Layout.result(bench.folder("generator", "16x1")).unlink()
    path.write_bytes(data + b"1")
    (Layout.output(bench.folder("tokenizer"), 1) / "result.bin").unlink()
    findings = look(bench).findings
    assert sorted(one.what.split(",")[0] for one in findings) == ["missing", "missing"]


def test_a_commit_mark_that_is_no_json_is_found(bench: Bench) -> None:
    path = Layout.result(bench.folder("tokenizer"))
    path.write_text("{")
    where, what, todo = found(bench)
    assert (where, todo) == (str(path), "delete it and run the sweep again")
    assert "not readable as JSON" in what


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE summaries SET value = 1 WHERE name = 'loss' AND stage IN ({})", "its numbers are not those"),
        ("DELETE FROM summaries WHERE name = 'usage' AND stage IN ({})", "its numbers are not those"),
        ("UPDATE artifacts SET bytes = 1 WHERE stage IN ({})", "its files or their checksums are not those"),
        ("UPDATE stages SET state = 'diverged' WHERE fingerprint IN ({})", "says done, the database diverged"),
        ("UPDATE stages SET state = 'pending' WHERE fingerprint IN ({})", "a result (done) that the database has as"),
    ],
)
def test_a_database_that_says_otherwise_than_the_files_is_to_be_rebuilt(
    bench: Bench, statement: str, what: str
) -> None:
    set_value(bench, statement.format("SELECT fingerprint FROM stages WHERE kind = 'tokenizer'"))
    where, said, todo = found(bench)
    assert where == str(Layout.result(bench.folder("tokenizer")))
    assert said.startswith(what)
    assert todo == "scaling db rebuild takes it from the files"
    rebuild(bench.database, bench.root)
    assert look(bench).findings == []


def test_a_stage_that_the_database_does_not_know_is_found(bench: Bench) -> None:
    before = look(bench).stages
    key = read_json(Layout.config(bench.folder("features")))["fingerprint"]
    for table, column in (
        *(("plan_stages", "stage"), ("summaries", "stage"), ("metrics", "stage"), ("artifacts", "stage")),
        *(("attempts", "stage"), ("edges", "parent"), ("stages", "fingerprint")),
    ):
        set_value(bench, f"DELETE FROM {table} WHERE {column} = '{key}'")
    assert found(bench)[1:] == (
        "a stage that the database does not know",
        "scaling db rebuild takes it from the files",
    )
    rebuild(bench.database, bench.root)
    assert look(bench).findings == []
    assert look(bench).stages == before


def test_a_half_written_folder_is_found(bench: Bench) -> None:
    folder = bench.root / "artifacts" / "tokens" / "x-0123456789ab"
    folder.mkdir()
    assert found(bench) == (str(folder), "half-written, it has no config.json", "delete the folder")


def test_a_row_that_names_what_is_not_there_is_found(bench: Bench) -> None:
    set_value(bench, "UPDATE edges SET parent = 'nothing' WHERE rowid = 1")
    where, what, todo = found(bench)
    assert where == str(bench.path)
    assert what == "edges, row 1: names a row of stages that is not there"
    assert "rebuild" in todo
    rebuild(bench.database, bench.root)
    assert look(bench).findings == []


def test_a_damaged_database_is_said_to_be_so_and_the_files_are_not_suspected(bench: Bench) -> None:
    raw = sqlite3.connect(bench.path)
    (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_attempts_state'").fetchone()
    (size,) = raw.execute("PRAGMA page_size").fetchone()
    raw.close()
    data = bytearray(bench.path.read_bytes())
    start = (page - 1) * size + size // 2
    data[start : start + size // 2] = bytes(size // 2)
    bench.path.write_bytes(bytes(data))
    findings = look(bench).findings
    assert findings
    assert all(one.what.startswith("integrity: ") for one in findings)
    assert all("scaling db rebuild" in one.todo for one in findings)


def test_imports_without_their_copy_and_copies_without_their_import_are_found(bench: Bench) -> None:
    path = bench.root / "theirs.csv"
    path.write_text("N,D,loss\n1000,20000,3.5\n")
    with bench.store() as store:
        folder = keep(store, prepare(path, "theirs"), bench.root, replace=False)
    assert look(bench, deep=True).findings == []
    assert look(bench).imports == 1
    (folder / "source.csv").write_text("N,D,loss\n1,2,3\n")
    assert found(bench, deep=True)[2] == "import the original again"
    shutil.rmtree(folder)
    assert "its copy of theirs.csv is missing" in found(bench)[1]
    with bench.store() as store:
        keep(store, prepare(path, "theirs"), bench.root, replace=True)
    set_value(bench, "DELETE FROM imported_rows")
    set_value(bench, "DELETE FROM imports")
    assert found(bench)[1] == "an import that the database does not know"


def test_a_stage_that_is_being_made_is_left_out(bench: Bench) -> None:
    folder, me = bench.folder("tokenizer"), owner()
    Layout.result(folder).unlink()
    grant_lease(folder, 2, "token")
    beat = {"pid": os.getpid(), "time": time.time(), "host": me.host, "boot_id": me.boot_id}
    write_json(Layout.heartbeat(folder, 2), beat)
    done = look(bench)
    assert (done.findings, done.skipped) == ([], 1)
    assert "1 being made now and left out" in render_check(done)
    write_json(Layout.heartbeat(folder, 2), beat | {"time": time.time() - 3600})
    assert "missing" in found(bench)[1]
