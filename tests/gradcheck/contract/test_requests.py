"""A function that is asked for no gradient, or for fewer of them, gives what it gives to the full call."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck import Verdict
from gradcheck.adapters import Pair
from gradcheck.contract.requests import check_requests
from gradcheck.subject import make_subject

RNG = np.random.default_rng(0)
INPUTS = [RNG.standard_normal((4, 5)), RNG.standard_normal(5), RNG.standard_normal(5)]
ALL = (0, 1, 2)


def affine(x, weight, bias):
    return np.tanh(x) * weight + bias, (x, weight)


def gradients(saved, cotangent):
    x, weight = saved
    dx = cotangent * weight / np.cosh(x) ** 2
    return [dx, (cotangent * np.tanh(x)).sum(0), cotangent.sum(0)]


def pair(backward_of=lambda asked: lambda saved, cotangent: tuple(gradients(saved, cotangent)), plain=None):
    """`backward_of` gives the backward pass for the positions that are asked for."""

    def some(positions):
        return Pair(affine, backward_of(positions), INPUTS, "affine", positions)

    return Pair(affine, backward_of(ALL), INPUTS, "affine", ALL, plain=plain, some=some)


def check(pair):
    subject = make_subject(pair.forward, pair.backward, pair.inputs)
    return check_requests(pair, subject, np.random.default_rng(0)), subject


def test_each_input_alone_and_all_but_one_are_asked_for():
    asked = []

    def backward_of(positions):
        asked.append(positions)
        return lambda saved, cotangent: tuple(gradients(saved, cotangent))

    found, subject = check(pair(backward_of, lambda *inputs: affine(*inputs)[0]))
    assert found.verdict is Verdict.PASS, found
    assert asked == [ALL, (0,), (1,), (2,), (1, 2), (0, 2), (0, 1)]
    assert (subject.evaluations, subject.vjps) == (8, 7)


@pytest.mark.parametrize("wrong", [(0,), (2,), (0, 2)])
def test_a_path_that_only_some_requests_take_is_found(wrong):
    def backward_of(positions):
        def backward(saved, cotangent):
            found = gradients(saved, cotangent)
            if positions == wrong:
                found[positions[-1]] = 2 * found[positions[-1]]
            return tuple(found)

        return backward

    found, _ = check(pair(backward_of))
    named = ", ".join(("x", "weight", "bias")[position] for position in wrong)
    assert found.verdict is Verdict.FAIL
    assert found.reason.startswith(f"asked for the gradient of {named} alone, backward gives another: ")
    assert found.input == ("x", "weight", "bias")[wrong[-1]]


def test_a_path_that_raises_is_an_error_that_says_which():
    def backward_of(positions):
        def backward(saved, cotangent):
            if 0 not in positions:
                raise NameError("g")
            return tuple(gradients(saved, cotangent))

        return backward

    found, _ = check(pair(backward_of))
    assert found.verdict is Verdict.ERROR
    assert found.reason.startswith("asked for the gradient of weight alone, backward raised NameError: g")


@pytest.mark.parametrize("off", [1e-9, 1e-15])
def test_an_output_without_gradients_may_differ_by_rounding_only(off):
    found, _ = check(pair(plain=lambda *inputs: affine(*inputs)[0] * (1 + off)))
    assert found.verdict is (Verdict.PASS if off < 1e-12 else Verdict.FAIL)
    assert off < 1e-12 or "without a gradient to record, the function gives another output" in found.reason


def test_an_output_of_another_shape_fails():
    found, _ = check(pair(plain=lambda *inputs: affine(*inputs)[0][:1]))
    assert found.reason.endswith("of shape (1, 5), not (4, 5)")


def test_a_function_that_raises_without_a_gradient_is_an_error_that_says_so():
    found, _ = check(pair(plain=lambda *inputs: 1 / 0))
    assert found.verdict is Verdict.ERROR
    assert found.reason.startswith("without a gradient to record, forward raised ZeroDivisionError")
