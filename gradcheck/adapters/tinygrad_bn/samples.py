"""Every check of a registered operation at the samples that it declares."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradcheck.adapters.tinygrad_bn.functions import Adapted, operation_of, public_function
from gradcheck.harness import check_pair
from gradcheck.judge import Check, Verdict
from gradcheck.repeating import place_of
from gradcheck.report import Report
from tinygrad_bn import Kernel, OpSpec, Sample, devices
from tinygrad_bn.fused import DEFINITION, Fused
from tinygrad_bn.namespace import arrays as array_functions
from tinygrad_bn.registry import Samples

__all__ = ["Case", "cases", "check_operation"]


class Case(NamedTuple):
    """One check of an operation: at a sample, by a kernel."""

    name: str
    dtype: str
    check: Callable[[], Report]


def cases(spec: OpSpec, seed: int = 0, device: str = devices.CPU) -> list[Case]:
    """A case for each sample, by each kernel of a device and in each dtype that this serves. Nothing is run.

    A kernel's gradient is judged by the numeric derivative of its own forward pass, its output by the
    definition on the CPU. Error samples must raise what they say, and every kernel must serve a sample; an
    operation with kernels must have one for the device.

    Args:
        spec: the record of the operation.
        seed: an integer, at least 0, of the samples, directions and cotangents.
        device: where the operation runs.
    """
    found: list[Case] = []
    if spec.gradients:
        of_samples = _of_kernels if spec.kernels else _of_rules
        samples = [*_drawn(spec.samples, seed), *_drawn(spec.hard_samples, seed)]
        found += of_samples(spec, samples, seed, device)
    for sample in _drawn(spec.error_samples, seed):
        check = functools.partial(_check_raises, spec, sample, seed, device)
        found.append(Case(f"error sample {sample.name}", "float64", check))
    return _with_names_of_their_own(found)


def check_operation(spec: OpSpec, seed: int = 0) -> list[tuple[str, Report]]:
    """The name and the report of every case."""
    return [(case.name, case.check()) for case in cases(spec, seed)]


def _with_names_of_their_own(found: Sequence[Case]) -> list[Case]:
    """The second of a name, and those after it, are numbered."""
    seen: Counter[str] = Counter()
    named = []
    for case in found:
        seen[case.name] += 1
        number = f" ({seen[case.name]})" if seen[case.name] > 1 else ""
        named.append(case._replace(name=case.name + number))
    return named


def _drawn(samples: Samples | None, seed: int) -> list[Sample]:
    return [] if samples is None else list(samples(np.random.default_rng(seed)))


def _arrays(inputs: Sequence[Any]) -> list[Any]:
    """NumPy's scalars as arrays: what a generator draws for the shape () is one."""
    return [np.asarray(value) if isinstance(value, (np.generic, float)) else value for value in inputs]


def _dtype(spec: OpSpec, inputs: Sequence[Any]) -> str:
    """The dtype that a case is counted under: that of its first input."""
    first = next((value.dtype.name for value in inputs if value is not None), "float64")
    return first if first in spec.dtypes else "float64"


def _of_rules(spec: OpSpec, samples: Sequence[Sample], seed: int, device: str) -> Iterator[Case]:
    """The rules of a primitive, or the definition of a fused operation without kernels."""
    operation = operation_of(spec)
    for sample in samples:
        call = functools.partial(operation, **sample.attributes)
        fn = (lambda *parts, call=call: call(parts)) if spec.variadic else call
        inputs = _arrays(sample.inputs)
        check = functools.partial(_report, spec, fn, inputs, seed, device)
        yield Case(sample.name, _dtype(spec, inputs), check)


def _of_kernels(spec: OpSpec, samples: Sequence[Sample], seed: int, device: str) -> Iterator[Case]:
    operation = Fused(spec)
    kernels = [kernel for kernel in spec.kernels if kernel.device == devices.kind(device)]
    served: set[Kernel] = set()
    for sample in samples:
        for name in dict.fromkeys(kernel.name for kernel in kernels):
            for dtype in spec.dtypes:
                inputs = [_cast(value, dtype) for value in _arrays(sample.inputs)]
                try:
                    found = operation.explain(*inputs, kernel=name, device=device, **sample.attributes)
                except ValueError:  # no kernel of this name serves this sample
                    continue
                kernel = found.kernel
                assert kernel is not None  # a name that serves is one that runs
                served.add(kernel)
                fn = functools.partial(operation, kernel=name, **sample.attributes)
                check = functools.partial(_report, spec, fn, inputs, seed, device, kernel, sample.attributes)
                yield Case(f"{sample.name}, {name} {dtype}", _dtype(spec, inputs), check)
    if not kernels:
        yield _unchecked(spec, "kernels", f"no kernel of {spec.name} runs on {device}", seed)
    for kernel in kernels:
        if kernel not in served:
            reason = f"kernel {kernel.name!r} ({kernel.target}) serves no sample"
            yield _unchecked(spec, f"kernel {kernel.name}", reason, seed)


def _unchecked(spec: OpSpec, name: str, why: str, seed: int) -> Case:
    """An ERROR for what would otherwise pass unseen."""
    found = Check("kernel", Verdict.ERROR, f"{why}, so nothing was checked")
    return Case(name, "float64", functools.partial(_plain_report, spec, found, seed))


def _cast(value: Any, dtype: str) -> Any:
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def _report(
    spec: OpSpec,
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    seed: int,
    device: str,
    kernel: Kernel | None = None,
    attributes: Any = None,
) -> Report:
    """The report at one sample; a kernel is compared with the definition, which takes `attributes`."""
    gradients = range(len(inputs)) if spec.variadic else spec.gradients
    wanted = tuple(i for i in gradients if inputs[i] is not None and inputs[i].dtype.kind == "f")
    pair = Adapted(fn, inputs, wanted, device=device).pair(list(inputs))
    reference: Callable[..., Any] | None = None
    zero: tuple[int, ...] = ()
    if kernel is not None:
        zero = _zero(spec, inputs, attributes, wanted, seed)

        def reference(*arrays: Any) -> Any:
            return spec.definition(array_functions, *arrays, **attributes)[0]

    report = check_pair(
        pair.forward,
        pair.backward,
        pair.inputs,
        jvp=pair.jvp,
        reference=reference,
        differentiable=wanted,
        zero=zero,
        input_names=[spec.input_name(position) for position in range(len(inputs))],
        name=spec.name,
        framework=True,
        seed=seed,
    )
    if report.verdict is Verdict.PASS:
        return report
    return dataclasses.replace(report, place=place_of(kernel.resolve().vjp if kernel else spec.definition))


def _zero(
    spec: OpSpec, inputs: Sequence[Any], attributes: Any, wanted: tuple[int, ...], seed: int
) -> tuple[int, ...]:
    """The inputs whose gradient by the definition is exactly zero, such as where a mask drops all."""
    definition = Adapted(functools.partial(Fused(spec), kernel=DEFINITION, **attributes), inputs, wanted)
    output, saved = definition.forward(*inputs)
    cotangent = np.random.default_rng(seed).normal(size=output.shape).astype(output.dtype)
    gradients = definition.backward(saved, cotangent)
    return tuple(position for position in wanted if not np.any(gradients[position]))


def _check_raises(spec: OpSpec, sample: Sample, seed: int, device: str) -> Report:
    public = public_function(spec)
    inputs = [devices.send(value, device) if devices.is_array(value) else value for value in sample.inputs]
    wanted = f"{sample.raises.__name__ if sample.raises else 'an exception'} that says {sample.match!r}"
    try:
        if public is None:
            operation_of(spec)(*inputs, **sample.attributes)
        else:
            public(**dict(zip(spec.inputs, inputs, strict=False)), **sample.attributes)
    except Exception as error:
        if isinstance(error, sample.raises or Exception) and re.search(sample.match, str(error)):
            return _plain_report(spec, Check("raises", Verdict.PASS), seed)
        reason = f"raised {type(error).__name__}: {error}; wanted {wanted}"
    else:
        reason = f"raised nothing; wanted {wanted}"
    return _plain_report(spec, Check("raises", Verdict.FAIL, reason), seed)


def _plain_report(spec: OpSpec, check: Check, seed: int) -> Report:
    return Report(spec.name, (), (check,), evaluations=0, vjps=0, seconds=0.0, seed=seed)
