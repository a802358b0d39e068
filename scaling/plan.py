"""A plan: the YAML file that says what is trained, measured and on what, read into the runs it asks for.

`load_plan` is the way in. It reports every fault at once, each with file, line and column. Neither torch nor Ray is
imported here, and nothing is trained, scheduled or written.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from models.fields import Settings
from models.settings import (
    DataSettings,
    EvaluationSettings,
    GeneratorSettings,
    TokenizerSettings,
    location,
)
from scaling.expansion import Arm, Grid, canonical, evaluation_settings, nearest, report
from scaling.grid_rules import NAME, read_arms, read_exclude, read_seeds, read_zip
from scaling.plan_files import extended, find_plan, presets, shipped_plans, starter_plan
from scaling.plan_keys import leaves, with_defaults
from scaling.run_names import size_name
from scaling.runs import ARM, Cell, Evaluation, Run, SeedRule, SeedSettings, with_seeds
from scaling.sections import S, Section, SectionInvalid, SectionReader, validate
from scaling.yaml_nodes import Node, PlanError, Problem, Problems, did_you_mean, read

__all__ = [
    "Evaluation",
    "Plan",
    "PlanError",
    "Problem",
    "ResourceSettings",
    "Run",
    "load_plan",
    "parse_plan",
    "presets",
    "shipped_plans",
    "starter_plan",
]

FEATURES_RESOLUTION = 16  # pixels a side that shapes-cnn@1 was trained on
_FRACTION_SLACK = 0.02  # 0.33 is a third


class EachSettings(Settings):
    """What one stage takes of a machine."""

    cpus: int = Field(1, ge=1, description="CPU cores a stage")
    gpus: float = Field(0.0, ge=0, description="GPUs a stage: 0, a whole number, or 1/k to share one")

    @field_validator("gpus")
    @classmethod
    def _shareable(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"gpus is 0, a whole number, or 1/k such as 0.5, got {value:g}")
        if 0 < value < 1 and 1 - value * int(1 / value + 1e-9) > _FRACTION_SLACK:
            raise ValueError(f"gpus below 1 is 1/k such as 0.5, 0.33 or 0.25, got {value:g}")
        return value


class BudgetSettings(Settings):
    """When to stop."""

    hours: float | None = Field(None, gt=0, description="stop after this many hours of wall time; null is no limit")


class DeviceSettings(Settings):
    """A device assumed for the dry run's hours until speed has been measured."""

    name: str = Field(..., description="the device's name, for display")
    mfu: float = Field(..., gt=0, le=1, description="model FLOPs utilisation assumed, a share of the device's peak")


class ResourceSettings(Settings):
    """What a sweep may use. Nothing here enters a result's identity."""

    executor: Literal["ray", "inline"] = Field(
        "ray", description="ray: parallel, here or on a cluster; inline: one by one"
    )
    workers: int | Literal["auto"] = Field("auto", description="stages at once; auto fills the machine")
    each: EachSettings = Field(EachSettings(), description="what one stage takes")
    address: str | None = location("address of a Ray cluster to join; null starts Ray here")
    budget: BudgetSettings = Field(BudgetSettings(), description="when to stop")
    retries: int = Field(2, ge=0, description="further attempts at a stage that crashed")
    checkpoint_seconds: float = Field(20.0, gt=0, description="seconds between checkpoints: the most a crash can lose")
    device: DeviceSettings | None = Field(None, description="a device for the dry run's hours, until measured")

    @field_validator("workers")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be auto or at least 1, got {value}")
        return value


SECTIONS: Mapping[str, type[Settings]] = {
    "data": DataSettings,
    "tokenizer": TokenizerSettings,
    "generator": GeneratorSettings,
    "seeds": SeedSettings,
    "evaluation": EvaluationSettings,
    "resources": ResourceSettings,
}
TOP_KEYS = ("plan", "extends", "data", "tokenizer", "generator", "zip", "exclude", "seeds", "evaluation", "resources")


@dataclass(frozen=True)
class Plan:
    """A plan that was read whole and can be run.

    `text` and its `sha256` are the file as written; `settings` is what it says, with what it extends, as plain values;
    `axes` is what it varies (`tokenizer.arm`, list axes by full key, guidance, seeds where more than one).
    """

    name: str
    path: Path
    text: str
    sha256: str
    settings: Mapping[str, Any]
    axes: dict[str, list[Any]]
    runs: tuple[Run, ...]
    resources: ResourceSettings
    data: DataSettings

    def resolved(self) -> dict[str, Any]:
        """Every value of the plan, defaults included, JSON-ready; written as YAML it is a plan with these runs.

        It stands by itself: no `extends`, variables replaced.
        """
        filled = copy.deepcopy(dict(self.settings))
        arms = filled["tokenizer"].pop("arms", None)
        for section in ("data", "tokenizer", "generator", "evaluation", "resources"):
            filled[section] = with_defaults(SECTIONS[section], filled[section])
        if arms is not None:
            filled["tokenizer"]["arms"] = arms
        return filled


def load_plan(path_or_name: str | Path) -> Plan:
    """The plan in a file, or a shipped plan by name (`quickstart`).

    Raises PlanError with every fault found, each with its place in the text.
    """
    shown, path, text = find_plan(path_or_name)
    return parse_plan(text, shown, path)


def parse_plan(text: str, shown: str = "plan.yaml", path: Path | None = None) -> Plan:
    """The plan in a text; `shown` names it in errors, `path` (else `shown`) in the result. Raises PlanError."""
    problems = Problems()
    root = read(text, shown, problems)
    if root is None:
        raise PlanError([Problem(f"{shown}: the plan is empty; `scaling init` writes one to start from")])
    if not root.is_mapping:
        raise PlanError([Problem("a plan is keys and values (plan, data, tokenizer, ...)", mark=root.mark)])
    whole = {f"{name}.{key}" for name, model in SECTIONS.items() for key, leaf in leaves(model).items() if leaf.axis}
    reader = _PlanReader(extended(root, whole, problems), problems)
    return reader.plan(text, path or Path(shown))


class _PlanReader:
    """Reads the sections of one plan, collecting what is wrong, and puts them together."""

    def __init__(self, root: Node, problems: Problems) -> None:
        self.root, self.problems = root, problems
        self.readers: dict[str, SectionReader] = {}
        self.sections: dict[str, Section] = {}
        for name, model in SECTIONS.items():
            self.readers[name] = SectionReader(name, model, problems, _owners(other_than=name))

    def section(self, name: str, also: frozenset[str] = frozenset()) -> Section:
        """A section as the plan writes it, read once; empty where the plan has none."""
        node = self.root.value.get(name)
        self.sections[name] = Section() if node is None else self.readers[name].read(node, also=also)
        return self.sections[name]

    def single(self, name: str, model: type[S]) -> S | None:
        """The settings of a section without axes."""
        section = self.section(name)
        try:
            return validate(model, section.values, section.nodes, name)
        except SectionInvalid as invalid:
            report(invalid.faults, section.nodes, self.root.value.get(name), self.problems, sound=section.sound)
            return None

    def plan(self, text: str, path: Path) -> Plan:
        name = self._name()
        data = self.single("data", DataSettings)
        grid, arms = self._grid()
        evaluations = evaluation_settings(self.section("evaluation"), self.problems)
        resources = self.single("resources", ResourceSettings)
        if data is not None:
            self._check_features(data, evaluations)
        cells, rules = self._cells(grid)
        if data is not None and all(self.sections[section].sound for section in ("data", "tokenizer", "generator")):
            grid.check(cells, data, self.sections["data"].nodes)
        self.problems.raise_any()
        assert data is not None  # otherwise a problem was raised
        assert resources is not None
        runs = with_seeds(cells, rules, data, evaluations)
        settings = self._settings(name, arms, rules)
        axes = self._axes(grid, arms, rules)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Plan(name, path, text, digest, settings, axes, tuple(runs), resources, data)

    def _name(self) -> str:
        owners = _owners(other_than="")
        for key, child in self.root.value.items():
            if key not in TOP_KEYS:
                hint = did_you_mean(key, TOP_KEYS) or (f" (it belongs to {owners[key]})" if key in owners else "")
                self.problems.add(f"unknown key{hint}", key, child.key)
        node = self.root.value.get("plan")
        if node is None or not node.text:
            mark = self.root.mark if node is None else node.key
            self.problems.add("give the plan a name, as in plan: quickstart", "plan", mark)
            return ""
        if not NAME.fullmatch(node.text):
            self.problems.add("a plan's name has letters, digits, `.`, `_` and `-` only", "plan", node.mark)
        return node.text

    def _grid(self) -> tuple[Grid, list[Arm]]:
        tokenizer = self.section("tokenizer", frozenset({"arms"}))
        generator = self.section("generator")
        node = self.root.value.get("tokenizer")
        declared = node.value.get("arms") if node is not None and node.is_mapping else None
        arms = read_arms(declared, self.readers["tokenizer"], tokenizer.axes, self.problems)
        axes = {f"tokenizer.{path}": choices for path, choices in tokenizer.axes.items()}
        axes |= {f"generator.{path}": choices for path, choices in generator.axes.items()}
        sound = tokenizer.sound and generator.sound
        zipped = read_zip(self.root.value.get("zip"), axes, self.problems, sound=sound)
        return Grid(tokenizer, arms, generator, zipped, self.problems), arms

    def _cells(self, grid: Grid) -> tuple[list[Cell], list[SeedRule]]:
        cells = grid.cells()
        whole = not len(self.problems)
        node = self.root.value.get("exclude")
        excluded = read_exclude(node, cells, self.problems, whole=whole)
        kept = [cell for cell in cells if not any(condition.holds(cell) for condition in excluded)]
        if cells and not kept and node is not None:
            self.problems.add("leaves no run; narrow a condition", "exclude", node.key)
        whole = whole and not len(self.problems)
        return kept, read_seeds(self.root.value.get("seeds"), kept, self.problems, whole=whole)

    def _check_features(self, data: DataSettings, evaluations: list[EvaluationSettings]) -> None:
        if not any(settings.features == "shapes-cnn@1" for settings in evaluations):
            return
        features, nodes = self.sections["evaluation"].nodes.get("features"), self.sections["data"].nodes
        node = nearest([features, nodes.get("source"), nodes.get("resolution")]) or self.root
        if data.source != "shapes":
            message = f"shapes-cnn@1 knows the source shapes only, not {data.source}; use features: cnn"
            self.problems.add(message, "evaluation.features", node.key)
        elif data.resolution != FEATURES_RESOLUTION:
            message = f"shapes-cnn@1 measures at {FEATURES_RESOLUTION} pixels, data.resolution is {data.resolution}"
            self.problems.add(f"{message}; use features: cnn", "evaluation.features", node.key)

    def _settings(self, name: str, arms: list[Arm], rules: list[SeedRule]) -> dict[str, Any]:
        found: dict[str, Any] = {"plan": name}
        for section in ("data", "tokenizer", "generator"):
            found[section] = self.sections[section].plain()
        if arms:
            found["tokenizer"]["arms"] = {arm.name: arm.changes.plain() for arm in arms}
        for key in ("zip", "exclude"):
            node = self.root.value.get(key)
            found[key] = [] if node is None else node.plain()
        found["seeds"] = []
        node = self.root.value.get("seeds")
        entries = [] if node is None else node.value if node.is_list else [node]
        for number, rule in enumerate(rules):
            entry = rule.settings.model_dump(mode="json")
            if rule.where is not None:
                entry = {"where": entries[number].value["where"].plain()} | entry
            found["seeds"].append(entry)
        return found | {section: self.sections[section].plain() for section in ("evaluation", "resources")}

    def _axes(self, grid: Grid, arms: list[Arm], rules: list[SeedRule]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {ARM: [arm.name for arm in arms]} if arms else {}
        axes = grid.axes()
        axes |= {f"evaluation.{path}": choices for path, choices in self.sections["evaluation"].axes.items()}
        for path, choices in axes.items():
            values = [canonical(path, choice.value) for choice in choices]
            found[path] = [size_name(value) for value in values] if path == "generator.size" else values
        for stage in SeedSettings.model_fields:
            seeds = sorted({seed for rule in rules for seed in getattr(rule.settings, stage)})
            if len(seeds) > 1:
                found[f"seeds.{stage}"] = seeds
        return found


def _owners(other_than: str) -> dict[str, str]:
    """The section to which a key belongs, for keys that stand directly under one."""
    owners: dict[str, str] = {}
    for name, model in SECTIONS.items():
        if name not in (other_than, "seeds"):
            for key in model.model_fields:
                owners.setdefault(key, name)
    return owners
