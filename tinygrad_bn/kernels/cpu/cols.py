"""The family *cols*: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

A statistic belongs to one z and to B neighbours along M, and is taken over A. x is read as long rows: where M
is small, several neighbours along A make one row of `width` values. One task is a tile of some rows and some
columns, small enough for the second-level cache; columns are never read one at a time. Each pass goes through
all tiles: one takes sums, which are added in float64, in the order of the tiles; one writes, with factors
found once for each channel. Many small z go through the passes in batches. The formulas are *split*'s::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias
    dx = rstd (g − mean(g) − x̂ · mean(g x̂))
    dweight = Σ_{z, a} cotangent · x̂             dbias = Σ_{z, a} cotangent

with g the cotangent times the weight; in inference μ and σ² are constants, so that dx = rstd g. Sums and
factors near the ends of the range of float32 are done in float64: ``sums`` says how, and what
range that gives.

A *layout* is how x[z] is read: the number of columns M; how many neighbours along M are one channel, of one
weight; how many channels have one statistic; the width of a row; and the columns of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange, types

from ..views import Cols, remembered
from .arrays import (
    Array,
    Gradients,
    Statistics,
    affine,
    contiguous,
    gradients,
    new_statistics,
)
from .jit import DOUBLE, FLAG, FLAGS, INT, Driver, body, read, twins, write
from .memory import empty
from .sums import SAMPLES, fits, is_finite, reliable, samples, settled

# Sums of a tile are in the dtype of x, which may be float32: over no more rows than these.
TILE_ROWS = 128
TILE_COLUMNS = 1024
# Rows of a small M are joined up to about this length.
JOINED = 512
# A batch has about so many values of x: enough for several threads, and little room for factors and sums.
BATCH = 1 << 18

LAYOUT = types.UniTuple(INT, 5)


@body
def tiles_of(x, layout):
    """How many rows x[z] has, and how many tiles lie below each other and beside each other."""
    _M, _repeat, _members, width, columns = layout
    rows = (x.shape[1] + width - 1) // width
    return rows, (rows + TILE_ROWS - 1) // TILE_ROWS, (width + columns - 1) // columns


@body
def tiles(x, layout):
    _rows, down, across = tiles_of(x, layout)
    return x.shape[0] * down * across


@body
def tile_of(task, x, layout):
    """The tile of a task: z, its number, first and last row, first and last column."""
    _M, _repeat, _members, width, columns = layout
    rows, down, across = tiles_of(x, layout)
    z, t, c = task // (down * across), task // across % down, task % across * columns
    return z, t, t * TILE_ROWS, min((t + 1) * TILE_ROWS, rows), c, min(c + columns, width)


@body
def spread(zero, count, factors, layout, c, d):
    """The first factors [count, channels] of the channels of columns c … d − 1, in the type of zero."""
    M, repeat, _members, _width, _columns = layout
    rows = np.empty((count, d - c), type(zero))
    for p in range(count):
        row = rows[p]
        if repeat == 1:
            own = factors[p, c : min(d, M)]
            for j in range(own.size):
                row[j] = own[j]
        else:
            for start in range(0, row.size, repeat):
                factor = type(zero)(factors[p, (c + start) % M // repeat])
                part = row[start : start + repeat]
                for j in range(part.size):
                    part[j] = factor
        for j in range(M, row.size):
            row[j] = row[j - M]
    return rows


@body
def gather(row, layout, c, result):
    """Add up the columns, from c on, of each channel."""
    M, repeat, _members, _width, _columns = layout
    size = min(row.size, M)
    for start in range(M, row.size, M):
        part = row[start : start + M]
        for j in range(part.size):
            row[j] += part[j]
    for start in range(0, size, repeat):
        total = 0.0
        for j in range(repeat):
            total += row[start + j]
        result[(c + start) // repeat] = total


@body
def choose_pivots(z, x, layout, factors):
    """Factor 0 of each channel: a value near the mean of its statistic, in x's dtype.

    It is the mean of a few values spread over the statistic.
    """
    M, repeat, members, _width, _columns = layout
    B = repeat * members
    few, step = samples(x.shape[1] // M * B, SAMPLES)
    totals = np.zeros(M // B)
    for k in range(few):
        at = k * step
        start = at // B * M + at % B
        for s in range(totals.size):
            totals[s] += x[z, start + s * B]
    for k in range(factors.shape[2]):
        total = totals[k // members]
        factors[z, 0, k] = x.dtype.type(total / few) if is_finite(total) else 0.0


@body
def tile_moments(zero, task, x, layout, factors, sums):
    """The sums of x − pivot and of its square over each channel of a tile; factor 0 is the pivot."""
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout[3]
    pivot = spread(zero, 1, factors[z], layout, c, d)[0]
    total, square = np.full(d - c, zero), np.full(d - c, zero)
    pairs = a + max(min(b, x.shape[1] // width) - a, 0) // 2 * 2  # the last row may be shorter
    for r in range(a, pairs, 2):
        row0 = x[z, r * width + c : r * width + d]
        row1 = x[z, (r + 1) * width + c : (r + 1) * width + d]
        for j in range(pivot.size):
            d0, d1 = row0[j] - pivot[j], row1[j] - pivot[j]
            total[j] += d0 + d1
            square[j] += d0 * d0 + d1 * d1
    for r in range(pairs, b):
        row = x[z, r * width + c : r * width + d]
        for j in range(row.size):
            deviation = row[j] - pivot[j]
            total[j] += deviation
            square[j] += deviation * deviation
    gather(total, layout, c, sums[z, t, 0])
    gather(square, layout, c, sums[z, t, 1])


@body
def merge_statistics(z, x, layout, factors, sums, mean, variance):
    """From the sums of the tiles of one z to its mean and variance.

    Whether every pivot was near enough, and the dtype of x wide enough, is returned; pivots become means.
    """
    M, repeat, members, _width, _columns = layout
    n = x.shape[1] // M * repeat * members
    good = True
    for t in range(1, sums.shape[1]):
        for k in range(sums.shape[3]):
            sums[z, 0, 0, k] += sums[z, t, 0, k]
            sums[z, 0, 1, k] += sums[z, t, 1, k]
    for s in range(M // (repeat * members)):
        i = z * (M // (repeat * members)) + s
        total = 0.0
        square = 0.0
        for k in range(s * members, s * members + members):
            total += sums[z, 0, 0, k]
            square += sums[z, 0, 1, k]
        good &= settled(n, total, square) and reliable(square, x)
        shift = total / n
        mean[i] = factors[z, 0, s * members] + shift
        variance[i] = (square - min(total * shift, square)) / n
        for k in range(s * members, s * members + members):
            factors[z, 0, k] = mean[i] if is_finite(mean[i]) else 0.0
    return good


@body
def forward_factors(z, x, layout, weight, bias, eps, mean, variance, rstd, factors):
    """Of each channel of one z, so that y is (x − factor 0) · factor 1 + factor 2; and rstd.

    Whether the dtype of x is wide enough for them is returned.
    """
    M, repeat, members, _width, _columns = layout
    in_range = True
    for s in range(M // (repeat * members)):
        i = z * (M // (repeat * members)) + s
        rstd[i] = 1.0 / np.sqrt(variance[i] + eps)
        in_range &= reliable(rstd[i], x)
        centre = x.dtype.type(mean[i])
        for k in range(s * members, s * members + members):
            factor = rstd[i] * weight[k]
            in_range &= reliable(factor, x) or weight[k] == 0
            factors[z, 0, k] = centre
            factors[z, 1, k] = factor
            factors[z, 2, k] = (centre - mean[i]) * factor + bias[k]
    return in_range


@body
def normalize_tile(zero, task, x, layout, factors, y):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout[3]
    rows = spread(zero, 3, factors[z], layout, c, d)
    centre, scale, shift = rows[0], rows[1], rows[2]
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        out = y[z, r * width + c : r * width + d]
        for j in range(row.size):
            out[j] = (row[j] - centre[j]) * scale[j] + shift[j]


@twins(
    lambda T: (
        *(LAYOUT, FLAG, read(T, 2), read(T, 1), read(T, 1), DOUBLE),
        *(write(T, 2), write(DOUBLE, 3), write(DOUBLE, 4), write(FLAG, 1), write(DOUBLE, 2)),
    )
)
def forward(layout, training, x, weight, bias, eps, y, factors, sums, wide, statistics):
    batch = factors.shape[0]
    per_z = statistics.shape[1] // x.shape[0]
    for first in range(0, x.shape[0], batch):
        last = min(first + batch, x.shape[0])
        part, out = x[first:last], y[first:last]
        mean, variance, rstd = statistics[0], statistics[1], statistics[2]
        mean, variance = mean[first * per_z : last * per_z], variance[first * per_z : last * per_z]
        rstd = rstd[first * per_z : last * per_z]
        if training:
            for z in range(last - first):
                choose_pivots(z, part, layout, factors)
            for again in range(2):
                for task in prange(tiles(part, layout)):
                    if not again:
                        tile_moments(x.dtype.type(0), task, part, layout, factors, sums)
                    elif wide[tile_of(task, part, layout)[0]]:
                        tile_moments(0.0, task, part, layout, factors, sums)
                good = True
                for z in range(last - first):
                    if not again or wide[z]:
                        wide[z] = not merge_statistics(z, part, layout, factors, sums, mean, variance)
                        good &= not wide[z]
                if good:
                    break
        for z in range(last - first):
            wide[z] = not forward_factors(z, part, layout, weight, bias, eps, mean, variance, rstd, factors)
        for task in prange(tiles(part, layout)):
            if wide[tile_of(task, part, layout)[0]]:
                normalize_tile(0.0, task, part, layout, factors, out)
            else:
                normalize_tile(x.dtype.type(0), task, part, layout, factors, out)


@body
def tile_sums(zero, task, layout, cotangent, x, factors, sums):
    """The sums of cotangent and of cotangent * (x − factor 0) over each channel of a tile.

    Whether the dtype of x was wide enough for it is returned.
    """
    z, t, a, b, c, d = tile_of(task, x, layout)
    width = layout[3]
    centre = spread(zero, 1, factors[z], layout, c, d)[0]
    total, moment = np.full(d - c, zero), np.full(d - c, zero)
    for r in range(a, b):
        g, row = cotangent[z, r * width + c : r * width + d], x[z, r * width + c : r * width + d]
        for j in range(g.size):
            total[j] += g[j]
            moment[j] += g[j] * (row[j] - centre[j])
    gather(total, layout, c, sums[z, t, 0])
    gather(moment, layout, c, sums[z, t, 1])
    outside = 0
    for j in range(total.size):
        if not (is_finite(total[j]) and reliable(moment[j], x)):
            outside += 1
    return outside == 0


@body
def backward_factors(z, x, layout, training, weight, mean, rstd, sums, factors, dweight, dbias):
    """Of each channel of one z, so that dx is cotangent · factor 1 + ((x − factor 0) · factor 2 + factor 3),
    in inference without x; dweight and dbias are added to from the sums of the tiles.

    Whether the dtype of x is wide enough for dx is returned.
    """
    M, repeat, members, _width, _columns = layout
    n = x.shape[1] // M * repeat * members
    plain, moments = sums[z, 0, 0], sums[z, 0, 1]
    for t in range(1, sums.shape[1]):
        for k in range(plain.size):
            plain[k] += sums[z, t, 0, k]
            moments[k] += sums[z, t, 1, k]
    in_range = True
    for s in range(M // (repeat * members)):
        i = z * (M // (repeat * members)) + s
        scale = rstd[i]
        rest = factors[z, 0, s * members] - mean[i]
        total = 0.0
        moment = 0.0
        for k in range(s * members, s * members + members):
            normalized = (moments[k] + rest * plain[k]) * scale
            dweight[k] += normalized
            dbias[k] += plain[k]
            total += weight[k] * plain[k]
            moment += weight[k] * normalized
        along = -scale * scale * moment / n
        in_range &= reliable(scale, x) and (fits(along, x) or not training)
        for k in range(s * members, s * members + members):
            factor = scale * weight[k]
            in_range &= reliable(factor, x) or weight[k] == 0
            factors[z, 1, k] = factor
            factors[z, 2, k] = along
            factors[z, 3, k] = rest * along - scale * total / n
    return in_range


@body
def differentiate_tile(zero, task, layout, training, cotangent, x, factors, dx):
    z, _t, a, b, c, d = tile_of(task, x, layout)
    width = layout[3]
    rows = spread(zero, 4, factors[z], layout, c, d)
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


@twins(
    lambda T: (
        *(LAYOUT, FLAG, FLAGS, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2)),
        *(write(DOUBLE, 3), write(DOUBLE, 4), write(FLAG, 1), write(T, 2), write(DOUBLE, 3)),
    )
)
def backward(layout, training, need, cotangent, x, weight, statistics, factors, sums, wide, dx, totals):
    need_x, need_affine = need
    dweight, dbias = totals[0, 0], totals[1, 0]
    batch, channels = factors.shape[0], factors.shape[2]
    per_z = statistics.shape[1] // x.shape[0]
    for first in range(0, x.shape[0], batch):
        last = min(first + batch, x.shape[0])
        part, g = x[first:last], cotangent[first:last]
        mean, rstd = statistics[0], statistics[2]
        mean, rstd = mean[first * per_z : last * per_z], rstd[first * per_z : last * per_z]
        for z in range(last - first):
            for k in range(channels):
                factors[z, 0, k] = x.dtype.type(mean[(z * channels + k) // layout[2]])
        if training or need_affine:
            for task in prange(tiles(part, layout)):
                if not tile_sums(x.dtype.type(0), task, layout, g, part, factors, sums):
                    tile_sums(0.0, task, layout, g, part, factors, sums)
        for z in range(last - first):
            wide[z] = not backward_factors(
                z, part, layout, training, weight, mean, rstd, sums, factors, dweight, dbias
            )
        if need_x:
            out = dx[first:last]
            for task in prange(tiles(part, layout)):
                if wide[tile_of(task, part, layout)[0]]:
                    differentiate_tile(0.0, task, layout, training, g, part, factors, out)
                else:
                    differentiate_tile(x.dtype.type(0), task, layout, training, g, part, factors, out)


@remembered
def layout_of(plan: Cols) -> tuple[int, int, int, int, int]:
    """The layout of a view: rows are M long, or the largest multiple of a small M up to JOINED."""
    width = plan.M * max(1, min(JOINED // plan.M, plan.A))
    columns = width if width > plan.M else max(1, TILE_COLUMNS // plan.repeat) * plan.repeat
    return plan.M, plan.repeat, plan.B // plan.repeat, width, columns


def scratch(plan: Cols, count: int, width: int) -> tuple[Array, Array, Array]:
    """Room for a batch: factors [z, count, channels], sums [z, tiles, 2, channels], which are 0 where a pass
    takes none, and for which z float64 is needed.
    """
    batch, tiles, channels = room(plan, width)
    return (
        np.empty((batch, count, channels)),
        np.zeros((batch, tiles, 2, channels)),
        np.zeros(batch, np.bool_),
    )


@remembered
def room(plan: Cols, width: int) -> tuple[int, int, int]:
    """How many z a batch has, tiles below each other, and channels."""
    rows = -(-plan.A * plan.M // width)
    return min(plan.Z, max(1, BATCH // (plan.A * plan.M))), -(-rows // TILE_ROWS), plan.channels


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
        statistics = new_statistics(plan.statistics, x, running)
        if x.size:
            shape = (plan.Z, plan.A * plan.M)
            layout = layout_of(plan)
            self.forward_driver[x.dtype](
                layout,
                self.training,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                affine(bias, 0, x.dtype, plan.channels),
                plan.eps,
                y.reshape(shape),
                *scratch(plan, 3, layout[3]),
                statistics,
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
        need_x, need_affine = needs[0], needs[1] or needs[2]
        dx = empty(x.shape if need_x else (0,), x.dtype)
        totals = np.zeros((2, 1, plan.channels))
        if x.size and any(needs):
            shape = (plan.Z, plan.A * plan.M)
            layout = layout_of(plan)
            self.backward_driver[x.dtype](
                layout,
                self.training,
                (need_x, need_affine),
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                aux,
                *scratch(plan, 4, layout[3]),
                dx.reshape(shape if need_x else (0, 0)),
                totals,
            )
        return gradients(needs, dx, totals, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
