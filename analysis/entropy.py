"""What a code costs and carries: entropies of a tokenizer's codes, and rate against distortion by arm. No fitting here.

Rates of one image, all in bits: nominal (T log2 K), entropy-coded (T times the entropy of one code, positions pooled),
modelled (a generator's cross-entropy, the only one that knows the context). Distortion is rFID and the squared error.
Estimates of entropy from few images are too low, most of all by position (there a code is seen once an image at most):
`unseen` says how much of the codes' distribution such a sample has not met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fitting import FitError
from analysis.laws import Array
from analysis.summaries import mean, pixels_compared
from analysis.table import validate

RATES = ("code_bits", "entropy_bits", "modelled_bits")


@dataclass(frozen=True)
class Entropies:
    """Entropies (bits) of codes [n, T], positions pooled (`marginal`) and one by one (`per_position` [T]).

    Both carry the Miller-Madow correction, (codes seen - 1) / (2 samples) nats, and stop at log2 K; `_plugin` are
    without it. `utilisation` is the share of K that occurs, `perplexity` 2^marginal.

    `skew` = 1 - 2^(mean per-position) / 2^marginal (arXiv 2412.16326, Sec. 4): 0 where every position uses all codes
    alike, near 1 where codes specialise by position. `skew_plugin` is without the correction; it is biased up.
    `unseen` is the probability, mean over positions, that another image has a code not yet met at that position
    (Good-Turing: the share of samples whose code occurs once). Above about 0.1 the per-position values, and `skew`
    with them, tell of the sample's size more than of the codes.
    """

    marginal: float
    marginal_plugin: float
    per_position: Array
    per_position_plugin: Array
    utilisation: float
    perplexity: float
    skew: float
    skew_plugin: float
    unseen: float


def position_entropy(codes: np.ndarray, codebook_size: int) -> Entropies:
    """Entropies of integer codes [n images, T positions] in [0, codebook_size).

    Raises FitError: codes not a two-dimensional integer array with a row and a column, or out of range.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise FitError(f"codes are {codes.dtype} of shape {codes.shape}; give integers [images, positions]")
    if codebook_size < 1 or codes.min() < 0 or codes.max() >= codebook_size:
        raise FitError(
            f"codes run from {codes.min()} to {codes.max()}, a codebook of {codebook_size} has 0 to "
            f"{codebook_size - 1}; give the codebook_size of the tokenizer that made them"
        )
    pooled = np.zeros(codebook_size, dtype=np.int64)
    plugin, corrected, once = np.empty((3, codes.shape[1]))
    for t, column in enumerate(codes.T):  # a table [T, K] of counts can be far larger than the codes
        counts = np.bincount(column.astype(np.int64), minlength=codebook_size)
        pooled += counts
        plugin[t], corrected[t] = _entropy(counts)
        once[t] = np.count_nonzero(counts == 1) / len(codes)
    marginal_plugin, marginal = _entropy(pooled)
    return Entropies(
        marginal=marginal,
        marginal_plugin=marginal_plugin,
        per_position=corrected,
        per_position_plugin=plugin,
        utilisation=float(np.mean(pooled > 0)),
        perplexity=2**marginal,
        skew=float(1 - 2 ** (corrected.mean() - marginal)),
        skew_plugin=float(1 - 2 ** (plugin.mean() - marginal_plugin)),
        unseen=float(once.mean()),
    )


def _entropy(counts: np.ndarray) -> tuple[float, float]:
    """Plug-in and Miller-Madow entropy of counts [K], in bits."""
    seen = counts[counts > 0]
    p = seen / seen.sum()
    plugin = max(0.0, float(-p @ np.log2(p)))
    correction = (len(seen) - 1) / (2 * int(seen.sum())) / math.log(2)
    return plugin, min(plugin + correction, math.log2(len(counts)))


# --------------------------------------------------------------------------------------- rate and distortion


def rate_distortion(table: pd.DataFrame, pixels: float | None = None) -> pd.DataFrame:
    """Rates and distortions by arm, a row each, in the table's order; NaN where its columns do not tell.

    `pixels` are those of the images compared, by default from the table's loss in bits an image and a pixel.

    Columns: arm; codebook_size; tokens_per_image; pixels; `code_bits` = T log2 K, `entropy_bits` = T log2 perplexity,
    `modelled_bits` = lowest loss_per_image / ln 2 of its finished runs, each an image, and the same with `_per_pixel`;
    rfid; `mse` = 10^(-psnr / 10), of images in [0, 1], mean over runs; `gfid`, the lowest of its runs (over guidances,
    repeats averaged): a minimum of noisy values, biased low, to look at and not to rank by; `frontier`, whether no
    other arm has as few code bits and as low an rFID and one of them lower (missing where either is unknown).

    Raises FitError: no finished run, or neither rate nor distortion in the table; TableError as `validate` does.
    """
    checked = validate(table)
    done = checked[checked["state"] == "done"]
    if not len(done):
        raise FitError(f"none of {checked['run'].nunique()} runs is done; there is no rate or distortion yet")
    if not ({"codebook_size", "tokens_per_image"} <= set(done) or {"rfid", "psnr", "loss_per_image"} & set(done)):
        raise FitError("the table has no rate (codebook_size, tokens_per_image) and no distortion (rfid, psnr)")
    if pixels is not None and not (math.isfinite(pixels) and pixels > 0):
        raise FitError(f"pixels are {pixels}; give width times height of the images compared")
    pixels = pixels or pixels_compared(done) or math.nan
    found = pd.DataFrame([{"arm": arm} | _arm(rows) for arm, rows in done.groupby("arm", sort=False)])
    found.insert(3, "pixels", pixels)
    for at, name in enumerate(RATES):
        found.insert(4 + 2 * at + 1, f"{name}_per_pixel", found[name] / pixels)
    found["frontier"] = _frontier(found["code_bits"].to_numpy(), found["rfid"].to_numpy())
    return found


def _arm(rows: pd.DataFrame) -> dict[str, float]:
    codes, tokens, perplexity = (_known(rows, name) for name in ("codebook_size", "tokens_per_image", "perplexity"))
    psnr = rows["psnr"] if "psnr" in rows else pd.Series(dtype=float)
    return {
        "codebook_size": codes,
        "tokens_per_image": tokens,
        "code_bits": tokens * math.log2(codes) if codes > 0 else math.nan,
        "entropy_bits": tokens * math.log2(perplexity) if perplexity > 0 else math.nan,
        "modelled_bits": rows["loss_per_image"].min() / math.log(2) if "loss_per_image" in rows else math.nan,
        "rfid": _known(rows, "rfid"),
        "mse": float((10 ** (-psnr.dropna() / 10)).mean()),
        "gfid": _best(rows),
    }


def _known(rows: pd.DataFrame, name: str) -> float:
    value = mean(rows, name)
    return math.nan if value is None else value


def _best(rows: pd.DataFrame) -> float:
    """The lowest gFID of a run at a guidance, evaluation repeats averaged."""
    if "gfid" not in rows:
        return math.nan
    key = [name for name in ("run", "guidance") if name in rows]
    positive = rows[rows["gfid"] > 0]
    return float(np.exp(np.log(positive["gfid"]).groupby([positive[name] for name in key], dropna=False).mean().min()))


def _frontier(bits: Array, rfid: Array) -> pd.Series:
    """Points that no other dominates, as nullable booleans: [n]."""
    known = np.isfinite(bits) & np.isfinite(rfid)
    no_more = (bits[:, None] <= bits) & (rfid[:, None] <= rfid)
    less = (bits[:, None] < bits) | (rfid[:, None] < rfid)
    dominated = np.any(no_more & less & known[:, None], axis=0)
    return pd.Series(~dominated, dtype="boolean").mask(~known)
