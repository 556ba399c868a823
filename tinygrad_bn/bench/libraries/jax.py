"""JAX on the CPU, jitted. The formulas are what a user of jax.numpy writes; XLA fuses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import Case
from . import Unserved

__all__ = ["Jax"]

jax.config.update("jax_enable_x64", True)  # arrays keep the dtype that they are made with
PRIMITIVES = ("math", "reduce", "linalg")


def _normalized(x: Any, axes: Sequence[int], eps: float) -> Any:
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.var(x, axes, mean=mean, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def _channelwise(case: Case) -> Any:
    """How a value per channel is seen, beside x."""
    axis = case.keywords.get("channel_axis", 1) % len(case.shape)
    return lambda value: value.reshape([-1 if a == axis else 1 for a in range(len(case.shape))])


def _moments(case: Case, kept: Sequence[int]) -> Callable[..., Any]:
    eps, along = case.arguments.get("eps", 1e-5), _channelwise(case)
    axes = tuple(a for a in range(len(case.shape)) if a not in kept)
    return lambda x, weight, bias: _normalized(x, axes, eps) * along(weight) + along(bias)


def _group_norm(case: Case) -> Callable[..., Any]:
    groups, axis = case.keywords["num_groups"], case.keywords.get("channel_axis", 1) % len(case.shape)
    split = (*case.shape[:axis], groups, case.shape[axis] // groups, *case.shape[axis + 1 :])
    axes = tuple(a for a in range(len(split)) if a not in (0, axis))
    eps, along = case.arguments.get("eps", 1e-5), _channelwise(case)
    return lambda x, weight, bias: (
        _normalized(x.reshape(split), axes, eps).reshape(x.shape) * along(weight) + along(bias)
    )


def _inference(case: Case) -> Callable[..., Any]:
    eps, along = case.arguments.get("eps", 1e-5), _channelwise(case)

    def norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return (x - along(mean)) * jax.lax.rsqrt(along(variance) + eps) * along(weight) + along(bias)

    return norm


def _function(case: Case) -> Callable[..., Any]:
    name, spec, rank = case.operation, case.spec, len(case.shape)
    axis = case.keywords.get("channel_axis", 1) % max(rank, 1)
    last = tuple(range(rank - len(case.arguments.get("normalized_shape", ())), rank))
    eps = case.arguments.get("eps")
    if name == "norm::batch_norm":
        return _moments(case, (axis,))
    if name == "norm::instance_norm":
        return _moments(case, (0, axis))
    if name == "norm::group_norm":
        return _group_norm(case)
    if name == "norm::batch_norm_inference":
        return _inference(case)
    if name == "norm::layer_norm":
        return lambda x, weight, bias: _normalized(x, last, 1e-5 if eps is None else eps) * weight + bias
    if name == "norm::rms_norm":
        added = float(np.finfo(case.dtype).eps) if eps is None else eps
        return lambda x, weight, bias: (
            x * jax.lax.rsqrt(jnp.mean(x * x, last, keepdims=True) + added) * weight + bias
        )
    function = getattr(jnp, spec.short_name, getattr(jax.nn, spec.short_name, None))
    if spec.namespace not in PRIMITIVES or function is None:
        raise Unserved
    return lambda *inputs: function(*inputs, **case.arguments)


class Jax:
    """A jitted forward pass, and a jitted pull-back whose residuals are made before the clock starts."""

    def __init__(self, case: Case):
        self.case = case
        self.inputs = [jnp.asarray(array) for array in case.arrays()]
        self.draws = count() if case.operation == "dropout::dropout" else None
        if self.draws is not None and case.arguments.keys() - {"p"}:
            raise Unserved
        function = _function(case) if self.draws is None else self._dropout
        wanted = case.spec.gradients

        def of_wanted(*inputs: Any) -> Any:
            def partial(*some: Any) -> Any:
                values = dict(enumerate(inputs)) | dict(zip(wanted, some, strict=True))
                return function(*values.values())

            return jax.vjp(partial, *[inputs[position] for position in wanted])

        self._forward, self._vjp = jax.jit(function), jax.jit(of_wanted)
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
