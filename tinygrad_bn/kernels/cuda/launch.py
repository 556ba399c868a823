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
    dtype = array.dtype  # not one of NumPy's own; their names take it 10 µs to make
    return array.view(np.uint16) if dtype.kind == "V" and dtype.name == BFLOAT16 else array


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
    """The array, or a copy, with its values one after the other from an address where vectors may begin."""
    if array.flags.c_contiguous and _address(array) % BYTES == 0:
        return array
    return array.copy(order="C")


def width(length: int, storage: np.dtype) -> int:
    """How many neighbours along runs of `length` values are moved at once: sixteen bytes' worth, or one."""
    wide = per_vector(storage)
    return 1 if length % wide else wide


def _address(array: Any) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
