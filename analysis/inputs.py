"""From a table's columns to checked arrays: what a fit refuses, and what it warns of. No fitting here."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.form import Array, Law

ALIASES = {
    "N": "params",
    "D": "tokens_seen",
    "C": "compute",
    "T": "tokens_per_image",
    "K": "codebook_size",
    "lambda": "crt_weight",
}
FEWEST_SCALES = 3
COMFORTABLE_SCALES = 5
COMFORTABLE_DECADES = 1.5
MAY_BE_ZERO = ("crt_weight", "lambda")


class FitError(ValueError):
    """A fit that cannot be made or trusted; its message is one line saying what, where and what to do."""


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column by its name or its symbol. Raises FitError."""
    found = name if name in table.columns else ALIASES.get(name, name)
    if found not in table.columns:
        raise FitError(f"the table has no column {found!r}; it has {', '.join(map(str, table.columns[:12]))}")
    return table[found]


def positive(table: pd.DataFrame, name: str) -> Array:
    """A column as numbers, all positive and finite (the CRT weight may be 0). Raises FitError, naming the row."""
    values = pd.to_numeric(column(table, name), errors="coerce").to_numpy(dtype=float)
    bad = ~(np.isfinite(values) & ((values > 0) | ((values == 0) & (name in MAY_BE_ZERO))))
    if bad.any():
        where = table.index[int(np.argmax(bad))]
        raise FitError(f"{name} must be positive and finite; row {where} holds {column(table, name).loc[where]}")
    return values


def input_array(table: pd.DataFrame, names: tuple[str, ...]) -> Array:
    """Columns `names` as [n, k]."""
    return np.stack([positive(table, name) for name in names], axis=1)


def refuse_duplicates(table: pd.DataFrame) -> None:
    """Raise FitError where a run stands twice under one evaluation: it would count twice."""
    keys = [name for name in ("plan", "run", "evaluation_seed", "guidance", "protocol_hash") if name in table.columns]
    if "run" not in keys or table["run"].is_unique:
        return
    twice = table.duplicated(subset=keys)
    if twice.any():
        row = table.loc[twice].iloc[0]
        raise FitError(f"run {str(row['run'])!r} stands twice in the table; drop one of its rows, or average them")


def check_scales(inputs: Array, names: tuple[str, ...], count: int, law: Law, target: str) -> tuple[str, ...]:
    """Refuse what determines nothing, and say what is thin. Raises FitError."""
    warnings = []
    for j, name in enumerate(names):
        if name in MAY_BE_ZERO or ALIASES.get(name) in MAY_BE_ZERO:
            continue
        scales = len(np.unique(np.round(np.log(inputs[:, j]), 6)))
        if scales < FEWEST_SCALES:
            raise FitError(
                f"{scales} distinct values of {name}: a law of {target} needs {FEWEST_SCALES}; add runs along it"
            )
        decades = float(np.log10(inputs[:, j].max() / inputs[:, j].min()))
        if scales < COMFORTABLE_SCALES or decades < COMFORTABLE_DECADES:
            warnings.append(
                f"{name} has {scales} values over {decades:.1f} decades (comfortable: {COMFORTABLE_SCALES} over "
                f"{COMFORTABLE_DECADES}): floor and exponents are weakly determined"
            )
    if count < len(law.parameters):
        raise FitError(f"{count} points cannot determine the {len(law.parameters)} parameters of {law.name}; add runs")
    return tuple(warnings)
