"""The kernels of the view Split in the simulator: against their formulas in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tinygrad_bn.kernels.views import Split

split = pytest.importorskip("tinygrad_bn.kernels.cuda.split", exc_type=ImportError)
compat = pytest.importorskip("tinygrad_bn.kernels.cuda.compat")
if not compat.SIMULATED:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1 before numba is loaded", allow_module_level=True)
cuda, thread_order = compat.cuda, compat.simulator.thread_order

EPS = 1e-5
SMALL = [
    Split(1, 4, 3, 1, 5, EPS),
    Split(2, 1, 3, 2, 5, EPS),
    Split(2, 3, 2, 4, 6, EPS),
    Split(1, 1, 1, 1, 1, EPS),
    Split(1, 9, 5, 1, 1, EPS),
    Split(2, 1, 1, 6, 8, EPS),  # vectors for every dtype
    Split(3, 1, 4, 1, 16, EPS),
    Split(1, 5, 2, 1, 4, EPS),
    Split(1, 1, 1, 4, 33, EPS),  # vectors for the moments alone
]
LARGE = [
    Split(1, 3, 2, 1, 700, EPS),  # runs that end within a tile
    Split(1, 3, 1, 1, 801, EPS),  # two tiles, no vectors
    Split(1, 1, 1, 2, 2056, EPS),  # two tiles of vectors for each of two channels
]
BATCH = [view for view in SMALL if view.Z == view.K == 1]
EMPTY = [
    Split(1, 0, 3, 1, 5, EPS),
    Split(0, 1, 3, 2, 5, EPS),
    Split(2, 1, 3, 2, 0, EPS),
    Split(1, 4, 0, 1, 5, EPS),
]
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ALL = (True, True, True)


def view_id(view):
    return "x".join(map(str, view.shape))


def views(*which):
    return pytest.mark.parametrize("view", which, ids=view_id)


DTYPES = pytest.mark.parametrize("dtype", list(UNIT))


def rounded(values, dtype):
    """The values as kernels see them: bfloat16 as the upper half of float32, to the nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def exact(array):
    """What was stored, in float64."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


class Call(NamedTuple):
    """The arguments of a call, as kernels see them."""

    x: Any
    weight: Any
    bias: Any
    cotangent: Any
    running: Any


def a_call(view, dtype, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, 1.0, view.shape)
    weight, bias = rng.normal(1.0, 0.5, view.channels), rng.normal(size=view.channels)
    values = (rounded(a, dtype) for a in (x, weight, bias, rng.normal(size=view.shape)))
    running = (rng.normal(mean, 0.1, view.statistics), rng.uniform(0.5, 2, view.statistics))
    return Call(*values, running)


class Results(NamedTuple):
    y: Any
    mean: Any
    variance: Any
    dx: Any
    dweight: Any
    dbias: Any


def expected(view, call, training=True):
    """The formulas in float64, and for each result the size that its error is measured by."""
    axes, shape = (1, 3, 4), (1, 1, view.S, view.K, 1)
    x, cotangent = exact(call.x).reshape(view.shape), exact(call.cotangent).reshape(view.shape)
    weight = 1.0 if call.weight is None else exact(call.weight).reshape(shape)
    bias = 0.0 if call.bias is None else exact(call.bias).reshape(shape)

    def average(values):
        return values.mean(axis=axes, keepdims=True)

    with np.errstate(all="ignore"):
        if training:
            mean = average(x)
            variance = average((x - mean) ** 2)
        else:
            mean, variance = (value.reshape(view.Z, 1, view.S, 1, 1) for value in call.running)
        rstd = 1 / np.sqrt(variance + view.eps)
        normalized = (x - mean) * rstd
        g = cotangent * weight
        dx = rstd * (g - average(g) - normalized * average(g * normalized)) if training else rstd * g
    results = Results(
        y=normalized * weight + bias,
        mean=mean.ravel(),
        variance=variance.ravel(),
        dx=dx,
        dweight=(cotangent * normalized).sum(axis=(0, 1, 4)).ravel(),
        dbias=cotangent.sum(axis=(0, 1, 4)).ravel(),
    )
    scale = Results(
        y=np.abs(normalized * weight) + np.abs(bias) + 1,
        mean=np.abs(results.mean),
        variance=results.variance,
        dx=np.broadcast_to(4 * np.abs(rstd * g).max(initial=0), dx.shape),
        dweight=np.abs(cotangent * normalized).sum(axis=(0, 1, 4)).ravel() + 1,
        dbias=np.abs(cotangent).sum(axis=(0, 1, 4)).ravel(),
    )
    return results, scale


def kernel(training):
    return split.streaming if training else split.streaming_inference


def run(view, call, training=True, needs=ALL):
    running = () if training else call.running
    arrays = (call.x, call.weight, call.bias, *running)
    y, aux = kernel(training).forward(view, *arrays)
    assert y.shape == call.x.shape and y.dtype == call.x.dtype
    return Results(y, *aux[:2], *kernel(training).vjp(view, needs, call.cotangent, arrays, aux))


def assert_close(view, dtype, found, call, training=True):
    """Within some units of rounding, of arithmetic in the sums and of storage in what is stored."""
    wanted, scale = expected(view, call, training)
    factor = 16 if dtype == "float64" else 4  # for float64 the formulas are no more exact than the kernel
    arithmetic = UNIT["float64" if dtype == "float64" else "float32"]
    for name in Results._fields:
        value = getattr(found, name)
        unit = arithmetic if name in ("mean", "variance") else max(UNIT[dtype], arithmetic)
        error = np.abs(exact(value).reshape(getattr(wanted, name).shape) - getattr(wanted, name))
        allowed = (factor * arithmetic + unit) * getattr(scale, name)
        assert (error <= allowed).all(), f"{name}: {np.max(error / allowed):.2g} times the error allowed"


def assert_same_bits(one, other):
    for name in Results._fields:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


@views(*SMALL)
@DTYPES
def test_training(view, dtype):
    call = a_call(view, dtype)
    found = run(view, call)
    assert_close(view, dtype, found, call)
    with thread_order("backward"):
        assert_same_bits(found, run(view, call))


@views(*LARGE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_training_in_blocks(view, dtype):
    call = a_call(view, dtype)
    found = run(view, call)
    assert_close(view, dtype, found, call)
    with thread_order("backward"):
        assert_same_bits(found, run(view, call))


@views(*BATCH)
@DTYPES
def test_inference(view, dtype):
    call = a_call(view, dtype)
    found = run(view, call, training=False)
    assert_close(view, dtype, found, call, training=False)
    with thread_order("backward"):
        assert_same_bits(found, run(view, call, training=False))


@views(Split(1, 7, 3, 1, 20, EPS), Split(2, 1, 2, 3, 140, EPS), Split(2, 2, 1, 2, 75, EPS))
def test_many_tiles_of_one_channel(view, monkeypatch):
    monkeypatch.setattr(split, "MOST_SHORT", 0)
    monkeypatch.setattr(split, "BLOCK", 32)
    monkeypatch.setattr(split, "REGISTERS", 16)
    split.cut.cache_clear()
    call = a_call(view, "float32")
    assert split.cut_channels(view, call.x).tiles > 1
    found = run(view, call)
    split.cut.cache_clear()
    assert_close(view, "float32", found, call)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_only_what_is_needed_is_made_and_it_is_the_same(training, weighted, biased):
    view = Split(1, 3, 2, 1, 7, EPS) if not training else Split(2, 2, 2, 3, 7, EPS)
    call = a_call(view, "float32")
    call = call._replace(weight=call.weight if weighted else None, bias=call.bias if biased else None)
    whole = run(view, call, training)
    assert_close(view, "float32", whole, call, training)
    for number in range(8):
        needs = tuple(bool(number >> i & 1) for i in range(3))
        found = run(view, call, training, needs)
        for need, name in zip(needs, ("dx", "dweight", "dbias"), strict=True):
            if need:
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
            else:
                assert getattr(found, name) is None


def test_gradients_have_the_shape_of_the_weight():
    view = Split(1, 3, 4, 1, 5, EPS)
    call = a_call(view, "float32")
    call = call._replace(weight=call.weight.reshape(2, 2), bias=call.bias.reshape(2, 2))
    found = run(view, call)
    assert found.dweight.shape == found.dbias.shape == (2, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_that_vectors_cannot_read(dtype):
    view = Split(2, 2, 2, 1, 16, EPS)
    call = a_call(view, dtype)
    plain = run(view, call)

    def shifted(array):
        """The same values, beginning one value after where a vector may."""
        memory = np.empty(array.size + 16 // array.itemsize + 1, array.dtype)
        first = (-memory.ctypes.data % 16) // array.itemsize + 1
        memory[first : first + array.size] = array.ravel()
        return memory[first : first + array.size].reshape(array.shape)

    def turned(array):
        """The same values, last axis first in memory."""
        return np.ascontiguousarray(array.T).T

    def spaced(array):
        """The same values, each followed by another."""
        return np.repeat(array, 2, axis=-1)[..., ::2]

    assert split.cut_channels(view, call.x).tile.width > 1
    assert split.cut_channels(view, shifted(call.x)).tile.width == 1
    for change in (shifted, turned, spaced):
        found = run(view, call._replace(x=change(call.x), weight=change(call.weight)))
        assert_close(view, dtype, found, call)
        found = run(view, call._replace(cotangent=change(call.cotangent)))
        assert_close(view, dtype, found, call)
        if change is not shifted:
            assert_same_bits(plain, found)


@views(*EMPTY)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_nothing(view, training):
    call = a_call(view, "float32")
    found = run(view, call, training)
    assert found.y.shape == found.dx.shape == view.shape
    if training:
        assert np.isnan(found.mean).all() and np.isnan(found.variance).all()
    assert found.mean.size == found.variance.size == view.statistics
    np.testing.assert_array_equal(found.dweight, np.zeros(view.channels))
    np.testing.assert_array_equal(found.dbias, np.zeros(view.channels))


@views(Split(1, 4, 1, 1, 1500, EPS), Split(1, 3, 1, 1, 1001, EPS), Split(1, 1, 2, 2, 6, EPS))
def test_a_large_mean_costs_no_accuracy(view):
    """Values near 10⁴ with a deviation of 1, where float32 has three digits after the point."""
    call = a_call(view, "float32", mean=1e4)
    found = run(view, call)
    assert_close(view, "float32", found, call)


def test_a_first_value_far_from_the_others_costs_no_accuracy():
    view = Split(1, 2, 1, 1, 40, EPS)
    call = a_call(view, "float32", mean=0.0)
    call.x[0, 0, 0, 0, 0] = 1e4
    found = run(view, call)
    assert_close(view, "float32", found, call)


def test_equal_values_have_no_variance():
    view = Split(1, 3, 1, 1, 7, 0.0)
    call = a_call(view, "float32")
    call.x[...] = np.float32(0.1)
    found = run(view, call)
    np.testing.assert_array_equal(found.variance, 0)
    assert np.isnan(found.y).all()  # 0 / 0, as in the definition


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_statistic_alone(value):
    view = Split(2, 2, 3, 2, 5, EPS)
    call = a_call(view, "float32")
    plain = run(view, call)
    call.x[1, 1, 2, 0, 3] = value
    found = run(view, call)
    spoiled = np.zeros(view.shape, bool)
    spoiled[1, :, 2] = True
    for name in ("y", "dx"):
        assert np.isnan(getattr(found, name)[spoiled]).all(), name
        np.testing.assert_array_equal(getattr(found, name)[~spoiled], getattr(plain, name)[~spoiled])


@pytest.mark.parametrize(
    ("a", "c", "run"), [(1, 3, 2**33 + 5), (2**33, 7, 3), (3, 2**31 + 1, 40), (5, 2, 2**30 + 100)]
)
@pytest.mark.parametrize("wide", [1, 4])
def test_places_beyond_32_bits(a, c, run, wide):
    """What `locate` finds in arrays that are too large to make, in Python's integers."""
    whole = split.cut(np.dtype(np.float32), wide, 2, a, c, run * wide)
    tile, find = whole.tile, split.locate(whole.tile)
    per = tile.per
    pointer = compat.Pointer(np.dtype(np.int64))

    @compat.kernel(tile.threads, pointer, pointer, compat.INT, *split.NUMBERS)
    def probe(out, items, block, runs, channels, run, tiles, count, turn, step):
        at = cuda.local.array(per, np.int64)
        item, z, channel, _lane, left = find(at, block, runs, channels, run, tiles, count, turn, step)
        thread = cuda.threadIdx.x
        for k in range(per):
            out[thread * per + k] = at[k]
        items[4 * thread] = item
        items[4 * thread + 1] = z
        items[4 * thread + 2] = channel
        items[4 * thread + 3] = left

    for block in (0, 1, whole.blocks // 2, whole.blocks // 3, whole.blocks - 1):
        places = np.zeros((tile.threads, per), np.int64)
        items = np.zeros((tile.threads, 4), np.int64)
        probe(1, places, items, block, *whole.numbers)
        for thread in range(0, tile.threads, 37):
            item, z, channel, left = map(int, items[thread])
            if item >= 2 * whole.tiles * c:
                assert left == 0
                continue
            assert item == block * tile.in_block + thread // tile.lanes
            assert (item // c // whole.tiles, item % c) == (z, channel)
            first = item // c % whole.tiles * tile.vectors
            assert left == min(a * run - first, tile.vectors)
            for k in range(per):
                vector = first + k * tile.lanes + thread % tile.lanes
                if vector < first + left:
                    place = ((z * a + vector // run) * c + channel) * run + vector % run
                    assert places[thread, k] == place * wide
