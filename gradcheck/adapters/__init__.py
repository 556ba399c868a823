"""Functions of a framework's tensors as pairs of functions on NumPy arrays.

One module per framework, imported when a check first meets its tensors. Each has

    recognises(fn, inputs)              whether fn and inputs are this framework's
    pair(fn, inputs, differentiable)    the Pair that `check` judges
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Pair"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A function of a framework's tensors, as the checker sees it: NumPy arrays in, NumPy arrays out.

    forward: takes the inputs, returns (output, saved).
    backward: takes (saved, cotangent), returns one gradient per input, None for those that have none.
    inputs: the inputs as arrays, None for what cannot be one, such as a string, which forward puts back.
    name: of the function.
    differentiable: positions of the inputs that get a gradient.
    jvp: takes (inputs, tangents), both with one entry per input and tangents None where there is none;
        returns the derivative of the output along the tangents. None where the framework makes it out of the
        same rule as the backward pass: then it would agree with a wrong one.
    second: takes a cotangent of the output; returns the Pair of (*inputs, cotangent) ↦ the gradients, joined
        into one vector. None where the framework cannot differentiate its gradients.
    plain: takes the inputs, returns the output as those get it who ask for no gradient.
    some: takes positions among the differentiable ones; returns the Pair of which only those get a gradient.
        None where a backward pass cannot know.
    remarks: what the reader of a report should know, such as why there is no jvp.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: list[Any]
    name: str
    differentiable: tuple[int, ...]
    jvp: Callable[..., Any] | None = None
    second: Callable[..., Pair] | None = None
    plain: Callable[..., Any] | None = None
    some: Callable[[tuple[int, ...]], Pair] | None = None
    remarks: tuple[str, ...] = ()
