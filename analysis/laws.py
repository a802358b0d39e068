"""The functional forms that are fitted, as data: name, formula, parameters, inputs, source. No fitting here.

Every form is a sum of decreasing powers over an optional floor, y = E + sum_j c_j x_j^-a_j with E, c_j, a_j >= 0,
which is what `analysis.solver` solves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """One form y = E + sum_j c_j x_j^-a_j.

    `amplitudes` and `exponents` name c_j and a_j, one an input; `floor` says whether E is fitted (else it is 0).
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    amplitudes: tuple[str, ...]
    exponents: tuple[str, ...]
    floor: bool
    source: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fitted parameters: the floor (in units of y), amplitudes (of y at x = 1), exponents."""
        return (("E",) if self.floor else ()) + self.amplitudes + self.exponents

    def evaluate(self, x: Array, floor: Array, amplitudes: Array, exponents: Array) -> Array:
        """y for inputs x [n, k] and parameters floor [R], amplitudes [R, k], exponents [R, k]: [R, n]."""
        logs = np.log(x)
        y = np.repeat(np.asarray(floor, dtype=float)[:, None], len(x), axis=1)
        with np.errstate(divide="ignore"):
            log_amplitudes = np.log(amplitudes)
        for j in range(len(self.inputs)):
            y += np.exp(log_amplitudes[:, j, None] - exponents[:, j, None] * logs[None, :, j])
        return y


PLAIN_POWER = Law("power", "y = A x^-a", ("x",), ("A",), ("alpha",), False, "Hestness et al. 2017, arXiv 1712.00409")
POWER = Law("power-floor", "y = E + A x^-a", ("x",), ("A",), ("alpha",), True, "Henighan et al. 2020, arXiv 2010.14701")
CHINCHILLA = Law(
    "chinchilla",
    "y = E + A N^-a + B D^-b",
    ("N", "D"),
    ("A", "B"),
    ("alpha", "beta"),
    True,
    "Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
)
LAWS = {law.name: law for law in (PLAIN_POWER, POWER, CHINCHILLA)}


def envelope_exponent(alpha: Array | float, beta: Array | float) -> Array:
    """ab/(a+b): how fast y - E falls with compute where N and D are chosen best and compute is proportional to N D.

    Hoffmann et al. 2022, eq. 4: the optimum has N ~ C^(b/(a+b)), so A N^-a ~ C^(-ab/(a+b)), and B D^-b likewise.
    """
    a, b = np.asarray(alpha, dtype=float), np.asarray(beta, dtype=float)
    return a * b / np.maximum(a + b, np.finfo(float).tiny)


def paper_frontier(compute: Array | float, alpha: float, scale: float, floor: float) -> Array:
    """gFID = Lmin + C^-a e^lam: the frontier curves of arXiv 2412.16326, Figures 4 to 7 (C is compute_paper).

    It is `POWER` with A = e^lam; a function of its own so that printed coefficients can be held against a fit.
    """
    return floor + np.exp(scale - alpha * np.log(np.asarray(compute, dtype=float)))
