"""The harness can fail: right and wrong kernels made of NumPy. And its views mean what the operations do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from harness import STORAGES, Norm, Operation, call, check, check_layouts, check_needs, example

from tinygrad_bn import namespace
from tinygrad_bn.kernels.cuda import simulator
from tinygrad_bn.kernels.views import Cols, Rows, Split
from tinygrad_bn.registry import REGISTRY

SCALE = Operation("dropout::scale", {"factor": 0.7})
X = np.random.default_rng(0).normal(size=(5, 6))
UNITS = {"float64": 2.3e-16, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.9e-3}


class Scaled:
    """y = factor · x, with a place for a mistake."""

    def forward(self, plan, x):
        return self.multiply(plan, x), ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        return (self.multiply(plan, cotangent) if needs[0] else None,)

    def multiply(self, plan, x):
        wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        return (wide * wide.dtype.type(plan.factor)).astype(x.dtype, order="C")


def everything(kernel, dtype="float32"):
    arguments = kernel, SCALE.plan((X,)), SCALE, (X,), dtype
    check(*arguments)
    check_needs(*arguments)
    check_layouts(*arguments)


@pytest.mark.parametrize("dtype", STORAGES)
def test_a_right_kernel_passes_and_one_that_is_off_does_not(dtype):
    everything(Scaled(), dtype)

    class Off(Scaled):
        def multiply(self, plan, x):
            y = super().multiply(plan, x)
            y[2, 3] += (40 if dtype in ("float32", "float64") else 2) * UNITS[dtype] * abs(y[2, 3])
            return y

    with pytest.raises(AssertionError, match=rf"output, {dtype}: 1 of 30 elements are off; at \(2, 3\) got"):
        everything(Off(), dtype)


def refused(kernel, message, error=AssertionError):
    with pytest.raises(error, match=message) as raised:
        everything(kernel)
    return raised.value


def test_another_dtype_is_seen():
    class Promoting(Scaled):
        def multiply(self, plan, x):
            return x * np.float64(plan.factor)

    refused(Promoting(), r"dtype\(.float64.\) == dtype\(.float32.\)")


def test_a_kernel_that_writes_to_its_input_is_seen():
    class Writing(Scaled):
        def multiply(self, plan, x):
            x *= plan.factor
            return x

    refused(Writing(), "read-only", ValueError)


def test_a_result_that_is_the_input_is_seen():
    class Returning(Scaled):
        def vjp(self, plan, needs, cotangent, arrays, aux):
            return (cotangent,)

    refused(Returning(), "writeable")


def test_a_gradient_is_made_where_and_only_where_it_is_needed():
    class Never(Scaled):
        def vjp(self, plan, needs, cotangent, arrays, aux):
            return ()

    class Always(Scaled):
        def vjp(self, plan, needs, cotangent, arrays, aux):
            return (self.multiply(plan, cotangent),)

    refused(Never(), "no gradient of input 0")
    refused(Always(), "input 0 that nobody needs")


def test_a_wrong_gradient_is_seen():
    class Wrong(Scaled):
        def vjp(self, plan, needs, cotangent, arrays, aux):
            return (-self.multiply(plan, cotangent),)

    refused(Wrong(), "the gradient of input 0, float32: 30 of 30")


def test_what_depends_on_the_threads_or_on_the_call_before_is_seen():
    class Ordered(Scaled):
        def multiply(self, plan, x):
            return super().multiply(plan, x) * np.float32(1 + simulator._backward * 2**-23)

    class Remembering(Scaled):
        calls = 0

        def multiply(self, plan, x):
            self.calls += 1
            return super().multiply(plan, x) * np.float32(1 + self.calls * 2**-23)

    refused(Ordered(), "order of the threads")
    refused(Remembering(), "a second call gives other bits")


def test_a_layout_that_is_not_served_is_named():
    class Aligned(Scaled):
        def multiply(self, plan, x):
            y = super().multiply(plan, x)
            return y if x.ctypes.data % 16 == 0 or not x.flags.c_contiguous else 2 * y

    error = refused(Aligned(), "30 of 30 elements")
    assert error.__notes__ == ["where the inputs are aligned to their elements alone"]


NORMS = ["layer_norm", "rms_norm", "batch_norm", "batch_norm_inference", "instance_norm", "group_norm"]


@pytest.mark.parametrize("name", NORMS)
def test_views_mean_what_the_operations_do(name):
    spec = REGISTRY.get(f"norm::{name}")
    running = name == "batch_norm_inference"
    for sample in spec.samples(np.random.default_rng(3)):
        operation = Operation(spec.name, sample.attributes)
        view = operation.plan(sample.inputs)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
            wanted = operation(namespace.arrays, *sample.inputs)
            given = Norm(view, running)(namespace.arrays, *sample.inputs)
        assert np.allclose(given[0], wanted[0], rtol=1e-13, atol=1e-13, equal_nan=True), sample.name
        for mine, theirs in zip(given[1], wanted[1], strict=True):
            assert np.allclose(mine.ravel(), theirs.ravel(), rtol=1e-13, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize(
    ("view", "running"),
    [
        (Rows(3, 5, 1e-5), False),
        (Rows(3, 5, 1e-5, centred=False), False),
        (Split(2, 3, 2, 2, 4, 1e-5), False),
        (Cols(2, 3, 6, 3, 1e-5), False),
        (Cols(1, 3, 8, 4, 1e-5, repeat=4), False),
        (Split(1, 3, 2, 1, 4, 1e-5), True),
        (Cols(1, 3, 4, 1, 1e-5), True),
    ],
)
def test_scales_bound_what_cancels(view, running):
    """By Jacobian and cotangent without their signs: no smaller than the gradient, and not much larger."""
    made = call(Norm(view, running), example(view, running=running), "float64")
    for wanted, scale in zip(made.wanted, made.scales, strict=True):
        if wanted is not None:
            assert scale.shape == wanted.shape
            assert (abs(wanted) <= scale * (1 + 1e-12)).all()
    assert made.scales[0].max() < 20 and max(s.max() for s in made.scales if s is not None) < 200
