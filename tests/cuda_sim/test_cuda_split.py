"""The kernels of the view Split for statistics of any size, on a simulated device."""

import numpy as np
import pytest
from harness import STORAGES, Norm, check, check_layouts, check_needs, example, run

from tinygrad_bn.kernels.cuda import split
from tinygrad_bn.kernels.cuda.compat import INT, Pointer, cuda, kernel
from tinygrad_bn.kernels.cuda.split import streaming, streaming_inference
from tinygrad_bn.kernels.views import Split

SMALL = {
    "batch": Split(1, 4, 3, 1, 5, 1e-5),
    "batch, vectors": Split(1, 5, 2, 1, 8, 1e-5),
    "batch, one value in a run": Split(1, 9, 5, 1, 1, 1e-5),
    "one value": Split(1, 1, 1, 1, 1, 1e-5),
    "groups, odd": Split(2, 1, 3, 2, 5, 1e-5),
    "groups, vectors": Split(2, 1, 1, 6, 8, 1e-5),
    "groups, vectors for the moments alone": Split(1, 1, 1, 8, 9, 1e-5),
    "instance": Split(3, 1, 4, 1, 16, 1e-5),
    "all axes": Split(2, 3, 2, 4, 6, 1e-5),
    "no samples": Split(1, 0, 3, 1, 5, 1e-5),
    "no samples of groups": Split(0, 1, 3, 2, 5, 1e-5),
    "nothing along space": Split(2, 1, 3, 2, 0, 1e-5),
    "no channels": Split(1, 4, 0, 1, 5, 1e-5),
}
LARGE = {
    "runs that end within a tile": Split(1, 3, 2, 1, 700, 1e-5),
    "two tiles of single values": Split(1, 3, 1, 1, 801, 1e-5),
    "two tiles of vectors": Split(1, 1, 1, 2, 2056, 1e-5),
}
GIVEN = {name: view for name, view in SMALL.items() if view.Z == view.K == 1}


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", SMALL)
def test_training(name, dtype):
    view = SMALL[name]
    check(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", LARGE)
def test_training_in_blocks(name, dtype):
    view = LARGE[name]
    assert split.cut(np.dtype(dtype), 1, *view.shape[:3], view.L).tile.lanes == split.BLOCK
    check(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", GIVEN)
def test_inference(name, dtype):
    view = GIVEN[name]
    check(streaming_inference, view, Norm(view, running=True), example(view, running=True), dtype)


@pytest.mark.parametrize(
    "view", [Split(1, 7, 3, 1, 20, 1e-5), Split(2, 1, 2, 3, 140, 1e-5), Split(2, 2, 1, 2, 75, 1e-5)], ids=str
)
def test_many_tiles_of_a_channel(view, monkeypatch):
    monkeypatch.setattr(split, "MOST_SHORT", 0)
    monkeypatch.setattr(split, "BLOCK", 32)
    monkeypatch.setattr(split, "REGISTERS", 16)
    split.cut.cache_clear()
    inputs = example(view)
    assert split.cut_channels(view, np.dtype(np.float32)).tiles > 1
    check(streaming, view, Norm(view), inputs)
    split.cut.cache_clear()


CASES = pytest.mark.parametrize(
    ("kernel", "view", "running"),
    [
        (streaming, Split(1, 3, 2, 1, 16, 1e-5), False),
        (streaming, Split(2, 1, 2, 3, 8, 1e-5), False),
        (streaming_inference, Split(1, 3, 2, 1, 16, 1e-5), True),
    ],
    ids=["batch", "groups", "inference"],
)


@CASES
@pytest.mark.parametrize("absent", [(1,), (2,), (1, 2)], ids=["weight", "bias", "both"])
def test_absent_weight_and_bias(kernel, view, running, absent):
    inputs = [None if i in absent else array for i, array in enumerate(example(view, running=running))]
    check_needs(kernel, view, Norm(view, running), inputs)


@CASES
def test_every_choice_of_gradients(kernel, view, running):
    check_needs(kernel, view, Norm(view, running), example(view, running=running))


@CASES
@pytest.mark.parametrize("dtype", STORAGES)
def test_views_of_memory(kernel, view, running, dtype):
    check_layouts(kernel, view, Norm(view, running), example(view, running=running), dtype)


def test_gradients_have_the_shape_of_the_weight():
    view = Split(1, 3, 4, 1, 5, 1e-5)
    x, weight, bias = (array.astype(np.float32) for array in example(view))
    inputs = (x, weight.reshape(2, 2), bias.reshape(2, 2))
    _, _, (_, dweight, dbias) = run(streaming, view, inputs, x, (True, True, True))
    assert dweight.shape == dbias.shape == (2, 2)


@pytest.mark.parametrize(
    "view",
    [Split(1, 4, 1, 1, 1500, 1e-5), Split(1, 3, 1, 1, 1001, 1e-5), Split(1, 1, 2, 2, 6, 1e-5)],
    ids=str,
)
def test_a_large_mean_costs_no_accuracy(view):
    """Values near 10⁴ with a deviation of 1, of which float32 keeps three digits after the point."""
    check(streaming, view, Norm(view), example(view, mean=1e4), slack=4)


@pytest.mark.parametrize("first", [1e4, 1e15])
def test_a_value_far_from_the_others_costs_no_accuracy(first):
    view = Split(1, 2, 1, 1, 40, 1e-5)
    x, *affine = example(view, mean=0.0)
    x[0, 0, 0, 0, 0] = first
    check(streaming, view, Norm(view), (x, *affine))


def test_equal_values_have_no_variance():
    """Rounding may leave a little of one, but not make it negative, as it would that of the last value."""
    view = Split(1, 3, 4, 1, 39, 1e-5)
    values = np.array([1 / 3, 77.7, -1e4, -62.31941], np.float32).reshape(4, 1, 1)
    x = np.broadcast_to(values, view.shape).copy()
    y, aux, _ = run(streaming, view, (x, None, None), x, (True, False, False))
    np.testing.assert_array_equal(aux[0], values.ravel())
    assert (aux[1] >= 0).all() and (aux[1] <= 1e-14 * values.ravel() ** 2).all()
    np.testing.assert_allclose(y, 0, atol=1e-6)


@CASES
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_statistic(kernel, view, running, value):
    inputs = [array.astype(np.float32) for array in example(view, running=running)]
    x = inputs[0].copy()
    x[-1, -1, 1, 0, 3] = value
    needs = (True, *[False] * (len(inputs) - 1))
    plain, _, (plain_dx, *_) = run(kernel, view, inputs, inputs[0], needs)
    y, _, (dx, *_) = run(kernel, view, [x, *inputs[1:]], inputs[0], needs)
    spoiled = np.zeros(view.shape, bool)
    spoiled[-1, :, 1] = not running
    np.testing.assert_array_equal(np.isnan(y) | ~np.isfinite(x), spoiled | ~np.isfinite(x))
    np.testing.assert_array_equal(np.isnan(dx), spoiled)
    np.testing.assert_array_equal(y[~spoiled & np.isfinite(x)], plain[~spoiled & np.isfinite(x)])
    np.testing.assert_array_equal(dx[~spoiled], plain_dx[~spoiled])


@pytest.mark.parametrize(
    ("a", "c", "run"), [(2, 3, 2**33 + 5), (2**33, 7, 3), (3, 2**31 + 1, 40), (5, 2, 2**30 + 100)]
)
@pytest.mark.parametrize("wide", [1, 4])
def test_places_beyond_32_bits(a, c, run, wide):
    """What `locate` finds in arrays that are too large to make, in Python's integers."""
    whole = split.cut(np.dtype(np.float32), wide, 2, a, c, run * wide)
    tile, find = whole.tile, split.locate(whole.tile)
    per = tile.per
    pointer = Pointer(INT)

    @kernel(tile.threads, pointer, pointer, INT, *split.NUMBERS)
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

    turning = run // tile.vectors * c // tile.in_block  # the block in which the first run ends
    for block in (0, 1, turning, whole.blocks // 2, whole.blocks // 3, whole.blocks - 1):
        places = np.zeros((tile.threads, per), np.int64)
        items = np.zeros((tile.threads, 4), np.int64)
        probe(1, places, items, block, *whole.numbers)
        for thread in range(0, tile.threads, 11):
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
