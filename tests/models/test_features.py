"""Feature networks: determinism, refusal of foreign weights, what shapes-cnn@1 must tell and must notice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import fidelity, train_shapes_cnn
from models.features import CHUNK, DIM, ClassifierCnn, FeatureError, FeatureExtractor, Trunk, load_features
from models.settings import SceneSettings
from models.shapes import Shapes
from models.weights import shipped_hash, shipped_path, tensor_hash
from tests.models.corruptions import CORRUPTIONS

NAME = "shapes-cnn@1"
CARD = json.loads(shipped_path(NAME).with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    torch.set_num_threads(1)
    return load_features(NAME)


@pytest.fixture(scope="module")
def source() -> Shapes:
    return Shapes(SceneSettings())


@pytest.fixture(scope="module")
def reference(extractor: FeatureExtractor, source: Shapes) -> np.ndarray:
    return fidelity.extract(extractor, [source.images("held-out", np.arange(4_000), 16)])


def test_the_shipped_weights_are_those_of_their_card_and_under_a_megabyte(extractor: FeatureExtractor) -> None:
    assert extractor.hash == shipped_hash(NAME) == CARD["sha256"]
    assert (extractor.name, extractor.dim) == (NAME, DIM)
    assert shipped_path(NAME).stat().st_size < 1_000_000
    assert CARD["parameters"] == sum(p.numel() for p in extractor.parameters())


def test_the_card_is_of_the_recipe_in_the_script() -> None:
    recipe = CARD["recipe"]
    assert recipe["source"] == Shapes(train_shapes_cnn.SCENE).identity()
    assert recipe["steps"] == train_shapes_cnn.STEPS
    assert recipe["images"] == train_shapes_cnn.STEPS * train_shapes_cnn.BATCH


def test_every_factor_was_told_in_90_percent_of_held_out_images() -> None:
    wanted = set(train_shapes_cnn.choices(Shapes(SceneSettings())))
    for accuracy in CARD["accuracy"].values():
        assert set(accuracy) == wanted
        assert min(accuracy.values()) >= 0.9


def test_every_factor_can_be_read_off_the_shipped_features_by_a_linear_map(
    extractor: FeatureExtractor, source: Shapes
) -> None:
    """Logistic regressions fitted to training scenes, asked about held-out ones."""

    def features_and_factors(split: str, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, factors = train_shapes_cnn.labelled(source, split, np.arange(count))
        return extractor(images), factors

    train, train_factors = features_and_factors("train", 4_000)
    held_out, factors = features_and_factors("held-out", 2_000)
    for name, choices in train_shapes_cnn.choices(source).items():
        known, asked = train_factors[name] >= 0, factors[name] >= 0
        head = torch.nn.Linear(DIM, choices)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

        def loss(head: torch.nn.Linear = head, known: torch.Tensor = known, name: str = name) -> torch.Tensor:
            head.zero_grad()
            found = torch.nn.functional.cross_entropy(head(train[known]), train_factors[name][known])
            found = found + 1e-3 * head.weight.square().sum()
            found.backward()
            return found

        optimizer.step(loss)
        told = (head(held_out[asked]).argmax(1) == factors[name][asked]).float().mean().item()
        assert told >= 0.9, (name, told)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_fid_rises_at_every_step_of_a_graded_corruption(
    name: str, extractor: FeatureExtractor, source: Shapes, reference: np.ndarray
) -> None:
    corrupt, levels = CORRUPTIONS[name]
    scenes = source.factors("validation", np.arange(1_000))
    images = [source.render(scenes, 16)] + [corrupt(source, scenes, level) for level in levels]
    target = fidelity.statistics(reference)
    distances = [
        fidelity.frechet_distance(fidelity.statistics(fidelity.extract(extractor, [batch])), target) for batch in images
    ]
    assert (np.diff(distances) > 0).all(), distances
    assert distances[-1] > 2 * distances[0]


def test_features_of_training_scenes_are_white(extractor: FeatureExtractor) -> None:
    images = Shapes(train_shapes_cnn.SCENE).images("train", np.arange(6_000), 16)
    found = fidelity.statistics(fidelity.extract(extractor, [images]))
    assert np.abs(found.mu).max() < 0.06
    assert np.trace(found.sigma) == pytest.approx(DIM, rel=0.03)
    assert np.linalg.eigvalsh(found.sigma).min() > 0.6


@pytest.mark.parametrize("resolution", [8, 16, 24])
def test_features_of_an_image_do_not_hang_on_its_batch(
    extractor: FeatureExtractor, source: Shapes, resolution: int
) -> None:
    images = source.images("train", np.arange(CHUNK + 9), resolution)
    whole = fidelity.extract(extractor, [images])
    cut = fidelity.extract(extractor, [images[:1], torch.from_numpy(images[1:50]), images[50:]])
    assert whole.dtype == np.float32
    assert whole.shape == (CHUNK + 9, DIM)
    assert (whole == cut).all()
    assert (whole == fidelity.extract(load_features(NAME), [images])).all()


def test_a_finer_rendering_has_nearly_the_same_features(extractor: FeatureExtractor, source: Shapes) -> None:
    coarse, fine = (fidelity.extract(extractor, [source.images("train", np.arange(200), r)]) for r in (16, 32))
    same = np.square(coarse - fine).sum(1).mean()
    other = np.square(coarse - np.roll(fine, 1, axis=0)).sum(1).mean()
    assert same < 0.25 * other


def test_measuring_trains_nothing_and_keeps_the_weights(extractor: FeatureExtractor) -> None:
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).requires_grad


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.uint8)])
def test_images_that_are_not_uint8_batches_are_refused(extractor: FeatureExtractor, bad: torch.Tensor) -> None:
    with pytest.raises(FeatureError, match=r"give uint8 \[n, 3, R, R\]"):
        extractor(bad)


def test_features_that_do_not_ship_are_refused_with_those_that_do() -> None:
    with pytest.raises(FeatureError, match=r"no weights named 'inception'.*shapes-cnn@1.*or train 'cnn'"):
        load_features("inception")
    with pytest.raises(FeatureError, match="give the file of their weights"):
        load_features("cnn")
    with pytest.raises(KeyError, match="no weights named"):
        shipped_hash("shapes-cnn@0")
    assert shipped_hash("cnn").startswith("cnn-recipe-")


def test_a_trained_classifier_comes_back_as_the_same_features(tmp_path: Path, source: Shapes) -> None:
    torch.manual_seed(0)
    network = ClassifierCnn(source.classes)
    save_file(network.state_dict(), tmp_path / "cnn.safetensors")
    loaded = load_features("cnn", tmp_path / "cnn.safetensors")
    images = torch.from_numpy(source.images("train", np.arange(CHUNK), 32))
    assert (loaded(images) == network.features(images)).all()
    trunk = {key: value.numpy() for key, value in network.trunk.state_dict().items()}
    assert loaded.hash == tensor_hash(trunk)


def test_damaged_foreign_or_missing_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cnn.safetensors"
    with pytest.raises(FeatureError, match="cannot be read"):
        load_features("cnn", path)
    path.write_bytes(shipped_path(NAME).read_bytes()[:-100])
    with pytest.raises(FeatureError, match=r"cnn\.safetensors: cannot be read as safetensors"):
        load_features("cnn", path)
    for foreign in ({"weight": torch.zeros(2)}, {"trunk.layers.0.weight": torch.zeros(2)}):
        save_file(foreign, path)
        with pytest.raises(FeatureError, match="not the weights of a feature network") as raised:
            load_features("cnn", path)
        assert "\n" not in str(raised.value)


def test_the_weights_hash_depends_on_names_types_shapes_and_values_only() -> None:
    base: dict[str, np.ndarray] = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2)}
    assert tensor_hash(base) == tensor_hash(dict(reversed(base.items())))
    assert tensor_hash(base) == tensor_hash(base | {"a": base["a"].astype(">f4")})
    others: list[dict[str, np.ndarray]] = [
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"].astype(np.float64), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"], "c": base["b"]},
    ]
    for other in others:
        assert tensor_hash(other) != tensor_hash(base)


@pytest.mark.parametrize("side", [4, 12, 0])
def test_a_trunk_has_a_side_that_halves_down_to_4(side: int) -> None:
    with pytest.raises(FeatureError, match="give a power of 2 from 8"):
        Trunk(side)


def test_cnn_learns_classes_and_thumbnails_and_needs_no_labels() -> None:
    source = Shapes(SceneSettings(kinds=2, colors=3, objects=(1, 1), backgrounds=2, textures=1))
    images = torch.from_numpy(source.images("train", np.arange(128), 16))
    for labels, classes in (
        (torch.from_numpy(source.labels("train", np.arange(128))), source.classes),
        (torch.zeros(128, dtype=torch.int64), 1),
    ):
        torch.manual_seed(0)
        network = ClassifierCnn(classes, side=16)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        losses = []
        for _ in range(15):
            loss = network.loss(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        assert network.features(images).shape == (128, DIM)


def test_cnn_has_a_finite_loss_on_images_of_one_colour() -> None:
    loss = ClassifierCnn(1).loss(torch.full((4, 3, 20, 20), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert torch.isfinite(loss)


def test_the_training_script_gives_the_same_weights_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_shapes_cnn, "WARMUP_STEPS", 2)
    source = Shapes(train_shapes_cnn.SCENE)
    hashes, losses = set(), []
    for _ in range(2):
        trunk = train_shapes_cnn.train(source, 8, lambda step, loss: losses.append(loss)).trunk
        train_shapes_cnn.whiten(trunk, source, 500)
        hashes.add(tensor_hash({key: value.numpy() for key, value in trunk.state_dict().items()}))
    assert len(hashes) == 1
    assert hashes != {CARD["sha256"]}


def test_the_script_writes_nothing_where_a_factor_is_told_too_badly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"STEPS": 3, "WARMUP_STEPS": 1, "HELD_OUT_IMAGES": 200, "WHITENING_IMAGES": 500}.items():
        monkeypatch.setattr(train_shapes_cnn, name, value)
    threads = torch.get_num_threads()
    try:
        assert train_shapes_cnn.main(tmp_path) == 1
        assert not list(tmp_path.iterdir())
        assert "below 90%: nothing written" in capsys.readouterr().err
        monkeypatch.setattr(train_shapes_cnn, "LEAST_ACCURACY", 0.0)
        assert train_shapes_cnn.main(tmp_path) == 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / f"{NAME}.json").read_text())
    weights = load_file(tmp_path / f"{NAME}.safetensors")
    assert written["sha256"] == tensor_hash({key: value.numpy() for key, value in weights.items()})
