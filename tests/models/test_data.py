"""Folders and arrays of images: content decides splits and identity, and bad input is named in one line."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import data
from models.data import SPLITS, DataError, ImageSource, open_source, square
from models.settings import DataSettings

CLASSES = ("cat", "dog")
EACH = 40


def picture(number: int, size: tuple[int, int] = (20, 14)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(EACH):
            picture(label * EACH + number).save(root / name / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root


def opened(path: Path, source: str = "image_folder") -> ImageSource:
    return open_source(DataSettings(source=source, path=str(path)))


def all_rows(source: ImageSource, split: str) -> np.ndarray:
    size = source.size(split)
    assert size is not None
    return np.arange(size)


def saved(tmp_path: Path, **arrays: np.ndarray) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def noise(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_a_folder_gives_every_image_once_over_the_splits(folder: Path) -> None:
    source = opened(folder)
    assert isinstance(source, ImageSource)
    assert source.class_names == CLASSES
    sizes = [source.size(split) for split in SPLITS]
    assert sum(size for size in sizes if size) == 2 * EACH
    labels = np.concatenate([source.labels(split, all_rows(source, split)) for split in SPLITS])
    assert np.bincount(labels).tolist() == [EACH, EACH]
    images = np.concatenate([source.images(split, all_rows(source, split), 14) for split in SPLITS])
    assert images.shape == (2 * EACH, 3, 14, 14)
    assert len(np.unique(images.reshape(2 * EACH, -1), axis=0)) == 2 * EACH


def test_images_are_the_centre_crop_of_their_files_with_their_labels(folder: Path) -> None:
    source = opened(folder)
    wanted = {
        np.asarray(Image.open(file).convert("RGB"))[:, 3:17].tobytes(): CLASSES.index(file.parent.name)
        for file in folder.rglob("*.*")
    }
    images = source.images("train", all_rows(source, "train"), 14).transpose(0, 2, 3, 1)
    labels = source.labels("train", all_rows(source, "train"))
    assert [wanted[np.ascontiguousarray(image).tobytes()] for image in images] == labels.tolist()


def test_names_times_and_places_of_files_change_nothing(folder: Path, tmp_path: Path) -> None:
    before = opened(folder)
    moved = tmp_path / "elsewhere" / "with more"
    for file in folder.rglob("*.*"):
        target = moved / file.parent.name / "deeper" / f"z{hash(file.name)}{file.suffix.upper()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        os.utime(target, (1, 1))
    after = opened(moved)
    assert after.identity() == before.identity()
    for split in SPLITS:
        rows = all_rows(before, split)
        assert (before.images(split, rows, 8) == after.images(split, rows, 8)).all()
        assert (before.labels(split, rows) == after.labels(split, rows)).all()


def test_one_changed_image_changes_the_identity(folder: Path) -> None:
    before = opened(folder).identity()
    picture(999).save(folder / "cat" / "1.png")
    assert opened(folder).identity() != before


def test_an_image_moved_to_another_class_changes_the_identity(folder: Path) -> None:
    before = opened(folder).identity()
    (folder / "cat" / "1.png").rename(folder / "dog" / "cat1.png")
    assert opened(folder).identity() != before


def test_copies_of_an_image_stay_in_one_split(folder: Path) -> None:
    for number in range(30):
        shutil.copy(folder / "cat" / "1.png", folder / "cat" / f"copy{number}.png")
    source = opened(folder)
    original = square(Image.open(folder / "cat" / "1.png"), 14)
    found = [
        int((source.images(split, all_rows(source, split), 14) == original).all(axis=(1, 2, 3)).sum())
        for split in SPLITS
    ]
    assert sorted(found) == [0, 0, 31]


def test_an_image_is_the_same_alone_in_a_batch_and_a_second_time(folder: Path) -> None:
    rows = np.array([3, 0, 3, 5])
    together = opened(folder).images("train", rows, 8)
    source = opened(folder)
    alone = np.concatenate([source.images("train", rows[i : i + 1], 8) for i in range(4)])
    assert (together == alone).all()
    assert (source.images("train", rows, 8) == together).all()


def test_images_too_many_for_memory_are_the_same_as_remembered_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = opened(folder).images("train", np.arange(10), 8)
    monkeypatch.setattr("models.data.CACHE_BYTES", 0)
    source = opened(folder)
    (file,) = [f for f in folder.rglob("*.png") if f.name == "1.png" and f.parent.name == "cat"]
    assert (source.images("train", np.arange(10), 8) == remembered).all()
    assert source.images("train", np.arange(0), 8).shape == (0, 3, 8, 8)
    file.unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        [source.images(split, all_rows(source, split), 8) for split in SPLITS]


def test_a_folder_is_decoded_once_a_process_and_again_when_a_file_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    real = data.decode

    def counted(content: bytes, file: Path) -> Image.Image:
        decoded.append(file)
        return real(content, file)

    monkeypatch.setattr(data, "decode", counted)
    settings = DataSettings(source="image_folder", path=str(folder))
    unverified = open_source(settings, verify=False)
    assert not decoded
    first = open_source(settings)
    assert len(decoded) == 2 * EACH
    assert open_source(settings) is first is open_source(settings, verify=False)
    assert len(decoded) == 2 * EACH
    assert unverified.identity() == first.identity()
    picture(999).save(folder / "cat" / "new.png")
    assert open_source(settings).identity() != first.identity()
    assert len(decoded) == 4 * EACH + 1


def test_without_verification_an_unreadable_image_is_named_when_it_is_asked_for(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    source = open_source(DataSettings(source="image_folder", path=str(folder)), verify=False)
    with pytest.raises(DataError, match=r"\.png: cannot be decoded"):
        source.images("train", all_rows(source, "train"), 8)


def test_a_folder_without_subfolders_is_one_class(folder: Path) -> None:
    source = opened(folder / "cat")
    assert (source.classes, source.class_names) == (1, ("all",))


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = square(Image.fromarray(stripes), 8).astype(int)
    assert np.abs(small - 127).max() < 12


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA"])
def test_every_8_bit_mode_is_read_as_rgb(folder: Path, mode: str) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    for number in range(EACH):
        picture(number, (9, 9)).convert("RGB").convert(mode).save(folder / "cat" / f"m{number}{suffix}")
    source = opened(folder)
    assert source.images("train", all_rows(source, "train"), 9).shape[1] == 3


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    for number in range(60):
        pixels = np.zeros((8, 8, 4), dtype=np.uint8)
        pixels[0, 0] = (number, 0, 0, 255)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = opened(tmp_path).images("train", np.arange(5), 8)
    assert (images[:, :, 1:] == 255).all()
    assert (images[:, 1:, 0, 0] == 0).all()


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    for number in range(60):
        pixels[0] = (200, number, number)
        exif = Image.Exif()
        exif[0x0112] = 6  # turn right by 90 degrees
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)
    images = opened(tmp_path).images("train", np.arange(5), 8)
    assert (images[:, 0, :, -1] == 200).all()
    assert (images[:, 0, :, 0] == 0).all()


def truncate(folder: Path) -> None:
    file = folder / "cat" / "0.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def not_an_image(folder: Path) -> None:
    (folder / "dog" / "1.png").write_text("hello")


def deep(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 60_000, dtype=np.uint16)).save(folder / "dog" / "deep.png")


def lone(folder: Path) -> None:
    (folder / "eel").mkdir()
    picture(500).save(folder / "eel" / "only.png")


def empty(folder: Path) -> None:
    (folder / "eel").mkdir()


def loose(folder: Path) -> None:
    picture(501).save(folder / "stray.png")


def few(folder: Path) -> None:
    for file in folder.rglob("*.*"):
        if int(file.stem) > 2:
            file.unlink()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"0\.jpg: cannot be decoded .*truncated"),
        (not_an_image, r"1\.png: cannot be decoded \(not a PNG or JPEG\)"),
        (deep, r"deep\.png: more than 8 bits"),
        (lone, "class 'eel' has 1 image; give it at least 2"),
        (empty, "class 'eel' has 0 images"),
        (loose, r"stray\.png lies beside class subfolders"),
        (few, "6 images leave . in split"),
        (emptied, "no PNG or JPEG file and no subfolder"),
        (missing, "no such folder; set data.path"),
    ],
)
def test_a_spoiled_folder_is_refused_in_one_line_before_anything_trains(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message) as raised:
        opened(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_npz_is_read_in_either_order_of_axes(tmp_path: Path) -> None:
    images, labels = noise(100), np.arange(100) % 3 + 7
    last = opened(saved(tmp_path, images=images, labels=labels), "npz")
    first = opened(saved(tmp_path, images=images.transpose(0, 3, 1, 2), labels=labels), "npz")
    assert last.class_names == first.class_names == ("7", "8", "9")
    assert last.identity() == first.identity()
    rows = all_rows(last, "train")
    pixels = last.images("train", rows, 8)
    assert (pixels == first.images("train", rows, 8)).all()
    known = {image.transpose(2, 0, 1).tobytes(): label - 7 for image, label in zip(images, labels, strict=True)}
    assert [known[image.tobytes()] for image in pixels] == last.labels("train", rows).tolist()


def test_the_order_of_an_npz_changes_nothing(tmp_path: Path) -> None:
    images, labels = noise(100), np.arange(100) % 3
    before = opened(saved(tmp_path, images=images, labels=labels), "npz")
    after = opened(saved(tmp_path, images=images[::-1], labels=labels[::-1]), "npz")
    assert before.identity() == after.identity()
    assert (before.images("held-out", np.arange(3), 8) == after.images("held-out", np.arange(3), 8)).all()


def test_an_npz_without_labels_is_one_class(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, images=noise(100)), "npz")
    assert (source.classes, source.class_names) == (1, ("all",))
    assert set(source.labels("train", np.arange(5))) == {0}


def test_indices_beyond_a_split_are_refused(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, images=noise(100)), "npz")
    size = source.size("validation")
    with pytest.raises(DataError, match=f"no image {size} in split 'validation', which has {size} images"):
        source.images("validation", np.array([size]), 8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": noise(100)}, "no array `images`"),
        ({"images": noise(100).astype(float)}, r"`images` is float64 of shape \(100, 8, 8, 3\); give uint8"),
        ({"images": noise(100)[..., :2]}, r"give uint8 of shape \(N, H, W, 3\)"),
        ({"images": noise(100), "labels": np.arange(99)}, "give one integer for each of 100 images"),
        ({"images": noise(100), "labels": np.zeros(100)}, "`labels` is float64"),
        ({"images": noise(100), "labels": np.arange(100) // 99}, "class '1' has 1 image"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        opened(saved(tmp_path, **arrays), "npz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        opened(path, "npz")
    path.unlink()
    with pytest.raises(DataError, match=r"no such file; set data\.path"):
        opened(path, "npz")


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=noise(100))
    path = tmp_path / "images.npz"
    path.write_bytes(buffer.getvalue()[:5000])
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        opened(path, "npz")
