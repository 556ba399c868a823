"""The family *cols*: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

A statistic belongs to one z and to B neighbours along M, and is taken over A. x is read as long rows: where M
is small, several neighbours along A make one row of `width` values. One task is a tile of some rows and some
columns, small enough for the second-level cache and passed through four rows at a time; columns are never
read one at a time. Partial sums of the tiles are added in float64, in the order of the tiles. The formulas
are those of *split*::

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
from .sums import add_up, fits, is_finite, reliable, samples, settled

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512
# The pivots come from so many rows, where there are as many.
SAMPLE_ROWS, FEWEST_ROWS = 8, 4
# The stages of a pass: all of it for tiles of whole columns; otherwise the sums of tiles, those sums in float64
# where it must be, and what is written.
WHOLE, SUMS, AGAIN, OUTPUT, STAGES = range(5)


class Layout(NamedTuple):
    """How x[z] is read: channel m // repeat has column m of M, a statistic has `members` channels.

    Rows have `width` columns, a multiple of M or M itself, and are cut between columns at multiples of `unit`.
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
def spread(zero, values, layout, c, d):
    """The values of the channels that the columns c … d − 1 of a row belong to, in the type of zero."""
    row = np.empty(d - c, type(zero))
    M, repeat = layout.M, layout.repeat
    if repeat == 1:
        for j in range(min(d, M) - c):
            row[j] = values[c + j]
    else:
        for start in range(c, min(d, M), repeat):
            value = type(zero)(values[start // repeat])
            for j in range(repeat):
                row[start - c + j] = value
    for start in range(M, row.size, M):
        for j in range(M):
            row[start + j] = row[j]
    return row


@body
def gather(row, layout, c, result):
    """Add up the columns of a row from c on, for each channel."""
    M, repeat = layout.M, layout.repeat
    for start in range(M, row.size, M):
        for j in range(M):
            row[j] += row[start + j]
    size = min(row.size, M - c)
    if repeat == 1:
        for j in range(size):
            result[c + j] = row[j]
    else:
        for start in range(0, size, repeat):
            total = 0.0
            for j in range(repeat):
                total += row[start + j]
            result[(c + start) // repeat] = total


@body
def channels_of(c, d, layout):
    """The channels of columns, and their statistics."""
    first, last = c // layout.repeat, min(d, layout.M) // layout.repeat
    return slice(first, last), slice(first // layout.members, last // layout.members)


@body
def choose_pivots(x, layout, c, d, pivots):
    """For each channel of columns of one z a value near the mean of its statistic, in x's dtype.

    It is the mean of a few rows.
    """
    members = layout.members
    B = members * layout.repeat
    few, step = samples(x.size // layout.M, max(FEWEST_ROWS, SAMPLE_ROWS // B))
    total = np.zeros(min(d, layout.M) - c)
    for k in range(few):
        start = k * step * layout.M + c
        row = x[start : start + total.size]
        for j in range(total.size):
            total[j] += row[j]
    gather(total, layout, c, pivots)
    channels, _statistics = channels_of(c, d, layout)
    pivot = pivots[channels]
    for first in range(0, pivot.size, members):
        mean = 0.0
        for k in range(first, first + members):
            mean += pivot[k]
        mean = x.dtype.type(mean / (few * B)) if is_finite(mean) else 0.0
        for k in range(first, first + members):
            pivot[k] = mean


@body
def tile_moments(zero, task, x, layout, pivots, sums, squares):
    """The sums of x − pivot and of its square over each channel of a tile."""
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    pivot = spread(zero, pivots[z], layout, c, d)
    total, total_squares = np.full(d - c, zero), np.full(d - c, zero)
    fours = whole_fours(a, b, x, layout)
    for r in range(a, fours, 4):
        row0 = x[z, r * width + c : r * width + d]
        row1 = x[z, (r + 1) * width + c : (r + 1) * width + d]
        row2 = x[z, (r + 2) * width + c : (r + 2) * width + d]
        row3 = x[z, (r + 3) * width + c : (r + 3) * width + d]
        for j in range(pivot.size):
            d0, d1, d2, d3 = row0[j] - pivot[j], row1[j] - pivot[j], row2[j] - pivot[j], row3[j] - pivot[j]
            total[j] += (d0 + d1) + (d2 + d3)
            total_squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for r in range(fours, b):
        row = x[z, r * width + c : r * width + d]
        for j in range(row.size):
            deviation = row[j] - pivot[j]
            total[j] += deviation
            total_squares[j] += deviation * deviation
    gather(total, layout, c, sums[z, t])
    gather(total_squares, layout, c, squares[z, t])


@body
def merge_statistics(z, x, layout, c, d, eps, pivots, sums, squares, mean, variance, rstd):
    """From the sums of the tiles to the statistics of columns of one z.

    Whether every pivot was near enough, and the dtype of x wide enough, is returned; pivots become means.
    """
    members = layout.members
    n = x.shape[1] // layout.M * layout.repeat * members
    channels, statistics = channels_of(c, d, layout)
    good = True
    for t in range(1, sums.shape[1]):
        for k in range(channels.start, channels.stop):
            sums[z, 0, k] += sums[z, t, k]
            squares[z, 0, k] += squares[z, t, k]
    for s in range(statistics.start, statistics.stop):
        total = 0.0
        square = 0.0
        for k in range(s * members, s * members + members):
            total += sums[z, 0, k]
            square += squares[z, 0, k]
        good &= settled(n, total, square) and reliable(square, x)
        shift = total / n
        mean[z, s] = pivots[z, s * members] + shift
        variance[z, s] = (square - min(total * shift, square)) / n
        rstd[z, s] = 1.0 / np.sqrt(variance[z, s] + eps)
        for k in range(s * members, s * members + members):
            pivots[z, k] = mean[z, s] if is_finite(mean[z, s]) else 0.0
    return good


@body
def forward_parameters(z, x, layout, c, d, weight, bias, mean, rstd, parameters):
    """Of the channels of columns of one z, so that y is (x − parameter 0) · parameter 1 + parameter 2.

    Whether the dtype of x is wide enough for it is returned.
    """
    in_range = True
    channels, _statistics = channels_of(c, d, layout)
    for k in range(channels.start, channels.stop):
        s = k // layout.members
        factor = rstd[z, s] * weight[k]
        in_range &= reliable(rstd[z, s], x) and (reliable(factor, x) or weight[k] == 0)
        centre = x.dtype.type(mean[z, s])
        parameters[0, z, k] = centre
        parameters[1, z, k] = factor
        parameters[2, z, k] = (centre - mean[z, s]) * factor + bias[k]
    return in_range


@body
def normalize_tile(zero, task, x, layout, parameters, y):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    centre = spread(zero, parameters[0, z], layout, c, d)
    scale = spread(zero, parameters[1, z], layout, c, d)
    shift = spread(zero, parameters[2, z], layout, c, d)
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        out = y[z, r * width + c : r * width + d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]


@body
def forward_tile(
    task, stage, in_range, x, layout, weight, bias, eps, y, parameters, sums, squares, mean, variance, rstd
):  # fmt: skip
    """One stage of the forward pass of a tile."""
    zero, pivots = x.dtype.type(0), parameters[0]
    z, _t, _a, _b, c, d = tile_of(task, x, layout)
    wide = stage == AGAIN
    if stage == WHOLE:
        choose_pivots(x[z], layout, c, d, pivots[z])
    if stage == SUMS or stage == WHOLE:
        tile_moments(zero, task, x, layout, pivots, sums, squares)
    if stage == WHOLE:
        wide = not merge_statistics(z, x, layout, c, d, eps, pivots, sums, squares, mean, variance, rstd)
    if wide:
        tile_moments(0.0, task, x, layout, pivots, sums, squares)
    if stage == WHOLE:
        if wide:
            merge_statistics(z, x, layout, c, d, eps, pivots, sums, squares, mean, variance, rstd)
        in_range = forward_parameters(z, x, layout, c, d, weight, bias, mean, rstd, parameters)
    if stage == OUTPUT or stage == WHOLE:
        if in_range:
            normalize_tile(zero, task, x, layout, parameters, y)
        else:
            normalize_tile(0.0, task, x, layout, parameters, y)


@twins(
    lambda T: (
        *(LAYOUT, INT, read(T, 2), read(T, 1), read(T, 1), DOUBLE),
        *(write(T, 2), write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 3)),
        *(write(DOUBLE, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def forward(layout, first, x, weight, bias, eps, y, parameters, sums, squares, mean, variance, rstd):
    """The stages from the first on. All run through one loop, so that it is compiled once."""
    pivots, all_columns = parameters[0], layout.width
    in_range = True
    for stage in range(first, STAGES):
        if stage == SUMS:
            for z in range(x.shape[0]):
                choose_pivots(x[z], layout, 0, all_columns, pivots[z])
        if (stage == AGAIN and first == SUMS) or (stage == OUTPUT and not in_range):
            in_range = True
            for z in range(x.shape[0]):
                in_range &= merge_statistics(
                    z, x, layout, 0, all_columns, eps, pivots, sums, squares, mean, variance, rstd
                )
        if stage == AGAIN and in_range:
            continue
        if stage == OUTPUT:
            in_range = True
            for z in range(x.shape[0]):
                in_range &= forward_parameters(
                    z, x, layout, 0, all_columns, weight, bias, mean, rstd, parameters
                )
        for task in prange(tiles(x, layout)):
            forward_tile(
                task, stage, in_range, x, layout, weight, bias, eps, y, parameters, sums, squares, mean,
                variance, rstd,
            )  # fmt: skip
        if stage == WHOLE:
            break


@body
def choose_centres(z, x, layout, c, d, mean, centres):
    """The mean of each channel of columns, rounded to x's dtype."""
    channels, _statistics = channels_of(c, d, layout)
    for k in range(channels.start, channels.stop):
        centres[z, k] = x.dtype.type(mean[z, k // layout.members])


@body
def tile_sums(zero, task, layout, cotangent, x, centres, sums, moments):
    """The sums of cotangent and of cotangent * (x - centre) over each channel.

    Whether the dtype of x was wide enough for it is returned.
    """
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    centre = spread(zero, centres[z], layout, c, d)
    total, moment = np.full(d - c, zero), np.full(d - c, zero)
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
    gather(total, layout, c, sums[z, t])
    gather(moment, layout, c, moments[z, t])
    outside = 0
    channels, _statistics = channels_of(c, d, layout)
    for k in range(channels.start, channels.stop):
        if not (is_finite(sums[z, t, k]) and reliable(moments[z, t, k], x)):
            outside += 1
    return outside == 0


@body
def backward_parameters(
    z, x, layout, c, d, training, weight, mean, rstd, sums, moments, parameters, dweight, dbias
):
    """Of the channels of columns of one z, so that dx is

        cotangent · parameter 1 + ((x − parameter 0) · parameter 2 + parameter 3),

    without x in inference; and dweight and dbias from the sums of the tiles. Whether the dtype of x is wide
    enough for dx is returned.
    """
    members = layout.members
    n = x.shape[1] // layout.M * layout.repeat * members
    channels, statistics = channels_of(c, d, layout)
    add_up(sums[z, :, channels], dbias[z, channels])
    add_up(moments[z, :, channels], dweight[z, channels])
    in_range = True
    for s in range(statistics.start, statistics.stop):
        scale = rstd[z, s]
        rest = parameters[0, z, s * members] - mean[z, s]
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
            parameters[1, z, k] = factor
            parameters[2, z, k] = along
            parameters[3, z, k] = rest * along - scale * total / n
    return in_range


@body
def differentiate_tile(zero, task, layout, training, cotangent, x, parameters, dx):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout.width
    centre = spread(zero, parameters[0, z], layout, c, d)
    scale = spread(zero, parameters[1, z], layout, c, d)
    slope = spread(zero, parameters[2, z], layout, c, d)
    shift = spread(zero, parameters[3, z], layout, c, d)
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
    task, stage, in_range, layout, training, need_x, cotangent, x, weight, mean, rstd, parameters, sums,
    moments, dx, dweight, dbias,
):  # fmt: skip
    """One stage of the backward pass of a tile."""
    zero = x.dtype.type(0)
    z, _t, _a, _b, c, d = tile_of(task, x, layout)
    if stage == WHOLE:
        choose_centres(z, x, layout, c, d, mean, parameters[0])
    if stage == SUMS or stage == WHOLE:
        if not tile_sums(zero, task, layout, cotangent, x, parameters[0], sums, moments):
            tile_sums(0.0, task, layout, cotangent, x, parameters[0], sums, moments)
    if stage == WHOLE:
        in_range = backward_parameters(
            z, x, layout, c, d, training, weight, mean, rstd, sums, moments, parameters, dweight, dbias
        )
    if need_x and (stage == OUTPUT or stage == WHOLE):
        if in_range:
            differentiate_tile(zero, task, layout, training, cotangent, x, parameters, dx)
        else:
            differentiate_tile(0.0, task, layout, training, cotangent, x, parameters, dx)


@twins(
    lambda T: (
        *(LAYOUT, INT, FLAG, FLAG, read(T, 2), read(T, 2), read(T, 1)),
        *(read(DOUBLE, 2), read(DOUBLE, 2), write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 3)),
        *(write(T, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def backward(
    layout, first, training, need_x, cotangent, x, weight, mean, rstd, parameters, sums, moments, dx, dweight,
    dbias,
):  # fmt: skip
    all_columns = layout.width
    in_range = True
    for stage in range(first, STAGES):
        if stage == SUMS:
            for z in range(x.shape[0]):
                choose_centres(z, x, layout, 0, all_columns, mean, parameters[0])
        if stage == AGAIN:
            continue
        if stage == OUTPUT:
            for z in range(x.shape[0]):
                in_range &= backward_parameters(
                    z,
                    x,
                    layout,
                    0,
                    all_columns,
                    training,
                    weight,
                    mean,
                    rstd,
                    sums,
                    moments,
                    parameters,
                    dweight,
                    dbias,
                )
            if not need_x:
                break
        for task in prange(tiles(x, layout)):
            backward_tile(
                task, stage, in_range, layout, training, need_x, cotangent, x, weight, mean, rstd, parameters, sums,
                moments, dx, dweight, dbias,
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
            sums, squares = np.empty((2, plan.Z, down if self.training else 0, plan.channels))
            self.forward_driver[x.dtype](
                layout,
                OUTPUT if not self.training else WHOLE if down == 1 else SUMS,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                affine(bias, 0, x.dtype, plan.channels),
                plan.eps,
                y.reshape(shape),
                np.empty((3, plan.Z, plan.channels)),
                sums,
                squares,
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
            sums, moments = np.zeros((2, plan.Z, down, plan.channels))
            self.backward_driver[x.dtype](
                layout,
                WHOLE if down == 1 else SUMS,
                self.training,
                needs[0],
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                aux[0].reshape(plan.Z, -1),
                aux[2].reshape(plan.Z, -1),
                np.empty((4, plan.Z, plan.channels)),
                sums,
                moments,
                dx.reshape(shape if needs[0] else (0, 0)),
                dweight,
                dbias,
            )
        return gradients(needs, dx, dweight, dbias, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
