"""The two entrances: a pair of NumPy functions, and a function of a framework's tensors."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradcheck import accuracy, contract, gradient
from gradcheck.judge import Check, Verdict
from gradcheck.report import Report
from gradcheck.subject import Subject, Violation, make_subject, names_of, positions

ADAPTERS = (
    "tinygrad_bn",
)  # modules of gradcheck.adapters, each imported when a check first meets foreign inputs


def check_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[np.ndarray | None],
    *,
    reference: Callable[..., Any] | None = None,
    differentiable: Iterable[int | str] | None = None,
    zero: Iterable[int | str] = (),
    input_names: Sequence[str] | None = None,
    name: str | None = None,
    framework: bool = False,
    seed: int = 0,
) -> Report:
    """Check a forward pass and the backward pass that claims to be its vector-Jacobian product.

        output, saved = forward(*inputs);   gradients = backward(saved, ȳ);   gradientᵢ = (∂output/∂inputᵢ)ᵀ ȳ

    Args:
        forward: returns (output, saved); the output is one array of the inputs' dtype, saved is anything.
        backward: takes (saved, cotangent), the cotangent shaped like the output; returns a tuple with one
            entry per input: an array of its shape and dtype, or None where no gradient is wanted.
        inputs: arrays of float32 or float64, or None for an absent one, which is passed on. float32 inputs
            ask two questions: whether the mathematics is right, judged on float64 copies, and whether the
            float32 results are as near to the float64 ones as the inputs allow.
        reference: a plain definition of the output, reference(*inputs) → output, run on float64 copies.
        differentiable: names or positions of the inputs that get a gradient; all arrays by default.
        zero: names or positions of the inputs whose gradient is exactly zero by the nature of the operation.
        input_names: names for the report; by default those of forward's parameters.
        name: the name of the operation in the report; by default that of forward.
        framework: allow what a framework may do: to hand the cotangent on as a gradient.
        seed: an integer, at least 0, of the directions and cotangents; the same seed gives the same report.

    Returns:
        A Report. Exceptions of forward and backward are verdicts in it, not raised.

    Raises:
        TypeError, ValueError: an argument of this call is not what is described here.
    """
    subject = make_subject(
        forward, backward, inputs,
        differentiable=differentiable, zero=zero, input_names=input_names, name=name, framework=framework,
    )  # fmt: skip
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer of at least 0; got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed must be an integer of at least 0; got {seed}")
    if reference is not None and not callable(reference):
        raise TypeError(f"reference must be callable; got {type(reference).__name__}")
    began = time.perf_counter()
    with np.errstate(
        all="ignore"
    ):  # the ladder visits points where the operation may overflow; NaN is dealt with
        exact, checks = _run(subject, reference, np.random.default_rng(seed))
    extra = () if exact is subject else (exact,)
    return Report(
        name=subject.name,
        inputs=tuple(_describe(subject)),
        checks=tuple(checks),
        evaluations=sum(each.evaluations for each in (subject, *extra)),
        vjps=sum(each.vjps for each in (subject, *extra)),
        seconds=time.perf_counter() - began,
        seed=seed,
    )


def check(fn: Callable[..., Any], inputs: Sequence[Any], *, seed: int = 0, **options: Any) -> Report:
    """Check the gradient that a framework computes for a function of its tensors.

    Args:
        fn: takes the inputs, returns one tensor.
        inputs: tensors of one supported framework, None or NumPy arrays among them.
        seed: of the directions and cotangents.
        **options: as for check_pair.

    Raises:
        TypeError: no input belongs to a supported framework.
    """
    if not isinstance(inputs, (tuple, list)):
        raise TypeError(
            f"inputs must be a tuple of tensors; got {type(inputs).__name__}; write (x,) for one input"
        )
    for framework in ADAPTERS:
        adapter = importlib.import_module(f"gradcheck.adapters.{framework}")
        if adapter.recognises(inputs):
            wanted = options.get("differentiable")
            if wanted is not None:
                names = names_of(fn, len(inputs), options.get("input_names"))
                wanted = options["differentiable"] = positions(wanted, names, "differentiable")
            forward, backward, arrays, name = adapter.pair(fn, inputs, wanted)
            return check_pair(
                forward, backward, arrays, seed=seed, framework=True, **{"name": name, **options}
            )
    kinds = ", ".join(sorted({f"{type(value).__module__}.{type(value).__name__}" for value in inputs}))
    raise TypeError(
        f"check() got inputs of {kinds or 'no type at all'}; it takes tensors of {', '.join(ADAPTERS)}. "
        "For functions of NumPy arrays, write check_pair(forward, backward, inputs)"
    )


def _run(
    subject: Subject, reference: Callable[..., Any] | None, rng: np.random.Generator
) -> tuple[Subject, list[Check]]:
    checks, sound = contract.probe(subject, rng)
    exact = subject
    if sound:
        try:
            exact = _exact(subject)
            checks += gradient.check_gradients(exact, rng)
            if exact.dtype != np.float64:
                checks.append(
                    Check(
                        "precision",
                        Verdict.PASS,
                        "the pair does not take float64: judged in float32, to 2e-3",
                    )
                )
            elif exact is not subject:
                checks += accuracy.check_low_precision(subject, exact, rng, output=reference is None)
        except Violation as broken:
            checks.append(Check("gradient", broken.verdict, broken.reason, broken.input))
        if reference is not None:
            checks += accuracy.check_reference(subject, reference, rng)
    return exact, checks


def _exact(subject: Subject) -> Subject:
    """The pair in float64; the pair as it is where it knows float32 only."""
    if subject.dtype == np.float64:
        return subject
    exact = subject.in_float64()
    try:
        output, saved = exact.run_forward(exact.inputs)
        exact.run_backward(saved, np.zeros_like(output))
    except Violation:
        return subject
    return exact


def _describe(subject: Subject) -> list[str]:
    described: list[str] = []
    for label, array in zip(subject.names, subject.inputs, strict=True):
        if array is not None:
            described.append(f"{label} {array.shape}" + ("" if described else f" {array.dtype}"))
    return described


__all__ = ["ADAPTERS", "Verdict", "check", "check_pair"]
