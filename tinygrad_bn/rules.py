"""What every rule would otherwise have to do: bring a cotangent back to the shape and dtype of its input."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["Aval", "aval", "restore"]


class Aval:
    """What is left of an input whose values the backward pass does not read (an *abstract value*)."""

    __slots__ = ("device", "dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, device: str):
        self.shape = shape
        self.dtype = dtype
        self.device = device

    @property
    def ndim(self) -> int:
        return len(self.shape)


aval = lru_cache(maxsize=1024)(Aval)
"""`aval(shape, dtype, device)` is an `Aval`, the same one for equal arguments: most calls repeat an earlier
one.
"""


def restore(xp: Any, cotangent: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Sum `cotangent` over the axes along which its input was broadcast, and cast it to the input's dtype."""
    if cotangent.shape != shape:
        extra = len(cotangent.shape) - len(shape)
        axes = tuple(range(extra)) + tuple(
            axis + extra
            for axis, length in enumerate(shape)
            if axis + extra >= 0 and length == 1 != cotangent.shape[axis + extra]
        )
        if axes:
            cotangent = xp.sum(cotangent, axis=axes, keepdims=True)
        if extra > 0:
            cotangent = xp.reshape(cotangent, cotangent.shape[extra:])
        if (
            cotangent.shape != shape
        ):  # a rule may give less than the shape, for what is constant along an axis
            cotangent = xp.broadcast_to(cotangent, shape)
    return cotangent if cotangent.dtype == dtype else xp.astype(cotangent, dtype)
