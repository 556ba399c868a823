"""The tape: recorded operations, and the reverse sweep over them.

Every recorded operation is a `Node`. A node knows the nodes that its inputs came from, and its *position*,
a number that only counts up. An operation can use only what existed before it, so the reachable nodes
sorted by falling position are the tape read backwards. That is the whole idea, and it has three
consequences:

- no recursion: a chain of 100,000 operations differentiates;
- no global list: a node lives as long as something refers to it, so dropping the last output drops its nodes;
- nothing below the lowest node that is wanted is ever visited.

This module knows no arrays. It adds cotangents with `+` and calls `op.pull`; plain floats will do, and the
tests use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from itertools import count
from operator import attrgetter
from typing import Any, Protocol

__all__ = ["LEAF", "Edge", "Node", "Op", "enable_grad", "is_grad_enabled", "no_grad", "sweep"]


class Op(Protocol):
    """What the tape asks of an operation: a name for its errors, and the pull-back of a cotangent."""

    @property
    def name(self) -> str: ...

    def pull(
        self, node: Node, cotangents: Sequence[Any], needs: tuple[bool, ...], create_graph: bool
    ) -> Sequence[Any]:
        """Return one cotangent per parent (None where `needs` is False, or where the derivative is zero).

        `cotangents` has one entry per output of the node, None for an output that nothing depended on.
        """


class _Leaf:
    """The operation of a tensor that no operation made."""

    name = "leaf"

    def pull(self, node: Node, cotangents: Any, needs: Any, create_graph: bool) -> Sequence[Any]:
        return ()


LEAF = _Leaf()
_positions = count()
_position = attrgetter("position")


class Node:
    """One recorded operation.

    op: has a `name` and a `pull`.
    parents: one `Edge` per input, None for an input that needs no gradient.
    saved: whatever `op.pull` needs; dropped by `release`.
    outputs: how many results the operation has.
    """

    __slots__ = ("__weakref__", "hooks", "op", "outputs", "parents", "position", "released", "saved")

    def __init__(self, op: Op, parents: tuple[Edge | None, ...] = (), saved: Any = None, outputs: int = 1):
        self.op = op
        self.parents = parents
        self.saved = saved
        self.outputs = outputs
        self.position = next(_positions)
        self.released = False
        self.hooks: list[tuple[int, Callable[[Any], Any]]] | None = None

    def release(self) -> None:
        """Drop the saved values; the node keeps its place, so that a second sweep can say what happened."""
        if self.op is not LEAF:
            self.saved = None
            self.released = True


Edge = tuple[Node, int]
"""Which output of which node a value is."""


def sweep(
    seeds: Sequence[tuple[Edge, Any]],
    wanted: Sequence[Edge] | None = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> dict[Edge, Any]:
    """Carry the cotangents `seeds` backwards and return the cotangent of every wanted edge that they reach.

    wanted: the edges whose cotangents are asked for, or None for every leaf. Only nodes on a way to a
        wanted edge are visited, so gradients that nobody asked for are not computed.
    retain_graph: keep the saved values of the visited nodes for another sweep.
    create_graph: tell every operation to record its own pull-back, also inside `no_grad`. Hooks run in the
        same mode.

    Raises RuntimeError where a node was released by an earlier sweep.
    """
    token = _grad_enabled.set(create_graph)
    try:
        return _sweep(seeds, wanted, retain_graph, create_graph)
    finally:
        _grad_enabled.reset(token)


def _sweep(
    seeds: Sequence[tuple[Edge, Any]], wanted: Sequence[Edge] | None, retain_graph: bool, create_graph: bool
) -> dict[Edge, Any]:
    if wanted is not None and not wanted:
        return {}
    kept = {node for node, _ in wanted or ()}  # whose cotangents are asked for; if `wanted` is None, leaves
    tape = _reachable(seeds, min([node.position for node in kept]) if kept else 0)
    useful = _leading_to(kept, tape) if kept else None
    arrived: dict[Node, list[Any]] = {}  # one cotangent for each output; dropped once they are passed on
    for edge, cotangent in seeds:
        if useful is None or edge[0] in useful:
            _add(arrived, edge, cotangent)

    for node in reversed(tape):
        cotangents = arrived.get(node)
        if cotangents is None:
            continue
        if not (node in kept or (useful is None and node.op is LEAF)):
            del arrived[node]
        if node.hooks:
            _run_hooks(node, cotangents)
        parents = node.parents
        if useful is None:
            needs = tuple([parent is not None for parent in parents])
        else:
            needs = tuple([parent is not None and parent[0] in useful for parent in parents])
        if True not in needs:
            continue
        if node.released:
            raise RuntimeError(
                f"{node.op.name}: its saved values were freed by an earlier backward pass; "
                "pass retain_graph=True to the first one to go through the graph twice"
            )
        for parent, needed, cotangent in zip(
            parents, needs, node.op.pull(node, cotangents, needs, create_graph), strict=True
        ):
            if needed and parent is not None and cotangent is not None:
                _add(arrived, parent, cotangent)
        if not retain_graph:
            node.release()

    found = {}
    for edge in [(node, 0) for node in arrived] if wanted is None else wanted:
        node, index = edge
        cotangent = arrived[node][index] if node in arrived else None
        if cotangent is not None:
            found[edge] = cotangent
    return found


def _add(arrived: dict[Node, list[Any]], edge: Edge, cotangent: Any) -> None:
    """One more cotangent for an output of a node."""
    node, index = edge
    cotangents = arrived.get(node)
    if cotangents is None:
        cotangents = arrived[node] = [None] * node.outputs
    before = cotangents[index]
    cotangents[index] = cotangent if before is None else before + cotangent


def _reachable(seeds: Sequence[tuple[Edge, Any]], floor: int) -> list[Node]:
    """Every node at or above position `floor` that a seed depends on, by rising position.

    Left out are the ends, leaves without a hook: what arrives there only has to be added up.
    """
    stack = [node for (node, _), _ in seeds]
    seen = set(stack)
    while stack:
        for parent in stack.pop().parents:
            if parent is None:
                continue
            node = parent[0]
            if node.position >= floor and (node.op is not LEAF or node.hooks) and node not in seen:
                seen.add(node)
                stack.append(node)
    return sorted(seen, key=_position)


def _leading_to(kept: set[Node], tape: list[Node]) -> set[Node]:
    """The nodes of `tape` from which a kept one can be reached, and those that are kept."""
    useful = kept.copy()
    for node in tape:
        for parent in node.parents:
            if parent is not None and parent[0] in useful:
                useful.add(node)
                break
    return useful


def _run_hooks(node: Node, cotangents: list[Any]) -> None:
    for index, hook in tuple(node.hooks or ()):
        if cotangents[index] is not None:
            replacement = hook(cotangents[index])
            if replacement is not None:
                cotangents[index] = replacement


_grad_enabled: ContextVar[bool] = ContextVar("tinygrad_bn_grad_enabled", default=True)
is_grad_enabled = _grad_enabled.get


class _GradMode(ContextDecorator):
    """Switches recording on or off, as a context manager or a decorator; nests, and is local to a thread or
    task.
    """

    enabled: bool

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def _recreate_cm(self) -> _GradMode:
        return type(self)()  # a decorated function may call itself, or run in several threads

    def __enter__(self) -> None:
        self._tokens.append(_grad_enabled.set(self.enabled))

    def __exit__(self, *exception: object) -> None:
        _grad_enabled.reset(self._tokens.pop())


class no_grad(_GradMode):  # noqa: N801 -- torch's name
    """Do not record operations: `with no_grad(): ...` or `@no_grad()`."""

    enabled = False


class enable_grad(_GradMode):  # noqa: N801 -- torch's name
    """Record operations again inside a `no_grad` block."""

    enabled = True
