"""The gradient of the gradient: the same machinery on (inputs, ȳ) ↦ gradients, and the Hessian's symmetry.

With H the Hessian of ⟨ȳ, f⟩ over the inputs that get a gradient, taken jointly, uᵀHw = wᵀHu for all u and w,
to rounding. A double backward that is a plausible matrix but no second derivative breaks it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gradcheck import budget
from gradcheck.derivatives.gradient import check_gradients
from gradcheck.derivatives.numeric import magnitude
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["COTANGENT", "check_second_order"]

NAME = "second order"
SYMMETRY = "second order symmetry"
COTANGENT = "cotangent"  # the name of the last input


def check_second_order(subject: Subject, rng: np.random.Generator) -> list[Check]:
    """Judge (*inputs, cotangent) ↦ the gradients joined into one vector; the cotangent comes last."""
    try:
        checks = [_located(subject, check, rng) for check in check_gradients(subject, rng).checks]
        return [*map(_named, checks), _check_symmetry(subject, rng)]
    except Violation as broken:
        return [Check(NAME, broken.verdict, broken.reason, broken.input)]


def _named(check: Check) -> Check:
    """Gradients that do not depend on an input have derivative zero: nothing is wrong with that."""
    name = NAME if check.name == "gradient" else f"{NAME}, {check.name}"
    if check.verdict is Verdict.VACUOUS and check.numeric == 0 and check.analytic == 0:
        reason = f"zero: the gradients do not depend on {check.input}"
        return dataclasses.replace(check, name=name, verdict=Verdict.PASS, reason=reason)
    return dataclasses.replace(check, name=name)


def _located(subject: Subject, check: Check, rng: np.random.Generator) -> Check:
    """A FAIL whose reason begins with the gradients that have a wrong derivative: d(dweight)/dx.

    Where the backward pass has none at all, that is no mistake in a formula, and the reason says what it is.
    """
    arrays, names = subject.wanted()[:-1], subject.wanted_names()[:-1]
    ends = np.cumsum([x.size for x in arrays]).tolist()
    if check.verdict is not Verdict.FAIL or check.input is None:
        return check
    output, _ = subject.run_forward(subject.inputs)
    if output.size != ends[-1]:  # an ERROR by the check of the symmetry
        return check
    index, wrong, cut = subject.names.index(check.input), [], True
    for name, start, end in zip(names, [0, *ends], ends, strict=False):
        block = _block(subject, slice(start, end), output.shape, index)
        judged = check_gradients(block, rng).checks[0]
        if judged.verdict is Verdict.FAIL:
            wrong.append(f"d(d{name})/d{check.input}")
            cut = cut and judged.analytic == 0
        subject.evaluations, subject.vjps = block.evaluations, block.vjps
    if not wrong:
        return check
    reason = check.reason
    if cut:
        reason = (
            "the gradient of the gradient is zero where it is not: the backward pass is cut off from "
            f"{check.input} (detach, .data, or computed without grad)"
        )
    return dataclasses.replace(check, reason=f"{', '.join(wrong)}: {reason}")


def _block(subject: Subject, part: slice, shape: tuple[int, ...], index: int) -> Subject:
    """One gradient alone as the output, and one input."""

    def forward(*inputs: np.ndarray | None) -> tuple[np.ndarray, object]:
        joined, saved = subject.forward(*inputs)
        return joined.reshape(-1)[part].copy(), saved

    def backward(saved: object, cotangent: np.ndarray) -> object:
        joined = np.zeros(shape, cotangent.dtype)
        joined.reshape(-1)[part] = cotangent
        return subject.backward(saved, joined)

    return dataclasses.replace(subject, forward=forward, backward=backward, differentiable=(index,))


def _check_symmetry(subject: Subject, rng: np.random.Generator) -> Check:
    """uᵀHw against wᵀHu: each from one backward pass, each with its rounding measured."""
    arrays = subject.wanted()[:-1]
    u, w = ([magnitude(x) * rng.standard_normal(x.shape) for x in arrays] for _ in range(2))

    def both(inputs: Arrays) -> np.ndarray:
        output, saved = subject.run_forward(inputs)
        if output.size != sum(x.size for x in arrays):
            reason = f"the gradients have {output.size} elements, the inputs {sum(x.size for x in arrays)}"
            raise Violation(Verdict.ERROR, reason)
        products = []
        for one, other in ((u, w), (w, u)):
            joined = np.concatenate([part.reshape(-1) for part in one]).reshape(output.shape)
            rows = subject.run_backward(saved, joined)[:-1]
            products.append([float(np.vdot(row, part)) for row, part in zip(rows, other, strict=True)])
        return np.array(products)

    parts = both(subject.inputs)
    first, second = parts.sum(axis=1)
    moved = 0.0
    for _ in range(budget.repeats(subject)):
        jiggled = both(subject.moved(lambda array: budget.jiggled(array, rng)))
        moved = max(moved, budget.largest(jiggled.sum(axis=1) - parts.sum(axis=1)))
    scale = budget.largest(np.abs(parts).sum(axis=1))
    floor = budget.rounding_floor(subject.dtype, sum(x.size for x in arrays))
    tolerance, error = budget.SAFETY * moved + floor * scale, abs(first - second)
    verdict, reason = Verdict.PASS, ""
    if not error <= tolerance:
        verdict = Verdict.FAIL
        reason = f"the Hessian is not symmetric: uᵀHw is {first:.8g} and wᵀHu is {second:.8g}"
    return Check(
        name=SYMMETRY,
        verdict=verdict,
        reason=reason,
        analytic=float(first),
        numeric=float(second),
        error=float(error),
        bar=0.0,
        tolerance=float(tolerance),
        scale=scale,
    )
