"""Every normalization in plain NumPy, forward and backward, from its configuration; and ways to be wrong."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradcheck.axes import Arrays, Configuration


@dataclasses.dataclass(frozen=True)
class Norm:
    """An `Evaluate` that is right, unless a field says otherwise."""

    mean_path: float = 1.0
    correction: int = 0  # N − 1 instead of N
    eps_outside: bool = False
    mean_factor: float = 1.0
    output_factor: float = 1.0
    dweight_factor: float = 1.0

    def __call__(self, c: Configuration, arrays: Arrays, cotangent: np.ndarray) -> dict[str, np.ndarray]:
        dtype = np.dtype(c.dtype)
        full = np.broadcast_to(arrays.input.astype(dtype), c.shape)
        x = full.reshape(c.split_shape)
        eps = dtype.type(c.eps)
        mean = x.mean(c.reduced, keepdims=True) * dtype.type(self.mean_factor if c.subtracts_mean else 0)
        variance = ((x - mean) ** 2).sum(c.reduced, keepdims=True) / dtype.type(c.count - self.correction)
        rstd = 1 / (np.sqrt(variance) + eps if self.eps_outside else np.sqrt(variance + eps))
        x_hat = (x - mean) * rstd
        weight = self._along(c, arrays.weight, 1).astype(dtype)
        y = x_hat.reshape(c.shape) * weight * dtype.type(self.output_factor) + self._along(c, arrays.bias, 0)
        g = (cotangent.astype(dtype) * weight).reshape(c.split_shape)
        path = g.mean(c.reduced, keepdims=True) * dtype.type(self.mean_path if c.subtracts_mean else 0)
        dx = rstd * (g - path - x_hat * (g * x_hat).mean(c.reduced, keepdims=True))
        gradients = {"input": dx.reshape(c.shape)}
        if arrays.input.shape != c.shape:
            axis = next(a for a, n in enumerate(arrays.input.shape) if n != c.shape[a])
            gradients["input"] = gradients["input"].sum(axis, keepdims=True)
        others = self._not_parameters(c)
        if c.has_weight:
            dweight = (cotangent * x_hat.reshape(c.shape)).sum(others) * dtype.type(self.dweight_factor)
            gradients["weight"] = dweight
        if c.has_bias:
            gradients["bias"] = cotangent.sum(others)
        return {"output": y.astype(dtype), **gradients}

    @staticmethod
    def _not_parameters(c: Configuration) -> tuple[int, ...]:
        if c.tail is not None:
            return tuple(range(c.rank - c.tail))
        return tuple(axis for axis in range(c.rank) if axis != c.channel_axis % c.rank)

    def _along(self, c: Configuration, values: np.ndarray | None, absent: float) -> np.ndarray:
        if values is None:
            return np.array(absent, c.dtype)
        others = self._not_parameters(c)
        return values.reshape(tuple(1 if axis in others else n for axis, n in enumerate(c.shape)))
