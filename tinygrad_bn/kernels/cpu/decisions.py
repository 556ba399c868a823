"""Decisions of a dropout mask as vector instructions: 64 are made at a time, and 8 or more are applied.

LLVM vectorizes a loop over counters too, but then every decision is an addition and shifts of 64 bits. Here
it is a comparison of 16 or 32 bits, in vectors as wide as the CPU has them. The generator itself has one
source: `philox.philox4x32` runs once, while a kernel is compiled, on values that stand for vectors.
"""

from __future__ import annotations

from functools import partialmethod
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import philox
from ..philox import THIRTY_TWO, WORD

INDEX = ir.IntType(32)


def splat(builder: ir.IRBuilder, value: Any, count: int) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INDEX, count), None))


def by_turns(count: int, step: int) -> Any:
    """The indices that pick elements 0, step, 2 · step, … of two vectors of `count`, from either by turns."""
    picked = [at + vector for at in range(0, count, step) for vector in (0, count)]
    return ir.Constant(ir.VectorType(INDEX, len(picked)), picked)


class Lanes:
    """A vector of uint64 in code that is being made: arithmetic with it adds an instruction."""

    __array_ufunc__ = None  # so that np.uint64 * Lanes reaches __rmul__

    def __init__(self, builder: ir.IRBuilder, value: Any):
        self._builder = builder
        self.value = value

    def _apply(self, instruction: str, other: Any) -> Lanes:
        kind = self.value.type
        operand = other.value if isinstance(other, Lanes) else ir.Constant(kind, [int(other)] * kind.count)
        return Lanes(self._builder, getattr(self._builder, instruction)(self.value, operand))

    __add__ = partialmethod(_apply, "add")
    __rmul__ = partialmethod(_apply, "mul")
    __and__ = partialmethod(_apply, "and_")
    __xor__ = partialmethod(_apply, "xor")
    __rshift__ = partialmethod(_apply, "lshr")


def _decider(lane_bits: int) -> Any:
    """A function for compiled code, which makes 64 decisions with lanes of 16 or 32 bits."""
    blocks = 64 * lane_bits // 128  # of the generator

    def codegen(_context, builder, _signature, arguments):
        number, seed, stream, call = (Lanes(builder, splat(builder, each, blocks)) for each in arguments[:4])
        block = blocks * number + Lanes(builder, ir.Constant(number.value.type, list(range(blocks))))
        # Call and stream are masked so that LLVM knows them to have 32 bits: it multiplies those faster.
        words = philox.philox4x32(
            *(block & WORD, block >> THIRTY_TWO, call & WORD, stream & WORD, seed & WORD, seed >> THIRTY_TWO)
        )
        # The low halves of the words, those of a block side by side: (w0, w1) and (w2, w3), then both.
        halves = [builder.bitcast(word.value, ir.VectorType(INDEX, 2 * blocks)) for word in words]
        pairs = [builder.shuffle_vector(*halves[i : i + 2], by_turns(2 * blocks, 2)) for i in (0, 2)]
        pairs = [builder.bitcast(pair, number.value.type) for pair in pairs]
        in_order = builder.shuffle_vector(*pairs, by_turns(blocks, 1))
        lane, kept = ir.IntType(lane_bits), arguments[4]
        lanes = builder.bitcast(in_order, ir.VectorType(lane, 64))
        # 2^lane_bits − kept in so many bits: 0 where all are kept, and where none is.
        threshold = splat(builder, builder.trunc(builder.neg(kept), lane), 64)
        keep = builder.bitcast(builder.icmp_unsigned(">=", lanes, threshold), kept.type)
        none = ir.Constant(kept.type, 0)
        return builder.select(builder.icmp_unsigned("==", kept, none), none, keep)

    @intrinsic
    def decide(_context, number, seed, stream, call, kept):
        """Decisions 64 · number … 64 · number + 63 of a key, as the bits of one word."""
        return types.uint64(*[types.uint64] * 5), codegen

    return decide


decide_by_16, decide_by_32 = _decider(16), _decider(32)


@intrinsic
def scale_or_zero(_context, keep, x, y, at, scale):
    """y[at:at + n] = x[at:at + n] * scale where a bit of `keep`, which has n, is set, +0 elsewhere.

    The bits as they stand are the condition of a vector select; taking bit after bit is seven times slower.
    """
    count = keep.bitwidth

    def codegen(context, builder, _signature, arguments):
        keep_value, x_value, y_value, at_value, scale_value = arguments
        vector = ir.VectorType(context.get_data_type(x.dtype), count)
        alignment = x.dtype.bitwidth // 8  # of one element: a run of decisions starts anywhere

        def part(array_type, value):
            data = context.make_array(array_type)(context, builder, value).data
            return builder.bitcast(builder.gep(data, [at_value]), vector.as_pointer())

        values = builder.load(part(x, x_value), align=alignment)
        scaled = builder.fmul(values, splat(builder, scale_value, count))
        lanes = builder.bitcast(keep_value, ir.VectorType(ir.IntType(1), count))
        result = builder.select(lanes, scaled, ir.Constant(vector, None))
        builder.store(result, part(y, y_value), align=alignment)
        return context.get_dummy_value()

    return types.void(keep, x, y, at, scale), codegen
