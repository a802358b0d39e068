"""One arm's results as plain values: a row of the report, and the curve a figure draws. No comparison here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import ArmFit
from analysis.fitting import interval
from analysis.optimum import envelope

CURVE_POINTS = 121
CURVE_BEYOND = 3.0  # factor of compute beyond an arm's data that figures show


@dataclass(frozen=True)
class Quantity:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """An arm's envelope for figures: metric with the 95% band of a new run, best N and D, over compute."""

    compute: list[float]
    value: list[float]
    low: list[float]
    high: list[float]
    params: list[float]
    tokens: list[float]


@dataclass(frozen=True)
class ArmSummary:
    """One arm's row. `residual` and `held_out` are fractions (of ln measured - ln fitted); laws are None for rFID."""

    arm: str
    codebook_size: float | None
    tokens_per_image: float | None
    crt_weight: float | None
    rfid: float | None
    runs: int
    tokenizer_seeds: int | None
    code_bits_per_image: float | None
    code_bits_per_pixel: float | None
    floor: Quantity | None = None
    exponent: Quantity | None = None
    params: dict[str, Quantity] = field(default_factory=dict)
    residual: float | None = None
    held_out: float | None = None
    held_out_size: str | None = None
    seed_noise: float | None = None
    trained_images: tuple[float, float] | None = None
    trained_params: tuple[float, float] | None = None
    trained_compute: tuple[float, float] | None = None
    lack_of_fit: float | None = None
    curve: Curve | None = None


def mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean of the known values of a column, or None."""
    known = rows[column].dropna() if column in rows else ()
    return float(np.mean(known)) if len(known) else None


def _facts(name: str, rows: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """What an arm is: its knobs, its rFID, the bits of its code."""
    pixels = pixels_compared(table)
    codes, tokens = mean(rows, "codebook_size"), mean(rows, "tokens_per_image")
    bits = tokens * math.log2(codes) if codes and tokens else None
    return {
        "arm": name,
        "codebook_size": codes,
        "tokens_per_image": tokens,
        "crt_weight": mean(rows, "crt_weight"),
        "rfid": mean(rows, "rfid"),
        "runs": int(rows["run"].nunique()),
        "tokenizer_seeds": int(rows["tokenizer_seed"].nunique()) if "tokenizer_seed" in rows else None,
        "code_bits_per_image": bits,
        "code_bits_per_pixel": bits / pixels if bits is not None and pixels else None,
    }


def pixels_compared(table: pd.DataFrame) -> float | None:
    """Pixels compared an image, from the loss in nats an image and in bits a pixel; None where either is missing."""
    if not {"loss_per_image", "bits_per_pixel"} <= set(table.columns):
        return None
    ratio = (
        table["loss_per_image"] / math.log(2) / table["bits_per_pixel"].where(table["bits_per_pixel"] > 0)
    ).dropna()
    return float(ratio.median()) if len(ratio) else None


def summarise(fit: ArmFit, table: pd.DataFrame, seed: int) -> ArmSummary:
    """A fitted arm's row, with intervals from its draws and its curve; `seed` draws the noise of the band."""
    point = fit.fit.params
    params = {name: Quantity(point[name], *interval(values)) for name, values in fit.draws.solution.named().items()}
    if fit.fit.profiled:  # the profile likelihood, which needs no chance, where no runs share a tokenizer's noise
        params |= {name: Quantity(point[name], *fit.fit.interval(name)) for name in ("E", "exponent")}
    held = fit.held_out
    noise = fit.draws.noise.cluster if fit.draws.noise and fit.draws.noise.between_dof else None
    return ArmSummary(
        **_facts(fit.name, fit.rows, table),
        floor=params["E"],
        exponent=params["exponent"],
        params=params,
        residual=fit.fit.residual,
        held_out=held.error if held else None,
        held_out_size=held.size if held else None,
        seed_noise=noise,
        trained_images=fit.arm.lengths,
        trained_params=fit.arm.sizes,
        trained_compute=fit.arm.compute,
        lack_of_fit=fit.lack.p if fit.lack else None,
        curve=_curve(fit, seed),
    )


def _curve(fit: ArmFit, seed: int) -> Curve:
    low, high = fit.arm.compute
    compute = np.geomspace(low / CURVE_BEYOND, high * CURVE_BEYOND, CURVE_POINTS)
    found = envelope(fit.arm, compute)
    rng = np.random.default_rng(seed)
    new_run = found.log_value[1:] + fit.arm.noise * rng.standard_normal((len(found.log_value) - 1, 1))
    band = np.quantile(new_run, [0.025, 0.975], axis=0)
    point = (found.log_value[0], band[0], band[1], found.log_params[0], found.log_tokens[0])
    return Curve(compute.tolist(), *(np.exp(one).tolist() for one in point))


def reconstructions(table: pd.DataFrame) -> list[ArmSummary]:
    """rFID by arm: no law."""
    done = table[table["state"] == "done"]
    return [ArmSummary(**_facts(str(name), rows, table)) for name, rows in done.groupby("arm", sort=False)]
