"""What a grid is made of: runs, their evaluations, cells (runs without seeds), and the rules that pick and repeat them.

Plain values; nothing is read or expanded here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from models.fields import Settings
from models.settings import DataSettings, EvaluationSettings, GeneratorSettings, TokenizerSettings

ARM = "tokenizer.arm"  # the key under which conditions and axes name a plan's arms


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a run: how fidelity is measured, and the seed of the sampling noise."""

    settings: EvaluationSettings
    seed: int


@dataclass(frozen=True)
class Run:
    """One point of the grid: one tokenizer x one generator size x one length x their seeds.

    `name` is unique in its plan and stays when values are added to the plan's axes; `arm` names one stage-1 setting.
    """

    name: str
    arm: str
    data: DataSettings
    tokenizer: TokenizerSettings
    generator: GeneratorSettings
    tokenizer_seed: int
    generator_seed: int
    evaluations: tuple[Evaluation, ...]


class SeedSettings(Settings):
    """Replicates of each stage; a run is made for every pair of a tokenizer seed and a generator seed."""

    tokenizer: tuple[int, ...] = Field((0,), description="seeds of stage 1: the replicates that intervals cluster by")
    generator: tuple[int, ...] = Field((0,), description="seeds of stage 2, each with every tokenizer seed")
    evaluation: tuple[int, ...] = Field((0,), description="seeds of the sampling noise, each an evaluation of one run")

    @field_validator("*", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("*")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("give at least one seed")
        if min(value) < 0:
            raise ValueError(f"a seed is a whole number from 0, got {min(value)}")
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice")
        return value


@dataclass(frozen=True)
class Cell:
    """One point of the grid without seeds. `arm` names the stage-1 setting, `declared` the plan's own arm in it."""

    declared: str
    arm: str
    generator_key: str
    name: str
    tokenizer: TokenizerSettings
    generator: GeneratorSettings

    def values(self, path: str) -> tuple[Any, ...]:
        """What a condition on `tokenizer.key`, `generator.key` or ARM may name to mean this cell."""
        if path == ARM:
            return (self.declared, self.arm)
        section, *keys = path.split(".")
        value: Any = self.tokenizer if section == "tokenizer" else self.generator
        for key in keys:
            value = getattr(value, key)
        return (value,)


@dataclass(frozen=True)
class Condition:
    """An entry of `exclude`, or a `where`: each key must hold one of its values."""

    wanted: Mapping[str, tuple[Any, ...]]

    def holds(self, cell: Cell) -> bool:
        return all(any(value in allowed for value in cell.values(path)) for path, allowed in self.wanted.items())


@dataclass(frozen=True)
class SeedRule:
    """One entry of `seeds`: which cells (all, without a condition) get which replicates."""

    settings: SeedSettings
    where: Condition | None


def with_seeds(
    cells: Sequence[Cell], rules: Sequence[SeedRule], data: DataSettings, evaluations: Sequence[EvaluationSettings]
) -> list[Run]:
    """The runs of cells under seed rules; a later rule adds replicates, and what it repeats is merged."""
    runs: list[Run] = []
    for cell in cells:
        seeds: dict[tuple[int, int], dict[int, None]] = {}
        for rule in rules:
            if rule.where is None or rule.where.holds(cell):
                for pair in itertools.product(rule.settings.tokenizer, rule.settings.generator):
                    seeds.setdefault(pair, {}).update(dict.fromkeys(rule.settings.evaluation))
        for (tokenizer, generator), sampling in seeds.items():
            measured = tuple(Evaluation(settings, seed) for settings in evaluations for seed in sampling)
            name = f"{cell.name}/t{tokenizer}.g{generator}"
            runs.append(Run(name, cell.arm, data, cell.tokenizer, cell.generator, tokenizer, generator, measured))
    return runs
