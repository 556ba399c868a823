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
from .arrays import Array, Gradients, Statistics, affine, contiguous, new_statistics
from .jit import DOUBLE, FLAG, INT, Driver, allocating, body, read, twins, write
from .memory import empty
from .stores import fence, past_cache, write_out, write_past
from .sums import (
    CHUNK,
    add_moments,
    add_up,
    centre_of,
    constant,
    contract,
    expand,
    fits,
    is_finite,
    limits_of,
    multiply_add,
    reliable,
    row_moments,
    sum_squares,
    times_rest,
    two_parts,
)

# Rows no longer than a chunk go through each pass of the forward together, so many values: as many as leave
# room for the output in the caches, since to read and to write by turns is slow.
FORWARD_TASK = 8192
# A task of the backward pass sums dweight and dbias in the dtype of x, over no more rows than this, and over
# no fewer, since the sums of each task are one more row.
MOST_BACKWARD_ROWS, LEAST_BACKWARD_ROWS = 256, 8
BACKWARD_TASKS = 16
# Of the backward pass several rows go through each step together, so many values: they stay near.
BLOCK = 2048
# Few rows that are longer than so many columns are differentiated in blocks of these, so that no task has
# partial sums of dweight and dbias as long as a row.
COLUMNS = 2048
# More rows are, where two of them with their cotangents do not stay in the second-level cache.
LONG_PAIR = 1 << 15
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
def normalize_rows(zero, group, x, weight, bias, mean, variance, rstd, y):
    """Rows, of which the first belongs to the group."""
    T = type(zero)
    for r in range(x.shape[0]):
        row, out, w, b = x[r], y[r], weight[group], bias[group]
        centre = T(centre_of(mean[r], variance[r]))
        scale, rest = two_parts(zero, rstd[r])
        shift = T((centre - mean[r]) * rstd[r])
        for j in range(w.size):
            out[j] = multiply_add(row[j] - centre, scale, rest, shift) * w[j] + b[j]
        group = group + 1 if group + 1 < weight.shape[0] else 0


@allocating
def normalize_past(zero, group, x, weight, bias, mean, variance, rstd, y):
    """As normalize_rows, past the cache."""
    made = np.empty_like(y)
    normalize_rows(zero, group, x, weight, bias, mean, variance, rstd, made)
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
        row, out, means, variances, rstds = (
            one_row(x[r, a:b]),
            one_row(y[r, a:b]),
            mean[r:e],
            variance[r:e],
            rstd[r:e],
        )
        if reliable(rstd[r], limits) and fits(variance[r], limits):
            normalize_rows(x.dtype.type(0), first, row, weights, biases, means, variances, rstds, out)
        else:
            normalize_rows(0.0, first, row, weights, biases, means, variances, rstds, out)


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
            normalize_past(zero, group, x, weight, bias, mean, variance, rstd, y)
        else:
            normalize_rows(zero, group, x, weight, bias, mean, variance, rstd, y)


@twins(
    lambda T: (
        *(INT, read(T, 2), read(T, 1), read(T, 1), DOUBLE, FLAG, FLAG),
        *(write(T, 2), write(DOUBLE, 2)),
    )
)
def forward(step, x, weight, bias, eps, centred, past, y, statistics):
    mean, variance, rstd = statistics[0], statistics[1], statistics[2]
    groups = weight.size // x.shape[1]
    weights, biases = weight.reshape(groups, x.shape[1]), bias.reshape(groups, x.shape[1])
    for task in prange((x.shape[0] + step - 1) // step):
        a = (
            np.int64(task) * step
        )  # as it comes, it has another type in each twin, and bodies one more variant
        b = min(a + step, x.shape[0])
        group = a % groups
        out, means, variances, rstds = y[a:b], mean[a:b], variance[a:b], rstd[a:b]
        normalize_task(group, x[a:b], weights, biases, eps, centred, past, out, means, variances, rstds)
    length = x.shape[1]
    if length > LONG_ROW:
        for task in prange((length + COLUMNS - 1) // COLUMNS):
            a = np.int64(task) * COLUMNS
            b = min(a + COLUMNS, length)
            normalize_columns(np.int64(0), a, b, x, weights, biases, mean, variance, rstd, y)


@body
def sum_rows(
    zero, n, m, G, a, first, cotangent, x, weights, mean, rstd, dweights, dbiases, none, totals, moments
):
    """The sums of g · weight and of g · weight · x̂ over each row; its parts of dweight and dbias are added.

    The rows are those of groups a, a + 1, … of samples n … m − 1, or where first is not None as many columns
    of them, from that one on. Two rows of a group are taken at a time, so that its dweight and dbias are
    loaded and stored once for both; where the second is missing, the first stands for it with no cotangent.
    """
    T = type(zero)
    groups = weights.shape[0]
    for k in range(groups):
        w, dweight, dbias = weights[k], dweights[k], dbiases[k]
        last = (m - 1) * G + a + k
        i = k
        for r0 in range(n * G + a + k, last + 1, 2 * G):
            r1 = min(r0 + G, last)
            if first is None:
                row0, row1, g0 = x[r0], x[r1], cotangent[r0]
                g1 = cotangent[r1] if r1 > r0 else none
            else:
                end = first + w.size
                row0, row1, g0 = x[r0, first:end], x[r1, first:end], cotangent[r0, first:end]
                g1 = cotangent[r1, first:end] if r1 > r0 else none
            centre0, centre1 = T(mean[r0]), T(mean[r1])
            scale0, scale1 = T(rstd[r0]), T(rstd[r1])
            shift0, shift1 = T((centre0 - mean[r0]) * rstd[r0]), T((centre1 - mean[r1]) * rstd[r1])
            total0, total1, moment0, moment1 = zero, zero, zero, zero
            for j in range(w.size):
                normalized0 = (row0[j] - centre0) * scale0 + shift0
                normalized1 = (row1[j] - centre1) * scale1 + shift1
                dweight[j] += g0[j] * normalized0 + g1[j] * normalized1
                dbias[j] += g0[j] + g1[j]
                total0 += g0[j] * w[j]
                total1 += g1[j] * w[j]
                moment0 += g0[j] * w[j] * normalized0
                moment1 += g1[j] * w[j] * normalized1
            totals[i], totals[i + groups] = total0, total1
            moments[i], moments[i + groups] = moment0, moment1
            i += 2 * groups


@body
def fits_row(rstd, total, moment, share, limits):
    """Whether a dtype of these limits is wide enough for what comes from the two sums of a row, of which each
    value has such a share.
    """
    high = limits[1]
    means = fits(total, limits) & fits(moment, limits) & fits(rstd * rstd * moment * share, limits)
    return means & reliable(rstd, limits) & (abs(rstd * total * share) < high)


@body
def mark_outside(x, rstd, totals, moments, outside):
    """Mark the rows for which the dtype of x is not wide enough, and count them."""
    bad, limits, share = 0, limits_of(x), 1.0 / x.shape[1]
    for r in range(rstd.size):
        ok = fits_row(rstd[r], totals[r], moments[r], share, limits)
        outside[r] = not ok
        bad += not ok
    return bad


@body
def to_factors(zero, length, centred, mean, rstd, totals, moments):
    """In the place of the two sums of a row: what dx has besides g · rstd, a constant and a factor of x minus
    the mean in the type of zero. Without the first sum where not centred.
    """
    T = type(zero)
    for r in range(totals.size):
        slope = -rstd[r] * rstd[r] * moments[r] / length
        # rstd as it is multiplied by g, that is rounded, so that a constant g cancels
        shift = -T(rstd[r]) * totals[r] / length if centred else 0.0
        totals[r] = shift + times_rest(T(mean[r]) - mean[r], slope)
        moments[r] = slope


@body
def differentiate(zero, only_marked, cotangent, x, weight, mean, rstd, shift, slope, marks, dx):
    """dx of rows, of which the first belongs to the first group, or of marked ones, from to_factors."""
    T = type(zero)
    group = 0
    for r in range(x.shape[0]):
        g, row, w, out = cotangent[r], x[r], weight[group], dx[r]
        centre, scale, along, constant = T(mean[r]), T(rstd[r]), T(slope[r]), T(shift[r])
        for j in range(w.size if marks[r] or not only_marked else 0):
            out[j] = g[j] * w[j] * scale + ((row[j] - centre) * along + constant)
        group = group + 1 if group + 1 < weight.shape[0] else 0


@body
def differentiate_rows(
    zero,
    again,
    need_x,
    n,
    m,
    G,
    a,
    cotangent,
    x,
    weights,
    mean,
    rstd,
    centred,
    past,
    dx,
    dweights,
    dbiases,
    none,
    sums,
    room,
    bad,
):
    """Groups a, a + 1, … of samples n … m − 1. Again, it writes dx of those rows only that are marked in bad.

    For how many rows the dtype of x was not wide enough is returned. sums and room are for a few samples.
    """
    groups, length = weights.shape
    for group in range(groups):
        dweights[group, :] = 0
        dbiases[group, :] = 0
    step = sums.shape[1] // groups
    run = step if groups == G else 1  # so many samples are neighbours
    aside = past and not again
    number = 0
    for c in range(n, m, step):
        e = min(c + step, m)
        total, moment = sums[0], sums[1]
        sum_rows(
            *(zero, c, e, G, a, None, cotangent, x, weights, mean, rstd),
            *(dweights, dbiases, none, total, moment),
        )
        for i in range(c, e, run):
            size = min(run, e - i) * groups
            r, k, p = i * G + a, (i - n) * groups, (i - c) * groups
            end = r + size
            means, rstds, marks = mean[r:end], rstd[r:end], bad[k : k + size]
            totals, moments = total[p : p + size], moment[p : p + size]
            if not again:
                number += mark_outside(x, rstds, totals, moments, marks)
            if need_x:
                to_factors(zero, length, centred, means, rstds, totals, moments)
                g, rows, place = cotangent[r:end], x[r:end], dx[r:end]
                out = room[:size] if aside else place
                differentiate(zero, again, g, rows, weights, means, rstds, totals, moments, marks, out)
                write_out(aside, out, place)
    return number


@allocating
def differentiate_task(
    need_x, n, m, G, a, b, repeat, cotangent, x, weight, mean, rstd, centred, past, dx, dweight, dbias
):
    """Groups a … b − 1 of samples n … m − 1, in the dtype of x, and in float64 where that is too narrow."""
    groups, length = b - a, x.shape[1]
    first, last = a * length // repeat, b * length // repeat
    weights, none = np.empty((groups, length), x.dtype), np.zeros(length, x.dtype)
    expand(weight[first:last], repeat, weights.reshape(weights.size))
    dweights, dbiases = np.empty((groups, length), x.dtype), np.empty((groups, length), x.dtype)
    together = max(1, BLOCK // (2 * groups * length)) * 2 * groups
    sums, room = np.empty((2, together)), np.empty((together if past else 0, length), x.dtype)
    outside = np.empty((m - n) * groups, np.bool_)
    task = (
        *(need_x, n, m, G, a, cotangent, x, weights, mean, rstd, centred),
        *(past, dx, dweights, dbiases, none, sums, room, outside),
    )
    if differentiate_rows(x.dtype.type(0), False, *task):
        differentiate_rows(0.0, True, *task)
    contract(dweights.reshape(dweights.size), repeat, dweight[first:last])
    contract(dbiases.reshape(dbiases.size), repeat, dbias[first:last])
    if past:
        fence()


@body
def sum_again(repeat, cotangent, x, mean, rstd, dweight, dbias):
    """dweight and dbias where the sums of a task overflowed: in float64 from the first row to the last."""
    dweight[:] = 0
    dbias[:] = 0
    for r in range(x.shape[0]):
        first = r * x.shape[1] // repeat % dweight.size
        for c in range(x.shape[1] // repeat):
            for j in range(c * repeat, c * repeat + repeat):
                dweight[first + c] += cotangent[r, j] * ((x[r, j] - mean[r]) * rstd[r])
                dbias[first + c] += cotangent[r, j]


@allocating
def add_tasks(repeat, cotangent, x, mean, rstd, dweights, dbiases, dweight, dbias):
    """dweight and dbias from those of the tasks."""
    totals = np.zeros((2, dweight.size))
    add_up(dweights, totals[0])
    add_up(dbiases, totals[1])
    if not (is_finite(totals[0].sum()) and is_finite(totals[1].sum())):
        sum_again(repeat, cotangent, x, mean, rstd, totals[0], totals[1])
    for j in range(dweight.size):
        dweight[j], dbias[j] = totals[0, j], totals[1, j]


@twins(
    lambda T: (
        *(FLAG, FLAG, INT, INT, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG, FLAG),
        *(write(T, 2), write(T, 3), write(T, 1), write(T, 1)),
    )
)
def backward(
    need_x,
    need_affine,
    step,
    together,
    repeat,
    cotangent,
    x,
    weight,
    statistics,
    centred,
    past,
    dx,
    partials,
    dweight,
    dbias,
):
    mean, rstd = statistics[0], statistics[2]
    dweights, dbiases = partials[0], partials[1]
    G = weight.size * repeat // x.shape[1]
    samples = x.shape[0] // G
    across = (G + together - 1) // together
    for task in prange((samples + step - 1) // step * across):
        t, a = np.int64(task) // across, np.int64(task) % across * together
        n, m, b = t * step, min(t * step + step, samples), min(a + together, G)
        dw, db = dweights[t], dbiases[t]
        differentiate_task(
            need_x, n, m, G, a, b, repeat, cotangent, x, weight, mean, rstd, centred, past, dx, dw, db
        )
    if need_affine:
        add_tasks(repeat, cotangent, x, mean, rstd, dweights, dbiases, dweight, dbias)


@allocating
def sum_block(zero, a, b, repeat, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """Columns a … b − 1 of every row: their parts of the sums of each row, and dweight and dbias.

    Whether the dtype of x was wide enough for it is returned.
    """
    limits = limits_of(x)
    first, last = a // repeat, b // repeat
    weights, dweights, dbiases = (
        np.empty((1, b - a), x.dtype),
        np.full((1, b - a), zero),
        np.full((1, b - a), zero),
    )
    expand(weight[first:last], repeat, weights[0])
    none = np.zeros(b - a, x.dtype)
    sum_rows(
        *(zero, 0, x.shape[0], 1, 0, a, cotangent, x, weights, mean, rstd),
        *(dweights, dbiases, none, totals, moments),
    )
    contract(dweights[0], repeat, dweight[first:last])
    contract(dbiases[0], repeat, dbias[first:last])
    outside, share = 0, 1.0 / x.shape[1]
    for r in range(x.shape[0]):
        outside += not fits_row(rstd[r], totals[r], moments[r], share, limits)
    return outside == 0 and is_finite(dweight[first:last].sum()) and is_finite(dbias[first:last].sum())


@body
def add_blocks(totals, moments):
    """The sums of each row, in the place of those of its first block."""
    for block in range(1, totals.shape[0]):
        for r in range(totals.shape[1]):
            totals[0, r] += totals[block, r]
            moments[0, r] += moments[block, r]


@allocating
def differentiate_block(a, b, repeat, cotangent, x, weight, mean, rstd, centred, totals, moments, dx):
    """dx of columns a … b − 1 of each row, in the dtype of x or, if too narrow for it, in float64."""
    limits, length = limits_of(x), x.shape[1]
    weights, none = np.empty((1, b - a), x.dtype), np.zeros(1, np.bool_)
    expand(weight[a // repeat : b // repeat], repeat, weights[0])
    shift, slope = np.empty(1), np.empty(1)
    for r in range(x.shape[0]):
        e = r + 1
        g, row, out = one_row(cotangent[r, a:b]), one_row(x[r, a:b]), one_row(dx[r, a:b])
        means, rstds = mean[r:e], rstd[r:e]
        shift[0], slope[0] = totals[r], moments[r]
        if fits_row(rstd[r], totals[r], moments[r], 1.0 / length, limits):
            zero = x.dtype.type(0)
            to_factors(zero, length, centred, means, rstds, shift, slope)
            differentiate(zero, False, g, row, weights, means, rstds, shift, slope, none, out)
        else:
            to_factors(0.0, length, centred, means, rstds, shift, slope)
            differentiate(0.0, False, g, row, weights, means, rstds, shift, slope, none, out)


@twins(
    lambda T: (
        *(FLAG, INT, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG),
        *(write(T, 2), write(DOUBLE, 3), write(T, 1), write(T, 1)),
    )
)
def backward_long(
    need_x, columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias
):
    mean, rstd = statistics[0], statistics[2]
    totals, moments = partials[0], partials[1]
    length = x.shape[1]
    blocks = totals.shape[0]
    for task in prange(blocks):
        a = np.int64(task) * columns
        b = min(a + columns, length)
        zero = x.dtype.type(0)
        total, moment = totals[task], moments[task]
        if not sum_block(zero, a, b, repeat, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment):
            sum_block(0.0, a, b, repeat, cotangent, x, weight, mean, rstd, dweight, dbias, total, moment)
    if need_x:
        add_blocks(totals, moments)
        total, moment = totals[0], moments[0]
        for task in prange(blocks):
            a = np.int64(task) * columns
            b = min(a + columns, length)
            differentiate_block(a, b, repeat, cotangent, x, weight, mean, rstd, centred, total, moment, dx)


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
        weights = (plan.groups * length,)
        y = empty(x.shape, dtype)
        statistics = new_statistics(plan.rows, x)
        if x.size:
            self.forward_driver[dtype](
                FORWARD_TASK // length if length <= CHUNK else 1,
                contiguous(x, shape),
                affine(weight, 1, dtype, weights, plan.repeat),
                affine(bias, 0, dtype, weights, plan.repeat),
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
        new = empty if x.size else np.zeros
        dx = empty(x.shape if need_x else (0,), x.dtype)
        like = bias if weight is None else weight
        shape = (plan.channels,) if like is None else like.shape
        dweight, dbias = new(shape, x.dtype), new(shape, x.dtype)
        if x.size and any(needs):
            given = (
                contiguous(cotangent, plan.shape),
                contiguous(x, plan.shape),
                affine(weight, 1, x.dtype, (plan.channels,)),
                aux,
                plan.centred,
            )
            out = dx.reshape(plan.shape if need_x else (0, plan.length))
            sums = (dweight.reshape(plan.channels), dbias.reshape(plan.channels))
            most = COLUMNS if plan.rows < 4 * BACKWARD_TASKS else LONG_PAIR
            if plan.length > most and plan.rows <= MOST_BACKWARD_ROWS and plan.groups == 1:
                columns = COLUMNS // plan.repeat * plan.repeat
                partials = np.empty((2, -(-plan.length // columns), plan.rows + plan.rows % 2))
                self.long_driver[x.dtype](need_x, columns, plan.repeat, *given, out, partials, *sums)
            else:
                # As many groups of a sample as stay in the first-level cache.
                together = min(max(1, BLOCK // (2 * plan.length)), plan.groups)
                samples = plan.rows // plan.groups
                tasks = samples * -(-plan.groups // together)
                step = min(max(tasks // BACKWARD_TASKS, LEAST_BACKWARD_ROWS), MOST_BACKWARD_ROWS)
                step += step % 2
                partials = np.empty((2, -(-samples // step), plan.channels), x.dtype)
                past = past_cache(dx, max(BLOCK, 2 * plan.length))
                self.backward_driver[x.dtype](
                    need_x, need_affine, step, together, plan.repeat, *given, past, out, partials, *sums
                )
        return dx if need_x else None, dweight if needs[1] else None, dbias if needs[2] else None


sequential = RowsKernel(forward.sequential, backward.sequential, backward_long.sequential)
parallel = RowsKernel(forward.parallel, backward.parallel, backward_long.parallel)
