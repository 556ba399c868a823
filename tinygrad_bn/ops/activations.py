"""Activation functions."""

from __future__ import annotations

import numpy as np

from ..dispatch import primitive
from .samples import elementwise

__all__ = ["relu", "sigmoid", "tanh"]

# NumPy takes a third longer to make an array of a number.
ZEROS = {np.dtype(real): np.zeros((), real) for real in (np.float32, np.float64)}


@primitive(
    "math::tanh", vjps=(lambda xp, g, y, x: g * (1 - y * y),), keeps_output=True, samples=elementwise()
)
def tanh(x):
    """The hyperbolic tangent of x."""
    return np.tanh(x)


@primitive(
    "math::sigmoid", vjps=(lambda xp, g, y, x: g * y * (1 - y),), keeps_output=True, samples=elementwise()
)
def sigmoid(x):
    """1 / (1 + e⁻ˣ)."""
    with np.errstate(over="ignore"):  # e⁻ˣ = ∞ gives the right limit, 0
        return 1 / (1 + np.exp(-x))


@primitive(
    "math::relu",
    vjps=(lambda xp, g, y, x: xp.where(y > 0, g, 0.0),),
    keeps_output=True,
    samples=elementwise(gap=0.1),
)
def relu(x):
    """max(x, 0); the derivative at 0 is taken as 0. NaN stays NaN."""
    return np.maximum(x, ZEROS.get(x.dtype, 0) if type(x) is np.ndarray else 0)
