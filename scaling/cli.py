"""The commands, thin: arguments in, one call, exit code out. A command that trains nothing imports no torch, no Ray.

Exit codes: 0 done, 1 some stages failed, 2 bad plan or usage, 3 interrupted and resumable, 4 locked by another
driver, 5 budget reached. Machine output goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling import cli_db, cli_mend

if TYPE_CHECKING:
    from scaling.plan import Plan
    from scaling.store import Store

EXIT = {"done": 0, "failed": 1, "interrupted": 3, "budget": 5}
USAGE, LOCKED = 2, 4

app = typer.Typer(
    help="Find the compression-generation optimum of two-stage image generation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Database = Annotated[str, typer.Option("--db", metavar="FILE|URL", help="results database")]
PlanName = Annotated[str | None, typer.Option("--plan", metavar="NAME", help="plan by name, where there are several")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]
DATABASE = "results.db"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="file to write")] = Path("plan.yaml")) -> None:
    """Write a commented starter plan."""
    from scaling.files import write_atomic
    from scaling.plan import starter_plan

    if path.exists():
        say(f"{path}: exists already; name another file, or delete it first")
        raise typer.Exit(USAGE)
    write_atomic(path, starter_plan().encode())
    say(f"wrote {path}; next: scaling sweep {path} --dry-run")


@app.command()
def sweep(
    plan: Annotated[str, typer.Argument(help="plan file, or the name of a shipped plan (quickstart)")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, write nothing")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="with --dry-run: print every value")] = False,
    db: Database = DATABASE,
    executor: Annotated[str | None, typer.Option(metavar="ray|inline", help="where stages run")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="stages at a time")] = None,
    max_hours: Annotated[float | None, typer.Option(min=0, help="stop at a checkpoint after this time")] = None,
    json_: AsJson = False,
) -> None:
    """Start, resume or extend a study: run what is missing of PLAN and nothing else."""
    from scaling.plan import load_plan

    loaded = load_plan(plan)
    if executor not in (None, "ray", "inline"):
        raise typer.BadParameter("is ray or inline", param_hint="--executor")
    if dry_run or resolved:
        _dry_run(loaded, workers, resolved, json_)
        return
    from scaling.progress import open_progress
    from scaling.scheduler import Options
    from scaling.sweep import sweep as run_sweep

    resources = loaded.resources
    hours = max_hours if max_hours is not None else resources.budget.hours
    given = workers or (resources.workers if isinstance(resources.workers, int) else None)
    options = Options(resources, given, hours * 3600 if hours is not None else None)
    place = executor or resources.executor
    result = run_sweep(loaded, database=db, root=Path.cwd(), progress=open_progress(), options=options, executor=place)
    if json_:
        print(json.dumps({"status": result.status, "stages": dict(result.counts)}))
    for name, message in result.failures:
        say(f"failed: {name}: {message}")
    command = f"scaling sweep {plan}" + (f" --db {db}" if db != DATABASE else "")
    if result.status in ("interrupted", "budget"):
        say(f"resume with: {command}")
    elif result.status == "failed":
        say(f"why: scaling logs STAGE (or RUN); try the failed stages again with: {command}")
    elif not json_:
        say("next: scaling fit --metric fid" + (f" --db {db}" if db != DATABASE else ""))
    raise typer.Exit(EXIT[result.status])


def _dry_run(plan: Plan, workers: int | None, resolved: bool, as_json: bool) -> None:
    from scaling.executors import cpu_count
    from scaling.progress import duration
    from scaling.sweep import dry_run, estimated_seconds, plan_graph

    graph = plan_graph(plan)
    forecasts = dry_run(graph, Path.cwd())
    slots = workers or (plan.resources.workers if isinstance(plan.resources.workers, int) else cpu_count())
    seconds = estimated_seconds(graph, forecasts, slots)
    if as_json:
        rows = [
            {"kind": f.stage.kind, "name": f.stage.name, "fingerprint": f.stage.fingerprint, "state": f.state}
            | {"why": f.why, "params": f.stage.params, "flops": f.stage.flops, "seconds": f.stage.seconds}
            for f in forecasts
        ]
        print(json.dumps({"plan": plan.name, "stages": rows, "seconds": seconds} | _resolved(plan, resolved)))
        return
    if resolved:
        import yaml

        print(yaml.safe_dump(plan.resolved(), sort_keys=False, allow_unicode=True).rstrip())
    print(f"{plan.name}: {len(plan.runs)} runs, {len(forecasts)} stages")
    for name, values in plan.axes.items():
        print(f"  axis {name}: {', '.join(str(value) for value in values)}")
    print(f"{'state':<10}{'stage':<12}{'name':<34}{'params':>9}{'FLOPs':>10}{'est.':>12}  why")
    for f in forecasts:
        params = _short(f.stage.params) if f.stage.params else ""
        cost = "" if f.state == "cached" else duration(f.stage.seconds)
        row = f"{f.state:<10}{f.stage.kind:<12}{f.stage.name:<34}{params:>9}{f.stage.flops:>10.1e}{cost:>12}"
        print(f"{row}  {f.why}".rstrip())
    counts = Counter(f.state for f in forecasts)
    total = sum(f.stage.flops for f in forecasts if f.state != "cached")
    states = ", ".join(f"{counts[state]} {state}" for state in ("new", "resumable", "cached") if counts[state])
    print(f"{states}; {total:.2g} FLOPs to do, about {duration(seconds)} on {slots} workers (estimate for CPU cores)")


def _resolved(plan: Plan, wanted: bool) -> dict[str, Any]:
    return {"resolved": plan.resolved()} if wanted else {}


def _short(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"


@app.command()
def fit(
    metric: Annotated[str, typer.Option(metavar="fid|loss|rfid", help="what to fit")] = "fid",
    db: Database = DATABASE,
    plan: PlanName = None,
    law: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="chinchilla (the whole answer), paper, kaplan, surface, auto; with --x a "
            "law of one input: power, power_floor, shifted, m4, broken",
        ),
    ] = "chinchilla",
    x: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="input of a law of one input: params, compute, ...")
    ] = None,
    by: Annotated[str, typer.Option(metavar="COLUMN", help="what groups runs: arm, codebook_size, ...")] = "arm",
    where: Annotated[list[str] | None, typer.Option(metavar="CONDITION", help="runs that count: 'params>=1e5'")] = None,
    points: Annotated[
        str, typer.Option(metavar="all|frontier", help="all runs, or each group's Pareto frontier")
    ] = "all",
    objective: Annotated[str, typer.Option(metavar="ls|huber|lad|amae", help="what is minimised")] = "ls",
    residual: Annotated[str, typer.Option(metavar="log|raw", help="of what residuals")] = "log",
    hold_out: Annotated[
        str | None,
        typer.Option(metavar="largest", help="fit without the largest size, predict it, score the prediction"),
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="GROUP", help="what multipliers compare with")] = None,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance at which FID counts")] = 1.0,
    bootstrap: Annotated[
        int | None, typer.Option(min=50, help="resamples behind intervals (default 1000; 400 above eight arms)")
    ] = None,
    amortize_over: Annotated[float, typer.Option(help="generators that share a tokenizer's FLOPs where counted")] = 1.0,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="draw into plots/")] = True,
    json_: AsJson = False,
) -> None:
    """Laws per tokenizer, held-out error, the optimum by compute, crossings, multipliers; figures to plots/."""
    from scaling.fit import FitOptions, fit_plan

    options = FitOptions(
        metric,
        law,
        x,
        by,
        tuple(where or ()),
        points,
        objective,
        residual,
        hold_out,
        base,
        guidance,
        bootstrap,
        amortize_over,
    )
    with _open(db, readonly=False) as store:
        text, numbers = fit_plan(store, _plan_name(store, plan), options, Path("plots") if figures else None)
    print(json.dumps(numbers) if json_ else text)


@app.command()
def status(db: Database = DATABASE, plan: PlanName = None, json_: AsJson = False) -> None:
    """How far a sweep is: stages by kind and state, running stages, failures."""
    from scaling.status import render_status, snapshot

    with _open(db) as store:
        found = [snapshot(store, name, Path.cwd()) for name in ([plan] if plan else _plans(store))]
    print(json.dumps(found) if json_ else "\n\n".join(render_status(one) for one in found))


@app.command()
def runs(db: Database = DATABASE, plan: PlanName = None, json_: AsJson = False) -> None:
    """The results as a table, a row per run and evaluation."""
    from scaling.tables import render_runs, to_json_rows

    with _open(db) as store:
        table = store.load_runs(plan)
    print(json.dumps(to_json_rows(table)) if json_ else render_runs(table))


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="file to write; .csv, .parquet or .json")],
    db: Database = DATABASE,
    plan: PlanName = None,
) -> None:
    """Write the results' table, all columns at full precision."""
    from scaling.tables import write_table

    with _open(db) as store:
        table = store.load_runs(plan)
    write_table(table, path)
    say(f"wrote {path}: {len(table)} rows, {len(table.columns)} columns")


@app.command("import")
def import_table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="table: .csv, .csv.gz, .tsv, .parquet or .json")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="what the others know it by: --plan NAME")],
    maps: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=SOURCE", help="which column is which")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="COLUMN=VALUE", help="a constant, or a formula over columns")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be recorded, write nothing")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="take the place of an import of that name")] = False,
    db: Database = DATABASE,
    json_: AsJson = False,
) -> None:
    """Take in a table from elsewhere: its rows are fitted, shown and exported like a plan's."""
    from scaling.import_preview import fit_metric, render_preview, summary
    from scaling.importing import prepare
    from scaling.kept_imports import keep, open_target

    table = prepare(file, name, maps or (), sets or ())
    with open_target(db, dry_run=dry_run) as store:
        if store is not None:
            store.check_import_name(name, replace=replace)
        say(render_preview(table))
        folder = keep(store, table, Path.cwd(), replace=replace) if store is not None and not dry_run else None
    if json_:
        print(json.dumps(summary(table) | {"folder": str(folder) if folder else None}))
    if folder is not None:
        chosen = f" --db {db}" if db != DATABASE else ""
        say(f"kept in {os.path.relpath(folder)}; next: scaling fit --metric {fit_metric(table)} --plan {name}{chosen}")


def _open(database: str, *, readonly: bool = True) -> Store:
    from scaling.store import Store

    return Store.open(database, create=False, readonly=readonly)


def _plans(store: Store) -> list[str]:
    return [plan.name for plan in store.plans()]


def _plan_name(store: Store, given: str | None) -> str:
    """The plan or import that was named, or the only one there is."""
    names = [*_plans(store), *(one.name for one in store.imports())]
    if given is None and len(names) == 1:
        return names[0]
    if given not in names:
        asked = f"no plan {given!r}" if given else "name one of the plans" if names else "no plan"
        known = ", ".join(names) or "none; run: scaling sweep PLAN"
        raise typer.BadParameter(f"{asked} in the database, which has: {known}", param_hint="--plan")
    return given


cli_mend.register(app)
cli_db.register(app)


def main() -> None:
    """Entry point: a user's mistake is a line and an exit code, never a traceback."""
    from scaling.errors import exit_code

    gc.set_threshold(200_000)  # imports and tables make many objects and little rubbish
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        say(str(error))
        sys.exit(code)


def entry() -> None:
    """`main`, then out at once: freeing a large table object by object takes a fifth of a second.

    What is registered to run at exit runs. A process that holds Ray or torch ends the ordinary way.
    """
    code: str | int | None = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    if {"ray", "torch"} & sys.modules.keys() or not isinstance(code, int | None):
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)


if __name__ == "__main__":
    entry()
