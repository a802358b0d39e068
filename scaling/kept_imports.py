"""An import on disk: a copy of the file and how it was read, so that its rows can be made again without the original.

artifacts/imports/NAME/<sha256[:12]>/source.csv, then import.json, the commit mark. The rows themselves are the
database's; of several copies under one name the one created last counts. Names are `scaling.layout`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.files import CorruptArtifact, read_json, write_atomic, write_json
from scaling.importing import Imported, interpret
from scaling.layout import Layout
from scaling.source_tables import ImportRefused, parse_source, suffix_of
from scaling.store import NoResults, Store

FORMAT = 1  # of import.json


@contextlib.contextmanager
def open_target(database: str, *, dry_run: bool) -> Iterator[Store | None]:
    """The database that is to take an import; on a dry run opened for reading, or None where there is none yet."""
    try:
        store = Store.open(database, create=not dry_run, readonly=dry_run)
    except NoResults:
        yield None
        return
    with store:
        yield store


def keep(store: Store, table: Imported, root: Path, *, replace: bool) -> Path:
    """Record an import and keep its source under `root`: both or, after an error, neither. Returns the folder.

    Raises StoreError where the name is taken (see `Store.record_import`), ImportRefused where nothing can be written.
    """
    source, now = table.source, time.time()
    folder = Layout(root).import_folder(table.name, source.sha256)
    new = not folder.exists()
    mark: dict[str, Any] = {
        "format": FORMAT,
        "name": table.name,
        "file": source.name,
        "sha256": source.sha256,
        "created": now,
        "rows": source.rows,
        "mapping": table.mapping,
        "sets": table.sets,
        "columns": list(table.columns),
    }
    with store.transaction():
        store.record_import(
            table.name,
            source.sha256,
            source.name,
            table.mapping,
            {"sets": table.sets},
            table.columns,
            replace=replace,
            created=now,
        )
        try:
            write_atomic(Layout.import_source(folder, suffix_of(source.name).lower()), source.data)
            write_json(Layout.import_mark(folder), mark)
        except BaseException as error:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise ImportRefused(f"{folder}: cannot be written: {error.strerror}; nothing was imported") from None
            raise
    return folder


def read_import(folder: Path) -> Imported:
    """The table of a kept import, made again from its copy of the file.

    Raises FileNotFoundError where nothing was kept whole, CorruptArtifact where it was changed or damaged.
    """
    path = Layout.import_mark(folder)
    mark = read_json(path)
    try:
        name, file, mapping, sets = mark["name"], mark["file"], mark["mapping"], mark["sets"]
        copy = Layout.import_source(folder, suffix_of(file).lower())
        data = copy.read_bytes()
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            raise CorruptArtifact(f"{copy}: SHA-256 differs from the recorded one; import the original again")
        return interpret(parse_source(file, data), name, mapping, sets)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifact(f"{path}: not the mark of an import ({error!r}); import the original again") from None
    except ImportRefused as error:
        raise CorruptArtifact(f"{path}: cannot be read as it was ({error}); import the original again") from None
