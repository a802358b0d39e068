"""`shapes`: a procedural source of class-conditional scenes, unlimited and rendered at any resolution.

A scene is a tuple of factors: a background gradient, its direction and texture, and one to three objects, each with
kind, colour, place and size. Objects of a scene stand in a row (wider than high, numbered from left to right) or in
a column (higher than wide, from top to bottom), so that which is object 0 can be seen, and none covers another. The
class is the kind of object 0 with the arrangement. Factors follow Zipf distributions; the later objects prefer other
colours and kinds than object 0.

Every scene belongs to one split by a hash of its factors, so the splits share none. An image is a pure function of
(seed, split, index): counter-based randomness (SplitMix64, Steele et al. 2014, doi 10.1145/2660193.2660195) draws
factors again until the scene is valid and falls in the split. The draws of the class are kept, so class
probabilities are exact and equal in all splits. Rendering is in `models.rendering`. No file, no torch, no state.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from models.rendering import DIRECTIONS, render
from models.settings import SceneSettings
from models.splits import SPLITS, DataError, checked_indices, split_number, split_of

RECIPE = 1  # raised when the same (seed, split, index) gives other pixels
KINDS = ("disc", "square", "triangle", "cross", "ring")
ARRANGEMENTS = ("alone", "in a row", "in a column")
ALONE, ROW, COLUMN = range(3)
PLACES = (0.22, 0.78)  # where the first and last grid positions lie, in image sides
RADII = (0.13, 0.22)  # smallest and largest object, in image sides
CROWDED = 0.75  # radii shrink to this where scenes may have three objects
GAP = 0.03  # least distance between two objects' circles
MAX_TRIES = 4_000
DRAW_CHUNK = 1 << 14  # scenes drawn at once: bounds the memory of choosing among grid positions
ENTROPY_CHUNKS = 8

_GOLDEN = 0x9E3779B97F4A7C15  # odd 64-bit constants: streams of fields and of tries
_TRY = 0xD1B54A32D192ED03


class Shapes:
    """The source (an `ImageSource`) of one set of scene knobs."""

    def __init__(self, settings: SceneSettings, seed: int = 0) -> None:
        """Raises DataError where the knobs leave some class without a scene in some split."""
        self.settings, self.seed = settings, seed
        low, high = settings.objects
        self._counts = np.arange(high, low - 1, -1)  # more objects are the more frequent
        self._arrangements = [a for a in (ALONE, ROW, COLUMN) if (low == 1 if a == ALONE else high > 1)]
        scale = CROWDED if high == 3 else 1.0
        self.radii = scale * np.linspace(*RADII, settings.sizes)
        self.places = np.linspace(*PLACES, settings.grid)
        self._set_geometry()
        self._tables = {n: _thresholds(n, settings.zipf) for n in self._table_lengths()}
        self._check()

    def _set_geometry(self) -> None:
        """Weights of the cells (grid positions, row by row), and which cells an object may take beside another.

        _clear[size, size', cell, cell']: the two keep their distance; _next[arrangement - 1, ...]: and the second
        lies to the right of (row) or below (column) the first.
        """
        grid = self.settings.grid
        cells = np.arange(grid**2)
        ends = _thresholds(grid**2, self.settings.zipf)
        self._cell_weight = np.empty(grid**2, dtype=np.uint64)
        self._cell_weight[np.argsort(_mix(cells.astype(np.uint64) + np.uint64(1)))] = np.diff(
            ends, prepend=np.uint64(0)
        )
        x, y = cells % grid, cells // grid
        dx, dy = x[None, :] - x[:, None], y[None, :] - y[:, None]
        reach = (self.radii[:, None] + self.radii[None, :] + GAP) / (self.places[1] - self.places[0])
        self._clear = (dx * dx + dy * dy)[None, None] >= (reach**2)[:, :, None, None]
        self._next = np.stack([dx > 0, dy > 0])[:, None, None] & self._clear[None]

    def _table_lengths(self) -> set[int]:
        s = self.settings
        return {s.kinds, s.colors, s.sizes, s.backgrounds, DIRECTIONS, s.textures, len(self._counts)}

    def _check(self) -> None:
        """Every class and number of objects has a scene in every split."""
        cases = [
            (count, arrangement, kind)
            for count in self._counts
            for arrangement in self._arrangements
            for kind in range(self.settings.kinds)
            if (count == 1) == (arrangement == ALONE)
        ]
        count, arrangement, kind = (np.array(column, dtype=np.int64) for column in zip(*cases, strict=True))
        for split in range(len(SPLITS)):
            given = {"objects": count, "arrangement": arrangement, "kind_0": kind}
            self._complete(given, _keys(self.seed, split, np.arange(len(cases), dtype=np.int64)), split)

    # ------------------------------------------------------------------------------------- the source

    @property
    def classes(self) -> int:
        return self.settings.kinds * len(self._arrangements)

    @property
    def class_names(self) -> tuple[str, ...]:
        kinds = KINDS[: self.settings.kinds]
        return tuple(f"{kind} {ARRANGEMENTS[a]}" for kind in kinds for a in self._arrangements)

    def identity(self) -> dict[str, Any]:
        return {"source": "shapes", "recipe": RECIPE, "seed": self.seed, "scene": self.settings.identity()}

    def size(self, split: str) -> int | None:
        split_number(split)
        return None

    def labels(self, split: str, indices: np.ndarray) -> np.ndarray:
        given = self._given(_keys(self.seed, split_number(split), checked_indices(indices, None, split)))
        return given["kind_0"] * len(self._arrangements) + np.searchsorted(self._arrangements, given["arrangement"])

    def images(self, split: str, indices: np.ndarray, resolution: int) -> np.ndarray:
        return self.render(self.factors(split, indices), resolution)

    def label_probabilities(self) -> np.ndarray:
        """Probability of each class, float64 [classes]; the same in every split."""
        counts = _zipf(len(self._counts), self.settings.zipf)
        alone = float(counts[self._counts == 1].sum())
        arrangements = np.array([alone if a == ALONE else (1 - alone) / 2 for a in self._arrangements])
        return np.outer(_zipf(self.settings.kinds, self.settings.zipf), arrangements).reshape(-1)

    # ------------------------------------------------------------------------------------- drawing

    def factors(self, split: str, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The scenes' factors, each int64 [n]; of an object that a scene lacks, -1.

        objects (1 .. 3), arrangement (index into ARRANGEMENTS), background, direction, texture, and for every object
        i the settings allow: kind_i (index into KINDS), color_i, x_i and y_i (grid positions, y downwards), size_i.
        """
        number = split_number(split)
        keys = _keys(self.seed, number, checked_indices(indices, None, split))
        blocks = np.split(keys, range(DRAW_CHUNK, len(keys), DRAW_CHUNK))
        parts = [self._complete(self._given(block), block, number) for block in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _given(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """What the class decides, drawn once an image: objects, arrangement, kind_0."""
        count = self._counts[self._draw(keys, 0, len(self._counts))]
        column = (_word(keys, 1) >> np.uint64(31)).astype(np.int64)
        arrangement = np.where(count == 1, ALONE, ROW + column)
        return {"objects": count, "arrangement": arrangement, "kind_0": self._draw(keys, 2, self.settings.kinds)}

    def _complete(self, given: dict[str, np.ndarray], keys: np.ndarray, split: int | None) -> dict[str, np.ndarray]:
        """`given` with all other factors, drawn until valid and in `split` (None: in any)."""
        scenes: dict[str, np.ndarray] = {}
        open_rows = np.arange(len(keys))
        for number in range(MAX_TRIES):
            part = {name: values[open_rows] for name, values in given.items()}
            tried, room = self._try(part, _mix(keys[open_rows] + _times(number + 1, _TRY)))
            fits = room > 0
            if split is not None:
                fits &= split_of(_scene_tenths(tried)) == split
            for name, values in tried.items():
                if number == 0:
                    scenes[name] = values
                else:
                    scenes[name][open_rows[fits]] = values[fits]
            open_rows = open_rows[~fits]
            if not len(open_rows):
                return scenes
        row = int(open_rows[0])
        what = f"{given['objects'][row]} objects, {ARRANGEMENTS[given['arrangement'][row]]}"
        raise DataError(
            f"data.scene: no scene of {what} found{'' if split is None else ' in split ' + repr(SPLITS[split])} in "
            f"{MAX_TRIES:,} tries; raise grid, colors, sizes or backgrounds, or lower objects"
        )

    def _try(self, given: dict[str, np.ndarray], keys: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One draw of every factor but the given (-1 for objects beyond a scene's number), and the room there was.

        Room, float64 [n]: the product over the later objects of the probability of the cells they could take; 0
        where there was none or the arrangement is missed, so that the draw is void.
        """
        s = self.settings
        scenes = dict(given)
        scenes["background"] = self._draw(keys, 0, s.backgrounds)
        scenes["direction"] = self._draw(keys, 1, DIRECTIONS)
        scenes["texture"] = self._draw(keys, 2, s.textures)
        room = np.ones(len(keys))
        for i in range(s.objects[1]):
            field = 3 + 4 * i
            looks = {"color": self._draw(keys, field, s.colors), "size": self._draw(keys, field + 1, s.sizes)}
            if i:  # later objects prefer other kinds and colours
                kind = self._draw(keys, field + 2, s.kinds)
                looks["kind"] = (kind + i * (s.kinds // 2)) % s.kinds
                looks["color"] = (looks["color"] + i * (s.colors // 2)) % s.colors
            present = scenes["objects"] > i
            for name, values in looks.items():
                scenes[f"{name}_{i}"] = np.where(present, values, -1)
            rows = np.flatnonzero(present)
            cell, share = self._cell(scenes, i, rows, _word(keys[rows], field + 3))
            for name, values in (("x", cell % s.grid), ("y", cell // s.grid)):
                scenes[f"{name}_{i}"] = np.full(len(keys), -1)
                scenes[f"{name}_{i}"][rows] = values
            room[rows] *= share
        return scenes, np.where(self._arranged(scenes), room, 0.0)

    def _arranged(self, scenes: dict[str, np.ndarray]) -> np.ndarray:
        """Whether a row is wider than high and a column higher than wide; bool [n]."""
        spread = {}
        for axis in "xy":
            places = np.stack([scenes[f"{axis}_{i}"] for i in range(self.settings.objects[1])])
            absent = places < 0
            spread[axis] = np.where(absent, -1, places).max(axis=0) - np.where(absent, len(self.places), places).min(
                axis=0
            )
        signed = np.where(scenes["arrangement"] == ROW, spread["x"] - spread["y"], spread["y"] - spread["x"])
        return (signed > 0) | (scenes["arrangement"] == ALONE)

    def _cell(
        self, scenes: dict[str, np.ndarray], i: int, rows: np.ndarray, words: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells of object i of `rows` among those it may take, and the probability of all of these together."""
        size = scenes[f"size_{i}"][rows]
        weights = np.broadcast_to(self._cell_weight, (len(rows), len(self._cell_weight)))
        for j in range(i):
            places = (
                scenes[f"size_{j}"][rows],
                size,
                scenes[f"y_{j}"][rows] * self.settings.grid + scenes[f"x_{j}"][rows],
            )
            allowed = self._next[(scenes["arrangement"][rows] - 1, *places)] if j == i - 1 else self._clear[places]
            weights = weights * allowed
        ends = np.cumsum(weights, axis=1)
        target = (words * ends[:, -1]) >> np.uint64(32)
        cell = np.minimum((ends <= target[:, None]).sum(axis=1), len(self._cell_weight) - 1)
        return cell, ends[:, -1] / 2.0**32

    def _draw(self, keys: np.ndarray, field: int, choices: int) -> np.ndarray:
        """Zipf-distributed int64 [n] in 0 .. choices - 1."""
        return np.searchsorted(self._tables[choices], _word(keys, field), side="right")

    # ------------------------------------------------------------------------------------- information

    def entropy_bits(self) -> float:
        """Entropy of a scene in bits, over all splits.

        Exact for what is drawn independently. For places and sizes it is H = log2 P(valid) + E[-log2 q | valid], where
        q is the probability of a draw before void ones are left out, estimated from fixed draws to about 0.01 bits.
        """
        s = self.settings
        bits = _entropy(_zipf(s.backgrounds, s.zipf)) + _entropy(_zipf(DIRECTIONS, s.zipf))
        bits += _entropy(_zipf(s.textures, s.zipf)) + _entropy(_zipf(s.kinds, s.zipf))
        counts = _zipf(len(self._counts), s.zipf)
        bits += _entropy(counts)
        looks = _entropy(_zipf(s.colors, s.zipf))
        for count, probability in zip(self._counts, counts, strict=True):
            each = count * looks + (count - 1) * _entropy(_zipf(s.kinds, s.zipf))
            arrangements = (ALONE,) if count == 1 else (ROW, COLUMN)
            geometry = float(np.mean([self._geometry_bits(int(count), a) for a in arrangements]))
            bits += float(probability) * (math.log2(len(arrangements)) + each + geometry)
        return bits

    def _geometry_bits(self, count: int, arrangement: int) -> float:
        """Entropy in bits of the places and sizes of `count` objects in one arrangement."""
        cell_share = self._cell_weight / 2.0**32
        size_share = _zipf(self.settings.sizes, self.settings.zipf)
        given = {"objects": count, "arrangement": arrangement, "kind_0": 0}
        valid_draws, surprise = 0, 0.0
        for chunk in range(ENTROPY_CHUNKS):
            indices = np.arange(chunk * DRAW_CHUNK, (chunk + 1) * DRAW_CHUNK, dtype=np.int64)
            keys = _keys(self.seed, len(SPLITS), indices)
            scenes, room = self._try({name: np.full(DRAW_CHUNK, value) for name, value in given.items()}, keys)
            valid = room > 0
            valid_draws += int(valid.sum())
            surprise += float(np.log2(room[valid]).sum())
            for i in range(count):
                cell = (scenes[f"y_{i}"] * self.settings.grid + scenes[f"x_{i}"])[valid]
                surprise -= float(np.log2(cell_share[cell] * size_share[scenes[f"size_{i}"][valid]]).sum())
        return math.log2(valid_draws / (ENTROPY_CHUNKS * DRAW_CHUNK)) + surprise / valid_draws

    # ------------------------------------------------------------------------------------- rendering

    def render(self, scenes: dict[str, np.ndarray], resolution: int) -> np.ndarray:
        """uint8 [n, 3, R, R] of factors [n] as `factors` gives them."""
        return render(scenes, resolution, self.places, self.radii)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: uint64 [n] to uint64 [n]."""
    z = values ^ (values >> np.uint64(30))
    z = z * np.uint64(0xBF58476D1CE4E5B9)
    z = z ^ (z >> np.uint64(27))
    z = z * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(seed: int, split: int, indices: np.ndarray) -> np.ndarray:
    """One random 64-bit key an image, uint64 [n]."""
    base = _mix(np.full(1, seed % 2**64, dtype=np.uint64) + np.uint64(_GOLDEN))
    base = _mix(base + _times(split + 1, _TRY))
    return _mix(base + indices.astype(np.uint64) * np.uint64(_GOLDEN))


def _word(keys: np.ndarray, field: int) -> np.ndarray:
    """Random 32-bit words, uint64 [n], one a key and field."""
    return _mix(keys + _times(field + 1, _GOLDEN)) >> np.uint64(32)


def _times(count: int, constant: int) -> np.uint64:
    """The product modulo 2^64."""
    return np.uint64(count * constant % 2**64)


def _zipf(choices: int, exponent: float) -> np.ndarray:
    """Probabilities proportional to 1 / rank^exponent, float64 [choices]."""
    weights = np.arange(1, choices + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _thresholds(choices: int, exponent: float) -> np.ndarray:
    """Upper ends, in 32-bit words, of the ranges that stand for each choice; uint64 [choices]."""
    ends = np.rint(np.cumsum(_zipf(choices, exponent)) * 2**32).astype(np.uint64)
    ends[-1] = np.uint64(2**32)
    return ends


def _entropy(probabilities: np.ndarray) -> float:
    return float(-(probabilities * np.log2(probabilities)).sum())


def _scene_tenths(scenes: dict[str, np.ndarray]) -> np.ndarray:
    """A hash 0 .. 9 of the whole tuple of factors, int64 [n]."""
    state = np.zeros(len(scenes["objects"]), dtype=np.uint64)
    for name in sorted(scenes):
        state = _mix(state + (scenes[name] + 2).astype(np.uint64) * np.uint64(_GOLDEN))
    return (state % np.uint64(10)).astype(np.int64)
