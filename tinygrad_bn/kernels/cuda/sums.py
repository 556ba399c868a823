"""Sums over a warp and a block, the same in every thread and at every run: a fixed tree, no atomics."""

from __future__ import annotations

from functools import cache
from typing import Any

from .compat import cuda, device

WARP = 32
ALL = 0xFFFFFFFF


@device
def warp_sum(value):
    """The sum of the values of a warp."""
    for lanes in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(ALL, value, lanes)
    return value


@cache
def block_sums(threads: int, T: type) -> Any:
    """A function that makes the sums over a block of two values at once: one barrier serves both.

    It may be called again and again: the second barrier lets nobody write over sums that others still read.
    """
    warps = threads // WARP
    both = 2 * warps  # the length of an array in a kernel is a constant

    @device
    def one_warp(a, b):
        return warp_sum(a), warp_sum(b)

    @device
    def many_warps(a, b):
        scratch = cuda.shared.array(both, T)
        warp = cuda.threadIdx.x // WARP
        a, b = warp_sum(a), warp_sum(b)
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

    return one_warp if warps == 1 else many_warps
