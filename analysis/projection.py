"""Variable projection (Golub & Pereyra 1973): for a given shape of a law the rest is linear least squares, solved
exactly with coefficients >= 0, over a grid of shapes. Gives the starts that `analysis.solver` polishes; only NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from analysis.form import Array, Law

Gram = dict[tuple[int, int], Array]
# weights [n, R] and weighted targets [n, R] -> the normal equations' matrix and right-hand side, [G, R] an entry
_Equations = Callable[[Array, Array], tuple[Gram, list[Array]]]
_Group = tuple[np.ndarray, float, _Equations]
MOST_COLUMNS = 3  # coefficients that Cramer's rule below is written out for
CHUNK_BYTES = 4_000_000  # of one array over cells x problems: a few of them stay within the cache


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a cell that overflows is never the best
def starts(
    law: Law,
    u: Array,
    y: Array,
    weight: Array,
    *,
    relative: bool,
    pinned: Array,
    prior: tuple[Array, Array] | None,
    cells: int,
    count: int,
) -> Array:
    """The best `count` cells of the grid for R problems, as centred parameters [R, count, p].

    u [n, k] centred logs, y [R, n], weight [R, n]; `relative` weighs residuals by 1/y (they stand in for logarithmic
    ones). `pinned` [R] holds the first coefficient where it is a number; `prior` is (E0 [R], weight [R]) of it.
    """
    shapes = law.grid(u, cells)
    axes = law.axes(u, cells)
    if axes is None:
        groups: list[_Group] = [
            (where, power, _whole(law.columns(u, shapes[where]))) for where, power in law.links(shapes)
        ]
    else:
        groups = [(np.arange(len(shapes)), 1.0, _separable(*axes))]
    size = max(1, CHUNK_BYTES // (8 * len(shapes)))
    found = []
    for part in _chunks(len(y), size):
        own = (prior[0][part], prior[1][part]) if prior is not None else None
        found.append(_best(law, shapes, groups, y[part], weight[part], relative, pinned[part], own, count))
    return np.concatenate(found)


def _chunks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _whole(columns: Array) -> _Equations:
    """Normal equations of columns [G, n, m]."""
    count = columns.shape[2]
    split = [np.ascontiguousarray(columns[..., i]) for i in range(count)]
    pairs = {(i, j): split[i] * split[j] for i in range(count) for j in range(i, count)}
    return lambda right, moment: (
        {key: pair @ right for key, pair in pairs.items()},
        [one @ moment for one in split],
    )


def _separable(first: Array, second: Array) -> _Equations:
    """The same for columns 1, f_i, s_j over a grid of i [c, n] x j [d, n], without an array over cells and points."""

    def equations(right: Array, moment: Array) -> tuple[Gram, list[Array]]:
        shape = (len(first), len(second), right.shape[1])

        def flat(one: Array) -> Array:
            return np.broadcast_to(one, shape).reshape(-1, shape[2])

        mixed = np.matmul(first[None] * right.T[:, None, :], second.T)
        gram = {
            (0, 0): flat(right.sum(axis=0)),
            (0, 1): flat((first @ right)[:, None]),
            (0, 2): flat((second @ right)[None]),
            (1, 1): flat(((first * first) @ right)[:, None]),
            (1, 2): flat(np.moveaxis(mixed, 0, -1)),
            (2, 2): flat(((second * second) @ right)[None]),
        }
        moments = [moment.sum(axis=0), (first @ moment)[:, None], (second @ moment)[None]]
        return gram, [flat(one) for one in moments]

    return equations


def _best(
    law: Law,
    shapes: Array,
    groups: list[_Group],
    y: Array,
    weight: Array,
    relative: bool,
    pinned: Array,
    prior: tuple[Array, Array] | None,
    count: int,
) -> Array:
    rows = len(y)
    left = np.full((len(shapes), rows), np.inf)  # weighted sum of squares that a cell leaves
    coefficients = np.zeros((law.linear, len(shapes), rows))
    for where, power, equations in groups:
        found, remaining = _solve_cells(law.linear, equations, y, weight, power, relative, pinned, prior)
        left[where], coefficients[:, where] = remaining, found
    # with nothing to fit by, a cell leaves infinity; argsort keeps the grid's order there
    best = np.argsort(left, axis=0, kind="stable")[:count].T if count > 1 else np.argmin(left, axis=0)[:, None]
    problem = np.arange(rows)[:, None]
    chosen = np.moveaxis(coefficients[:, best, problem], 0, -1)
    first = int(law.floor)
    # a term the grid dropped starts small instead of at its bound, where its shape would have no gradient
    chosen[..., first:] = np.maximum(chosen[..., first:], 1e-3)
    theta = law.from_coefficients(chosen, shapes[best])
    if law.floor:
        theta[..., 0] = np.where(np.isfinite(pinned)[:, None], pinned[:, None], theta[..., 0])
    return theta


def _solve_cells(
    count: int,
    equations: _Equations,
    y: Array,
    weight: Array,
    power: float,
    relative: bool,
    pinned: Array,
    prior: tuple[Array, Array] | None,
) -> tuple[Array, Array]:
    """Coefficients [count, G, R] >= 0 and the sum of squares left [G, R]."""
    held = np.isfinite(pinned)
    target = y ** (1 / power) if power != 1 else y - np.where(held, pinned, 0.0)[:, None]
    # d(ln y) = b d(ln y^(1/b)), so that cells of different links compare
    linear = weight * power**2 / (y ** (2 / power) if relative else 1.0)
    gram, moments = equations(linear.T, (linear * target).T)
    if prior is not None:
        gram[0, 0] = gram[0, 0] + prior[1] / prior[0] ** 2
        moments[0] = moments[0] + prior[1] / prior[0]
    whole = np.einsum("rn,rn->r", linear, target**2) + (prior[1] if prior is not None else 0.0)

    gain = np.full(gram[0, 0].shape, -np.inf)
    found = np.zeros((count, *gain.shape))
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            values, explained, feasible = _least_squares(gram, moments, subset)
            better = feasible & (explained > gain)
            if 0 in subset:
                better &= ~held
            gain = np.where(better, explained, gain)
            for i in range(count):
                found[i] = np.where(better, values[subset.index(i)] if i in subset else 0.0, found[i])
    return found, whole - gain


def _least_squares(gram: Gram, moments: list[Array], subset: tuple[int, ...]) -> tuple[list[Array], Array, np.ndarray]:
    """Coefficients of `subset` by Cramer's rule, the sum of squares they explain, and whether all are >= 0."""

    def g(i: int, j: int) -> Array:
        return gram[min(subset[i], subset[j]), max(subset[i], subset[j])]

    b = [moments[i] for i in subset]
    if len(subset) == 1:
        values = [b[0] / g(0, 0)]
    elif len(subset) == 2:
        det = g(0, 0) * g(1, 1) - g(0, 1) ** 2
        values = [(b[0] * g(1, 1) - b[1] * g(0, 1)) / det, (b[1] * g(0, 0) - b[0] * g(0, 1)) / det]
    else:
        c00, c11, c22 = (
            g(1, 1) * g(2, 2) - g(1, 2) ** 2,
            g(0, 0) * g(2, 2) - g(0, 2) ** 2,
            g(0, 0) * g(1, 1) - g(0, 1) ** 2,
        )
        c01 = g(0, 2) * g(1, 2) - g(0, 1) * g(2, 2)
        c02 = g(0, 1) * g(1, 2) - g(0, 2) * g(1, 1)
        c12 = g(0, 1) * g(0, 2) - g(0, 0) * g(1, 2)
        det = g(0, 0) * c00 + g(0, 1) * c01 + g(0, 2) * c02
        values = [
            (c00 * b[0] + c01 * b[1] + c02 * b[2]) / det,
            (c01 * b[0] + c11 * b[1] + c12 * b[2]) / det,
            (c02 * b[0] + c12 * b[1] + c22 * b[2]) / det,
        ]
    explained = sum(value * moment for value, moment in zip(values, b, strict=True))
    feasible = np.isfinite(explained) & np.all([value >= 0 for value in values], axis=0)
    return values, np.asarray(explained), feasible
