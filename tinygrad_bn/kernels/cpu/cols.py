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
from .memory import empty
from .sums import SAMPLES, add_up, fits, is_finite, reliable, samples, settled

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512


@body
def tile_of(task, size, M, width):
    """The tile of a task: z, its number, first and last row, first and last column."""
    rows = (size + width - 1) // width
    down = (rows + TILE_ROWS - 1) // TILE_ROWS
    across = (width + TILE_COLUMNS - 1) // TILE_COLUMNS
    z, rest = task // (down * across), task % (down * across)
    t, c = rest // across, rest % across * TILE_COLUMNS
    a = t * TILE_ROWS
    return z, t, a, min(a + TILE_ROWS, rows), c, min(c + TILE_COLUMNS, width)


@body
def tiles(x, width):
    rows = (x.shape[1] + width - 1) // width
    down = (rows + TILE_ROWS - 1) // TILE_ROWS
    return x.shape[0] * down * ((width + TILE_COLUMNS - 1) // TILE_COLUMNS)


@body
def row_of(zero, size):
    return np.full(size, zero)


@body
def spread(values, z, first, B, row, M):
    """Into the columns from `first` on, the value of the statistic of z that each belongs to."""
    T = row.dtype.type
    last = min(first + row.size, M)
    for s in range(first // B, (last - 1) // B + 1):
        value = T(values[z * (M // B) + s])
        for m in range(max(s * B, first), min(s * B + B, last)):
            row[m - first] = value
    for j in range(M, row.size):
        row[j] = row[j - M]


@body
def choose_pivots(x, M, B, pivots):
    """A value near the mean of each statistic: the mean of a few values spread over it, in x's dtype."""
    n = x.shape[1] // M * B
    few, step = samples(n, SAMPLES)
    for i in range(pivots.size):
        z, s = i // (M // B), i % (M // B)
        total = 0.0
        for k in range(few):
            at = k * step
            total += x[z, at // B * M + s * B + at % B]
        pivots[i] = x.dtype.type(total / few) if is_finite(total) else 0.0


@body
def tile_moments(zero, task, x, M, width, B, pivots, sums, squares):
    """The sums of x − pivot and of its square over each column of a tile."""
    z, t, a, b, c, d = tile_of(task, x.shape[1], M, width)
    pivot, total, total_squares = row_of(zero, d - c), row_of(zero, d - c), row_of(zero, d - c)
    spread(pivots, z, c, B, pivot, M)
    whole = min(b, x.shape[1] // width)
    fours = a + max(whole - a, 0) // 4 * 4
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
    gather(total, c, M, sums[z, t])
    gather(total_squares, c, M, squares[z, t])


@body
def gather(row, first, M, result):
    """Add up the values of `row` that belong to the same column of M."""
    last = min(first + row.size, M)
    for m in range(first, last):
        result[m] = row[m - first]
    for start in range(M, row.size, M):
        for j in range(M):
            result[j] += row[start + j]


@body
def merge_statistics(z, x, M, B, eps, pivots, sums, squares, mean, variance, rstd):
    """From the sums of the tiles of one z to its statistics.

    Whether every pivot was near enough, and the dtype of x wide enough, is returned; pivots become means.
    """
    n = x.shape[1] // M * B
    good = True
    for t in range(1, sums.shape[1]):
        for m in range(M):
            sums[z, 0, m] += sums[z, t, m]
            squares[z, 0, m] += squares[z, t, m]
    for s in range(M // B):
        i = z * (M // B) + s
        total = 0.0
        square = 0.0
        for m in range(s * B, s * B + B):
            total += sums[z, 0, m]
            square += squares[z, 0, m]
        good &= settled(n, total, square) and reliable(square, x)
        shift = total / n
        mean[i] = pivots[i] + shift
        variance[i] = (square - min(total * shift, square)) / n
        rstd[i] = 1.0 / np.sqrt(variance[i] + eps)
        pivots[i] = mean[i] if is_finite(mean[i]) else 0.0
    return good


@body
def normalize_tile(zero, task, x, M, width, weight, bias, B, y, mean, rstd):
    """Whether the dtype of x was wide enough for it is returned."""
    T = type(zero)
    z, _t, a, b, c, d = tile_of(task, x.shape[1], M, width)
    in_range = True
    centre, scale, shift = row_of(zero, d - c), row_of(zero, d - c), row_of(zero, d - c)
    for s in range(c // B, (min(d, M) - 1) // B + 1):
        i = z * (M // B) + s
        in_range &= reliable(rstd[i], x)
        middle = T(mean[i])
        for m in range(max(s * B, c), min(s * B + B, d)):
            factor = rstd[i] * weight[m]
            in_range &= reliable(factor, x) or weight[m] == 0
            centre[m - c] = middle
            scale[m - c] = T(factor)
            shift[m - c] = T((middle - mean[i]) * factor + bias[m])
    for j in range(M, centre.size):
        centre[j], scale[j], shift[j] = centre[j - M], scale[j - M], shift[j - M]
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        out = y[z, r * width + c : r * width + d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]
    return in_range


@twins(
    lambda T: (
        *(INT, INT, FLAG, read(T, 2), read(T, 1), read(T, 1), INT, DOUBLE),
        *(write(T, 2), write(DOUBLE, 1), write(DOUBLE, 3), write(DOUBLE, 3)),
        *(write(DOUBLE, 1), write(DOUBLE, 1), write(DOUBLE, 1)),
    )
)
def forward(M, width, training, x, weight, bias, B, eps, y, pivots, sums, squares, mean, variance, rstd):
    if training:
        choose_pivots(x, M, B, pivots)
        for task in prange(tiles(x, width)):
            tile_moments(x.dtype.type(0), task, x, M, width, B, pivots, sums, squares)
        good = True
        for z in range(x.shape[0]):
            good &= merge_statistics(z, x, M, B, eps, pivots, sums, squares, mean, variance, rstd)
        if not good:
            for task in prange(tiles(x, width)):
                tile_moments(0.0, task, x, M, width, B, pivots, sums, squares)
            for z in range(x.shape[0]):
                merge_statistics(z, x, M, B, eps, pivots, sums, squares, mean, variance, rstd)
    for task in prange(tiles(x, width)):
        if not normalize_tile(x.dtype.type(0), task, x, M, width, weight, bias, B, y, mean, rstd):
            normalize_tile(0.0, task, x, M, width, weight, bias, B, y, mean, rstd)


@body
def tile_sums(zero, task, M, width, B, cotangent, x, mean, sums, moments):
    """The sums of cotangent and of cotangent * (x - mean) of each column, the mean rounded to x's dtype.

    Whether the dtype of x was wide enough for it is returned.
    """
    z, t, a, b, c, d = tile_of(task, x.shape[1], M, width)
    centre, total, moment = row_of(zero, d - c), row_of(zero, d - c), row_of(zero, d - c)
    spread(mean, z, c, B, centre, M)
    for j in range(centre.size):
        centre[j] = x.dtype.type(centre[j])
    whole = min(b, x.shape[1] // width)
    fours = a + max(whole - a, 0) // 4 * 4
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
    gather(total, c, M, sums[z, t])
    gather(moment, c, M, moments[z, t])
    in_range = True
    for j in range(centre.size):
        in_range &= is_finite(total[j]) and reliable(moment[j], x)
    return in_range


@body
def merge_sums(z, x, M, B, weight, mean, rstd, sums, moments, along, across, dweight, dbias):
    """From the sums of the tiles of one z to dweight and dbias, and to the slope and offset of dx."""
    n = x.shape[1] // M * B
    add_up(sums[z], dbias[z])
    add_up(moments[z], dweight[z])
    for s in range(M // B):
        i = z * (M // B) + s
        rest = x.dtype.type(mean[i]) - mean[i]
        total = 0.0
        moment = 0.0
        for m in range(s * B, s * B + B):
            dweight[z, m] = (dweight[z, m] + rest * dbias[z, m]) * rstd[i]
            total += weight[m] * dbias[z, m]
            moment += weight[m] * dweight[z, m]
        along[i] = -rstd[i] * rstd[i] * moment / n
        across[i] = -rstd[i] * total / n


@body
def differentiate_tile(
    zero, task, M, width, training, B, cotangent, x, weight, mean, rstd, along, across, dx
):
    """Whether the dtype of x was wide enough for it is returned."""
    T = type(zero)
    z, _t, a, b, c, d = tile_of(task, x.shape[1], M, width)
    in_range = True
    centre, scale = row_of(zero, d - c), row_of(zero, d - c)
    slope, shift = row_of(zero, d - c), row_of(zero, d - c)
    for s in range(c // B, (min(d, M) - 1) // B + 1):
        i = z * (M // B) + s
        in_range &= reliable(rstd[i], x) and fits(along[i], x)
        middle = T(mean[i])
        offset = (middle - mean[i]) * along[i] + across[i]
        for m in range(max(s * B, c), min(s * B + B, d)):
            factor = rstd[i] * weight[m]
            in_range &= reliable(factor, x) or weight[m] == 0
            centre[m - c] = middle
            scale[m - c] = T(factor)
            slope[m - c] = T(along[i])
            shift[m - c] = T(offset)
    for j in range(M, centre.size):
        centre[j], scale[j], slope[j], shift[j] = centre[j - M], scale[j - M], slope[j - M], shift[j - M]
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
    return in_range


@twins(
    lambda T: (
        *(INT, INT, FLAG, FLAGS, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 1), read(DOUBLE, 1)),
        *(write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 1), write(DOUBLE, 1)),
        *(write(T, 2), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def backward(
    M, width, training, need, B, cotangent, x, weight, mean, rstd, sums, moments, along, across, dx, dweight,
    dbias,
):  # fmt: skip
    need_x, need_affine = need
    if training or need_affine:
        for task in prange(tiles(x, width)):
            if not tile_sums(x.dtype.type(0), task, M, width, B, cotangent, x, mean, sums, moments):
                tile_sums(0.0, task, M, width, B, cotangent, x, mean, sums, moments)
        for z in range(x.shape[0]):
            merge_sums(z, x, M, B, weight, mean, rstd, sums, moments, along, across, dweight, dbias)
    if need_x:
        for task in prange(tiles(x, width)):
            zero = x.dtype.type(0)
            if not differentiate_tile(
                zero, task, M, width, training, B, cotangent, x, weight, mean, rstd, along, across, dx
            ):
                differentiate_tile(
                    0.0, task, M, width, training, B, cotangent, x, weight, mean, rstd, along, across, dx
                )


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
        y = empty(x.shape, x.dtype)
        if self.training:
            statistics = new_statistics(plan.statistics, x)
        else:
            statistics = running_statistics(plan.eps, *running)
        if x.size:
            shape = (plan.Z, plan.A * plan.M)
            sums, squares = np.empty((2, plan.Z, down(plan) if self.training else 0, plan.M))
            self.forward_driver[x.dtype](
                plan.M,
                width_of(plan),
                self.training,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels).repeat(plan.repeat),
                affine(bias, 0, x.dtype, plan.channels).repeat(plan.repeat),
                plan.B,
                plan.eps,
                y.reshape(shape),
                np.empty(plan.statistics if self.training else 0),
                sums,
                squares,
                *statistics,
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
        dx = empty(x.shape if needs[0] else (0,), x.dtype)
        dweight, dbias = np.zeros((2, plan.Z, plan.M))
        if x.size and any(need):
            shape = (plan.Z, plan.A * plan.M)
            sums, moments = np.empty((2, plan.Z, down(plan), plan.M))
            along, across = np.zeros((2, plan.statistics))
            self.backward_driver[x.dtype](
                plan.M,
                width_of(plan),
                self.training,
                need,
                plan.B,
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels).repeat(plan.repeat),
                aux[0],
                aux[2],
                sums,
                moments,
                along,
                across,
                dx.reshape(shape if needs[0] else (0, 0)),
                dweight,
                dbias,
            )
        if plan.repeat > 1:
            dweight, dbias = (
                sums.reshape(plan.Z, plan.channels, plan.repeat).sum(axis=2) for sums in (dweight, dbias)
            )
        return gradients(needs, dx, dweight, dbias, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
