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
from typing import Any

import numpy as np
from numba import prange

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
from .jit import DOUBLE, FLAG, FLAGS, INT, Driver, body, read, twins, write
from .sums import add_up, fits, is_finite, reliable, samples, settled

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512
# The pivots come from so many rows, where there are as many.
SAMPLE_ROWS, FEWEST_ROWS = 8, 4


@body
def tile_of(task, size, M, repeat, width):
    """The tile of a task: z, its number, first and last row, first and last column; channels are whole."""
    rows = (size + width - 1) // width
    down = (rows + TILE_ROWS - 1) // TILE_ROWS
    columns = max(TILE_COLUMNS // repeat, 1) * repeat
    across = (width + columns - 1) // columns
    z, rest = task // (down * across), task % (down * across)
    t, c = rest // across, rest % across * columns
    a = t * TILE_ROWS
    return z, t, a, min(a + TILE_ROWS, rows), c, min(c + columns, width)


@body
def tiles(x, M, repeat, width):
    rows = (x.shape[1] + width - 1) // width
    down = (rows + TILE_ROWS - 1) // TILE_ROWS
    columns = max(TILE_COLUMNS // repeat, 1) * repeat
    return x.shape[0] * down * ((width + columns - 1) // columns)


@body
def whole_fours(a, b, x, width):
    """The end of the last four of the rows a … b − 1 that are whole: the last row may be shorter."""
    return a + max(min(b, x.shape[1] // width) - a, 0) // 4 * 4


@body
def spread(zero, values, repeat, c, d):
    """The values of the channels that the columns c … d − 1 of a row belong to, in the type of zero."""
    row = np.empty(d - c, type(zero))
    M = values.size * repeat
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
def gather(row, repeat, c, result):
    """Add up the values of the columns of a row from c on that belong to the same channel."""
    M = result.size * repeat
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
def choose_pivots(x, repeat, members, pivot):
    """For each channel of one z a value near the mean of its statistic: that of a few rows, in x's dtype."""
    M = pivot.size * repeat
    B = members * repeat
    few, step = samples(x.size // M, max(FEWEST_ROWS, SAMPLE_ROWS // B))
    total = np.zeros(M)
    for k in range(few):
        row = x[k * step * M : k * step * M + M]
        for m in range(M):
            total[m] += row[m]
    gather(total, repeat, 0, pivot)
    for first in range(0, pivot.size, members):
        mean = 0.0
        for k in range(first, first + members):
            mean += pivot[k]
        mean = x.dtype.type(mean / (few * B)) if is_finite(mean) else 0.0
        for k in range(first, first + members):
            pivot[k] = mean


@body
def tile_moments(zero, task, x, M, repeat, width, pivots, sums, squares):
    """The sums of x − pivot and of its square over each channel of a tile."""
    z, t, a, b, c, d = tile_of(task, x.shape[1], M, repeat, width)
    pivot = spread(zero, pivots[z], repeat, c, d)
    total, total_squares = np.full(d - c, zero), np.full(d - c, zero)
    fours = whole_fours(a, b, x, width)
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
    gather(total, repeat, c, sums[z, t])
    gather(total_squares, repeat, c, squares[z, t])


@body
def merge_statistics(n, x, members, eps, pivot, sums, squares, mean, variance, rstd):
    """From the sums of the tiles of one z to its statistics, of n values each.

    Whether every pivot was near enough, and the dtype of x wide enough, is returned; pivots become means.
    """
    good = True
    for t in range(1, sums.shape[0]):
        for k in range(pivot.size):
            sums[0, k] += sums[t, k]
            squares[0, k] += squares[t, k]
    for s in range(mean.size):
        total = 0.0
        square = 0.0
        for k in range(s * members, s * members + members):
            total += sums[0, k]
            square += squares[0, k]
        good &= settled(n, total, square) and reliable(square, x)
        shift = total / n
        mean[s] = pivot[s * members] + shift
        variance[s] = (square - min(total * shift, square)) / n
        rstd[s] = 1.0 / np.sqrt(variance[s] + eps)
        for k in range(s * members, s * members + members):
            pivot[k] = mean[s] if is_finite(mean[s]) else 0.0
    return good


@body
def forward_parameters(x, members, weight, bias, mean, rstd, centre, scale, shift):
    """Of the channels of one z: y is (x − centre) scale + shift.

    Whether the dtype of x is wide enough for it is returned.
    """
    in_range = True
    for k in range(weight.size):
        s = k // members
        factor = rstd[s] * weight[k]
        in_range &= reliable(rstd[s], x) and (reliable(factor, x) or weight[k] == 0)
        centre[k] = x.dtype.type(mean[s])
        scale[k] = factor
        shift[k] = (centre[k] - mean[s]) * factor + bias[k]
    return in_range


@body
def normalize_tile(zero, task, x, M, repeat, width, parameters, y):
    z, _t, a, b, c, d = tile_of(task, x.shape[1], M, repeat, width)
    centre = spread(zero, parameters[0, z], repeat, c, d)
    scale = spread(zero, parameters[1, z], repeat, c, d)
    shift = spread(zero, parameters[2, z], repeat, c, d)
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        out = y[z, r * width + c : r * width + d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]


@twins(
    lambda T: (
        *(INT, INT, INT, INT, FLAG, read(T, 2), read(T, 1), read(T, 1), DOUBLE),
        *(write(T, 2), write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 3)),
        *(write(DOUBLE, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def forward(
    M, repeat, members, width, training, x, weight, bias, eps, y, parameters, sums, squares, mean, variance,
    rstd,
):  # fmt: skip
    Z = x.shape[0]
    pivots = parameters[0]
    if training:
        n = x.shape[1] // M * repeat * members
        for z in range(Z):
            choose_pivots(x[z], repeat, members, pivots[z])
        for task in prange(tiles(x, M, repeat, width)):
            tile_moments(x.dtype.type(0), task, x, M, repeat, width, pivots, sums, squares)
        good = True
        for z in range(Z):
            good &= merge_statistics(
                n, x, members, eps, pivots[z], sums[z], squares[z], mean[z], variance[z], rstd[z]
            )
        if not good:
            for task in prange(tiles(x, M, repeat, width)):
                tile_moments(0.0, task, x, M, repeat, width, pivots, sums, squares)
            for z in range(Z):
                merge_statistics(
                    n, x, members, eps, pivots[z], sums[z], squares[z], mean[z], variance[z], rstd[z]
                )
    in_range = True
    for z in range(Z):
        centre, scale, shift = parameters[0, z], parameters[1, z], parameters[2, z]
        in_range &= forward_parameters(x, members, weight, bias, mean[z], rstd[z], centre, scale, shift)
    for task in prange(tiles(x, M, repeat, width)):
        if in_range:
            normalize_tile(x.dtype.type(0), task, x, M, repeat, width, parameters, y)
        else:
            normalize_tile(0.0, task, x, M, repeat, width, parameters, y)


@body
def tile_sums(zero, task, M, repeat, width, cotangent, x, centres, sums, moments):
    """The sums of cotangent and of cotangent * (x - centre) over each channel.

    Whether the dtype of x was wide enough for it is returned.
    """
    z, t, a, b, c, d = tile_of(task, x.shape[1], M, repeat, width)
    centre = spread(zero, centres[z], repeat, c, d)
    total, moment = np.full(d - c, zero), np.full(d - c, zero)
    fours = whole_fours(a, b, x, width)
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
    gather(total, repeat, c, sums[z, t])
    gather(moment, repeat, c, moments[z, t])
    outside = 0
    for k in range(c // repeat, min(d, M) // repeat):
        if not (is_finite(sums[z, t, k]) and reliable(moments[z, t, k], x)):
            outside += 1
    return outside == 0


@body
def backward_parameters(
    n, x, members, training, weight, mean, rstd, dweight, dbias, centre, scale, slope, shift
):
    """Of the channels of one z: dx is g scale + ((x − centre) slope + shift), without x in inference.

    The sums over channels, given as dbias and dweight, become the gradients of bias and weight. Whether the
    dtype of x is wide enough for dx is returned.
    """
    in_range = True
    for s in range(mean.size):
        rest = centre[s * members] - mean[s]
        total = 0.0
        moment = 0.0
        for k in range(s * members, s * members + members):
            dweight[k] = (dweight[k] + rest * dbias[k]) * rstd[s]
            total += weight[k] * dbias[k]
            moment += weight[k] * dweight[k]
        along = -rstd[s] * rstd[s] * moment / n
        offset = rest * along - rstd[s] * total / n
        in_range &= reliable(rstd[s], x) and (fits(along, x) or not training)
        for k in range(s * members, s * members + members):
            factor = rstd[s] * weight[k]
            in_range &= reliable(factor, x) or weight[k] == 0
            scale[k] = factor
            slope[k] = along
            shift[k] = offset
    return in_range


@body
def differentiate_tile(zero, task, M, repeat, width, training, cotangent, x, parameters, dx):
    z, _t, a, b, c, d = tile_of(task, x.shape[1], M, repeat, width)
    centre = spread(zero, parameters[0, z], repeat, c, d)
    scale = spread(zero, parameters[1, z], repeat, c, d)
    slope = spread(zero, parameters[2, z], repeat, c, d)
    shift = spread(zero, parameters[3, z], repeat, c, d)
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


@twins(
    lambda T: (
        *(INT, INT, INT, INT, FLAG, FLAGS, read(T, 2), read(T, 2), read(T, 1)),
        *(read(DOUBLE, 2), read(DOUBLE, 2), write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 3)),
        *(write(T, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def backward(
    M, repeat, members, width, training, need, cotangent, x, weight, mean, rstd, parameters, sums, moments,
    dx, dweight, dbias,
):  # fmt: skip
    need_x, need_affine = need
    centres = parameters[0]
    for z in range(x.shape[0]):
        for k in range(weight.size):
            centres[z, k] = x.dtype.type(mean[z, k // members])
    if training or need_affine:
        for task in prange(tiles(x, M, repeat, width)):
            if not tile_sums(x.dtype.type(0), task, M, repeat, width, cotangent, x, centres, sums, moments):
                tile_sums(0.0, task, M, repeat, width, cotangent, x, centres, sums, moments)
    in_range = True
    n = x.shape[1] // M * repeat * members
    for z in range(x.shape[0]):
        if training or need_affine:
            add_up(sums[z], dbias[z])
            add_up(moments[z], dweight[z])
        centre, scale, slope, shift = parameters[0, z], parameters[1, z], parameters[2, z], parameters[3, z]
        in_range &= backward_parameters(
            n,
            x,
            members,
            training,
            weight,
            mean[z],
            rstd[z],
            dweight[z],
            dbias[z],
            centre,
            scale,
            slope,
            shift,
        )
    if need_x:
        for task in prange(tiles(x, M, repeat, width)):
            zero = x.dtype.type(0)
            if in_range:
                differentiate_tile(zero, task, M, repeat, width, training, cotangent, x, parameters, dx)
            else:
                differentiate_tile(0.0, task, M, repeat, width, training, cotangent, x, parameters, dx)


def width_of(plan: Cols) -> int:
    """The length of the rows that x is read as: M, or the largest multiple of a small M up to JOINED."""
    return plan.M * max(1, min(JOINED // plan.M, plan.A))


def down(plan: Cols) -> int:
    """How many tiles lie below each other."""
    rows = -(-plan.A * plan.M // width_of(plan))
    return -(-rows // TILE_ROWS)


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
            sums, squares = np.empty((2, plan.Z, down(plan) if self.training else 0, plan.channels))
            self.forward_driver[x.dtype](
                plan.M,
                plan.repeat,
                plan.B // plan.repeat,
                width_of(plan),
                self.training,
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
        need = (needs[0], needs[1] or needs[2])
        dx = np.empty(x.shape if needs[0] else 0, x.dtype)
        dweight, dbias = np.zeros((2, plan.Z, plan.channels))
        if x.size and any(need):
            shape = (plan.Z, plan.A * plan.M)
            sums, moments = np.empty((2, plan.Z, down(plan), plan.channels))
            self.backward_driver[x.dtype](
                plan.M,
                plan.repeat,
                plan.B // plan.repeat,
                width_of(plan),
                self.training,
                need,
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
