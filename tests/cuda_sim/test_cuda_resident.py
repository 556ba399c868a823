"""Rows that are held in registers: LayerNorm, RMSNorm, InstanceNorm and GroupNorm on a simulated device."""

import numpy as np
import pytest
from harness import STORAGES, Norm, check, check_layouts, check_needs, example

from tinygrad_bn.kernels.cuda import rows, split_resident
from tinygrad_bn.kernels.cuda.resident import BACKWARD_BYTES, FORWARD_BYTES, layout, longest, shared_bytes
from tinygrad_bn.kernels.views import Rows, Split

ROWS = {
    "a vector": Rows(3, 4, 1e-5),
    "one value": Rows(2, 1, 1e-5),
    "odd": Rows(5, 7, 1e-5),
    "half a warp of vectors": Rows(9, 96, 1e-5),
    "a warp and a tail": Rows(3, 130, 1e-5),
    "a block": Rows(2, 600, 1e-5),
    "root mean square": Rows(4, 24, 1e-5, centred=False),
    "no rows": Rows(0, 8, 1e-5),
    "nothing in a row": Rows(3, 0, 1e-5),
}
SPLITS = {
    "instance": Split(2, 1, 3, 1, 8, 1e-5),
    "instance, odd": Split(2, 1, 3, 1, 7, 1e-5),
    "groups": Split(2, 1, 2, 3, 8, 1e-5),
    "groups, odd": Split(3, 1, 2, 2, 5, 1e-5),
    "groups of a block": Split(1, 1, 1, 5, 120, 1e-5),
    "many channels": Split(1, 1, 1, 40, 4, 1e-5),
    "no samples": Split(0, 1, 2, 3, 4, 1e-5),
    "nothing along space": Split(2, 1, 2, 3, 0, 1e-5),
}


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, dtype):
    view = ROWS[name]
    check(rows.resident, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", SPLITS)
def test_split(name, dtype):
    view = SPLITS[name]
    check(split_resident.resident, view, Norm(view), example(view), dtype)


CASES = pytest.mark.parametrize(
    ("kernel", "view"),
    [
        (rows.resident, Rows(3, 8, 1e-5)),
        (rows.resident, Rows(2, 8, 1e-5, centred=False)),
        (split_resident.resident, Split(2, 1, 2, 1, 4, 1e-5)),
        (split_resident.resident, Split(2, 1, 2, 3, 4, 1e-5)),
    ],
    ids=["rows", "root mean square", "instance", "groups"],
)


@CASES
@pytest.mark.parametrize("absent", [(1,), (2,), (1, 2)], ids=["weight", "bias", "both"])
def test_absent_weight_and_bias(kernel, view, absent):
    inputs = [None if position in absent else array for position, array in enumerate(example(view))]
    check_needs(kernel, view, Norm(view), inputs)


@CASES
def test_every_choice_of_gradients(kernel, view):
    check_needs(kernel, view, Norm(view), example(view))


@CASES
@pytest.mark.parametrize("dtype", STORAGES)
def test_views_of_memory(kernel, view, dtype):
    check_layouts(kernel, view, Norm(view), example(view), dtype)


@CASES
def test_nan_stays_in_its_row(kernel, view):
    if not getattr(view, "centred", True):
        pytest.skip("without a mean there is none to become NaN")
    x, weight, bias = example(view)
    x.flat[1] = np.nan
    check(kernel, view, Norm(view), (x, weight, bias))


@CASES
def test_infinity_becomes_nan_in_its_row(kernel, view):
    x, weight, bias = example(view)
    x.flat[1] = np.inf
    y, _ = kernel.forward(view, *(a.astype(np.float32) for a in (x, weight, bias)))
    rows = y.reshape(view.statistics, -1)
    assert np.isnan(rows[0]).any() and np.isfinite(rows[1:]).all()


@pytest.mark.parametrize(
    ("kernel", "view"),
    [(rows.resident, Rows(2, 200, 1e-5)), (split_resident.resident, Split(1, 1, 2, 2, 100, 1e-5))],
    ids=["rows", "groups"],
)
def test_a_mean_of_ten_thousand_deviations_costs_nothing(kernel, view):
    """The error is still counted in units of x̂, not of x, whose own rounding is 1e-3."""
    check(kernel, view, Norm(view), example(view, mean=1e4))


@pytest.mark.parametrize("storage", ["float32", "float64", "float16", "uint16"])
def test_a_layout_holds_the_row(storage):
    storage = np.dtype(storage)
    size = 8 if storage == np.float64 else 4
    for width in (1, 16 // storage.itemsize):
        for length in (1, 3, 4, 31, 96, 128, 513, 768, 1024, 3000, 4096, longest(storage, width)):
            for most in (FORWARD_BYTES, BACKWARD_BYTES):
                form = layout(storage, 9, length, width, most)
                assert form.lanes * form.values >= length
                assert form.values * size <= most
                assert form.threads <= 512 and form.threads % 32 == 0
                assert form.lanes in (4, 8, 16) or form.lanes % 32 == 0


def test_what_is_too_long():
    single, double = np.dtype("float32"), np.dtype("float64")
    assert rows.too_long(Rows(2, 8192, 1e-5), single) is None
    assert "up to 8,192 values" in rows.too_long(Rows(2, 8196, 1e-5), single)
    assert "up to 6,144 values" in rows.too_long(Rows(2, 8191, 1e-5), single)
    assert "up to 4,096 values" in rows.too_long(Rows(2, 4098, 1e-5), double)
    assert "lie in 3" in split_resident.too_long(Split(1, 3, 2, 1, 4, 1e-5), single)
    assert "of a statistic" in split_resident.too_long(Split(1, 1, 1, 2, 5000, 1e-5), single)
    assert split_resident.too_long(Split(1, 1, 1, 2, 4096, 1e-5), single) is None
    assert "shared memory" in split_resident.too_long(Split(1, 1, 1, 2, 1537, 1e-5), double)
    assert shared_bytes(single, layout(single, 1, 8192, 4, BACKWARD_BYTES)) <= 48 << 10
