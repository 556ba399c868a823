"""Loads and stores of vectors: every dtype of storage and width, rounding, and what bfloat16 does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tinygrad_bn.kernels.cuda.compat import INT, Pointer, cuda, kernel
from tinygrad_bn.kernels.cuda.launch import arithmetic, stored
from tinygrad_bn.kernels.cuda.vectors import load, per_vector, store

DTYPES = ("float64", "float32", "float16", "bfloat16")


def copied(source, target, width, first=0):
    """target[first + i] = source[first + i] for two vectors, through registers."""
    source, target = stored(source), stored(target)
    read, write, registers = load(width), store(width), 2 * width
    T = arithmetic(source.dtype)

    @kernel(1, Pointer(source.dtype), Pointer(target.dtype), INT)
    def copy(source, target, first):
        values = cuda.local.array(registers, T)
        read(source, first, values, width)
        read(source, first + width, values, 0)
        write(target, first, values, width)
        write(target, first + width, values, 0)

    copy(1, source, target, first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width(dtype):
    widest = per_vector(stored(np.zeros(1, dtype)).dtype)
    assert widest * np.dtype(dtype).itemsize == 16
    for width in (1, 2, 4, 8):
        if width > widest:
            continue
        source = np.random.default_rng(0).normal(size=40).astype(dtype)
        target = np.zeros(40, dtype)
        copied(source, target, width, first=width)
        assert np.array_equal(target[width : 3 * width], source[width : 3 * width])
        assert not target[:width].any() and not target[3 * width :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_that_is_not_aligned_is_refused(dtype):
    source, target = np.zeros(41, dtype), np.zeros(41, dtype)
    width = per_vector(stored(source).dtype)
    with pytest.raises(ValueError, match=r"16 bytes at once from . of an array of .* are not aligned"):
        copied(source, target, width, first=1)
    with pytest.raises(ValueError, match=r"16 bytes at once from . of an array of .* are not aligned"):
        copied(source[1:], target, width)
    with pytest.raises(ValueError, match=r"16 bytes at once from . of an array of .* are not aligned"):
        copied(source, target[1:], width)
    copied(source[1:], target[1:], 1, first=3)


def test_a_vector_that_reaches_beyond_the_array_is_refused():
    with pytest.raises(IndexError, match="read at 7 of an array of 7 values"):
        copied(np.zeros(7, np.float32), np.zeros(8, np.float32), 4)
    with pytest.raises(IndexError, match="write at 7 of an array of 7 values"):
        copied(np.zeros(8, np.float32), np.zeros(7, np.float32), 4)


def rounded(values, dtype, width):
    """The values as they are stored in a dtype, from registers."""
    result = np.zeros(len(values), dtype)
    given, bits = np.ascontiguousarray(values), stored(result)
    read, write, T = load(1), store(width), given.dtype.type

    @kernel(1, Pointer(given.dtype), Pointer(bits.dtype))
    def convert(source, target):
        registers = cuda.local.array(width, T)
        first = cuda.blockIdx.x * width
        for i in range(width):
            read(source, first + i, registers, i)
        write(target, first, registers, 0)

    convert(len(given) // width, given, bits)
    return result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [1, 8])
def test_values_are_rounded_to_the_nearest_and_ties_to_even(dtype, width):
    finite = np.arange(0x7F80 if dtype == "bfloat16" else 0x7C00, dtype=np.uint16)[::97].view(dtype)
    exact = finite.astype(np.float32)
    between = (exact[1:].astype(np.float64) + exact[:-1]) / 2  # the ties of 97 steps, which float32 may hold
    step = np.float32(2**-8 if dtype == "bfloat16" else 2**-11)
    ties = exact[exact > 1e-3] * (1 + step)
    random = np.random.default_rng(2).normal(size=200) * 10.0 ** np.random.default_rng(3).uniform(-9, 6, 200)
    values = np.concatenate([exact, between, ties, random, [65519.9, 65520, 3.3961e38, 1e-45]])
    values = np.concatenate([values, -values]).astype(np.float32)
    values = values[: len(values) // width * width]
    with np.errstate(over="ignore"):
        wanted = values.astype(dtype)
    assert rounded(values, dtype, width).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_survive(dtype):
    wide = np.float64 if dtype == "float64" else np.float32
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, float(ml_dtypes.finfo(dtype).tiny), 1, -1], wide)
    found = rounded(special, dtype, 2).astype(np.float64)
    assert np.array_equal(found, special, equal_nan=True)
    assert np.array_equal(np.signbit(found[1:]), np.signbit(special[1:]))


def test_every_nan_stays_one_in_bfloat16():
    """The upper half of some is that of infinity."""
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F80FFFF], np.uint32)
    assert np.isnan(rounded(bits.view(np.float32), "bfloat16", 2).astype(np.float32)).all()


def test_every_bfloat16_is_read_as_it_is():
    bits = np.arange(1 << 16, dtype=np.uint16)[::37]
    values = bits[: len(bits) // 8 * 8].copy().view("bfloat16")
    found = np.zeros(len(values), np.float32)
    read = load(8)

    @kernel(1, Pointer(np.dtype(np.uint16)), Pointer(np.dtype(np.float32)))
    def widen(source, target):
        registers = cuda.local.array(8, np.float32)
        first = cuda.blockIdx.x * 8
        read(source, first, registers, 0)
        for i in range(8):
            target[first + i] = registers[i]

    widen(len(values) // 8, stored(values), found)
    assert np.array_equal(found, values.astype(np.float32), equal_nan=True)
