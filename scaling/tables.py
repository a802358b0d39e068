"""The results' table for people and for other tools."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    ("run", "run", "{}"),
    ("state", "state", "{}"),
    ("params", "N", "{:,.0f}"),
    ("images_seen", "images", "{:,.0f}"),
    ("compute", "FLOPs", "{:.2e}"),
    ("loss", "loss", "{:.4f}"),
    ("loss_per_image", "nats/image", "{:.2f}"),
    ("rfid", "rFID", "{:.2f}"),
    ("gfid", "gFID", "{:.2f}"),
    ("gkid", "gKID", "{:.4f}"),
    ("usage", "usage", "{:.0%}"),
)


class TableFileError(Exception):
    """A table cannot be written as asked; the message is one line."""


def render_runs(table: pd.DataFrame) -> str:
    """The columns that matter most, one line a run and evaluation."""
    shown = [(name, title, form) for name, title, form in SHOWN if name in table]
    cells = [[title for _, title, _ in shown]]
    for row in table.to_dict("records"):
        cells.append([_cell(row[name], form) for name, _, form in shown])
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    lines = []
    for line in cells:
        parts = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    missing = value is None or (isinstance(value, float) and value != value)
    return "" if missing else form.format(value)


def to_json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of JSON values, with None for what is missing or not finite."""
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write .csv, .json or .parquet, atomically. Raises TableFileError."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        data = table.to_csv(index=False).encode()
    elif suffix == ".json":
        data = (json.dumps(to_json_rows(table), indent=1, allow_nan=False) + "\n").encode()
    elif suffix == ".parquet":
        buffer = io.BytesIO()
        try:
            table.to_parquet(buffer, index=False)
        except ImportError:
            raise TableFileError(f"{path}: Parquet needs pyarrow: pip install 'scaling-lab[parquet]'") from None
        data = buffer.getvalue()
    else:
        raise TableFileError(
            f"{path}: unknown kind of table {suffix or 'without suffix'!r}; use .csv, .parquet or .json"
        )
    if not path.parent.is_dir():
        raise TableFileError(f"{path}: the folder {path.parent} does not exist")
    try:
        write_atomic(path, data)
    except OSError as error:
        raise TableFileError(f"{path}: cannot be written: {error.strerror}; name another file") from None
