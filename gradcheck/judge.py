"""The verdict on a gradient: PASS, VACUOUS, INCONCLUSIVE, FAIL or ERROR, and why."""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass

import numpy as np

FLOAT32 = 1.2e-7  # the spacing of float32 at 1
OUTLIER = (
    "the backward pass jumps exactly at this input: moved by 4 ulp it agrees with the numeric derivative"
)
UNKNOWN = "resolution: the output or its derivative overflows, or has no value, at points next to this input"


class Verdict(enum.IntEnum):
    """The five verdicts, in order of severity; the worst of a report's checks is the report's own."""

    PASS = 0
    VACUOUS = 1
    INCONCLUSIVE = 2
    FAIL = 3
    ERROR = 4

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Curve:
    """Differences of the forward pass along one direction and through one cotangent, at many steps.

    differences: the central difference at each of `steps`, which fall.
    analytic: the derivative that the gradient claims. numeric: the one of the forward pass, known to ± `bar`;
        `step` is the smallest from which it was extrapolated.
    noise: the standard deviation of the output's rounding: a difference at h is off by noise / (√2·h).
    """

    steps: tuple[float, ...]
    differences: tuple[float, ...]
    analytic: float
    numeric: float
    bar: float
    step: float
    noise: float


@dataclass(frozen=True, slots=True)
class Check:
    """One question that was asked of a pair, and its answer.

    For a gradient, `analytic` and `numeric` are the two directional derivatives of the worst projection,
    `error` their distance, `bar` the uncertainty of the numeric one, `tolerance` the measured rounding of the
    analytic one, and `resolution` the smallest error, relative to `scale`, that this check would have seen.
    `curve` shows how the numeric one came about, where the verdict is not PASS.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    input: str | None = None
    analytic: float | None = None
    numeric: float | None = None
    error: float | None = None
    bar: float | None = None
    tolerance: float | None = None
    scale: float | None = None
    resolution: float | None = None
    curve: Curve | None = None

    @property
    def allowed(self) -> float:
        """How large the error may be: twice the bar, and the tolerance."""
        return 2 * (self.bar or 0.0) + (self.tolerance or 0.0)

    @property
    def strain(self) -> float:
        """The error in units of what is allowed; infinite where it is NaN, or nothing is allowed."""
        error = self.error or 0.0
        if not error:
            return 0.0
        return error / self.allowed if self.allowed > 0 and error == error else math.inf


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured for one input: arrays with one entry per projection (a direction and a cotangent)."""

    analytic: np.ndarray
    numeric: np.ndarray
    bar: np.ndarray  # uncertainty of `numeric`, all causes together
    noise: np.ndarray  # the part of the bar that is rounding of the forward pass
    kink: np.ndarray  # the part of the bar that is a jump of the slope
    tolerance: np.ndarray  # measured rounding of `analytic`
    scale: np.ndarray  # the size that the result would have without cancellation
    yardstick: np.ndarray  # `scale`, or the size of the terms that cancelled inside the forward pass
    outlier: np.ndarray  # whether `analytic` agrees with `numeric` everywhere around the input but not at it

    @staticmethod
    def join(parts: list[Evidence]) -> Evidence:
        """Put the projections of several directions side by side."""
        return Evidence(
            *(np.concatenate([getattr(part, field) for part in parts]) for field in Evidence.__slots__)
        )


def judge(
    evidence: Evidence,
    *,
    goal: float,
    input: str,
    zero: bool = False,
    jumps: np.ndarray | None = None,
    unknown: str = UNKNOWN,
) -> Check:
    """Apply the decision table to the projections of one input's gradient.

    Args:
        goal: the relative uncertainty that a PASS must reach.
        zero: the gradient is declared to be zero.
        jumps: which elements of the output have a slope that jumps at the input, or near it.
        unknown: the reason to give where there is no numeric derivative.
    """
    error = np.abs(evidence.analytic - evidence.numeric)
    allowed = 2 * evidence.bar + evidence.tolerance
    with np.errstate(all="ignore"):
        strain = error / allowed
    uncertainty = evidence.bar + evidence.tolerance
    # What could not be measured accuses nobody; a gradient that is not finite accuses itself.
    missing = ~np.isfinite(allowed + evidence.numeric + evidence.yardstick)
    wrong = ~np.isfinite(evidence.analytic) | (~missing & ~(error <= allowed))
    # A jump of the slope hides what the gradient is, but does not make it zero.
    floor = 2 * (evidence.bar - evidence.kink) + evidence.tolerance
    at_floor = bool(np.all(np.maximum(np.abs(evidence.numeric), np.abs(evidence.analytic)) <= floor))

    if wrong.any():
        worst = _largest(strain, wrong)
        return _check(evidence, worst, input, Verdict.FAIL, _mismatch(evidence, worst, error[worst]))
    loose = uncertainty > goal * (evidence.yardstick if at_floor else evidence.scale)
    loose |= (evidence.kink > 0.5 * evidence.bar) & (uncertainty > goal * evidence.scale)
    if missing.any():
        return _check(evidence, _largest(strain, missing), input, Verdict.INCONCLUSIVE, unknown)
    if loose.any():
        with np.errstate(all="ignore"):
            worst = _largest(uncertainty / evidence.scale, loose)
        reason = _why_loose(evidence, worst, goal, "" if jumps is None else _where(jumps))
        return _check(evidence, worst, input, Verdict.INCONCLUSIVE, reason)
    worst = _largest(strain, np.ones_like(wrong))
    if at_floor and zero:
        check = _check(evidence, worst, input, Verdict.PASS, "zero, as declared")
        return dataclasses.replace(check, resolution=None)  # an error would be relative to nothing
    if at_floor:
        reason = (
            "the gradient is zero to rounding: nothing was checked, and a backward returning zeros would do"
        )
        return _check(evidence, worst, input, Verdict.VACUOUS, reason)
    if zero:
        worst = _largest(np.abs(evidence.numeric) / allowed, np.ones_like(wrong))
        reason = (
            f"declared to be zero, but the derivative of the forward pass is {evidence.numeric[worst]:.5g}"
        )
        return _check(evidence, worst, input, Verdict.FAIL, reason)
    return _check(evidence, worst, input, Verdict.PASS, "")


def _largest(values: np.ndarray, among: np.ndarray) -> int:
    ranked = np.where(np.isnan(values), np.inf, values)
    return int(np.argmax(np.where(among, ranked, -np.inf)))


def _mismatch(evidence: Evidence, at: int, error: float) -> str:
    analytic, numeric = evidence.analytic[at], evidence.numeric[at]
    if not np.isfinite(analytic):
        return f"the gradient is not finite: its derivative along a direction is {analytic}"
    relative = error / evidence.scale[at] if evidence.scale[at] > 0 else np.inf
    values = f"analytic {analytic:.8g}, numeric {numeric:.8g} ± {evidence.bar[at]:.1g}"
    text = f"{values}: off by {relative:.1e} of its scale"
    return text + (f" ({OUTLIER})" if evidence.outlier[at] else like_float32(relative, FLOAT32))


def like_float32(relative: float, most: float) -> str:
    """What an error of this size, at most `most`, looks like in float64; empty for any other."""
    if not 1e-9 < relative < most:
        return ""
    return " (the accuracy of float32: is something rounded to float32 on the way?)"


def _where(jumps: np.ndarray) -> str:
    """How many elements of the output jump, and the first."""
    where = np.argwhere(jumps)
    if not jumps.ndim or not len(where):
        return ""
    return f" in {len(where)} of {jumps.size} elements, first at {tuple(where[0].tolist())}"


def _why_loose(evidence: Evidence, at: int, goal: float, where: str) -> str:
    scale = float(evidence.scale[at])
    bar, tolerance, noise = evidence.bar[at], evidence.tolerance[at], evidence.noise[at]
    size = f"known to ±{bar + tolerance:.1e}, where the gradient's scale is zero"
    if scale > 0:
        size = f"known to {(bar + tolerance) / scale:.1e} of the gradient's scale, wanted {goal:.0e}"
    if evidence.kink[at] > 0.5 * bar:
        return f"kink: the slope of the output jumps at this input{where} ({size})"
    if tolerance > bar:
        return f"resolution: the backward pass changes that much when its inputs move by 4 ulp ({size})"
    if noise > 0.5 * bar:
        return f"noise: the forward pass is rough, as if computed in low precision ({size})"
    cause = f"strong curvature or a nearby kink{where}"
    return f"resolution: the numeric derivative does not settle, by {cause} ({size})"


def _check(evidence: Evidence, at: int, input: str, verdict: Verdict, reason: str) -> Check:
    bar, tolerance, scale = (float(part[at]) for part in (evidence.bar, evidence.tolerance, evidence.scale))
    analytic, numeric = float(evidence.analytic[at]), float(evidence.numeric[at])
    return Check(
        name="gradient",
        verdict=verdict,
        reason=reason,
        input=input,
        analytic=analytic,
        numeric=numeric,
        error=abs(analytic - numeric),
        bar=bar,
        tolerance=tolerance,
        scale=scale,
        resolution=(2 * bar + tolerance) / scale if 0 < scale < np.inf else np.inf,
    )
