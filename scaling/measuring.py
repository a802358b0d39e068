"""The `evaluation` stage: a reconstruction or a generation, measured against the reference of the `features` stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from models import fidelity
from models.features import load_features
from models.generator import sampling_noise
from models.tasks import to_float
from models.training import batches
from models.weights import TRAINED
from scaling.artifacts import Layout, read_json
from scaling.context import BATCH, Context, Summary, load_generator, load_tokenizer
from scaling.stages import fingerprint

SAMPLE_BATCH = 250  # images sampled at once


def evaluate(context: Context) -> Summary:
    """FID and its kin of reconstructions or of generations against the reference."""
    target = context.settings["target"]
    return _reconstruction(context) if target == "reconstruction" else _generation(context)


def _reconstruction(context: Context) -> Summary:
    """Validation images, none of them in the reference, through the tokenizer; PSNR and the resizing's own FID."""
    settings, source = context.settings, context.source()
    tokenizer = load_tokenizer(context.input("tokenizer", "model.safetensors"), context.device)
    resolution, size = int(settings["resolution"]), int(settings["input_resolution"])
    samples = int(settings["samples"])
    errors: list[float] = []

    def reconstructed() -> Iterator[torch.Tensor]:
        for rows in batches(samples, BATCH):
            context.stop_between(int(rows[0]), samples)
            images = to_float(source.images("validation", rows, size), context.device)
            output = fidelity.resize(fidelity.to_uint8(tokenizer.decode(tokenizer.encode(images))), resolution)
            target = torch.from_numpy(source.images("validation", rows, resolution)).to(output.device)
            errors.extend((output.float() - target.float()).square().mean(dim=(1, 2, 3)).tolist())
            yield output

    def resized() -> Iterator[torch.Tensor]:
        for rows in batches(samples, BATCH):
            images = torch.from_numpy(source.images("validation", rows, size))
            yield fidelity.resize(images, resolution)

    measured = _Measure(context)
    summary: Summary = {f"r{name}": v for name, v in measured.scores(reconstructed(), settings["metrics"]).items()}
    if "rfid" in summary:
        summary["resize_fid"] = measured.scores(resized(), ("fid",))["fid"]
    mse = float(np.mean(errors))
    summary["psnr"] = 10 * np.log10(255.0**2 / mse) if mse > 0 else None
    return summary


def _generation(context: Context) -> Summary:
    """Samples with the reference's labels, each a pure function of (seed, index)."""
    settings = context.settings
    evaluation = settings["evaluation"]
    generator = load_generator(context.input("generator", "model.safetensors"), context.device)
    tokenizer = load_tokenizer(context.input("tokenizer", "model.safetensors"), context.device)
    measured = _Measure(context)
    samples, guidance = int(evaluation["samples"]), float(evaluation["guidance"])
    labels = measured.labels(samples)

    def generated() -> Iterator[torch.Tensor]:
        for rows in batches(samples, SAMPLE_BATCH):
            context.stop_between(int(rows[0]), samples)
            noise = torch.from_numpy(sampling_noise(context.seed, rows, generator.tokens)).to(context.device)
            classes = torch.from_numpy(labels[rows]).to(context.device)
            ids = generator.sample(classes, noise, guidance, float(evaluation["temperature"]))
            yield fidelity.resize(fidelity.to_uint8(tokenizer.decode(ids)), int(settings["resolution"]))

    scores = measured.scores(generated(), evaluation["metrics"])
    protocol = measured.protocol(samples, guidance, float(evaluation["temperature"]))
    return {
        **{f"g{name}": value for name, value in scores.items()},
        "samples": samples,
        "reference_images": len(measured.reference.features),
        "feature_dim": measured.extractor.dim,
        "bias_floor": measured.bias_floor(samples),
        "protocol": protocol.describe(),
        "protocol_hash": protocol.hash,
    }


class _Measure:
    """Features of images against the reference of the `features` stage."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.reference = fidelity.ReferenceSet.from_bytes(
            context.input("features", "reference.safetensors").read_bytes()
        )
        self.settings = read_json(Layout.config(context.inputs["features"]))["settings"]
        trained = self.settings["features"] == TRAINED
        weights = context.input("features", "weights.safetensors") if trained else None
        self.extractor = load_features(self.settings["features"], weights).to(context.device)

    def labels(self, count: int) -> np.ndarray:
        """The reference's labels, in its order, repeated where more are asked for."""
        asked = self.settings["reference"]
        return self.context.source().labels(asked["split"], np.arange(count) % int(asked["images"]))

    def scores(self, images: Iterable[torch.Tensor], metrics: Sequence[str]) -> dict[str, float]:
        """Of `metrics`: fid, and kid with its standard deviation over subsets."""
        features = fidelity.extract(self.extractor, images)
        scores: dict[str, float] = {}
        if "fid" in metrics:
            scores["fid"] = fidelity.frechet_distance(fidelity.statistics(features), self.reference.statistics)
        if "kid" in metrics:
            scores["kid"], scores["kid_std"] = fidelity.kernel_distance(features, self.reference.features, seed=0)
        return scores

    def bias_floor(self, samples: int) -> float:
        """The FID expected between `samples` images and the reference, were they of one distribution."""
        return fidelity.bias_floor(self.reference.statistics.sigma, samples, len(self.reference.features))

    def protocol(self, samples: int, guidance: float, temperature: float) -> fidelity.Protocol:
        """What a generation's numbers are measured by."""
        asked = self.settings["reference"]
        return fidelity.Protocol(
            target="generation",
            features=self.extractor.name,
            features_hash=self.extractor.hash,
            dim=self.extractor.dim,
            resolution=int(self.settings["resolution"]),
            reference_source=fingerprint(self.settings["data"]),
            reference_split=asked["split"],
            reference_images=len(self.reference.features),
            reference_hash=self.reference.hash,
            samples=samples,
            guidance=guidance,
            temperature=temperature,
        )
