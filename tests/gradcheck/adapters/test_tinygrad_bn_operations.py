"""Registered operations by name, at their samples, and the built-in ones in their configurations."""

from __future__ import annotations

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.axes import Configuration
from tinygrad_bn import Kernel, Sample, Tensor, tensor

RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = RNG.normal(size=(4, 5)), RNG.normal(size=5), RNG.normal(size=5)


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
    report = gradcheck.check(lambda x: operation(x), (tensor(X),))
    assert report.verdict is (Verdict.PASS if which == "right" else Verdict.FAIL)
    assert gradcheck.check(lambda x: operation(x, kernel="definition"), (tensor(X),)).verdict is Verdict.PASS


def test_a_kernel_is_compared_with_its_definitions_forward_mode(softplus):
    which, operation = softplus
    report = gradcheck.check(lambda x: operation(x), (tensor(X),))
    (check,) = (check for check in report.checks if check.name == "JVP against VJP")
    assert check.verdict is (Verdict.PASS if which == "right" else Verdict.FAIL)


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
    inputs, attributes = (X, WEIGHT, BIAS), {"normalized_shape": 5}
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


def test_samples_of_one_name_are_told_apart():
    def samples(rng):
        return [Sample("same", (rng.normal(size=3),)), Sample("same", (rng.normal(size=4),))]

    found = adapter.cases(declared(hard_samples=samples))
    assert [case.name for case in found] == ["one", "scalar", "same", "same (2)"]


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
