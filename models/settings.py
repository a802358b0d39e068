"""Settings of every part, their sizes by name, and their parameter and FLOP counts. No torch here.

`scaling.plan` embeds these classes in a plan's sections; the models take them as they are. A field made
with `axis()` may be a list in a plan (a grid); every other list is a value. A field made with
`location()` names where something lies and is never part of a result's identity.

FLOPs are exact matmul and convolution FLOPs (2 per multiply-add) of the forward pass; training counts
three forward passes (one forward, two for the backward). Attention counts the full T x T square, as
`torch.utils.flop_counter` does; embedding look-ups, norms and activations count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from models.fields import Settings, axis, location, read_range
from models.sizes import TransformerShape, parse_size

TRAINING_PASSES = 3  # one forward and a backward of twice its cost


# ---------------------------------------------------------------------------------------------- data


class SceneSettings(Settings):
    """What the procedural source `shapes` may draw; together these set the bits an image carries."""

    kinds: int = Field(5, ge=2, le=5, description="shape kinds: disc, square, triangle, cross, ring")
    colors: int = Field(8, ge=2, le=8, description="palette colours an object may have")
    grid: int = Field(5, ge=2, le=16, description="positions per axis on which an object's centre may lie")
    sizes: int = Field(3, ge=1, le=6, description="object sizes")
    objects: tuple[int, int] = Field((1, 2), description="fewest and most objects in a scene, as 1-2")
    backgrounds: int = Field(4, ge=1, le=8, description="background gradients")
    textures: int = Field(2, ge=1, le=4, description="background textures; 1 is plain")
    zipf: float = Field(1.0, ge=0, le=3, description="exponent of the factors' Zipf distribution; 0 is uniform")

    @field_validator("objects", mode="before")
    @classmethod
    def _objects(cls, value: Any) -> Any:
        return read_range(value)

    @model_validator(mode="after")
    def _ordered(self) -> SceneSettings:
        low, high = self.objects
        if not 1 <= low <= high <= 3:
            raise ValueError(f"objects must be a range within 1-3, got {low}-{high}")
        return self


class DataSettings(Settings):
    """Where images come from and how they are split."""

    source: Literal["shapes", "image_folder", "npz"] = Field("shapes", description="shapes | image_folder | npz")
    path: str | None = location("folder (image_folder) or file (npz) of the images")
    resolution: int = Field(16, ge=8, le=1024, description="side in pixels at which images are compared (FID)")
    scene: SceneSettings = Field(SceneSettings(), description="what `shapes` draws")
    train_images: int = Field(
        65_536, ge=64, description="training images encoded once per tokenizer; more seen means epochs"
    )
    validation_images: int = Field(4_096, ge=16, description="images for validation loss and reconstruction")

    @model_validator(mode="after")
    def _path_given(self) -> DataSettings:
        if self.source != "shapes" and not self.path:
            raise ValueError(f"source {self.source} needs `path`")
        return self


# ----------------------------------------------------------------------------------------- tokenizer


class CrtSettings(Settings):
    """Causal regularisation of stage 1 (paper 3.6, A.1); the weight itself is the axis `crt_weight`."""

    layers: int = Field(2, ge=1, description="blocks of the causal predictor")
    width: int = Field(24, ge=8, description="its width; about 5% of the autoencoder's FLOPs is the paper's choice")
    heads: int = Field(2, ge=1, description="its heads")
    target: Literal["prequant"] = Field("prequant", description="latents before quantisation are predicted")
    loss: Literal["l2"] = Field("l2", description="squared error of the next latent")
    reduce: Literal["mean"] = Field("mean", description="mean over dimensions, positions and batch")
    warmup_steps: int | None = Field(
        None, ge=1, description="steps over which the weight rises from 0; default max(100, 2%)"
    )
    weight_decay: float = Field(0.1, ge=0, description="of the predictor's own AdamW")
    flops_matched: bool = Field(True, description="shorten stage 1 by what the predictor costs (refused above 10%)")
    probe: bool = Field(True, description="at weight 0 train the predictor detached, for a predictability baseline")

    def shape(self) -> TransformerShape:
        return TransformerShape(width=self.width, layers=self.layers, heads=self.heads)

    def params(self, code_dim: int) -> int:
        """Parameters: stack, the linear maps in and out of it, and a learned first latent."""
        shape = self.shape()
        return shape.block_matmul_params() + shape.norm_params() + 2 * code_dim * self.width + self.width

    def forward_flops(self, code_dim: int, tokens: int) -> int:
        """FLOPs of one forward pass over `tokens` latents (the first latent is learned, not mapped)."""
        inputs, outputs = 2 * code_dim * self.width * (tokens - 1), 2 * code_dim * self.width * tokens
        return self.shape().forward_flops(tokens) + inputs + outputs


class ReviveSettings(Settings):
    """Dead-code revival, relative to uniform use, so that it means the same at every codebook size."""

    below: float = Field(0.05, ge=0, lt=1, description="a code used less than this share of uniform is replaced")
    every: int = Field(50, ge=1, description="steps between revivals")
    until: float = Field(0.6, ge=0, le=1, description="share of training after which codes are left alone")
    decay: float = Field(0.98, gt=0, lt=1, description="decay of the running use")


class TokenizerSettings(Settings):
    """Stage 1: a convolutional VQ autoencoder with a patchifying stem."""

    family: Literal["conv"] = Field("conv", description="conv: patchify early, residual blocks at the token grid")
    codebook_size: int = axis(256, "codes K", ge=2, le=2**18)
    tokens_per_image: int = axis(16, "tokens an image T, a square number", ge=1)
    tokens_by: Literal["resolution", "downsample"] = axis(
        "resolution", "how T varies: larger inputs, or retrained strides"
    )
    crt_weight: float = axis(0.0, "weight lambda of the causal regulariser", ge=0)
    images_seen: int = axis(64_000, "training images seen", ge=1)
    downsample: int = axis(4, "pixels a token spans per side at the training resolution; a power of 2", ge=1)
    width: int = axis(64, "channels", ge=8, multiple_of=8)
    blocks: int = Field(2, ge=1, description="residual blocks in encoder and decoder each")
    code_dim: int = Field(8, ge=2, description="dimensions of a code; codes and latents are l2-normalised")
    commitment: float = Field(0.25, ge=0, description="beta, the weight of the commitment loss")
    reconstruction: Literal["l1", "l2"] = Field("l2", description="pixel loss")
    crt: CrtSettings = Field(CrtSettings(), description="the causal predictor")
    revive: ReviveSettings = Field(ReviveSettings(), description="dead-code revival")
    scale_jitter: float = Field(
        0.0, ge=0, lt=1, description="each step trains on inputs this share smaller to larger, so that T may vary later"
    )
    batch_images: int = Field(64, ge=1, description="images a step")
    lr: float = axis(1e-3, "peak learning rate of Adam", gt=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="Adam's betas")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up steps")
    cooldown: float = Field(0.2, ge=0, le=1, description="share of steps in which the rate falls linearly to 0")
    clip: float = Field(1.0, gt=0, description="gradient norm limit, autoencoder and predictor apart")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the matrix products")

    @model_validator(mode="after")
    def _shapes(self) -> TokenizerSettings:
        side = math.isqrt(self.tokens_per_image)
        if side * side != self.tokens_per_image:
            raise ValueError(f"tokens_per_image {self.tokens_per_image} is not a square number")
        if self.downsample & (self.downsample - 1):
            raise ValueError(f"downsample {self.downsample} is not a power of 2")
        return self

    def check(self, resolution: int) -> None:
        """Raise ValueError where these settings cannot train on images of `resolution` pixels a side."""
        overhead = self.crt_overhead(resolution)
        if self.crt_weight > 0 and self.crt.flops_matched and overhead > 0.10:
            raise ValueError(
                f"the CRT predictor costs {overhead:.0%} of the autoencoder's FLOPs; matching above 10% would "
                "starve it: narrow crt.width or set crt.flops_matched: false"
            )

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return math.isqrt(self.tokens_per_image)

    def train_stride(self, resolution: int) -> int:
        """Pixels a token spans in training: `downsample`, or what T asks at `resolution` under tokens_by downsample.

        Raises ValueError where no power of 2 gives T.
        """
        if self.tokens_by == "resolution":
            stride = self.downsample
        else:
            stride, rest = divmod(resolution, self.grid)
            if rest or stride & (stride - 1):
                raise ValueError(
                    f"tokens_per_image {self.tokens_per_image} by downsample needs a stride of {resolution}/{self.grid}"
                    ", which is no power of 2; use tokens_by: resolution"
                )
        if resolution % stride:
            raise ValueError(f"downsample {stride} does not divide the resolution {resolution}")
        return stride

    def input_resolution(self, resolution: int) -> int:
        """Side of the images that are encoded: resolution where T is the training grid, larger or smaller otherwise."""
        return self.grid * self.train_stride(resolution)

    def train_grids(self, resolution: int) -> range:
        """Sides of the token grids training sees: that of `resolution`, and under `scale_jitter` those around it."""
        grid = resolution // self.train_stride(resolution)
        low, high = math.ceil(grid * (1 - self.scale_jitter)), math.floor(grid * (1 + self.scale_jitter))
        return range(max(2, low), max(2, high) + 1) if self.scale_jitter else range(grid, grid + 1)

    def stem(self, stride: int) -> tuple[int, int]:
        """(patch of the stem, number of stride-2 stages behind it); their product of strides is `stride`."""
        patch = min(stride, 4)
        return patch, int(math.log2(stride // patch))

    def steps(self, resolution: int) -> int:
        """Training steps; with `flops_matched` fewer by what the predictor costs."""
        matched = self.crt_weight > 0 and self.crt.flops_matched
        seen = self.images_seen / (1 + self.crt_overhead(resolution)) if matched else self.images_seen
        return max(1, round(seen / self.batch_images))

    def params(self, stride: int) -> dict[str, int]:
        """Parameters by group: encoder, decoder, codebook, crt."""
        width, dim = self.width, self.code_dim
        patch, halvings = self.stem(stride)
        block = 2 * (9 * width * width + width) + 2 * 2 * width
        encoder = 3 * patch**2 * width + width + halvings * (16 * width * width + width)
        encoder += self.blocks * block + 2 * width + width * dim + dim
        pixels = DECODER_CHANNELS * patch**2
        decoder = 9 * dim * width + width + self.blocks * block + halvings * (9 * width * width + width)
        decoder += 2 * width + width * pixels + pixels + 9 * DECODER_CHANNELS * 3 + 3
        return {
            "encoder": encoder,
            "decoder": decoder,
            "codebook": self.codebook_size * dim,
            "crt": self.crt.params(dim),
        }

    def forward_flops(self, grid: int, stride: int) -> dict[str, int]:
        """Matmul and convolution FLOPs of one image of `grid` x `grid` tokens: encoder, quantizer, decoder, crt."""
        width, dim, tokens = self.width, self.code_dim, grid * grid
        patch, halvings = self.stem(stride)
        blocks = self.blocks * 2 * 9 * width * width * tokens
        finer = [tokens * 4**k for k in range(1, halvings + 1)]
        stem_tokens = finer[-1] if finer else tokens
        encoder = stem_tokens * 3 * patch**2 * width + blocks + tokens * width * dim
        encoder += sum(16 * width * width * (n // 4) for n in finer)
        decoder = tokens * 9 * dim * width + blocks + sum(9 * width * width * n for n in finer)
        decoder += stem_tokens * width * DECODER_CHANNELS * patch**2 + stem_tokens * patch**2 * 9 * DECODER_CHANNELS * 3
        quantizer = tokens * dim * self.codebook_size
        counted = {"encoder": encoder, "quantizer": quantizer, "decoder": decoder}
        return {name: 2 * macs for name, macs in counted.items()} | {"crt": self.crt.forward_flops(dim, tokens)}

    def crt_overhead(self, resolution: int) -> float:
        """The predictor's share of the autoencoder's forward FLOPs in training on `resolution` pixels a side."""
        stride = self.train_stride(resolution)
        flops = self.forward_flops(resolution // stride, stride)
        return flops["crt"] / (flops["encoder"] + flops["decoder"])

    def training_flops(self, resolution: int) -> int:
        """FLOPs of one full training, the quantiser's search once and the predictor only where it regularises.

        Under `scale_jitter` the mean over the grids, each as likely as another.
        """
        stride, grids = self.train_stride(resolution), self.train_grids(resolution)
        images = 0.0
        for grid in grids:
            flops = self.forward_flops(grid, stride)
            images += TRAINING_PASSES * (flops["encoder"] + flops["decoder"]) + flops["quantizer"]
            if self.crt_weight > 0:
                images += TRAINING_PASSES * flops["crt"]
        return round(images / len(grids) * self.steps(resolution) * self.batch_images)


DECODER_CHANNELS = 8  # channels at full resolution in front of the decoder's last convolution


# ----------------------------------------------------------------------------------------- generator


class LearningRate(Settings):
    """Peak learning rate and how it follows the width."""

    rule: Literal["width", "constant"] = Field("width", description="width: hidden matrices at peak x base_width/width")
    peak: float = Field(3e-3, gt=0, description="peak rate (of hidden matrices at base_width)")
    base_width: int = Field(64, ge=1, description="width at which the peak holds for hidden matrices")


class GeneratorSettings(Settings):
    """Stage 2: a Llama-style decoder over tokens, class-conditional."""

    size: TransformerShape = axis(
        TransformerShape(width=64, layers=3, heads=4), "WIDTHxLAYERS, a name, or {width, layers, heads}"
    )
    images_seen: int = axis(64_000, "training length in images", ge=1)
    batch_images: int = axis(64, "images a step", ge=1)
    lr: LearningRate = Field(LearningRate(), description="learning rate and its rule")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's betas")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay, on matrices")
    warmup_images: int | None = axis(None, "linear warm-up; default min(5,000 steps, 4%)", ge=0)
    clip: float = Field(1.0, gt=0, description="gradient norm limit")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in residual branches")
    class_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of classes replaced by the null class, for guidance"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the matrix products")

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "multiple_of" in value:
            return value
        return parse_size(value) if isinstance(value, str | Mapping) else value

    def steps(self) -> int:
        return max(1, round(self.images_seen / self.batch_images))

    def warmup_steps(self) -> int:
        """Given, or min(5,000 steps, 4% of training), so that short runs are not mostly warm-up."""
        if self.warmup_images is not None:
            return round(self.warmup_images / self.batch_images)
        return min(5_000, math.ceil(0.04 * self.steps()))

    def params(self, codebook_size: int, classes: int) -> dict[str, int]:
        """Parameters by group: body (blocks and norms), head, embedding, classes (one more for the null class)."""
        width = self.size.width
        body = self.size.block_matmul_params() + self.size.norm_params()
        return {
            "body": body,
            "head": width * codebook_size,
            "embedding": width * codebook_size,
            "classes": width * (classes + 1),
        }

    def scaling_params(self, codebook_size: int) -> int:
        """N: body and head, no embeddings (the count that gave nanochat the cleanest laws)."""
        groups = self.params(codebook_size, classes=0)
        return groups["body"] + groups["head"]

    def forward_flops(self, codebook_size: int, tokens: int) -> dict[str, int]:
        """Matmul FLOPs of one image: body (with attention) and head, over the T positions class, x_1 .. x_(T-1)."""
        return {"body": self.size.forward_flops(tokens), "head": 2 * self.size.width * codebook_size * tokens}

    def training_flops(self, codebook_size: int, tokens: int) -> int:
        """`compute`: exact matmul FLOPs of the whole training."""
        image = sum(self.forward_flops(codebook_size, tokens).values())
        return TRAINING_PASSES * image * self.steps() * self.batch_images

    def compute_6nd(self, codebook_size: int, tokens: int) -> int:
        """6 N D, for comparison only (Kaplan et al. 2020)."""
        return 6 * self.scaling_params(codebook_size) * tokens * self.steps() * self.batch_images

    def compute_paper(self, codebook_size: int, tokens: int) -> int:
        """6 N T steps with N as the paper counts it (12 l d^2 + 2 K d) and no batch: only to reproduce its axis."""
        params = 12 * self.size.layers * self.size.width**2 + 2 * codebook_size * self.size.width
        return 6 * params * tokens * self.steps()


# ---------------------------------------------------------------------------------------- evaluation


class ReferenceSettings(Settings):
    """The images that reconstructions and generations are compared with."""

    split: Literal["held-out", "train", "validation"] = Field("held-out", description="split of the data")
    images: int = Field(10_000, ge=2, description="how many of them")


class EvaluationSettings(Settings):
    """How fidelity is measured."""

    features: Literal["shapes-cnn@1", "cnn"] = Field(
        "shapes-cnn@1", description="shapes-cnn@1: shipped, for `shapes`; cnn: trained on the data's labels as a stage"
    )
    cnn_steps: int = Field(2_000, ge=1, description="training steps of `features: cnn`, of 64 images each")
    reference: ReferenceSettings = Field(ReferenceSettings(), description="the reference set")
    samples: int = Field(2_000, ge=2, description="images generated (and reconstructed) for FID")
    guidance: float = axis(1.0, "classifier-free guidance; 1 is none", ge=0)
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    metrics: tuple[Literal["fid", "kid"], ...] = Field(("fid", "kid"), description="fid | kid")
