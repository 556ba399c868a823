"""Does the error bar hold? D ± e, as the verdict uses it, against exact directional derivatives.

Two oracles that use no differences of float64: the complex step (Squire and Trapp, 1998), in which the
operation is run on x + i·h·u and the derivative is the imaginary part divided by h, with nothing to cancel;
and differences in 50 digits by mpmath. The analytic side comes along: its error against its budget τ.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.axes import Configuration
from gradcheck.calibration.pairs import SMALL, RightPair, pair_for
from gradcheck.derivatives.directional import Direction
from gradcheck.derivatives.point import Point
from gradcheck.subject import make_subject

__all__ = ["ORACLES", "REGIMES", "Coverage", "MissingError", "coverage"]

REGIMES = ("normal", "scale 1e-3", "scale 100", "mean 1e4", "constant row", "spike")
COMPLEX_STEP = 1e-30
DIGITS, DIFFERENCE = 50, 1e-15

Oracle = Callable[[RightPair, int, np.ndarray], np.ndarray]


class MissingError(ImportError):
    """An oracle that is not installed."""


@dataclass(frozen=True)
class Coverage:
    """The projections of one operation in one regime: what was off, and what was claimed; arrays."""

    operation: str
    regime: str
    error: np.ndarray  # |D − exact|
    bar: np.ndarray  # e
    analytic_error: np.ndarray  # |A − exact|
    tolerance: np.ndarray  # τ
    scale: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Where the checker claims to know D at all."""
        return np.isfinite(self.bar)

    def within(self, factor: float) -> float:
        """The fraction with |D − exact| ≤ factor · e."""
        return float(np.mean(self.error[self.known] <= factor * self.bar[self.known]))

    @property
    def allowed(self) -> float:
        """The fraction with |D − exact| ≤ 2e + τ: what a verdict allows between A and D."""
        limit = 2 * self.bar[self.known] + self.tolerance[self.known]
        return float(np.mean(self.error[self.known] <= limit))

    @property
    def worst(self) -> float:
        """The largest |D − exact| / e."""
        return float(np.max(self.error[self.known] / self.bar[self.known]))

    @property
    def slack(self) -> float:
        """The median of e / |D − exact|: how much wider the bar is than it need be."""
        error = np.maximum(self.error[self.known], np.finfo(float).tiny)
        return float(np.median(self.bar[self.known] / error))

    @property
    def resolution(self) -> float:
        """The median of e, relative to the size that the derivative would have without cancellation."""
        return float(np.median(self.bar[self.known] / self.scale[self.known]))

    @property
    def worst_analytic(self) -> float:
        """The largest |A − exact| / τ."""
        return float(np.max(self.analytic_error / self.tolerance))

    @staticmethod
    def joined(parts: list[Coverage], operation: str, regime: str) -> Coverage:
        """All projections together, under another name."""
        fields = [field.name for field in dataclasses.fields(Coverage)[2:]]
        joined = (np.concatenate([getattr(part, field) for part in parts]) for field in fields)
        return Coverage(operation, regime, *joined)


def coverage(oracle: str, seeds: range) -> Iterator[Coverage]:
    """Every operation in every regime, with one draw of the inputs for each seed."""
    exact = ORACLES[oracle]
    for operation, text in SMALL.items():
        for regime in REGIMES:
            configuration = dataclasses.replace(Configuration.parse(text), values=regime)
            parts = [_measure(configuration, seed, exact) for seed in seeds]
            yield Coverage.joined(parts, operation, regime)


def _measure(configuration: Configuration, seed: int, exact: Oracle) -> Coverage:
    """One pair: every wanted input along a direction of its own, through every cotangent."""
    pair = pair_for(configuration, configuration.draw(seed), seed)
    subject = make_subject(
        pair.forward, pair.backward, pair.inputs, differentiable=pair.differentiable, input_names=pair.names
    )
    rng = np.random.default_rng(seed)
    parts = []
    with np.errstate(all="ignore"):
        point = Point.of(subject, rng)
        for index in subject.differentiable:
            look = Direction(point, [index], rng)
            evidence = look.evidence
            truth = point.cotangents @ exact(pair, index, look.parts[0]).reshape(-1)
            parts.append(
                Coverage(
                    configuration.operation,
                    configuration.values,
                    error=np.abs(evidence.numeric - truth),
                    bar=evidence.bar,
                    analytic_error=np.abs(evidence.analytic - truth),
                    tolerance=evidence.tolerance,
                    scale=evidence.scale,
                )
            )
    return Coverage.joined(parts, configuration.operation, configuration.values)


def _by_complex_step(pair: RightPair, index: int, u: np.ndarray) -> np.ndarray:
    """J·u."""
    moved = pair.inputs[index] + 1j * COMPLEX_STEP * u
    output, _ = pair.forward(*pair.inputs[:index], moved, *pair.inputs[index + 1 :])
    return np.asarray(output.imag / COMPLEX_STEP)


def _by_mpmath(pair: RightPair, index: int, u: np.ndarray) -> np.ndarray:
    """J·u."""
    mpmath = _import_mpmath()
    with mpmath.workdps(DIGITS):
        number = np.vectorize(mpmath.mpf, otypes=[object])
        inputs = [number(each) if each.dtype.kind == "f" else each for each in pair.inputs]
        h = mpmath.mpf(DIFFERENCE)
        step = number(u) * h
        x = inputs[index]
        plus, minus = (
            pair.forward(*inputs[:index], there, *inputs[index + 1 :])[0] for there in (x + step, x - step)
        )
        return ((plus - minus) / (2 * h)).astype(np.float64)


def _import_mpmath() -> Any:
    try:
        return importlib.import_module("mpmath")
    except ImportError:
        raise MissingError(
            "mpmath is not installed, and the derivatives in 50 digits are made with it: pip install mpmath"
        ) from None


ORACLES: dict[str, Oracle] = {"complex": _by_complex_step, "mpmath": _by_mpmath}
