"""What the arguments of the public norms come to: attributes of the operations, checked.

Each function is given the shapes of the inputs and the arguments, among them the public function's name, and
depends on nothing else, so that what it gives can be remembered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .checks import Shapes, as_index, check_affine, check_channel_axis, check_eps, check_rank, check_trailing
from .running import check_running

__all__ = ["batch", "group", "inference", "instance", "lengths", "spatial", "trailing"]

Attributes = dict[str, Any]


def lengths(normalized_shape: Any) -> Sequence[Any]:
    """`normalized_shape` as a sequence."""
    return normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)


def trailing(shapes: Shapes, name: str, eps: Any, *normalized_shape: Any) -> Attributes:
    return {"normalized_shape": check_trailing(name, shapes, normalized_shape), "eps": check_eps(name, eps)}


def _channels(
    shapes: Shapes, name: str, rank: int, channel_axis: Any, eps: Any, running: Any = ()
) -> Attributes:
    """rank: the least. running: the shapes of the running statistics."""
    shape = shapes[0]
    check_rank(name, shape, rank, 5)
    axis = check_channel_axis(name, channel_axis)
    check_affine(name, shapes, (shape[axis],))
    check_running(name, running, (shape[axis],))
    return {"channel_axis": axis, "eps": check_eps(name, eps)}


def batch(shapes: Shapes, name: str, channel_axis: Any, eps: Any, running: Any) -> Attributes:
    attributes = _channels(shapes, name, 2, channel_axis, eps, running)
    shape = shapes[0]
    if math.prod(shape) == shape[channel_axis] > 0:
        raise ValueError(
            f"{name}: one value per channel in training, shape {shape}: its variance is 0 and its gradient "
            "nothing; use a larger batch, or training=False"
        )
    return attributes


def instance(shapes: Shapes, name: str, channel_axis: Any, eps: Any, running: Any) -> Attributes:
    attributes = _channels(shapes, name, 3, channel_axis, eps, running)
    if spatial(shapes[0], channel_axis) == 1:
        raise ValueError(
            f"{name}: one spatial element, shape {shapes[0]}: its variance is 0 and its gradient nothing; "
            "use a larger input, or running statistics with use_input_stats=False"
        )
    return attributes


def inference(shapes: Shapes, name: str, rank: int, channel_axis: Any, eps: Any) -> Attributes:
    return _channels(shapes, name, rank, channel_axis, eps, shapes[3:])


def group(shapes: Shapes, name: str, num_groups: Any, channel_axis: Any, eps: Any) -> Attributes:
    attributes = _channels(shapes, name, 2, channel_axis, eps)
    shape = shapes[0]
    channels = shape[channel_axis]
    groups = as_index(name, "num_groups", num_groups, "an integer")
    if groups < 1 or channels % groups:
        divisors = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(
            f"{name}: num_groups is {groups}, wanted a divisor of the {channels} channels: {divisors}"
        )
    if math.prod(shape) == groups:
        raise ValueError(
            f"{name}: one sample with one value per group, shape {shape}, {groups} groups: the variance is 0 "
            "and the gradient nothing; use fewer groups"
        )
    return {"num_groups": groups, **attributes}


def spatial(shape: tuple[int, ...], channel_axis: int) -> int:
    """How many spatial elements a channel of a sample has."""
    return math.prod(shape[2:] if channel_axis == 1 else shape[1:-1])
