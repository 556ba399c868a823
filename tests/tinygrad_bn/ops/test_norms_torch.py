"""The normalizations against torch: values, gradients and running statistics, of kernels and definition.

torch runs in float64 on the very numbers that we get, also where those are float32: the rounding is all ours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from norm_cases import (
    AFFINE,
    KERNELS,
    Case,
    all_norms,
    assert_close,
    batch_norms,
    forward_and_back,
    instance_norms,
)

from tinygrad_bn import Tensor, functional

torch = pytest.importorskip("torch", reason="oracle torch is not installed")

DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
ALL_KERNELS = pytest.mark.parametrize("kernel", KERNELS)
UNITS = 16.0
"""How many roundings of its terms before they cancel a result may be off; up to 7 have been seen."""
MOMENTA = (0.0, 0.1, 0.5, 1.0)


def double(array: Any) -> Any:
    return torch.tensor(array, dtype=torch.float64)


def reference(
    case: Case, x: Any, weight: Any, bias: Any, cotangent: Any, eps: float, **running: Any
) -> dict[str, Any]:
    """What torch gives, in float64; running statistics, where given, are torch tensors and are written to."""
    leaves = {
        name: double(value).requires_grad_()
        for name, value in (("x", x), ("weight", weight), ("bias", bias))
        if value is not None
    }
    options = dict(case.options)
    weight, bias = leaves.get("weight"), leaves.get("bias")
    first = leaves["x"]
    if "channel_axis" in options:  # contiguous, because torch 2.13 crashes in group_norm on some that are not
        first = torch.movedim(first, case.channel_axis, 1).contiguous()
    functions = torch.nn.functional
    if case.operation == "batch_norm":
        y = functions.batch_norm(
            first, running.pop("running_mean", None), running.pop("running_var", None), weight, bias,
            **{"training": True, **running}, eps=eps,
        )  # fmt: skip
    elif case.operation == "instance_norm":
        y = functions.instance_norm(first, weight=weight, bias=bias, eps=eps, **running)
    elif case.operation == "group_norm":
        if weight is None and bias is not None:  # "tensor does not have a device", says torch 2.13 of that
            weight = torch.ones_like(bias)
        y = functions.group_norm(first, options["num_groups"], weight, bias, eps)
    elif case.operation == "layer_norm":
        y = functions.layer_norm(first, options["normalized_shape"], weight, bias, eps)
    else:
        y = functions.rms_norm(first, options["normalized_shape"], weight, eps)
        y = y if bias is None else y + bias
    if "channel_axis" in options:
        y = torch.movedim(y, 1, case.channel_axis)
    y.backward(double(cotangent))
    gradients = {f"d{name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    return {"y": y.detach().numpy(), **gradients}


def assert_same(case: Case, got: dict[str, Any], want: dict[str, Any], arrays: Any, eps: float) -> None:
    x, weight, _, cotangent = arrays
    scales = case.scales(x, weight, cotangent, eps)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == x.dtype
        assert_close(got[name], want[name], UNITS, scales[name])


@functools.cache
def expected(case: Case, dtype: Any, affine: str, eps: float) -> tuple[Any, dict[str, Any]]:
    """The arrays of a case and torch's answer, once for all kernels."""
    arrays = case.draw(dtype, affine)
    return arrays, reference(case, *arrays, eps)


@DTYPES
@ALL_KERNELS
@pytest.mark.parametrize("case", all_norms(), ids=str)
def test_values_and_gradients(case, kernel, dtype):
    for affine, eps in zip(AFFINE, (1e-5, 0.3, 0.1, 1e-5), strict=True):
        arrays, want = expected(case, dtype, affine, eps)
        assert_same(case, forward_and_back(case, *arrays, eps=eps, kernel=kernel), want, arrays, eps)


# Running statistics


def running_statistics(case: Case, dtype: Any, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean, variance = rng.normal(size=case.parameters), rng.uniform(0.5, 2.0, case.parameters)
    return mean.astype(dtype), variance.astype(dtype)


@DTYPES
@ALL_KERNELS
@pytest.mark.parametrize("case", [*batch_norms(), *instance_norms()], ids=str)
def test_inference(case, kernel, dtype):
    inference = {"training": False} if case.operation == "batch_norm" else {"use_input_stats": False}
    mean, variance = running_statistics(case, dtype)
    for affine in AFFINE:
        arrays = case.draw(dtype, affine)
        theirs = {"running_mean": double(mean), "running_var": double(variance)}
        want = reference(case, *arrays, 1e-3, **theirs, **inference)
        options = {"running_mean": mean, "running_var": variance, "eps": 1e-3, "kernel": kernel, **inference}
        assert_same(case, forward_and_back(case, *arrays, **options), want, arrays, 1e-3)


@DTYPES
@ALL_KERNELS
@pytest.mark.parametrize("case", [*batch_norms(), *instance_norms()], ids=str)
def test_running_statistics_over_several_batches(case, kernel, dtype):
    for momentum in MOMENTA:
        mean, variance = running_statistics(case, dtype)
        theirs = [double(value) for value in (mean, variance)]
        for seed in range(3):
            arrays = case.draw(dtype, seed=seed)
            case(*arrays[:3], running_mean=mean, running_var=variance, momentum=momentum, kernel=kernel)
            reference(case, *arrays, 1e-5, running_mean=theirs[0], running_var=theirs[1], momentum=momentum)
        assert mean.dtype == dtype
        assert_close(mean, theirs[0], UNITS, scale=1.0)
        assert_close(variance, theirs[1], UNITS)


@DTYPES
@ALL_KERNELS
@pytest.mark.parametrize("momentum", [None, "default"])
def test_the_momentum_of_torchs_layer(momentum, kernel, dtype):
    """The cumulative average and the default momentum; nn.BatchNorm1d counts the batches itself."""
    layer = torch.nn.BatchNorm1d(3, dtype=torch.float64, **({"momentum": None} if momentum is None else {}))
    mean, variance = np.zeros(3, dtype), np.ones(3, dtype)
    case = Case("batch_norm", (4, 3, 5))
    for batch in range(4):
        x = case.draw(dtype, seed=batch)[0]
        layer(double(x))
        running = {"running_mean": mean, "running_var": variance, "num_batches_tracked": batch}
        case(x, momentum=momentum, kernel=kernel, **running)
    assert_close(mean, layer.running_mean, UNITS, scale=1.0)
    assert_close(variance, layer.running_var, UNITS)


def test_eps_none_is_torchs_for_each_dtype():
    case = Case("rms_norm", (3, 4), (("normalized_shape", (4,)),))
    for dtype in (np.float32, np.float64):
        x = case.draw(dtype)[0] * np.finfo(dtype).eps ** 0.5  # so small that eps counts
        want = torch.nn.functional.rms_norm(torch.tensor(x), (4,)).numpy()
        assert_close(functional.rms_norm(Tensor(x), 4), want, UNITS)
