"""The normalizations against torch: values, gradients and running statistics, for the kernels and for the definition.

torch runs in float64 on the very numbers that we get, also where ours are float32: it then has no rounding of its own to excuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import (
    AFFINE, KERNELS, Case, all_norms, assert_close, batch_norms, forward_and_back, instance_norms
)  # fmt: skip

from tinygrad_bn import Tensor, functional

torch = pytest.importorskip("torch", reason="oracle torch is not installed")

DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
ALL_KERNELS = pytest.mark.parametrize("kernel", KERNELS)
UNITS = 32.0
MOMENTA = (0.0, 0.1, 0.5, 1.0)


def reference(case: Case, x: Any, weight: Any, bias: Any, cotangent: Any, eps: float, **running: Any) -> dict[str, Any]:
    """What torch gives, in float64; running statistics, where given, are torch tensors and are written to."""
    leaves = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in (("x", x), ("weight", weight), ("bias", bias))
        if value is not None
    }
    options = dict(case.options)
    weight, bias = leaves.get("weight"), leaves.get("bias")
    # Contiguous: torch 2.13 crashes in the backward of group_norm on some channels-last inputs.
    first = torch.movedim(leaves["x"], case.channel_axis, 1).contiguous() if "channel_axis" in options else leaves["x"]
    functions = torch.nn.functional
    if case.operation == "batch_norm":
        y = functions.batch_norm(
            first, running.pop("running_mean", None), running.pop("running_var", None), weight, bias,
            **{"training": True, **running}, eps=eps,
        )  # fmt: skip
    elif case.operation == "instance_norm":
        y = functions.instance_norm(first, weight=weight, bias=bias, eps=eps, **running)
    elif case.operation == "group_norm":
        y = functions.group_norm(first, options["num_groups"], weight, bias, eps)
    elif case.operation == "layer_norm":
        y = functions.layer_norm(first, options["normalized_shape"], weight, bias, eps)
    else:
        y = functions.rms_norm(first, options["normalized_shape"], weight, eps)
        y = y if bias is None else y + bias
    if "channel_axis" in options:
        y = torch.movedim(y, 1, case.channel_axis)
    y.backward(torch.tensor(cotangent, dtype=torch.float64))
    gradients = {f"d{name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    return {"y": y.detach().numpy(), **gradients}


def assert_same(case: Case, got: dict[str, Any], want: dict[str, Any], arrays: Any, eps: float) -> None:
    x, weight, _, cotangent = arrays
    scales = {"dx": case.uncancelled(x, weight, cotangent, eps)}
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == x.dtype
        assert_close(got[name], want[name], UNITS, scales.get(name, 0.0))


@DTYPES
@ALL_KERNELS
@pytest.mark.parametrize("case", all_norms(), ids=str)
def test_values_and_gradients(case, kernel, dtype):
    for eps in (1e-5, 0.3):
        for affine in AFFINE:
            arrays = case.draw(dtype, affine, seed=len(affine))
            got = forward_and_back(case, *arrays, eps=eps, kernel=kernel)
            assert_same(case, got, reference(case, *arrays, eps), arrays, eps)
