"""What the README shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scaling.plan import parse_plan

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_plan_in_the_readme_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", "/images")
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    plan = parse_plan(text)
    assert len(plan.runs) == 3 * 2 * 3 * 3


def test_every_file_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_in_the_readme_is_one() -> None:
    from scaling.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^\.venv/bin/scaling (\w+)", README, re.MULTILINE)) <= known
