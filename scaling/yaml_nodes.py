"""YAML read into nodes that know their line and column, and the errors that point at them.

Scalars follow YAML 1.2: `1e-3` is a number, `no` and `on` are text, `010` is ten, `1:30` is text. Duplicate keys, merge
keys and tags are refused; there are no non-finite numbers. This module knows no key of a plan: `scaling.sections` does.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_INT = re.compile(r"[-+]?\d+(?:_\d+)*")
_FLOAT = re.compile(r"[-+]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_LONGEST_NUMBER = 40  # characters; anything longer is no number a plan can mean
_MOST_NODES = 200_000  # aliases of aliases can make a short text endless
_PLAIN, _QUOTED, _COLLECTION = "plain", "quoted", "collection"


@dataclass(frozen=True)
class Source:
    """A text that was read: the name shown in errors, its lines, and whether it is a preset and not the user's own."""

    name: str
    lines: tuple[str, ...]
    preset: bool = False


@dataclass(frozen=True)
class Mark:
    """A place in a source; line and column count from 1."""

    source: Source
    line: int
    column: int

    def excerpt(self) -> str:
        """The source line and a caret under the column, each indented by four spaces."""
        line = self.source.lines[self.line - 1] if self.line <= len(self.source.lines) else ""
        under = "".join(char if char == "\t" else " " for char in line[: self.column - 1])
        return f"    {line}\n    {under}^"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a plan: what, at which dotted key, and where in the text."""

    message: str
    path: str = ""
    mark: Mark | None = None

    def __str__(self) -> str:
        line = f"{self.path}: {self.message}" if self.path else self.message
        if self.mark is None:
            return line
        return f"{self.mark.source.name}:{self.mark.line}:{self.mark.column}: {line}\n{self.mark.excerpt()}"


class PlanError(Exception):
    """A plan that cannot be run. `problems` holds every fault found; `str()` is the whole text to print."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Problems:
    """Collects faults, each once, so that all of them can be reported together."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}

    def add(self, message: str, path: str = "", mark: Mark | None = None) -> None:
        self._found.setdefault(Problem(message, path, mark))

    def __len__(self) -> int:
        return len(self._found)

    def raise_any(self) -> None:
        """Raise PlanError where anything was added, in the order of the text."""
        if self._found:
            files = list(dict.fromkeys(problem.mark.source.name for problem in self._found if problem.mark))

            def place(problem: Problem) -> tuple[int, int, int]:
                mark = problem.mark
                return (files.index(mark.source.name), mark.line, mark.column) if mark else (-1, 0, 0)

            raise PlanError(sorted(self._found, key=place))


@dataclass(frozen=True)
class Node:
    """A value of a plan and where it stands.

    `value` is a mapping of nodes, a list of nodes, or a resolved scalar (None, bool, int, float, str); `text` is the
    scalar as written. `mark` is where the value begins; `key` is where its key stands (its own mark without a key).
    """

    value: Any
    mark: Mark
    key: Mark
    text: str = ""
    quoted: bool = False

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    @property
    def is_null(self) -> bool:
        return self.value is None

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


class _Loader(yaml.SafeLoader):
    """Composes nodes whose tag says only how they were written, so that an explicit tag is recognisable."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return _COLLECTION
        return _PLAIN if implicit[0] else _QUOTED


def read(text: str, name: str, problems: Problems, *, preset: bool = False) -> Node | None:
    """The root node of a YAML text, None where it is empty; `name` is shown in errors.

    Faults inside well-formed YAML (duplicate keys, tags, merge keys) are added to `problems` and reading goes on.
    Raises PlanError where the text is no YAML.
    """
    source = Source(name, tuple(text.split("\n")), preset)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise PlanError([Problem(f"not valid YAML: {error.reason}", mark=Mark(source, line, column))]) from None
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = Mark(source, place.line + 1, place.column + 1) if place else None
        raise PlanError([Problem(f"not valid YAML: {_yaml_message(error)}", mark=mark)]) from None
    except RecursionError:
        raise PlanError([Problem(f"{name}: nested too deeply to read")]) from None
    return None if root is None else _Reader(source, problems).node(root, None)


def _yaml_message(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.problem, error.context) if part]
    return " ".join(", ".join(parts).split())


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, source: Source, problems: Problems) -> None:
        self.source, self.problems = source, problems
        self._open: list[int] = []
        self._nodes = 0

    def mark(self, node: yaml.Node) -> Mark:
        return Mark(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def node(self, node: yaml.Node, key: Mark | None, path: str = "") -> Node:
        mark = self.mark(node)
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise PlanError([Problem(f"more than {_MOST_NODES:,} values, aliases counted each time", path, mark)])
        if node.tag not in (_PLAIN, _QUOTED, _COLLECTION):
            self.problems.add(f"tags are not read ({node.tag.rsplit(':', 1)[-1]}); write the plain value", path, mark)
        if id(node) in self._open:
            self.problems.add("an alias to a value that contains it", path, key or mark)
            return Node({}, mark, key or mark)
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self._mapping(node, path), mark, key or mark)
            if isinstance(node, yaml.SequenceNode):
                return Node([self.node(item, None, path) for item in node.value], mark, key or mark)
            quoted = node.tag == _QUOTED
            value = node.value if quoted else resolve_scalar(node.value)
            return Node(value, mark, key or mark, node.value, quoted)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add("a key must be plain text", path, place)
                continue
            key = key_node.value
            inner = f"{path}.{key}" if path else key
            if key == "<<" and key_node.tag == _PLAIN:
                self.problems.add("merge keys are not read; use `extends`, or write the values out", inner, place)
            elif key in found:
                first = found[key].key.line
                self.problems.add(f"duplicate key on line {place.line}, first on line {first}", inner, place)
            else:
                found[key] = self.node(value_node, place, inner)
        return found


def resolve_scalar(text: str) -> Any:
    """What an unquoted YAML 1.2 scalar means: None, bool, int, finite float, or the text itself."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if len(text) <= _LONGEST_NUMBER and _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if len(text) <= _LONGEST_NUMBER and _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        return number if math.isfinite(number) else text
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
