"""The first run of a pair, which the contract probes compare every later one with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from gradcheck import budget
from gradcheck.contract.expected import Expected
from gradcheck.contract.watch import Run
from gradcheck.judge import Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["Case", "first_run"]


@dataclass(slots=True)
class Case:
    """The first run: its output and gradients, and the arrays that were returned, which may be buffers.

    `second` is another cotangent, `lowered` whether cotangents are small lest a gradient overflow. `again` is
    a second run of forward, with a context of its own. `forward_apart` and `backward_apart` are the largest
    differences between runs that rounding explains, `agreeing` how many backward runs gave the same.
    `refused` are the memory layouts that forward does not take, and why.
    """

    subject: Subject
    rng: np.random.Generator
    run: Run
    expected: Expected
    returned: tuple[np.ndarray, ...]
    second: np.ndarray
    lowered: bool
    again: Run | None = None
    forward_apart: float = 0.0
    backward_apart: float = 0.0
    agreeing: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def output(self) -> np.ndarray:
        return self.expected.output

    @property
    def cotangent(self) -> np.ndarray:
        return self.expected.cotangent

    def another_cotangent(self) -> np.ndarray:
        """An independent cotangent, of the size that the gradients of this case can bear."""
        return _cotangent(self.subject, self.output, self.rng, self.lowered)

    def at(self, inputs: Arrays, cotangent: np.ndarray) -> Expected | None:
        """What is expected elsewhere; None where the pair is not defined or not finite."""
        try:
            run = Run.forward(self.subject, inputs)
            output, gradients = run.output, run.backward(cotangent)
        except Violation:  # a point that the harness made up need not be legal
            return None
        if output.shape != self.output.shape:
            return None
        if not all(np.isfinite(array).all() for array in (output, *gradients)):
            return None
        return Expected(self.subject, inputs, output, cotangent, gradients)


def first_run(subject: Subject, rng: np.random.Generator) -> Case:
    """Call the pair once; raise a Violation where there is nothing to check, or nothing to go on with."""
    for name, array in zip(subject.wanted_names(), subject.wanted(), strict=True):
        if not array.size:
            _refuse_emptiness(subject, name, array.shape)
        if not np.isfinite(array).all():
            reason = f"input {name} holds NaN or infinity: there is no derivative there"
            raise Violation(Verdict.INCONCLUSIVE, reason, input=name)
    run = Run.forward(subject, subject.inputs)
    output = run.output.copy()  # it may be a buffer that later calls overwrite, and so may the gradients
    if not output.size:
        _refuse_emptiness(subject, "forward's output", output.shape)
    if not np.isfinite(output).all():
        bad = int(np.count_nonzero(~np.isfinite(output)))
        reason = f"forward's output holds NaN or infinity ({bad} of {output.size} elements)"
        raise Violation(Verdict.INCONCLUSIVE, reason)
    cotangent = _cotangent(subject, output, rng, lowered=False)
    returned = run.backward(cotangent)
    gradients = first = tuple(array.copy() for array in returned)
    lowered = not budget.has_room(output, *gradients)
    if lowered:
        cotangent = budget.lowered(cotangent)
        returned = run.backward(cotangent)
        gradients = tuple(array.copy() for array in returned)
    _require_finite(subject, cotangent, first, gradients)
    second = _cotangent(subject, output, rng, lowered)
    expected = Expected(subject, subject.inputs, output, cotangent, gradients)
    return Case(subject, rng, run, expected, returned, second, lowered)


def _cotangent(subject: Subject, output: np.ndarray, rng: np.random.Generator, lowered: bool) -> np.ndarray:
    drawn = np.asarray(rng.standard_normal(output.shape).astype(subject.dtype))
    return budget.lowered(drawn) if lowered else drawn


def _refuse_emptiness(subject: Subject, name: str, shape: tuple[int, ...]) -> NoReturn:
    """Say that there is nothing to check, or what the pair makes of it that contradicts the contract.

    Forward may refuse arrays without elements, backward may not refuse what forward took. And a sum over
    nothing is zero, not None, nor what the memory held before.
    """
    reason = f"nothing to check: {name} has shape {shape} and no elements"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of means over nothing
        try:
            run = Run.forward(subject, subject.inputs)
        except Violation as broken:
            if broken.__cause__ is None:  # it took them, and returned something else than it should
                raise
            raise Violation(Verdict.VACUOUS, f"{reason} ({broken.reason})") from broken
        gradients = run.backward(np.ones_like(run.output))
    for each, gradient in zip(subject.wanted_names(), gradients, strict=True):
        if not run.output.size and np.any(gradient != 0):
            wrong = f"the gradient of {each} is not zero, though forward's output has no elements"
            raise Violation(Verdict.FAIL, wrong, input=each)
    raise Violation(Verdict.VACUOUS, reason)


def _require_finite(
    subject: Subject,
    cotangent: np.ndarray,
    first: tuple[np.ndarray, ...],
    gradients: tuple[np.ndarray, ...],
) -> None:
    for k, (name, gradient, smaller) in enumerate(zip(subject.wanted_names(), first, gradients, strict=True)):
        # Infinity is right where the gradient itself is too large for its dtype.
        enlarged = smaller / gradient.dtype.type(budget.lowering(gradient.dtype))
        held = np.where(np.isfinite(enlarged), gradient, smaller)
        if np.isfinite(held).all():
            continue
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(held))[0])
        size = _size_in_float64(subject, cotangent, k, where)
        limit = float(np.finfo(subject.dtype).max)
        if size > limit / 16:
            reason = (
                f"resolution: the gradient of {name} is about {size:.2g} at {where}, "
                f"at the end of {subject.dtype}, which is {limit:.3g}; scale the inputs"
            )
            raise Violation(Verdict.INCONCLUSIVE, reason, input=name)
        reason = f"the gradient of {name} is {held[where]} at {where}, while forward is finite"
        raise Violation(Verdict.FAIL, reason, input=name)


def _size_in_float64(subject: Subject, cotangent: np.ndarray, k: int, where: tuple[int, ...]) -> float:
    """How large this element of a gradient is for the same pair in float64; 0 where that says nothing."""
    if subject.dtype == np.float64:
        return 0.0
    exact = subject.in_float64()
    try:
        _, context = exact.run_forward(exact.inputs)
        size = float(np.abs(exact.run_backward(context, cotangent.astype(np.float64))[k][where]))
    except Violation:
        return 0.0
    return size if np.isfinite(size) else 0.0
