"""Channels last on a simulated device, in chunks of rows and tiles of columns."""

import itertools

import numpy as np
import pytest
from harness import STORAGES, Norm, check, check_layouts, check_needs, example, on_device, run

from tinygrad_bn.devices import fetch
from tinygrad_bn.kernels.cuda import cols, columns
from tinygrad_bn.kernels.cuda.cols import streaming, streaming_inference
from tinygrad_bn.kernels.cuda.compat import Pointer, cuda, kernel
from tinygrad_bn.kernels.views import Cols

EPS = 1e-5
CASES = {
    "one vector": Cols(1, 5, 4, 1, EPS),
    "no vectors": Cols(1, 5, 3, 1, EPS),
    "joined rows": Cols(2, 8, 3, 1, EPS),
    "one column": Cols(1, 16, 1, 1, EPS),
    "one value": Cols(1, 1, 1, 1, EPS),
    "samples": Cols(3, 7, 8, 1, EPS),
    "groups": Cols(2, 3, 24, 3, EPS),
    "one group": Cols(2, 3, 6, 6, EPS),
    "one row of groups": Cols(3, 1, 16, 8, EPS),
    "joined rows of groups": Cols(2, 4, 6, 3, EPS),
    "short stretches": Cols(1, 16, 10, 5, EPS, repeat=5),
    "wide stretches": Cols(1, 2, 99, 33, EPS, repeat=33),
    "no rows": Cols(2, 0, 4, 1, EPS),
    "no samples": Cols(0, 3, 4, 2, EPS),
    "no columns": Cols(2, 3, 0, 1, EPS),
}
BLOCKS = {
    "chunks of rows": Cols(2, 1100, 4, 1, EPS),
    "chunks of joined rows": Cols(1, 1400, 3, 1, EPS),
    "tiles of columns": Cols(1, 9, 132, 44, EPS),
    "tiles of single columns": Cols(1, 3, 129, 3, EPS, repeat=3),
}


def division(view, dtype=np.float32):
    """How x would be divided, were it there."""
    return cols.divided(view, np.dtype(dtype))


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", CASES)
def test_values(name, dtype):
    view = CASES[name]
    check(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("name", BLOCKS)
def test_several_blocks(name):
    view = BLOCKS[name]
    assert division(view).blocks > view.Z
    check(streaming, view, Norm(view), example(view))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_several_passes_over_the_rows_of_a_block(dtype, monkeypatch):
    monkeypatch.setattr(cols, "THREADS", 64)
    monkeypatch.setattr(cols, "BLOCKS", 1)
    monkeypatch.setattr(cols, "processors", lambda: 1)
    view = Cols(1, 39, 256 // np.dtype(dtype).itemsize, 2, EPS)
    found = division(view, dtype)
    assert found.blocks == 1 and 2 * columns.ROWS * (found.threads // found.columns) < view.A
    check(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", ["one vector", "joined rows", "short stretches", "no rows"])
def test_inference(name, dtype):
    view = CASES[name]
    view = Cols(1, view.Z * view.A, view.M, view.B, EPS, view.repeat)
    check(streaming_inference, view, Norm(view, running=True), example(view, running=True), dtype)


@pytest.mark.parametrize("given", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("running", [False, True])
def test_every_choice_of_gradients(given, running):
    view = Cols(1, 6, 8, 1, EPS)
    x, *affine = example(view, running=running)
    affine[:2] = (a if present else None for a, present in zip(affine, given, strict=False))
    check_needs(
        streaming_inference if running else streaming, view, Norm(view, running=running), (x, *affine)
    )


@pytest.mark.parametrize("name", ["groups", "joined rows", "short stretches"])
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)])
def test_absent_weight_and_bias(name, given):
    x, *affine = example(CASES[name])
    affine = (a if present else None for a, present in zip(affine, given, strict=True))
    check(streaming, CASES[name], Norm(CASES[name]), (x, *affine))


@pytest.mark.parametrize(("name", "dtype"), [("groups", "float32"), ("joined rows", "bfloat16")])
def test_views_of_memory(name, dtype):
    view = CASES[name]
    check_layouts(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("name", ["groups", "short stretches"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_statistic(name, odd):
    view = CASES[name]
    inputs = [on_device(a.astype(np.float32)) for a in example(view)]
    x = inputs[0].copy()
    x[0, 1, view.B] = odd
    arrays = (streaming, view, [on_device(x), *inputs[1:]], inputs[0], (True,) * 3)
    with np.errstate(invalid="ignore"):
        y, _, (dx, *_) = run(*arrays)
    spoiled = np.zeros(view.shape, bool)
    spoiled[0, :, view.B : 2 * view.B] = True
    for result in (y, dx):
        np.testing.assert_array_equal(np.isnan(fetch(result)), spoiled)


@pytest.mark.parametrize("first", [None, 0.0])
def test_a_mean_of_ten_thousand_deviations_costs_nothing(first):
    """Neighbouring float32 near the mean are 1/1000 of a deviation apart."""
    view = Cols(1, 1100, 4, 1, EPS)
    x, *affine = example(view, mean=1e4)
    cotangent = x - x.mean()  # or the mean of cotangent · x̂ would be next to nothing
    if first is not None:  # the kernel takes differences from the first value; this is the worst there is
        x[:, 0] = first
    check(streaming, view, Norm(view), (x, *affine), cotangent=cotangent)


def test_a_running_mean_that_float32_cannot_hold():
    view = Cols(1, 6, 4, 1, EPS)
    x, weight, bias = (a.astype(np.float32) for a in example(view, mean=1e4))
    mean, variance = np.full(4, 1e4 + 1 / 3), np.ones(4)
    y, _ = streaming_inference.forward(view, x, weight, bias, mean, variance)
    right = (x.astype(np.float64) - mean) / np.sqrt(1 + EPS) * weight + bias
    np.testing.assert_allclose(y, right, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["one row of groups", "one value"])
def test_single_rows_in_registers(name, dtype):
    view = CASES[name]
    assert cols.too_long(view, np.dtype(dtype)) is None
    check(cols.resident, view, Norm(view), example(view), dtype)


def test_only_single_rows_in_registers():
    assert "these lie in 3" in cols.too_long(CASES["groups"], np.dtype(np.float32))


@pytest.mark.parametrize("channels", [1, 3, 24, 64, 96, 100, 132, 768, 1003])
def test_nine_of_ten_threads_have_work_whatever_the_width(channels):
    view = Cols(1, 96 * 1024, channels, 1, EPS)
    found = division(view)
    lanes = found.threads // found.columns
    vectors = found.length // found.width
    assert lanes * found.columns / found.threads * vectors / (found.across * found.columns) >= 0.9
    assert found.rows * found.length == view.A * view.M
    assert (found.down - 1) * found.chunk < found.rows <= found.down * found.chunk
    assert found.chunk <= lanes * cols.MOST_ROWS


def test_few_wide_rows_are_many_blocks_and_many_rows_not_too_many(monkeypatch):
    monkeypatch.setattr(cols, "processors", lambda: 132)
    assert division(Cols(1, 32, 512 * 49, 49, EPS, repeat=49)).blocks >= 132
    assert 4 * 132 <= division(Cols(1, 1 << 20, 64, 1, EPS)).blocks <= 8 * 132


@pytest.mark.parametrize(
    "shape", [(1, 2**33 + 5, 3), (3, 2**31 + 1, 64), (2, 7, 2**31 + 12), (2**17, 2**16 + 1, 5)]
)
def test_places_beyond_32_bits(shape):
    """Where the threads of an array would work that is too large to make."""
    found = division(Cols(*shape, 1, EPS))
    find = columns._place(found.threads, found.width)

    @kernel(found.threads, Pointer(np.dtype(np.int64)), np.dtype(np.uint32), *columns.GRID)
    def probe(out, block, rows, length, chunk, down, across, columns):
        place = find(block, rows, length, chunk, down, across, columns)
        for i in range(7):
            out[cuda.threadIdx.x * 7 + i] = place[i]

    for block in (0, 1, found.blocks // 2, found.blocks // 3, found.blocks - 1):
        out = np.empty((found.threads, 7), np.int64)
        probe(1, out, block, *found.arguments)
        part, tile = divmod(block, found.across)
        z, chunk = divmod(part, found.down)
        for thread in range(found.threads):
            lane, column = divmod(thread, found.columns)
            first = chunk * found.chunk
            last = min(first + found.chunk, found.rows)
            column = (tile * found.columns + column) * found.width
            assert out[thread].tolist() == [
                part, z, first, last, lane, found.threads // found.columns, column
            ]  # fmt: skip
