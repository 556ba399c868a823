"""What holds of every fused operation: each kernel against the definition and against mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import Call, calls

import tinygrad_bn
from tinygrad_bn import Tensor, namespace
from tinygrad_bn.fused import DEFINITION, Fused
from tinygrad_bn.registry import OpSpec

FUSED = [spec.name for spec in tinygrad_bn.REGISTRY if spec.fused]
EVERY_OPERATION = pytest.mark.parametrize("operation", FUSED)
QUICK = settings(max_examples=20, deadline=None)


def kernels(spec: OpSpec) -> list[str]:
    """Those of the CPU; the others are tested in their simulator."""
    return list(dict.fromkeys(kernel.name for kernel in spec.kernels if kernel.device == "cpu"))


def leaves(spec: OpSpec, arrays: Any) -> list[Any]:
    """The inputs as Tensors over their own memory; those with a gradient want it."""
    tensors = [None if array is None else Tensor.wrap(array) for array in arrays]
    for position in spec.gradients:
        if tensors[position] is not None:
            tensors[position].requires_grad = True
    return tensors


def run(spec: OpSpec, kernel: str, call: Call, arrays: Any, cotangent: Any) -> dict[str, np.ndarray]:
    """The output and the gradients by one kernel, by name."""
    tensors = leaves(spec, arrays)
    output = Fused(spec)(*tensors, kernel=kernel, **call.attributes)
    output.backward(cotangent)
    gradients = {spec.inputs[position]: tensors[position].grad.data for position in present(spec, arrays)}
    return {"output": output.data, **gradients}


def present(spec: OpSpec, arrays: Any) -> list[int]:
    return [position for position in spec.gradients if arrays[position] is not None]


def complex_step(spec: OpSpec, call: Call, arrays: Any, cotangent: Any) -> dict[str, np.ndarray]:
    """The definition, and its gradients by f(x + ih) = f(x) + ih f'(x): no difference, so nothing cancels."""
    step = 1e-30
    output, _ = spec.definition(namespace.arrays, *arrays, **call.attributes)
    results = {"output": output}
    for position in present(spec, arrays):
        gradient = np.empty(arrays[position].shape)
        for index in np.ndindex(gradient.shape):
            moved = [None if array is None else array.astype(np.complex128) for array in arrays]
            moved[position][index] += 1j * step
            stepped, _ = spec.definition(namespace.arrays, *moved, **call.attributes)
            gradient[index] = (cotangent * stepped.imag).sum()
        results[spec.inputs[position]] = gradient / step
    return results


def sizes(
    spec: OpSpec, call: Call, arrays: Any, cotangent: Any, want: dict[str, Any], ill: bool
) -> dict[str, float]:
    """What rounding is measured by: the largest value, in a norm also that of the terms before they cancel.

    ill: count in that x − mean loses digits, by |x| / σ, where the mean is as precise as x.
    """
    largest = {name: float(np.abs(value).max(initial=0.0)) for name, value in want.items()}
    if "eps" not in call.attributes:
        return largest
    _, (_, variance) = spec.definition(namespace.arrays, *arrays, **call.attributes)
    rstd = float(1 / np.sqrt(np.min(variance) + call.attributes["eps"]))
    weight = 1.0 if arrays[1] is None else np.abs(arrays[1]).max()
    along, added = np.abs(cotangent).max(), np.abs(cotangent).sum()
    lost = 1 + (np.abs(arrays[0]).max() * rstd if ill else 0.0)
    terms = {
        "output": weight * lost,
        "input": along * weight * rstd * lost,
        "weight": added * lost,
        "bias": added,
    }
    return {name: max(size, terms.get(name, 0.0)) for name, size in largest.items()}


def assert_near(
    got: dict[str, np.ndarray], want: dict[str, np.ndarray], units: float, scales: dict[str, float]
) -> None:
    """Equal within some roundings, in got's dtype, of the scales."""
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape
        atol = units * np.finfo(got[name].dtype).eps * scales[name]
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=atol, err_msg=name)


# Kernels against the definition


@EVERY_OPERATION
@QUICK
@given(data=st.data())
def test_kernels_equal_the_definition(operation: str, data: Any):
    """Forward and vjp in every layout, against the definition and its complex step; nothing is written to."""
    spec = tinygrad_bn.REGISTRY.get(operation)
    call = data.draw(calls(spec))
    arrays, cotangent = call.inputs(spec), call.cotangent()
    copies = [None if array is None else array.copy() for array in (*arrays, cotangent)]
    want = complex_step(spec, call, arrays, cotangent)
    scales = sizes(spec, call, arrays, cotangent, want, ill=True)
    for kernel in (*kernels(spec), DEFINITION):
        got = run(spec, kernel, call, arrays, cotangent)
        assert_near(got, want, 32, scales)
        assert not any(array is not None and np.shares_memory(got["output"], array) for array in arrays)
    for given_array, copy in zip((*arrays, cotangent), copies, strict=True):
        np.testing.assert_array_equal(given_array, copy)


@EVERY_OPERATION
@QUICK
@given(data=st.data())
def test_float32_is_float64_rounded(operation: str, data: Any):
    """The kernels in float32 against themselves in float64, on the same numbers."""
    spec = tinygrad_bn.REGISTRY.get(operation)
    call = data.draw(calls(spec))
    arrays, cotangent = call.inputs(spec, np.float32), call.cotangent(np.float32)
    wide = [None if array is None else array.astype(np.float64) for array in arrays]
    for kernel in kernels(spec):
        got = run(spec, kernel, call, arrays, cotangent)
        want = run(spec, kernel, call, wide, cotangent.astype(np.float64))
        scales = sizes(spec, call, wide, cotangent, want, ill=False)
        assert all(value.dtype == np.float32 for value in got.values())
        assert_near(got, want, 16, scales)


# Kernels against mathematics


@EVERY_OPERATION
@QUICK
@given(data=st.data())
def test_vjps_equal_difference_quotients(operation: str, data: Any):
    """Of the kernel's own forward, along a direction in each input; of its own vjp, for the second order."""
    spec = tinygrad_bn.REGISTRY.get(operation)
    call = data.draw(calls(spec, plain=True))
    if "eps" in call.attributes:  # a smaller one makes the function bend within the steps
        call = call.with_attributes(eps=max(call.attributes["eps"], 1e-2))
    for kernel in kernels(spec):
        check_derivatives(spec, kernel, call)


def check_derivatives(spec: OpSpec, kernel: str, call: Call) -> None:
    arrays, cotangent = call.inputs(spec), call.cotangent()
    rng = np.random.default_rng([call.seed, 2])
    positions = present(spec, arrays)
    directions, probes = (
        [rng.normal(size=arrays[position].shape) for position in positions] for _ in range(2)
    )
    firsts, seconds = two_orders(spec, kernel, call, arrays, cotangent, probes)
    for number, position in enumerate(positions):

        def moved(step: float, number: int = number, position: int = position) -> np.ndarray:
            """⟨cotangent, output⟩ and ⟨probes, gradients⟩, a step away."""
            there = list(arrays)
            there[position] = arrays[position] + step * directions[number]
            results = run(spec, kernel, call, there, cotangent)
            gradients = [results[spec.inputs[p]] for p in positions]
            return np.array([(cotangent * results["output"]).sum(), dot(gradients, probes)])

        numeric, error = differentiate(moved)
        analytic = np.array([(values[number] * directions[number]).sum() for values in (firsts, seconds)])
        at = (kernel, spec.inputs[position], "first and second order")
        assert (np.abs(analytic - numeric) <= error).all(), (*at, analytic, numeric, error)


def two_orders(
    spec: OpSpec, kernel: str, call: Call, arrays: Any, cotangent: Any, probes: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gradients of ⟨cotangent, output⟩ by each input, and those of ⟨probes, gradients⟩."""
    tensors = leaves(spec, arrays)
    wanted = [tensors[position] for position in present(spec, arrays)]
    output = Fused(spec)(*tensors, kernel=kernel, **call.attributes)
    firsts = tinygrad_bn.grad(output, wanted, Tensor(cotangent, requires_grad=True), create_graph=True)
    found = tinygrad_bn.grad(dot(firsts, probes), wanted, allow_unused=True)
    seconds = [np.zeros(x.shape) if g is None else g.data for g, x in zip(found, wanted, strict=True)]
    return [gradient.data for gradient in firsts], seconds


def dot(values: Any, others: Any) -> Any:
    """The sum of the inner products of two lists of arrays or Tensors."""
    first, *rest = [(value * other).sum() for value, other in zip(values, others, strict=True)]
    return sum(rest, first)


def differentiate(function: Any) -> tuple[np.ndarray, np.ndarray]:
    """The derivative at 0 by central differences, extrapolated three times, and how far it may be off."""
    steps = [2.0**-6, 2.0**-7, 2.0**-8, 2.0**-9]
    rows = [np.array([(function(h) - function(-h)) / (2 * h) for h in steps])]
    for order in (1, 2, 3):
        rows.append((4**order * rows[-1][1:] - rows[-1][:-1]) / (4**order - 1))
    result = rows[-1][0]
    size = 1 + np.abs(function(0.0)) + np.abs(result)
    error = 4 * np.abs(result - rows[-2][-1]) + 1e-10 * size
    assert (error <= 1e-4 * size).all(), "the function bends too fast for these steps: nothing was tested"
    return result, error


# Declared properties


def check_shift_invariant(spec: OpSpec, kernel: str, call: Call) -> None:
    """f(x + c) = f(x), hence Σ dx = 0."""
    arrays, cotangent = call.inputs(spec), call.cotangent()
    plain = run(spec, kernel, call, arrays, cotangent)
    scale = sizes(spec, call, arrays, cotangent, plain, ill=False)["input"]
    for shift in (-3.0, 1e3):
        moved = run(spec, kernel, call, [arrays[0] + shift, *arrays[1:]], cotangent)
        np.testing.assert_allclose(moved["output"], plain["output"], rtol=0, atol=1e-10 * (1 + scale))
    assert abs(plain["input"].sum()) <= 1e-13 * scale * arrays[0].size


def check_scale_invariant(spec: OpSpec, kernel: str, call: Call) -> None:
    """f(a · x; a² · eps) = f(x; eps), hence ⟨x, dx⟩ = 0 where eps = 0."""
    arrays, cotangent = call.inputs(spec), call.cotangent()
    plain = run(spec, kernel, call, arrays, cotangent)
    scales = sizes(spec, call, arrays, cotangent, plain, ill=True)
    for factor in (3.0, 1e-3, 2.0**100):
        scaled = call.with_attributes(eps=factor**2 * call.attributes["eps"])
        got = run(spec, kernel, scaled, [factor * arrays[0], *arrays[1:]], cotangent)
        got["input"] = got["input"] * factor
        assert_near(got, plain, 32, scales)
    if call.attributes["eps"] == 0.0:
        assert abs((plain["input"] * arrays[0]).sum()) <= 1e-12 * scales["input"] * arrays[0].size


PROPERTIES = {"shift_invariant": check_shift_invariant, "scale_invariant": check_scale_invariant}
DECLARED = [
    (spec.name, name) for spec in tinygrad_bn.REGISTRY for name, holds in spec.properties.items() if holds
]


@pytest.mark.parametrize(("operation", "name"), DECLARED)
@QUICK
@given(data=st.data())
def test_declared_properties(operation: str, name: str, data: Any):
    """A property without a check here is an error: nobody would know whether it holds."""
    spec = tinygrad_bn.REGISTRY.get(operation)
    call = data.draw(calls(spec, least=2, plain=True))
    for kernel in (*kernels(spec), DEFINITION):
        PROPERTIES[name](spec, kernel, call)


# The edge


@EVERY_OPERATION
@QUICK
@given(data=st.data())
def test_empty_inputs(operation: str, data: Any):
    """An empty input has an empty output, and sums over nothing are 0."""
    spec = tinygrad_bn.REGISTRY.get(operation)
    call = data.draw(calls(spec, least=0, plain=True).filter(lambda call: 0 in call.shapes[0]))
    arrays, cotangent = call.inputs(spec), call.cotangent()
    for kernel in kernels(spec):
        got = run(spec, kernel, call, arrays, cotangent)
        assert got["output"].shape == arrays[0].shape
        for position in present(spec, arrays):
            np.testing.assert_array_equal(got[spec.inputs[position]], np.zeros(arrays[position].shape))
