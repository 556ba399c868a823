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
from .jit import DOUBLE, FLAG, INT, Driver, allocating, body, read, task, twins, write
from .memory import empty
from .rows_backward import BLOCK, COLUMNS, backward, backward_long, pieces_of
from .stores import fence, past_cache, write_out
from .sums import (
    CHUNK,
    add_moments,
    centre_of,
    constant,
    fits,
    limits_of,
    multiply_add,
    one_row,
    reliable,
    row_moments,
    sum_squares,
    two_parts,
)

# Rows no longer than a chunk go through each pass of the forward together, so many values: as many as leave
# room for the output in the caches, since to read and to write by turns is slow.
FORWARD_TASK = 8192
# The output of rows that are longer than this is made by blocks of columns: with weight and bias, which all
# rows share, they do not stay in the second-level cache.
LONG_ROW = 1 << 16


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
    room = np.empty_like(y)
    normalize_rows(zero, group, x, weight, bias, mean, variance, rstd, room)
    write_out(True, room, y)
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


def forward_types(T):
    return (
        *(INT, read(T, 2), read(T, 1), read(T, 1), DOUBLE, FLAG, FLAG),
        *(write(T, 2), write(DOUBLE, 2)),
    )


@body
def normalize(group, x, weight, bias, eps, centred, past, y, mean, variance, rstd):
    """The statistics of rows, and their output, unless that is made by blocks of columns."""
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


@task(forward_types)
def normalize_task(number, step, x, weight, bias, eps, centred, past, y, statistics):
    a = number * step
    b = min(a + step, x.shape[0])
    mean, variance, rstd = statistics[0, a:b], statistics[1, a:b], statistics[2, a:b]
    length = x.shape[1]
    groups = weight.size // length
    weights, biases = weight.reshape(groups, length), bias.reshape(groups, length)
    normalize(a % groups, x[a:b], weights, biases, eps, centred, past, y[a:b], mean, variance, rstd)


@task(forward_types)
def normalize_columns_task(number, step, x, weight, bias, eps, centred, past, y, statistics):
    length = x.shape[1]
    groups = weight.size // length
    weights, biases = weight.reshape(groups, length), bias.reshape(groups, length)
    a = number * COLUMNS
    b = min(a + COLUMNS, length)
    normalize_columns(0, a, b, x, weights, biases, statistics[0], statistics[1], statistics[2], y)


@twins(forward_types, normalize_task, normalize_columns_task)
def forward(step, x, weight, bias, eps, centred, past, y, statistics):
    given = (step, x, weight, bias, eps, centred, past, y, statistics)
    for number in prange((x.shape[0] + step - 1) // step):
        normalize_task(number, *given)
    if x.shape[1] > LONG_ROW:
        for number in prange((x.shape[1] + COLUMNS - 1) // COLUMNS):
            normalize_columns_task(number, *given)


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
                max(1, FORWARD_TASK // length),
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
        new = empty if x.size else np.zeros
        dx = empty(x.shape if needs[0] else (0,), x.dtype)
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
            out = dx.reshape(plan.shape if needs[0] else (0, plan.length))
            sums = (dweight.reshape(plan.channels), dbias.reshape(plan.channels))
            pieces, shape_of_partials = pieces_of(plan)
            if len(pieces) == 1:
                partials = np.empty(shape_of_partials)
                self.long_driver[x.dtype](*pieces, plan.repeat, *given, out, partials, *sums)
            else:
                partials = np.empty(shape_of_partials, x.dtype)
                past = past_cache(dx, max(BLOCK, 2 * plan.length))
                self.backward_driver[x.dtype](*pieces, plan.repeat, *given, past, out, partials, *sums)
        return dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None


sequential = RowsKernel(forward.sequential, backward.sequential, backward_long.sequential)
parallel = RowsKernel(forward.parallel, backward.parallel, backward_long.parallel)
