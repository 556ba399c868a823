"""The family *rows*: LayerNorm and RMSNorm, which normalize each row of [R, B].

Forward, for one row with mean μ and variance σ² (RMSNorm: μ = 0 and the mean square)::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias

Backward, with g the cotangent times the weight (RMSNorm: without the first mean)::

    dx = rstd (g − mean(g) − x̂ · mean(g x̂))     dweight = Σ_rows cotangent · x̂     dbias = Σ_rows cotangent

x̂ is made anew from x, mean and rstd: it is never stored. In the dtype of x, which may be float32, the mean
is applied in two parts, its rounded value and the rest, so that a large mean costs no accuracy. Rows near the
ends of the range of float32 are computed in float64: ``sums`` says how, and what range that gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from ..views import Rows
from .arrays import Array, Gradients, Statistics, affine, contiguous, gradients, new_statistics
from .jit import DOUBLE, FLAG, INT, Driver, body, read, twins, write
from .memory import empty
from .sums import (
    CHUNK,
    add_moments,
    add_up,
    fits,
    is_finite,
    reliable,
    row_moments,
    sum_squares,
)

# Rows no longer than a chunk go through each pass of the forward together, so many values: as many as leave
# room for the output in the caches, since to read and to write by turns is slow.
FORWARD_TASK = 8192
# A task of the backward pass sums dweight and dbias in the dtype of x, over no more rows than this.
MOST_BACKWARD_ROWS = 64
BACKWARD_TASKS = 16
# But what comes with a task costs more than so many values.
LEAST_BACKWARD = 2048
# Several short rows go through each pass together, so many values: they stay in the first-level cache. Few
# rows that are longer are differentiated in blocks of so many columns, so that no task has partial sums of
# dweight and dbias as long as a row.
BLOCK = 2048
# The output of rows that are longer than this is made in such blocks too: with weight and bias, which all
# rows share, they do not stay in the second-level cache.
LONG_ROW = 1 << 16


@body
def one_row(values):
    """A run of values as an array of one row."""
    return np.expand_dims(values, 0)


@body
def find_statistics(zero, x, eps, centred, mean, variance, rstd):
    """The statistics of rows, and whether the dtype of x was wide enough for them and for what they give."""
    length = x.shape[1]
    if length <= CHUNK:
        row_moments(zero, x, centred, mean, variance)
    else:
        for r in range(x.shape[0]):
            if centred:
                _count, mean[r], squares = add_moments(zero, x[r], 0, 0.0, 0.0)
            else:
                mean[r], squares = 0.0, sum_squares(zero, x[r])
            variance[r] = squares / length
    outside = 0
    for r in range(mean.size):
        rstd[r] = 1.0 / np.sqrt(variance[r] + eps)
        outside += not (reliable(variance[r], x) and reliable(rstd[r], x))
    return outside == 0


@body
def normalize_rows(zero, x, weight, bias, mean, rstd, y):
    T = type(zero)
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        centre = T(mean[r])
        scale = T(rstd[r])
        shift = T((centre - mean[r]) * rstd[r])
        for j in range(weight.size):
            out[j] = ((row[j] - centre) * scale + shift) * weight[j] + bias[j]


@body
def normalize_columns(a, b, x, weight, bias, mean, variance, rstd, y):
    """Columns a … b − 1 of rows, each in the dtype of x or, where that is too narrow for it, in float64."""
    weights, biases = weight[a:b], bias[a:b]
    for r in range(x.shape[0]):
        e = r + 1
        row, out, means, rstds = one_row(x[r, a:b]), one_row(y[r, a:b]), mean[r:e], rstd[r:e]
        if reliable(variance[r], x) and reliable(rstd[r], x):
            normalize_rows(x.dtype.type(0), row, weights, biases, means, rstds, out)
        else:
            normalize_rows(0.0, row, weights, biases, means, rstds, out)


@body
def normalize_task(x, weight, bias, eps, centred, y, mean, variance, rstd):
    """The statistics of a task's rows, and their output, unless that is made by blocks of columns."""
    zero = x.dtype.type(0)
    length = x.shape[1]
    in_range = find_statistics(zero, x, eps, centred, mean, variance, rstd)
    if not in_range:
        for r in range(x.shape[0]):
            if not (reliable(variance[r], x) and reliable(rstd[r], x)):
                e = r + 1
                find_statistics(0.0, x[r:e], eps, centred, mean[r:e], variance[r:e], rstd[r:e])
    if length <= LONG_ROW:
        if in_range:
            normalize_rows(zero, x, weight, bias, mean, rstd, y)
        else:
            normalize_columns(np.int64(0), length, x, weight, bias, mean, variance, rstd, y)


@twins(
    lambda T: (
        *(INT, read(T, 2), read(T, 1), read(T, 1), DOUBLE, FLAG),
        *(write(T, 2), write(DOUBLE, 2)),
    )
)
def forward(step, x, weight, bias, eps, centred, y, statistics):
    mean, variance, rstd = statistics[0], statistics[1], statistics[2]
    for task in prange((x.shape[0] + step - 1) // step):
        a = task * step
        b = min(a + step, x.shape[0])
        out, means, variances, rstds = y[a:b], mean[a:b], variance[a:b], rstd[a:b]
        normalize_task(x[a:b], weight, bias, eps, centred, out, means, variances, rstds)
    length = x.shape[1]
    if length > LONG_ROW:
        for task in prange((length + BLOCK - 1) // BLOCK):
            a = task * BLOCK
            normalize_columns(a, min(a + BLOCK, length), x, weight, bias, mean, variance, rstd, y)


@body
def sum_row(zero, g, row, weight, mean, rstd, dweight, dbias):
    """The sums of g · weight and g · weight · x̂ over a row; its parts of dweight and dbias are added."""
    T = type(zero)
    centre = T(mean)
    scale = T(rstd)
    shift = T((centre - mean) * rstd)
    total = zero
    moment = zero
    for j in range(row.size):
        normalized = (row[j] - centre) * scale + shift
        dweight[j] += g[j] * normalized
        dbias[j] += g[j]
        total += g[j] * weight[j]
        moment += g[j] * weight[j] * normalized
    return total, moment


@body
def sum_four_rows(zero, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """As sum_row for rows, four at a time: dweight and dbias are loaded and stored once for them.

    A rest of up to three rows is left out.
    """
    T = type(zero)
    for four in range(x.shape[0] // 4):
        r = 4 * four
        g0, g1, g2, g3 = cotangent[r], cotangent[r + 1], cotangent[r + 2], cotangent[r + 3]
        x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
        centre0, centre1, centre2, centre3 = T(mean[r]), T(mean[r + 1]), T(mean[r + 2]), T(mean[r + 3])
        scale0, scale1, scale2, scale3 = T(rstd[r]), T(rstd[r + 1]), T(rstd[r + 2]), T(rstd[r + 3])
        shift0 = T((centre0 - mean[r]) * rstd[r])
        shift1 = T((centre1 - mean[r + 1]) * rstd[r + 1])
        shift2 = T((centre2 - mean[r + 2]) * rstd[r + 2])
        shift3 = T((centre3 - mean[r + 3]) * rstd[r + 3])
        total0, total1, total2, total3 = zero, zero, zero, zero
        moment0, moment1, moment2, moment3 = zero, zero, zero, zero
        for j in range(weight.size):
            n0 = (x0[j] - centre0) * scale0 + shift0
            n1 = (x1[j] - centre1) * scale1 + shift1
            n2 = (x2[j] - centre2) * scale2 + shift2
            n3 = (x3[j] - centre3) * scale3 + shift3
            dweight[j] += (g0[j] * n0 + g1[j] * n1) + (g2[j] * n2 + g3[j] * n3)
            dbias[j] += (g0[j] + g1[j]) + (g2[j] + g3[j])
            total0 += g0[j] * weight[j]
            total1 += g1[j] * weight[j]
            total2 += g2[j] * weight[j]
            total3 += g3[j] * weight[j]
            moment0 += g0[j] * weight[j] * n0
            moment1 += g1[j] * weight[j] * n1
            moment2 += g2[j] * weight[j] * n2
            moment3 += g3[j] * weight[j] * n3
        totals[r], totals[r + 1], totals[r + 2], totals[r + 3] = total0, total1, total2, total3
        moments[r], moments[r + 1], moments[r + 2], moments[r + 3] = moment0, moment1, moment2, moment3


@body
def sum_rows(zero, by_four, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """The sums over rows, and their parts of dweight and dbias.

    by_four is True or None; where it is None, no code is made for four rows. Whether the dtype of x was wide
    enough for it is returned.
    """
    done = 0
    if by_four is not None:
        done = x.shape[0] // 4 * 4
        sum_four_rows(zero, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments)
    for r in range(done, x.shape[0]):
        totals[r], moments[r] = sum_row(zero, cotangent[r], x[r], weight, mean[r], rstd[r], dweight, dbias)
    outside = 0
    for r in range(x.shape[0]):
        outside += not (reliable(rstd[r], x) and fits(totals[r], x) and fits(moments[r], x))
    return outside == 0


@body
def apply_means(zero, cotangent, x, weight, mean, rstd, offset, along, dx):
    """dx of rows, with minus the means of g · weight and of g · weight · x̂ given."""
    T = type(zero)
    for r in range(x.shape[0]):
        g, row, out = cotangent[r], x[r], dx[r]
        centre = T(mean[r])
        scale = T(rstd[r])
        shift = T((centre - mean[r]) * rstd[r])
        constant = T(offset[r])
        slope = T(along[r])
        for j in range(weight.size):
            normalized = (row[j] - centre) * scale + shift
            out[j] = scale * (g[j] * weight[j] + constant + slope * normalized)


@body
def to_means(length, centred, totals, moments):
    """Minus the means along a row, from the sums; without the first where not centred."""
    for r in range(totals.size):
        totals[r] = -totals[r] / length if centred else 0.0
        moments[r] = -moments[r] / length


@body
def differentiate_rows(zero, by_four, need_x, cotangent, x, weight, mean, rstd, centred, dx, sums):
    """Whether the dtype of x was wide enough for it is returned."""
    in_range = True
    dweight, dbias = sums
    dweight[:] = 0
    dbias[:] = 0
    length = x.shape[1]
    block = max(4, BLOCK // length // 4 * 4)
    totals, moments = np.empty(block), np.empty(block)
    for a in range(0, x.shape[0], block):
        b = min(a + block, x.shape[0])
        g, rows, means, rstds = cotangent[a:b], x[a:b], mean[a:b], rstd[a:b]
        in_range &= sum_rows(zero, by_four, g, rows, weight, means, rstds, dweight, dbias, totals, moments)
        if need_x:
            to_means(length, centred, totals, moments)
            apply_means(zero, g, rows, weight, means, rstds, totals, moments, dx[a:b])
    return in_range


@body
def sum_again(cotangent, x, mean, rstd, dweight, dbias):
    """dweight and dbias where the sums of a task overflowed: in float64 from the first row to the last."""
    dweight[:] = 0
    dbias[:] = 0
    for r in range(x.shape[0]):
        g = cotangent[r]
        row = x[r]
        for j in range(row.size):
            dweight[j] += g[j] * ((row[j] - mean[r]) * rstd[r])
            dbias[j] += g[j]


@twins(
    lambda T: (
        *(FLAG, FLAG, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG),
        *(write(T, 2), write(T, 3), write(DOUBLE, 3)),
    )
)
def backward(need_x, need_affine, step, cotangent, x, weight, statistics, centred, dx, partials, totals):
    mean, rstd = statistics[0], statistics[2]
    dweights, dbiases = partials[0], partials[1]
    dweight, dbias = totals[0, 0], totals[1, 0]
    for task in prange((x.shape[0] + step - 1) // step):
        a = task * step
        b = min(a + step, x.shape[0])
        g, rows, out, means, rstds = cotangent[a:b], x[a:b], dx[a:b], mean[a:b], rstd[a:b]
        sums = (dweights[task], dbiases[task])
        zero = x.dtype.type(0)
        if not differentiate_rows(zero, True, need_x, g, rows, weight, means, rstds, centred, out, sums):
            differentiate_rows(0.0, None, need_x, g, rows, weight, means, rstds, centred, out, sums)
    if need_affine:
        add_up(dweights, dweight)
        add_up(dbiases, dbias)
        if not (is_finite(dweight.sum()) and is_finite(dbias.sum())):
            sum_again(cotangent, x, mean, rstd, dweight, dbias)


@body
def add_blocks(centred, totals, moments, length):
    """Minus the means of each row, made in place of the sums of its first block."""
    for block in range(1, totals.shape[0]):
        for r in range(totals.shape[1]):
            totals[0, r] += totals[block, r]
            moments[0, r] += moments[block, r]
    to_means(length, centred, totals[0], moments[0])


@body
def differentiate_columns(a, b, cotangent, x, weight, mean, rstd, offset, along, dx):
    """As apply_means, columns a … b − 1, each row in the dtype of x or, if too narrow for it, in float64."""
    weights = weight[a:b]
    for r in range(x.shape[0]):
        e = r + 1
        g, row, out = one_row(cotangent[r, a:b]), one_row(x[r, a:b]), one_row(dx[r, a:b])
        means, rstds, offsets, slopes = mean[r:e], rstd[r:e], offset[r:e], along[r:e]
        if reliable(rstd[r], x) and fits(offset[r], x) and fits(along[r], x):
            apply_means(x.dtype.type(0), g, row, weights, means, rstds, offsets, slopes, out)
        else:
            apply_means(0.0, g, row, weights, means, rstds, offsets, slopes, out)


@body
def sum_block(zero, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """Columns a … b − 1 of every row: their parts of the sums of each row, and dweight and dbias.

    Whether the dtype of x was wide enough for it is returned.
    """
    dweights, dbiases = np.full(b - a, zero), np.full(b - a, zero)
    outside = 0
    for r in range(x.shape[0]):
        g, row = cotangent[r, a:b], x[r, a:b]
        totals[r], moments[r] = sum_row(zero, g, row, weight[a:b], mean[r], rstd[r], dweights, dbiases)
        outside += not (reliable(rstd[r], x) and fits(totals[r], x) and fits(moments[r], x))
    for j in range(b - a):
        dweight[a + j] = dweights[j]
        dbias[a + j] = dbiases[j]
    return outside == 0 and is_finite(dweight[a:b].sum()) and is_finite(dbias[a:b].sum())


@twins(
    lambda T: (
        *(FLAG, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG),
        *(write(T, 2), write(DOUBLE, 3), write(T, 3)),
    )
)
def backward_long(need_x, cotangent, x, weight, statistics, centred, dx, partials, sums):
    mean, rstd = statistics[0], statistics[2]
    totals, moments = partials[0], partials[1]
    dweight, dbias = sums[0, 0], sums[1, 0]
    length = x.shape[1]
    blocks = totals.shape[0]
    for task in prange(blocks):
        a = task * BLOCK
        b = min(a + BLOCK, length)
        zero = x.dtype.type(0)
        total, moment = totals[task], moments[task]
        if not sum_block(zero, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment):
            sum_block(0.0, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment)
    if need_x:
        add_blocks(centred, totals, moments, length)
        offset, along = totals[0], moments[0]
        for task in prange(blocks):
            a = task * BLOCK
            differentiate_columns(
                a, min(a + BLOCK, length), cotangent, x, weight, mean, rstd, offset, along, dx
            )


@dataclass(frozen=True, slots=True)
class RowsKernel:
    """The kernel of the view Rows, made of one twin of each driver."""

    forward_driver: Driver
    backward_driver: Driver
    long_driver: Driver

    def forward(
        self, plan: Rows, x: Array, weight: Array | None, bias: Array | None
    ) -> tuple[Array, Statistics]:
        shape, length, dtype = plan.shape, plan.length, x.dtype
        y = empty(x.shape, dtype)
        statistics = new_statistics(plan.rows, x)
        if x.size:
            self.forward_driver[dtype](
                FORWARD_TASK // length if length <= CHUNK else 1,
                contiguous(x, shape),
                affine(weight, 1, dtype, length),
                affine(bias, 0, dtype, length),
                plan.eps,
                plan.centred,
                y if y.shape == shape else y.reshape(shape),
                statistics,
            )
        return y, statistics

    def vjp(
        self,
        plan: Rows,
        needs: Sequence[bool],
        cotangent: Array,
        arrays: Sequence[Any],
        aux: Statistics,
    ) -> Gradients:
        x, weight, bias = arrays
        need_x, need_affine = needs[0], needs[1] or needs[2]
        dx = empty(x.shape if need_x else (0,), x.dtype)
        by_columns = plan.length > BLOCK and plan.rows < 4 * BACKWARD_TASKS
        sums = np.zeros((2, 1, plan.length), x.dtype if by_columns else np.float64)
        if x.size and any(needs):
            given = (
                contiguous(cotangent, plan.shape),
                contiguous(x, plan.shape),
                affine(weight, 1, x.dtype, plan.length),
                aux,
                plan.centred,
                dx.reshape(plan.shape if need_x else (0, plan.length)),
            )
            if by_columns:
                partials = np.empty((2, -(-plan.length // BLOCK), plan.rows))
                self.long_driver[x.dtype](need_x, *given, partials, sums)
            else:
                step = max(plan.rows // BACKWARD_TASKS, LEAST_BACKWARD // plan.length, 1)
                step = min(step, MOST_BACKWARD_ROWS)
                partials = np.empty((2, -(-plan.rows // step), plan.length), x.dtype)
                self.backward_driver[x.dtype](need_x, need_affine, step, *given, partials, sums)
        return gradients(needs, dx, sums, weight, bias)


sequential = RowsKernel(forward.sequential, backward.sequential, backward_long.sequential)
parallel = RowsKernel(forward.parallel, backward.parallel, backward_long.parallel)
