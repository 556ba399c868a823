"""The rounding granted to the analytic side: how arguments are moved, and what a sum may lose."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck import budget


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_element_moves_by_three_or_four_of_its_ulp(dtype):
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((30, 4)).astype(dtype))
    x[0] = 0
    moved = budget.jiggled(x, np.random.default_rng(1))
    assert moved.flags.f_contiguous and moved.dtype == x.dtype
    assert set(np.round((moved - x)[1:] / np.spacing(np.abs(x[1:]))).flat) == {-4, -3, 3, 4}
    assert not moved[0].any(), "zero has no neighbours worth visiting"


def test_float64_copies_of_float32_move_by_float32_ulp():
    x = np.array([1.0, 2.0, 0.1])
    moved = budget.jiggled(x, np.random.default_rng(1), np.dtype(np.float32))
    ulp = np.spacing(x.astype(np.float32)).astype(np.float64)
    assert set(np.abs(np.round((moved - x) / ulp))) <= {3, 4}


def test_a_cotangent_moves_by_ulp_of_its_largest_element():
    cotangent = np.array([0.0, 1e-9, 4.0])
    moved = budget.jiggled_cotangent(cotangent, np.random.default_rng(1))
    assert set(np.abs(moved - cotangent) / np.spacing(4.0)) <= {3, 4}


def test_a_sum_of_n_terms_may_lose_eight_units_times_the_root_of_n():
    assert budget.rounding_floor(np.dtype(np.float64), 16) == 8 * 2.0**-53 * 4
    assert budget.rounding_floor(np.dtype(np.float32), 1) == 8 * 2.0**-24


def test_room_is_a_factor_of_4096_below_the_largest_number():
    largest = np.finfo(np.float32).max
    assert budget.has_room(np.array([largest / 8192], np.float32), np.zeros(0))
    for value in (largest / 2048, np.inf, np.nan):
        assert not budget.has_room(np.ones(2), np.array([1, value], np.float32))


def test_a_lowered_cotangent_keeps_its_digits_and_dtype():
    cotangent = np.array([0.1, -3.0], np.float32)
    low = budget.lowered(cotangent)
    assert low.dtype == np.float32
    assert np.array_equal(low * np.float32(2**16), cotangent)
    half = budget.lowered(np.array([0.1, -3.0], np.float16))
    assert np.array_equal(half * np.float16(2**6), np.array([0.1, -3.0], np.float16))


def test_sums_in_float16_are_granted_no_root():
    assert budget.rounding_floor(np.dtype(np.float16), 10**6) == 8 * 2.0**-11


def test_stretching_moves_further():
    x = np.array([1.0, -2.0])
    moved = budget.jiggled(x, np.random.default_rng(1), stretch=1024)
    assert set(np.abs(moved - x) / np.spacing(np.abs(x)) / 1024) <= {3, 4}
    moved = budget.jiggled_cotangent(x, np.random.default_rng(1), stretch=1024)
    assert set(np.abs(moved - x) / np.spacing(2.0) / 1024) <= {3, 4}


def test_the_worst_element_is_the_furthest_or_not_a_number():
    wanted = np.array([[1.0, 2.0], [3.0, 4.0]])
    got = np.array([[1.0, 2.5], [3.25, 4.0]], np.float32)
    assert budget.worst(got, wanted) == (0.5, (0, 1), 2.5, 2.0)
    got[1, 0] = np.nan
    assert budget.worst(got, wanted).where == (1, 0)
    assert budget.worst(np.float64(3) * np.ones(()), np.ones(())) == (2.0, (), 3.0, 1.0)
