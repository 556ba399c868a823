"""Checks of arguments that the public functions share: each message says what was got and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices import is_array
from ..tensor import array_of

__all__ = [
    "as_index",
    "check_affine",
    "check_channel_axis",
    "check_eps",
    "check_rank",
    "is_number",
    "shape_of",
]


def shape_of(operation: str, value: Any) -> tuple[int, ...]:
    """The shape of the input."""
    array = array_of(value)
    if type(array) is not np.ndarray and not is_array(array):
        raise TypeError(f"{operation}: input is {type(value).__name__}, wanted a Tensor or an array")
    return array.shape


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


def check_rank(operation: str, shape: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    if not low <= len(shape) <= high:
        raise ValueError(
            f"{operation}: input has rank {len(shape)}, shape {shape}; wanted rank {low} to {high}, the "
            "batch first"
        )
    return shape


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


def check_affine(
    operation: str,
    shape: tuple[int, ...],
    wanted: int | Sequence[int],
    weight: Any,
    bias: Any,
    *,
    trailing: bool = True,
) -> tuple[int, ...]:
    """The shape that weight and bias must have, and in which the input must end where `trailing`."""
    if type(wanted) is int:
        expected: tuple[int, ...] = (wanted,)
    else:
        lengths = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        what = "an integer, or a tuple of them: the last axes of the input"
        expected = tuple([as_index(operation, "normalized_shape", n, what) for n in lengths])
    if trailing and (not expected or shape[-len(expected) :] != expected):
        raise ValueError(
            f"{operation}: normalized_shape is {expected}, wanted the last axes of the input, whose "
            f"shape is {shape}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            array = array_of(value)
            shape = array.shape if isinstance(array, np.ndarray) else np.shape(array)
            if shape != expected:
                raise ValueError(f"{operation}: {name} has shape {shape}, wanted {expected}")
    return expected
