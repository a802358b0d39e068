"""What a terminal shows while a sweep runs: a live line per running stage on one, a line per event off one.

Everything goes to standard error. Knows nothing of how stages run; the scheduler calls it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scaling.stages import Stage
from scaling.worker import Outcome

SUMMARY_SECONDS = 60.0
SHOWN = ("loss", "gfid", "rfid", "usage", "perplexity", "reconstruction_mse")  # of a summary, in an event's line


def duration(seconds: float) -> str:
    """A length of time as people say it: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shown_values(summary: Mapping[str, Any]) -> str:
    """The few results of a stage that fit in a line."""
    values = [(name, summary[name]) for name in SHOWN if isinstance(summary.get(name), float)]
    return "  ".join(f"{name} {value:.4g}" for name, value in values)


class LineProgress:
    """One line per event, and a summary line a minute; for pipes, files and CI."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._states: dict[str, str] = {}
        self._total = 0
        self._started = self._summed = time.monotonic()
        self._remaining: float | None = None

    def begin(self, stages: Mapping[str, Stage], states: Mapping[str, str]) -> None:
        self._states = dict(states)
        self._total = len(stages)
        cached = sum(state in ("done", "diverged") for state in states.values())
        self._line(f"{self._total} stages, {cached} already done, {self._total - cached} to do")

    def started(self, stage: Stage, attempt: int) -> None:
        self._states[stage.fingerprint] = "running"
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self._line(f"start  {stage.kind:<10} {stage.name}{again}")

    def advanced(self, stage: Stage, beat: Mapping[str, Any]) -> None:
        if time.monotonic() - self._summed >= SUMMARY_SECONDS:
            self._summed = time.monotonic()
            self._line(self.totals())

    def ended(self, stage: Stage, state: str, outcome: Outcome, summary: Mapping[str, Any]) -> None:
        self._states[stage.fingerprint] = state
        word = state if state != "pending" else outcome.status
        detail = shown_values(summary) if state == "done" else outcome.message
        self._line(f"{word:<6} {stage.kind:<10} {stage.name}  {duration(outcome.seconds)}  {detail}".rstrip())

    def note(self, text: str) -> None:
        self._line(text)

    def remaining(self, seconds: float) -> None:
        self._remaining = seconds

    def end(self) -> None:
        self._line(self.totals())

    def totals(self) -> str:
        """Counts by state, time passed and, while work is left, time to go."""
        counts = Counter(self._states.values())
        parts = [f"{counts['done']} of {self._total} stages done"]
        parts += [f"{counts[s]} {s}" for s in ("running", "diverged", "failed") if counts[s]]
        parts.append(f"{duration(time.monotonic() - self._started)} passed")
        if self._remaining is not None and (counts["pending"] or counts["running"]):
            parts.append(f"about {duration(self._remaining)} to go")
        return ", ".join(parts)

    def _line(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=self._stream, flush=True)


class LiveProgress(LineProgress):
    """A line per running stage that is rewritten in place, under the finished ones; for terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._beats: dict[str, tuple[Stage, float, Mapping[str, Any]]] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def begin(self, stages: Mapping[str, Stage], states: Mapping[str, str]) -> None:
        super().begin(stages, states)
        self._live.start()

    def started(self, stage: Stage, attempt: int) -> None:
        self._states[stage.fingerprint] = "running"
        self._beats[stage.fingerprint] = (stage, time.monotonic(), {})

    def advanced(self, stage: Stage, beat: Mapping[str, Any]) -> None:
        _, begun, _ = self._beats[stage.fingerprint]
        self._beats[stage.fingerprint] = (stage, begun, beat)

    def ended(self, stage: Stage, state: str, outcome: Outcome, summary: Mapping[str, Any]) -> None:
        self._beats.pop(stage.fingerprint, None)
        super().ended(stage, state, outcome, summary)

    def end(self) -> None:
        self._live.stop()
        super().end()

    def _line(self, text: str) -> None:
        line = Text(time.strftime("%H:%M:%S "), style="dim") + Text(text)
        line.overflow, line.no_wrap = "ellipsis", True
        self._console.print(line)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        for stage, begun, beat in list(self._beats.values()):
            table.add_row(stage.kind, stage.name, _beat_text(beat), duration(time.monotonic() - begun))
        return Group(table, Text(self.totals(), style="bold", no_wrap=True, overflow="ellipsis"))


def _beat_text(beat: Mapping[str, Any]) -> str:
    if "step" not in beat:
        return "starting"
    share = f"{100 * beat['step'] / max(1, beat['steps']):3.0f}%"
    values = beat.get("values", {})
    return f"{share}  loss {values['loss']:.4g}" if "loss" in values else share


def open_progress() -> LineProgress:
    """Live on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress()
