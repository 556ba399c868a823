"""Error against step: the differences of a forward pass beside what they should be, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradcheck.judge import Curve

__all__ = ["Plot", "plot"]

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
EVERY = 3  # decades from one label to the next
FLOOR = 1e-20


@dataclass(frozen=True)
class Mark:
    """A label on an axis, at a place in the picture."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """What a template needs to draw the curve: places in a picture of `width` × `height`.

    numeric, analytic: the points of |difference − numeric| and |difference − analytic|.
    rounding: the ends of the line of the rounding that was measured; chosen: the numeric derivative, at its
    smallest step and at its bar; None where it has none. text: the same in words.
    """

    numeric: tuple[tuple[float, float], ...]
    analytic: tuple[tuple[float, float], ...]
    rounding: tuple[tuple[float, float], ...]
    chosen: tuple[float, float] | None
    steps: tuple[Mark, ...]
    errors: tuple[Mark, ...]
    text: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def plot(curve: Curve) -> Plot:
    """The places of a curve's points. Differences that are exact, or not finite, have none."""
    numeric = _distances(curve, curve.numeric)
    analytic = _distances(curve, curve.analytic)
    ends = (curve.steps[0], curve.steps[-1]) if curve.steps else ()
    rounding = [(h, curve.noise / (math.sqrt(2) * h)) for h in ends if curve.noise > 0]
    chosen = [(curve.step, max(curve.bar, FLOOR))] if math.isfinite(curve.bar) else []
    points = [*numeric, *analytic, *rounding, *chosen] or [(1.0, 1.0)]
    xs, ys = _Axis(h for h, _ in points), _Axis(error for _, error in points)

    def places(some: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return tuple(
            (round(LEFT + across * xs.share(h), 1), round(HEIGHT - BOTTOM - up * ys.share(error), 1))
            for h, error in some
        )

    return Plot(
        numeric=places(numeric),
        analytic=places(analytic),
        rounding=places(rounding),
        chosen=next(iter(places(chosen)), None),
        steps=tuple(Mark(places([(10.0**e, 1.0)])[0][0], f"1e{e}") for e in xs.decades()),
        errors=tuple(Mark(places([(1.0, 10.0**e)])[0][1], f"1e{e}") for e in ys.decades()),
        text=_in_words(curve),
    )


def _in_words(curve: Curve) -> str:
    apart = abs(curve.analytic - curve.numeric)
    if not math.isfinite(curve.bar):
        return "Error against step. The differences do not settle: there is no numeric derivative."
    return (
        f"Error against step. Extrapolated from steps down to {curve.step:.1e}, the numeric derivative "
        f"is known to ± {curve.bar:.1e}; the analytic one is {apart:.1e} away from it."
    )


def _distances(curve: Curve, value: float) -> list[tuple[float, float]]:
    pairs = ((h, abs(d - value)) for h, d in zip(curve.steps, curve.differences, strict=True))
    return [(h, error) for h, error in pairs if 0 < error < math.inf]


class _Axis:
    """A logarithmic axis that holds these values, from whole decade to whole decade."""

    def __init__(self, values: Iterable[float]) -> None:
        exponents = [math.log10(value) for value in values]
        self._low = math.floor(min(exponents))
        self._high = max(math.ceil(max(exponents)), self._low + 1)

    def share(self, value: float) -> float:
        return (math.log10(value) - self._low) / (self._high - self._low)

    def decades(self) -> list[int]:
        apart = EVERY if self._high - self._low > EVERY else 1
        return [e for e in range(self._low, self._high + 1) if e % apart == 0]
