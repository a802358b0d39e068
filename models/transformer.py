"""The Llama-style causal stack shared by the generator (stage 2) and the CRT predictor (stage 1).

RMSNorm, QK-norm, 2-D rotary positions and SwiGLU, no biases (LlamaGen, arXiv 2406.06525; the paper adds
QK-norm, A.2). Input embeddings and output heads belong to the callers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sizes import TransformerShape

ROPE_BASE = 10_000.0
INIT_STD = 0.02


def rotary_table(grid: int, head_dim: int) -> Tensor:
    """Rotation angles [1 + grid^2 - 1, head_dim / 2] of a sequence (class, x_1 .. x_(T-1)) in raster order.

    Half of a head's pairs turn with the row, half with the column; position 0 (the class, or the learned
    first latent) is not turned. Angles as in RoPE (arXiv 2104.09864) with base 10,000.
    """
    per_axis = head_dim // 4
    frequencies = ROPE_BASE ** (-torch.arange(per_axis, dtype=torch.float32) / per_axis)
    cells = torch.arange(grid * grid - 1)
    rows, columns = (cells // grid + 1).float(), (cells % grid + 1).float()
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
    return torch.cat([torch.zeros(1, 2 * per_axis), angles])


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (first half, second half) of x [..., T, head_dim] by the table's angles [T, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class KVCache:
    """Keys and values of one layer, [batch, heads, T, head_dim] each, filled position by position."""

    def __init__(self, batch: int, heads: int, tokens: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_zeros(batch, heads, tokens, head_dim)
        self.values = torch.zeros_like(self.keys)

    def append(self, position: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position [batch, heads, 1, head_dim] and return all up to it."""
        self.keys[:, :, position : position + 1] = key
        self.values[:, :, position : position + 1] = value
        return self.keys[:, :, : position + 1], self.values[:, :, : position + 1]


class Attention(nn.Module):
    """Causal self-attention with normalised queries and keys."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.width // shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.qk_gain = nn.Parameter(torch.ones(2, self.head_dim))

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KVCache | None, position: int) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        # queries and keys are normalised and turned together: half the kernel launches of a small model
        gain = self.qk_gain[:, None, None, None]
        query, key = rotate(F.rms_norm(qkv[:2], (self.head_dim,), eps=1e-5) * gain, cosine, sine)
        value = qkv[2]
        if cache is not None:
            key, value = cache.append(position, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """Gated feed-forward layer, silu(x W1) * (x W3) W2, with W1 and W3 as one matrix."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.width, 2 * shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each a residual branch."""

    def __init__(self, shape: TransformerShape, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.feed_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.feed = SwiGLU(shape)
        self.dropout = dropout

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KVCache | None, position: int) -> Tensor:
        x = x + self._drop(self.attention(self.attention_norm(x), cosine, sine, cache, position))
        return x + self._drop(self.feed(self.feed_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class CausalTransformer(nn.Module):
    """Stack of blocks with a final norm: [batch, T, width] -> [batch, T, width], position i sees 0..i only.

    T is a square number: the positions are a raster. `grid` is the side of the sequences that `step` makes.
    """

    def __init__(self, shape: TransformerShape, grid: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.grid = shape, grid
        blocks = [Block(shape, dropout) for _ in range(shape.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self.apply(_init_linear)
        for block in blocks:
            for branch in (block.attention.out, block.feed.down):
                nn.init.normal_(branch.weight, std=INIT_STD / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        cosine, sine = self._rotations(math.isqrt(x.shape[1]), x.device)
        for block in self.blocks:
            x = block(x, cosine, sine, None, 0)
        return self.norm(x)

    def _rotations(self, grid: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions of a grid, made once a grid and device."""
        key = (grid, device)
        if key not in self._tables:
            angles = rotary_table(grid, self.shape.width // self.shape.heads).to(device)
            self._tables[key] = (angles.cos(), angles.sin())
        return self._tables[key]

    def caches(self, batch: int, like: Tensor) -> list[KVCache]:
        """Empty caches, one a layer, for `batch` sequences of up to T positions."""
        shape = self.shape
        return [KVCache(batch, shape.heads, self.grid**2, shape.width // shape.heads, like) for _ in self.blocks]

    def step(self, x: Tensor, position: int, caches: list[KVCache]) -> Tensor:
        """One position [batch, 1, width] -> [batch, 1, width], reading and filling the caches."""
        cosine, sine = (table[position : position + 1] for table in self._rotations(self.grid, x.device))
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cosine, sine, cache, position)
        return self.norm(x)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
