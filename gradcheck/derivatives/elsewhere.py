"""The gradient at a second input, where the first told nothing wrong.

A backward pass may agree with its forward pass at the input that was given, and nowhere else: it keeps the
statistics of the first call there ever was, or was derived for values that this input happens to have. All
calls at one input are alike to it. Six calls of the forward pass tell whether that may be so; only if they
do, the whole machinery goes there, and it alone accuses.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gradcheck.derivatives.directional import GOAL
from gradcheck.derivatives.gradient import beside, check_gradients
from gradcheck.derivatives.numeric import direction, glance
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Subject, Violation

__all__ = ["NAME", "check_elsewhere"]

NAME = "gradient elsewhere"
SUSPECT = 10.0  # times the goal of a PASS: what is forgotten of another input is no rounding
TWICE = 2  # inputs at which a gradient must be wrong: one may be an accident


def check_elsewhere(subject: Subject, rng: np.random.Generator) -> list[Check]:
    """Judge the gradients with all inputs moved by 5 % of their spread; [] where that cannot be done."""
    wrong = None
    for _ in range(TWICE):
        there = dataclasses.replace(subject, inputs=subject.moved(lambda array: beside(array, rng)))
        try:
            wrong = _wrong(there, rng)
        except Violation:  # a point that the harness made up need not be legal
            return []
        finally:
            subject.evaluations, subject.vjps = there.evaluations, there.vjps
        if wrong is None:
            return [Check(NAME, Verdict.PASS)]
    assert wrong is not None
    reason = (
        "the gradient is right at this input, and wrong beside it, with all inputs moved by 5 % of their "
        "spread: does the pair keep something of an earlier call, or hold for some values only? There "
        f"{wrong.reason}"
    )
    return [dataclasses.replace(wrong, name=NAME, reason=reason)]


def _wrong(subject: Subject, rng: np.random.Generator) -> Check | None:
    """The worst check that FAILs at the inputs of this pair; None where the gradients seem right."""
    if not _suspect(subject, rng):
        return None
    failed = [each for each in check_gradients(subject, rng).checks if each.verdict is Verdict.FAIL]
    return max(failed, key=lambda check: (check.input is not None, check.strain), default=None)


def _suspect(subject: Subject, rng: np.random.Generator) -> bool:
    """Whether all gradients together are off along one direction by more than what six points leave open."""
    output, context = subject.run_forward(subject.inputs)
    output = output.copy()
    cotangent = np.asarray(rng.standard_normal(output.shape).astype(output.dtype))
    gradients = subject.run_backward(context, cotangent)
    arrays = subject.wanted()
    parts = [direction(array, rng) for array in arrays]
    x, u, gradient = (np.concatenate([each.reshape(-1) for each in of]) for of in (arrays, parts, gradients))
    ends = np.cumsum([array.size for array in arrays])[:-1]

    def value(moved: np.ndarray) -> np.ndarray:
        inputs = list(subject.inputs)
        for index, array, own in zip(subject.differentiable, arrays, np.split(moved, ends), strict=True):
            inputs[index] = own.reshape(array.shape)
        return subject.run_forward(tuple(inputs))[0]

    numeric, bar = glance(value, x, u, cotangent)
    terms = gradient.astype(np.float64) * u
    scale = float(np.abs(terms).sum()) + float(np.abs(cotangent * output).sum())
    apart = abs(float(terms.sum()) - numeric)
    return not apart <= 2 * bar + SUSPECT * GOAL[subject.dtype] * scale
