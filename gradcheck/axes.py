"""The axis configurations of the normalizations and of dropout, as plain frozen records.

A `Configuration` says everything about one check but the numbers, which follow from it and a seed. Its text
form reads back, so that one command repeats a failure. Adapters turn a record into a callable.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.contract import layouts

__all__ = [
    "AFFINES",
    "DTYPES",
    "LAYOUTS",
    "MODES",
    "OPERATIONS",
    "RANKS",
    "VALUES",
    "Arrays",
    "Configuration",
]

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
OPERATIONS = (*NORMS, "dropout")
CHANNELLED = ("batch_norm", "instance_norm", "group_norm")
RANKS = {
    "batch_norm": (2, 3, 4, 5), "instance_norm": (3, 4, 5), "group_norm": (2, 3, 4, 5),
    "layer_norm": (1, 2, 3, 4), "rms_norm": (1, 2, 3, 4), "dropout": (1, 2, 3, 4),
}  # fmt: skip
AFFINES = ("none", "weight", "bias", "both")
MODES = ("training", "inference")
DTYPES = ("float64", "float32")
LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "broadcast")
VALUES = ("normal", "zeros", "constant row", "spike", "scale 1e-3", "scale 100", "mean 1e4", "given")
SCALINGS = ("upscale_in_train", "downscale_in_infer")
LARGEST = 1 << 28  # elements of an input that is drawn: 2 GiB, and a check holds several of that size


@dataclass(frozen=True)
class Configuration:
    """One call of an operation.

    channel_axis: of BatchNorm, InstanceNorm and GroupNorm. groups: of GroupNorm. tail: of LayerNorm and
    RMSNorm, how many of the last axes are normalized. mask_axes: of dropout, the axes along which the mask
    varies. scaling: of dropout, its `mode`. mode: "training" or "inference". layout: how the input lies in
    memory. values: what it holds; "given": an array of the user's.
    """

    operation: str
    shape: tuple[int, ...]
    channel_axis: int | None = None
    groups: int | None = None
    tail: int | None = None
    mask_axes: tuple[int, ...] | None = None
    p: float | None = None
    scaling: str | None = None
    affine: str = "both"
    mode: str = "training"
    dtype: str = "float64"
    layout: str = "contiguous"
    eps: float = 1e-5
    values: str = "normal"

    def __str__(self) -> str:
        parts = [self.operation, f"shape={_join(self.shape)}"]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                text = _join(value) if isinstance(value, tuple) else str(value).replace(" ", "_")
                parts.append(f"{field.name}={text}")
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """Read the text form back. Raises ValueError that says what is wrong."""
        operation, *parts = text.split() or [""]
        if operation not in OPERATIONS:
            raise ValueError(f"{operation!r} is no operation; begin with one of {', '.join(OPERATIONS)}")
        settings: dict[str, Any] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals or name not in SETTINGS:
                raise ValueError(
                    f"{part!r} is not a setting; wanted name=value with a name of {', '.join(SETTINGS)}"
                )
            if name in settings:
                raise ValueError(f"{name} is given twice; leave one out")
            try:
                settings[name] = SETTINGS[name](value)
            except ValueError:
                raise ValueError(f"{name} is {value!r}, wanted {WANTED[SETTINGS[name]]}") from None
        if "shape" not in settings:
            raise ValueError(f"{operation} needs a shape, such as shape=4,3,5")
        configuration = cls(operation, **settings)
        if configuration.problem is not None:
            raise ValueError(f"{operation}: {configuration.problem}")
        return configuration

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line that select it."""
        return "--case", str(self)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def channels(self) -> int:
        """The length of the channel axis."""
        return self.shape[self.channel_axis or 0]

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of `split_shape` over which the statistics are taken."""
        axes = range(self.rank)
        if self.tail is not None:
            return tuple(axes[-self.tail :])
        channel = (self.channel_axis or 0) % self.rank
        if self.operation == "batch_norm":
            return tuple(a for a in axes if a != channel)
        if self.operation == "instance_norm":
            return tuple(a for a in axes if a not in (0, channel))
        return tuple(a for a in range(self.rank + 1) if a not in (0, channel))

    @property
    def split_shape(self) -> tuple[int, ...]:
        """The shape; of GroupNorm with the channel axis in two, the groups and the channels of one."""
        if self.groups is None:
            return self.shape
        channel = (self.channel_axis or 0) % self.rank
        return (*self.shape[:channel], self.groups, self.channels // self.groups, *self.shape[channel + 1 :])

    @property
    def count(self) -> int:
        """How many values make one statistic."""
        return math.prod(self.split_shape[a] for a in self.reduced)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        return self.shape[-self.tail :] if self.tail is not None else (self.channels,)

    @property
    def has_weight(self) -> bool:
        return self.operation in NORMS and self.affine in ("weight", "both")

    @property
    def has_bias(self) -> bool:
        return self.operation in NORMS and self.affine in ("bias", "both")

    @property
    def subtracts_mean(self) -> bool:
        """Whether the gradient of the input sums to zero over the reduced axes."""
        return self.operation not in ("rms_norm", "dropout") and self.mode == "training"

    @property
    def zero(self) -> tuple[str, ...]:
        """The inputs whose gradient is exactly zero here, by the nature of the operation."""
        if self.operation == "dropout":
            return ("input",) if self.p == 1 else ()
        names = []
        if self._saturated:
            names.append("input")
        centred_away = self.subtracts_mean and (self.count == 1 or self.values == "zeros")
        if self.has_weight and (centred_away or (self.operation == "rms_norm" and self.values == "zeros")):
            names.append("weight")
        return tuple(names)

    @property
    def _saturated(self) -> bool:
        """Whether the normalized values are 0 or ±1 whatever the input: the only ones of so few values."""
        if self.mode == "inference":
            return False
        return self.count <= self.subtracts_mean or (self.eps == 0 and self.count == 1 + self.subtracts_mean)

    @property
    def _without_spread(self) -> bool:
        """Whether a statistic is taken whose variance, or mean square, is zero."""
        if self.mode == "inference":
            return False
        return self.values == "zeros" or (
            self.subtracts_mean and (self.values == "constant row" or self.count == 1)
        )

    def draw(self, seed: int, given: np.ndarray | None = None) -> Arrays:
        """The numbers of this check, float64, in the logical shape: they follow from text and seed."""
        rng = np.random.default_rng([seed, zlib.crc32(str(self).encode())])
        x = rng.normal(size=self.shape) if given is None else np.array(given, np.float64)
        if self.values == "zeros":
            x = np.zeros(self.shape)
        elif self.values == "constant row":
            x[self._first_slice()] = 0.5
        elif self.values == "spike":
            x.reshape(-1)[x.size // 2] = 1e3
        elif self.values.startswith("scale"):
            x *= float(self.values.split()[1])
        elif self.values.startswith("mean"):
            x += float(self.values.split()[1])
        if self.layout == "broadcast":
            axis = self._broadcast_axis()
            x = x[tuple(slice(0, 1) if a == axis else slice(None) for a in range(self.rank))]
        if self.operation == "dropout":
            return Arrays(x)
        weight = rng.normal(size=self.parameters) if self.has_weight else None
        bias = rng.normal(size=self.parameters) if self.has_bias else None
        running_mean, running_var = rng.normal(size=self.parameters), rng.uniform(0.5, 2.0, self.parameters)
        inference = self.mode == "inference"
        return Arrays(
            x, weight, bias, running_mean if inference else None, running_var if inference else None
        )

    def lay_out(self, x: np.ndarray) -> np.ndarray:
        """The values of x in this configuration's memory layout.

        A broadcast input stays as it is, of length 1 along an axis: the operation that broadcasts it has a
        gradient, and belongs to what is checked.
        """
        return layouts.LAYOUTS[self.layout](x) if self.layout in layouts.LAYOUTS else x

    def _first_slice(self) -> tuple[slice, ...]:
        """One slice over which a statistic is taken, in the shape of the input."""
        split = tuple(slice(None) if a in self.reduced else slice(0, 1) for a in range(len(self.split_shape)))
        if self.groups is None:
            return split
        channel = (self.channel_axis or 0) % self.rank
        return (*split[:channel], slice(0, self.channels // self.groups), *split[channel + 2 :])

    def _broadcast_axis(self) -> int | None:
        """An axis not reduced, or one of several: along it equal values leave every slice with a spread."""
        if self.operation == "dropout":
            return 0
        if self.operation == "batch_norm":
            return (self.channel_axis or 0) % self.rank
        if 0 not in self.reduced:
            return 0
        several = [axis for axis in self.reduced if self.count > self.shape[axis]]
        return several[0] if several else None

    @property
    def problem(self) -> str | None:
        """Why there is no such configuration, or None."""
        for name, allowed in (
            ("affine", AFFINES), ("mode", MODES), ("dtype", DTYPES), ("layout", LAYOUTS), ("values", VALUES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                return f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(allowed)}"
        low, high = RANKS[self.operation][0], RANKS[self.operation][-1]
        unlimited = self.values == "given" and self.operation not in CHANNELLED
        if self.rank < low or (self.rank > high and not unlimited):
            return f"shape {self.shape} has rank {self.rank}, wanted {low} to {high}"
        if min(self.shape) < 1:
            return f"shape is {self.shape}, wanted lengths of at least 1: an empty input has nothing to check"
        if self.values != "given" and math.prod(self.shape) > LARGEST:
            return f"shape {self.shape} has {math.prod(self.shape)} elements, wanted at most {LARGEST}"
        if not 0 <= self.eps < math.inf:
            return f"eps is {self.eps}, wanted a number of at least 0"
        return self._dropout_problem() if self.operation == "dropout" else self._norm_problem()

    def _norm_problem(self) -> str | None:
        if (self.mask_axes, self.p, self.scaling) != (None, None, None):
            return "mask_axes, p and scaling are settings of dropout"
        if self.operation in CHANNELLED and self.channel_axis not in (1, -1):
            return f"channel_axis is {self.channel_axis}, wanted 1 or -1"
        if self.operation not in CHANNELLED and self.channel_axis is not None:
            return (
                f"channel_axis is {self.channel_axis}; it has none, but tail, the number of normalized axes"
            )
        if self.operation in CHANNELLED and self.tail is not None:
            return f"tail is {self.tail}; it has none, but a channel_axis"
        if self.operation not in CHANNELLED and not 1 <= (self.tail or 0) <= self.rank:
            return f"tail is {self.tail}, wanted the number of normalized axes, 1 to {self.rank}"
        if self.operation != "group_norm" and self.groups is not None:
            return f"groups is {self.groups}; only group_norm has them"
        if self.operation == "group_norm" and (
            not self.groups or self.groups < 1 or self.channels % self.groups
        ):
            return f"groups is {self.groups}, wanted a divisor of the {self.channels} channels"
        if self.mode == "inference" and self.operation not in ("batch_norm", "instance_norm"):
            return "has no mode of its own for inference: it uses no running statistics"
        single = self.count == 1 and (self.operation != "group_norm" or self.shape[0] == 1)
        if self.mode == "training" and self.operation in CHANNELLED and single:
            return f"shape {self.shape} has one value per statistic, which training rejects"
        if self.eps == 0 and self._without_spread:
            return (
                "eps is 0 where all values of a statistic are equal: 0/0 has no gradient; wanted eps above 0"
            )
        if self.layout == "broadcast" and self._broadcast_axis() is None:
            return f"shape {self.shape} cannot be broadcast without making every slice constant"
        return None

    def _dropout_problem(self) -> str | None:
        if self.mask_axes is None or self.p is None or self.scaling not in SCALINGS:
            return f"needs mask_axes, p, and scaling, one of {', '.join(SCALINGS)}"
        if not 0 <= self.p <= 1:
            return f"p is {self.p}, wanted 0 to 1"
        if self.p not in (0, 1) and not 2**-32 <= self.p <= 1 - 2**-32:
            return (
                f"p is {self.p}, which masks cannot tell from {self.p:.0f}; wanted 0, 1, or 2⁻³² to 1 − 2⁻³²"
            )
        if any(not 0 <= axis < self.rank for axis in self.mask_axes):
            return f"mask_axes is {self.mask_axes}, wanted axes of the shape, 0 to {self.rank - 1}"
        if len(set(self.mask_axes)) < len(self.mask_axes):
            return f"mask_axes is {self.mask_axes}, wanted each axis once"
        if self.mode == "inference" and self.scaling == "upscale_in_train":
            return "does nothing at inference with upscale_in_train"
        if (self.channel_axis, self.groups, self.tail, self.affine) != (None, None, None, "none"):
            return "has no channel_axis, groups or tail, and needs affine=none"
        return None


@dataclass(frozen=True)
class Arrays:
    """The inputs of one check; None for what is absent."""

    input: np.ndarray
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    running_mean: np.ndarray | None = None
    running_var: np.ndarray | None = None

    @property
    def differentiable(self) -> tuple[np.ndarray | None, ...]:
        """The inputs that have a gradient."""
        return self.input, self.weight, self.bias

    def astype(self, dtype: Any) -> Arrays:
        """The same numbers in another dtype."""
        others = (self.weight, self.bias, self.running_mean, self.running_var)
        converted = (None if array is None else array.astype(dtype) for array in others)
        return Arrays(self.input.astype(dtype), *converted)


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def _values(text: str) -> str:
    words = text.replace("_", " ")
    if words not in VALUES:
        raise ValueError
    return words


SETTINGS: dict[str, Callable[[str], Any]] = {
    "shape": _integers, "channel_axis": int, "groups": int, "tail": int, "mask_axes": _integers, "p": float,
    "scaling": str, "affine": str, "mode": str, "dtype": str, "layout": str, "eps": float, "values": _values,
}  # fmt: skip
"""How the text of each setting is read."""

WANTED = {
    _integers: "whole numbers with commas between", int: "a whole number", float: "a number",
    _values: f"one of {', '.join(VALUES).replace(' ', '_').replace(',_', ', ')}",
}  # fmt: skip
