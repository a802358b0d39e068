"""Other people's tables as rows of the tidy table: values read, design columns filled in, everything checked.

From a file, or from the copy of it that an import keeps, to columns and remarks. No database and nothing written here:
that is `scaling.kept_imports`; which column is which is `scaling.import_matching`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.table import BY_NAME, STATES
from scaling.formulas import Array, Formula
from scaling.import_matching import Matching, Setting, match, read_settings
from scaling.import_values import at_rows, numbers, plain_numbers, sha256_of
from scaling.source_tables import Cell, ImportRefused, SourceTable, read_source
from scaling.yaml_nodes import did_you_mean

__all__ = ["ImportRefused", "Imported", "interpret", "prepare"]

METRICS = ("loss", "gfid", "rfid")
POSITIVE = ("params", "tokens_seen", "compute")  # a law takes their logarithms
RELATIONS = {
    "params": "compute/(6*tokens_seen)",
    "tokens_seen": "compute/(6*params)",
    "compute": "6*params*tokens_seen",
}
REPEATS = ("run", "evaluation_seed", "guidance", "protocol")  # rows of one run that differ in these are measurements
LONGEST_NAME = 80  # characters; it names a folder


@dataclass
class Imported:
    """A table as it will be recorded. `columns` hold JSON scalars, one a row, None where missing; `plan` is not there.

    `origins` says of each column where it comes from; `derived`, `ignored` and `warnings` are lines for people.
    """

    source: SourceTable
    mapping: dict[str, str]
    settings: list[Setting]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows in the file's order, each with every column."""
        names = list(self.columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*self.columns.values(), strict=True)]

    @property
    def sets(self) -> list[list[str]]:
        """The --set options as they were given: [column, text]."""
        return [[one.column, one.text] for one in self.settings]


def prepare(path: Path, name: str, maps: Sequence[str] = (), sets: Sequence[str] = ()) -> Imported:
    """Read a file and make it a table called `name`. `maps` are COLUMN=SOURCE, `sets` COLUMN=VALUE-or-FORMULA.

    Raises ImportRefused, whose one line lists all that is wrong.
    """
    from scaling.grid_rules import NAME

    problems = []
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        problems.append(f"--as {name!r}: a name is at most {LONGEST_NAME} letters, digits, `.`, `_`, `-`")
    source = read_source(path)
    matching = match(source, maps, sets)
    matching.problems[:0] = problems
    return _interpret(source, name, matching)


def interpret(source: SourceTable, name: str, mapping: Mapping[str, str], sets: Sequence[Sequence[str]]) -> Imported:
    """The table of a source whose `mapping` (column -> source) and `sets` ([column, text]) are known, as kept ones are.

    Raises ImportRefused.
    """
    matching = Matching(mapping=dict(mapping))
    matching.settings = read_settings([(one, text) for one, text in sets], source, mapping, matching)
    return _interpret(source, name, matching)


def _interpret(source: SourceTable, name: str, matching: Matching) -> Imported:
    builder = _Builder(source, matching)
    table = builder.build(name)
    if builder.problems:
        raise ImportRefused(f"{source.name}: {'; '.join(builder.problems)}")
    return table


class _Builder:
    """One table being made: numeric columns as arrays (NaN: missing), texts as lists, and what is wrong so far."""

    def __init__(self, source: SourceTable, matching: Matching) -> None:
        self.source, self.matching = source, matching
        self.problems = matching.problems
        self.numeric: dict[str, Array] = {}
        self.texts: dict[str, list[Cell]] = {}
        self.lost: dict[str, NDArray[np.bool_]] = {}  # rows in which a column is written as NaN or infinite
        self.broken = np.zeros(source.rows, dtype=bool)  # rows in which a metric is
        self.bad: set[str] = set()  # columns with a problem already, not to be reported twice
        mapping = {name: title for name, title in matching.mapping.items() if title in source.columns}
        self.table = Imported(source, mapping, matching.settings, warnings=list(matching.warnings))

    def build(self, name: str) -> Imported:
        table = self.table
        table.name = name
        table.ignored += [f"{title!r}: an empty column" for title in self.source.blank]
        for column, title in table.mapping.items():
            self._read(column, title)
        for setting in table.settings:
            self._set(setting)
        self._check_metrics()
        self._derive()
        self._fill()
        self._check_numbers()
        self._check_runs()
        self._remark()
        names = [one for one in BY_NAME if one in self.numeric or one in self.texts]
        extra = [*table.mapping, *(one.column for one in table.settings)]
        names += [one for one in dict.fromkeys(extra) if one not in BY_NAME]
        names.sort(key=lambda one: one not in ("run", "state"))
        table.columns = {one: self._plain(one) for one in names}
        return table

    def _plain(self, name: str) -> list[Any]:
        if name in self.texts:
            return list(self.texts[name])
        whole = name not in BY_NAME or BY_NAME[name].kind == "count"
        return plain_numbers(self.numeric[name], whole=whole)

    # ---------------------------------------------------------------------------- from the file

    def _read(self, column: str, title: str) -> None:
        cells = self.source.columns[title]
        known = BY_NAME.get(column)
        self.table.origins[column] = title
        if known is not None and known.kind == "text":
            self.texts[column] = [None if cell is None else str(cell) for cell in cells]
            return
        values, unread = numbers(cells)
        self.lost[column] = np.array([cell is not None for cell in cells]) & ~np.isfinite(values)
        self.lost[column][unread] = False
        if known is None:
            if len(unread):
                self.texts[column] = list(cells)
            else:
                self.numeric[column] = values
            return
        if len(unread):
            self._problem(column, f"{column} is {cells[unread[0]]!r}{at_rows(unread)}, not a number")
            self.problems[-1] += "; write plain numbers such as 1.5e9"
        if column in METRICS:
            self.broken |= self.lost[column]
            values = np.where(self.lost[column], np.nan, values)
        self.numeric[column] = values

    def _problem(self, column: str, text: str) -> None:
        if column not in self.bad:
            self.problems.append(text)
        self.bad.add(column)

    # ----------------------------------------------------------------------------------- --set

    def _set(self, setting: Setting) -> None:
        name, value = setting.column, setting.value
        self.table.origins[name] = f"--set {setting.text}"
        if isinstance(value, str):
            self.numeric.pop(name, None)
            self.texts[name] = [value] * self.source.rows
        elif isinstance(value, float):
            self.numeric[name] = np.full(self.source.rows, value)
        else:
            self._compute(setting, value)
        if name in self.numeric and not isinstance(value, str):
            self.texts.pop(name, None)

    def _compute(self, setting: Setting, formula: Formula) -> None:
        name, said = setting.column, f"--set {setting.column}={setting.text}"
        inputs: dict[str, Array] = {}
        for one in formula.names:
            values, reason = self._lookup(one)
            if values is None:
                self._problem(name, f"{said}: {reason}")
                self.numeric.setdefault(name, np.full(self.source.rows, np.nan))
                return
            inputs[one] = values
        values = np.broadcast_to(formula.evaluate(inputs), self.source.rows).astype(float)
        if name in METRICS:
            self.broken |= np.any([self.lost[one] for one in formula.names if one in self.lost], axis=0)
        there = np.all([np.isfinite(one) for one in inputs.values()], axis=0)
        wrong = np.flatnonzero(there & ~np.isfinite(values))
        if len(wrong) and not self.bad & set(formula.names):
            self._problem(name, f"{said} gives no finite number{at_rows(wrong)}")
        if self.bad & set(formula.names):
            self.bad.add(name)
        self.numeric[name] = np.where(there, values, np.nan)

    def _lookup(self, name: str) -> tuple[Array | None, str]:
        """A column's numbers by its name here or in the file, or the reason why there are none."""
        if name in self.numeric:
            return self.numeric[name], ""
        if name in self.texts or (name in self.source.columns and len(numbers(self.source.columns[name])[1])):
            return None, f"{name} is text, not a number"
        if name in self.source.columns:
            return numbers(self.source.columns[name])[0], ""
        known = (*self.numeric, *self.source.columns)
        return None, f"no column {name}{did_you_mean(name, known) or '; there are ' + ', '.join(dict.fromkeys(known))}"

    # ---------------------------------------------------------------------------------- derived

    def _check_metrics(self) -> None:
        if not any(name in self.numeric for name in METRICS):
            there = ", ".join(self.source.columns)
            self.problems.append(
                f"no metric: none of {', '.join(METRICS)} is among its columns ({there}); say --map loss=COLUMN"
            )

    def _derive(self) -> None:
        have = self.numeric
        if "tokens_seen" not in have and {"images_seen", "tokens_per_image"} <= set(have):
            self._derived("tokens_seen", have["images_seen"] * have["tokens_per_image"], "images_seen tokens_per_image")
        if "compute" not in have and {"params", "tokens_seen"} <= set(have):
            flops = 6 * have["params"] * have["tokens_seen"]
            self._derived("compute", flops, "6 params tokens_seen: compute is 6ND here, no exact count")
            if "compute_6nd" not in have:
                self._derived("compute_6nd", flops, "6 params tokens_seen")
        if "guidance" not in have:
            self._derived("guidance", np.ones(self.source.rows), "1: none assumed")

    def _derived(self, name: str, values: Array, how: str) -> None:
        self.numeric[name] = values
        self.table.origins[name] = "derived"
        self.table.derived.append(f"{name} = {how}")

    def _fill(self) -> None:
        rows, stem, file = self.source.rows, self.source.stem, self.source.name
        self._filled("run", lambda row: f"{stem}-{row + 1}", f"{stem}-1 to {stem}-{rows}, the file's name and the row")
        self._filled("state", self._state, self._states_said)
        self._filled("arm", lambda row: "all", "all: one arm")
        self._filled("protocol", lambda row: f"imported: {file}", f"imported: {file}; state it with --set protocol=...")
        protocols, sha = self.texts["protocol"], self.source.sha256
        hashes = {text: sha256_of(f"{sha}\0{text}") for text in dict.fromkeys(protocols)}
        self._filled("protocol_hash", lambda row: hashes[protocols[row]], "of the file's SHA-256 and the protocol")

    def _filled(self, name: str, value: Callable[[int], str], how: str | Callable[[], str]) -> None:
        cells = self.texts.get(name)
        empty = self.source.rows if cells is None else sum(cell is None for cell in cells)
        if not empty:
            return
        self.texts[name] = [
            value(row) if cells is None or cells[row] is None else cells[row] for row in range(self.source.rows)
        ]
        said = how if isinstance(how, str) else how()
        if cells is None:
            self.table.origins[name] = "derived"
        where = "" if cells is None else f" in the {empty} row{'s' * (empty > 1)} without"
        self.table.derived.append(f"{name} = {said}{where}")

    def _state(self, row: int) -> str:
        """Written as NaN or infinite, a metric says that the run diverged; not written at all, that nobody measured."""
        if self.broken[row]:
            return "diverged"
        measured = any(np.isfinite(self.numeric[name][row]) for name in METRICS if name in self.numeric)
        return "done" if measured else "pending"

    def _states_said(self) -> str:
        counts = Counter(self._state(row) for row in range(self.source.rows))
        why = {"done": "", "diverged": " (a metric is NaN or infinite)", "pending": " (no metric is given)"}
        return ", ".join(f"{state}: {count}{why[state]}" for state, count in counts.items())

    # ----------------------------------------------------------------------------------- checks

    def _check_numbers(self) -> None:
        for name, values in self.numeric.items():
            known = BY_NAME.get(name)
            if known is None or name in self.bad:
                continue
            infinite = np.flatnonzero(np.isinf(values))
            if len(infinite):
                self._problem(name, f"{name} is infinite{at_rows(infinite)}; it must be finite")
                continue
            limit = name in POSITIVE
            wrong = np.flatnonzero((values <= 0) if limit else (values < 0))
            if len(wrong) and (limit or known.kind != "real"):
                must = "above 0" if limit else "not negative"
                self._problem(name, f"{name} is {values[wrong[0]]:g}{at_rows(wrong)}; it must be {must}")

    def _check_runs(self) -> None:
        states = self.texts["state"]
        unknown = np.flatnonzero([state not in STATES for state in states])
        if len(unknown):
            wrong = f"state is {states[unknown[0]]!r}{at_rows(unknown)}; it must be one of {', '.join(STATES)}"
            self.problems.append(wrong)
        parts = [self._plain(name) for name in REPEATS if name in self.texts or name in self.numeric]
        seen: dict[tuple[Any, ...], int] = {}
        for row, key in enumerate(zip(*parts, strict=True)):
            first = seen.setdefault(key, row)
            if first != row:
                told = ", ".join(REPEATS[1:-1]) + f" or {REPEATS[-1]}"
                self.problems.append(
                    f"run {key[0]!r} stands in rows {first + 1} and {row + 1} and nothing tells them apart; "
                    f"give runs names of their own (rows of one run differ in {told})"
                )
                break

    def _remark(self) -> None:
        absent = [name for name in POSITIVE if name not in self.numeric]
        if absent and {"loss", "gfid"} & set(self.numeric):
            how = f" '{absent[0]}={RELATIONS[absent[0]]}'" if len(absent) == 1 else ""
            self.table.warnings.append(f"no {' and no '.join(absent)}, which laws need: give --map or --set{how}")
        done = np.array([state == "done" for state in self.texts["state"]])
        for name in ("params", "tokens_seen", *METRICS):
            missing = np.flatnonzero(done & np.isnan(self.numeric[name])) if name in self.numeric else ()
            if len(missing) and name not in self.bad:
                self.table.warnings.append(
                    f"{name} is missing in {len(missing)} rows that are done: a fit refuses them"
                )
        self.table.warnings += unit_warnings(self.numeric)


def unit_warnings(columns: Mapping[str, Array]) -> list[str]:
    """What looks like another unit than the tidy table's: counts in millions, perplexity, a compute far from 6ND."""
    found = []
    hints = (
        ("params", 1e3, "millions", "1e6"),
        ("tokens_seen", 1e3, "billions", "1e9"),
        ("compute", 1e3, "1e18", "1e18"),
    )
    for name, below, unit, factor in hints:
        low, high = _range(columns.get(name))
        if high < below:
            fix = f"--set {name}={name}*{factor}"
            found.append(f"{name} {low:g}..{high:g}: looks like {unit}; if so use {fix}")
    low, high = _range(columns.get("loss"))
    if math.isfinite(high) and high > 20:
        found.append(
            f"loss {low:g}..{high:g}: nats a token seldom exceed 15; of a perplexity use --set 'loss=log(loss)'"
        )
    if not found and {"compute", "params", "tokens_seen"} <= set(columns):
        with np.errstate(all="ignore"):
            ratios = columns["compute"] / (6 * columns["params"] * columns["tokens_seen"])
        ratio = float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else 1.0
        if not 0.1 <= ratio <= 10:
            found.append(f"compute is {ratio:.2g} times 6 params tokens_seen in the middle row: check the units")
    return found


def _range(values: Array | None) -> tuple[float, float]:
    """Least and greatest finite value; infinities where there is none."""
    finite = values[np.isfinite(values)] if values is not None else np.empty(0)
    return (float(finite.min()), float(finite.max())) if len(finite) else (math.inf, math.inf)
