"""The family *cols*: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

A statistic belongs to one z and to B neighbours along M, and is taken over A. One task is a tile of some
rows and some columns, small enough for the second-level cache and passed through row by row; columns are
never read one at a time. Partial results of the tiles are merged in float64, in the order of the tiles. The
formulas are those of *split*::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias
    dx = rstd (g − mean(g) − x̂ · mean(g x̂))
    dweight = Σ_{z, a} cotangent · x̂             dbias = Σ_{z, a} cotangent

with g the cotangent times the weight; in inference μ and σ² are constants, so that dx = rstd g. Columns whose
sums, and tiles whose factors are near the ends of the range of float32 are done in float64: ``sums`` says
how, and what range that gives.
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
from .sums import add_moments, add_up, cotangent_sums, fits, is_finite, merge_moments, reliable

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024


@body
def tile_of(task, x):
    """The tile of a task: z, index along the rows, first and last row, first and last column."""
    _, A, M = x.shape
    down = (A + TILE_ROWS - 1) // TILE_ROWS
    across = (M + TILE_COLUMNS - 1) // TILE_COLUMNS
    z, rest = task // (down * across), task % (down * across)
    t, c = rest // across, rest % across * TILE_COLUMNS
    a = t * TILE_ROWS
    return z, t, a, min(a + TILE_ROWS, A), c, min(c + TILE_COLUMNS, M)


@body
def tiles(x):
    Z, A, M = x.shape
    return Z * ((A + TILE_ROWS - 1) // TILE_ROWS) * ((M + TILE_COLUMNS - 1) // TILE_COLUMNS)


@body
def tile_moments(task, x, means, squares):
    """The mean and sum of squared deviations of each column of a tile, found as in ``sums.add_moments``."""
    z, t, a, b, c, d = tile_of(task, x)
    zero = x.dtype.type(0)
    centre = np.zeros(d - c, x.dtype)
    total = np.zeros(d - c, x.dtype)
    total_squares = np.zeros(d - c, x.dtype)
    for j in range(centre.size):
        pivot = x[z, a, c + j]
        centre[j] = pivot if is_finite(pivot) else zero
    for r in range(a, b):
        row = x[z, r, c:d]
        for j in range(row.size):
            total[j] += row[j] - centre[j]
    for j in range(centre.size):
        centre[j] = x.dtype.type(centre[j] + np.float64(total[j]) / (b - a))
        total[j] = zero
    for r in range(a, b):
        row = x[z, r, c:d]
        for j in range(row.size):
            deviation = row[j] - centre[j]
            total[j] += deviation
            total_squares[j] += deviation * deviation
    for j in range(centre.size):
        mean = np.float64(centre[j])
        square = np.float64(total_squares[j])
        if is_finite(mean):
            shift = np.float64(total[j]) / (b - a)
            mean += shift
            square -= min(np.float64(total[j]) * shift, square)
        means[z, t, c + j] = mean
        squares[z, t, c + j] = square
    for m in range(c, d):
        if not reliable(squares[z, t, m], x):
            _count, means[z, t, m], squares[z, t, m] = add_moments(0.0, x[z, a:b, m], 0, 0.0, 0.0)


@body
def pool_tiles(A, means, squares):
    """Merge the moments [tiles, M] of the tiles of A rows, column by column, into row 0."""
    M = means.shape[1]
    pivot = np.empty(M)
    mean = np.zeros(M)
    total = np.zeros(M)
    for j in range(M):
        pivot[j] = means[0, j] if is_finite(means[0, j]) else 0.0
    for t in range(means.shape[0]):
        count = min(TILE_ROWS, A - t * TILE_ROWS)
        tile_mean = means[t]
        for j in range(M):
            mean[j] += (tile_mean[j] - pivot[j]) * count
    for j in range(M):
        mean[j] = pivot[j] + mean[j] / A
    for t in range(means.shape[0]):
        count = min(TILE_ROWS, A - t * TILE_ROWS)
        tile_mean = means[t]
        tile_squares = squares[t]
        for j in range(M):
            delta = tile_mean[j] - mean[j]
            total[j] += tile_squares[j] + delta * delta * count
    for j in range(M):
        means[0, j] = mean[j]
        squares[0, j] = total[j]


@body
def merge_statistics(z, x, B, eps, means, squares, mean, variance, rstd):
    """From the moments of the tiles of one z to its statistics."""
    A, M = x.shape[1], x.shape[2]
    pool_tiles(A, means[z], squares[z])
    for s in range(M // B):
        i = z * (M // B) + s
        count, centre, square = 0, 0.0, 0.0
        for m in range(s * B, s * B + B):
            count, centre, square = merge_moments(count, centre, square, A, means[z, 0, m], squares[z, 0, m])
        mean[i] = centre
        variance[i] = square / count
        rstd[i] = 1.0 / np.sqrt(variance[i] + eps)


@body
def row_of(zero, size):
    return np.full(size, zero)


@body
def normalize_tile(zero, task, x, weight, bias, B, y, mean, rstd):
    """Whether the dtype of x was wide enough for it is returned."""
    z, _t, a, b, c, d = tile_of(task, x)
    in_range = True
    centre, scale, shift = row_of(zero, d - c), row_of(zero, d - c), row_of(zero, d - c)
    for j in range(centre.size):
        i = z * (x.shape[2] // B) + (c + j) // B
        factor = rstd[i] * weight[c + j]
        centre[j] = mean[i]
        scale[j] = factor
        shift[j] = (centre[j] - mean[i]) * factor + bias[c + j]
    for j in range(centre.size):
        in_range &= reliable(scale[j], x) or weight[c + j] == 0
    for i in range((z * x.shape[2] + c) // B, (z * x.shape[2] + d - 1) // B + 1):
        in_range &= reliable(rstd[i], x)
    for r in range(a, b):
        row = x[z, r, c:d]
        out = y[z, r, c:d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]
    return in_range


@twins(
    lambda T: (
        *(FLAG, read(T, 3), read(T, 1), read(T, 1), INT, DOUBLE),
        *(
            write(T, 3),
            write(DOUBLE, 3),
            write(DOUBLE, 3),
            write(DOUBLE, 1),
            write(DOUBLE, 1),
            write(DOUBLE, 1),
        ),
    )
)
def forward(training, x, weight, bias, B, eps, y, means, squares, mean, variance, rstd):
    if training:
        for task in prange(tiles(x)):
            tile_moments(task, x, means, squares)
        for z in range(x.shape[0]):
            merge_statistics(z, x, B, eps, means, squares, mean, variance, rstd)
    for task in prange(tiles(x)):
        if not normalize_tile(x.dtype.type(0), task, x, weight, bias, B, y, mean, rstd):
            normalize_tile(0.0, task, x, weight, bias, B, y, mean, rstd)


@body
def tile_sums(task, B, cotangent, x, mean, sums, moments):
    """The sums of cotangent and of cotangent * (x - mean) of each column, the mean rounded to x's dtype."""
    z, t, a, b, c, d = tile_of(task, x)
    centre = np.empty(d - c, x.dtype)
    for j in range(centre.size):
        centre[j] = mean[z * (x.shape[2] // B) + (c + j) // B]
    total = np.zeros(d - c, x.dtype)
    moment = np.zeros(d - c, x.dtype)
    for r in range(a, b):
        g = cotangent[z, r, c:d]
        row = x[z, r, c:d]
        for j in range(g.size):
            total[j] += g[j]
            moment[j] += g[j] * (row[j] - centre[j])
    for j in range(centre.size):
        sums[z, t, c + j] = total[j]
        moments[z, t, c + j] = moment[j]
    for m in range(c, d):
        if not (is_finite(sums[z, t, m]) and reliable(moments[z, t, m], x)):
            g, column = cotangent[z, a:b, m], x[z, a:b, m]
            sums[z, t, m], moments[z, t, m] = cotangent_sums(0.0, g, column, centre[m - c])


@body
def merge_sums(z, x, B, weight, mean, rstd, sums, moments, along, across, dweight, dbias):
    """From the sums of the tiles of one z to dweight and dbias, and to the slope and offset of dx."""
    A, M = x.shape[1], x.shape[2]
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
        along[i] = -rstd[i] * rstd[i] * moment / (A * B)
        across[i] = -rstd[i] * total / (A * B)


@body
def differentiate_tile(zero, task, training, B, cotangent, x, weight, mean, rstd, along, across, dx):
    """Whether the dtype of x was wide enough for it is returned."""
    z, _t, a, b, c, d = tile_of(task, x)
    in_range = True
    centre, scale = row_of(zero, d - c), row_of(zero, d - c)
    slope, shift = row_of(zero, d - c), row_of(zero, d - c)
    for j in range(centre.size):
        i = z * (x.shape[2] // B) + (c + j) // B
        centre[j] = mean[i]
        factor = rstd[i] * weight[c + j]
        scale[j] = factor
        slope[j] = along[i]
        shift[j] = (centre[j] - mean[i]) * along[i] + across[i]
    for j in range(centre.size):
        in_range &= reliable(scale[j], x) or weight[c + j] == 0
    for i in range((z * x.shape[2] + c) // B, (z * x.shape[2] + d - 1) // B + 1):
        in_range &= reliable(rstd[i], x) and fits(along[i], x)
    for r in range(a, b):
        g = cotangent[z, r, c:d]
        row = x[z, r, c:d]
        out = dx[z, r, c:d]
        if training:
            for j in range(g.size):
                out[j] = g[j] * scale[j] + ((row[j] - centre[j]) * slope[j] + shift[j])
        else:
            for j in range(g.size):
                out[j] = g[j] * scale[j]
    return in_range


@twins(
    lambda T: (
        *(FLAG, FLAGS, INT, read(T, 3), read(T, 3), read(T, 1), read(DOUBLE, 1), read(DOUBLE, 1)),
        *(write(DOUBLE, 3), write(DOUBLE, 3), write(DOUBLE, 1), write(DOUBLE, 1)),
        *(write(T, 3), write(DOUBLE, 2), write(DOUBLE, 2)),
    )
)
def backward(
    training, need, B, cotangent, x, weight, mean, rstd, sums, moments, along, across, dx, dweight, dbias
):
    need_x, need_affine = need
    if training or need_affine:
        for task in prange(tiles(x)):
            tile_sums(task, B, cotangent, x, mean, sums, moments)
        for z in range(x.shape[0]):
            merge_sums(z, x, B, weight, mean, rstd, sums, moments, along, across, dweight, dbias)
    if need_x:
        for task in prange(tiles(x)):
            zero = x.dtype.type(0)
            if not differentiate_tile(
                zero, task, training, B, cotangent, x, weight, mean, rstd, along, across, dx
            ):
                differentiate_tile(
                    0.0, task, training, B, cotangent, x, weight, mean, rstd, along, across, dx
                )


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
            means, squares = np.empty((2, plan.Z, -(-plan.A // TILE_ROWS) if self.training else 0, plan.M))
            self.forward_driver[x.dtype](
                self.training,
                contiguous(x, plan.shape),
                affine(weight, 1, x.dtype, plan.channels),
                affine(bias, 0, x.dtype, plan.channels),
                plan.B,
                plan.eps,
                y.reshape(plan.shape),
                means,
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
        dx = np.empty(x.shape if needs[0] else 0, x.dtype)
        dweight, dbias = np.zeros((2, plan.Z, plan.channels))
        if x.size and any(need):
            sums, moments = np.empty((2, plan.Z, -(-plan.A // TILE_ROWS), plan.M))
            along, across = np.zeros((2, plan.statistics))
            self.backward_driver[x.dtype](
                self.training,
                need,
                plan.B,
                contiguous(cotangent, plan.shape),
                contiguous(x, plan.shape),
                affine(weight, 1, x.dtype, plan.channels),
                aux[0],
                aux[2],
                sums,
                moments,
                along,
                across,
                dx.reshape(plan.shape if needs[0] else (0, 0, 0)),
                dweight,
                dbias,
            )
        return gradients(needs, dx, dweight, dbias, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
