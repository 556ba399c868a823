"""Checks of arguments that the public functions share; every message says what was got, what was wanted and
the way out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tensor import Tensor, array_of

__all__ = ["check_affine", "check_channel_axis", "check_eps", "check_rank", "shape_of"]


def shape_of(operation: str, value: Any) -> tuple[int, ...]:
    """The shape of the input."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(f"{operation}: input is {type(value).__name__}, wanted a Tensor or a NumPy array")
    return value.shape


def check_rank(operation: str, shape: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    if not low <= len(shape) <= high:
        raise ValueError(
            f"{operation}: input has rank {len(shape)}, shape {shape}; wanted rank {low} to {high}, the "
            "batch first"
        )
    return shape


def check_channel_axis(operation: str, channel_axis: int) -> int:
    if channel_axis not in (1, -1):
        raise ValueError(
            f"{operation}: channel_axis is {channel_axis!r}, wanted 1 (channels first) or -1 (channels last)"
        )
    return channel_axis


def check_eps(operation: str, eps: float) -> float:
    if not isinstance(eps, (int, float, np.number)) or not 0 <= eps < math.inf:
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
    """The shape of weight and bias, after seeing that they have it, and that the input ends in it where
    `trailing`.
    """
    expected = (int(wanted),) if isinstance(wanted, (int, np.integer)) else tuple(int(n) for n in wanted)
    if trailing and (not expected or shape[-len(expected) :] != expected):
        raise ValueError(
            f"{operation}: normalized_shape is {expected}, wanted the last axes of the input, whose "
            f"shape is {shape}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and np.shape(array_of(value)) != expected:
            raise ValueError(f"{operation}: {name} has shape {np.shape(array_of(value))}, wanted {expected}")
    return expected
