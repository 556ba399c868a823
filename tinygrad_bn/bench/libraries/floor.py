"""The least that memory allows: loops that only move what an operation must read and write.

Forward: a copy of the input. Backward: the sum of two arrays, the input and the cotangent. Dropout's
backward: a copy, and a bit for each element. They write to arrays that were written before, so that no page
is new; an operation that returns a new array has that only where memory is used again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from ..cases import Case

__all__ = ["Floor"]

CHUNK = 1 << 14
PARALLEL_FROM = 1 << 16


def _copy(source, unused, target):  # type: ignore[no-untyped-def]
    for chunk in numba.prange((source.size + CHUNK - 1) // CHUNK):
        a, y = source[chunk * CHUNK : (chunk + 1) * CHUNK], target[chunk * CHUNK : (chunk + 1) * CHUNK]
        for i in range(a.size):
            y[i] = a[i]


def _add(first, second, target):  # type: ignore[no-untyped-def]
    for chunk in numba.prange((first.size + CHUNK - 1) // CHUNK):
        a, y = first[chunk * CHUNK : (chunk + 1) * CHUNK], target[chunk * CHUNK : (chunk + 1) * CHUNK]
        b = second[chunk * CHUNK : (chunk + 1) * CHUNK]
        for i in range(a.size):
            y[i] = a[i] + b[i]


def _copy_and_bits(source, bits, target):  # type: ignore[no-untyped-def]
    """The bits are read eight bytes at a time and added up, which costs nothing beside the copy."""
    for chunk in numba.prange((source.size + CHUNK - 1) // CHUNK):
        a, y = source[chunk * CHUNK : (chunk + 1) * CHUNK], target[chunk * CHUNK : (chunk + 1) * CHUNK]
        words = bits[chunk * CHUNK // 64 : (chunk + 1) * CHUNK // 64]
        total = np.uint64(0)
        for i in range(words.size):
            total |= words[i]
        for i in range(a.size):
            y[i] = a[i]
        if total == 1 and a.size:  # the loop above must not be optimized away
            y[0] = 0


@cache
def _compiled(loop: Callable[..., None], parallel: bool) -> Any:
    # Without the cache on disk, which would not tell the sequential from the parallel one.
    return numba.njit(parallel=parallel, error_model="numpy")(loop)


class Floor:
    """The loop beside the forward pass, and the one beside the backward pass."""

    def __init__(self, case: Case):
        elements = case.elements
        self.source, self.other, self.target = (np.ones(elements, case.dtype) for _ in range(3))
        parallel = elements >= PARALLEL_FROM
        loop = _add
        if case.spec.rng:
            self.other, loop = np.full(elements // 64 + 1, 7, np.uint64), _copy_and_bits
        self._copy, self._backward = _compiled(_copy, parallel), _compiled(loop, parallel)
        self.forward()
        self.backward(None)

    def forward(self) -> None:
        self._copy(self.source, self.other, self.target)

    def record(self) -> None:
        """Nothing: the loops share nothing."""

    def backward(self, recorded: Any) -> None:
        self._backward(self.source, self.other, self.target)
