"""Directional derivatives of a forward pass with an error bar that can be believed.

Along one direction u the output is a curve y(t) = f(x + t·u). Central differences over a ladder of halving
steps are extrapolated by Romberg's scheme; the bar is the spread of neighbouring extrapolations (Ridders,
1982) plus four times the rounding noise, measured from high-order differences at tiny steps (Moré and Wild,
2011). The whole output vector is differenced, so one ladder serves any number of cotangents.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 2.0 ** -np.arange(2, 11)
COLUMNS = 6
GLANCE = (2.0**-5, 2.0**-7, 2.0**-9)
RATIO = 16.0  # of the squares of neighbouring steps of a glance
MULTIPLES = np.array([-1.5, -1.0, -0.5, 0.5, 1.0, 1.5])  # of a power of two: what directions are made of
# Steps of the noise probes, finest first. The finest sees the rounding of the working precision; the wider
# ones that of an operation that rounds to a lower one on its way and stands still at the finest.
NOISE_STEPS = {
    np.dtype(np.float64): (2.0**-36, 2.0**-30, 2.0**-24, 2.0**-18),
    np.dtype(np.float32): (2.0**-12, 2.0**-9),
}
NOISE_ORDER = 4
# Rounding looks alike at neighbouring steps and is small; what grows with the step, as a kink does, or is
# larger, is not.
ALIKE, LOWEST_PRECISION = 0.5, 1e-5
# A jump of the slope bends the output by as much at h as at 2h, curvature by half as much. How much of the
# bend must be jump, and how large one must be, of the largest slope, to move a bar or to overrule the noise.
JUMPING, SMALL_JUMP, LARGE_JUMP = 0.1, 1e-6, 1e-3
GROWING = 0.75  # of what the output moves within 2h, that it moves within h: half of it where it is smooth
SHORT = 2.0**-8  # steps up to here show jumps; at wider ones the curvature itself varies
NOISE_POINTS = range(-3, 5)


def magnitude(x: np.ndarray) -> float:
    """The power of two just below the spread of x, or below its size where it is constant; 1 where zero."""
    largest = float(np.abs(x).max()) if x.size else 0.0
    size = largest * float((x / largest).std(dtype=np.float64)) if largest > 0 else 0.0
    if size <= 2.0**-44 * largest:  # constant up to the rounding of the mean
        size = largest
    return 2.0 ** math.floor(math.log2(size)) if size > 0 else 1.0


def length(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The Euclidean norm along an axis, or of all, that neither overflows nor underflows on the way."""
    x = np.asarray(x, dtype=np.float64)
    largest = np.abs(x).max(axis=axis, keepdims=True, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)
    total: np.ndarray = np.sqrt(((x / unit) ** 2).sum(axis=axis)) * unit.squeeze(axis=axis)
    return total


def direction(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random ±{0.5, 1, 1.5}·2ᵏ, with 2ᵏ about the spread of x: so few bits that x + t·u is mostly exact."""
    u = np.empty_like(x)
    u[...] = MULTIPLES[rng.integers(len(MULTIPLES), size=x.shape)] * magnitude(x)
    return u


def extrapolated(slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences at the steps of a GLANCE, [..., 3], extrapolated twice; how far that moved them."""
    once = slopes[..., 1:] + (slopes[..., 1:] - slopes[..., :-1]) / (RATIO - 1)
    twice = once[..., 1] + (once[..., 1] - once[..., 0]) / (RATIO**2 - 1)
    return twice, np.abs(twice - once[..., 1])


def glance(
    value: Callable[[np.ndarray], np.ndarray], x: np.ndarray, u: np.ndarray, cotangent: np.ndarray
) -> tuple[float, float]:
    """The derivative along u from six calls, and its bar, in which noise and the nearest kinks are left out.

    It can clear a gradient, or make it suspect; to accuse takes a `Line`.
    """
    seen = cotangent.reshape(-1).astype(np.float64)
    slopes = []
    for h in GLANCE:
        step = x.dtype.type(h) * u
        above, below = (value(x + signed).reshape(-1).astype(np.float64) for signed in (step, -step))
        slopes.append(float(seen @ (above - below)) / (2 * h))
    derivative, bar = extrapolated(np.array(slopes))
    return float(derivative), float(bar)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Directional derivatives, one per cotangent: value ± bar, of which `noise` is rounding.

    `kink` comes on top of the bar: how far a jump of the slope, seen at the finest step, may have moved it.
    `step` is the smallest step that each was extrapolated from, `shift` tells the ladder.
    """

    value: np.ndarray
    bar: np.ndarray
    noise: np.ndarray
    kink: np.ndarray
    step: np.ndarray
    shift: int

    def overruled_by(self, finer: Estimate) -> Estimate:
        """Combine with smaller steps: the tighter of two that agree, the finer of two that do not."""
        mine, its = self.bar + self.kink, finer.bar + finer.kink
        keep = (np.abs(self.value - finer.value) <= 2 * (mine + its)) & (mine < its)
        return Estimate(
            np.where(keep, self.value, finer.value),
            np.where(keep, self.bar, finer.bar),
            np.where(keep, self.noise, finer.noise),
            np.where(keep, self.kink, finer.kink),
            np.where(keep, self.step, finer.step),
            self.shift if keep.all() else finer.shift,
        )


class Line:
    """The curve t ↦ f(x + t·u) seen through some cotangents, and its derivative at t = 0.

    `value(x)` returns the output; `base` is the output at x; `cotangents` has the shape [count, outputs].
    The noise, by cotangent, is measured, or taken from a line `like` it through the same point.
    """

    def __init__(
        self,
        value: Callable[[np.ndarray], np.ndarray],
        x: np.ndarray,
        u: np.ndarray,
        base: np.ndarray,
        cotangents: np.ndarray,
        like: Line | None = None,
    ) -> None:
        self._value, self._x, self._u = value, x, u
        self._base = base.reshape(-1).astype(np.float64)
        self._cotangents = cotangents
        self._length = float(length(u))
        self._sizes = length(cotangents, axis=1)
        self._absolute = np.abs(cotangents)
        # Steps of a few ulp visit the same points again and again: far from zero they must be wider.
        moving = u != 0
        widest = np.spacing(np.abs(x[moving])) / np.abs(u[moving])
        self._least = 32 * float(np.max(widest, initial=0.0))
        # By cotangent; and by output element, within which t it stands still.
        self.noise: np.ndarray
        self._still: np.ndarray
        self.noise, self._still = self._measure_noise() if like is None else (like.noise, like._still)
        self._borrowed = like is not None
        self.slope = np.zeros_like(self._base)  # |J·u|, by output element
        self.jumps = np.zeros(self._base.shape, bool)  # output elements whose slope jumps at x

    def _changes(self, steps: Sequence[float] | np.ndarray) -> np.ndarray:
        """How the output changes from t = 0 to each of these t; [steps, outputs]."""
        points = self._x + np.multiply.outer(np.asarray(steps, self._x.dtype), self._u)
        changes = np.empty((len(steps), self._base.size))
        for row, point in zip(changes, points, strict=True):
            row[:] = self._value(point).reshape(-1)
        changes -= self._base
        return changes

    def _measure_noise(self) -> tuple[np.ndarray, np.ndarray]:
        # The output was rounded at least once, even if steps this small happen not to show it.
        info = np.finfo(self._x.dtype)
        rounded = np.maximum(float(info.eps) / 2 * np.abs(self._base), 8 * float(info.smallest_subnormal))
        least = 0.3 * length(self._cotangents * rounded, axis=1)
        steps = NOISE_STEPS[self._x.dtype]
        noise: np.ndarray = np.fmax(least, self._roughness(self._probe(steps[0])))
        changes = self._probe(steps[-1])
        still = np.where(changes.any(axis=0), 0, steps[-1] * max(NOISE_POINTS))
        widest = self._roughness(changes)
        ratios = [wide / narrow for narrow, wide in itertools.pairwise(steps)]
        if np.all(widest <= ALIKE * ratios[0] * noise):
            between = []  # nothing to tell apart
        else:
            between = [self._roughness(self._probe(step)) for step in steps[1:-1]]
        seen = [noise, *between, widest]
        limit = LOWEST_PRECISION * (self._absolute @ np.abs(self._base))
        for alike, (narrow, wide) in zip(ALIKE * np.array(ratios), itertools.pairwise(seen), strict=False):
            rounding = (wide <= alike * noise) | ((wide <= alike * narrow) & (wide <= limit))
            noise = np.where(rounding, np.fmax(noise, wide), noise)
        # A cotangent that looks at one element may meet a quiet one: what the others saw holds for it too.
        return self._sizes * np.max(noise / self._sizes), still

    def _probe(self, step: float) -> np.ndarray:
        """How the output changes within a few such steps."""
        step = max(step, 2.0 ** math.ceil(math.log2(self._least))) if self._least else step
        return self._changes([k * step for k in NOISE_POINTS if k])

    def _roughness(self, changes: np.ndarray) -> np.ndarray:
        """The standard deviation of what is not smooth, from fourth differences of a probe."""
        return length(_differences() @ changes @ self._cotangents.T, axis=0)

    def admits(self, shift: int) -> bool:
        """Whether the smallest step of that ladder still moves x by many ulp."""
        return float(STEPS[-1]) * 2.0**shift >= self._least

    def ladder(self, shift: int = 0, factor: float = 1.0) -> Estimate:
        """The derivative from the steps 2⁻² … 2⁻¹⁰, all multiplied by factor·2^shift."""
        steps = STEPS * 2.0**shift * factor
        column = steps[:, None]
        plus, minus = self._both_sides(steps)
        differences = plus - minus
        slopes = differences @ self._cotangents.T / (2 * column)
        bends = np.abs(plus + minus) / column
        finest = differences[-1]
        if shift < 0 and not finest.any() and self.slope.any():  # rounded away inside the forward pass
            nothing = np.zeros(len(self._cotangents))
            unknown, step = np.full_like(nothing, np.inf), np.full_like(nothing, steps[-1])
            return Estimate(slopes[-1], unknown, self.noise, nothing, step, shift)
        slope = np.abs(finest) / (2 * steps[-1])
        slope[~np.isfinite(slope)] = 0  # the bar of such a ladder is infinite
        inside, straddled = self._jumps(bends, float(np.max(slope)), steps)
        # Where the output itself jumps, slopes grow without end: they tell no size of a gradient.
        growing = slope * steps[-1] > GROWING * np.abs(differences[-2]) / 2
        if self.slope.any():
            slope = np.where(growing, self.slope, slope)
        if shift <= 0:
            self.slope, self.jumps = slope, inside | straddled
        # The slope at the finest step is the mean of those on both sides, each off by half the jump.
        size = self._absolute
        kink, crossing = 0.5 * size @ np.where(inside, bends[-1], 0), size @ straddled > 0
        # What the rounding of x + t·u does to the output is what a random direction of that length would do.
        typical = length(self._cotangents * self.slope, axis=1) + np.abs(slopes[-1])
        rounding = self._rounding(float(steps[-1])) * typical
        noise = self._noise_of_slopes(rounding, steps)
        estimate, rougher = self._extrapolate(slopes, noise, kink, crossing, steps, shift)
        if rougher and self._borrowed:
            # Few-bit directions can meet rounding errors that cancel: the other line did, this one does not.
            self._measure_own()
            noise = self._noise_of_slopes(rounding, steps)
            estimate, _ = self._extrapolate(slopes, noise, kink, crossing, steps, shift)
        return estimate

    def _both_sides(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plus, minus = np.split(self._changes(np.concatenate([steps, -steps])), 2)
        return plus, minus

    def differences(self, steps: np.ndarray, cotangent: int) -> np.ndarray:
        """The central differences at these steps, through one of the cotangents."""
        plus, minus = self._both_sides(steps)
        slopes: np.ndarray = (plus - minus) @ self._cotangents[cotangent] / (2 * steps)
        return slopes

    def widths(self) -> np.ndarray:
        """Steps from 1/2 down to the smallest that still moves x by many ulp, each a quarter of the last."""
        steps = 2.0 ** -np.arange(1, 46, 2)
        wide: np.ndarray = steps[steps >= max(self._least, float(np.finfo(self._x.dtype).eps))]
        return wide

    def _noise_of_slopes(self, rounding: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The standard deviation of each slope, [steps, cotangents]; `rounding` is that of the points."""
        return np.asarray(np.hypot(self.noise, rounding) / (math.sqrt(2) * steps[:, None]))

    def climbs_stairs(self) -> bool:
        """Whether some output element stands still at tiny steps, but not over those of the last ladder."""
        visible = 64 * float(np.finfo(self._x.dtype).eps) * np.abs(self._base)
        climbing = bool(np.any(self._still * self.slope > visible))
        if climbing and self._borrowed:  # a sum stands still along the other line, if its few bits cancel
            self._measure_own()
            climbing = bool(np.any(self._still * self.slope > visible))
        return climbing

    def _measure_own(self) -> None:
        noise, self._still = self._measure_noise()
        self.noise, self._borrowed = np.fmax(self.noise, noise), False

    def _jumps(self, bends: np.ndarray, steepest: float, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which output elements have a kink inside the finest step, and which one that wider steps do."""
        jumping = (2 * bends[1:] - bends[:-1] > JUMPING * bends[1:]) & (steps[1:, None] <= SHORT)
        rounding = 8 * float(np.finfo(self._x.dtype).eps) * np.abs(self._base) / steps[-1]
        # Just beyond a kink the bends at two steps look like curvature: one of the next steps tells.
        inside = jumping[-3:].any(axis=0) & (bends[-1] > np.maximum(SMALL_JUMP * steepest, rounding))
        straddled = (jumping & (bends[1:] > LARGE_JUMP * steepest)).any(axis=0)
        return inside, straddled

    def _rounding(self, h: float) -> float:
        """How much of h·u is lost in x + h·u, which is most at the finest step."""
        step = h * self._u
        moved = self._x + step
        back = moved - self._x
        lost = (self._x - (moved - back)) + (step - back)  # the exact error of the sum (Knuth)
        relative = np.asarray(lost, dtype=np.float64).reshape(-1) / self._length
        return math.sqrt(relative @ relative)

    @staticmethod
    def _extrapolate(
        slopes: np.ndarray,
        noise: np.ndarray,
        kink: np.ndarray,
        straddled: np.ndarray,
        steps: np.ndarray,
        shift: int,
    ) -> tuple[Estimate, bool]:
        """The extrapolation with the smallest bar; also say whether the finest ones show more noise."""
        weights, from_fine, from_coarse, to_finer, finest_entries, smallest = _romberg()
        broken = ~np.isfinite(slopes + noise).all(axis=1)
        values, rough = np.where(broken[:, None], 0, (slopes, noise))
        table = weights @ values
        spread = np.maximum(np.abs(from_fine @ values), np.abs(from_coarse @ values))
        unit = np.max(rough) or 1.0  # squares must not leave the range
        amplified = 4 * unit * np.sqrt(weights**2 @ (rough / unit) ** 2)
        # At the finest steps and highest columns only rounding is left: more spread there means more noise.
        seen = np.divide(spread, amplified, out=np.zeros_like(spread), where=amplified > 0)[finest_entries]
        # Terms of the error may cancel and both parents agree by chance: but not with the same a step finer.
        spread = np.maximum(spread, np.abs(to_finer @ values) - amplified)
        bars = spread + amplified * np.fmax(1, 2 * np.sqrt(np.mean(seen**2, axis=0)))
        bars[((weights != 0) & broken).any(axis=1)] = np.inf
        best, each = np.argmin(bars, axis=0), np.arange(slopes.shape[1])
        value, bar = table[best, each], bars[best, each]
        # An extrapolation can agree with its neighbours by chance, but then it is far from the finest slope.
        # Wide steps agree on the mean slope around a kink, which is also what looked like noise there.
        finest = slopes[-1]
        far = np.abs(value - finest)
        trusted = (far <= np.abs(finest - slopes[-2]) + 4 * noise[-1] + bar) & ~straddled
        bar = np.where(trusted, bar, np.fmax(bar, far))
        bar[~np.isfinite(far + kink) | broken[-1]] = np.inf
        kink = np.where(np.isfinite(kink), kink, 0)
        estimate = Estimate(value, bar, amplified[best, each], kink, steps[smallest[best]], shift)
        return estimate, bool(np.any(seen > 1))


@functools.cache
def _differences() -> np.ndarray:
    """Fourth differences of a probe, which is 0 at t = 0, scaled so that their length estimates its noise."""
    stencil = np.diff(np.eye(len(NOISE_POINTS)), n=NOISE_ORDER, axis=0)
    factor = math.factorial(NOISE_ORDER) ** 2 / math.factorial(2 * NOISE_ORDER)
    scaled: np.ndarray = math.sqrt(factor / len(stencil)) * np.delete(stencil, NOISE_POINTS.index(0), axis=1)
    return scaled


@functools.cache
def _romberg() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each extrapolation: its weights on the slopes, how far they are from those of either parent and of
    the one in the same column a step finer, if it is one of the finest, and its smallest step's place."""
    table = {(i, 0): row for i, row in enumerate(np.eye(len(STEPS)))}
    for j in range(1, COLUMNS):
        for i in range(j, len(STEPS)):
            fine, coarse = table[i, j - 1], table[i - 1, j - 1]
            table[i, j] = fine + (fine - coarse) / (4.0**j - 1)
    entries = [(i, j) for i, j in table if j]
    weights = np.array([table[entry] for entry in entries])
    from_fine = weights - np.array([table[i, j - 1] for i, j in entries])
    from_coarse = weights - np.array([table[i - 1, j - 1] for i, j in entries])
    to_finer = weights - np.array([table[min(i + 1, len(STEPS) - 1), j] for i, j in entries])
    finest = np.array([i >= len(STEPS) - 2 and j >= COLUMNS // 2 for i, j in entries])
    return weights, from_fine, from_coarse, to_finer, finest, np.array([i for i, _ in entries])
