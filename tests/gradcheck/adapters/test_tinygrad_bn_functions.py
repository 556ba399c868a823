"""Functions of a user's on Tensors: right ones pass, wrong ones fail, and the report reads well."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.axes import Configuration
from tinygrad_bn import Kernel, Sample, Tensor, functional, tensor

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
    assert lines[-1].endswith("; seed 3")


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


# An operation that a user declares, with a kernel of theirs


class Softplus:
    """log(1 + eˣ) and its derivative, times `wrong`."""

    def __init__(self, wrong=1.0):
        self.wrong = wrong

    def forward(self, plan, x):
        return np.log1p(np.exp(x)), ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        return (cotangent * self.wrong / (1 + np.exp(-arrays[0])),)


right, wrong = Softplus(), Softplus(1 + 1e-9)


@pytest.fixture(params=["right", "wrong"])
def softplus(request):
    registry = tinygrad_bn.Registry(entry_points=list)

    @tinygrad_bn.operation(
        "mine::softplus",
        registry=registry,
        kernels=(Kernel("numpy", f"{__name__}:{request.param}"),),
        samples=lambda rng: [Sample("one", (rng.normal(size=3),))],
    )
    def softplus(xp, x):
        """log(1 + eˣ)"""
        return xp.log(xp.exp(x) + 1), ()

    return request.param, softplus


def test_a_kernel_of_a_users_is_checked_and_a_wrong_one_fails(softplus):
    which, operation = softplus
    report = gradcheck.check(lambda x: operation(x), tensors(X))
    assert report.verdict is (Verdict.PASS if which == "right" else Verdict.FAIL)
    assert gradcheck.check(lambda x: operation(x, kernel="definition"), tensors(X)).verdict is Verdict.PASS


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


def test_a_kernel_is_compared_with_its_definitions_forward_mode(softplus):
    which, operation = softplus
    report = gradcheck.check(lambda x: operation(x), tensors(X))
    (check,) = (check for check in report.checks if check.name == "JVP against VJP")
    assert check.verdict is (Verdict.PASS if which == "right" else Verdict.FAIL)


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


# Registered operations


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("layer_norm", (X, WEIGHT, BIAS), {"normalized_shape": 5}),
        ("norm::rms_norm", (X, WEIGHT), {"normalized_shape": 5, "eps": 1e-3}),
        ("batch_norm", (X, WEIGHT, BIAS), {"channel_axis": 1, "eps": 1e-5}),
        ("batch_norm_inference", (X, WEIGHT, None, np.zeros(5), np.ones(5)), {"channel_axis": 1, "eps": 0.1}),
        ("dropout", (X,), {"p": 0.5}),
        ("matmul", (X, X.T.copy()), {}),
        ("concatenate", (X, X + 1), {"axis": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_operation_by_its_name(name, inputs, attributes):
    report = gradcheck.check(name, inputs, attributes=attributes)
    assert report.verdict is Verdict.PASS and report.name == name, report


def test_the_inputs_of_an_operation_go_by_their_names():
    inputs, attributes = tensors(X, WEIGHT, BIAS), {"normalized_shape": 5}
    report = gradcheck.check("layer_norm", inputs, attributes=attributes, differentiable=("weight",))
    assert {check.input for check in report.checks if check.name == "gradient"} == {"weight"}


@pytest.mark.parametrize(
    ("name", "attributes", "error", "match"),
    [
        ("layernorm", {}, LookupError, "did you mean layer_norm"),
        ("layer_norm", {}, TypeError, r"needs normalized_shape; pass attributes=\{'normalized_shape': "),
        ("layer_norm", {"normalised_shape": 5}, TypeError, "did you mean 'normalized_shape'"),
        ("tanh", {"axis": 0}, TypeError, "no attribute 'axis'; its attributes are none"),
    ],
)
def test_a_name_or_an_attribute_that_does_not_exist_is_refused(name, attributes, error, match):
    with pytest.raises(error, match=match):
        gradcheck.check(name, (X,), attributes=attributes)


class Lopsided(Softplus):
    """Wrong in float32 alone."""

    def vjp(self, plan, needs, cotangent, arrays, aux):
        factor = 1 if cotangent.dtype == np.float64 else cotangent.dtype.type(1.01)
        return (super().vjp(plan, needs, cotangent, arrays, aux)[0] * factor,)


lopsided = Lopsided()


def declared(*kernels, **declaration):
    def definition(xp, x):
        """log(1 + eˣ)"""
        return xp.log(xp.exp(x) + 1), ()

    declare = tinygrad_bn.operation(
        "mine::softplus",
        registry=tinygrad_bn.Registry(entry_points=list),
        kernels=kernels,
        samples=lambda rng: [Sample("one", (rng.normal(size=3),)), Sample("scalar", (rng.normal(size=()),))],
        **declaration,
    )
    return declare(definition).spec


def test_every_sample_is_checked_by_every_kernel_in_every_dtype():
    kernels = (Kernel("good", f"{__name__}:right"), Kernel("bad", f"{__name__}:lopsided"))
    reports = dict(adapter.check_operation(declared(*kernels)))
    names = ("one", "scalar")
    assert reports.keys() == {
        f"{name}, {kernel} {dtype}"
        for name in names
        for kernel in ("good", "bad")
        for dtype in ("float32", "float64")
    }
    failed = {name for name, report in reports.items() if report.verdict is not Verdict.PASS}
    assert failed == {f"{name}, bad float32" for name in names}


def test_a_kernel_that_serves_no_sample_is_an_error():
    kernels = Kernel("busy", f"{__name__}:right"), Kernel("idle", f"{__name__}:right", dtypes=("float16",))
    reports = dict(adapter.check_operation(declared(*kernels)))
    assert reports["kernel idle"].verdict is Verdict.ERROR
    assert "serves no sample" in str(reports["kernel idle"])


def test_error_samples_must_raise_what_they_say():
    def errors(rng):
        yield Sample("integers", (np.arange(3),), {}, TypeError, "dtype int64")
        yield Sample("says another", (np.arange(3),), {}, TypeError, "complex")
        yield Sample("is none", (np.ones(3),), {}, ValueError, "")

    reports = adapter.check_operation(declared(error_samples=errors))
    verdicts = {name: report.verdict for name, report in reports if name.startswith("error sample")}
    assert verdicts == {
        "error sample integers": Verdict.PASS,
        "error sample says another": Verdict.FAIL,
        "error sample is none": Verdict.FAIL,
    }


@pytest.mark.parametrize("name", ["power", "concatenate", "dropout::scale"])
def test_built_in_operations_pass_at_their_samples(name):
    reports = adapter.check_operation(tinygrad_bn.REGISTRY.get(name))
    # x⁰ has gradient zero by its exponent, which no declaration says.
    assert {report.verdict for sample, report in reports if sample != "exponent 0"} == {Verdict.PASS}


# The built-in configurations


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("p", [0.5, 0.999])
def test_a_mask_keeps_something_whatever_the_seed(p, seed):
    """Where all is dropped nothing would be checked, which is no fault of the operation."""
    c = Configuration("dropout", (2,), mask_axes=(0,), p=p, scaling="upscale_in_train", affine="none")
    arrays = c.draw(seed)
    output = adapter.call(c, arrays, "sequential", seed)(Tensor(np.ones(2)))
    assert output.data.any()
    result = adapter.check_configuration(c, seed)
    assert result.verdict is Verdict.PASS, result.reasons


def test_a_mask_that_drops_all_by_declaration_is_zero():
    for mode, scaling in (("training", "upscale_in_train"), ("inference", "downscale_in_infer")):
        c = Configuration("dropout", (5,), mask_axes=(0,), p=1.0, scaling=scaling, mode=mode, affine="none")
        result = adapter.check_configuration(c)
        assert result.verdict is Verdict.PASS, result.reasons
        assert result.resolution is None


def test_the_largest_seed_is_a_seed():
    c = Configuration("dropout", (5,), mask_axes=(0,), p=0.5, scaling="upscale_in_train", affine="none")
    assert adapter.check_configuration(c, 2**64 - 1).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "text",
    [
        "layer_norm shape=3,2 tail=1 eps=0",
        "rms_norm shape=3,1 tail=1 eps=0",
        "layer_norm shape=3,1 tail=1 eps=0.001",
        "instance_norm shape=2,3,2 channel_axis=1 dtype=float32 affine=none",
    ],
)
def test_groups_of_one_or_two_values_pass(text):
    result = adapter.check_configuration(Configuration.parse(text))
    assert result.verdict is Verdict.PASS, result.reasons


def test_a_given_array_is_what_is_checked():
    c = Configuration("layer_norm", (4, 5), tail=1, values="given")
    result = adapter.check_configuration(c, 0, X, ("--input", "x.npy"))
    assert result.verdict is Verdict.PASS
    words = "--input x.npy --case 'layer_norm shape=4,5 tail=1 values=given' --seed 0"
    assert result.command == f"python cli.py gradcheck {words}"
    assert adapter.check_configuration(c, 0, np.ones((4, 5))).verdict is Verdict.VACUOUS
