"""Shapes of transformers, their counts, and the names that sizes go by. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pydantic import Field, model_validator

from models.fields import Settings

PAPER_SIZES: Mapping[str, tuple[int, int, int]] = {  # name: (width, layers, heads), paper Table 2
    "52M": (640, 6, 10),
    "81M": (704, 9, 11),
    "111M": (768, 12, 12),
    "212M": (896, 18, 14),
    "343M": (1024, 24, 16),
    "517M": (1152, 30, 18),
    "775M": (1280, 36, 20),
}


class TransformerShape(Settings):
    """Width, depth and heads of a Llama-style stack; SwiGLU hidden size follows from the width."""

    width: int = Field(..., ge=8, description="model width d")
    layers: int = Field(..., ge=1, description="blocks")
    heads: int = Field(..., ge=1, description="attention heads")
    multiple_of: int = Field(16, ge=1, description="SwiGLU hidden size is 8/3 d rounded up to this")

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerShape:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}")
        if (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads is {self.width // self.heads} dimensions a head; "
                "2-D RoPE needs a multiple of 4"
            )
        return self

    @property
    def hidden(self) -> int:
        """SwiGLU hidden size: 8/3 d rounded up (Llama; LlamaGen rounds to 256)."""
        return self.multiple_of * math.ceil(int(8 * self.width / 3) / self.multiple_of)

    def block_matmul_params(self) -> int:
        """Weights of all matrix products in the stack: attention 4 d^2 and SwiGLU 3 d h a layer."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.hidden)

    def norm_params(self) -> int:
        """RMSNorm gains: two a layer, the query and key norms a head dimension each, one at the end."""
        return self.layers * (2 * self.width + 2 * (self.width // self.heads)) + self.width

    def forward_flops(self, tokens: int) -> int:
        """Exact matmul FLOPs of the stack on one sequence of `tokens` positions (attention's square in full)."""
        return 2 * self.block_matmul_params() * tokens + 4 * self.layers * tokens**2 * self.width


def parse_size(size: str | Mapping[str, int] | TransformerShape) -> TransformerShape:
    """A generator's shape from a name (`111M`), `WIDTHxLAYERS`, or {width, layers, heads}.

    Without `heads`, a head has 16 dimensions below width 128, 32 below 512, 64 above. Raises ValueError.
    """
    if isinstance(size, TransformerShape):
        return size
    if isinstance(size, Mapping):
        unknown = set(size) - {"width", "layers", "heads"}
        if unknown or not {"width", "layers"} <= set(size):
            raise ValueError(f"size {dict(size)} must have the keys width and layers, and may have heads")
        if not all(isinstance(value, int) for value in size.values()):
            raise ValueError(f"size {dict(size)}: width, layers and heads are whole numbers")
        return _shape(size["width"], size["layers"], size.get("heads"))
    if size in PAPER_SIZES:
        width, layers, heads = PAPER_SIZES[size]
        return _shape(width, layers, heads)
    match = re.fullmatch(r"(\d+)x(\d+)", str(size))
    if not match:
        names = ", ".join(PAPER_SIZES)
        raise ValueError(
            f"size {size!r} is neither WIDTHxLAYERS (64x3), a name ({names}), nor {{width, layers, heads}}"
        )
    return _shape(int(match[1]), int(match[2]), None)


def _shape(width: int, layers: int, heads: int | None) -> TransformerShape:
    if heads is None:
        head = 16 if width < 128 else 32 if width < 512 else 64
        if width % head:
            raise ValueError(
                f"width {width} is no multiple of its {head} dimensions a head; give {{width, layers, heads}}"
            )
        heads = width // head
    return TransformerShape(width=width, layers=layers, heads=heads, multiple_of=256 if width >= 512 else 16)
