"""Imported tables in the results database: recording, listing, and their columns for the tidy table. Queries only.

An import shares its names with plans: a name is one or the other. How a file becomes rows is `scaling.importing`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scaling.database import Database, StoreError
from scaling.files import from_json
from scaling.schema import imported_rows, imports, plans

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ImportRow:
    """An import as recorded. `mapping`: column -> the file's column; `options`: {"sets", "columns", "rows"}."""

    id: int
    name: str
    created: float
    sha256: str
    file: str
    mapping: Mapping[str, str]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ImportedColumns:
    """An import's columns in order, each with a value for every one of its `rows`."""

    name: str
    rows: int
    columns: dict[str, list[Any]]


class Imports(Database):
    """The queries of this module on an open database."""

    def record_import(
        self,
        name: str,
        sha256: str,
        file: str,
        mapping: Mapping[str, str],
        options: Mapping[str, Any],
        columns: Mapping[str, Sequence[Any]],
        *,
        replace: bool = False,
        created: float | None = None,
    ) -> int:
        """Record a table under a name and return its id. `columns` hold JSON scalars, `run` and `state` among them.

        `replace` takes the place of an import of that name and keeps its id. Raises StoreError where the name is taken.
        """
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        about = {**options, "columns": list(columns), "rows": len(rows)}
        values: dict[str, Any] = {"sha256": sha256, "file": file, "mapping": dict(mapping), "options": about}
        values["created"] = time.time() if created is None else created
        with self.transaction() as connection:
            self.check_import_name(name, replace=replace)
            insert = self._insert(imports).values(name=name, **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))
            number = int(connection.execute(sa.select(imports.c.id).where(imports.c.name == name)).scalar_one())
            connection.execute(sa.delete(imported_rows).where(imported_rows.c["import"] == number))
            if rows:
                placed = [{"import": number, "position": place, "columns": row} for place, row in enumerate(rows)]
                connection.execute(sa.insert(imported_rows), placed)
        return number

    def check_import_name(self, name: str, *, replace: bool = False) -> None:
        """Raise StoreError where an import may not take that name: a plan has it, or an import and not `replace`."""

        def read(connection: Connection) -> bool:
            return bool(connection.execute(sa.select(plans.c.id).where(plans.c.name == name)).first())

        if self._query(read):
            raise StoreError(f"{self.place}: {name} is the name of a plan; give the import another with --as")
        found = next((row for row in self.imports() if row.name == name), None)
        if found is not None and not replace:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.created))
            about = f"{found.file}, {found.options.get('rows', 0):,} rows, {when}"
            raise StoreError(f"{self.place}: there is an import {name} ({about}); --replace takes its place")

    def imports(self) -> list[ImportRow]:
        """All imports, in the order in which they were recorded."""

        def read(connection: Connection) -> list[ImportRow]:
            if not _has_imports(connection):
                return []
            rows = connection.execute(sa.select(imports).order_by(imports.c.id)).mappings()
            return [ImportRow(**row) for row in rows]

        return self._query(read)


def imported_columns(connection: Connection, name: str | None) -> list[ImportedColumns]:
    """The columns of one import, or of all in their order; empty where there is none. Two queries an import."""
    if not _has_imports(connection):
        return []
    query = sa.select(imports.c.id, imports.c.name, imports.c.options).order_by(imports.c.id)
    if name is not None:
        query = query.where(imports.c.name == name)
    return [ImportedColumns(row.name, *_columns(connection, row)) for row in connection.execute(query).all()]


def _columns(connection: Connection, row: Any) -> tuple[int, dict[str, list[Any]]]:
    text = sa.type_coerce(imported_rows.c.columns, sa.Text)
    query = sa.select(text).where(imported_rows.c["import"] == row.id).order_by(imported_rows.c.position)
    texts = connection.execute(query).scalars().all()
    # all rows are decoded as one text: a decoder called for each would take most of the time
    values = from_json(f"[{','.join(texts)}]") if texts else []
    names = row.options["columns"]
    return len(values), {name: [one.get(name) for one in values] for name in names}


def _has_imports(connection: Connection) -> bool:
    """Whether the database is of a version that knows imports; an older one is read as having none."""
    return sa.inspect(connection).has_table(imports.name)


def tidy_table(rows: Sequence[Mapping[str, Any]], imported: Sequence[ImportedColumns]) -> pd.DataFrame:
    """The tidy table of plans' rows and then imports' columns; a column that one lacks is missing there."""
    import pandas as pd

    shapes = dict.fromkeys(map(tuple, rows))  # rows of one sweep have few sets of columns
    names = dict.fromkeys(["plan", "run", "state", *(name for shape in shapes for name in shape)])
    whole = (
        dict(zip(next(iter(shapes)), zip(*(row.values() for row in rows), strict=True), strict=True))
        if len(shapes) == 1
        else {}
    )
    names |= dict.fromkeys(name for one in imported for name in one.columns)
    columns = {}
    for name in names:
        values = list(whole[name]) if name in whole else [row.get(name) for row in rows]
        for one in imported:
            values += [one.name] * one.rows if name == "plan" else one.columns.get(name) or [None] * one.rows
        columns[name] = values
    return pd.DataFrame(columns)
