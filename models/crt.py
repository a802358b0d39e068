"""Causally regularised tokenisation: a small causal transformer predicts each latent from those before it.

Paper ("When Worse is Better", arXiv 2412.16326, sections 3.6 and A.1): L_CRT = mean_i || z_i - f(z_<i) ||^2 on
the latents before quantisation; the predictor f always learns at weight 1 while the encoder sees the gradient
times lambda. Where the paper is silent, here: latents are the l2-normalised code-dimensional ones, the mean is
over dimensions, positions and batch, the target is not detached, and the first latent is predicted from a
learned start.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.settings import CrtSettings
from models.transformer import CausalTransformer


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x unchanged; its gradient times `scale` (0 detaches it)."""
    return _ScaledGradient.apply(x, scale) if scale else x.detach()


class CausalPredictor(nn.Module):
    """f: latents [batch, T, dim] -> predictions [batch, T, dim], prediction i made from latents before i."""

    def __init__(self, settings: CrtSettings, dim: int, grid: int) -> None:
        super().__init__()
        shape = settings.shape()
        self.start = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.embed = nn.Linear(dim, shape.width, bias=False)
        self.stack = CausalTransformer(shape, grid)
        self.head = nn.Linear(shape.width, dim, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, latents: Tensor) -> Tensor:
        start = self.start.expand(len(latents), -1, -1)
        return self.head(self.stack(torch.cat([start, self.embed(latents[:, :-1])], dim=1)))


def crt_loss(predictor: CausalPredictor, latents: Tensor, weight: float) -> Tensor:
    """Mean squared error of the next latent, for latents [batch, T, dim].

    The gradient reaches the predictor at weight 1 and the latents, as context and as target, at `weight`.
    """
    seen = scale_gradient(latents.float(), weight)
    return (predictor(seen) - seen).square().mean()


@torch.no_grad()
def predictability(predictor: CausalPredictor, latents: Tensor) -> float:
    """R^2 = 1 - MSE / Var of the next-latent prediction, the variance about each dimension's mean; 0 where it is 0."""
    latents = latents.float()
    error = (predictor(latents) - latents).square().mean()
    variance = (latents - latents.mean(dim=(0, 1))).square().mean()
    return float(1 - error / variance) if variance > 0 else 0.0
