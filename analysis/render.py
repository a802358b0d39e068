"""A fit report as text for a terminal. Formatting alone: every number comes from the report."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from analysis.printing import NAMES, amount, columns, flops, percent, plain, ratio, within, wrapped

if TYPE_CHECKING:
    from analysis.holdout import Score
    from analysis.knobs import KnobAt, KnobOptimum
    from analysis.multipliers import ArmMultipliers, Multiplier
    from analysis.report import FitReport
    from analysis.summaries import ArmSummary

OTHER_WAYS = {
    "laws": "laws",
    "parabola": "IsoFLOP parabola",
    "akima": "Akima",
    "surface": "joint surface",
    "frontier": "Pareto frontier",
}


def render_text(report: FitReport, width: int = 150) -> str:
    """The report as lines of at most `width` characters where words allow, without colour."""
    parts = [_head(report, width), _arms(report, width)]
    if report.metric == "fid":
        parts += [_optimum(report, width), *(_knob(one, report, width) for one in report.knobs)]
        parts += [_changes(report), _multipliers(report, width), _guided(report, width)]
    elif "optimum" in report.notes:
        parts.append(wrapped("optimum     ", report.notes["optimum"], width))
    parts += [_prediction(report, width), _warnings(report, width)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: FitReport, width: int) -> str:
    states = report.states
    counted = f"{states.get('done', 0)} of {report.runs} runs"
    counted += f", {states.get('diverged', 0)} diverged, {states.get('degenerate', 0)} degenerate"
    counted += "".join(f", {states[one]} {one}" for one in ("failed", "running", "pending") if states.get(one))
    floor = (
        f"; bias floor up to {report.bias_floor:.2g}"
        if report.bias_floor is not None and report.metric != "loss"
        else ""
    )
    lines = [f"{report.plan:<11} {counted}", wrapped("protocol    ", report.protocol + floor, width)]
    if report.metric != "rfid":
        lines.append(wrapped("compute     ", report.compute_said, width))
        lines.append(wrapped("law         ", _law(report), width))
        lines.append(wrapped("noise       ", report.noise, width))
    return "\n".join(lines)


def _law(report: FitReport) -> str:
    counts = sorted({arm.runs for arm in report.arms})
    points = f"all {counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    if report.hold_out:
        points = f"{points.removeprefix('all ')} smaller"
    name = NAMES.get(report.column, report.column)
    said = f"{name} = E + A N^-a + B D^-b, {points} points an arm, {report.objective}" if report.objective else name
    return f"{said}; exponent of the compute envelope = ab/(a+b)"


# -------------------------------------------------------------------------------------------- arms


def _knobs(arm: ArmSummary) -> list[str]:
    codes, tokens, weight = arm.codebook_size, arm.tokens_per_image, arm.crt_weight
    shown_weight = "-" if weight is None else f"{weight:g}".removeprefix("0") or "0"
    return [arm.arm, "-" if codes is None else f"{codes:g}", "-" if tokens is None else f"{tokens:g}", shown_weight]


def _arms(report: FitReport, width: int) -> str:
    if not report.arms:
        lines = []
    elif report.metric == "rfid":
        lines = _reconstructions(report)
    else:
        last = "predicted*" if report.hold_out else "held-out*"
        title = ["arm", "K", "T", "lambda", "rFID", "E [95%]", "exponent [95%]", "residual", last]
        rows = [_arm_row(report, arm) for arm in report.arms]
        lines = columns([title, *rows], right=(1, 2, 3, 4, 7, 8))
        lines.append(_held_out_line(report))
    for one in report.left_out:
        lines.append(wrapped("", f"left out: {one.arm} ({one.reason})", width))
    return "\n".join(lines)


def _arm_row(report: FitReport, arm: ArmSummary) -> list[str]:
    floor, exponent = within(arm.floor), within(arm.exponent, "exponent")
    unseen = arm.held_out
    if report.hold_out:
        unseen = report.score.errors.get(arm.arm) if report.score else None
    return [*_knobs(arm), plain(arm.rfid), floor, exponent, percent(arm.residual), percent(unseen)]


def _held_out_line(report: FitReport) -> str:
    right, tested = report.ranked
    pairs = f" Pairs ranked as predicted: {right} of {tested}." if tested and report.metric == "fid" else ""
    if report.hold_out:
        return "* error at the size that was held out." if report.score else "* the size held out is not trained yet."
    return f"* fitted without the largest size, predicted there.{pairs}"


def _reconstructions(report: FitReport) -> list[str]:
    """Rate and distortion by arm, fewest bits first; `*` marks the lower frontier of bits and rFID."""
    rates = {str(one["arm"]): one for one in report.rates}
    title = [
        "arm",
        "K",
        "T",
        "lambda",
        "bits/image",
        "bits/pixel",
        "entropy-coded",
        "modelled",
        "rFID",
        "MSE",
        "best gFID",
    ]
    rows = []
    for arm in sorted(report.arms, key=lambda one: one.code_bits_per_image or 0.0):
        rate = rates.get(arm.arm, {})
        pixel = [_bits(rate.get(f"{name}_per_pixel")) for name in ("code_bits", "entropy_bits", "modelled_bits")]
        mse = rate.get("mse")
        shown = "-" if mse is None or mse != mse else f"{mse:.4f}"
        lower = "*" if rate.get("frontier") is True else " "
        cells = [*_knobs(arm), plain(arm.code_bits_per_image), *pixel, f"{plain(arm.rfid)}{lower}", shown]
        rows.append([*cells, plain(rate.get("gfid")), str(arm.tokenizer_seeds or "-")])
    lines = columns([[*title, "seeds"], *rows], right=tuple(range(1, 12)))
    note = "bits a pixel: nominal T log2 K; entropy-coded T log2 perplexity; modelled by the best generator. "
    return [*lines, f"{note}* no other arm has as few bits and as low an rFID."]


def _bits(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


# ----------------------------------------------------------------------------------------- optimum


def _optimum(report: FitReport, width: int) -> str:
    title = "OPTIMUM BY GENERATOR COMPUTE"
    if not report.optimum:
        return f"{title}\n{wrapped('', report.notes.get('optimum', 'none'), width)}"
    kid = {one.compute: f"{one.best} ({one.value:.2g})" for one in report.second_optimum or ()}
    beside = ["by KID"] if kid else []
    rows = [["FLOPs", "best", NAMES[report.column], "train it as", *beside, "not worse within noise"]]
    for one in report.optimum:
        trained = f"{amount(one.params)} params{'!' * one.params_outside}, "
        trained += f"{amount(one.images)} {report.length_unit}{'!' * one.images_outside}"
        same = ", ".join(f"{name} ({plain(value)})" for name, value in one.not_worse) or "none"
        best = f"{one.best}{'?' * (one.compute in report.undecided)}"
        rows.append(
            [flops(one.compute), best, plain(one.value), trained, *(kid.get(one.compute, "-") for _ in beside), same]
        )
    lines = [title, *columns(rows, right=(2,))]
    outside = _outside(report)
    if outside:
        lines.append(wrapped("", f"! outside the {' or '.join(outside)}", width))
    if report.undecided:
        lines.append("? undecided: the lead is below FID's bias floor, and KID does not confirm it")
    return "\n".join(lines)


def _outside(report: FitReport) -> list[str]:
    by_name = {arm.arm: arm for arm in report.arms}
    found = []
    for flag, attribute, label, unit in (
        ("images_outside", "trained_images", "lengths", report.length_unit),
        ("params_outside", "trained_params", "sizes", "params"),
    ):
        limits = [getattr(by_name[one.best], attribute) for one in report.optimum if getattr(one, flag)]
        if limits:
            low, high = min(low for low, _ in limits), max(high for _, high in limits)
            found.append(f"trained {label} ({amount(low)} to {amount(high)} {unit})")
    return found


def _changes(report: FitReport) -> str:
    if not report.changes:
        return f"CHANGES OF LEADER\nnone within the data: {report.optimum[0].best} throughout" if report.optimum else ""
    rows = []
    for one in report.changes:
        low = flops(one.low) if one.low is not None else "below data"
        high = flops(one.high) if one.high is not None else "above data"
        note = "" if one.bracketed else f"not bracketed: absent in {one.absent:.0%} of resamples"
        rows.append([f"{one.before}", "->", one.after, flops(one.compute), f"[{low}, {high}]", note])
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        pair = f"{row[0]:<{widths[0]}} -> {row[2]:<{widths[2]}}"
        lines.append(f"{pair}  {row[3]:<{widths[3]}}  {row[4]:<{widths[4]}}   {row[5]}".rstrip())
    return "\n".join(["CHANGES OF LEADER", *lines])


def _knob(one: KnobOptimum, report: FitReport, width: int) -> str:
    """The optimum along one knob: by laws with its set, the other ways beside it, by size, and how it moves."""
    fixed = ", ".join(f"{_symbol(name)} = {value:g}" for name, value in one.fixed.items())
    levels = ", ".join(f"{level:g}" for level in one.levels)
    title = f"OPTIMUM ALONG {one.symbol}  {levels}" + (f"  ({fixed})" if fixed else "")
    if one.note:
        return f"{title}\n{wrapped('', one.note, width)}"
    with_zero = 0.0 in one.levels
    head = [
        "FLOPs",
        f"best {one.symbol} [95%]",
        "not worse",
        "regret up to",
        "parabola",
        "akima",
        "surface",
        "frontier",
    ]
    rows = [[*head, "beats 0"] if with_zero else head]
    rows += [[flops(row.at), *_knob_cells(row, with_zero)] for row in one.by_compute]
    lines = [title, *columns(rows)]
    reasons = dict.fromkeys((row.reason, flops(row.at)) for row in one.by_compute if row.reason)
    lines += [wrapped("", f"at {at}: not bracketed: {reason}", width) for reason, at in reasons]
    apart = [flops(row.at) for row in one.by_compute if not row.agree]
    if apart:
        lines.append(wrapped("", f"DISAGREE at {', '.join(apart)}: another way's optimum lies a level away.", width))
    if one.moves:
        said = ", ".join(_moves(name, one) for name in OTHER_WAYS if name in one.moves)
        lines.append(wrapped("", f"best {one.symbol} moves as C^b, b by {said}", width))
    if one.by_size:
        said = "; ".join(f"{row.label} {_best(row)}" for row in one.by_size)
        lines.append(wrapped("", f"by size at its longest training: {said}", width))
    return "\n".join(lines)


def _symbol(knob: str) -> str:
    return {"tokens_per_image": "T", "codebook_size": "K", "crt_weight": "lambda"}.get(knob, knob)


def _knob_cells(row: KnobAt, with_zero: bool) -> list[str]:
    near = ", ".join(f"{level:g}" for level in row.near)
    regret = "-" if row.regret is None else percent(row.regret)
    others = ["-" if value is None else plain(value) for value in (row.parabola, row.akima, row.surface, row.frontier)]
    beats = [] if not with_zero else ["-" if row.zero_beaten is None else "yes" if row.zero_beaten else "no"]
    return [_best(row), near, regret, *others, *beats]


def _best(row: KnobAt) -> str:
    if row.best is None:
        return "none" if "curvature" in row.reason else "not bracketed"
    low, high = ("-" if end is None else plain(end) for end in (row.low, row.high))
    return f"{plain(row.best)} [{low}, {high}]"


def _moves(name: str, one: KnobOptimum) -> str:
    found = one.moves[name]
    text = f"{OTHER_WAYS[name]} {_signed(found.exponent)}"
    if found.low is not None and found.high is not None:
        text += f" [{_signed(found.low)}, {_signed(found.high)}]"
    return text + (f" (no optimum in {found.lost:.0%} of resamples)" if found.lost > 0.05 else "")


def _signed(value: float) -> str:
    return f"-{ratio(-value)}" if value < 0 else ratio(value)


# -------------------------------------------------------------------------------------- multiplier


def _multipliers(report: FitReport, width: int) -> str:
    title = f"COMPUTE MULTIPLIER over {report.base} (above 1: needs less compute for the same {NAMES[report.column]})"
    if not report.targets:
        first = "COMPUTE MULTIPLIER" if report.base is None else title
        return f"{first}\n{wrapped('', report.notes['multipliers'], width)}"
    digits = max(3, *(len(f"{target:g}".replace(".", "")) for target in report.targets))
    marks = [f"{target:.{digits}g}" for target in report.targets]
    rows = [["arm", f"at {NAMES[report.column]} {marks[0]}", *marks[1:], "one shape"]]
    for arm in report.multipliers:
        cells = ["out of range" if one is None else _spanned(one) for one in arm.values]
        rows.append([arm.arm, *cells, _one_shape(arm)])
    lines = [title, *columns(rows)]
    lines += [wrapped("", _by_floor(arm, report), width) for arm in report.multipliers if arm.floors is not None]
    return "\n".join(lines)


def _spanned(one: Multiplier) -> str:
    return f"{ratio(one.value)} [{ratio(one.low)}, {ratio(one.high)}]"


def _one_shape(arm: ArmMultipliers) -> str:
    if arm.shape is None:
        return "-"
    if not arm.shape.agree:
        return f"no (p = {arm.shape.p_value:.1g})"
    return f"{ratio(arm.shape.value)} [{ratio(arm.shape.low)}, {ratio(arm.shape.high)}]"


def _by_floor(arm: ArmMultipliers, report: FitReport) -> str:
    f = arm.floors
    assert f is not None
    shared, rfid = ("out of range" if one is None else ratio(one) for one in (f.shared, f.rfid))
    verdict = " UNDECIDED: the floors disagree on the side of 1." if f.undecided else ""
    text = f"{arm.arm} at {f.at:g} by floor: own {ratio(f.own)}, shared {shared}, rFID {rfid}.{verdict}"
    over = "" if report.amortize_over == 1 else f" over {report.amortize_over:g} generators"
    text += f"  Counting one full tokenizer{over}: {_spanned(f.counted)}"
    return text + ("" if f.seconds is None else f".  By wall time: {_spanned(f.seconds)}")


# ------------------------------------------------------------------------------- guidance, hold-out


def _guided(report: FitReport, width: int) -> str:
    """The laws of each run's best guidance, beside those at the guidance above."""
    if report.guided is None:
        return ""
    rows = [["arm", "E [95%]", "exponent [95%]", "residual"]]
    rows += [
        [arm.arm, within(arm.floor), within(arm.exponent, "exponent"), percent(arm.residual)]
        for arm in report.guided.arms
    ]
    lines = ["AT EACH RUN'S BEST GUIDANCE", *columns(rows, right=(3,))]
    best = ", ".join(f"{one.best} ({plain(one.value)}) at {flops(one.compute)}" for one in report.guided.optimum)
    return "\n".join([*lines, *([wrapped("best: ", best, width)] if best else [])])


def _prediction(report: FitReport, width: int) -> str:
    if report.hold_out is None:
        return ""
    title = "PREDICTION BEFORE SIGHT"
    if report.score is None:
        cells = len(report.predictions)
        said = f"{cells} predictions of the largest size are in this fit; none of its runs is done yet"
        rows = [["arm", "size", report.length_unit, f"{NAMES[report.column]} [95% of new runs]"]]
        for one in report.predictions:
            value = f"{plain(one.value)} [{plain(one.low)}, {plain(one.high)}]"
            rows.append([one.arm, one.size, amount(one.images_seen), value])
        return "\n".join([title, wrapped("", said, width), *(columns(rows) if cells else [])])
    return "\n".join([title, *(wrapped("", line, width) for line in _scored(report.score, report))])


def _scored(score: Score, report: FitReport) -> list[str]:
    inside = (
        f"size {score.size}: {score.inside} of {score.total} runs inside the 95% band, error {percent(score.error)}"
    )
    if score.stored is None:
        when = "after the fact: no fit without this size was stored before its first run ended"
    else:
        moment = datetime.fromtimestamp(score.stored, UTC).strftime("%Y-%m-%d %H:%M UTC")
        when = f"as fit {score.number} said at {moment}, " + (
            "before the first of these runs ended" if score.before else "after some of these runs had ended"
        )
    lines = [f"{inside}; {when}."]
    if score.choices:
        kept = sum(chosen == best for _, chosen, best, _ in score.choices)
        lost = f"regret at most {percent(score.regret)}" if score.regret > 0 else "no regret"
        said = f"best arm foreseen at {kept} of {len(score.choices)} lengths, {lost}"
        missed = [
            f"{amount(images)} {report.length_unit}: {chosen}, not {best} (+{percent(lost)})"
            for images, chosen, best, lost in score.choices
            if chosen != best
        ]
        lines.append(said + (f" ({'; '.join(missed)})" if missed else "") + ".")
    return lines


def _warnings(report: FitReport, width: int) -> str:
    if not report.warnings:
        return ""
    lines = [textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ") for text in report.warnings]
    return "\n".join(["WARNINGS", *lines])
