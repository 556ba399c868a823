"""Whether a framework's function gives the same when less is asked of it: no gradient, or only some.

A backward pass that asks which inputs need a gradient (`ctx.needs_input_grad`) has a path for each answer,
and a function may take a shorter way where nothing is recorded. Both must give what the full call gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradcheck import budget
from gradcheck.adapters import Pair
from gradcheck.contract.expected import Expected
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Subject, Violation

__all__ = ["NAME", "check_requests"]

NAME = "asked for less"


def check_requests(pair: Pair, subject: Subject, rng: np.random.Generator) -> Check:
    """Compare the output without gradients, and each gradient with fewer others, with those of the full call.

    pair: of the adapter. subject: the same, as it is checked; its calls are counted there.
    """
    try:
        output, context = subject.run_forward(subject.inputs)
        cotangent = np.asarray(rng.standard_normal(output.shape).astype(output.dtype))
        gradients = subject.run_backward(context, cotangent)
        whole = Expected(subject, subject.inputs, output, cotangent, gradients)
        if pair.plain is not None:
            _require_output(subject, whole, pair.plain, rng)
        if pair.some is not None:
            for chosen in _choices(subject.differentiable):
                _require_gradients(subject, whole, pair.some(chosen), rng)
    except Violation as broken:
        return Check(NAME, broken.verdict, broken.reason, broken.input)
    return Check(NAME, Verdict.PASS)


def _choices(positions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Each input alone, and all but one."""
    if len(positions) > 1:
        alone = [(one,) for one in positions]
        yield from dict.fromkeys([*alone, *(tuple(k for k in positions if k != one) for one in positions)])


def _require_output(
    subject: Subject, whole: Expected, plain: Callable[..., Any], rng: np.random.Generator
) -> None:
    without = dataclasses.replace(subject, forward=lambda *inputs: (plain(*inputs), None))
    copies = tuple(None if array is None else array.copy() for array in subject.inputs)
    try:
        got, _ = without.run_forward(copies)
    except Violation as broken:
        raise Violation(broken.verdict, f"without a gradient to record, {broken.reason}") from broken
    subject.evaluations = without.evaluations
    what = "without a gradient to record, the function gives another output"
    if got.shape != whole.output.shape:
        raise Violation(Verdict.FAIL, f"{what}: of shape {got.shape}, not {whole.output.shape}")
    worst = budget.worst(got, whole.output)
    allowed = budget.rounding_floor(subject.dtype, got.size) * budget.largest(whole.output)
    if worst.error <= allowed:
        return
    for moved, _ in budget.jiggled_runs(subject, subject.inputs, [], rng):
        allowed = max(allowed, budget.SAFETY * budget.largest(moved - whole.output))
    if not worst.error <= allowed:
        raise Violation(
            Verdict.FAIL,
            f"{what}, so the gradient is that of another function: {worst.got:.8g} at {worst.where}, not "
            f"{worst.wanted:.8g} (rounding explains {allowed:.1e})",
        )


def _require_gradients(subject: Subject, whole: Expected, part: Pair, rng: np.random.Generator) -> None:
    chosen = [subject.differentiable.index(position) for position in part.differentiable]
    if not any(whole.gradients[k].any() for k in chosen):
        return  # the output may not depend on these at all: then there is nothing to pull back through
    named = ", ".join(subject.names[position] for position in part.differentiable)
    where = f"asked for the gradient of {named} alone"
    asked = dataclasses.replace(
        subject, forward=part.forward, backward=part.backward, differentiable=part.differentiable
    )
    try:
        _, context = asked.run_forward(subject.inputs)
        found = asked.run_backward(context, whole.cotangent)
    except Violation as broken:
        raise Violation(broken.verdict, f"{where}, {broken.reason}", input=broken.input) from broken
    finally:
        subject.evaluations, subject.vjps = asked.evaluations, asked.vjps
    got = list(whole.gradients)
    for k, gradient in zip(chosen, found, strict=True):
        got[k] = gradient
    for difference in whole.differences(tuple(got), rng):
        if difference.verdict is not Verdict.PASS:
            reason = f"{where}, backward gives another: {difference.text}"
            raise Violation(difference.verdict, reason, input=difference.input)
