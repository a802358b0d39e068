"""Cells of a foreign table as numbers and back, and the words for the rows at fault."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scaling.source_tables import Cell
from scaling.tidy import EXACT_INTEGER


def numbers(cells: Sequence[Cell]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(values, rows that are no number): NaN where a cell is missing, says so, or is no number."""
    values = np.full(len(cells), np.nan)
    unread = []
    for row, cell in enumerate(cells):
        if cell is None:
            continue
        try:
            values[row] = _number(cell)
        except (ValueError, OverflowError):
            unread.append(row)
    return values, np.array(unread, dtype=np.int64)


def _number(cell: Cell) -> float:
    """Raises ValueError, OverflowError. Python reads 1_000 as a number; a table that means it writes 1000."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        raise ValueError(cell)
    return float(cell)  # type: ignore[arg-type]


def plain_numbers(values: NDArray[np.float64], *, whole: bool) -> list[float | int | None]:
    """JSON numbers, None for what is missing; whole numbers as such where all of a column are and `whole` allows it."""
    finite = values[np.isfinite(values)]
    exact = whole and bool(np.all(finite == np.floor(finite)) and np.all(np.abs(finite) <= EXACT_INTEGER))
    if exact and len(finite) and not np.isinf(values).any():
        return [None if value != value else int(value) for value in values.tolist()]
    return [None if value != value else value for value in values.tolist()]


def at_rows(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """` in row 3 (and 2 more)`; the first row of data is row 1."""
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    return f" in row {int(rows[0]) + 1}{more}"


def sha256_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
