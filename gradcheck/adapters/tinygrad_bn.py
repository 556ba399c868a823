"""Functions on `tinygrad_bn.Tensor` as pairs that can be checked, and the built-in operations in every configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tinygrad_bn
from gradcheck.agreement import Evaluate, check_facts, check_trusted, check_twins
from gradcheck.axes import Arrays, Configuration
from gradcheck.harness import check_pair
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import Result
from tinygrad_bn import Tensor, functional

__all__ = ["call", "check_configuration", "pair", "recognises"]

TWINS = ("sequential", "parallel")
INPUTS = ("input", "weight", "bias")


def recognises(inputs: Sequence[Any]) -> bool:
    """Whether these inputs are this framework's."""
    return any(isinstance(value, Tensor) for value in inputs)


def pair(fn: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Callable[..., Any], Callable[..., Any], list[Any], str]:
    """A function on Tensors as (forward, backward, input arrays, name), for `check_pair`."""
    arrays = [value.numpy() if isinstance(value, Tensor) else value for value in inputs]
    forward, backward = _as_pair(fn)
    return forward, backward, arrays, getattr(fn, "__name__", type(fn).__name__)


def _as_pair(
    fn: Callable[..., Any], lay_out: Callable[[np.ndarray], np.ndarray] = lambda first: first
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """forward and backward of a function on Tensors; `lay_out` puts the first input into another memory layout."""

    def forward(*arrays: np.ndarray | None) -> tuple[np.ndarray, Any]:
        arrays = (lay_out(arrays[0]), *arrays[1:]) if arrays else ()
        tensors = [None if array is None else _leaf(array) for array in arrays]
        output = fn(*tensors)
        if not isinstance(output, Tensor):
            raise TypeError(f"the function returned {type(output).__name__}, wanted one tinygrad_bn.Tensor")
        return output.data, (output, tensors)

    def backward(saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        output, tensors = saved
        present = [tensor for tensor in tensors if tensor is not None]
        found = iter(tinygrad_bn.grad(output, present, cotangent, retain_graph=True, allow_unused=True))
        gradients = [None if tensor is None else next(found) for tensor in tensors]
        return tuple(None if gradient is None else gradient.data for gradient in gradients)

    return forward, backward


def _leaf(array: np.ndarray) -> Tensor:
    tensor = Tensor.wrap(array)  # over the array as it lies in memory: its layout is part of what is checked
    tensor.requires_grad = True
    return tensor


def call(configuration: Configuration, arrays: Arrays, kernel: str | None, seed: int) -> Callable[..., Tensor]:
    """The operation of a configuration as a function of its differentiable inputs."""
    c = configuration
    affine_and_axis = {"eps": c.eps, "kernel": kernel}

    def function(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if c.layout == "broadcast":
            x = functional.broadcast_to(x, c.shape)
        if c.operation == "dropout":
            generator = tinygrad_bn.Generator(seed)  # the same mask at every call
            return functional.dropout(
                x, c.p, c.mode == "training", mode=c.scaling, axis=c.mask_axes, generator=generator, kernel=kernel
            )
        if c.tail is not None:
            norm = getattr(functional, c.operation)
            return norm(x, c.parameters, weight, bias=bias, **affine_and_axis)
        axis = {"channel_axis": c.channel_axis, **affine_and_axis}
        if c.groups is not None:
            return functional.group_norm(x, c.groups, weight, bias, **axis)
        norm = getattr(functional, c.operation)
        return norm(x, arrays.running_mean, arrays.running_var, weight, bias, c.mode == "training", **axis)

    return function


def check_configuration(
    configuration: Configuration, seed: int = 0, given: np.ndarray | None = None, source: tuple[str, ...] = ()
) -> Result:
    """Every check of one configuration: the kernel's gradient against the numeric derivative of the kernel's own forward, float32 against
    float64, both twins against the definition and each other, and the facts that the operation obeys.

    given: the input, where configuration.values is "given". source: the words of a command line that bring it about.
    """
    start = time.perf_counter()
    arrays = configuration.draw(seed, given).astype(configuration.dtype)
    kernels_forward, kernels_vjp, problems = _kernels_that_run(configuration, arrays, seed)
    checks = problems or _checks(configuration, arrays, seed)
    return Result(configuration, seed, tuple(checks), kernels_forward, kernels_vjp, time.perf_counter() - start, source)


def _kernels_that_run(
    configuration: Configuration, arrays: Arrays, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...], list[Check]]:
    """The compiled kernels that each twin's forward and backward pass really ran; an ERROR where that is not one each."""
    ran: dict[str, list[str]] = {"forward": [], "vjp": []}
    problems = []
    for kernel in TWINS:
        with tinygrad_bn.record() as trace:
            try:
                _evaluator(kernel, seed)(configuration, arrays, np.ones(configuration.shape, configuration.dtype))
            except Exception as error:
                problems.append(Check("kernel", Verdict.ERROR, f"{kernel}: {type(error).__name__}: {error}"))
                continue
        for phase, names in ran.items():
            found = trace.kernels(phase)
            names += found
            if len(found) != 1:
                problems.append(Check("kernel", Verdict.ERROR, f"{kernel}: {len(found)} compiled kernels ran in {phase}, wanted 1"))
    return tuple(ran["forward"]), tuple(ran["vjp"]), problems


def _checks(configuration: Configuration, arrays: Arrays, seed: int) -> list[Check]:
    rng = np.random.default_rng([seed, 1])
    twins = {f"{kernel} kernel against definition": _evaluator(kernel, seed) for kernel in TWINS}
    sequential, parallel = twins.values()
    forward, backward = _as_pair(call(configuration, arrays, TWINS[0], seed), configuration.lay_out)
    report = check_pair(
        forward,
        backward,
        arrays.differentiable,
        zero=configuration.zero,
        input_names=INPUTS,
        name=configuration.operation,
        framework=True,
        seed=seed,
    )
    cotangent = rng.normal(size=configuration.shape).astype(configuration.dtype)
    return [
        *report.checks,
        *check_trusted(configuration, arrays, cotangent, twins, _evaluator("definition", seed), rng),
        check_twins(configuration, arrays, cotangent, sequential, parallel),
        *check_facts(configuration, arrays, cotangent, sequential, rng),
    ]


def _evaluator(kernel: str, seed: int) -> Evaluate:
    """Output and gradients by one kernel, or by the definition."""

    def evaluate(configuration: Configuration, arrays: Arrays, cotangent: np.ndarray) -> dict[str, np.ndarray]:
        forward, backward = _as_pair(call(configuration, arrays, kernel, seed), configuration.lay_out)
        output, saved = forward(*arrays.differentiable)
        gradients = zip(INPUTS, backward(saved, cotangent), strict=True)
        return {"output": output, **{name: value for name, value in gradients if value is not None}}

    return evaluate
