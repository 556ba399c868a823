"""The same numbers in other memory layouts, which kernels misread that walk the memory, not the strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["LAYOUTS", "expansions"]


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="F")


def _strided(array: np.ndarray) -> np.ndarray:
    if not array.ndim:
        return array
    # NaN in the gaps, so that a kernel that walks the memory instead of the strides is seen.
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _reversed(array: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(array).copy())


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": _transposed,
    "strided": _strided,
    "reversed": _reversed,
}
"""Copies with the values of an array, laid out differently; without axes there is one layout only."""


def expansions(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of this shape with stride 0, as sums over axes hand them back, each with its description."""
    if array.ndim:
        yield "expanded from one number (stride 0)", np.broadcast_to(array.reshape(-1)[:1], array.shape)
    if array.ndim > 1:
        yield "expanded along axis 0 (stride 0)", np.broadcast_to(array[:1], array.shape)
