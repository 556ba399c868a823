"""What a known mistake is, and what several kinds of them share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Hypothesis", "long", "moves", "subsets"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A mistake in words, the terms of the gradient if it is made, and the coefficients that go with it.

    complexity: 0 of the right formula, 1 of a mistake, more of one that was fitted.
    """

    words: str
    terms: Mapping[str, np.ndarray]
    expected: Mapping[str, float]
    complexity: int = 1

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """The terms as rows of numbers, and the expected coefficients."""
        rows = np.array([np.ravel(term) for term in self.terms.values()])
        return rows, np.array([self.expected[name] for name in self.terms])


Move = Callable[[np.ndarray], np.ndarray]


def moves(axes: Iterable[int], shape: tuple[int, ...]) -> Iterator[tuple[str, Move]]:
    """An array with its indices moved."""
    for axis in axes:
        if shape[axis] > 1:
            for k in (1, -1) if shape[axis] > 2 else (1,):
                yield f"that of another index: rolled by {k} along axis {axis}", _rolled(k, axis)
            if shape[axis] > 2:
                yield f"reversed along axis {axis}", _flipped(axis)

    for one, other in itertools.combinations([axis for axis in axes if shape[axis] > 1], 2):
        yield f"in the memory order of axes {one} and {other} exchanged", _exchanged(one, other)


def _exchanged(one: int, other: int) -> Move:
    return lambda array: np.swapaxes(array, one, other).reshape(array.shape)


def _rolled(k: int, axis: int) -> Move:
    return lambda array: np.roll(array, k, axis)


def _flipped(axis: int) -> Move:
    return lambda array: np.flip(array, axis)


def subsets(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every choice of axes that are longer than 1, the small ones first."""
    lengthy = long(tuple(range(len(shape))), shape)
    for k in range(1, len(lengthy) + 1):
        yield from itertools.combinations(lengthy, k)


def long(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if shape[axis] > 1)
