"""Names of arms, generators and runs: short, exact, and the same when values are added to a plan's axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.settings import GeneratorSettings
from models.sizes import PAPER_SIZES, TransformerShape, parse_size

_ALWAYS_NAMED = ("size", "images_seen")  # every run's name has these, by value alone


def arm_name(declared: str, axes: Mapping[str, Any]) -> str:
    """The name of one stage-1 setting: `base`, `codebook_size=64,crt_weight=0.1`, or `base,codebook_size=64`."""
    parts = [f"{path}={label(value)}" for path, value in axes.items()]
    return ",".join(([declared] if declared else []) + parts)


def generator_name(generator: GeneratorSettings, axes: Mapping[str, Any]) -> str:
    """Size and length always, then the other axes the plan sweeps: `64x3/32k/batch_images=64`."""
    others = [f"{path}={label(value)}" for path, value in axes.items() if path not in _ALWAYS_NAMED]
    parts = [size_name(generator.size), count_name(generator.images_seen)]
    return "/".join(parts + ([",".join(others)] if others else []))


def label(value: Any) -> str:
    """A value as a name shows it: exact and short."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return size_name(value) if isinstance(value, TransformerShape) else str(value)


def count_name(count: int) -> str:
    """64000 as 64k, 11500000 as 11.5M; in full where two decimals would not be exact (65536)."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= unit:
            exact = count % (unit // 100) == 0
            return f"{count / unit:.2f}".rstrip("0").rstrip(".") + suffix if exact else str(count)
    return str(count)


def size_name(shape: TransformerShape) -> str:
    """A name of the paper (`111M`), `64x3`, or `64x3h8` where heads differ from what `parse_size` chooses."""
    for name in (*PAPER_SIZES, f"{shape.width}x{shape.layers}"):
        if _reads_as(name, shape):
            return name
    name = f"{shape.width}x{shape.layers}h{shape.heads}"
    exact = _reads_as({"width": shape.width, "layers": shape.layers, "heads": shape.heads}, shape)
    return name if exact else f"{name}m{shape.multiple_of}"


def _reads_as(size: str | Mapping[str, int], shape: TransformerShape) -> bool:
    try:
        return parse_size(size) == shape
    except ValueError:  # the rule gives this width no whole number of heads
        return False
