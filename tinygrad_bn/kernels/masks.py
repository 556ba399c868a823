"""The plans of the dropout kernels: which decisions, drawn how, and shared by which elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .philox import Quantised, as_word


@dataclass(slots=True)  # frozen, one would take twice as long to make, and every call makes one
class Mask:
    """Drop by a mask of `mask_shape`, broadcast over `shape`, and multiply the survivors by `scale`.

    Args:
        shape: the shape of the input.
        mask_shape: the same, but 1 along the axes whose elements share a decision.
        seed, stream, call: the 64-, 32- and 32-bit integers that pick the mask.
        quantised: the probability of dropping, from `philox.quantise`.
        scale: the factor of the survivors: `quantised.survivor_scale`, or 1.

    Raises:
        ValueError: `mask_shape` does not broadcast to `shape` axis by axis.
        TypeError, ValueError: seed, stream or call is not an integer in its range.
    """

    shape: tuple[int, ...]
    mask_shape: tuple[int, ...]
    seed: int
    stream: int
    call: int
    quantised: Quantised
    scale: float

    def __post_init__(self) -> None:
        as_word("Mask", "seed", self.seed, 64)
        as_word("Mask", "stream", self.stream, 32)
        as_word("Mask", "call", self.call, 32)
        # The kernels index the decisions by these shapes, unchecked.
        if self.mask_shape != self.shape and (
            len(self.mask_shape) != len(self.shape)
            or any(m not in (1, n) for m, n in zip(self.mask_shape, self.shape, strict=True))
        ):
            raise ValueError(
                f"Mask: mask_shape must have, along each axis, length 1 or that of shape {self.shape}, "
                f"got {self.mask_shape}"
            )

    def drawn(self, seed: int, stream: int, call: int) -> Mask:
        """The same with another key."""
        return Mask(self.shape, self.mask_shape, seed, stream, call, self.quantised, self.scale)

    @property
    def decisions(self) -> int:
        """How many decisions the mask holds."""
        return math.prod(self.mask_shape)

    def check_shape(self, name: str, array: Any) -> None:
        """Raise ValueError unless an array has the shape of the input: kernels find the decisions by it."""
        if array.shape != self.shape:
            raise ValueError(
                f"dropout: {name} has shape {array.shape}, but the mask was made for {self.shape}"
            )


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply by `factor`, a float: dropout at inference where training did not scale the survivors."""

    factor: float


def runs(shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The shape, neighbouring axes merged as far as the mask allows: (length, step between decisions) each.

    The step is 0 where a run shares a decision; the two kinds alternate, and the last run is the fastest. For
    example (N, C, H, W) under a mask of (N, C, 1, 1) is ((N·C, 1), (H·W, 0)).
    """
    merged: list[tuple[int, int]] = []
    step = 1
    for length, own in zip(reversed(shape), reversed(mask_shape), strict=True):
        if length == 1:
            continue
        axis_step = step if own == length else 0
        if merged and (merged[-1][1] == 0) == (axis_step == 0):
            merged[-1] = (merged[-1][0] * length, merged[-1][1])
        else:
            merged.append((length, axis_step))
        step *= own
    return tuple(reversed(merged)) or ((1, 1),)
