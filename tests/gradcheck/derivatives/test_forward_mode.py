"""A hand-written jvp against the backward pass, and which of the two is said to be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import layer_norm, norm_backward

import gradcheck
from gradcheck import Verdict


def inputs(dtype=np.float64):
    rng = np.random.default_rng(3)
    shapes = (6, 4), (4,), (4,)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def jvp(inputs, tangents, factor=1.0):
    (x, weight, _), (dx, dweight, dbias) = inputs, tangents
    centre = x - x.mean(1, keepdims=True)
    rstd = 1 / np.sqrt((centre * centre).mean(1, keepdims=True) + x.dtype.type(1e-5))
    x_hat = centre * rstd
    moved = dx - dx.mean(1, keepdims=True)
    dx_hat = rstd * (moved - x_hat * (moved * x_hat).mean(1, keepdims=True))
    return dx_hat * weight * x.dtype.type(factor) + x_hat * dweight + dbias


def checks_of(jvp, backward=norm_backward, dtype=np.float64):
    report = gradcheck.check_pair(layer_norm, backward, inputs(dtype), jvp=jvp)
    return {check.input: check for check in report.checks if check.name == "JVP against VJP"}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_two_that_agree_pass_for_every_input(dtype):
    checks = checks_of(jvp, dtype=dtype)
    assert list(checks) == ["x", "weight", "bias"]
    assert {check.verdict for check in checks.values()} == {Verdict.PASS}
    assert all(check.resolution < 1e-11 for check in checks.values())


def test_without_a_jvp_there_is_no_check():
    assert not checks_of(None)


def test_a_wrong_jvp_is_named_however_slightly_wrong():
    checks = checks_of(lambda inputs, tangents: jvp(inputs, tangents, 1 + 1e-9))
    assert checks["x"].verdict is Verdict.FAIL
    assert "the jvp is wrong" in checks["x"].reason
    assert checks["weight"].verdict is checks["bias"].verdict is Verdict.PASS


def test_a_wrong_backward_pass_is_named():
    def backward(saved, cotangent):
        dx, dweight, dbias = norm_backward(saved, cotangent)
        return dx, dweight * (1 + 1e-7), dbias

    checks = checks_of(jvp, backward)
    assert "the backward pass is wrong" in checks["weight"].reason
    assert checks["x"].verdict is Verdict.PASS


def test_two_that_are_both_wrong_are_both_accused():
    checks = checks_of(
        lambda inputs, tangents: jvp(inputs, tangents, 1.5),
        lambda saved, cotangent: norm_backward(saved, cotangent, mean_path=False),
    )
    assert "neither" in checks["x"].reason


def test_a_jvp_that_cancels_where_the_backward_pass_does_not_is_granted_its_own_rounding():
    x = np.random.default_rng(0).standard_normal(8) + 1e4

    def through_large_numbers(inputs, tangents):
        (x,), (u,) = inputs, tangents
        far = 1e4 * x.sum()
        return np.asarray(2 * (((x + far) * u).mean() - (x.mean() + far) * u.mean()))

    report = gradcheck.check_pair(
        lambda x: (np.asarray(np.square(x - x.mean()).mean()), x),
        lambda x, cotangent: (cotangent * 2 * (x - x.mean()) / x.size,),
        (x,),
        jvp=through_large_numbers,
    )
    (check,) = [check for check in report.checks if check.name == "JVP against VJP"]
    assert check.verdict is Verdict.PASS, str(report)


def test_at_a_kink_both_may_be_right():
    x = np.array([0.0, 0.0, 1.0, -2.0])
    report = gradcheck.check_pair(
        lambda x: (np.abs(x), x),
        lambda x, cotangent: (cotangent * np.where(x < 0, -1.0, 1.0),),
        (x,),
        jvp=lambda inputs, tangents: tangents[0] * np.where(inputs[0] > 0, 1.0, -1.0),
    )
    (check,) = [check for check in report.checks if check.name == "JVP against VJP"]
    assert check.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "kink" in check.reason


def writing(inputs, tangents):
    tangents[0][...] = 0
    return jvp(inputs, tangents)


BROKEN = {
    "raises": (lambda inputs, tangents: jvp(inputs, tangents[:2]), "jvp raised ValueError"),
    "a list": (lambda inputs, tangents: list(jvp(inputs, tangents)), "it returned list"),
    "shape": (lambda inputs, tangents: jvp(inputs, tangents)[0], "jvp returned (4,) float64"),
    "dtype": (lambda inputs, tangents: jvp(inputs, tangents).astype(np.float32), "(6, 4) float32"),
    "modifies a tangent": (writing, "jvp modified an input or a tangent"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_contract_is_an_error(name):
    wrong, reason = BROKEN[name]
    checks = checks_of(wrong)
    assert checks["x"].verdict is Verdict.ERROR
    assert reason in checks["x"].reason


def test_tangents_are_none_for_inputs_without_a_gradient():
    seen = []

    def scaled_jvp(inputs, tangents):
        seen.append(tangents[1])
        return tangents[0] * inputs[1]

    report = gradcheck.check_pair(
        lambda x, factors: (x * factors, factors),
        lambda factors, c: (c * factors, None),
        (np.arange(4.0), np.arange(1, 5)),
        differentiable=("x",),
        jvp=scaled_jvp,
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert seen and all(tangent is None for tangent in seen)
