"""The parts of a plan that shape its grid (arms, zip, exclude, seeds), from nodes into terms of `scaling.expansion`.

Nothing is expanded here, and no section's own keys are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.settings import GeneratorSettings, TokenizerSettings
from scaling.expansion import Arm, canonical, comparable, report
from scaling.plan_keys import Leaf, leaves
from scaling.run_names import label
from scaling.runs import ARM, Cell, Condition, SeedRule, SeedSettings
from scaling.sections import INVALID, Choice, SectionInvalid, SectionReader, convert, not_a_mapping, validate
from scaling.yaml_nodes import Node, Problems, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of plans and arms: no sign that run names give a meaning to
_MOST_LISTED = 8


def condition_keys() -> dict[str, Leaf | None]:
    """What a condition may name: ARM, and every axis of the two training stages with its schema."""
    keys: dict[str, Leaf | None] = {ARM: None}
    for section, model in (("tokenizer", TokenizerSettings), ("generator", GeneratorSettings)):
        keys |= {f"{section}.{path}": leaf for path, leaf in leaves(model).items() if leaf.axis}
    return keys


def read_arms(node: Node | None, reader: SectionReader, axes: Mapping[str, Any], problems: Problems) -> list[Arm]:
    """The named changes under `tokenizer.arms`; none where the plan has no such key."""
    if node is None:
        return []
    if not node.is_mapping or not node.value:
        message = "name at least one arm" if node.is_mapping else not_a_mapping(node)
        problems.add(message, "tokenizer.arms", node.key)
        return []
    arms = []
    for name, child in node.value.items():
        at = f"tokenizer.arms.{name}"
        if not NAME.fullmatch(name):
            problems.add("an arm's name has letters, digits, `.`, `_` and `-` only", at, child.key)
        if child.is_null:
            problems.add(f"empty arm; write `{name}: {{}}` for one without changes", at, child.key)
            continue
        changes = reader.read(child, axes=False, at=at)
        for path in changes.values:
            if path in axes:
                message = "is also a list axis of the section; keep it in one of the two places"
                problems.add(message, f"{at}.{path}", changes.nodes[path].key)
        arms.append(Arm(name, changes, child))
    return arms


def read_zip(
    node: Node | None, axes: Mapping[str, Sequence[Choice]], problems: Problems, *, sound: bool
) -> list[tuple[str, ...]]:
    """Groups of axes of equal length whose values go together; lengths count only where the axes are `sound`."""
    if node is None:
        return []
    if not node.is_list or not all(group.is_list for group in node.value):
        problems.add(
            "expected a list of groups, as in [[generator.images_seen, generator.warmup_images]]", "zip", node.key
        )
        return []
    groups, used = [], set()
    for number, group in enumerate(node.value):
        at, paths, before = f"zip[{number}]", [], len(problems)
        for item in group.value:
            path = item.text
            if path not in axes:
                hint = "" if path in condition_keys() else did_you_mean(path, axes)
                message = f"`{path}` is no list in this plan{hint}; lists are: {', '.join(axes) or 'none'}"
                problems.add(message, at, item.mark)
            elif path in used:
                problems.add(f"{path} stands in zip twice", at, item.mark)
            used.add(path)
            paths.append(path)
        if len(problems) > before or not sound:
            continue
        if len(paths) < 2:
            problems.add("a group ties two axes or more", at, group.mark)
            continue
        lengths = {path: len(axes[path]) for path in paths}
        if len(set(lengths.values())) > 1:
            counted = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            problems.add(f"zipped lists must be equally long: {counted}", at, group.mark)
            continue
        if len(set(_rows(paths, axes))) < max(lengths.values()):
            problems.add("two rows of the zipped lists are equal, which makes a run twice", at, group.mark)
            continue
        groups.append(tuple(paths))
    return groups


def _rows(paths: Sequence[str], axes: Mapping[str, Sequence[Choice]]) -> list[tuple[Any, ...]]:
    return list(zip(*([comparable(path, choice.value) for choice in axes[path]] for path in paths), strict=True))


def read_exclude(node: Node | None, cells: Sequence[Cell], problems: Problems, *, whole: bool) -> list[Condition]:
    """The conditions under `exclude`. Where the grid is not `whole` (settings failed) a missing match is no problem."""
    if node is None:
        return []
    if not node.is_list:
        problems.add("expected a list of conditions, as in - {generator.size: 64x3}", "exclude", node.key)
        return []
    found = [read_condition(item, f"exclude[{i}]", cells, problems, whole=whole) for i, item in enumerate(node.value)]
    return [condition for condition in found if condition is not None]


def read_condition(node: Node, at: str, cells: Sequence[Cell], problems: Problems, *, whole: bool) -> Condition | None:
    """A mapping from ARM or axis to the values meant; None after reporting what is wrong with it."""
    before = len(problems)
    if not node.is_mapping or not node.value:
        problems.add("a condition names keys and values, as in {generator.size: 64x3}", at, node.key)
        return None
    keys, wanted = condition_keys(), {}
    for key, child in node.value.items():
        if key not in keys:
            message = f"`{key}` is no axis; a condition takes {ARM} or an axis such as generator.size"
            problems.add(message + did_you_mean(key, keys), at, child.key)
            continue
        present = {value: None for cell in cells for value in cell.values(key)}
        values = []
        for item in child.value if child.is_list else [child]:
            value = _condition_value(key, keys[key], item, f"{at}.{key}", problems)
            if value is INVALID:
                continue
            if whole and value not in present:
                names = [label(one) for one in present]
                listed = ", ".join(names[:_MOST_LISTED]) + (", ..." if len(names) > _MOST_LISTED else "")
                hint = did_you_mean(label(value), names)
                problems.add(f"no run has {label(value)}{hint}; runs have {listed}", f"{at}.{key}", item.mark)
            values.append(value)
        wanted[key] = tuple(values)
    if len(problems) > before:
        return None
    condition = Condition(wanted)
    if whole and not any(condition.holds(cell) for cell in cells):
        problems.add("no run fulfils this condition", at, node.key)
        return None
    return condition


def _condition_value(key: str, leaf: Leaf | None, node: Node, at: str, problems: Problems) -> Any:
    if leaf is None:
        return node.text
    value = convert(leaf, node, at, problems)
    try:
        return value if value is INVALID else canonical(key, value)
    except ValueError as error:
        problems.add(str(error), at, node.mark)
        return INVALID


def read_seeds(node: Node | None, cells: Sequence[Cell], problems: Problems, *, whole: bool) -> list[SeedRule]:
    """The entries of `seeds`. A key that a later entry leaves out is as in the first, and [0] there."""
    if node is None:
        return [SeedRule(SeedSettings(), None)]
    entries = node.value if node.is_list else [node]
    if not entries:
        problems.add("an empty list makes no run; give at least one entry", "seeds", node.key)
    rules: list[SeedRule] = []
    first: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        at = f"seeds[{number}]" if node.is_list else "seeds"
        section = SectionReader(at, SeedSettings, problems, {}).read(entry, also=frozenset({"where"}))
        condition = None
        if entry.is_mapping and "where" in entry.value:
            condition = read_condition(entry.value["where"], f"{at}.where", cells, problems, whole=whole)
        try:
            settings = validate(SeedSettings, first | section.values, section.nodes, at)
        except SectionInvalid as invalid:
            report(invalid.faults, section.nodes, entry, problems, sound=section.sound)
            continue
        first = first or settings.model_dump()
        if condition is not None or not (entry.is_mapping and "where" in entry.value):
            rules.append(SeedRule(settings, condition))
    if whole and rules and len(rules) == len(entries):
        _all_covered(node, cells, rules, problems)
    return rules


def _all_covered(node: Node, cells: Sequence[Cell], rules: Sequence[SeedRule], problems: Problems) -> None:
    bare = [cell for cell in cells if all(rule.where is not None and not rule.where.holds(cell) for rule in rules)]
    if bare:
        message = f"no entry gives seeds to {bare[0].name} ({len(bare)} of {len(cells)} points of the grid)"
        problems.add(f"{message}; add an entry without where, or use exclude", "seeds", node.key)
