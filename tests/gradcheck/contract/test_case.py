"""The first run: arrays without elements are refused, but not before the contract was held to them."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, norm_backward

import gradcheck
from gradcheck import Verdict

EMPTY = np.ones((0, 4)), np.ones(4), np.ones(4)


def answer(backward, forward=batch_norm):
    report = gradcheck.check_pair(forward, backward, EMPTY)
    return report.verdict, report.reasons[0]


def test_an_empty_batch_is_vacuous_and_warns_of_nothing():
    verdict, reason = answer(norm_backward)
    assert (verdict, reason) == (Verdict.VACUOUS, "nothing to check: x has shape (0, 4) and no elements")


def test_a_forward_may_refuse_an_empty_batch():
    def refusing(x, weight, bias):
        raise ValueError("a batch needs a sample")

    verdict, reason = answer(norm_backward, refusing)
    assert verdict is Verdict.VACUOUS
    assert "and no elements (forward raised ValueError: a batch needs a sample, at test_case.py:" in reason


def raising(saved, cotangent):
    raise ZeroDivisionError("nothing there")


@pytest.mark.parametrize(
    ("backward", "verdict", "message"),
    [
        (raising, Verdict.ERROR, "backward raised ZeroDivisionError: nothing there"),
        (lambda s, c: norm_backward(s, c)[:2], Verdict.ERROR, "backward returned 2 gradients for 3 inputs"),
        (lambda s, c: (c.copy(), None, c.sum(0)), Verdict.ERROR, "the gradient of weight is None"),
        (lambda s, c: (c.copy(), np.zeros(3), c.sum(0)), Verdict.ERROR, "has shape (3,)"),
        (lambda s, c: (c.copy(), np.zeros(4, "f"), c.sum(0)), Verdict.ERROR, "has dtype float32"),
        (lambda s, c: (c.copy(), np.full(4, 7.0), c.sum(0)), Verdict.FAIL, "gradient of weight is not zero"),
        (lambda s, c: (c.copy(), c.sum(0), c.mean(0)), Verdict.FAIL, "gradient of bias is not zero"),
    ],
)
def test_what_backward_makes_of_an_empty_batch_is_held_to_the_contract(backward, verdict, message):
    got, reason = answer(backward)
    assert got is verdict
    assert message in reason


def test_a_forward_that_takes_an_empty_batch_is_held_to_the_contract():
    verdict, reason = answer(norm_backward, lambda x, weight, bias: x)
    assert verdict is Verdict.ERROR
    assert "forward must return a tuple" in reason


def test_an_output_with_elements_may_have_gradients_though_an_input_has_none():
    def forward(x, bias):
        return bias + x.sum(), x.shape

    def backward(shape, cotangent):
        return np.full(shape, cotangent.sum()), cotangent.copy()

    report = gradcheck.check_pair(forward, backward, (np.ones((0, 3)), np.ones(4)))
    assert report.verdict is Verdict.VACUOUS, str(report)
