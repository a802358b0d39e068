"""Makes the features `shapes-cnn@1`: `python -m models.train_shapes_cnn [folder]` writes weights and their card.

A trunk learns every factor of a scene (kind, colour, place, size of each object; number and arrangement of objects;
background, its direction, its texture), each by a linear head on the 64 features, so that nothing of a scene can
change without moving them. It sees scenes with every knob of the look at its widest, so that plans with other knobs
are measured too. The heads are not kept; the features are whitened. Fixed seed, one thread: the same machine type
writes the same bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import SHAPES_SIDE, Trunk
from models.settings import SceneSettings
from models.shapes import Shapes
from models.weights import tensor_hash

NAME = "shapes-cnn@1"
SCENE = SceneSettings(backgrounds=8, textures=4, zipf=0.5)
SEED = 1
STEPS = 4_000
BATCH = 128
PEAK_RATE = 2e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.01
HELD_OUT_IMAGES = 10_000
LEAST_ACCURACY = 0.90
WHITENING_IMAGES = 20_000


class FactorCnn(nn.Module):
    """A trunk and a linear head a factor."""

    def __init__(self, source: Shapes) -> None:
        super().__init__()
        self.trunk = Trunk(SHAPES_SIDE)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.trunk.out.out_features, n) for name, n in choices(source).items()}
        )

    def loss(self, images: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """Sum over the factors of the cross-entropy in nats; factors of absent objects (-1) count nothing."""
        features = self.trunk(images)
        losses = [F.cross_entropy(head(features), factors[name], ignore_index=-1) for name, head in self.heads.items()]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def correct(self, images: Tensor, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each factor, whether it is told right, bool, over the images that have it."""
        features = self.trunk(images)
        return {
            name: (head(features).argmax(1) == factors[name])[factors[name] >= 0] for name, head in self.heads.items()
        }


def choices(source: Shapes) -> dict[str, int]:
    """Factors to learn, with how many values each may take."""
    s = source.settings
    scene = {
        "objects": s.objects[1],
        "arrangement": 3,
        "background": s.backgrounds,
        "direction": 4,
        "texture": s.textures,
    }
    each = {"kind": s.kinds, "color": s.colors, "x": s.grid, "y": s.grid, "size": s.sizes}
    return scene | {f"{name}_{i}": n for i in range(s.objects[1]) for name, n in each.items()}


def labelled(source: Shapes, split: str, indices: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    """Images uint8 [n, 3, 16, 16] and targets int64 [n] of every factor."""
    scenes = source.factors(split, indices)
    images = torch.from_numpy(source.render(scenes, SHAPES_SIDE))
    targets = {name: torch.from_numpy(scenes[name]) for name in choices(source)}
    targets["objects"] = targets["objects"] - 1
    return images, targets


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    return PEAK_RATE * 0.5 * (1 + float(np.cos(np.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS))))


def train(source: Shapes, steps: int, report: Callable[[int, float], None]) -> FactorCnn:
    """Train on images never seen twice; `report(step, loss)` every 500 steps."""
    torch.manual_seed(SEED)
    network = FactorCnn(source)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95))
    for step in range(steps):
        images, factors = labelled(source, "train", np.arange(step * BATCH, (step + 1) * BATCH))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = network.loss(images, factors)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0:
            report(step + 1, loss.item())
    return network.eval()


def accuracies(network: FactorCnn, source: Shapes, images: int) -> dict[str, float]:
    """Share of held-out images in which each factor is told right."""
    told: dict[str, list[Tensor]] = {}
    for indices in _batches(images, 500):
        for name, values in network.correct(*labelled(source, "held-out", indices)).items():
            told.setdefault(name, []).append(values)
    return {name: round(torch.cat(values).double().mean().item(), 4) for name, values in told.items()}


def _batches(total: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, total, size):
        yield np.arange(start, min(total, start + size))


@torch.no_grad()
def whiten(trunk: Trunk, source: Shapes, images: int) -> None:
    """Change the last layer so that features of training scenes have mean 0 and covariance I.

    A linear map loses nothing; it takes the arbitrary scale that training gave each direction out of the distances,
    and with it small changes in many pixels (noise) count no less than a large one in few.
    """
    parts = [trunk(labelled(source, "train", indices)[0]) for indices in _batches(images, 500)]
    features = torch.cat(parts).double()
    values, vectors = torch.linalg.eigh(features.T.cov())
    inverse_root = (vectors / values.sqrt()) @ vectors.T
    weight, bias = trunk.out.weight.double(), trunk.out.bias.double()
    trunk.out.weight.copy_(inverse_root @ weight)
    trunk.out.bias.copy_(inverse_root @ (bias - features.mean(0)))


def card(trunk: Trunk, trained: Shapes, accuracy: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What is known of the weights: their hash, their recipe, and the accuracies of the heads."""
    weights = {name: value.numpy() for name, value in trunk.state_dict().items()}
    return {
        "name": NAME,
        "sha256": tensor_hash(weights),
        "dim": trunk.out.out_features,
        "parameters": sum(value.size for value in weights.values()),
        "accuracy": accuracy,
        "recipe": {
            "script": "python -m models.train_shapes_cnn",
            "source": trained.identity(),
            "images": STEPS * BATCH,
            "batch_images": BATCH,
            "steps": STEPS,
            "peak_rate": PEAK_RATE,
            "warmup_steps": WARMUP_STEPS,
            "weight_decay": WEIGHT_DECAY,
            "whitening_images": WHITENING_IMAGES,
            "seed": SEED,
        },
    }


def main(folder: Path) -> int:
    """Train, print the accuracies, write `shapes-cnn@1.safetensors` and `.json`; 1 where a factor is told too badly."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    source, started = Shapes(SCENE), time.monotonic()

    def report(step: int, loss: float) -> None:
        print(f"step {step:5d}  loss {loss:.3f}  {time.monotonic() - started:.0f} s", flush=True)

    network = train(source, STEPS, report)
    accuracy = {
        "scenes of the default settings": accuracies(network, Shapes(SceneSettings()), HELD_OUT_IMAGES),
        "scenes it was trained on": accuracies(network, source, HELD_OUT_IMAGES),
    }
    print(json.dumps(accuracy, indent=2))
    least = min(min(values.values()) for values in accuracy.values())
    if least < LEAST_ACCURACY:
        print(
            f"a factor is told in {least:.1%} of images only, below {LEAST_ACCURACY:.0%}: nothing written",
            file=sys.stderr,
        )
        return 1
    whiten(network.trunk, source, WHITENING_IMAGES)
    facts = card(network.trunk, source, accuracy)
    weights = {name: value.contiguous() for name, value in network.trunk.state_dict().items()}
    (folder / f"{NAME}.safetensors").write_bytes(save(weights))
    (folder / f"{NAME}.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{folder / NAME}.safetensors  {facts['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("weights")))
