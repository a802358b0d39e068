"""Stage 2: a class-conditional causal transformer over token ids, and its sampling.

LlamaGen's layout (arXiv 2406.06525): the class is the first position, the sequence is (class, x_1 .. x_(T-1))
and predicts (x_1 .. x_T); a null class, drawn by class dropout in training, serves classifier-free guidance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.settings import GeneratorSettings
from models.transformer import INIT_STD, CausalTransformer


class Generator(nn.Module):
    """Token ids int64 [batch, T] and classes int64 [batch] -> logits fp32 [batch, T, K]."""

    def __init__(self, settings: GeneratorSettings, codebook_size: int, classes: int, grid: int) -> None:
        super().__init__()
        width = settings.size.width
        self.tokens, self.classes, self.codebook_size = grid * grid, classes, codebook_size
        self.class_embedding = nn.Embedding(classes + 1, width)
        self.embedding = nn.Embedding(codebook_size, width)
        self.stack = CausalTransformer(settings.size, grid, settings.dropout)
        self.head = nn.Linear(width, codebook_size, bias=False)
        nn.init.normal_(self.class_embedding.weight, std=INIT_STD)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor, classes: Tensor) -> Tensor:
        first = self.class_embedding(classes)[:, None]
        return self.head(self.stack(torch.cat([first, self.embedding(ids[:, :-1])], dim=1))).float()

    def nll(self, ids: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy in nats of each token, [batch, T]."""
        logits = self(ids, classes)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)

    @torch.no_grad()
    def sample(self, classes: Tensor, uniforms: Tensor, guidance: float = 1.0, temperature: float = 1.0) -> Tensor:
        """Draw ids int64 [batch, T] for classes [batch] by inverting the distribution at uniforms float64 [batch, T].

        guidance g mixes logits as unconditional + g (conditional - unconditional) (paper A.3); 1 costs no second pass.
        The same uniforms give the same tokens from the same model, and paired tokens from two models.
        """
        batch, guided = len(classes), guidance != 1.0
        first = torch.cat([classes, torch.full_like(classes, self.classes)]) if guided else classes
        x = self.class_embedding(first)[:, None]
        caches = self.stack.caches(len(first), x)
        drawn = []
        for position in range(self.tokens):
            logits = self.head(self.stack.step(x, position, caches))[:, 0].float()
            if guided:
                conditional, unconditional = logits[:batch], logits[batch:]
                logits = unconditional + guidance * (conditional - unconditional)
            token = invert(torch.softmax(logits / temperature, dim=-1), uniforms[:, position])
            drawn.append(token)
            x = self.embedding(token.repeat(2) if guided else token)[:, None]
        return torch.stack(drawn, dim=1)

    def count_params(self) -> dict[str, int]:
        """Parameters by group, as `GeneratorSettings.params` counts them."""
        groups = {"body": self.stack, "head": self.head, "embedding": self.embedding, "classes": self.class_embedding}
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in groups.items()}
        assert sum(counts.values()) == sum(p.numel() for p in self.parameters())
        return counts


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Smallest index whose cumulative probability exceeds the uniform: [batch, K] and [batch] -> int64 [batch]."""
    cumulative = probabilities.double().cumsum(dim=-1)
    targets = (uniforms.to(cumulative) * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, targets, right=True).clamp_(max=probabilities.shape[-1] - 1)[:, 0]


def sampling_noise(seed: int, indices: np.ndarray, tokens: int) -> np.ndarray:
    """Uniforms in [0, 1), float64 [len(indices), tokens]: each a pure function of (seed, image index, position).

    SplitMix64 (Steele et al. 2014) over a counter, so that batch size, order and device change no image.
    """
    with np.errstate(over="ignore"):
        stream = np.uint64(seed + 1) * np.uint64(0xD1342543DE82EF95)
        counter = stream ^ (indices.astype(np.uint64)[:, None] << np.uint64(20))
        state = _mix(_mix(counter) + np.arange(1, tokens + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
