"""What a recipe works with: the stage's identity, its parents' files, its attempt's folder, its way to the driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.data import ImageSource, open_source
from models.generator import Generator
from models.settings import DataSettings, GeneratorSettings, TokenizerSettings
from models.tokenizer import Tokenizer
from models.training import Hooks, Stopped, Task, train
from scaling.artifacts import AttemptFolder, CorruptArtifact, Layout, load_tensors, read_json, sha256_file

log = logging.getLogger(__name__)
Summary = dict[str, Any]
BATCH = 512  # images rendered, encoded or decoded at once


@dataclass
class Context:
    """What a recipe works with.

    identity: the stage's; inputs: parents' stage folders by role; progress(step, steps, values): for the live view.
    """

    identity: Mapping[str, Any]
    inputs: Mapping[str, Path]
    data: DataSettings
    attempt: AttemptFolder
    device: torch.device
    micro_batches: int
    checkpoint_seconds: float
    progress: Callable[[int, int, Mapping[str, float]], None]
    should_stop: Callable[[], bool]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.identity["settings"]

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    def input(self, role: str, name: str) -> Path:
        """A parent's result file, its checksum verified. Raises CorruptArtifact."""
        folder = self.inputs[role]
        mark = read_json(Layout.result(folder))
        path = Layout.output(folder, mark["attempt"]) / name
        if sha256_file(path) != mark["files"][name]["sha256"]:
            raise CorruptArtifact(f"{path}: SHA-256 differs from the recorded one")
        return path

    def source(self) -> ImageSource:
        # the driver has looked at every image; a worker only hashes them
        return open_source(self.data, verify=False)

    def stop_between(self, done: int, total: int) -> None:
        """Show progress of a stage that keeps no checkpoint, and leave it where a stop is asked for."""
        self.progress(done, total, {})
        if self.should_stop():
            raise Stopped(0)

    def train(self, task: Task) -> dict[str, float]:
        """Train to the last step from the last checkpoint of any attempt; returns the last reported means."""
        last: dict[str, float] = {}
        every = min(100, max(1, task.steps // 50))
        train(task, self._hooks(task.steps, last), report_every=every, micro_batches=self.micro_batches)
        return last

    def _hooks(self, steps: int, last: dict[str, float]) -> Hooks:
        """The training loop's hooks on the attempt's folder; a state is due every `checkpoint_seconds`."""
        saved = time.monotonic()

        def save(step: int, state: Mapping[str, torch.Tensor]) -> None:
            nonlocal saved
            self.attempt.save_checkpoint(step, state, {"steps": steps})
            saved = time.monotonic()

        def load() -> tuple[int, dict[str, torch.Tensor]] | None:
            found = self.attempt.load_checkpoint()
            if found is None:
                return None
            log.info("goes on from step %d of %d", found[0], steps)
            return found[0], found[1]

        def report(step: int, values: dict[str, float]) -> None:
            self.attempt.append_metrics([{"step": step, **values}])
            self.progress(step, steps, values)
            last.update(values)

        def due(step: int) -> bool:
            return time.monotonic() - saved >= self.checkpoint_seconds

        return Hooks(save, load, report, self.should_stop, due)


def load_tokenizer(path: Path, device: torch.device) -> Tokenizer:
    """A trained tokenizer in evaluation mode."""
    tensors, meta = load_tensors(path)
    module = Tokenizer(TokenizerSettings.model_validate(meta["settings"]), int(meta["resolution"]))
    module.load_state_dict(tensors)
    return module.to(device).eval()


def load_generator(path: Path, device: torch.device) -> Generator:
    """A trained generator in evaluation mode."""
    tensors, meta = load_tensors(path)
    settings = GeneratorSettings.model_validate(meta["settings"])
    module = Generator(settings, int(meta["codebook_size"]), int(meta["classes"]), int(meta["grid"]))
    module.load_state_dict(tensors)
    return module.to(device).eval()
