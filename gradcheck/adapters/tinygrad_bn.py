"""Functions on `tinygrad_bn.Tensor` as pairs that can be checked, and every check of a built-in operation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

import tinygrad_bn
from gradcheck.agreement import Evaluate, check_facts, check_trusted, check_twins, same_bits
from gradcheck.axes import Arrays, Configuration
from gradcheck.harness import check_pair
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import Result
from tinygrad_bn import Tensor, functional

__all__ = ["call", "check_configuration", "pair", "recognises"]

TWINS = ("sequential", "parallel")
INPUTS = ("input", "weight", "bias")
SEEDS = 1 << 64
MASKS_TRIED = 1000


class Raised(Exception):
    """An operation raised while it was checked."""


def recognises(inputs: Sequence[Any]) -> bool:
    """Whether these inputs are this framework's."""
    return any(isinstance(value, Tensor) for value in inputs)


def pair(
    fn: Callable[..., Any], inputs: Sequence[Any], differentiable: Collection[int] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any], list[Any], str]:
    """A function on Tensors as (forward, backward, input arrays, name), for `check_pair`.

    Floating arrays among the inputs become Tensors too; other arrays are passed on as they are.
    differentiable: the positions of the inputs that require a gradient; by default all that are Tensors.
    """
    arrays = [value.numpy() if isinstance(value, Tensor) else value for value in inputs]
    forward, backward = _as_pair(fn, differentiable=differentiable)
    return forward, backward, arrays, getattr(fn, "__name__", type(fn).__name__)


def _as_pair(
    fn: Callable[..., Any],
    lay_out: Callable[[np.ndarray], np.ndarray] = lambda first: first,
    differentiable: Collection[int] | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of a function on Tensors; `lay_out` moves the first input in memory."""

    def forward(*arrays: np.ndarray | None) -> tuple[np.ndarray, Any]:
        if arrays and arrays[0] is not None:
            arrays = (lay_out(arrays[0]), *arrays[1:])
        inputs = [
            _leaf(array, differentiable is None or position in differentiable)
            if array is not None and array.dtype.kind == "f"
            else array
            for position, array in enumerate(arrays)
        ]
        output = fn(*inputs)
        if not isinstance(output, Tensor):
            raise TypeError(f"the function returned {type(output).__name__}, wanted one tinygrad_bn.Tensor")
        return output.data, (output, inputs)

    def backward(saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        output, inputs = saved
        wanted = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        tensors = list(itertools.compress(inputs, wanted))
        gradients = tinygrad_bn.grad(output, tensors, cotangent, retain_graph=True, allow_unused=True)
        # What the output does not depend on has gradient zero; the numbers tell whether that is right.
        pairs = zip(tensors, gradients, strict=True)
        arrays = iter([np.zeros_like(x.data) if gradient is None else gradient.data for x, gradient in pairs])
        return tuple(next(arrays) if is_wanted else None for is_wanted in wanted)

    functools.update_wrapper(forward, fn, updated=())  # for the names of its inputs
    return forward, backward


def _leaf(array: np.ndarray, requires_grad: bool) -> Tensor:
    tensor = Tensor.wrap(array)  # over the array as it lies in memory: its layout is part of what is checked
    tensor.requires_grad = requires_grad
    return tensor


def call(
    configuration: Configuration, arrays: Arrays, kernel: str | None, seed: int
) -> Callable[..., Tensor]:
    """The operation of a configuration as a function of its differentiable inputs."""
    c = configuration
    mask_seed = _mask_seed(c, seed) if c.operation == "dropout" else seed
    common: dict[str, Any] = {"eps": c.eps, "kernel": kernel}

    def function(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if c.layout == "broadcast":
            x = functional.broadcast_to(x, c.shape)
        if c.operation == "dropout":
            generator = tinygrad_bn.Generator(mask_seed)  # the same mask at every call
            mask: dict[str, Any] = {"p": c.p, "mode": c.scaling, "axis": c.mask_axes, "generator": generator}
            return functional.dropout(x, training=c.mode == "training", **mask, kernel=kernel)
        if c.tail is not None:
            norm = getattr(functional, c.operation)
            return norm(x, c.parameters, weight, bias=bias, **common)
        axis = {"channel_axis": c.channel_axis, **common}
        if c.groups is not None:
            return functional.group_norm(x, c.groups, weight, bias, **axis)
        norm = getattr(functional, c.operation)
        return norm(x, arrays.running_mean, arrays.running_var, weight, bias, c.mode == "training", **axis)

    return function


@functools.lru_cache(maxsize=8)  # a check asks for the same two at each of its evaluations
def _mask_seed(c: Configuration, seed: int) -> int:
    """The first seed from `seed` on whose mask keeps an element: where all are dropped nothing is checked."""
    ones = np.ones(c.shape)
    p = 1.0 if c.p is None else c.p
    for candidate in range(seed, seed + MASKS_TRIED if p < 1 else seed):
        generator = tinygrad_bn.Generator(candidate % SEEDS)
        kept = functional.dropout(ones, p, axis=c.mask_axes, generator=generator, kernel="definition")
        if kept.data.any():
            return candidate % SEEDS
    return seed


def check_configuration(
    configuration: Configuration, seed: int = 0, given: np.ndarray | None = None, source: tuple[str, ...] = ()
) -> Result:
    """Every check of one configuration.

    They are: the kernel's gradient against the numeric derivative of its own forward pass, float32
    against float64, both twins against the definition and each other, and the facts that the operation obeys.

    Args:
        given: the input, where configuration.values is "given".
        source: the words of a command line that bring `given` about.
    """
    start = time.perf_counter()
    arrays = configuration.draw(seed, given).astype(configuration.dtype)
    kernels_forward, kernels_vjp, problems = _kernels_that_run(configuration, arrays, seed)
    checks = problems or _checks(configuration, arrays, seed)
    seconds = time.perf_counter() - start
    return Result(configuration, seed, tuple(checks), kernels_forward, kernels_vjp, seconds, source)


def _kernels_that_run(
    configuration: Configuration, arrays: Arrays, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...], list[Check]]:
    """The kernels that ran forward and backward in each twin; an ERROR where that is not one each."""
    ran: dict[str, list[str]] = {"forward": [], "vjp": []}
    problems = []
    ones = np.ones(configuration.shape, configuration.dtype)
    for kernel in TWINS:
        with tinygrad_bn.record() as trace:
            try:
                _evaluator(kernel, seed)(configuration, arrays, ones)
            except Raised as error:
                problems.append(Check("kernel", Verdict.ERROR, str(error)))
                continue
        for phase, names in ran.items():
            found = trace.kernels(phase)
            names += found
            if len(found) != 1:
                reason = f"{kernel}: {len(found)} compiled kernels ran in {phase}, wanted 1"
                problems.append(Check("kernel", Verdict.ERROR, reason))
    for phase, names in ran.items():
        if not problems and len(set(names)) != len(TWINS):
            reason = f"{' and '.join(TWINS)} are the same kernel in {phase}: {names[0]}"
            problems.append(Check("kernel", Verdict.ERROR, reason))
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
    at = (configuration, arrays, cotangent)
    questions: dict[str, Callable[[], Sequence[Check]]] = {
        "definition": lambda: check_trusted(*at, twins, _evaluator("definition", seed), rng),
        "twins": lambda: [check_twins(*at, sequential, parallel)],
        "own call": lambda: [_check_own_call(*at, kernel, seed) for kernel in TWINS],
        "facts": lambda: check_facts(*at, sequential, rng),
    }
    checks = list(report.checks)
    for name, question in questions.items():
        try:
            checks += question()
        except Raised as error:
            checks.append(Check(name, Verdict.ERROR, str(error)))
    return checks


def _evaluator(kernel: str, seed: int) -> Evaluate:
    """Output and gradients by one kernel, or by the definition. The function raises Raised."""

    def evaluate(
        configuration: Configuration, arrays: Arrays, cotangent: np.ndarray
    ) -> dict[str, np.ndarray]:
        forward, backward = _as_pair(call(configuration, arrays, kernel, seed), configuration.lay_out)
        with _raising(kernel):
            output, saved = forward(*arrays.differentiable)
            gradients = zip(INPUTS, backward(saved, cotangent), strict=True)
        return {"output": output, **{name: value for name, value in gradients if value is not None}}

    return evaluate


@contextlib.contextmanager
def _raising(kernel: str) -> Iterator[None]:
    """Whatever is raised inside is an operation's, and is raised as Raised."""
    try:
        yield
    except Exception as error:
        raise Raised(f"{kernel}: {type(error).__name__}: {error}") from error


def _check_own_call(
    configuration: Configuration, arrays: Arrays, cotangent: np.ndarray, kernel: str, seed: int
) -> Check:
    """Forward A, forward B, backward A, backward B, against each alone; dropout has another mask in B."""
    other = dataclasses.replace(configuration, values="normal").draw(seed + 1).astype(configuration.dtype)
    calls = []
    for its_arrays, its_seed in ((arrays, seed), (other, (seed + MASKS_TRIED) % SEEDS)):
        fn = call(configuration, its_arrays, kernel, its_seed)
        forward, backward = _as_pair(fn, configuration.lay_out)
        calls.append((functools.partial(forward, *its_arrays.differentiable), backward))
    with _raising(kernel):
        alone = []
        for forward, backward in calls:
            output, saved = forward()
            alone.append((output, *backward(saved, cotangent)))
        contexts = [forward() for forward, _ in calls]
        together = [
            (output, *backward(saved, cotangent))
            for (output, saved), (_, backward) in zip(contexts, calls, strict=True)
        ]
    for one, other_one in zip(alone, together, strict=True):
        for name, first, again in zip(("output", *INPUTS), one, other_one, strict=True):
            if first is not None and not same_bits(first, again):
                what = "the output" if name == "output" else f"the gradient of {name}"
                reason = f"{kernel}: {what} depends on another call than its own"
                return Check("own call", Verdict.FAIL, reason, None if name == "output" else name)
    return Check("own call", Verdict.PASS)
