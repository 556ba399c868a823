"""Linearity in the cotangent: whatever a backward does to one cotangent, it must do to all."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.contract import probes
from gradcheck.subject import make_subject


def report_on(backward, dtype=np.float64):
    return gradcheck.check_pair(
        batch_norm, backward, batch_norm_inputs(np.random.default_rng(5), dtype=dtype)
    )


def changed(change, dtype):
    """The report on a backward of batch_norm whose dx is changed."""

    def backward(saved, cotangent):
        dx, *others = norm_backward(saved, cotangent)
        return change(dx).astype(dtype), *others

    return report_on(backward, dtype)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda dx: np.abs(dx), "scaled by -1"),
        (lambda dx: dx + 1e-3, "not zero for a zero cotangent"),
        (lambda dx: np.clip(dx, -1e2, 1e2), "scaled by 1048576"),
        (lambda dx: np.where(np.abs(dx) < 1e-3, 0, dx), "scaled by"),
        (lambda dx: np.where(dx[0, 0] > 0, dx, 1.5 * dx), "scaled by -1"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_vjp_that_is_not_linear_fails(change, reason, dtype):
    report = changed(change, dtype)
    assert report.verdict is Verdict.FAIL
    assert any(reason in line for line in report.reasons), str(report)


def test_a_vjp_that_does_not_add_up_fails():
    def rotated(saved, cotangent):
        dx, *others = norm_backward(saved, cotangent)
        return dx * np.max(np.abs(cotangent)) / np.sqrt(np.sum(cotangent**2) + 1e-300), *others

    report = report_on(rotated)
    assert any("do not add up" in line for line in report.reasons), str(report)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_another_path_for_the_cotangent_of_a_sum_fails(dtype):
    def shortened(saved, cotangent):
        dx, *others = norm_backward(saved, cotangent)
        return (dx + 1 if np.all(cotangent == cotangent[0, 0]) and cotangent.any() else dx), *others

    report = report_on(shortened, dtype)
    assert any("do not add up" in line for line in report.reasons), str(report)


def test_gradients_of_a_few_bits_are_not_blamed_for_losing_them():
    weight = np.float32(1e-42)
    pair = lambda x: (x * weight, None), lambda s, c: (c * weight,)
    report = gradcheck.check_pair(*pair, (np.random.default_rng(0).standard_normal(6).astype(np.float32),))
    (linear,) = (check for check in report.checks if check.name == "linear in the cotangent")
    assert linear.verdict is Verdict.PASS, str(report)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_cotangent_clamped_to_the_range_of_half_precision_fails(dtype):
    report = report_on(
        lambda saved, cotangent: norm_backward(saved, np.clip(cotangent, -65504, 65504)), dtype
    )
    assert report.verdict is Verdict.FAIL
    assert any("scaled by 1048576" in reason for reason in report.reasons), str(report)


def test_a_threshold_far_below_the_gradients_fails():
    report = changed(lambda dx: np.where(np.abs(dx) < 1e-7, 0, dx), np.float64)
    assert any("scaled by 9.536743e-07" in reason for reason in report.reasons), str(report)


def test_a_backward_skipped_for_a_sum_of_zero_fails():
    def backward(saved, cotangent):
        return norm_backward(saved, cotangent if cotangent.sum() else np.zeros_like(cotangent))

    report = report_on(backward)
    assert report.verdict is Verdict.FAIL
    assert any("the gradients of 3 do not add up" in reason for reason in report.reasons), str(report)


@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 1e6), (np.float32, 1e30), (np.float16, 60.0)])
def test_numbers_on_the_way_may_be_larger_than_gradients(dtype, largest):
    """Nobody is blamed for infinity under a factor that is the harness's."""
    x = np.random.default_rng(0).standard_normal(7).astype(dtype)

    def backward(_, cotangent):
        return (cotangent * dtype(largest) * dtype(1 / largest),)

    subject = make_subject(lambda x: (x * 1, None), backward, (x,))
    with np.errstate(over="ignore"):
        answers = probes.probe(subject, np.random.default_rng(0))
    (check,) = (check for check in answers.checks if check.name == "linear in the cotangent")
    assert check.verdict is Verdict.PASS, check


def test_a_sum_of_rounded_numbers_is_said_to_look_like_float32():
    """Scaled by powers of two, what was rounded to float32 stays as it was; added up, it does not."""

    def through_float32(saved, cotangent):
        return tuple(each.astype(np.float32).astype(np.float64) for each in norm_backward(saved, cotangent))

    (linear,) = (c for c in report_on(through_float32).checks if c.name == "linear in the cotangent")
    assert linear.verdict is Verdict.FAIL
    assert "do not add up" in linear.reason
    assert linear.reason.endswith("(the accuracy of float32: is something rounded to float32 on the way?)")
    got, wanted = linear.reason.partition(": ")[2].split(" instead of ")
    assert got.rsplit(" ", 1)[1] != wanted.split(" ", 1)[0]
