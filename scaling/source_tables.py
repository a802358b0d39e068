"""Other people's files as columns of plain cells: CSV, TSV, JSON records, Parquet. It knows no column's meaning.

A cell is text (stripped), a number, a truth value or None where it is missing. A number that a CSV file writes stays
text, since only the reader of a column knows whether `007` is a name.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None

MISSING = frozenset(("", "na", "n/a", "<na>", "null", "none", "-"))  # lower case; nan is no missing value but a result
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".json")
LONGEST_FIELD = 1_000_000  # characters


class ImportRefused(Exception):
    """A table cannot be imported as asked; the message is one line with all that is wrong and what to do."""


@dataclass(frozen=True)
class SourceTable:
    """A file as it was read. `columns` are those with any value, by the file's names; `blank` names those without."""

    name: str
    data: bytes
    kind: str
    columns: dict[str, list[Cell]]
    rows: int
    blank: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def stem(self) -> str:
        """The file's name without what says its kind."""
        return self.name[: -len(suffix_of(self.name))] or self.name


def suffix_of(name: str) -> str:
    """The part of a file's name that says its kind, as written (`.csv.gz`); empty where it is none of SUFFIXES."""
    found = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return name[-max(map(len, found)) :] if found else ""


def read_source(path: Path) -> SourceTable:
    """Read a file. Raises ImportRefused."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImportRefused(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImportRefused(f"{path}: is a folder; name the file in it") from None
    except OSError as error:
        raise ImportRefused(f"{path}: cannot be read: {error.strerror}") from None
    return parse_source(path.name, data)


def parse_source(name: str, data: bytes) -> SourceTable:
    """The table in a file's bytes; its name says its kind. Raises ImportRefused."""
    suffix = suffix_of(name).lower()
    try:
        if suffix.startswith((".csv", ".tsv")):
            kind, found = suffix[1:4].upper(), _separated(_text(data, suffix.endswith(".gz")), suffix[1:4])
        elif suffix == ".json":
            kind, found = "JSON", _records(_text(data, False))
        elif suffix == ".parquet":
            kind, found = "Parquet", _parquet(data)
        else:
            raise ImportRefused(f"unknown kind of table; use {', '.join(SUFFIXES)}")
    except ImportRefused as error:
        raise ImportRefused(f"{name}: {error}") from None
    rows = len(next(iter(found.values()), []))
    if rows == 0:
        raise ImportRefused(f"{name}: no rows")
    blank = tuple(title for title, cells in found.items() if all(cell is None for cell in cells))
    kept = {title: cells for title, cells in found.items() if title not in blank}
    return SourceTable(name, data, kind, kept, rows, blank)


def _text(data: bytes, packed: bool) -> str:
    try:
        return (gzip.decompress(data) if packed else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ImportRefused("truncated or no gzip file") from None


def _separated(text: str, kind: str) -> dict[str, list[Cell]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if kind == "csv" else "\t", strict=True)
    lines: list[list[str]] = []
    try:
        for line in reader:
            if any(cell.strip() for cell in line):
                if lines and len(line) != len(lines[0]):
                    count = f"{len(line)} cell{'s' * (len(line) != 1)}"
                    raise ImportRefused(f"line {reader.line_num} has {count}, the header {len(lines[0])}")
                lines.append(line)
    except csv.Error as error:
        raise ImportRefused(f"line {reader.line_num} cannot be read: {error}") from None
    if not lines:
        raise ImportRefused("no rows: the file is empty")
    header = _titles(lines[0])
    if len(header) == 1 and any(mark in lines[0][0] for mark in ",;\t"):
        raise ImportRefused(
            f"one column, {header[0]!r}: save it with {'commas' if kind == 'csv' else 'tabs'} between cells"
        )
    return {title: [_cell(line[place]) for line in lines[1:]] for place, title in enumerate(header)}


def _records(text: str) -> dict[str, list[Cell]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"not readable as JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ImportRefused('no list of records; write [{"params": 1e6, "loss": 2.5}, ...]')
    return _by_column(rows)


def _by_column(rows: Sequence[dict[str, Any]]) -> dict[str, list[Cell]]:
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return {title: [_cell(row.get(name)) for row in rows] for title, name in zip(_titles(names), names, strict=True)}


def _parquet(data: bytes) -> dict[str, list[Cell]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportRefused("Parquet needs pyarrow: pip install 'scaling-lab[parquet]'") from None
    try:
        table = parquet.read_table(io.BytesIO(data))
        names, columns = table.column_names, [column.to_pylist() for column in table.columns]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ImportRefused(f"not readable as Parquet: {' '.join(str(error).split())}") from None
    return {title: [_cell(value) for value in cells] for title, cells in zip(_titles(names), columns, strict=True)}


def _titles(names: Iterable[str]) -> list[str]:
    """Names of columns as they are used: on one line, none empty. Raises ImportRefused where two are the same."""
    titles = [" ".join(name.split()) or f"column_{place}" for place, name in enumerate(names, 1)]
    twice = [repr(title) for title, count in Counter(titles).items() if count > 1]
    if twice:
        raise ImportRefused(f"two columns are called {', '.join(twice)}; rename one")
    return titles


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Decimal):
        return float(value)
    text = (value if isinstance(value, str) else _written(value)).strip()
    return None if text.lower() in MISSING else text


def _written(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
