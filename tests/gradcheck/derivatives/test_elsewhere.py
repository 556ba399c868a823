"""The gradient at a second input: what is right at the first alone, and what must not be accused there."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.derivatives.elsewhere import NAME, check_elsewhere
from gradcheck.subject import make_subject


def elsewhere(report):
    return [check for check in report.checks if check.name == NAME]


def keeping(*kept):
    """Some of what the first call for a shape and a dtype saved is handed to every later one."""
    seen = {}

    def forward(x, weight, bias):
        y, saved = batch_norm(x, weight, bias)
        first = seen.setdefault((x.shape, x.dtype), saved)
        return y, saved._replace(**{name: getattr(first, name) for name in kept})

    return forward


@pytest.mark.parametrize("kept", [("x_hat",), ("rstd",), ("weight",), ("x_hat", "rstd", "weight")])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_kept_of_the_first_call_is_found_though_all_calls_agree(kept, dtype):
    inputs = tuple(array.astype(dtype) for array in batch_norm_inputs(np.random.default_rng(0)))
    report = gradcheck.check_pair(keeping(*kept), norm_backward, inputs)
    (check,) = elsewhere(report)
    assert check.verdict is Verdict.FAIL, report
    assert "keep something of an earlier call" in check.reason
    assert all(each.verdict is Verdict.PASS for each in report.checks if each.name == "gradient")


def test_a_backward_that_holds_at_one_input_only_is_found():
    """The channels of this x have variance 1; the backward pass takes that for granted."""
    x, weight, bias = batch_norm_inputs(np.random.default_rng(0))
    axes = batch_norm(x, weight, bias)[1].axes
    x = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)

    def backward(saved, cotangent):
        return norm_backward(saved._replace(rstd=np.full_like(saved.rstd, 1 / np.sqrt(1 + 1e-5))), cotangent)

    report = gradcheck.check_pair(batch_norm, backward, (x, weight, bias))
    assert report.verdict is Verdict.FAIL
    assert elsewhere(report)[0].verdict is Verdict.FAIL


def test_a_right_pair_pays_seven_calls_of_forward_and_one_of_backward():
    inputs = batch_norm_inputs(np.random.default_rng(0))
    calls = {"forward": 0, "backward": 0}

    def forward(*arrays):
        calls["forward"] += 1
        return batch_norm(*arrays)

    def backward(saved, cotangent):
        calls["backward"] += 1
        return norm_backward(saved, cotangent)

    report = gradcheck.check_pair(forward, backward, inputs)
    assert [check.verdict for check in elsewhere(report)] == [Verdict.PASS]
    assert (report.evaluations, report.vjps) == (calls["forward"], calls["backward"]) == (119, 70)


@pytest.mark.parametrize("seed", range(20))
def test_kinks_at_the_second_input_accuse_nobody(seed):
    x = np.random.default_rng(seed).standard_normal((4, 5))
    x[x < 0] = 0
    report = gradcheck.check_pair(
        lambda x: (np.maximum(x, 0), x > 0),
        lambda positive, cotangent: (cotangent * positive,),
        (x,),
        seed=seed,
    )
    assert [check.verdict for check in elsewhere(report)] == [Verdict.PASS], report


def test_a_pair_that_is_not_defined_beside_the_input_is_judged_at_the_input_alone():
    given = np.array([1.0, 2.0])

    def forward(x):
        if np.any(x != given):
            raise ValueError("not here")
        return x * x, x

    subject = make_subject(forward, lambda x, cotangent: (3 * x * cotangent,), (given,))
    assert check_elsewhere(subject, np.random.default_rng(0)) == []


def test_nothing_is_asked_elsewhere_of_what_is_wrong_here():
    x = np.random.default_rng(0).standard_normal(5)
    report = gradcheck.check_pair(lambda x: (x * x, x), lambda x, c: (3 * x * c,), (x,))
    assert report.verdict is Verdict.FAIL
    assert not elsewhere(report)
