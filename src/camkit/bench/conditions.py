"""`--fail-if`: small expressions such as `native.gradcam.ratio > 1.2 or control.random.spearman > 0.5`.

They are read by `ast`, never run: names of figures, numbers, comparisons, `and` and `or` are all there is.
Characters that a name cannot hold become underscores: `pytorch_grad_cam.gradcampp.ms`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from camkit.errors import CamkitError, OptionError, closest

MAX_LENGTH = 1000
COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """A checked expression and the names of the figures in it."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    def check(self, known: Collection[str]) -> None:
        """`OptionError` for a name that is not among `known`."""
        for name in self.names:
            if name not in known:
                raise OptionError(
                    f"--fail-if {self.text!r}: there is no figure {name!r}{closest(name, known)}"
                )

    def holds(self, values: Mapping[str, float | None]) -> bool:
        """Whether it holds for `values`; `CamkitError` if a figure was not measured, which is no pass."""
        for name in self.names:
            if values.get(name) is None:
                raise CamkitError(f"--fail-if {self.text!r}: {name} was not measured (see the notes)")
        return _holds(self.tree, values)

    def with_figures(self, values: Mapping[str, float | None]) -> str:
        """The expression, with the values of its figures."""
        return f"{self.text} ({', '.join(f'{name} is {values[name]:.4g}' for name in self.names)})"


def parse(text: str) -> Condition:
    """The condition that `text` means, or an `OptionError` that says what is not allowed in it."""
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it is longer than {MAX_LENGTH} characters")
        tree = ast.parse(text.strip(), mode="eval").body
        names = _checked(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or "it is too deep"
        raise OptionError(
            f"--fail-if {text[:80]!r} is no condition such as native.gradcam.ratio > 1.2: {reason}"
        ) from None
    return Condition(text.strip(), tree, tuple(dict.fromkeys(names)))


def _checked(node: ast.expr) -> list[str]:
    """The names in a condition; `ValueError` if it holds anything else than is allowed."""
    match node:
        case ast.BoolOp(values=values):
            return [name for value in values for name in _checked(value)]
        case ast.Compare(left=left, ops=ops, comparators=others):
            if bad := [op for op in ops if type(op) not in COMPARISONS]:
                raise ValueError(f"{type(bad[0]).__name__} is no comparison of numbers")
            return [name for side in (left, *others) for name in _side(side)]
    raise ValueError(f"{ast.unparse(node)[:60]} compares nothing")


def _side(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return []
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return _side(node.operand)
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id=backend), attr=method), attr=figure):
            return [f"{backend}.{method}.{figure}"]
    raise ValueError(f"{ast.unparse(node)[:60]} is neither a number nor BACKEND.METHOD.FIGURE")


def _holds(node: ast.expr, values: Mapping[str, float | None]) -> bool:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_holds(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_holds(part, values) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others):
            numbers = [_number(side, values) for side in (left, *others)]
            return all(COMPARISONS[type(op)](*numbers[i : i + 2]) for i, op in enumerate(ops))
    raise AssertionError("checked by `parse`")


def _number(node: ast.expr, values: Mapping[str, float | None]) -> float:
    found = values[name] if (name := ast.unparse(node)) in values else ast.literal_eval(node)
    assert found is not None, "checked by `holds`"
    return float(found)
