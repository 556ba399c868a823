"""The entrance for a framework's functions: whose they are, what is passed on, the line that repeats it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
import tinygrad_bn
from gradcheck import Verdict


def tensor(*shape):
    return tinygrad_bn.tensor(np.random.default_rng(1).standard_normal(shape), requires_grad=True)


def test_numpy_arrays_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"numpy\.ndarray.*check_pair\(forward, backward, inputs\)"):
        gradcheck.check(np.tanh, (np.ones(3),))


def test_no_framework_is_imported_to_find_out_that_the_inputs_are_of_none():
    program = """
import sys, numpy, gradcheck
try:
    gradcheck.check(numpy.tanh, (numpy.ones(3),))
except TypeError:
    print([name for name in ("torch", "jax", "tinygrad_bn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_registered_operation_is_checked_by_name():
    report = gradcheck.check(
        "norm::layer_norm",
        (tensor(3, 4), tensor(4), tensor(4)),
        attributes={"normalized_shape": (4,)},
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert report.name == "norm::layer_norm"


def test_attributes_need_a_name():
    with pytest.raises(TypeError, match="attributes are for a registered operation given by name"):
        gradcheck.check(tinygrad_bn.Tensor.tanh, (tensor(3),), attributes={"eps": 1e-5})


@pytest.mark.parametrize("order", [0, 3, "2"])
def test_another_order_is_refused(order):
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        gradcheck.check(tinygrad_bn.Tensor.tanh, (tensor(3),), order=order)


def test_the_options_of_check_pair_are_passed_on():
    report = gradcheck.check(
        lambda x, y: x * y,
        (tensor(3), tensor(3)),
        differentiable=("y",),
        input_names=("x", "y"),
        name="times",
    )
    assert report.name == "times"
    assert [check.input for check in report.checks if check.name == "gradient"] == ["y"]


def wrong_backward(saved, cotangent):
    return tuple(-each for each in norm_backward(saved, cotangent))


def test_a_failure_names_the_line_that_repeats_it():
    report = gradcheck.check_pair(
        batch_norm, wrong_backward, batch_norm_inputs(np.random.default_rng(0)), seed=7, zero=()
    )
    call, _, place = report.again.partition("   # ")
    assert call == "gradcheck.check_pair(forward, wrong_backward, inputs, seed=7)"
    assert "pairs.py:" in place and place.startswith("forward is at ")
    assert f"again: {report.again}" in str(report)


def test_options_that_can_be_written_are_repeated():
    report = gradcheck.check_pair(
        batch_norm,
        wrong_backward,
        batch_norm_inputs(np.random.default_rng(0)),
        differentiable=("x",),
        stress=3,
    )
    assert "inputs, differentiable=('x',), stress=3, seed=0)" in report.again


def test_a_lambda_is_called_by_its_role():
    report = gradcheck.check_pair(lambda x: (2 * x, None), lambda saved, c: (3 * c,), (np.ones(3),))
    assert report.again.startswith(
        "gradcheck.check_pair(forward, backward, inputs, seed=0)   # forward is at"
    )
    assert "test_check.py:" in report.again


def test_a_pass_repeats_nothing():
    report = gradcheck.check_pair(batch_norm, norm_backward, batch_norm_inputs(np.random.default_rng(0)))
    assert report.verdict is Verdict.PASS and report.again == ""


def test_a_failure_comes_with_what_was_found_out():
    report = gradcheck.check_pair(batch_norm, wrong_backward, batch_norm_inputs(np.random.default_rng(0)))
    assert [finding.input for finding in report.findings] == ["x", "weight", "bias"]
    passed = gradcheck.check_pair(batch_norm, norm_backward, batch_norm_inputs(np.random.default_rng(0)))
    assert passed.findings == ()
