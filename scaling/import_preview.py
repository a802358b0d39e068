"""What an import would record, for people and as JSON: columns with source, unit, first values and range; remarks."""

from __future__ import annotations

from typing import Any

from analysis.table import BY_NAME
from scaling.importing import METRICS, Imported

FIRST = 3  # values shown of a column
LONGEST = 24  # characters of a cell


def render_preview(table: Imported) -> str:
    """The table of columns, then what was derived, what was left out, and warnings; one line each."""
    rows = len(next(iter(table.columns.values())))
    source = table.source
    title = f"{source.name}: {rows:,} rows, {source.kind}, SHA-256 {source.sha256[:12]}, as {table.name}"
    cells = [("column", "<- source", "unit", "first values", "range", "missing")]
    for one in describe(table):
        unit = one["unit"] or ("extra" if one["column"] not in BY_NAME else "")
        first = ", ".join(_short(value) for value in one["first"])
        cells.append((one["column"], f"<- {one['source']}", unit, first, _span(one), str(one["missing"])))
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    remarks = [f"derived: {text}" for text in table.derived]
    remarks += [f"ignored: {text}" for text in table.ignored]
    remarks += [f"warning: {text}" for text in table.warnings]
    return "\n".join([title, *(f"  {line}" for line in lines), *remarks])


def describe(table: Imported) -> list[dict[str, Any]]:
    """Every column: {"column", "source", "unit", "first", "min", "max", "distinct", "missing"}.

    `first` are its first different values; min and max are those of numbers. A column that is not the tidy table's has
    no unit.
    """
    found = []
    for name, values in table.columns.items():
        there = [value for value in values if value is not None]
        numeric = bool(there) and all(isinstance(value, int | float) for value in there)
        low, high = (min(there), max(there)) if numeric else (None, None)
        unit = BY_NAME[name].unit if name in BY_NAME else ""
        found.append(
            {"column": name, "source": table.origins[name], "unit": unit, "first": list(dict.fromkeys(there))[:FIRST]}
            | {"min": low, "max": high, "distinct": len(set(there)), "missing": len(values) - len(there)}
        )
    return found


def summary(table: Imported) -> dict[str, Any]:
    """The preview as JSON values."""
    return {
        "import": table.name,
        "file": table.source.name,
        "sha256": table.source.sha256,
        "rows": len(next(iter(table.columns.values()))),
        "columns": describe(table),
        "derived": table.derived,
        "ignored": table.ignored,
        "warnings": table.warnings,
    }


def fit_metric(table: Imported) -> str:
    """The word by which `scaling fit` knows the table's metric."""
    (first, *_) = [name for name in ("gfid", *METRICS) if name in table.columns]
    return "fid" if first == "gfid" else first


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = " ".join(str(value).split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return f"{value:.4g}" if isinstance(value, float) or abs(value) >= 10**7 else str(value)


def _span(one: dict[str, Any]) -> str:
    if one["min"] is None:
        return f"{one['distinct']} value{'s' * (one['distinct'] != 1)}"
    return _short(one["min"]) if one["min"] == one["max"] else f"{_short(one['min'])}..{_short(one['max'])}"
