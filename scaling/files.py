"""Bytes on disk: atomic writes, strict JSON, checksums, tensor files. No torch at import.

This module knows how a file is written so that a reader sees the old one, the new one or none. It does not
know what any file means or where it lies: that is `scaling.artifacts`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEADER_KEY = "scaling"  # one key only: safetensors orders several keys at random, and equal content must be equal bytes
NON_FINITE = "$float"  # strict JSON has no NaN: a non-finite float is {"$float": "nan"}


class CorruptArtifact(Exception):
    """A file is damaged, torn or not what its checksum says; the message is one line naming it."""


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data` so that a reader sees the old content or the new, never a part.

    With `sync` the content and its name survive a power cut. Parent folders are made. Raises OSError.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(path, write, sync=sync)


def _replace(path: Path, write: Callable[[Path], None], *, sync: bool) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        write(temporary)
        if sync:
            sync_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON text; NaN and infinities as {"$float": "nan"}, numbers of numpy as plain ones. Raises TypeError."""
    options: dict[str, Any] = {"indent": indent, "allow_nan": False, "ensure_ascii": False}
    try:
        return json.dumps(value, **options)  # plain values need no walk of ours
    except (TypeError, ValueError):
        return json.dumps(_encode(value), **options)


def from_json(text: str | bytes) -> Any:
    """The value that `to_json` wrote. Raises ValueError."""
    marked = NON_FINITE.encode() in text if isinstance(text, bytes) else NON_FINITE in text
    return json.loads(text, object_hook=_decode) if marked else json.loads(text)


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {NON_FINITE: str(float(value))}
    if hasattr(value, "item"):
        return _encode(value.item())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _decode(value: dict[str, Any]) -> Any:
    return float(value[NON_FINITE]) if set(value) == {NON_FINITE} else value


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write `value` atomically as indented strict JSON (see `to_json`). Raises TypeError, OSError."""
    write_atomic(path, (to_json(value, indent=1) + "\n").encode(), sync=sync)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, or CorruptArtifact where it is no JSON."""
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not readable as JSON ({error}); delete it and run the sweep again") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and `meta` (JSON values) as one safetensors file, atomically; equal content gives equal bytes.

    Returns the SHA-256 of the content (names, types, shapes, values, meta), which the file carries in its header
    and `load_tensors` checks; it is not the SHA-256 of the file. Tensors may share memory and lie on any device.
    """
    from safetensors.torch import save_file

    plain = _plain_tensors(tensors)
    text = to_json(meta)
    digest = _content_digest(plain, text)
    header = {HEADER_KEY: to_json({"sha256": digest, "meta": text})}
    _replace(path, lambda temporary: save_file(plain, temporary, metadata=header), sync=True)
    return digest


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The (tensors on the CPU, meta) of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or CorruptArtifact where the file is truncated, changed or foreign.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = from_json((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        digest, text = header["sha256"], header["meta"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorruptArtifact(f"{path}: truncated or no tensor file of this tool ({reason})") from None
    if _content_digest(tensors, text) != digest:
        raise CorruptArtifact(f"{path}: content does not match its SHA-256; the file was changed or damaged")
    return tensors, from_json(text)


def _plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached contiguous CPU tensors of which no two share memory, as safetensors demands."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage().data_ptr()
        plain[name] = flat.clone() if storage in seen else flat
        seen.add(storage)
    return plain


def _content_digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
