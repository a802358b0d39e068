"""`scaling fit`: from the store's table through `analysis` to a printed answer, figures and a stored fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.fit_history import FitPoints, said_before_sight, what_changed
from scaling.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

JOINT = "chinchilla"
# inputs that rFID may depend on
TOKENIZER_COLUMNS = (
    *("K", "T", "lambda", "codebook_size", "tokens_per_image", "crt_weight"),
    *("tokenizer_compute", "usage", "perplexity", "latent_norm", "predictability"),
)


class FitOptionError(Exception):
    """Options of a fit that do not go together; the message is one line."""


@dataclass(frozen=True)
class FitOptions:
    """What a fit was asked. `law` chinchilla by least squares is the whole answer; others are laws beside it.

    `x` is the input of a law of one input (compute where none is given), `by` what groups runs (columns apart by
    commas), `where` conditions on rows, `points` all or frontier, `hold_out` largest or None.
    """

    metric: str = "fid"
    law: str = JOINT
    x: str | None = None
    by: str = "arm"
    where: tuple[str, ...] = ()
    points: str = "all"
    objective: str = "ls"
    residual: str = "log"
    hold_out: str | None = None
    base: str | None = None
    guidance: float = 1.0
    resamples: int | None = None
    amortize_over: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = self.law == JOINT and self.x is None and self.objective == "ls" and self.residual == "log"
        if self.hold_out not in (None, "largest"):
            raise FitOptionError(f"--hold-out {self.hold_out!r}: only `largest` can be held out")
        if self.hold_out and not whole:
            raise FitOptionError("--hold-out goes with the joint law (--law chinchilla, without --x or --objective)")
        if self.points not in ("all", "frontier"):
            raise FitOptionError(f"--points {self.points!r} is neither `all` nor `frontier`")
        if self.points == "frontier" and self.route != "curves":
            raise FitOptionError("--points frontier goes with a law of one input, such as --law power_floor")
        if not 1 <= self.amortize_over < math.inf:
            raise FitOptionError(f"--amortize-over {self.amortize_over:g} must be 1 generator or more")
        if self.x is not None and self.law in ("kaplan", "surface"):
            raise FitOptionError(f"--x goes with a law of one input, such as power_floor, not {self.law!r}")
        if self.metric == "rfid" and (self.hold_out or (self.route != "report" and self.x not in TOKENIZER_COLUMNS)):
            raise FitOptionError("rFID has no generator axis: no law over it; leave the law, or --x codebook_size")

    @property
    def route(self) -> str:
        """Which analysis answers: report, paper, joint or curves."""
        plain = self.points == "all" and self.by == "arm" and self.objective == "ls" and self.residual == "log"
        if self.law == "paper" and plain:
            return "paper"
        if self.x is not None or self.law not in (JOINT, "kaplan", "surface", "auto"):
            return "curves"
        whole = self.law == JOINT and self.objective == "ls" and self.residual == "log"
        return "report" if whole else "joint"


def fit_plan(store: Store, plan: str, options: FitOptions, plots: Path | None) -> tuple[str, dict[str, Any]]:
    """(text to print, numbers as a dict) of a fit of a plan's runs, or of an import's.

    Draws into `plots` and stores the fit in full precision with the points it saw. Raises TableError, FitError.
    """
    from analysis.problem import OBJECTIVES, RESIDUALS
    from analysis.table import METRICS, TableError
    from analysis.where import grouped, where

    if options.metric not in METRICS:
        raise TableError(f"metric {options.metric!r} is none of {', '.join(METRICS)}")
    known = {"objective": (options.objective, OBJECTIVES), "residual": (options.residual, RESIDUALS)}
    for name, (given, names) in known.items():
        if given not in names:
            raise FitOptionError(f"--{name} {given!r} is none of {', '.join(names)}")
    whole = store.load_runs(plan)
    chosen = where(whole, options.where)
    one_column = options.route == "curves" and "," not in options.by
    table, cautions = (chosen, []) if one_column else grouped(chosen, options.by)
    made = _ROUTES[options.route](store, plan, table, whole, options)
    made.numbers["cautions"] = cautions
    points = FitPoints.of(table, METRICS[options.metric])
    notes = cautions + what_changed(store, plan, options, points)
    number = store.save_fit(
        plan=plan,
        metric=options.metric,
        protocol=made.numbers.get("protocol") or "",
        options=asdict(options),
        points=points.to_json(),
        result=made.numbers,
    )
    figures = made.draw(plots) if plots is not None else ["none asked for"]
    said = "".join(f"\n  {note}" for note in notes)
    stored = f"stored as fit {number} ({len(points)} points)"
    text = f"{made.text.rstrip()}{said if 'WARNINGS' in made.text or not notes else chr(10) * 2 + 'WARNINGS' + said}"
    return f"{text}\n\nFIGURES     {'  '.join(figures)}        {stored}", made.numbers


@dataclass
class Made:
    """An answer: text, numbers, and its figures by file name (drawn on demand)."""

    text: str
    numbers: dict[str, Any]
    figures: dict[str, Any]

    def draw(self, plots: Path) -> list[str]:
        """The figures that this answer has, as PNG and SVG; what was drawn, or the reason why nothing was."""
        from analysis.figures import FigureError, save

        drawn, reason = [], "no figure of this"
        for name, make in self.figures.items():
            try:
                figure: Figure = make()
            except FigureError as error:
                reason = str(error)
                continue
            drawn.append(str(save(figure, plots / name)[1]))
        return drawn or [f"none: {reason}"]


def _report(store: Store, plan: str, table: pd.DataFrame, whole: pd.DataFrame, options: FitOptions) -> Made:
    from dataclasses import replace

    from analysis.render import render_text
    from analysis.report import fit_report

    report = fit_report(
        table,
        options.metric,
        base=options.base,
        guidance=options.guidance,
        resamples=options.resamples,
        seed=options.seed,
        hold_out=options.hold_out is not None,
        amortize_over=options.amortize_over,
        others=_other_protocols(table, whole, options),
    )
    if options.hold_out and report.score is not None:
        report = replace(report, score=said_before_sight(store, plan, options, report, table))

    def drawer(name: str) -> Any:
        def make() -> Figure:
            from analysis import figures

            made: Figure = getattr(figures, name)(report, table)
            return made

        return make

    def along_knobs() -> Figure:
        from analysis.knob_figures import knob_figure

        return knob_figure(report)

    def rates() -> Figure:
        from analysis.rate_figure import rate_figure

        return rate_figure(report)

    if options.metric == "rfid":
        return Made(render_text(report), report.to_dict(), {"rfid-rate": rates})
    held = "-held-out" if options.hold_out else ""
    figures = {f"{options.metric}-compute{held}": drawer("fid_compute")}
    figures[f"{options.metric}-optimum{held}"] = drawer("fid_optimum")
    if report.knobs:
        figures[f"{options.metric}-knobs{held}"] = along_knobs
    return Made(render_text(report), report.to_dict(), figures)


def _other_protocols(table: pd.DataFrame, whole: pd.DataFrame, options: FitOptions) -> dict[str, pd.DataFrame]:
    """Rows under the protocols that `--where protocol_hash=...` left out, by what they are called."""
    from analysis.robustness import split_protocols

    if options.metric != "fid" or "protocol_hash" not in whole or len(table) == len(whole):
        return {}
    mine = set(table["protocol_hash"].dropna())
    found = {}
    for key, rows in split_protocols(whole, options.guidance).items():
        if key and key not in mine and set(rows["run"]) & set(table["run"]):
            said = list(rows["protocol"].dropna()) if "protocol" in rows else []
            kept = rows[rows["run"].isin(table["run"])]
            arms = table.drop_duplicates("run").set_index("run")["arm"]
            found[str(said[0]) if said else key[:12]] = kept.assign(arm=kept["run"].map(arms))
    return found


def _column(table: pd.DataFrame, name: str, option: str) -> str:
    """A column of numbers for a law's input, by its name or symbol. Raises TableError, FitOptionError."""
    import pandas as pd

    from analysis.where import known_column

    found = known_column(table, name, option)
    if not (pd.to_numeric(table[found], errors="coerce") > 0).any():
        raise FitOptionError(f"{option} {name}: no run has a number above 0 there")
    return found


def _unfitted(left: Iterable[tuple[str, str]]) -> FitOptionError:
    """That no group has a law, and why."""
    why: dict[str, list[str]] = {}
    for name, reason in left:
        why.setdefault(reason, []).append(name)
    return FitOptionError("no law: " + "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items()))


def _curves(store: Store, plan: str, table: pd.DataFrame, whole: pd.DataFrame, options: FitOptions) -> Made:
    from analysis.curves import fit_curves, render
    from analysis.table import METRICS, select
    from analysis.where import known_column

    law = "power_floor" if options.law == JOINT else options.law
    ready = select(table, options.metric, options.guidance)
    x = _column(ready, options.x or "compute", "--x")
    report = fit_curves(
        ready,
        METRICS[options.metric],
        x=x,
        by=known_column(ready, options.by, "--by") if "," not in options.by else "arm",
        law=law,
        points=options.points,
        base=options.base,
        objective=options.objective,
        residual=options.residual,
        draws=options.resamples or 400,
        seed=options.seed,
    )
    if not report.groups:
        raise _unfitted((one.group, one.reason) for one in report.left_out)

    def make() -> Figure:
        from analysis.curve_figures import figure

        return figure(report, ready)

    return Made(render(report), report.to_dict(), {f"{options.metric}-{x}-{law}": make})


def _paper(store: Store, plan: str, table: pd.DataFrame, whole: pd.DataFrame, options: FitOptions) -> Made:
    from analysis.paper_check import fit_paper, render_paper
    from analysis.table import METRICS, select

    ready = select(table, options.metric, options.guidance)
    x = _column(ready, options.x or "compute", "--x")
    report = fit_paper(ready, METRICS[options.metric], x, options.resamples or 1000, options.seed)
    if not report.arms:
        raise _unfitted((one.arm, one.reason) for one in report.left_out)

    def make() -> Figure:
        from analysis.curve_figures import figure
        from analysis.curves import fit_curves

        shown = fit_curves(ready, report.column, x=report.x, law="paper", points="frontier", draws=200)
        return figure(shown, ready)

    return Made(render_paper(report), report.to_dict(), {f"{options.metric}-{report.x}-paper": make})


def _joint(store: Store, plan: str, table: pd.DataFrame, whole: pd.DataFrame, options: FitOptions) -> Made:
    from analysis.joint import fit_joint, render_joint
    from analysis.table import METRICS, select

    ready = select(table, options.metric, options.guidance)
    report = fit_joint(
        ready,
        METRICS[options.metric],
        options.law,
        objective=options.objective,
        residual=options.residual,
        resamples=options.resamples or 400,
        seed=options.seed,
    )
    if not report.fits:
        raise _unfitted(report.left_out)
    return Made(render_joint(report), report.to_dict(), {})


_ROUTES = {"report": _report, "curves": _curves, "paper": _paper, "joint": _joint}
