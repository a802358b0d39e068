"""Whether the results database and the files under artifacts/ agree, and what to do where they do not. Reads only.

A stage that a live driver is making changes while one looks, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scaling import artifacts
from scaling.artifacts import CorruptArtifact, Layout
from scaling.files import read_json, sha256_file
from scaling.kept_imports import read_import
from scaling.leases import ENDED
from scaling.schema import artifacts as files_table
from scaling.schema import summaries
from scaling.stage_folders import StageFolder, is_written, stage_folders
from scaling.store import StageRow, Store
from scaling.tidy import decode

_MOST = 20  # lines of SQLite's own that are passed on


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, and what to do about it."""

    where: str
    what: str
    todo: str


@dataclass
class Checked:
    """What was looked at and what is wrong with it. `deep`: files were read whole, not only measured."""

    deep: bool
    stages: int = 0
    results: int = 0
    files: int = 0
    imports: int = 0
    skipped: int = 0  # stages being made by a live driver
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(store: Store, root: Path, *, deep: bool = False) -> Checked:
    """Hold a database against `root`/artifacts; `deep` hashes every file that a result has. Raises StoreError."""
    layout, done = Layout(root), Checked(deep)
    damaged = list(_database(store))
    done.findings += damaged
    if any(one.what.startswith("integrity") for one in damaged):
        return done  # what such a database says is no reason to suspect the files
    live = {attempt.stage for attempt in store.running_attempts() if attempt.live}
    rows = store.stages()
    folders, problems = stage_folders(layout)
    done.findings += [Finding(*_parted(line)) for line in problems]
    measured = _Recorded(store)
    for key in [*rows, *(key for key in folders if key not in rows)]:
        row, folder = rows.get(key), folders.get(key)
        if key in live or (folder is not None and is_written(folder.path)):
            done.skipped += 1
            continue
        done.stages += row is not None
        done.findings += _stage(key, row, folder, layout, measured, done)
    done.findings += _imports(store, layout, done)
    return done


def _database(store: Store) -> Iterator[Finding]:
    """What SQLite says of the file itself; PostgreSQL looks after its own."""
    if store.engine.dialect.name != "sqlite":
        return
    mend = "scaling db rebuild makes it again from artifacts/"
    read = {
        name: store._query(lambda c, name=name: c.exec_driver_sql(f"PRAGMA {name}").all())  # type: ignore[misc]
        for name in (f"integrity_check({_MOST})", "foreign_key_check")
    }
    for (line,) in read[f"integrity_check({_MOST})"]:
        if line != "ok":
            yield Finding(store.place, f"integrity: {' '.join(str(line).split())}", mend)
    for table, row, parent, _ in read["foreign_key_check"][:_MOST]:
        yield Finding(store.place, f"{table}, row {row}: names a row of {parent} that is not there", mend)


class _Recorded:
    """Files and summaries of all stages, read at once."""

    def __init__(self, store: Store) -> None:
        self.files: dict[str, dict[tuple[int, str], tuple[str, int]]] = {}
        for row in store._query(lambda c: c.execute(sa.select(files_table)).all()):
            self.files.setdefault(row.stage, {})[row.attempt, row.file] = (row.sha256, row.bytes)
        self.summaries: dict[str, dict[str, Any]] = {}
        for row in store._query(lambda c: c.execute(sa.select(summaries)).all()):
            self.summaries.setdefault(row.stage, {})[row.name] = decode(row.value, row.text, row.status)


def _stage(
    key: str, row: StageRow | None, folder: StageFolder | None, layout: Layout, recorded: _Recorded, done: Checked
) -> Iterator[Finding]:
    rebuild, sweep = "scaling db rebuild takes it from the files", "scaling sweep PLAN makes it again"
    if row is None:
        assert folder is not None
        yield Finding(str(folder.path), "a stage that the database does not know", rebuild)
        return
    ended = row.state in ENDED
    if folder is None:
        if ended:
            where = layout.stage(row.kind, row.name, key)
            yield Finding(str(where), f"the database has its result ({row.state}), but there is no such folder", sweep)
        return
    path = Layout.result(folder.path)
    if not path.exists():
        if ended:
            yield Finding(str(path), f"missing, though the database has it as {row.state}", sweep)
        return
    found = artifacts.damage(folder.path)
    for line in found:
        yield Finding(*_parted(line))
    if found:
        return
    mark = read_json(path)
    done.results += 1
    done.files += len(mark["files"])
    if not ended:
        yield Finding(str(path), f"a result ({mark['status']}) that the database has as {row.state}", rebuild)
        return
    if mark["status"] != row.state:
        yield Finding(str(path), f"says {mark['status']}, the database {row.state}", rebuild)
    kept = {(mark["attempt"], name): (one["sha256"], one["bytes"]) for name, one in mark["files"].items()}
    mine = {place: about for place, about in recorded.files.get(key, {}).items() if place[0] == mark["attempt"]}
    if kept != mine:
        yield Finding(str(path), "its files or their checksums are not those that the database has", rebuild)
    if not _same(mark["summary"], recorded.summaries.get(key, {})):
        yield Finding(str(path), "its numbers are not those that the database has", rebuild)
    if done.deep:
        yield from _hashed(folder.path, mark)


def _hashed(stage_dir: Path, mark: Mapping[str, Any]) -> Iterator[Finding]:
    for name, about in mark["files"].items():
        path = Layout.output(stage_dir, mark["attempt"]) / name
        if sha256_file(path) != about["sha256"]:
            todo = "delete the stage's result.json and run the sweep again"
            yield Finding(str(path), "SHA-256 differs from the recorded one", todo)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two summaries are equal, not-a-number counting as equal to itself."""
    if one.keys() != other.keys():
        return False
    return all(one[name] == other[name] or (one[name] != one[name] and other[name] != other[name]) for name in one)


def _imports(store: Store, layout: Layout, done: Checked) -> Iterator[Finding]:
    known = {row.name: row for row in store.imports()}
    done.imports = len(known)
    again = "import the original again with --replace"
    for row in known.values():
        folder = layout.import_folder(row.name, row.sha256)
        if not Layout.import_mark(folder).exists():
            yield Finding(str(folder), f"import {row.name}: its copy of {row.file} is missing", again)
    for folder in layout.imports():
        try:
            name = read_import(folder).name if done.deep else read_json(Layout.import_mark(folder))["name"]
        except (CorruptArtifact, OSError) as error:
            yield Finding(*_parted(str(error), again))
            continue
        except (KeyError, TypeError):
            yield Finding(str(Layout.import_mark(folder)), "not the mark of an import", again)
            continue
        if name not in known:
            rebuild = "scaling db rebuild takes it from the files; or delete the folder"
            yield Finding(str(folder), "an import that the database does not know", rebuild)


def _parted(line: str, todo: str = "run the sweep again") -> tuple[str, str, str]:
    """(where, what, what to do) of a line `path: what; what to do`."""
    where, _, rest = line.partition(": ")
    what, found, todo_said = rest.rpartition("; ")
    return (where, what, todo_said) if found else (where, rest, todo)


def render_check(done: Checked) -> str:
    """What was checked in one line, then each finding: where, what, and an arrow to what to do."""
    how = "read whole" if done.deep else "by size; --deep reads them"
    text = f"{done.stages} stages, {done.results} results, {done.files} files ({how}), {done.imports} imports"
    lines = [text + (f"; {done.skipped} being made now and left out" if done.skipped else "")]
    lines += [f"{one.where}: {one.what}\n  -> {one.todo}" for one in done.findings]
    wrong = len(done.findings)
    lines.append("nothing is wrong" if not wrong else f"{wrong} thing{'s' * (wrong > 1)} wrong")
    return "\n".join(lines)
