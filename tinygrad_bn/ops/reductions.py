"""Reductions over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..devices import as_array
from ..dispatch import primitive
from .samples import calls

__all__ = ["amax", "amin", "mean", "sum"]

AXES = calls(
    (((),), {}),
    (((5,),), {"axis": 0}),
    (((3, 4),), {"axis": -1, "keepdims": True}),
    (((2, 3, 4),), {"axis": (0, 2)}),
    (((2, 3, 4),), {"axis": (-1, 0), "keepdims": True}),
    (((2, 3),), {}),
)


def _kept(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The shape with length 1 along the reduced axes."""
    if axis is None:
        return (1,) * len(shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    reduced = {a % len(shape) for a in axes} if shape else set()
    return tuple(1 if a in reduced else length for a, length in enumerate(shape))


def _count(shape: tuple[int, ...], axis: Any) -> int:
    """How many elements make one element of the result; 0 where there is none."""
    return math.prod(shape) // max(math.prod(_kept(shape, axis)), 1)


def _sum(xp, g, y, x, axis, keepdims):
    return xp.broadcast_to(xp.reshape(g, _kept(x.shape, axis)), x.shape)


@primitive("reduce::sum", vjps=(_sum,), samples=AXES)
def sum(x, axis=None, keepdims=False):
    """The sum over `axis` (an integer, a tuple, or None for all)."""
    return as_array(x).sum(axis, keepdims=keepdims)


def _mean(xp, g, y, x, axis, keepdims):
    return xp.broadcast_to(xp.reshape(g / max(_count(x.shape, axis), 1), _kept(x.shape, axis)), x.shape)


@primitive("reduce::mean", vjps=(_mean,), samples=AXES)
def mean(x, axis=None, keepdims=False):
    """The mean over `axis` (an integer, a tuple, or None for all)."""
    x = as_array(x)
    total = x.sum(axis, keepdims=keepdims)
    return total / (x.size // max(total.size, 1))  # the bits of x.mean, which takes twice as long in NumPy


def _extreme(xp, g, y, x, axis, keepdims):
    kept = _kept(x.shape, axis)
    chosen = x == xp.reshape(y, kept)
    with np.errstate(invalid="ignore"):  # a NaN equals nothing: its slice gets NaN
        share = chosen / np.sum(chosen, axis=axis, keepdims=True).reshape(kept)
    return xp.reshape(g, kept) * share


@primitive("reduce::amax", vjps=(_extreme,), keeps=((0,),), keeps_output=True, samples=AXES)
def amax(x, axis=None, keepdims=False):
    """The largest element over `axis`; equal ones share the derivative, as in torch's function of this
    name.
    """
    return as_array(x).max(axis, keepdims=keepdims)


@primitive("reduce::amin", vjps=(_extreme,), keeps=((0,),), keeps_output=True, samples=AXES)
def amin(x, axis=None, keepdims=False):
    """The smallest element over `axis`; equal ones share the derivative."""
    return as_array(x).min(axis, keepdims=keepdims)
