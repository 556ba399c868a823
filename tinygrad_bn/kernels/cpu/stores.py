"""Stores past the cache, for outputs that would not stay in it.

An ordinary store first reads the line of memory that it changes, a third of the traffic of a pass that reads
one array and writes another. Whole lines can be written without that (*non-temporal* stores). But whoever
reads the output next finds it in memory alone, so that one which fits in the cache had better stay there.

LLVM makes no such stores of a loop over values. Therefore a task has room for a piece of its output that
stays in the second-level cache, fills it by the loops that otherwise write the output in its place, and
copies it out::

    out = room[:n] if past else place
    …
    write_out(past, out, place)

A task that may have done so calls ``fence`` at its end, once: it may wait for all its stores.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import body

# Outputs of so many bytes are written past the cache. Measured by layer and batch norm, forward and backward
# by turns, on a machine that shares 260 MiB of cache with others: from 30 MiB on it is faster, below 20 MiB
# slower. Where caches are smaller, it would pay earlier.
LARGE = 32 << 20
# And where a task makes no more of them at a time: together with what it reads, they stay in the cache.
PIECE = 1 << 20
LINE = 64  # bytes


def past_cache(y: np.ndarray, piece: int) -> bool:
    """Whether a kernel is to write its output past the cache, so many values at a time."""
    return y.nbytes >= LARGE and piece * y.itemsize <= PIECE


@intrinsic
def write_lines(_context, values, out):
    """out[first:last] = values[first:last], the whole lines of `out`; first and last."""
    itemsize = out.dtype.bitwidth // 8
    per_line = LINE // itemsize

    def codegen(context, builder, _signature, arguments):
        line = ir.VectorType(context.get_data_type(out.dtype), per_line)
        source, target = (
            context.make_array(array_type)(context, builder, value)
            for array_type, value in zip((values, out), arguments, strict=True)
        )
        size = target.nitems
        word = size.type
        before = builder.and_(builder.neg(builder.ptrtoint(target.data, word)), word(LINE - 1))
        first = builder.lshr(before, word(itemsize.bit_length() - 1))
        first = builder.select(builder.icmp_unsigned("<", first, size), first, size)
        lines = builder.lshr(builder.sub(size, first), word(per_line.bit_length() - 1))
        last = builder.add(first, builder.mul(lines, word(per_line)))
        with cgutils.for_range_slice(builder, first, last, word(per_line), word) as (at, _count):
            read, write = (
                builder.bitcast(builder.gep(array.data, [at]), line.as_pointer())
                for array in (source, target)
            )
            store = builder.store(builder.load(read, align=itemsize), write, align=LINE)
            once = builder.module.add_metadata([ir.Constant(cgutils.int32_t, 1)])
            store.set_metadata("nontemporal", once)
        return cgutils.pack_array(builder, (first, last))

    return types.UniTuple(types.intp, 2)(values, out), codegen


@body
def write_past(values, out):
    """out[:] = values, past the cache where that covers whole lines of it."""
    first, last = write_lines(values, out)
    for j in range(first):
        out[j] = values[j]
    for j in range(last, out.size):
        out[j] = values[j]


@body
def write_out(past, out, place):
    """Put a piece of output in its place, unless it was made there."""
    if past:
        write_past(out.reshape(place.size), place.reshape(place.size))


@intrinsic
def fence(_context):
    """Let nothing be seen that is stored from now on before what was written past the cache.

    For x86 alone: elsewhere those stores are ordered as any others are, by what threads do to wait for each
    other.
    """

    def codegen(context, builder, _signature, _arguments):
        if builder.module.triple.startswith(("x86_64", "i686", "i386")):
            name = "llvm.x86.sse.sfence"
            builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(ir.VoidType(), [])), [])
        return context.get_dummy_value()

    return types.void(), codegen
