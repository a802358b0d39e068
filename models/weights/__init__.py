"""Weights that ship with the package, and their hashes. No torch here; the networks are in `models.features`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TRAINED = "cnn"  # trained on the data at hand, as a stage
TRAINED_RECIPE = 1  # raised when the network `cnn` or its loss changes


def shipped_path(name: str) -> Path:
    """Where a shipped network's weights lie. Raises KeyError, with the names that ship, for any other name."""
    path = Path(__file__).with_name(f"{name}.safetensors")
    if "@" not in name or not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors")))
        raise KeyError(f"no weights named {name!r} ship with the package; there are: {names or 'none'}")
    return path


@cache
def shipped_hash(name: str) -> str:
    """What identifies features in a fingerprint: the weights' hash, or the recipe of those trained as a stage.

    Raises KeyError for a name that does not ship.
    """
    if name == TRAINED:
        return f"{TRAINED}-recipe-{TRAINED_RECIPE}"
    return tensor_hash(load_file(shipped_path(name)))


def tensor_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and little-endian bytes, in the order of names; no file's header enters."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {values.dtype.name} {values.shape}\n".encode() + values.tobytes())
    return digest.hexdigest()
