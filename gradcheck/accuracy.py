"""Values rather than derivatives: float32 results against float64 ones, and the forward pass against a reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradcheck import budget
from gradcheck.gradient import GOAL
from gradcheck.judge import Check, Verdict
from gradcheck.numeric import magnitude
from gradcheck.subject import Subject, Violation, as_float64


def check_low_precision(subject: Subject, exact: Subject, rng: np.random.Generator) -> list[Check]:
    """Compare a float32 pair's output and gradients with its own results on float64 copies of the same inputs.

    The distance allowed is what moving the inputs by 4 float32 ulp does, in either arithmetic, times 16, plus
    8·u·√n of the largest result.
    """
    output, saved = subject.run_forward(subject.inputs)
    output = output.copy()
    cotangent = np.asarray(rng.standard_normal(output.shape).astype(subject.dtype))
    cotangent64 = cotangent.astype(np.float64)
    gradients = tuple(gradient.copy() for gradient in subject.run_backward(saved, cotangent))
    output64, saved64 = exact.run_forward(exact.inputs)
    output64 = output64.copy()
    gradients64 = tuple(gradient.copy() for gradient in exact.run_backward(saved64, cotangent64))

    moved_output = 0.0
    moved = [0.0] * len(gradients)
    for new, (new_gradients,) in budget.jiggled_runs(exact, exact.inputs, [cotangent64], rng, subject.dtype):
        moved_output = max(moved_output, _largest(new - output64))
        moved = [max(a, _largest(b - c)) for a, b, c in zip(moved, new_gradients, gradients64, strict=True)]
    for _, (new_gradients,) in budget.jiggled_runs(subject, subject.inputs, [cotangent], rng):
        moved = [max(a, _largest(b - c)) for a, b, c in zip(moved, new_gradients, gradients, strict=True)]

    count = max(output.size, *(gradient.size for gradient in gradients))
    checks = [_compare(output, output64, moved_output, 0.0, subject.dtype, count, "float32 output", None)]
    for k, index in enumerate(subject.differentiable):
        # A gradient that is small by cancellation is judged by the size of what cancelled.
        terms = _largest(cotangent64) * _largest(output64) / magnitude(subject.wanted()[k])
        checks.append(
            _compare(
                gradients[k], gradients64[k], moved[k], terms, subject.dtype, count, "float32 gradient",
                subject.names[index],
            )
        )  # fmt: skip
    return checks


def check_reference(
    subject: Subject, reference: Callable[..., object], rng: np.random.Generator
) -> list[Check]:
    """Compare the forward pass with a plain definition of it, evaluated in float64 on the same inputs."""
    output, _ = subject.run_forward(subject.inputs)
    output = output.copy()
    try:
        wanted = _run_reference(reference, subject.inputs, output)
        moved = 0.0
        for _ in range(budget.REPEATS):
            jiggled = subject.moved(lambda array: budget.jiggled(array, rng))
            moved = max(moved, _largest(_run_reference(reference, jiggled, output) - wanted))
    except Violation as broken:
        return [Check("reference", broken.verdict, broken.reason)]
    return [_compare(output, wanted, moved, 0.0, subject.dtype, output.size, "reference", None)]


def _run_reference(reference: Callable[..., object], inputs: tuple[np.ndarray | None, ...], output: np.ndarray) -> np.ndarray:
    try:
        value = np.array(reference(*as_float64(inputs)), dtype=np.float64)
    except Exception as error:
        raise Violation(Verdict.ERROR, f"reference raised {type(error).__name__}: {error}") from error
    if value.shape != output.shape:
        raise Violation(Verdict.ERROR, f"reference has shape {value.shape}; forward's output has {output.shape}")
    return value


def _compare(
    got: np.ndarray, wanted: np.ndarray, moved: float, terms: float, dtype: np.dtype, count: int, name: str, input: str | None
) -> Check:
    scale = max(_largest(wanted), terms)
    bar = budget.SAFETY * moved
    tolerance = budget.rounding_floor(dtype, count) * scale
    difference = np.abs(got.astype(np.float64) - wanted)
    error = float(np.max(difference))
    where = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
    unit = float(np.finfo(dtype).eps) / 2
    units = error / (unit * scale) if scale > 0 else np.inf
    allowed = (bar + tolerance) / (unit * scale) if scale > 0 else 0.0
    measured = f"off by {units:.3g} u·max at {where}"
    if not error <= bar + tolerance:
        verdict, reason = Verdict.FAIL, f"{measured}, where the conditioning of the inputs explains {allowed:.3g}"
    elif error > GOAL[np.dtype(dtype)] * scale:
        verdict, reason = Verdict.INCONCLUSIVE, f"resolution: {measured}; the inputs are too ill-conditioned to tell"
    else:
        verdict, reason = Verdict.PASS, ""
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
        resolution=(bar + tolerance) / scale if scale > 0 else np.inf,
    )


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array)))
