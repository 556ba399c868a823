"""The family *cols*: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

A statistic belongs to one z and to B neighbours along M, and is taken over A. x is read as long rows: where M
is small, several neighbours along A make one row of `width` values. One task is a tile of some rows and some
columns, small enough for the second-level cache and passed through four rows at a time; columns are never
read one at a time. A tile that has all rows of its columns is finished at once. Otherwise all tiles go
through one stage after the other, and their partial sums are added in float64, in the order of the tiles. The
formulas are those of *split*::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias
    dx = rstd (g − mean(g) − x̂ · mean(g x̂))
    dweight = Σ_{z, a} cotangent · x̂             dbias = Σ_{z, a} cotangent

with g the cotangent times the weight; in inference μ and σ² are constants, so that dx = rstd g. Sums and
factors near the ends of the range of float32 are done in float64: ``sums`` says how, and what
range that gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types

from ..views import Cols
from .arrays import (
    Array,
    Gradients,
    Statistics,
    affine,
    contiguous,
    gradients,
    new_statistics,
    running_statistics,
)
from .jit import DOUBLE, FLAG, INT, Driver, body, read, twins, write
from .sums import fits, is_finite, reliable, samples, settled

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512
# The pivots come from so many rows, where there are as many.
SAMPLE_ROWS, FEWEST_ROWS = 8, 4
# The stages of a pass: all of it, for tiles of whole columns; otherwise the sums of the tiles, these once
# more in float64 where it must be, and what is written.
WHOLE, SUMS, AGAIN, OUTPUT, STAGES = range(5)


class Layout(NamedTuple):
    """How x[z] is read: channel m // repeat has column m of M, a statistic has `members` channels.

    Rows have `width` columns, M or a multiple of it, and are cut into tiles at multiples of `unit`.
    """

    M: int
    repeat: int
    members: int
    width: int
    unit: int


LAYOUT = types.NamedUniTuple(INT, len(Layout._fields), Layout)


@body
def tiles_of(x, layout):
    """How many tiles lie below each other in one z, how many beside each other, and the columns of one."""
    rows = (x.shape[1] + layout.width - 1) // layout.width
    columns = max(TILE_COLUMNS // layout.unit, 1) * layout.unit
    return (rows + TILE_ROWS - 1) // TILE_ROWS, (layout.width + columns - 1) // columns, columns


@body
def tiles(x, layout):
    down, across, _columns = tiles_of(x, layout)
    return x.shape[0] * down * across


@body
def tile_of(task, x, layout):
    """The tile of a task: z, its number, first and last row, first and last column."""
    down, across, columns = tiles_of(x, layout)
    z, t, c = task // (down * across), task // across % down, task % across * columns
    last = min((t + 1) * TILE_ROWS, (x.shape[1] + layout.width - 1) // layout.width)
    return z, t, t * TILE_ROWS, last, c, min(c + columns, layout.width)


@body
def whole_fours(a, b, x, layout):
    """The end of the last four of the rows a … b − 1 that are whole: the last row may be shorter."""
    return a + max(min(b, x.shape[1] // layout.width) - a, 0) // 4 * 4


@body
def spread(zero, count, values, layout, c, d):
    """The first values [count, channels], for each of the columns c … d − 1 of a row, in the type of zero."""
    M, repeat = layout.M, layout.repeat
    rows = np.empty((count, d - c), type(zero))
    for p in range(count):
        row = rows[p]
        if repeat == 1:
            for j in range(min(d, M) - c):
                row[j] = values[p, c + j]
        else:
            for start in range(c, min(d, M), repeat):
                value = type(zero)(values[p, start // repeat])
                for j in range(repeat):
                    row[start - c + j] = value
        for start in range(M, row.size, M):
            for j in range(M):
                row[start + j] = row[j]
    return rows


@body
def gather(rows, layout, c, result):
    """Add up the columns, from c on, of each channel: from rows [count, columns] to [count, channels]."""
    M, repeat = layout.M, layout.repeat
    for p in range(rows.shape[0]):
        row = rows[p]
        for start in range(M, row.size, M):
            for j in range(M):
                row[j] += row[start + j]
        size = min(row.size, M - c)
        if repeat == 1:
            for j in range(size):
                result[p, c + j] = row[j]
        else:
            for start in range(0, size, repeat):
                total = 0.0
                for j in range(repeat):
                    total += row[start + j]
                result[p, (c + start) // repeat] = total


@body
def channels_of(c, d, layout):
    """The first and the last channel of columns."""
    return c // layout.repeat, min(d, layout.M) // layout.repeat


@body
def choose_pivots(x, layout, c, d, parameters):
    """Parameter 0 of the channels of columns of one z: a value near the mean of the statistic, in x's dtype.

    It is the mean of a few rows.
    """
    members = layout.members
    B = members * layout.repeat
    few, step = samples(x.size // layout.M, max(FEWEST_ROWS, SAMPLE_ROWS // B))
    totals = np.zeros((1, min(d, layout.M) - c))
    total = totals[0]
    for k in range(few):
        start = k * step * layout.M + c
        row = x[start : start + total.size]
        for j in range(total.size):
            total[j] += row[j]
    gather(totals, layout, c, parameters)
    first, last = channels_of(c, d, layout)
    for start in range(first, last, members):
        mean = 0.0
        for k in range(start, start + members):
            mean += parameters[0, k]
        mean = x.dtype.type(mean / (few * B)) if is_finite(mean) else 0.0
        for k in range(start, start + members):
            parameters[0, k] = mean


@body
def tile_moments(zero, by_four, task, x, layout, parameters, sums):
    """The sums of x − pivot and of its square over each channel of a tile; parameter 0 is the pivot.

    by_four is True or None; where it is None, no code is made for four rows at a time.
    """
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    pivot = spread(zero, 1, parameters[z], layout, c, d)[0]
    totals = np.full((2, d - c), zero)
    total, square = totals[0], totals[1]
    fours = a
    if by_four is not None:
        fours = whole_fours(a, b, x, layout)
        for r in range(a, fours, 4):
            row0 = x[z, r * width + c : r * width + d]
            row1 = x[z, (r + 1) * width + c : (r + 1) * width + d]
            row2 = x[z, (r + 2) * width + c : (r + 2) * width + d]
            row3 = x[z, (r + 3) * width + c : (r + 3) * width + d]
            for j in range(pivot.size):
                d0, d1, d2, d3 = (
                    row0[j] - pivot[j],
                    row1[j] - pivot[j],
                    row2[j] - pivot[j],
                    row3[j] - pivot[j],
                )
                total[j] += (d0 + d1) + (d2 + d3)
                square[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for r in range(fours, b):
        row = x[z, r * width + c : r * width + d]
        for j in range(row.size):
            deviation = row[j] - pivot[j]
            total[j] += deviation
            square[j] += deviation * deviation
    gather(totals, layout, c, sums[z, t])


@body
def merge_statistics(z, x, layout, c, d, eps, parameters, sums, mean, variance, rstd):
    """From the sums of the tiles to the statistics of columns of one z.

    Whether every pivot was near enough, and the dtype of x wide enough, is returned; pivots become means.
    """
    members = layout.members
    n = x.shape[1] // layout.M * layout.repeat * members
    first, last = channels_of(c, d, layout)
    pivot, sums_of_z, squares_of_z = parameters[z, 0], sums[z, 0, 0], sums[z, 0, 1]
    good = True
    for t in range(1, sums.shape[1]):
        for k in range(first, last):
            sums_of_z[k] += sums[z, t, 0, k]
            squares_of_z[k] += sums[z, t, 1, k]
    for s in range(first // members, last // members):
        total = 0.0
        square = 0.0
        for k in range(s * members, s * members + members):
            total += sums_of_z[k]
            square += squares_of_z[k]
        good &= settled(n, total, square) and reliable(square, x)
        shift = total / n
        mean[z, s] = pivot[s * members] + shift
        variance[z, s] = (square - min(total * shift, square)) / n
        rstd[z, s] = 1.0 / np.sqrt(variance[z, s] + eps)
        for k in range(s * members, s * members + members):
            pivot[k] = mean[z, s] if is_finite(mean[z, s]) else 0.0
    return good


@body
def forward_parameters(z, x, layout, c, d, weight, bias, mean, rstd, parameters):
    """Of the channels of columns of one z, so that y is (x − parameter 0) · parameter 1 + parameter 2.

    Whether the dtype of x is wide enough for it is returned.
    """
    in_range = True
    first, last = channels_of(c, d, layout)
    for k in range(first, last):
        s = k // layout.members
        factor = rstd[z, s] * weight[k]
        in_range &= reliable(rstd[z, s], x) and (reliable(factor, x) or weight[k] == 0)
        centre = x.dtype.type(mean[z, s])
        parameters[z, 0, k] = centre
        parameters[z, 1, k] = factor
        parameters[z, 2, k] = (centre - mean[z, s]) * factor + bias[k]
    return in_range


@body
def normalize_tile(zero, task, x, layout, parameters, y):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    rows = spread(zero, 3, parameters[z], layout, c, d)
    centre, scale, shift = rows[0], rows[1], rows[2]
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        out = y[z, r * width + c : r * width + d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]


@body
def forward_tile(
    task, stage, in_range, x, layout, weight, bias, eps, y, parameters, sums, mean, variance, rstd
):  # fmt: skip
    """One stage of the forward pass of a tile."""
    zero = x.dtype.type(0)
    z, _t, _a, _b, c, d = tile_of(task, x, layout)
    whole, wide = stage == WHOLE, stage == AGAIN
    if whole:
        choose_pivots(x[z], layout, c, d, parameters[z])
    if whole or stage == SUMS:
        tile_moments(zero, True, task, x, layout, parameters, sums)
    if whole:
        wide = not merge_statistics(z, x, layout, c, d, eps, parameters, sums, mean, variance, rstd)
    if wide:
        tile_moments(0.0, None, task, x, layout, parameters, sums)
    if whole:
        if wide:
            merge_statistics(z, x, layout, c, d, eps, parameters, sums, mean, variance, rstd)
        in_range = forward_parameters(z, x, layout, c, d, weight, bias, mean, rstd, parameters)
    if whole or stage == OUTPUT:
        if in_range:
            normalize_tile(zero, task, x, layout, parameters, y)
        else:
            normalize_tile(0.0, task, x, layout, parameters, y)


@twins(
    lambda T: (
        *(LAYOUT, INT, read(T, 2), read(T, 1), read(T, 1), DOUBLE, write(T, 2), write(DOUBLE, 3)),
        *(write(DOUBLE, 4), write(DOUBLE, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def forward(layout, first, x, weight, bias, eps, y, parameters, sums, mean, variance, rstd):
    """The stages from the first on, through one loop over the tiles, so that each is compiled once."""
    columns = layout.width
    in_range = True
    for stage in range(first, STAGES):
        if stage == SUMS:
            for z in range(x.shape[0]):
                choose_pivots(x[z], layout, 0, columns, parameters[z])
        if first == SUMS and (stage == AGAIN or (stage == OUTPUT and not in_range)):
            in_range = True
            for z in range(x.shape[0]):
                in_range &= merge_statistics(
                    z, x, layout, 0, columns, eps, parameters, sums, mean, variance, rstd
                )
        if stage == OUTPUT:
            in_range = True
            for z in range(x.shape[0]):
                in_range &= forward_parameters(z, x, layout, 0, columns, weight, bias, mean, rstd, parameters)
        if not (stage == AGAIN and in_range):
            for task in prange(tiles(x, layout)):
                forward_tile(
                    task, stage, in_range, x, layout, weight, bias, eps, y, parameters, sums, mean, variance,
                    rstd,
                )  # fmt: skip
        if stage == WHOLE:
            break


@body
def choose_centres(z, x, layout, c, d, mean, parameters):
    """Parameter 0 of the channels of columns: the mean, rounded to x's dtype."""
    first, last = channels_of(c, d, layout)
    for k in range(first, last):
        parameters[z, 0, k] = x.dtype.type(mean[z, k // layout.members])


@body
def tile_sums(zero, by_four, task, layout, cotangent, x, parameters, sums):
    """The sums of cotangent and of cotangent * (x - parameter 0) over each channel; by_four as above.

    Whether the dtype of x was wide enough for it is returned.
    """
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    centre = spread(zero, 1, parameters[z], layout, c, d)[0]
    totals = np.full((2, d - c), zero)
    total, moment = totals[0], totals[1]
    fours = a
    if by_four is not None:
        fours = whole_fours(a, b, x, layout)
        for r in range(a, fours, 4):
            g0, row0 = cotangent[z, r * width + c : r * width + d], x[z, r * width + c : r * width + d]
            p = (r + 1) * width
            g1, row1 = cotangent[z, p + c : p + d], x[z, p + c : p + d]
            p += width
            g2, row2 = cotangent[z, p + c : p + d], x[z, p + c : p + d]
            p += width
            g3, row3 = cotangent[z, p + c : p + d], x[z, p + c : p + d]
            for j in range(centre.size):
                total[j] += (g0[j] + g1[j]) + (g2[j] + g3[j])
                moment[j] += (g0[j] * (row0[j] - centre[j]) + g1[j] * (row1[j] - centre[j])) + (
                    g2[j] * (row2[j] - centre[j]) + g3[j] * (row3[j] - centre[j])
                )
    for r in range(fours, b):
        g, row = cotangent[z, r * width + c : r * width + d], x[z, r * width + c : r * width + d]
        for j in range(g.size):
            total[j] += g[j]
            moment[j] += g[j] * (row[j] - centre[j])
    gather(totals, layout, c, sums[z, t])
    outside = 0
    first, last = channels_of(c, d, layout)
    for k in range(first, last):
        if not (is_finite(sums[z, t, 0, k]) and reliable(sums[z, t, 1, k], x)):
            outside += 1
    return outside == 0


@body
def backward_parameters(z, x, layout, c, d, training, weight, mean, rstd, sums, parameters, dweight, dbias):
    """Of the channels of columns of one z, so that dx is

        cotangent · parameter 1 + ((x − parameter 0) · parameter 2 + parameter 3),

    without x in inference; and dweight and dbias from the sums of the tiles. Whether the dtype of x is wide
    enough for dx is returned.
    """
    members = layout.members
    n = x.shape[1] // layout.M * layout.repeat * members
    first, last = channels_of(c, d, layout)
    for t in range(sums.shape[1]):
        for k in range(first, last):
            dbias[z, k] += sums[z, t, 0, k]
            dweight[z, k] += sums[z, t, 1, k]
    in_range = True
    for s in range(first // members, last // members):
        scale = rstd[z, s]
        rest = parameters[z, 0, s * members] - mean[z, s]
        total = 0.0
        moment = 0.0
        for k in range(s * members, s * members + members):
            dweight[z, k] = (dweight[z, k] + rest * dbias[z, k]) * scale
            total += weight[k] * dbias[z, k]
            moment += weight[k] * dweight[z, k]
        along = -scale * scale * moment / n
        in_range &= reliable(scale, x) and (fits(along, x) or not training)
        for k in range(s * members, s * members + members):
            factor = scale * weight[k]
            in_range &= reliable(factor, x) or weight[k] == 0
            parameters[z, 1, k] = factor
            parameters[z, 2, k] = along
            parameters[z, 3, k] = rest * along - scale * total / n
    return in_range


@body
def differentiate_tile(zero, task, layout, training, cotangent, x, parameters, dx):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    rows = spread(zero, 4, parameters[z], layout, c, d)
    centre, scale, slope, shift = rows[0], rows[1], rows[2], rows[3]
    for r in range(a, b):
        g = cotangent[z, r * width + c : r * width + d]
        row = x[z, r * width + c : r * width + d]
        out = dx[z, r * width + c : r * width + d]
        if training:
            for j in range(g.size):
                out[j] = g[j] * scale[j] + ((row[j] - centre[j]) * slope[j] + shift[j])
        else:
            for j in range(g.size):
                out[j] = g[j] * scale[j]


@body
def backward_tile(
    task, stage, in_range, layout, training, need_x, cotangent, x, weight, mean, rstd, parameters, sums, dx,
    dweight, dbias,
):  # fmt: skip
    """One stage of the backward pass of a tile."""
    zero = x.dtype.type(0)
    z, _t, _a, _b, c, d = tile_of(task, x, layout)
    if stage == WHOLE:
        choose_centres(z, x, layout, c, d, mean, parameters)
    if stage != OUTPUT and not tile_sums(zero, True, task, layout, cotangent, x, parameters, sums):
        tile_sums(0.0, None, task, layout, cotangent, x, parameters, sums)
    if stage == WHOLE:
        in_range = backward_parameters(
            z, x, layout, c, d, training, weight, mean, rstd, sums, parameters, dweight, dbias
        )
    if need_x and stage != SUMS:
        if in_range:
            differentiate_tile(zero, task, layout, training, cotangent, x, parameters, dx)
        else:
            differentiate_tile(0.0, task, layout, training, cotangent, x, parameters, dx)


@twins(
    lambda T: (
        *(LAYOUT, INT, FLAG, FLAG, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), read(DOUBLE, 2)),
        *(write(DOUBLE, 3), write(DOUBLE, 4), write(T, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def backward(
    layout, first, training, need_x, cotangent, x, weight, mean, rstd, parameters, sums, dx, dweight, dbias
):
    """The stages from the first on, as above; a tile does its sums again by itself."""
    columns = layout.width
    in_range = True
    for stage in range(first, STAGES):
        if stage == first and stage != WHOLE:
            for z in range(x.shape[0]):
                choose_centres(z, x, layout, 0, columns, mean, parameters)
        if stage == OUTPUT:
            for z in range(x.shape[0]):
                in_range &= backward_parameters(
                    z, x, layout, 0, columns, training, weight, mean, rstd, sums, parameters, dweight, dbias
                )
        if stage != AGAIN and (need_x or stage != OUTPUT):
            for task in prange(tiles(x, layout)):
                backward_tile(
                    task, stage, in_range, layout, training, need_x, cotangent, x, weight, mean, rstd,
                    parameters, sums, dx, dweight, dbias,
                )  # fmt: skip
        if stage == WHOLE:
            break


@lru_cache(maxsize=1024)
def layout_of(plan: Cols) -> tuple[Layout, int]:
    """The layout of x, and how many tiles lie below each other; where it is one, statistics are not cut."""
    width = plan.M * max(1, min(JOINED // plan.M, plan.A))
    down = -(-plan.A * plan.M // (width * TILE_ROWS))
    unit = plan.B if down == 1 else plan.repeat
    return Layout(plan.M, plan.repeat, plan.B // plan.repeat, width, unit), down


@dataclass(frozen=True, slots=True)
class ColsKernel:
    """The kernel of the view Cols, made of one twin of each driver; inference is given the statistics."""

    forward_driver: Driver
    backward_driver: Driver
    training: bool

    def forward(
        self, plan: Cols, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, Statistics]:
        y = np.empty(x.shape, x.dtype)
        if self.training:
            statistics = new_statistics(plan.statistics, x)
        else:
            statistics = running_statistics(plan.eps, *running)
        if x.size:
            shape = (plan.Z, plan.A * plan.M)
            layout, down = layout_of(plan)
            self.forward_driver[x.dtype](
                layout,
                OUTPUT if not self.training else WHOLE if down == 1 else SUMS,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                affine(bias, 0, x.dtype, plan.channels),
                plan.eps,
                y.reshape(shape),
                np.empty((plan.Z, 3, plan.channels)),
                np.empty((plan.Z, down if self.training else 0, 2, plan.channels)),
                *(each.reshape(plan.Z, -1) for each in statistics),
            )
        return y, statistics

    def vjp(
        self,
        plan: Cols,
        needs: Sequence[bool],
        cotangent: Array,
        arrays: Sequence[Any],
        aux: Statistics,
    ) -> Gradients:
        x, weight, bias = arrays[:3]
        dx = np.empty(x.shape if needs[0] else 0, x.dtype)
        dweight, dbias = np.zeros((2, plan.Z, plan.channels))
        if x.size and any(needs):
            shape = (plan.Z, plan.A * plan.M)
            layout, down = layout_of(plan)
            first = OUTPUT
            if self.training or needs[1] or needs[2]:
                first = WHOLE if down == 1 else SUMS
            self.backward_driver[x.dtype](
                layout,
                first,
                self.training,
                needs[0],
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                aux[0].reshape(plan.Z, -1),
                aux[2].reshape(plan.Z, -1),
                np.empty((plan.Z, 4, plan.channels)),
                np.empty((plan.Z, 0 if first == OUTPUT else down, 2, plan.channels)),
                dx.reshape(shape if needs[0] else (0, 0)),
                dweight,
                dbias,
            )
        return gradients(needs, dx, dweight, dbias, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
