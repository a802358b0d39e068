"""What a worker does for each kind of stage, in terms of `models` and an attempt's folder.

Each recipe reads its parents' artifacts, writes its own under the attempt's output folder, and returns its
summary: a flat dict whose keys are columns of the tidy table. A change that changes results raises the kind's
version in `scaling.stages.RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import fidelity
from models.crt import predictability
from models.features import load_features
from models.quantizer import code_statistics
from models.settings import GeneratorSettings, TokenizerSettings
from models.tasks import FeatureTask, GeneratorTask, TokenizerTask, evaluate_generator, to_float
from models.training import batches
from models.weights import TRAINED
from scaling.artifacts import save_tensors, write_atomic
from scaling.context import BATCH, Context, Summary, load_tokenizer
from scaling.measuring import evaluate

DEGENERATE_PERPLEXITY = 0.02  # fewer effective codes than this share of K, or than 2, is a collapse


def run_recipe(context: Context) -> Summary:
    """Do the stage and return its summary. Raises Diverged, Stopped, Fenced, CorruptArtifact, or the work's own."""
    return RECIPE_OF[context.identity["kind"]](context)


def make_features(context: Context) -> Summary:
    """The reference images' features, and before them the network where it is trained on the data."""
    settings, source = context.settings, context.source()
    resolution, reference = int(settings["resolution"]), settings["reference"]
    weights: Path | None = None
    if settings["features"] == TRAINED:
        images, steps = int(settings["train_images"]), int(settings["cnn_steps"])

        def load_labels(rows: np.ndarray) -> np.ndarray:
            return source.labels("train", rows)

        load = partial(source.images, "train")
        task = FeatureTask(load, load_labels, resolution, images, source.classes, steps, context.seed, context.device)
        context.train(task)
        weights = context.attempt.output("weights.safetensors")
        save_tensors(weights, task.module.state_dict(), {"features": TRAINED})
    extractor = load_features(settings["features"], weights).to(context.device)

    def compared() -> Iterator[torch.Tensor]:
        for rows in batches(int(reference["images"]), BATCH):
            context.stop_between(int(rows[0]), int(reference["images"]))
            yield torch.from_numpy(source.images(reference["split"], rows, resolution))

    found = fidelity.ReferenceSet(fidelity.extract(extractor, compared()))
    write_atomic(context.attempt.output("reference.safetensors"), found.to_bytes())
    return {"feature_dim": extractor.dim, "reference_images": len(found.features)}


def train_tokenizer(context: Context) -> Summary:
    """Stage 1, and how its codes are used on the validation images at the training resolution."""
    settings, source = context.settings, context.source()
    tokenizer = TokenizerSettings.model_validate(_trained_as(settings))
    resolution, images = int(settings["resolution"]), int(settings["train_images"])
    load = partial(source.images, "train")
    task = TokenizerTask(tokenizer, resolution, load, images, context.seed, context.device)
    context.train(task)
    module = task.module.eval()
    meta = {"settings": tokenizer.model_dump(mode="json"), "resolution": resolution}
    save_tensors(context.attempt.output("model.safetensors"), module.state_dict(), meta)

    ids, latents, norms, errors = [], [], [], []
    for rows in batches(int(settings["validation_images"]), BATCH):
        pixels = to_float(source.images("validation", rows, resolution), context.device)
        with torch.no_grad():
            coded = module.code(pixels)
            error = (module.render(coded.quantized.codes).clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3))
        ids.append(coded.quantized.ids.cpu())
        latents.append(coded.latents)
        norms.append(float(coded.norm) * len(rows))
        errors.append(error.cpu())
    use = code_statistics(torch.cat(ids), tokenizer.codebook_size)
    floor = max(2.0, DEGENERATE_PERPLEXITY * tokenizer.codebook_size)
    return {
        **use,
        "degenerate": int(use["perplexity"] < floor),
        "latent_norm": sum(norms) / int(settings["validation_images"]),
        "predictability": predictability(module.predictor, torch.cat(latents)),
        "reconstruction_mse": float(torch.cat(errors).mean()),
    }


def _trained_as(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's settings as it is trained: its stride given, T that of the training resolution."""
    grid = int(settings["resolution"]) // int(settings["stride"])
    shape = {"downsample": settings["stride"], "tokens_by": "resolution", "tokens_per_image": grid * grid}
    return {**settings["tokenizer"], **shape}


def encode_tokens(context: Context) -> Summary:
    """Token ids and labels of the training and validation images: .npy files that can be memory-mapped."""
    settings, source = context.settings, context.source()
    tokenizer = load_tokenizer(context.input("tokenizer", "model.safetensors"), context.device)
    resolution, codes = int(settings["input_resolution"]), int(settings["codebook_size"])
    dtype = np.uint16 if codes <= 2**16 else np.uint32
    for split in ("train", "validation"):
        count = int(settings[f"{split}_images"])
        path = context.attempt.output(f"{split}.npy")
        shape = (count, int(settings["tokens_per_image"]))
        store = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        labels = np.empty(count, dtype=np.int64)
        for rows in batches(count, BATCH):
            context.stop_between(int(rows[0]), count)
            images = to_float(source.images(split, rows, resolution), context.device)
            store[rows] = tokenizer.encode(images).cpu().numpy().astype(dtype)
            labels[rows] = source.labels(split, rows)
        store.flush()
        np.save(context.attempt.output(f"{split}-labels.npy"), labels)
    ids = torch.from_numpy(store.astype(np.int64))
    return code_statistics(ids, codes)


def train_generator(context: Context) -> Summary:
    """Stage 2, and its cross-entropy on the validation tokens."""
    settings = context.settings
    generator = GeneratorSettings.model_validate(settings["generator"])
    codes, classes = int(settings["codebook_size"]), int(settings["classes"])
    ids, labels = _tokens(context, "train")
    task = GeneratorTask(generator, codes, ids, labels, classes, context.seed, context.device)
    last = context.train(task)
    meta = {
        "settings": generator.model_dump(mode="json"),
        "codebook_size": codes,
        "classes": classes,
        "grid": round(ids.shape[1] ** 0.5),
    }
    save_tensors(context.attempt.output("model.safetensors"), task.module.state_dict(), meta)
    positions = evaluate_generator(task.module, *_tokens(context, "validation"), context.device)
    np.save(context.attempt.output("position-loss.npy"), positions)
    image = float(positions.sum())
    return {
        "loss": float(positions.mean()),
        "loss_train": last["loss"],
        "loss_per_image": image,
        "bits_per_pixel": image / np.log(2) / int(settings["resolution"]) ** 2,
    }


def _tokens(context: Context, split: str) -> tuple[np.ndarray, np.ndarray]:
    ids = np.load(context.input("tokens", f"{split}.npy"), mmap_mode="r", allow_pickle=False)
    return ids, np.load(context.input("tokens", f"{split}-labels.npy"), allow_pickle=False)


RECIPE_OF: Mapping[str, Callable[[Context], Summary]] = {
    "features": make_features,
    "tokenizer": train_tokenizer,
    "tokens": encode_tokens,
    "generator": train_generator,
    "evaluation": evaluate,
}
