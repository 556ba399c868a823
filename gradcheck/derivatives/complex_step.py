"""A third oracle where the reference is analytic: its derivative by a complex step, exact to rounding.

Im f(x + i·t·u) / t → J·u without cancellation, so t can be as small as 2⁻¹⁰⁰ (Squire and Trapp, 1998). A
reference that drops the imaginary part on its way (abs, var, conj, a cast) is no such oracle: it is found out
by contradicting its own real differences, and then nothing is concluded from it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np

from gradcheck import budget
from gradcheck.derivatives.directional import Direction
from gradcheck.derivatives.gradient import Gradients
from gradcheck.derivatives.numeric import Line
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject

__all__ = ["check_by_complex_step"]

NAME = "complex step"
STEP = 2.0**-100
NOT_MADE = "complex step: not made, the reference "

Reference = Callable[..., object]


class _NotAnalytic(Exception):
    """Why the reference has no derivative by complex step."""


def check_by_complex_step(
    subject: Subject, gradients: Gradients, reference: Reference, rng: np.random.Generator
) -> tuple[list[Check], tuple[str, ...]]:
    """Compare the gradients with the reference's own derivatives; return checks, or a note why not."""
    try:
        return [_check(subject, gradients, look, reference, rng) for look in gradients.directions], ()
    except _NotAnalytic as why:
        return [], (f"{NOT_MADE}{why}",)


def _check(
    subject: Subject, gradients: Gradients, look: Direction, reference: Reference, rng: np.random.Generator
) -> Check:
    size, tangents = gradients.point.output.size, look.tangents()
    check, _ = look.against(NAME, lambda inputs: _derivative(reference, inputs, tangents, size), rng)
    if check.verdict is Verdict.PASS:
        return check
    _require_analytic(gradients, look, reference)
    values = f"analytic {check.analytic:.8g}, by complex step through the reference {check.numeric:.8g}"
    reason = f"{values}: {check.reason}"
    return dataclasses.replace(check, reason=reason)


def _derivative(reference: Reference, inputs: Arrays, tangents: Arrays, size: int) -> np.ndarray:
    """J·u of the reference, as a vector of `size` elements."""
    stepped = tuple(
        None if array is None else array.copy() if u is None else array + 1j * STEP * u
        for array, u in zip(inputs, tangents, strict=True)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            value = np.asarray(reference(*stepped))
    except Exception as error:
        raise _NotAnalytic(f"does not take complex arrays ({type(error).__name__}: {error})") from error
    if value.dtype.kind != "c" or value.size != size:
        raise _NotAnalytic("drops the imaginary part of complex arrays")
    slopes: np.ndarray = np.imag(value).reshape(-1) / STEP
    return slopes


def _require_analytic(gradients: Gradients, look: Direction, reference: Reference) -> None:
    """Raise _NotAnalytic where the complex step contradicts the reference's own real differences."""
    point, (index,), (u,) = gradients.point, look.indices, look.parts
    subject = point.subject
    x = subject.inputs[index]
    assert x is not None

    def value(moved: np.ndarray) -> np.ndarray:
        given = (None if array is None else array.copy() for array in subject.replaced(index, moved))
        return np.asarray(reference(*given), dtype=np.float64)

    by_step = point.cotangents @ _derivative(reference, subject.inputs, look.tangents(), point.output.size)
    estimate = Line(value, x, u, value(x), point.cotangents).ladder()
    rounding = budget.rounding_floor(subject.dtype, point.output.size) * look.evidence.scale
    if not np.all(np.abs(estimate.value - by_step) <= 2 * (estimate.bar + estimate.kink) + rounding):
        raise _NotAnalytic("is not analytic: its derivative by complex step contradicts its own differences")
