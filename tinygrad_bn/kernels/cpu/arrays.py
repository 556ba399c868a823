"""What the host does to arrays before and after a kernel: layout, absent arguments, shapes of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Statistics = tuple[Array, Array, Array]
Gradients = tuple[Array | None, Array | None, Array | None]


def contiguous(array: Array, shape: Sequence[int]) -> Array:
    """The array in the shape of a view, contiguous and aligned as drivers need it; copied if need be."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = array.copy(order="C")
    return array if array.shape == shape else array.reshape(shape)


def affine(array: Array | None, absent: float, dtype: np.dtype, size: int) -> Array:
    """Weight or bias as a flat array, filled with the number that changes nothing where it is absent."""
    if array is None:
        return _constant(size, absent, dtype)
    return contiguous(array, (size,))


@lru_cache(maxsize=64)
def _constant(size: int, value: float, dtype: np.dtype) -> Array:
    """A read-only array of one value, which the calls of a model ask for again and again."""
    array = np.full(size, value, dtype)
    array.flags.writeable = False
    return array


def new_statistics(count: int, x: Array) -> Statistics:
    """Room for mean, variance and rstd; NaN where x is empty, as the mean of no values is."""
    if x.size == 0:
        return np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.nan)
    return np.empty(count), np.empty(count), np.empty(count)


def running_statistics(eps: float, running_mean: Array, running_var: Array) -> Statistics:
    """The statistics of inference, as copies in float64."""
    mean, variance = running_mean.astype(np.float64).reshape(-1), running_var.astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        return mean, variance, 1 / np.sqrt(variance + eps)


def gradients(
    needs: Sequence[bool], dx: Array, dweight: Array, dbias: Array, weight: Array | None, bias: Array | None
) -> Gradients:
    """The gradients that are needed, from dx and the sums [Z, channels] of dweight and dbias.

    dweight and dbias get the shape of weight, or of bias where weight is absent.
    """
    like = bias if weight is None else weight
    shape = dweight.shape[1:] if like is None else like.shape

    def total(parts: Array) -> Array:
        whole = (parts[0] if len(parts) == 1 else parts.sum(axis=0)).astype(dx.dtype, copy=False)
        return whole if whole.shape == shape else whole.reshape(shape)

    return (
        dx if needs[0] else None,
        total(dweight) if needs[1] else None,
        total(dbias) if needs[2] else None,
    )
