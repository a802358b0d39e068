"""How near generated or reconstructed images come to real ones: FID and KID through torch-fidelity's own functions.

Here: pixels to uint8, features of batches, their statistics, distances, the bias that a finite number of images
brings, and the protocol that every number carries. Not here: the networks (`features`), files, caches on disk.
Features are float32, statistics float64: torch-fidelity takes the mean in the type of the features, which loses
digits in float32.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from torch.nn import functional as F

from models.features import FeatureExtractor
from models.weights import tensor_hash

KID_SUBSETS = 10  # torch-fidelity's 100 cost ten times as much and tell no more at a few thousand images
KID_SUBSET_IMAGES = 1_000
RULES = {
    "fid": "torch-fidelity statistics and distance, float64",
    "kid": "torch-fidelity unbiased MMD, kernel (x.y / d + 1)^3, float64",
    "resize": "bicubic, antialiased",
    "uint8": "round(clamp(x, -1, 1) * 127.5 + 127.5)",
}
_MISSING_OPERATORS = ("nms", "qnms")  # what torchvision registers shapes for while it is imported
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library object


class FidelityError(ValueError):
    """A distance that cannot be measured: one line that says what, where, and what to do."""


class FewImagesWarning(UserWarning):
    """Fewer images than features: a distance is computed, but its covariance is singular."""


# ------------------------------------------------------------------------------------------ torch-fidelity


def import_torch_fidelity() -> ModuleType:
    """torch-fidelity, also where torchvision was built for another torch than the one installed.

    torch-fidelity imports torchvision, of which nothing is used here. A torchvision whose compiled operators do not
    load fails to import for want of their schemas; these are declared then, and only then. Raises FidelityError.
    """
    try:
        return _import()
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise FidelityError(
                f"torch-fidelity cannot be imported ({error}); reinstall torch and torchvision"
            ) from None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    try:
        return _import()
    except RuntimeError as error:
        raise FidelityError(
            f"torchvision does not fit torch {torch.__version__} ({error}); install the torchvision of this torch"
        ) from None


def _import() -> ModuleType:
    try:
        import torch_fidelity
        import torch_fidelity.metric_fid
        import torch_fidelity.metric_kid
    except ImportError as error:
        raise FidelityError(
            f"torch-fidelity cannot be imported ({error}); pip install torch-fidelity torchvision"
        ) from None
    return torch_fidelity


# ------------------------------------------------------------------------------------------ pixels to features


def to_uint8(images: Tensor) -> Tensor:
    """uint8 of float images in [-1, 1], any shape; values outside are clamped, halves go to even.

    Raises FidelityError where a pixel is not finite.
    """
    if not torch.isfinite(images).all():
        raise FidelityError("images hold pixels that are not finite; the model that made them has diverged")
    return (images.to(torch.float32).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 [n, 3, resolution, resolution] of uint8 [n, 3, R, R], bicubic with antialiasing; the same where R fits."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise FidelityError(f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 [n, 3, R, R]")
    if images.shape[-2:] == (resolution, resolution):
        return images
    size = (resolution, resolution)
    resized = F.interpolate(images.to(torch.float32), size=size, mode="bicubic", antialias=True)
    return resized.clamp(0, 255).round().to(torch.uint8)


def extract(extractor: FeatureExtractor, batches: Iterable[np.ndarray | Tensor]) -> np.ndarray:
    """float32 [N, dim] of batches of uint8 [n, 3, R, R]; how they are cut changes nothing.

    Raises FidelityError where there is no image or a feature is not finite, FeatureError for other input.
    """
    features = [
        extractor(batch if isinstance(batch, Tensor) else torch.from_numpy(batch)).cpu().numpy() for batch in batches
    ]
    if not sum(len(part) for part in features):
        raise FidelityError("no image to take features of")
    return _finite(np.concatenate(features))


def _finite(features: np.ndarray) -> np.ndarray:
    bad = len(features) - int(np.isfinite(features).all(axis=1).sum())
    if bad:
        raise FidelityError(f"features of {bad} of {len(features)} images are not finite; their model has diverged")
    return features


# ------------------------------------------------------------------------------------------ distances


@dataclass(frozen=True)
class Statistics:
    """Mean float64 [D] and covariance float64 [D, D] (over n - 1) of the features of n images."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int


def statistics(features: np.ndarray) -> Statistics:
    """Statistics of features [N, D], by torch-fidelity. Warns FewImagesWarning where N <= D.

    Raises FidelityError for another shape, fewer than 2 images, or features that are not finite.
    """
    if features.ndim != 2:
        raise FidelityError(f"features have shape {features.shape}; give [images, features]")
    count, dim = features.shape
    if count < 2:
        raise FidelityError(
            f"{count} image has no covariance; give at least 2, and thousands for a distance that means much"
        )
    if count <= dim:
        warnings.warn(
            f"{count} images for {dim} features: the covariance is singular and FID is mostly bias; "
            f"give well over {dim} images",
            FewImagesWarning,
            stacklevel=2,
        )
    package = import_torch_fidelity()
    found = package.metric_fid.fid_features_to_statistics(torch.from_numpy(_finite(features).astype(np.float64)))
    return Statistics(found["mu"], found["sigma"], count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """FID between two sets of images: |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2); by torch-fidelity.

    Heusel et al. 2017, arXiv 1706.08500, eq. 6. Rounding may take it below 0 for equal sets; it is 0 then.
    Raises FidelityError where the numbers of features differ.
    """
    _same_dim(a.mu.shape[0], b.mu.shape[0])
    package = import_torch_fidelity()
    left, right = ({"mu": s.mu, "sigma": s.sigma} for s in (a, b))
    found = package.metric_fid.fid_statistics_to_metric(left, right, False)
    return max(0.0, float(found[package.KEY_METRIC_FID]))


def kernel_distance(
    features_a: np.ndarray,
    features_b: np.ndarray,
    seed: int,
    subsets: int = KID_SUBSETS,
    subset_size: int | None = None,
) -> tuple[float, float]:
    """KID between features [N, D] and [M, D]: mean and standard deviation over random subsets; by torch-fidelity.

    Unbiased, so it may be slightly negative (Binkowski et al. 2018, arXiv 1801.01401). subset_size is by default
    `kid_subset_size(N, M)`. Raises FidelityError for dimensions that differ, too few images, or features not finite.
    """
    _same_dim(features_a.shape[1], features_b.shape[1])
    fewest = min(len(features_a), len(features_b))
    size = kid_subset_size(len(features_a), len(features_b)) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        raise FidelityError(f"KID over subsets of {size} images with {fewest} images; give 2 to {fewest}")
    package = import_torch_fidelity()
    left, right = (torch.from_numpy(_finite(f).astype(np.float64)) for f in (features_a, features_b))
    found = package.metric_kid.kid_features_to_metric(
        left, right, kid_subsets=subsets, kid_subset_size=size, kid_kernel="poly", rng_seed=seed, verbose=False
    )
    return float(found[package.KEY_METRIC_KID_MEAN]), float(found[package.KEY_METRIC_KID_STD])


def kid_subset_size(n: int, m: int) -> int:
    """Images a KID subset has: 1,000, or half of the smaller set, so that subsets differ."""
    return max(2, min(KID_SUBSET_IMAGES, min(n, m) // 2))


def _same_dim(a: int, b: int) -> None:
    if a != b:
        raise FidelityError(f"features of {a} and of {b} dimensions cannot be compared; use one extractor for both")


def bias_floor(sigma: np.ndarray, n: int, m: int) -> float:
    """What FID between n and m images of one distribution is expected to be, instead of 0; sigma is its covariance.

    Second-order expansion for Gaussian features at equal distributions, l the eigenvalues of sigma:
    (sum_i l_i + 1/2 (sum_ij l_i l_j / (l_i + l_j) + 1/2 sum_i l_i)) (1/n + 1/m).
    Where the distributions differ it is too large: a line below which a gap means nothing, not a correction.
    """
    values = np.clip(np.linalg.eigvalsh(sigma), 0.0, None)
    sums = values[:, None] + values[None, :]
    pairs = np.divide(values[:, None] * values[None, :], sums, out=np.zeros_like(sums), where=sums > 0)
    return float((values.sum() + 0.5 * (pairs.sum() + 0.5 * values.sum())) * (1 / n + 1 / m))


# ------------------------------------------------------------------------------------------ reference and protocol


@dataclass(frozen=True)
class ReferenceSet:
    """Features float32 [M, D] of the images that others are compared with; its hash is that of its content."""

    features: np.ndarray

    def __post_init__(self) -> None:
        if self.features.dtype != np.float32:
            raise FidelityError(f"reference features are {self.features.dtype}; give float32")
        _finite(self.features)

    @cached_property
    def statistics(self) -> Statistics:
        return statistics(self.features)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the features."""
        return tensor_hash({"features": self.features})

    def to_bytes(self) -> bytes:
        """A safetensors file that carries its own hash."""
        return save({"features": np.ascontiguousarray(self.features)}, metadata={"sha256": self.hash})

    @classmethod
    def from_bytes(cls, content: bytes, expected_hash: str | None = None) -> ReferenceSet:
        """The inverse of `to_bytes`. Raises FidelityError where the content is damaged or not `expected_hash`."""
        try:
            reference = cls(load(content)["features"])
            stated = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["sha256"]
        except (SafetensorError, KeyError) as error:
            raise FidelityError(f"reference: not a reference set ({error}); remove it, it will be made again") from None
        for name, wanted in (("recorded", stated), ("expected", expected_hash or stated)):
            if reference.hash != wanted:
                raise FidelityError(
                    f"reference: its hash {reference.hash[:12]} is not the {name} {wanted[:12]}; remove it, it will be "
                    "made again"
                )
        return reference


@dataclass(frozen=True)
class Protocol:
    """What a fidelity number was measured by. Numbers of different protocols are never compared.

    features_hash: of the extractor's weights; reference_source: hash of the data source's identity; reference_hash:
    of the reference's features. Seeds are not part of it: they tell repeats under one protocol apart.
    """

    target: Literal["generation", "reconstruction"]
    features: str
    features_hash: str
    dim: int
    resolution: int
    reference_source: str
    reference_split: str
    reference_images: int
    reference_hash: str
    samples: int
    guidance: float = 1.0
    temperature: float = 1.0
    kid_subsets: int = KID_SUBSETS

    @property
    def hash(self) -> str:
        """SHA-256 over every field and the rules of the metrics."""
        facts = asdict(self) | {"rules": RULES, "kid_subset": kid_subset_size(self.samples, self.reference_images)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """One line, such as `gFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000, guidance 1.0`."""
        parts = [
            f"{self.target[0]}FID",
            f"{self.features} ({self.dim}-d)",
            f"{self.reference_split} {self.reference_images:,}",
            f"N = {self.samples:,}",
        ]
        if self.target == "generation":
            parts.append(f"guidance {float(self.guidance)}")
            parts += [f"temperature {float(self.temperature)}"] if self.temperature != 1 else []
        return ", ".join(parts)
