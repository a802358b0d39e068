"""`scaling fit`: from the store's table through `analysis` to a printed answer, figures and a stored fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from analysis.report import FitReport


def fit_plan(store: Store, plan: str, metric: str, resamples: int, plots: Path | None) -> tuple[str, dict[str, Any]]:
    """(text to print, numbers as a dict) of a fit of `metric` (fid | loss | rfid) on a plan's runs.

    Draws into `plots` and stores the fit in full precision with the points it saw. Raises TableError, FitError.
    """
    from analysis.printing import render_text
    from analysis.report import fit_report

    table = store.load_runs(plan)
    report = fit_report(table, metric, resamples=resamples)
    numbers = report.to_dict()
    points = table[table["state"] == "done"]
    number = store.save_fit(
        plan=plan,
        metric=metric,
        protocol=numbers.get("protocol") or "",
        options={"resamples": resamples},
        points=points["run"].tolist(),
        result=numbers,
    )
    figures = draw(report, table, metric, plots) if plots is not None else ["none asked for"]
    stored = f"stored as fit {number} ({len(points)} points)"
    return f"{render_text(report).rstrip()}\n\nFIGURES     {'  '.join(figures)}        {stored}", numbers


def draw(report: FitReport, table: pd.DataFrame, metric: str, plots: Path) -> list[str]:
    """The figures that this report has, as PNG and SVG; what was drawn, or the reason why nothing was."""
    from analysis import figures

    drawn, reason = [], ""
    for name, make in (("compute", figures.fid_compute), ("optimum", figures.fid_optimum)):
        try:
            figure = make(report, table)
        except figures.FigureError as error:
            reason = str(error)
            continue
        _, vector = figures.save(figure, plots / f"{metric}-{name}")
        drawn.append(str(vector))
    return drawn or [f"none: {reason}"]
