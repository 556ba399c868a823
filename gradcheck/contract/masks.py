"""Whether backward lets through what forward lets through, where forward drops elements, as dropout does."""

from __future__ import annotations

import numpy as np

from gradcheck.contract.case import Case
from gradcheck.contract.expected import UNDERFLOW
from gradcheck.contract.watch import Run
from gradcheck.judge import Verdict
from gradcheck.subject import Violation

__all__ = ["masks_agree"]

NUDGE = 1.0625
CANCELLED = 1e-3
UNITS = 32.0  # of rounding between an element that is kept and the factor times x


def masks_agree(case: Case) -> None:
    """What forward drops gets no gradient, and what it keeps gets one, whatever the value of x is there."""
    if case.output.all():
        return
    for k, index in enumerate(case.subject.differentiable):
        if case.subject.wanted()[k].shape == case.output.shape:
            _require_one_mask(case, k, index)
            _require_mask_at_zero(case, k, index)


def _require_one_mask(case: Case, k: int, index: int) -> None:
    """Only where forward gives zeros that stay zeros when x is scaled.

    Along x their derivative is zero, so a gradient that is not zero there, on balance, contradicts it.
    """
    subject, output = case.subject, case.output
    x, gradient = subject.wanted()[k], case.expected.gradients[k]
    leaking = (output == 0) & (x != 0) & (gradient != 0)
    blocked = (output != 0) & (x != 0) & (gradient == 0)
    if not (leaking.any() and blocked.any()):
        return
    nudged = subject.run_forward(subject.replaced(index, np.asarray(x * x.dtype.type(NUDGE))))[0]
    leaking &= nudged == 0
    if not leaking.any():
        return
    cotangent = np.where(leaking, case.cotangent, case.cotangent.dtype.type(0))
    along = (case.run.backward(cotangent)[k] * x).astype(np.float64)
    if abs(along.sum()) > CANCELLED * np.abs(along).sum():
        name = subject.names[index]
        reason = (
            f"backward uses another mask than its forward: the gradient of {name} is not zero at "
            f"{int(leaking.sum())} elements that forward drops, and zero at {int(blocked.sum())} "
            "that it keeps"
        )
        raise Violation(Verdict.FAIL, reason, input=name, fatal=False)


def _require_mask_at_zero(case: Case, k: int, index: int) -> None:
    """Only where y is 0 or one factor times x, and is so on both sides of zero, as near as numbers go.

    Then that factor is the derivative at zero too, and the gradient there is that at any other x: a mask that
    depends on x, as that of a ReLU does, passes only one of the sides.
    """
    subject, output = case.subject, case.output
    x, wanted = subject.wanted()[k], case.expected.gradients[k]
    kept = np.flatnonzero(output)
    planted = kept[::2]  # the others are left, to be seen not to move
    if not kept.size or not x.flat[kept].all():
        return
    factor = float(output.flat[kept[0]]) / float(x.flat[kept[0]])

    def with_planted(value: float) -> np.ndarray:
        moved = x.copy()
        moved.flat[planted] = value
        return moved

    if not _alike(output, factor * x.astype(np.float64) * (output != 0)).all():
        return
    info = np.finfo(x.dtype)
    try:
        for small in (-info.tiny / info.eps, info.tiny / info.eps):
            changed = output.copy()
            changed.flat[planted] = factor * float(small)
            got, _ = subject.run_forward(subject.replaced(index, with_planted(small)))
            if got.shape != output.shape or not _alike(got, changed).all():
                return
        run = Run.forward(subject, subject.replaced(index, with_planted(0.0)))
    except Violation:  # points that the harness made up need not be legal
        return
    gradient = run.backward(case.cotangent)[k]
    differing = planted[~_alike(gradient.flat[planted], wanted.flat[planted])]
    if differing.size:
        name, where = subject.names[index], tuple(int(i) for i in np.unravel_index(differing[0], x.shape))
        reason = (
            f"backward takes its mask from values: where {name} is 0 and forward keeps it, the gradient of "
            f"{name} is {gradient[where]:.8g} at {where}, and {wanted[where]:.8g} where it is not 0 "
            f"({differing.size} of {planted.size} elements differ)"
        )
        raise Violation(Verdict.FAIL, reason, input=name, fatal=False)


def _alike(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where two arrays are equal but for a few roundings in the dtype of the first."""
    info = np.finfo(got.dtype)
    rtol, atol = UNITS * float(info.eps), UNDERFLOW * float(info.smallest_subnormal)
    return np.isclose(got.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol)
