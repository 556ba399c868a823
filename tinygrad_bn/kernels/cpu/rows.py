"""The family *rows*: LayerNorm and RMSNorm, which normalize each row of [R, B]; and what is like it.

InstanceNorm and GroupNorm of short runs of neighbours are the same problem with weights that differ from row
to row: those of row r are ``weight[r % groups]``. One row of each group, in order, is a *sample*.

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
from .jit import DOUBLE, FLAG, INT, Driver, allocating, body, read, twins, write
from .memory import empty
from .stores import fence, past_cache, room_for, write_out, write_past
from .sums import (
    CHUNK,
    add_moments,
    add_up,
    centre_of,
    constant,
    fits,
    is_finite,
    limits_of,
    multiply_add,
    reliable,
    row_moments,
    sum_squares,
    two_parts,
)

# Rows no longer than a chunk go through each pass of the forward together, so many values: as many as leave
# room for the output in the caches, since to read and to write by turns is slow.
FORWARD_TASK = 8192
# A task of the backward pass sums dweight and dbias in the dtype of x, over no more rows than this, and over
# no fewer, since the sums of each task are one more row.
MOST_BACKWARD_ROWS, LEAST_BACKWARD_ROWS = 64, 8
BACKWARD_TASKS = 16
# Of the backward pass several rows go through each step together, so many values: they stay near.
BLOCK = 4096
# Few rows that are longer than so many columns are differentiated in blocks of these, so that no task has
# partial sums of dweight and dbias as long as a row.
COLUMNS = 2048
# The output of rows that are longer than this is made in such blocks too: with weight and bias, which all
# rows share, they do not stay in the second-level cache.
LONG_ROW = 1 << 16


@allocating
def one_row(values):
    """A run of values as an array of one row."""
    return np.expand_dims(values, 0)


@body
def find_statistics(zero, x, eps, centred, mean, variance, rstd):
    """The statistics of rows, and whether the dtype of x was wide enough for them and for what they give."""
    limits = limits_of(x)
    length = x.shape[1]
    if length <= CHUNK:
        row_moments(zero, x, centred, mean, variance, rstd)
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
        certain = reliable(variance[r], limits) or constant(x[r, 0], mean[r], variance[r], eps)
        outside += not (reliable(rstd[r], limits) and certain)
    return outside == 0


@body
def normalize_rows(zero, group, x, weight, bias, mean, rstd, y):
    """Rows, of which the first belongs to the group."""
    T = type(zero)
    for r in range(x.shape[0]):
        row, out, w, b = x[r], y[r], weight[group], bias[group]
        centre = T(centre_of(mean[r], rstd[r]))
        scale, rest = two_parts(zero, rstd[r])
        shift = T((centre - mean[r]) * rstd[r])
        for j in range(w.size):
            out[j] = multiply_add(row[j] - centre, scale, rest, shift) * w[j] + b[j]
        group = group + 1 if group + 1 < weight.shape[0] else 0


@allocating
def normalize_past(zero, group, x, weight, bias, mean, rstd, y):
    """As normalize_rows, past the cache."""
    made = np.empty_like(y)
    normalize_rows(zero, group, x, weight, bias, mean, rstd, made)
    write_past(made.reshape(y.size), y.reshape(y.size))
    fence()


@body
def normalize_columns(group, a, b, x, weight, bias, mean, variance, rstd, y):
    """Columns a … b − 1 of rows, each in the dtype of x or, where that is too narrow for it, in float64."""
    limits = limits_of(x)
    first = np.int64(0)
    for r in range(x.shape[0]):
        i = (group + r) % weight.shape[0]
        weights, biases = one_row(weight[i, a:b]), one_row(bias[i, a:b])
        e = r + 1
        row, out, means, rstds = one_row(x[r, a:b]), one_row(y[r, a:b]), mean[r:e], rstd[r:e]
        if reliable(rstd[r], limits) and fits(variance[r], limits):
            normalize_rows(x.dtype.type(0), first, row, weights, biases, means, rstds, out)
        else:
            normalize_rows(0.0, first, row, weights, biases, means, rstds, out)


@body
def normalize_task(group, x, weight, bias, eps, centred, past, y, mean, variance, rstd):
    """The statistics of a task's rows, and their output, unless that is made by blocks of columns."""
    limits = limits_of(x)
    zero = x.dtype.type(0)
    in_range = find_statistics(zero, x, eps, centred, mean, variance, rstd)
    if not in_range:
        for r in range(x.shape[0]):
            if variance[r] == 0 or not (reliable(rstd[r], limits) and reliable(variance[r], limits)):
                e = r + 1
                find_statistics(0.0, x[r:e], eps, centred, mean[r:e], variance[r:e], rstd[r:e])
    if x.shape[1] <= LONG_ROW:
        if not in_range:
            normalize_columns(group, np.int64(0), x.shape[1], x, weight, bias, mean, variance, rstd, y)
        elif past:
            normalize_past(zero, group, x, weight, bias, mean, rstd, y)
        else:
            normalize_rows(zero, group, x, weight, bias, mean, rstd, y)


@twins(
    lambda T: (
        *(INT, read(T, 2), read(T, 2), read(T, 2), DOUBLE, FLAG, FLAG),
        *(write(T, 2), write(DOUBLE, 2)),
    )
)
def forward(step, x, weight, bias, eps, centred, past, y, statistics):
    mean, variance, rstd = statistics[0], statistics[1], statistics[2]
    for task in prange((x.shape[0] + step - 1) // step):
        a = (
            np.int64(task) * step
        )  # as it comes, it has another type in each twin, and bodies one more variant
        b = min(a + step, x.shape[0])
        group = a % weight.shape[0]
        out, means, variances, rstds = y[a:b], mean[a:b], variance[a:b], rstd[a:b]
        normalize_task(group, x[a:b], weight, bias, eps, centred, past, out, means, variances, rstds)
    length = x.shape[1]
    if length > LONG_ROW:
        for task in prange((length + COLUMNS - 1) // COLUMNS):
            a = np.int64(task) * COLUMNS
            b = min(a + COLUMNS, length)
            normalize_columns(np.int64(0), a, b, x, weight, bias, mean, variance, rstd, y)


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
def sum_rows(zero, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """As sum_row for rows, of which the first belongs to the first group."""
    group = 0
    for r in range(x.shape[0]):
        w, dw, db = weight[group], dweight[group], dbias[group]
        totals[r], moments[r] = sum_row(zero, cotangent[r], x[r], w, mean[r], rstd[r], dw, db)
        group = group + 1 if group + 1 < weight.shape[0] else 0


@body
def mark_outside(x, rstd, totals, moments, outside):
    """Mark the rows for which the dtype of x is not wide enough, and count them."""
    bad, limits = 0, limits_of(x)
    for r in range(rstd.size):
        ok = reliable(rstd[r], limits) and fits(totals[r], limits) and fits(moments[r], limits)
        outside[r] = not ok
        bad += not ok
    return bad


@body
def to_means(length, centred, totals, moments):
    """Minus the means along a row, from the sums; without the first where not centred."""
    for r in range(totals.size):
        totals[r] = -totals[r] / length if centred else 0.0
        moments[r] = -moments[r] / length


@body
def apply_means(zero, only_marked, cotangent, x, weight, mean, rstd, offset, along, marks, dx):
    """dx of rows, or of marked ones; offset and along are minus the means of g · weight, g · weight · x̂."""
    T = type(zero)
    group = 0
    for r in range(x.shape[0]):
        g, row, w, out = cotangent[r], x[r], weight[group], dx[r]
        centre = T(mean[r])
        scale = T(rstd[r])
        shift = T((centre - mean[r]) * rstd[r])
        constant = T(offset[r])
        slope = T(along[r])
        for j in range(w.size if marks[r] or not only_marked else 0):
            normalized = (row[j] - centre) * scale + shift
            out[j] = scale * (g[j] * w[j] + constant + slope * normalized)
        group = group + 1 if group + 1 < weight.shape[0] else 0


@allocating
def differentiate_rows(
    zero, again, need_x, n, m, a, b, cotangent, x, weight, mean, rstd, centred, past, dx, dweight, dbias, bad
):
    """Groups a … b − 1 of samples n … m − 1. Again, it writes dx of those rows only that are marked in bad.

    For how many rows the dtype of x was not wide enough is returned.
    """
    length, groups, G = x.shape[1], b - a, weight.shape[0]
    weights, dweights, dbiases = weight[a:b], dweight[a:b], dbias[a:b]
    for group in range(groups):
        dweights[group, :] = 0
        dbiases[group, :] = 0
    block = max(1, BLOCK // (groups * length)) if groups == G else 1  # so that its rows are neighbours
    sums = np.empty((2, block * groups))
    aside = past and not again
    number = 0
    for c in range(n, m, block):
        size = min(block, m - c) * groups
        r, k = c * G + a, (c - n) * groups
        e = r + size
        g, rows, means, rstds = cotangent[r:e], x[r:e], mean[r:e], rstd[r:e]
        totals, moments, marks = sums[0, :size], sums[1, :size], bad[k : k + size]
        sum_rows(zero, g, rows, weights, means, rstds, dweights, dbiases, totals, moments)
        if not again:
            number += mark_outside(x, rstds, totals, moments, marks)
        if need_x:
            to_means(length, centred, totals, moments)
            out = room_for(aside, dx[r:e])
            apply_means(zero, again, g, rows, weights, means, rstds, totals, moments, marks, out)
            write_out(aside, out, dx[r:e])
    return number


@allocating
def differentiate_task(
    need_x, n, m, a, b, cotangent, x, weight, mean, rstd, centred, past, dx, dweights, dbiases
):
    """Groups a … b − 1 of samples n … m − 1, in the dtype of x, and in float64 where that is too narrow."""
    dweight, dbias = dweights.reshape(weight.shape), dbiases.reshape(weight.shape)
    outside = np.empty((m - n) * (b - a), np.bool_)
    task = (
        *(need_x, n, m, a, b, cotangent, x, weight, mean, rstd, centred),
        *(past, dx, dweight, dbias, outside),
    )
    if differentiate_rows(x.dtype.type(0), False, *task):
        differentiate_rows(0.0, True, *task)
    if past:
        fence()


@body
def sum_again(cotangent, x, mean, rstd, dweight, dbias):
    """dweight and dbias where the sums of a task overflowed: in float64 from the first row to the last."""
    dweight[:] = 0
    dbias[:] = 0
    for r in range(x.shape[0]):
        start = r * x.shape[1] % dweight.size
        for j in range(x.shape[1]):
            dweight[start + j] += cotangent[r, j] * ((x[r, j] - mean[r]) * rstd[r])
            dbias[start + j] += cotangent[r, j]


@twins(
    lambda T: (
        *(FLAG, FLAG, INT, INT, read(T, 2), read(T, 2), read(T, 2), read(DOUBLE, 2), FLAG, FLAG),
        *(write(T, 2), write(T, 3), write(DOUBLE, 3)),
    )
)
def backward(
    need_x, need_affine, step, together, cotangent, x, weight, statistics, centred, past, dx, partials, totals
):
    mean, rstd = statistics[0], statistics[2]
    dweights, dbiases = partials[0], partials[1]
    dweight, dbias = totals[0, 0], totals[1, 0]
    G = weight.shape[0]
    samples = x.shape[0] // G
    across = (G + together - 1) // together
    for task in prange((samples + step - 1) // step * across):
        t, a = np.int64(task) // across, np.int64(task) % across * together
        n, m, b = t * step, min(t * step + step, samples), min(a + together, G)
        dw, db = dweights[t], dbiases[t]
        differentiate_task(need_x, n, m, a, b, cotangent, x, weight, mean, rstd, centred, past, dx, dw, db)
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


@allocating
def differentiate_columns(a, b, cotangent, x, weight, mean, rstd, offset, along, dx):
    """As apply_means, columns a … b − 1, each row in the dtype of x or, if too narrow for it, in float64."""
    limits = limits_of(x)
    weights, none = one_row(weight[0, a:b]), np.zeros(1, np.bool_)
    for r in range(x.shape[0]):
        e = r + 1
        g, row, out = one_row(cotangent[r, a:b]), one_row(x[r, a:b]), one_row(dx[r, a:b])
        means, rstds, offsets, slopes = mean[r:e], rstd[r:e], offset[r:e], along[r:e]
        if reliable(rstd[r], limits) and fits(offset[r], limits) and fits(along[r], limits):
            apply_means(x.dtype.type(0), False, g, row, weights, means, rstds, offsets, slopes, none, out)
        else:
            apply_means(0.0, False, g, row, weights, means, rstds, offsets, slopes, none, out)


@allocating
def sum_block(zero, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """Columns a … b − 1 of every row: their parts of the sums of each row, and dweight and dbias.

    Whether the dtype of x was wide enough for it is returned.
    """
    limits = limits_of(x)
    dweights, dbiases = np.full(b - a, zero), np.full(b - a, zero)
    outside = 0
    for r in range(x.shape[0]):
        g, row = cotangent[r, a:b], x[r, a:b]
        totals[r], moments[r] = sum_row(zero, g, row, weight[0, a:b], mean[r], rstd[r], dweights, dbiases)
        outside += not (reliable(rstd[r], limits) and fits(totals[r], limits) and fits(moments[r], limits))
    for j in range(b - a):
        dweight[a + j] = dweights[j]
        dbias[a + j] = dbiases[j]
    return outside == 0 and is_finite(dweight[a:b].sum()) and is_finite(dbias[a:b].sum())


@twins(
    lambda T: (
        *(FLAG, read(T, 2), read(T, 2), read(T, 2), read(DOUBLE, 2), FLAG),
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
        a = np.int64(task) * COLUMNS
        b = min(a + COLUMNS, length)
        zero = x.dtype.type(0)
        total, moment = totals[task], moments[task]
        if not sum_block(zero, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment):
            sum_block(0.0, a, b, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment)
    if need_x:
        add_blocks(centred, totals, moments, length)
        offset, along = totals[0], moments[0]
        for task in prange(blocks):
            a = np.int64(task) * COLUMNS
            differentiate_columns(
                a, min(a + COLUMNS, length), cotangent, x, weight, mean, rstd, offset, along, dx
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
        groups = (plan.groups, length)
        y = empty(x.shape, dtype)
        statistics = new_statistics(plan.rows, x)
        if x.size:
            self.forward_driver[dtype](
                FORWARD_TASK // length if length <= CHUNK else 1,
                contiguous(x, shape),
                affine(weight, 1, dtype, groups, plan.repeat),
                affine(bias, 0, dtype, groups, plan.repeat),
                plan.eps,
                plan.centred,
                past_cache(y, max(FORWARD_TASK, length)),
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
        by_columns = plan.length > COLUMNS and plan.rows < 4 * BACKWARD_TASKS and plan.groups == 1
        size = plan.groups * plan.length
        sums = np.zeros((2, 1, size), x.dtype if by_columns else np.float64)
        if x.size and any(needs):
            given = (
                contiguous(cotangent, plan.shape),
                contiguous(x, plan.shape),
                affine(weight, 1, x.dtype, (plan.groups, plan.length), plan.repeat),
                aux,
                plan.centred,
            )
            out = dx.reshape(plan.shape if need_x else (0, plan.length))
            if by_columns:
                partials = np.empty((2, -(-plan.length // COLUMNS), plan.rows))
                self.long_driver[x.dtype](need_x, *given, out, partials, sums)
            else:
                # As many groups of a sample as stay in the first-level cache.
                together = min(max(1, BLOCK // plan.length), plan.groups)
                samples = plan.rows // plan.groups
                tasks = samples * -(-plan.groups // together)
                step = min(max(tasks // BACKWARD_TASKS, LEAST_BACKWARD_ROWS), MOST_BACKWARD_ROWS)
                partials = np.empty((2, -(-samples // step), size), x.dtype)
                past = past_cache(dx, max(BLOCK, plan.length))
                self.backward_driver[x.dtype](
                    need_x, need_affine, step, together, *given, past, out, partials, sums
                )
        if plan.repeat > 1:
            sums = sums.reshape(2, 1, -1, plan.repeat).sum(axis=-1)
        return gradients(needs, dx, sums, weight, bias)


sequential = RowsKernel(forward.sequential, backward.sequential, backward_long.sequential)
parallel = RowsKernel(forward.parallel, backward.parallel, backward_long.parallel)
