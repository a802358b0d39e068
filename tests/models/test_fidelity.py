"""Distances against torch-fidelity and closed forms, refusals, reference sets, protocols, the torchvision repair."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from models import fidelity
from models.features import load_features
from models.fidelity import FewImagesWarning, FidelityError, Protocol, ReferenceSet, Statistics


def normal(count: int, dim: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, dim)) * scale + shift).astype(np.float32)


# ------------------------------------------------------------------------------------------ pixels


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1 - 0.6 / 127.5, 1.0, 7.0])
    assert fidelity.to_uint8(values).tolist() == [0, 0, 0, 1, 254, 255, 255]


def test_every_uint8_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert (fidelity.to_uint8(levels.float() / 127.5 - 1) == levels).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(FidelityError, match="not finite"):
        fidelity.to_uint8(torch.tensor([0.0, bad]))


def test_resizing_keeps_a_flat_image_and_a_fitting_one_and_antialiases() -> None:
    flat = torch.full((2, 3, 24, 24), 77, dtype=torch.uint8)
    assert (fidelity.resize(flat, 16) == 77).all()
    assert fidelity.resize(flat, 24) is flat
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert ((fidelity.resize(stripes, 16).int() - 127).abs() < 12).all()
    with pytest.raises(FidelityError, match="give uint8"):
        fidelity.resize(flat.float(), 16)


def test_no_images_give_no_features() -> None:
    extractor = load_features("shapes-cnn@1")
    for batches in ([], [np.empty((0, 3, 16, 16), dtype=np.uint8)]):
        with pytest.raises(FidelityError, match="no image"):
            fidelity.extract(extractor, batches)


def test_features_of_a_broken_network_are_refused() -> None:
    extractor = load_features("shapes-cnn@1")
    extractor.trunk.out.bias[0] = float("nan")
    with pytest.raises(FidelityError, match="features of 2 of 2 images are not finite"):
        fidelity.extract(extractor, [np.zeros((2, 3, 16, 16), dtype=np.uint8)])


# ------------------------------------------------------------------------------------------ distances


def test_fid_is_that_of_torch_fidelity_on_the_same_features() -> None:
    package = fidelity.import_torch_fidelity()
    a, b = normal(3_000, 16), normal(2_000, 16, seed=1, scale=1.3, shift=0.2)
    theirs = package.metric_fid.fid_statistics_to_metric(
        *(package.metric_fid.fid_features_to_statistics(torch.from_numpy(f).double()) for f in (a, b)), False
    )["frechet_inception_distance"]
    ours = fidelity.frechet_distance(fidelity.statistics(a), fidelity.statistics(b))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_fid_and_kid_are_those_of_torch_fidelity_on_the_same_images(tmp_path: Path) -> None:
    """Through calculate_metrics, with our network registered as an extractor."""
    package = fidelity.import_torch_fidelity()
    extractor = load_features("shapes-cnn@1")
    generator = np.random.default_rng(0)
    images = [torch.from_numpy(generator.integers(0, high, (200, 3, 16, 16), dtype=np.uint8)) for high in (256, 200)]

    class Ours(package.FeatureExtractorBase):  # type: ignore[name-defined]
        def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("64",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "64"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> torch.Tensor:
            return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor]:
            return (extractor(batch),)

    class Set(torch.utils.data.Dataset):
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __len__(self) -> int:
            return len(self.tensor)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.tensor[index]

    package.register_feature_extractor("ours-for-test", Ours)
    theirs = package.calculate_metrics(
        input1=Set(images[0]), input2=Set(images[1]), feature_extractor="ours-for-test", fid=True, kid=True,
        kid_subsets=5, kid_subset_size=100, rng_seed=3, cuda=False, save_cpu_ram=True, verbose=False, cache=False,
    )  # fmt: skip
    a, b = (fidelity.extract(extractor, [batch]) for batch in images)
    fid = fidelity.frechet_distance(fidelity.statistics(a), fidelity.statistics(b))
    mean, std = fidelity.kernel_distance(a, b, seed=3, subsets=5, subset_size=100)
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)  # theirs: a float32 mean
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-2)


def test_fid_of_known_gaussians_is_its_closed_form() -> None:
    """Diagonal covariances: |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    a = Statistics(np.array([0.0, 1.0]), np.diag([4.0, 9.0]), 100)
    b = Statistics(np.array([3.0, 1.0]), np.diag([1.0, 25.0]), 100)
    assert fidelity.frechet_distance(a, b) == pytest.approx(9 + 1 + 4)
    assert fidelity.frechet_distance(b, a) == pytest.approx(14)


def test_a_set_has_no_distance_from_itself() -> None:
    found = fidelity.statistics(normal(500, 32))
    assert 0 <= fidelity.frechet_distance(found, found) < 1e-9


def test_statistics_are_taken_in_double_precision() -> None:
    features = normal(5_000, 4, shift=1e4)
    found = fidelity.statistics(features)
    assert found.mu.dtype == found.sigma.dtype == np.float64
    assert found.mu == pytest.approx(features.astype(np.float64).mean(0), abs=1e-9)
    assert found.n == 5_000


def test_few_images_warn_and_many_do_not() -> None:
    with pytest.warns(FewImagesWarning, match="20 images for 64 features.*singular"):
        fidelity.statistics(normal(20, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fidelity.statistics(normal(65, 64))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (normal(1, 8), "1 image has no covariance"),
        (normal(9, 8)[0], r"give \[images, features\]"),
        (np.full((20, 8), np.nan, dtype=np.float32), "features of 20 of 20 images are not finite"),
        (np.where(np.eye(20, 8) > 0, np.inf, 0).astype(np.float32), "features of 8 of 20 images are not finite"),
    ],
)
def test_features_without_statistics_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(FidelityError, match=message):
        fidelity.statistics(features)


def test_features_of_two_extractors_are_not_compared() -> None:
    with pytest.raises(FidelityError, match="of 8 and of 16 dimensions"):
        fidelity.frechet_distance(fidelity.statistics(normal(50, 8)), fidelity.statistics(normal(50, 16)))
    with pytest.raises(FidelityError, match="of 8 and of 16 dimensions"):
        fidelity.kernel_distance(normal(50, 8), normal(50, 16), seed=0)


def test_kid_is_near_zero_for_equal_distributions_and_repeats_by_seed() -> None:
    a, same, other = normal(600, 8), normal(700, 8, seed=1), normal(700, 8, seed=2, shift=0.5)
    mean, std = fidelity.kernel_distance(a, same, seed=0)
    assert abs(mean) < 3 * std
    assert fidelity.kernel_distance(a, same, seed=0) == (mean, std)
    assert fidelity.kernel_distance(a, same, seed=1) != (mean, std)
    assert fidelity.kernel_distance(a, other, seed=0)[0] > 10 * std


def test_kid_of_too_few_images_or_bad_features_is_refused() -> None:
    with pytest.raises(FidelityError, match="subsets of 100 images with 50 images; give 2 to 50"):
        fidelity.kernel_distance(normal(50, 8), normal(500, 8), seed=0, subset_size=100)
    bad = normal(50, 8)
    bad[0, 0] = np.nan
    with pytest.raises(FidelityError, match="1 of 50 images are not finite"):
        fidelity.kernel_distance(normal(50, 8), bad, seed=0)


@pytest.mark.parametrize(
    ("n", "m", "size"), [(2_000, 10_000, 1_000), (600, 10_000, 300), (10_000, 10_000, 1_000), (3, 9, 2)]
)
def test_kid_subsets_are_half_of_the_smaller_set_up_to_a_thousand(n: int, m: int, size: int) -> None:
    assert fidelity.kid_subset_size(n, m) == size


def test_the_bias_floor_is_the_mean_fid_between_draws_of_one_distribution() -> None:
    dim, n, m = 24, 500, 900
    root = np.diag(np.sqrt(1 / np.arange(1, dim + 1)))
    generator = np.random.default_rng(0)

    def draw(count: int) -> Statistics:
        return fidelity.statistics((generator.normal(size=(count, dim)) @ root).astype(np.float32))

    measured = np.mean([fidelity.frechet_distance(draw(n), draw(m)) for _ in range(60)])
    assert fidelity.bias_floor(root @ root, n, m) == pytest.approx(measured, rel=0.06)


def test_the_bias_floor_of_an_isotropic_covariance_is_its_closed_form() -> None:
    dim = 64
    expected = dim * (1 + (dim + 1) / 4) * (1 / 2_000 + 1 / 10_000)
    assert fidelity.bias_floor(np.eye(dim), 2_000, 10_000) == pytest.approx(expected)
    assert fidelity.bias_floor(np.zeros((3, 3)), 10, 10) == 0


# ------------------------------------------------------------------------------------------ reference and protocol


def test_a_reference_set_comes_back_from_its_bytes() -> None:
    reference = ReferenceSet(normal(100, 8))
    again = ReferenceSet.from_bytes(reference.to_bytes(), expected_hash=reference.hash)
    assert (again.features == reference.features).all()
    assert again.hash == reference.hash
    assert again.statistics.mu == pytest.approx(reference.statistics.mu)
    assert reference.hash != ReferenceSet(normal(100, 8, seed=1)).hash
    assert reference.to_bytes() == ReferenceSet(reference.features.copy()).to_bytes()


def test_a_damaged_or_exchanged_reference_set_is_refused() -> None:
    reference = ReferenceSet(normal(100, 8))
    content = reference.to_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    with pytest.raises(FidelityError, match="is not the recorded"):
        ReferenceSet.from_bytes(bytes(flipped))
    with pytest.raises(FidelityError, match="is not the expected"):
        ReferenceSet.from_bytes(content, expected_hash=ReferenceSet(normal(99, 8)).hash)
    for torn in (content[:-3], b"", b"hello"):
        with pytest.raises(FidelityError, match="not a reference set"):
            ReferenceSet.from_bytes(torn)


def test_a_reference_set_holds_finite_float32() -> None:
    with pytest.raises(FidelityError, match="give float32"):
        ReferenceSet(normal(10, 4).astype(np.float64))
    with pytest.raises(FidelityError, match="not finite"):
        ReferenceSet(np.full((10, 4), np.nan, dtype=np.float32))


PROTOCOL = Protocol(
    target="generation",
    features="shapes-cnn@1",
    features_hash="f" * 64,
    dim=64,
    resolution=16,
    reference_source="s" * 64,
    reference_split="held-out",
    reference_images=10_000,
    reference_hash="r" * 64,
    samples=2_000,
)


def test_a_protocol_describes_itself_in_one_line() -> None:
    assert PROTOCOL.describe() == "gFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000, guidance 1.0"
    warmer = dataclasses.replace(PROTOCOL, temperature=1.1, guidance=1.25)
    assert warmer.describe().endswith("guidance 1.25, temperature 1.1")
    reconstruction = dataclasses.replace(PROTOCOL, target="reconstruction")
    assert reconstruction.describe() == "rFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000"


def test_every_field_and_rule_enters_the_protocols_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {PROTOCOL.hash}
    for field in dataclasses.fields(Protocol):
        value = getattr(PROTOCOL, field.name)
        changed = "reconstruction" if field.name == "target" else value + "x" if isinstance(value, str) else value + 1
        hashes.add(dataclasses.replace(PROTOCOL, **{field.name: changed}).hash)  # type: ignore[arg-type]
    monkeypatch.setitem(fidelity.RULES, "resize", "nearest")
    hashes.add(PROTOCOL.hash)
    assert len(hashes) == len(dataclasses.fields(Protocol)) + 2


# ------------------------------------------------------------------------------------------ torchvision


def run_python(code: str, path: Path) -> dict[str, object]:
    """Run code in a fresh interpreter in which `path` comes before the installed packages."""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": f"{path}:{root}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    result: dict[str, object] = json.loads(found.stdout.splitlines()[-1])
    return result


def stub(path: Path, torchvision: str) -> Path:
    """A torchvision as given, and a torch-fidelity that imports it as the real one does."""
    (path / "torchvision").mkdir()
    (path / "torchvision" / "__init__.py").write_text(textwrap.dedent(torchvision))
    package = path / "torch_fidelity"
    package.mkdir()
    (package / "__init__.py").write_text("import torchvision\nWHO = 'stub'\n")
    for name in ("metric_fid", "metric_kid"):
        (package / f"{name}.py").write_text("")
    return path


REPORT = """
    import json, torch
    from models import fidelity
    package = fidelity.import_torch_fidelity()
    assert fidelity.import_torch_fidelity() is package
    has = [hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms")]
    print(json.dumps({"who": package.WHO, "declared": len(fidelity._declared), "operators": has}))
"""


def test_a_torchvision_without_its_compiled_operators_is_mended(tmp_path: Path) -> None:
    """The registration that fails is torchvision's own: a shape function for an operator that was never defined."""
    stub(
        tmp_path,
        """
        import torch

        @torch.library.register_fake("torchvision::nms")
        def meta_nms(dets, scores, iou_threshold):
            return dets.new_empty(0, dtype=torch.long)
        """,
    )
    assert run_python(REPORT, tmp_path) == {"who": "stub", "declared": 1, "operators": [True, True]}


def test_nothing_is_declared_where_torchvision_imports(tmp_path: Path) -> None:
    stub(tmp_path, "")
    assert run_python(REPORT, tmp_path) == {"who": "stub", "declared": 0, "operators": [False, False]}


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RuntimeError("something else"), r"cannot be imported \(something else\)"),
        (RuntimeError("operator torchvision::roi_align does not exist"), "install the torchvision of this torch"),
    ],
)
def test_a_torchvision_beyond_mending_is_named(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(fidelity, "_import", fail)
    with pytest.raises(FidelityError, match=message):
        fidelity.import_torch_fidelity()


def test_a_missing_torch_fidelity_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(FidelityError, match="pip install torch-fidelity torchvision"):
        fidelity.import_torch_fidelity()


def test_the_installed_torch_fidelity_measures_in_a_fresh_process() -> None:
    code = """
        import json
        import numpy as np
        from models import fidelity
        found = fidelity.statistics(np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32))
        print(json.dumps({"fid": fidelity.frechet_distance(found, found)}))
    """
    assert float(str(run_python(code, Path(__file__).parent)["fid"])) < 1e-9
