"""The launcher: what it takes, what it refuses, and grids of nothing."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 -- from here on NumPy knows bfloat16
import numpy as np
import pytest

from tinygrad_bn.kernels.cuda import launch
from tinygrad_bn.kernels.cuda.compat import INT, Launcher, Pointer, cuda, device, kernel

FLOAT = np.dtype(np.float32)


@device
def twice(value):
    return value + value


@kernel(4, Pointer(FLOAT), INT, FLOAT, (INT,) * 2)
def fill(values, size, value, bounds):
    at = cuda.blockIdx.x * 4 + cuda.threadIdx.x
    if bounds[0] <= at < min(size, bounds[1]):
        values[at] = twice(value)


def test_a_launch():
    values = np.zeros(10, np.float32)
    fill(3, values, 10, 1.5, (1, 9))
    assert values.tolist() == [0, *[3] * 8, 0]


def test_numbers_arrive_in_the_type_of_the_signature():
    seen = []

    @kernel(1, Pointer(FLOAT), INT, FLOAT, (np.dtype(np.uint32),) * 2)
    def look(values, size, value, pair):
        seen.extend((type(size), type(value), *map(type, pair)))

    look(1, np.zeros(1, np.float32), 3, 0.1, [1, 2])
    assert seen == [np.int64, np.float32, np.uint32, np.uint32]


def test_a_grid_of_no_blocks_is_skipped():
    fill(0, np.zeros(0, np.float32), 0, 1, (0, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "message", "position"),
    [
        ((np.zeros(4), 4, 1, (0, 4)), TypeError, "got an array of float64, wanted float32", 0),
        ((np.zeros(8, FLOAT)[::2], 4, 1, (0, 4)), ValueError, r"strides \(8,\), wanted a contiguous one", 0),
        ((np.zeros(4, FLOAT), "four", 1, (0, 4)), ValueError, "four", 1),
        ((np.zeros(4, FLOAT), 4, 1, (0, 4, 5)), ValueError, "longer", 3),
    ],
)
def test_an_argument_that_does_not_fit_the_signature_is_named(arguments, error, message, position):
    with pytest.raises(error, match=message) as raised:
        fill(1, *arguments)
    assert raised.value.__notes__ == [f"in argument {position} of the kernel test_cuda_compat.fill"]


@pytest.mark.parametrize("count", [0, 3, 5])
def test_the_number_of_arguments(count):
    with pytest.raises(TypeError, match=f"test_cuda_compat.fill: got {count} arguments, wanted 4"):
        fill(1, *[np.zeros(4, FLOAT)] * count)


def test_a_launcher_says_what_it_is():
    assert isinstance(fill, Launcher) and fill.threads == 4
    assert (fill.name, fill.vectorized, fill.double) == ("test_cuda_compat.fill", False, False)


def test_bfloat16_is_seen_as_bits():
    values = launch.stored(np.zeros((2, 3), "bfloat16"))
    assert values.dtype == np.uint16 and values.shape == (2, 3)
    assert launch.stored(np.zeros(2, np.float16)).dtype == np.float16


@pytest.mark.parametrize(("storage", "wide"), [("float64", 2), ("float32", 4), ("float16", 8), ("uint16", 8)])
def test_vectors_are_for_runs_they_divide(storage, wide):
    assert launch.width(3 * wide, np.dtype(storage)) == wide
    assert launch.width(3 * wide + 1, np.dtype(storage)) == 1


def test_new_memory_is_not_zero_by_chance():
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        for shape in ((), (2, 3), 4):
            array = launch.new(shape, np.dtype(dtype), np.zeros(1))
            assert np.isnan(array.astype(np.float64)).all()
    assert launch.new((0, 2), FLOAT, np.zeros(1)).shape == (0, 2)


def test_memory_is_copied_only_where_it_must_be():
    base = np.zeros((4, 6), np.float32)
    assert launch.contiguous(base) is base
    shifted, unaligned = (
        np.zeros(112, np.uint8)[start : start + 96].view(np.float32).reshape(4, 6) for start in (4, 1)
    )
    for view in (base[::2], base.T, np.broadcast_to(base[0], (4, 6)), shifted, unaligned):
        copied = launch.contiguous(view)
        assert copied.flags.c_contiguous and np.array_equal(copied, view)
        assert copied.ctypes.data % 16 == 0


def test_a_grid_has_an_end():
    @kernel(32, Pointer(np.dtype(np.float32)))
    def nothing(x):
        pass

    with pytest.raises(ValueError, match="2,147,483,648 blocks, a grid has at most 2,147,483,647"):
        nothing(2**31, np.zeros(4, np.float32))
