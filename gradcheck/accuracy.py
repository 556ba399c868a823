"""Values, not derivatives: low-precision results against float64 ones, forward against a reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradcheck import budget
from gradcheck.contract.expected import UNDERFLOW
from gradcheck.judge import Check, Verdict
from gradcheck.raising import raised
from gradcheck.subject import Arrays, Subject, Violation, as_float64

__all__ = ["check_low_precision", "check_reference", "exact_twin"]

FLOAT16, FLOAT32, FLOAT64 = (np.dtype(f"float{bits}") for bits in (16, 32, 64))
# An error of this size, relative to the result, tells nothing but that the inputs are ill-conditioned.
TELLING = {FLOAT16: 0.1, FLOAT32: 2e-3, FLOAT64: 2e-3}


def exact_twin(subject: Subject) -> tuple[Subject, Check | None]:
    """The same pair on copies of its inputs in the widest precision that it takes, and what that means.

    The check is INCONCLUSIVE where the mathematics cannot be judged: differences in float16 see nothing.
    """
    if subject.dtype == FLOAT64:
        return subject, None
    refused = ""
    for dtype in (FLOAT64, FLOAT32):
        twin = subject if dtype == subject.dtype else subject.in_dtype(dtype)
        try:
            output, context = twin.run_forward(twin.inputs)
            twin.run_backward(context, np.zeros_like(output))
        except Violation as broken:
            refused = refused or broken.reason
            continue
        if dtype == FLOAT64:
            return twin, None
        reason = f"judged in float32, to 2e-3; with float64, {refused}"
        return twin, Check("precision", Verdict.PASS, reason)
    reason = (
        "resolution: the pair takes float16 only, in which no difference is precise enough to judge a "
        f"gradient (with float64: {refused}); let it take float32 or float64 too"
    )
    return subject, Check("precision", Verdict.INCONCLUSIVE, reason)


def check_low_precision(
    subject: Subject, exact: Subject, rng: np.random.Generator, *, output: bool
) -> list[Check]:
    """Compare the output and gradients of a pair with its own results in more precision, at the same inputs.

    The distance allowed is what moving the inputs by 4 ulp of the low precision does, in either arithmetic,
    times 16, plus 8·u·√n of the largest result. So sums that are kept in float16 pass as long as they lose no
    more than that, and fail where they stall. `output` asks for the output too, which a reference answers
    better.
    """
    dtype = subject.dtype
    result, context = subject.run_forward(subject.inputs)
    cotangent = np.asarray(rng.standard_normal(result.shape).astype(dtype))
    gradients = subject.run_backward(context, cotangent)
    if not budget.has_room(result, *gradients):
        cotangent = budget.lowered(cotangent)
        gradients = subject.run_backward(context, cotangent)
    precise = cotangent.astype(exact.dtype)
    wanted, context = exact.run_forward(exact.inputs)
    wanted_gradients = exact.run_backward(context, precise)

    inherent, rounding = 0.0, 0.0
    moved = [0.0] * len(gradients)
    floor = budget.rounding_floor(dtype, max(result.size, *(gradient.size for gradient in gradients)))
    checks: list[Check] = []
    for _ in range(1 + budget.CONFIRMATIONS):
        for new, (new_gradients,) in budget.jiggled_runs(exact, exact.inputs, [precise], rng, dtype):
            inherent = max(inherent, budget.largest(new - wanted))
            _widen(moved, new_gradients, wanted_gradients)
        for new, (new_gradients,) in budget.jiggled_runs(subject, subject.inputs, [cotangent], rng):
            rounding = max(rounding, budget.largest(new - result))
            _widen(moved, new_gradients, gradients)
        checks = []
        if output:
            checks.append(
                _compare(f"{dtype} output", result, wanted, moved=inherent, rounding=rounding, floor=floor)
            )
        for index, x, got, want, change in zip(
            subject.differentiable, subject.wanted(), gradients, wanted_gradients, moved, strict=True
        ):
            terms = budget.uncancelled(precise, wanted, x)
            if index in subject.zero:  # it has no scale of its own: it is measured against an identity's
                terms = max(terms, budget.largest(precise))
            name = subject.names[index]
            checks.append(
                _compare(f"{dtype} gradient", got, want, moved=change, floor=floor, terms=terms, input=name)
            )
        if all(check.verdict is not Verdict.FAIL for check in checks):
            break
    return checks


def _widen(moved: list[float], new: tuple[np.ndarray, ...], old: tuple[np.ndarray, ...]) -> None:
    for k, (a, b) in enumerate(zip(new, old, strict=True)):
        moved[k] = max(moved[k], budget.largest(a - b))


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
        # It gets copies: what the pair may write to, a reference may write to.
        given = (None if array is None else array.copy() for array in inputs)
        value = np.array(reference(*given), dtype=np.float64)
    except Exception as error:
        raise Violation(Verdict.ERROR, raised("reference", error)) from error
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
    worst = budget.worst(got, wanted)
    error, info = worst.error, np.finfo(got.dtype)
    scale = max(budget.largest(wanted), terms, np.finfo(float).tiny)
    tolerance = floor * scale + UNDERFLOW * float(info.smallest_subnormal)
    bar = budget.SAFETY / 2 * moved  # half, as a check allows twice its bar
    allowed = 2 * bar + tolerance
    unit = float(info.eps) / 2 * scale
    apart = (
        f"{error / unit:.3g} rounding units of the largest element"
        if budget.largest(wanted) or terms
        else f"{error:.3g} from zero"
    )
    measured = f"off by {apart} at {worst.where}: {worst.got:.5g} instead of {worst.wanted:.5g}"
    verdict, reason = Verdict.PASS, ""
    if not np.isfinite(worst.got) and abs(worst.wanted) > float(info.max) / 16:
        verdict = Verdict.INCONCLUSIVE
        reason = f"resolution: {worst.wanted:.3g} at {worst.where} is at the end of {got.dtype}"
    elif not error <= max(allowed, budget.SAFETY * rounding + tolerance):
        verdict = Verdict.FAIL
        reason = f"{measured}, where the inputs' last digits explain {allowed / unit:.3g}"
    elif error > TELLING[got.dtype] * scale:
        verdict = Verdict.INCONCLUSIVE
        reason = f"resolution: {measured}; the inputs are too ill-conditioned to tell"
    elif not error <= allowed:
        verdict = Verdict.INCONCLUSIVE
        reason = f"noise: {measured}; rougher than the inputs' last digits explain; a reference= would tell"
    return Check(
        name=name,
        verdict=verdict,
        reason=reason,
        input=input,
        analytic=worst.got,
        numeric=worst.wanted,
        error=error,
        bar=bar,
        tolerance=tolerance,
        scale=scale,
        resolution=allowed / scale,
    )
