"""The normalizations: worked examples, identities, accuracy, layouts, and what the tape keeps."""

from __future__ import annotations

import numpy as np
import pytest
from norm_cases import (
    AFFINE,
    KERNELS,
    ONE_OF_EACH,
    Case,
    all_norms,
    assert_close,
    forward_and_back,
    tensor_over,
)

import tinygrad_bn
from tinygrad_bn.functional import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

EVERY_NORM = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
ALL_KERNELS = pytest.mark.parametrize("kernel", KERNELS)
TABLE = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
# Rows of what becomes of `np.random.seed(100); np.random.rand(2, 3, 3, 3)`, computed with 50 digits.
BATCH_ROW = [0.41260771341963404, -0.461983793623079, 0.020291041604924457]
LAST_BATCH_ROW = [1.1897790541048678, -0.6142120411644999, 0.20769905924950807]
INSTANCE_ROW = [0.3913517466310831, -0.5062608369141348, -0.011291519990833419]
LAYER_ROW = [0.29741897997118155, -0.5538143152890939, -0.08441986781684041]


# Worked examples


@ALL_KERNELS
def test_the_columns_of_one_to_nine(kernel):
    """Each column has variance 6, so it becomes −√1.5, 0, √1.5; eps = 1e-5 shows in the seventh digit."""
    column = np.array([[-1.0], [0.0], [1.0]]) * np.ones(3)
    for eps in (0.0, 1e-5):
        y = batch_norm(TABLE, None, None, training=True, eps=eps, kernel=kernel).data
        np.testing.assert_allclose(y, column * 3 / np.sqrt(6 + eps), rtol=4e-16)
    assert np.round(np.sqrt(1.5), 4) == 1.2247


@ALL_KERNELS
def test_the_rows_of_one_to_nine(kernel):
    row = np.array([-1.0, 0.0, 1.0]) * np.ones((3, 1))
    np.testing.assert_allclose(
        layer_norm(TABLE, 3, eps=0.0, kernel=kernel).data, row * np.sqrt(1.5), rtol=4e-16
    )
    np.testing.assert_allclose(
        rms_norm(TABLE, 3, eps=0.0, kernel=kernel).data,
        TABLE / np.sqrt(np.array([[14], [77], [194]]) / 3),
        rtol=4e-16,
    )


@ALL_KERNELS
def test_the_four_dimensional_example(kernel):
    x = np.random.RandomState(100).rand(2, 3, 3, 3)
    y = batch_norm(x, None, None, training=True, kernel=kernel).data
    np.testing.assert_allclose(y[0, 0, 0], BATCH_ROW, rtol=1e-13)
    np.testing.assert_allclose(y[1, 2, 2], LAST_BATCH_ROW, rtol=1e-13)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-15)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, rtol=3e-4)
    np.testing.assert_allclose(instance_norm(x, kernel=kernel).data[0, 0, 0], INSTANCE_ROW, rtol=1e-13)
    np.testing.assert_allclose(layer_norm(x, (3, 3, 3), kernel=kernel).data[0, 0, 0], LAYER_ROW, rtol=1e-13)


# Identities


@EVERY_NORM
@ALL_KERNELS
def test_weight_and_bias_can_undo_the_normalization(case, kernel):
    """weight = √(σ² + ε) and bias = μ do in BatchNorm, where each channel has one statistic; else by hand."""
    x = np.random.default_rng(0).normal(3.0, 2.0, case.shape)
    shape, axes = case.grouped
    if case.operation == "batch_norm":
        scale, shift = np.sqrt(x.var(axes) + 1e-5), x.mean(axes)
        np.testing.assert_allclose(case(x, scale, shift, eps=1e-5, kernel=kernel).data, x, rtol=1e-13)
    mean_square = (x**2).reshape(shape).mean(axes, keepdims=True)
    square = mean_square if case.operation == "rms_norm" else x.reshape(shape).var(axes, keepdims=True)
    shift = 0.0 if case.operation == "rms_norm" else x.reshape(shape).mean(axes, keepdims=True)
    y = case(x, eps=1e-5, kernel=kernel).data.reshape(shape)
    np.testing.assert_allclose((y * np.sqrt(square + 1e-5) + shift).reshape(x.shape), x, rtol=1e-13)


@ALL_KERNELS
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 3, 5), (2, 4, 3, 2, 2)], ids=str)
def test_one_group_is_layer_norm_over_the_sample(shape, kernel):
    x, weight = np.random.default_rng(1).normal(size=shape), np.linspace(0.5, 2.0, 4)
    spread = np.broadcast_to(weight.reshape(4, *[1] * (len(shape) - 2)), shape[1:]).copy()
    grouped = group_norm(x, 1, weight, weight, kernel=kernel).data
    assert_close(grouped, layer_norm(x, shape[1:], spread, spread, kernel=kernel).data, 8)
    last = np.moveaxis(x, 1, -1)
    channels_last = group_norm(last, 1, weight, weight, channel_axis=-1, kernel=kernel).data
    assert_close(np.moveaxis(channels_last, -1, 1), grouped, 8)


@ALL_KERNELS
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 3, 5), (2, 4, 3, 2, 2)], ids=str)
def test_a_group_for_each_channel_is_instance_norm(shape, kernel):
    x, weight = np.random.default_rng(1).normal(size=shape), np.linspace(0.5, 2.0, 4)
    for axis in (1, -1):
        given = x if axis == 1 else np.moveaxis(x, 1, -1)
        by_group = group_norm(given, 4, weight, weight, channel_axis=axis, kernel=kernel).data
        by_sample = instance_norm(given, weight=weight, bias=weight, channel_axis=axis, kernel=kernel).data
        np.testing.assert_array_equal(by_group, by_sample)


@ALL_KERNELS
def test_inference_does_not_depend_on_who_shares_the_batch(kernel):
    rng = np.random.default_rng(2)
    one, others = rng.normal(size=(1, 3, 4)), rng.normal(5.0, 3.0, (7, 3, 4))
    statistics = (rng.normal(size=3), rng.uniform(0.5, 2.0, 3))
    together = np.concatenate([one, others])
    alone = batch_norm(one, *statistics, kernel=kernel).data
    np.testing.assert_array_equal(batch_norm(together, *statistics, kernel=kernel).data[:1], alone)
    trained = batch_norm(together, None, None, training=True, kernel=kernel).data[:1]
    assert np.abs(trained - batch_norm(one, None, None, training=True, kernel=kernel).data).max() > 0.5


@EVERY_NORM
@ALL_KERNELS
def test_twins_give_the_same_bits_and_stay_near_the_definition(case, kernel):
    arrays = Case(case.operation, case.shape, case.options).draw(np.float32)
    got = forward_and_back(case, *arrays, kernel=kernel)
    twin = forward_and_back(case, *arrays, kernel="sequential")
    for name in got:
        if kernel == "definition":
            assert_close(got[name], twin[name], 32)
        else:
            np.testing.assert_array_equal(got[name], twin[name])


def test_normalized_shape_may_be_an_integer():
    x, weight, bias, _ = ONE_OF_EACH[4].draw()
    for function in (layer_norm, rms_norm):
        expected = function(x, (5,), weight, bias=bias).data
        np.testing.assert_array_equal(function(x, 5, weight, bias=bias).data, expected)
        np.testing.assert_array_equal(function(x, np.int64(5), weight, bias=bias).data, expected)


def test_the_default_eps_of_rms_norm_is_the_machine_epsilon_of_the_dtype():
    for dtype in (np.float32, np.float64):
        eps = float(np.finfo(dtype).eps)
        x = np.full((1, 4), np.sqrt(eps), dtype)
        np.testing.assert_allclose(rms_norm(x, 4).data, np.sqrt(0.5), rtol=2 * eps)
        np.testing.assert_array_equal(rms_norm(x, 4).data, rms_norm(x, 4, eps=eps).data)


# Accuracy


@pytest.mark.parametrize(
    "case",
    [
        Case("batch_norm", (64, 3, 50)),
        Case("batch_norm", (500, 4)),
        Case("instance_norm", (3, 4, 500)),
        Case("group_norm", (3, 6, 500), (("num_groups", 2),)),
        Case("layer_norm", (4, 30, 50), (("normalized_shape", (30, 50)),)),
        Case("rms_norm", (4, 500), (("normalized_shape", (500,)),)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["sequential", "parallel"])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_a_large_mean_costs_no_accuracy_in_float32(case, kernel, offset):
    """Against the definition in float64 on the same numbers: E[x²] − E[x]² would be wrong in every digit."""
    x, weight, bias, cotangent = case.draw(np.float32)
    x += np.float32(offset)
    got = forward_and_back(case, x, weight, bias, cotangent, kernel=kernel)
    wide = [array.astype(np.float64) for array in (x, weight, bias, cotangent)]
    want = forward_and_back(case, *wide, kernel="definition")
    for name in want:
        assert_close(got[name], want[name], 16)


@EVERY_NORM
@ALL_KERNELS
def test_eps_zero(case, kernel):
    arrays = case.draw()
    got = forward_and_back(case, *arrays, eps=0.0, kernel=kernel)
    tiny = forward_and_back(case, *arrays, eps=1e-300, kernel="definition")
    for name in got:
        assert_close(got[name], tiny[name], 64)
    x = arrays[0]
    assert_close(case(x * 2.0**400, eps=0.0, kernel=kernel).data, case(x, eps=0.0, kernel=kernel).data, 8)


@ALL_KERNELS
def test_one_value_per_group_is_the_bias_and_has_no_gradient(kernel):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 4))
    case = Case("group_norm", (3, 4), (("num_groups", 4),))
    got = forward_and_back(case, x, np.ones(4), np.arange(4.0), cotangent, kernel=kernel)
    np.testing.assert_array_equal(got["y"], np.arange(4.0) * np.ones((3, 1)))
    np.testing.assert_allclose(got["dx"], 0, atol=1e-12)  # 316 = 1 / √eps times the rounding of what cancels
    np.testing.assert_array_equal(got["dweight"], 0)
    np.testing.assert_allclose(got["dbias"], cotangent.sum(axis=0), rtol=1e-14)


@EVERY_NORM
@ALL_KERNELS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_nan_and_infinity_stay_in_their_group(case, kernel, value):
    x, weight, bias, cotangent = case.draw()
    x[1, 1] = value
    shape, axes = case.grouped
    bad = (~np.isfinite(x)).reshape(shape).any(axes, keepdims=True)
    touched = np.broadcast_to(bad, shape).reshape(x.shape)
    with np.errstate(invalid="ignore"):
        got = forward_and_back(case, x, weight, bias, cotangent, kernel=kernel)
    assert touched.any() and (case.operation == "layer_norm" or not touched.all())
    assert np.isfinite(got["y"][~touched]).all() and np.isfinite(got["dx"][~touched]).all()
    assert np.isnan(got["dx"][touched]).all()
    if case.operation == "rms_norm" and np.isinf(value):
        np.testing.assert_array_equal(
            np.isnan(got["y"]), np.isinf(x)
        )  # a finite number over infinity is zero
    else:
        assert np.isnan(got["y"][touched]).all()


# Layouts and empty inputs


def layouts(x):
    """The same values, laid out in every way that NumPy has."""
    yield "Fortran", np.asfortranarray(x)
    yield "transposed", np.ascontiguousarray(x.T).T
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    yield "strided", wide[..., ::2]
    yield "reversed", x[::-1, ..., ::-1].copy()[::-1, ..., ::-1]
    buffer = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    buffer[...] = x
    yield "unaligned", buffer
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


@EVERY_NORM
@ALL_KERNELS
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_the_layout_does_not_matter(case, kernel, dtype):
    x, weight, bias, cotangent = case.draw(dtype)
    want = forward_and_back(case, x, weight, bias, cotangent, kernel=kernel)
    strided = [np.repeat(array, 2)[::2].reshape(case.parameters) for array in (weight, bias)]
    for (name, laid), (_, laid_cotangent) in zip(layouts(x), layouts(cotangent), strict=True):
        before = laid.copy()
        got = forward_and_back(case, laid, *strided, laid_cotangent, kernel=kernel)
        np.testing.assert_array_equal(laid, before, err_msg=name)
        for key in want:
            if kernel == "definition":  # NumPy adds in the order of memory
                assert_close(got[key], want[key], 32)
            else:
                np.testing.assert_array_equal(got[key], want[key], err_msg=f"{key} {name}")


@EVERY_NORM
@pytest.mark.parametrize("kernel", ["sequential", "parallel"])
def test_broadcast_inputs(case, kernel):
    row = np.random.default_rng(0).normal(size=case.shape[-1])
    x, cotangent = np.broadcast_to(row, case.shape), np.broadcast_to(2.0, case.shape)
    got = forward_and_back(case, x, None, None, cotangent, kernel=kernel)
    want = forward_and_back(case, x.copy(), None, None, cotangent.copy(), kernel=kernel)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("kernel", ["sequential", "parallel", None])
@pytest.mark.parametrize(
    "case",
    [
        *(
            Case(c.operation, (0, *c.shape[1:]), c.options)
            for c in all_norms()
            if len(c.parameters) < len(c.shape)
        ),
        *(Case(name, shape) for name in ("batch_norm", "instance_norm") for shape in ((3, 2, 0), (3, 0, 2))),
        *(Case(name, (3, 0), (("normalized_shape", (0,)),)) for name in ("layer_norm", "rms_norm")),
        Case("group_norm", (3, 4, 0), (("num_groups", 2),)),
    ],
    ids=str,
)
def test_empty_inputs_have_empty_outputs_and_zero_sums(case, kernel):
    got = forward_and_back(case, *case.draw(), kernel=kernel)
    assert got["y"].shape == got["dx"].shape == case.shape
    for name in ("dweight", "dbias"):
        np.testing.assert_array_equal(got[name], np.zeros(case.parameters))


# The tape


@EVERY_NORM
@pytest.mark.parametrize("affine", AFFINE)
def test_the_tape_keeps_x_the_weight_and_three_numbers_per_group(case, affine):
    x, weight, bias, _ = case.draw(np.float32, affine)
    shape, axes = case.grouped
    groups = int(np.prod([n for axis, n in enumerate(shape) if axis not in axes]))
    with tinygrad_bn.record() as trace:
        case(tensor_over(x), *(None if p is None else tensor_over(p) for p in (weight, bias)))
    kept = x.nbytes + (0 if weight is None else weight.nbytes)
    assert [entry.saved for entry in trace] == [kept + 3 * 8 * groups]


@EVERY_NORM
@ALL_KERNELS
def test_a_gradient_penalty(case, kernel):
    """The derivative of (‖∂y/∂x‖ − 1)², where y = Σ cotangent · norm(x)³, against central differences."""
    x, weight, bias, cotangent = case.draw()

    def penalty(values, differentiate):
        leaf = tensor_over(values)
        y = (case(leaf, weight, bias, eps=0.1, kernel=kernel) ** 3 * cotangent).sum()
        (gradient,) = tinygrad_bn.grad(y, leaf, create_graph=True)
        result = ((gradient * gradient).sum() ** 0.5 - 1.0) ** 2
        return tinygrad_bn.grad(result, leaf)[0].data if differentiate else result.item()

    direction = np.random.default_rng(9).normal(size=x.shape)
    analytic = (penalty(x, True) * direction).sum()
    coarse, fine = (
        (penalty(x + h * direction, False) - penalty(x - h * direction, False)) / (2 * h)
        for h in (2e-3, 1e-3)
    )
    np.testing.assert_allclose(analytic, (4 * fine - coarse) / 3, rtol=1e-6)
