"""What the simulated device refuses, and what it makes visible: above all, a barrier that is missing."""

from __future__ import annotations

import numpy as np
import pytest

from tinygrad_bn.kernels.cuda.compat import INT, Pointer, cuda, kernel
from tinygrad_bn.kernels.cuda.simulator import DivergentBarrier, thread_order

FLOATS = Pointer(np.dtype(np.float32))
ALL = 0xFFFFFFFF


def floats(size):
    return np.arange(size, dtype=np.float32)


def refused(kernel, *arguments, error=DivergentBarrier, match=None):
    with pytest.raises(error, match=match) as raised:
        kernel(1, *arguments)
    return raised.value


# A barrier that is missing


def reversing(waits):
    """Turns 64 values around through shared memory."""

    @kernel(64, FLOATS)
    def reverse(values):
        shared = cuda.shared.array(64, np.float32)
        thread = cuda.threadIdx.x
        shared[thread] = values[thread]
        if waits:
            cuda.syncthreads()
        values[thread] = shared[63 - thread]

    return reverse


def in_both_orders(kernel):
    results = []
    for order in ("forward", "backward"):
        values = floats(64)
        with thread_order(order):
            kernel(1, values)
        results.append(values)
    return results


def test_a_missing_barrier_changes_the_result_with_the_order_of_the_threads():
    forward, backward = in_both_orders(reversing(waits=False))
    assert not np.array_equal(forward, backward, equal_nan=True)
    assert np.isnan(forward[:32]).all() and np.isnan(backward[32:]).all()  # read before it was written


def test_the_same_kernel_with_its_barrier_does_not_care():
    forward, backward = in_both_orders(reversing(waits=True))
    assert np.array_equal(forward, floats(64)[::-1]) and np.array_equal(backward, forward)


def test_shared_memory_that_is_used_again_needs_a_second_barrier():
    """The values of the first round are written over while slower threads still read them."""

    def twice(waits):
        @kernel(64, FLOATS)
        def rounds(values):
            shared = cuda.shared.array(64, np.float32)
            thread = cuda.threadIdx.x
            total = np.float32(0)
            for i in range(2):
                shared[thread] = values[thread] + np.float32(100 * i)
                cuda.syncthreads()
                total += shared[63 - thread]
                if waits:
                    cuda.syncthreads()
            values[thread] = total

        return rounds

    forward, backward = in_both_orders(twice(waits=True))
    assert np.array_equal(forward, backward) and forward[0] == 63 + 163
    forward, backward = in_both_orders(twice(waits=False))
    assert not np.array_equal(forward, backward)


def test_the_order_is_put_back_and_checked():
    with pytest.raises(ZeroDivisionError), thread_order("backward"):
        1 / 0  # noqa: B018
    forward = floats(64)
    reversing(waits=False)(1, forward)
    assert np.isnan(forward[:32]).all()
    with pytest.raises(ValueError, match="order is 'sideways', wanted 'forward' or 'backward'"):
        thread_order("sideways").__enter__()


# Barriers that not all threads reach


def test_a_thread_that_ended_before_the_barrier():
    @kernel(64, FLOATS, INT)
    def early(values, size):
        if cuda.threadIdx.x >= size:
            return
        cuda.syncthreads()
        values[cuda.threadIdx.x] = 0

    refused(early, floats(64), 63, match="another thread of its block has ended")
    early(1, floats(64), 64)


def test_threads_at_two_barriers():
    @kernel(64, FLOATS)
    def forked(values):
        if cuda.threadIdx.x < 10:
            cuda.syncthreads()
        else:
            cuda.syncthreads()

    message = str(refused(forked, floats(64)))
    assert "thread 0 waits at" in message and "thread 10 at" in message and __file__ in message


def test_a_barrier_in_a_loop_of_different_lengths():
    @kernel(64, FLOATS)
    def uneven(values):
        for _ in range(1 + cuda.threadIdx.x // 32):
            cuda.syncthreads()

    refused(uneven, floats(64), match="has ended")


def test_a_shuffle_without_some_lanes_it_names():
    @kernel(32, FLOATS, INT)
    def partial(values, size):
        if cuda.threadIdx.x < size:
            values[cuda.threadIdx.x] = cuda.shfl_xor_sync(ALL, values[cuda.threadIdx.x], 1)

    refused(partial, floats(32), 16, match="of its warp; 0xffff have come")
    values = floats(32)
    partial(1, values, 32)
    assert np.array_equal(values, floats(32).reshape(16, 2)[:, ::-1].ravel())


def test_lanes_at_two_shuffles():
    @kernel(32, FLOATS)
    def forked(values):
        if cuda.threadIdx.x < 16:
            values[cuda.threadIdx.x] = cuda.shfl_xor_sync(ALL, values[cuda.threadIdx.x], 1)
        else:
            values[cuda.threadIdx.x] = cuda.shfl_xor_sync(ALL, values[cuda.threadIdx.x], 2)

    refused(forked, floats(32), match="waits at shuffle")


def test_a_block_waits_for_its_warps_and_a_warp_for_nobody_else():
    """One warp shuffles while the other is at the barrier."""

    @kernel(64, FLOATS)
    def mixed(values):
        thread = cuda.threadIdx.x
        if thread < 32:
            values[thread] = cuda.shfl_sync(ALL, values[thread], 5)
        cuda.syncthreads()
        values[thread] += np.float32(1)

    for values in in_both_orders(mixed):
        assert np.array_equal(values, np.where(np.arange(64) < 32, 5, floats(64)) + 1)


def test_what_warps_can_do():
    @kernel(32, FLOATS, FLOATS)
    def shuffles(values, results):
        lane = cuda.threadIdx.x
        results[lane] = cuda.shfl_down_sync(ALL, values[lane], 3)
        results[32 + lane] = cuda.shfl_sync(ALL, values[lane], 31 - lane)
        cuda.syncwarp()

    results = np.zeros(64, np.float32)
    shuffles(1, floats(32), results)
    down = np.concatenate([floats(32)[3:], floats(32)[29:]])  # the last lanes keep their own
    assert np.array_equal(results, np.concatenate([down, floats(32)[::-1]]))


# Memory


def test_indices_outside_of_an_array_are_refused():
    @kernel(1, FLOATS, INT)
    def write(values, at):
        values[at] = 1

    @kernel(1, FLOATS, INT)
    def read(values, at):
        values[0] = values[at]

    for at in (4, -1, 2**40):
        assert f"write at {at} of an array of 4 values" in str(
            refused(write, floats(4), at, error=IndexError)
        )
        error = refused(read, floats(4), at, error=IndexError, match=f"read at {at} of an array of 4 values")
        assert "thread (0, 0, 0) of block (0, 0, 0)" in error.__notes__[0]
    write(1, floats(4), 3)


def test_memory_nobody_has_written_is_nan():
    @kernel(1, FLOATS)
    def look(values):
        shared, local = cuda.shared.array(2, np.float32), cuda.local.array(2, np.float32)
        values[0], values[1] = shared[1], local[1]
        shared[1] = local[1] = 7

    values = floats(2)
    look(3, values)  # the last block does not see what the first has written
    assert np.isnan(values).all()


def test_shared_memory_is_one_for_a_block_and_each_place_that_asks():
    @kernel(32, FLOATS)
    def places(values):
        first = cuda.shared.array(1, np.float32)
        second = cuda.shared.array(1, np.float32)
        if cuda.threadIdx.x == 0:
            first[0], second[0] = 1, 2
        cuda.syncthreads()
        values[cuda.threadIdx.x] = first[0] + 10 * second[0]

    values = floats(32)
    places(1, values)
    assert (values == 21).all()


def test_an_error_in_a_thread_leaves_the_simulator_usable():
    @kernel(64, FLOATS)
    def failing(values):
        if cuda.threadIdx.x == 40:
            values[64] = 0
        cuda.syncthreads()

    for _ in range(2):
        refused(failing, floats(64), error=IndexError)
    assert np.array_equal(in_both_orders(reversing(waits=True))[0], floats(64)[::-1])


def test_infinity_and_overflow_are_no_warnings():
    @kernel(1, FLOATS)
    def extreme(values):
        values[0] = values[0] * values[0] - values[0] * values[0]

    values = np.array([3e38], np.float32)
    extreme(1, values)
    assert np.isnan(values[0])
