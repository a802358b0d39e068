"""From a scene's factors to pixels: what each kind, colour, background and texture looks like.

Only correctly rounded float32 operations (+ - * / sqrt), so that every machine renders the same bytes. All lengths
are in image sides, so a scene looks alike at any resolution; nothing random, nothing learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

KINDS = 5  # disc, square, triangle, cross, ring
DIRECTIONS = 4  # gradients run right, down, to the lower right, to the upper right
COLORS = np.array(
    [
        (235, 45, 55),  # red
        (255, 225, 50),  # yellow
        (45, 110, 255),  # blue
        (50, 205, 75),  # green
        (250, 250, 250),  # white
        (245, 70, 215),  # magenta
        (60, 230, 240),  # cyan
        (255, 140, 25),  # orange
    ],
    dtype=np.float32,
)
BACKGROUNDS = np.array(
    [
        ((16, 20, 52), (66, 76, 128)),  # navy
        ((52, 30, 14), (124, 84, 52)),  # brown
        ((8, 44, 26), (50, 116, 78)),  # forest
        ((48, 14, 54), (116, 64, 126)),  # plum
        ((44, 44, 44), (124, 124, 124)),  # grey
        ((4, 52, 62), (44, 124, 138)),  # teal
        ((70, 16, 22), (146, 72, 76)),  # maroon
        ((56, 54, 6), (128, 124, 48)),  # olive
    ],
    dtype=np.float32,
)
TEXTURE_LEVELS = 22.0  # amplitude of a texture, of 255
TEXTURE_PERIODS = 4  # across the image
CHUNK_PIXELS = 1 << 15  # images are rendered in chunks that stay in the processor's cache


def render(scenes: Mapping[str, np.ndarray], resolution: int, places: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """uint8 [n, 3, R, R] of factors [n] (`Shapes.factors`); edges antialiased by signed distance.

    places [grid] and radii [sizes] give the centres and sizes of objects in image sides.
    """
    places32, radii32 = places.astype(np.float32), radii.astype(np.float32)
    n = len(scenes["objects"])
    images = np.empty((n, 3, resolution, resolution), dtype=np.uint8)
    step = max(1, CHUNK_PIXELS // resolution**2)
    for start in range(0, n, step):
        chunk = {name: values[start : start + step] for name, values in scenes.items()}
        images[start : start + step] = _rendered(chunk, resolution, places32, radii32)
    return images


def _rendered(scenes: Mapping[str, np.ndarray], resolution: int, places: np.ndarray, radii: np.ndarray) -> np.ndarray:
    axis = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution)
    x, y = axis[None, :], axis[:, None]
    ends = BACKGROUNDS[scenes["background"]]
    along = _gradients(x, y)[scenes["direction"]][:, None]
    canvas = ends[:, 0, :, None, None] + (ends[:, 1] - ends[:, 0])[:, :, None, None] * along
    textured = np.flatnonzero(scenes["texture"])
    canvas[textured] += _textures(x, y)[scenes["texture"][textured]][:, None]
    objects = sum(name.startswith("kind_") for name in scenes)
    for i, kind in itertools.product(range(objects), range(KINDS)):
        rows = np.flatnonzero(scenes[f"kind_{i}"] == kind)
        if not len(rows):
            continue
        dx = x[None] - places[scenes[f"x_{i}"][rows]][:, None, None]
        dy = y[None] - places[scenes[f"y_{i}"][rows]][:, None, None]
        distance = _distance(kind, dx, dy, radii[scenes[f"size_{i}"][rows]][:, None, None])
        cover = np.clip(np.float32(0.5) - distance * np.float32(resolution), 0, 1)[:, None]
        below = canvas[rows]
        canvas[rows] = below + cover * (COLORS[scenes[f"color_{i}"][rows]][:, :, None, None] - below)
    return (np.clip(canvas, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _gradients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Position along each direction, 0 .. 1, float32 [DIRECTIONS, R, R]."""
    half, one = np.float32(0.5), np.float32(1)
    x, y = np.broadcast_arrays(x, y)
    return np.stack([x, y, (x + y) * half, (x + (one - y)) * half])


def _textures(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What each texture adds to a pixel, float32 [4, R, R]: nothing, stripes, checks, diagonal stripes."""
    u, v = _wave(x), _wave(y)
    flat = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    patterns = np.stack([flat, flat + v, np.float32(2) * u * v, _wave(x + y)])
    return patterns * np.float32(TEXTURE_LEVELS)


def _wave(position: np.ndarray) -> np.ndarray:
    """Triangle wave between -1 and 1."""
    phase = position * np.float32(TEXTURE_PERIODS)
    phase = phase - np.floor(phase)
    return np.abs(phase * np.float32(4) - np.float32(2)) - np.float32(1)


def _distance(kind: int, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside, exact near straight edges) to a shape of about equal area a kind."""
    f = np.float32
    if kind == 0:  # disc
        return np.sqrt(dx * dx + dy * dy) - radius
    if kind == 1:  # square of the disc's area
        return np.maximum(np.abs(dx), np.abs(dy)) - f(0.886) * radius
    if kind == 2:  # upright equilateral triangle around its centroid
        sides = np.abs(dx) * f(0.8660254) - dy * f(0.5)
        return np.maximum(sides, dy) - f(0.68) * radius
    if kind == 3:  # upright cross
        long, short = radius * f(1.08), radius * f(0.36)
        ax, ay = np.abs(dx), np.abs(dy)
        return np.minimum(np.maximum(ax - long, ay - short), np.maximum(ay - long, ax - short))
    middle, half = radius * f(0.8), radius * f(0.27)  # ring
    return np.abs(np.sqrt(dx * dx + dy * dy) - middle) - half
