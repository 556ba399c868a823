"""Whether backward is linear in the cotangent: scaled by powers of two, which change no bit, and added up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradcheck import budget
from gradcheck.contract.case import Case
from gradcheck.contract.expected import Expected
from gradcheck.judge import Verdict, like_float32
from gradcheck.subject import Violation

__all__ = ["linear_in_the_cotangent"]

WHAT = "not linear in the cotangent"
FAR = 2.0**20  # more than the loss scale 65536, at which a half-precision range would show
NEAR = {np.dtype(np.float64): 2.0**8, np.dtype(np.float32): 2.0**8, np.dtype(np.float16): 2.0**4}
ROOM = 2.0**24  # what may lie between a gradient and the largest and smallest numbers on the way to it
LIKE_FLOAT32 = 2e-6  # sums of terms that were rounded to float32 and cancel
ADDED = 16.0  # three gradients and their sum have five roundings, and may cancel


def linear_in_the_cotangent(case: Case) -> None:
    """A zero cotangent gives zero, a scaled one the scaled gradient, the sum of three the sum of theirs."""
    zero = case.run.backward(np.zeros_like(case.cotangent))
    for name, gradient in zip(case.subject.wanted_names(), zero, strict=True):
        if np.any(gradient != 0):
            reason = f"{WHAT}: the gradient of {name} is not zero for a zero cotangent"
            raise Violation(Verdict.FAIL, reason, input=name, fatal=False)
    for factor in _factors(case):
        got = case.run.backward(np.asarray(case.cotangent * case.subject.dtype.type(factor)))
        _require_rounded(case, case.expected, got, f"{WHAT}: scaled by {factor:.7g}", factor=factor)
    _require_additive(case)


def _factors(case: Case) -> Iterator[float]:
    """−1, then as far up and down as no number on the way can leave the range of its dtype."""
    arrays = (case.cotangent, *case.expected.gradients)
    info, near = np.finfo(case.subject.dtype), NEAR[case.subject.dtype]
    sizes = [size for array in arrays if (size := budget.largest(array))]
    yield -1.0
    highest, lowest = max(sizes, default=1.0), min(sizes, default=1.0)
    if highest * FAR * ROOM < float(info.max):
        yield FAR
    elif _within_range(*(gradient * gradient.dtype.type(near) for gradient in case.expected.gradients)):
        yield near
    yield 1 / FAR if lowest / FAR / ROOM > float(info.tiny) else 1 / near


def _require_additive(case: Case) -> None:
    """vjp(a + b + c) = vjp(a) + vjp(b) + vjp(c), where b is all ones, and the elements of c sum to zero."""
    parts = [case.cotangent, np.ones_like(case.cotangent)]
    if case.output.size > 1:
        parts.append(_one_up_one_down(case))
    gradients = [case.expected.gradients, *(case.run.backward(part) for part in parts[1:])]
    added = tuple(np.asarray(sum(each)) for each in zip(*gradients, strict=True))
    if not _within_range(*added):
        return
    whole = np.asarray(sum(parts))
    together = Expected(case.subject, case.subject.inputs, case.output, whole, case.run.backward(whole))
    # Either side may be the wrong one; the rounding is measured around the gradient of the whole.
    what = f"{WHAT}: the gradients of {len(parts)} do not add up"
    _require_rounded(case, together, added, what, slack=ADDED)


def _one_up_one_down(case: Case) -> np.ndarray:
    """A cotangent of one 1 and one −1: not zero, though its elements sum to zero."""
    one, other = case.rng.choice(case.output.size, 2, replace=False)
    cotangent = np.zeros_like(case.cotangent, order="C")
    cotangent.reshape(-1)[[one, other]] = 1, -1
    return budget.lowered(cotangent) if case.lowered else cotangent


def _within_range(*arrays: np.ndarray) -> bool:
    """Whether rounding cannot make the difference between these and infinity."""
    return all(budget.largest(array) < float(np.finfo(array.dtype).max) / 2 for array in arrays)


def _require_rounded(
    case: Case,
    expected: Expected,
    got: tuple[np.ndarray, ...],
    what: str,
    factor: float = 1.0,
    slack: float = 1.0,
) -> None:
    for difference in expected.differences(got, case.rng, factor=factor, slack=slack):
        if difference.verdict is not Verdict.PASS:
            cause = (
                like_float32(difference.relative, LIKE_FLOAT32)
                if expected.subject.dtype == np.float64
                else ""
            )
            reason = f"{what}: {difference.text}{cause}"
            raise Violation(difference.verdict, reason, input=difference.input, fatal=False)
