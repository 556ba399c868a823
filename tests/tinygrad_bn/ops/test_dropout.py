"""Dropout: modes, shared decisions, randomness, and the mask of the definition."""

from __future__ import annotations

import pickle
from math import comb

import numpy as np
import pytest

import tinygrad_bn
from tinygrad_bn import Generator, Tensor
from tinygrad_bn.functional import dropout
from tinygrad_bn.kernels import philox

KERNELS = pytest.mark.parametrize("kernel", ["sequential", "parallel", "definition"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
MODES = pytest.mark.parametrize("mode", ["upscale_in_train", "downscale_in_infer"])
SHAPE = (3, 4, 5)


def ones(shape=SHAPE, dtype=np.float64):
    return np.ones(shape, dtype)


def draw(shape=SHAPE, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# What is computed


@KERNELS
@DTYPES
def test_training_scales_the_survivors_only_when_inference_does_not(kernel, dtype):
    x = draw(dtype=dtype)
    mask = philox.keep_mask(5, 2, 0, 0.25, SHAPE)
    for mode, scale in (("upscale_in_train", 1 / 0.75), ("downscale_in_infer", 1.0)):
        y = dropout(x, 0.25, mode=mode, generator=Generator(5, 2), kernel=kernel)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.data, np.where(mask, x * dtype(scale), 0))


@KERNELS
@DTYPES
def test_inference(kernel, dtype):
    x = Tensor(draw(dtype=dtype))
    assert dropout(x, 0.25, training=False, kernel=kernel) is x
    y = dropout(x, 0.25, training=False, mode="downscale_in_infer", kernel=kernel)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data, x.data * dtype(0.75))


def test_inference_gives_a_tensor_of_its_own_for_an_array():
    x = draw()
    y = dropout(x, 0.5, training=False)
    x[...] = 0
    assert np.all(y.data != 0)


@KERNELS
def test_inference_has_a_gradient(kernel):
    for mode, factor in (("upscale_in_train", 1.0), ("downscale_in_infer", 0.25)):
        x = Tensor(draw(), requires_grad=True)
        cotangent = draw(seed=1)
        (dropout(x, 0.75, training=False, mode=mode, kernel=kernel) * 1.0).backward(cotangent)
        np.testing.assert_array_equal(x.grad.data, cotangent * factor)


@KERNELS
@MODES
def test_p_0_and_p_1_are_exact(kernel, mode):
    x = draw()
    np.testing.assert_array_equal(dropout(x, 0.0, mode=mode, kernel=kernel).data, x)
    np.testing.assert_array_equal(dropout(x, 1.0, mode=mode, kernel=kernel).data, np.zeros(SHAPE))
    factor = 0.0 if mode == "downscale_in_infer" else 1.0
    np.testing.assert_array_equal(dropout(x, 1.0, False, mode=mode, kernel=kernel).data, x * factor)
    np.testing.assert_array_equal(dropout(x, 0.0, False, mode=mode, kernel=kernel).data, x)


@KERNELS
def test_the_rounded_p_scales_in_both_modes(kernel):
    """0.1 is 6554 / 65536 to the generator, and the survivors are scaled by that, not by 0.1."""
    rounded = 6554 / 65536
    y = dropout(ones(), 0.1, generator=Generator(0), kernel=kernel).data
    assert set(np.unique(y)) == {0.0, 1 / (1 - rounded)}
    y = dropout(ones(), 0.1, training=False, mode="downscale_in_infer", kernel=kernel).data
    assert set(np.unique(y)) == {1 - rounded}


@KERNELS
def test_a_small_p_takes_32_bits(kernel):
    p = 1e-6
    y = dropout(ones(), p, training=False, mode="downscale_in_infer", kernel=kernel).data
    assert abs((1 - y[0, 0, 0]) / p - 1) < 1e-3
    mask = philox.keep_mask(1, 0, 0, 1e-4, (200, 500))
    assert 0 < (~mask).sum() < 100
    y = dropout(ones((200, 500)), 1e-4, generator=Generator(1), kernel=kernel).data
    np.testing.assert_array_equal(y != 0, mask)


@KERNELS
def test_a_dropped_element_is_zero_whatever_it_was(kernel):
    mask = philox.keep_mask(3, 0, 0, 0.5, (43,))  # whole bytes of the mask, and a rest
    for value in (np.nan, np.inf, -np.inf):
        x = Tensor(np.full(43, value), requires_grad=True)
        y = dropout(x, 0.5, generator=Generator(3), kernel=kernel)
        np.testing.assert_array_equal(y.data, np.where(mask, value, 0.0))
        y.backward(np.full(43, value))
        np.testing.assert_array_equal(x.grad.data, np.where(mask, value, 0.0))
        assert not np.signbit(y.data[~mask]).any()


# Which elements share a decision


@KERNELS
@pytest.mark.parametrize(
    ("axis", "mask_shape"),
    [
        (None, SHAPE),
        (0, (3, 1, 1)),
        (-1, (1, 1, 5)),
        ((0, 1), (3, 4, 1)),
        ((0, -1), (3, 1, 5)),
        ([0, 1, 2], SHAPE),
        ((), (1, 1, 1)),
    ],
    ids=str,
)
def test_the_mask_varies_along_axis_only(axis, mask_shape, kernel):
    mask = np.broadcast_to(philox.keep_mask(11, 0, 0, 0.5, mask_shape), SHAPE)
    x = Tensor(ones(), requires_grad=True)
    y = dropout(x, 0.5, axis=axis, generator=Generator(11), kernel=kernel)
    np.testing.assert_array_equal(y.data, 2.0 * mask)
    cotangent = draw()
    y.backward(cotangent)
    np.testing.assert_array_equal(x.grad.data, 2.0 * mask * cotangent)


def test_whole_feature_maps():
    y = dropout(ones((20, 30, 4, 4)), 0.5, axis=(0, 1), generator=Generator(0)).data
    sums = y.sum(axis=(2, 3))
    assert set(np.unique(sums)) == {0.0, 32.0}
    assert 0.4 < (sums == 0).mean() < 0.6


@KERNELS
def test_scalars_and_empty_inputs(kernel):
    assert dropout(np.array(3.0), 0.5, generator=Generator(0), kernel=kernel).shape == ()
    for shape in ((0,), (3, 0, 2)):
        x = Tensor(np.ones(shape), requires_grad=True)
        y = dropout(x, 0.5, generator=Generator(0), kernel=kernel)
        y.backward(np.ones(shape))
        assert y.shape == x.grad.shape == shape


# Randomness


def test_a_training_call_takes_one_call_number_and_inference_none():
    generator = Generator(9)
    for expected in (1, 2, 3):
        dropout(ones(), 0.5, generator=generator)
        assert generator.state["call"] == expected
    dropout(ones(), 0.5, training=False, generator=generator)
    dropout(ones(), 0.5, training=False, mode="downscale_in_infer", generator=generator)
    assert generator.state["call"] == 3
    dropout(ones(), 0.0, generator=generator)
    assert generator.state["call"] == 4  # p must not decide which masks the next layers get


def test_a_refused_argument_takes_no_call_number():
    generator = Generator(9)
    for wrong in ({"p": 2.0}, {"mode": "sideways"}, {"axis": 7}):
        with pytest.raises(ValueError, match="dropout"):
            dropout(ones(), **{"p": 0.5, **wrong}, generator=generator)
    with pytest.raises(ValueError, match=r"kernel='nope' cannot run this call .*: is named 'sequential'"):
        dropout(ones(), 0.5, generator=generator, kernel="nope")
    for training in (True, False):
        with pytest.raises(TypeError, match="dtype int64"):
            dropout(np.ones(3, int), 0.5, training, generator=generator)
    assert generator.state["call"] == 0


@pytest.fixture
def default_seed():
    """The default generator, as it was before, afterwards."""
    state = tinygrad_bn.default_generator().state
    yield
    tinygrad_bn.default_generator().state = state


@pytest.mark.usefixtures("default_seed")
def test_manual_seed_replays_the_default_generator():
    tinygrad_bn.manual_seed(42)
    first, second = dropout(ones(), 0.5).data, dropout(ones(), 0.5).data
    tinygrad_bn.manual_seed(42)
    np.testing.assert_array_equal(dropout(ones(), 0.5).data, first)
    np.testing.assert_array_equal(dropout(ones(), 0.5).data, second)
    np.testing.assert_array_equal(first != 0, philox.keep_mask(42, 0, 0, 0.5, SHAPE))
    assert not np.array_equal(first, second)


def test_a_saved_state_replays():
    generator = Generator(1, stream=4)
    dropout(ones(), 0.5, generator=generator)
    state, copy = generator.state, pickle.loads(pickle.dumps(generator))
    later = [dropout(ones(), 0.5, generator=generator).data for _ in range(2)]
    generator.state = state
    for other in (generator, copy):
        for expected in later:
            np.testing.assert_array_equal(dropout(ones(), 0.5, generator=other).data, expected)


def test_seeds_streams_and_calls_give_masks_of_their_own():
    masks = [
        dropout(ones((200,)), 0.5, generator=generator).data.tobytes()
        for generator in (Generator(0), Generator(1), Generator(0, 1), Generator(1 << 63), Generator(1 << 32))
    ]
    assert len(set(masks)) == len(masks)


@KERNELS
def test_the_mask_is_that_of_another_implementation_of_philox(kernel):
    randomgen = pytest.importorskip("randomgen", reason="oracle randomgen is not installed")
    seed, stream, call = 0x0123456789ABCDEF, 77, 5
    counter = (call << 64) + (stream << 96) - 1  # randomgen counts up before it draws
    words = randomgen.Philox(counter=counter, key=seed, number=4, width=32).random_raw(500)
    lanes = words.astype("<u4").view("<u2")
    generator = Generator(seed, stream)
    generator.state = {**generator.state, "call": call}
    y = dropout(ones((1000,)), 0.25, generator=generator, kernel=kernel).data
    np.testing.assert_array_equal(y != 0, lanes >= 0.25 * 2**16)


# The same mask everywhere


@MODES
@DTYPES
def test_forward_and_backward_drop_the_same_elements(mode, dtype):
    for kernel in ("sequential", "parallel", "definition"):
        x = Tensor(ones(dtype=dtype), requires_grad=True)
        y = dropout(x, 0.5, mode=mode, generator=Generator(6), kernel=kernel)
        y.backward(ones(dtype=dtype))
        np.testing.assert_array_equal(x.grad.data, y.data)
        assert x.grad.dtype == dtype
        assert 0 < (y.data == 0).sum() < y.size


def test_the_mask_knows_neither_dtype_nor_layout_nor_kernel():
    shape = (300, 257)  # more than one task
    wanted = philox.keep_mask(8, 0, 0, 0.4, shape)
    layouts = {
        "C": ones(shape),
        "Fortran": np.asfortranarray(ones(shape)),
        "strided": ones((300, 514))[:, ::2],
        "reversed": ones(shape)[::-1, ::-1],
        "broadcast": np.broadcast_to(1.0, shape),
        "float32": ones(shape, np.float32),
    }
    for x in layouts.values():
        for kernel in ("sequential", "parallel", "definition", None):
            y = dropout(x, 0.4, generator=Generator(8), kernel=kernel)
            np.testing.assert_array_equal(y.data != 0, wanted)


@KERNELS
def test_the_input_is_not_written_to(kernel):
    x = draw()
    before = x.copy()
    y = dropout(x, 0.5, generator=Generator(0), kernel=kernel)
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(y.data, x)


def test_one_bit_is_kept_for_each_element():
    x = Tensor(ones((100, 80), np.float32), requires_grad=True)
    with tinygrad_bn.record() as trace:
        dropout(x, 0.5, generator=Generator(0))
    assert [entry.saved for entry in trace] == [1000]


# Statistics


@MODES
def test_training_and_inference_agree_on_average(mode):
    """Mean and L1 norm, within five standard errors of a Bernoulli sum."""
    x, p = np.random.default_rng(2).normal(1.0, 1.0, 200_000), 0.3
    for statistic in (np.sum, lambda values: np.abs(values).sum()):
        trained = statistic(dropout(x, p, mode=mode, generator=Generator(12)).data)
        inferred = statistic(dropout(x, p, False, mode=mode).data)
        error = np.sqrt(p * (1 - p) * (x**2).sum()) * (1 / (1 - p) if mode == "upscale_in_train" else 1)
        assert abs(trained - inferred) < 5 * error


def test_p_counts_for_each_element_by_itself():
    """Twelve elements at p = 0.5: the number of zeros is binomial, by a chi-squared test at about 1e-4."""
    y = dropout(ones((20_000, 12)), 0.5, generator=Generator(3)).data
    observed = np.bincount((y == 0).sum(axis=1), minlength=13)
    expected = np.array([comb(12, k) for k in range(13)]) / 2**12 * len(y)
    assert ((observed - expected) ** 2 / expected).sum() < 39.0  # 12 degrees of freedom
