"""The decision table, row by row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradcheck.judge import Evidence, Verdict, judge

GOOD = {
    "analytic": 1.0, "numeric": 1.0, "bar": 1e-13, "noise": 5e-14, "kink": 0.0,
    "tolerance": 1e-13, "scale": 2.0, "yardstick": 2.0, "outlier": False,
}  # fmt: skip
ZERO = {**GOOD, "analytic": 0.0, "numeric": 2e-14, "scale": 1e-14}


def evidence(*projections):
    return Evidence(*(np.array([p[field] for p in projections]) for field in Evidence.__slots__))


def judged(*projections, **options):
    return judge(evidence(*projections), goal=1e-7, input="x", **options)


TABLE = {
    "agreement": (GOOD, {}, Verdict.PASS, ""),
    "outside 2e + τ": ({**GOOD, "analytic": 1 + 4e-13}, {}, Verdict.FAIL, "off by 2.0e-13 of its scale"),
    "just inside 2e + τ": ({**GOOD, "analytic": 1 + 2.9e-13}, {}, Verdict.PASS, ""),
    "NaN": ({**GOOD, "analytic": np.nan}, {}, Verdict.FAIL, "not finite"),
    "outside, though the bar is loose": ({**GOOD, "analytic": 2.0, "bar": 1e-3}, {}, Verdict.FAIL, "off by"),
    "loose by the numeric side": ({**GOOD, "bar": 3e-7}, {}, Verdict.INCONCLUSIVE, "does not settle"),
    "loose by noise": ({**GOOD, "bar": 3e-7, "noise": 2e-7}, {}, Verdict.INCONCLUSIVE, "noise"),
    "loose by a kink": ({**GOOD, "bar": 3e-1, "kink": 3e-1}, {}, Verdict.INCONCLUSIVE, "kink"),
    "loose by a kink, the place known": (
        {**GOOD, "bar": 3e-1, "kink": 3e-1},
        {"jumps": np.array([[False, False], [True, True]])},
        Verdict.INCONCLUSIVE,
        "in 2 of 4 elements, first at (1, 0)",
    ),
    "loose by curvature, or a kink whose place is known": (
        {**GOOD, "bar": 3e-7},
        {"jumps": np.array([False, True])},
        Verdict.INCONCLUSIVE,
        "in 1 of 2 elements, first at (1,)",
    ),
    "loose by the backward pass": ({**GOOD, "tolerance": 3e-7}, {}, Verdict.INCONCLUSIVE, "4 ulp"),
    "the bar is infinite, the error large": (
        {**GOOD, "analytic": 9.0, "bar": np.inf},
        {},
        Verdict.INCONCLUSIVE,
        "overflows",
    ),
    "the numeric side is NaN": ({**GOOD, "numeric": np.nan}, {}, Verdict.INCONCLUSIVE, "overflows"),
    "the tolerance is infinite": ({**GOOD, "tolerance": np.inf}, {}, Verdict.INCONCLUSIVE, "overflows"),
    "the scale is infinite": (
        {**GOOD, "scale": np.inf, "yardstick": np.inf},
        {},
        Verdict.INCONCLUSIVE,
        "overflows",
    ),
    "the gradient is infinite, and so the bar": (
        {**GOOD, "analytic": np.inf, "bar": np.inf},
        {},
        Verdict.FAIL,
        "not finite",
    ),
    "within a kink, not zero": (
        {**GOOD, "numeric": 0.25, "bar": 2.0, "kink": 2.0, "yardstick": 1e9},
        {},
        Verdict.INCONCLUSIVE,
        "kink",
    ),
    "zero only with its kink": (
        {**GOOD, "bar": 0.6, "kink": 0.29, "yardstick": 1e9},
        {},
        Verdict.INCONCLUSIVE,
        "does not settle",
    ),
    "zero but for a kink": (
        {**ZERO, "bar": 1e-3, "kink": 1e-3, "yardstick": 1e9},
        {},
        Verdict.INCONCLUSIVE,
        "kink",
    ),
    "forward raises beside the input": (
        {**GOOD, "bar": np.inf},
        {"unknown": "resolution: at points beside this input forward raised ValueError"},
        Verdict.INCONCLUSIVE,
        "forward raised ValueError",
    ),
    "the bar is infinite": ({**GOOD, "bar": np.inf}, {}, Verdict.INCONCLUSIVE, "resolution"),
    "at the floor": (ZERO, {}, Verdict.VACUOUS, "nothing was checked"),
    "at the floor, declared": (ZERO, {"zero": True}, Verdict.PASS, "zero, as declared"),
    "not at the floor, declared": (GOOD, {"zero": True}, Verdict.FAIL, "declared to be zero"),
    "at a floor that is too high": (
        {**ZERO, "bar": 1e-3},
        {"zero": True},
        Verdict.INCONCLUSIVE,
        "resolution",
    ),
    "loose, of a scale of zero": (
        {**GOOD, "bar": 3e-7, "scale": 0.0, "yardstick": 0.0},
        {},
        Verdict.INCONCLUSIVE,
        "known to ±3.0e-07, where the gradient's scale is zero",
    ),
    "wrong only at the input itself": (
        {**GOOD, "analytic": 1 + 6e-8, "outlier": True},
        {},
        Verdict.FAIL,
        "off by 3.0e-08 of its scale (the backward pass jumps exactly at this input",
    ),
    "like float32": ({**GOOD, "analytic": 1 + 6e-8}, {}, Verdict.FAIL, "float32"),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row):
    projection, options, verdict, reason = TABLE[row]
    check = judged(projection, **options)
    assert check.verdict is verdict, check.reason
    assert reason in check.reason


def test_one_wrong_projection_is_enough_and_is_the_one_shown():
    check = judged(GOOD, {**GOOD, "analytic": 3.0}, GOOD, {**GOOD, "analytic": 1.1})
    assert check.verdict is Verdict.FAIL
    assert check.analytic == 3.0


def test_one_projection_that_is_not_zero_is_enough_for_a_pass():
    assert judged({**ZERO, "scale": 2.0}, GOOD).verdict is Verdict.PASS


def test_the_resolution_is_the_smallest_error_that_would_be_seen():
    check = judged(GOOD)
    assert check.resolution == pytest.approx((2 * 1e-13 + 1e-13) / 2)
    visible = {**GOOD, "analytic": 1 + 1.01 * check.resolution * GOOD["scale"]}
    assert judged(visible).verdict is Verdict.FAIL


def test_severity_is_the_order_of_the_members():
    assert list(Verdict) == sorted(Verdict)
    assert Verdict.ERROR > Verdict.FAIL > Verdict.INCONCLUSIVE > Verdict.VACUOUS > Verdict.PASS
    assert str(Verdict.FAIL) == "FAIL"


def test_join_keeps_every_projection():
    joined = Evidence.join([evidence(GOOD), evidence(ZERO, GOOD)])
    assert joined.analytic.tolist() == [1.0, 0.0, 1.0]
    assert {len(getattr(joined, field.name)) for field in dataclasses.fields(Evidence)} == {3}
