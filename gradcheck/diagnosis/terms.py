"""The named terms of a gradient, by family: normalizations with their own statistics, without, and masks.

With g = cotangent · weight the gradient of every normalization is a sum of at most three terms,

    direct  rstd·g      mean path  −rstd·mean(g)      variance path  −rstd·x̂·mean(g·x̂)

of which MomentNorm has all, RmsNorm the first and the last (there called rms path), InferenceNorm the first.
The record of an operation says how x is cut into slices; `pieces` makes of it what the terms are made of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradcheck.axes import Arrays, Configuration

__all__ = ["Family", "InferenceNorm", "Mask", "MomentNorm", "Norm", "Pieces", "RmsNorm", "for_configuration"]

Inputs = Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the terms of one gradient are made of, as arrays that broadcast in the split shape.

    The cotangent times weight and x̂ occur in several places; a mistake may have changed any of them alone.
    `variance_factor` is 1, but where the forward pass takes N − 1 values, or ε outside of the root.
    """

    x: np.ndarray
    centred: np.ndarray
    rstd: np.ndarray
    cotangent: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    direct: np.ndarray  # g in the direct term
    averaged: np.ndarray  # g in the mean path
    projected: np.ndarray  # g in the variance path
    outer: np.ndarray  # x̂ before the mean of the variance path
    inner: np.ndarray  # x̂ inside it
    mean_axes: tuple[int, ...]
    variance_axes: tuple[int, ...]
    variance_factor: np.ndarray

    @property
    def x_hat(self) -> np.ndarray:
        """The normalized input."""
        return self.centred * self.rstd

    def weighted(self, g: np.ndarray) -> Pieces:
        """The pieces with another g in all three terms."""
        return dataclasses.replace(self, direct=g, averaged=g, projected=g)

    def over(self, axes: tuple[int, ...]) -> Pieces:
        """The pieces with both means over other axes."""
        return dataclasses.replace(self, mean_axes=axes, variance_axes=axes)

    def terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Direct term, mean path and variance path, in the split shape."""
        inner = np.mean(self.projected * self.inner, axis=self.variance_axes, keepdims=True)
        return (
            self.rstd * self.direct,
            -self.rstd * np.mean(self.averaged, axis=self.mean_axes, keepdims=True),
            -self.rstd * self.outer * inner * self.variance_factor,
        )


@dataclass(frozen=True, eq=False)
class Norm:
    """How a normalization cuts x into slices, and where its arguments stand among the inputs.

    name: of the operation.
    shape: of x. An x of length 1 along some axes is broadcast to it first.
    reduced: the axes of `split_shape` whose values share their statistics.
    parameter_shape: the shape in which weight and bias broadcast against x.
    groups: (axis, number of groups) of GroupNorm, whose axis of channels is split in two.
    x, weight, bias: positions among the inputs; None for what is absent.
    eps: added to the variance, or to its root where `eps_outside`. correction: 1 where the variance of the
        forward pass is a sum over N − 1.
    """

    name: str
    shape: tuple[int, ...]
    reduced: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    eps: float
    groups: tuple[int, int] | None = None
    x: int = 0
    weight: int | None = None
    bias: int | None = None
    correction: int = 0
    eps_outside: bool = False

    expected: ClassVar[Mapping[str, float]]
    """The terms by name, with the coefficient of each in a right gradient: 1, or 0 for a foreign one."""

    @property
    def split_shape(self) -> tuple[int, ...]:
        """The shape; of GroupNorm with the axis of channels in two, the groups and the channels of one."""
        if self.groups is None:
            return self.shape
        axis, groups = self.groups
        return (*self.shape[:axis], groups, self.shape[axis] // groups, *self.shape[axis + 1 :])

    @property
    def count(self) -> int:
        """N, how many values make one statistic."""
        return math.prod(self.split_shape[axis] for axis in self.reduced)

    @property
    def shared(self) -> tuple[int, ...]:
        """The axes of x along which weight and bias are shared: those that their gradients are sums over."""
        return tuple(axis for axis, length in enumerate(self.parameter_shape) if length == 1)

    def role(self, position: int) -> str | None:
        """What an input is to the normalization: "x", "weight", "bias", or None."""
        roles = {self.x: "x", self.weight: "weight", self.bias: "bias"}
        return roles.get(position)

    def where(self, axes: tuple[int, ...] | None = None) -> str:
        """Axes of the split shape, by default the reduced ones, in words."""
        return axes_in_words(self.reduced if axes is None else axes, self.groups)

    def pieces(self, inputs: Inputs, cotangent: np.ndarray) -> Pieces:
        """What the terms are made of, in float64."""
        x = self.split(_array(inputs, self.x))
        mean, variance = self.statistics(x)
        sigma = np.sqrt(variance)
        rstd = 1 / (sigma + self.eps) if self.eps_outside else 1 / np.sqrt(variance + self.eps)
        centred = x - mean
        weight, bias = self.parameter(inputs, self.weight, 1.0), self.parameter(inputs, self.bias, 0.0)
        cotangent = self.split(np.asarray(cotangent, np.float64))
        g = cotangent * weight
        factor = np.ones_like(rstd) * self.count / max(self.count - self.correction, 1)
        if self.eps_outside:  # dσ/dx has a 1/σ that rstd does not
            factor = factor / np.where(sigma > 0, rstd * sigma, 1)
        x_hat = centred * rstd
        return Pieces(
            x, centred, rstd, cotangent, weight, bias,
            g, g, g, x_hat, x_hat, self.reduced, self.reduced, factor,
        )  # fmt: skip

    def statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is subtracted from x, and the variance, in the split shape."""
        raise NotImplementedError

    def output(self, inputs: Inputs) -> np.ndarray:
        """The forward pass."""
        p = self.pieces(inputs, np.zeros(self.shape))
        return (p.x_hat * p.weight + p.bias).reshape(self.shape)

    def terms(self, pieces: Pieces, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The terms of the gradient of x by name, as float64 arrays of the shape of x as it was given."""
        return dict(zip(self.expected, (self.joined(term, shape) for term in pieces.terms()), strict=True))

    def split(self, array: np.ndarray) -> np.ndarray:
        """An array that broadcasts against x, in the split shape."""
        return np.broadcast_to(array, self.shape).reshape(self.split_shape)

    def joined(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the split shape, summed to a shape that broadcasts to that of x."""
        full = np.broadcast_to(array, self.split_shape).reshape(self.shape)
        axes = tuple(axis for axis, length in enumerate(shape) if length != self.shape[axis])
        return full.sum(axis=axes, keepdims=True)

    def parameter(self, inputs: Inputs, position: int | None, absent: float) -> np.ndarray:
        """Weight or bias in the split shape; where there is none, an array full of `absent`."""
        if position is None or inputs[position] is None:
            return np.full(self.split_shape, absent)
        return self.split(_array(inputs, position).reshape(self.parameter_shape))

    def has_weight(self, inputs: Inputs) -> bool:
        """Whether there is a weight."""
        return self.weight is not None and inputs[self.weight] is not None


@dataclass(frozen=True, eq=False)
class MomentNorm(Norm):
    """BatchNorm in training, LayerNorm, InstanceNorm, GroupNorm: mean and variance of each slice."""

    expected: ClassVar[Mapping[str, float]] = {"direct": 1.0, "mean path": 1.0, "variance path": 1.0}

    def statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = x.mean(axis=self.reduced, keepdims=True)
        total = np.sum((x - mean) ** 2, axis=self.reduced, keepdims=True)
        return mean, total / max(self.count - self.correction, 1)


@dataclass(frozen=True, eq=False)
class RmsNorm(Norm):
    """RMSNorm: the mean square of each slice, and no mean."""

    expected: ClassVar[Mapping[str, float]] = {"direct": 1.0, "mean path": 0.0, "rms path": 1.0}

    def statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = np.sum(x * x, axis=self.reduced, keepdims=True)
        return np.zeros_like(total), total / max(self.count - self.correction, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class InferenceNorm(Norm):
    """A normalization by running statistics, which are constants: `reduced` are the axes of training."""

    running_mean: np.ndarray
    running_var: np.ndarray
    expected: ClassVar[Mapping[str, float]] = {"direct": 1.0, "mean path": 0.0, "variance path": 0.0}

    def statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = (
            self.split(np.asarray(array, np.float64).reshape(self.parameter_shape))
            for array in (self.running_mean, self.running_var)
        )
        return mean, variance


@dataclass(frozen=True)
class Mask:
    """Dropout: the gradient is the cotangent times the mask, times what the survivors are scaled by.

    Mask and scale are seen in the forward pass. p: how likely an element is to be dropped, where known.
    x: the position of x among the inputs. drawn: whether random numbers may have made the mask; if not, it is
    a condition, as in ReLU.
    """

    name: str
    p: float | None = None
    x: int = 0
    drawn: bool = True

    def role(self, position: int) -> str | None:
        """What an input is to the mask: "x" or None."""
        return "x" if position == self.x else None


Family = Norm | Mask
FAMILIES = {"moment_norm": MomentNorm, "rms_norm": RmsNorm, "inference_norm": InferenceNorm}


def for_configuration(family: str, configuration: Configuration, arrays: Arrays) -> Family:
    """The record of one configuration, whose inputs are (input, weight, bias).

    Args:
        family: "moment_norm", "rms_norm", "inference_norm" or "mask".
        configuration: of that family.
        arrays: its numbers; of these the record keeps the running statistics.

    Raises:
        ValueError: there is no such family.
    """
    c = configuration
    if family == "mask":
        return Mask(c.operation, c.p)
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, wanted one of {', '.join((*FAMILIES, 'mask'))}")
    channel = (c.channel_axis or 0) % c.rank
    parameters = range(c.rank - c.tail, c.rank) if c.tail is not None else (channel,)
    settings: dict[str, Any] = {
        "name": c.operation,
        "shape": c.shape,
        "reduced": c.reduced,
        "parameter_shape": tuple(n if axis in parameters else 1 for axis, n in enumerate(c.shape)),
        "eps": c.eps,
        "groups": None if c.groups is None else (channel, c.groups),
        "weight": None if arrays.weight is None else 1,
        "bias": None if arrays.bias is None else 2,
    }
    if family == "inference_norm":
        settings |= {"running_mean": arrays.running_mean, "running_var": arrays.running_var}
    return FAMILIES[family](**settings)


def axes_in_words(axes: Sequence[int], groups: tuple[int, int] | None = None) -> str:
    """ "over axes 0 and 2"; with the axis of channels in two, "over each group of channels and axis 2"."""
    if groups is not None:
        axis = groups[0]
        halves = {
            (False, True): "each group of channels",
            (True, False): "the groups",
            (True, True): f"axis {axis}",
        }
        channels = halves.get((axis in axes, axis + 1 in axes))
        others = [a - (a > axis) for a in axes if a not in (axis, axis + 1)]
        parts = [channels] if channels else []
        return "over " + " and ".join(parts + ([listed(others)] if others else []))
    return f"over {listed(axes)}" if axes else "over nothing"


def listed(axes: Sequence[int]) -> str:
    """ "axis 1", "axes 0 and 2", "axes 0, 2 and 3"."""
    numbers = [str(axis) for axis in axes]
    if len(numbers) == 1:
        return f"axis {numbers[0]}"
    return f"axes {', '.join(numbers[:-1])} and {numbers[-1]}"


def _array(inputs: Inputs, position: int) -> np.ndarray:
    array = inputs[position]
    assert array is not None  # positions in a record are those of arrays
    return np.asarray(array, np.float64)
