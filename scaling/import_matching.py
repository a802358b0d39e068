"""Which column of a foreign table is which of the tidy table: `--map`, `--set`, then well-known names. No values here.

What a user names beats what is guessed: a guess that is not wanted becomes an extra column. Two guesses for one column
are refused, since picking one would be silent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from analysis.table import BY_NAME
from scaling.formulas import Formula, FormulaError, parse_formula
from scaling.source_tables import SourceTable
from scaling.yaml_nodes import did_you_mean

PLAN = "plan"  # what the store fills with the import's name
ALIASES = {
    "run": ("run_name", "run_id"),
    "arm": ("tokenizer",),
    "codebook_size": ("k", "codebook", "vocab", "vocab_size"),
    "tokens_per_image": ("t", "num_tokens"),
    "crt_weight": ("lambda",),
    "images_seen": ("images", "training_images"),
    "params": ("n", "n_params", "num_params", "model_size", "parameters", "gen_params"),
    "tokens_seen": ("d", "tokens", "training_tokens", "train_tokens"),
    "compute": ("c", "flop", "flops", "compute_budget", "training_flop", "training_flops"),
    "loss": ("val_loss", "validation_loss", "final_loss"),
    "gfid": ("fid",),
    "steps": ("training_steps",),
}


def _plain(name: str) -> str:
    """A name without case and without what stands between its words."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


KNOWN = {name: name for name in BY_NAME} | {alias: name for name, aliases in ALIASES.items() for alias in aliases}


@dataclass(frozen=True)
class Setting:
    """One `--set`: a constant or a formula for a column."""

    column: str
    text: str
    value: float | str | Formula

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns it is computed from."""
        return self.value.names if isinstance(self.value, Formula) else ()


@dataclass
class Matching:
    """`mapping`: column -> the file's column, in the file's order; `extra` says which are not the tidy table's."""

    mapping: dict[str, str] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def extra(self) -> list[str]:
        """Columns kept as they are, beside the tidy table's."""
        return [name for name in self.mapping if name not in BY_NAME]


def match(source: SourceTable, maps: Sequence[str], sets: Sequence[str]) -> Matching:
    """Decide where every column comes from. What is wrong is in `problems`; nothing is raised."""
    found = Matching()
    mapped = _read_maps(source, maps, found)
    found.settings = read_settings(
        [_split(text, "--set", "COLUMN=VALUE", found) for text in sets], source, mapped, found
    )
    taken = dict(mapped)
    own = {one.column for one in found.settings if one.column not in one.reads}
    for one in sorted(own & set(mapped)):
        found.problems.append(f"{one} has two sources, --map {one}={mapped[one]} and --set {one}; give one")
    guesses: dict[str, list[str]] = {}
    extras: list[tuple[str, str]] = []
    for title in source.columns:
        target = KNOWN.get(_plain(title), "")
        if title in mapped.values():
            continue
        if target and target != PLAN and target not in taken and target not in own:
            guesses.setdefault(target, []).append(title)
        else:
            extras.append((title, title))
    for target, titles in guesses.items():
        if len(titles) > 1:
            listed = " and ".join(repr(title) for title in titles)
            hint = f"say --map {target}={titles[0]!s} (the other is then kept as it is)"
            found.problems.append(f"{target} has two sources, the file's {listed}; {hint}")
        taken[target] = titles[0]
    for title, name in extras:
        clash = name in taken or name in own or name in BY_NAME
        taken[f"source_{name}" if clash else name] = title
    order = {title: place for place, title in enumerate(source.columns)}
    found.mapping = dict(sorted(taken.items(), key=lambda item: order.get(item[1], -1)))
    return found


def _split(text: str, option: str, form: str, found: Matching) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not (sign and name and value):
        found.problems.append(f"{option} {text!r}: write {option} {form}")
        return "", ""
    if name == PLAN:
        found.problems.append(f"{option} {text!r}: the column plan is the import's name; give it with --as")
        return "", ""
    return name, value


def _read_maps(source: SourceTable, maps: Sequence[str], found: Matching) -> dict[str, str]:
    mapped: dict[str, str] = {}
    for text in maps:
        name, title = _split(text, "--map", "COLUMN=SOURCE", found)
        if not name:
            continue
        if title in source.blank:
            found.problems.append(f"--map {text}: the column {title!r} is empty")
        elif title not in source.columns:
            hint = did_you_mean(title, source.columns) or f"; it has {', '.join(source.columns)}"
            found.problems.append(f"--map {text}: the file has no column {title!r}{hint}")
        elif mapped.get(name, title) != title:
            found.problems.append(f"{name} has two sources, {mapped[name]!r} and {title!r}; give one --map for it")
        else:
            mapped[name] = title
            _warn_unknown(name, found)
    return mapped


def _warn_unknown(name: str, found: Matching) -> None:
    if name not in BY_NAME:
        alias = KNOWN.get(_plain(name))
        hint = f" (did you mean {alias}?)" if alias else did_you_mean(name, BY_NAME)
        found.warnings.append(f"{name} is no column of the results' table{hint}: kept as an extra column")


def read_settings(
    pairs: Sequence[tuple[str, str]], source: SourceTable, mapped: Mapping[str, str], found: Matching
) -> list[Setting]:
    """The `--set` options; ("", "") stands for one that was refused already."""
    settings: list[Setting] = []
    known = {*source.columns, *mapped, *BY_NAME}
    for name, text in pairs:
        if not name:
            continue
        if name in [one.column for one in settings]:
            found.problems.append(f"{name} has two sources, --set {name} is given twice; give one")
            continue
        try:
            settings.append(Setting(name, text, _reading(name, text, {*known, *(one.column for one in settings)})))
        except FormulaError as error:
            found.problems.append(f"--set {name}={text}: {error}")
            continue
        if name not in source.columns:
            _warn_unknown(name, found)
    return settings


def _reading(name: str, text: str, known: set[str]) -> float | str | Formula:
    """A number, a text or a formula, by the kind of the column. Raises FormulaError."""
    quoted = re.fullmatch(r"""(["'])(.*)\1""", text)
    if name in BY_NAME and BY_NAME[name].kind == "text":
        return quoted[2] if quoted else text
    if name in BY_NAME:
        return _constant_or_formula(text)
    if quoted:
        return quoted[2]
    try:
        read = _constant_or_formula(text)
    except FormulaError:
        return text
    # 2024-10-15 or a-b is text, unless it names a column that is there
    meant = bool(known & set(read.names)) if isinstance(read, Formula) else _is_number(text)
    return read if meant else text


def _constant_or_formula(text: str) -> float | Formula:
    formula = parse_formula(text)
    if formula.names:
        return formula
    value = float(formula.evaluate({}))
    if not math.isfinite(value):
        raise FormulaError("gives no finite number")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
