"""Every check of one configuration of a built-in normalization or dropout, on one device.

What it is compared with, the definition in float64, runs on the CPU whatever the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinygrad_bn
from gradcheck.adapters.tinygrad_bn.functions import Adapted
from gradcheck.agreement import (
    Evaluate,
    check_facts,
    check_repeated,
    check_trusted,
    check_twins,
    same_bits,
)
from gradcheck.axes import Arrays, Configuration
from gradcheck.diagnosis import terms
from gradcheck.harness import check_pair, with_second_order
from gradcheck.judge import Check, Verdict
from gradcheck.repeating import place_of
from gradcheck.report import Report
from gradcheck.sweep import Result
from tinygrad_bn import OpSpec, Tensor, devices, functional
from tinygrad_bn.fused import DEFINITION
from tinygrad_bn.namespace import arrays as array_functions

__all__ = ["call", "check_configuration"]

TWINS = ("sequential", "parallel")
INPUTS = ("input", "weight", "bias")
SEEDS = 1 << 64
MASKS_TRIED = 1000
SHARE = 16  # one configuration in so many is checked in second order and forward mode


class Raised(Exception):
    """An operation raised while it was checked."""


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
        # In the precision of the input: a definition calculates with what it is given.
        statistics = (
            s if s is None else devices.send(s.astype(x.dtype), x.device)
            for s in (arrays.running_mean, arrays.running_var)
        )
        return norm(x, *statistics, weight, bias, c.mode == "training", **axis)

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


@dataclass(frozen=True)
class _Runs:
    """How the operation of a configuration is run: with the numbers of which seed, on which device."""

    seed: int
    device: str

    def kernels(self, configuration: Configuration) -> tuple[str, ...]:
        """The names of the kernels that are checked: the twins of the CPU, and all that serve on others."""
        return TWINS if self.device == devices.CPU else _serving(configuration, self.device)

    def adapted(self, configuration: Configuration, arrays: Arrays, kernel: str) -> Adapted:
        """The operation as a pair of functions on the arrays."""
        inputs = arrays.differentiable
        present = tuple(position for position, array in enumerate(inputs) if array is not None)
        function = call(configuration, arrays, kernel, self.seed)
        return Adapted(function, inputs, present, configuration.lay_out, self.device)

    def evaluator(self, kernel: str) -> Evaluate:
        """Output and gradients by one kernel, or by the definition. The function raises Raised.

        A configuration of another operation with equal results may have no kernel of this name; then it
        takes its first.
        """

        def evaluate(
            configuration: Configuration, arrays: Arrays, cotangent: np.ndarray
        ) -> dict[str, np.ndarray]:
            with _raising(kernel):
                names = (DEFINITION,) if kernel == DEFINITION else self.kernels(configuration)
                adapted = self.adapted(configuration, arrays, kernel if kernel in names else names[0])
                output, saved = adapted.forward(*arrays.differentiable)
                gradients = zip(INPUTS, adapted.backward(saved, cotangent), strict=True)
            return {"output": output, **{name: value for name, value in gradients if value is not None}}

        return evaluate


def _serving(c: Configuration, device: str) -> tuple[str, ...]:
    """The names of the kernels on a device that serve a configuration; first the one that a call runs."""
    spec = _spec(c)
    if c.operation == "dropout":  # which have no limits
        found = [kernel for kernel in spec.kernels if kernel.device == devices.kind(device)]
    else:
        plan = None if spec.plan is None else spec.plan((c.shape,), _attributes(c))
        found = [k for k in spec.kernels if k.refusal(plan, np.dtype(c.dtype), device) is None]
    return tuple(dict.fromkeys(kernel.name for kernel in reversed(found)))


def check_configuration(
    configuration: Configuration,
    seed: int = 0,
    given: np.ndarray | None = None,
    source: tuple[str, ...] = (),
    device: str = devices.CPU,
) -> Result:
    """Every check of one configuration.

    They are: the first kernel's gradient against the numeric derivative of its own forward pass, float32
    against float64, every kernel of the device against the definition, the twins of the CPU against each
    other and the kernels of another device against a second call, and the facts that the operation obeys.

    Args:
        given: the input, where configuration.values is "given".
        source: the words of a command line that bring `given` about.
        device: where the kernels run.
    """
    start = time.perf_counter()
    arrays = configuration.draw(seed, given).astype(configuration.dtype)
    runs = _Runs(seed, device)
    kernels_forward, kernels_vjp, problems = _kernels_that_run(configuration, arrays, runs)
    report = None if problems else _report(configuration, arrays, runs)
    checks = problems if report is None else [*report.checks, *_comparisons(configuration, arrays, runs)]
    result = Result(
        configuration,
        seed,
        tuple(checks),
        kernels_forward,
        kernels_vjp,
        seconds=time.perf_counter() - start,
        source=source,
        findings=() if report is None else report.findings,
        device=device,
    )
    if result.verdict is Verdict.PASS:
        return result
    return dataclasses.replace(result, place=_place(_spec(configuration), kernels_vjp))


def _place(spec: OpSpec, ran: Sequence[str]) -> str:
    """Where the vjp of the kernel that ran is written; where none did, the declaration."""
    for kernel in spec.kernels:
        if ran and ran[0].startswith(f"{kernel.target}.vjp"):
            return place_of(kernel.resolve().vjp)
    return place_of(spec.definition)


def _kernels_that_run(
    configuration: Configuration, arrays: Arrays, runs: _Runs
) -> tuple[tuple[str, ...], tuple[str, ...], list[Check]]:
    """The kernels that ran forward and backward by each name; an ERROR where that is not one each."""
    ran: dict[str, list[str]] = {"forward": [], "vjp": []}
    problems = []
    ones = np.ones(configuration.shape, configuration.dtype)
    names = runs.kernels(configuration)
    if not names:
        reason = f"no kernel of {_spec(configuration).name} on {runs.device} serves this configuration"
        problems.append(Check("kernel", Verdict.ERROR, reason))
    for kernel in names:
        with tinygrad_bn.record() as trace:
            try:
                runs.evaluator(kernel)(configuration, arrays, ones)
            except Raised as error:
                problems.append(Check("kernel", Verdict.ERROR, str(error)))
                continue
        for phase, labels in ran.items():
            found = trace.kernels(phase)
            labels += found
            if len(found) != 1:
                reason = f"{kernel}: {len(found)} compiled kernels ran in {phase}, wanted 1"
                problems.append(Check("kernel", Verdict.ERROR, reason))
    for phase, labels in ran.items():
        if not problems and len(set(labels)) != len(names):
            reason = f"{' and '.join(names)} are the same kernel in {phase}: {labels[0]}"
            problems.append(Check("kernel", Verdict.ERROR, reason))
    return tuple(ran["forward"]), tuple(ran["vjp"]), problems


def _report(configuration: Configuration, arrays: Arrays, runs: _Runs) -> Report:
    """The first kernel, judged as any pair is; some configurations in second order and forward mode too.

    Those test the definition, against the kernel's gradient: a share of them is enough."""
    adapted = runs.adapted(configuration, arrays, runs.kernels(configuration)[0])
    more = zlib.crc32(str(configuration).encode()) % SHARE == 0
    spec = _spec(configuration)
    report = check_pair(
        adapted.forward,
        adapted.backward,
        arrays.differentiable,
        jvp=adapted.jvp if more else None,
        reference=_reference(spec, configuration, arrays),
        zero=configuration.zero,
        terms=terms.for_configuration(spec.terms or "", configuration, arrays),
        input_names=INPUTS,
        name=configuration.operation,
        framework=True,
        seed=runs.seed,
    )
    if more and report.verdict is not Verdict.ERROR:
        return with_second_order(report, adapted.pair(list(arrays.differentiable)), INPUTS)
    return report


def _spec(c: Configuration) -> OpSpec:
    """The record of the operation that runs."""
    if c.operation == "dropout":
        return tinygrad_bn.REGISTRY.get("dropout::dropout" if c.mode == "training" else "dropout::scale")
    name = "batch_norm_inference" if c.mode == "inference" else c.operation
    return tinygrad_bn.REGISTRY.get(f"norm::{name}")


def _reference(spec: OpSpec, c: Configuration, arrays: Arrays) -> Callable[..., Any] | None:
    """The definition of a normalization on arrays; None for dropout, which is linear in its input."""
    if c.operation == "dropout":
        return None
    attributes = _attributes(c)
    double = arrays.astype(np.float64)
    statistics = () if c.mode == "training" else (double.running_mean, double.running_var)

    def reference(x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
        x = np.broadcast_to(x, c.shape)
        return spec.definition(array_functions, x, weight, bias, *statistics, **attributes)[0]

    return reference


def _attributes(c: Configuration) -> dict[str, Any]:
    """Those of a normalization, as its definition takes them."""
    attributes: dict[str, Any] = {"eps": c.eps}
    if c.tail is not None:
        attributes["normalized_shape"] = c.parameters
    else:
        attributes["channel_axis"] = c.channel_axis
    if c.groups is not None:
        attributes["num_groups"] = c.groups
    return attributes


def _comparisons(configuration: Configuration, arrays: Arrays, runs: _Runs) -> list[Check]:
    """All kernels against the definition, each other, other calls, and what a normalization obeys."""
    rng = np.random.default_rng([runs.seed, 1])
    kernels = {name: runs.evaluator(name) for name in runs.kernels(configuration)}
    judged = {f"{name} kernel against definition": evaluate for name, evaluate in kernels.items()}
    trusted = _Runs(runs.seed, devices.CPU).evaluator(DEFINITION)
    cotangent = rng.normal(size=configuration.shape).astype(configuration.dtype)
    at = (configuration, arrays, cotangent)

    def bits() -> list[Check]:
        if runs.device == devices.CPU:
            return [check_twins(*at, *kernels.values())]
        return [check_repeated(*at, name, evaluate) for name, evaluate in kernels.items()]

    questions: dict[str, Callable[[], Sequence[Check]]] = {
        "definition": lambda: check_trusted(*at, judged, trusted, rng),
        "twins": bits,
        "own call": lambda: [_check_own_call(*at, kernel, runs) for kernel in kernels],
        "facts": lambda: check_facts(*at, next(iter(kernels.values())), rng),
    }
    checks: list[Check] = []
    for name, question in questions.items():
        try:
            checks += question()
        except Raised as error:
            checks.append(Check(name, Verdict.ERROR, str(error)))
    return checks


@contextlib.contextmanager
def _raising(kernel: str) -> Iterator[None]:
    """Whatever is raised inside is an operation's, and is raised as Raised."""
    try:
        yield
    except Exception as error:
        raise Raised(f"{kernel}: {type(error).__name__}: {error}") from error


def _check_own_call(
    configuration: Configuration, arrays: Arrays, cotangent: np.ndarray, kernel: str, runs: _Runs
) -> Check:
    """Forward A, forward B, backward A, backward B, against each alone; dropout has another mask in B."""
    drawn = dataclasses.replace(configuration, values="normal").draw(runs.seed + 1)
    other = drawn.astype(configuration.dtype)
    others = _Runs((runs.seed + MASKS_TRIED) % SEEDS, runs.device)
    calls = [
        (its_runs.adapted(configuration, its, kernel), its.differentiable)
        for its, its_runs in ((arrays, runs), (other, others))
    ]
    with _raising(kernel):
        alone = []
        for adapted, inputs in calls:
            output, saved = adapted.forward(*inputs)
            alone.append((output, *adapted.backward(saved, cotangent)))
        contexts = [(adapted, *adapted.forward(*inputs)) for adapted, inputs in calls]
        together = [(output, *adapted.backward(saved, cotangent)) for adapted, output, saved in contexts]
    for one, other_one in zip(alone, together, strict=True):
        for name, first, again in zip(("output", *INPUTS), one, other_one, strict=True):
            if first is not None and not same_bits(first, again):
                what = "the output" if name == "output" else f"the gradient of {name}"
                reason = f"{kernel}: {what} depends on another call than its own"
                return Check("own call", Verdict.FAIL, reason, None if name == "output" else name)
    return Check("own call", Verdict.PASS)
