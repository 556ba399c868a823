"""Rows of any length on a simulated device, in tiles and blocks of columns."""

import numpy as np
import pytest
from harness import STORAGES, Norm, check, check_layouts, check_needs, example

from tinygrad_bn.kernels.cuda.rows_streaming import MOST_THREADS, PER, streaming, tile_size
from tinygrad_bn.kernels.views import Rows

CASES = {
    "a vector": Rows(3, 4, 1e-5),
    "one value": Rows(2, 1, 1e-5),
    "odd": Rows(5, 7, 1e-5),
    "two blocks of columns": Rows(3, 41, 1e-5),
    "a large block": Rows(2, MOST_THREADS + 9, 1e-5),
    "two tiles of single values": Rows(1, PER * MOST_THREADS + 3, 1e-5),
    "root mean square": Rows(4, 24, 1e-5, centred=False),
    "more rows than chunks": Rows(19, 8, 1e-5),
    "no rows": Rows(0, 8, 1e-5),
    "nothing in a row": Rows(3, 0, 1e-5),
}


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("name", CASES)
def test_values(name, dtype):
    view = CASES[name]
    check(streaming, view, Norm(view), example(view), dtype)


@pytest.mark.parametrize("centred", [True, False])
def test_tiles_of_vectors(centred):
    view = Rows(1, tile_size(MOST_THREADS, 4) + 4, 1e-5, centred)
    check(streaming, view, Norm(view), example(view))


@pytest.mark.parametrize("absent", [(1,), (2,), (1, 2)], ids=["weight", "bias", "both"])
def test_absent_weight_and_bias(absent):
    view = Rows(3, 8, 1e-5)
    inputs = [None if position in absent else array for position, array in enumerate(example(view))]
    check_needs(streaming, view, Norm(view), inputs)


def test_every_choice_of_gradients():
    view = Rows(3, 8, 1e-5)
    check_needs(streaming, view, Norm(view), example(view))


@pytest.mark.parametrize("dtype", STORAGES)
def test_views_of_memory(dtype):
    view = Rows(3, 8, 1e-5)
    check_layouts(streaming, view, Norm(view), example(view), dtype)


def test_nan_stays_in_its_row():
    view = Rows(3, 8, 1e-5)
    x, weight, bias = example(view)
    x.flat[1] = np.nan
    check(streaming, view, Norm(view), (x, weight, bias))


def test_a_mean_of_ten_thousand_deviations_costs_nothing():
    view = Rows(2, 300, 1e-5)
    check(streaming, view, Norm(view), example(view, mean=1e4))
