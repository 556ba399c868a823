"""What most wrong twins of the moment norm are put together from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradcheck.mutants.operations import OPERATIONS, Saved

__all__ = ["PARAMETERS", "STATISTICS", "Gradients", "Pieces", "expand", "pieces", "right"]

STATISTICS = (1, 3, 4)  # the axes of the view [Z, A, S, K, L] that a mean goes over
PARAMETERS = (0, 1, 4)  # those that a parameter [S, K] is constant along

Gradients = tuple[Any, ...]


class Pieces(NamedTuple):
    """The right pieces of the gradient; dx = rstd · (g − mean_path − variance_path)."""

    rstd: np.ndarray
    x_hat: np.ndarray
    g: np.ndarray
    mean_path: np.ndarray
    variance_path: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray


def pieces(saved: Saved, cotangent: np.ndarray) -> Pieces:
    """The pieces of the moment norm's gradient."""
    x_hat = (saved.x - saved.mean) * saved.rstd
    g = cotangent * expand(saved.weight)
    mean_path = g.mean(STATISTICS, keepdims=True)
    variance_path = x_hat * (g * x_hat).mean(STATISTICS, keepdims=True)
    return Pieces(
        saved.rstd, x_hat, g, mean_path, variance_path,
        saved.rstd * (g - mean_path - variance_path),
        (cotangent * x_hat).sum(PARAMETERS), cotangent.sum(PARAMETERS),
    )  # fmt: skip


def expand(parameter: np.ndarray) -> np.ndarray:
    """A parameter [S, K], shaped to go with the view."""
    return parameter[:, :, None]


def right(operation: str, saved: Any, cotangent: np.ndarray) -> list[Any]:
    """The right gradients, in a list, for one of them to be replaced."""
    return list(OPERATIONS[operation].backward(saved, cotangent))
