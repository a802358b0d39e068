"""The tables of the results database, for SQLite and PostgreSQL alike. Tables only: queries are `scaling.store`'s.

A change here needs a revision in `migrations/versions` and a new HEAD; a test holds the two against each other.
Times are Unix seconds. JSON is strict (`scaling.files.to_json`), kept as text so that both databases read it alike.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from scaling.files import from_json, to_json

HEAD = "0002"  # newest revision in migrations/versions
OLDER_READABLE = ("0001",)  # revisions that this version reads as they are: they only lack tables, `imports` among them
VERSION_TABLE = "scaling_version"


class Json(sa.types.TypeDecorator[Any]):
    """A JSON value as text; non-finite numbers survive."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else to_json(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else from_json(value)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

FINGERPRINT = sa.String(64)


def _stage(name: str = "stage", *, primary_key: bool = True) -> sa.Column[Any]:
    return sa.Column(name, FINGERPRINT, sa.ForeignKey("stages.fingerprint"), primary_key=primary_key, nullable=False)


plans = sa.Table(
    "plans",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("resolved", Json, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Column("git_commit", sa.String(64)),
    sa.Column("dirty", sa.Boolean),
    sa.Column("versions", Json),
)

stages = sa.Table(
    "stages",
    metadata,
    sa.Column("fingerprint", FINGERPRINT, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("payload", Json, nullable=False),
    sa.Column("recipe", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # number of the newest attempt, 0 before the first
    sa.Column("flops", sa.Double),
    sa.Column("params", sa.BigInteger),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
)

edges = sa.Table("edges", metadata, _stage("child"), _stage("parent"))

plan_stages = sa.Table(
    "plan_stages",
    metadata,
    sa.Column("plan", sa.ForeignKey("plans.id"), primary_key=True),
    _stage(),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("plan", sa.ForeignKey("plans.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("columns", Json, nullable=False),
    sa.Column("stages", Json, nullable=False),
    sa.Column("evaluations", Json, nullable=False),  # static columns of each evaluation, in the order of stages
)

attempts = sa.Table(
    "attempts",
    metadata,
    _stage(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("token", sa.String(64), nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("failure_class", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("device", sa.Text),
    sa.Column("threads", sa.Integer),
    sa.Column("seed", sa.BigInteger),
    sa.Column("peak_rss", sa.BigInteger),  # bytes
    sa.Column("seconds", sa.Double),
    sa.Column("git_commit", sa.String(64)),
    sa.Column("dirty", sa.Boolean),
    sa.Column("versions", Json),
    sa.Column("log_path", sa.Text),
)

metrics = sa.Table(
    "metrics",
    metadata,
    _stage(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("status", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

summaries = sa.Table(
    "summaries",
    metadata,
    _stage(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("text", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    _stage(),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("file", sa.Text, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

drivers = sa.Table(
    "drivers",
    metadata,
    sa.Column("plan", sa.Text, primary_key=True),  # by name: a plan may be driven before it is recorded
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
)

fits = sa.Table(
    "fits",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("plan", sa.Text, index=True),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("protocol", sa.Text, nullable=False),
    sa.Column("options", Json, nullable=False),
    sa.Column("points", Json, nullable=False),
    sa.Column("result", Json, nullable=False),
)

imports = sa.Table(
    "imports",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),  # nor is it a plan's
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),  # of the file
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("mapping", Json, nullable=False),
    sa.Column("options", Json, nullable=False),
)

imported_rows = sa.Table(
    "imported_rows",
    metadata,
    sa.Column("import", sa.ForeignKey("imports.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("columns", Json, nullable=False),
)
