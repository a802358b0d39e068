"""Image sources: what they promise, how files are split, and folders and arrays of images.

The procedural source lies in `models.shapes`. No torch, no augmentation, no shuffling: the order of training is
the training loop's, and an image is a pure function of (source, split, index, resolution).

File sources split by content: the SHA-256 of an image's bytes decides whether it belongs to train, validation or
held-out (80, 10 and 10%), so copies of one image never lie in two splits, and neither names nor the order of
files matter. Within a split, images are ordered by that hash, so any prefix is a random draw over the classes.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from models.settings import DataSettings, SceneSettings
from models.shapes import Shapes
from models.splits import SPLITS, DataError, checked_indices, split_number, split_of

RECIPE = 1  # raised when the same files give other pixels or another split
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
CACHE_BYTES = 2**30  # decoded images of one resolution are kept in memory up to this
_FEWEST = 2  # images a split or a class must have: a covariance and a comparison need two

Signature = tuple[tuple[str, int, int], ...]


@runtime_checkable
class ImageSource(Protocol):
    """Images in three splits that share none: "train", "validation", "held-out".

    The same (split, index, resolution) gives the same bytes in any batch, order and process.
    """

    @property
    def classes(self) -> int:
        """How many classes; labels are 0 .. classes - 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each label."""

    def identity(self) -> dict[str, Any]:
        """What decides the images, as JSON values: settings and recipe, or hashes of contents; never a path or time."""

    def size(self, split: str) -> int | None:
        """Images in a split; None where it is unlimited."""

    def images(self, split: str, indices: np.ndarray, resolution: int) -> np.ndarray:
        """uint8 [n, 3, resolution, resolution] of int64 indices [n]. Raises DataError."""

    def labels(self, split: str, indices: np.ndarray) -> np.ndarray:
        """int64 [n] of int64 indices [n]. Raises DataError."""


def open_source(settings: DataSettings, *, verify: bool = True) -> ImageSource:
    """The source that `settings` names. With `verify`, every file is decoded once, so that nothing fails later.

    Without, files are read for their hashes only, and one that cannot be decoded is an error when it is asked for:
    enough for a process that goes on where another has verified. Within a process, a source whose files have kept
    names, sizes and times is opened once. Raises DataError for a missing path, an unreadable image, a class with one
    image, or a split with too few.
    """
    if settings.source == "shapes":
        return _open_shapes(settings.scene)
    path = Path(str(settings.path)).expanduser().absolute()
    key, signature = (settings.source, path), _signature(path)
    known = _opened.get(key)
    if known is None or known[0] != signature or (verify and not known[1]):
        source = ImageFolder(path, verify) if settings.source == "image_folder" else ImageArray(path)
        known = _opened[key] = (signature, verify, source)
    return known[2]


_opened: dict[tuple[str, Path], tuple[Signature, bool, ImageSource]] = {}


@lru_cache(maxsize=8)
def _open_shapes(scene: SceneSettings) -> ImageSource:
    return Shapes(scene)


def _signature(path: Path) -> Signature:
    """Names, sizes and times of the files at `path`: whether to look again, never what the images are."""
    entries = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    return tuple(
        (str(entry), (found := entry.stat()).st_size, found.st_mtime_ns) for entry in entries if entry.exists()
    )


def square(image: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [3, R, R]: the largest centred square, resized with PIL's antialiasing bicubic filter."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    resized = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)


class _Stored:
    """Images that are stored: split, order, identity and memory of decoded images; subclasses decode one."""

    def __init__(self, digests: Sequence[bytes], labels: np.ndarray, class_names: tuple[str, ...], where: Path) -> None:
        """digests: SHA-256 of each image [N]; labels int64 [N]. Raises DataError for too small a class or split."""
        self.class_names = class_names
        self._labels = labels
        order = sorted(range(len(digests)), key=lambda i: (digests[i], int(labels[i])))
        splits = split_of(np.array([int.from_bytes(digests[i][:8], "big") % 10 for i in order], dtype=np.int64))
        self._rows = [np.array(order, dtype=np.int64)[splits == number] for number in range(len(SPLITS))]
        self._memory: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        content = hashlib.sha256()
        for i in order:
            content.update(digests[i] + class_names[labels[i]].encode() + b"\0")
        self._sha256 = content.hexdigest()
        self._check(where)

    def _check(self, where: Path) -> None:
        counts = np.bincount(self._labels, minlength=self.classes)
        for name, count in zip(self.class_names, counts, strict=True):
            if count < _FEWEST:
                raise DataError(
                    f"{where}: class {name!r} has {count} image{'' if count == 1 else 's'}; give it at least "
                    f"{_FEWEST}, or remove it"
                )
        for split, rows in zip(SPLITS, self._rows, strict=True):
            if len(rows) < _FEWEST:
                raise DataError(
                    f"{where}: {len(self._labels)} images leave {len(rows)} in split {split!r} (80, 10 and 10% by "
                    f"content); add images, about 50 or more"
                )
        trained = np.bincount(self._labels[self._rows[0]], minlength=self.classes)
        for name, count in zip(self.class_names, trained, strict=True):
            if not count:
                raise DataError(f"{where}: class {name!r} has no image in split 'train'; add images to it or remove it")

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def identity(self) -> dict[str, Any]:
        return {"source": "files", "recipe": RECIPE, "images": len(self._labels), "sha256": self._sha256}

    def size(self, split: str) -> int | None:
        return len(self._rows[split_number(split)])

    def labels(self, split: str, indices: np.ndarray) -> np.ndarray:
        return self._labels[self._stored_rows(split, indices)]

    def images(self, split: str, indices: np.ndarray, resolution: int) -> np.ndarray:
        rows = self._stored_rows(split, indices)
        if len(self._labels) * 3 * resolution**2 > CACHE_BYTES:
            return self._decoded(rows, resolution)
        if resolution not in self._memory:
            pixels = np.empty((len(self._labels), 3, resolution, resolution), dtype=np.uint8)
            self._memory[resolution] = (pixels, np.zeros(len(self._labels), dtype=bool))
        pixels, known = self._memory[resolution]
        missing = np.unique(rows[~known[rows]])
        pixels[missing] = self._decoded(missing, resolution)
        known[missing] = True
        return pixels[rows]

    def _stored_rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        rows = self._rows[split_number(split)]
        return rows[checked_indices(indices, len(rows), split)]

    def _decoded(self, rows: np.ndarray, resolution: int) -> np.ndarray:
        images = [square(self._image(int(row)), resolution) for row in rows]
        return np.stack(images) if images else np.empty((0, 3, resolution, resolution), dtype=np.uint8)

    def _image(self, row: int) -> Image.Image:
        raise NotImplementedError


class ImageFolder(_Stored):
    """PNG and JPEG files in a folder: a class per subfolder, or one class where there are none."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        """Read and, to verify, decode every image once. Raises DataError naming the first file or class amiss."""
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; set data.path to the folder of images")
        self._files, labels, names = _labelled_files(folder)
        digests = []
        for file in self._files:
            content = _read(file)
            if verify:
                decode(content, file)
            digests.append(hashlib.sha256(content).digest())
        super().__init__(digests, labels, names, folder)

    def _image(self, row: int) -> Image.Image:
        return decode(_read(self._files[row]), self._files[row])


def _labelled_files(folder: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Image files, their labels int64 [N], and the classes' names: the subfolders' in alphabetical order."""
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    loose = list(_image_files(folder.iterdir()))
    if not subfolders and not loose:
        raise DataError(f"{folder}: no PNG or JPEG file and no subfolder; put a class's images into each subfolder")
    if not subfolders:
        return loose, np.zeros(len(loose), dtype=np.int64), ("all",)
    if loose:
        raise DataError(f"{folder}: {loose[0].name} lies beside class subfolders; move it into its class's subfolder")
    found = [list(_image_files(subfolder.rglob("*"))) for subfolder in subfolders]
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found]).astype(np.int64)
    return [file for files in found for file in files], labels, tuple(subfolder.name for subfolder in subfolders)


def _image_files(entries: Iterable[Path]) -> list[Path]:
    return sorted(
        entry
        for entry in entries
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); mend or remove it") from None


def decode(content: bytes, file: Path) -> Image.Image:
    """An 8-bit RGB image, upright by its EXIF orientation, transparency laid over white. Raises DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).replace("\n", " ")
        reason = "not a PNG or JPEG" if "cannot identify" in reason else reason
        raise DataError(f"{file}: cannot be decoded ({reason}); mend or remove it") from None
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{file}: more than 8 bits a channel; convert it to 8 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


class ImageArray(_Stored):
    """An .npz file: `images` uint8 [N, H, W, 3] or [N, 3, H, W], and optional `labels`, integers [N]."""

    def __init__(self, file: Path) -> None:
        """Read the file whole into memory. Raises DataError."""
        self._pixels, values = _npz(file)
        classes, labels = np.unique(values, return_inverse=True)
        names = tuple(str(value) for value in classes) if values.any() or len(classes) > 1 else ("all",)
        digests = [hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest() for image in self._pixels]
        super().__init__(digests, labels.astype(np.int64).reshape(-1), names, file)

    def _image(self, row: int) -> Image.Image:
        return Image.fromarray(self._pixels[row])


def _npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 3] and label values [N], zeros where there are none."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; set data.path to an .npz file with the arrays `images` and `labels`")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile) or "images" not in arrays:
                raise DataError(f"{file}: no array `images`; save it with np.savez(file, images=..., labels=...)")
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays else np.zeros(len(images), dtype=np.int64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read as .npz ({error}); save it with np.savez, without objects") from None
    if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise DataError(
            f"{file}: `images` is {images.dtype} of shape {images.shape}; give uint8 of shape (N, H, W, 3) or "
            "(N, 3, H, W)"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{file}: `labels` is {labels.dtype} of shape {labels.shape}; give one integer for each of "
            f"{len(images)} images"
        )
    if images.shape[3] != 3:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images, labels
