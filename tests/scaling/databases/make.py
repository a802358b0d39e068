"""Makes the stored databases beside it: one of each schema version, by its own migrations, a few rows a table.

A new revision adds a file: `python tests/scaling/databases/make.py 0003`. What was committed is never made again.
Rows are written as text and numbers, not by `scaling.store`, which writes only the newest schema.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from scaling import database

FOLDER = Path(__file__).parent
A, B = "a" * 64, "b" * 64
ROWS: dict[str, list[tuple[object, ...]]] = {
    "plans": [(1, "old", "c" * 64, "plan: old\n", '{"plan": "old"}', 1000.5, 2000.25, "d" * 40, 1, '{"torch": "2.6"}')],
    "stages": [
        (A, "tokenizer", "base.t0", '{"kind": "tokenizer", "seed": 0}', 1, "done", 1, 1.5e9, 1200, "", 1000.0, 1500.0),
        (B, "generator", "base/16x1", '{"kind": "generator", "seed": 0}', 1, "done", 2, 3e10, 7500, "", 1001.0, 1600.0),
    ],
    "edges": [(B, A)],
    "plan_stages": [(1, A, 0, ""), (1, B, 1, "new size")],
    "runs": [
        (
            *(1, "base/16x1/t0.g0", 0, '{"arm": "base", "params": 7500, "compute": 3e10}'),
            *(f'{{"tokenizer": "{A}", "generator": "{B}", "evaluations": []}}', "[]"),
        )
    ],
    "attempts": [
        (
            *(A, 1, "e" * 32, "done", "", "", "host", 7, "boot", 1100.0, 1500.0, "cpu", 1, 0, 5_000_000, 400.0),
            *("d" * 40, 1, '{"torch": "2.6"}', "/old/worker.log"),
        ),
        (B, 1, "f" * 32, "failed", "crash", "no luck", "host", 7, "boot", 1510.0, 1520.0, *[None] * 9),
        (B, 2, "0" * 32, "done", "", "", "host", 7, "boot", 1530.0, 1600.0, *[None] * 9),
    ],
    "metrics": [(B, "loss", 10, 0.1 + 0.2, "ok"), (B, "loss", 20, None, "nan")],
    "summaries": [
        (A, "rfid", 18.3, None, "ok"),
        (B, "loss", 1 / 3, None, "ok"),
        (B, "steps", 20.0, None, "int"),
        (B, "note", None, "ü", "text"),
        (B, "perplexity", None, None, "inf"),
    ],
    "artifacts": [(B, 2, "generator.safetensors", "9" * 64, 12345)],
    "drivers": [("old", "host", 7, "boot", 1000.0, 1600.0)],
    "fits": [(1, 1700.0, "old", "fid", "p", '{"law": "chinchilla"}', '[{"run": "r"}]', '{"E": {"$float": "nan"}}')],
    "imports": [
        (
            1,
            "theirs",
            1800.0,
            "8" * 64,
            "t.csv",
            '{"params": "N"}',
            '{"sets": [], "columns": ["run", "state", "loss"], "rows": 1}',
        )
    ],
    "imported_rows": [(1, 0, '{"run": "t-1", "state": "done", "loss": 3.5}')],
}


def make(revision: str) -> Path:
    """A database at that revision, with ROWS in the tables that it has."""
    path = FOLDER / f"{revision}.db"
    path.unlink(missing_ok=True)
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA page_size=1024")
    raw.execute("VACUUM")
    raw.close()
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations").replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    raw = sqlite3.connect(path)
    tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in tables & ROWS.keys():
        marks = ", ".join("?" * len(ROWS[table][0]))
        raw.executemany(f"INSERT INTO {table} VALUES ({marks})", ROWS[table])
    raw.commit()
    raw.execute("VACUUM")
    raw.close()
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(make(name))
