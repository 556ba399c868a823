"""What the host does around the launch of a kernel: memory, layout, and how the work is divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import devices
from .vectors import BYTES, per_vector

BFLOAT16 = "bfloat16"


def stored(array: Any) -> Any:
    """The array as kernels see it: bfloat16, which numba does not know, as its bits in uint16."""
    return array.view(np.uint16) if array.dtype.name == BFLOAT16 else array


def arithmetic(storage: np.dtype) -> type:
    """The type in which values of a dtype are calculated with: their own, or float32 for those of 16 bits."""
    return np.float64 if storage == np.float64 else np.float32


def new(shape: Sequence[int] | int, dtype: Any, like: Any) -> Any:
    """Memory for a result, on the device of `like`; not initialized, and in the simulator full of NaN."""
    array = devices.empty((shape,) if isinstance(shape, int) else tuple(shape), dtype, like)
    if isinstance(array, np.ndarray):
        array.view(np.ndarray).reshape(-1).view(np.uint8).fill(0xFF)
    return array


def contiguous(array: Any) -> Any:
    """The array, or a copy of it, with its values one after the other."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def width(length: int, *arrays: Any) -> int:
    """How many neighbours along runs of `length` can be moved at once: sixteen bytes' worth, or one.

    All arrays are of the same dtype. A view may begin where vectors may not.
    """
    wide = per_vector(arrays[0].dtype)
    if length % wide or any(_address(array) % BYTES for array in arrays):
        return 1
    return wide


def _address(array: Any) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
