"""How the elements of a gradient of any rank lie in a picture: rows and columns, and panels side by side."""

from __future__ import annotations

import math

import numpy as np

from gradcheck.diagnosis.findings import Elements

__all__ = ["arranged", "described"]

LONGEST = 64
"""A vector longer than that is broken into rows."""


def arranged(elements: Elements, aspect: float = 1.5) -> np.ndarray:
    """Which element stands where: [rows, columns] of positions in row-major order, −1 between the panels.

    The last two axes are the rows and columns of a panel; there is one for each place along the other axes.
    The picture is about `aspect` times as wide as high.
    """
    shape = elements.shape
    size = math.prod(shape)
    positions = np.arange(size)
    if len(shape) < 2:
        return _broken(positions)
    rows, columns = shape[-2:]
    panels = positions.reshape(-1, rows, columns)
    across = round(math.sqrt(aspect * len(panels) * (rows + 1) / (columns + 1)))
    across = min(len(panels), max(1, across))
    down = -(-len(panels) // across)
    picture = np.full((down * (rows + 1) - 1, across * (columns + 1) - 1), -1)
    for k, panel in enumerate(panels):
        top, left = k // across * (rows + 1), k % across * (columns + 1)
        picture[top : top + rows, left : left + columns] = panel
    return picture


def _broken(positions: np.ndarray) -> np.ndarray:
    """A vector in one row, or in several of one length."""
    if len(positions) <= LONGEST:
        return positions.reshape(1, -1)
    columns = min(LONGEST, math.ceil(math.sqrt(2 * len(positions))))
    rows = -(-len(positions) // columns)
    picture = np.full(rows * columns, -1)
    picture[: len(positions)] = positions
    return picture.reshape(rows, columns)


def described(elements: Elements, shape: tuple[int, ...]) -> str:
    """How the picture is to be read."""
    rank = len(shape)
    if rank == 0:
        return "a single number"
    whole = elements.shape == shape
    part = "" if whole else f"; {math.prod(elements.shape)} of {math.prod(shape)} elements were looked at"
    if rank == 1:
        broken = len(arranged(elements)) > 1
        return f"from left to right: axis 0{', broken into rows' if broken else ''}{part}"
    text = f"down: axis {rank - 2}; right: axis {rank - 1}"
    if rank > 2:
        others = "axis 0" if rank == 3 else f"axes 0 to {rank - 3}"
        text += f"; panels: {others}"
    return text + part
