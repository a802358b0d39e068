"""What a fit was asked for, as objects: the law by its name, the loss, the points' weights. Refuses what is unknown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.form import Array, Law
from analysis.inputs import ALIASES, FitError, positive
from analysis.laws import LAWS
from analysis.problem import OBJECTIVES, RESIDUALS, Loss
from analysis.surface import surface_of


def form_of(law: str | Law, names: tuple[str, ...] | None, table: pd.DataFrame) -> Law:
    """The law of a name over inputs `names`; a surface takes its unit of the CRT weight from the table. FitError."""
    if isinstance(law, Law):
        return law
    if law == "surface":
        asked = names or ("C", "T")
        weights = [positive(table, name) for name in asked if ALIASES.get(name, name) == "crt_weight"]
        return surface_of(asked, weights[0] if weights else None)
    if law not in LAWS:
        raise FitError(f"law {law!r} is none of {', '.join((*LAWS, 'surface', 'auto'))}")
    return LAWS[law]


def loss_of(objective: str, delta: float, residual: str) -> Loss:
    """The loss of these words. Raises FitError."""
    if objective not in OBJECTIVES or residual not in RESIDUALS or not delta > 0:
        raise FitError(
            f"objective {objective!r} ({', '.join(OBJECTIVES)}), residual {residual!r} ({', '.join(RESIDUALS)}), "
            f"delta {delta} (> 0)"
        )
    return Loss(objective, float(delta), residual)


def weights_of(table: pd.DataFrame, noise: float | str) -> Array:
    """1 / variance of each row's residual [n], `noise` one standard deviation or a column of them. Raises FitError."""
    spread = positive(table, noise) if isinstance(noise, str) else np.full(len(table), float(noise))
    if not (np.isfinite(spread) & (spread > 0)).all():
        raise FitError(f"noise must be a positive standard deviation of a residual, got {noise}")
    return 1 / spread**2
