"""Planted errors on arrays of rank 1 to 5, and the words that their patterns are described in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gradcheck.diagnosis.localise import Block, Place
from gradcheck.diagnosis.patterns import describe

SHAPES = [(7,), (4, 6), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)]
BAR = 1e-10


def place_of(
    analytic: np.ndarray,
    numeric: np.ndarray,
    grid: tuple[np.ndarray, ...] | None = None,
    block: Block | None = None,
    shape: tuple[int, ...] | None = None,
) -> Place:
    shape = shape or numeric.shape
    block = block or tuple((0, n) for n in shape)
    grid = grid or tuple(np.arange(n) for n in shape)
    return Place(grid, analytic, numeric, np.full(numeric.shape, BAR), block, shape)


def drawn(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    return rng.normal(size=shape), rng.normal(size=shape)


def described(shape: tuple[int, ...], mistake: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> str:
    x, numeric = drawn(shape)
    return describe(place_of(mistake(numeric.copy(), x), numeric), x, np.maximum(x, 0))


def changed(index: object, value: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def mistake(right: np.ndarray, x: np.ndarray) -> np.ndarray:
        right[index] = value(right[index])
        return right

    return mistake


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda d, x: 0.7 * d, "a constant factor of 0.7"),
        (lambda d, x: -d, "the sign is wrong"),
        (lambda d, x: d * (1 + 1e-6), "a constant factor of 1 + 1e-06"),
        (lambda d, x: 0 * d, "zero everywhere"),
        (lambda d, x: d * np.nan, "not finite"),
        (lambda d, x: np.random.default_rng(0).permutation(d.ravel()).reshape(d.shape), "a permutation of"),
        (lambda d, x: d + np.random.default_rng(0).normal(size=d.shape), ""),
        (lambda d, x: np.where(x > 0, d + 1 + x**2, d), "only where x > 0"),
        (lambda d, x: np.where(x < 0, d + 1 + x**2, d), "only where x < 0"),
    ],
)
def test_of_any_rank(shape: tuple[int, ...], mistake: Callable[..., np.ndarray], words: str) -> None:
    if len(shape) == 1 and words.startswith("only where"):
        return  # too few elements to be of both signs in disorder
    got = described(shape, mistake)
    assert got.startswith(words) if words else got == ""


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_along_one_axis_of_any_rank(shape: tuple[int, ...]) -> None:
    last = len(shape) - 1
    at = (slice(None),) * last
    n = shape[last]
    for index, words in (
        ((*at, 1), f"only index 1 of axis {last}"),
        ((*at, -1), f"only the last index of axis {last}"),
        ((*at, slice(2, None)), f"only elements from index 2 on along axis {last}"),
        ((*at, slice(0, 2)), f"only elements before index 2 along axis {last}"),
        ((*at, slice(1, None, 2)), f"only every second index of axis {last}, from 1 on"),
        ((*at, slice(1, n - 1)), f"only indices 1 to {n - 2} of axis {last}"),
    ):
        assert described(shape, changed(index, lambda part: part + 1 + part**2)).startswith(words)
    assert described(shape, lambda d, x: np.flip(d, last)) == f"the right values, reversed along axis {last}"
    assert (
        described(shape, lambda d, x: np.roll(d, 1, last))
        == f"the right values, rolled by 1 along axis {last}"
    )
    element = tuple(m - 1 for m in shape)
    assert described(shape, changed(element, lambda part: part + 1)) == (
        f"only element ({', '.join(map(str, element))})"
    )


def test_what_happens_in_the_part_that_is_wrong() -> None:
    assert described((3, 4, 5), changed((slice(None), 2), lambda part: 0.5 * part)) == (
        "only index 2 of axis 1: a constant factor of 0.5"
    )
    assert (
        described((3, 4, 5), changed((slice(None), 2), lambda part: 0 * part))
        == "only index 2 of axis 1: zero"
    )
    assert described((3, 4, 5), changed((0, slice(None)), lambda part: part * np.nan)) == (
        "only index 0 of axis 0: not finite"
    )
    assert (
        described((3, 4, 5), changed((0, 1), lambda part: part + 1))
        == "only index 0 of axis 0 and index 1 of axis 1"
    )


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (20, "a constant factor of 20, the length of axes 0 and 2"),
        (1 / 20, "a constant factor of 1/20, the length of axes 0 and 2"),
        (20 / 19, "a constant factor of N/(N − 1) with N = 20, the length of axes 0 and 2"),
        (4, "a constant factor of 4, the length of axis 0"),
    ],
)
def test_factors_have_names(factor: float, words: str) -> None:
    assert described((4, 3, 5), lambda d, x: d * factor) == words


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_errors_constant_along_axes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for axis in range(len(shape)):
        others = tuple(n if a == axis else 1 for a, n in enumerate(shape))
        along = tuple(a for a in range(len(shape)) if a != axis)
        words = (
            f"axis {along[0]}"
            if len(along) == 1
            else f"axes {', '.join(map(str, along[:-1]))} and {along[-1]}"
        )
        error = rng.normal(size=others)
        assert described(shape, lambda d, x, e=error: d + e) == f"constant along {words}"
        assert (
            described(shape, lambda d, x, e=error: d * (2 + e))
            == f"a factor per slice, constant along {words}"
        )
        offset = rng.normal(size=others)
        got = described(shape, lambda d, x, e=error, o=offset: d + o + e * x)
        assert got == f"affine in x along {words}, per slice"
    assert described(shape, lambda d, x: d + 0.3) == "constant everywhere"


def test_one_slice() -> None:
    assert described((7,), lambda d, x: d + 0.3) == "constant along axis 0"
    assert described((7,), lambda d, x: d + 0.3 - x) == "affine in x along axis 0"


def test_exchanged_axes() -> None:
    assert described((4, 4), lambda d, x: d.T) == "the right values, with axes 0 and 1 exchanged"
    assert described((2, 3, 5), lambda d, x: d.swapaxes(0, 1).reshape(d.shape)) == (
        "the right values in the memory order of axes 0 and 1 exchanged"
    )


def test_rolled_in_memory_order() -> None:
    assert described((4, 5), lambda d, x: np.roll(d, 1)) == "the right values, rolled by 1 in memory order"


def test_scattered_elements() -> None:
    def checkerboard(d: np.ndarray, x: np.ndarray) -> np.ndarray:
        return d + (np.indices(d.shape).sum(0) % 2) * (1 + x * x)

    def largest(d: np.ndarray, x: np.ndarray) -> np.ndarray:
        return d + (x == x.max(1, keepdims=True))

    def tail(d: np.ndarray, x: np.ndarray) -> np.ndarray:
        d.reshape(-1)[17:] += 1 + x.reshape(-1)[17:] ** 2
        return d

    assert described((4, 6), checkerboard) == "a checkerboard over axes 0 and 1"
    assert described((4, 6), largest) == "one element of each slice over axis 1"
    assert described((4, 6), tail) == "only elements from the flat index 17 on"
    assert described((4, 6), lambda d, x: d + (x <= 0) * (1 + d**2)) in (
        "only where x < 0",
        "only where the output is zero",
    )


def test_errors_within_the_bars_have_no_pattern() -> None:
    assert described((3, 4), lambda d, x: d + 3 * BAR) == ""
    assert described((3, 4), lambda d, x: d) == ""


def test_a_grid_in_a_block() -> None:
    rng = np.random.default_rng(0)
    shape, block = (100, 50, 40), ((0, 100), (2, 3), (7, 40))
    grid = (np.array([0, 3, 50, 99]), np.array([2]), np.array([7, 20, 31, 39]))
    x, d = rng.normal(size=shape), rng.normal(size=(4, 1, 4))
    around = "only index 2 of axis 1 and elements from index 7 on along axis 2"
    for analytic, words in (
        (d + 1 + d**2, around),
        (0.7 * d, f"{around}: a constant factor of 0.7"),
        (d + rng.normal(size=(4, 1, 1)), f"{around}: constant along axis 2"),
    ):
        assert describe(place_of(analytic, d, grid, block, shape), x, x) == words


def test_a_gradient_of_what_does_not_move_the_output_is_told_from_a_factor():
    x, numeric = np.arange(1.0, 6), np.zeros(5)
    assert describe(place_of(316 * x, numeric), x, numeric).startswith("not zero, though the output stays")
