"""A connection to the results database: opening, refusing, migrating, transactions. What it holds is `scaling.store`'s.

SQLite needs care that its defaults do not take: every writing transaction is BEGIN IMMEDIATE (a deferred one loses
updates in silence), the journal is write-ahead where the file system can map shared memory, and a reader opens the
file read-only, so that looking never writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine

from scaling.schema import HEAD, OLDER_READABLE, VERSION_TABLE, metadata

T = TypeVar("T")

NETWORK_FILE_SYSTEMS = re.compile(r"nfs|nfs4|lustre|cifs|smb\w*|fuse\..*|fuseblk|ceph|gpfs|beegfs|afs|9p|glusterfs")
MIGRATION_LOCK = 0x5CA11A6  # key of PostgreSQL's advisory lock around migrations
READ = "scaling_read"  # execution option of a connection that only reads

log = logging.getLogger(__name__)


class StoreError(Exception):
    """The database cannot be used as asked; the message is one line that says what to do."""


class NoResults(StoreError):
    """There is no database, or an empty one."""


class Database:
    """An open database. `transaction()` groups writes; without it each writing method is a transaction of its own."""

    def __init__(self, engine: Engine, path: Path | None, *, readonly: bool) -> None:
        self.engine = engine
        self.path = path
        self.readonly = readonly
        self._local = threading.local()

    @property
    def place(self) -> str:
        """The database as a user knows it: a path, or a URL without its password."""
        return str(self.path) if self.path else self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections. Further use opens new ones."""
        self.engine.dispose()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make all writes inside one transaction of this thread: all are kept or, after an exception, none."""
        current: Connection | None = getattr(self._local, "connection", None)
        if current is not None:
            yield current
            return
        if self.readonly:
            raise StoreError(f"{self.place}: opened for reading only")
        try:
            with self.engine.begin() as connection:
                self._local.connection = connection
                yield connection
        except sa.exc.DBAPIError as error:
            raise self._explained(error) from error
        finally:
            self._local.connection = None

    def _query(self, work: Callable[[Connection], T]) -> T:
        """What `work` reads in one transaction, or in the surrounding `transaction()` of this thread."""
        current: Connection | None = getattr(self._local, "connection", None)
        if current is not None:
            return work(current)
        watched = self.path if self.readonly else None
        for _ in range(5):
            before = _state_of(watched) if watched else None
            try:
                with self.engine.connect().execution_options(**{READ: True}) as connection:
                    result = work(connection)
            except sa.exc.DBAPIError as error:
                if watched is None or before == _state_of(watched):
                    raise self._explained(error) from error
                continue
            if watched is None or before is None or _steady(before, _state_of(watched)):
                return result
        raise StoreError(f"{self.place}: changes faster than it can be read; try again")

    def _insert(self, table: sa.Table) -> Any:
        """An INSERT of this database's dialect, which has on_conflict_do_update and on_conflict_do_nothing."""
        return postgresql.insert(table) if self.engine.dialect.name == "postgresql" else sqlite.insert(table)

    def _upsert(self, table: sa.Table, *kept: str) -> Any:
        """An INSERT that overwrites a row of the same primary key, except its columns `kept`."""
        insert = self._insert(table)
        keys = [column.name for column in table.primary_key]
        values = {name: insert.excluded[name] for name in table.columns.keys() if name not in {*keys, *kept}}  # noqa: SIM118
        return insert.on_conflict_do_update(index_elements=keys, set_=values)

    def _explained(self, error: sa.exc.DBAPIError) -> StoreError:
        reason = " ".join(str(error.orig).split())
        if "locked" in reason:
            reason = "locked by another process for over 30 s; end that process or try again"
        return StoreError(f"{self.place}: {reason}")


def _state_of(path: Path) -> tuple[tuple[int, int, int], bool]:
    """What tells one content of an SQLite file from another: inode, size and time; and whether it has a log."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise StoreError(f"{path}: the database was removed while it was read") from None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns), _log_of(path).exists()


def _steady(before: tuple[Any, bool], after: tuple[Any, bool]) -> bool:
    """Whether a read between two states saw one content: with a log SQLite sees to it; without one it takes no lock."""
    return before == after or (before[1] and after[1])


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


# --------------------------------------------------------------------------------------------- opening


def open_database(location: str | Path, *, create: bool, readonly: bool) -> tuple[Engine, Path | None]:
    """The (engine, path or None for a server) of a path or URL, at this version's schema. Raises StoreError.

    `create` makes a missing database. An older one is brought up to date where it is opened for writing, and read as it
    is where it is not; a newer one is refused.
    """
    url = _url(location)
    path = Path(url.database).absolute() if url.get_backend_name() == "sqlite" and url.database else None
    if path is not None:
        if not path.is_file() and (path.exists() or not create):
            if path.exists():
                raise StoreError(f"{path}: is not a file")
            raise NoResults(f"{path}: no results yet; run `scaling sweep PLAN` first")
        engine = _sqlite_reader(path) if readonly else _sqlite_writer(path)
    else:
        engine = _server(url, readonly=readonly)
    database = Database(engine, path, readonly=readonly)
    try:
        if create and not readonly:
            _prepare(database)
        else:
            _check_version(database)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise database._explained(error) from error
    except BaseException:
        engine.dispose()
        raise
    return engine, path


def upgrade_database(location: str | Path) -> tuple[str, str]:
    """Bring a database that is there to this version's schema; (its revision before, the revision now).

    Raises StoreError: none there, of another program, or newer than this version.
    """
    url = _url(location)
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "").absolute()
        if not file.is_file():
            raise NoResults(f"{file}: no database there; give its file with --db")
        database = Database(_sqlite_reader(file), file, readonly=True)
    else:
        database = Database(_server(url, readonly=True), None, readonly=True)
    try:
        with database.engine.connect().execution_options(**{READ: True}) as connection:
            found = _named_version(database, connection)
    except sa.exc.DBAPIError as error:
        raise database._explained(error) from error
    finally:
        database.close()
    open_database(location, create=False, readonly=False)[0].dispose()
    return str(found), HEAD


def _url(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(location))
    try:
        url = sa.make_url(location)
    except sa.exc.ArgumentError:
        raise StoreError("the database URL cannot be read; write postgresql://USER@HOST/NAME or a path") from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"{url.get_backend_name()} databases are not supported; use a path or postgresql://")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError("a database in memory would be lost; give a path")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _server(url: URL, *, readonly: bool) -> Engine:
    options = {"postgresql_readonly": True} if readonly else {}
    try:
        return sa.create_engine(url, execution_options=options, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise StoreError(f"a PostgreSQL database needs the package {error.name}: pip install {error.name}") from None


def _sqlite_writer(path: Path) -> Engine:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(URL.create("sqlite", database=str(path)))

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # Python would begin no transaction for a SELECT
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA foreign_keys=ON")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READ)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _sqlite_reader(path: Path) -> Engine:
    """An engine whose connections write nothing, not even the files beside the database."""

    def connect() -> sqlite3.Connection:
        # Where no log exists nobody is writing, and `immutable` keeps SQLite from making one; decided at each connect.
        mode = "mode=ro" if _log_of(path).exists() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA busy_timeout=30000")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


# -------------------------------------------------------------------------------------------- versions


def _version(connection: Connection) -> str | None:
    """The schema's revision, None in an empty database. Raises StoreError for another program's."""
    tables = set(sa.inspect(connection).get_table_names())
    if VERSION_TABLE in tables:
        version = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        return None if version is None else str(version)
    foreign = tables if connection.dialect.name == "sqlite" else tables & set(metadata.tables)
    if foreign:
        raise StoreError(f"it holds tables of another program ({', '.join(sorted(foreign)[:3])}); give another --db")
    return None


def _check_version(database: Database) -> None:
    with database.engine.connect().execution_options(**{READ: True}) as connection:
        found = _named_version(database, connection)
    if found is None:
        raise NoResults(f"{database.place}: holds no results; run `scaling sweep PLAN` first")
    if found == HEAD or (database.readonly and found in OLDER_READABLE):
        return
    _refuse_newer(database, found)
    if database.readonly:
        raise StoreError(f"{database.place}: of an older version of scaling; run a sweep to bring it up to date")
    _prepare(database)


def _named_version(database: Database, connection: Connection) -> str | None:
    try:
        return _version(connection)
    except StoreError as error:
        raise StoreError(f"{database.place}: {error}") from None


def _refuse_newer(database: Database, found: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(Path(__file__).parent / "migrations")).walk_revisions()}
    if found not in known:
        raise StoreError(
            f"{database.place}: made by a newer scaling (schema {found}, this one knows {HEAD}); upgrade scaling"
        )


def _prepare(database: Database) -> None:
    """Make or migrate the tables and choose the journal, one process at a time."""
    with _folder_lock(database.path):
        if database.path is not None:
            _choose_journal(database)
        with database.transaction() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            found = _named_version(database, connection)
            if found == HEAD:
                return
            if found is not None:
                _refuse_newer(database, found)
            _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.contextmanager
def _folder_lock(path: Path | None) -> Iterator[None]:
    """Hold the folder of an SQLite file alone; a lock on the file itself would disturb SQLite's own."""
    if path is None:
        yield
        return
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folder; there no log is switched on
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _choose_journal(database: Database) -> None:
    """Switch to the write-ahead log, or away from it where the file lies on a network file system."""
    assert database.path is not None
    kind = file_system(database.path.parent)
    wanted = "delete" if NETWORK_FILE_SYSTEMS.fullmatch(kind) else "wal"
    if wanted == "delete":
        log.warning("%s: on %s, where writing is slow; put --db on a local disk", database.path, kind)
    for last in (False, False, False, True):
        try:
            connection = database.engine.raw_connection()
            try:
                cursor = connection.cursor()
                if cursor.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
                    cursor.execute(f"PRAGMA journal_mode={wanted}")
                    connection.invalidate()  # the next connection sets `synchronous` for the new journal
            finally:
                connection.close()
            return
        except sqlite3.DatabaseError as error:
            if last or "locked" not in str(error):
                raise StoreError(f"{database.path}: {error}; give another --db if it is no results database") from error
            time.sleep(random.uniform(0.05, 0.3))  # the switch needs the file alone and does not wait by itself


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder (`ext4`, `nfs4`); empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
        if resolved.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), rest.split()[0]
    return kind
