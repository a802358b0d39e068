"""The tidy table that every analysis reads: its columns with unit and meaning, and what makes a table unusable.

A row is run x protocol x repeat: one evaluation of one run. `scaling.store` fills it; nothing here reads files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

STATES = ("done", "diverged", "degenerate", "failed", "running", "pending")
Kind = Literal["text", "count", "size", "real"]


class TableError(ValueError):
    """A table that cannot be analysed; its message is one line saying what, where and what to do."""


@dataclass(frozen=True)
class Column:
    """One column. `kind` is text; count (integer >= 0); size (real >= 0); real (any number)."""

    name: str
    unit: str
    meaning: str
    kind: Kind


COLUMNS: tuple[Column, ...] = (
    Column("plan", "", "plan the run belongs to", "text"),
    Column("run", "", "name of the run: one tokenizer x generator size x length x their seeds", "text"),
    Column("state", "", "done, diverged, degenerate, failed, running or pending", "text"),
    Column("arm", "", "name of the stage-1 setting: what is compared", "text"),
    Column("codebook_size", "codes", "K", "count"),
    Column("tokens_per_image", "tokens", "T", "count"),
    Column("crt_weight", "1", "lambda, weight of the causal regulariser", "size"),
    Column("tokens_by", "", "how T varies: resolution or downsample", "text"),
    Column("size", "", "generator's shape, WIDTHxLAYERS", "text"),
    Column("width", "1", "generator's width d", "count"),
    Column("layers", "1", "generator's blocks", "count"),
    Column("images_seen", "images", "training length of the generator", "count"),
    Column("tokenizer_seed", "", "seed of stage 1", "count"),
    Column("generator_seed", "", "seed of stage 2", "count"),
    Column("evaluation_seed", "", "seed of sampling", "count"),
    Column("guidance", "1", "classifier-free guidance; 1 is none", "size"),
    Column("params", "parameters", "N: body and head of the generator, no embeddings", "count"),
    Column("params_body", "parameters", "blocks and norms", "count"),
    Column("params_head", "parameters", "output head", "count"),
    Column("params_total", "parameters", "all of the generator's", "count"),
    Column("steps", "steps", "optimiser steps of the generator", "count"),
    Column("tokens_seen", "tokens", "D: training tokens of the generator", "count"),
    Column("epochs", "1", "passes over the encoded training images", "size"),
    Column("compute", "FLOPs", "generator training, exact matmul: body, head, attention", "size"),
    Column("compute_head", "FLOPs", "the head's part of compute", "size"),
    Column("compute_total", "FLOPs", "compute and one full tokenizer", "size"),
    Column("compute_6nd", "FLOPs", "6 N D, for comparison only (arXiv 2001.08361)", "size"),
    Column("compute_paper", "FLOPs", "6 N T steps, no batch: the axis of arXiv 2412.16326 only", "size"),
    Column("tokenizer_compute", "FLOPs", "one full training of the tokenizer", "size"),
    Column("loss", "nats/token", "validation cross-entropy", "size"),
    Column("loss_train", "nats/token", "training cross-entropy at the end", "size"),
    Column("loss_per_image", "nats", "validation cross-entropy summed over an image's tokens", "size"),
    Column("bits_per_pixel", "bits", "loss_per_image in bits over the pixels compared", "size"),
    Column("rfid", "FID", "reconstructions against the reference", "size"),
    Column("rkid", "KID", "the same, unbiased kernel distance (may be below 0)", "real"),
    Column("psnr", "dB", "of reconstructions", "real"),
    Column("gfid", "FID", "generations against the reference", "size"),
    Column("gkid", "KID", "the same, unbiased kernel distance (may be below 0)", "real"),
    Column("usage", "1", "share of codes used on validation images", "size"),
    Column("perplexity", "codes", "exp of the codes' entropy", "size"),
    Column("latent_norm", "1", "mean norm of latents before quantisation", "size"),
    Column("predictability", "1", "1 - MSE/variance of the causal predictor (may be below 0)", "real"),
    Column("protocol", "", "how fidelity was measured, in words", "text"),
    Column("protocol_hash", "", "hash of the same; values under different hashes are never fitted together", "text"),
    Column("samples", "images", "generated for FID", "count"),
    Column("reference_images", "images", "compared with", "count"),
    Column("feature_dim", "1", "dimension of the features", "count"),
    Column("bias_floor", "FID", "expected FID of that many perfect samples: finite-sample bias", "size"),
    Column("resize_fid", "FID", "of images only resized as this arm's outputs are", "size"),
    Column("seconds", "s", "wall time of the run's generator", "size"),
    Column("finished", "s", "Unix time at which the run's last stage ended", "size"),
)
BY_NAME = {column.name: column for column in COLUMNS}
METRICS = {"fid": "gfid", "loss": "loss", "rfid": "rfid"}  # word in a command -> column
DESIGN = ("run", "state", "arm")
LAW_INPUTS = ("params", "tokens_seen", "compute")


def validate(df: pd.DataFrame, needs: tuple[str, ...] = ()) -> pd.DataFrame:
    """A checked copy, its numeric columns as float64. Columns not in COLUMNS stay as they are.

    `needs` are columns that must be there and filled in every row that is done. Raises TableError: no rows, missing
    columns, an unknown state, a number its kind forbids, a needed value missing, protocols mixed among rows done.
    """
    if len(df) == 0:
        raise TableError("the table has no rows; run `scaling sweep` first, or check the plan's name")
    missing = [name for name in (*DESIGN, *needs) if name not in df.columns]
    if missing:
        raise TableError(f"column{'s' * (len(missing) > 1)} missing from the table: {', '.join(missing)}")
    table = df.reset_index(drop=True)
    unknown = sorted(set(table["state"].map(str)) - set(STATES))
    if unknown:
        where = _run_where(table, table["state"].map(str) == unknown[0])
        raise TableError(f"state {unknown[0]!r} of run {where} is none of {', '.join(STATES)}")
    for column in COLUMNS:
        if column.name in table.columns and column.kind != "text":
            table[column.name] = _numbers(table, column)
    done = table["state"] == "done"
    for name in needs:
        empty = done & table[name].isna()
        if empty.any():
            raise TableError(
                f"{name} of run {_run_where(table, empty)} is missing though the run is done; rebuild or rerun it"
            )
    _one_protocol(table[done])
    return table


def _run_where(table: pd.DataFrame, rows: pd.Series) -> str:
    return repr(str(table.loc[rows, "run"].iloc[0]))


def _numbers(table: pd.DataFrame, column: Column) -> pd.Series:
    values = pd.to_numeric(table[column.name], errors="coerce").astype(float)
    unread = values.isna() & table[column.name].notna()
    if unread.any():
        found = table.loc[unread, column.name].iloc[0]
        raise TableError(f"{column.name} of run {_run_where(table, unread)} is not a number: {found!r}")
    wrong = values.abs().eq(np.inf) | (values.lt(0) & (column.kind != "real"))
    if wrong.any():
        value = values[wrong].iloc[0]
        raise TableError(
            f"{column.name} of run {_run_where(table, wrong)} is {value:g}; it must be finite and not negative"
        )
    return values


def _one_protocol(done: pd.DataFrame) -> None:
    """Raise TableError where rows were measured in several ways, showing in what they differ."""
    if "protocol_hash" not in done.columns:
        return
    known = done.dropna(subset=["protocol_hash"])
    hashes = list(known["protocol_hash"].unique())
    if len(hashes) < 2:
        return
    said = [
        str(known.loc[known["protocol_hash"] == one, "protocol"].iloc[0]) if "protocol" in known else one
        for one in hashes[:2]
    ]
    parts = [[part.strip() for part in text.split(",")] for text in said]
    only = [[part for part in parts[i] if part not in parts[1 - i]] for i in (0, 1)]
    shown = [", ".join(part) or str(one)[:12] for part, one in zip(only, hashes, strict=False)]
    raise TableError(
        f"{len(hashes)} protocols in one table, {shown[0]} against {shown[1]}: they are never fitted together; "
        f"choose one, as in --where protocol_hash={hashes[0]}"
    )


def designed(df: pd.DataFrame) -> pd.DataFrame:
    """The table with `size`, `images_seen` and `tokens_per_image`, made from what it has where they are missing.

    A table from elsewhere may count tokens alone: then T is 1, an image a token, and `length_unit` says "tokens".
    """
    table = df.copy()
    numbers = {
        name: pd.to_numeric(table[name], errors="coerce")
        for name in ("params", "tokens_seen", "images_seen", "tokens_per_image")
        if name in table
    }
    if "size" not in table and "params" in numbers:
        table["size"] = numbers["params"].map(lambda count: f"{count:.10g}")
    if "tokens_seen" not in numbers:
        return table
    if "images_seen" not in numbers and "tokens_per_image" not in numbers:
        table["tokens_per_image"], table["length_unit"] = 1.0, "tokens"
        table["images_seen"] = numbers["tokens_seen"]
    elif "images_seen" not in numbers:
        table["images_seen"] = numbers["tokens_seen"] / numbers["tokens_per_image"]
    elif "tokens_per_image" not in numbers:
        table["tokens_per_image"] = numbers["tokens_seen"] / numbers["images_seen"]
    return table


def select(df: pd.DataFrame, metric: str, guidance: float = 1.0) -> pd.DataFrame:
    """Rows that count for `metric` (fid, loss, rfid): validated, and for FID at `guidance` alone.

    Rows that are not done stay, for the rates. Raises TableError for an unknown metric, several
    plans, no finished run, or a table without that guidance.
    """
    if metric not in METRICS:
        raise TableError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    plans = sorted(df["plan"].dropna().astype(str).unique()) if "plan" in df.columns else []
    if len(plans) > 1:
        raise TableError(
            f"{len(plans)} plans in one table ({', '.join(plans)}): runs of one would count twice; name one plan"
        )
    if len(df) and "state" in df.columns and not (df["state"] == "done").any():
        raise TableError(f"none of {df['run'].nunique() if 'run' in df else len(df)} runs is done; nothing to fit yet")
    if metric != "loss" and "guidance" in df.columns and "state" in df.columns:
        done = df["state"] == "done"
        given = pd.to_numeric(df["guidance"], errors="coerce")
        at = done & (given - guidance).abs().lt(1e-9)
        if not at.any() and given[done].notna().any():
            found = ", ".join(f"{value:g}" for value in sorted(given[done].dropna().unique()))
            raise TableError(f"no run was evaluated at guidance {guidance:g} (found: {found}); add it to the plan")
        df = df[~done | at | given.isna()]
    if metric == "rfid":
        return validate(df, ("rfid", "codebook_size", "tokens_per_image"))
    table = designed(df.drop(columns=["protocol_hash"], errors="ignore") if metric == "loss" else df)
    return validate(table, (METRICS[metric], *LAW_INPUTS))


def by_run(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row a run: repeats (evaluation seeds) averaged in ln `column`, since resampling is no independent training.

    Also numeric `gkid` is averaged where present; all else is the run's first row. Sorted by size and length.
    """
    positive = rows[rows[column] > 0]
    logs = positive.assign(**{column: np.log(positive[column].to_numpy(dtype=float))})
    grouped = logs.groupby(["arm", "run"], sort=False)
    table = grouped.first().reset_index()
    table[column] = np.exp(grouped[column].mean().to_numpy())
    if "gkid" in table and column != "gkid":
        table["gkid"] = grouped["gkid"].mean().to_numpy()
    order = [name for name in ("params", "images_seen", "run") if name in table]
    return table.sort_values(order, kind="stable").reset_index(drop=True)
