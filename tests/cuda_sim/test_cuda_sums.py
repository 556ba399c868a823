"""Sums over the threads of a warp or a block."""

from __future__ import annotations

import numpy as np
import pytest

from tinygrad_bn.kernels.cuda.compat import Pointer, cuda, kernel
from tinygrad_bn.kernels.cuda.simulator import thread_order
from tinygrad_bn.kernels.cuda.sums import row_sums


def sums(lanes, values, rounds=1):
    """For each thread the two sums that it gets, of its value and of its square; again and again."""
    T, threads = values.dtype.type, max(lanes, 32)
    add, pointer = row_sums(lanes, T), Pointer(values.dtype)

    @kernel(threads, pointer, pointer)
    def total(values, results):
        thread = cuda.blockIdx.x * threads + cuda.threadIdx.x
        value = values[thread]
        for i in range(rounds):
            a, b = add(value, value * value)
            results[2 * (rounds * thread + i)] = a
            results[2 * (rounds * thread + i) + 1] = b
            value = value + T(1)

    results = np.zeros((len(values), rounds, 2), values.dtype)
    total(len(values) // threads, values, results)
    return results


@pytest.mark.parametrize("T", [np.float32, np.float64])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32, 64, 96, 256])
def test_every_thread_gets_the_sum_over_its_neighbours(lanes, T):
    blocks = 2
    values = np.random.default_rng(lanes).integers(-9, 9, size=blocks * max(lanes, 32)).astype(T)
    found = sums(lanes, values, rounds=3)
    for i in range(3):
        rows = (values + i).reshape(-1, lanes)  # whole numbers: sums are exact
        wanted = np.stack([rows.sum(axis=1), (rows * rows).sum(axis=1)], axis=1).repeat(lanes, axis=0)
        assert np.array_equal(found[:, i], wanted)


@pytest.mark.parametrize("lanes", [8, 32, 128])
def test_the_order_of_the_threads_does_not_matter(lanes):
    values = np.random.default_rng(1).normal(size=2 * max(lanes, 32)).astype(np.float32)
    forward = sums(lanes, values, rounds=2)
    with thread_order("backward"):
        assert sums(lanes, values, rounds=2).tobytes() == forward.tobytes()
    rows = forward.reshape(-1, lanes, 2, 2)
    assert (rows == rows[:, :1]).all()  # the same bits in every thread
    assert np.allclose(rows[:, 0, 0, 0], values.reshape(-1, lanes).astype(np.float64).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("lanes", [4, 32, 64])
def test_nan_stays_among_its_neighbours(lanes):
    values = np.ones(2 * max(lanes, 32), np.float32)
    values[0] = np.nan
    found = sums(lanes, values)[:, 0, 0]
    assert np.isnan(found[:lanes]).all() and (found[lanes:] == lanes).all()
