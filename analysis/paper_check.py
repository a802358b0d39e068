"""The paper's way beside ours: the law of each arm's compute frontier, Lmin + C^-alpha e^lambda, and the joint law's.

`scaling fit --law paper`. The points of a frontier are minima of noisy values and its edge sizes are no optima
(docs/fitting.md), so the frontier's law is a check; what decides is the joint law.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.arms import LeftOut
from analysis.fitting import FitError, fit_law
from analysis.frontier import Chosen, FrontierLaw, frontier_law
from analysis.joint import protocol_of
from analysis.printing import NAMES, columns, plain, ratio, wrapped
from analysis.report import json_values
from analysis.summaries import mean
from analysis.table import BY_NAME, by_run


@dataclass(frozen=True)
class ArmFrontier:
    """One arm: its frontier's law with Lmin fitted and drawn to rFID, and the joint law's envelope exponent."""

    arm: str
    counts: dict[str, int]
    fitted: dict[str, Chosen]
    drawn: dict[str, Chosen] | None
    r2: float
    noise: float
    joint_exponent: tuple[float, float, float] | None
    joint_floor: tuple[float, float, float] | None
    rfid: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether the frontier's exponent lies in the joint law's interval or the reverse; None without either."""
        alpha = self.fitted["alpha"]
        if self.joint_exponent is None or alpha.low is None or alpha.high is None:
            return None
        value, low, high = self.joint_exponent
        return bool(low <= alpha.value <= high or alpha.low <= value <= alpha.high)


@dataclass(frozen=True)
class PaperReport:
    """All that `scaling fit --law paper` says."""

    plan: str
    column: str
    x: str
    protocol: str
    arms: list[ArmFrontier]
    left_out: list[LeftOut]
    warnings: list[str]
    laws: dict[str, FrontierLaw]

    def to_dict(self) -> dict[str, Any]:
        """JSON values in full precision; a number that is not finite becomes None."""
        plain_fields = {key: value for key, value in vars(self).items() if key != "laws"}
        plain_fields["arms"] = [asdict(one) | {"agrees": one.agrees} for one in self.arms]
        return {key: json_values(value) for key, value in plain_fields.items()}


def fit_paper(table: pd.DataFrame, column: str, x: str = "compute", draws: int = 1000, seed: int = 0) -> PaperReport:
    """The frontier law of every arm of a validated table. Arms without enough inner points are named and left out.

    Raises FitError where no run is done.
    """
    done = table[table["state"] == "done"]
    if not len(done):
        raise FitError("no run is done; nothing to fit yet")
    arms, left, laws = [], [], {}
    runs = by_run(done, column)
    for name in done["arm"].unique():
        rows = runs[runs["arm"] == name].reset_index(drop=True)
        if not len(rows):
            left.append(LeftOut(str(name), f"no run with a {column} above 0"))
            continue
        rfid = mean(rows, "rfid") if column == "gfid" else None
        try:
            law = frontier_law(rows, column, x, rfid, draws, seed)
        except FitError as error:
            left.append(LeftOut(str(name), str(error)))
            continue
        laws[str(name)] = law
        exponent, floor = _joint(rows, column)
        drawn = law.drawn.parameters if law.drawn else None
        arms.append(
            ArmFrontier(str(name), law.counts, law.free.parameters, drawn, law.r2, law.noise, exponent, floor, rfid)
        )
    apart = [one.arm for one in arms if one.agrees is False]
    warnings = ["frontier points are minima of noisy values: they lie low, most where few runs compete."]
    if apart:
        warnings.append(
            f"{', '.join(apart)}: the frontier's exponent and the joint law's disagree; believe the joint law."
        )
    plan = str(table["plan"].iloc[0]) if "plan" in table else ""
    return PaperReport(plan, column, x, protocol_of(done), arms, left, warnings, laws)


def _joint(
    rows: pd.DataFrame, column: str
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    try:
        cluster = "tokenizer_seed" if "tokenizer_seed" in rows else None
        fit = fit_law(rows, "chinchilla", ("params", "tokens_seen"), column, cluster=cluster)
        found = [(fit.params[name], *fit.interval(name)) for name in ("exponent", "E")]
    except FitError:
        return None, None
    return found[0], found[1]


def render_paper(report: PaperReport, width: int = 150) -> str:
    """The report as lines of at most `width` characters where words allow."""
    name = NAMES.get(report.column, report.column)
    about = BY_NAME[report.x].meaning if report.x in BY_NAME else report.x
    head = [
        f"{report.plan:<11} {name} on each arm's Pareto frontier over {report.x}",
        *([wrapped("protocol    ", report.protocol, width)] if report.protocol else []),
        wrapped("x           ", f"{report.x}: {about}", width),
        wrapped(
            "law         ",
            f"{name} = Lmin + C^-alpha e^lambda (arXiv 2412.16326), least squares of ln {name}; intervals choose the "
            "frontier again in every resample; edge sizes left out",
            width,
        ),
    ]
    rows = [
        [
            "arm",
            "points",
            "Lmin [95%]",
            "alpha [95%]",
            "lambda",
            "R2",
            "Lmin to rFID",
            "alpha",
            "joint exponent [95%]",
            "agree",
        ]
    ]
    for one in report.arms:
        counts = one.counts
        drawn = ["-", "-"] if one.drawn is None else [plain(one.drawn["Lmin"].value), ratio(one.drawn["alpha"].value)]
        joint = "-" if one.joint_exponent is None else _spanned(*one.joint_exponent)
        agree = {None: "-", True: "yes", False: "NO"}[one.agrees]
        points = f"{counts['inner']} of {counts['frontier']} ({counts['edge']} edge)"
        free = one.fitted
        lmin, alpha = _chosen(free["Lmin"], plain), _chosen(free["alpha"], ratio)
        rows.append(
            [one.arm, points, lmin, alpha, f"{free['lambda'].value:.2f}", f"{one.r2:.3f}", *drawn, joint, agree]
        )
    parts = ["\n".join(head), "\n".join(columns(rows)) if report.arms else ""]
    parts += ["\n".join(wrapped("", f"left out: {one.arm} ({one.reason})", width) for one in report.left_out)]
    parts.append("\n".join(["WARNINGS", *(wrapped("  ", text, width) for text in report.warnings)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _spanned(value: float, low: float, high: float) -> str:
    return f"{ratio(value)} [{ratio(low)}, {ratio(high)}]"


def _chosen(one: Chosen, form: Any) -> str:
    low, high = ("-" if end is None else form(end) for end in (one.low, one.high))
    return f"{form(one.value)} [{low}, {high}]"
