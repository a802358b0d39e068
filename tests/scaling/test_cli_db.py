"""The commands for the database and the disk as a user meets them; stored databases of every version, upgraded."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command
from pretended_sweep import Bench, content, everything, plan

from scaling.provenance import Owner, owner
from scaling.schema import HEAD, metadata
from scaling.store import Store

STORED = sorted((Path(__file__).parent / "databases").glob("*.db"))
SHUNNED = ("torch", "ray")
SMALLER = {"[16x1, 16x2]": "16x1"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / 'it\'s "a" folder [*] ü'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(folder, monkeypatch)
    bench.sweep(plan())
    return bench


@pytest.fixture
def scaling(folder: Path, command: Command) -> Command:
    """A command run in the folder."""
    return command


def live_driver(bench: Bench) -> None:
    me = owner()
    with bench.store() as store:
        store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))


# --------------------------------------------------------------------------------------------- rebuild


def test_a_lost_database_is_made_again_from_the_files(scaling: Command, bench: Bench) -> None:
    before = scaling("runs").out
    for path in bench.root.glob("results.db*"):
        path.unlink()
    assert scaling("runs").code == 2
    said = scaling("db", "rebuild")
    assert (said.code, said.err) == (0, "")
    assert f"{bench.path}: 1 plans, 2 runs" in said.out
    assert "not restored: fits: no file holds them" in said.out
    assert scaling("runs").out == before


def test_a_dry_rebuild_says_so_and_writes_nothing(scaling: Command, bench: Bench) -> None:
    before = everything(bench.root)
    said = scaling("db", "rebuild", "--dry-run")
    assert said.out.splitlines()[-1] == "a dry run, nothing was written"
    assert everything(bench.root) == before


def test_a_rebuild_from_another_folder_leaves_the_old_one_beside(
    scaling: Command, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "say with --from which folder has it" in scaling("db", "rebuild").line
    said = scaling("db", "rebuild", "--from", str(bench.root), "--db", "new.db", "--json")
    found = json.loads(said.out)
    assert (found["kept_as"], found["counts"]["runs"], found["left_out"]) == (None, 2, [])
    assert found["path"] == str(elsewhere / "new.db")
    said = scaling("db", "rebuild", "--from", str(bench.root), "--db", "new.db")
    assert f"the old database is kept as {elsewhere / 'new.db.old-1'}" in said.out


def test_a_rebuild_while_a_driver_lives_is_refused_with_its_own_code(scaling: Command, bench: Bench) -> None:
    live_driver(bench)
    said = scaling("db", "rebuild")
    assert said.code == 4
    assert "plan small has driver process" in said.line
    assert not list(bench.root.glob("results.db.old*"))


@pytest.mark.parametrize(
    "arguments",
    [("db", "rebuild", "none.yaml"), ("db", "rebuild", "--db", "sqlite:///x"), ("gc", "--yes", "--dry-run")],
)
@pytest.mark.usefixtures("bench")
def test_a_mistake_is_a_line_and_code_2(scaling: Command, arguments: tuple[str, ...]) -> None:
    said = scaling(*arguments)
    assert said.code == 2
    assert said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("arguments", [("db", "upgrade"), ("db", "check"), ("gc",), ("gc", "--yes")])
def test_without_a_database_a_line_says_so_and_none_is_made(
    scaling: Command, folder: Path, arguments: tuple[str, ...]
) -> None:
    said = scaling(*arguments)
    assert said.code == 2
    assert "results.db" in said.line
    assert list(folder.iterdir()) == []


# --------------------------------------------------------------------------------------------- upgrade


def test_there_is_a_stored_database_of_every_version() -> None:
    from alembic.script import ScriptDirectory

    from scaling import database

    script = ScriptDirectory(str(Path(database.__file__).parent / "migrations"))
    assert sorted(one.revision for one in script.walk_revisions()) == [path.stem for path in STORED]
    assert all(path.stat().st_size < 100_000 for path in STORED)
    newest = sqlite3.connect(f"{STORED[-1].as_uri()}?mode=ro&immutable=1", uri=True)
    for table in metadata.tables:
        assert newest.execute(f"SELECT count(*) FROM {table}").fetchone()[0] > 0, table
    newest.close()


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.stem)
def test_a_stored_database_is_upgraded_and_reads_the_same(scaling: Command, folder: Path, stored: Path) -> None:
    path = folder / "results.db"
    shutil.copy(stored, path)
    with Store.open(path, create=False, readonly=True) as store:
        before = repr((content(store), store.fits(), store.load_runs().to_dict()))
    said = scaling("db", "upgrade")
    wanted = f"schema {HEAD}, nothing to do" if stored.stem == HEAD else f"brought from schema {stored.stem} to {HEAD}"
    assert (said.code, said.out, said.err) == (0, wanted + "\n", "")
    again = json.loads(scaling("db", "upgrade", "--json").out)
    assert again == {"before": HEAD, "now": HEAD}
    with Store.open(path, create=False) as store:
        table = store.load_runs("old")
        assert repr((content(store), store.fits(), store.load_runs().to_dict())) == before
        (row,) = store.plans()
        assert (row.name, row.created, row.dirty, row.versions) == ("old", 1000.5, True, {"torch": "2.6"})
        a, b = store.stages(row.id).values()
        assert (a.name, a.flops, b.parents, b.why, b.attempt) == ("base.t0", 1.5e9, (a.fingerprint,), "new size", 2)
        assert store.summary(b.fingerprint) == {"loss": 1 / 3, "steps": 20, "note": "ü", "perplexity": math.inf}
        first, second = store.metrics(b.fingerprint)
        assert first == {"step": 10, "loss": 0.1 + 0.2}
        assert math.isnan(second["loss"])
        assert [(one.state, one.failure_class) for one in store.attempts(b.fingerprint)] == [
            ("failed", "crash"),
            ("done", ""),
        ]
        assert store.artifacts(b.fingerprint)[0]["bytes"] == 12345
        assert list(table["state"]) == ["done"]
        assert (table["rfid"][0], table["loss"][0], table["finished"][0]) == (18.3, 1 / 3, 1600.0)
        (fit,) = store.fits()
        assert (fit.plan, math.isnan(fit.result["E"])) == ("old", True)
        names = [one.name for one in store.imports()]
        assert names == ([] if stored.stem == "0001" else ["theirs"])
        if names:
            assert list(store.load_runs("theirs")["loss"]) == [3.5]


def test_a_newer_database_or_another_program_s_is_not_upgraded(scaling: Command, folder: Path) -> None:
    path = folder / "results.db"
    shutil.copy(STORED[-1], path)
    raw = sqlite3.connect(path)
    raw.execute("UPDATE scaling_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    before = path.read_bytes()
    assert "made by a newer scaling (schema 9999" in scaling("db", "upgrade").line
    assert path.read_bytes() == before
    path.write_text("nothing of the kind " * 100)
    assert "file is not a database" in scaling("db", "upgrade").line
    path.write_bytes(b"")
    assert "holds no results" in scaling("db", "upgrade").line


# ----------------------------------------------------------------------------------------------- check


def test_a_check_ends_with_1_where_something_is_wrong_and_says_what_to_do(scaling: Command, bench: Bench) -> None:
    said = scaling("db", "check")
    assert (said.code, said.err) == (0, "")
    assert said.out == "8 stages, 8 results, 8 files (by size; --deep reads them), 0 imports\nnothing is wrong\n"
    assert scaling("db", "check", "--deep").code == 0
    gone = bench.folder("tokenizer")
    shutil.rmtree(gone)
    said = scaling("db", "check")
    assert said.code == 1
    assert said.out.splitlines()[-2:] == ["  -> scaling sweep PLAN makes it again", "1 thing wrong"]
    (one,) = json.loads(scaling("db", "check", "--json").out)["findings"]
    assert (one["where"], one["todo"]) == (str(gone), "scaling sweep PLAN makes it again")


# -------------------------------------------------------------------------------------------------- gc


def test_gc_shows_first_and_deletes_only_with_yes(scaling: Command, bench: Bench) -> None:
    bench.sweep(plan(**SMALLER))
    before = everything(bench.root)
    for arguments in (("gc",), ("gc", "--dry-run"), ("gc", "--json")):
        assert scaling(*arguments).code == 0
    assert everything(bench.root) == before
    found = json.loads(scaling("gc", "--json").out)
    assert (len(found["items"]), found["freed"]) == (2, 0)
    said = scaling("gc", "--yes")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1].startswith("freed ")
    assert scaling("db", "check", "--deep").code == 0
    assert scaling("gc", "--yes").out == "nothing to free\n"
    bench.sweep(plan(**SMALLER))
    assert bench.jobs == []


def test_gc_keeps_only_the_named_plans_and_refuses_what_it_does_not_know(scaling: Command, bench: Bench) -> None:
    bench.sweep(plan(**{"plan: small": "plan: other", "[16x1, 16x2]": "16x3"}))
    assert "no plan none to keep; recorded are: small, other" in scaling("gc", "--keep-plans", "none").line
    live_driver(bench)
    assert scaling("gc", "--keep-plans", "other").code == 4
    with bench.store() as store:
        store.release_driver(store.acquire_driver("small", now=1e12))
    assert scaling("gc", "--yes", "--keep-plans", "other", "--older-than", "1").out.splitlines()[0].startswith("left: ")
    scaling("gc", "--yes", "--keep-plans", "other")
    with bench.store() as store:
        assert [row.name for row in store.plans()] == ["other"]
    assert scaling("db", "check", "--deep").code == 0


# ------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "arguments",
    [("db", "rebuild"), ("db", "rebuild", "plan.yaml"), ("db", "upgrade"), ("db", "check", "--deep"), ("gc", "--yes")],
    ids=" ".join,
)
def test_these_commands_import_neither_torch_nor_ray(bench: Bench, arguments: tuple[str, ...]) -> None:
    (bench.root / "plan.yaml").write_text(plan().text)
    code = (
        f"import sys, scaling.cli\nsys.argv = ['scaling', *{arguments!r}]\ncode = 0\n"
        "try: scaling.cli.main()\nexcept SystemExit as e: code = e.code\n"
        f"print([name for name in {SHUNNED} if name in sys.modules], code or 0, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.splitlines()[-1] == "[] 0", ended.stderr
