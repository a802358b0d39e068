"""The commands as a user meets them: exit codes, one line for a mistake, what goes to stdout and what to stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from commands import Command
from rich.console import Console

from models.settings import DataSettings
from scaling import errors, scheduler, tables
from scaling import sweep as sweep_module
from scaling.artifacts import AttemptFolder, Layout, grant_lease
from scaling.plan import load_plan, shipped_plans
from scaling.progress import LineProgress, LiveProgress, duration, open_progress, shown_values
from scaling.provenance import Owner, owner
from scaling.scheduler import Result
from scaling.stages import Stage
from scaling.status import render_status, snapshot
from scaling.store import LeaseLost, Locked, RunRecord, StageRecord, Store, StoreError
from scaling.worker import Outcome

PLAN = """
plan: small
extends: tiny@1
data: {train_images: 128, validation_images: 64}
tokenizer: {codebook_size: 16, images_seen: 640, arms: {base: {}}}
generator: {size: [16x1, 16x2], images_seen: 640}
evaluation: {features: cnn, samples: 20, reference: {split: held-out, images: 30}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An awkwardly named working directory with a plan in it (no newline in the name: lines are counted here)."""
    folder = tmp_path / 'it\'s "a" folder [*] ü'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture
def scaling(folder: Path, command: Command) -> Command:
    """A command run in the folder."""
    return command


@pytest.fixture
def results(folder: Path) -> Path:
    """A database with a plan of three runs: done, diverged and failed; one value is not finite."""
    path = folder / "results.db"
    with Store.open(path, create=True) as store:
        number = store.record_plan("small", "a" * 64, PLAN, {}, {})
        names = ("one", "two", "three")
        keys = {name: name[0] * 32 + name[1] * 32 for name in names}
        store.record_stages(number, [StageRecord(keys[name], "generator", f"g-{name}", {}, 1) for name in names])
        columns = {"arm": "base", "params": 12_345, "compute": 3.5e10, "images_seen": 640}
        store.record_runs(number, [RunRecord(name, columns, {"generator": keys[name]}) for name in names])
        store.record_result(keys["one"], "done", 1, {}, {"loss": 0.1 + 0.2, "perplexity": math.inf}, [])
        store.record_result(keys["two"], "diverged", 1, {}, {"diverged_step": 7}, [])
        store.set_state(keys["three"], "failed", "ValueError: no luck")
    return path


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


# ---------------------------------------------------------------------------------- a user's mistakes


def test_an_unknown_plan_names_the_shipped_ones(scaling: Command) -> None:
    said = scaling("sweep", "quickstrat")
    assert said.code == 2
    assert "quickstrat" in said.line
    assert "did you mean quickstart?" in said.line
    assert all(name in said.line for name in shipped_plans())


def test_a_bad_plan_is_shown_with_file_line_and_column(scaling: Command, folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN.replace("codebook_size", "codebok_size"))
    said = scaling("sweep", "plan.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("plan.yaml:5:13: tokenizer.codebok_size: unknown key (did you mean codebook_size?)")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "arguments", [("status",), ("runs",), ("export", "out.csv"), ("fit",), ("runs", "--json"), ("status", "--json")]
)
def test_a_command_without_a_database_says_so_in_one_line_and_makes_none(
    scaling: Command, folder: Path, arguments: tuple[str, ...]
) -> None:
    before = everything(folder)
    said = scaling(*arguments)
    assert said.code == 2
    assert "results.db" in said.line
    assert everything(folder) == before


def test_a_file_that_is_no_database_is_refused_in_one_line(scaling: Command, folder: Path) -> None:
    (folder / "results.db").write_text("no database at all, and long enough to be read as a header" * 20)
    said = scaling("status")
    assert said.code == 2
    assert "results.db" in said.line


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "arguments", [("runs", "--plan", "smal"), ("status", "--plan", "smal"), ("export", "x.csv", "--plan", "smal")]
)
def test_an_unknown_plan_in_the_database_names_the_recorded_ones(scaling: Command, arguments: tuple[str, ...]) -> None:
    said = scaling(*arguments)
    assert said.code == 2
    assert "smal" in said.line
    assert said.line.endswith("small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep",), "plan"),
        (("sweep", "plan.yaml", "--executor", "slurm"), "ray or inline"),
        (("sweep", "plan.yaml", "--workers", "0"), "--workers"),
        (("sweep", "plan.yaml", "--max-hours", "-1"), "--max-hours"),
        (("fit", "--bootstrap", "3"), "--bootstrap"),
        (("fly",), "fly"),
    ],
)
def test_wrong_usage_is_code_2_and_names_what_is_wrong(
    scaling: Command, arguments: tuple[str, ...], message: str
) -> None:
    said = scaling(*arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err


def test_a_locked_plan_is_code_4_and_names_the_driver(scaling: Command, folder: Path) -> None:
    me = owner()
    with Store.open(folder / "results.db", create=True) as store:
        store.acquire_driver("small", owner=Owner(me.host, os.getppid(), me.boot_id))
    said = scaling("sweep", "plan.yaml", "--executor", "inline")
    assert said.code == 4
    assert f"process {os.getppid()} on {me.host}" in said.line
    assert not (folder / "artifacts").exists()


def test_a_fault_of_the_tool_keeps_its_traceback(scaling: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(plan: Any) -> None:
        raise ZeroDivisionError("a fault of the tool")

    monkeypatch.setattr(sweep_module, "plan_graph", break_down)
    with pytest.raises(ZeroDivisionError):
        scaling("sweep", "plan.yaml", "--dry-run")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Locked("p", Owner("host", 1, "boot"), time.time()), 4),
        (LeaseLost("taken over"), 4),
        (StoreError("no database"), 2),
        (tables.TableFileError("no such folder"), 2),
        (ValueError("a bug"), None),
        (OSError("a bug"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_ends_a_command_with_its_code(error: Exception, code: int | None) -> None:
    assert errors.exit_code(error) == code


@pytest.mark.parametrize(("module", "names"), errors._CODES.items())
def test_every_error_in_the_table_exists_where_it_says(module: str, names: dict[str, int]) -> None:
    loaded = pytest.importorskip(module)
    for name in names:
        assert issubclass(getattr(loaded, name), Exception)


# ----------------------------------------------------------------------------------------------- init


def test_init_writes_a_plan_that_loads_and_never_overwrites(scaling: Command, folder: Path) -> None:
    assert scaling("init", "mine.yaml").line == "wrote mine.yaml; next: scaling sweep mine.yaml --dry-run"
    assert load_plan(folder / "mine.yaml").runs
    (folder / "mine.yaml").write_text("my own words")
    said = scaling("init", "mine.yaml")
    assert said.code == 2
    assert said.line.startswith("mine.yaml: exists already")
    assert (folder / "mine.yaml").read_text() == "my own words"


# -------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_prints_axes_stages_and_totals_and_writes_nothing(scaling: Command, folder: Path) -> None:
    before = everything(folder)
    said = scaling("sweep", "plan.yaml", "--dry-run", "--workers", "3")
    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "small: 2 runs, 8 stages"
    assert lines[1:3] == ["  axis tokenizer.arm: base", "  axis generator.size: 16x1, 16x2"]
    rows = [line.split() for line in lines[4:-1]]
    assert [row[0] for row in rows] == ["new"] * 8
    assert {row[1] for row in rows} == {"features", "tokenizer", "tokens", "generator", "evaluation"}
    assert lines[-1].startswith("8 new; ")
    assert "on 3 workers" in lines[-1]
    assert everything(folder) == before


def test_a_dry_run_tells_cached_resumable_and_new_apart(scaling: Command, folder: Path) -> None:
    graph = sweep_module.plan_graph(load_plan(folder / "plan.yaml"))
    stages = {stage.kind: stage for stage in graph.stages.values()}
    for kind in ("tokenizer", "generator"):
        stage = stages[kind]
        place = Layout(folder).stage(kind, stage.name, stage.fingerprint)
        grant_lease(place, 1, "token")
        attempt = AttemptFolder(place, 1, "token")
        if kind == "tokenizer":
            attempt.finish({}, "done")
        else:
            path = Layout.checkpoint(place, 1, 12)
            path.parent.mkdir(parents=True)
            path.write_bytes(b"a checkpoint's content is not read here")
    before = everything(folder)
    said = scaling("sweep", "plan.yaml", "--dry-run")
    states = [line.split()[:2] for line in said.out.splitlines()]
    assert ["cached", "tokenizer"] in states
    assert ["resumable", "generator"] in states
    assert said.out.splitlines()[-1].startswith("6 new, 1 resumable, 1 cached; ")
    assert "from step 12" in said.out
    assert everything(folder) == before


def test_a_dry_run_as_json_is_one_object_with_the_same_stages(scaling: Command) -> None:
    said = scaling("sweep", "plan.yaml", "--dry-run", "--json")
    found = json.loads(said.out)
    assert (found["plan"], len(found["stages"])) == ("small", 8)
    assert found["seconds"] > 0
    assert set(found["stages"][0]) == {
        "kind",
        "name",
        "fingerprint",
        "state",
        "why",
        "params",
        "flops",
        "seconds",
    }
    assert "resolved" not in found


def test_resolved_prints_every_value_as_a_plan(scaling: Command) -> None:
    said = scaling("sweep", "plan.yaml", "--dry-run", "--resolved")
    text = said.out.split("small: 2 runs")[0]
    resolved = yaml.safe_load(text)
    assert resolved["tokenizer"]["codebook_size"] == 16
    assert resolved["tokenizer"]["betas"] == [0.9, 0.95]
    assert json.loads(scaling("sweep", "plan.yaml", "--resolved", "--json").out)["resolved"] == resolved


# ---------------------------------------------------------------------------------------------- sweep


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("done", 0, "next: scaling fit --metric fid --db other.db"),
        ("failed", 1, "failed: tokenizer a: crash: no luck"),
        ("interrupted", 3, "resume with: scaling sweep plan.yaml --db other.db"),
        ("budget", 5, "resume with: scaling sweep plan.yaml --db other.db"),
    ],
)
def test_a_sweep_ends_with_the_code_of_its_status_and_says_what_next(
    scaling: Command, monkeypatch: pytest.MonkeyPatch, status: str, code: int, says: str
) -> None:
    asked: dict[str, Any] = {}

    def pretend(plan: Any, **given: Any) -> Result:
        asked.update(given)
        return Result(status, {status: 1}, [("tokenizer a", "crash: no luck")] if status == "failed" else [])

    monkeypatch.setattr(sweep_module, "sweep", pretend)
    arguments = ("sweep", "plan.yaml", "--db", "other.db", "--max-hours", "0.5", "--workers", "3")
    said = scaling(*arguments)
    assert (said.code, said.out) == (code, "")
    assert says in said.err.splitlines()
    assert asked["database"] == "other.db"
    assert asked["executor"] == "ray"
    assert asked["options"] == scheduler.Options(load_plan("plan.yaml").resources, 3, 1800.0)
    said = scaling(*arguments, "--json", "--executor", "inline")
    assert json.loads(said.out) == {"status": status, "stages": {status: 1}}
    assert asked["executor"] == "inline"


# ------------------------------------------------------------------------------- status, runs, export


@pytest.mark.usefixtures("results")
def test_status_shows_counts_and_failures_and_reads_only(scaling: Command, folder: Path) -> None:
    before = everything(folder)
    said = scaling("status")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "small: 2 of 3 stages done",
        "  stage              done   diverged     failed",
        "  generator             1          1          1",
        "  diverged: generator g-two",
        "  failed: generator g-three: ValueError: no luck",
    ]
    assert everything(folder) == before
    (found,) = json.loads(scaling("status", "--json").out)
    assert found["counts"] == {"generator": {"done": 1, "diverged": 1, "failed": 1}}
    assert found["stages"] == 3


def test_status_shows_what_runs_with_its_share_and_loss_and_what_a_dead_driver_left(folder: Path) -> None:
    me = owner()
    with Store.open(folder / "results.db", create=True) as store:
        number = store.record_plan("p", "a" * 64, "", {}, {})
        records = [StageRecord(letter * 64, "generator", letter, {}, 1) for letter in "abc"]
        store.record_stages(number, records)
        store.begin_attempt("a" * 64)
        store.begin_attempt("b" * 64, owner=Owner(me.host, 2**22 + 1, me.boot_id))
        place = Layout(folder).stage("generator", "a", "a" * 64)
        grant_lease(place, 1, "token")
        AttemptFolder(place, 1, "token").heartbeat({"step": 30, "steps": 120, "values": {"loss": 2.34567}})
        found = snapshot(store, "p", folder)
        assert [one["name"] for one in found["running"]] == ["a"]
        assert found["abandoned"] == 1
        text = render_status(found)
        assert "runs: generator a, 25%, loss 2.346, 0 s" in text
        assert "1 left by a driver that died; the same sweep command goes on with them" in text
        with pytest.raises(StoreError, match="no plan 'q' in the database; it has p"):
            snapshot(store, "q", folder)


@pytest.mark.usefixtures("results")
def test_runs_is_a_table_and_json_has_every_column(scaling: Command) -> None:
    lines = scaling("runs").out.splitlines()
    assert lines[0].split() == ["run", "state", "N", "images", "FLOPs", "loss"]
    assert lines[1].split() == ["one", "done", "12,345", "640", "3.50e+10", "0.3000"]
    assert lines[2].split() == ["two", "diverged", "12,345", "640", "3.50e+10"]
    rows = json.loads(scaling("runs", "--json").out, parse_constant=pytest.fail)
    assert [row["run"] for row in rows] == ["one", "two", "three"]
    assert rows[0]["loss"] == 0.1 + 0.2
    assert rows[0]["perplexity"] is None, "JSON has no infinity"
    assert rows[1]["loss"] is None


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("suffix", [".csv", ".json", ".JSON"])
def test_export_writes_all_columns_at_full_precision(scaling: Command, folder: Path, suffix: str) -> None:
    said = scaling("export", f"out{suffix}")
    assert said.code == 0
    assert said.line.startswith(f"wrote out{suffix}: 3 rows, ")
    text = (folder / f"out{suffix}").read_text()
    if suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
        assert float(rows[0]["loss"]) == 0.1 + 0.2
    else:
        rows = json.loads(text, parse_constant=pytest.fail)
        assert rows[0]["loss"] == 0.1 + 0.2
    assert [row["run"] for row in rows] == ["one", "two", "three"]
    assert f"{len(rows[0])} columns" in said.line


@pytest.mark.usefixtures("results")
def test_export_to_parquet_works_or_says_what_to_install(scaling: Command, folder: Path) -> None:
    said = scaling("export", "out.parquet")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        assert said.code == 2
        assert "pip install 'scaling-lab[parquet]'" in said.line
        assert not (folder / "out.parquet").exists()
    else:
        assert said.code == 0
        assert list(pd.read_parquet(folder / "out.parquet")["run"]) == ["one", "two", "three"]


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out.xlsx", "unknown kind of table '.xlsx'; use .csv, .parquet or .json"),
        ("out", "unknown kind of table 'without suffix'; use .csv, .parquet or .json"),
        ("nowhere/out.csv", "the folder nowhere does not exist"),
        ("taken.csv", "cannot be written"),
    ],
)
def test_an_export_that_cannot_be_written_is_one_line_and_no_file(
    scaling: Command, folder: Path, path: str, message: str
) -> None:
    (folder / "taken.csv").mkdir()
    before = set(everything(folder))
    said = scaling("export", path)
    assert said.code == 2
    assert said.line.startswith(f"{path}: ")
    assert message in said.line
    assert set(everything(folder)) == before


@pytest.mark.usefixtures("results")
def test_a_reader_that_leaves_early_hears_no_complaint(folder: Path) -> None:
    command = [sys.executable, "-m", "scaling.cli", "runs"]
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


# ------------------------------------------------------------------------------------------- imports

SHUNNED = ("torch", "ray")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("status", "--help"),
        ("status",),
        ("runs",),
        ("export", "x.csv"),
        ("init", "new.yaml"),
        ("sweep", "plan.yaml", "--dry-run"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("results")
def test_a_command_that_trains_nothing_imports_neither_torch_nor_ray(arguments: tuple[str, ...]) -> None:
    call = f"sys.argv = ['scaling', *{arguments!r}]\ntry: scaling.cli.main()\nexcept SystemExit as e: code = e.code\n"
    code = (
        "import sys, scaling.cli\ncode = 0\n"
        + (call if arguments else "")
        + f"print([name for name in {SHUNNED} if name in sys.modules], code or 0, file=sys.stderr)"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.splitlines()[-1] == "[] 0", ended.stderr


# ------------------------------------------------------------------------------------------- progress


def stage(name: str) -> Stage:
    return Stage("generator", name, name, {}, {}, 0, 1, 1.0, 10.0, DataSettings())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_a_few_results_fit_in_a_line() -> None:
    assert shown_values({"gfid": 12.3456, "loss": 1.0, "other": 2.0, "usage": None}) == "loss 1  gfid 12.35"


def test_off_a_terminal_each_event_is_a_line() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    a, b = stage("a"), stage("b")
    progress.begin({"a": a, "b": b, "c": stage("c")}, {"a": "pending", "b": "pending", "c": "done"})
    progress.started(a, 1)
    progress.ended(a, "pending", Outcome("failed", "crash", "no luck", seconds=2.0), {})
    progress.started(a, 2)
    progress.remaining(90.0)
    assert "1 of 3 stages done, 1 running" in progress.totals()
    assert progress.totals().endswith("about 1 min 30 s to go")
    progress.ended(a, "done", Outcome("done", seconds=65.0), {"loss": 1.5})
    progress.started(b, 1)
    progress.ended(b, "diverged", Outcome("diverged", message="loss is not finite", seconds=1.0), {})
    progress.end()
    lines = [line[10:] for line in stream.getvalue().splitlines()]
    assert lines[:-1] == [
        "3 stages, 1 already done, 2 to do",
        "start  generator  a",
        "failed generator  a  2 s  no luck",
        "start  generator  a (attempt 2)",
        "done   generator  a  1 min 05 s  loss 1.5",
        "start  generator  b",
        "diverged generator  b  1 s  loss is not finite",
    ]
    assert lines[-1].startswith("2 of 3 stages done, 1 diverged, ")
    assert "to go" not in lines[-1]


def test_a_quiet_stretch_is_broken_by_a_summary_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.begin({"a": stage("a")}, {"a": "running"})
    for now in (1030.0, 1059.0, 1061.0, 1062.0, 1122.0):  # noqa: B007 (the clock reads it)
        progress.advanced(stage("a"), {"step": 1, "steps": 2})
    assert len(stream.getvalue().splitlines()) == 3


def test_on_a_terminal_running_stages_have_a_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    progress = LiveProgress(console)
    a = stage("a")
    progress.begin({"a": a}, {"a": "pending"})
    try:
        progress.started(a, 1)
        with console.capture() as capture:
            console.print(progress._render())
        assert "starting" in capture.get()
        progress.advanced(a, {"step": 5, "steps": 20, "values": {"loss": 2.5}})
        with console.capture() as capture:
            console.print(progress._render())
        assert "25%  loss 2.5" in capture.get()
        progress.ended(a, "done", Outcome("done", seconds=3.0), {"loss": 2.0})
    finally:
        progress.end()
    assert "done   generator  a  3 s  loss 2" in stream.getvalue()
    assert stream.getvalue().rstrip().splitlines()[-1].strip().endswith("passed")
    assert capsys.readouterr().out == ""


def test_where_stderr_is_no_terminal_progress_is_lines() -> None:
    assert type(open_progress()) is LineProgress


def test_the_entry_point_flushes_its_output_runs_what_waits_for_the_end_and_keeps_the_exit_code(folder: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    program = (
        "import atexit, sys; from scaling import cli; atexit.register(print, 'at the end'); "
        "sys.argv = ['scaling', *sys.argv[1:]]; cli.entry()"
    )

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-c", program, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
        return ended.returncode, ended.stdout

    assert run("init", "new.yaml") == (0, "at the end\n")
    assert run("init", "new.yaml") == (2, "at the end\n")
    code, said = run("--help")
    assert code == 0
    assert said.endswith("at the end\n")
