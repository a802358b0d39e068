"""A study on a user's own images: a folder of PNGs, features trained as a stage, tokenizers by downsample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import Study

PLAN = """
plan: own
extends: tiny@1
data: {source: image_folder, path: "${IMAGES}", resolution: 16, train_images: 256, validation_images: 32}
tokenizer:
  codebook_size: 16
  width: 16
  images_seen: 640
  tokens_by: downsample
  tokens_per_image: [4, 16]
  crt: {probe: false}
generator: {size: 16x1, images_seen: 256}
evaluation:
  features: cnn
  cnn_steps: 20
  guidance: [1.0, 2.0]
  reference: {split: held-out, images: 24}
  samples: 24
resources: {executor: inline, workers: 1}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    images = tmp_path / "the images"
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (images / name).mkdir(parents=True)
        for index in range(220):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / name / f"{index}.png")
    monkeypatch.setenv("IMAGES", str(images))
    (tmp_path / "plan.yaml").write_text(PLAN)
    return Study(tmp_path)


def test_a_folder_of_images_is_studied_with_features_of_its_own(own: Study) -> None:
    done = own.run("sweep", "plan.yaml")
    assert done.returncode == 0, done.stderr
    table = own.table()
    assert len(table) == 2 * 2  # tokens x guidance
    assert set(table["state"]) <= {"done", "degenerate"}
    assert sorted(table["tokens_per_image"].unique()) == [4, 16]
    assert sorted(table["guidance"].unique()) == [1.0, 2.0]
    assert table["gfid"].notna().all()
    assert table["protocol_hash"].nunique() == 2
    assert len(list(own.folder.glob("artifacts/tokenizer/*"))) == 2
    assert list(own.folder.glob("artifacts/features/*/attempts/0001/output/weights.safetensors"))


def test_too_few_images_for_the_plan_are_named_before_anything_trains(own: Study) -> None:
    (own.folder / "plan.yaml").write_text(PLAN.replace("train_images: 256", "train_images: 4_000"))
    done = own.run("sweep", "plan.yaml")
    assert done.returncode == 2
    assert "data.train_images asks for 4000" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (own.folder / "artifacts").exists()


def test_a_folder_that_moved_changes_no_fingerprint(own: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.run("sweep", "plan.yaml").returncode == 0
    moved = (own.folder / "the images").rename(own.folder / "moved")
    monkeypatch.setenv("IMAGES", str(moved))
    again = own.run("sweep", "plan.yaml")
    assert again.returncode == 0
    assert "0 to do" in again.stderr
