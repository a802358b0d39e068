"""Stage 1: a convolutional VQ autoencoder that patchifies early, so that no layer but the last runs at full size.

The encoder is a strided stem of at most 4 x 4 pixels, stride-2 convolutions for what is left of the stride, and
residual blocks at the token grid; the decoder mirrors it and ends in a pixel shuffle and one convolution at
full resolution. It is fully convolutional: the same weights take larger or smaller inputs, which is how the
paper varies the tokens per image (section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.crt import CausalPredictor
from models.quantizer import Quantized, VectorQuantizer
from models.settings import DECODER_CHANNELS, TokenizerSettings

GROUPS = 8  # of GroupNorm


class ResidualBlock(nn.Module):
    """norm, silu, 3 x 3 convolution, twice; added to the input. The last convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class Encoder(nn.Module):
    """Images [batch, 3, R, R] in [-1, 1] -> latents [batch, dim, R / stride, R / stride], not yet normalised."""

    def __init__(self, settings: TokenizerSettings, stride: int) -> None:
        super().__init__()
        patch, halvings = settings.stem(stride)
        width = settings.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, patch, stride=patch)]
        layers += [nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        layers += [ResidualBlock(width) for _ in range(settings.blocks)]
        layers += [nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, settings.code_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """Codes [batch, dim, g, g] -> images [batch, 3, g * stride, g * stride], not clamped."""

    def __init__(self, settings: TokenizerSettings, stride: int) -> None:
        super().__init__()
        patch, halvings = settings.stem(stride)
        width = settings.width
        layers: list[nn.Module] = [nn.Conv2d(settings.code_dim, width, 3, padding=1)]
        layers += [ResidualBlock(width) for _ in range(settings.blocks)]
        for _ in range(halvings):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, DECODER_CHANNELS * patch**2, 1)]
        layers += [nn.PixelShuffle(patch), nn.Conv2d(DECODER_CHANNELS, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers(codes)


@dataclass
class Coded:
    """latents: unit [batch, T, dim]; norm: mean length of the latents before normalisation; quantized: their codes."""

    latents: Tensor
    norm: Tensor
    quantized: Quantized


class Tokenizer(nn.Module):
    """Images in [-1, 1] to token ids and back. T follows from the input's size; ids are in raster order."""

    def __init__(self, settings: TokenizerSettings, resolution: int) -> None:
        """`resolution` is that of training; with `settings` it fixes the stride. Raises ValueError if they disagree."""
        super().__init__()
        self.settings = settings
        self.stride = settings.train_stride(resolution)
        self.encoder = Encoder(settings, self.stride)
        self.decoder = Decoder(settings, self.stride)
        self.quantizer = VectorQuantizer(settings.codebook_size, settings.code_dim, settings.commitment)
        self.predictor = CausalPredictor(settings.crt, settings.code_dim, resolution // self.stride)

    def code(self, images: Tensor) -> Coded:
        """Encode and quantise images [batch, 3, R, R]."""
        raw = self.encoder(images).float().flatten(2).transpose(1, 2)
        latents = F.normalize(raw, dim=-1)
        return Coded(latents, raw.norm(dim=-1).mean(), self.quantizer(latents))

    def render(self, codes: Tensor) -> Tensor:
        """Decode codes [batch, T, dim] to images [batch, 3, R, R] (not clamped)."""
        side = round(codes.shape[1] ** 0.5)
        return self.decoder(codes.transpose(1, 2).unflatten(2, (side, side)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Token ids int64 [batch, T] of images [batch, 3, R, R] in [-1, 1]."""
        return self.code(images).quantized.ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Images [batch, 3, R, R] of token ids [batch, T]; clamped to [-1, 1]."""
        return self.render(self.quantizer.lookup(ids)).clamp(-1, 1)

    def count_params(self) -> dict[str, int]:
        """Parameters by group, as `TokenizerSettings.params` counts them."""
        groups = {"encoder": self.encoder, "decoder": self.decoder, "codebook": self.quantizer, "crt": self.predictor}
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in groups.items()}
        assert sum(counts.values()) == sum(p.numel() for p in self.parameters())
        return counts
