"""The norm kernels against their formulas in plain NumPy, run in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tinygrad_bn.kernels.cpu import cols, rows, split
from tinygrad_bn.kernels.views import Cols, Rows, Split

EPS = 1e-5
VIEWS = [
    Rows(5, 7, EPS), Rows(5, 7, EPS, centred=False), Rows(1, 1, EPS), Rows(3, 1, EPS, centred=False),
    Rows(70, 130, EPS), Rows(67, 1, EPS), Rows(33, 1027, EPS), Rows(150, 259, EPS), Rows(2, 3001, EPS),
    Rows(40, 2049, EPS, centred=False), Rows(2100, 12, EPS), Rows(3, 66001, EPS),
    Rows(12, 3, EPS, groups=4), Rows(160, 48, EPS, groups=5, repeat=16),
    Rows(21 * 130, 49, EPS, groups=130, repeat=49), Rows(70 * 3, 1, EPS, groups=3),
    Rows(9 * 2, 5000, EPS, groups=2, repeat=2), Rows(17, 2450, EPS, repeat=25), Rows(65, 32801, EPS),
    Split(1, 4, 3, 1, 5, EPS), Split(2, 1, 3, 2, 5, EPS),
    Split(2, 3, 2, 4, 6, EPS), Split(3, 1, 4, 1, 7, EPS), Split(1, 1, 1, 1, 1, EPS),
    Split(1, 9, 5, 1, 1, EPS), Split(2, 1, 1, 6, 9, EPS), Split(4, 2, 3, 5, 1, EPS),
    Split(1, 1, 3, 1, 3001, EPS), Split(1, 5, 2, 1, 1025, EPS), Split(1, 3, 2, 2, 131, EPS),
    Split(2, 3, 75, 2, 5, EPS), Split(1, 2, 70, 1, 30, EPS), Cols(1, 6, 5, 1, EPS), Cols(2, 4, 6, 2, EPS),
    Cols(2, 4, 6, 6, EPS), Cols(3, 1, 8, 4, EPS), Cols(1, 1, 1, 1, EPS), Cols(1, 1, 4, 1, EPS),
    Cols(1, 129, 3, 1, EPS), Cols(2, 257, 6, 3, EPS), Cols(1, 300, 1030, 1, EPS),
    Cols(1, 130, 2050, 2, EPS), Cols(2, 130, 514, 2, EPS), Cols(2, 20, 1030, 5, EPS),
    Cols(1, 3001, 2, 1, EPS),
]  # fmt: skip
RUNNING_VIEWS = [
    view
    for view in VIEWS
    if not isinstance(view, Rows) and view.Z == 1 and getattr(view, "K", 1) == getattr(view, "B", 1) == 1
]
ONE_OF_EACH = [
    Rows(6, 9, EPS),
    Rows(6, 9, EPS, centred=False),
    Rows(8, 9, EPS, groups=2, repeat=3),
    Split(2, 3, 2, 2, 9, EPS),
    Cols(2, 9, 6, 3, EPS),
]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
TWINS = pytest.mark.parametrize("twin", ["sequential", "parallel"])
MODULES = {Rows: rows, Split: split, Cols: cols}
ALL = (True, True, True)


def kernel(view, twin="sequential"):
    return getattr(MODULES[type(view)], twin)


@dataclass
class Expected:
    y: Any
    mean: Any
    variance: Any
    rstd: Any
    dx: Any
    dweight: Any
    dbias: Any
    largest_dx: float  # of the terms of dx, before they cancel
    largest_dweight: float


def expected(view, x, weight, bias, cotangent, running=None):
    """The formulas, in float64, on the axes of the view."""
    if isinstance(view, Rows):
        channels = view.length // view.repeat
        shape, axes = (-1, view.groups, channels, view.repeat), (2, 3)
        affine, sums = (1, view.groups, channels, 1), (0, 3)
    elif isinstance(view, Split):
        shape, axes, affine, sums = view.shape, (1, 3, 4), (1, 1, view.S, view.K, 1), (0, 1, 4)
    else:
        groups = view.M // view.B
        shape, axes, affine, sums = (view.Z, view.A, groups, view.B), (1, 3), (1, 1, groups, view.B), (0, 1)
    x = np.asarray(x, np.float64).reshape(shape)
    cotangent = np.asarray(cotangent, np.float64).reshape(shape)
    weight = np.ones(affine) if weight is None else np.asarray(weight, np.float64).reshape(affine)
    bias = np.zeros(affine) if bias is None else np.asarray(bias, np.float64).reshape(affine)

    def average(values):
        return values.mean(axis=axes, keepdims=True)

    centred = running is None and not (isinstance(view, Rows) and not view.centred)
    with np.errstate(all="ignore"):
        if running is None:
            mean = average(x) if centred else np.zeros_like(average(x))
            variance = average((x - mean) ** 2)
        else:
            mean, variance = (np.asarray(value, np.float64).reshape(affine) for value in running)
        rstd = 1 / np.sqrt(variance + view.eps)
        normalized = (x - mean) * rstd
        g = cotangent * weight
        direct, variance_path, mean_path = rstd * g, 0.0, 0.0
        if running is None:
            variance_path = rstd * normalized * average(g * normalized)
        if centred:
            mean_path = rstd * average(g)
        return Expected(
            y=normalized * weight + bias,
            mean=mean.ravel(),
            variance=variance.ravel(),
            rstd=rstd.ravel(),
            dx=direct - mean_path - variance_path,
            dweight=(cotangent * normalized).sum(axis=sums).ravel(),
            dbias=cotangent.sum(axis=sums).ravel(),
            largest_dx=np.abs(direct).max(initial=0),
            largest_dweight=np.abs(cotangent * normalized).max(initial=0),
        )


def draw(view, dtype, seed=0, scale=1.0, offset=0.0):
    """x, weight, bias and cotangent; x in the shape of the view."""
    rng = np.random.default_rng(seed)
    size = view.channels
    x = (rng.standard_normal(view.shape) * scale + offset).astype(dtype)
    return x, *(rng.standard_normal(shape).astype(dtype) for shape in (size, size, view.shape))


def assert_close(got, want, dtype, largest=0.0):
    """Equal within some roundings of the largest value."""
    want = np.asarray(want).reshape(got.shape)
    largest = max(largest, np.abs(want).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=32 * np.finfo(dtype).eps * largest)


def assert_matches(view, target, arrays, cotangent, dtype, running=None):
    x, weight, bias = arrays[:3]
    want = expected(view, x, weight, bias, cotangent, running)
    y, aux = target.forward(view, *arrays)
    dx, dweight, dbias = target.vjp(view, ALL, cotangent, (x, weight, None, *arrays[3:]), aux)
    assert y.shape == dx.shape == x.shape
    assert y.dtype == dx.dtype == dweight.dtype == dbias.dtype == dtype
    assert all(statistic.dtype == np.float64 and statistic.shape == want.mean.shape for statistic in aux)
    for got, wanted in zip(aux, (want.mean, want.variance, want.rstd), strict=True):
        assert_close(got, wanted, dtype, np.abs(x).max())
    assert_close(dx, want.dx, dtype, want.largest_dx)
    assert_close(dweight, want.dweight, dtype, want.largest_dweight)
    for got, wanted in [(y, want.y), (dbias, want.dbias)]:
        assert_close(got, wanted, dtype)


def bits(arrays):
    return [None if array is None else (array.dtype, array.shape, array.tobytes()) for array in arrays]


@DTYPES
@TWINS
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_training_matches_the_formulas(view, twin, dtype):
    x, weight, bias, cotangent = draw(view, dtype)
    assert_matches(view, kernel(view, twin), (x, weight, bias), cotangent, dtype)


@DTYPES
@TWINS
@pytest.mark.parametrize("view", RUNNING_VIEWS, ids=str)
def test_inference_matches_the_formulas(view, twin, dtype):
    x, weight, bias, cotangent = draw(view, dtype)
    rng = np.random.default_rng(1)
    running = (
        rng.standard_normal(view.channels).astype(dtype),
        rng.uniform(0.5, 2, view.channels).astype(dtype),
    )
    target = kernel(view, f"{twin}_inference")
    assert_matches(view, target, (x, weight, bias, *running), cotangent, dtype, running=running)


@DTYPES
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_absent_weight_and_bias_are_one_and_zero(view, dtype):
    x, weight, bias, cotangent = draw(view, dtype)
    one, zero = np.ones_like(weight), np.zeros_like(bias)
    target = kernel(view)
    for given, full in [
        ((None, None), (one, zero)),
        ((weight, None), (weight, zero)),
        ((None, bias), (one, bias)),
    ]:
        y, aux = target.forward(view, x, *given)
        full_y, full_aux = target.forward(view, x, *full)
        assert bits([y, *aux]) == bits([full_y, *full_aux])
        got = target.vjp(view, (True, False, False), cotangent, (x, *given), aux)
        want = target.vjp(view, (True, False, False), cotangent, (x, *full), aux)
        assert bits(got) == bits(want)


@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("twin", ["sequential", "parallel"])
def test_only_the_gradients_that_are_needed(view, twin):
    x, weight, bias, cotangent = draw(view, np.float32)
    target = kernel(view, twin)
    aux = target.forward(view, x, weight, bias)[1]
    every = target.vjp(view, ALL, cotangent, (x, weight, bias), aux)
    for needs in np.ndindex(2, 2, 2):
        got = target.vjp(view, tuple(map(bool, needs)), cotangent, (x, weight, None), aux)
        for gradient, needed, want in zip(got, needs, every, strict=True):
            if needed:
                assert_close(gradient, want, np.float32)
            else:
                assert gradient is None


@pytest.mark.parametrize("view", [Split(1, 3, 4, 1, 5, EPS), Cols(1, 9, 4, 1, EPS)], ids=str)
def test_inference_gives_only_the_gradients_that_are_needed(view):
    x, weight, bias, cotangent = draw(view, np.float32)
    running = np.zeros(4, np.float32), np.ones(4, np.float32)
    target = kernel(view, "sequential_inference")
    aux = target.forward(view, x, weight, bias, *running)[1]
    arrays = (x, weight, bias, *running)
    every = target.vjp(view, (*ALL, False, False), cotangent, arrays, aux)
    for needs in np.ndindex(2, 2, 2):
        got = target.vjp(view, (*map(bool, needs), False, False), cotangent, arrays, aux)
        assert bits(got) == bits(
            [want if needed else None for want, needed in zip(every, needs, strict=True)]
        )


@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_gradients_of_weight_and_bias_have_the_shape_of_weight(view):
    x, weight, bias, cotangent = draw(view, np.float32)
    shape = (3, -1) if isinstance(view, Rows) else (2, -1)
    weight, bias = weight.reshape(shape), bias.reshape(shape)
    target = kernel(view)
    aux = target.forward(view, x, weight, bias)[1]
    for arrays in [(x, weight, None), (x, None, bias)]:
        _, dweight, dbias = target.vjp(view, ALL, cotangent, arrays, aux)
        assert dweight.shape == dbias.shape == weight.shape


@DTYPES
@pytest.mark.parametrize(
    "view",
    [
        Rows(3, 4096, EPS),
        Rows(50, 130, EPS),
        Split(1, 8, 3, 1, 900, EPS),
        Split(2, 1, 3, 2, 400, EPS),
        Cols(1, 4096, 3, 1, EPS),
        Cols(2, 300, 6, 2, EPS),
    ],
    ids=str,
)
def test_statistics_and_output_of_values_far_from_zero(view, dtype):
    x, weight, bias, cotangent = draw(view, dtype, offset=1e4)
    want = expected(view, x, weight, bias, cotangent)
    y, (mean, variance, rstd) = kernel(view).forward(view, x, weight, bias)
    u = np.finfo(dtype).eps
    # In units of the standard deviation: a float32 mean would be off by 5e-4, E[x²] - E[x]² by more than 1.
    np.testing.assert_allclose(mean, want.mean, rtol=0, atol=max(u, 1e-10))
    np.testing.assert_allclose(variance, want.variance, rtol=max(8 * u, 1e-11))
    np.testing.assert_allclose(rstd, want.rstd, rtol=max(8 * u, 1e-11))
    assert_close(y, want.y, dtype, 0 if dtype == np.float32 else 1e4)


@DTYPES
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-4, 1e-3, 0.1, -1e4 / 3])
def test_a_constant_has_no_variance(view, dtype, value):
    x, weight, bias, cotangent = draw(view, dtype)
    x[...] = value
    y, (mean, variance, _) = kernel(view).forward(view, x, weight, bias)
    if getattr(view, "centred", True):
        assert np.all(mean == x.flat[0]) and np.all(variance == 0)
        assert_close(y - expected(view, x * 0, weight, bias, cotangent).y.reshape(y.shape), 0 * y, dtype)
        assert not kernel(view).forward(view, x, None, None)[0].any()  # not even the rounding of the mean


@pytest.mark.parametrize(
    "view",
    [Rows(9, 1027, 0.1, centred=False), Rows(9, 3001, 0.1, centred=False), *RUNNING_VIEWS],
    ids=str,
)
@TWINS
def test_a_factor_costs_no_rounding(view, twin):
    """A float32 product of x and rstd, found in float64, is rounded once: rstd itself is not."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=view.shape).astype(np.float32)
    if isinstance(view, Rows):
        y, (_mean, _variance, rstd) = kernel(view, twin).forward(view, x, None, None)
        exact = x * rstd[:, None]
    else:
        running = np.zeros(view.channels), rng.uniform(0.5, 2, view.channels)
        y, (_mean, _variance, rstd) = kernel(view, f"{twin}_inference").forward(view, x, None, None, *running)
        exact = x * rstd.reshape(1, 1, view.S, 1, 1) if isinstance(view, Split) else x * rstd
    assert (np.abs(y - exact) <= 0.501 * np.spacing(np.abs(y))).all()


@TWINS
@DTYPES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_nan_and_infinity_stay_in_their_statistic(view, bad, first, dtype, twin):
    x, weight, bias, cotangent = draw(view, dtype)
    x.flat[0 if first else x.size // 2 + 1] = bad
    want = expected(view, x, weight, bias, cotangent)
    target = kernel(view, twin)
    y, aux = target.forward(view, x, weight, bias)
    dx, dweight, dbias = target.vjp(view, ALL, cotangent, (x, weight, None), aux)
    np.testing.assert_array_equal(np.isfinite(aux[0]), np.isfinite(want.mean))
    assert np.array_equal(aux[0][~np.isfinite(aux[0])], want.mean[~np.isfinite(want.mean)], equal_nan=True)
    for got, wanted in [
        (aux[1], want.variance),
        (aux[2], want.rstd),
        (y, want.y),
        (dx, want.dx),
        (dweight, want.dweight),
        (dbias, want.dbias),
    ]:
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted.reshape(got.shape)))
    finite = np.isfinite(want.y.reshape(y.shape))
    assert 0 < finite.sum() < finite.size
    np.testing.assert_allclose(y[finite], want.y.reshape(y.shape)[finite], rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", [Split(1, 3, 4, 1, 5, EPS), Cols(1, 9, 4, 1, EPS)], ids=str)
def test_inference_keeps_nan_and_infinity_to_their_element(view):
    x, weight, bias, cotangent = draw(view, np.float32)
    x.flat[[0, 7]] = np.nan, np.inf
    running = np.zeros(4), np.ones(4)
    target = kernel(view, "sequential_inference")
    y, aux = target.forward(view, x, weight, bias, *running)
    dx = target.vjp(view, ALL, cotangent, (x, weight, bias, *running), aux)[0]
    assert np.isnan(y.flat[0]) and np.isinf(y.flat[7]) and np.isfinite(y).sum() == y.size - 2
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_eps_zero(view):
    view = replace(view, eps=0.0)
    x, weight, bias, cotangent = draw(view, np.float64)
    assert_matches(view, kernel(view), (x, weight, bias), cotangent, np.float64)
    y, (_, _, rstd) = kernel(view).forward(view, np.zeros_like(x), weight, bias)
    assert np.isinf(rstd).all() and np.isnan(y).all()


@TWINS
@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-30, 1e-22, 1e19, 1e30, 1e37])
@pytest.mark.parametrize("eps", [0.0, EPS])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("view", [*ONE_OF_EACH, Split(1, 3, 4, 1, 5, EPS), Cols(1, 9, 4, 1, EPS)], ids=str)
def test_float32_values_whose_squares_are_out_of_range(view, training, eps, scale, twin):
    """The statistics, what is made of them, and a result too large for float32, which is infinite."""
    if not training and (isinstance(view, Rows) or view.Z > 1):
        return
    view = replace(view, eps=eps)
    x, weight, bias, cotangent = draw(view, np.float64)
    x = (x * scale).astype(np.float32)
    weight, bias, cotangent = (array.astype(np.float32) for array in (weight, bias, cotangent))
    running = None if training else (np.full(4, scale / 3), np.full(4, scale * scale))
    arrays = (x, weight, bias, *(running or ()))
    target = kernel(view, twin if training else f"{twin}_inference")
    y, aux = target.forward(view, *arrays)
    dx, dweight, dbias = target.vjp(view, ALL, cotangent, arrays, aux)
    want = expected(view, x, weight, bias, cotangent, running)
    for got, wanted in zip(aux[1:], (want.variance, want.rstd), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    # Below the normal numbers float32 has fewer digits; the terms of dx may cancel.
    tiny = np.finfo(np.float32).smallest_subnormal
    for got, wanted in [(y, want.y), (dx, want.dx), (dweight, want.dweight), (dbias, want.dbias)]:
        wanted = wanted.reshape(got.shape)
        held = np.abs(wanted) < 3e38
        atol = 4e-6 * np.abs(wanted).max() + 64 * tiny
        np.testing.assert_allclose(got[held], wanted[held], rtol=0, atol=atol)
        assert np.isinf(got[np.abs(wanted) > 4e38]).all()


@TWINS
@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize(
    ("view", "place"),
    [(Rows(9, 9, 0.0), np.s_[5:7]), (Split(2, 3, 40, 2, 9, 0.0), np.s_[:, :, 25:27])],
    ids=["rows", "split"],
)
def test_statistics_out_of_range_among_others(view, place, scale, twin):
    """Those that go through a pass together are not all done in one dtype."""
    x, weight, bias, cotangent = draw(view, np.float32)
    factor = np.ones(view.shape)
    factor[place] = scale
    x = (x * factor).astype(np.float32)
    target = kernel(view, twin)
    y, aux = target.forward(view, x, weight, bias)
    dx, dweight, dbias = target.vjp(view, ALL, cotangent, (x, weight, bias), aux)
    want = expected(view, x, weight, bias, cotangent)
    scaled = factor.reshape(want.dx.shape)
    pairs = [(y, want.y), (dx * factor, want.dx * scaled), (dweight, want.dweight), (dbias, want.dbias)]
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=0, atol=4e-6 * np.abs(wanted).max())


@TWINS
@pytest.mark.parametrize(
    "view",
    [
        Rows(2800, 9, 0.0, groups=40, repeat=9),
        Split(10, 1, 40, 1, 9, 0.0),
        Cols(70, 49, 96, 1, 0.0),
        Cols(70, 49, 96, 4, 0.0),
    ],
    ids=str,
)
def test_a_sample_does_not_change_the_bits_of_others(view, twin):
    """One that needs float64 leaves the others as they are, in its batch and in those behind it."""
    x, weight, bias, cotangent = draw(view, np.float32)
    changed = x.copy()
    changed[3] *= np.float32(1e-33)
    target = kernel(view, twin)
    results = []
    for given in (x, changed):
        y, aux = target.forward(view, given, weight, bias)
        dx = target.vjp(view, ALL, cotangent, (given, weight, bias), aux)[0]
        results.append((np.delete(y, 3, axis=0), np.delete(dx, 3, axis=0)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@TWINS
@pytest.mark.parametrize("view", [Cols(1, 70, 40, 1, EPS), Cols(1, 1700, 40, 1, EPS)], ids=str)
def test_a_dead_channel_is_no_reason_for_float64(view, twin):
    """It leaves the bits of its neighbours' statistics as they are."""
    x, weight, bias, _ = draw(view, np.float32)
    results = []
    for _ in range(2):
        _, aux = kernel(view, twin).forward(view, x, weight, bias)
        results.append(np.delete(aux[:2], 3, axis=1))
        x[..., 3] = 0.1
    np.testing.assert_array_equal(*results)


@TWINS
@pytest.mark.parametrize(("scale", "cotangents"), [(1e15, 1e30), (1e-30, 1e-20)])
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_cotangents_whose_products_are_out_of_range(view, scale, cotangents, twin):
    view = replace(view, eps=0.0)
    x, weight, bias, cotangent = draw(view, np.float32)
    x, cotangent = x * np.float32(scale), cotangent * np.float32(cotangents)
    assert_matches(view, kernel(view, twin), (x, weight, bias), cotangent, np.float32)


@TWINS
@DTYPES
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_an_infinite_cotangent_makes_no_more_nan_than_the_formula(view, dtype, twin):
    x, weight, bias, cotangent = draw(view, dtype)
    cotangent.flat[1] = np.inf
    target = kernel(view, twin)
    _, aux = target.forward(view, x, weight, bias)
    dx = target.vjp(view, ALL, cotangent, (x, weight, bias), aux)[0]
    assert np.isinf(dx).any()


@TWINS
@pytest.mark.parametrize(
    "view", [Rows(3, 4, 1e-30), Split(1, 2, 3, 1, 2, 1e-30), Cols(1, 4, 3, 1, 1e-30)], ids=str
)
def test_a_shift_that_overflows_is_found_in_float64(view, twin):
    """The mean of the cotangent times rstd is out of range, but it cancels."""
    x = np.where(np.indices(view.shape).sum(axis=0) % 2, 1e-12, -1e-12).astype(np.float32)
    cotangent = np.full(view.shape, 1e29, np.float32)
    target = kernel(view, twin)
    _, aux = target.forward(view, x, None, None)
    assert np.isfinite(target.vjp(view, ALL, cotangent, (x, None, None), aux)[0]).all()


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    result = memory[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    assert not result.flags.aligned
    return result


def read_only(array):
    result = array.copy()
    result.flags.writeable = False
    return result


LAYOUTS = {
    "transposed": lambda array: np.asfortranarray(array),
    "reversed": lambda array: array[..., ::-1].copy()[..., ::-1],
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "unaligned": unaligned,
    "read-only": read_only,
}


@DTYPES
@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_bit(view, layout, dtype):
    arrays = draw(view, dtype)
    target = kernel(view)

    def run(x, weight, bias, cotangent):
        y, aux = target.forward(view, x, weight, bias)
        return bits([y, *aux, *target.vjp(view, ALL, cotangent, (x, weight, bias), aux)])

    assert run(*map(LAYOUTS[layout], arrays)) == run(*arrays)


@pytest.mark.parametrize("view", ONE_OF_EACH, ids=str)
def test_broadcast_input_and_cotangent(view):
    x, weight, bias, cotangent = draw(view, np.float64)
    x = np.broadcast_to(x[:1, ...], x.shape)
    cotangent = np.broadcast_to(cotangent[..., :1], cotangent.shape)
    assert_matches(view, kernel(view), (x, weight, bias), cotangent, np.float64)
    one = np.broadcast_to(np.float64(1), x.shape)
    assert_matches(view, kernel(view), (x, weight, bias), one, np.float64)


@TWINS
@pytest.mark.parametrize("view", [*ONE_OF_EACH, Split(1, 3, 4, 1, 5, EPS), Cols(1, 9, 4, 1, EPS)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_arguments_are_neither_modified_nor_returned(view, training, twin):
    x, weight, bias, cotangent = draw(view, np.float64)
    arrays = [x, weight, bias]
    if not training:
        if view not in (Split(1, 3, 4, 1, 5, EPS), Cols(1, 9, 4, 1, EPS)):
            return
        arrays += [np.zeros(4), np.ones(4)]
    target = kernel(view, twin if training else f"{twin}_inference")
    before = bits([*arrays, cotangent])
    y, aux = target.forward(view, *arrays)
    stored = bits(aux)
    results = [y, *aux, *target.vjp(view, ALL, cotangent, tuple(arrays), aux)]
    assert bits([*arrays, cotangent]) == before
    assert bits(aux) == stored
    for i, result in enumerate(results):
        assert not any(np.shares_memory(result, other) for other in [*arrays, cotangent, *results[:i]])


@TWINS
@pytest.mark.parametrize(
    "view",
    [
        Rows(0, 4, EPS),
        Rows(3, 0, EPS),
        Rows(3, 0, EPS, centred=False),
        Rows(0, 0, EPS),
        Split(1, 0, 3, 1, 5, EPS),
        Split(0, 1, 3, 2, 5, EPS),
        Split(2, 1, 3, 2, 0, EPS),
        Split(2, 1, 0, 2, 4, EPS),
        Cols(1, 0, 4, 1, EPS),
        Cols(0, 3, 4, 2, EPS),
        Cols(2, 3, 0, 1, EPS),
    ],
    ids=str,
)
def test_empty_inputs(view, twin):
    x, weight, bias, cotangent = draw(view, np.float32)
    target = kernel(view, twin)
    y, aux = target.forward(view, x, weight, bias)
    dx, dweight, dbias = target.vjp(view, ALL, cotangent, (x, weight, bias), aux)
    assert y.shape == dx.shape == x.shape
    assert all(statistic.shape == (view.statistics,) and np.isnan(statistic).all() for statistic in aux)
    assert np.array_equal(dweight, np.zeros_like(weight)) and np.array_equal(dbias, np.zeros_like(bias))
    assert dweight.dtype == dbias.dtype == np.float32


@pytest.mark.parametrize("view", [Split(1, 0, 3, 1, 5, EPS), Cols(1, 0, 3, 1, EPS)], ids=str)
def test_empty_inputs_of_inference(view):
    x, weight, bias, cotangent = draw(view, np.float32)
    target = kernel(view, "sequential_inference")
    y, aux = target.forward(view, x, weight, bias, np.ones(3, np.float32), np.full(3, 4 - EPS))
    dx, dweight, _ = target.vjp(view, ALL, cotangent, (x, weight, bias), aux)
    assert y.shape == dx.shape == x.shape and not dweight.any()
    np.testing.assert_allclose(aux[:2], [[1] * 3, [4] * 3], rtol=1e-5)


@TWINS
def test_sums_of_short_runs_of_channels_are_kept_by_channel(twin):
    """And not by the values of a sample, of which each task would have as many more."""
    view = Rows(17 * 512, 48, EPS, groups=512, repeat=24)
    x, weight, bias, cotangent = draw(view, np.float32)
    target = kernel(view, twin)
    _, aux = target.forward(view, x, weight, bias)
    given = (view, (False, True, True), cotangent, (x, weight, bias), aux)
    target.vjp(*given)
    tracemalloc.start()
    target.vjp(*given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 32


def test_other_dtypes_are_refused():
    x = np.zeros((2, 3), np.float16)
    with pytest.raises(
        TypeError, match="forward: dtype is float16, but the CPU kernels are made for float32"
    ):
        rows.sequential.forward(Rows(2, 3, EPS), x, None, None)
