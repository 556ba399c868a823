"""Sample inputs of the primitive operations: small, generic, and away from kinks and poles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..registry import Sample

__all__ = ["calls", "elementwise", "pairs"]

SHAPES = ((), (5,), (3, 4), (2, 3, 2))
PAIRS = (((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1, 3), (4, 1)), ((), (3,)), ((1,), (2, 3)))


def values(rng: np.random.Generator, shape: Sequence[int], low: float, high: float, gap: float) -> np.ndarray:
    """Uniform in [low, high], at least `gap` away from 0."""
    drawn = rng.uniform(low, high, shape)
    return drawn + np.where(drawn < 0, -gap, gap)


def elementwise(
    low: float = -2.0, high: float = 2.0, gap: float = 0.0
) -> Callable[[np.random.Generator], Iterator[Sample]]:
    """One input, ranks 0 to 3."""

    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for shape in SHAPES:
            yield Sample(f"rank {len(shape)}", (values(rng, shape, low, high, gap),))

    return samples


def pairs(
    low: float = -2.0, high: float = 2.0, gap: float = 0.0
) -> Callable[[np.random.Generator], Iterator[Sample]]:
    """Two inputs that broadcast against each other in every way."""

    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for left, right in PAIRS:
            inputs = (values(rng, left, low, high, gap), values(rng, right, low, high, gap))
            yield Sample(f"{left} with {right}", inputs)

    return samples


def calls(
    *shapes_and_attributes: tuple[Sequence[Sequence[int]], Mapping[str, Any]],
) -> Callable[[np.random.Generator], Iterator[Sample]]:
    """The given calls: shapes of the inputs, and attributes."""

    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for shapes, attributes in shapes_and_attributes:
            shown = ", ".join(f"{name}={value!r}" for name, value in attributes.items())
            name = " with ".join(str(tuple(shape)) for shape in shapes) + (f", {shown}" if shown else "")
            yield Sample(name, tuple(rng.normal(size=shape) for shape in shapes), attributes)

    return samples
