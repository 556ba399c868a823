"""The same numbers in other memory layouts, which kernels misread that walk the memory, not the strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["LAYOUTS", "expansions"]


def _gaps(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What lies around an array, so that a kernel that walks the memory instead of the strides is seen.

    NaN; where there is none, other values of the array: an index must stay one that is legal.
    """
    if array.dtype.kind == "f":
        return np.full(shape, np.nan, array.dtype)
    return np.resize(np.roll(array.reshape(-1), 1), shape)


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="F")


def _strided(array: np.ndarray) -> np.ndarray:
    if not array.ndim:
        return array
    wide = _gaps(array, (*array.shape[:-1], 2 * array.shape[-1]))
    wide[..., ::2] = array
    return wide[..., ::2]


def _reversed(array: np.ndarray) -> np.ndarray:
    if not array.ndim:
        return array  # NumPy flips a number into a scalar
    # Who reads on from the first element, which comes last in memory, reads the gap.
    storage = _gaps(array, (2 * array.size,))[: array.size].reshape(array.shape)
    storage[...] = np.flip(array)
    return np.flip(storage)


def _sliced(array: np.ndarray) -> np.ndarray:
    # One element in: beside the start of the storage, and at an address that no vector of 16 bytes begins at.
    storage = _gaps(array, (array.size + 2,))
    view = storage[1:-1].reshape(array.shape)
    view[...] = array
    return view


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": _transposed,
    "strided": _strided,
    "reversed": _reversed,
    "sliced": _sliced,
}
"""Copies with the values of an array, laid out differently; without axes only the slice differs."""


def expansions(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of this shape with stride 0, as sums over axes hand them back, each with its description."""
    if array.ndim:
        yield "expanded from one number (stride 0)", np.broadcast_to(array.reshape(-1)[:1], array.shape)
    if array.ndim > 1:
        yield "expanded along axis 0 (stride 0)", np.broadcast_to(array[:1], array.shape)
