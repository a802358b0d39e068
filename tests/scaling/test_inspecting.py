"""Logs and show: what a name means, which attempts and logs are shown, one run whole. Stages are pretended."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from scaling.artifacts import Layout
from scaling.inspecting import UnknownName, find, logs, render_logs
from scaling.provenance import Owner, owner
from scaling.showing import json_values, render_show, show
from scaling.store import Store, StoreError
from scaling.sweep import plan_graph, record
from tests.scaling.test_cli import SHUNNED, everything
from tests.scaling.test_sweep import Bench, attempt_of, plan

RUN = "base/16x1/640/t0.g0"
OTHER = "base/16x2/640/t0.g0"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    folder = tmp_path / 'it\'s "a" folder [*] ü'
    folder.mkdir()
    return Bench(folder, monkeypatch)


@pytest.fixture
def scaling(bench: Bench, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command run in the folder of the bench."""
    monkeypatch.chdir(bench.root)
    return command


def work(job: dict[str, Any]) -> dict[str, Any]:
    """A worker that writes a log and metrics; the generators of 16x2 fail, those of 16x3 diverge."""
    attempt = attempt_of(job)
    log = Layout.log(attempt.stage_dir, attempt.number)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"".join(b"line %d of %s\n" % (i, job["name"].encode()) for i in range(1, 6)) + b"\xff\xfe odd\n")
    kind = job["name"].split()[0]
    if kind == "generator" and "16x2" in job["name"]:
        return {"status": "failed", "failure_class": "user_error", "message": "ValueError: no luck", "seconds": 3.0}
    losses = [math.nan] * 7 if kind == "generator" and "16x3" in job["name"] else [4.0 / step for step in range(1, 8)]
    attempt.append_metrics([{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)])
    attempt.output("result.bin").write_bytes(b"weights")
    facts = {"device": "cpu", "peak_rss": 300 * 2**20}
    if math.isnan(losses[-1]):
        attempt.finish({"diverged_step": 7}, "diverged")
        return {"status": "diverged", "message": "loss is not finite", "seconds": 2.0, "facts": facts}
    attempt.finish({"loss": losses[-1]} if kind == "generator" else {"gfid": 12.5}, "done")
    return {"status": "done", "seconds": 2.0, "facts": facts}


@pytest.fixture
def swept(bench: Bench) -> Iterator[Store]:
    """A sweep whose first run is done, the second failed twice, the third diverged."""
    small = plan(**{"[16x1, 16x2]": "[16x1, 16x2, 16x3]"})
    for _ in range(2):
        bench.sweep(small, work)
    with Store.open(bench.database, create=False, readonly=True) as store:
        yield store


def generator(store: Store, size: str) -> Any:
    return next(row for row in store.stages().values() if row.kind == "generator" and size in row.name)


def folder_of(bench: Bench, store: Store, size: str) -> Path:
    row = generator(store, size)
    return Layout(bench.root).stage(row.kind, row.name, row.fingerprint)


# ---------------------------------------------------------------------------------------------- names


def test_a_run_means_its_stages_and_what_they_need(swept: Store) -> None:
    found = find(swept, RUN)
    assert found.run is not None
    assert found.plan is not None
    kinds = [stage.kind for stage in found.stages]
    assert kinds == ["tokenizer", "tokens", "generator", "features", "evaluation", "evaluation"]
    assert [stage.name for stage in find(swept, RUN, kind="generator").stages] == [RUN]


def test_a_stage_is_found_by_name_by_kind_and_name_and_by_fingerprint(swept: Store) -> None:
    features = next(row for row in swept.stages().values() if row.kind == "features")
    for name in (features.name, f"features {features.name}", features.fingerprint[:8], features.fingerprint):
        assert [stage.fingerprint for stage in find(swept, name).stages] == [features.fingerprint]
        assert find(swept, name).run is None
    assert find(swept, "base.t0", kind="tokens").stages == find(swept, "tokens base.t0").stages


def test_a_stage_that_no_plan_asks_for_any_more_is_found_by_its_fingerprint(bench: Bench) -> None:
    bench.sweep(plan())
    bench.sweep(plan(**{"[16x1, 16x2]": "16x1"}))
    with bench.store() as store:
        gone = generator(store, "16x2")
        assert find(store, gone.fingerprint[:12]).stages[0].name == gone.name
        with pytest.raises(UnknownName, match="no run, stage or fingerprint"):
            find(store, gone.fingerprint[:12], plan="small")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("base/16x1/640/t0.g1", {}, rf"no run, stage or fingerprint \S+ \(did you mean {RUN}\?\); see: scaling runs"),
        ("16x3", {}, r"fingerprint 16x3 \(names with it: base/16x3/640/t0.g0, base/16x3/640/t0.g0.e0\)"),
        ("zzz", {}, r"fingerprint zzz; see: scaling runs, scaling sweep PLAN --dry-run"),
        ("zzz", {"plan": "small"}, r"^plan small: no run, stage or fingerprint zzz"),
        (
            "base.t0",
            {},
            r"base.t0 is several stages: tokenizer base.t0 \(\w{12}\), tokens base.t0 \(\w{12}\); give ",
        ),
        (
            RUN,
            {"kind": "generater"},
            r"--kind generater: no kind of stage \(did you mean generator\?\); use feat",
        ),
        ("base.t0", {"kind": "generator"}, r"base.t0 has no stage of kind generator; it has: tokenizer, tokens"),
        (RUN, {"plan": "smal"}, r"no plan 'smal' \(did you mean small\?\); it has small"),
    ],
)
def test_a_name_that_means_nothing_or_too_much_is_one_line_with_candidates(
    swept: Store, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UnknownName, match=message) as caught:
        find(swept, name, **options)
    assert "\n" not in str(caught.value)


def test_a_run_of_that_name_in_several_plans_asks_for_the_plan_unless_it_is_the_same(bench: Bench) -> None:
    bench.sweep(plan())
    same = plan(**{"plan: small": "plan: second"})
    with bench.store() as store:
        record(store, store.record_plan("second", same.sha256, "", {}, {}), plan_graph(same))
        assert find(store, RUN).plan == store.plan("small")
        other = plan(**{"codebook_size: 16": "codebook_size: 32"})
        record(store, store.record_plan("third", other.sha256, "", {}, {}), plan_graph(other))
        with pytest.raises(UnknownName, match="is in several plans: small, second, third; choose with --plan"):
            find(store, RUN)
        assert find(store, RUN, "third").plan == store.plan("third")
        with pytest.raises(UnknownName, match="is in small, second, third; choose with --plan"):
            show(store, bench.root, RUN)
        assert show(store, bench.root, RUN, "third")["state"] == "pending"


# ----------------------------------------------------------------------------------------------- logs


def test_the_logs_of_a_run_are_those_of_its_failed_stages_else_its_generators(bench: Bench, swept: Store) -> None:
    (good,) = logs(swept, bench.root, RUN)
    assert (good["kind"], good["state"], len(good["attempts"]), good["shown"]) == ("generator", "done", 1, 1)
    (bad,) = logs(swept, bench.root, OTHER)
    assert (bad["kind"], bad["state"], bad["message"]) == ("generator", "failed", "ValueError: no luck")
    assert [one["number"] for one in bad["attempts"]] == [1, 2]
    first = bad["attempts"][0]
    assert (first["state"], first["failure_class"], first["host"]) == ("failed", "user_error", owner().host)
    assert first["seconds"] == 3.0
    assert abs(first["started"] - time.time()) < 600
    assert first["log_exists"]
    assert bad["shown"] == 2
    assert len(logs(swept, bench.root, RUN, kind="evaluation")) == 2


def test_failed_stages_come_before_diverged_and_those_tried_in_vain(bench: Bench) -> None:
    bench.sweep(plan(), work)
    with bench.store() as store:
        rows = {f"{row.kind} {row.name}": row.fingerprint for row in store.stages().values()}
        store.set_state(rows[f"generator {OTHER}"], "pending")  # set back by retry: its failure still matters
        store.set_state(rows["tokens base.t0"], "diverged")
        store.set_state(rows["evaluation base.t0.reconstruction"], "failed")
        found = [one["kind"] for one in logs(store, bench.root, OTHER)]
    assert found == ["evaluation", "tokens", "generator"]


def test_logs_are_printed_with_every_attempt_above_them(bench: Bench, swept: Store) -> None:
    lines = render_logs(logs(swept, bench.root, OTHER)).splitlines()
    assert lines[0].startswith(f"generator {OTHER} (")
    assert lines[0].endswith("): failed, 2 attempts")
    assert lines[1].split()[:4] == ["1", "failed", "user_error", owner().host]
    assert lines[1].endswith("3 s  ValueError: no luck")
    log = Layout.log(folder_of(bench, swept, "16x2"), 2)
    assert lines[3] == f"--- log of attempt 2: {log}"
    assert lines[4] == f"line 1 of generator {OTHER}"
    assert lines[-1] == "\ufffd\ufffd odd", "other libraries write what they like"
    assert len(lines) == 10


def test_an_attempt_and_its_last_lines_may_be_chosen(bench: Bench, swept: Store) -> None:
    found = logs(swept, bench.root, OTHER, attempt=1)
    lines = render_logs(found, tail=2).splitlines()
    assert lines[3].endswith("attempts/0001/worker.log")
    assert lines[4:] == ["    (4 earlier lines left out)", f"line 5 of generator {OTHER}", "\ufffd\ufffd odd"]
    with pytest.raises(UnknownName, match=rf"no attempt 9; generator {OTHER} has 1 to 2"):
        logs(swept, bench.root, OTHER, attempt=9)


def test_a_log_that_is_gone_or_empty_is_said_to_be(bench: Bench, swept: Store) -> None:
    log = Layout.log(folder_of(bench, swept, "16x2"), 2)
    log.write_text("")
    assert render_logs(logs(swept, bench.root, OTHER)).endswith("\n    the log is empty")
    log.unlink()
    found = logs(swept, bench.root, OTHER)
    assert found[0]["attempts"][1]["log_exists"] is False
    assert render_logs(found).endswith("\n    the log is gone, or was never written")


def test_a_log_is_found_from_another_folder_by_its_recorded_path(tmp_path: Path, bench: Bench, swept: Store) -> None:
    (found,) = logs(swept, tmp_path, OTHER)
    assert found["attempts"][1]["log"] == str(Layout.log(folder_of(bench, swept, "16x2"), 2))


def test_a_stage_that_never_ran_says_so(bench: Bench, swept: Store) -> None:
    (found,) = logs(swept, bench.root, f"evaluation {OTHER}.e0")
    assert (found["attempts"], found["shown"]) == ([], None)
    assert render_logs([found]).endswith("pending, never tried")


def test_attempts_of_which_only_the_folder_is_left_are_listed(bench: Bench, swept: Store) -> None:
    swept.close()
    Path(bench.database).unlink()
    bench.sweep(plan())
    with bench.store() as store:
        (found,) = logs(store, bench.root, OTHER)
        assert [one["state"] for one in found["attempts"]] == ["not recorded", "not recorded", "done"]
        text = render_logs(logs(store, bench.root, OTHER, attempt=1))
    assert f"line 1 of generator {OTHER}" in text


def test_a_running_attempt_has_the_time_so_far_and_a_dead_drivers_none(bench: Bench) -> None:
    with Store.open(bench.database, create=True) as store:
        record(store, store.record_plan("small", "a" * 64, "", {}, {}), plan_graph(plan()))
        rows = {row.kind: row for row in store.stages().values()}
        store.begin_attempt(rows["features"].fingerprint, now=time.time() - 100)
        store.begin_attempt(rows["tokenizer"].fingerprint, owner=Owner(owner().host, 2**22 + 1, owner().boot_id))
        (running,) = logs(store, bench.root, rows["features"].name)
        assert 99 < running["attempts"][0]["seconds"] < 160
        (left,) = logs(store, bench.root, "base.t0", kind="tokenizer")
        assert left["attempts"][0]["seconds"] is None
        assert "attempts" in render_logs([running | {"attempts": running["attempts"] * 2}])


# ----------------------------------------------------------------------------------------------- show


def test_a_run_is_shown_whole(bench: Bench, swept: Store) -> None:
    found = show(swept, bench.root, RUN)
    assert (found["plan"], found["run"], found["state"], found["imported"]) == ("small", RUN, "done", False)
    assert found["settings"]["size"] == "16x1"
    assert found["settings"]["images_seen"] == 640
    assert (found["results"]["loss"], found["results"]["gfid"]) == (4 / 7, 12.5)
    assert found["results"]["evaluation_seed"] == 0
    assert found["evaluations"] == [{"state": "done"}]
    assert found["finished"] is not None
    stages = {one["kind"]: one for one in found["stages"]}
    assert list(stages) == ["tokenizer", "tokens", "generator", "features", "evaluation"]
    made = stages["generator"]
    row = generator(swept, "16x1")
    assert (made["fingerprint"], made["flops"], made["params"]) == (row.fingerprint, row.flops, row.params)
    assert (made["attempts"], made["seconds"], made["device"], made["peak_rss"]) == (1, 2.0, "cpu", 300 * 2**20)
    assert made["folder"] == str(folder_of(bench, swept, "16x1"))
    assert [one["step"] for one in found["curves"]["generator"]] == [3, 4, 5, 6, 7]
    assert "torch" in found["provenance"]["versions"][0]
    assert found["provenance"]["hosts"] == [owner().host]
    assert len(found["provenance"]["commits"]) <= 1


def test_a_run_that_is_shown_as_text_has_all_its_parts(bench: Bench, swept: Store) -> None:
    text = render_show(show(swept, bench.root, RUN))
    lines = text.splitlines()
    assert lines[0].startswith(f"{RUN} of plan small: done, finished 20")
    headings = [line for line in lines[1:] if not line.startswith(" ")]
    assert headings == [
        "settings",
        "stages",
        "results",
        "learning curve, tokenizer (newest)",
        "learning curve, generator (newest)",
        "origin",
        "folders",
    ]
    (row,) = [line.split() for line in lines if line.startswith("  generator ")]
    assert row[:3] == ["generator", RUN, "done"]
    assert row[4:] == ["1", "2", "s", "cpu", "300", "MiB", "2.52e+08", "4,176"]
    assert "  loss             0.571429" in lines
    assert "  compute            251,658,240" in lines
    assert str(folder_of(bench, swept, "16x1")) in text


def test_attempts_in_vain_count_and_a_failure_is_shown(bench: Bench, swept: Store) -> None:
    found = show(swept, bench.root, OTHER)
    assert found["state"] == "failed"
    assert found["finished"] is None
    (made,) = [one for one in found["stages"] if one["kind"] == "generator"]
    assert (made["attempts"], made["seconds"], made["device"]) == (2, 6.0, None)
    assert "  generator failed: ValueError: no luck" in render_show(found).splitlines()


def test_a_diverged_run_is_strict_json(bench: Bench, swept: Store, scaling: Command) -> None:
    said = scaling("show", "base/16x3/640/t0.g0", "--json")
    found = json.loads(said.out, parse_constant=pytest.fail)
    assert found["state"] == "diverged"
    assert found["curves"]["generator"][-1] == {"step": 7, "loss": None}
    assert "nan" in scaling("show", "base/16x3/640/t0.g0").out
    assert json_values({"a": [1, math.inf, ("x", None)]}) == {"a": [1, None, ["x", None]]}


def test_several_evaluations_are_shown_apart(bench: Bench) -> None:
    several = plan(**{"evaluation: {": "evaluation: {guidance: [1.0, 1.5], "})

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        attempt = attempt_of(job)
        attempt.output("result.bin").write_bytes(b"")
        attempt.finish({"gfid": 9.0 if "cfg" in job["name"] else 12.0, "samples": 20}, "done")
        return {"status": "done", "seconds": 1.0}

    bench.sweep(several, measure)
    with bench.store() as store:
        found = show(store, bench.root, RUN)
    assert found["evaluations"] == [
        {"state": "done", "guidance": 1.0, "gfid": 12.0},
        {"state": "done", "guidance": 1.5, "gfid": 9.0},
    ]
    assert found["results"]["samples"] == 20
    lines = render_show(found).splitlines()
    place = lines.index("evaluations")
    assert [line.split() for line in lines[place + 1 : place + 4]] == [
        ["state", "guidance", "gfid"],
        ["done", "1", "12"],
        ["done", "1.5", "9"],
    ]


def test_an_imported_run_is_shown_as_far_as_it_goes(bench: Bench, swept: Store) -> None:
    columns = {"run": ["a", "b"], "state": ["done", "done"], "loss": [3.5, None], "note": ["x", None]}
    with bench.store() as store:
        store.record_import("theirs", "b" * 64, "t.csv", {"params": "N"}, {"sets": []}, columns, created=5.0)
        found = show(store, bench.root, "a")
        assert (found["plan"], found["imported"], found["settings"]) == ("theirs", True, {})
        assert found["results"] == {"loss": 3.5, "note": "x"}
        assert show(store, bench.root, "b", "theirs")["results"] == {}
        assert found["stages"] == []
        assert found["provenance"]["file"] == "t.csv"
        lines = render_show(found).splitlines()
        assert lines[:4] == ["a of import theirs: done", "columns", "  loss  3.5", "  note  x"]
        assert lines[4] == "origin"
        assert lines[5].startswith("  file t.csv, SHA-256 bbbbbbbbbbbb, imported ")
        with pytest.raises(UnknownName, match="no run c; see: scaling runs"):
            show(store, bench.root, "c", "theirs")


def test_a_run_that_was_never_swept_is_shown_as_planned(bench: Bench) -> None:
    with Store.open(bench.database, create=True) as store:
        facts = {"git_commit": "c" * 40, "dirty": True, "versions": {"torch": "2"}}
        record(store, store.record_plan("small", "a" * 64, "", {}, facts), plan_graph(plan()))
        found = show(store, bench.root, RUN)
    assert (found["state"], found["curves"], found["finished"]) == ("pending", {}, None)
    assert {one["attempts"] for one in found["stages"]} == {0}
    assert f"  git commit {'c' * 40}, with changes that were not committed" in render_show(found).splitlines()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("base/16x1/640/t0.g1", {}, rf"no run \S+ \(did you mean {RUN}\?\); see: scaling runs"),
        ("cnn-held-out-30", {}, r"no run \S+, but a stage \(features cnn-held-out-30\), which scaling logs shows"),
        ("base.t0", {}, r"no run base.t0; see: scaling runs"),
        (RUN, {"plan": "smal"}, r"no plan 'smal' \(did you mean small\?\); it has small"),
    ],
)
def test_a_run_that_there_is_not_is_one_line(
    bench: Bench, swept: Store, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UnknownName, match=message) as caught:
        show(swept, bench.root, name, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StoreError)


# ------------------------------------------------------------------------------------------- commands


def test_the_commands_print_to_stdout_and_write_nothing(bench: Bench, swept: Store, scaling: Command) -> None:
    before = everything(bench.root)
    said = scaling("logs", OTHER, "--tail", "1")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("\ufffd\ufffd odd\n")
    (found,) = json.loads(scaling("logs", OTHER, "--json").out)
    assert [Path(one["log"]).name for one in found["attempts"]] == ["worker.log", "worker.log"]
    said = scaling("show", RUN, "--plan", "small")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{RUN} of plan small: done")
    assert everything(bench.root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("logs", "zzz"), "no run, stage or fingerprint zzz"),
        (("logs", OTHER, "--attempt", "7"), "no attempt 7; generator"),
        (("logs", OTHER, "--kind", "x"), "--kind x: no kind of stage; use features, tokenizer, tokens, generator"),
        (("logs", "base.t0"), "base.t0 is several stages"),
        (("show", "zzz"), "no run zzz; see: scaling runs"),
        (("show", RUN, "--db", "no.db"), "no.db"),
        (("logs", RUN, "--db", "no.db"), "no.db"),
    ],
)
@pytest.mark.usefixtures("swept")
def test_a_mistake_is_one_line_and_code_2(scaling: Command, arguments: tuple[str, ...], message: str) -> None:
    said = scaling(*arguments)
    assert said.code == 2
    assert message in said.line


@pytest.mark.parametrize(
    "arguments", [("logs", RUN), ("show", RUN), ("retry", "--state", "failed"), ("cancel", OTHER)], ids=" ".join
)
@pytest.mark.usefixtures("swept")
def test_a_command_that_looks_or_mends_imports_neither_torch_nor_ray(bench: Bench, arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys, scaling.cli\nsys.argv = ['scaling', *{arguments!r}]\ncode = 0\n"
        "try: scaling.cli.main()\nexcept SystemExit as e: code = e.code\n"
        f"print([name for name in {SHUNNED} if name in sys.modules], code or 0, file=sys.stderr)"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bench.root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.splitlines()[-1] == "[] 0", ended.stderr


def test_a_folder_without_artifacts_still_shows_what_the_database_knows(bench: Bench, swept: Store) -> None:
    shutil.rmtree(bench.root / "artifacts")
    assert show(swept, bench.root, RUN)["results"]["loss"] == 4 / 7
    assert render_logs(logs(swept, bench.root, RUN)).endswith("the log is gone, or was never written")
