"""Tables made from known laws: what the analysis must find again. Not a test module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

SIZES = ((16, 2), (32, 2), (48, 3), (64, 3))
LENGTHS = (16_000, 32_000, 64_000)
CENTRE = (40_000, 32_000)  # parameters and images at which `A` and `B` give the size of their terms
LAWS: Mapping[str, Mapping[str, float]] = {
    "base": {"K": 256, "T": 16, "lam": 0.0, "E": 27, "A": 5.5, "a": 0.8, "B": 5.5, "b": 0.8, "rfid": 24},
    "small-codebook": {"K": 64, "T": 16, "lam": 0.0, "E": 31, "A": 4, "a": 0.8, "B": 4, "b": 0.8, "rfid": 30},
    "more-tokens": {"K": 256, "T": 36, "lam": 0.0, "E": 9, "A": 13, "a": 0.6, "B": 12, "b": 0.6, "rfid": 7},
    "crt": {"K": 256, "T": 16, "lam": 0.1, "E": 26, "A": 5, "a": 0.8, "B": 5, "b": 0.8, "rfid": 25},
}


def body_and_head(width: int, layers: int, codes: int) -> tuple[int, int]:
    """Parameters of a plain transformer's body (12 l d^2) and head (d K)."""
    return 12 * layers * width**2, width * codes


def true_value(law: Mapping[str, float], params: Any, tokens: Any) -> Any:
    """The law, its terms being A and B at CENTRE."""
    of_params = law["A"] * (params / CENTRE[0]) ** -law["a"]
    return law["E"] + of_params + law["B"] * (tokens / law["T"] / CENTRE[1]) ** -law["b"]


def flops_per_token(width: float, layers: float, tokens: float, codes: float) -> float:
    """Training FLOPs a token: 6 a parameter, and attention's 12 l T d."""
    return 12 * 6 * layers * width**2 + 6 * width * codes + 12 * layers * tokens * width


def sweep(
    noise: float = 0.013,
    seed: int = 0,
    laws: Mapping[str, Mapping[str, float]] = LAWS,
    tokenizer_seeds: int = 1,
    seed_noise: float = 0.0,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    lengths: tuple[int, ...] = LENGTHS,
    repeats: int = 1,
) -> pd.DataFrame:
    """A finished sweep: arms x sizes x lengths x tokenizer seeds x evaluation seeds, log-normal noise a run."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, law in laws.items():
        codes, tokens = int(law["K"]), int(law["T"])
        for tokenizer_seed in range(tokenizer_seeds):
            shift = seed_noise * rng.standard_normal()
            for width, layers in sizes:
                body, head = body_and_head(width, layers, codes)
                for images in lengths:
                    seen = images * tokens
                    per_token = flops_per_token(width, layers, tokens, codes)
                    run_shift = shift + noise * rng.standard_normal()
                    for repeat in range(repeats):
                        value = float(true_value(law, body + head, seen) * np.exp(run_shift))
                        rows.append(
                            {
                                "plan": "synthetic",
                                "run": f"{arm}-{width}x{layers}-{images}-s{tokenizer_seed}",
                                "state": "done",
                                "arm": arm,
                                "codebook_size": codes,
                                "tokens_per_image": tokens,
                                "crt_weight": law["lam"],
                                "size": f"{width}x{layers}",
                                "width": width,
                                "layers": layers,
                                "images_seen": images,
                                "tokenizer_seed": tokenizer_seed,
                                "generator_seed": 0,
                                "evaluation_seed": repeat,
                                "guidance": 1.0,
                                "params": body + head,
                                "params_body": body,
                                "params_head": head,
                                "tokens_seen": seen,
                                "epochs": images / 65_536,
                                "compute": per_token * seen,
                                "compute_head": 6 * head * seen,
                                "tokenizer_compute": 4e9,
                                "loss": value / 10,
                                "loss_per_image": value / 10 * tokens,
                                "bits_per_pixel": value / 10 * tokens / np.log(2) / 256,
                                "rfid": law["rfid"],
                                "gfid": value,
                                "gkid": value / 1000,
                                "protocol": "gFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000, guidance 1.0",
                                "protocol_hash": "abc123",
                                "samples": 2_000,
                                "reference_images": 10_000,
                                "feature_dim": 64,
                                "bias_floor": 0.69,
                            }
                        )
    return pd.DataFrame(rows)
