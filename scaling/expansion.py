"""From a plan's sections to the cells of its grid: arms cross with list axes, zipped axes go together.

Each distinct setting is validated once, and what is wrong with it is reported at the key that causes it. No file is
read here; conditions and seeds are `scaling.runs`' matter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.settings import (
    DataSettings,
    EvaluationSettings,
    GeneratorSettings,
    TokenizerSettings,
    TransformerShape,
    parse_size,
)
from scaling.run_names import arm_name, generator_name, label
from scaling.runs import Cell
from scaling.sections import Choice, Fault, Section, SectionInvalid, validate
from scaling.yaml_nodes import Node, Problems

MAX_RUNS = 100_000  # a plan beyond this is a slip of the pen, and expanding it would hang


@dataclass(frozen=True)
class Arm:
    """A named change against the tokenizer section; an arm that the plan does not name is `base`, without a node."""

    name: str
    changes: Section
    node: Node | None = None


class Grid:
    """The two training stages of a plan as arms and axes. What is wrong with a setting goes to `problems`, once."""

    def __init__(
        self,
        tokenizer: Section,
        arms: Sequence[Arm],
        generator: Section,
        zipped: Iterable[Sequence[str]],
        problems: Problems,
    ) -> None:
        self.tokenizer, self.generator, self.problems = tokenizer, generator, problems
        self.arms_declared = bool(arms)
        self.arms = list(arms) or [Arm("base", Section())]
        self.zipped = [tuple(group) for group in zipped]
        self._tokenizers: dict[str, tuple[TokenizerSettings, Mapping[str, Node], Arm] | None] = {}
        self._generators: dict[str, tuple[GeneratorSettings, Mapping[str, Node]] | None] = {}
        self._arm_of: dict[TokenizerSettings, Arm] = {}

    def axes(self) -> dict[str, list[Choice]]:
        """List axes of both stages by full path, in the plan's order of stages."""
        sections = (("tokenizer", self.tokenizer), ("generator", self.generator))
        return {f"{name}.{path}": choices for name, section in sections for path, choices in section.axes.items()}

    def dimensions(self) -> list[list[dict[str, Choice]]]:
        """The factors of the grid beside the arms: each axis, or zip of axes, as alternatives of assignments."""
        axes = self.axes()
        tied = {path: group for group in self.zipped for path in group}
        factors: list[list[dict[str, Choice]]] = []
        done: set[str] = set()
        for path in axes:
            if path not in done:
                group = tied.get(path, (path,))
                done.update(group)
                columns = [axes[member] for member in group]
                rows = zip(*columns if path in tied else [distinct(columns[0], path, self.problems)], strict=True)
                factors.append([dict(zip(group, row, strict=True)) for row in rows])
        return factors

    def cells(self) -> list[Cell]:
        """Every cell whose settings are each valid, in the plan's order."""
        factors = self.dimensions()
        size = len(self.arms) * math.prod(len(factor) for factor in factors)
        if size > MAX_RUNS:
            self.problems.add(f"the grid has {size:,} cells, more than {MAX_RUNS:,}; shorten an axis or use zip")
            return []
        points = [
            {path: choice for part in parts for path, choice in part.items()} for parts in itertools.product(*factors)
        ]
        cells = [self._cell(arm, point) for arm in self.arms for point in points]
        return [cell for cell in cells if cell is not None]

    def _cell(self, arm: Arm, chosen: Mapping[str, Choice]) -> Cell | None:
        stage1, stage2 = _under("tokenizer.", chosen), _under("generator.", chosen)
        declared = arm.name if self.arms_declared or not stage1 else ""
        name = arm_name(declared, {path: choice.value for path, choice in stage1.items()})
        if name not in self._tokenizers:
            self._tokenizers[name] = self._tokenizer(arm, stage1)
        key = ",".join(f"{path}={label(choice.value)}" for path, choice in stage2.items())
        if key not in self._generators:
            self._generators[key] = self._generator(stage2)
        first, second = self._tokenizers[name], self._generators[key]
        if first is None or second is None:
            return None
        whole = f"{name}/{generator_name(second[0], {path: choice.value for path, choice in stage2.items()})}"
        return Cell(declared or name, name, key, whole, first[0], second[0])

    def _tokenizer(
        self, arm: Arm, axes: Mapping[str, Choice]
    ) -> tuple[TokenizerSettings, Mapping[str, Node], Arm] | None:
        flat = self.tokenizer.values | arm.changes.values | {path: choice.value for path, choice in axes.items()}
        nodes = self.tokenizer.nodes | arm.changes.nodes | {path: choice.node for path, choice in axes.items()}
        at = f"tokenizer.arms.{arm.name}" if arm.changes.values else "tokenizer"
        try:
            settings = validate(TokenizerSettings, flat, nodes, at)
        except SectionInvalid as invalid:
            sound = self.tokenizer.sound and arm.changes.sound
            report(invalid.faults, nodes, arm.node, self.problems, sound=sound)
            return None
        twin = self._arm_of.setdefault(settings, arm)
        if twin is not arm and arm.node is not None:
            message = f"has the same settings as arm {twin.name}; change or remove one"
            self.problems.add(message, f"tokenizer.arms.{arm.name}", arm.node.key)
        return settings, nodes, arm

    def _generator(self, axes: Mapping[str, Choice]) -> tuple[GeneratorSettings, Mapping[str, Node]] | None:
        flat = self.generator.values | {path: choice.value for path, choice in axes.items()}
        nodes = self.generator.nodes | {path: choice.node for path, choice in axes.items()}
        try:
            return validate(GeneratorSettings, flat, nodes, "generator"), nodes
        except SectionInvalid as invalid:
            report(invalid.faults, nodes, None, self.problems, sound=self.generator.sound)
            return None

    def check(self, cells: Sequence[Cell], data: DataSettings, data_nodes: Mapping[str, Node]) -> None:
        """Report settings of the remaining cells that cannot train on the plan's data, or that train on nothing."""
        for name in dict.fromkeys(cell.arm for cell in cells):
            tokenizer = self._tokenizers[name]
            if tokenizer is not None:
                self._check_tokenizer(*tokenizer, data, data_nodes)
        for key in dict.fromkeys(cell.generator_key for cell in cells):
            generator = self._generators[key]
            if generator is not None:
                self._check_length("generator", *generator)
                self._check_warmup(*generator)

    def _check_tokenizer(
        self,
        settings: TokenizerSettings,
        nodes: Mapping[str, Node],
        arm: Arm,
        data: DataSettings,
        data_nodes: Mapping[str, Node],
    ) -> None:
        at = f"tokenizer.arms.{arm.name}" if arm.changes.values else "tokenizer"
        for check in (settings.check, settings.input_resolution):
            try:
                check(data.resolution)
            except ValueError as error:
                report([Fault(str(error), at)], dict(data_nodes) | dict(nodes), arm.node, self.problems)
                return
        self._check_length("tokenizer", settings, nodes)

    def _check_length(
        self, section: str, settings: TokenizerSettings | GeneratorSettings, nodes: Mapping[str, Node]
    ) -> None:
        if settings.images_seen < settings.batch_images:
            node = nodes.get("images_seen") or nodes.get("batch_images")
            message = f"{settings.images_seen} images are less than one batch of {settings.batch_images}"
            self.problems.add(message, f"{section}.images_seen", node.mark if node else None)

    def _check_warmup(self, settings: GeneratorSettings, nodes: Mapping[str, Node]) -> None:
        if settings.warmup_images is not None and settings.warmup_images > settings.images_seen:
            message = f"{settings.warmup_images} images are more than the training's {settings.images_seen}"
            self.problems.add(message, "generator.warmup_images", nodes["warmup_images"].mark)


def canonical(path: str, value: Any) -> Any:
    """A value in the one form that can be compared: sizes as shapes. Raises ValueError where it is no size."""
    if path != "generator.size":
        return value
    exact = isinstance(value, Mapping) and "multiple_of" in value
    return TransformerShape.model_validate(value) if exact else parse_size(value)


def comparable(path: str, value: Any) -> Any:
    """As `canonical`, but a value that the model will refuse stays as written, hashable."""
    try:
        return canonical(path, value)
    except ValueError:
        return repr(value)


def distinct(choices: Sequence[Choice], path: str, problems: Problems) -> list[Choice]:
    """The choices of an axis without repeats, each of which is reported."""
    kept: dict[Any, Choice] = {}
    for choice in choices:
        value = comparable(path, choice.value)
        if value in kept:
            problems.add(f"{label(value)} stands twice on this axis", path, choice.node.mark)
        else:
            kept[value] = choice
    return list(kept.values())


def evaluation_settings(section: Section, problems: Problems) -> list[EvaluationSettings]:
    """One settings object a value of the section's axes (guidance)."""
    factors = [
        [(path, choice) for choice in distinct(choices, f"evaluation.{path}", problems)]
        for path, choices in section.axes.items()
    ]
    found = []
    for chosen in itertools.product(*factors):
        flat = section.values | {path: choice.value for path, choice in chosen}
        nodes = section.nodes | {path: choice.node for path, choice in chosen}
        try:
            found.append(validate(EvaluationSettings, flat, nodes, "evaluation"))
        except SectionInvalid as invalid:
            report(invalid.faults, nodes, None, problems, sound=section.sound)
    return found


def _under(prefix: str, chosen: Mapping[str, Choice]) -> dict[str, Choice]:
    return {path.removeprefix(prefix): choice for path, choice in chosen.items() if path.startswith(prefix)}


def report(
    faults: Sequence[Fault], nodes: Mapping[str, Node], fallback: Node | None, problems: Problems, *, sound: bool = True
) -> None:
    """Add each fault at its own node; one of a whole section at the written key its message names, else at `fallback`.

    Where the section is not `sound` (a value could not be read) faults of the whole may only follow from it, and rest.
    """
    for fault in faults:
        if fault.of_value and fault.node is not None:
            problems.add(fault.message, fault.at, fault.node.key if fault.absent else fault.node.mark)
            continue
        if not sound:
            continue
        prefix = f"{fault.local}." if fault.local else ""
        words = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", fault.message)
        named = [nodes[prefix + word] for word in words if prefix + word in nodes]
        near = nearest([*named, fault.node, fallback, *nodes.values()])
        problems.add(fault.message, fault.at, near.key if near else None)


def nearest(nodes: Iterable[Node | None]) -> Node | None:
    """The first node of the user's own text, else the first of a preset."""
    found = [node for node in nodes if node is not None]
    return next((node for node in found if not node.key.source.preset), found[0] if found else None)
