"""The CUDA kernels of the family cols, in numba's simulator, against their definition in float64."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest

if not numba.config.ENABLE_CUDASIM:
    pytest.skip("CUDA kernels run in numba's simulator: NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from tinygrad_bn.kernels.cuda import cols
from tinygrad_bn.kernels.cuda.simulator import thread_order
from tinygrad_bn.kernels.views import Cols

pytestmark = pytest.mark.cuda_sim

EPS = 1e-5
BFLOAT16 = "uint16"  # as kernels see it
# Of a result, in units of the largest value it is made of: the last digit of the dtype, and of float32 in sums.
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 1.5e-3, BFLOAT16: 1.2e-2}

PLANS = {
    "one vector": Cols(1, 5, 4, 1, EPS),
    "no vectors": Cols(1, 5, 3, 1, EPS),
    "joined rows": Cols(2, 8, 3, 1, EPS),
    "one column": Cols(1, 16, 1, 1, EPS),
    "one value": Cols(1, 1, 1, 1, EPS),
    "samples": Cols(3, 7, 8, 1, EPS),
    "groups": Cols(2, 3, 24, 3, EPS),
    "one group": Cols(2, 3, 6, 6, EPS),
    "one row of groups": Cols(3, 1, 16, 8, EPS),
    "joined groups": Cols(2, 4, 6, 3, EPS),
    "short stretches": Cols(1, 16, 10, 5, EPS, repeat=5),
    "long stretches": Cols(1, 2, 99, 33, EPS, repeat=33),
}
LARGE = {
    "chunks of rows": Cols(2, 1100, 4, 1, EPS),
    "chunks of joined rows": Cols(1, 1400, 3, 1, EPS),
    "tiles of columns": Cols(1, 3, 132, 44, EPS),
    "tiles of single columns": Cols(1, 3, 129, 3, EPS, repeat=3),
}


def values(array):
    """What a result stands for, in float64."""
    if array.dtype == BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def in_storage(array, dtype):
    """The nearest values of a dtype."""
    if dtype == BFLOAT16:
        bits = array.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return array.astype(dtype)


def inputs(plan, dtype, mean=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x, cotangent = rng.normal(size=(2, *plan.shape))
    weight, bias = rng.normal(1, 0.5, size=(2, plan.channels))
    return [in_storage(array, dtype) for array in (x + mean, weight, bias, cotangent)]


def reference(plan, x, weight, bias, cotangent, running=None):
    """y, dx, dweight, dbias, mean and variance by the formulas, in float64."""
    grouped = (plan.Z, plan.A, plan.M // plan.B, plan.B)
    x, cotangent = values(x).reshape(grouped), values(cotangent).reshape(grouped)

    def along(parameter, absent):
        each = np.full(plan.channels, absent) if parameter is None else values(parameter)
        return each.repeat(plan.repeat).reshape(grouped[2:])

    def average(array):
        return array.mean(axis=(1, 3), keepdims=True)

    def of_channels(array):
        return array.sum(axis=(0, 1)).reshape(plan.channels, plan.repeat).sum(axis=1)

    if running is None:
        mean = average(x)
        variance = average((x - mean) ** 2)
    else:
        mean, variance = (values(each).reshape(1, 1, -1, 1) for each in running)
    rstd = 1 / np.sqrt(variance + plan.eps)
    normalized = (x - mean) * rstd
    y = normalized * along(weight, 1) + along(bias, 0)
    g = cotangent * along(weight, 1)
    dx = rstd * g
    if running is None:
        dx -= rstd * (average(g) + normalized * average(g * normalized))
    shape = plan.shape
    return (
        y.reshape(shape),
        dx.reshape(shape),
        of_channels(cotangent * normalized),
        of_channels(cotangent),
        mean.reshape(-1),
        variance.reshape(-1),
    )


def run(plan, x, weight, bias, cotangent, needs=(True, True, True), running=()):
    """y, dx, dweight, dbias, mean and variance by the kernel."""
    kernel = cols.streaming_inference if running else cols.streaming
    arrays = (x, weight, bias, *running)
    y, aux = kernel.forward(plan, *arrays)
    return y, *kernel.vjp(plan, needs, cotangent, arrays, aux), *aux[:2]


def assert_right(plan, given, results, dtype, running=None):
    wanted = reference(plan, *given, running)
    rows = plan.Z * plan.A * plan.repeat
    scales = [1, 1, rows**0.5, rows**0.5, 1, 1]
    for name, result, right, scale in zip(
        ("y", "dx", "dweight", "dbias", "mean", "variance"), results, wanted, scales, strict=True
    ):
        statistic = name in ("mean", "variance")
        tolerance = TOLERANCE["float32" if statistic and dtype != "float64" else dtype]
        bound = tolerance * scale * max(1, np.abs(right).max(initial=0))
        np.testing.assert_allclose(values(result), right, rtol=0, atol=bound, err_msg=name)


def assert_same_bits(results, others):
    for one, other in zip(results, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_definition(plan, dtype):
    given = inputs(plan, dtype)
    results = run(plan, *given)
    assert_right(plan, given, results, dtype)
    assert [result.dtype for result in results[:4]] == [dtype] * 4


@pytest.mark.parametrize("plan", LARGE.values(), ids=LARGE)
def test_several_blocks_in_any_order_and_again(plan):
    given = inputs(plan, "float32")
    assert cols.divided(plan, given[0]).blocks > 1
    results = run(plan, *given)
    assert_right(plan, given, results, "float32")
    with thread_order("backward"):
        assert_same_bits(results, run(plan, *given))
    assert_same_bits(results, run(plan, *given))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_chunks_of_other_dtypes(dtype):
    plan = Cols(1, 530, 8, 2, EPS)
    given = inputs(plan, dtype)
    assert_right(plan, given, run(plan, *given), dtype)


@pytest.mark.parametrize("plan", [PLANS["groups"], PLANS["joined rows"], PLANS["short stretches"]])
def test_absent_weight_and_bias(plan):
    x, weight, bias, cotangent = inputs(plan, "float32")
    for given in itertools.product((x,), (weight, None), (bias, None), (cotangent,)):
        assert_right(plan, given, run(plan, *given), "float32")


@pytest.mark.parametrize("running", [False, True])
def test_only_what_is_needed(running):
    plan = Cols(1, 6, 8, 1, EPS)
    given = inputs(plan, "float32")
    statistics = inputs(plan, "float32", seed=1)[1:3] if running else ()
    statistics = [np.abs(each) for each in statistics]
    everything = run(plan, *given, running=statistics)
    for needs in itertools.product((False, True), repeat=3):
        results = run(plan, *given, needs=needs, running=statistics)
        for need, result, right in zip(needs, results[1:4], everything[1:4], strict=True):
            assert result is None if not need else np.array_equal(result, right)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("plan", [PLANS["one vector"], PLANS["short stretches"]])
def test_inference(plan, dtype):
    given = inputs(plan, dtype)
    running = [in_storage(np.abs(values(each)), dtype) for each in inputs(plan, dtype, seed=1)[1:3]]
    results = run(plan, *given, running=running)
    assert_right(plan, given, results, dtype, running)


def test_inference_at_a_large_mean_that_float32_cannot_hold():
    plan = Cols(1, 6, 4, 1, EPS)
    given = inputs(plan, "float32", mean=1e4)
    running = (np.full(4, 1e4 + 1 / 3), np.ones(4))
    assert_right(plan, given, run(plan, *given, running=running), "float32", running)


@pytest.mark.parametrize("first", [None, 0.0])
def test_a_large_mean_costs_no_accuracy(first):
    """The deviation is 1, the distance of neighbouring float32 near the mean 1e-3."""
    plan = Cols(1, 2100, 4, 1, EPS)
    given = inputs(plan, "float32", mean=1e4)
    if first is not None:  # the kernel takes differences from a first value; this one is the worst there is
        given[0][:, 0] = first
    y, dx, dweight, dbias, mean, variance = run(plan, *given)
    right = reference(plan, *given)
    np.testing.assert_allclose(y, right[0], rtol=0, atol=5e-6 * np.abs(right[0]).max())
    np.testing.assert_allclose(dx, right[1], rtol=0, atol=5e-6 * np.abs(right[1]).max())
    np.testing.assert_allclose(dweight, right[2], rtol=0, atol=3e-4)
    np.testing.assert_allclose(mean, right[4], rtol=1e-7)
    np.testing.assert_allclose(variance, right[5], rtol=2e-6)


def test_an_address_where_no_vector_may_begin():
    plan = Cols(2, 5, 8, 2, EPS)
    given = inputs(plan, "float32")
    memory = np.empty(given[0].size + 1, np.float32)
    given[0] = memory[1:].reshape(plan.shape)
    given[0][...] = inputs(plan, "float32")[0]
    assert cols.divided(plan, given[0]).width == 1
    assert_right(plan, given, run(plan, *given), "float32")
    aligned = inputs(plan, "float32")
    aligned[3] = np.concatenate([[0], aligned[3].ravel()]).astype(np.float32)[1:].reshape(plan.shape)
    assert_right(plan, aligned, run(plan, *aligned), "float32")


def test_views_that_are_not_contiguous():
    plan = Cols(2, 5, 8, 2, EPS)
    x, weight, bias, cotangent = inputs(plan, "float32")
    wide, turned = np.zeros((2, 5, 16), np.float32), np.asfortranarray(cotangent)
    wide[..., ::2] = x
    ones = np.broadcast_to(np.float32(1), plan.shape)
    assert_same_bits(run(plan, x, weight, bias, cotangent), run(plan, wide[..., ::2], weight, bias, turned))
    given = (x, weight[::-1], bias[::-1], ones)
    assert_right(plan, given, run(plan, *given), "float32")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("running", [False, True])
def test_empty(shape, running):
    plan = Cols(*shape, 1, EPS)
    given = inputs(plan, "float32")
    statistics = (np.zeros(plan.channels, np.float32),) * 2 if running else ()
    y, dx, dweight, dbias, mean, variance = run(plan, *given, running=statistics)
    assert y.shape == dx.shape == shape
    np.testing.assert_array_equal([dweight, dbias], np.zeros((2, plan.channels)))
    if not running:
        assert mean.shape == variance.shape == (plan.statistics,)
        assert np.isnan([mean, variance]).all()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_statistic(odd):
    plan = Cols(1, 6, 8, 2, EPS)
    given = inputs(plan, "float32")
    given[0][0, 3, 2] = odd
    with np.errstate(invalid="ignore"):
        y, dx, *_ = run(plan, *given)
    inside = np.isin(np.arange(8), (2, 3))
    assert np.isnan(y[..., inside]).all()
    assert np.isnan(dx[..., inside]).all()
    assert np.isfinite(y[..., ~inside]).all()
    assert np.isfinite(dx[..., ~inside]).all()


def test_gradients_have_the_shape_of_weight_or_bias():
    plan = PLANS["groups"]
    x, weight, bias, cotangent = inputs(plan, "float32")
    for pair in ((weight.reshape(4, 6), None), (None, bias.reshape(4, 6))):
        _, _, dweight, dbias, *_ = run(plan, x, *pair, cotangent)
        assert dweight.shape == (24,) if pair[0] is None else (4, 6)
        assert dbias.shape == (24,) if pair[1] is None else (4, 6)


@pytest.mark.parametrize("channels", [1, 3, 24, 64, 96, 100, 132, 768, 1003])
def test_threads_have_work_whatever_the_width(channels):
    """Of long tensors, nine tenths of a block's threads or more."""
    plan = Cols(1, 96 * 1024, channels, 1, EPS)
    division = cols.divided(plan, np.empty(0, np.float32).reshape(0, channels))
    lanes = division.threads // division.columns
    used = lanes * division.columns / division.threads
    needed = division.length // division.width / (division.across * division.columns)
    assert used * needed >= 0.9
    assert division.rows * division.length == plan.A * plan.M
    assert (division.down - 1) * division.chunk < division.rows <= division.down * division.chunk
    assert division.chunk <= lanes * cols.MOST_ROWS


def test_few_wide_rows_are_many_blocks(monkeypatch):
    monkeypatch.setattr(cols, "processors", lambda: 132)
    short_stretches = Cols(1, 32, 512 * 49, 49, EPS, repeat=49)
    assert cols.divided(short_stretches, np.empty(0, np.float32)).blocks >= 132
    long_rows = Cols(1, 1 << 20, 64, 1, EPS)
    assert 4 * 132 <= cols.divided(long_rows, np.empty(0, np.float32)).blocks <= 8 * 132
