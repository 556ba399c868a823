"""The pattern of a wrong gradient in words: which elements are wrong, and how their error looks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from gradcheck.diagnosis.localise import Place
from gradcheck.diagnosis.terms import listed

__all__ = ["describe"]

CLEAR = 100.0  # an error of fewer bars than this has whatever pattern one looks for
FEWEST = 3  # elements that a factor, and values in a slice that a constant, must explain
FEWEST_AFFINE = 4
FEWEST_ALTERNATING = 4
MOST_LISTED = 4


def describe(place: Place, x: np.ndarray, output: np.ndarray) -> str:
    """The most specific pattern that is true of the error; empty where there is none.

    Args:
        place: the wrong gradient on a grid of its elements.
        x: the input whose gradient it is. output: of the forward pass.
    """
    wrong = place.wrong
    if not wrong.any():
        return _block(place)
    around, pattern = _block(place), _inside(place, wrong, x, output)
    return ": ".join(part for part in (around, pattern) if part)


def _inside(place: Place, wrong: np.ndarray, x: np.ndarray, output: np.ndarray) -> str:
    """The pattern in the block that holds the mistake."""
    finite = np.isfinite(place.analytic)
    if not finite.all():
        return (
            "not finite"
            if not finite.any()
            else _located(place, ~finite, "not finite") or "not finite in part"
        )
    if _clear(place) and np.all(np.abs(place.numeric) <= place.bar):
        return "not zero, though the output stays as it is when these elements move"
    inside = _factor(place, wrong)
    if wrong.all() or (inside and _agrees_with_factor(place, wrong, inside)):
        if inside == "zero":
            return inside if _block(place) else "zero everywhere"
        return inside or _permutation(place) or _structure(place, x)
    return (
        _permutation(place)
        or _located(place, wrong, inside)
        or _where_signs(place, wrong, x, output)
        or _one_of_each(place, wrong)
        or _structure(place, x)
    )


def _factor(place: Place, wrong: np.ndarray) -> str:
    """One factor of all wrong elements, in words."""
    analytic, numeric, bar = place.analytic[wrong], place.numeric[wrong], place.bar[wrong]
    if np.all(np.abs(analytic) <= bar):
        return "zero"
    if len(numeric) < FEWEST or not _clear(place):
        return ""
    factor = _fitted(analytic, numeric, bar)
    if not factor or np.any(np.abs(analytic - factor * numeric) > 2 * bar * (1 + abs(factor))):
        return ""
    return _in_words(factor, place)


def _fitted(analytic: np.ndarray, numeric: np.ndarray, bar: np.ndarray) -> float:
    size = float(np.sum((numeric / bar) ** 2))
    return float(np.sum(analytic * numeric / bar**2)) / size if size else 0.0


def _in_words(factor: float, place: Place) -> str:
    lengths = [stop - start for start, stop in place.block]
    if abs(factor + 1) < 1e-6:
        return "the sign is wrong"
    for axes in _subsets([axis for axis, n in enumerate(lengths) if n > 1]):
        n = math.prod(lengths[axis] for axis in axes)
        of = f"the length of {listed(axes)}" if place.complete else ""
        named = {float(n): f"{n}", 1 / n: f"1/{n}"}
        if n > 2:
            named |= {n / (n - 1): f"N/(N − 1) with N = {n}", (n - 1) / n: f"(N − 1)/N with N = {n}"}
        for value, words in named.items():
            if of and abs(factor / value - 1) < 1e-7:
                return f"a constant factor of {words}, {of}"
    if abs(factor - 1) < 1e-2:
        return f"a constant factor of 1 {'+' if factor > 1 else '−'} {abs(factor - 1):.3g}"
    return f"a constant factor of {factor:.6g}"


def _agrees_with_factor(place: Place, wrong: np.ndarray, inside: str) -> bool:
    """Whether the elements that are right would be so with the factor too, being zero or nearly."""
    if inside == "zero":
        return bool(np.all(np.abs(place.analytic) <= place.bar))
    analytic, numeric = place.analytic[wrong], place.numeric[wrong]
    factor = _fitted(analytic, numeric, place.bar[wrong])
    rest = np.abs(place.analytic - factor * place.numeric)[~wrong]
    return bool(np.all(rest <= 2 * place.bar[~wrong] * (1 + abs(factor))))


def _permutation(place: Place) -> str:
    """The right values in the wrong order."""
    a, d = place.analytic, place.numeric
    if not place.complete or a.size < FEWEST or not _clear(place):
        return ""
    bar = 2 * float(np.max(place.bar))

    def same(moved: np.ndarray) -> bool:
        return moved.shape == a.shape and bool(np.all(np.abs(a - moved) <= bar))

    long = [axis for axis, n in enumerate(a.shape) if n > 1]
    for axes in _subsets(long):
        if same(np.flip(d, axes)):
            return f"the right values, reversed along {listed(axes)}"
    for axis in long:
        for k in range(1, a.shape[axis]):
            if same(np.roll(d, k, axis)):
                k = k if k <= a.shape[axis] // 2 else k - a.shape[axis]
                return f"the right values, rolled by {k} along axis {axis}"
    for one, other in itertools.combinations(long, 2):
        if same(np.swapaxes(d, one, other)):
            return f"the right values, with axes {one} and {other} exchanged"
        if same(np.reshape(np.swapaxes(d, one, other), d.shape)):
            return f"the right values in the memory order of axes {one} and {other} exchanged"
    for k in (1, -1):
        if same(np.roll(d, k)):
            return f"the right values, rolled by {k} in memory order"
    if np.all(np.abs(np.sort(a, axis=None) - np.sort(d, axis=None)) <= bar):
        return "a permutation of the right values"
    return ""


def _located(place: Place, wrong: np.ndarray, inside: str = "") -> str:
    """Wrong elements that are all those of some indices along some axes."""
    words = _indices(place, wrong) or _checkerboard(place, wrong) or _tail(place, wrong)
    return f"{words}: {inside}" if words and inside else words


def _indices(place: Place, wrong: np.ndarray) -> str:
    chosen = []
    rebuilt = np.ones(wrong.shape, bool)
    for axis in range(wrong.ndim):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        along = np.asarray(wrong.any(axis=others))
        chosen.append(along)
        rebuilt &= np.expand_dims(along, others)
    if not np.array_equal(rebuilt, wrong):
        return ""
    if wrong.sum() == 1 and place.complete:
        return f"only element ({', '.join(map(str, place.index))})"
    parts = [_of_axis(place, axis, along) for axis, along in enumerate(chosen) if not along.all()]
    return f"only {' and '.join(parts)}" if parts and all(parts) else ""


def _of_axis(place: Place, axis: int, along: np.ndarray) -> str:
    indices, (start, stop) = place.grid[axis], place.block[axis]
    wrong, right = indices[along], indices[~along]
    if (
        len(set(wrong % 2)) == 1
        and set(right % 2) == {1 - wrong[0] % 2}
        and len(indices) >= FEWEST_ALTERNATING
    ):
        return f"every second index of axis {axis}, from {wrong[0]} on"
    if len(indices) < stop - start:  # nothing is known of those between
        return ""
    if len(right) == 1 and len(wrong) > 1:
        return f"the indices of axis {axis} other than {right[0]}"
    if wrong.max() - wrong.min() + 1 == len(wrong):
        return _range(axis, int(wrong.min()), int(wrong.max()) + 1, place.shape[axis])
    return f"indices {', '.join(map(str, wrong))} of axis {axis}" if len(wrong) <= MOST_LISTED else ""


def _range(axis: int, start: int, stop: int, length: int) -> str:
    if stop - start == 1:
        return (
            f"the last index of axis {axis}" if start == length - 1 > 1 else f"index {start} of axis {axis}"
        )
    if stop == length:
        return f"elements from index {start} on along axis {axis}"
    if start == 0:
        return f"elements before index {stop} along axis {axis}"
    return f"indices {start} to {stop - 1} of axis {axis}"


def _block(place: Place) -> str:
    """The block that bisection left, where it is not everything."""
    bounds = zip(place.block, place.shape, strict=True)
    narrow = [axis for axis, ((start, stop), n) in enumerate(bounds) if stop - start < n]
    if len(narrow) == len(place.shape) and place.analytic.size == 1:
        return f"only element ({', '.join(map(str, place.index))})"
    parts = [_range(axis, *place.block[axis], place.shape[axis]) for axis in narrow]
    return f"only {' and '.join(parts)}" if parts else ""


def _checkerboard(place: Place, wrong: np.ndarray) -> str:
    grid = np.meshgrid(*place.grid, indexing="ij")
    for axes in _subsets([axis for axis, n in enumerate(wrong.shape) if n > 1]):
        parity = sum(grid[axis] for axis in axes) % 2
        if len(axes) > 1 and any(np.array_equal(wrong, parity == k) for k in (0, 1)):
            return f"a checkerboard over {listed(axes)}"
    return ""


def _tail(place: Place, wrong: np.ndarray) -> str:
    flat = np.flatnonzero(wrong)
    if not place.complete or wrong.ndim < 2:
        return ""
    if len(flat) == wrong.size - flat[0]:
        return f"only elements from the flat index {flat[0]} on"
    if len(flat) == flat[-1] + 1:
        return f"only elements before the flat index {flat[-1] + 1}"
    return ""


def _where_signs(place: Place, wrong: np.ndarray, x: np.ndarray, output: np.ndarray) -> str:
    """Wrong elements that are those of one sign of the input, or of zero output."""
    at = np.ix_(*place.grid)
    values = x[at]
    candidates = {"x > 0": values > 0, "x < 0": values < 0, "x is zero": values == 0}
    if output.shape == x.shape:
        candidates |= {
            "the output is zero": output[at] == 0,
            "the output is not zero": output[at] != 0,
            "the output is positive": output[at] > 0,
            "the output is negative": output[at] < 0,
        }
    # A right derivative of zero leaves an element right, whatever is done to it.
    moving = np.abs(place.numeric) > place.bar
    moving |= wrong
    for words, holds in candidates.items():
        if holds.any() and not holds.all() and np.array_equal(wrong, holds & moving):
            return f"only where {words}"
    return ""


def _one_of_each(place: Place, wrong: np.ndarray) -> str:
    if not place.complete:
        return ""
    long = [axis for axis, n in enumerate(wrong.shape) if n > 1]
    for axes in _subsets(long):
        if len(axes) < len(long) and np.all(wrong.sum(axis=axes) == 1):
            return f"one element of each slice over {listed(axes)}"
    return ""


def _structure(place: Place, x: np.ndarray) -> str:
    """An error that is constant along axes, or a function of x that is."""
    error = place.error
    if not np.isfinite(error).all() or not _clear(place):
        return ""
    bar = 2 * float(np.max(place.bar))
    long = [axis for axis, n in enumerate(error.shape) if n > 1]
    larger = list(_subsets(long))[::-1]
    for axes in larger:
        spread = np.max(error, axis=axes) - np.min(error, axis=axes)
        if np.all(spread <= 2 * bar) and math.prod(error.shape[a] for a in axes) >= 2:
            return (
                f"constant along {listed(axes)}"
                if len(axes) < len(long) or len(axes) == 1
                else "constant everywhere"
            )
    for axes in larger:
        count = math.prod(error.shape[a] for a in axes)
        if count >= FEWEST and count < error.size and _same_ratio(place, axes, bar):
            return f"a factor per slice, constant along {listed(axes)}"
    values = x[np.ix_(*place.grid)] if place.grid else x
    for axes in larger:
        if math.prod(error.shape[a] for a in axes) >= FEWEST_AFFINE and _affine(error, values, axes, bar):
            per_slice = "" if len(axes) == len(long) else ", per slice"
            return f"affine in x along {listed(axes)}{per_slice}"
    return ""


def _same_ratio(place: Place, axes: tuple[int, ...], bar: float) -> bool:
    a, d = place.analytic, place.numeric
    size = np.sum(d * d, axis=axes, keepdims=True)
    if np.any(size == 0):
        return False
    factor = np.sum(a * d, axis=axes, keepdims=True) / size
    return bool(np.all(np.abs(a - factor * d) <= bar * (1 + np.abs(factor))))


def _affine(error: np.ndarray, x: np.ndarray, axes: tuple[int, ...], bar: float) -> bool:
    centred = x - x.mean(axis=axes, keepdims=True)
    size = np.sum(centred * centred, axis=axes, keepdims=True)
    level = error - error.mean(axis=axes, keepdims=True)
    slope = np.sum(level * centred, axis=axes, keepdims=True) / np.where(size > 0, size, 1)
    return bool(np.all(np.abs(level - slope * centred) <= 4 * bar))


def _clear(place: Place) -> bool:
    return float(np.max(np.abs(place.error))) > CLEAR * float(np.max(place.bar))


def _subsets(axes: list[int]) -> Iterator[tuple[int, ...]]:
    """Every choice of some of the axes, the small ones first."""
    for k in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, k)
