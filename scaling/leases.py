"""Who may do what now: the driver of a plan, and the attempt at a stage. Claims are made so that two never both hold.

A claim is never a bare flag: it names its process, and it lapses when that process is known to be dead, or when its
driver's heartbeat is older than `stale_after` seconds (the only sign there is from another host). Every claim is one
UPDATE that names the state it was decided on, so it fails where somebody else was faster, on either database.
Times are Unix seconds; `now` may be given for tests.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scaling.database import Database, StoreError
from scaling.provenance import Owner, alive
from scaling.provenance import owner as this_process
from scaling.schema import attempts, drivers, stages

STALE_AFTER = 60.0  # seconds without a heartbeat after which a driver counts as dead; it beats every 10
ENDED = ("done", "diverged")  # a stage in these states has its result


class Locked(StoreError):
    """Another live driver holds the plan."""

    def __init__(self, plan: str, owner: Owner, since: float) -> None:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        super().__init__(f"plan {plan} has driver process {owner.pid} on {owner.host} since {started}; wait or stop it")
        self.plan, self.host, self.pid, self.since = plan, owner.host, owner.pid, since


class LeaseLost(StoreError):
    """A claim was taken over by another process; what was to be written is refused."""


class StageCancelled(StoreError):
    """A stage was cancelled by hand; it may be claimed again once it is set back to pending."""


@dataclass(frozen=True)
class DriverLease:
    """The right to drive a plan. `took_over` is the dead process it was taken from, if any."""

    plan: str
    owner: Owner
    started: float
    took_over: Owner | None = None


@dataclass(frozen=True)
class DriverRow:
    """A plan's driver as recorded; not `live`: its process is known or taken to be dead."""

    owner: Owner
    started: float
    live: bool


@dataclass(frozen=True)
class Attempt:
    """A claimed stage: the number and the token that its lease.json must carry."""

    number: int
    token: str


@dataclass(frozen=True)
class AttemptRow:
    """An attempt as recorded. `fields` are device, threads, seed, peak_rss (bytes), seconds, git_commit, ..."""

    stage: str
    number: int
    token: str
    state: str  # running | done | diverged | failed | cancelled | stopped | lost
    failure_class: str
    message: str
    owner: Owner
    started: float
    ended: float | None
    live: bool  # running, by a process that is not known to be dead
    fields: Mapping[str, Any]


class Leases(Database):
    """The queries of this module on an open database."""

    # ------------------------------------------------------------------------------------- drivers

    def acquire_driver(
        self,
        plan: str,
        *,
        now: float | None = None,
        stale_after: float = STALE_AFTER,
        owner: Owner | None = None,
    ) -> DriverLease:
        """Become the driver of a plan, in place of a dead one if need be. Raises Locked while another lives."""
        now, me = _now(now), owner or this_process()
        mine = {"plan": plan, **vars(me), "started": now, "heartbeat": now}
        with self.transaction() as connection:
            claimed = connection.execute(self._insert(drivers).values(mine).on_conflict_do_nothing())
            if claimed.rowcount:
                return DriverLease(plan, me, now)
            row = connection.execute(sa.select(drivers).where(drivers.c.plan == plan)).one()
            holder = _owner(row)
            if _is_live(holder, row.heartbeat, now, stale_after):
                raise Locked(plan, holder, row.started)
            seen = _held_by(plan, holder, row.started) & (drivers.c.heartbeat == row.heartbeat)
            if not connection.execute(sa.update(drivers).where(seen).values(mine)).rowcount:
                raise Locked(plan, holder, row.started)
        return DriverLease(plan, me, now, took_over=holder)

    def beat_driver(self, lease: DriverLease, *, now: float | None = None) -> None:
        """Say that the driver lives; call it every 10 s. Raises LeaseLost after another took the plan over."""
        with self.transaction() as connection:
            mine = _held_by(lease.plan, lease.owner, lease.started)
            if not connection.execute(sa.update(drivers).where(mine).values(heartbeat=_now(now))).rowcount:
                raise LeaseLost(f"plan {lease.plan} was taken over by another driver; this one stops")

    def release_driver(self, lease: DriverLease) -> None:
        """Give the plan back; nothing happens where another took it over."""
        with self.transaction() as connection:
            connection.execute(sa.delete(drivers).where(_held_by(lease.plan, lease.owner, lease.started)))

    def driver(self, plan: str, *, now: float | None = None, stale_after: float = STALE_AFTER) -> DriverRow | None:
        """Who holds a plan, if anybody does. Reads only."""
        row = self._query(lambda c: c.execute(sa.select(drivers).where(drivers.c.plan == plan)).one_or_none())
        if row is None:
            return None
        holder = _owner(row)
        return DriverRow(holder, row.started, _is_live(holder, row.heartbeat, _now(now), stale_after))

    # ------------------------------------------------------------------------------------ attempts

    def begin_attempt(
        self,
        fingerprint: str,
        *,
        after: int = 0,
        force: bool = False,
        now: float | None = None,
        stale_after: float = STALE_AFTER,
        owner: Owner | None = None,
        provenance: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Attempt | None:
        """Claim a stage and record the attempt; None where it is running under a live driver or has its result.

        `after`: a number that the attempt's must exceed (`artifacts.last_attempt`: folders outlive a lost database).
        `force` claims a stage that has its result. A dead driver's attempt at the stage becomes `lost`.
        `provenance` is that of `scaling.provenance`; `fields` are columns of attempts: device, threads, seed, log_path.
        Raises StageCancelled where the stage was cancelled.
        """
        now, me = _now(now), owner or this_process()
        code = {name: (provenance or {}).get(name) for name in ("git_commit", "dirty", "versions")}
        with self.transaction() as connection:
            stage = connection.execute(
                sa.select(stages.c.state, stages.c.attempt).where(stages.c.fingerprint == fingerprint)
            ).one_or_none()
            if stage is None:
                raise StoreError(f"{self.place}: no stage {fingerprint[:12]}; record the plan's stages first")
            if stage.state in ENDED and not force:
                return None
            if stage.state == "cancelled":
                raise StageCancelled(f"stage {fingerprint[:12]} is cancelled; scaling retry --state cancelled frees it")
            running = _attempt_rows(connection, attempts.c.stage == fingerprint, now, stale_after, running=True)
            if any(row.live for row in running):
                return None
            number = max(stage.attempt, after) + 1
            seen = (
                (stages.c.fingerprint == fingerprint)
                & (stages.c.state == stage.state)
                & (stages.c.attempt == stage.attempt)
            )
            claim = sa.update(stages).where(seen).values(state="running", attempt=number, message="", updated=now)
            if not connection.execute(claim).rowcount:
                return None
            lost = {"state": "lost", "failure_class": "driver_lost", "message": "its driver died", "ended": now}
            old = (attempts.c.stage == fingerprint) & (attempts.c.state == "running")
            connection.execute(sa.update(attempts).where(old).values(lost))
            token = secrets.token_hex(16)
            mine = {"stage": fingerprint, "number": number, "token": token, **vars(me), "started": now} | code | fields
            connection.execute(
                sa.insert(attempts).values({"state": "running", "failure_class": "", "message": "", **mine})
            )
        return Attempt(number, token)

    def finish_attempt(
        self,
        fingerprint: str,
        number: int,
        state: str,
        failure_class: str = "",
        message: str = "",
        *,
        stage_state: str | None = None,
        now: float | None = None,
        **fields: Any,
    ) -> None:
        """End a running attempt as done, diverged, failed, cancelled, stopped or lost.

        A stage still running takes `stage_state`, else the attempt's state (pending for stopped and lost, which are no
        states of a stage); a state given to it before stays, so a stage set to pending is tried again. Raises LeaseLost
        where the attempt is not running any more: another driver took the stage over, or it was finished before.
        """
        stage_state = stage_state or (state if state in ("done", "diverged", "failed", "cancelled") else "pending")
        ended = {"state": state, "failure_class": failure_class, "message": message, "ended": _now(now), **fields}
        with self.transaction() as connection:
            running = (
                (attempts.c.stage == fingerprint) & (attempts.c.number == number) & (attempts.c.state == "running")
            )
            if not connection.execute(sa.update(attempts).where(running).values(ended)).rowcount:
                raise LeaseLost(f"stage {fingerprint[:12]}: attempt {number} runs no more, it was taken over")
            newest = (stages.c.fingerprint == fingerprint) & (stages.c.attempt == number)
            newest &= stages.c.state == "running"
            values = {"state": stage_state, "message": message, "updated": ended["ended"]}
            connection.execute(sa.update(stages).where(newest).values(values))

    def running_attempts(self, *, now: float | None = None, stale_after: float = STALE_AFTER) -> list[AttemptRow]:
        """All attempts recorded as running, `live` or left behind by a dead driver."""
        return self._query(lambda c: _attempt_rows(c, sa.true(), _now(now), stale_after, running=True))

    def attempts(self, fingerprint: str) -> list[AttemptRow]:
        """A stage's attempts in order."""
        return self._query(lambda c: _attempt_rows(c, attempts.c.stage == fingerprint, _now(None), STALE_AFTER))


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _owner(row: Any) -> Owner:
    return Owner(row.host, row.pid, row.boot_id)


def _held_by(plan: str, owner: Owner, started: float) -> sa.ColumnElement[bool]:
    process = (drivers.c.host == owner.host) & (drivers.c.pid == owner.pid) & (drivers.c.boot_id == owner.boot_id)
    return (drivers.c.plan == plan) & process & (drivers.c.started == started)


def _is_live(owner: Owner, heartbeat: float | None, now: float, stale_after: float) -> bool:
    """Whether a claim stands: not known to be dead, and heard of lately (or known to live, where it never beats)."""
    lives = alive(owner)
    if lives is False:
        return False
    return lives is True if heartbeat is None else heartbeat >= now - stale_after


def _attempt_rows(
    connection: Connection, where: sa.ColumnElement[bool], now: float, stale_after: float, *, running: bool = False
) -> list[AttemptRow]:
    """Attempts with whether their process lives: its newest heartbeat as a driver of any plan decides."""
    same = (
        (drivers.c.host == attempts.c.host)
        & (drivers.c.pid == attempts.c.pid)
        & (drivers.c.boot_id == attempts.c.boot_id)
    )
    beat = sa.select(sa.func.max(drivers.c.heartbeat)).where(same).scalar_subquery()
    query = sa.select(attempts, beat.label("heartbeat")).where(where).order_by(attempts.c.stage, attempts.c.number)
    if running:
        query = query.where(attempts.c.state == "running")
    rows = []
    for row in connection.execute(query):
        values = dict(row._mapping)
        heartbeat, owner = values.pop("heartbeat"), Owner(values.pop("host"), values.pop("pid"), values.pop("boot_id"))
        live = values["state"] == "running" and _is_live(owner, heartbeat, now, stale_after)
        named = {name: values.pop(name) for name in ("stage", "number", "token", "state", "failure_class", "message")}
        started, ended = values.pop("started"), values.pop("ended")
        rows.append(AttemptRow(**named, owner=owner, started=started, ended=ended, live=live, fields=values))
    return rows
