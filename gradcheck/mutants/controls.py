"""Controls: pairs that are right, and hard to judge. On none of them may the verdict be FAIL or ERROR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.operations import (
    EPS,
    P,
    Saved,
    dropout_backward,
    moment_norm,
    moment_norm_backward,
    rms_norm,
    rms_norm_backward,
)

__all__ = ["CONTROLS", "Control"]

Array = np.ndarray
Inputs = tuple[Array, ...]
GROUP_NORM = (2, 2, 2, 2, 3)


@dataclass(frozen=True, slots=True)
class Control:
    """A right pair with inputs that make it hard to judge, and why they do."""

    name: str
    why: str
    make: Callable[[], Pair]
    inputs: Callable[[np.random.Generator], Inputs]


def _affine(rng: np.random.Generator, shape: tuple[int, ...] = GROUP_NORM) -> Inputs:
    parameters = shape[2:4]
    return rng.normal(size=shape), 1 + 0.5 * rng.normal(size=parameters), rng.normal(size=parameters)


def _with_x(
    change: Callable[[Array], Array], dtype: str = "float64"
) -> Callable[[np.random.Generator], Inputs]:
    def inputs(rng: np.random.Generator) -> Inputs:
        x, weight, bias = _affine(rng)
        return change(x).astype(dtype), weight.astype(dtype), bias.astype(dtype)

    return inputs


def _one(*values: float) -> Callable[[np.random.Generator], Inputs]:
    return lambda rng: (np.array(values),)


def _large_weight(rng: np.random.Generator) -> Inputs:
    x, weight, bias = _affine(rng)
    return x, 1e4 * weight, bias


def _constant_rows(x: Array) -> Array:
    return np.zeros_like(x) + x[..., :1, :1]


def _spike(x: Array) -> Array:
    x[0, 0, 0, 0, 0] = 1e6
    return x


def _norm() -> Pair:
    return moment_norm, moment_norm_backward


def _elementwise(function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[[], Pair]:
    def forward(x: Array) -> Any:
        return function(x), x

    def backward(x: Array, cotangent: Array) -> Any:
        return (cotangent * slope(x),)

    return lambda: (forward, backward)


def _atomic_order() -> Pair:
    """dγ and dβ are added up in another order at each call, as atomic additions on a GPU are."""
    rng = np.random.default_rng(0)

    def backward(saved: Saved, cotangent: Array) -> Any:
        dx, _, _ = moment_norm_backward(saved, cotangent)
        x_hat = (saved.x - saved.mean) * saved.rstd
        shape = saved.weight.shape
        sums = []
        for terms in (cotangent * x_hat, cotangent):
            rows = np.moveaxis(terms, (2, 3), (0, 1)).reshape(*shape, -1)
            total = np.zeros(shape, terms.dtype)
            for k in rng.permutation(rows.shape[-1]):
                total += rows[..., k]
            sums.append(total)
        return dx, *sums

    return moment_norm, backward


def _scratch_reused() -> Pair:
    """A scratch buffer lives on between calls, and nothing of it is handed out."""
    scratch: dict[Any, Array] = {}

    def backward(saved: Saved, cotangent: Array) -> Any:
        buffer = scratch.setdefault(
            (cotangent.shape, cotangent.dtype), np.empty(cotangent.shape, cotangent.dtype)
        )
        np.copyto(buffer, cotangent)
        return moment_norm_backward(saved, buffer)

    return moment_norm, backward


def _redrawn_at_each_forward() -> Pair:
    """Dropout that was not frozen: each forward pass draws a mask, and its own backward pass uses it."""
    rng = np.random.default_rng(0)

    def forward(x: Array) -> Any:
        keep = rng.random(x.shape) >= P
        return x * keep / (1 - P), keep

    return forward, lambda keep, cotangent: dropout_backward(keep, cotangent)[:1]


def _column_order() -> Pair:
    """Output and gradients are returned in column order."""

    def forward(x: Array, weight: Array) -> Any:
        y, saved = rms_norm(x, weight)
        return np.asfortranarray(y), saved

    def backward(saved: Any, cotangent: Array) -> Any:
        dx, dweight = rms_norm_backward(saved, cotangent)
        return np.asfortranarray(dx), dweight

    return forward, backward


def _read_only() -> Pair:
    """The gradients are returned read-only."""

    def backward(saved: Any, cotangent: Array) -> Any:
        gradients = rms_norm_backward(saved, cotangent)
        for gradient in gradients:
            gradient.flags.writeable = False
        return gradients

    return rms_norm, backward


def _float64_inside() -> Pair:
    """Everything is computed in float64 and rounded once, whatever the inputs are."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, saved = moment_norm(*(a.astype(np.float64) for a in (x, weight, bias)))
        return y.astype(x.dtype), (saved, x.dtype)

    def backward(kept: Any, cotangent: Array) -> Any:
        saved, dtype = kept
        return tuple(g.astype(dtype) for g in moment_norm_backward(saved, cotangent.astype(np.float64)))

    return forward, backward


def _logarithmic_rstd() -> Pair:
    """rstd is computed as exp(−½·log(σ² + ε))."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        _, saved = moment_norm(x, weight, bias)
        rstd = np.exp(-0.5 * np.log(x.var(axis=(1, 3, 4), keepdims=True) + EPS))
        y = (x - saved.mean) * rstd * weight[:, :, None] + bias[:, :, None]
        return y, saved._replace(rstd=rstd)

    return forward, moment_norm_backward


def _rms_inputs(rng: np.random.Generator) -> Inputs:
    return rng.normal(size=(4, 5)), rng.normal(size=5)


def _pairs_of_two(rng: np.random.Generator) -> Inputs:
    return _affine(rng, (3, 1, 2, 2, 1))


_RELU = _elementwise(lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype))
_ABS = _elementwise(np.abs, np.sign)
_ROOT = _elementwise(np.sqrt, lambda x: 0.5 / np.sqrt(x))
_STEEP = _elementwise(np.exp, np.exp)
_WAVE = _elementwise(lambda x: np.sin(100 * x), lambda x: 100 * np.cos(100 * x))

CONTROLS = (
    Control("kink within 3e-8", "the slope jumps next to the input", _RELU, _one(-1.0, 3e-8, 2.0)),
    Control("kink at the input", "there is no derivative", _ABS, _one(-1.0, 0.0, 2.0)),
    Control("square root near 0", "curvature beyond every step", _ROOT, _one(1e-8, 0.5, 2.0)),
    Control("exp at 30", "the output spans many powers of ten", _STEEP, _one(-30.0, 0.0, 30.0)),
    Control("fast wave", "the usual steps span periods", _WAVE, _one(-1.0, 0.1, 0.7)),
    Control("scale 1e-6", "all is ε", _norm, _with_x(lambda x: 1e-6 * x)),
    Control("scale 1e4", "steps that suit 1 are too small", _norm, _with_x(lambda x: 1e4 * x)),
    Control("mean 3e6", "the mean cancels ten digits", _norm, _with_x(lambda x: x + 3e6)),
    Control(
        "mean 1e4 in float32", "the mean cancels most digits", _norm, _with_x(lambda x: x + 1e4, "float32")
    ),
    Control("constant rows", "the variance is zero and ε alone is left", _norm, _with_x(_constant_rows)),
    Control("constant rows in float32", "the same", _norm, _with_x(_constant_rows, "float32")),
    Control("a spike of 1e6", "all other elements are next to equal", _norm, _with_x(_spike)),
    Control("weight 1e4", "gradients of very different sizes", _norm, _large_weight),
    Control("groups of two", "dx is next to zero by nature", _norm, _pairs_of_two),
    Control("atomic order", "no two calls give the same bits", _atomic_order, _affine),
    Control("scratch reused", "state between calls, legally", _scratch_reused, _affine),
    Control(
        "mask not frozen",
        "no two outputs are equal",
        _redrawn_at_each_forward,
        lambda r: (r.normal(size=(4, 5)),),
    ),
    Control("column order", "results that are not contiguous", _column_order, _rms_inputs),
    Control("read-only gradients", "the checker must not write to them", _read_only, _rms_inputs),
    Control(
        "float64 inside float32",
        "better than the dtype promises",
        _float64_inside,
        _with_x(lambda x: x, "float32"),
    ),
    Control("rstd by logarithm", "other rounding than usual", _logarithmic_rstd, _affine),
)
