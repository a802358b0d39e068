"""What repeats measured: how far apart equal runs lie, and whether a law misses its points by more than that.

Spreads are standard deviations of ln y: fractions of y, nearly constant over sizes and lengths for FID (arXiv
2606.20536). No law is fitted here; the draws behind intervals are `analysis.resampling`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from analysis.inputs import FitError
from analysis.laws import Array
from analysis.table import TableError

ASSUMED_TRAINING = 0.013  # median over cells of unguided FID between trainings (arXiv 2606.20536)
CELL = ("arm", "size", "images_seen")
SETTING = ("guidance", "protocol_hash")
SAME = 1e-12  # relative difference below which a value was copied, not measured again


@dataclass(frozen=True)
class Spread:
    """Standard deviations of ln y by what was repeated; None on 0 degrees of freedom where nothing was.

    `sampling`: one run evaluated again. `generator`: stage 2 trained again on the same tokenizer. `tokenizer`: stage 1
    trained again; where no generator was repeated on a tokenizer it holds the generator's share too, as `generator`
    and `tokenizer` hold sampling's where no run was evaluated again. `tokenizer_dof` counts tokenizers, not runs: all
    runs on one share its effect. `training` is what one run's expectation varies by: tokenizer and generator, on
    `training_dof` runs beyond the first of their cell, or `assumed`. `repeats` is the harmonic mean of evaluations a
    run.
    """

    sampling: float | None
    sampling_dof: int
    generator: float | None
    generator_dof: int
    tokenizer: float | None
    tokenizer_dof: int
    training: float
    training_dof: int
    assumed: bool
    repeats: float

    @property
    def run(self) -> float:
        """What one run's value varies by, averaged over its evaluations: training, and sampling over `repeats`."""
        return math.sqrt(self.training**2 + (self.sampling or 0.0) ** 2 / self.repeats)


@dataclass(frozen=True)
class _Level:
    """Between the units of one level: pooled sum of squares, its degrees of freedom, the variance of a unit."""

    dof: int
    variance: float | None

    @property
    def spread(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)


def measured_spread(table: pd.DataFrame, column: str) -> Spread:
    """Spreads of ln `column` over the done rows of a tidy table, pooled over cells of one arm, size and length.

    The nested layout's expected mean squares, for unequal numbers: a pooled variance of means, less the mean share
    that the levels below have in it, never below 0 (Searle, Casella & McCulloch, Variance Components, 1992, ch. 3).
    Of several guidances or protocols the one with most rows counts, since they repeat the same trainings. A level
    whose repeats are equal to 12 digits was not measured again (a validation loss by evaluation seed) and is None;
    as is one whose seed column is missing. Runs of a cell that share both seeds count once: something else differs.
    Raises TableError where a column of the cells or `column` is missing.
    """
    missing = [name for name in (*CELL, "run", column) if name not in table.columns]
    if missing:
        raise TableError(f"spread of {column}: the table has no column {', '.join(missing)}")
    rows = _one_setting(_positive(table, column))
    cell = [*CELL, *(name for name in ("learning_rate",) if name in rows)]
    if "evaluation_seed" in rows:
        rows = rows.drop_duplicates(["run", "evaluation_seed"])
    else:
        rows = rows.drop_duplicates("run")
    sampling = _level(rows["_log"].to_numpy(), _codes(rows, ["run"]), np.zeros(len(rows)))

    runs = _runs(rows, cell)
    known = sampling.variance or 0.0
    generator = _level(runs["mean"].to_numpy(), _codes(runs, [*cell, "tokenizer_seed"]), known * runs["share"])
    below = (generator.variance or 0.0) + known * runs["share"]  # variance of a run's mean on its tokenizer

    grouped = runs.assign(below=below).groupby([*cell, "tokenizer_seed"], sort=False, dropna=False)
    units = grouped.agg(mean=("mean", "mean"), below=("below", "sum"), runs=("mean", "size")).reset_index()
    tokenizer = _level(units["mean"].to_numpy(), _codes(units, cell), units["below"] / units["runs"] ** 2)

    parts = [one.variance for one in (generator, tokenizer) if one.variance is not None]
    return Spread(
        sampling=sampling.spread,
        sampling_dof=sampling.dof,
        generator=generator.spread,
        generator_dof=generator.dof,
        tokenizer=tokenizer.spread,
        tokenizer_dof=_tokenizers(units, cell) if tokenizer.dof else 0,
        training=math.sqrt(sum(parts)) if parts else ASSUMED_TRAINING,
        training_dof=generator.dof + tokenizer.dof,
        assumed=not parts,
        repeats=float(1 / runs["share"].mean()) if len(runs) else 1.0,
    )


def _positive(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Done rows whose value has a logarithm, which is column `_log`."""
    done = table[table["state"] == "done"] if "state" in table else table
    values = pd.to_numeric(done[column], errors="coerce").to_numpy(dtype=float)
    kept = np.isfinite(values) & (values > 0)
    return done[kept].assign(_log=np.log(values[kept])).reset_index(drop=True)


def _one_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the guidance and protocol with most of them; all where a guidance was chosen for every run."""
    names = [name for name in SETTING if name in rows and not (name == "guidance" and "guidance_edge" in rows)]
    if not names or not len(rows):
        return rows
    codes = _codes(rows, names)
    return rows[codes == np.argmax(np.bincount(codes))]


def _runs(rows: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """One row a run: its cell, seeds, `mean` of ln y, and `share` = 1 / evaluations."""
    grouped = rows.groupby("run", sort=False)
    first = grouped.first().reset_index()
    counts = grouped["_log"].size().to_numpy()
    runs = first[cell].assign(
        # a seed without its column counts as one: its repeats cannot be told from other differences
        tokenizer_seed=first.get("tokenizer_seed", 0),
        generator_seed=first.get("generator_seed", 0),
        mean=grouped["_log"].mean().to_numpy(),
        share=1.0 / counts,
    )
    return runs.drop_duplicates([*cell, "tokenizer_seed", "generator_seed"]).reset_index(drop=True)


def _codes(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """A number a row, equal where all of `names` are equal; in order of first appearance."""
    return rows.groupby(names, sort=False, dropna=False).ngroup().to_numpy()


def _level(values: Array, groups: np.ndarray, share: Array) -> _Level:
    """Variance between units of a group, pooled: units' `values` [n], whose levels below have variance `share` [n]."""
    if not len(values):
        return _Level(0, None)
    counts = np.bincount(groups)
    means = np.bincount(groups, weights=values) / counts
    squares = float(np.sum((values - means[groups]) ** 2))
    dof = int(np.sum(counts - 1))
    if dof == 0 or squares <= dof * SAME**2:
        return _Level(0, None)
    # E[squares] of a group of m units is (m - 1) times the level's variance and the mean share
    below = float(np.sum((counts - 1) * np.bincount(groups, weights=np.asarray(share, dtype=float)) / counts))
    return _Level(dof, max(0.0, (squares - below) / dof))


def _tokenizers(units: pd.DataFrame, cell: list[str]) -> int:
    """Tokenizers beyond the first of their arm, among those compared within a cell."""
    codes = _codes(units, cell)
    size = np.bincount(codes)[codes]
    compared = units.assign(extra=1 - 1 / size)[size > 1]
    by_arm = compared.groupby("arm", sort=False)
    found = by_arm.agg(seeds=("tokenizer_seed", lambda seeds: seeds.nunique(dropna=False)), extra=("extra", "sum"))
    return int(np.minimum(found["seeds"] - 1, found["extra"].round()).sum())


def described(spread: Spread) -> str:
    """One phrase: `training 1.2% (12 repeats), sampling .4% (30)`; the counts are degrees of freedom."""
    sampling = "" if spread.sampling is None else f", sampling {_percent(spread.sampling)} ({spread.sampling_dof})"
    if spread.assumed:
        reason = "no training was repeated" if sampling else "nothing was repeated"
        return f"training {_percent(spread.training)} assumed: {reason}{sampling}"
    count = f"{spread.training_dof} repeat{'s' * (spread.training_dof != 1)}"
    if spread.tokenizer is not None:
        count += f", {spread.tokenizer_dof} more tokenizer{'s' * (spread.tokenizer_dof != 1)}"
    return f"training {_percent(spread.training)} ({count}){sampling}"


def _percent(value: float) -> str:
    """1.2%, .4%."""
    return f"{value:.1%}".removeprefix("0") if value >= 0.0005 else "under .1%"


def over_noise(fit_residual: float, spread: Spread, tokenizers: int | None = None) -> float:
    """A fit's residual standard deviation over the spread of one run: 1 is as good as the noise allows.

    `fit_residual` is of ln y of run means, as `Fit.residual`. `tokenizers` is the number of tokenizer seeds in the fit:
    its law takes up their mean effect, so that 1 - 1/tokenizers of their variance is left in the residuals; None leaves
    all of it. Without `spread.generator` the two cannot be told apart, and all is left.
    """
    noise = spread.run**2
    if tokenizers and spread.tokenizer is not None and spread.generator is not None:
        noise -= spread.tokenizer**2 / tokenizers
    return fit_residual / math.sqrt(noise) if noise > 0 else math.inf


@dataclass(frozen=True)
class LackOfFit:
    """The pure-error F test: `f` on (`lack_dof`, `pure_dof`), its `p`; `lack` and `pure` are root mean squares.

    A small `p` says that the law misses the cells' means by more than repeats differ.
    """

    f: float
    p: float
    lack: float
    lack_dof: int
    pure: float
    pure_dof: int


def lack_of_fit(
    residuals: Array,
    cells: Sequence[object] | np.ndarray,
    parameters: int,
    clusters: Sequence[object] | np.ndarray | None = None,
) -> LackOfFit | None:
    """Whether a law of `parameters` fits: `residuals` [n] of ln y, `cells` [n] labels equal where all inputs are.

    F = (SS_lack / (m - parameters)) / (SS_pure / (n - m)) over m cells, where SS_pure is within cells and SS_lack of
    their means (Draper & Smith, Applied Regression Analysis, 1998, 2.1); exact for a linear law, near it for laws
    linear within the noise. `clusters` [n] are tokenizer seeds: an effect that runs of several cells share raises pure
    error alone and would let wrong laws pass, so each cluster's is estimated beside the cells' and taken out, all but
    one costing a degree of freedom; exact where every cluster has every cell. None without repeats (or equal ones),
    or without a degree of freedom for lack of fit. Raises FitError: lengths differ, a residual is not finite.
    """
    values = np.asarray(residuals, dtype=float)
    for what, labels in (("cell", cells), ("cluster", clusters)):
        if labels is not None and (values.ndim != 1 or len(values) != len(labels)):
            raise FitError(f"{values.size} residuals for {len(labels)} {what} labels: give one label a residual")
    if not np.isfinite(values).all():
        raise FitError(f"residual {int(np.argmin(np.isfinite(values)))} is not finite: fit the law first")
    shared = np.ones((len(values), 1)) if clusters is None else _indicators(clusters)
    # cells first, then what of the clusters varies within them (Frisch & Waugh 1933): the same, and a small problem
    within, count = _without_means(np.column_stack([values, shared]), cells)
    pure_squares, rank = _left(within[:, 0], within[:, 1:])
    rank += count
    # the law takes up one common shift: without clusters nothing else is taken from the residuals
    all_squares, common = (float(values @ values), 1) if clusters is None else _left(values, shared)
    lack_dof, pure_dof = rank - common + 1 - parameters, len(values) - rank
    if lack_dof < 1 or pure_dof < 1 or pure_squares <= pure_dof * SAME**2:
        return None
    lack, pure = (all_squares - pure_squares) / lack_dof, pure_squares / pure_dof
    f = max(0.0, lack / pure)
    p = float(fdtrc(lack_dof, pure_dof, f))
    return LackOfFit(f, p, math.sqrt(max(0.0, lack)), lack_dof, math.sqrt(pure), pure_dof)


def _indicators(labels: Sequence[object] | np.ndarray) -> Array:
    """A column a distinct label, 1 where a row has it [n, m]."""
    numbers: dict[object, int] = {}
    codes = [numbers.setdefault(one, len(numbers)) for one in labels]
    return np.asarray(np.eye(len(numbers))[codes], dtype=np.float64)


def _without_means(columns: Array, labels: Sequence[object] | np.ndarray) -> tuple[Array, int]:
    """Columns [n, m] less their means by label, and the number of labels."""
    numbers: dict[object, int] = {}
    codes = np.array([numbers.setdefault(one, len(numbers)) for one in labels])
    sums = np.zeros((len(numbers), columns.shape[1]))
    np.add.at(sums, codes, columns)
    return np.asarray(columns - (sums / np.bincount(codes)[:, None])[codes]), len(numbers)


def _left(values: Array, design: Array) -> tuple[float, int]:
    """Sum of squares that least squares on `design` [n, m] leaves, and the design's rank."""
    basis, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(float(sizes.max()), 1.0)]
    left = values - basis @ (basis.T @ values)
    return float(left @ left), basis.shape[1]
