"""Normalizations and dropout in plain NumPy, forward and backward: the right pairs behind the mutants.

They are an oracle of their own too: nothing here is shared with the checker or with any kernel, and each
function reads like its formula. `forward(*inputs)` returns (output, saved), `backward(saved, cotangent)` one
gradient per input, None for an input that has none.

All norms with a mean are one function over the canonical view of x, [Z, A, S, K, L]: the statistics are over
A, K and L, weight and bias are [S, K].

| norm | x | view |
|---|---|---|
| BatchNorm | (N, C, L) | (1, N, C, 1, L) |
| InstanceNorm | (N, C, L) | (N, 1, C, 1, L) |
| GroupNorm, G groups | (N, C, L) | (N, 1, G, C/G, L) |
| LayerNorm | (N, C) | (N, 1, 1, C, 1) |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["EPS", "MOMENTUM", "OPERATIONS", "Operation", "P", "RmsSaved", "Saved"]

EPS = 1e-5
MOMENTUM = 0.1
P = 0.25  # the probability that dropout drops an element

Array = np.ndarray


class Saved(NamedTuple):
    """What a norm keeps for its backward pass: x and weight as given, mean and rstd shaped to go with x."""

    x: Array
    mean: Array
    rstd: Array
    weight: Array


def moment_norm(x: Array, weight: Array, bias: Array) -> tuple[Array, Saved]:
    """y = (x − μ)·rstd·γ + β, rstd = 1/√(σ² + ε), over the view [Z, A, S, K, L]; γ and β are [S, K]."""
    mean = x.mean(axis=(1, 3, 4), keepdims=True)
    variance = np.square(x - mean).mean(axis=(1, 3, 4), keepdims=True)
    rstd = 1 / np.sqrt(variance + EPS)
    y = (x - mean) * rstd * weight[:, :, None] + bias[:, :, None]
    return y, Saved(x, mean, rstd, weight)


def moment_norm_backward(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) with g = ȳ·γ; dγ = Σ ȳ·x̂; dβ = Σ ȳ."""
    x, mean, rstd, weight = saved
    x_hat = (x - mean) * rstd
    g = cotangent * weight[:, :, None]
    mean_path = g.mean(axis=(1, 3, 4), keepdims=True)
    variance_path = x_hat * (g * x_hat).mean(axis=(1, 3, 4), keepdims=True)
    dx = rstd * (g - mean_path - variance_path)
    dweight = (cotangent * x_hat).sum(axis=(0, 1, 4))
    dbias = cotangent.sum(axis=(0, 1, 4))
    return dx, dweight, dbias


class RmsSaved(NamedTuple):
    """What RMSNorm keeps for its backward pass."""

    x: Array
    rstd: Array
    weight: Array


def rms_norm(x: Array, weight: Array) -> tuple[Array, RmsSaved]:
    """y = x·rstd·γ, rstd = 1/√(mean(x²) + ε), over the rows of x [R, B]; γ is [B]."""
    rstd = 1 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPS)
    return x * rstd * weight, RmsSaved(x, rstd, weight)


def rms_norm_backward(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """dx = rstd·(g − x̂·mean(g·x̂)) with g = ȳ·γ; dγ = Σ ȳ·x̂."""
    x, rstd, weight = saved
    x_hat = x * rstd
    g = cotangent * weight
    dx = rstd * (g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))
    dweight = (cotangent * x_hat).sum(axis=0)
    return dx, dweight


def inference_norm(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array
) -> tuple[Array, Saved]:
    """y = (x − μ)·rstd·γ + β with the running statistics for μ and σ²: x is [N, C, L], all others [C]."""
    mean = running_mean[:, None]
    rstd = 1 / np.sqrt(running_var + EPS)[:, None]
    return (x - mean) * rstd * weight[:, None] + bias[:, None], Saved(x, mean, rstd, weight)


def inference_norm_backward(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array, None, None]:
    """dx = rstd·γ·ȳ; dγ = Σ ȳ·x̂; dβ = Σ ȳ. The statistics are constants."""
    x, mean, rstd, weight = saved
    dx = rstd * weight[:, None] * cotangent
    dweight = (cotangent * (x - mean) * rstd).sum(axis=(0, 2))
    dbias = cotangent.sum(axis=(0, 2))
    return dx, dweight, dbias, None, None


def running_norm(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array
) -> tuple[Array, Saved]:
    """BatchNorm in training over x [N, C, L], which also moves the running statistics [C], in place.

    running ← (1 − m)·running + m·statistic, with the unbiased variance, as torch does.
    """
    y, saved = moment_norm(x[None, :, :, None, :], weight[:, None], bias[:, None])
    count = x.shape[0] * x.shape[2]
    unbiased = x.var(axis=(0, 2)) * (count / max(count - 1, 1))
    running_mean += MOMENTUM * (saved.mean.reshape(-1) - running_mean)
    running_var += MOMENTUM * (unbiased - running_var)
    return y.reshape(x.shape), saved


def running_norm_backward(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array, None, None]:
    """That of the moment norm: the running statistics take no part in the output."""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent[None, :, :, None, :])
    return dx.reshape(cotangent.shape), dweight.reshape(-1), dbias.reshape(-1), None, None


def dropout(x: Array, key: Array) -> tuple[Array, Array]:
    """y = x·keep/(1 − p); `key`, integers, seeds the mask, so that a key stands for one call."""
    keep = np.random.default_rng(key).random(x.shape) >= P
    return x * keep / (1 - P), keep


def channel_dropout(x: Array, key: Array) -> tuple[Array, Array]:
    """y = x·keep/(1 − p), one decision for each channel of each sample: x is [N, C, L], keep [N, C, 1]."""
    keep = np.random.default_rng(key).random((x.shape[0], x.shape[1], 1)) >= P
    return x * keep / (1 - P), keep


def dropout_backward(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """dx = ȳ·keep/(1 − p), for either dropout."""
    return cotangent * keep / (1 - P), None


@dataclass(frozen=True, slots=True)
class Operation:
    """A right pair.

    forward, backward: the pair.
    draw: takes the shape of x and a Generator, returns inputs in float64.
    names: of the inputs. `differentiable` are those with a gradient, `state` those that forward may modify.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    draw: Callable[[tuple[int, ...], np.random.Generator], tuple[Array, ...]]
    names: tuple[str, ...]
    differentiable: tuple[str, ...]
    state: tuple[str, ...] = ()


def _weight(shape: int | tuple[int, ...], rng: np.random.Generator) -> Array:
    """Of both signs, and away from zero, which some of the cases ask for."""
    return rng.choice([-1.0, 1.0], size=shape) * rng.uniform(0.5, 1.5, size=shape)


def _moment_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    parameters = shape[2:4]
    return rng.normal(size=shape), _weight(parameters, rng), rng.normal(size=parameters)


def _rms_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    return rng.normal(size=shape), _weight(shape[1], rng)


def _running_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    channels = shape[1]
    affine = _weight(channels, rng), rng.normal(size=channels)
    return rng.normal(size=shape), *affine, rng.normal(size=channels), rng.uniform(0.5, 2, size=channels)


def _dropout_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    return rng.normal(size=shape), rng.integers(2**32, size=2)


_AFFINE = ("x", "weight", "bias")
_RUNNING = ("running_mean", "running_var")

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("moment_norm", moment_norm, moment_norm_backward, _moment_inputs, _AFFINE, _AFFINE),
        Operation("rms_norm", rms_norm, rms_norm_backward, _rms_inputs, _AFFINE[:2], _AFFINE[:2]),
        Operation(
            "inference_norm", inference_norm, inference_norm_backward,
            _running_inputs, _AFFINE + _RUNNING, _AFFINE,
        ),
        Operation(
            "running_norm", running_norm, running_norm_backward,
            _running_inputs, _AFFINE + _RUNNING, _AFFINE, state=_RUNNING,
        ),
        Operation("dropout", dropout, dropout_backward, _dropout_inputs, ("x", "key"), ("x",)),
        Operation(
            "channel_dropout", channel_dropout, dropout_backward, _dropout_inputs, ("x", "key"), ("x",)
        ),
    )
}  # fmt: skip
