"""Analytic against numeric derivatives, along a few directions of each input, through a few cotangents."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from gradcheck import budget
from gradcheck.judge import Check, Evidence, judge
from gradcheck.numeric import LOWEST_PRECISION, Estimate, Line, direction
from gradcheck.subject import Subject

DIRECTIONS = 2
GOAL = {np.dtype(np.float64): 1e-7, np.dtype(np.float32): 2e-3}
SMALLER = (-8, -16, -24, -32)  # ladders for strong curvature and nearby kinks
LARGER = 3  # a ladder for noise
RESOLVED = 1e-2  # a numeric derivative known no better, of the size of its terms, accuses nobody
OFFSET = 0.75  # a ladder that shares no point with the others


def draw_cotangents(output: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Two Gaussian cotangents and one that is 1 at one element: never constant, never of one sign."""
    one_hot = np.zeros_like(output)
    one_hot[np.unravel_index(rng.integers(output.size), output.shape)] = 1
    gaussian = [np.asarray(rng.standard_normal(output.shape).astype(output.dtype)) for _ in range(2)]
    return [*gaussian, one_hot]


def check_gradients(subject: Subject, rng: np.random.Generator) -> list[Check]:
    """Judge the gradient of every wanted input at the precision of the subject's dtype."""
    output, saved = subject.run_forward(subject.inputs)
    cotangents = draw_cotangents(output, rng)
    gradients = [subject.run_backward(saved, cotangent) for cotangent in cotangents]
    if not budget.has_room(output, *itertools.chain(*gradients)):
        cotangents = [budget.lowered(cotangent) for cotangent in cotangents]
        gradients = [subject.run_backward(saved, cotangent) for cotangent in cotangents]
    jiggled = [moved for _, moved in budget.jiggled_runs(subject, subject.inputs, cotangents, rng)]
    checks = []
    for position, index in enumerate(subject.differentiable):
        mine = np.array([each[position] for each in gradients], dtype=np.float64)
        moved = np.array([[each[position] for each in run] for run in jiggled], dtype=np.float64)
        parts = [
            _Ask(subject, index, output, cotangents, mine, moved, rng).evidence() for _ in range(DIRECTIONS)
        ]
        checks.append(
            judge(
                Evidence.join(parts),
                goal=GOAL[subject.dtype],
                input=subject.names[index],
                zero=index in subject.zero,
            )
        )
    return checks


@dataclass(frozen=True, slots=True)
class _Bars:
    """What the analytic side is allowed along one direction."""

    tolerance: np.ndarray
    scale: np.ndarray
    yardstick: np.ndarray


class _Ask:
    """One direction of one input: its analytic derivatives by cotangent, and as many ladders as they need."""

    def __init__(
        self,
        subject: Subject,
        index: int,
        output: np.ndarray,
        cotangents: list[np.ndarray],
        gradients: np.ndarray,
        jiggled: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        x = subject.inputs[index]
        assert x is not None
        u = direction(x, rng)
        flat = u.reshape(-1).astype(np.float64)
        self._goal = GOAL[subject.dtype]
        self._cotangents = np.array([cotangent.reshape(-1) for cotangent in cotangents], dtype=np.float64)
        self._output = np.abs(output.reshape(-1)).astype(np.float64)
        rows = gradients.reshape(len(cotangents), -1)
        self._analytic = rows @ flat
        self._analytic_scale = np.abs(rows) @ np.abs(flat)
        moved = np.max(np.abs((jiggled.reshape(*jiggled.shape[:2], -1) - rows) @ flat), axis=0)
        self._moved = np.where(np.isnan(moved), np.inf, moved)
        self._floor = budget.rounding_floor(subject.dtype, max(x.size, output.size))
        self._unit = float(np.finfo(subject.dtype).eps) / 2
        # A gradient that is declared to be zero has no scale: it is measured against an identity's.
        self._identity = float(np.mean(np.abs(flat))) if index in subject.zero else 0.0

        def value(moved: np.ndarray) -> np.ndarray:
            return subject.run_forward(subject.replaced(index, moved))[0]

        self._line = Line(value, x, u, output, self._cotangents)

    def evidence(self) -> Evidence:
        estimate = self._line.ladder()
        bars = self._bars()
        for shift in SMALLER:
            if self._settled(estimate, bars) or not self._may_settle(estimate, shift):
                break
            estimate = estimate.overruled_by(self._line.ladder(shift))
            bars = self._bars()
        if estimate.shift == 0 and not self._settled(estimate, bars):
            wider = self._line.ladder(LARGER).overruled_by(estimate)
            # The wider ladder is the blinder one: it straddles every kink that this one does.
            estimate = dataclasses.replace(wider, kink=estimate.kink)
        kink = np.zeros_like(estimate.value)
        bar = estimate.bar
        if self._disagrees(estimate, bars).any():
            offset = self._line.ladder(estimate.shift, OFFSET)
            apart = np.abs(offset.value - estimate.value)
            # Two independent ladders that contradict each other prove nothing against the gradient.
            kink = estimate.kink
            independent = apart <= 2 * (offset.bar + offset.kink + bar + kink)
            bar = np.where(independent, bar, np.fmax(bar, apart))
            kink = np.fmax(kink, offset.kink)
            bar = np.where(
                self._unresolved(estimate), np.fmax(bar, np.abs(self._analytic - estimate.value)), bar
            )
        return Evidence(
            self._analytic,
            estimate.value,
            bar + kink,
            estimate.noise,
            kink,
            bars.tolerance,
            bars.scale,
            bars.yardstick,
        )

    def _bars(self) -> _Bars:
        size = np.abs(self._cotangents)
        slope = self._line.slope
        # A cotangent may look at an element that does not move here: its scale is that of its neighbours.
        scale = np.maximum(size @ slope, size.sum(axis=1) * np.mean(slope))
        scale = np.maximum(scale, self._analytic_scale)
        # What the output itself is made of bounds what may have cancelled on the way; its noise shows it too.
        terms = scale + size @ self._output
        tolerance = budget.SAFETY * self._moved + self._floor * terms
        yardstick = np.maximum(terms, self._line.noise / self._unit)
        return _Bars(tolerance, scale, np.maximum(yardstick, self._identity * size.sum(axis=1)))

    def _disagrees(self, estimate: Estimate, bars: _Bars) -> np.ndarray:
        agrees: np.ndarray = np.abs(self._analytic - estimate.value) <= 2 * estimate.bar + bars.tolerance
        return ~agrees

    def _may_settle(self, estimate: Estimate, shift: int) -> bool:
        """Whether smaller steps can help: not against noise, except once, to see what hides in it."""
        spread = np.any(estimate.bar - estimate.noise > estimate.noise)
        return self._line.admits(shift) and bool(shift == SMALLER[0] or spread)

    def _settled(self, estimate: Estimate, bars: _Bars) -> bool:
        tight = estimate.bar + bars.tolerance <= self._goal * bars.scale
        floor = np.abs(estimate.value) <= 2 * estimate.bar + bars.tolerance
        tight |= floor & (estimate.bar + bars.tolerance <= self._goal * bars.yardstick)
        return bool(np.all(tight & ~self._disagrees(estimate, bars)))

    def _unresolved(self, estimate: Estimate) -> np.ndarray:
        """Where the ladders did not settle, but not for rounding: some structure is finer than every step."""
        size = np.abs(self._cotangents)
        spread = estimate.bar - estimate.noise > estimate.noise
        loose = estimate.bar > RESOLVED * (size @ self._line.slope)
        finer: np.ndarray = (spread & loose) | (self._line.noise > LOWEST_PRECISION * (size @ self._output))
        return finer
