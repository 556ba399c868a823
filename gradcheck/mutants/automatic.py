"""Single-edit mutants, made from the syntax tree of the right pairs.

Each is one edit of one expression of the backward function, or of what the forward function saves for it. The
output stays right, for an error that both passes share is no error of the gradient.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradcheck.mutants import operations
from gradcheck.mutants.mutant import Mutant, Pair
from gradcheck.mutants.operations import OPERATIONS, Operation

__all__ = ["automatic_mutants"]

OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add, ast.Mult),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.Sub),
}
FUNCTIONS = {
    "mean": ("sum", "max"),
    "sum": ("mean", "max"),
    "sqrt": ("square", "exp"),
    "square": ("abs", "sqrt"),
}
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.Eq)
NOT_VALUES = frozenset({"np", "saved", "key"})  # names that stand for no number or array
NOT_SAVED = frozenset({"y", "count", "unbiased"})  # what a forward function computes for its output or state

Edit = tuple[str, ast.expr]  # a kind of EDITS, and what stands in place of an expression


def automatic_mutants() -> tuple[Mutant, ...]:
    """Every single edit of every pair, in a fixed order."""
    return tuple(mutant for operation in OPERATIONS.values() for mutant in _of(operation))


def _of(operation: Operation) -> Iterator[Mutant]:
    for role, function in (("forward", operation.forward), ("backward", operation.backward)):
        tree = ast.parse(inspect.getsource(function))
        for number, (kind, old, new) in enumerate(_edits(tree, role)):
            yield Mutant(
                name=f"{operation.name}.{role}.{number}",
                kind=kind,
                operation=operation,
                make=functools.partial(_make, operation, role, number),
                mistake=f"{_short(old)} → {_short(new)}",
            )


def _make(operation: Operation, role: str, number: int) -> Pair:
    function = operation.forward if role == "forward" else operation.backward
    tree = ast.parse(inspect.getsource(function))
    _, old, new = next(itertools.islice(_edits(tree, role), number, None))
    _Replace(old, new).visit(tree)
    names = {**vars(operations), "_in_float32": _in_float32}
    exec(compile(ast.fix_missing_locations(tree), f"<{operation.name}>", "exec"), names)
    edited = names[function.__name__]
    if role == "backward":
        return operation.forward, edited
    return _saving(operation.forward, edited), operation.backward


def _saving(right: Callable[..., Any], edited: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass with the right output that saves what the edited one does."""

    def forward(*inputs: np.ndarray) -> tuple[np.ndarray, Any]:
        _, saved = edited(*(array.copy() for array in inputs))
        return right(*inputs)[0], saved

    return forward


def _in_float32(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32).astype(array.dtype)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().generic_visit(node)


def _short(node: ast.expr) -> str:
    return ast.unparse(node).replace("1 + 1e-06", "1 + 1e-6")


def _edits(tree: ast.Module, role: str) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    """(kind, expression, what to put in its place) for every edit of a function."""
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    for statement in function.body[1:]:  # after the docstring
        for root in _roots(statement, role):
            for node in _expressions(root):
                for kind, new in _variants(node):
                    yield kind, node, new


def _roots(statement: ast.stmt, role: str) -> Iterator[ast.expr]:
    """The expressions of a statement that what is looked at depends on."""
    if isinstance(statement, ast.Assign):
        (target,) = statement.targets
        if not (role == "forward" and isinstance(target, ast.Name) and target.id in NOT_SAVED):
            yield statement.value
    elif isinstance(statement, ast.Return):
        value = statement.value
        assert isinstance(value, ast.Tuple)
        if role == "forward":
            yield from value.elts[1:]
        else:
            yield value


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """A node and those within it, but for names of functions, and axes, whose edits are made elsewhere."""
    if isinstance(node, ast.expr):
        yield node
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr != "default_rng":
            yield from _expressions(node.func.value)
        inner = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg != "axis")]
    else:
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if isinstance(node, ast.Attribute) and node.attr == "shape":
            inner = []
    for child in inner:
        yield from _expressions(child)


def _variants(node: ast.expr) -> Iterator[Edit]:
    if _is_array(node):
        yield from _around(node)
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.Compare):
        for comparison in COMPARISONS:
            yield "operator", ast.Compare(node.left, [comparison()], node.comparators)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Constant) and type(node.value) is int:  # not a bool
        for number in (node.value + 1, node.value - 1):
            yield "constant", ast.Constant(number)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        yield from _of_index(node)
    elif isinstance(node, ast.Tuple) and all(isinstance(element, ast.Name) for element in node.elts):
        for k in range(len(node.elts) - 1):
            yield "result", ast.Tuple(_swapped(node.elts, k), ast.Load())


def _is_array(node: ast.expr) -> bool:
    """Whether an expression is an array or number of the mathematics."""
    if isinstance(node, ast.Name):
        return isinstance(node.ctx, ast.Load) and node.id not in NOT_VALUES
    if isinstance(node, ast.Call):  # functions called by their name return tuples
        return isinstance(node.func, ast.Attribute) and node.func.attr != "default_rng"
    if isinstance(node, ast.Subscript):
        return not (isinstance(node.value, ast.Attribute) and node.value.attr == "shape")
    return isinstance(node, ast.BinOp)


def _around(node: ast.expr) -> Iterator[Edit]:
    for kind, code in (
        ("factor", "(1 + 1e-6) * e"),
        ("sign", "-1 * e"),
        ("zero", "0 * e"),
        ("digits", "_in_float32(e)"),
        ("roll", "np.roll(e, 1)"),
    ):
        if kind not in ("digits", "roll") or not _is_constant(node):
            yield kind, _filled(code, node)


def _is_constant(node: ast.expr) -> bool:
    return all(part.id.isupper() for part in ast.walk(node) if isinstance(part, ast.Name))


def _filled(code: str, node: ast.expr) -> ast.expr:
    """The expression `code` with `node` in place of e."""
    tree = ast.parse(code, mode="eval").body
    (hole,) = (part for part in ast.walk(tree) if isinstance(part, ast.Name) and part.id == "e")
    return _Replace(hole, copy.deepcopy(node)).visit(tree)


def _of_operation(node: ast.BinOp) -> Iterator[Edit]:
    for other in OPERATORS[type(node.op)]:
        yield "operator", ast.BinOp(node.left, other(), node.right)
    yield "operand", node.left
    yield "operand", node.right
    if isinstance(node.op, (ast.Sub, ast.Div)):
        yield "operand", ast.BinOp(node.right, node.op, node.left)


def _of_call(node: ast.Call) -> Iterator[Edit]:
    if isinstance(node.func, ast.Attribute):
        for other in FUNCTIONS.get(node.func.attr, ()):
            function = ast.Attribute(node.func.value, other, ast.Load())
            yield "function", ast.Call(function, node.args, node.keywords)
    for k, keyword in enumerate(node.keywords):
        others = node.keywords[:k] + node.keywords[k + 1 :]
        if keyword.arg == "keepdims":
            yield "keepdims", ast.Call(node.func, node.args, others)
        elif keyword.arg == "axis":
            for axes in _other_axes(ast.literal_eval(keyword.value)):
                changed = ast.keyword("axis", ast.parse(repr(axes), mode="eval").body)
                yield "axes", ast.Call(node.func, node.args, [changed, *others])


def _other_axes(axes: int | tuple[int, ...]) -> list[int | tuple[int, ...]]:
    if isinstance(axes, int):
        return [1 - axes]
    rank = max(axes) + 1
    without = [axes[:k] + axes[k + 1 :] for k in range(len(axes))]
    more = [tuple(sorted((*axes, axis))) for axis in range(rank) if axis not in axes]
    moved = [
        tuple(sorted((*rest, axis))) for rest in without for axis in range(rank) if axis not in (*axes, *rest)
    ]
    return [*without, *more, *moved]


def _of_index(node: ast.Subscript) -> Iterator[Edit]:
    """The new axis of `weight[:, :, None]` at each other place."""
    assert isinstance(node.slice, ast.Tuple)
    places = node.slice.elts
    for k in range(len(places) - 1):
        if ast.dump(places[k]) != ast.dump(places[k + 1]):
            moved = ast.Tuple(_swapped(places, k), ast.Load())
            yield "axes", ast.Subscript(node.value, moved, ast.Load())


def _swapped(elements: list[ast.expr], k: int) -> list[ast.expr]:
    """The elements with the one at k and the next in the other order."""
    return [*elements[:k], elements[k + 1], elements[k], *elements[k + 2 :]]
