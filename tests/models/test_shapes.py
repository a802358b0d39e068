"""The procedural source: determinism, disjoint splits, probabilities, entropy, looks."""

import hashlib
import itertools

import numpy as np
import pytest

from models.data import SPLITS, DataError, ImageSource, open_source
from models.settings import DataSettings, SceneSettings
from models.shapes import Shapes


@pytest.fixture(scope="module")
def source() -> Shapes:
    return Shapes(SceneSettings())


def scene_tuples(factors: dict[str, np.ndarray]) -> set[tuple[int, ...]]:
    return set(map(tuple, np.stack([factors[name] for name in sorted(factors)], axis=1).tolist()))


def test_shapes_is_an_image_source_of_classes_with_names(source: Shapes) -> None:
    opened = open_source(DataSettings())
    assert isinstance(opened, ImageSource)
    assert opened.identity() == source.identity()
    assert opened.classes == len(opened.class_names) == len(set(opened.class_names)) == 15
    assert opened.class_names[4] == "square in a row"
    assert all(opened.size(split) is None for split in SPLITS)


def test_an_image_is_the_same_in_any_batch_order_and_source(source: Shapes) -> None:
    indices = np.array([7, 300, 7, 2, 123_456_789_012])
    together = source.images("held-out", indices, 16)
    again = Shapes(SceneSettings())
    alone = np.concatenate([again.images("held-out", indices[i : i + 1], 16) for i in range(len(indices))])
    assert together.dtype == np.uint8
    assert together.shape == (5, 3, 16, 16)
    assert (together == alone).all()
    assert (together[0] == together[2]).all()
    reordered = source.images("held-out", indices[::-1].copy(), 16)
    assert (reordered[::-1] == together).all()


def test_pixels_are_those_of_the_recorded_recipe(source: Shapes) -> None:
    digest = hashlib.sha256()
    for split, resolution in itertools.product(SPLITS, (16, 24)):
        digest.update(source.images(split, np.arange(256), resolution).tobytes())
    assert digest.hexdigest() == "843bb4e0cdd11ae6287c492c108b5a7f8d952b84ce8cfd176dffad45d958f0ec", (
        "pixels changed: raise shapes.RECIPE, then record"
    )


def test_seed_split_and_index_each_change_the_scene(source: Shapes) -> None:
    base = source.images("train", np.arange(64), 16)
    for other in (
        Shapes(SceneSettings(), seed=1).images("train", np.arange(64), 16),
        source.images("validation", np.arange(64), 16),
        source.images("train", np.arange(64, 128), 16),
    ):
        assert (base != other).any(axis=(1, 2, 3)).mean() > 0.95


@pytest.mark.parametrize("scene", [SceneSettings(), SceneSettings(kinds=2, colors=3, grid=3, sizes=1, objects=(1, 1))])
def test_splits_share_no_scene(scene: SceneSettings) -> None:
    source = Shapes(scene)
    seen = {split: scene_tuples(source.factors(split, np.arange(8_000))) for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not seen[a] & seen[b]
    assert len(seen["train"]) > 100


def test_labels_are_the_factors_kind_and_arrangement_and_follow_the_stated_probabilities(source: Shapes) -> None:
    count = 40_000
    for split in SPLITS:
        factors = source.factors(split, np.arange(2_000))
        labels = source.labels(split, np.arange(count))
        assert labels.dtype == np.int64
        assert (labels[:2_000] == factors["kind_0"] * 3 + factors["arrangement"]).all()
        expected = source.label_probabilities()
        assert expected.sum() == pytest.approx(1)
        error = np.sqrt(expected * (1 - expected) / count)
        assert (np.abs(np.bincount(labels, minlength=15) / count - expected) < 5 * error).all()


@pytest.mark.parametrize(("objects", "classes"), [((1, 1), 5), ((2, 2), 10), ((1, 3), 15), ((2, 3), 10)])
def test_arrangements_that_cannot_occur_are_no_classes(objects: tuple[int, int], classes: int) -> None:
    source = Shapes(SceneSettings(objects=objects))
    assert source.classes == len(source.label_probabilities()) == classes
    assert set(source.labels("train", np.arange(3_000))) == set(range(classes))
    factors = source.factors("train", np.arange(200))
    assert set(factors["objects"]) == set(range(objects[0], objects[1] + 1))
    for i in range(objects[1]):
        assert ((factors[f"kind_{i}"] >= 0) == (factors["objects"] > i)).all()


@pytest.mark.parametrize("objects", [(2, 2), (3, 3)])
def test_objects_stand_in_their_arrangement_and_apart(objects: tuple[int, int]) -> None:
    source = Shapes(SceneSettings(objects=objects))
    factors = source.factors("train", np.arange(500))
    x, y = (np.stack([source.places[factors[f"{axis}_{i}"]] for i in range(objects[0])]) for axis in "xy")
    radius = np.stack([source.radii[factors[f"size_{i}"]] for i in range(objects[0])])
    row = factors["arrangement"] == 1
    assert 0.2 < row.mean() < 0.8
    assert (np.diff(np.where(row, x, y), axis=0) > 0).all()
    assert (np.where(row, np.ptp(x, axis=0) - np.ptp(y, axis=0), np.ptp(y, axis=0) - np.ptp(x, axis=0)) > 0).all()
    for i, j in itertools.combinations(range(objects[0]), 2):
        assert (np.hypot(x[i] - x[j], y[i] - y[j]) > radius[i] + radius[j]).all()


def test_the_default_scene_carries_20_to_30_bits(source: Shapes) -> None:
    assert 20 < source.entropy_bits() < 30


@pytest.mark.parametrize("objects", [(1, 1), (1, 3)])
def test_entropy_agrees_with_counted_scenes(objects: tuple[int, int]) -> None:
    """A world of one look, where scenes are few enough for their frequencies to be counted."""
    source = Shapes(SceneSettings(kinds=2, colors=2, grid=3, sizes=1, objects=objects, backgrounds=1, textures=1))
    draws = 100_000
    keys = np.random.default_rng(0).integers(0, 2**64, draws, dtype=np.uint64)
    factors = source._complete(source._given(keys), keys, None)
    _, counts = np.unique(np.stack([factors[name] for name in sorted(factors)]), axis=1, return_counts=True)
    shares = counts / draws
    plug_in = -(shares * np.log2(shares)).sum() + (len(counts) - 1) / (2 * draws * np.log(2))  # Miller-Madow
    assert source.entropy_bits() == pytest.approx(plug_in, abs=0.03)


def test_every_knob_raises_the_entropy() -> None:
    small = {"kinds": 3, "colors": 4, "grid": 3, "sizes": 2, "objects": (1, 1), "backgrounds": 2, "textures": 1}
    bits = Shapes(SceneSettings(**small)).entropy_bits()
    for name, value in {
        "kinds": 5, "colors": 8, "grid": 6, "sizes": 3, "objects": (1, 2), "backgrounds": 8, "textures": 4, "zipf": 0,
    }.items():  # fmt: skip
        assert Shapes(SceneSettings(**{**small, name: value})).entropy_bits() > bits + 0.3, name


@pytest.mark.parametrize("resolution", [24, 32, 64])
def test_a_scene_looks_alike_at_every_resolution(source: Shapes, resolution: int) -> None:
    """Block means of a finer rendering are near the coarse one, and nearer than another scene's."""
    indices = np.arange(200)
    coarse = source.images("train", indices, resolution // 2 if resolution != 24 else 8).astype(float)
    factor = resolution // coarse.shape[-1]
    fine = source.images("train", indices, resolution).astype(float)
    means = fine.reshape(200, 3, coarse.shape[-1], factor, coarse.shape[-1], factor).mean(axis=(3, 5))
    same = np.abs(means - coarse).mean(axis=(1, 2, 3))
    other = np.abs(np.roll(means, 1, axis=0) - coarse).mean(axis=(1, 2, 3))
    assert same.mean() < 6
    assert same.mean() < 0.25 * other.mean()


def test_edges_are_antialiased(source: Shapes) -> None:
    factors = {
        name: values[:1].copy()
        for name, values in Shapes(SceneSettings(objects=(1, 1))).factors("train", np.arange(1)).items()
    }
    factors |= {
        "kind_0": np.array([0]),
        "color_0": np.array([4]),
        "background": np.array([0]),
        "texture": np.array([0]),
    }
    pixels = Shapes(SceneSettings(objects=(1, 1))).render(factors, 32)[0, 0]
    assert ((pixels > 120) & (pixels < 230)).sum() > 4


def test_the_area_of_a_kind_hardly_changes_with_resolution_and_grows_with_size() -> None:
    source = Shapes(SceneSettings(objects=(1, 1)))
    base = {name: np.zeros(1, dtype=np.int64) for name in source.factors("train", np.arange(1))} | {
        "objects": np.ones(1)
    }
    centre = {"x_0": np.array([2]), "y_0": np.array([2]), "color_0": np.array([4])}
    for kind in range(5):
        areas = []
        for size in range(3):
            scene = base | centre | {"kind_0": np.array([kind]), "size_0": np.array([size])}
            empty = base | {"kind_0": np.array([-1])}
            cover = [
                (source.render(scene, r)[0, 0].astype(float) - source.render(empty, r)[0, 0]).mean() for r in (16, 64)
            ]
            assert cover[0] == pytest.approx(cover[1], rel=0.15)
            areas.append(cover[1])
        assert areas[0] * 1.3 < areas[1] < areas[2] / 1.3


@pytest.mark.parametrize(
    "scene",
    [
        {"grid": 2, "objects": (3, 3)},
        {"kinds": 2, "colors": 2, "grid": 2, "sizes": 1, "objects": (2, 2), "backgrounds": 1, "textures": 1, "zipf": 3},
    ],
)
def test_knobs_that_leave_a_class_without_scenes_are_refused(scene: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"^data\.scene: no scene of \d objects.*raise grid[^\n]*$"):
        Shapes(SceneSettings(**scene))


@pytest.mark.parametrize(
    ("split", "indices", "message"),
    [
        ("test", np.arange(2), "no split 'test'"),
        ("train", np.array([-1]), "no image -1"),
        ("train", np.array([0.5]), "row of integers"),
        ("train", np.zeros((2, 2), dtype=int), "row of integers"),
    ],
)
def test_unknown_splits_and_bad_indices_are_refused(
    source: Shapes, split: str, indices: np.ndarray, message: str
) -> None:
    for asked in (source.labels, source.factors):
        with pytest.raises(DataError, match=message):
            asked(split, indices)


def test_no_index_gives_no_image(source: Shapes) -> None:
    assert source.images("train", np.arange(0), 16).shape == (0, 3, 16, 16)
    assert source.labels("train", np.arange(0)).shape == (0,)
