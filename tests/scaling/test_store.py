"""The store's contract, on every database it supports: SQLite, and PostgreSQL where SCALING_TEST_POSTGRES names one."""

import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from scaling.leases import STALE_AFTER
from scaling.provenance import Owner
from scaling.provenance import owner as this_process
from scaling.schema import metadata
from scaling.store import LeaseLost, Locked, RunRecord, StageRecord, Store, StoreError

NO_PROCESS = 2**22 + 1  # above Linux's largest process id
ELSEWHERE = Owner("another-host", 1, "another-boot")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / 'odd "name" ?#%20.db')
        return
    server = os.environ.get("SCALING_TEST_POSTGRES")
    if not server:
        pytest.skip("SCALING_TEST_POSTGRES names no server")
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"scaling_test_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url, create=True) as store:
        yield store


def fingerprint(name: str) -> str:
    return (name.encode().hex() + "0" * 64)[:64]


def stage(kind: str, name: str, **more: Any) -> StageRecord:
    return StageRecord(fingerprint(name), kind, name, {"width": 8}, recipe=1, **more)


def record(store: Store, name: str = "quick", stages: tuple[StageRecord, ...] = (), **more: Any) -> int:
    plan = store.record_plan(name, "a" * 64, "plan: quick", {"plan": name}, more.get("provenance", {}))
    store.record_stages(plan, stages or (stage("tokenizer", "t"),), more.get("parents", ()))
    return plan


# ----------------------------------------------------------------------------------------------- plans


def test_a_plan_recorded_again_keeps_its_id_and_takes_the_new_text(store: Store) -> None:
    first = store.record_plan(
        "p", "a" * 64, "old", {"x": 1}, {"git_commit": "abc", "dirty": True, "versions": {"n": "1"}}
    )
    other = store.record_plan("q", "b" * 64, "other", {}, {})
    assert store.record_plan("p", "c" * 64, "new", {"x": math.inf}, {}) == first != other
    assert [plan.name for plan in store.plans()] == ["p", "q"]
    plan = store.plan("p")
    assert plan is not None
    assert (plan.text, plan.sha256, plan.resolved, plan.git_commit) == ("new", "c" * 64, {"x": math.inf}, None)
    assert plan.updated >= plan.created
    assert store.plan("r") is None


def test_stages_recorded_again_keep_state_and_order_follows_the_plan(store: Store) -> None:
    t, g, e = (
        stage("tokenizer", "t", flops=1e22, params=7, why="new"),
        stage("generator", "g"),
        stage("evaluation", "e"),
    )
    plan = record(store, stages=(t, g, e), parents=[(g.fingerprint, t.fingerprint), (e.fingerprint, g.fingerprint)])
    store.set_state(t.fingerprint, "done", "cached")
    store.record_stages(plan, [g, stage("tokenizer", "t", why="already done")], [(g.fingerprint, t.fingerprint)])
    rows = store.stages(plan)
    assert list(rows) == [g.fingerprint, t.fingerprint]
    assert rows[t.fingerprint].state == "done"
    assert rows[t.fingerprint].why == "already done"
    assert rows[t.fingerprint].payload == {"width": 8}
    assert rows[g.fingerprint].parents == (t.fingerprint,)
    assert set(store.stages()) == {t.fingerprint, g.fingerprint, e.fingerprint}
    assert store.status(plan) == {"generator": {"pending": 1}, "tokenizer": {"done": 1}}


def test_two_plans_share_a_stage_and_its_state(store: Store) -> None:
    one = record(store, "one", (stage("tokenizer", "t"),))
    two = record(store, "two", (stage("tokenizer", "t"), stage("generator", "g")))
    store.set_state(fingerprint("t"), "diverged")
    assert store.stages(one)[fingerprint("t")].state == store.stages(two)[fingerprint("t")].state == "diverged"


def test_a_state_or_a_stage_that_does_not_exist_is_refused(store: Store) -> None:
    record(store)
    with pytest.raises(ValueError, match="no state of a stage"):
        store.set_state(fingerprint("t"), "RUNNING")
    with pytest.raises(StoreError, match="no stage"):
        store.set_state("f" * 64, "done")
    with pytest.raises(StoreError):
        store.set_summary("f" * 64, {"loss": 1.0})


def test_a_transaction_keeps_all_of_its_writes_or_none(store: Store) -> None:
    plan = record(store)

    def write_and_fail() -> None:
        with store.transaction():
            store.set_state(fingerprint("t"), "done")
            assert store.stages(plan)[fingerprint("t")].state == "done"
            store.set_summary(fingerprint("t"), {"rfid": 1.0})
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        write_and_fail()
    assert store.stages(plan)[fingerprint("t")].state == "pending"
    assert store.summary(fingerprint("t")) == {}
    with store.transaction():
        store.set_state(fingerprint("t"), "done")
    assert store.stages(plan)[fingerprint("t")].state == "done"


# --------------------------------------------------------------------------------------------- drivers


def test_a_second_driver_of_a_plan_is_refused_and_told_whose_it_is(store: Store) -> None:
    lease = store.acquire_driver("p", now=1000.0)
    with pytest.raises(Locked) as error:
        store.acquire_driver("p", now=1030.0)
    me = this_process()
    assert (error.value.host, error.value.pid, error.value.since) == (me.host, me.pid, 1000.0)
    assert "\n" not in str(error.value)
    store.acquire_driver("another", now=1030.0)
    store.release_driver(lease)
    assert store.acquire_driver("p", now=1031.0).took_over is None


def test_a_driver_that_was_killed_is_taken_over_at_once(store: Store) -> None:
    me = this_process()
    dead = Owner(me.host, NO_PROCESS, me.boot_id)
    store.acquire_driver("p", now=1000.0, owner=dead)
    assert store.acquire_driver("p", now=1000.5).took_over == dead


def test_a_driver_from_before_a_reboot_is_dead_though_its_pid_lives(store: Store) -> None:
    me = this_process()
    store.acquire_driver("p", now=1000.0, owner=Owner(me.host, me.pid, "an earlier boot"))
    assert store.acquire_driver("p", now=1000.5).took_over is not None


def test_a_driver_on_another_host_is_taken_over_only_when_its_heartbeat_is_old(store: Store) -> None:
    lease = store.acquire_driver("p", now=1000.0, owner=ELSEWHERE)
    store.beat_driver(lease, now=1050.0)
    with pytest.raises(Locked):
        store.acquire_driver("p", now=1050.0 + STALE_AFTER)
    taken = store.acquire_driver("p", now=1051.0 + STALE_AFTER)
    assert taken.took_over == ELSEWHERE
    with pytest.raises(LeaseLost):
        store.beat_driver(lease, now=1112.0)
    store.release_driver(lease)
    store.beat_driver(taken, now=1113.0)


# -------------------------------------------------------------------------------------------- attempts


def test_a_stage_that_runs_under_a_live_driver_cannot_be_claimed_again(store: Store) -> None:
    record(store)
    store.acquire_driver("p", now=1000.0, owner=ELSEWHERE)
    first = store.begin_attempt(
        fingerprint("t"), now=1000.0, owner=ELSEWHERE, threads=2, provenance={"git_commit": "abc"}
    )
    assert first is not None
    assert first.number == 1
    assert store.begin_attempt(fingerprint("t"), now=1000.0 + STALE_AFTER) is None
    (row,) = store.attempts(fingerprint("t"))
    assert (row.state, row.token, row.owner, row.started) == ("running", first.token, ELSEWHERE, 1000.0)
    assert (row.fields["threads"], row.fields["git_commit"]) == (2, "abc")
    second = store.begin_attempt(fingerprint("t"), now=1001.0 + STALE_AFTER)
    assert second is not None
    assert second.number == 2
    assert second.token != first.token
    assert [(row.number, row.state, row.failure_class) for row in store.attempts(fingerprint("t"))] == [
        (1, "lost", "driver_lost"),
        (2, "running", ""),
    ]
    with pytest.raises(LeaseLost):
        store.finish_attempt(fingerprint("t"), 1, "done")
    assert store.stages()[fingerprint("t")].state == "running"


def test_running_attempts_say_which_of_them_live(store: Store) -> None:
    record(store, stages=(stage("tokenizer", "t"), stage("tokenizer", "u")))
    me = this_process()
    store.begin_attempt(fingerprint("t"), now=1000.0)
    store.begin_attempt(fingerprint("u"), now=1000.0, owner=Owner(me.host, NO_PROCESS, me.boot_id))
    assert {row.stage: row.live for row in store.running_attempts(now=1000.0)} == {
        fingerprint("t"): True,
        fingerprint("u"): False,
    }
    store.finish_attempt(fingerprint("t"), 1, "done")
    assert [row.stage for row in store.running_attempts()] == [fingerprint("u")]


def test_an_attempt_s_end_decides_the_stage_s_state_unless_it_was_decided_before(store: Store) -> None:
    record(store)
    key = fingerprint("t")
    expected = []
    for state, after in [("failed", "failed"), ("stopped", "pending"), ("lost", "pending"), ("diverged", "diverged")]:
        attempt = store.begin_attempt(key)
        assert attempt is not None
        store.finish_attempt(key, attempt.number, state, "crash", "why", seconds=2.5)
        assert store.stages()[key].state == after
        expected.append((attempt.number, state, "crash", "why"))
    assert [(row.number, row.state, row.failure_class, row.message) for row in store.attempts(key)] == expected
    assert store.begin_attempt(key) is None
    again = store.begin_attempt(key, force=True, after=10)
    assert again is not None
    assert again.number == 11
    store.set_state(key, "pending", "tried again")
    store.finish_attempt(key, 11, "failed", "oom_gpu")
    assert store.stages()[key].state == "pending"


def test_an_attempt_is_finished_once(store: Store) -> None:
    record(store)
    store.begin_attempt(fingerprint("t"))
    store.finish_attempt(fingerprint("t"), 1, "done")
    with pytest.raises(LeaseLost, match="attempt 1 runs no more"):
        store.finish_attempt(fingerprint("t"), 1, "failed")
    assert store.stages()[fingerprint("t")].state == "done"


# --------------------------------------------------------------------------------------------- results


def test_metrics_recorded_again_after_a_resume_replace_the_earlier_ones(store: Store) -> None:
    record(store)
    key = fingerprint("t")
    store.add_metrics(key, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "lr": 0.1}, {"step": 3, "loss": 9.0}])
    store.add_metrics(key, [{"step": 2, "loss": 2.5}, {"step": 4, "loss": 1.0}])
    assert store.metrics(key) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.5, "lr": 0.1},
        {"step": 3, "loss": 9.0},
        {"step": 4, "loss": 1.0},
    ]
    store.add_metrics(key, [{"step": 1, "loss": 1.5}], replace=True)
    assert store.metrics(key) == [{"step": 1, "loss": 1.5}]


def test_values_that_are_not_finite_come_back_as_they_were(store: Store) -> None:
    record(store)
    key = fingerprint("t")
    store.add_metrics(key, [{"step": 1, "loss": math.nan, "norm": math.inf, "low": -math.inf}])
    (row,) = store.metrics(key)
    assert math.isnan(row["loss"])
    assert (row["norm"], row["low"]) == (math.inf, -math.inf)
    store.set_summary(key, {"rfid": math.nan, "norm": math.inf})
    summary = store.summary(key)
    assert math.isnan(summary["rfid"])  # type: ignore[arg-type]
    assert summary["norm"] == math.inf


def test_a_summary_keeps_its_values_and_types_and_replaces_the_last(store: Store) -> None:
    record(store)
    key = fingerprint("t")
    values = {"steps": 1000, "rfid": 0.1 + 0.2, "protocol": "gFID, 64-d", "none": None, "flag": True, "flops": 10**22}
    store.set_summary(key, {"old": 1.0})
    store.set_summary(key, values)
    back = store.summary(key)
    assert back == values
    assert {name: type(back[name]) for name in ("steps", "rfid", "flag")} == {"steps": int, "rfid": float, "flag": bool}
    store.set_summary(key, {"a": np.float32(0.5), "b": np.int64(3)})  # type: ignore[dict-item]
    assert store.summary(key) == {"a": 0.5, "b": 3}


def test_what_is_no_scalar_is_refused(store: Store) -> None:
    record(store)
    with pytest.raises(TypeError, match="neither number, text nor None"):
        store.set_summary(fingerprint("t"), {"x": [1]})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="not a number"):
        store.add_metrics(fingerprint("t"), [{"step": 1, "loss": "low"}])


def test_a_committed_result_is_recorded_at_once(store: Store) -> None:
    plan = record(store)
    key = fingerprint("t")
    files = {"w.safetensors": {"sha256": "a" * 64, "bytes": 2**40}}
    store.record_result(key, "done", 2, files, {"rfid": 3.5}, [{"step": 1, "loss": 1.0}])
    assert store.stages(plan)[key].state == "done"
    assert store.summary(key) == {"rfid": 3.5}
    assert store.metrics(key) == [{"step": 1, "loss": 1.0}]
    assert store.artifacts(key) == [
        {"stage": key, "attempt": 2, "file": "w.safetensors", "sha256": "a" * 64, "bytes": 2**40}
    ]


def test_fits_are_kept_with_all_they_saw(store: Store) -> None:
    fit = {
        "metric": "fid",
        "protocol": "p",
        "options": {"law": "joint"},
        "points": [[1.0, math.nan]],
        "result": {"E": 1},
    }
    first = store.save_fit(plan="p", **fit)
    second = store.save_fit(plan=None, **fit)
    assert second > first
    assert [row.id for row in store.fits()] == [first, second]
    (row,) = store.fits("p")
    assert (row.metric, row.options, row.result) == ("fid", {"law": "joint"}, {"E": 1})
    assert math.isnan(row.points[0][1])


# ------------------------------------------------------------------------------------------ tidy table


def grid(store: Store, size: int) -> int:
    """A plan of `size` runs, each with its generator and two evaluations, on one tokenizer; all done."""
    shared = [stage("tokenizer", "t"), stage("tokens", "k"), stage("reconstruction", "r")]
    own = [stage(kind, f"{i}{kind[0]}") for i in range(size) for kind in ("generator", "evaluation", "second")]
    plan = record(store, stages=(*shared, *own))
    runs = [
        RunRecord(
            f"run-{i}",
            {"arm": "base", "codebook_size": 64, "compute": 1e9 * i},
            {
                "tokenizer": fingerprint("t"),
                "tokens": fingerprint("k"),
                "generator": fingerprint(f"{i}g"),
                "reconstruction": fingerprint("r"),
                "evaluations": [fingerprint(f"{i}e"), fingerprint(f"{i}s")],
            },
            [{"evaluation_seed": 0, "guidance": 1.0}, {"evaluation_seed": 1, "guidance": 1.0}],
        )
        for i in range(size)
    ]
    store.record_runs(plan, runs)
    assert store.runs(plan) == runs
    with store.transaction():
        for record_ in shared:
            store.record_result(record_.fingerprint, "done", 1, {}, {"seconds": 1.0, "usage": 0.9, "degenerate": 0}, [])
        for record_ in own:
            store.record_result(record_.fingerprint, "done", 1, {}, {"loss": 2.0, "steps": 10, "gfid": 30.0}, [])
    return plan


def test_the_tidy_table_has_a_row_for_each_run_and_evaluation_in_the_plan_s_order(store: Store) -> None:
    grid(store, 12)
    record(store, "empty")
    table = store.load_runs("quick")
    assert len(table) == 24
    assert list(table["run"]) == [f"run-{i}" for i in range(12) for _ in range(2)]
    assert list(table["evaluation_seed"]) == [0, 1] * 12
    assert set(table["state"]) == {"done"}
    assert table["codebook_size"].dtype == table["steps"].dtype == np.int64
    assert table["gfid"].dtype == table["usage"].dtype == np.float64
    assert list(table.columns[:3]) == ["plan", "run", "state"]
    assert store.load_runs().equals(table)
    assert list(store.load_runs("empty").columns) == ["plan", "run", "state"]
    with pytest.raises(StoreError, match="no plan nothing; recorded are: quick, empty"):
        store.load_runs("nothing")


def test_a_large_plan_is_loaded_whole(store: Store) -> None:
    if store.path is None:
        pytest.skip("filling a server takes long and tests no more than SQLite does")
    keys = [fingerprint(f"{i:05d}") for i in range(10_000)]
    plan = record(store, stages=tuple(StageRecord(key, "generator", key[:8], {}, 1) for key in keys))
    store.record_runs(plan, [RunRecord(key, {"arm": "base"}, {"generator": key}) for key in keys])
    with store.transaction():
        for index, key in enumerate(keys):
            store.set_summary(key, {"loss": float(index)})
    table = store.load_runs("quick")
    assert table.shape == (10_000, 5)
    assert list(table["loss"]) == [float(i) for i in range(10_000)]


@pytest.mark.parametrize(
    ("states", "degenerate", "expected"),
    [
        ({}, 0, "done"),
        ({}, 1, "degenerate"),
        ({"g": "diverged", "e": "pending", "t": "failed"}, 1, "diverged"),
        ({"g": "failed"}, 1, "degenerate"),
        ({"g": "failed", "e": "running"}, 0, "failed"),
        ({"g": "cancelled", "e": "pending"}, 0, "failed"),
        ({"g": "running", "e": "pending"}, 0, "running"),
        ({"e": "pending"}, 0, "pending"),
    ],
)
def test_a_row_s_state_follows_from_its_stages(
    store: Store, states: dict[str, str], degenerate: int, expected: str
) -> None:
    plan = record(store, stages=(stage("tokenizer", "t"), stage("generator", "g"), stage("evaluation", "e")))
    parts = {"tokenizer": fingerprint("t"), "generator": fingerprint("g"), "evaluations": [fingerprint("e")]}
    store.record_runs(plan, [RunRecord("r", {"arm": "base"}, parts)])
    for name in "tge":
        store.set_state(fingerprint(name), states.get(name, "done"))
    store.set_summary(fingerprint("t"), {"degenerate": degenerate, "state": "not this one"})
    (row,) = store.load_runs("quick").to_dict("records")
    assert (row["state"], row["arm"]) == (expected, "base")


def test_runs_that_left_the_plan_leave_its_table(store: Store) -> None:
    plan = grid(store, 3)
    store.record_runs(plan, store.runs(plan)[1:2])
    assert set(store.load_runs("quick")["run"]) == {"run-1"}


def test_every_table_is_covered_by_the_migrations(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "version_table": "scaling_version", "target_metadata": metadata}
        )
        assert compare_metadata(context, metadata) == []
