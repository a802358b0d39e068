"""A section of a plan read by its schema: unknown keys, units of a value, lists that are axes, locations.

Values are kept flat, by dotted key (`crt.width`), until a whole section is validated. This module knows Pydantic
settings and nodes; it knows nothing of arms, runs or how a grid is expanded.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.fields import Settings
from scaling.plan_keys import Leaf, groups, leaves, nest, nested_model
from scaling.run_names import label
from scaling.yaml_nodes import Mark, Node, Problems, did_you_mean

S = TypeVar("S", bound=Settings)
SUFFIXES: Mapping[str, int] = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_COUNT = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?)([kMGB])")
_VARIABLE = re.compile(r"\$\{(\w*)\}")
_RANGE = re.compile(r"-?[\d.]+\s*(?:-|\.\.)\s*-?[\d.]+")


@dataclass(frozen=True)
class Choice:
    """One value on an axis and the node it was written as."""

    value: Any
    node: Node


@dataclass
class Section:
    """What a plan says of one section: single values, axes, and where each was written (all by dotted key).

    It is `sound` where every key and value in it could be read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, list[Choice]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    sound: bool = True

    def plain(self) -> dict[str, Any]:
        """The section as nested plain values, axes as lists; nothing that the plan does not say."""
        return nest(self.values | {path: [choice.value for choice in axis] for path, axis in self.axes.items()})


class SectionReader:
    """Reads the nodes of one section against its model, adding what is wrong to `problems`.

    `elsewhere` maps a key of another section to that section's name, for the hint on an unknown key.
    """

    def __init__(self, name: str, model: type[Settings], problems: Problems, elsewhere: Mapping[str, str]) -> None:
        self.name, self.model, self.problems, self.elsewhere = name, model, problems, elsewhere
        self.leaves, self.groups = leaves(model), frozenset(groups(model))

    def read(self, node: Node, *, axes: bool = True, also: frozenset[str] = frozenset(), at: str = "") -> Section:
        """What `node` says. Keys in `also` are left to the caller; without `axes` a list on an axis is refused.

        `at` is the dotted name shown in errors where it is not the section's own (an arm's).
        """
        section, before = Section(), len(self.problems)
        if node.is_mapping:
            self._mapping(node, "", at or self.name, section, axes, also)
        else:
            self.problems.add(not_a_mapping(node), at or self.name, node.key)
        # axes in the schema's order, so that a name does not change with the order of keys
        section.axes = {path: section.axes[path] for path in self.leaves if path in section.axes}
        section.sound = len(self.problems) == before
        return section

    def _mapping(
        self, node: Node, prefix: str, at: str, section: Section, axes: bool, also: frozenset[str] = frozenset()
    ) -> None:
        for key, child in node.value.items():
            path, shown = prefix + key, f"{at}.{key}"
            if path in also:
                continue
            section.nodes[path] = child
            if path in self.groups:
                if child.is_null and self._optional(path):
                    section.values[path] = None
                elif child.is_mapping:
                    self._mapping(child, f"{path}.", shown, section, axes)
                else:
                    self.problems.add(not_a_mapping(child), shown, child.key)
            elif path in self.leaves:
                self._value(self.leaves[path], child, shown, section, axes)
            else:
                self.problems.add(f"unknown key{self._hint(key, prefix, also)}", shown, child.key)

    def _optional(self, path: str) -> bool:
        model: type[BaseModel] = self.model
        *outer, last = path.split(".")
        for name in outer:
            model = nested_model(model.model_fields[name].annotation) or model
        return type(None) in typing.get_args(model.model_fields[last].annotation)

    def _hint(self, key: str, prefix: str, also: frozenset[str]) -> str:
        known = [path[len(prefix) :] for path in (*self.leaves, *self.groups) if path.startswith(prefix)]
        here = {path.split(".")[0] for path in known} | (set() if prefix else also)
        inside = [path for path in self.leaves if path.rsplit(".", 1)[-1] == key]
        if inside:
            return f" (did you mean {self.name}.{inside[0]}?)"
        return f" (it belongs to {self.elsewhere[key]})" if key in self.elsewhere else did_you_mean(key, here)

    def _value(self, leaf: Leaf, node: Node, at: str, section: Section, axes: bool) -> None:
        if node.is_list and leaf.axis and "tuple" not in leaf.kinds:
            if not axes:
                self.problems.add("takes one value here; a list belongs to the section, as an axis", at, node.mark)
            elif not node.value:
                self.problems.add("an empty list sweeps nothing; give at least one value", at, node.mark)
            else:
                read = [(convert(leaf, item, at, self.problems), item) for item in node.value]
                section.axes[leaf.path] = [Choice(value, item) for value, item in read if value is not INVALID]
            return
        value = convert(leaf, node, at, self.problems)
        if value is not INVALID:
            section.values[leaf.path] = value


INVALID: Any = object()  # what `convert` returns after it has added a problem


def not_a_mapping(node: Node) -> str:
    """What to say of a section that is no mapping."""
    if node.is_null:
        return "empty section; indent its keys below it, or remove it"
    what = "a list" if node.is_list else f"`{node.text}`"
    return f"expected keys and values below it, got {what}"


def convert(leaf: Leaf, node: Node, at: str, problems: Problems) -> Any:
    """The value of a node as its leaf's type, or INVALID after adding what is wrong with it.

    A tuple given as one scalar (`1-2`) and a shape given as text (`64x3`) stay as written for the model to read.
    """
    if node.is_null:
        if "none" in leaf.kinds:
            return None
        return _refuse(problems, f"empty; expected {leaf.expected()}", at, node.key)
    if node.is_mapping:
        if leaf.shape is None:
            return _refuse(problems, f"expected {leaf.expected()}, got a mapping", at, node.key)
        before = len(problems)
        inner = SectionReader(at, leaf.shape, problems, {}).read(node)
        return inner.values if len(problems) == before else INVALID
    if node.is_list:
        if leaf.item is None:
            only = "" if leaf.axis else " (this key is not an axis)"
            return _refuse(problems, f"takes one value, not a list{only}", at, node.mark)
        items = [convert(leaf.item, item, at, problems) for item in node.value]
        return INVALID if any(item is INVALID for item in items) else items
    if "${" in node.text:
        return _expand(leaf, node, at, problems)
    return _scalar(leaf, node, at, problems)


def _refuse(problems: Problems, message: str, at: str, mark: Mark) -> Any:
    problems.add(message, at, mark)
    return INVALID


def _expand(leaf: Leaf, node: Node, at: str, problems: Problems) -> Any:
    if not leaf.location:
        return _refuse(problems, "${VAR} may stand only where something lies (a path or an address)", at, node.mark)
    names = _VARIABLE.findall(node.text)
    unset = [name for name in names if name not in os.environ]
    if unset:
        return _refuse(problems, f"environment variable {unset[0]} is not set; export it before the run", at, node.mark)
    if "${" in _VARIABLE.sub("", node.text):
        return _refuse(problems, f"`{node.text}`: a variable is written ${{NAME}}", at, node.mark)
    return _VARIABLE.sub(lambda match: os.environ[match[1]], node.text)


def _scalar(leaf: Leaf, node: Node, at: str, problems: Problems) -> Any:
    value, kinds = node.value, leaf.kinds
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if "model" in kinds:
        return node.text
    if "tuple" in kinds:
        return node.value
    if "bool" in kinds and isinstance(value, bool):
        return value
    if "int" in kinds and number and value == int(value):
        return int(value)
    if "float" in kinds and number:
        return float(value)
    if leaf.is_count and not node.quoted and (count := parse_count(node.text)) is not None:
        return count
    if node.text in leaf.choices or "str" in kinds:
        return node.text
    close = did_you_mean(node.text, leaf.choices)
    return _refuse(problems, f"expected {leaf.expected()}, got `{node.text}`{close or _why(leaf, node)}", at, node.mark)


def _why(leaf: Leaf, node: Node) -> str:
    """A reason for the commonest misreadings of a scalar."""
    if "bool" in leaf.kinds and node.text.lower() in ("yes", "no", "on", "off", "true", "false"):
        return " (only true and false are booleans)"
    if not leaf.kinds & {"int", "float"}:
        return ""
    if node.quoted:
        return " in quotes"
    if _COUNT.fullmatch(node.text) and not leaf.is_count:
        return " (k, M, G and B are read for images and samples only: write the number out)"
    return " (a range is a value, never an axis: write a list)" if _RANGE.fullmatch(node.text) else ""


def parse_count(text: str) -> int | None:
    """11.5M as 11,500,000; None where the text is no whole number with a suffix k, M, G or B (powers of ten)."""
    match = _COUNT.fullmatch(text)
    if match is None:
        return None
    count = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2]]
    return int(count) if count == int(count) else None


def validate(model: type[S], flat: Mapping[str, Any], nodes: Mapping[str, Node], section: str) -> S:
    """The settings that flat values make, defaults filled in. Raises SectionInvalid with one entry a fault."""
    try:
        return model.model_validate(nest(flat))
    except ValidationError as error:
        faults = [_fault(entry, nodes, section, model) for entry in error.errors()]
        # a key that was written but could not be read has its problem already
        raise SectionInvalid([fault for fault in faults if not (fault.absent and fault.local in nodes)]) from None


@dataclass(frozen=True)
class Fault:
    """What a model refused: the message, the dotted key shown, its nearest written node, and its path in the section.

    `of_value` faults concern one key's value; the others concern keys together.
    """

    message: str
    at: str
    node: Node | None = None
    local: str = ""
    of_value: bool = False
    absent: bool = False


class SectionInvalid(Exception):
    """A section's values are each readable but not valid (together)."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.message for fault in faults))


def _fault(entry: Any, nodes: Mapping[str, Node], section: str, model: type[Settings]) -> Fault:
    loc = list(entry["loc"])
    local = ".".join(str(part) for part in loc if isinstance(part, str))
    parts = list(loc)
    while parts and ".".join(map(str, parts)) not in nodes:
        parts.pop()
    node = nodes.get(".".join(map(str, parts)))
    for step in loc[len(parts) :]:
        if node is None:
            break
        try:
            node = node.value[step]
        except (KeyError, IndexError, TypeError):
            break
    at = f"{section}.{local}" if local else section
    absent = entry["type"] == "missing" and isinstance(loc[-1], str)
    return Fault(_message(entry), at, node, local, local in leaves(model), absent)


def _message(entry: Any) -> str:
    """Pydantic's fault in this tool's words."""
    context, given = entry.get("ctx", {}), entry["input"]
    inner = context.get("error")
    if isinstance(inner, ValidationError):
        return _message(inner.errors()[0])
    if inner is not None:
        return str(inner)
    phrases = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be greater than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "multiple_of": "must be a multiple of {multiple_of}",
    }
    if entry["type"] in phrases:
        limits = {name: label(limit) for name, limit in context.items()}
        return f"{phrases[entry['type']].format(**limits)}, got {label(given)}"
    if entry["type"] == "missing":
        return "has too few values" if isinstance(entry["loc"][-1], int) else "missing, and it has no default"
    if entry["type"] == "too_long":
        return f"takes {context['max_length']} values, got {context['actual_length']}"
    if entry["type"] == "tuple_type":
        return f"expected a list, got `{given}`"
    return f"{entry['msg']}, got {given!r}"
