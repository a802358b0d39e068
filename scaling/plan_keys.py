"""The keys of a section as its Pydantic model declares them: dotted paths, kinds of value, axes, locations, defaults.

It reads models only; no plan, no node and no value of a user's passes here.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from models.fields import Settings

_TYPE_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "none": "null"}
_TYPE_NAMES |= {"tuple": "a list", "model": "text or a mapping"}


@dataclass(frozen=True)
class Leaf:
    """One key of a section that takes a value: its dotted path and what the schema says of it."""

    path: str
    default: Any
    description: str
    kinds: frozenset[str]
    choices: tuple[str, ...]
    limits: tuple[Any, ...]
    axis: bool
    location: bool
    shape: type[Settings] | None
    item: Leaf | None
    required: bool = False

    @property
    def is_count(self) -> bool:
        """Counts of images and samples, which alone take the suffixes k, M, G and B."""
        return "int" in self.kinds and re.search("images|samples", self.path.rsplit(".", 1)[-1]) is not None

    def expected(self) -> str:
        """What a value must be, in words."""
        order = ("model", "int", "float", "bool", "str", "tuple", "none")
        names = list(self.choices) + [_TYPE_NAMES[kind] for kind in order if kind in self.kinds]
        return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def nested_model(annotation: Any) -> type[Settings] | None:
    """The settings class that an annotation is or may be, if any."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Settings)), None)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


@cache
def leaves(model: type[Settings], prefix: str = "") -> Mapping[str, Leaf]:
    """Every key of a section that takes a value, by dotted path, in the schema's order."""
    found: dict[str, Leaf] = {}
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        inner = nested_model(info.annotation)
        if inner is not None and not extra.get("axis"):
            found |= leaves(inner, f"{prefix}{name}.")
            continue
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        found[prefix + name] = _leaf(prefix + name, info.annotation, info.description or "", default, extra, info)
    return found


def _leaf(path: str, annotation: Any, description: str, default: Any, extra: Mapping[str, Any], info: Any) -> Leaf:
    kinds: set[str] = set()
    choices: list[str] = []
    item: Leaf | None = None
    shape: type[Settings] | None = None
    for option in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        origin = typing.get_origin(option)
        if origin is Literal:
            choices += [str(choice) for choice in typing.get_args(option)]
        elif origin is tuple:
            kinds.add("tuple")
            item = _leaf(path, typing.get_args(option)[0], "", None, {}, None)
        elif option is type(None):
            kinds.add("none")
        elif isinstance(option, type) and issubclass(option, Settings):
            kinds.add("model")
            shape = option
        else:
            kinds.add(option.__name__)
    limits = tuple(info.metadata) if info else ()
    flags = bool(extra.get("axis")), bool(extra.get("location"))
    required = info is not None and info.is_required()
    return Leaf(path, default, description, frozenset(kinds), tuple(choices), limits, *flags, shape, item, required)


def groups(model: type[Settings], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the mappings inside a section (`crt`, `revive`)."""
    for name, info in model.model_fields.items():
        inner = nested_model(info.annotation)
        if inner is not None and prefix + name not in leaves(model, prefix):
            yield prefix + name
            yield from groups(inner, f"{prefix}{name}.")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"crt.width": 16} as {"crt": {"width": 16}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, last = path.split(".")
        inner = tree
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return tree


def with_defaults(model: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values with every default of the schema filled in, JSON-ready; nothing is validated."""
    filled: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        inner = nested_model(info.annotation)
        given = values.get(name)
        if inner is not None and isinstance(given, Mapping) and name not in leaves(model):
            filled[name] = with_defaults(inner, given)
        elif name in values or info.is_required():
            filled[name] = given
        else:
            default = info.get_default(call_default_factory=True)
            filled[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        if isinstance(filled[name], tuple):
            filled[name] = list(filled[name])
    return filled
