"""Numbers and columns as a terminal shows them. What is said with them is `analysis.render`'s."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.summaries import Quantity

NAMES = {"gfid": "gFID", "loss": "loss", "rfid": "rFID"}
COMPUTE_LINE = "generator training FLOPs, exact matmul (body + head + attention)"
IMPORTED = "imported: "  # how the protocol of a table from elsewhere begins


def compute_line(protocols: Iterable[object]) -> str:
    """What compute is in rows of these protocols: ours is counted exactly, another's is what it is."""
    said = next((text for text in map(str, protocols) if text.startswith(IMPORTED)), None)
    return COMPUTE_LINE if said is None else f"FLOPs as {said.removesuffix('; state it with --set protocol=...')}"


def plain(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponent, no zero before the point: 28.4, 8.8, .66."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 2 if abs(value) < 1 else 1)}f}"
    if text.startswith("0."):
        return text[1:]
    return text


def ratio(value: float) -> str:
    """A multiplier: two decimals, 1.20 or .36; from 100 on without decimals; inf as >1000 cannot be told."""
    if math.isinf(value):
        return "inf"
    text = f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return text[1:] if text.startswith("0.") else text


def flops(value: float) -> str:
    """2.1e10, 1e11."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def amount(value: float) -> str:
    """23k, 1.2M, 450: two to three significant digits with a suffix."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            short = value / scale
            return f"{short:.1f}".removesuffix(".0") + suffix if short < 10 else f"{short:.0f}{suffix}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


def within(quantity: Quantity | None, form: str = "plain") -> str:
    """A value and its interval, in as many decimals as the interval's width bears."""
    if quantity is None:
        return "-"
    if form == "exponent":
        return f"{ratio(quantity.value)} [{ratio(quantity.low)}, {ratio(quantity.high)}]"
    width = quantity.high - quantity.low
    fine = 0 < width < 1 <= abs(quantity.value) < 100
    decimals = min(4, 1 + math.ceil(-math.log10(width))) if fine else 0
    shown = [f"{one:.{decimals}f}" if fine else plain(one) for one in (quantity.value, quantity.low, quantity.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


# ------------------------------------------------------------------------------------------- layout


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "   ") -> list[str]:
    """Rows aligned in columns; `right` lists columns set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(cells).rstrip())
    return lines


def wrapped(label: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)
