"""How long a five-parameter Huber fit and 1,000 robust resamples of it take, beside the recipes others use. One core.

The 240 points of the Chinchilla replication where they lie beside the checkout (../shared/fitdata), else as many points
of the same design from its published law. Peers, each on the same points and objective in this run: the 4,500-start
L-BFGS-B recipe with analytic gradients (Hoffmann et al. 2022; Besiroglu et al. 2024), timed on 60 of its starts and
scaled; and one BFGS start a resample from the optimum, the fastest peer that converges, on 40 resamples and scaled.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from analysis import fit_law

DATA = Path(__file__).resolve().parents[2] / "shared" / "fitdata" / "epoch_chinchilla" / "svg_extracted_data.csv"
DELTA = 1e-3
AIM_FIT, AIM_DRAWS = 0.020, 1.0  # seconds
REPEATS, STARTS, RESAMPLES = 15, 60, 40
GRID = (range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))


def points() -> pd.DataFrame:
    """N, D, loss of the 240 points, or of a stand-in of the same design."""
    if DATA.exists():
        raw = pd.read_csv(DATA)
        n = raw["Model Size"]
        table = pd.DataFrame({"N": n, "D": raw["Training FLOP"] / 6 / n, "loss": raw["loss"]})
        return table[table["loss"] < table["loss"].nlargest(5).min()]
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), 240)), np.exp(rng.uniform(np.log(1e9), np.log(5e11), 240))
    loss = (1.8172 + 482 * n**-0.3478 + 2085 * d**-0.3658) * np.exp(0.006 * rng.standard_normal(240))
    return pd.DataFrame({"N": n, "D": d, "loss": loss})


def cost(theta: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """Huber's loss of ln y - logsumexp(a - alpha ln N, b - beta ln D, e) and its gradient by (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = theta
    parts = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    top = parts.max(axis=0)
    weights = np.exp(parts - top)
    total = weights.sum(axis=0)
    r = y - top - np.log(total)
    size = np.abs(r)
    inner = np.minimum(size, DELTA)
    pull = -w * np.clip(r, -DELTA, DELTA) * weights / total
    gradient = np.array([pull[0].sum(), pull[1].sum(), pull[2].sum(), -(pull[0] * n).sum(), -(pull[1] * d).sum()])
    return float(np.sum(w * inner * (size - inner / 2))), gradient


def median(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    table = points()
    n, d, y = (np.log(table[name].to_numpy()) for name in ("N", "D", "loss"))
    ones = np.ones_like(n)

    def ours() -> object:
        return fit_law(table, "chinchilla", ["N", "D"], objective="huber", delta=DELTA)

    fit = ours()
    fit_seconds = median(ours, REPEATS)
    draws_seconds = median(lambda: fit_law(table, objective="huber", delta=DELTA).bootstrap(1000, seed=0), 5)

    starts = list(itertools.product(*GRID))
    chosen = [starts[i] for i in np.random.default_rng(0).choice(len(starts), STARTS, replace=False)]
    begin = time.perf_counter()
    ends = [minimize(cost, start, args=(n, d, y, ones), jac=True, method="L-BFGS-B").fun for start in chosen]
    recipe = (time.perf_counter() - begin) / STARTS * len(starts)
    near = sum(end <= fit.objective_value * 1.01 for end in ends)

    p = fit.params
    best = np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])
    rng = np.random.default_rng(1)
    begin = time.perf_counter()
    for _ in range(RESAMPLES):
        weights = rng.multinomial(len(n), np.full(len(n), 1 / len(n))).astype(float)
        minimize(cost, best, args=(n, d, y, weights), jac=True, method="BFGS")
    peer_draws = (time.perf_counter() - begin) / RESAMPLES * 1000

    print(f"{len(table)} points {'of the replication' if DATA.exists() else 'made up'}, Huber {DELTA:g} of ln loss")
    rows = [
        ("one fit", f"{fit_seconds * 1e3:.1f} ms", f"objective {fit.objective_value:.9g}"),
        (
            f"  {len(starts)}-start L-BFGS-B ({STARTS} timed, {near} end within 1%)",
            f"{recipe:.1f} s",
            f"x{recipe / fit_seconds:,.0f}",
        ),
        ("1,000 resamples, a fresh global grid each", f"{draws_seconds:.2f} s", ""),
        (
            f"  one BFGS start from the optimum ({RESAMPLES} timed)",
            f"{peer_draws:.1f} s",
            f"x{peer_draws / draws_seconds:.0f}",
        ),
        (
            f"  the {len(starts)}-start recipe each",
            f"{recipe * 1000 / 3600:.1f} h",
            f"x{recipe * 1000 / draws_seconds:,.0f}",
        ),
    ]
    for what, took, note in rows:
        print(f"{what:<54}{took:>10}   {note}".rstrip())
    holds = fit_seconds <= AIM_FIT and draws_seconds <= AIM_DRAWS
    line = {"name": "five-parameter Huber fit of 240 points", "figure": round(fit_seconds * 1e3, 2), "unit": "ms"}
    line |= {"aim": AIM_FIT * 1e3, "resamples_seconds": round(draws_seconds, 3), "resamples_aim": AIM_DRAWS}
    print(json.dumps({**line, "times_the_recipe": round(recipe / fit_seconds), "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if all(os.environ.get(name) == "1" for name in one):
        sys.exit(main())
    sys.exit(subprocess.run([sys.executable, __file__], env={**os.environ, **one}).returncode)  # read at NumPy's start
