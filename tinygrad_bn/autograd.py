"""Derivatives of functions on Tensors: `grad`, `vjp` and `jvp`, to any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import devices
from .tape import enable_grad, sweep
from .tensor import Tensor, array_of, cotangent_for, edge_of, own_gradients

__all__ = ["grad", "jvp", "vjp"]


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    *,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradient of `outputs` with respect to `inputs`, without touching any `.grad`.

    Σ over outputs of grad_outputsᵀ · ∂output/∂input, one tensor per input, of its shape and dtype.

    grad_outputs: one cotangent per output; may be None (left out) for outputs with one element.
    retain_graph: keep the saved values for another pass; default: `create_graph`.
    create_graph: record the pass itself, so that the result can be differentiated again.
    allow_unused: give None for an input that no output depends on, instead of a RuntimeError.
    """
    outputs, inputs = _sequence(outputs), _sequence(inputs)
    cotangents = [None] * len(outputs) if grad_outputs is None else _sequence(grad_outputs)
    if len(cotangents) != len(outputs):
        raise ValueError(f"grad: got {len(cotangents)} grad_outputs for {len(outputs)} outputs")
    seeds = []
    for position, output in enumerate(outputs):
        edge = edge_of(output, "grad")
        seeds.append((edge, cotangent_for(output, cotangents[position], "grad", create_graph)))
    edges = [edge_of(value, "grad (inputs)") for value in inputs]
    retain = create_graph if retain_graph is None else retain_graph
    found = sweep(seeds, edges, retain_graph=retain, create_graph=create_graph)
    gradients = []
    for position, edge in enumerate(edges):
        gradient = found.get(edge)
        if gradient is None and not allow_unused:
            raise RuntimeError(
                f"grad: no output depends on input {position} (shape {inputs[position].shape}); "
                "leave it out, or pass allow_unused=True to get None for it"
            )
        gradients.append(gradient)
    return tuple(own_gradients(gradients, seeds))


def vjp(function: Callable[..., Any], *inputs: Any) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """The output of `function(*inputs)` and its pull-back, v ↦ (vᵀ · ∂f/∂input for each input).

    The pull-back takes one cotangent per output and can be called again; an input without influence gets
    zeros.
    """
    with enable_grad():
        primals = [_fresh(value) for value in inputs]
        output = function(*primals)
    outputs = _sequence(output)
    for value in outputs:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"vjp: the function gave a {type(value).__name__}, wanted a Tensor or a sequence of Tensors"
            )
    live = [value for value in outputs if value.requires_grad]

    def pull(*cotangents: Any, create_graph: bool = False) -> tuple[Tensor, ...]:
        if len(cotangents) != len(outputs):
            raise ValueError(f"vjp: got {len(cotangents)} cotangents for {len(outputs)} outputs")
        kept = [c for c, value in zip(cotangents, outputs, strict=True) if value.requires_grad]
        found = grad(live, primals, kept, True, create_graph, allow_unused=True)
        return tuple(_or_zeros(g, value) for g, value in zip(found, primals, strict=True))

    if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        detached = [value.detach() for value in outputs]  # the tape is the pull-back's own
        return (type(output)(detached) if isinstance(output, (tuple, list)) else detached[0]), pull
    return output, pull


def jvp(function: Callable[..., Any], inputs: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The output of `function(*inputs)` and its derivative along `tangents`, Σ ∂f/∂input · tangent.

    Forward mode by transposing twice: v ↦ Jᵀv is linear, and *its* pull-back of u is J·u. So every rule
    that can be differentiated serves forward mode too, at the price of one backward pass; and a wrong rule
    is wrong in both modes alike. The derivative can be differentiated in its turn where an input or a
    tangent requires a gradient."""
    if len(inputs) != len(tangents):
        raise ValueError(f"jvp: got {len(tangents)} tangents for {len(inputs)} inputs")
    for position, (value, tangent) in enumerate(zip(inputs, tangents, strict=True)):
        if np.shape(array_of(value)) != np.shape(array_of(tangent)):
            raise ValueError(
                f"jvp: tangent {position} has shape {np.shape(array_of(tangent))}, its input has "
                f"{np.shape(array_of(value))}"
            )
    nested = any(isinstance(value, Tensor) and value.requires_grad for value in (*inputs, *tangents))
    output, pull = vjp(function, *inputs)
    outputs = _sequence(output)
    with enable_grad():
        probes = [Tensor(_zeros(value), requires_grad=True) for value in outputs]
        transposed = pull(*probes, create_graph=True)
        live = [(t, u) for t, u in zip(transposed, tangents, strict=True) if t.requires_grad]
        if live:
            derived, along = zip(*live, strict=True)
            results = grad(derived, probes, along, create_graph=nested, allow_unused=True)
        else:
            results = (None,) * len(probes)
    derivative = tuple(_or_zeros(r, value) for r, value in zip(results, outputs, strict=True))
    return output, derivative if isinstance(output, (tuple, list)) else derivative[0]


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else [value]


def _fresh(value: Any) -> Tensor:
    """An input of its own place on the tape: connected to the given tensor, or a new leaf."""
    if isinstance(value, Tensor) and value.requires_grad:
        return value.reshape(value.shape)
    return Tensor(value, requires_grad=True)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return Tensor.wrap(_zeros(like)) if gradient is None else gradient


def _zeros(like: Tensor) -> Any:
    return devices.zeros(like.shape, like.dtype, like=like._array)
