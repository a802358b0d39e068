"""The way of arXiv 2412.16326: a law through the runs on the compute Pareto frontier, and what choosing them costs.

A check on the joint law, not the default: frontier points are minima of noisy values, so they lie low, and a point at
the smallest or largest size need not be an optimum. The interval is of draws that measure every run again and choose
frontier and edges anew; the interval that takes the chosen points for granted stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.fitting import DRAW_CELLS, Fit, fit_law, interval
from analysis.form import Array
from analysis.inputs import FEWEST_SCALES, FitError, positive
from analysis.laws import LAWS
from analysis.problem import Solution
from analysis.resampling import Noise, noise_values
from analysis.solver import solve

RFID_SPREAD = 0.25  # relative standard deviation of the prior that draws Lmin to rFID: a hint, never a bound
MANY_DOF = 1_000_000  # of a noise that the caller knows
JOINT = ("params", "tokens_seen")


def on_frontier(compute: Array, y: Array) -> np.ndarray:
    """Which points [..., n] no other point beats, from compute [n] and y [..., n]: no other has a lower y for at most
    the compute, nor the same y for less. Points equal in both (to 1e-9) are all on it.
    """
    cost = np.round(np.log(np.asarray(compute, dtype=float)), 9)
    order = np.argsort(cost, kind="stable")
    sorted_y = np.take(np.asarray(y, dtype=float), order, axis=-1)
    starts = np.flatnonzero(np.diff(cost[order], prepend=-np.inf))
    group = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    best = np.minimum.reduceat(sorted_y, starts, axis=-1)  # a compute's best
    cheaper = np.minimum.accumulate(best, axis=-1)
    before = np.concatenate([np.full((*best.shape[:-1], 1), np.inf), cheaper[..., :-1]], axis=-1)
    found = np.empty(sorted_y.shape, dtype=bool)
    found[..., order] = (sorted_y <= best[..., group]) & (sorted_y < before[..., group])
    return found


def at_edge(sizes: Array) -> np.ndarray:
    """Which runs [n] have the smallest or the largest of the sizes trained: a size beyond might have been better."""
    sizes = np.asarray(sizes, dtype=float)
    return (sizes <= sizes.min() * (1 + 1e-9)) | (sizes >= sizes.max() * (1 - 1e-9))


def inner_points(rows: pd.DataFrame, column: str, x: str = "compute") -> np.ndarray:
    """Which runs [n] are on the frontier and not at an edge size: those that a law is fitted to. Raises FitError."""
    compute, sizes = positive(rows, x), positive(rows, "params")
    on = on_frontier(compute, positive(rows, column))
    inner = on & ~at_edge(sizes)
    _refuse_few(compute, sizes, on, inner, x)
    return inner


@dataclass(frozen=True)
class Chosen:
    """A parameter: its value, the interval of draws that choose the points again, and the profile interval of the
    points as chosen. An end is None where it is not known, infinite where there is none.
    """

    value: float
    low: float | None
    high: float | None
    given_low: float | None
    given_high: float | None


@dataclass(frozen=True)
class FrontierFit:
    """One law through the inner points: parameters by name (Lmin, A, alpha and lambda of the paper's law)."""

    fit: Fit
    parameters: dict[str, Chosen]
    draws: Solution = field(repr=False)


@dataclass(frozen=True)
class FrontierLaw:
    """The frontier of one arm's runs and its law, Lmin fitted (`free`) and drawn to rFID (`drawn`, None without one).

    `rows` are the runs, `on` and `edge` [n] say which lie on the frontier and which of those at the smallest or largest
    size; the law is fitted to the `inner`, on but not edge. `noise` is the relative spread from run to run, and
    `noise_from` where it comes from. `r2` is of ln y over the inner points, for comparison with the paper only: it
    passes almost any falling curve. `unfitted` is the share of draws with fewer than three inner points.
    """

    rows: pd.DataFrame = field(repr=False)
    column: str
    x: str
    on: np.ndarray
    edge: np.ndarray
    free: FrontierFit
    drawn: FrontierFit | None
    noise: float
    noise_from: str
    r2: float
    unfitted: float
    level: float

    @property
    def inner(self) -> np.ndarray:
        return self.on & ~self.edge

    @property
    def counts(self) -> dict[str, int]:
        """Runs in all, on the frontier, at its edge sizes, and inside (fitted)."""
        return {
            "runs": len(self.on),
            "frontier": int(self.on.sum()),
            "edge": int(self.edge.sum()),
            "inner": int(self.inner.sum()),
        }


def frontier_law(
    rows: pd.DataFrame,
    column: str,
    x: str = "compute",
    rfid: float | None = None,
    draws: int = 1000,
    seed: int = 0,
    noise: float | None = None,
    *,
    law: str = "paper",
    level: float = 0.95,
) -> FrontierLaw:
    """The law of `column` on the Pareto frontier over `x` of one arm's finished runs, one row a run (`table.by_run`).

    y = Lmin + C^-alpha e^lambda (arXiv 2412.16326, section 3.3, its alpha with the sign changed) by least squares of
    ln y, or another `law` of one input. `rfid` adds the fit whose Lmin a prior of 25% draws to it. `noise` is the
    relative run-to-run spread; by default the residual of the joint law E + A N^-a + B D^-b of the same runs. Draws
    multiply the measured values by it, so that they carry noise twice: the intervals are wide (98% cover at 95%).
    Raises FitError: fewer than three inner points, a law without floor where `rfid` is given, no noise to be had.
    """
    form = LAWS.get(law)
    if form is None or len(form.inputs) != 1:
        raise FitError(f"a frontier takes a law of one input ({', '.join(_of_one_input())}), not {law!r}")
    compute, y, sizes = positive(rows, x), positive(rows, column), positive(rows, "params")
    on, edge_size, inner = on_frontier(compute, y), at_edge(sizes), inner_points(rows, column, x)
    chosen = rows[inner]
    spread, said, clusters = _noise(rows, column, x, law, inner, noise)
    fits = {"free": fit_law(chosen, law, x, column, noise=spread.run)}
    if rfid is not None:
        fits["drawn"] = fit_law(chosen, law, x, column, noise=spread.run, prior=(rfid, RFID_SPREAD))
    measured = noise_values(np.random.default_rng(seed), y, clusters, spread, draws)
    weight = (on_frontier(compute, measured) & ~edge_size) / spread.run**2
    usable = _distinct(compute, weight) >= max(FEWEST_SCALES, len(form.parameters))
    if not usable.any():
        raise FitError("no draw has enough points inside the frontier: no interval; add sizes between the extremes")
    found = {name: _with_draws(fit, compute, measured[usable], weight[usable], level) for name, fit in fits.items()}
    residuals, logs = fits["free"].residuals, np.log(y[inner])
    return FrontierLaw(
        rows=rows,
        column=column,
        x=x,
        on=on,
        edge=on & edge_size,
        free=found["free"],
        drawn=found.get("drawn"),
        noise=spread.run,
        noise_from=said,
        r2=float(1 - residuals @ residuals / np.sum((logs - logs.mean()) ** 2)),
        unfitted=float(np.mean(~usable)),
        level=level,
    )


def _of_one_input() -> list[str]:
    return [name for name, law in LAWS.items() if len(law.inputs) == 1]


def _refuse_few(compute: Array, sizes: Array, on: np.ndarray, inner: np.ndarray, x: str) -> None:
    found = int(_distinct(compute, inner[None].astype(float))[0])
    if found >= FEWEST_SCALES:
        return
    trained = len(np.unique(np.round(np.log(sizes), 9)))
    add = "sizes beyond the smallest and the largest" if trained >= 3 else "sizes: 5 or more"
    raise FitError(
        f"{found} of {int(on.sum())} frontier points over {x} are inside ({trained} sizes; those at the smallest and "
        f"the largest are edges), a law needs {FEWEST_SCALES}: add {add}, or fit all points"
    )


def _distinct(compute: Array, weight: Array) -> np.ndarray:
    """How many distinct computes [n] carry weight [R, n]: [R]."""
    _, index = np.unique(np.round(np.log(compute), 6), return_inverse=True)
    held = np.zeros((len(weight), int(index.max()) + 1), dtype=bool)
    for i, j in enumerate(index):
        held[:, j] |= weight[:, i] > 0
    return np.asarray(held.sum(axis=1))


def _noise(
    rows: pd.DataFrame, column: str, x: str, law: str, inner: np.ndarray, noise: float | None
) -> tuple[Noise, str, np.ndarray]:
    """Noise, where it comes from, and the clusters [n] whose runs share a part of it."""
    alone = np.zeros(len(rows), dtype=int)
    if noise is not None:
        if not (np.isfinite(noise) and noise > 0):
            raise FitError(f"noise must be a positive relative spread between runs, such as 0.013, got {noise}")
        return Noise(noise, MANY_DOF), "given", alone
    try:
        joint = fit_law(
            rows, "chinchilla", JOINT, column, cluster="tokenizer_seed" if "tokenizer_seed" in rows else None
        )
        if joint.noise().run_dof > 0 and joint.noise().run > 0:
            return joint.noise(), "residual of the joint law", joint.clusters
    except FitError:
        pass  # one length, say: no joint law
    fit = fit_law(rows[inner], law, x, column)
    if fit.dof < 1 or not fit.residual > 0:
        raise FitError(
            f"{int(inner.sum())} inner points and no joint law of these runs leave the noise unknown: give noise "
            "(0.013 is usual for FID), or add runs"
        )
    return Noise(fit.residual, fit.dof), "residual of the frontier's own law: too small, its points are chosen", alone


def _with_draws(fit: Fit, compute: Array, measured: Array, weight: Array, level: float) -> FrontierFit:
    """The fit with its law refitted to every draw: all runs are in the batch, those not chosen with weight 0."""
    rows = len(measured)
    prior = None if fit.prior is None else (np.full(rows, fit.prior[0]), np.full(rows, fit.prior[1] ** -2.0))
    used = (weight > 0).any(axis=0)  # a run that no draw chose has no weight to share
    solution = solve(
        fit.law,
        compute[used, None],
        np.ascontiguousarray(measured[:, used]),
        np.ascontiguousarray(weight[:, used]),
        fit.loss,
        prior=prior,
        cells=DRAW_CELLS,
        tolerance=1e-6,
    )
    named = solution.named()
    parameters = {}
    for name, value in fit.params.items():
        low, high = interval(named[name], level)
        parameters[name] = Chosen(value, low, high, *_given(fit, name, level))
    return FrontierFit(fit, parameters, solution)


def _given(fit: Fit, name: str, level: float) -> tuple[float | None, float | None]:
    if name not in fit.law.names and name != "lambda":
        return None, None
    try:
        with np.errstate(invalid="ignore"):
            return fit.interval(name, level, "profile")
    except np.linalg.LinAlgError:  # the walk of an amplitude far from x = 1 can meet a singular step
        return None, None
