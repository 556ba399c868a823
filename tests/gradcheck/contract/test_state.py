"""Inputs that a pair legally writes to: running statistics."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict

MOMENTUM = 0.1


def running_inputs():
    x, weight, bias = batch_norm_inputs(np.random.default_rng(4), (8, 4))
    return x, weight, bias, np.zeros(4), np.ones(4), np.array(0)


def forward(x, weight, bias, running_mean, running_var, calls):
    output, saved = batch_norm(x, weight, bias)
    running_mean += MOMENTUM * (x.mean(0) - running_mean)
    running_var += MOMENTUM * (x.var(0) - running_var)
    calls += 1
    return output, (saved, running_mean, calls)


def backward(saved, cotangent):
    return (*norm_backward(saved[0], cotangent), None, None, None)


STATE = ("running_mean", "running_var", 5)


def test_running_statistics_pass_when_they_are_declared():
    inputs = running_inputs()
    before = [array.copy() for array in inputs]
    report = gradcheck.check_pair(forward, backward, inputs, state=STATE)
    assert report.verdict is Verdict.PASS, str(report)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_undeclared_they_are_an_error_that_names_the_way_out():
    report = gradcheck.check_pair(forward, backward, running_inputs(), differentiable=("x", "weight", "bias"))
    assert report.verdict is Verdict.ERROR
    assert "forward modified its input running_mean" in report.reasons[0]
    assert "declare it with state=('running_mean',)" in report.reasons[0]


def test_every_call_gets_the_state_as_it_was_given():
    seen = []

    def watching(x, running):
        seen.append(running.copy())
        running += 1
        return x * x, (x.copy(), running)

    def reading(saved, cotangent):
        x, running = saved
        seen.append(running - 1)  # as its own forward left it
        return 2 * x * cotangent, None

    x = np.random.default_rng(0).standard_normal(5)
    report = gradcheck.check_pair(watching, reading, (x, np.full(3, 2.0)), state=("running",))
    assert report.verdict is Verdict.PASS, str(report)
    assert all(np.array_equal(each, np.full(3, 2.0)) for each in seen)


def test_a_backward_that_runs_forward_again_moves_the_state_twice():
    def keeping(*inputs):
        return forward(*inputs)[0], inputs

    def again(inputs, cotangent):
        return backward(forward(*inputs)[1], cotangent)

    report = gradcheck.check_pair(keeping, again, running_inputs(), state=(3, 4, 5))
    assert report.verdict is Verdict.ERROR
    assert "backward modified the state x3, which is forward's to write" in report.reasons[0]

    def again_on_copies(inputs, cotangent):
        return backward(forward(*(array.copy() for array in inputs))[1], cotangent)

    report = gradcheck.check_pair(keeping, again_on_copies, running_inputs(), state=(3, 4, 5))
    assert report.verdict is Verdict.PASS, str(report)


def test_what_is_not_declared_is_still_watched():
    def careless(x, weight, bias, running_mean, running_var, calls):
        weight *= 2
        return forward(x, weight, bias, running_mean, running_var, calls)

    report = gradcheck.check_pair(careless, backward, running_inputs(), state=STATE)
    assert report.verdict is Verdict.ERROR
    assert "forward modified its input weight" in report.reasons[0]


def test_a_gradient_that_depends_on_updated_state_fails():
    """The update of one call must not reach the backward of another."""
    kept = []

    def sharing(x, running):
        kept.append(float(x[0]))
        running += 1
        return x * x, x.copy()

    def reading(x, cotangent):
        return 2 * x * cotangent * (kept[-1] / x[0]), None

    x = np.random.default_rng(0).standard_normal(5)
    report = gradcheck.check_pair(sharing, reading, (x, np.zeros(2)), state=(1,))
    assert report.verdict is Verdict.FAIL
    assert any("another call of forward" in reason for reason in report.reasons)


def test_a_gradient_in_the_memory_of_the_state_is_an_error():
    def aliased(running, cotangent):
        return running, None

    def writing(x, running):
        running += x
        return x * 2, running

    report = gradcheck.check_pair(writing, aliased, (np.ones(3), np.ones(3)), state=("running",))
    assert report.verdict is Verdict.ERROR
    assert "shares memory with an array of the state" in report.reasons[0], report.reasons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": ("x",), "differentiable": ("x",)}, r"x is in state= and in differentiable="),
        ({"state": ("running",)}, r"state names 'running'; the inputs are x, weight"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gradcheck.check_pair(forward, backward, running_inputs(), **options)


def test_an_absent_state_is_no_state():
    def optional(x, running):
        return x * 2, None

    report = gradcheck.check_pair(
        optional, lambda s, c: (c * 2, None), (np.random.default_rng(0).standard_normal(5), None),
        state=("running",),
    )  # fmt: skip
    assert report.verdict is Verdict.PASS
