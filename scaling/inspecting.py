"""Looking into a sweep: which run or stage a name means, a stage's attempts and logs. Reads only.

What is printed is made here, too; one run whole is `scaling.showing`'s, what mends is `scaling.mending`'s. Names are
those of `scaling runs` and of `scaling sweep --dry-run`; root is the folder that holds `artifacts/`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.layout import Layout
from scaling.leases import AttemptRow
from scaling.progress import duration
from scaling.stages import KINDS
from scaling.store import PlanRow, RunRecord, StageRow, Store, StoreError
from scaling.yaml_nodes import did_you_mean

TROUBLED = ("failed", "diverged")
_SHORTEST_PREFIX = 4  # digits of a fingerprint
_MOST_CANDIDATES = 5  # in an error's line


class UnknownName(StoreError):
    """A name means nothing, or more than one thing; the message is one line with the candidates."""


@dataclass(frozen=True)
class Found:
    """What a name means: a run of a plan, or (without `run`) stages. `stages` of a run include what they need."""

    plan: PlanRow | None
    run: RunRecord | None
    stages: tuple[StageRow, ...]


def title(stage: StageRow) -> str:
    """A stage as messages name it."""
    return f"{stage.kind} {stage.name}"


def stage_folder(root: Path, stage: StageRow) -> Path:
    """A stage's folder under `artifacts/`."""
    return Layout(root).stage(stage.kind, stage.name, stage.fingerprint)


def known_plan(store: Store, name: str) -> PlanRow:
    """The plan of that name. Raises UnknownName."""
    plan = store.plan(name)
    if plan is None:
        names = [row.name for row in store.plans()]
        listed = ", ".join(names) or "none; run: scaling sweep PLAN"
        raise UnknownName(f"{store.place}: no plan {name!r}{did_you_mean(name, names)}; it has {listed}")
    return plan


# ------------------------------------------------------------------------------------------------ names


def find(store: Store, name: str, plan: str | None = None, kind: str | None = None) -> Found:
    """What `name` means: a run, a stage (`NAME` or `KIND NAME`), or the first digits of a stage's fingerprint.

    `plan` and `kind` narrow it down. Raises UnknownName, also where several stages or plans' runs have that name.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName(f"--kind {kind}: no kind of stage{did_you_mean(kind, KINDS)}; use {', '.join(KINDS)}")
    plans = [known_plan(store, plan)] if plan is not None else store.plans()
    rows = {row.id: store.stages(row.id) for row in plans}
    runs = [(row, run) for row in plans for run in store.runs(row.id)]
    named = [(row, run) for row, run in runs if run.name == name]
    if len({_key(run) for _, run in named}) > 1:
        raise UnknownName(
            f"run {name} is in several plans: {_listed(row.name for row, _ in named)}; choose with --plan"
        )
    if named:
        row, run = named[0]
        mine = [rows[row.id][key] for key in closure(rows[row.id], run_stages(run)) if key in rows[row.id]]
        return Found(row, run, _of_kind(mine, kind, name))
    stages = {key: stage for by in rows.values() for key, stage in by.items()}
    found = [stage for stage in stages.values() if name in (stage.name, title(stage))]
    if not found and re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", name):
        every = stages if plan is not None else store.stages()  # a stage that no plan asks for any more has one, too
        found = [stage for key, stage in every.items() if key.startswith(name)]
    if not found:
        raise UnknownName(_unknown(store, name, plan, [run.name for _, run in runs], stages.values()))
    chosen = _of_kind(found, kind, name)
    if len(chosen) > 1:
        candidates = _listed(f"{title(stage)} ({stage.fingerprint[:12]})" for stage in chosen)
        raise UnknownName(f"{name} is several stages: {candidates}; give KIND NAME, a fingerprint or --plan")
    return Found(None, None, chosen)


def run_stages(run: RunRecord) -> list[str]:
    """Fingerprints of the stages from which a run's columns come."""
    parts = [key for part, key in run.stages.items() if part != "evaluations"]
    return [*parts, *run.stages.get("evaluations", ())]


def closure(stages: Mapping[str, StageRow], keys: Iterable[str]) -> list[str]:
    """`keys` and all that they need, in the order of `stages`, which may lack some."""
    seen: set[str] = set()
    left = list(keys)
    while left:
        key = left.pop()
        if key not in seen:
            seen.add(key)
            left += stages[key].parents if key in stages else ()
    return [key for key in stages if key in seen]


def _key(run: RunRecord) -> tuple[str, ...]:
    return tuple(run_stages(run))


def _of_kind(stages: Sequence[StageRow], kind: str | None, name: str) -> tuple[StageRow, ...]:
    chosen = tuple(stage for stage in stages if kind in (None, stage.kind))
    if not chosen:
        kinds = ", ".join(dict.fromkeys(stage.kind for stage in stages)) or "none"
        raise UnknownName(f"{name} has no stage of kind {kind}; it has: {kinds}")
    return chosen


def _unknown(store: Store, name: str, plan: str | None, runs: Sequence[str], stages: Iterable[StageRow]) -> str:
    names = list(dict.fromkeys([*runs, *(stage.name for stage in stages)]))
    close = did_you_mean(name, names)
    within = [one for one in names if name in one] if not close else []
    hint = f" (names with it: {_listed(within)})" if within else close
    where = f"plan {plan}" if plan is not None else store.place
    return f"{where}: no run, stage or fingerprint {name}{hint}; see: scaling runs, scaling sweep PLAN --dry-run"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_CANDIDATES} more" if len(every) > _MOST_CANDIDATES else ""
    return ", ".join(every[:_MOST_CANDIDATES]) + more


# ------------------------------------------------------------------------------------------------- logs


def logs(
    store: Store,
    root: Path,
    name: str,
    *,
    plan: str | None = None,
    kind: str | None = None,
    attempt: int | None = None,
) -> list[dict[str, Any]]:
    """The stages that `name` means, each with every attempt and the path of its log; `shown` is whose log to print.

    Of a run: its stages in trouble, else its generator, else (none of `kind`) all. Times are Unix seconds. Raises
    UnknownName, also where no stage has an attempt of number `attempt`.
    """
    found = find(store, name, plan, kind)
    every = [(stage, attempts_of(store, root, stage)) for stage in found.stages]
    if found.run is not None and kind is None:
        every = _that_matter(every)
    if attempt is not None:
        has = [one for one in every if any(row["number"] == attempt for row in one[1])]
        if not has:
            numbers = "; ".join(f"{title(stage)} has {_numbers(rows)}" for stage, rows in every)
            raise UnknownName(f"{name}: no attempt {attempt}; {numbers}")
        every = has
    answers = []
    for stage, rows in every:
        newest = rows[-1]["number"] if rows else None
        about = {"kind": stage.kind, "name": stage.name, "fingerprint": stage.fingerprint, "state": stage.state}
        about |= {"message": stage.message, "folder": str(stage_folder(root, stage))}
        answers.append(about | {"attempts": rows, "shown": attempt if attempt is not None else newest})
    return answers


def attempts_of(store: Store, root: Path, stage: StageRow) -> list[dict[str, Any]]:
    """A stage's attempts as recorded, and those of which only the folder is left, by number."""
    folder = stage_folder(root, stage)
    rows = {one.number: _attempt(one, folder) for one in store.attempts(stage.fingerprint)}
    blank = {"failure_class": "", "message": "", "host": "", "pid": None, "started": None, "seconds": None}
    for number in Layout.attempt_numbers(folder):
        if number not in rows:
            log = Layout.log(folder, number)
            rows[number] = {"number": number, "state": "not recorded", **blank, **_log(log)}
    return [rows[number] for number in sorted(rows)]


def _attempt(one: AttemptRow, folder: Path) -> dict[str, Any]:
    log = Layout.log(folder, one.number)
    recorded = one.fields.get("log_path")
    if not log.exists() and recorded and Path(recorded).exists():  # asked from another folder than it ran in
        log = Path(recorded)
    seconds = one.fields.get("seconds")
    if seconds is None and (one.ended is not None or one.live):
        seconds = (one.ended if one.ended is not None else time.time()) - one.started
    about = {"number": one.number, "state": one.state, "failure_class": one.failure_class, "message": one.message}
    about |= {"host": one.owner.host, "pid": one.owner.pid, "started": one.started, "seconds": seconds}
    return about | _log(log)


def _log(path: Path) -> dict[str, Any]:
    return {"log": str(path), "log_exists": path.is_file()}


def _that_matter(every: list[tuple[StageRow, list[dict[str, Any]]]]) -> list[tuple[StageRow, list[dict[str, Any]]]]:
    """Stages in trouble, failed before diverged before those tried in vain so far; without any the generator."""

    def trouble(one: tuple[StageRow, list[dict[str, Any]]]) -> int:
        stage, rows = one
        if stage.state in TROUBLED:
            return TROUBLED.index(stage.state)
        return 2 if stage.state != "done" and rows and rows[-1]["state"] in ("failed", "diverged", "lost") else 3

    troubled = sorted((one for one in every if trouble(one) < 3), key=trouble)
    return troubled or [one for one in every if one[0].kind == "generator"] or every


def _numbers(rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = [str(row["number"]) for row in rows]
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else numbers[0] if numbers else "none"


def render_logs(found: Sequence[Mapping[str, Any]], tail: int | None = None) -> str:
    """Attempts as a table, then the log of the attempt `shown` (its last `tail` lines), stage after stage."""
    parts = []
    for stage in found:
        rows = stage["attempts"]
        count = f"{len(rows)} attempt{'s' if len(rows) != 1 else ''}" if rows else "never tried"
        parts.append(f"{stage['kind']} {stage['name']} ({stage['fingerprint'][:12]}): {stage['state']}, {count}")
        parts += _attempt_table(rows)
        shown = next((row for row in rows if row["number"] == stage["shown"]), None)
        if shown is not None:
            parts.append(f"--- log of attempt {shown['number']}: {shown['log']}")
            parts += _log_lines(shown, tail)
        parts.append("")
    return "\n".join(parts[:-1])


def _attempt_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["started"])) if row["started"] else ""
        took = duration(row["seconds"]) if row["seconds"] is not None else ""
        state = f"{row['state']} {row['failure_class']}".strip()
        cells.append([str(row["number"]), state, row["host"], started, took, row["message"]])
    return aligned(cells)


def _log_lines(row: Mapping[str, Any], tail: int | None) -> list[str]:
    if not row["log_exists"]:
        return ["    the log is gone, or was never written"]
    # other libraries write into it what they like
    lines = Path(row["log"]).read_text(encoding="utf-8", errors="replace").splitlines()
    kept = lines if tail is None else lines[max(0, len(lines) - tail) :]
    left = len(lines) - len(kept)
    return ([f"    ({left} earlier lines left out)"] if left else []) + (kept or ["    the log is empty"])


def aligned(cells: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows of cells as lines with columns; those numbered in `right` end together."""
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    ends = set(right)
    lines = []
    for row in cells:
        parts = [c.rjust(widths[i]) if i in ends else c.ljust(widths[i]) for i, c in enumerate(row)]
        lines.append(("  " + "  ".join(parts)).rstrip())
    return lines
