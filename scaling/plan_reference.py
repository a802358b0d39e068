"""The tables of docs/plan.md, made from the schema so that the page cannot fall behind the code.

`python -m scaling.plan_reference docs/plan.md` writes them below the page's marker; the text above it is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.plan import SECTIONS, TOP_KEYS
from scaling.plan_files import presets
from scaling.plan_keys import Leaf, leaves
from scaling.run_names import size_name

MARKER = "<!-- Below: made by `python -m scaling.plan_reference docs/plan.md`; edit the schema, not this. -->"
TITLES: Mapping[str, str] = {
    "data": "where images come from",
    "tokenizer": "stage 1",
    "generator": "stage 2",
    "seeds": "replicates",
    "evaluation": "how fidelity is measured",
    "resources": "what a sweep may use; never part of a result's identity",
}
_LIMITS: Mapping[str, str] = {  # attribute of a field's constraint: how it reads
    "ge": "at least {:,}",
    "gt": "above {:,}",
    "le": "at most {:,}",
    "lt": "below {:,}",
    "multiple_of": "a multiple of {:,}",
}


def plan_reference() -> str:
    """Markdown: one table a section, a row a key, in the schema's order."""
    parts = [_top()]
    for name, model in SECTIONS.items():
        rows = [_row(leaf) for leaf in leaves(model).values()]
        if name == "tokenizer":
            rows.append("| `arms` | name: changes | one arm, `base` | | named changes of the keys above |")
        if name == "seeds":
            rows.insert(0, "| `where` | a condition | every run | | which points of the grid this entry is for |")
        parts.append(f"## {name}: {TITLES[name]}\n\n{_HEAD}\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


_HEAD = "| key | value | default | axis | meaning |\n|---|---|---|---|---|"


def _top() -> str:
    known = ", ".join(f"`{name}`" for name in presets())
    rows = {name: f"section | its defaults | {TITLES[name]}" for name in SECTIONS} | {
        "plan": "text | needed | the study's name: letters, digits, `.`, `_`, `-`",
        "extends": f"{known} | none | a versioned preset whose values hold where the plan gives none",
        "zip": "list of groups of axes | none | axes that go together instead of crossing",
        "exclude": "list of conditions | none | points of the grid to leave out",
    }
    body = "\n".join(f"| `{key}` | {rows[key]} |" for key in TOP_KEYS)
    return f"## The whole\n\n| key | value | default | meaning |\n|---|---|---|---|\n{body}"


def _row(leaf: Leaf) -> str:
    axis = "yes" if leaf.axis else ""
    meaning = leaf.description.replace("|", "\\|")
    if leaf.location:
        meaning += "; takes `${VAR}`"
    return f"| `{leaf.path}` | {_value(leaf)} | {_default(leaf)} | {axis} | {meaning} |"


def _value(leaf: Leaf) -> str:
    limits = [
        words.format(getattr(limit, attribute))
        for attribute, words in _LIMITS.items()
        for limit in leaf.limits
        if hasattr(limit, attribute)
    ]
    each = [f"each {leaf.item.expected()}"] if leaf.item else []
    return ", ".join([leaf.expected(), *each, *limits])


def _default(leaf: Leaf) -> str:
    return "needed" if leaf.required else f"`{_shown(leaf.default)}`"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return str(value) if isinstance(value, str | int | float) else size_name(value)


def page(text: str) -> str:
    """The page with its tables made anew. Raises ValueError where the marker is missing."""
    above, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError("the page has no line that marks where its tables begin")
    return f"{above}{MARKER}\n\n{plan_reference()}"


def main(arguments: list[str]) -> None:
    """Rewrite the page named by the only argument."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m scaling.plan_reference docs/plan.md")
    path = Path(arguments[0])
    try:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
