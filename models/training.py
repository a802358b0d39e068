"""The training loop of both stages: schedules, optimisers' state, accumulation, resuming. It writes no file.

Everything random in a step is a pure function of (seed, step), so a loop resumed from a saved state ends
bit-identical on the same machine type, versions and threads. The caller gives four hooks: `save(step, state)`,
`load()`, `report(step, values)`, `should_stop()`, and decides when a state is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
STEP_SEEDS = 1_000_003  # a prime: seeds of different runs meet at no step a run reaches


class Task(Protocol):
    """What a stage trains. `part` of `parts` is a micro-batch of a step; their losses average to the batch's."""

    clip: float
    seed: int
    steps: int

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By name, in the order in which they step; their gradients are clipped apart."""

    def loss(self, step: int, part: int, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to minimise and detached values to report, of micro-batch `part` of step `step` (0-based)."""

    def rate(self, step: int) -> float:
        """Learning rate of the step as a share of the peak."""

    def after_step(self, step: int) -> None:
        """What follows the optimisers' step, such as dead-code revival."""


@dataclass
class Hooks:
    """How the loop meets the world; all called from the loop's thread, in step order.

    save: keeps the state after `step` steps. load: the last kept (step, state), or None. report: mean values since
    the last report. should_stop: asked each step; True saves and leaves. due: whether a state should be saved now.
    """

    save: Callable[[int, State], None]
    load: Callable[[], tuple[int, State] | None]
    report: Callable[[int, dict[str, float]], None]
    should_stop: Callable[[], bool]
    due: Callable[[int], bool]


class Diverged(RuntimeError):
    """The loss stopped being a finite number; a result, not a failure. `step` says where."""

    def __init__(self, step: int) -> None:
        super().__init__(f"loss is not finite at step {step}")
        self.step = step


class Stopped(RuntimeError):
    """The loop was asked to stop and its state is saved after `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(task: Task, hooks: Hooks, *, report_every: int, micro_batches: int = 1) -> None:
    """Train `task` to its last step, from the saved state where there is one. Raises Diverged or Stopped."""
    start = 0
    loaded = hooks.load()
    if loaded is not None:
        start, state = loaded
        restore(task, state)
    peaks = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in task.optimizers.items()}
    sums: dict[str, Tensor] = {}
    since = start
    for step in range(start, task.steps):
        values = _step(task, step, peaks, micro_batches)
        for name, value in values.items():
            sums[name] = sums[name] + value if name in sums else value
        done = step + 1
        if done % report_every == 0 or done == task.steps:
            means = {name: float(total) / (done - since) for name, total in sums.items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise Diverged(done)
            hooks.report(done, means)
            sums, since = {}, done
            # states are kept only at reports, so that the means after a resume are those of an undisturbed run
            if done < task.steps and hooks.due(done):
                hooks.save(done, snapshot(task))
            if done < task.steps and hooks.should_stop():
                hooks.save(done, snapshot(task))
                raise Stopped(done)


def _step(task: Task, step: int, peaks: dict[str, list[float]], parts: int) -> dict[str, Tensor]:
    torch.manual_seed(task.seed * STEP_SEEDS + step)
    rate = task.rate(step)
    for name, optimizer in task.optimizers.items():
        for group, peak in zip(optimizer.param_groups, peaks[name], strict=True):
            group["lr"] = peak * rate
        optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for part in range(parts):
        loss, values = task.loss(step, part, parts)
        (loss / parts).backward()
        for name, value in values.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value / parts
    for optimizer in task.optimizers.values():
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(params, task.clip)
        optimizer.step()
    task.after_step(step)
    return totals


def snapshot(task: Task) -> State:
    """Weights, buffers and optimiser moments as one flat dict of tensors."""
    state = {f"module.{name}": value.detach() for name, value in task.module.state_dict().items()}
    for name, optimizer in task.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{name}.{index}.{key}": value for key, value in moments.items()}
    return state


def restore(task: Task, state: State) -> None:
    """Put a `snapshot` back. Raises RuntimeError where names or shapes differ."""
    task.module.load_state_dict({n.removeprefix("module."): v for n, v in state.items() if n.startswith("module.")})
    for name, optimizer in task.optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{name}."
        for key, value in state.items():
            if key.startswith(prefix):
                index, moment = key.removeprefix(prefix).split(".")
                moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def batch_indices(seed: int, step: int, batch: int, images: int) -> np.ndarray:
    """Indices int64 [batch] of the images of a step: a pure function of (seed, step).

    Each epoch is its own permutation of `images`; a batch may span two epochs.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // images
    parts = [_permutation(seed, int(e), images)[positions[epochs == e] % images] for e in np.unique(epochs)]
    return np.concatenate(parts)


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, images: int) -> np.ndarray:
    key = (seed, epoch, images)
    if key not in _PERMUTATIONS:
        while len(_PERMUTATIONS) > 3:
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        _PERMUTATIONS[key] = np.random.default_rng(list(key)).permutation(images)
    return _PERMUTATIONS[key]


def part_of(batch: int, part: int, parts: int) -> slice:
    """The slice of a batch that micro-batch `part` of `parts` takes. Raises ValueError where parts do not divide it."""
    if batch % parts:
        raise ValueError(f"{parts} micro-batches do not divide a batch of {batch}")
    size = batch // parts
    return slice(part * size, (part + 1) * size)


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to 0 (paper A.2)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def cooldown_rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Linear warm-up, constant, then linear to 0 over the last share `cooldown` of the steps."""
    if step < warmup:
        return (step + 1) / warmup
    falling = max(1, round(cooldown * steps))
    return min(1.0, (steps - step) / falling) if cooldown else 1.0


def batches(total: int, size: int) -> Iterator[np.ndarray]:
    """Consecutive index ranges of at most `size` that cover 0 .. total-1."""
    for start in range(0, total, size):
        yield np.arange(start, min(total, start + size))
