"""Networks whose features FID and KID compare: `shapes-cnn@1`, which ships, and `cnn`, trained on the data at hand.

Both are one small convolutional trunk with 64 linear outputs. Not here: their training loops (`train_shapes_cnn`,
`training`) and the metrics (`fidelity`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import TRAINED, shipped_path, tensor_hash

DIM = 64
SHAPES_SIDE = 16  # pixels a side that shapes-cnn@1 sees
CLASSIFIER_SIDE = 32  # pixels a side that `cnn` sees
THUMBNAIL = 8  # side of the small image that `cnn` must be able to tell
CHUNK = 128  # images a pass, always: a result must not hang on how many are asked for at once
_WIDTHS = (32, 48, 64)  # channels at full, half and quarter side; further halvings keep the last


class FeatureError(ValueError):
    """Features that cannot be had: one line that says what, where, and what to do."""


class Trunk(nn.Module):
    """Convolutions from `side` pixels down to 4 x 4, and a linear map to DIM features; no batch statistics."""

    def __init__(self, side: int) -> None:
        """side: pixels a side of what the convolutions see, a power of 2 from 8."""
        super().__init__()
        if side < 8 or side & (side - 1):
            raise FeatureError(f"a trunk of side {side}: give a power of 2 from 8")
        halvings = side.bit_length() - 3
        self.side = side
        widths = [_WIDTHS[min(i, len(_WIDTHS) - 1)] for i in range(halvings + 1)]
        layers = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(16 * widths[-1], DIM)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, DIM] of uint8 [n, 3, R, R]; other sides than the trunk's are resized (bicubic, antialiased)."""
        x = images.to(torch.float32) / 127.5 - 1
        if x.shape[-1] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.out(x.flatten(1))


class ClassifierCnn(nn.Module):
    """`cnn`: a trunk that must tell an image's class and its thumbnail.

    The class alone would let it forget places, colours and artefacts (and there may be but one class); the thumbnail
    keeps them in the features.
    """

    def __init__(self, classes: int, side: int = CLASSIFIER_SIDE) -> None:
        super().__init__()
        self.trunk = Trunk(side)
        self.classify = nn.Linear(DIM, classes)
        self.draw = nn.Linear(DIM, 3 * THUMBNAIL**2)

    def features(self, images: Tensor) -> Tensor:
        """float32 [n, DIM] of uint8 [n, 3, R, R]."""
        return self.trunk(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the class in nats, plus the thumbnail's squared error over its variance in the batch.

        images uint8 [n, 3, R, R], labels int64 [n]; a scalar.
        """
        features = self.features(images)
        thumbnail = F.adaptive_avg_pool2d(images.to(torch.float32) / 127.5 - 1, THUMBNAIL).flatten(1)
        scale = thumbnail.var(dim=0, correction=0).mean().clamp_min(1e-4)
        return F.cross_entropy(self.classify(features), labels) + F.mse_loss(self.draw(features), thumbnail) / scale


class FeatureExtractor(nn.Module):
    """A trunk as a measuring device: frozen, hashed, its result for an image the same in any batch."""

    def __init__(self, name: str, trunk: Trunk) -> None:
        super().__init__()
        self.name, self.dim = name, DIM
        self.trunk = trunk.eval().requires_grad_(False)
        self.hash = tensor_hash({key: value.numpy() for key, value in trunk.state_dict().items()})

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, dim] of uint8 [n, 3, R, R], on the device of the weights. Raises FeatureError for other input."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise FeatureError(
                f"{self.name}: images are {images.dtype} of shape {tuple(images.shape)}; give uint8 [n, 3, R, R]"
            )
        images = images.to(self.trunk.out.weight.device)
        features = images.new_empty((len(images), self.dim), dtype=torch.float32)
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            padding = part.new_zeros((CHUNK - len(part), *part.shape[1:]))
            features[start : start + CHUNK] = self.trunk(torch.cat([part, padding]))[: len(part)]
        return features


def load_features(name: str, weights: Path | None = None) -> FeatureExtractor:
    """The extractor `name`: "shapes-cnn@1" from the package, or "cnn" from the safetensors file of a ClassifierCnn.

    Raises FeatureError for an unknown name, "cnn" without a file, or a file that holds no such network.
    """
    if name == TRAINED:
        if weights is None:
            raise FeatureError("features 'cnn' are trained on the data as a stage; give the file of their weights")
        return FeatureExtractor(name, _read_trunk(weights, "trunk."))
    try:
        return FeatureExtractor(name, _read_trunk(shipped_path(name), ""))
    except KeyError as error:
        raise FeatureError(f"{error.args[0]}; or train {TRAINED!r}") from None


def _read_trunk(path: Path, prefix: str) -> Trunk:
    """The trunk in a safetensors file, its side told from its number of layers."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FeatureError(f"{path}: cannot be read as safetensors ({error}); train the features again") from None
    return build_trunk(
        {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}, path
    )


def build_trunk(tensors: Mapping[str, Tensor], where: Path) -> Trunk:
    """A trunk with the given weights. Raises FeatureError, naming `where`, if they are not those of a trunk."""
    layers = sum(re.fullmatch(r"layers\.\d+\.weight", key) is not None for key in tensors)
    try:
        trunk = Trunk(4 * 2 ** ((layers - 1) // 2))
        trunk.load_state_dict(dict(tensors))
    except (RuntimeError, FeatureError) as error:
        reason = str(error).splitlines()[0]
        raise FeatureError(f"{where}: not the weights of a feature network ({reason}); train them again") from None
    return trunk
