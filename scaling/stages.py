"""What each kind of stage needs, makes and costs: fingerprints, and the graph of a plan. No torch, no database.

A stage is one unit of work with one artifact. Its fingerprint hashes its kind, the kind's recipe version, the
resolved settings that affect its result, its seed and its parents' fingerprints; never paths, devices, threads,
micro-batches or logging. Equal fingerprints are one stage, whichever run or plan asks for it.

    features     the feature extractor's statistics of the reference images
    tokenizer    stage 1, trained once a tokenizer setting and seed
    tokens       the data encoded once a tokenizer and input resolution
    generator    stage 2, trained on tokens
    evaluation   a reconstruction (tokenizer x resolution) or a generation (generator x guidance), measured
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.settings import TRAINING_PASSES, DataSettings, EvaluationSettings
from models.weights import TRAINED
from scaling.run_names import size_name

if TYPE_CHECKING:
    from scaling.plan import Evaluation, Plan, Run

# raised by hand when the same settings give other results than before
RECIPES: Mapping[str, int] = {"features": 1, "tokenizer": 1, "tokens": 1, "generator": 1, "evaluation": 1}
KINDS = tuple(RECIPES)

# seconds a stage takes beside its FLOPs (start, files, data), and FLOP/s of one CPU core until throughput was measured
OVERHEAD = {"features": 3.0, "tokenizer": 3.0, "tokens": 3.0, "generator": 1.0, "evaluation": 2.0}
CORE_FLOPS = 3.5e10
LAYER_STEP_SECONDS = 1.5e-3  # of a generator's layer and step beside its FLOPs: kernel launches of small models

# a tokenizer's training depends on its stride, however the plan arrived at it
_NOT_TRAINED = frozenset({"tokens_per_image", "tokens_by", "downsample"})
_NOT_MEASURED = frozenset({"reference", "features", "cnn_steps"})


@dataclass(frozen=True)
class Stage:
    """One node of the graph. `identity` is what is hashed; `locations` and costs are not."""

    kind: str
    name: str
    fingerprint: str
    identity: Mapping[str, Any]
    parents: Mapping[str, str]  # role -> fingerprint
    seed: int
    params: int
    flops: float
    seconds: float  # estimated, on one CPU core
    data: DataSettings = field(repr=False)


@dataclass(frozen=True)
class PlannedRun:
    """A run's row before it has results: its static columns, and the stages its result columns come from."""

    name: str
    columns: Mapping[str, Any]
    stages: Mapping[str, Any]  # role -> fingerprint; "evaluations" -> list of fingerprints
    evaluations: tuple[Mapping[str, Any], ...]  # static columns of each evaluation


@dataclass(frozen=True)
class Graph:
    """All stages of a plan by fingerprint, in an order in which parents come first, and its runs."""

    stages: Mapping[str, Stage]
    runs: tuple[PlannedRun, ...]

    def edges(self) -> list[tuple[str, str]]:
        """(child, parent) pairs."""
        return [(fp, parent) for fp, stage in self.stages.items() for parent in stage.parents.values()]

    def children(self) -> dict[str, list[str]]:
        """Fingerprints of the stages that need each stage."""
        found: dict[str, list[str]] = {fp: [] for fp in self.stages}
        for child, parent in self.edges():
            found[parent].append(child)
        return found


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of an identity. Raises TypeError or ValueError on what JSON cannot say exactly."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_graph(plan: Plan, source_identity: Mapping[str, Any], classes: int, features_identity: str) -> Graph:
    """The stages and runs of a plan.

    `source_identity` is `ImageSource.identity()`, `classes` its number of classes, `features_identity` the hash of
    the feature extractor's shipped weights ("" where they are trained).
    """
    builder = _Builder(plan, source_identity, classes, features_identity)
    runs = tuple(builder.run(run) for run in plan.runs)
    return Graph(builder.stages, runs)


class _Builder:
    def __init__(self, plan: Plan, source: Mapping[str, Any], classes: int, features: str) -> None:
        self.plan, self.source, self.classes, self.features = plan, dict(source), classes, features
        self.stages: dict[str, Stage] = {}

    def run(self, run: Run) -> PlannedRun:
        tokenizer = self.tokenizer(run)
        tokens = self.tokens(run, tokenizer)
        generator = self.generator(run, tokens)
        reconstruction = self.reconstruction(run, tokenizer)
        evaluations = [self.generation(run, one, tokenizer, generator) for one in run.evaluations]
        stages = {
            "tokenizer": tokenizer,
            "tokens": tokens,
            "generator": generator,
            "reconstruction": reconstruction,
            "evaluations": evaluations,
        }
        static = tuple({"evaluation_seed": one.seed, "guidance": one.settings.guidance} for one in run.evaluations)
        return PlannedRun(run.name, self.columns(run), stages, static)

    def add(
        self, kind: str, name: str, settings: Mapping[str, Any], seed: int, parents: Mapping[str, str], **costs: Any
    ) -> str:
        """Register a stage and return its fingerprint; the first name given to it stays."""
        identity = {"kind": kind, "recipe": RECIPES[kind], "settings": settings, "seed": seed, "parents": dict(parents)}
        key = fingerprint(identity)
        if key not in self.stages:
            flops = float(costs.get("flops", 0))
            seconds = OVERHEAD[kind] + flops / CORE_FLOPS + costs.get("seconds", 0.0)
            self.stages[key] = Stage(
                kind, name, key, identity, dict(parents), seed, costs.get("params", 0), flops, seconds, self.plan.data
            )
        return key

    def reference(self, settings: EvaluationSettings) -> str:
        data = self.plan.data
        payload = {
            "data": self.source,
            "resolution": data.resolution,
            "features": settings.features,
            "weights": self.features,
            "reference": settings.reference.identity(),
        }
        if settings.features == TRAINED:
            payload |= {"train_images": data.train_images, "cnn_steps": settings.cnn_steps}
        name = f"{settings.features}-{settings.reference.split}-{settings.reference.images}"
        return self.add("features", name, payload, 0, {})

    def tokenizer(self, run: Run) -> str:
        settings, data = run.tokenizer, run.data
        payload = {
            "data": self.source,
            "resolution": data.resolution,
            "train_images": data.train_images,
            "validation_images": data.validation_images,
            "tokenizer": settings.identity(leave_out=_NOT_TRAINED),
            "stride": settings.train_stride(data.resolution),
        }
        stride = settings.train_stride(data.resolution)
        params = sum(settings.params(stride).values())
        flops = settings.training_flops(data.resolution)
        name = f"{run.arm}.t{run.tokenizer_seed}"
        return self.add("tokenizer", name, payload, run.tokenizer_seed, {}, params=params, flops=flops)

    def tokens(self, run: Run, tokenizer: str) -> str:
        settings, data = run.tokenizer, run.data
        resolution = settings.input_resolution(data.resolution)
        payload = {
            "input_resolution": resolution,
            "tokens_per_image": settings.tokens_per_image,
            "codebook_size": settings.codebook_size,
            "train_images": data.train_images,
            "validation_images": data.validation_images,
        }
        one = settings.forward_flops(settings.grid, settings.train_stride(data.resolution))
        flops = (one["encoder"] + one["quantizer"]) * (data.train_images + data.validation_images)
        name = f"{run.arm}.t{run.tokenizer_seed}"
        return self.add("tokens", name, payload, 0, {"tokenizer": tokenizer}, flops=flops)

    def generator(self, run: Run, tokens: str) -> str:
        settings, codes, length = run.generator, run.tokenizer.codebook_size, run.tokenizer.tokens_per_image
        payload = {
            "generator": settings.identity(),
            "codebook_size": codes,
            "tokens_per_image": length,
            "classes": self.classes,
            "resolution": run.data.resolution,
        }
        params = sum(settings.params(codes, self.classes).values())
        flops = settings.training_flops(codes, length)
        seconds = settings.steps() * settings.size.layers * LAYER_STEP_SECONDS
        costs = {"params": params, "flops": flops, "seconds": seconds}
        return self.add("generator", run.name, payload, run.generator_seed, {"tokens": tokens}, **costs)

    def reconstruction(self, run: Run, tokenizer: str) -> str:
        first = run.evaluations[0].settings
        resolution = run.tokenizer.input_resolution(run.data.resolution)
        payload = {
            "target": "reconstruction",
            "input_resolution": resolution,
            "resolution": run.data.resolution,
            "samples": first.samples,
            "metrics": list(first.metrics),
        }
        parents = {"tokenizer": tokenizer, "features": self.reference(first)}
        one = run.tokenizer.forward_flops(run.tokenizer.grid, run.tokenizer.train_stride(run.data.resolution))
        flops = first.samples * (one["encoder"] + one["quantizer"] + one["decoder"])
        name = f"{run.arm}.t{run.tokenizer_seed}.reconstruction"
        return self.add("evaluation", name, payload, 0, parents, flops=flops)

    def generation(self, run: Run, one: Evaluation, tokenizer: str, generator: str) -> str:
        settings = one.settings
        payload = {
            "target": "generation",
            "resolution": run.data.resolution,
            "classes": self.classes,
            "evaluation": settings.identity(leave_out=_NOT_MEASURED),
        }
        parents = {"generator": generator, "tokenizer": tokenizer, "features": self.reference(settings)}
        forward = sum(run.generator.forward_flops(run.tokenizer.codebook_size, run.tokenizer.tokens_per_image).values())
        decode = run.tokenizer.forward_flops(run.tokenizer.grid, run.tokenizer.train_stride(run.data.resolution))
        passes = 1 if settings.guidance == 1.0 else 2
        flops = settings.samples * (passes * forward + decode["decoder"])
        name = f"{run.name}.e{one.seed}" + ("" if settings.guidance == 1.0 else f".cfg{settings.guidance:g}")
        return self.add("evaluation", name, payload, one.seed, parents, flops=flops)

    def columns(self, run: Run) -> dict[str, Any]:
        """Static columns of the tidy table; counts and FLOPs as `models.settings` defines them."""
        tok, gen, data = run.tokenizer, run.generator, run.data
        codes, length = tok.codebook_size, tok.tokens_per_image
        groups = gen.params(codes, self.classes)
        seen = gen.steps() * gen.batch_images
        compute = gen.training_flops(codes, length)
        tokenizer_compute = tok.training_flops(data.resolution)
        head = gen.forward_flops(codes, length)["head"]
        return {
            "arm": run.arm,
            "codebook_size": codes,
            "tokens_per_image": length,
            "crt_weight": tok.crt_weight,
            "tokens_by": tok.tokens_by,
            "size": size_name(gen.size),
            "width": gen.size.width,
            "layers": gen.size.layers,
            "images_seen": gen.images_seen,
            "tokenizer_seed": run.tokenizer_seed,
            "generator_seed": run.generator_seed,
            "params": groups["body"] + groups["head"],
            "params_body": groups["body"],
            "params_head": groups["head"],
            "params_total": sum(groups.values()),
            "steps": gen.steps(),
            "tokens_seen": seen * length,
            "epochs": seen / data.train_images,
            "compute": compute,
            "compute_head": TRAINING_PASSES * head * seen,
            "compute_total": compute + tokenizer_compute,
            "compute_6nd": gen.compute_6nd(codes, length),
            "compute_paper": gen.compute_paper(codes, length),
            "tokenizer_compute": tokenizer_compute,
        }


def critical_path(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Longest time from the start of each stage to the end of all that needs it: the scheduler's priority."""
    children = graph.children()
    longest: dict[str, float] = {}
    for key in reversed(list(graph.stages)):
        longest[key] = seconds[key] + max((longest[child] for child in children[key]), default=0.0)
    return longest


def makespan(graph: Graph, seconds: Mapping[str, float], todo: Iterable[str], workers: int) -> float:
    """Time to finish `todo` on `workers` equal workers by longest remaining path first (list scheduling)."""
    left = [key for key in graph.stages if key in set(todo)]
    priority = critical_path(graph, seconds)
    finish: dict[str, float] = {}
    free = [0.0] * max(1, workers)
    waiting = set(left)
    while waiting:
        ready = [k for k in waiting if not any(p in waiting for p in graph.stages[k].parents.values())]
        start_of = {k: max([0.0, *(finish.get(p, 0.0) for p in graph.stages[k].parents.values())]) for k in ready}
        worker = min(range(len(free)), key=free.__getitem__)
        can_now = [k for k in ready if start_of[k] <= free[worker]] or [min(ready, key=start_of.__getitem__)]
        chosen = max(can_now, key=priority.__getitem__)
        finish[chosen] = max(free[worker], start_of[chosen]) + seconds[chosen]
        free[worker] = finish[chosen]
        waiting.remove(chosen)
    return max(finish.values(), default=0.0)
