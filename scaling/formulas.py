"""Arithmetic over columns as a user writes it on a command line: `compute/(6*params)`. A whitelist, never eval.

Numbers, names of columns, + - * / **, parentheses, sqrt, log (natural) and exp; all else is refused. It knows columns
as arrays of floats and nothing of files or of the tidy table.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

OPERATORS: dict[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[[Array], Array]] = {"sqrt": np.sqrt, "log": np.log, "exp": np.exp}
LONGEST = 1000  # characters; a formula is a line, and Python's parser must not be driven to its limits


class FormulaError(ValueError):
    """A text is no formula; the message says what in it is not allowed."""


@dataclass(frozen=True)
class Formula:
    """A parsed formula. `names` are the columns that it reads, each once, in order."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    def evaluate(self, columns: Mapping[str, Array]) -> Array:
        """Its value in every row; NaN or inf where a value is missing or arithmetic gives no number. No warnings.

        `columns` holds an array for every one of `names`; without names the result is a single number.
        """
        with np.errstate(all="ignore"):
            return np.asarray(_value(self.tree, columns), dtype=float)


def parse_formula(text: str) -> Formula:
    """Read a formula. Raises FormulaError."""
    if len(text) > LONGEST:
        raise FormulaError(f"longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        names = list(_names(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, FormulaError):
            raise
        raise FormulaError("not an arithmetic formula") from None
    return Formula(text, tree, tuple(dict.fromkeys(names)))


def _names(node: ast.expr) -> list[str]:
    """The columns that a node reads. Raises FormulaError for a node that is not on the whitelist."""
    if isinstance(node, ast.Constant):
        _number(node)
        return []
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        return _names(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return _names(node.left) + _names(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        if len(node.args) != 1 or node.keywords:
            raise FormulaError(f"{node.func.id} takes one value")
        return _names(node.args[0])
    raise FormulaError(f"{ast.unparse(node)!r} is not allowed; use numbers, columns, + - * / **, sqrt, log, exp")


def _number(node: ast.Constant) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise FormulaError(f"{node.value!r} is not a number")
    try:
        value = float(node.value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise FormulaError("a number in it is too large")
    return value


def _value(node: ast.expr, columns: Mapping[str, Array]) -> Array:
    if isinstance(node, ast.Constant):
        return np.float64(_number(node))  # type: ignore[return-value]  # never an int: 9**9**9 must end as inf at once
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, columns)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left, columns), _value(node.right, columns))
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return FUNCTIONS[node.func.id](_value(node.args[0], columns))
