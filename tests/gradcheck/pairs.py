"""Hand-written forward and backward passes in NumPy: the correct ones that the harness must accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Backward = Callable[[Any, np.ndarray], Any]


class Saved(NamedTuple):
    """What a normalization keeps for its backward pass."""

    x_hat: np.ndarray
    rstd: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    axes: tuple[int, ...]
    channel: int


def norm(
    axes: tuple[int, ...], channel: int, *, centred: bool = True, eps: float = 1e-5
) -> Callable[..., Any]:
    """The forward pass of a normalization over `axes` with weight and bias along axis `channel`."""

    def forward(x: np.ndarray, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> Any:
        centre = x - x.mean(axes, keepdims=True) if centred else x
        rstd = 1 / np.sqrt((centre * centre).mean(axes, keepdims=True) + x.dtype.type(eps))
        x_hat = centre * rstd
        output = x_hat if weight is None else x_hat * along(weight, x.ndim, channel)
        output = output + 0 if bias is None else output + along(bias, x.ndim, channel)
        return output, Saved(x_hat, rstd, weight, bias, axes, channel)

    return forward


def norm_backward(
    saved: Saved, cotangent: np.ndarray, *, mean_path: bool = True, variance_path: bool = True
) -> Any:
    """dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) with g = ȳ·weight; each path can be left out."""
    x_hat, axes = saved.x_hat, saved.axes
    g = cotangent if saved.weight is None else cotangent * along(saved.weight, cotangent.ndim, saved.channel)
    inner = g.copy()
    if mean_path:
        inner = inner - g.mean(axes, keepdims=True)
    if variance_path:
        inner = inner - x_hat * (g * x_hat).mean(axes, keepdims=True)
    others = tuple(axis for axis in range(cotangent.ndim) if axis != saved.channel)
    return (
        inner * saved.rstd,
        None if saved.weight is None else (cotangent * x_hat).sum(others),
        None if saved.bias is None else cotangent.sum(others),
    )


def rms_backward(saved: Saved, cotangent: np.ndarray) -> Any:
    return norm_backward(saved, cotangent, mean_path=False)


def along(vector: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """A vector shaped to broadcast along one axis."""
    return vector.reshape(tuple(-1 if axis == k else 1 for k in range(ndim)))


def batch_norm_inputs(
    rng: np.random.Generator, shape: tuple[int, ...] = (6, 4), dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    channels = shape[1]
    arrays = rng.standard_normal(shape), rng.standard_normal(channels), rng.standard_normal(channels)
    return tuple(array.astype(dtype) for array in arrays)


batch_norm = norm((0,), 1)
layer_norm = norm((1,), 1)
