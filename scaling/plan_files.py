"""Where plans and presets lie, and how a plan is laid over the preset it extends.

Of all keys only `extends` is interpreted here.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection
from pathlib import Path

from scaling.yaml_nodes import Node, PlanError, Problem, Problems, did_you_mean, read

_SHIPPED = importlib.resources.files("sweeps")
_PRESETS = _SHIPPED / "presets"
_STARTER = "starter.yaml"  # beside the presets, so that it is no plan one can sweep by name


def shipped_plans() -> list[str]:
    """Names that `load_plan` finds without a path."""
    return sorted(file.name.removesuffix(".yaml") for file in _SHIPPED.iterdir() if file.name.endswith(".yaml"))


def presets() -> list[str]:
    """Names, each with its version, that a plan may extend."""
    files = (file.name for file in _PRESETS.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if "@" in name and name.endswith(".yaml"))


def starter_plan() -> str:
    """The text of a commented starter plan, which loads as it is."""
    return (_PRESETS / _STARTER).read_text(encoding="utf-8")


def find_plan(path_or_name: str | Path) -> tuple[str, Path, str]:
    """(name shown in errors, path, text) of a plan file, or of a shipped plan by its name. Raises PlanError."""
    path = Path(path_or_name)
    shown = str(path_or_name)
    if not path.exists() and shown in shipped_plans():
        resource = _SHIPPED / f"{shown}.yaml"
        return f"{shown}.yaml", Path(str(resource)), resource.read_text(encoding="utf-8")
    try:
        return shown, path, path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = ", ".join(shipped_plans())
        message = f"no plan {shown}: no such file{did_you_mean(shown, shipped_plans())}; shipped plans: {names}"
    except IsADirectoryError:
        message = f"{shown} is a folder; give the plan file in it"
    except UnicodeDecodeError as error:
        message = f"{shown} is not a text file in UTF-8 (byte {error.start})"
    except OSError as error:
        message = f"{shown} cannot be read: {error.strerror}"
    raise PlanError([Problem(message)])


def extended(root: Node, whole: Collection[str], problems: Problems) -> Node:
    """The plan laid over the preset that it `extends`; the plan wins. Keys in `whole` are replaced, not merged."""
    node = root.value.get("extends")
    if node is None:
        return root
    name = node.text
    if name not in presets():
        known = ", ".join(presets())
        hint = did_you_mean(name, presets()) if name else ""
        problems.add(f"no preset `{name}`{hint}; presets: {known}", "extends", node.mark)
        return root
    text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    preset = read(text, f"{name}.yaml", problems, preset=True)
    return root if preset is None else _laid_over(preset, root, whole, "")


def _laid_over(below: Node, above: Node, whole: Collection[str], path: str) -> Node:
    if path in whole or not (below.is_mapping and above.is_mapping):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        inner = f"{path}.{key}" if path else key
        merged[key] = _laid_over(merged[key], node, whole, inner) if key in merged else node
    return Node(merged, above.mark, above.key)
