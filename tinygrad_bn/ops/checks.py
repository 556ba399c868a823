"""Checks of arguments that the public functions share: each message says what was got and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices import is_array
from ..tensor import Tensor

__all__ = [
    "as_index",
    "check_affine",
    "check_channel_axis",
    "check_eps",
    "check_input",
    "check_rank",
    "check_trailing",
    "is_number",
]

Shapes = Sequence[Any]
"""Those of an operation's inputs; None for an absent one."""


def check_input(operation: str, value: Any) -> None:
    if type(value) is not Tensor and not is_array(value):
        raise TypeError(f"{operation}: input is {type(value).__name__}, wanted a Tensor or an array")


def as_index(operation: str, name: str, value: Any, wanted: str) -> int:
    """An integer, Python's or NumPy's; neither a boolean nor a float that happens to be whole."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{operation}: {name} is {value!r}, wanted {wanted}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, Python's or NumPy's, and not a boolean."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_rank(operation: str, shape: tuple[int, ...], low: int, high: int) -> None:
    if not low <= len(shape) <= high:
        raise ValueError(
            f"{operation}: input has rank {len(shape)}, shape {shape}; wanted rank {low} to {high}, the "
            "batch first"
        )


def check_channel_axis(operation: str, channel_axis: int) -> int:
    wanted = "1 (channels first) or -1 (channels last)"
    axis = as_index(operation, "channel_axis", channel_axis, wanted)
    if axis not in (1, -1):
        raise ValueError(f"{operation}: channel_axis is {channel_axis!r}, wanted {wanted}")
    return axis


def check_eps(operation: str, eps: float) -> float:
    if not (type(eps) is float or is_number(eps)) or not 0 <= eps < math.inf:
        raise ValueError(f"{operation}: eps is {eps!r}, wanted a finite number ≥ 0")
    return float(eps)


def check_trailing(operation: str, shapes: Shapes, lengths: Sequence[Any]) -> tuple[int, ...]:
    """The lengths of the last axes of the input, as integers: the shape of weight and bias."""
    what = "an integer, or a tuple of them: the last axes of the input"
    wanted = tuple([as_index(operation, "normalized_shape", n, what) for n in lengths])
    if not wanted or shapes[0][-len(wanted) :] != wanted:
        raise ValueError(
            f"{operation}: normalized_shape is {wanted}, wanted the last axes of the input, whose "
            f"shape is {shapes[0]}"
        )
    check_affine(operation, shapes, wanted)
    return wanted


def check_affine(operation: str, shapes: Shapes, wanted: tuple[int, ...]) -> None:
    """Of shapes, those of weight and bias follow that of the input."""
    for name, shape in (("weight", shapes[1]), ("bias", shapes[2])):
        if shape is not None and shape != wanted:
            raise ValueError(f"{operation}: {name} has shape {shape}, wanted {wanted}")
