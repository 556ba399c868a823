"""One direction: the derivative that the gradients claim against the one that the forward pass has.

With u the direction and ȳ a cotangent, A = ⟨gradient, u⟩ and D = d/dt ⟨ȳ, f(x + t·u)⟩ at t = 0. `Direction`
measures both, and what either may be off by: as many ladders of steps as D needs, and the budget of A.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck import budget
from gradcheck.derivatives.numeric import LOWEST_PRECISION, Estimate, Line, direction
from gradcheck.derivatives.point import Point
from gradcheck.judge import Check, Curve, Evidence, Verdict
from gradcheck.subject import Arrays, Violation

__all__ = ["GOAL", "Direction"]

GOAL = {np.dtype(np.float64): 1e-7, np.dtype(np.float32): 2e-3}
SMALLER = (-8, -16, -24, -32)  # ladders for strong curvature and nearby kinks
LARGER = 3  # a ladder for noise
RESOLVED = 1e-2  # a numeric derivative known no better, of the size of its terms, accuses nobody
STAIRS = "noise: the output stands still at tiny steps and moves at wider ones, as if rounded to few digits"
CLEAR = 1e-3  # an error above that, of the scale, is hardly the rounding of the forward pass
OFTEN = 0.25  # how often a move by a few ulp must leave the place where a backward pass jumps
OFFSET = 0.75  # a ladder that shares no point with the others


@dataclass(frozen=True, slots=True)
class _Bars:
    """What the analytic side is allowed along one direction."""

    tolerance: np.ndarray
    scale: np.ndarray
    terms: np.ndarray
    yardstick: np.ndarray


class Direction:
    """A random direction of one wanted input, or of several at once, and the evidence along it.

    indices: the positions of the inputs that move; `parts` are their directions.
    like: another direction at the same point, whose measurement of noise holds for this one too.
    """

    def __init__(
        self,
        point: Point,
        indices: Sequence[int],
        rng: np.random.Generator,
        like: Direction | None = None,
    ) -> None:
        self._point, self.indices = point, tuple(indices)
        subject = point.subject
        self._arrays = [subject.wanted()[subject.differentiable.index(index)] for index in indices]
        self.parts = [direction(x, rng) for x in self._arrays]
        self.unknown = ""  # why there is no numeric derivative
        x, u = (np.concatenate([each.reshape(-1) for each in parts]) for parts in (self._arrays, self.parts))
        ends = np.cumsum([each.size for each in self._arrays]).tolist()
        self._slices = [slice(end - each.size, end) for end, each in zip(ends, self._arrays, strict=True)]
        self._line: Line = Line(
            functools.partial(self._output, subject.inputs),
            x,
            u,
            point.output,
            point.cotangents,
            None if like is None else like._line,
        )

        self._u = u
        flat = self._flat = u.astype(np.float64)
        rows = self._rows = self._of(point.gradients)
        self.analytic = rows @ flat
        self._analytic_scale = np.abs(rows) @ np.abs(flat)
        self._beside = (self._of(point.jiggled) - rows) @ flat  # [runs, cotangents]: less the analytic one
        self._moved = _largest(np.abs(self._beside))
        self._outlier = np.zeros(self.analytic.shape, bool)
        self._rng = rng
        self._floor = budget.rounding_floor(subject.dtype, max(flat.size, point.output.size))
        self._unit = float(np.finfo(subject.dtype).eps) / 2
        # A gradient that is declared to be zero has no scale: it is measured against an identity's.
        self._identity = float(np.mean(np.abs(flat))) if subject.zero.issuperset(self.indices) else 0.0
        self._goal = GOAL[subject.dtype]
        self.evidence = self._gather()

    @property
    def noise(self) -> np.ndarray:
        """The rounding noise of the output, by cotangent."""
        return self._line.noise

    @property
    def jumps(self) -> np.ndarray:
        """Which elements of the output have a slope that jumps at the input, or near it."""
        return self._line.jumps.reshape(self._point.output.shape)

    def curve(self) -> Curve:
        """Differences at many steps, through the cotangent along which the two sides are furthest apart."""
        evidence = self.evidence
        apart = np.abs(evidence.analytic - evidence.numeric) / (2 * evidence.bar + evidence.tolerance)
        at, steps = int(np.argmax(np.where(np.isnan(apart), np.inf, apart))), self._line.widths()
        return Curve(
            steps=tuple(steps.tolist()),
            differences=tuple(self._line.differences(steps, at).tolist()),
            analytic=float(evidence.analytic[at]),
            numeric=float(evidence.numeric[at]),
            bar=float(evidence.bar[at]),
            step=float(self._step[at]),
            noise=float(self.noise[at]),
        )

    def tangents(self) -> Arrays:
        """The direction, one entry per input of the pair: zero where it stays, None if not differentiable."""
        subject, parts = self._point.subject, dict(zip(self.indices, self.parts, strict=True))
        return tuple(
            parts.get(index, np.zeros_like(array))
            if array is not None and index in subject.differentiable
            else None
            for index, array in enumerate(subject.inputs)
        )

    def against(
        self, name: str, derivative: Callable[[Arrays], np.ndarray], rng: np.random.Generator
    ) -> tuple[Check, int]:
        """Compare A with ⟨ȳ, J·u⟩ from another source, known to rounding; also say through which cotangent.

        derivative: takes the inputs, returns J·u as a vector.
        """
        subject, evidence = self._point.subject, self.evidence
        other = self._point.cotangents @ derivative(subject.inputs)
        moved = np.zeros_like(other)
        for _ in range(budget.repeats(subject)):
            jiggled = subject.moved(lambda array: budget.jiggled(array, rng))
            moved = np.fmax(moved, np.abs(self._point.cotangents @ derivative(jiggled) - other))
        allowed = evidence.tolerance + budget.SAFETY * moved
        error = np.abs(other - evidence.analytic)
        agrees = error <= allowed
        at = int(np.argmax(error)) if agrees.all() else int(np.argmin(agrees))
        scale = float(evidence.scale[at])
        relative = error[at] / scale if scale > 0 else np.inf
        check = Check(
            name=name,
            verdict=Verdict.PASS if agrees.all() else Verdict.FAIL,
            reason="" if agrees.all() else f"off by {relative:.1e} of its scale",
            input=", ".join(subject.names[index] for index in self.indices),
            analytic=float(evidence.analytic[at]),
            numeric=float(other[at]),
            error=float(error[at]),
            bar=0.0,
            tolerance=float(allowed[at]),
            scale=scale,
            resolution=float(allowed[at]) / scale if scale > 0 else np.inf,
        )
        return check, at

    def _of(self, by_input: list[np.ndarray]) -> np.ndarray:
        positions = [self._point.subject.differentiable.index(index) for index in self.indices]
        return np.concatenate([by_input[position] for position in positions], axis=-1)

    def _output(self, around: Arrays, moved: np.ndarray) -> np.ndarray:
        """The output at inputs given as one vector; NaN where forward raises, as it may beside its domain.

        around: the inputs of the pair, whose other arrays stay.
        """
        subject, inputs = self._point.subject, list(around)
        for index, array, own in zip(self.indices, self._arrays, self._slices, strict=True):
            part = moved[own].reshape(array.shape)
            # In the memory layout of the input; reshaping has seen to the ordinary one.
            inputs[index] = part if array.flags.c_contiguous else _laid_out_like(array, part)
        try:
            output, _ = subject.run_forward(tuple(inputs))
        except Violation as broken:
            if broken.__cause__ is None:
                raise
            self.unknown = f"resolution: at points beside this input {broken.reason}"
            return np.full_like(self._point.output, np.nan)
        if output.shape != self._point.output.shape:
            reason = (
                f"forward's output has shape {self._point.output.shape}, but {output.shape} beside this input"
            )
            raise Violation(Verdict.ERROR, reason)
        return output

    def _gather(self) -> Evidence:
        estimate = self._line.ladder()
        self._find_outliers(estimate)
        bars = self._bars()
        if self._line.climbs_stairs():
            self.unknown = STAIRS
            estimate = dataclasses.replace(estimate, bar=np.full_like(estimate.bar, np.inf))
            return self._evidence(estimate, bars)
        for shift in SMALLER:
            if self._settled(estimate, bars) or not self._may_settle(estimate, shift):
                break
            estimate = estimate.overruled_by(self._line.ladder(shift))
            self._find_outliers(estimate)
            bars = self._bars()
        if estimate.shift == 0 and not self._settled(estimate, bars):
            wider = self._line.ladder(LARGER).overruled_by(estimate)
            # The wider ladder is the blinder one: it straddles every kink that this one does.
            estimate = dataclasses.replace(wider, kink=estimate.kink)
        kink, bar = np.zeros_like(estimate.value), estimate.bar
        if self._disagrees(estimate, bars).any():
            offset = self._line.ladder(estimate.shift, OFFSET)
            apart = np.abs(offset.value - estimate.value)
            # Two independent ladders that contradict each other prove nothing against the gradient.
            kink = estimate.kink
            independent = apart <= 2 * (offset.bar + offset.kink + bar + kink)
            bar = np.where(independent, bar, np.fmax(bar, apart))
            kink = np.fmax(kink, offset.kink)
            unexplained = np.fmax(bar, np.abs(self.analytic - estimate.value))
            bar = np.where(self._unresolved(estimate), unexplained, bar)
            bar = np.fmax(bar, self._frozen(dataclasses.replace(estimate, bar=bar + kink), bars))
        return self._evidence(dataclasses.replace(estimate, bar=bar + kink, kink=kink), bars)

    def _frozen(self, estimate: Estimate, bars: _Bars) -> np.ndarray:
        """How far the numeric derivative moves with its inputs by a few ulp, before it accuses.

        A rounding error that is the same all along the line, as that of a mean that does not move, looks
        like a slope and shows in no noise.
        """
        error, apart = np.abs(self.analytic - estimate.value), np.zeros_like(estimate.value)
        accused = self._disagrees(estimate, bars)
        if not accused.any() or self._outlier.any():
            return apart
        small = np.any(accused & (error <= CLEAR * bars.scale))
        for _ in range(budget.CONFIRMATIONS if small else budget.REPEATS):
            around = self._point.subject.moved(lambda array: budget.jiggled(array, self._rng))
            x = np.concatenate([np.asarray(around[index]).reshape(-1) for index in self.indices])
            value = functools.partial(self._output, around)
            line = Line(value, x, self._u, value(x), self._point.cotangents, self._line)
            moved = np.abs(line.ladder(estimate.shift).value - estimate.value)
            apart = np.fmax(apart, np.where(accused, moved, 0))
        return apart

    def _find_outliers(self, estimate: Estimate) -> None:
        """Where the backward pass jumps at the input itself, while the forward pass is smooth there.

        Moved by a few ulp the analytic derivative is the numeric one, or in some runs still the one at the
        input, and nothing in between. Then what is left of the moves is rounding, and the jump is not.
        """
        bar, bars = estimate.bar + estimate.kink, self._bars()
        error = np.abs(self.analytic - estimate.value)
        apart = error > 2 * bar + self._floor * bars.terms
        loose = bars.tolerance > self._goal * bars.scale
        if self._line.jumps.any() or not np.any(apart & loose & (bar <= self._goal * bars.scale)):
            return
        if len(self._beside) == len(self._point.jiggled[0]):
            try:
                more = [self._of(self._point.more_jiggled(self._rng)) for _ in range(budget.CONFIRMATIONS)]
            except Violation:  # what is not defined beside the input accuses nobody
                return
            moves = (np.concatenate(more) - self._rows) @ self._flat
            self._beside = np.concatenate([self._beside, moves])
        from_analytic = np.abs(self._beside)
        from_numeric = np.maximum(np.abs(self.analytic + self._beside - estimate.value) - 2 * bar, 0)
        moved = _largest(np.minimum(from_numeric, from_analytic))
        tolerance = budget.SAFETY * moved + self._floor * bars.terms
        jumps = error > 2 * bar + tolerance
        jumps &= np.mean(from_numeric < from_analytic, axis=0) >= OFTEN
        self._outlier |= loose & jumps & (bar + tolerance <= self._goal * bars.scale)
        self._moved = np.where(self._outlier, moved, self._moved)

    def _evidence(self, estimate: Estimate, bars: _Bars) -> Evidence:
        self._step = estimate.step
        return Evidence(
            analytic=self.analytic,
            numeric=estimate.value,
            bar=estimate.bar,
            noise=estimate.noise,
            kink=estimate.kink,
            tolerance=bars.tolerance,
            scale=bars.scale,
            yardstick=bars.yardstick,
            outlier=self._outlier,
        )

    def _bars(self) -> _Bars:
        size = np.abs(self._point.cotangents)
        slope = self._line.slope
        # A cotangent may look at an element that does not move here: its scale is that of its neighbours.
        scale = np.maximum(size @ slope, size.sum(axis=1) * np.mean(slope))
        scale = np.maximum(scale, self._analytic_scale)
        # What the output itself is made of bounds what may have cancelled on the way; its noise shows it too.
        terms = scale + self._size_of_output()
        tolerance = budget.SAFETY * self._moved + self._floor * terms
        yardstick = np.maximum(terms, self.noise / self._unit)
        return _Bars(tolerance, scale, terms, np.maximum(yardstick, self._identity * size.sum(axis=1)))

    def _size_of_output(self) -> np.ndarray:
        size: np.ndarray = np.abs(self._point.cotangents) @ np.abs(self._point.output.reshape(-1))
        return size

    def _disagrees(self, estimate: Estimate, bars: _Bars) -> np.ndarray:
        agrees: np.ndarray = np.abs(self.analytic - estimate.value) <= 2 * estimate.bar + bars.tolerance
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
        size = np.abs(self._point.cotangents)
        spread = estimate.bar - estimate.noise > estimate.noise
        loose = estimate.bar > RESOLVED * (size @ self._line.slope)
        # An output of nothing but zeros is granted subnormal noise, which is not rough.
        rough = LOWEST_PRECISION * np.maximum(self._size_of_output(), np.finfo(self._u.dtype).tiny)
        finer: np.ndarray = (spread & loose) | (self.noise > rough)
        return finer


def _largest(moves: np.ndarray) -> np.ndarray:
    """Over the runs; a run without a value is as far as any."""
    return np.max(np.where(np.isnan(moves), np.inf, moves), axis=0)


def _laid_out_like(array: np.ndarray, values: np.ndarray) -> np.ndarray:
    laid_out = np.empty_like(array)
    laid_out[...] = values
    return laid_out
