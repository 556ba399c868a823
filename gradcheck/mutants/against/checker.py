"""What is compared: a checker with its settings, as one question to a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.operations import Operation

__all__ = ["Checker", "Wrapped", "differentiable_positions", "filled"]

Accuses = Callable[[Operation, Pair, tuple[np.ndarray, ...], int], bool]


@dataclass(frozen=True, slots=True)
class Checker:
    """One library's checker with one choice of its settings.

    library, setting: for the table. defaults: whether the setting is the library's own choice.
    accuses: takes (operation, pair, inputs, seed); whether the check fails or raises.
    """

    library: str
    setting: str
    defaults: bool
    accuses: Accuses


class Wrapped:
    """A pair as a function of the inputs that have a gradient, in a library's own terms.

    What forward saves may be anything, so it is kept here, under a number, and not handed to the library.
    """

    def __init__(self, operation: Operation, pair: Pair, inputs: Sequence[np.ndarray]) -> None:
        self._forward, self._backward = pair
        self._operation, self._inputs = operation, inputs
        self._wanted = differentiable_positions(operation)
        self._kept: dict[int, Any] = {}

    def forward(self, *arrays: np.ndarray) -> tuple[np.ndarray, int]:
        """The output, and a number to find what was saved."""
        output, saved = self._forward(*filled(self._operation, self._inputs, arrays))
        number = len(self._kept)
        self._kept[number] = saved
        return output, number

    def backward(self, number: int, cotangent: np.ndarray) -> tuple[Any, ...]:
        """The gradients of the inputs that have one."""
        gradients = self._backward(self._kept[number], cotangent)
        if len(gradients) != len(self._inputs):
            raise ValueError(f"{len(gradients)} gradients for {len(self._inputs)} inputs")
        return tuple(gradients[index] for index in self._wanted)


def differentiable_positions(operation: Operation) -> list[int]:
    """Where the inputs with a gradient stand."""
    return [operation.names.index(name) for name in operation.differentiable]


def filled(
    operation: Operation, inputs: Sequence[np.ndarray], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The inputs with others in place of those that have a gradient; state is copied."""
    given = [
        a.copy() if name in operation.state else a for name, a in zip(operation.names, inputs, strict=True)
    ]
    for index, array in zip(differentiable_positions(operation), arrays, strict=True):
        given[index] = array
    return given
