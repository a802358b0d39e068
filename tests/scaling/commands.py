"""What a command left behind, for tests of commands. Not a test module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error; more, a traceback, or anything on stdout is a fault."""
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def words(self) -> str:
        """Standard output with runs of blanks as one."""
        return " ".join(self.out.split())


Command = Callable[..., Said]
