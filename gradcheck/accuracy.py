"""Values, not derivatives: float32 results against float64 ones, and the forward pass against a reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradcheck import budget
from gradcheck.gradient import GOAL
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject, Violation, as_float64


def check_low_precision(
    subject: Subject, exact: Subject, rng: np.random.Generator, *, output: bool
) -> list[Check]:
    """Compare a float32 pair's output and gradients with its own results on float64 copies of its inputs.

    The distance allowed is what moving the inputs by 4 float32 ulp does, in either arithmetic, times 16, plus
    8·u·√n of the largest result. `output` asks for the output too: a reference answers that better.
    """
    result, saved = subject.run_forward(subject.inputs)
    cotangent = np.asarray(rng.standard_normal(result.shape).astype(subject.dtype))
    gradients = subject.run_backward(saved, cotangent)
    if not budget.has_room(result, *gradients):
        cotangent = budget.lowered(cotangent)
        gradients = subject.run_backward(saved, cotangent)
    cotangent64 = cotangent.astype(np.float64)
    result64, saved64 = exact.run_forward(exact.inputs)
    gradients64 = exact.run_backward(saved64, cotangent64)

    inherent, rounding = 0.0, 0.0
    moved = [0.0] * len(gradients)
    for new, (new_gradients,) in budget.jiggled_runs(exact, exact.inputs, [cotangent64], rng, subject.dtype):
        inherent = max(inherent, budget.largest(new - result64))
        moved = [
            max(a, budget.largest(b - c)) for a, b, c in zip(moved, new_gradients, gradients64, strict=True)
        ]
    for new, (new_gradients,) in budget.jiggled_runs(subject, subject.inputs, [cotangent], rng):
        rounding = max(rounding, budget.largest(new - result))
        moved = [
            max(a, budget.largest(b - c)) for a, b, c in zip(moved, new_gradients, gradients, strict=True)
        ]

    count = max(result.size, *(gradient.size for gradient in gradients))
    floor = budget.rounding_floor(subject.dtype, count)
    checks = []
    if output:
        checks.append(
            _compare("float32 output", result, result64, moved=inherent, rounding=rounding, floor=floor)
        )
    for index, x, got, wanted, change in zip(
        subject.differentiable, subject.wanted(), gradients, gradients64, moved, strict=True
    ):
        name = subject.names[index]
        terms = budget.terms(cotangent64, result64, x)
        if index in subject.zero:  # it has no scale of its own: it is measured against an identity's
            terms = max(terms, budget.largest(cotangent64))
        checks.append(
            _compare("float32 gradient", got, wanted, moved=change, floor=floor, terms=terms, input=name)
        )
    return checks


def check_reference(
    subject: Subject, reference: Callable[..., object], rng: np.random.Generator
) -> list[Check]:
    """Compare the forward pass with a plain definition of it, evaluated in float64 on the same inputs."""
    output, _ = subject.run_forward(subject.inputs)
    try:
        wanted = _run_reference(reference, as_float64(subject.inputs), output)
        # What the definition itself suffers in the pair's precision, any sound way to compute it may suffer.
        moved = 0.0
        for _ in range(budget.repeats(subject)):
            jiggled = subject.moved(lambda array: budget.jiggled(array, rng))
            moved = max(moved, budget.largest(_run_reference(reference, jiggled, output) - wanted))
    except Violation as broken:
        return [Check("reference", broken.verdict, broken.reason)]
    floor = budget.rounding_floor(subject.dtype, output.size)
    return [_compare("reference", output, wanted, moved=moved, floor=floor)]


def _run_reference(reference: Callable[..., object], inputs: Arrays, output: np.ndarray) -> np.ndarray:
    try:
        value = np.array(reference(*inputs), dtype=np.float64)
    except Exception as error:
        raise Violation(Verdict.ERROR, f"reference raised {type(error).__name__}: {error}") from error
    if value.shape != output.shape:
        raise Violation(
            Verdict.ERROR, f"reference has shape {value.shape}; forward's output has {output.shape}"
        )
    return value


def _compare(
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    *,
    moved: float,
    floor: float,
    rounding: float = 0.0,
    terms: float = 0.0,
    input: str | None = None,
) -> Check:
    """Judge the worst element. `moved`: what the inputs' last digits explain; `rounding`: what they do to it.

    `terms` is the size of what cancelled in `wanted`, where that is larger than `wanted` itself.
    """
    difference = np.abs(got.astype(np.float64) - wanted)
    where = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
    error = float(difference[where])
    scale = max(budget.largest(wanted), terms, np.finfo(float).tiny)
    unit = float(np.finfo(got.dtype).eps) / 2 * scale
    tolerance = floor * scale
    bar = budget.SAFETY / 2 * moved  # half, as a check allows twice its bar
    apart = f"{error / unit:.3g} u·max" if budget.largest(wanted) or terms else f"{error:.3g} from zero"
    measured = f"off by {apart} at {where}"
    verdict, reason = Verdict.PASS, ""
    allowed = 2 * bar + tolerance
    if not error <= max(allowed, budget.SAFETY * rounding + tolerance):
        explained = allowed / unit
        verdict, reason = Verdict.FAIL, f"{measured}, where the inputs' last digits explain {explained:.3g}"
    elif error > GOAL[np.dtype(np.float32)] * scale:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"resolution: {measured}; the inputs are too ill-conditioned to tell",
        )
    elif not error <= allowed:
        verdict = Verdict.INCONCLUSIVE
        reason = f"noise: {measured}; rougher than the inputs' last digits explain; a reference= would tell"
    return Check(
        name=name,
        verdict=verdict,
        reason=reason,
        input=input,
        analytic=float(got[where]),
        numeric=float(wanted[where]),
        error=error,
        bar=bar,
        tolerance=tolerance,
        scale=scale,
        resolution=allowed / scale,
    )
