"""What the runs mean: DataFrames in, laws, optima and figures out. No torch, no Ray, no database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.fitting import Fit, FitError, fit_law
    from analysis.report import fit_report
    from analysis.selection import compare

_HOMES = {
    "Fit": "analysis.fitting",
    "FitError": "analysis.fitting",
    "compare": "analysis.selection",
    "fit_law": "analysis.fitting",
    "fit_report": "analysis.report",
}
__all__ = ["Fit", "FitError", "compare", "fit_law", "fit_report"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import analysis` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
