"""Draws of what the same runs might have measured again: values and weights for a batch of refits. No fitting here.

Each scheme has its unit of resampling:
- `case`: rows, or whole clusters, drawn with replacement, as multinomial weights. For about 30 of them or more.
- `wild`: residuals turned and scaled by Webb's six-point weights, one a cluster (a row where there is one cluster).
- `noise`: new log residuals around the fitted law. For a small fixed design such as 4 sizes x 3 lengths, where a case
  draw can lose a whole size. The noise variance itself is drawn from its scaled inverse chi-square, so that 7 degrees
  of freedom give Student-wide intervals.
- `noise` with clusters: a tokenizer seed's effect on all its runs, and each run's own noise; both variances drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Array

CASES_ENOUGH = 30  # below it a case draw loses whole scales too often (coverage .80 to .91 at 5 to 12 points)


@dataclass(frozen=True)
class Noise:
    """Spread of log residuals: within a cluster (`run`, on `run_dof` degrees of freedom) and between clusters' means.

    `between` is the mean square of cluster means weighted by their sizes, on `between_dof`; `size` the clusters' size
    in it. Without replicated clusters `between_dof` is 0.
    """

    run: float
    run_dof: int
    between: float = 0.0
    between_dof: int = 0
    size: float = 1.0

    @property
    def cluster(self) -> float:
        """Estimated standard deviation of the cluster effect (one-way analysis of variance); 0 where unknown."""
        return float(np.sqrt(max(0.0, self.between - self.run**2) / self.size)) if self.between_dof else 0.0


def estimate_noise(residuals: list[Array], clusters: list[np.ndarray], parameters: list[int]) -> list[Noise]:
    """Noise of several fits: each its own run-to-run spread, the cluster effect pooled over all of them.

    `residuals` and `clusters` [n] belong to one fit each (an arm; a cluster is a tokenizer seed), `parameters` counts
    what was fitted. Fits with one cluster add nothing to the pooled effect.
    """
    squares, freedom, weighted, sizes = 0.0, 0, 0.0, []
    own: list[tuple[float, int]] = []
    for r, cluster, fitted in zip(residuals, clusters, parameters, strict=True):
        labels, index = np.unique(cluster, return_inverse=True)
        counts = np.bincount(index)
        means = np.bincount(index, weights=r) / counts
        within = r - means[index] if len(labels) > 1 else r
        dof = len(r) - fitted - (len(labels) - 1)
        own.append((float(np.sqrt(within @ within / dof)) if dof > 0 else float("nan"), dof))
        if len(labels) > 1:
            squares += float(counts @ (means - r.mean()) ** 2)
            freedom += len(labels) - 1
            weighted += (len(r) - float(counts @ counts) / len(r)) / (len(labels) - 1)
            sizes.append(1)
    between = squares / freedom if freedom else 0.0
    size = weighted / len(sizes) if sizes else 1.0
    return [Noise(run, dof, between, freedom, max(size, 1.0)) for run, dof in own]


def case_weights(rng: np.random.Generator, clusters: np.ndarray, resamples: int) -> Array:
    """Multinomial weights [resamples, n] of clusters [n] drawn with replacement; of rows where there is one cluster."""
    labels, index = np.unique(clusters, return_inverse=True)
    if len(labels) == 1:
        index = np.arange(len(clusters))
    count = int(index.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    return np.asarray(drawn[:, index], dtype=float)


WEBB = np.sqrt([1.5, 1.0, 0.5])  # and their negatives: Webb 2023, for few clusters


def wild_values(
    rng: np.random.Generator, fitted: Array, residuals: Array, leverage: Array, clusters: np.ndarray, resamples: int
) -> Array:
    """Values [resamples, n]: fitted ones times exp of residuals / (1 - leverage), a Webb weight a cluster.

    Residuals [n] are of ln y; dividing by 1 - leverage is the HC3 correction, the one that covers at 12 points.
    """
    labels, index = np.unique(clusters, return_inverse=True)
    if len(labels) == 1:
        index = np.arange(len(clusters))
    signs = rng.choice(np.r_[WEBB, -WEBB], size=(resamples, int(index.max()) + 1))
    return np.asarray(np.exp(np.log(fitted) + residuals / (1 - leverage) * signs[:, index]))


def noise_values(
    rng: np.random.Generator,
    fitted: Array,
    clusters: np.ndarray,
    noise: Noise,
    resamples: int,
    cells: np.ndarray | None = None,
) -> Array:
    """Values [resamples, n] around the fitted ones [n], times log-normal noise whose variances are drawn too.

    With `cells` [n] (labels 0..m-1 of points at equal inputs) the values [resamples, m] are the cells' means of ln y,
    whose noise is drawn as such: the same distribution, without the points.
    """
    count = len(fitted)
    if noise.run_dof < 1:
        raise ValueError("noise cannot be drawn without a degree of freedom")
    index = np.arange(count) if cells is None else cells
    size = np.bincount(index).astype(float)
    run = noise.run * np.sqrt(noise.run_dof / rng.chisquare(noise.run_dof, size=resamples))
    means = np.bincount(index, weights=np.log(fitted)) / size
    logs = means + run[:, None] * rng.standard_normal((resamples, len(size))) / np.sqrt(size)
    if noise.between_dof:
        between = noise.between * noise.between_dof / rng.chisquare(noise.between_dof, size=resamples)
        cluster = np.sqrt(np.maximum(0.0, between - run**2) / noise.size)
        labels, of = np.unique(clusters, return_inverse=True)
        share = np.zeros((len(labels), len(size)))
        np.add.at(share, (of, index), 1 / size[index])
        logs += cluster[:, None] * rng.standard_normal((resamples, len(labels))) @ share
    return np.asarray(np.exp(logs))
