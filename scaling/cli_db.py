"""The commands for the database and the disk, thin: `scaling db rebuild|upgrade|check` and `scaling gc`.

Exit codes are `scaling.cli`'s; `db check` ends with 1 where something is wrong. No torch, no Ray.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

DATABASE = "results.db"

Database = Annotated[str, typer.Option("--db", metavar="FILE|URL", help="results database")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]

db = typer.Typer(
    help="The results database: make it again from the files, bring it up to date, check it.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add these commands to the program's."""
    app.add_typer(db, name="db")
    app.command()(gc)


@db.command()
def rebuild(
    plans: Annotated[list[str] | None, typer.Argument(metavar="[PLAN]...", help="plan files, if none is kept")] = None,
    database: Annotated[str, typer.Option("--db", metavar="FILE", help="database to make; SQLite")] = DATABASE,
    source: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="folder that holds artifacts/")] = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be restored, write nothing")] = False,
    json_: AsJson = False,
) -> None:
    """Make the database again from the files under artifacts/; the old one is kept as FILE.old-N."""
    from scaling.rebuilding import rebuild as make
    from scaling.rebuilding import render_rebuilt

    report = make(database, source.absolute(), plans or (), dry_run=dry_run)
    print(json.dumps(report.to_json()) if json_ else render_rebuilt(report, dry_run=dry_run))


@db.command()
def upgrade(database: Database = DATABASE, json_: AsJson = False) -> None:
    """Bring an older database to this version's schema."""
    from scaling.database import upgrade_database

    before, now = upgrade_database(database)
    if json_:
        print(json.dumps({"before": before, "now": now}))
    else:
        print(f"schema {now}, nothing to do" if before == now else f"brought from schema {before} to {now}")


@db.command()
def check(
    database: Database = DATABASE,
    deep: Annotated[bool, typer.Option("--deep", help="read every result file whole and compare its SHA-256")] = False,
    json_: AsJson = False,
) -> None:
    """Whether database and files agree, and what to do where they do not; exit code 1 then."""
    from scaling.checking import check as look
    from scaling.checking import render_check
    from scaling.store import Store

    with Store.open(database, create=False, readonly=True) as store:
        done = look(store, Path.cwd(), deep=deep)
    print(json.dumps(done.to_json()) if json_ else render_check(done))
    raise typer.Exit(1 if done.findings else 0)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what can go and delete nothing; the default")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete it")] = False,
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="only what has not changed for so long")] = 0,
    keep_plans: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="keep only these plans (repeat it); the others go with what only they need"),
    ] = None,
    database: Database = DATABASE,
    json_: AsJson = False,
) -> None:
    """Free disk: what no plan needs, checkpoints and attempts behind results, leftovers. Deletes only with --yes."""
    from scaling.collecting import delete_rubbish, find_rubbish, render_rubbish
    from scaling.store import Store

    if yes and dry_run:
        raise typer.BadParameter("--dry-run and --yes exclude each other", param_hint="--yes")
    root = Path.cwd()
    with Store.open(database, create=False, readonly=not yes) as store:
        found = find_rubbish(store, root, older_than=older_than, keep_plans=keep_plans or ())
        if yes:
            try:
                delete_rubbish(store, root, found)
            except OSError as error:
                print(f"stopped: {error.filename or root}: {error.strerror}; run it again", file=sys.stderr)
                raise typer.Exit(2) from None
    print(json.dumps(found.to_json()) if json_ else render_rubbish(found, deleted=yes))
