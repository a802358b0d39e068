"""The three splits of every image source, and the error that images which cannot be used raise."""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "validation", "held-out")
SPLIT_TENTHS = (8, 1, 1)  # of ten equally likely hash values


class DataError(ValueError):
    """Images that cannot be used as asked for: one line that says what, where, and what to do."""


def split_number(split: str) -> int:
    """Position of a split's name in SPLITS. Raises DataError for any other name."""
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: the splits are {', '.join(SPLITS)}")
    return SPLITS.index(split)


def split_of(tenths: np.ndarray) -> np.ndarray:
    """Split numbers [n] of values 0 .. 9 [n]."""
    return np.searchsorted(np.cumsum(SPLIT_TENTHS), tenths, side="right")


def checked_indices(indices: np.ndarray, size: int | None, split: str) -> np.ndarray:
    """`indices` as int64 [n]. Raises DataError where one is negative or at `size` or above."""
    checked = np.asarray(indices)
    if checked.ndim != 1 or not (np.issubdtype(checked.dtype, np.integer) or checked.size == 0):
        raise DataError(f"indices must be a row of integers, got {checked.dtype} of shape {checked.shape}")
    checked = checked.astype(np.int64)
    if checked.size and (checked.min() < 0 or (size is not None and checked.max() >= size)):
        worst = int(checked.min() if checked.min() < 0 else checked.max())
        limit = "any index from 0" if size is None else f"{size} images"
        raise DataError(f"no image {worst} in split {split!r}, which has {limit}")
    return checked
