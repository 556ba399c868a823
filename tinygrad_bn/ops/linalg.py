"""Matrix products."""

from __future__ import annotations

import numpy as np

from ..dispatch import primitive
from .samples import calls

__all__ = ["matmul"]


def _swap(xp, x):
    """x with its last two axes exchanged."""
    return xp.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def _left(xp, g, y, a, b):
    if a.ndim == 1 and b.ndim == 1:
        return g * b
    if b.ndim == 1:
        return g[..., None] * b
    if a.ndim == 1:
        return xp.matmul(b, g[..., None])[..., 0]
    return xp.matmul(g, _swap(xp, b))


def _right(xp, g, y, a, b):
    if a.ndim == 1 and b.ndim == 1:
        return g * a
    if a.ndim == 1:
        return a[:, None] * g[..., None, :]
    if b.ndim == 1:
        return xp.matmul(_swap(xp, a), g[..., None])[..., 0]
    return xp.matmul(_swap(xp, a), g)


@primitive(
    "linalg::matmul",
    vjps=(_left, _right),
    keeps=((1,), (0,)),
    call_at=lambda shape, keywords: ((shape, shape[::-1]), keywords),
    samples=calls(
        (((2, 3), (3, 4)), {}),
        (((3,), (3,)), {}),
        (((2, 3), (3,)), {}),
        (((3,), (3, 4)), {}),
        (((5, 2, 3), (3, 4)), {}),
        (((5, 1, 2, 3), (4, 3, 2)), {}),
        (((3,), (2, 3, 4)), {}),
        (((2, 2, 3), (3,)), {}),
    ),
)
def matmul(a, b):
    """The matrix product a @ b, over broadcast batches, with NumPy's rules for vectors."""
    return np.matmul(a, b)
