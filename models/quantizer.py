"""Vector quantiser of stage 1: l2-normalised codes, straight-through gradients, relative dead-code revival.

Learnable codes with a commitment term (VQ-VAE, arXiv 1711.00937; factorised and cosine as in ViT-VQGAN and
LlamaGen). Distances are taken in fp32 and in chunks, so the N x K matrix is never built whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 2**24  # entries of the distance matrix held at once


@dataclass
class Quantized:
    """codes: [..., dim], gradients straight through; ids: int64 [...]; loss: codebook + beta * commitment, a scalar."""

    codes: Tensor
    ids: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest code on the unit sphere."""

    use: Tensor

    def __init__(self, codebook_size: int, dim: int, commitment: float) -> None:
        super().__init__()
        self.codebook_size, self.commitment = codebook_size, commitment
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, dim), dim=-1))
        self.register_buffer("use", torch.full((codebook_size,), 1.0 / codebook_size))

    def codes(self) -> Tensor:
        """The normalised codebook, fp32 [K, dim]."""
        return F.normalize(self.codebook.float(), dim=-1)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Nearest code of unit latents [N, dim]: int64 [N]. On the sphere the nearest has the largest dot product."""
        codes = self.codes()
        rows = max(1, CHUNK // self.codebook_size)
        return torch.cat([(part @ codes.T).argmax(dim=1) for part in latents.float().split(rows)])

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise unit latents [..., dim]. Losses are means over dimensions, positions and batch."""
        flat = latents.float().reshape(-1, latents.shape[-1])
        ids = self.nearest(flat)
        codes = F.embedding(ids, self.codes())
        loss = F.mse_loss(codes, flat.detach()) + self.commitment * F.mse_loss(flat, codes.detach())
        straight = flat + (codes - flat).detach()
        return Quantized(straight.view_as(latents), ids.view(latents.shape[:-1]), loss)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of ids [...]: [..., dim]."""
        return F.embedding(ids, self.codes())

    @torch.no_grad()
    def track(self, ids: Tensor, decay: float) -> None:
        """Update the running share of use of each code from a batch's ids."""
        counts = torch.bincount(ids.flatten(), minlength=self.codebook_size).to(self.use)
        self.use.mul_(decay).add_(counts / counts.sum(), alpha=1 - decay)

    @torch.no_grad()
    def revive(self, latents: Tensor, below: float, generator: torch.Generator) -> Tensor:
        """Move codes used less than `below` of uniform onto random latents [N, dim] of the batch; returns their ids.

        Their running use starts again at uniform; the caller resets their optimiser moments.
        """
        dead = (self.use < below / self.codebook_size).nonzero().flatten()
        if len(dead):
            flat = latents.float().reshape(-1, latents.shape[-1])
            chosen = torch.randint(len(flat), (len(dead),), generator=generator).to(flat.device)
            self.codebook[dead] = flat[chosen].to(self.codebook)
            self.use[dead] = 1.0 / self.codebook_size
        return dead


def code_statistics(ids: Tensor, codebook_size: int) -> dict[str, float]:
    """`usage` (share of codes that occur), `perplexity` (exp of the marginal entropy) and `position_entropy`
    (mean over positions of the entropy there, in nats) of ids [images, T]."""
    counts = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    share = counts / counts.sum()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    per_position = []
    for column in ids.T:
        p = torch.bincount(column, minlength=codebook_size).double() / len(ids)
        per_position.append(-(p[p > 0] * p[p > 0].log()).sum())
    return {
        "usage": float((counts > 0).double().mean()),
        "perplexity": float(entropy.exp()),
        "position_entropy": float(torch.stack(per_position).mean()),
    }
