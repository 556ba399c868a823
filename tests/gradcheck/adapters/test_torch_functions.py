"""torch functions of a user's: right ones pass, wrong ones fail with the reason, torch is left as it was."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

import gradcheck
from gradcheck import Verdict

torch = pytest.importorskip("torch", reason="torch is not installed")
Function = torch.autograd.Function
once_differentiable = torch.autograd.function.once_differentiable


def tensors(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


X, WEIGHT, BIAS = tensors((6, 3), 3, 3)


class BatchNorm(Function):
    """Right; its subclasses are wrong in one thing each."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        centred = x - x.mean(0)
        rstd = 1 / torch.sqrt((centred * centred).mean(0) + 1e-5)
        ctx.save_for_backward(centred * rstd, rstd, weight)
        return centred * rstd * weight + bias

    @staticmethod
    def backward(ctx, cotangent):
        return BatchNorm.gradients(*ctx.saved_tensors, cotangent)

    @staticmethod
    def gradients(x_hat, rstd, weight, cotangent, less=0):
        g = cotangent * weight
        variance_path = x_hat * (g * x_hat).sum(0) / (len(x_hat) - less)
        return rstd * (g - g.mean(0) - variance_path), (cotangent * x_hat).sum(0), cotangent.sum(0)


class UnbiasedVariance(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        return BatchNorm.gradients(*ctx.saved_tensors, cotangent, less=1)


class WeightForgotten(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        x_hat, rstd, weight = ctx.saved_tensors
        dx, _, _ = BatchNorm.gradients(x_hat, rstd, torch.ones_like(weight), cotangent)
        return dx, (cotangent * x_hat).sum(0), cotangent.sum(0)


class WrongSign(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        dx, dweight, dbias = BatchNorm.backward(ctx, cotangent)
        return dx, -dweight, dbias


class NoneForWeight(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        dx, _, dbias = BatchNorm.backward(ctx, cotangent)
        return dx, None, dbias


class InPlace(BatchNorm):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x -= x.mean(0)
        return BatchNorm.forward(ctx, x, weight, bias)


class DirtyCotangent(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        return BatchNorm.backward(ctx, cotangent.mul_(1))[0], *BatchNorm.backward(ctx, cotangent.mul_(2))[1:]


class OneBuffer(BatchNorm):
    buffer = torch.zeros_like(X)

    @classmethod
    def backward(cls, ctx, cotangent):
        dx, *others = BatchNorm.backward(ctx, cotangent)
        return cls.buffer.copy_(dx) if dx.dtype == cls.buffer.dtype else dx, *others


class PreviousCall(BatchNorm):
    last = None

    @classmethod
    def forward(cls, ctx, x, weight, bias):
        cls.last = BatchNorm.forward(ctx, x, weight, bias), ctx.to_save
        return cls.last[0]

    @classmethod
    def backward(cls, ctx, cotangent):
        return BatchNorm.gradients(*cls.last[1], cotangent)


class ExpandedMisread(BatchNorm):
    @staticmethod
    def backward(ctx, cotangent):
        dx, *others = BatchNorm.backward(ctx, cotangent)
        return dx, *(gradient * (1 + (0 in cotangent.stride())) for gradient in others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_right_function_passes(dtype):
    report = gradcheck.check(BatchNorm.apply, [value.to(dtype) for value in (X, WEIGHT, BIAS)])
    assert report.verdict is Verdict.PASS, report
    assert report.name == "BatchNorm"
    assert {check.input for check in report.checks if check.name == "gradient"} == {"x", "weight", "bias"}


@pytest.mark.parametrize(
    ("function", "verdict", "reason"),
    [
        (UnbiasedVariance, Verdict.FAIL, "divided by N − 1 = 5 instead of N = 6"),
        (WeightForgotten, Verdict.FAIL, "weight"),
        (WrongSign, Verdict.FAIL, "the sign is wrong"),
        (NoneForWeight, Verdict.FAIL, "zero everywhere"),
        (InPlace, Verdict.ERROR, "forward modified its input x"),
        (DirtyCotangent, Verdict.ERROR, "modified its cotangent"),
        (OneBuffer, Verdict.ERROR, "changed after it was returned"),
        (PreviousCall, Verdict.FAIL, "another call"),
        (ExpandedMisread, Verdict.FAIL, "stride 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_function_is_seen_for_what_is_wrong(function, verdict, reason):
    report = gradcheck.check(function.apply, (X, WEIGHT, BIAS))
    assert report.verdict is verdict, report
    assert reason in str(report)


def test_the_function_itself_will_do_and_its_inputs_go_by_their_names():
    report = gradcheck.check(WrongSign, (X, WEIGHT, BIAS), differentiable=("x", "bias"))
    assert report.verdict is Verdict.PASS, report


def test_a_function_with_a_context_of_its_own_has_names_too():
    class Scaled(Function):
        @staticmethod
        def forward(x, factor):
            return x * factor

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.factor = inputs[1]

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * ctx.factor, None

    report = gradcheck.check(Scaled.apply, (X, 3.0), differentiable=("x",))
    assert report.verdict is Verdict.PASS and report.inputs == ("x (6, 3) float64",)


def test_inputs_that_require_a_gradient_are_those_that_are_checked():
    x = X.clone().requires_grad_()
    report = gradcheck.check(WrongSign.apply, (x, WEIGHT, BIAS))
    assert report.verdict is Verdict.PASS
    assert {check.input for check in report.checks if check.name == "gradient"} == {"x"}
    assert x.grad is None


# The memory of torch


def test_memory_layouts_reach_the_function():
    strides = {"input": set(), "cotangent": set()}

    class Seen(Function):
        @staticmethod
        def forward(ctx, x):
            strides["input"].add(x.stride())
            return x * 2

        @staticmethod
        def backward(ctx, cotangent):
            strides["cotangent"].add(cotangent.stride())
            return cotangent * 2

    assert gradcheck.check(Seen.apply, (X,)).verdict is Verdict.PASS
    for seen in strides.values():
        assert {(3, 1), (1, 6), (6, 2), (0, 1)} <= seen  # contiguous, transposed, strided, expanded
    assert (0, 0) in strides["cotangent"]


def test_an_input_that_is_marked_dirty_is_an_error():
    class Doubled(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * 2

    report = gradcheck.check(Doubled.apply, (X,))
    assert report.verdict is Verdict.ERROR and "in-place" in str(report)


class Sum(Function):
    """Hands one tensor on as both gradients, which torch copies where it accumulates them."""

    @staticmethod
    def forward(ctx, x, y):
        return x + y

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent, cotangent


class SumIntoOneBuffer(Sum):
    buffer = torch.zeros_like(X)

    @classmethod
    def backward(cls, ctx, cotangent):
        return (
            (cls.buffer.copy_(cotangent),) * 2 if cotangent.dtype == cls.buffer.dtype else Sum.backward(ctx)
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        Sum.apply,
        lambda x, y: torch.nn.functional.layer_norm(x + y, (3,)),
        lambda x, y: torch.cat([x, y]),
    ],
    ids=["plus", "function", "residual norm", "cat"],
)
def test_one_gradient_for_two_inputs_may_be_one_tensor(function):
    report = gradcheck.check(function, (X, X.flip(0)))
    assert report.verdict is Verdict.PASS, report


def test_a_buffer_that_the_next_call_overwrites_is_an_error_beside_another_gradient_too():
    report = gradcheck.check(SumIntoOneBuffer.apply, (X, X.flip(0)))
    assert report.verdict is Verdict.ERROR and "changed after it was returned" in str(report), report


def test_a_sparse_gradient_is_checked():
    rows = torch.tensor([0, 2, 2])
    report = gradcheck.check(lambda w: torch.nn.functional.embedding(rows, w, sparse=True), (X,))
    assert report.verdict is Verdict.PASS, report


# Randomness


class Redrawn(Function):
    """Draws its mask once more in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x * (torch.rand_like(x) < 0.5)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * (torch.rand_like(cotangent) < 0.5)


class DrawnBackward(Function):
    """Draws in the backward pass alone: 1, however it falls."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * (torch.rand_like(cotangent) < 2)


def own_generator():
    generator = torch.Generator().manual_seed(0)
    return lambda x: x * (torch.rand(x.shape, generator=generator, dtype=x.dtype) < 0.5)


def raising(x):
    torch.rand(1)
    raise ArithmeticError("no")


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda x: torch.nn.functional.dropout(x, 0.5), Verdict.PASS),
        (Redrawn.apply, Verdict.FAIL),
        (DrawnBackward.apply, Verdict.PASS),
        (own_generator(), Verdict.INCONCLUSIVE),
        (raising, Verdict.ERROR),
    ],
    ids=["frozen", "redrawn", "backward alone", "own generator", "raising"],
)
def test_the_generator_of_torch_is_frozen_and_left_as_it_was(function, verdict):
    before = torch.get_rng_state()
    report = gradcheck.check(function, (X,))
    assert report.verdict is verdict, report
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_that_is_drawn_anew_is_another_mask():
    """The backward pass goes on where its forward pass stopped, as it does in use."""
    report = gradcheck.check(Redrawn.apply, (X,))
    assert verdicts(report)["gradient"] is Verdict.FAIL, report


# Second order and forward mode


class Cube(Function):
    """x³, with a forward mode of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class DetachedBackward(Cube):
    @staticmethod
    def backward(ctx, cotangent):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * cotangent


class WrongJvp(Cube):
    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] ** 2 * tangent


class Once(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        return 3 * ctx.saved_tensors[0] ** 2 * cotangent


def verdicts(report):
    """The worst verdict of each kind of check."""
    return {check.name: check.verdict for check in sorted(report.checks, key=lambda check: check.verdict)}


def test_the_gradient_of_the_gradient():
    right = gradcheck.check(Cube.apply, (X,), order=2)
    assert right.verdict is Verdict.PASS and "second order" in verdicts(right), right
    wrong = gradcheck.check(DetachedBackward.apply, (X,), order=2)
    assert verdicts(wrong)["gradient"] is Verdict.PASS
    assert verdicts(wrong)["second order"] is Verdict.FAIL
    assert (
        "d(dx)/dx: the gradient of the gradient is zero where it is not: the backward pass is cut off "
        in str(wrong)
    )


def test_a_backward_pass_that_is_once_differentiable_has_no_second_order():
    assert gradcheck.check(Once.apply, (X,)).verdict is Verdict.PASS
    reason = r"differentiated again; second order: not possible, Once\.backward is once_differentiable$"
    with pytest.raises(ValueError, match=reason):
        gradcheck.check(Once.apply, (X,), order=2)


def test_a_jvp_of_the_functions_own_is_checked():
    assert verdicts(gradcheck.check(Cube.apply, (X,)))["JVP against VJP"] is Verdict.PASS
    wrong = verdicts(gradcheck.check(WrongJvp.apply, (X,)))
    assert (wrong["gradient"], wrong["JVP against VJP"]) == (Verdict.PASS, Verdict.FAIL)


def test_without_a_jvp_the_report_says_so():
    notes = gradcheck.check(BatchNorm.apply, (X, WEIGHT, BIAS)).notes
    assert "JVP against VJP: not made, BatchNorm has no jvp" in notes


# Inputs and outputs


def test_what_is_no_floating_tensor_is_passed_on():
    seen = []

    def function(x, rows, factors, scale, name):
        seen.append((rows.dtype, factors.dtype, scale, name))
        return x[rows] * factors.real * scale

    inputs = (X, torch.tensor([2, 0, 2]), torch.ones(3, dtype=torch.complex64).conj(), 0.5, "none")
    assert gradcheck.check(function, inputs).verdict is Verdict.PASS
    assert set(seen) == {(torch.int64, torch.complex64, 0.5, "none")}


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: (x * x).sum(), (X,)),
        (torch.nn.functional.mse_loss, tensors((6, 3), (6, 3))),
        (torch.sin, tensors(())),
        (torch.sin, tensors((), dtype=torch.float32)),
        (lambda x, scale: x * scale, tensors((6, 3), ())),
    ],
    ids=["sum", "mse_loss", "number", "float32 number", "scale"],
)
def test_numbers_without_axes_are_checked_too(function, inputs):
    report = gradcheck.check(function, inputs)
    assert report.verdict is Verdict.PASS, report


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (X.bfloat16(), "input other is bfloat16, which NumPy does not have; .* float32"),
        (X.to_sparse(), r"input other is a sparse tensor .torch.sparse_coo.; give its to_dense\(\)"),
        (X.to("meta"), "input other is on the device meta, where tensors have no values"),
    ],
    ids=["bfloat16", "sparse", "meta"],
)
def test_a_tensor_that_is_no_array_is_refused_by_its_name(value, reason):
    with pytest.raises(TypeError, match=reason):
        gradcheck.check(lambda x, other: x * other, (X, value))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.arange(3), "x has dtype int64, which has no derivative; convert it to float64"),
        (torch.ones(3, dtype=torch.complex128), "x has dtype complex128; .* real and imaginary parts"),
    ],
    ids=["int64", "complex128"],
)
def test_inputs_without_a_floating_one_are_refused_with_what_they_are(value, reason):
    with pytest.raises(TypeError, match=f"no input can be differentiated: {reason}"):
        gradcheck.check(lambda x: x * 2, (value,))


def test_a_class_is_refused():
    with pytest.raises(TypeError, match=r"fn is the class LayerNorm, .*; call it first: LayerNorm\(…\)"):
        gradcheck.check(torch.nn.LayerNorm, (X,))


def test_torch_does_not_warn_of_a_number_that_the_check_reports():
    program = """
import torch, gradcheck
print(gradcheck.check(lambda x: float(x.sum()), (torch.ones(3),)))
"""
    command = [sys.executable, "-W", "always", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the function returned float, wanted one torch.Tensor; leave out float(…)" in done.stdout
    assert done.stderr == ""


class IndexedBeyond(Sum):
    @staticmethod
    def backward(ctx, cotangent):
        return cotangent, cotangent[99]


def test_a_backward_pass_that_raises_is_shown_with_its_line():
    report = gradcheck.check(IndexedBeyond.apply, (X, X))
    line = IndexedBeyond.backward.__code__.co_firstlineno + 2
    assert "backward raised IndexError: index 99 is out of" in report.reasons[0]
    assert report.reasons[0].endswith(f", at test_torch_functions.py:{line}")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x, x * 2), "returned tuple, wanted one torch.Tensor; check its 2 parts one at a time"),
        (lambda x: x.detach().numpy(), "the function returned ndarray, wanted one torch.Tensor"),
        (lambda x: float(x.sum()), "the function returned float"),
        (lambda x: x.detach() * 2, "the function left the graph"),
        (lambda x: x.reshape(7), "forward raised RuntimeError"),
        (lambda x: x.bfloat16(), "forward raised TypeError"),
    ],
    ids=["two tensors", "array", "number", "detached", "exception", "bfloat16"],
)
def test_what_cannot_be_checked_is_an_error_that_says_why(function, reason):
    report = gradcheck.check(function, (X,))
    assert report.verdict is Verdict.ERROR and reason in str(report), report


def test_warnings_are_the_callers():
    def warning(x):
        warnings.warn("look here", UserWarning, stacklevel=1)
        return torch.tanh(x)

    with pytest.warns(UserWarning, match="look here"):
        assert gradcheck.check(warning, (X,)).verdict is Verdict.PASS


def test_no_grad_around_a_check_changes_nothing():
    with torch.no_grad():
        assert gradcheck.check(torch.tanh, (X,)).verdict is Verdict.PASS
        assert not torch.is_grad_enabled()


# Modules


def test_a_module_keeps_its_statistics_and_is_judged_in_float64():
    module = torch.nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = gradcheck.check(module, (X.float(),))
    assert report.verdict is Verdict.PASS and report.name == "BatchNorm1d", report
    assert "float32 gradient" in verdicts(report), "judged on float64 copies, then in float32"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_takes_arrays_and_parameters_are_checked_as_inputs():
    module = torch.nn.Linear(3, 2).double()
    assert gradcheck.check(module, (X.numpy(),)).verdict is Verdict.PASS

    def of_parameters(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    report = gradcheck.check(of_parameters, (X, *(value.detach() for value in module.parameters())))
    assert report.verdict is Verdict.PASS and len(report.inputs) == 3
    assert np.isfinite(report.seconds)


def test_the_paths_for_fewer_gradients_are_tried():
    class Halved(BatchNorm):
        @staticmethod
        def backward(ctx, cotangent):
            dx, dweight, dbias = BatchNorm.backward(ctx, cotangent)
            return dx if all(ctx.needs_input_grad) else dx / 2, dweight, dbias

    report = gradcheck.check(Halved.apply, (X, WEIGHT, BIAS))
    assert report.verdict is Verdict.FAIL
    assert "asked for the gradient of x alone, backward gives another" in report.reasons[0]


@pytest.mark.parametrize("asks", [lambda x: x.requires_grad, lambda x: torch.is_grad_enabled()])
def test_the_output_without_a_gradient_is_the_same(asks):
    def function(x, weight, bias):
        output = BatchNorm.apply(x, weight, bias)
        return output if asks(x) else 1.01 * output

    report = gradcheck.check(function, (X, WEIGHT, BIAS))
    assert report.verdict is Verdict.FAIL
    assert "without a gradient to record, the function gives another output" in report.reasons[0]


def test_an_input_that_takes_no_part_is_no_error_where_it_is_asked_for_alone():
    report = gradcheck.check(lambda x, unused: x.sin(), (X, WEIGHT), zero=("unused",))
    assert report.verdict is Verdict.PASS, report


def test_a_function_that_wants_contiguous_inputs_passes():
    report = gradcheck.check(lambda x: x.view(-1).sin(), (X,))
    assert report.verdict is Verdict.PASS, report
    assert any("forward refuses some" in note for note in report.notes)
