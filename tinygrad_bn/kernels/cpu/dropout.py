"""Dropout on the CPU: draw the decisions as packed bits, then expand them over the input.

The backward pass expands the same bits over the cotangent. Every way of sharing decisions (spatial,
variational, per row, …) is one kernel over the runs of `masks.runs`, and a constant scale is a mask of one
shared decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

TASK = 1 << 16  # decisions that one task draws, and elements that one task expands them over
EIGHT = np.uint64(8)
KEPT = np.array([0xFF], dtype=np.uint8)

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


@twins(lambda _: (write(types.uint8, 1), *[types.uint64] * 5, FLAG))
def draw(bits, c2, c3, k0, k1, kept, wide):
    """Fill the packed mask."""
    chunk = TASK // 8
    for task in numba.prange((bits.size + chunk - 1) // chunk):
        start = task * chunk
        part = bits[start : start + chunk]
        if wide:
            draw_32(part, np.uint64(start), c2, c3, k0, k1, kept)
        else:
            draw_16(part, np.uint64(start), c2, c3, k0, k1, kept)


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


@numba.njit
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
    lambda dtype: (read(dtype, 1), read(types.uint8, 1), write(dtype, 1), dtype, read(INT, 1), read(INT, 1))
)
def expand(x, bits, y, scale, lengths, steps):
    """y = x * scale where kept, +0 where dropped."""
    for task in numba.prange((x.size + TASK - 1) // TASK):
        start = task * TASK
        expand_part(x, bits, y, scale, lengths, steps, start, min(start + TASK, x.size))


def multiply(
    driver: Driver, x: Array, bits: Array, scale: float, shape: tuple[int, ...], mask_shape: tuple[int, ...]
) -> Array:
    """x times the expanded mask times the scale, in a new array."""
    y = np.empty(x.shape, x.dtype)
    compiled = driver[x.dtype]
    if x.size:
        lengths, steps = np.array(runs(shape, mask_shape), dtype=np.int64).T.copy()
        compiled(contiguous(x, (x.size,)), bits, y.reshape(-1), x.dtype.type(scale), lengths, steps)
    return y


@dataclass(frozen=True, slots=True)
class DropoutKernel:
    """The kernel of the plan Mask, made of one twin of each driver; it keeps the packed decisions."""

    draw_driver: Driver
    expand_driver: Driver

    def forward(self, plan: Mask, x: Array) -> tuple[Array, tuple[Array]]:
        plan.check_shape("x", x)
        bits = np.empty((plan.decisions + 7) // 8, np.uint8)
        key, kept = philox.low_and_high(plan.seed), philox.kept_lanes(plan.quantised)
        # The twins of `draw` are alike for every dtype; asking for always the same compiles them once.
        draw_bits = self.draw_driver[np.dtype(np.float64)]
        draw_bits(bits, plan.call, plan.stream, *key, kept, plan.quantised.lane_bits == 32)
        return multiply(self.expand_driver, x, bits, plan.scale, plan.shape, plan.mask_shape), (bits,)

    def vjp(
        self, plan: Mask, needs: Sequence[bool], cotangent: Array, arrays: Sequence[object], aux: tuple[Array]
    ) -> tuple[Array | None]:
        plan.check_shape("cotangent", cotangent)
        if not needs[0]:
            return (None,)
        return (multiply(self.expand_driver, cotangent, aux[0], plan.scale, plan.shape, plan.mask_shape),)


@dataclass(frozen=True, slots=True)
class ScaleKernel:
    """The kernel of the plan Scale, made of one twin of `expand`."""

    expand_driver: Driver

    def forward(self, plan: Scale, x: Array) -> tuple[Array, tuple[()]]:
        return multiply(self.expand_driver, x, KEPT, plan.factor, (x.size,), (1,)), ()

    def vjp(
        self, plan: Scale, needs: Sequence[bool], cotangent: Array, arrays: Sequence[object], aux: tuple[()]
    ) -> tuple[Array | None]:
        return (self.forward(plan, cotangent)[0] if needs[0] else None,)


sequential = DropoutKernel(draw.sequential, expand.sequential)
parallel = DropoutKernel(draw.parallel, expand.parallel)
sequential_scale = ScaleKernel(expand.sequential)
parallel_scale = ScaleKernel(expand.parallel)
