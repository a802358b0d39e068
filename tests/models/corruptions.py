"""Graded ways to spoil images of scenes, for tests of the features: what a generator gets wrong, made by hand."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from models.shapes import Shapes

Corruption = Callable[[Shapes, dict[str, np.ndarray], float], np.ndarray]
SIDE = 16


def blur(source: Shapes, scenes: dict[str, np.ndarray], sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` pixels."""
    images = source.render(scenes, SIDE).astype(np.float64)
    return np.rint(gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")).astype(np.uint8)


def noise(source: Shapes, scenes: dict[str, np.ndarray], deviation: float) -> np.ndarray:
    """Gaussian noise of `deviation` levels of 255."""
    images = source.render(scenes, SIDE)
    added = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + added), 0, 255).astype(np.uint8)


def shuffled_patches(source: Shapes, scenes: dict[str, np.ndarray], patches: float) -> np.ndarray:
    """That many of the sixteen 4 x 4 patches change places, in a cycle."""
    images = source.render(scenes, SIDE)
    generator = np.random.default_rng(0)
    for image in images:
        tiles = image.reshape(3, 4, 4, 4, 4).transpose(1, 3, 0, 2, 4).reshape(16, 3, 4, 4)
        chosen = generator.permutation(16)[: int(patches)]
        tiles[chosen] = tiles[np.roll(chosen, 1)]
        image[:] = tiles.reshape(4, 4, 3, 4, 4).transpose(2, 0, 3, 1, 4).reshape(3, SIDE, SIDE)
    return images


def removed_objects(source: Shapes, scenes: dict[str, np.ndarray], share: float) -> np.ndarray:
    """The last object is missing in a share of the images."""
    spoiled = {name: values.copy() for name, values in scenes.items()}
    rows = np.arange(len(scenes["objects"])) < share * len(scenes["objects"])
    for i in range(source.settings.objects[1]):
        spoiled[f"kind_{i}"][rows & (scenes["objects"] == i + 1)] = -1
    return source.render(spoiled, SIDE)


def swapped_colors(source: Shapes, scenes: dict[str, np.ndarray], share: float) -> np.ndarray:
    """The two objects of a scene exchange their colours, in a share of the scenes that have two."""
    spoiled = {name: values.copy() for name, values in scenes.items()}
    two = np.flatnonzero(scenes["objects"] == 2)
    rows = two[: int(share * len(two))]
    spoiled["color_0"][rows], spoiled["color_1"][rows] = scenes["color_1"][rows], scenes["color_0"][rows]
    return source.render(spoiled, SIDE)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "blur": (blur, (0.35, 0.5, 0.8, 1.2)),
    "noise": (noise, (4, 8, 16, 32)),
    "shuffled patches": (shuffled_patches, (2, 4, 8, 16)),
    "removed objects": (removed_objects, (0.1, 0.25, 0.5, 1)),
    "swapped colours": (swapped_colors, (0.25, 0.5, 1)),
}
