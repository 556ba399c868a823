"""Stores past the cache: they write what others write, whatever the place and the size."""

from __future__ import annotations

import platform

import numba
import numpy as np
import pytest
from test_norm_kernels import ALL, DTYPES, EPS, TWINS, draw, kernel

from tinygrad_bn.kernels.cpu import jit, stores
from tinygrad_bn.kernels.views import Cols, Rows, Split

# Shorter than a line, some lines and a rest, several tasks, and the rows that go by blocks.
VIEWS = [
    Rows(7, 5, EPS),
    Rows(33, 1027, EPS),
    Rows(9, 2500, EPS, centred=False),
    Rows(3, 66001, EPS),
    Rows(160, 48, EPS, groups=5, repeat=16),
    Split(1, 3, 2, 2, 131, EPS),
    Split(2, 3, 40, 2, 5, EPS),
    Split(1, 2, 3, 1, 3001, EPS),
    Cols(1, 300, 1030, 1, EPS),
    Cols(2, 257, 6, 3, EPS),
    Cols(1, 20, 98, 49, EPS, repeat=49),
]


def write_past(values, out):
    stores.write_past(values, out)
    stores.fence()


def compiled(dtype):
    fresh = numba.njit(**jit.OPTIONS)(write_past)
    T = numba.from_dtype(np.dtype(dtype))
    fresh.compile((jit.read(T, 1), jit.write(T, 1)))
    return fresh


@DTYPES
def test_every_place_and_size_is_written_and_nothing_beside_it(dtype):
    write = compiled(dtype)
    values = np.arange(1, 101, dtype=dtype)
    for start in range(20):
        for size in (*range(40), 79, 80, 81):
            memory, source = np.zeros(128, dtype), values[size % 3 :][:size]
            write(source, memory[start : start + size])
            expected = np.zeros(128, dtype)
            expected[start : start + size] = source
            assert memory.tobytes() == expected.tobytes()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 instructions")
@DTYPES
def test_whole_lines_are_stored_past_the_cache(dtype):
    fresh = compiled(dtype)
    (signature,) = fresh.signatures
    assembly = fresh.inspect_asm(signature)
    assert "movnt" in assembly and "sfence" in assembly


def results(view, twin, dtype, running=(), scales=1.0):
    x, weight, bias, cotangent = draw(view, dtype)
    x = (x * scales).astype(dtype)
    pair = kernel(view, twin)
    y, aux = pair.forward(view, x, weight, bias, *running)
    return [y, *pair.vjp(view, ALL, cotangent, (x, weight, bias, *running), aux)]


@pytest.fixture
def counted(monkeypatch):
    """How often a call of a kernel was told to write past the cache."""
    told = []
    real = stores.past_cache

    def past_cache(y, piece):
        told.append(real(y, piece))
        return told[-1]

    for module in ("rows", "split", "cols"):
        monkeypatch.setattr(f"tinygrad_bn.kernels.cpu.{module}.past_cache", past_cache)
    return told


@DTYPES
@TWINS
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_large_outputs_have_the_bits_of_small_ones(view, twin, dtype, monkeypatch, counted):
    small = results(view, twin, dtype)
    assert not any(counted)
    monkeypatch.setattr(stores, "LARGE", 0)
    large = results(view, twin, dtype)
    assert any(counted)
    assert [each.tobytes() for each in large] == [each.tobytes() for each in small]


@TWINS
@pytest.mark.parametrize(
    ("view", "axis"), [(VIEWS[1], 0), (VIEWS[4], 0), (VIEWS[6], 2), (VIEWS[8], 2), (VIEWS[9], 0)], ids=str
)
def test_statistics_out_of_range_leave_those_beside_them(view, axis, twin, monkeypatch, counted):
    """The pass in float64 writes what is out of range in its place, and nothing else."""
    shape = [-1 if each == axis else 1 for each in range(len(view.shape))]
    scales = np.resize([1, 1e-30, 1, 1e34, 1], view.shape[axis]).reshape(shape)
    small = results(view, twin, np.float32, scales=scales)
    monkeypatch.setattr(stores, "LARGE", 0)
    large = results(view, twin, np.float32, scales=scales)
    assert any(counted)
    assert [each.tobytes() for each in large] == [each.tobytes() for each in small]


@pytest.mark.parametrize("view", [VIEWS[7], VIEWS[8]], ids=str)
def test_large_outputs_in_inference_have_the_bits_of_small_ones(view, monkeypatch, counted):
    running = np.zeros(view.channels, np.float32), np.ones(view.channels, np.float32)
    small = results(view, "sequential_inference", np.float32, running)
    monkeypatch.setattr(stores, "LARGE", 0)
    large = results(view, "sequential_inference", np.float32, running)
    assert any(counted)
    assert [each.tobytes() for each in large] == [each.tobytes() for each in small]


def test_sizes_in_bytes_decide(monkeypatch):
    monkeypatch.setattr(stores, "LARGE", 80)
    monkeypatch.setattr(stores, "PIECE", 40)
    assert [stores.past_cache(np.empty(n), 5) for n in (9, 10)] == [False, True]
    assert not stores.past_cache(np.empty(10), 6)
