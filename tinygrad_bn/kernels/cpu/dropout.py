"""Dropout on the CPU: draw the decisions as packed bits, and expand them over the input.

The backward pass expands the same bits over the cotangent. Every way of sharing decisions (spatial,
variational, per row, …) is one driver over the runs of `masks.runs`, and a constant scale is a mask of one
shared decision. Where no decision is shared, a few are drawn and expanded at a time, while they are in the
first-level cache; where some are, all are drawn first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import philox
from ..masks import Mask, Scale, runs
from ..philox import FOUR, ONE, SEVEN, THIRTY_TWO, THREE, TWO, WORD
from .arrays import Array, contiguous
from .jit import FLAG, INT, Driver, read, twins, write
from .memory import empty

TASK = 1 << 16  # decisions that one task draws, and elements that one task expands them over
PIECE = 1 << 9  # decisions that are drawn and expanded at a time
EIGHT = np.uint64(8)
KEPT, NOTHING = np.array([0xFF], dtype=np.uint8), np.empty(0, np.uint8)
KEY = types.UniTuple(types.uint64, 3)

# Left to itself LLVM calls a function of this size, and does not vectorize the loop around it.
inlined = numba.njit(inline="always")
philox4x32 = inlined(philox.philox4x32)
keep_byte = inlined(philox.keep_byte)
keep_nibble = inlined(philox.keep_nibble)


@numba.njit
def draw_16(bits, first, c2, c3, k0, k1, kept):
    """Bytes first, first + 1, … of the packed mask, where lanes have 16 bits: one block for each."""
    for i in range(bits.size):
        block = first + np.uint64(i)
        w0, w1, w2, w3 = philox4x32(block & WORD, block >> THIRTY_TWO, c2, c3, k0, k1)
        bits[i] = keep_byte(w0, w1, w2, w3, kept)


@numba.njit
def draw_32(bits, first, c2, c3, k0, k1, kept):
    """Bytes first, first + 1, … of the packed mask, where lanes have 32 bits: two blocks for each."""
    for i in range(bits.size):
        block = TWO * (first + np.uint64(i))
        w0, w1, w2, w3 = philox4x32(block & WORD, block >> THIRTY_TWO, c2, c3, k0, k1)
        low = keep_nibble(w0, w1, w2, w3, kept)
        block += ONE
        w0, w1, w2, w3 = philox4x32(block & WORD, block >> THIRTY_TWO, c2, c3, k0, k1)
        bits[i] = low | (keep_nibble(w0, w1, w2, w3, kept) << FOUR)


@numba.njit
def draw(bits, start, stop, key, kept, wide):
    """Bytes start … stop − 1 of the packed mask of a key (seed, stream, call)."""
    seed, stream, call = key
    k0, k1 = seed & WORD, seed >> THIRTY_TWO
    if wide:
        draw_32(bits[start:stop], np.uint64(start), call, stream, k0, k1, kept)
    else:
        draw_16(bits[start:stop], np.uint64(start), call, stream, k0, k1, kept)


@intrinsic
def scale_or_zero_8(_context, keep, x, y, at, scale):
    """y[at:at + 8] = x[at:at + 8] * scale where the bit of the byte `keep` is set, +0 elsewhere.

    The byte as it stands is the condition of a vector select; taking bit after bit is seven times slower.
    """

    def codegen(context, builder, _signature, arguments):
        keep_value, x_value, y_value, at_value, scale_value = arguments
        vector = ir.VectorType(context.get_data_type(x.dtype), 8)
        undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, None)
        alignment = x.dtype.bitwidth // 8  # of one element: a run of decisions starts anywhere

        def eight(array_type, value):
            data = context.make_array(array_type)(context, builder, value).data
            return builder.bitcast(builder.gep(data, [at_value]), vector.as_pointer())

        first = builder.insert_element(undefined, scale_value, ir.Constant(ir.IntType(32), 0))
        scales = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 8), None))
        scaled = builder.fmul(builder.load(eight(x, x_value), align=alignment), scales)
        lanes = builder.bitcast(keep_value, ir.VectorType(ir.IntType(1), 8))
        builder.store(builder.select(lanes, scaled, zero), eight(y, y_value), align=alignment)
        return context.get_dummy_value()

    return types.void(keep, x, y, at, scale), codegen


# Unsigned indices below: for signed ones numba asks whether they count from the end, in every iteration.


@inlined
def bit_at(bits, at):
    return (np.uint64(bits[at >> THREE]) >> (at & SEVEN)) & ONE


@inlined
def eight_bits_at(bits, at):
    """Bits at … at + 7, which lie in one byte or in two; never reads a byte that holds none of them."""
    low, high = np.uint64(bits[at >> THREE]), np.uint64(bits[(at + SEVEN) >> THREE])
    return np.uint8((low >> (at & SEVEN)) | (high << (EIGHT - (at & SEVEN))))


@inlined
def expand_own(x, bits, first, y, start, stop, scale):
    """A run in which every element has a decision of its own, from bit `first` on."""
    whole = stop - (stop - start) % 8
    for j in range(start, whole, 8):
        scale_or_zero_8(eight_bits_at(bits, np.uint64(first + j - start)), x, y, j, scale)
    for j in range(whole, stop):
        at = np.uint64(j)
        y[at] = x[at] * scale if bit_at(bits, np.uint64(first + j - start)) else 0


@inlined
def expand_shared(x, keep, y, start, stop, scale):
    """A run in which all elements share one decision."""
    if keep:  # a dropped run need not be read
        for j in range(np.uint64(start), np.uint64(stop)):
            y[j] = x[j] * scale
    else:
        for j in range(np.uint64(start), np.uint64(stop)):
            y[j] = 0


@numba.njit(_nrt=True)  # its driver is compiled without numba's runtime, which `place` needs
def expand_part(x, bits, y, scale, lengths, steps, start, stop):
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
            expand_own(x, bits, decision + offset, y, start, end, scale)
        else:
            expand_shared(x, bit_at(bits, np.uint64(decision)), y, start, end, scale)
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


@twins(
    lambda dtype: (
        *(read(dtype, 1), write(dtype, 1), dtype, read(INT, 1), read(INT, 1)),
        *(read(types.uint8, 1), write(types.uint8, 1), KEY, types.uint64, FLAG),
    )
)
def multiply(x, y, scale, lengths, steps, bits, drawn, key, kept, wide):
    """y = x * scale where the bits keep, +0 where they drop; first draw them, where `drawn` is `bits`.

    Otherwise `drawn` is empty. It is the same memory for writing: bits that are kept may be read-only.
    """
    if drawn.size != 0 and lengths.size == 1 and steps[0] != 0:
        for task in numba.prange((x.size + TASK - 1) // TASK):
            end = min(task * TASK + TASK, x.size)
            for start in range(task * TASK, end, PIECE):
                stop = min(start + PIECE, end)
                draw(drawn, start // 8, (stop + 7) // 8, key, kept, wide)
                expand_own(x, bits, start, y, start, stop, scale)
    else:
        chunk = TASK // 8
        for task in numba.prange((drawn.size + chunk - 1) // chunk):
            draw(drawn, task * chunk, min(task * chunk + chunk, drawn.size), key, kept, wide)
        for task in numba.prange((x.size + TASK - 1) // TASK):
            start = task * TASK
            expand_part(x, bits, y, scale, lengths, steps, start, min(start + TASK, x.size))


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
        bits = empty(((plan.decisions + 7) // 8,), np.dtype(np.uint8))
        return self._multiplied(plan, x, bits, bits), (bits,)

    def vjp(
        self, plan: Mask, needs: Sequence[bool], cotangent: Array, arrays: Sequence[object], aux: tuple[Array]
    ) -> tuple[Array | None]:
        plan.check_shape("cotangent", cotangent)
        return (self._multiplied(plan, cotangent, aux[0], NOTHING) if needs[0] else None,)

    def _multiplied(self, plan: Mask, x: Array, bits: Array, drawn: Array) -> Array:
        y = empty(x.shape, x.dtype)
        quantised = plan.quantised
        self.driver[x.dtype](
            contiguous(x, (x.size,)),
            y.reshape(-1),
            plan.scale,
            *lengths_and_steps(plan.shape, plan.mask_shape),
            bits,
            drawn,
            (plan.seed, plan.stream, plan.call),
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
            contiguous(x, (x.size,)),
            y.reshape(-1),
            plan.factor,
            *lengths_and_steps((x.size,), (1,)),
            KEPT,
            NOTHING,
            (0, 0, 0),
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
