"""The gradient of the gradient, in hand-written NumPy pairs and in frameworks."""

from __future__ import annotations

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.derivatives.second_order import check_second_order
from gradcheck.subject import make_subject
from tinygrad_bn import functional


def x_and(*shapes):
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def cubed(factor=1.0, skew=0.0):
    """Of y = w·x³: the gradients (3wx²ȳ, x³ȳ) as a forward pass, and their backward pass, to be spoilt."""

    def gradients(x, w, c):
        return np.concatenate([3 * w * x * x * c, x**3 * c]), (x, w, c)

    def backward(saved, cotangent):
        x, w, c = saved
        p, q = np.split(cotangent, 2)
        dx = 6 * w * x * c * p * factor + 3 * x * x * c * q + skew * np.roll(p, 1)
        return dx, 3 * x * x * c * p, 3 * w * x * x * p + x**3 * q

    return gradients, backward


def checks_of(pair, inputs):
    names = (*(f"x{k}" for k in range(len(inputs) - 1)), "cotangent")
    subject = make_subject(*pair, inputs, input_names=names, framework=True)
    return {
        (check.name, check.input): check for check in check_second_order(subject, np.random.default_rng(0))
    }


def test_a_right_double_backward_passes():
    checks = checks_of(cubed(), x_and(4, 4, 4))
    assert {check.verdict for check in checks.values()} == {Verdict.PASS}
    assert ("second order symmetry", None) in checks
    assert ("second order", "cotangent") in checks


def test_a_wrong_second_derivative_fails_at_its_input_alone():
    checks = checks_of(cubed(factor=1 + 1e-7), x_and(4, 4, 4))
    assert checks["second order", "x0"].verdict is Verdict.FAIL
    assert checks["second order", "x0"].reason.startswith("d(dx0)/dx0: analytic ")
    assert checks["second order", "x1"].verdict is Verdict.PASS
    assert checks["second order symmetry", None].verdict is Verdict.PASS, "a wrong diagonal is symmetric"


def test_the_reason_names_every_gradient_with_a_wrong_derivative():
    gradients, backward = cubed()

    def forgetful(saved, cotangent):
        dx, dw, dc = backward(saved, cotangent)
        return dx, 0 * dw, dc * 1.5

    checks = checks_of((gradients, forgetful), x_and(4, 4, 4))
    assert checks["second order", "x1"].reason.startswith("d(dx0)/dx1: ")
    assert "cut off" not in checks["second order", "cotangent"].reason
    both = "d(dx0)/dcotangent, d(dx1)/dcotangent: "
    assert checks["second order", "cotangent"].reason.startswith(both)


def test_a_hessian_that_is_not_symmetric_fails_to_rounding():
    checks = checks_of(cubed(skew=1e-11), x_and(4, 4, 4))
    symmetry = checks["second order symmetry", None]
    assert symmetry.verdict is Verdict.FAIL
    assert "the Hessian is not symmetric" in symmetry.reason


def test_gradients_that_do_not_depend_on_an_input_pass_with_the_reason():
    def forward(x, c):
        return 2 * c, None

    checks = checks_of((forward, lambda saved, c: (np.zeros(4), 2 * c)), x_and(4, 4))
    linear = checks["second order", "x0"]
    assert linear.verdict is Verdict.PASS
    assert linear.reason == "zero: the gradients do not depend on x0"


def test_a_double_backward_of_zeros_fails_where_the_second_derivative_is_not_zero():
    gradients, backward = cubed()
    zeros = lambda saved, c: (np.zeros(4), *backward(saved, c)[1:])  # noqa: E731
    check = checks_of((gradients, zeros), x_and(4, 4, 4))["second order", "x0"]
    assert check.verdict is Verdict.FAIL and "the backward pass is cut off from x0 (detach" in check.reason


def test_a_double_backward_that_raises_is_an_error():
    gradients, _ = cubed()

    def backward(saved, cotangent):
        raise NotImplementedError("no second derivative")

    (check,) = checks_of((gradients, backward), x_and(4, 4, 4)).values()
    assert check.verdict is Verdict.ERROR
    assert "no second derivative" in check.reason


def test_tinygrad_bn_functions_pass():
    x, weight, bias = (tinygrad_bn.tensor(array, requires_grad=True) for array in x_and((3, 4), 4, 4))

    def layer_norm(x, weight, bias):
        return functional.layer_norm(x, 4, weight, bias)

    report = gradcheck.check(layer_norm, (x, weight, bias), order=2)
    assert report.verdict is Verdict.PASS, str(report)
    names = [check.name for check in report.checks]
    assert names.count("second order") == 4 and "second order symmetry" in names


def test_a_torch_function_whose_double_backward_is_wrong_fails():
    torch = pytest.importorskip("torch")

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return 3 * cotangent * x * x.detach()

    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck.check(Cube.apply, (x,)).verdict is Verdict.PASS
    report = gradcheck.check(Cube.apply, (x,), order=2)
    assert report.verdict is Verdict.FAIL
    assert {check.name for check in report.checks if check.verdict is Verdict.FAIL} == {"second order"}
    assert report.again.startswith("gradcheck.check(Cube.apply, inputs, order=2, seed=0)")


def test_a_torch_function_that_is_once_differentiable_is_refused_with_the_reason():
    torch = pytest.importorskip("torch")

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, cotangent):
            return 3 * cotangent * ctx.saved_tensors[0] ** 2

    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"order=2 needs gradients .*once_differentiable"):
        gradcheck.check(Cube.apply, (x,), order=2)
