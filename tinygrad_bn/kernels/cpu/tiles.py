"""The tiles of the family *cols*: how they lie in x, and rows and sums of channels in them.

A *layout* is how x[z] is read: the number of columns M; how many neighbours along M are one channel, of one
weight; how many channels have one statistic; the width of a row; and the columns of a tile.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..views import Cols, remembered
from .arrays import Array
from .jit import INT, allocating, body
from .sums import contract, expand

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512
# A batch has about so many values of x: enough for several threads, and little room for factors and sums.
BATCH = 1 << 18

LAYOUT = types.UniTuple(INT, 5)
# How a block stands: its sums are to be taken again, or x's dtype is wide enough for its factors, or not.
AGAIN, NARROW, WIDE = 0, 1, 2


@body
def tiles_of(x, layout):
    """How many rows x[z] has, and how many tiles lie below each other and beside each other."""
    _M, _repeat, _members, width, columns = layout
    rows = (x.shape[1] + width - 1) // width
    return rows, (rows + TILE_ROWS - 1) // TILE_ROWS, (width + columns - 1) // columns


@body
def tile_of(number, x, layout):
    """The tile of a number: z, its number, first and last row, first and last column."""
    _M, _repeat, _members, width, columns = layout
    rows, down, across = tiles_of(x, layout)
    block, t = number // down, number % down
    z, c = block // across, block % across * columns
    return z, t, t * TILE_ROWS, min((t + 1) * TILE_ROWS, rows), c, min(c + columns, width)


@body
def block_of(block, x, layout):
    """What lies in a column of tiles: z, first and last channel, first and last statistic."""
    M, repeat, members, width, columns = layout
    across = (width + columns - 1) // columns
    z, c = block // across, block % across * columns
    k, end = c // repeat, min(c + columns, M) // repeat
    return z, k, end, k // members, end // members


@body
def spread(values, times, layout, c, d, row):
    """Fill a row with the values, each for so many neighbours, that belong to columns c … d − 1."""
    M = layout[0]
    expand(values[c // times : min(d, M) // times], times, row)
    for j in range(M, row.size):
        row[j] = row[j - M]


@body
def gather(row, layout, c, result):
    """Add up the columns, from c on, of each channel."""
    M, repeat, _members, _width, _columns = layout
    for start in range(M, row.size, M):
        part = row[start : start + M]
        for j in range(part.size):
            row[j] += part[j]
    contract(row, repeat, result[c // repeat : (c + min(row.size, M)) // repeat])


@allocating
def add_tiles(z, k, end, sums):
    """The two sums of channels k … end − 1 of one z, from those of its tiles."""
    for t in range(1, sums.shape[1]):
        for p in range(2):
            total, part = sums[z, 0, p, k:end], sums[z, t, p, k:end]
            for j in range(part.size):
                total[j] += part[j]
    return sums[z, 0, 0, k:end], sums[z, 0, 1, k:end]


@remembered
def layout_of(plan: Cols) -> tuple[int, int, int, int, int]:
    """The layout of a view: rows are M long, or the largest multiple of a small M up to JOINED."""
    width = plan.M * max(1, min(JOINED // plan.M, plan.A))
    most = TILE_COLUMNS if plan.A <= TILE_ROWS else 2 * TILE_COLUMNS
    columns = width if width > plan.M else max(1, most // plan.B) * plan.B
    return plan.M, plan.repeat, plan.B // plan.repeat, width, columns


@remembered
def batch_of(plan: Cols) -> tuple[int, int, int]:
    """How many z a batch has, and how many tiles one z has below each other and beside each other."""
    _M, _repeat, _members, width, columns = layout_of(plan)
    rows = -(-plan.A * plan.M // width)
    batch = min(plan.Z, max(1, BATCH // (plan.A * plan.M)))
    return batch, -(-rows // TILE_ROWS), -(-width // columns)


def scratch(plan: Cols, count: int) -> tuple[Array, Array, Array]:
    """Room for a batch: factors [z, count, channels], sums [z, tiles, 2, channels], which are 0 where a pass
    takes none, and how each block stands.
    """
    batch, down, across = batch_of(plan)
    return (
        np.empty((batch, count, plan.channels)),
        np.zeros((batch, down, 2, plan.channels)),
        np.zeros(batch * across, np.int64),
    )
