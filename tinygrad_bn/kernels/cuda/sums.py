"""Sums over threads that are the same in every one of them and at every run: a fixed tree, no atomics."""

from __future__ import annotations

from functools import cache
from typing import Any

from .compat import cuda, device

WARP = 32
ALL = 0xFFFFFFFF


@cache
def row_sums(lanes: int, T: type) -> Any:
    """A function `add(a, b)` that makes the sums of two values at once over `lanes` neighbouring threads.

    Up to 32 of them, a power of two, are part of a warp; more, a multiple of 32, are the whole block. All
    threads of the warp or the block call it together. It may be called again and again: its first barrier
    lets nobody write over sums that others still read.
    """
    halves = tuple(2**n for n in reversed(range(min(lanes, WARP).bit_length() - 1)))
    warps = lanes // WARP
    both = 2 * warps  # the length of an array in a kernel is a constant

    @device
    def in_warp(a, b):
        for distance in halves:
            a += cuda.shfl_xor_sync(ALL, a, distance)
            b += cuda.shfl_xor_sync(ALL, b, distance)
        return a, b

    @device
    def in_block(a, b):
        scratch = cuda.shared.array(both, T)
        warp = cuda.threadIdx.x // WARP
        a, b = in_warp(a, b)
        cuda.syncthreads()
        if cuda.threadIdx.x % WARP == 0:
            scratch[warp] = a
            scratch[warps + warp] = b
        cuda.syncthreads()
        a, b = T(0), T(0)
        for w in range(warps):
            a += scratch[w]
            b += scratch[warps + w]
        return a, b

    return in_warp if lanes <= WARP else in_block
