"""What the tests of commands share: a command run in this process as its entry point does, and what it left."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from commands import Command, Said

from scaling import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `scaling ARGUMENTS...` in the working directory, with lines wide enough not to wrap."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return Said(code, *capfd.readouterr())

    return run
