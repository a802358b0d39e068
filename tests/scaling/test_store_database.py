"""SQLite's own traps: lost updates, racing claims, foreign and newer files, readers that write, network disks."""

import itertools
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling import database
from scaling.provenance import Owner, alive, provenance
from scaling.provenance import owner as this_process
from scaling.schema import HEAD
from scaling.store import StageRecord, Store, StoreError


def record(store: Store, *names: str) -> None:
    plan = store.record_plan("p", "a" * 64, "", {}, {})
    store.record_stages(plan, [StageRecord(name * 64, "tokenizer", name, {}, 1) for name in names])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def run_at_once(code: str, path: Path, count: int) -> list[str]:
    """Standard output of `count` processes that run `code` on the database at once; none ends before all are done."""
    command = [sys.executable, "-c", code + "\nprint('end', flush=True); sys.stdin.read()", str(path)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    output = ["".join(itertools.takewhile(lambda line: line != "end\n", child.stdout or ())) for child in children]
    for child in children:
        child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0] * count
    return output


def test_read_modify_write_by_six_processes_loses_nothing(path: Path) -> None:
    with Store.open(path, create=True) as store:
        record(store, "a")
        store.set_summary("a" * 64, {"count": 0})
    code = (
        "import sys; from scaling.store import Store\n"
        "with Store.open(sys.argv[1], create=False) as store:\n"
        "    for _ in range(50):\n"
        "        with store.transaction():\n"
        "            count = store.summary('a' * 64)['count']\n"
        "            store.set_summary('a' * 64, {'count': count + 1})\n"
    )
    run_at_once(code, path, 6)
    with Store.open(path, create=False) as store:
        assert store.summary("a" * 64) == {"count": 300}


def test_of_racing_claimers_exactly_one_claims_each_stage(path: Path) -> None:
    names = "abcdef"
    with Store.open(path, create=True) as store:
        record(store, *names)
    code = (
        "import sys; from scaling.store import Store\n"
        "with Store.open(sys.argv[1], create=False) as store:\n"
        f"    print(*[name for name in {names!r} if store.begin_attempt(name * 64)])\n"
    )
    claimed = [name for output in run_at_once(code, path, 3) for name in output.split()]
    assert sorted(claimed) == list(names)


def test_processes_that_create_the_database_at_once_all_succeed(path: Path) -> None:
    code = (
        "import sys; from scaling.store import Store\n"
        "with Store.open(sys.argv[1], create=True) as store: print(store.record_plan('p', 'a' * 64, '', {}, {}))\n"
    )
    assert run_at_once(code, path, 4) == ["1\n"] * 4


def test_a_database_in_use_has_a_write_ahead_log_and_its_pragmas(path: Path) -> None:
    with Store.open(path, create=True) as store, store.transaction() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        }
    assert values == {"journal_mode": "wal", "busy_timeout": 30000, "foreign_keys": 1, "synchronous": 1}


def test_on_a_network_file_system_no_log_is_used_and_the_user_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Store.open(path, create=True).close()
    monkeypatch.setattr(database, "file_system", lambda _: "nfs4")
    with caplog.at_level(logging.WARNING), Store.open(path, create=True) as store:
        with store.transaction() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        record(store, "a")
    assert "on nfs4, where writing is slow" in caplog.text
    with Store.open(path, create=False, readonly=True) as store:
        assert len(store.stages()) == 1


@pytest.mark.parametrize(
    ("kind", "network"), [("nfs", True), ("fuse.sshfs", True), ("9p", True), ("ext4", False), ("", False)]
)
def test_network_file_systems_are_known_by_their_type(kind: str, network: bool) -> None:
    assert bool(database.NETWORK_FILE_SYSTEMS.fullmatch(kind)) is network


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux tells file systems")
def test_the_file_system_of_a_folder_is_that_of_its_innermost_mount(tmp_path: Path) -> None:
    assert database.file_system(Path("/proc/self")) == "proc"
    assert database.file_system(tmp_path) not in ("", "proc")


# --------------------------------------------------------------------------------------------- readers


def test_a_reader_writes_nothing_whether_or_not_a_driver_lives(path: Path) -> None:
    driver = Store.open(path, create=True)
    record(driver, "a")
    with Store.open(path, create=False, readonly=True) as reader:
        before = {name: data for name, (data, _) in content(path.parent).items() if not name.endswith("-shm")}
        assert len(reader.stages()) == 1
        after = {name: data for name, (data, _) in content(path.parent).items() if not name.endswith("-shm")}
        assert after == before
    driver.close()
    before_closed = content(path.parent)
    assert list(before_closed) == ["results.db"]
    with Store.open(path, create=False, readonly=True) as reader:
        assert len(reader.stages()) == 1
        assert reader.load_runs("p").empty
    assert content(path.parent) == before_closed


def test_a_reader_that_stays_open_sees_what_a_later_driver_writes(path: Path) -> None:
    with Store.open(path, create=True) as driver:
        record(driver, "a")
    with Store.open(path, create=False, readonly=True) as reader:
        assert len(reader.stages()) == 1
        with Store.open(path, create=True) as driver:
            record(driver, "b")
            assert len(reader.stages()) == 2
        assert len(reader.stages()) == 2


def test_a_reader_reads_again_when_the_file_changed_under_it(path: Path) -> None:
    with Store.open(path, create=True) as driver:
        record(driver, "a")
    seen = []
    with Store.open(path, create=False, readonly=True) as reader:

        def read(connection: object) -> int:
            seen.append(1)
            if len(seen) == 1:
                with Store.open(path, create=True) as driver:
                    record(driver, "b")
            return len(seen)

        assert reader._query(read) == 2


def test_a_reader_can_read_what_a_killed_driver_left(path: Path) -> None:
    code = (
        "import os, sys; from scaling.store import Store, StageRecord\n"
        "store = Store.open(sys.argv[1], create=True)\n"
        "plan = store.record_plan('p', 'a' * 64, '', {}, {})\n"
        "store.record_stages(plan, [StageRecord('a' * 64, 'tokenizer', 'a', {}, 1)])\n"
        "os._exit(0)\n"
    )
    run_at_once(code, path, 1)
    assert path.with_name("results.db-wal").stat().st_size > 0
    with Store.open(path, create=False, readonly=True) as reader:
        assert len(reader.stages()) == 1


def test_a_store_opened_for_reading_refuses_to_write(path: Path) -> None:
    Store.open(path, create=True).close()
    with (
        Store.open(path, create=False, readonly=True) as reader,
        pytest.raises(StoreError, match="opened for reading only"),
    ):
        reader.record_plan("p", "a" * 64, "", {}, {})


# --------------------------------------------------------------------------------------------- refusals


def refused(location: Path | str, **how: bool) -> str:
    with pytest.raises(StoreError) as error:
        Store.open(location, **{"create": False, **how})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_database_the_user_is_told_to_run_a_sweep_and_no_file_appears(path: Path) -> None:
    for readonly in (True, False):
        assert "run `scaling sweep PLAN` first" in refused(path, readonly=readonly)
    assert list(path.parent.iterdir()) == []


def test_an_empty_file_holds_no_results(path: Path) -> None:
    path.touch()
    assert "holds no results" in refused(path, readonly=True)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("arm,fid\nbase,30\n" * 100)
    before = path.read_bytes()
    for how in ({"create": True}, {"create": False}, {"readonly": True}):
        assert "file is not a database" in refused(path, **how)
    assert path.read_bytes() == before
    assert "is not a file" in refused(path.parent, create=True)


def test_another_program_s_database_is_refused_and_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE trials (id INTEGER)")
    other.close()
    assert "tables of another program (trials)" in refused(path, create=True)
    other = sqlite3.connect(path)
    assert [row[0] for row in other.execute("SELECT name FROM sqlite_master")] == ["trials"]
    other.close()


@pytest.mark.parametrize("how", [{"create": True}, {"create": False}, {"readonly": True}])
def test_a_newer_database_is_refused(path: Path, how: dict[str, bool]) -> None:
    Store.open(path, create=True).close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE scaling_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    assert f"made by a newer scaling (schema 9999, this one knows {HEAD})" in refused(path, **how)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("mysql://localhost/x", "mysql databases are not supported"),
        ("sqlite://", "a database in memory would be lost"),
        ("no scheme://", "cannot be read"),
    ],
)
def test_a_url_that_cannot_serve_is_refused(location: str, said: str) -> None:
    assert said in refused(location, create=True)


def test_the_newest_revision_is_the_one_the_code_names() -> None:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(database.__file__).parent / "migrations"))
    assert script.get_heads() == [HEAD]


def test_a_migration_that_fails_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    create = op.create_table

    def fail_late(name: str, *columns: object, **options: object) -> object:
        if name == "summaries":
            raise RuntimeError("power cut")
        return create(name, *columns, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(op, "create_table", fail_late)
    with pytest.raises(RuntimeError, match="power cut"):
        Store.open(path, create=True)
    monkeypatch.undo()
    with Store.open(path, create=True) as store:
        assert store.plans() == []


# ------------------------------------------------------------------------------------------ provenance


def test_importing_the_store_imports_no_torch_ray_or_pandas() -> None:
    code = (
        "import sys, scaling.store, scaling.artifacts, scaling.provenance\n"
        "scaling.provenance.provenance()\n"
        "print(*{'torch', 'ray', 'pandas', 'alembic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def ended_process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


def test_a_process_is_alive_dead_or_out_of_sight(ended_process: subprocess.Popen[bytes]) -> None:
    me = this_process()
    assert alive(me) is True
    assert alive(Owner(me.host, me.pid, "another boot")) is False
    assert alive(Owner("another host", me.pid, me.boot_id)) is None
    if Path("/proc/self/stat").exists():
        assert alive(Owner(me.host, ended_process.pid, me.boot_id)) is False  # a zombie until its parent waits
    ended_process.wait()
    assert alive(Owner(me.host, ended_process.pid, me.boot_id)) is False


def test_provenance_names_commit_changes_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    outside = provenance()
    assert (outside["git_commit"], outside["dirty"]) == (None, None)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("one")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "untracked").touch()
    clean = provenance()
    assert len(clean["git_commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert provenance()["dirty"] is True
    assert {"scaling", "python", "torch", "numpy"} <= set(clean["versions"])
