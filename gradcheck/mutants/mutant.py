"""What a mutant is, and how one is written.

A mutant is the wrong twin of an operation in `operations.py`: a pair with one mistake. Most are wrong in the
backward pass alone, and are one function, whose docstring says the mistake in one line:

    @wrong_backward("formula", "rms_norm")
    def weight_forgotten(saved, cotangent):
        \"\"\"dx is computed from ȳ in place of ȳ·γ.\"\"\"
        x, rstd, weight = saved
        ...
        return dx, dweight

Those that need a forward pass of their own, or remember something between calls, are a function that makes
the pair. It is called once for each run over all configurations, so that nobody else sees what it remembers:

    @wrong_pair("state", "rms_norm")
    def rstd_of_the_latest_call():
        \"\"\"Backward reads the rstd that the latest forward call left behind.\"\"\"
        latest = {}
        def forward(x, weight): ...
        def backward(saved, cotangent): ...
        return forward, backward

The decorated name is then the Mutant. A module of mutants needs no list: `mutants_of(module)` finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gradcheck.mutants.operations import OPERATIONS, Operation

__all__ = ["EDITS", "KINDS", "Mutant", "Pair", "mutants_of", "wrong_backward", "wrong_pair"]

Pair = tuple[Callable[..., Any], Callable[..., Any]]

KINDS = {
    "formula": "a term, factor or sign of the formula is wrong",
    "tiny": "wrong by a relative 1e-6 or less, or by ε in the wrong place",
    "local": "one element, row, channel or tail is wrong",
    "index": "right values at wrong places: rolled, wrong stride, off by one",
    "axis": "a sum or mean over the wrong axes",
    "configuration": "wrong only for some shapes: batch 1, an odd length, 65 or more elements, G = 1, G = C",
    "contract": "modifies or shares memory that is not its own, wrong dtype or shape, a nonlinear vjp",
    "state": "the result depends on other calls",
    "layout": "wrong for arrays that are not contiguous: expanded, transposed, strided, reversed",
    "mode": "the formula of training at inference, or the other way round",
    "rng": "another mask than that of this forward call",
    "numerics": "right mathematics in too few digits",
    "nondeterminism": "another result now and then",
}

# The kinds of the mutants that `automatic` makes.
EDITS = {
    "factor": "an expression times 1 + 1e-6",
    "sign": "an expression negated",
    "zero": "an expression times 0",
    "digits": "an expression rounded to float32",
    "roll": "the elements of an expression moved on by one",
    "operator": "another operator",
    "operand": "one operand alone, or both swapped",
    "function": "another function: a sum for a mean",
    "axes": "an axis more, less or another",
    "constant": "another number",
    "keepdims": "reduced axes dropped",
    "result": "results swapped",
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong twin.

    name, kind: `kind` is one of KINDS, or of EDITS for an automatic one.
    operation: whose twin it is.
    make: makes (forward, backward), with nothing remembered of earlier calls.
    mistake: in words.
    invisible: why no check of the pair can see it; empty for a mutant that must be caught.
    """

    name: str
    kind: str
    operation: Operation
    make: Callable[[], Pair]
    mistake: str
    invisible: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS | EDITS:
            raise ValueError(f"mutant {self.name}: kind is {self.kind!r}, wanted one of {', '.join(KINDS)}")
        if not self.mistake:
            raise ValueError(f"mutant {self.name} needs a docstring that says the mistake")


def wrong_backward(
    kind: str, operation: str, *, invisible: str = ""
) -> Callable[[Callable[..., Any]], Mutant]:
    """Decorate a wrong backward function; the forward function is the right one."""
    right = OPERATIONS[operation]

    def decorate(backward: Callable[..., Any]) -> Mutant:
        return Mutant(
            name=backward.__name__,
            kind=kind,
            operation=right,
            make=lambda: (right.forward, backward),
            mistake=_first_line(backward),
            invisible=invisible,
        )

    return decorate


def wrong_pair(kind: str, operation: str, *, invisible: str = "") -> Callable[[Callable[[], Pair]], Mutant]:
    """Decorate a function without arguments that makes a pair, one or both of it wrong."""

    def decorate(make: Callable[[], Pair]) -> Mutant:
        return Mutant(make.__name__, kind, OPERATIONS[operation], make, _first_line(make), invisible)

    return decorate


def mutants_of(module: ModuleType) -> tuple[Mutant, ...]:
    """The mutants that a module defines, in the order of its source."""
    return tuple(value for value in vars(module).values() if isinstance(value, Mutant))


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
