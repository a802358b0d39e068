"""What the loop of `models.training` trains: stage 1, stage 2, and the features of data without shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.crt import crt_loss
from models.features import ClassifierCnn
from models.generator import Generator
from models.settings import GeneratorSettings, LearningRate, TokenizerSettings
from models.tokenizer import Tokenizer
from models.training import batch_indices, cooldown_rate, cosine_rate, part_of

ImageLoader = Callable[[np.ndarray, int], np.ndarray]  # indices int64 [n], R -> images uint8 [n, 3, R, R]
BLOCK_BYTES = 64 * 2**20  # images fetched from the source at once: a call for each step would cost a fifth more
JITTER_STREAM = 1  # tells the draws of resolutions from other draws of (seed, step)
FEATURE_BATCH = 64  # images a step of the feature network


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [n, 3, R, R] -> float32 in [-1, 1]."""
    return torch.from_numpy(images).to(device).float().div_(127.5).sub_(1)


class TokenizerTask:
    """Stage 1: reconstruction, codebook and commitment losses, and the causal regulariser with its own AdamW."""

    def __init__(
        self,
        settings: TokenizerSettings,
        resolution: int,
        load_images: ImageLoader,
        images: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """`load_images` renders training images at a resolution; `images` is how many there are."""
        torch.manual_seed(seed)
        self.settings, self.seed, self.device = settings, seed, device
        self._grids = settings.train_grids(resolution)
        largest = settings.batch_images * 3 * resolution**2 * (1 + settings.scale_jitter) ** 2
        self._block_steps = int(min(64, max(1, BLOCK_BYTES // largest)))
        self._loaded: dict[int, np.ndarray] = {}
        self.module = Tokenizer(settings, resolution).to(device)
        self.clip, self.steps = settings.clip, settings.steps(resolution)
        self._load_images, self._images = load_images, images
        self._latents: Tensor | None = None
        predictor = list(self.module.predictor.parameters())
        learned = {id(p) for p in predictor}
        body = [p for p in self.module.parameters() if id(p) not in learned]
        fused: dict[str, Any] = {"fused": True, "lr": settings.lr, "betas": settings.betas}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "autoencoder": torch.optim.AdamW(body, weight_decay=settings.weight_decay, **fused)
        }
        self._predicting = settings.crt_weight > 0 or settings.crt.probe
        if self._predicting:
            decay = settings.crt.weight_decay
            self.optimizers["predictor"] = torch.optim.AdamW(predictor, weight_decay=decay, **fused)

    def loss(self, step: int, part: int, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        settings, module = self.settings, self.module
        images = to_float(self._batch(step)[part_of(settings.batch_images, part, parts)], self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            coded = module.code(images)
            output = module.render(coded.quantized.codes).float()
        pixel = F.l1_loss if settings.reconstruction == "l1" else F.mse_loss
        reconstruction = pixel(output, images)
        total = reconstruction + coded.quantized.loss
        values = {"reconstruction": reconstruction, "quantization": coded.quantized.loss, "latent_norm": coded.norm}
        if self._predicting:
            causal = crt_loss(module.predictor, coded.latents, self.crt_weight(step))
            total = total + causal
            values["crt"] = causal
        with torch.no_grad():
            module.quantizer.track(coded.quantized.ids, settings.revive.decay ** (1 / parts))
            self._latents = coded.latents.detach()
        return total, {"loss": total.detach()} | {name: value.detach() for name, value in values.items()}

    def crt_weight(self, step: int) -> float:
        """lambda at a step: a linear rise from 0 over the warm-up, then the setting."""
        warmup = self.settings.crt.warmup_steps or max(100, round(0.02 * self.steps))
        return self.settings.crt_weight * min(1.0, step / warmup)

    def rate(self, step: int) -> float:
        return cooldown_rate(step, self.steps, self.settings.warmup_steps, self.settings.cooldown)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revive dead codes while the learning rate is still high, and forget their optimiser moments."""
        revive, quantizer = self.settings.revive, self.module.quantizer
        if (step + 1) % revive.every or step >= revive.until * self.steps or self._latents is None:
            return
        generator = torch.Generator().manual_seed(torch.initial_seed())
        revived = quantizer.revive(self._latents, revive.below, generator)
        moments = self.optimizers["autoencoder"].state[quantizer.codebook]
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name][revived] = 0

    def _batch(self, step: int) -> np.ndarray:
        """Images of a step, at a resolution drawn from those that training sees."""
        if step not in self._loaded:
            self._loaded = self._load_block(step - step % self._block_steps)
        return self._loaded[step]

    def _load_block(self, first: int) -> dict[int, np.ndarray]:
        """Batches of the steps from `first` on, one call of the source for each resolution among them."""
        size = self.settings.batch_images
        steps_at: dict[int, list[int]] = {}
        for step in range(first, min(first + self._block_steps, self.steps)):
            draw = np.random.default_rng([self.seed, step, JITTER_STREAM]).integers(len(self._grids))
            steps_at.setdefault(self._grids[draw] * self.module.stride, []).append(step)
        loaded: dict[int, np.ndarray] = {}
        for resolution, steps in steps_at.items():
            rows = np.concatenate([batch_indices(self.seed, step, size, self._images) for step in steps])
            images = self._load_images(rows, resolution)
            loaded |= {step: images[i * size : (i + 1) * size] for i, step in enumerate(steps)}
        return loaded


class GeneratorTask:
    """Stage 2: cross-entropy of the tokens of encoded images."""

    def __init__(
        self,
        settings: GeneratorSettings,
        codebook_size: int,
        ids: np.ndarray,
        labels: np.ndarray,
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """ids: unsigned [images, T] (may be memory-mapped); labels: int64 [images]."""
        torch.manual_seed(seed)
        self.settings, self.seed, self.device = settings, seed, device
        self._ids, self._labels, self._classes = ids, labels, classes
        self.module = Generator(settings, codebook_size, classes, round(ids.shape[1] ** 0.5)).to(device)
        self.clip, self.steps = settings.clip, settings.steps()
        groups = parameter_groups(self.module, settings)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.AdamW(groups, betas=settings.betas, fused=True)
        }

    def loss(self, step: int, part: int, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        size = self.settings.batch_images
        rows = batch_indices(self.seed, step, size, len(self._ids))
        dropped = np.random.default_rng([self.seed, step]).random(size) < self.settings.class_dropout
        classes = np.where(dropped, self._classes, self._labels[rows])
        chosen = part_of(size, part, parts)
        ids = torch.from_numpy(self._ids[rows[chosen]].astype(np.int64)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss = self.module.nll(ids, torch.from_numpy(classes[chosen]).to(self.device)).mean()
        return loss, {"loss": loss.detach()}

    def rate(self, step: int) -> float:
        return cosine_rate(step, self.steps, self.settings.warmup_steps())

    def after_step(self, step: int) -> None:
        """Nothing follows a generator's step."""


class FeatureTask:
    """The network behind `features: cnn`: classes and thumbnails of the data's own training images."""

    clip = 1.0

    def __init__(
        self,
        load_images: ImageLoader,
        load_labels: Callable[[np.ndarray], np.ndarray],
        resolution: int,
        images: int,
        classes: int,
        steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.steps = seed, device, steps
        self.module = ClassifierCnn(classes).to(device)
        self._load_images, self._load_labels = load_images, load_labels
        self._resolution, self._images = resolution, images
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "features": torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
        }

    def loss(self, step: int, part: int, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = batch_indices(self.seed, step, FEATURE_BATCH, self._images)[part_of(FEATURE_BATCH, part, parts)]
        images = torch.from_numpy(self._load_images(rows, self._resolution)).to(self.device)
        loss = self.module.loss(images, torch.from_numpy(self._load_labels(rows)).to(self.device))
        return loss, {"loss": loss.detach()}

    def rate(self, step: int) -> float:
        return cosine_rate(step, self.steps, self.steps // 20)

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""


def parameter_groups(module: Generator, settings: GeneratorSettings) -> list[dict[str, object]]:
    """AdamW groups: hidden matrices (rate scaled by the width's rule), embeddings and head, gains.

    Under `rule: width` hidden matrices learn at peak x base_width / width and the rest at the peak (the AdamW part
    of maximal update parametrisation, arXiv 2203.03466); weight decay falls on matrices only and is independent of
    the width's rule.
    """
    rate: LearningRate = settings.lr
    scale = rate.base_width / settings.size.width if rate.rule == "width" else 1.0
    hidden = [layer.weight for layer in module.stack.modules() if isinstance(layer, nn.Linear)]
    matrices = {id(p) for p in hidden}
    gains = [p for p in module.stack.parameters() if id(p) not in matrices]
    outer = [module.class_embedding.weight, module.embedding.weight, module.head.weight]
    assert len(hidden) + len(gains) + len(outer) == len(list(module.parameters()))
    return [
        {"params": hidden, "lr": rate.peak * scale, "weight_decay": settings.weight_decay / scale},
        {"params": outer, "lr": rate.peak, "weight_decay": settings.weight_decay},
        {"params": gains, "lr": rate.peak, "weight_decay": 0.0},
    ]


@torch.no_grad()
def evaluate_generator(
    module: Generator, ids: np.ndarray, labels: np.ndarray, device: torch.device, batch: int = 512
) -> np.ndarray:
    """Mean cross-entropy in nats at each position, float64 [T], over ids [images, T] with their classes."""
    module.eval()
    total = np.zeros(ids.shape[1])
    for start in range(0, len(ids), batch):
        part = torch.from_numpy(ids[start : start + batch].astype(np.int64)).to(device)
        nll = module.nll(part, torch.from_numpy(labels[start : start + batch]).to(device))
        total += nll.double().sum(0).cpu().numpy()
    module.train()
    return total / len(ids)
