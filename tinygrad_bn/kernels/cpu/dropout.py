"""Dropout on the CPU: draw the decisions as packed bits, and expand them over the input.

The backward pass expands the same bits over the cotangent. Every way of sharing decisions (spatial,
variational, per row, …) is one driver over the runs of `masks.runs`, and a constant scale is a mask of one
shared decision. Where no decision is shared, each word of them is expanded as soon as it is drawn; where some
are, all are drawn first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numba import types

from ..masks import Mask, Scale, runs
from ..philox import ONE, SEVEN, SIX, SIXTEEN
from .arrays import Array, contiguous
from .decisions import decide_by_16, decide_by_32, scale_or_zero
from .jit import FLAG, INT, Driver, read, task, twins, write
from .memory import empty

TASK = 1 << 16  # decisions that one task draws, and elements that one task expands them over; whole words
ZERO, LAST, SIXTY_FOUR = np.uint64(0), np.uint64(63), np.uint64(64)
WORDS = np.dtype(np.uint64)
KEPT, NOTHING = np.array([2**64 - 1], WORDS), np.empty(0, WORDS)
KEY = types.UniTuple(types.uint64, 3)


def multiply_types(T):
    return (
        *(KEY, read(T, 1), write(T, 1), T, read(INT, 1), read(INT, 1)),
        *(read(types.uint64, 1), write(types.uint64, 1), types.uint64, FLAG),
    )


# The sign of a zero, and all else, is that of one multiplication.
exact = task(multiply_types, fastmath=False)

# Left to itself LLVM calls a function of this size, and does not vectorize the loop around it.
inlined = numba.njit(inline="always")


@inlined
def decide(number, key, kept, wide):
    """Word `number` of the packed mask of a key (seed, stream, call): its decisions from 64 · number on."""
    seed, stream, call = key
    if wide:
        return decide_by_32(number, seed, stream, call, kept)
    return decide_by_16(number, seed, stream, call, kept)


@numba.njit
def draw(words, first, key, kept, wide):
    """Words first, first + 1, … of the packed mask."""
    for i in range(words.size):
        words[i] = decide(np.uint64(first + i), key, kept, wide)


@exact
def draw_task(number, key, x, y, scale, lengths, steps, words, drawn, kept, wide):
    first = number * (TASK // 64)
    draw(drawn[first : min(first + TASK // 64, drawn.size)], first, key, kept, wide)


# Unsigned indices below: for signed ones numba asks whether they count from the end, in every iteration.


@inlined
def bit_at(words, at):
    return (words[at >> SIX] >> (at & LAST)) & ONE


@inlined
def eight_bits_at(words, at):
    """Bits at … at + 7, which lie in one word or in two; never reads a word that holds none of them."""
    low, high = words[at >> SIX], words[(at + SEVEN) >> SIX]
    return np.uint8((low >> (at & LAST)) | (high << ONE << (LAST - (at & LAST))))


@inlined
def expand_own(x, words, first, y, start, stop, scale):
    """A run in which every element has a decision of its own, from bit `first` on."""
    whole = stop - (stop - start) % 8
    for j in range(start, whole, 8):
        scale_or_zero(eight_bits_at(words, np.uint64(first + j - start)), x, y, j, scale)
    for j in range(whole, stop):
        at = np.uint64(j)
        y[at] = x[at] * scale if bit_at(words, np.uint64(first + j - start)) else 0


@inlined
def expand_shared(x, keep, y, start, stop, scale):
    """A run in which all elements share one decision."""
    if keep:  # a dropped run need not be read
        for j in range(np.uint64(start), np.uint64(stop)):
            y[j] = x[j] * scale
    else:
        for j in range(np.uint64(start), np.uint64(stop)):
            y[j] = 0


@numba.njit(_nrt=True)  # its task is compiled without numba's runtime, which `place` needs
def expand_part(x, words, y, scale, lengths, steps, start, stop):
    """Elements start … stop − 1: walk the last run again and again, counting the others like an odometer."""
    outer = lengths.size - 1
    length, own = lengths[outer], steps[outer] != 0
    place = np.empty(outer, np.int64)
    decision = 0
    rest, offset = divmod(start, length)
    for axis in range(outer - 1, -1, -1):
        rest, place[axis] = divmod(rest, lengths[axis])
        decision += place[axis] * steps[axis]
    while start < stop:
        end = min(start + length - offset, stop)
        if own:
            expand_own(x, words, decision + offset, y, start, end, scale)
        else:
            expand_shared(x, bit_at(words, np.uint64(decision)), y, start, end, scale)
        start, offset = end, 0
        axis = outer - 1
        while axis >= 0:
            place[axis] += 1
            decision += steps[axis]
            if place[axis] < lengths[axis]:
                break
            decision -= place[axis] * steps[axis]
            place[axis] = 0
            axis -= 1


@exact
def expand_task(number, key, x, y, scale, lengths, steps, words, drawn, kept, wide):
    start = number * TASK
    expand_part(x, words, y, scale, lengths, steps, start, min(start + TASK, x.size))


@exact
def draw_and_expand_task(number, key, x, y, scale, lengths, steps, words, drawn, kept, wide):
    """The elements of a task, where each has a decision of its own.

    Drawing and expanding by turns, so few at a time that the core has several of both begun at once: it draws
    while it waits for x.
    """
    start, stop = number * TASK, min((number + 1) * TASK, x.size)
    first, last = np.uint64(start // 64), np.uint64(stop // 64)
    for number in range(first, last):
        word = decide(number, key, kept, wide)
        drawn[number] = word
        for e in range(ZERO, SIXTY_FOUR, SIXTEEN):
            scale_or_zero(np.uint16(word >> e), x, y, SIXTY_FOUR * number + e, scale)
    if stop % 64 != 0:
        drawn[last] = decide(last, key, kept, wide)
        expand_own(x, drawn, stop - stop % 64, y, stop - stop % 64, stop, scale)


@twins(multiply_types, draw_and_expand_task, draw_task, expand_task)
def multiply(key, x, y, scale, lengths, steps, words, drawn, kept, wide):
    """y = x * scale where the bits keep, +0 where they drop; first draw them, where `drawn` is `words`.

    Otherwise `drawn` is empty. It is the same memory for writing: bits that are kept may be read-only.
    """
    given = (x, y, scale, lengths, steps, words, drawn, kept, wide)
    tasks = (x.size + TASK - 1) // TASK
    if drawn.size != 0 and lengths.size == 1 and steps[0] != 0:
        for number in numba.prange(tasks):
            draw_and_expand_task(number, key, *given)
    else:
        for number in numba.prange((64 * drawn.size + TASK - 1) // TASK):
            draw_task(number, key, *given)
        for number in numba.prange(tasks):
            expand_task(number, key, *given)


@lru_cache(maxsize=1024)
def lengths_and_steps(shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The runs of a mask as the driver reads them."""
    lengths, steps = zip(*runs(shape, mask_shape), strict=True)
    return np.array(lengths, np.int64), np.array(steps, np.int64)


@dataclass(frozen=True, slots=True)
class DropoutKernel:
    """The kernel of the plan Mask, made of one twin of the driver; it keeps the packed decisions."""

    driver: Driver

    def forward(self, plan: Mask, x: Array) -> tuple[Array, tuple[Array]]:
        plan.check_shape("x", x)
        words = empty(((plan.decisions + 63) // 64,), WORDS)
        return self._multiplied(plan, x, words, words), (words,)

    def vjp(
        self, plan: Mask, needs: Sequence[bool], cotangent: Array, arrays: Sequence[object], aux: tuple[Array]
    ) -> tuple[Array | None]:
        plan.check_shape("cotangent", cotangent)
        return (self._multiplied(plan, cotangent, aux[0], NOTHING) if needs[0] else None,)

    def _multiplied(self, plan: Mask, x: Array, words: Array, drawn: Array) -> Array:
        y = empty(x.shape, x.dtype)
        quantised = plan.quantised
        self.driver[x.dtype](
            (plan.seed, plan.stream, plan.call),
            contiguous(x, (x.size,)),
            y.reshape(-1),
            plan.scale,
            *lengths_and_steps(plan.shape, plan.mask_shape),
            words,
            drawn,
            quantised.kept,
            quantised.lane_bits == 32,
        )
        return y


@dataclass(frozen=True, slots=True)
class ScaleKernel:
    """The kernel of the plan Scale, made of one twin of the same driver."""

    driver: Driver

    def forward(self, plan: Scale, x: Array) -> tuple[Array, tuple[()]]:
        y = empty(x.shape, x.dtype)
        self.driver[x.dtype](
            (0, 0, 0),
            contiguous(x, (x.size,)),
            y.reshape(-1),
            plan.factor,
            *lengths_and_steps((x.size,), (1,)),
            KEPT,
            NOTHING,
            0,
            False,
        )
        return y, ()

    def vjp(
        self, plan: Scale, needs: Sequence[bool], cotangent: Array, arrays: Sequence[object], aux: tuple[()]
    ) -> tuple[Array | None]:
        return (self.forward(plan, cotangent)[0] if needs[0] else None,)


sequential = DropoutKernel(multiply.sequential)
parallel = DropoutKernel(multiply.parallel)
sequential_scale = ScaleKernel(multiply.sequential)
parallel_scale = ScaleKernel(multiply.parallel)
