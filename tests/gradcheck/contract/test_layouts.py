"""Memory layouts: the same values, other strides."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck.contract.layouts import LAYOUTS, expansions


@pytest.mark.parametrize("label", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_layout_keeps_values_shape_and_dtype(label, shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    laid = LAYOUTS[label](np.asarray(x))
    assert isinstance(laid, np.ndarray), "NumPy turns what has no axes into scalars"
    assert np.array_equal(laid, x) and laid.shape == shape and laid.dtype == dtype
    if len(shape) > 1 and label != "sliced":
        assert laid.strides != x.strides


def test_strides_are_those_of_the_name():
    x = np.zeros((3, 4))
    strides = {label: tuple(stride // 8 for stride in lay(x).strides) for label, lay in LAYOUTS.items()}
    assert strides == {"transposed": (1, 3), "strided": (8, 2), "reversed": (-4, -1), "sliced": (4, 1)}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_sliced_copy_lies_between_nan_at_an_address_without_alignment(dtype):
    laid = LAYOUTS["sliced"](np.ones((3, 4), dtype))
    storage = laid.base
    assert laid.flags.c_contiguous and storage.size == laid.size + 2
    assert np.isnan(storage[[0, -1]]).all() and not np.isnan(laid).any()
    assert laid.ctypes.data % 16


@pytest.mark.parametrize("label", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_who_misreads_the_layout_of_indices_meets_legal_ones(label, dtype):
    x = np.random.default_rng(0).integers(2, size=(3, 4)).astype(dtype)
    laid = LAYOUTS[label](x)
    assert np.array_equal(laid, x) and laid.dtype == dtype
    storage = laid if laid.base is None else laid.base
    while storage.base is not None:
        storage = storage.base
    assert set(np.unique(storage)) <= set(np.unique(x))
    read = np.lib.stride_tricks.as_strided(laid, (x.size,), (x.itemsize,), writeable=False)
    assert read.ctypes.data + read.nbytes <= storage.ctypes.data + storage.nbytes


def test_expansions_have_stride_0_and_tell_where():
    x = np.arange(12.0).reshape(3, 4)
    found = dict(expansions(x))
    assert {label: array.strides for label, array in found.items()} == {
        "expanded from one number (stride 0)": (0, 0),
        "expanded along axis 0 (stride 0)": (0, 8),
    }
    assert [len(list(expansions(np.zeros(shape)))) for shape in ((), (3,))] == [0, 1]
