"""The commands that look into and mend a sweep, thin: logs, show, retry, cancel. `scaling.cli` registers them.

They train nothing, so they import no torch and no Ray. Exit codes are `scaling.cli`'s; 4 where a live driver is in the
way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scaling.mending import Change, Mended

USAGE, LOCKED = 2, 4
DATABASE = "results.db"

Database = Annotated[str, typer.Option("--db", metavar="FILE|URL", help="results database")]
PlanName = Annotated[str | None, typer.Option("--plan", metavar="NAME", help="plan by name, where there are several")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, write nothing")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (logs, show, retry, cancel):
        app.command()(command)


def logs(
    name: Annotated[str, typer.Argument(help="run, stage (NAME or 'KIND NAME'), or first digits of a fingerprint")],
    attempt: Annotated[int | None, typer.Option(min=1, metavar="N", help="whose log; default: the newest")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="tokenizer, generator, evaluation, ...")] = None,
    tail: Annotated[int | None, typer.Option(min=1, metavar="N", help="only the last lines")] = None,
    db: Database = DATABASE,
    plan: PlanName = None,
    json_: AsJson = False,
) -> None:
    """Every attempt at a stage and its log; of a run, the stages that failed, else its generator."""
    from scaling.inspecting import logs as find_logs
    from scaling.inspecting import render_logs
    from scaling.store import Store

    with Store.open(db, create=False, readonly=True) as store:
        found = find_logs(store, Path.cwd(), name, plan=plan, kind=kind, attempt=attempt)
    print(json.dumps(found) if json_ else render_logs(found, tail))


def show(
    run: Annotated[str, typer.Argument(help="run, as scaling runs names it")],
    db: Database = DATABASE,
    plan: PlanName = None,
    json_: AsJson = False,
) -> None:
    """One run whole: settings, stages and what they took, results, learning curves, where it comes from."""
    from scaling.showing import json_values, render_show
    from scaling.showing import show as show_run
    from scaling.store import Store

    with Store.open(db, create=False, readonly=True) as store:
        found = show_run(store, Path.cwd(), run, plan)
    print(json.dumps(json_values(found)) if json_ else render_show(found))


def retry(
    state: Annotated[str, typer.Option(metavar="failed|diverged|cancelled", help="which stages")] = "",
    failure_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="of failed ones: oom, user, crash, disk_full, ...")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="stages of that name: 'generator *' or base/64x3/*")
    ] = None,
    db: Database = DATABASE,
    plan: PlanName = None,
    dry_run: DryRun = False,
    json_: AsJson = False,
) -> None:
    """Set failed, diverged or cancelled stages back, so that the next sweep tries them again."""
    from scaling import mending
    from scaling.store import Store

    _one_of("retry", state, mending.RETRIED)
    with Store.open(db, create=False, readonly=dry_run) as store:
        row = mending.the_plan(store, plan)
        mended = mending.retry(
            store, Path.cwd(), row, state, failure_class=failure_class, pattern=stage, dry_run=dry_run
        )
    verb = "would be tried again" if dry_run else "set back to pending"
    nothing = f"no {state} stage" + (" is left to try again" if not (failure_class or stage) else " is so")
    _report(mended, verb, nothing, db, dry_run, json_)


def cancel(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STAGE|RUN]...", help="default: the whole plan")] = None,
    state: Annotated[str, typer.Option(metavar="pending|running|failed", help="only those; default: all three")] = "",
    db: Database = DATABASE,
    plan: PlanName = None,
    dry_run: DryRun = False,
    json_: AsJson = False,
) -> None:
    """Leave unfinished stages out of all sweeps to come, and stop the driver where they run; retry brings them back."""
    from scaling import mending
    from scaling.store import Store

    if state:
        _one_of("cancel", state, mending.CANCELLED)
    states = (state,) if state else mending.CANCELLED
    with Store.open(db, create=False, readonly=dry_run) as store:
        row = mending.the_plan(store, plan)
        mended = mending.cancel(store, Path.cwd(), row, names or (), states, dry_run=dry_run, say=_say)
    nothing = f"no stage is {' or '.join(states)}" + (" of those" if names else "")
    _report(mended, "would be cancelled" if dry_run else "cancelled", nothing, db, dry_run, json_)
    if mended.draining:
        _say(mended.draining)
        raise typer.Exit(LOCKED)


def _one_of(command: str, state: str, known: tuple[str, ...]) -> None:
    if state not in known:
        given = f"--state {state}: cannot {command} such stages" if state else "which stages? give --state"
        _say(f"scaling {command}: {given}; use {', '.join(known)}")
        raise typer.Exit(USAGE)


def _report(mended: Mended, verb: str, nothing: str, db: str, dry_run: bool, as_json: bool) -> None:
    """Stages and what became of them to stdout, remarks and the command to go on with to stderr."""
    from scaling.mending import sweep_command

    command = sweep_command(mended.plan, Path.cwd(), db if db != DATABASE else None)
    if as_json:
        answer = {"plan": mended.plan.name, "dry_run": dry_run, "changed": [_plain(one) for one in mended.changed]}
        answer |= {"skipped": [_plain(one) for one in mended.skipped], "remarks": mended.remarks, "next": command}
        print(json.dumps(answer))
        return
    for one in mended.changed:
        print(f"{verb}: {one.stage.kind} {one.stage.name}: {one.how}")
    for one in mended.skipped:
        _say(f"left as it is: {one.stage.kind} {one.stage.name}: {one.how}")
    for line in mended.remarks:
        _say(line)
    if not mended.changed:
        _say(f"nothing to do in plan {mended.plan.name}: {nothing}")
    elif not dry_run:
        _say(f"go on with: {command}")


def _plain(one: Change) -> dict[str, Any]:
    stage = one.stage
    return {"kind": stage.kind, "name": stage.name, "fingerprint": stage.fingerprint} | {"how": one.how}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
