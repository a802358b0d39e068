"""Which rows of a table count: `--where` conditions and `--by` groups. Nothing is fitted here."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis.inputs import ALIASES
from analysis.table import TableError

_CONDITION = re.compile(r"^\s*([^=!<>]+?)\s*(!=|>=|<=|==?|>|<)\s*(.+?)\s*$")
_COMPARE: dict[str, Callable[[Any, float], pd.Series]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def where(df: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that meet all `conditions`, each `COLUMN=VALUE`, `!=`, `>=`, `<=`, `>` or `<`.

    `=` and `!=` take several values apart by commas (any of them, none of them); symbols N, D, C, T, K, lambda stand
    for their columns. Raises TableError: no condition, an unknown column, a number that is none, no row left.
    """
    for text in conditions:
        df = df[_meets(df, text)]
        if not len(df):
            raise TableError(f"--where {text!r} leaves no run; see the values with: scaling runs")
    return df


def _meets(df: pd.DataFrame, text: str) -> pd.Series:
    found = _CONDITION.match(text)
    if found is None:
        raise TableError(f"--where {text!r} is no condition; write COLUMN=VALUE, or with !=, >=, <=, >, <")
    name, sign, value = found.groups()
    sign = "=" if sign == "==" else sign
    column = df[known_column(df, name, "--where")]
    if sign in ("=", "!="):
        same = pd.Series(False, index=df.index)
        for one in value.split(","):
            same |= _equal(column, one.strip())
        return same if sign == "=" else ~same
    try:
        limit = float(value.replace("_", ""))
    except ValueError:
        raise TableError(f"--where {text!r}: {value!r} is no number to compare with") from None
    return _COMPARE[sign](pd.to_numeric(column, errors="coerce"), limit)


def _equal(column: pd.Series, value: str) -> pd.Series:
    try:
        number = float(value.replace("_", ""))
    except ValueError:
        return column.map(str) == value
    as_numbers = pd.to_numeric(column, errors="coerce")
    return (as_numbers - number).abs().le(1e-9 * max(1.0, abs(number))) | (column.map(str) == value)


def known_column(df: pd.DataFrame, name: str, option: str) -> str:
    """A column by its name or symbol. Raises TableError that names the option and what is close."""
    name = name.strip()
    for found in (name, ALIASES.get(name, name)):
        if found in df.columns:
            return found
    close = difflib.get_close_matches(name, [str(one) for one in df.columns], 1)
    hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(map(str, df.columns[:12]))}"
    raise TableError(f"{option}: the table has no column {name!r}{hint}")


def grouped(df: pd.DataFrame, by: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with `arm` replaced by the values of `by` (columns apart by commas), and a caution where it pools arms.

    Raises TableError for an unknown column.
    """
    columns = [known_column(df, name, "--by") for name in by.split(",")]
    if columns == ["arm"]:
        return df, []
    names = df[columns].apply(lambda row: ", ".join(f"{SHORT.get(c, c)}={_plain(row[c])}" for c in columns), axis=1)
    table = df.assign(arm=names)
    pooled = df["arm"].groupby(names).unique() if "arm" in df else pd.Series(dtype=object)
    several = {str(name): list(map(str, arms)) for name, arms in pooled.items() if len(arms) > 1}
    listed = "; ".join(f"{name} pools {', '.join(arms)}" for name, arms in several.items())
    caution = f"--by {by}: {listed}. What differs between them counts as noise of the law."
    return table, [caution] if several else []


SHORT = {"codebook_size": "K", "tokens_per_image": "T", "crt_weight": "lambda"}


def _plain(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)  # counts in full: two must not become one
