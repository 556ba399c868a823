"""The axis configurations of the normalizations and of dropout, as plain frozen records.

A `Configuration` says everything about one check but the numbers, which follow from it and a seed; its text form reads back, so that
every failure can be repeated by one command. Adapters turn a record into a callable. Which configurations exist: `exhaustive` lists the
whole product and the corners, `covering` a subset in which every pair of settings of every operation still occurs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "AFFINES", "DTYPES", "LAYOUTS", "MODES", "OPERATIONS", "RANKS", "VALUES", "Arrays", "Configuration", "corners", "covering",
    "exhaustive", "of_shape", "product",
]  # fmt: skip

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
OPERATIONS = (*NORMS, "dropout")
CHANNELLED = ("batch_norm", "instance_norm", "group_norm")
RANKS = {
    "batch_norm": (2, 3, 4, 5), "instance_norm": (3, 4, 5), "group_norm": (2, 3, 4, 5), "layer_norm": (1, 2, 3, 4),
    "rms_norm": (1, 2, 3, 4), "dropout": (1, 2, 3, 4),
}  # fmt: skip
AFFINES = ("none", "weight", "bias", "both")
MODES = ("training", "inference")
DTYPES = ("float64", "float32")
LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "broadcast")
VALUES = ("normal", "zeros", "constant row", "spike", "scale 1e-3", "scale 100", "mean 1e4", "given")
SCALINGS = ("upscale_in_train", "downscale_in_infer")
SPATIAL = {1: (3, 6), -1: (5, 4)}
CHANNELS = 6


@dataclass(frozen=True)
class Configuration:
    """One call of an operation.

    channel_axis: of BatchNorm, InstanceNorm and GroupNorm. groups: of GroupNorm. tail: of LayerNorm and RMSNorm, how many of the last
    axes are normalized. mask_axes: of dropout, the axes along which the mask varies. scaling: of dropout, its `mode`.
    mode: "training" or "inference". layout: how the input lies in memory. values: what it holds; "given": an array of the user's.
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
        operation, *parts = text.split()
        settings: dict[str, Any] = {}
        readers = {
            "shape": _integers, "mask_axes": _integers, "channel_axis": int, "groups": int, "tail": int, "p": float, "eps": float,
        }  # fmt: skip
        names = [field.name for field in dataclasses.fields(cls)]
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals or name not in names or name == "operation":
                raise ValueError(f"case: {part!r} is not a setting; wanted name=value with a name of {', '.join(names[1:])}")
            try:
                settings[name] = readers.get(name, str)(value)
            except ValueError:
                raise ValueError(f"case: {name} is {value!r}, wanted {'numbers' if name in readers else 'text'}") from None
        if "values" in settings:
            settings["values"] = settings["values"].replace("_", " ")
        if operation not in OPERATIONS or "shape" not in settings:
            raise ValueError(f"case: {text!r} must begin with one of {', '.join(OPERATIONS)} and have shape=")
        return cls(operation, **settings).checked()

    def checked(self) -> Configuration:
        """This configuration, if it is one that the operation has; a ValueError that says why not otherwise."""
        problem = self._problem()
        if problem:
            raise ValueError(f"{self.operation}: {problem}")
        return self

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def family(self) -> str:
        """The row of the table that this configuration belongs to."""
        if self.values == "given":
            return f"{self.mode}, given array"
        corner = self.values != "normal" or self.eps != 1e-5 or self.shape not in _ordinary_shapes(self.operation)
        return "corners" if corner else f"{self.mode} {self.dtype}"

    @property
    def channels(self) -> int:
        """The length of the channel axis."""
        return self.shape[self.channel_axis or 0]

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes over which the statistics are taken; for GroupNorm of the input with the channel axis split in two."""
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
        """The shape that `reduced` counts in: GroupNorm's channel axis is (groups, channels per group)."""
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
            return ("input",) if self.p == 1 and self.mode == "training" else ()
        names = []
        if self.subtracts_mean and self.count == 1:
            names.append("input")
        centred_away = self.subtracts_mean and (self.count == 1 or self.values == "zeros")
        if self.has_weight and (centred_away or (self.operation == "rms_norm" and self.values == "zeros")):
            names.append("weight")
        return tuple(names)

    def draw(self, seed: int, given: np.ndarray | None = None) -> Arrays:
        """The numbers of this check: float64, in the logical shape; the same for the same configuration and seed."""
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
        return Arrays(x, weight, bias, running_mean if inference else None, running_var if inference else None)

    def lay_out(self, x: np.ndarray) -> np.ndarray:
        """The values of x in this configuration's memory layout. A broadcast input stays as it is, of length 1 along an axis: the
        operation that broadcasts it has a gradient, and belongs to what is checked."""
        if self.layout == "transposed":
            return np.ascontiguousarray(x.T).T
        if self.layout == "strided":
            wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        if self.layout == "reversed":
            return np.ascontiguousarray(np.flip(x))[(slice(None, None, -1),) * x.ndim]
        return x

    def _first_slice(self) -> tuple[slice, ...]:
        """One slice over which a statistic is taken, in the shape of the input."""
        split = tuple(slice(None) if a in self.reduced else slice(0, 1) for a in range(len(self.split_shape)))
        if self.groups is None:
            return split
        channel = (self.channel_axis or 0) % self.rank
        return (*split[:channel], slice(0, self.channels // self.groups), *split[channel + 2 :])

    def _broadcast_axis(self) -> int | None:
        """An axis along which equal values leave every slice with a spread: one that is not reduced, or one of several reduced ones."""
        if self.operation == "dropout":
            return 0
        channel = None if self.channel_axis is None else self.channel_axis % self.rank
        kept = [a for a in range(self.rank) if a != channel and a not in self.reduced] if self.groups is None else [0]
        if self.operation == "batch_norm":
            kept = [channel or 0]
        if kept:
            return kept[0]
        return self.reduced[0] if len(self.reduced) > 1 else None

    def _problem(self) -> str | None:
        """Why there is no such configuration, or None."""
        for name, allowed in (
            ("affine", AFFINES), ("mode", MODES), ("dtype", DTYPES), ("layout", LAYOUTS), ("values", VALUES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                return f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(allowed)}"
        low, high = RANKS[self.operation][0], RANKS[self.operation][-1]
        unlimited = self.values == "given" and self.operation in ("layer_norm", "rms_norm", "dropout")
        if self.rank < low or (self.rank > high and not unlimited):
            return f"shape {self.shape} has rank {self.rank}, wanted {low} to {high}"
        if min(self.shape) < 1:
            return f"shape is {self.shape}, wanted lengths of at least 1: an empty input has nothing to check"
        if self.operation == "dropout":
            return self._dropout_problem()
        if self.mask_axes is not None or self.p is not None or self.scaling is not None:
            return "mask_axes, p and scaling are settings of dropout"
        if (self.operation in CHANNELLED) != (self.channel_axis is not None):
            return f"channel_axis is {self.channel_axis}, wanted {'1 or -1' if self.operation in CHANNELLED else 'none'}"
        if self.channel_axis not in (None, 1, -1):
            return f"channel_axis is {self.channel_axis}, wanted 1 or -1"
        if (self.operation in ("layer_norm", "rms_norm")) != (self.tail is not None):
            return f"tail is {self.tail}, wanted {'the number of normalized axes' if self.channel_axis is None else 'none'}"
        if self.tail is not None and not 1 <= self.tail <= self.rank:
            return f"tail is {self.tail}, wanted 1 to the rank, {self.rank}"
        if (self.operation == "group_norm") != (self.groups is not None):
            return f"groups is {self.groups}, wanted {'a divisor of the channels' if self.groups is None else 'none'}"
        if self.groups is not None and (self.groups < 1 or self.channels % self.groups):
            return f"groups is {self.groups}, wanted a divisor of the {self.channels} channels"
        if self.mode == "inference" and self.operation not in ("batch_norm", "instance_norm"):
            return "has no mode of its own for inference: it uses no running statistics"
        if self.mode == "training" and self.count == 1 and self.operation in ("batch_norm", "instance_norm"):
            return f"shape {self.shape} has one value per statistic, which training rejects"
        if self.layout == "broadcast" and self._broadcast_axis() is None:
            return f"shape {self.shape} cannot be broadcast without making every slice constant"
        return None

    def _dropout_problem(self) -> str | None:
        if self.mask_axes is None or self.p is None or self.scaling not in SCALINGS:
            return f"needs mask_axes, p, and scaling, one of {', '.join(SCALINGS)}"
        if not 0 <= self.p <= 1 or any(not 0 <= a < self.rank for a in self.mask_axes):
            return f"p is {self.p}, mask_axes {self.mask_axes}; wanted 0 to 1, and axes of shape {self.shape}"
        if self.mode == "inference" and self.scaling == "upscale_in_train":
            return "does nothing at inference with upscale_in_train"
        if (self.channel_axis, self.groups, self.tail, self.affine) != (None, None, None, "none"):
            return "has no channel_axis, groups, tail or affine parameters"
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
        return Arrays(*(None if a is None else a.astype(dtype) for a in (*self.differentiable, self.running_mean, self.running_var)))


def product(operation: str) -> Iterator[Configuration]:
    """Every ordinary configuration of an operation: all its settings in all combinations."""
    for places in _places(operation):
        for affine, mode, dtype, layout in itertools.product(AFFINES, MODES, DTYPES, LAYOUTS):
            configuration = Configuration(operation, **{"affine": affine, **places}, mode=mode, dtype=dtype, layout=layout)
            if configuration.affine == affine and configuration._problem() is None:
                yield configuration


def _places(operation: str) -> Iterator[dict[str, Any]]:
    """Shapes of every rank with the axes, groups or masks that the operation can have on them."""
    for rank in RANKS[operation]:
        if operation in CHANNELLED:
            for channel_axis in (1, -1):
                shape = _channelled_shape(rank, channel_axis)
                divisors = [g for g in range(1, CHANNELS + 1) if CHANNELS % g == 0]
                for groups in divisors if operation == "group_norm" else [None]:
                    yield {"shape": shape, "channel_axis": channel_axis, "groups": groups}
        elif operation == "dropout":
            shape = (3, 4, 5, 2)[:rank]
            for k in range(1, rank + 1):
                for mask_axes in itertools.combinations(range(rank), k):
                    for p, scaling in itertools.product((0.25, 0.5), SCALINGS):
                        yield {"shape": shape, "mask_axes": mask_axes, "p": p, "scaling": scaling, "affine": "none"}
        else:
            shape = ((7,), (4, 5), (3, 2, 4), (2, 3, 2, 3))[rank - 1]
            for tail in range(1, rank + 1):
                yield {"shape": shape, "tail": tail}


def _channelled_shape(rank: int, channel_axis: int) -> tuple[int, ...]:
    batch, spatial = (5, 2, 2, 2)[rank - 2], ((), (3,), (3, 2), (2, 3, 2))[rank - 2]
    return (batch, CHANNELS, *spatial) if channel_axis == 1 else (batch, *spatial, CHANNELS)


def _ordinary_shapes(operation: str) -> set[tuple[int, ...]]:
    return {places["shape"] for places in _places(operation)}


def corners(operation: str) -> Iterator[Configuration]:
    """Where correct-looking code breaks: batch 1, one and two values per statistic, odd and long reductions, ε that matters, bad values."""
    if operation == "dropout":
        rare = [(0.999, (3, 2731))]  # few survive of many: an input that is dropped whole has nothing to check
        for p, shape in [*itertools.product((0.0, 1.0, 0.001, 1 / 3), ((1,), (17,), (3, 43), (2, 131))), *rare]:
            axes = tuple(range(len(shape)))
            yield Configuration(operation, shape, mask_axes=axes, p=p, scaling="upscale_in_train", affine="none")
        return
    for shape, places in _corner_places(operation):
        for affine, dtype in (("both", "float64"), ("none", "float64"), ("both", "float32")):
            configuration = Configuration(operation, shape, affine=affine, dtype=dtype, **places)
            if configuration._problem() is None:
                yield configuration
    ordinary = next(_places(operation), None) if operation in ("layer_norm", "rms_norm") else None
    places = {"shape": (4, 5), "tail": 1} if ordinary else {"shape": (3, 4, 5), "channel_axis": 1}
    if operation == "group_norm":
        places["groups"] = 2
    for values, eps in itertools.product(VALUES[:-1], (1e-5, 1e-3, 0.0)):
        if (values, eps) == ("normal", 1e-5) or (eps == 0 and values in ("zeros", "constant row")):
            continue
        for mode in MODES:
            configuration = Configuration(operation, **places, mode=mode, values=values, eps=eps)
            if configuration._problem() is None:
                yield configuration


def _corner_places(operation: str) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Shapes at the edges: batch 1, m = 1 and 2, odd m, m ≥ 64 and ≥ 130, one channel, one group, as many groups as channels."""
    if operation in ("layer_norm", "rms_norm"):
        for shape, tail in (((1, 5), 1), ((3, 1), 1), ((3, 2), 1), ((2, 67), 1), ((2, 131), 1), ((1, 3, 43), 2), ((5, 1, 1), 2)):
            yield shape, {"tail": tail}
        return
    for axis, turn in ((1, lambda n, c, *s: (n, c, *s)), (-1, lambda n, c, *s: (n, *s, c))):
        shapes = [turn(1, 3, 5), turn(3, 1, 3), turn(2, 3, 1), turn(1, 2, 2), turn(1, 2, 67), turn(3, 2, 44), turn(2, 4, 3, 22)]
        if operation == "batch_norm":
            shapes += [(2, 3), (67, 2), (131, 1)]
        for shape in shapes:
            channels = shape[axis]
            if operation != "group_norm":
                yield shape, {"channel_axis": axis}
                continue
            for groups in sorted({1, channels}):
                yield shape, {"channel_axis": axis, "groups": groups}


def exhaustive() -> list[Configuration]:
    """Every ordinary configuration and every corner, of every operation."""
    return [c for operation in OPERATIONS for c in (*product(operation), *corners(operation))]


def covering(operation: str) -> list[Configuration]:
    """A part of `product(operation)` in which every pair of settings that occurs at all still occurs, and every corner."""
    configurations = list(product(operation))
    order = np.random.default_rng(0).permutation(len(configurations))
    seen: set[Any] = set()
    chosen = []
    for position in order:
        pairs = set(itertools.combinations(_settings(configurations[position]), 2))
        if not pairs <= seen:
            seen |= pairs
            chosen.append(int(position))
    return [configurations[position] for position in sorted(chosen)] + list(corners(operation))


def _settings(configuration: Configuration) -> Sequence[tuple[str, Any]]:
    """What is varied, by name."""
    c = configuration
    where = c.groups if c.groups is not None else c.tail if c.tail is not None else c.mask_axes
    return (
        ("rank", c.rank), ("channel_axis", c.channel_axis), ("where", where), ("affine", c.affine), ("mode", c.mode),
        ("dtype", c.dtype), ("layout", c.layout), ("scaling", c.scaling),
    )  # fmt: skip


def of_shape(shape: tuple[int, ...], dtype: str) -> list[Configuration]:
    """Every way to apply the operations to an array of the user's, of that shape and dtype."""
    common: dict[str, Any] = {"shape": shape, "dtype": dtype, "values": "given"}
    candidates = []
    for channel_axis, mode in itertools.product((1, -1), MODES):
        if len(shape) > 1:
            channels = shape[channel_axis]
            divisors = [g for g in range(1, channels + 1) if channels % g == 0]
            candidates += [Configuration(op, channel_axis=channel_axis, mode=mode, **common) for op in CHANNELLED[:2]]
            for groups in sorted({1, divisors[len(divisors) // 2], channels}):
                candidates.append(Configuration("group_norm", channel_axis=channel_axis, groups=groups, mode=mode, **common))
    for tail in range(1, len(shape) + 1):
        candidates += [Configuration(op, tail=tail, **common) for op in ("layer_norm", "rms_norm")]
    axes = tuple(range(len(shape)))
    for scaling, mode in itertools.product(SCALINGS, MODES):
        candidates.append(Configuration("dropout", mask_axes=axes, p=0.5, scaling=scaling, affine="none", mode=mode, **common))
    return [c for c in candidates if c._problem() is None]


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
