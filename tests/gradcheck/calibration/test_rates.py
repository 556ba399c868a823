"""Counts and their upper bounds."""

from __future__ import annotations

import math

import pytest

from gradcheck import Verdict
from gradcheck.calibration.rates import tally, upper_bound


@pytest.mark.parametrize(
    ("events", "trials", "bound"),
    [(0, 300, 1 - 0.05 ** (1 / 300)), (1, 100, 0.0466), (5, 20, 0.4556), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_upper_bound_is_that_of_clopper_and_pearson(events, trials, bound):
    assert math.isclose(upper_bound(events, trials), bound, rel_tol=2e-3)


def test_where_nothing_happened_the_bound_is_the_rule_of_three():
    assert math.isclose(upper_bound(0, 10_000), 3 / 10_000, rel_tol=0.01)


def test_a_tally_counts_each_verdict_in_the_order_of_severity():
    assert tally([Verdict.FAIL, Verdict.PASS, Verdict.PASS]).split() == ["2", "0", "0", "1", "0"]
