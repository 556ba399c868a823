"""JAX on the CPU, jitted. The formulas are what a user of jax.numpy writes; XLA fuses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import Case
from . import PRIMITIVES, Unserved

__all__ = ["Jax"]

jax.config.update("jax_enable_x64", True)  # arrays keep the dtype that they are made with


def _function(case: Case) -> Callable[..., Any]:
    """The operation on the inputs of a case."""
    name, keywords, rank = case.operation, case.arguments, len(case.shape)
    if name in ("norm::layer_norm", "norm::rms_norm"):
        axes = tuple(range(rank - len(keywords["normalized_shape"]), rank))
        if name == "norm::rms_norm":
            added = _eps(keywords, float(np.finfo(case.dtype).eps))
            return lambda x, weight, bias: (
                x * _rstd(jnp.mean(x * x, axes, keepdims=True), added) * weight + bias
            )
        added = _eps(keywords, 1e-5)
        return lambda x, weight, bias: _normalized(x, axes, added) * weight + bias
    if case.spec.namespace == "norm":
        return _channelwise(case, keywords.get("channel_axis", 1) % rank, _eps(keywords, 1e-5))
    short = case.spec.short_name
    function = getattr(jnp, short, getattr(jax.nn, short, None))
    if case.spec.namespace not in PRIMITIVES or function is None:
        raise Unserved
    return lambda *inputs: function(*inputs, **keywords)


def _channelwise(case: Case, axis: int, eps: float) -> Callable[..., Any]:
    """The norms whose weight and bias belong to channels."""
    name, shape = case.operation, case.shape
    seen = [-1 if a == axis else 1 for a in range(len(shape))]  # a value per channel beside x
    if name == "norm::batch_norm_inference":
        return lambda x, weight, bias, mean, variance: (
            (x - mean.reshape(seen)) * (_rstd(variance, eps) * weight).reshape(seen) + bias.reshape(seen)
        )
    kept = {"norm::batch_norm": (axis,), "norm::instance_norm": (0, axis), "norm::group_norm": (0, axis)}
    if name not in kept:
        raise Unserved
    split = shape
    if name == "norm::group_norm":
        groups = case.arguments["num_groups"]
        split = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    axes = tuple(a for a in range(len(split)) if a not in kept[name])

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        normalized = _normalized(x.reshape(split), axes, eps).reshape(shape)
        return normalized * weight.reshape(seen) + bias.reshape(seen)

    return norm


def _normalized(x: Any, axes: Sequence[int], eps: float) -> Any:
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * _rstd(jnp.mean(centred * centred, axes, keepdims=True), eps)


def _rstd(variance: Any, eps: float) -> Any:
    return jax.lax.rsqrt(variance + eps)


def _eps(keywords: Any, default: float) -> float:
    return default if keywords.get("eps") is None else keywords["eps"]


class Jax:
    """A jitted forward pass, and a jitted pull-back whose residuals are made before the clock starts."""

    def __init__(self, case: Case):
        self.case = case
        self.inputs = [jnp.asarray(array) for array in case.arrays()]
        self.draws = count() if case.spec.rng else None
        if case.spec.rng and (case.spec.short_name != "dropout" or case.arguments.keys() - {"p"}):
            raise Unserved
        function = self._dropout if case.spec.rng else _function(case)
        wanted = case.spec.gradients

        def with_pull(*inputs: Any) -> Any:
            def of_wanted(*some: Any) -> Any:
                return function(*(dict(enumerate(inputs)) | dict(zip(wanted, some, strict=True))).values())

            return jax.vjp(of_wanted, *(inputs[position] for position in wanted))

        self._forward, self._vjp = jax.jit(function), jax.jit(with_pull)
        self._pull = jax.jit(lambda pull, cotangent: pull(cotangent))
        self.cotangent = jnp.asarray(case.cotangent(self.forward().shape))

    def _dropout(self, x: Any, draw: Any) -> Any:
        kept = 1 - self.case.arguments.get("p", 0.5)
        mask = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), draw), kept, x.shape)
        return jnp.where(mask, x / kept, 0)

    def _arguments(self) -> list[Any]:
        return self.inputs if self.draws is None else [*self.inputs, next(self.draws)]

    def forward(self) -> Any:
        return self._forward(*self._arguments()).block_until_ready()

    def record(self) -> Any:
        return jax.block_until_ready(self._vjp(*self._arguments()))

    def backward(self, recorded: Any) -> Sequence[Any]:
        return jax.block_until_ready(self._pull(recorded[1], self.cotangent))

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value[0] if isinstance(value, tuple) else value)
