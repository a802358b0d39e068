"""Imported tables in the store, on disk, and through the command: kept whole or not at all, and read like plans."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Command

from scaling import cli, kept_imports
from scaling.files import CorruptArtifact, read_json, write_json
from scaling.importing import prepare
from scaling.kept_imports import keep, read_import
from scaling.layout import Layout
from scaling.schema import HEAD
from scaling.store import NoResults, RunRecord, StageRecord, Store, StoreError

TABLE = "N,D,loss,note\n1000,20000,3.5,a\n2000,40000,nan,\n"
COLUMNS = {"run": ["a", "b"], "state": ["done", "done"], "loss": [3.5, None], "params": [1, 2], "note": ["x", None]}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "results.db", create=True) as store:
        yield store


def add_plan(store: Store, name: str = "mine") -> None:
    key = name[0] * 64
    number = store.record_plan(name, "a" * 64, "", {}, {})
    store.record_stages(number, [StageRecord(key, "generator", "g", {}, 1)])
    store.record_runs(number, [RunRecord("r", {"arm": "base", "params": 7}, {"generator": key})])
    store.record_result(key, "done", 1, {}, {"loss": 2.5}, [])


def add_import(store: Store, name: str = "theirs", **more: Any) -> int:
    return store.record_import(name, "b" * 64, "t.csv", {"params": "N"}, {"sets": []}, COLUMNS, **more)


# ----------------------------------------------------------------------------------------------- store


def test_an_import_is_loaded_as_a_plan_is(store: Store) -> None:
    add_import(store)
    table = store.load_runs("theirs")
    assert list(table.columns) == ["plan", "run", "state", "loss", "params", "note"]
    assert list(table["plan"]) == ["theirs"] * 2
    assert table["params"].dtype == np.int64
    assert table["loss"].iloc[0] == 3.5
    assert math.isnan(table["loss"].iloc[1])
    assert pd.isna(table["note"].iloc[1])


def test_plans_and_imports_stand_in_one_table_the_plans_first(store: Store) -> None:
    add_import(store)
    add_plan(store)
    add_import(store, "others")
    table = store.load_runs()
    assert list(table["plan"]) == ["mine", "theirs", "theirs", "others", "others"]
    assert list(table["params"]) == [7, 1, 2, 1, 2]
    assert list(table["arm"].isna()) == [False, True, True, True, True]
    assert list(store.load_runs("mine")["plan"]) == ["mine"]
    with pytest.raises(StoreError, match="no plan other; recorded are: mine, theirs, others"):
        store.load_runs("other")


def test_an_import_is_listed_with_how_it_was_read(store: Store) -> None:
    number = add_import(store, created=5.0)
    (row,) = store.imports()
    assert (row.id, row.name, row.created, row.sha256, row.file) == (number, "theirs", 5.0, "b" * 64, "t.csv")
    assert row.mapping == {"params": "N"}
    assert row.options == {"sets": [], "columns": list(COLUMNS), "rows": 2}


def test_values_that_are_not_finite_and_texts_with_marks_survive(store: Store) -> None:
    columns = {"run": ["$float", 'a",["'], "state": ["done"] * 2, "x": [math.inf, -math.inf], "y": ["ü", "1"]}
    store.record_import("odd", "b" * 64, "t.csv", {}, {}, columns)
    table = store.load_runs("odd")
    assert {name: list(table[name]) for name in columns} == columns


def test_a_name_is_a_plan_s_or_an_import_s(store: Store) -> None:
    add_plan(store)
    with pytest.raises(StoreError, match="mine is the name of a plan"):
        add_import(store, "mine", replace=True)
    add_import(store)
    with pytest.raises(StoreError, match=r"there is an import theirs \(t.csv, 2 rows, .*\); --replace takes its place"):
        add_import(store)
    with pytest.raises(StoreError, match="theirs is the name of an import; give the plan another"):
        add_plan(store, "theirs")
    assert len(store.load_runs()) == 3


def test_an_import_that_is_replaced_keeps_its_place_and_none_of_its_rows(store: Store) -> None:
    first = add_import(store)
    add_import(store, "others")
    columns = {"run": ["c"], "state": ["done"], "gfid": [9.0]}
    assert store.record_import("theirs", "c" * 64, "u.csv", {}, {}, columns, replace=True) == first
    assert [(row.name, row.sha256) for row in store.imports()] == [("theirs", "c" * 64), ("others", "b" * 64)]
    assert store.load_runs("theirs").to_dict("records") == [
        {"plan": "theirs", "run": "c", "state": "done", "gfid": 9.0}
    ]


def test_an_import_is_part_of_the_transaction_around_it(store: Store) -> None:
    def write_and_fail() -> None:
        with store.transaction():
            add_import(store)
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        write_and_fail()
    assert store.imports() == []
    with pytest.raises(StoreError, match="no plan theirs"):
        store.load_runs("theirs")


def test_a_large_import_is_loaded_whole_and_in_order(store: Store) -> None:
    size = 10_000
    columns = {"run": [f"r{i}" for i in range(size)], "state": ["done"] * size, "loss": [i / 7 for i in range(size)]}
    store.record_import("big", "b" * 64, "t.csv", {}, {}, columns)
    table = store.load_runs("big")
    assert {name: table[name].tolist() for name in columns} == columns


# -------------------------------------------------------------------------------------- older databases


def make_older(path: Path) -> None:
    """Turn a database into one of the first revision, with a plan in it."""
    with Store.open(path, create=True) as store:
        add_plan(store)
    raw = sqlite3.connect(path)
    raw.executescript("DROP TABLE imported_rows; DROP TABLE imports; UPDATE scaling_version SET version_num = '0001';")
    raw.close()


def test_an_older_database_is_read_as_it_is_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    make_older(path)
    before = path.read_bytes()
    with Store.open(path, create=False, readonly=True) as store:
        assert store.imports() == []
        assert list(store.load_runs()["plan"]) == ["mine"]
        assert list(store.load_runs("mine")["loss"]) == [2.5]
        store.check_import_name("theirs")
    assert path.read_bytes() == before


@pytest.mark.parametrize("create", [True, False])
def test_an_older_database_is_brought_up_to_date_where_it_is_opened_for_writing(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "results.db"
    make_older(path)
    with Store.open(path, create=create) as store:
        add_import(store)
        assert list(store.load_runs()["plan"]) == ["mine", "theirs", "theirs"]
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT version_num FROM scaling_version").fetchone() == (HEAD,)
    raw.close()


def test_what_holds_no_results_is_told_apart_from_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoResults):
        Store.open(tmp_path / "none.db", create=False)
    (tmp_path / "empty.db").touch()
    with pytest.raises(NoResults):
        Store.open(tmp_path / "empty.db", create=False, readonly=True)
    with pytest.raises(StoreError) as error:
        Store.open(tmp_path, create=False)
    assert not isinstance(error.value, NoResults)


# ------------------------------------------------------------------------------------------- on disk


def test_a_kept_import_gives_the_same_rows_again_without_the_original(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a table.CSV"
    path.write_text(TABLE)
    table = prepare(path, "theirs", ["steps=N"], ["tokens_per_image=16", "ratio=D/N", "label=x-y", "protocol=mine"])
    folder = keep(store, table, tmp_path, replace=False)
    path.unlink()
    assert list(Layout(tmp_path).imports()) == [folder]
    assert sorted(one.name for one in folder.iterdir()) == ["import.json", "source.csv"]
    again = read_import(folder)
    assert again.name == "theirs"
    assert again.rows == table.rows
    mark = read_json(Layout.import_mark(folder))
    assert mark["columns"] == list(table.columns)
    assert mark["file"] == "a table.CSV"
    (row,) = store.imports()
    assert (row.sha256, row.created, row.mapping) == (mark["sha256"], mark["created"], mark["mapping"])
    loaded = store.load_runs("theirs").drop(columns="plan")
    pd.testing.assert_frame_equal(loaded, pd.DataFrame(again.columns))


def kept(store: Store, root: Path) -> Path:
    (root / "t.csv").write_text(TABLE)
    return keep(store, prepare(root / "t.csv", "theirs"), root, replace=True)


@pytest.mark.parametrize("failing", ["write_atomic", "write_json"])
def test_an_import_that_cannot_be_kept_is_not_recorded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_imports, failing, fail)
    with pytest.raises(kept_imports.ImportRefused, match="No space left on device; nothing was imported"):
        kept(store, tmp_path)
    assert store.imports() == []
    assert list(Layout(tmp_path).imports()) == []


def test_a_kept_import_that_was_changed_or_damaged_is_told_in_one_line(store: Store, tmp_path: Path) -> None:
    folder = kept(store, tmp_path)
    source, mark = folder / "source.csv", read_json(folder / "import.json")
    source.write_text(TABLE + "3000,1,1,\n")
    with pytest.raises(CorruptArtifact, match="SHA-256 differs"):
        read_import(folder)
    source.write_text(TABLE)
    for wrong in ({**mark, "sets": [["steps", "nothing"]]}, {"format": 1}, []):
        write_json(folder / "import.json", wrong)
        with pytest.raises(CorruptArtifact, match="import the original again"):
            read_import(folder)
    (folder / "import.json").unlink()
    with pytest.raises(FileNotFoundError):
        read_import(folder)


def test_a_stage_is_never_looked_for_among_imports(store: Store, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('[{"loss": 1}]')
    keep(store, prepare(tmp_path / "config.json", "theirs"), tmp_path, replace=False)
    assert list(Layout(tmp_path).stages()) == []


# ----------------------------------------------------------------------------------------- the command

Told = Callable[..., tuple[int, str, str]]


@pytest.fixture
def scaling(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A command run in a folder with a table: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE)

    def run(*arguments: str) -> tuple[int, str, str]:
        said = command(*arguments)
        return said.code, said.out, said.err

    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_and_writes_nothing_with_and_without_a_database(scaling: Told, tmp_path: Path) -> None:
    before = everything(tmp_path)
    code, out, err = scaling("import", "t.csv", "--as", "theirs", "--dry-run")
    assert (code, out) == (0, "")
    assert err.startswith("t.csv: 2 rows")
    assert "kept in" not in err
    assert everything(tmp_path) == before
    scaling("import", "t.csv", "--as", "theirs")
    before = everything(tmp_path)
    code, out, err = scaling("import", "t.csv", "--as", "theirs", "--dry-run")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "there is an import theirs" in err
    assert scaling("import", "t.csv", "--as", "theirs", "--dry-run", "--replace")[0] == 0
    assert everything(tmp_path) == before


def test_an_import_is_shown_by_runs_and_written_by_export(scaling: Told, tmp_path: Path) -> None:
    code, out, err = scaling(
        "import", "t.csv", "--as", "theirs", "--map", "gfid=loss", "--set", "arm=base", "--set", "tokens_per_image=16"
    )
    assert (code, out) == (0, "")
    said = err.splitlines()[-1]
    assert said.startswith(f"kept in {os.path.join('artifacts', 'imports', 'theirs')}")
    assert said.endswith("next: scaling fit --metric fid --plan theirs")
    code, out, err = scaling("runs", "--plan", "theirs")
    assert out.splitlines()[1].split() == ["t-1", "done", "1,000", "1.20e+08", "3.50"]
    assert out.splitlines()[2].split()[:2] == ["t-2", "diverged"]
    assert scaling("export", "out.csv", "--plan", "theirs")[0] == 0
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table["plan"]) == ["theirs"] * 2
    assert list(table["tokens_per_image"]) == [16, 16]
    code, out, err = scaling("import", "out.csv", "--as", "again")
    assert code == 0, err
    with Store.open(tmp_path / "results.db", create=False, readonly=True) as store:
        first, second = store.load_runs("theirs"), store.load_runs("again")
    assert list(second.pop("source_plan")) == ["theirs"] * 2
    pd.testing.assert_frame_equal(second.drop(columns="plan")[list(first.columns[1:])], first.drop(columns="plan"))


def test_the_preview_as_json_is_one_object_on_standard_output(scaling: Told, tmp_path: Path) -> None:
    code, out, err = scaling("import", "t.csv", "--as", "theirs", "--json")
    found = json.loads(out)
    assert code == 0
    assert err.startswith("t.csv: 2 rows")
    assert (found["import"], found["rows"], found["file"]) == ("theirs", 2, "t.csv")
    assert (Path(found["folder"]) / "import.json").is_file()
    assert json.loads(scaling("import", "t.csv", "--as", "other", "--json", "--dry-run")[1])["folder"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.csv", "--as", "x"), "none.csv: no such file"),
        (("t.csv", "--as", "x y"), "a name is at most"),
        (("t.csv", "--as", "x", "--map", "gfid=fdi"), "the file has no column 'fdi'"),
        (("t.csv", "--as", "x", "--set", "steps=__import__('os')"), "is not allowed"),
        (("t.csv", "--as", "mine", "--replace"), "mine is the name of a plan"),
    ],
)
def test_a_refusal_is_one_line_code_2_and_nothing_written(
    scaling: Told, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with Store.open(tmp_path / "results.db", create=True) as store:
        add_plan(store)
    before = everything(tmp_path)
    code, out, err = scaling("import", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err
    assert everything(tmp_path) == before


def test_a_file_that_is_refused_makes_no_database(scaling: Told, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert scaling("import", "t.csv", "--as", "x")[0] == 2
    assert not (tmp_path / "results.db").exists()


def test_an_import_must_be_named_where_it_is_not_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.db", create=True) as store:
        add_import(store)
        assert cli._plan_name(store, None) == "theirs"
        add_plan(store)
        assert cli._plan_name(store, "theirs") == "theirs"
        with pytest.raises(Exception, match="name one of the plans in the database, which has: mine, theirs"):
            cli._plan_name(store, None)


def test_the_command_imports_neither_torch_nor_ray_and_starting_it_no_pandas(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    code = (
        "import sys, scaling.cli\nfirst = 'pandas' in sys.modules\n"
        "sys.argv = ['scaling', 'import', 't.csv', '--as', 'x']\nscaling.cli.app(standalone_mode=False)\n"
        "print(first, [name for name in ('torch', 'ray', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "False []", done.stderr


# -------------------------------------------------------------------------------------------- finished


def test_a_run_is_finished_when_the_last_of_its_stages_is_done(store: Store) -> None:
    plan = store.record_plan("mine", "a" * 64, "", {}, {})
    keys = {name: name * 64 for name in "abcd"}
    store.record_stages(plan, [StageRecord(key, "generator", name, {}, 1) for name, key in keys.items()])
    for name in "abc":
        store.set_state(keys[name], "done")
        time.sleep(0.002)
    store.set_state(keys["d"], "diverged")
    runs = [("early", "ab"), ("late", "ca"), ("open", "ad")]
    store.record_runs(
        plan, [RunRecord(name, {}, {"tokenizer": keys[one], "generator": keys[two]}) for name, (one, two) in runs]
    )
    table = store.load_runs("mine").set_index("run")
    updated = {name: store.stages(plan)[key].updated for name, key in keys.items()}
    assert table.loc["early", "finished"] == updated["b"]
    assert table.loc["late", "finished"] == updated["c"]
    assert math.isnan(table.loc["open", "finished"])
