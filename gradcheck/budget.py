"""How far the analytic side may be off by rounding alone, measured by moving its arguments by a few ulp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gradcheck.derivatives.numeric import magnitude
from gradcheck.subject import Arrays, Subject

# Both parities: if every move were even, sums and halves of neighbours would round the same way each time.
ULPS = np.array([-4, -3, 3, 4])
REPEATS = 3
SAMPLES = 48  # few elements are moved more often, until that many results have been seen
CONFIRMATIONS = 8  # beside a kink a few moves may all miss the other side: before accusing, more are made
SAFETY = 16.0  # between the largest change seen in a few tries and what rounding may do
ROUNDING = 8.0  # units of u·√n·scale that any sum of n terms is allowed


class Worst(NamedTuple):
    """The element that is furthest from what is wanted; NaN is further than everything."""

    error: float
    where: tuple[int, ...]
    got: float
    wanted: float


def worst(got: np.ndarray, wanted: np.ndarray) -> Worst:
    """Compare two arrays of one shape, with elements, in float64."""
    difference = np.abs(got.astype(np.float64) - wanted)
    flat = int(np.argmax(difference))
    where = tuple(int(i) for i in np.unravel_index(flat, difference.shape))
    return Worst(float(difference.flat[flat]), where, float(got[where]), float(wanted[where]))


def largest(array: np.ndarray) -> float:
    """The largest absolute value, 0 for none."""
    return float(np.abs(array).max()) if array.size else 0.0


def rounding_floor(dtype: np.dtype, count: int) -> float:
    """8·u·√n: the relative rounding that is granted to a result made of `count` terms.

    In float16 8·u, whatever the count: there √n would soon grant everything, and sums are kept in float32.
    """
    terms = 1 if dtype == np.float16 else max(count, 1)
    return ROUNDING * float(np.finfo(dtype).eps) / 2 * float(np.sqrt(terms))


def jiggled(
    array: np.ndarray, rng: np.random.Generator, precision: np.dtype | None = None, stretch: int = 1
) -> np.ndarray:
    """Every element moved by 3 or 4 of its ulp in `precision` (its own by default), its layout kept."""
    ulp = np.spacing(np.abs(array).astype(precision or array.dtype)).astype(array.dtype)
    moved = np.empty_like(array)
    moved[...] = array + _ulps(array, rng) * (stretch * ulp)
    moved[array == 0] = 0  # the neighbours of zero are subnormal: they would only slow the arithmetic down
    return moved


def jiggled_cotangent(
    cotangent: np.ndarray, rng: np.random.Generator, precision: np.dtype | None = None, stretch: int = 1
) -> np.ndarray:
    """Every element moved up or down by 3 or 4 ulp of the largest one."""
    highest = np.max(np.abs(cotangent)).astype(precision or cotangent.dtype)
    step = cotangent.dtype.type(stretch * np.spacing(highest))
    return np.asarray(cotangent + _ulps(cotangent, rng) * step)


def _ulps(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ULPS.astype(array.dtype)[rng.integers(len(ULPS), size=array.shape)]


def has_room(*arrays: np.ndarray) -> bool:
    """Whether all values are finite and stay so when multiplied by 2¹², as sums and the probes may do."""
    return all(largest(array) <= float(np.finfo(array.dtype).max) * 2.0**-12 for array in arrays)


def lowering(dtype: np.dtype) -> float:
    """The factor for a cotangent whose gradient would overflow, or nearly: one that keeps its digits."""
    return 2.0**-6 if dtype == np.float16 else 2.0**-16


def lowered(cotangent: np.ndarray) -> np.ndarray:
    """The cotangent times 2⁻¹⁶; in float16, which has fewer exponents, times 2⁻⁶."""
    return np.asarray(cotangent * cotangent.dtype.type(lowering(cotangent.dtype)))


def repeats(subject: Subject) -> int:
    """How often to move the inputs."""
    return max(REPEATS, SAMPLES // max(array.size for array in subject.wanted()))


def jiggled_runs(
    subject: Subject,
    inputs: Arrays,
    cotangents: Sequence[np.ndarray],
    rng: np.random.Generator,
    precision: np.dtype | None = None,
    stretch: int = 1,
) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, ...]]]]:
    """Run the pair on jiggled inputs and cotangents a few times; yield (output, gradients by cotangent)."""
    for _ in range(repeats(subject)):
        moved = tuple(
            jiggled(array, rng, precision, stretch)
            if array is not None and index in subject.differentiable
            else array
            for index, array in enumerate(inputs)
        )
        output, saved = subject.run_forward(moved)
        yield (
            output,
            [subject.run_backward(saved, jiggled_cotangent(c, rng, precision, stretch)) for c in cotangents],
        )


def uncancelled(cotangent: np.ndarray, output: np.ndarray, x: np.ndarray) -> float:
    """The size of an element of the gradient of x before anything cancels: |ȳ|·|y| over the spread of x."""
    return largest(cotangent) * largest(output) / magnitude(x)
