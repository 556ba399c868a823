"""Where a gradient is wrong: its elements against numeric derivatives along single coordinates.

Up to 1,000 elements every one gets a ladder of its own; six calls of forward each, or two where that would be
more than 2,000 in all. Beyond, directions are masked to the first and to the last indices of each axis, as
many as show no error, found by halving, with six calls for each, or a ladder where those leave it open; in
the block that is left a grid of elements is looked at. It takes 2,000 calls of forward at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck.budget import rounding_floor
from gradcheck.derivatives.numeric import GLANCE, Line, direction, extrapolated, glance, magnitude
from gradcheck.subject import Subject

__all__ = ["Block", "Place", "localise"]

Block = tuple[tuple[int, int], ...]

MOST = 1000  # elements that are all looked at
FORWARDS = 2000
SAMPLED = 32  # elements that tell how far the finest step alone is off
SURE = 1e-6  # of the size of the terms: a bar of a glance that makes a ladder needless
GRID = 64  # elements that are looked at of a larger input


@dataclass(frozen=True, slots=True)
class Place:
    """A wrong gradient on a grid of its elements.

    grid: the indices of the grid along each axis; `analytic`, `numeric` and `bar` have its shape.
    block: (start, stop) along each axis: outside of it directional derivatives agree.
    shape: of the input.
    """

    grid: tuple[np.ndarray, ...]
    analytic: np.ndarray
    numeric: np.ndarray
    bar: np.ndarray
    block: Block
    shape: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether the grid holds every element."""
        return self.analytic.shape == self.shape

    @property
    def error(self) -> np.ndarray:
        """Analytic less numeric; infinite where the gradient is not finite."""
        error = self.analytic - self.numeric
        return np.where(np.isfinite(self.analytic), error, np.inf)

    @property
    def wrong(self) -> np.ndarray:
        """Which elements are off by more than their bars; those without a numeric value accuse nobody."""
        return np.abs(self.error) > 2 * self.bar

    @property
    def worst(self) -> tuple[int, ...]:
        """The place in the grid of the element that is furthest off."""
        distance = np.where(np.isfinite(self.numeric + self.bar), np.abs(self.error), -1.0)
        return tuple(int(i) for i in np.unravel_index(np.argmax(distance), distance.shape))

    @property
    def index(self) -> tuple[int, ...]:
        """The element of the input that is furthest off."""
        return tuple(int(indices[k]) for indices, k in zip(self.grid, self.worst, strict=True))


def localise(
    subject: Subject,
    position: int,
    output: np.ndarray,
    cotangent: np.ndarray,
    gradient: np.ndarray,
    rng: np.random.Generator,
) -> Place:
    """Find the wrong elements of the gradient of one input, for one cotangent.

    Args:
        subject: the pair. position: of the input among its inputs.
        output: of the forward pass. cotangent: a Gaussian one. gradient: what the backward pass made of it.
        rng: of the directions and of the grid.
    """
    x = subject.inputs[position]
    assert x is not None

    def value(moved: np.ndarray) -> np.ndarray:
        return subject.run_forward(subject.replaced(position, moved))[0]

    search = _Search(value, x, output, cotangent, np.asarray(gradient, np.float64), rng)
    if x.size <= MOST:
        grid = tuple(np.arange(n) for n in x.shape)
        return search.place(grid, tuple((0, n) for n in x.shape))
    block = search.bisected()
    return search.place(search.grid(block), block)


class _Search:
    """One input, moved along coordinates and directions, seen through one cotangent."""

    def __init__(
        self,
        value: Callable[[np.ndarray], np.ndarray],
        x: np.ndarray,
        output: np.ndarray,
        cotangent: np.ndarray,
        gradient: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self._value, self._x, self._output, self._gradient, self._rng = value, x, output, gradient, rng
        self._cotangent = cotangent.reshape(1, -1).astype(np.float64)
        self._u, self._unit = direction(x, rng), magnitude(x)
        self._whole = self._line(self._u)
        size = float(np.max(np.abs(gradient), initial=0.0)) if np.isfinite(gradient).all() else 0.0
        self._floor = rounding_floor(x.dtype, max(x.size, output.size)) * size

    def _line(self, u: np.ndarray) -> Line:
        return Line(self._value, self._x, u, self._output, self._cotangent)

    def place(self, grid: tuple[np.ndarray, ...], block: Block) -> Place:
        """The gradient on a grid of elements."""
        shape = tuple(len(indices) for indices in grid)
        chosen = [[part[k] for part, k in zip(grid, at, strict=True)] for at in np.ndindex(shape)]
        indices = np.array(chosen, dtype=np.intp)
        if 2 * len(GLANCE) * len(indices) <= FORWARDS:
            numeric, bar = self._by_ladder(indices)
        else:
            numeric, bar = self._by_finest_step(indices)
        return Place(
            grid,
            self._gradient[np.ix_(*grid)] if grid else self._gradient,
            numeric.reshape(shape),
            bar.reshape(shape) + self._floor,
            block,
            self._x.shape,
        )

    def _by_ladder(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Central differences at three steps, extrapolated twice; the bar is their spread and their noise."""
        slopes = np.array([[self._slope(index, step) for step in GLANCE] for index in indices])
        numeric, bar = extrapolated(slopes)
        return numeric, bar + self._noise()

    def _by_finest_step(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Central differences at one step; how far they are off, the ladder tells at some elements."""
        slopes = np.array([self._slope(index, GLANCE[-1]) for index in indices])
        some = self._rng.permutation(len(indices))[:SAMPLED]
        better, bar = self._by_ladder(indices[some])
        off = 4 * np.max(np.abs(slopes[some] - better)) + np.max(bar)
        slopes[some] = better
        bars = np.full(len(indices), off)
        bars[some] = bar
        return slopes, bars

    def _slope(self, index: np.ndarray, step: float) -> float:
        at = tuple(index)
        h = step * self._unit
        values = []
        for sign in (1, -1):
            moved = self._x.copy()
            moved[at] += self._x.dtype.type(sign * h)
            values.append((float(moved[at]), self._value(moved).reshape(-1).astype(np.float64)))
        (high, above), (low, below) = values
        return float(self._cotangent[0] @ (above - below)) / (high - low)  # h, as far as it was representable

    def _noise(self) -> float:
        return 4 * float(self._whole.noise[0]) / (GLANCE[-1] * self._unit)

    def bisected(self) -> Block:
        """The smallest block outside of which directional derivatives agree, by halving from both ends."""
        block = [(0, n) for n in self._x.shape]
        if not self._is_wrong(block):
            return tuple(block)
        for axis, n in enumerate(self._x.shape):
            before, after = block[:axis], block[axis + 1 :]
            start = self._right_until(n - 1, [[*before, (0, k), *after] for k in range(n)])
            cut = self._right_until(n - 1 - start, [[*before, (n - k, n), *after] for k in range(n)])
            block[axis] = (start, n - cut)
        return tuple(block)

    def _right_until(self, most: int, parts: Sequence[Sequence[tuple[int, int]]]) -> int:
        """The largest k ≤ most for which the k-th part shows no error; 1 is tried first."""
        if most < 1 or self._is_wrong(parts[1]):
            return 0
        low, high = 1, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_wrong(parts[middle]):
                high = middle
            else:
                low = middle
        return low

    def _is_wrong(self, block: Sequence[tuple[int, int]]) -> bool:
        """Whether the derivatives along the direction inside of a block differ by more than their bars."""
        inside = tuple(slice(*bounds) for bounds in block)
        u = np.zeros_like(self._x)
        u[inside] = self._u[inside]
        terms = self._gradient[inside] * u[inside]
        if not np.isfinite(terms).all():
            return True
        claimed, size = float(np.sum(terms)), float(np.sum(np.abs(terms)))
        rounding = rounding_floor(self._x.dtype, self._x.size) * size
        numeric, bar = glance(self._value, self._x, u, self._cotangent)
        bar += rounding + 4 * float(self._whole.noise[0]) / GLANCE[-1]
        if not bar <= SURE * size:  # of many kinks, or much curvature, six points know too little
            estimate = self._line(u).ladder()
            numeric, bar = float(estimate.value[0]), float(estimate.bar[0] + estimate.kink[0]) + rounding
        return abs(claimed - numeric) > 2 * bar

    def grid(self, block: Block) -> tuple[np.ndarray, ...]:
        """Some indices along each axis of a block, the ends and random ones between: 64 elements."""
        lengths = [stop - start for start, stop in block]
        counts = [1] * len(lengths)
        while True:  # one more along the axis that has fewest of those that have some left
            longer = [axis for axis, n in enumerate(lengths) if counts[axis] < n]
            if not longer:
                break
            axis = min(longer, key=lambda axis: counts[axis])
            counts[axis] += 1
            if math.prod(counts) > GRID:
                counts[axis] -= 1
                break
        return tuple(
            self._chosen(start, stop, count) for (start, stop), count in zip(block, counts, strict=True)
        )

    def _chosen(self, start: int, stop: int, count: int) -> np.ndarray:
        ends = [start, stop - 1][:count] if stop - start > 1 else [start]
        between = start + 1 + self._rng.permutation(max(stop - start - 2, 0))[: count - len(ends)]
        return np.sort(np.array([*ends, *between], dtype=np.intp))
