"""A hand-written forward mode against the backward pass: one number from two sources, without differences.

⟨ȳ, J·u⟩ = ⟨Jᵀ·ȳ, u⟩ for every direction u and cotangent ȳ, to rounding. Where the two differ, the numeric
derivative of the forward pass says which of them is wrong.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gradcheck.derivatives.directional import Direction
from gradcheck.derivatives.gradient import Gradients
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["check_jvp"]

NAME = "JVP against VJP"


def check_jvp(subject: Subject, gradients: Gradients, rng: np.random.Generator) -> list[Check]:
    """Compare jvp(inputs, tangents) → tangent with the gradients, input by input; nothing without a jvp."""
    if subject.jvp is None:
        return []
    checks = []
    for look in gradients.directions:
        name, output = subject.names[look.indices[0]], gradients.point.output
        push = functools.partial(_push, subject, look.tangents(), output)
        try:
            check, at = look.against(NAME, push, rng)
        except Violation as broken:
            checks.append(Check(NAME, broken.verdict, broken.reason, name))
        else:
            checks.append(check if check.verdict is Verdict.PASS else _blame(check, look, at))
    return checks


def _blame(check: Check, look: Direction, at: int) -> Check:
    """Say which of the two the numeric derivative contradicts; at a kink both may be right."""
    evidence = look.evidence
    derivative, allowed = evidence.numeric[at], 2 * evidence.bar[at] + (check.tolerance or 0.0)
    backward_fits = bool(abs(evidence.analytic[at] - derivative) <= allowed)
    jvp_fits = check.numeric is not None and bool(abs(check.numeric - derivative) <= allowed)
    if backward_fits == jvp_fits and look.jumps.any():
        verdict, fault = Verdict.INCONCLUSIVE, "at this kink both may be right"
    elif backward_fits == jvp_fits:
        verdict, fault = Verdict.FAIL, f"neither can be told right by the numeric {derivative:.8g}"
    else:
        verdict = Verdict.FAIL
        fault = f"the {'jvp' if backward_fits else 'backward pass'} is wrong, the numeric is {derivative:.8g}"
    values = f"⟨ȳ, J·u⟩ is {check.numeric:.8g} by the jvp, {check.analytic:.8g} by the backward pass"
    reason = f"{values}, {check.reason}: {fault}"
    return dataclasses.replace(check, verdict=verdict, reason=reason)


def _push(subject: Subject, tangents: Arrays, output: np.ndarray, inputs: Arrays) -> np.ndarray:
    """Call jvp, hold it to its contract, and return the derivative of the output as a float64 vector."""
    before = [None if array is None else array.tobytes() for array in (*inputs, *tangents)]
    assert subject.jvp is not None
    try:
        tangent = subject.jvp(inputs, tangents)
    except Exception as error:
        raise Violation(Verdict.ERROR, f"jvp raised {type(error).__name__}: {error}") from error
    if not isinstance(tangent, (np.ndarray, np.generic)):
        raise Violation(Verdict.ERROR, f"jvp must return a NumPy array; it returned {type(tangent).__name__}")
    if (tangent.shape, tangent.dtype) != (output.shape, output.dtype):
        got, wanted = f"{tangent.shape} {tangent.dtype}", f"{output.shape} {output.dtype}"
        raise Violation(Verdict.ERROR, f"jvp returned {got}; the output is {wanted}")
    if [None if array is None else array.tobytes() for array in (*inputs, *tangents)] != before:
        raise Violation(Verdict.ERROR, "jvp modified an input or a tangent; work on a copy")
    pushed: np.ndarray = np.asarray(tangent, dtype=np.float64).reshape(-1)
    return pushed
