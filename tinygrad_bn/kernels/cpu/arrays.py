"""What the host does to arrays before and after a kernel: layout, absent arguments, shapes of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Statistics = Array
"""[3, S] in float64: mean, variance and rstd. It is what a forward pass hands to its vjp, as `aux`."""
Gradients = tuple[Array | None, Array | None, Array | None]


def contiguous(array: Array, shape: Sequence[int]) -> Array:
    """The array in the shape of a view, contiguous and aligned as drivers need it; copied if need be."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = array.copy(order="C")
    return array if array.shape == shape else array.reshape(shape)


def affine(
    array: Array | None, absent: float, dtype: np.dtype, shape: tuple[int, ...], repeat: int = 1
) -> Array:
    """Weight or bias in the shape that a kernel reads, each value repeated; where it is absent, filled with
    the number that changes nothing.
    """
    if array is None:
        return _constant(shape, absent, dtype)
    return contiguous(array if repeat == 1 else array.repeat(repeat), shape)


@lru_cache(maxsize=64)
def _constant(shape: tuple[int, ...], value: float, dtype: np.dtype) -> Array:
    """A read-only array of one value, which the calls of a model ask for again and again."""
    array = np.full(shape, value, dtype)
    array.flags.writeable = False
    return array


def new_statistics(count: int, x: Array, running: Sequence[Array] = ()) -> Statistics:
    """Room for the statistics, of which running mean and variance are filled in where they are given; NaN
    where x is empty, as the mean of no values is.
    """
    statistics = np.empty((3, count)) if x.size else np.full((3, count), np.nan)
    for row, given in enumerate(running):
        statistics[row] = given.reshape(-1)
    return statistics


def gradients(
    needs: Sequence[bool], dx: Array, sums: Array, weight: Array | None, bias: Array | None
) -> Gradients:
    """The gradients that are needed, from dx and the sums [2, 1 or more, channels], of which the first are
    dweight and dbias.

    dweight and dbias get the shape of weight, or of bias where weight is absent.
    """
    dtype = dx.dtype
    like = bias if weight is None else weight
    totals = sums[:, 0]
    if like is not None and like.ndim != 1:
        totals = totals.reshape(2, *like.shape)
    return (
        dx if needs[0] else None,
        totals[0].astype(dtype) if needs[1] else None,
        totals[1].astype(dtype) if needs[2] else None,
    )
