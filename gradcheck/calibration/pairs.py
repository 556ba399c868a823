"""Correct pairs in plain NumPy for a configuration: the canonical view of gradcheck.mutants.operations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradcheck.axes import Arrays, Configuration
from gradcheck.mutants.operations import EPS, OPERATIONS, P

__all__ = ["SMALL", "RightPair", "pair_for", "plain"]

Array = np.ndarray

SMALL = {
    "batch_norm": "batch_norm shape=5,4,3 channel_axis=1",
    "instance_norm": "instance_norm shape=2,3,6 channel_axis=1",
    "group_norm": "group_norm shape=2,6,3 channel_axis=1 groups=2",
    "layer_norm": "layer_norm shape=4,6 tail=1",
    "rms_norm": "rms_norm shape=4,6 tail=1",
    "inference": "batch_norm shape=5,4,3 channel_axis=1 mode=inference",
    "dropout": "dropout shape=4,6 mask_axes=0,1 p=0.25 scaling=upscale_in_train affine=none",
}
"""One small configuration of each operation, as text."""


@dataclasses.dataclass(frozen=True)
class RightPair:
    """Forward and backward of a correct operation, its inputs and their names.

    zero: the inputs whose gradient is exactly zero.
    """

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., tuple[Array | None, ...]]
    inputs: tuple[Array, ...]
    names: tuple[str, ...]
    differentiable: tuple[str, ...]
    zero: tuple[str, ...] = ()


def plain(configuration: Configuration) -> Configuration:
    """The configuration with what the NumPy operations fix: ε, p, the memory layout, and which masks."""
    fixed: dict[str, Any] = {"layout": "contiguous"}
    if configuration.operation == "dropout":
        fixed |= {"p": P, "mode": "training", "scaling": "upscale_in_train"}
        fixed["mask_axes"] = (0, 1) if _by_channel(configuration) else tuple(range(configuration.rank))
    else:
        fixed["eps"] = EPS
    if configuration.operation == "rms_norm":  # it has no bias there
        fixed["affine"] = "weight" if configuration.has_weight else "none"
    return dataclasses.replace(configuration, **fixed)


def _by_channel(c: Configuration) -> bool:
    return c.rank > 2 and c.mask_axes == (0, 1)


def pair_for(configuration: Configuration, arrays: Arrays, seed: int = 0) -> RightPair:
    """The correct pair of a plain configuration; absent weights and biases are ones and zeros."""
    c, x = configuration, arrays.input
    if c.operation == "dropout":
        operation = OPERATIONS["channel_dropout" if _by_channel(c) else "dropout"]
        shape = (*c.shape[:2], -1) if _by_channel(c) else c.shape
        pair = _reshaped(operation.forward, operation.backward, shape, ())
        key = np.random.default_rng(seed).integers(2**32, size=2)
        return RightPair(*pair, (x, key), operation.names, operation.differentiable, c.zero)
    weight = np.ones(c.parameters, x.dtype) if arrays.weight is None else arrays.weight
    bias = np.zeros(c.parameters, x.dtype) if arrays.bias is None else arrays.bias
    inputs: tuple[Array, ...] = (x, weight, bias)
    if c.operation == "rms_norm":
        name, inputs = "rms_norm", inputs[:2]
    elif c.mode == "inference":
        name = "inference_norm"
        assert arrays.running_mean is not None and arrays.running_var is not None
        inputs = (*inputs, arrays.running_mean, arrays.running_var)
    else:
        name = "moment_norm"
    view, affine = _views(c)
    operation = OPERATIONS[name]
    pair = _reshaped(operation.forward, operation.backward, view, affine, last=c.channel_axis == -1)
    # Here the weight is always there, so that its gradient may be zero where the configuration has none.
    zero = tuple("x" if each == "input" else each for each in dataclasses.replace(c, affine="both").zero)
    return RightPair(*pair, inputs, operation.names, operation.differentiable, zero)


def _views(c: Configuration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How x, channels first, and weight and bias are seen: in training as [Z, A, S, K, L] and [S, K]."""
    if c.operation == "rms_norm":
        return (-1, math.prod(c.parameters)), (-1,)
    if c.mode == "inference":
        return (c.shape[0], c.channels, -1), (-1,)
    if c.tail is not None:
        length = math.prod(c.parameters)
        return (math.prod(c.shape[: -c.tail]), 1, 1, length, 1), (1, length)
    batch, channels = c.shape[0], c.channels
    spatial = math.prod(c.shape) // (batch * channels)
    if c.operation == "batch_norm":
        return (1, batch, channels, 1, spatial), (channels, 1)
    groups = channels if c.groups is None else c.groups
    return (batch, 1, groups, channels // groups, spatial), (groups, channels // groups)


def _reshaped(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    view: tuple[int, ...],
    affine: tuple[int, ...],
    last: bool = False,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair over a view as one over x as it is, with the channels last or not."""

    def seen(array: Array) -> Array:
        return (np.moveaxis(array, -1, 1) if last else array).reshape(view)

    def back(array: Array, like: tuple[int, ...]) -> Array:
        if not last:
            return array.reshape(like)
        first = (like[0], like[-1], *like[1:-1])
        return np.ascontiguousarray(np.moveaxis(array.reshape(first), 1, -1))

    def viewed_forward(x: Array, *others: Array) -> tuple[Array, Any]:
        parameters = [each.reshape(affine) if affine else each for each in others]
        y, saved = forward(seen(x), *parameters)
        return back(y, x.shape), (saved, x.shape, [each.shape for each in others])

    def viewed_backward(saved: Any, cotangent: Array) -> tuple[Array | None, ...]:
        inner, shape, others = saved
        dx, *rest = backward(inner, seen(cotangent))
        gradients = (None if d is None else d.reshape(like) for d, like in zip(rest, others, strict=True))
        return back(dx, shape), *gradients

    return viewed_forward, viewed_backward
