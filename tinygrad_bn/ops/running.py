"""Running statistics of BatchNorm and InstanceNorm: what is written, by which convention, and when.

    new = (1 − w) · old + w · batch

Libraries disagree on what `momentum` means and which variance is stored. `convention` names one of them:

| convention | momentum is the weight of | default momentum | variance stored |
|---|---|---|---|
| "torch"  | the batch, w = momentum         | 0.1 | unbiased, m / (m − 1) |
| "paddle" | the old value, w = 1 − momentum | 0.9 | biased |

`momentum=None` is the cumulative average over all batches, w = 1 / (num_batches_tracked + 1). It needs the
number of batches that the statistics already hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..devices import is_array, one_device
from ..tensor import Tensor, array_of
from .checks import as_index, is_number

__all__ = ["CONVENTIONS", "Running", "check_running"]


@dataclass(frozen=True)
class Convention:
    """How a library reads `momentum` and which variance it stores."""

    momentum: float
    of_batch: bool
    unbiased: bool


CONVENTIONS = {
    "torch": Convention(momentum=0.1, of_batch=True, unbiased=True),
    "paddle": Convention(momentum=0.9, of_batch=False, unbiased=False),
}


def check_running(operation: str, shapes: Sequence[Any], wanted: tuple[int, ...]) -> None:
    """Running mean and variance have one value per channel."""
    for name, shape in zip(("running_mean", "running_var"), shapes, strict=False):
        if shape != wanted:
            raise ValueError(f"{operation}: {name} has shape {shape}, wanted {wanted}, one value per channel")


class Running:
    """The running statistics of one call: checked when made, written by `update` after the operation
    succeeded.
    """

    def __init__(
        self,
        operation: str,
        mean: Any,
        variance: Any,
        momentum: float | str | None,
        convention: str,
        num_batches_tracked: Any,
    ):
        self.operation = operation
        self.mean, self.variance = mean, variance
        self._momentum, self._convention, self._batches = momentum, convention, 0
        self._check_update(momentum, convention)
        if mean is None and variance is None:
            return
        if mean is None or variance is None:
            given, missing = (
                ("running_mean", "running_var") if variance is None else ("running_var", "running_mean")
            )
            raise ValueError(f"{operation}: {given} was given without {missing}; pass both or neither")
        self._check("running_mean", mean)
        self._check("running_var", variance)
        if momentum is None:
            self._batches = self._counted(num_batches_tracked)

    @property
    def present(self) -> bool:
        return self.mean is not None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """For `check_running`, of those that are present."""
        return (self.mean.shape, self.variance.shape) if self.present else ()

    def check_writable(self, input: Any) -> None:
        """Raise before anything is computed what `update` with this input's statistics would raise after."""
        if not self.present:
            return
        for name, value in (("running_mean", self.mean), ("running_var", self.variance)):
            array = array_of(value)
            if type(array) is not np.ndarray or type(array_of(input)) is not np.ndarray:
                one_device(self.operation, (("input", array_of(input)), (name, array)))
            if not getattr(array.flags, "writeable", True):  # CuPy has no arrays that are not
                raise ValueError(
                    f"{self.operation}: {name} is read-only, but training updates it in place; pass a "
                    "writable array"
                )
            if isinstance(value, Tensor) and value.requires_grad:
                raise ValueError(
                    f"{self.operation}: {name} requires a gradient, but is updated in place; pass "
                    f"{name}.detach()"
                )

    def update(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        """Write the statistics of a batch: `mean` and biased `variance`, [C], each over `count` values. An
        empty batch says nothing.
        """
        if count == 0:
            return
        convention = CONVENTIONS[self._convention]
        unbiased = count / (count - 1) if convention.unbiased and count > 1 else 1.0
        weight = self._weight(convention)
        for target, batch, factor in ((self.mean, mean, 1.0), (self.variance, variance, unbiased)):
            new = np.multiply(array_of(target), 1 - weight, dtype=np.float64)
            new += batch * (weight * factor)
            target[...] = new

    def _weight(self, convention: Convention) -> float:
        """That of the batch."""
        momentum = self._momentum
        if momentum is None:
            return 1.0 / (self._batches + 1)
        value = convention.momentum if isinstance(momentum, str) else momentum
        return value if convention.of_batch else 1 - value

    def _check_update(self, momentum: Any, convention: Any) -> None:
        """Momentum and convention are among those that there are.

        A momentum may change with each call: it is no part of what `Fused.remembered` knows of one.
        """
        if not isinstance(convention, str) or convention not in CONVENTIONS:
            raise ValueError(
                f"{self.operation}: convention is {convention!r}, wanted "
                f"{' or '.join(map(repr, CONVENTIONS))}"
            )
        if momentum is None or (type(momentum) is str and momentum == "default"):
            return
        if not (type(momentum) is float or is_number(momentum)) or not 0 <= momentum <= 1:
            raise ValueError(
                f"{self.operation}: momentum is {momentum!r}, wanted a number from 0 to 1, 'default', or None"
            )

    def _check(self, name: str, value: Any) -> None:
        array = array_of(value)
        if not (type(array) is np.ndarray or is_array(array)) or array.dtype.kind != "f":
            got = array.dtype if is_array(array) else type(value).__name__
            raise TypeError(f"{self.operation}: {name} is {got}, wanted an array or Tensor of floats")

    def _counted(self, batches: Any) -> int:
        """The number of batches that the statistics hold."""
        if batches is None:
            raise ValueError(
                f"{self.operation}: momentum=None is the cumulative average, which needs "
                "num_batches_tracked=, the number of batches that running_mean and running_var "
                "already hold (0 for the first)"
            )
        if is_array(batches) and batches.size == 1:  # as torch's layers hold it
            batches = batches.item()
        counted = as_index(self.operation, "num_batches_tracked", batches, "an integer")
        if counted < 0:
            raise ValueError(f"{self.operation}: num_batches_tracked is {counted}, wanted 0 or more")
        return counted
