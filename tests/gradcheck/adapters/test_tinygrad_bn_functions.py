"""Functions of a user's on Tensors: right ones pass, wrong ones fail, and the report reads well."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.adapters import tinygrad_bn as adapter
from tinygrad_bn import functional, tensor

RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = RNG.normal(size=(4, 5)), RNG.normal(size=5), RNG.normal(size=5)


def tensors(*arrays, dtype="float64"):
    return tuple(None if array is None else tensor(array, dtype=dtype) for array in arrays)


def my_layer_norm(x, weight, bias):
    centred = x - functional.mean(x, -1, True)
    rstd = 1 / functional.sqrt(functional.mean(centred * centred, -1, True) + 1e-5)
    return centred * rstd * weight + bias


def detached_mean(x, weight, bias):
    """Forgets that the mean depends on x, as code that converts to NumPy on the way does."""
    return functional.layer_norm(x, 5, weight, bias) + (x - x.detach()) * 0.1


class Scaled:
    """A closure over a number, as an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return functional.tanh(x) * self.factor


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "fn",
    [my_layer_norm, lambda x, weight, bias: functional.layer_norm(x, 5, weight, bias)],
    ids=["own", "fused"],
)
def test_a_right_function_passes(fn, dtype):
    report = gradcheck.check(fn, tensors(X, WEIGHT, BIAS, dtype=dtype))
    assert report.verdict is Verdict.PASS, report
    assert {check.input for check in report.checks if check.name == "gradient"} == {"x", "weight", "bias"}


def test_a_wrong_function_fails_for_the_input_that_is_wrong():
    report = gradcheck.check(detached_mean, tensors(X, WEIGHT, BIAS))
    assert report.verdict is Verdict.FAIL
    wrong = {
        check.input
        for check in report.checks
        if check.name == "gradient" and check.verdict is not Verdict.PASS
    }
    assert wrong == {"x"}
    with pytest.raises(gradcheck.GradcheckError, match="FAIL  detached_mean"):
        report.raise_if_failed()


def test_the_report_names_the_function_its_inputs_and_the_numbers():
    lines = str(gradcheck.check(my_layer_norm, tensors(X, WEIGHT, BIAS), seed=3)).splitlines()
    assert lines[0] == "PASS  my_layer_norm   x (4, 5) float64, weight (5,), bias (5,)"
    assert [line.split()[0] for line in lines[1:4]] == ["dx", "dweight", "dbias"]
    assert all(" analytic " in line and " ± " in line for line in lines[1:4])
    assert "; seed 3" in lines[-2]


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (Scaled(2.0), "Scaled"),
        (functools.partial(functional.dropout, p=0.0), "partial"),
        (lambda x: functional.exp(x), "<lambda>"),
    ],
    ids=["object", "partial", "lambda"],
)
def test_any_callable_will_do(fn, name):
    report = gradcheck.check(fn, tensors(X))
    assert (report.verdict, report.name) == (Verdict.PASS, name)


def test_a_closure_over_tensors_is_checked_for_its_arguments_only():
    weight = tensor(WEIGHT, requires_grad=True)
    report = gradcheck.check(lambda x: functional.rms_norm(x, 5, weight), tensors(X))
    assert report.verdict is Verdict.PASS
    assert weight.grad is None


def test_the_tensors_that_were_given_are_left_alone():
    x = tensor(X, requires_grad=True)
    before = x.numpy()
    gradcheck.check(lambda x: functional.tanh(x), (x,))
    assert x.grad is None and np.array_equal(x.data, before)


def test_a_tensor_in_the_middle_of_a_tape_can_be_an_input():
    x = tensor(X, requires_grad=True) * 2
    assert gradcheck.check(lambda x: functional.tanh(x), (x,)).verdict is Verdict.PASS


def test_absent_inputs_and_arrays_among_the_inputs():
    x, weight = tensors(X, WEIGHT)
    report = gradcheck.check(lambda x, w, b: functional.layer_norm(x, 5, w, b), (x, weight, None))
    assert report.verdict is Verdict.PASS
    report = gradcheck.check(lambda x, w: functional.rms_norm(x, 5, w), (x, WEIGHT))
    assert report.verdict is Verdict.PASS and len(report.inputs) == 2


def test_an_array_of_integers_is_passed_on_as_it_is():
    rows = np.array([2, 0, 2])
    report = gradcheck.check(lambda x, rows: x[rows], (tensor(X), rows), differentiable=["x"])
    assert report.verdict is Verdict.PASS, report


@pytest.mark.parametrize("wanted", [("x",), (0,), ["x", "weight"]], ids=str)
@pytest.mark.parametrize("as_given", [lambda array: array, tensor], ids=["arrays", "tensors"])
def test_inputs_that_are_not_wanted_need_no_gradient(wanted, as_given):
    """Running statistics have none: batch_norm refuses those that require one."""

    def inference(x, weight, mean, variance):
        return functional.batch_norm(x, mean, variance, weight)

    statistics = as_given(np.zeros(5)), as_given(np.ones(5))
    report = gradcheck.check(inference, (*tensors(X, WEIGHT), *statistics), differentiable=wanted)
    assert report.verdict is Verdict.PASS, report
    assert {check.input for check in report.checks if check.name == "gradient"} <= {"x", "weight"}


def test_a_name_that_is_no_input_is_refused():
    with pytest.raises(ValueError, match="differentiable names 'y'; the inputs are x"):
        gradcheck.check(lambda x: functional.tanh(x), tensors(X), differentiable=("y",))


def test_an_input_that_is_not_used_is_vacuous_unless_it_is_declared_zero():
    def unused(x, other):
        return functional.tanh(x)

    report = gradcheck.check(unused, tensors(X, WEIGHT))
    assert report.verdict is Verdict.VACUOUS
    (check,) = (check for check in report.checks if check.verdict is Verdict.VACUOUS)
    assert check.input == "other" and "nothing was checked" in check.reason
    assert gradcheck.check(unused, tensors(X, WEIGHT), zero=["other"]).verdict is Verdict.PASS


def test_an_input_that_is_used_behind_the_back_of_the_tape_fails():
    report = gradcheck.check(lambda x, other: x * tensor(other.data), tensors(X, WEIGHT))
    assert report.verdict is Verdict.FAIL
    assert {check.input for check in report.checks if check.verdict is Verdict.FAIL} == {"other"}


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: x.data, "the function returned ndarray, wanted one tinygrad_bn.Tensor"),
        (lambda x: (x * 2, x * 3), "the function returned tuple, wanted one tinygrad_bn.Tensor"),
        (lambda x: float(x.data.sum()), "the function returned float"),
        (lambda x: x.reshape(3), "forward raised ValueError"),
        (lambda x: x.detach() * 2, "backward raised"),
    ],
    ids=["array", "two tensors", "number", "exception", "cut off"],
)
def test_what_cannot_be_checked_is_an_error_that_says_why(fn, reason):
    report = gradcheck.check(fn, tensors(X))
    assert report.verdict is Verdict.ERROR
    assert any(reason in check.reason for check in report.checks), report


def test_a_mask_that_is_drawn_anew_is_inconclusive_and_a_frozen_one_passes():
    generator = tinygrad_bn.Generator(0)
    report = gradcheck.check(lambda x: functional.dropout(x, 0.5, generator=generator), tensors(X))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert any("stochastic" in reason for reason in report.reasons)

    def frozen(x):
        return functional.dropout(x, 0.5, generator=tinygrad_bn.Generator(0))

    assert gradcheck.check(frozen, tensors(X)).verdict is Verdict.PASS


def test_only_tensors_are_recognised():
    assert adapter.recognises(my_layer_norm, (None, tensor(X)))
    assert not adapter.recognises(my_layer_norm, (X, None, 1.0))
    with pytest.raises(TypeError, match=r"check\(\) got inputs of numpy.ndarray"):
        gradcheck.check(my_layer_norm, (X, WEIGHT, BIAS))


@pytest.mark.parametrize(
    "fn",
    [functional.tanh, lambda x: (x * x).sum()],
    ids=["number", "sum"],
)
def test_numbers_without_axes_are_checked_too(fn):
    for x in (np.array(0.5), np.array(0.5, np.float32)):
        assert gradcheck.check(fn, tensors(x)).verdict is Verdict.PASS
    assert gradcheck.check(lambda x: (x * x).sum(), tensors(X)).verdict is Verdict.PASS


def test_one_gradient_for_two_inputs_may_be_one_array():
    assert gradcheck.check(lambda a, b: a + b, tensors(X, X)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.arange(6).reshape(2, 3), "input has dtype int64, which has no derivative; convert it to float64"),
        (np.ones((2, 3), complex), "input has dtype complex128; .* real and imaginary parts"),
    ],
    ids=["int64", "complex128"],
)
def test_an_operation_by_name_says_what_it_got_that_has_no_derivative(value, reason):
    with pytest.raises(TypeError, match=reason):
        gradcheck.check("layer_norm", (value, None, None), attributes={"normalized_shape": (3,)})


def test_an_operation_by_name_refuses_tensors_of_another_framework():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match=r"input input is a Tensor of torch; .* or NumPy arrays"):
        gradcheck.check("layer_norm", (torch.ones(2, 3), None), attributes={"normalized_shape": (3,)})


# Randomness


def raising(x):
    tinygrad_bn.default_generator().next_call()
    raise ArithmeticError("no")


@pytest.mark.parametrize(
    ("fn", "verdict"),
    [(lambda x: functional.dropout(x, 0.5), Verdict.PASS), (raising, Verdict.ERROR)],
    ids=["dropout", "raising"],
)
def test_the_default_generator_is_frozen_and_left_as_it_was(fn, verdict):
    before = tinygrad_bn.default_generator().state
    assert gradcheck.check(fn, tensors(X)).verdict is verdict
    assert tinygrad_bn.default_generator().state == before


# Forward mode and second order


def test_primitives_have_no_other_source_for_forward_mode():
    report = gradcheck.check(my_layer_norm, tensors(X, WEIGHT, BIAS))
    assert not any(check.name == "JVP against VJP" for check in report.checks)
    assert any("JVP against VJP: not made, no compiled kernel ran" in note for note in report.notes)


@pytest.mark.parametrize("fn", [my_layer_norm, lambda x, w, b: functional.layer_norm(x, 5, w, b)])
def test_the_gradient_of_the_gradient(fn):
    report = gradcheck.check(fn, tensors(X, WEIGHT, BIAS), order=2)
    assert report.verdict is Verdict.PASS, report
    assert {"second order", "second order symmetry"} <= {check.name for check in report.checks}


def test_a_wrong_second_derivative_is_seen():
    report = gradcheck.check(lambda x: x * functional.tanh(x.detach()) + x * x * 0, tensors(X), order=2)
    assert report.verdict is Verdict.FAIL
