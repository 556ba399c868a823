"""Sixteen bytes of memory at once, into registers and back.

Ordinary code makes loads of one value; only an explicit vector makes the 128-bit ones that a GPU's memory
wants. `load(width)` and `store(width)` give the functions for so many values; between memory and registers
the values change from the dtype of storage to that of arithmetic. 16-bit floats are stored as they are,
bfloat16 as the upper half of a float32.

    load(width)(source, at, registers, to)      registers[to + i] = source[at + i]
    store(width)(target, at, registers, first)  target[at + i] = registers[first + i]

The address is a multiple of the vector's size, or of 16 bytes where it is larger and moved in parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .compat import SIMULATED, device

BYTES = 16


def per_vector(storage: np.dtype) -> int:
    """How many values of a dtype are read at once."""
    return BYTES // storage.itemsize


if SIMULATED:

    @cache
    def load(width: int) -> Any:
        @device
        def load(source, at, registers, to):
            source.check_aligned(at, min(BYTES, width * source.dtype.itemsize))
            for i in range(width):
                value = source[at + i]
                if source.dtype == np.uint16:  # bfloat16
                    value = np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
                registers[to + i] = value

        return load

    @cache
    def store(width: int) -> Any:
        @device
        def store(target, at, registers, first):
            target.check_aligned(at, min(BYTES, width * target.dtype.itemsize))
            for i in range(width):
                value = registers[first + i]
                target[at + i] = _bfloat16_bits(value) if target.dtype == np.uint16 else value

        return store

    def _bfloat16_bits(value: Any) -> np.uint16:
        """The nearest bfloat16, ties to even; NaN becomes the one that a GPU gives."""
        if value != value:
            return np.uint16(0x7FFF)
        bits = int(np.float32(value).view(np.uint32))
        return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)

else:
    from llvmlite import ir

    from .compat import intrinsic, types

    HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
    WORD, UPPER = ir.IntType(32), ir.IntType(16)
    # To the nearest bfloat16, ties to even: one instruction, of compute capability 8.0 and later.
    TWO_BFLOAT16 = ir.InlineAsm(
        ir.FunctionType(WORD, [FLOAT, FLOAT]), "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f"
    )
    ONE_BFLOAT16 = ir.InlineAsm(ir.FunctionType(UPPER, [FLOAT]), "cvt.rn.bf16.f32 $0, $1;", "=h,f")
    STORED = {types.float16: HALF, types.float32: FLOAT, types.float64: DOUBLE, types.uint16: UPPER}

    def word(number: int) -> Any:
        return ir.Constant(WORD, number)

    class Vector:
        """The values at an address, as they lie in memory. Those of bfloat16 are moved as words of two: LLVM
        would split a vector of eight.
        """

        def __init__(self, builder: Any, pointer: Any, at: Any, dtype: Any, width: int):
            self.builder, self.width, self.element = builder, width, STORED[dtype]
            self.words = self.element == UPPER and width > 1
            self.type = ir.VectorType(WORD, width // 2) if self.words else ir.VectorType(self.element, width)
            first = builder.gep(builder.bitcast(pointer, self.element.as_pointer()), [at])
            self.place = builder.bitcast(first, self.type.as_pointer())
            self.alignment = min(BYTES, width * dtype.bitwidth // 8)

        def load(self, wanted: Any) -> list[Any]:
            """The values in the type of arithmetic."""
            builder = self.builder
            vector = builder.load(self.place, align=self.alignment)
            if self.words:
                pairs = [builder.extract_element(vector, word(i)) for i in range(self.width // 2)]
                halves = [
                    half
                    for pair in pairs
                    for half in (builder.shl(pair, word(16)), builder.and_(pair, word(0xFFFF0000)))
                ]
                return [self._widened(builder.bitcast(half, FLOAT), wanted) for half in halves]
            values = [builder.extract_element(vector, word(i)) for i in range(self.width)]
            if self.element == UPPER:
                upper = builder.shl(builder.zext(values[0], WORD), word(16))
                values = [builder.bitcast(upper, FLOAT)]
            return [self._widened(value, wanted) for value in values]

        def store(self, values: list[Any]) -> None:
            builder = self.builder
            if self.words:
                values = [
                    builder.call(TWO_BFLOAT16, [high, low])
                    for low, high in zip(values[::2], values[1::2], strict=True)
                ]
            elif self.element == UPPER:
                values = [builder.call(ONE_BFLOAT16, values)]
            vector = ir.Constant(self.type, ir.Undefined)
            for i, value in enumerate(values):
                if value.type != self.type.element:
                    value = builder.fptrunc(value, self.element)
                vector = builder.insert_element(vector, value, word(i))
            builder.store(vector, self.place, align=self.alignment)

        def _widened(self, value: Any, wanted: Any) -> Any:
            return value if value.type == wanted else self.builder.fpext(value, wanted)

    def _registers(
        context: Any, builder: Any, array_type: Any, array: Any, first: Any, width: int
    ) -> list[Any]:
        """The places of `width` registers."""
        data = context.make_array(array_type)(context, builder, array).data
        return [builder.gep(data, [builder.add(first, ir.Constant(first.type, i))]) for i in range(width)]

    @cache
    def load(width: int) -> Any:
        @intrinsic
        def load(_context, source, at, registers, to):
            def generate(context, builder, signature, arguments):
                pointer, first, array, target = arguments
                vector = Vector(builder, pointer, first, source.dtype, width)
                values = vector.load(context.get_data_type(registers.dtype))
                places = _registers(context, builder, registers, array, target, width)
                for value, place in zip(values, places, strict=True):
                    builder.store(value, place)
                return context.get_dummy_value()

            return types.void(source, types.int64, registers, types.int64), generate

        return load

    @cache
    def store(width: int) -> Any:
        @intrinsic
        def store(_context, target, at, registers, first):
            def generate(context, builder, signature, arguments):
                pointer, to, array, source = arguments
                places = _registers(context, builder, registers, array, source, width)
                vector = Vector(builder, pointer, to, target.dtype, width)
                vector.store([builder.load(place) for place in places])
                return context.get_dummy_value()

            return types.void(target, types.int64, registers, types.int64), generate

        return store
