"""Dropout on CUDA devices. The mask is drawn in the forward pass and again in the backward; none is stored.

A warp serves 256 neighbouring elements. Lane k decides on eight of them, from 8k on: a byte of the packed
mask of `kernels/philox.py`. But it reads and writes others, so that the vectors of all lanes lie side by side
in memory; for those it gets the bits from the lanes that decided. Where elements share decisions, a lane
finds its eight by the runs of `masks.runs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .. import masks, philox
from ..masks import Mask, Scale
from . import vectors
from .compat import INT, Launcher, Pointer, cuda, device, kernel
from .launch import arithmetic, contiguous, new, stored

THREADS, WARP, EIGHT = 256, 32, 8
ALL = 0xFFFFFFFF
EVERY = 0  # in the place of a width of decisions: everything is kept
u32, u64 = np.uint32, np.uint64
WORD, LONG = np.dtype(u32), np.dtype(u64)
KEY = (WORD,) * 5
"""Call, stream, seed low, seed high, threshold."""

MULTIPLIER_0, MULTIPLIER_1 = philox.MULTIPLIER_0, philox.MULTIPLIER_1
WEYL_0, WEYL_1 = u32(philox.WEYL_0), u32(philox.WEYL_1)
LOW, HALF, BIT = u32(0xFFFF), u32(16), u32(1)
HIGH = u64(32)


@device
def philox4x32(c0, c1, c2, c3, k0, k1):
    """`philox.philox4x32` on words of 32 bits; the original, on a GPU, adds upper halves that are zero."""
    for _ in range(10):
        left, right = MULTIPLIER_0 * u64(c0), MULTIPLIER_1 * u64(c2)
        c0, c1, c2, c3 = u32(right >> HIGH) ^ c1 ^ k0, u32(right), u32(left >> HIGH) ^ c3 ^ k1, u32(left)
        c0, c2 = u32(c0), u32(c2)
        k0, k1 = u32(k0 + WEYL_0), u32(k1 + WEYL_1)
    return c0, c1, c2, c3


@device
def words(block, key):
    """The four words of a block."""
    return philox4x32(u32(block), u32(block >> HIGH), key[0], key[1], key[2], key[3])


@device
def two_decisions(word, threshold):
    """Of the two lanes of 16 bits of a word."""
    return u32(u32(word & LOW) >= threshold) | u32(u32(word >> HALF) >= threshold) << BIT


@device
def four_decisions(block, key):
    """Of the four lanes of 32 bits of a block."""
    w0, w1, w2, w3 = words(block, key)
    t = key[4]
    return u32(w0 >= t) | u32(w1 >= t) << u32(1) | u32(w2 >= t) << u32(2) | u32(w3 >= t) << u32(3)


@device
def byte_of_16(number, key):
    """A byte of the packed mask, in a word."""
    w0, w1, w2, w3 = words(number, key)
    t = key[4]
    return u32(
        two_decisions(w0, t)
        | two_decisions(w1, t) << u32(2)
        | two_decisions(w2, t) << u32(4)
        | two_decisions(w3, t) << u32(6)
    )


@device
def byte_of_32(number, key):
    block = number << u64(1)
    return u32(four_decisions(block, key) | four_decisions(block | u64(1), key) << u32(4))


@device
def byte_of_ones(number, key):
    return u32(0xFF)


BYTES = {16: byte_of_16, 32: byte_of_32, EVERY: byte_of_ones}


@cache
def decisions(lane_bits: int, runs: int, own: bool) -> Any:
    """A function that decides on eight elements from `first` on: bit k is 1 where first + k is kept.

    runs: the length of `masks.runs`. own: whether each element of the last run has a decision of its own.
    """
    byte = BYTES[lane_bits]
    last = runs - 1

    @device
    def one_run(first, lengths, steps, key):
        return byte(first >> u64(3), key)

    @device
    def several_runs(first, lengths, steps, key):
        kept, done = u32(0), u64(0)
        while done < u64(8):
            rest = first + done
            place = rest % lengths[last]
            left = lengths[last] - place
            at = place * steps[last]
            for axis in range(last - 1, -1, -1):
                rest //= lengths[axis + 1]
                at += (rest % lengths[axis] if axis else rest) * steps[axis]
            bits = byte(at >> u64(3), key) >> u32(at & u64(7))
            left = min(left, u64(8) - done)
            if own:
                left = min(left, u64(8) - (at & u64(7)))
            else:
                bits = u32(0) - (bits & BIT)
            kept |= (bits & ((BIT << u32(left)) - BIT)) << u32(done)
            done += left
        return u32(kept)

    return one_run if own and runs == 1 else several_runs


@cache
def multiplication(storage: np.dtype, lane_bits: int, runs: int, own: bool) -> Launcher:
    """y = x · scale where an element is kept, +0 where it is dropped, whatever x is there."""
    T = arithmetic(storage)
    zero, width = T(0), vectors.per_vector(storage)
    load, store, load_one, store_one = (make(n) for n in (width, 1) for make in (vectors.load, vectors.store))
    count = EIGHT // width  # the vectors of a lane
    eight = decisions(lane_bits, runs, own)

    @kernel(
        THREADS,
        Pointer(storage),
        Pointer(storage),
        INT,
        np.dtype(T),
        KEY,
        (LONG,) * runs,
        (LONG,) * runs,
        vectorized=True,
    )
    def multiply(x, y, size, scale, key, lengths, steps):
        lane = cuda.threadIdx.x % WARP
        first = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x - lane) * EIGHT
        registers = cuda.local.array(EIGHT, T)
        if first < size:  # for all lanes of a warp or for none
            for v in range(count):
                at = first + (v * WARP + lane) * width
                if at + width <= size:
                    load(x, at, registers, v * width)
                else:
                    for i in range(width):
                        if at + i < size:
                            load_one(x, at + i, registers, v * width + i)
            mine = np.int32(eight(u64(first + lane * EIGHT), lengths, steps, key))
            for v in range(count):
                place = (v * WARP + lane) * width
                kept = cuda.shfl_sync(ALL, mine, place // EIGHT) >> place % EIGHT
                for i in range(width):
                    j = v * width + i
                    registers[j] = registers[j] * scale if kept >> i & 1 else zero
                at = first + place
                if at + width <= size:
                    store(y, at, registers, v * width)
                else:
                    for i in range(width):
                        if at + i < size:
                            store_one(y, at + i, registers, v * width + i)

    return multiply


Runs = tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=1024)
def runs_of(shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> Runs:
    """The lengths and the steps of `masks.runs`."""
    lengths, steps = zip(*masks.runs(shape, mask_shape), strict=True)
    return lengths, steps


def multiplied(x: Any, factor: float, key: Sequence[Any], lane_bits: int, runs: Runs) -> Any:
    """x times a mask times a factor, in a new array."""
    x = contiguous(x)
    y = new(x.shape, x.dtype, x)
    given, result = stored(x), stored(y)
    lengths, steps = runs
    launcher = multiplication(given.dtype, lane_bits, len(lengths), steps[-1] == 1)
    launcher(-(-x.size // (THREADS * EIGHT)), given, result, x.size, factor, key, lengths, steps)
    return y


@dataclass(frozen=True, slots=True)
class DropoutKernel:
    """The kernel of the plan Mask."""

    def forward(self, plan: Mask, x: Any) -> tuple[Any, tuple[()]]:
        return self._masked("x", plan, x), ()

    def vjp(
        self, plan: Mask, needs: Sequence[bool], cotangent: Any, arrays: Sequence[object], aux: tuple[()]
    ) -> tuple[Any | None]:
        return (self._masked("cotangent", plan, cotangent) if needs[0] else None,)

    def _masked(self, name: str, plan: Mask, array: Any) -> Any:
        plan.check_shape(name, array)
        key = (plan.call, plan.stream, *philox.low_and_high(plan.seed), plan.quantised.threshold)
        runs = runs_of(plan.shape, plan.mask_shape)
        return multiplied(array, plan.scale, key, plan.quantised.lane_bits, runs)


@dataclass(frozen=True, slots=True)
class ScaleKernel:
    """The kernel of the plan Scale."""

    def forward(self, plan: Scale, x: Any) -> tuple[Any, tuple[()]]:
        return multiplied(x, plan.factor, (0,) * len(KEY), EVERY, runs_of((), ())), ()

    def vjp(
        self, plan: Scale, needs: Sequence[bool], cotangent: Any, arrays: Sequence[object], aux: tuple[()]
    ) -> tuple[Any | None]:
        return (self.forward(plan, cotangent)[0] if needs[0] else None,)


dropout = DropoutKernel()
scale = ScaleKernel()


def variants() -> Iterator[Launcher]:
    """The kernels that calls are likely to run."""
    for storage in map(np.dtype, (np.float64, np.float32, np.float16, np.uint16)):
        yield multiplication(storage, EVERY, 1, True)
        for lane_bits, runs, own in ((16, 1, True), (32, 1, True), (16, 2, False), (16, 3, True)):
            yield multiplication(storage, lane_bits, runs, own)
