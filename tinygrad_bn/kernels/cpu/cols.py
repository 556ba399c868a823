"""The family *cols*: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

A statistic belongs to one z and to B neighbours along M, and is taken over A. x is read as long rows: where
M is small, several neighbours along A make one row of `width` values. A tile has some rows and some
columns, and fits in the second-level cache; columns are never read one at a time. Tiles below each other
are a *block*, and hold all values of its statistics. A pass goes by steps. In some each tile is a task: its
sums, or its output. In those between each block is: the sums of its tiles, added in float64 and in order,
become statistics, and these the factors of its channels. Where a block is one tile, one task takes all
steps while the tile is in the cache. Many small z go through the steps in batches. The formulas are
*split*'s::

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

from ..views import Cols, as_rows
from . import rows
from .arrays import Array, Gradients, Statistics, affine, contiguous, gradients, new_statistics
from .cols_backward import backward
from .jit import DOUBLE, FLAG, INT, Driver, allocating, body, read, task, twins, write
from .memory import empty
from .stores import fence, past_cache, write_out
from .sums import (
    SAMPLES,
    centre_of,
    constant,
    contract,
    expand,
    is_finite,
    limits_of,
    multiply_add,
    reliable,
    samples,
    settled,
    two_parts,
)
from .tiles import (
    AGAIN,
    LAYOUT,
    NARROW,
    WIDE,
    add_tiles,
    block_of,
    gather,
    layout_of,
    scratch,
    spread,
    tile_of,
)

# The steps of a forward pass: tasks are blocks in those of even number, and tiles in the others.
PIVOTS, SUMS, STATISTICS, SUMS_AGAIN, STATISTICS_AGAIN, OUTPUT = range(6)


@body
def choose_pivots(block, x, layout, mean):
    """Of each statistic of a block: a value near its mean, in x's dtype.

    It is the mean of a few values spread over the statistic.
    """
    M, repeat, members, _width, _columns = layout
    z, _k, _end, s, last = block_of(block, x, layout)
    B = repeat * members
    few, step = samples(x.shape[1] // M * B, SAMPLES)
    pivots = mean[z * (M // B) + s : z * (M // B) + last]
    pivots[:] = 0
    for i in range(few):
        at = i * step
        start = at // B * M + at % B + s * B
        if B == 1:
            row = x[z, start : start + pivots.size]
            for j in range(row.size):
                pivots[j] += row[j]
        else:
            for j in range(pivots.size):
                pivots[j] += x[z, start + j * B]
    for j in range(pivots.size):
        pivots[j] = x.dtype.type(pivots[j] / few) if is_finite(pivots[j]) else 0.0


@allocating
def tile_moments(zero, tile, x, layout, mean, sums):
    """The sums of x − pivot and of its square over each channel of a tile; in mean stands the pivot."""
    z, t, a, b, c, d = tile_of(tile, x, layout)
    M, repeat, members, width, _columns = layout
    B = repeat * members
    pivot = np.empty(d - c, type(zero))
    spread(mean[z * (M // B) : (z + 1) * (M // B)], B, layout, c, d, pivot)
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


@allocating
def merge_statistics(final, block, x, layout, eps, sums, mean, variance):
    """From pivots in mean and the sums of the tiles of a block to mean and variance.

    Whether they are final is returned: every pivot was near enough, and the dtype of x wide enough. If not,
    the means are the next pivots.
    """
    limits = limits_of(x)
    M, repeat, members, _width, _columns = layout
    z, k, end, s, last = block_of(block, x, layout)
    B = repeat * members
    n = x.shape[1] // M * B
    means = mean[z * (M // B) + s : z * (M // B) + last]
    variances = variance[z * (M // B) + s : z * (M // B) + last]
    plain, square = add_tiles(z, k, end, sums)
    totals = np.empty(last - s)
    contract(plain, members, totals)
    contract(square, members, variances)
    outside = 0
    for j in range(means.size):
        total, squares = totals[j], variances[j]
        shift = total / n
        pivot = means[j]
        means[j] += shift
        variances[j] = (squares - min(total * shift, squares)) / n
        if not (
            settled(n, total, squares)
            and (reliable(squares, limits) or constant(pivot, means[j], squares, eps))
        ):
            outside += 1
    if final or outside == 0:
        return True
    for j in range(means.size):
        means[j] = means[j] if is_finite(means[j]) else 0.0
    return False


@body
def forward_factors(block, x, layout, training, weight, bias, eps, mean, variance, rstd, factors):
    """Of each channel of a block, so that y is (x − factor 0) · (factor 1 + factor 3) + factor 2, in training
    without factor 3, which would cost time there; and rstd.

    Whether the dtype of x is wide enough for them is returned.
    """
    limits = limits_of(x)
    M, repeat, members, _width, _columns = layout
    z, k, end, s, last = block_of(block, x, layout)
    i = z * (M // (repeat * members)) + s
    variances, rstds = variance[i : i + last - s], rstd[i : i + last - s]
    for j in range(rstds.size):
        rstds[j] = 1.0 / np.sqrt(variances[j] + eps)
    centre, scale = factors[z, 0, k:end], factors[z, 1, k:end]
    shift, rest = factors[z, 2, k:end], factors[z, 3, k:end]
    expand(mean[i : i + last - s], members, centre)
    expand(rstds, members, scale)
    expand(variances, members, rest)
    weights, biases = weight[k:end], bias[k:end]
    outside = 0
    for j in range(centre.size):
        rounded = x.dtype.type(centre_of(centre[j], rest[j]))
        factor = scale[j] * weights[j]
        if not (reliable(scale[j], limits) and (reliable(factor, limits) or weights[j] == 0)):
            outside += 1
        shift[j] = (rounded - centre[j]) * factor + biases[j]
        centre[j] = rounded
        scale[j] = factor
    if not training and outside == 0:
        for j in range(scale.size):
            scale[j], rest[j] = two_parts(x.dtype.type(0), scale[j])
    elif not training:
        for j in range(scale.size):
            scale[j], rest[j] = two_parts(0.0, scale[j])
    return outside == 0


@allocating
def normalize_tile(zero, tile, x, layout, training, factors, past, y):
    z, _t, a, b, c, d = tile_of(tile, x, layout)
    _M, repeat, _members, width, _columns = layout
    rows = np.empty((4, d - c), type(zero))
    for p in range(3 if training else 4):
        spread(factors[z, p], repeat, layout, c, d, rows[p])
    centre, scale, shift, rest = rows[0], rows[1], rows[2], rows[3]
    room = np.empty(d - c, x.dtype)
    for r in range(a, b):
        row = x[z, r * width + c : r * width + d]
        place = y[z, r * width + c : r * width + d]
        out = room[: row.size] if past else place
        if training:
            for j in range(row.size):
                out[j] = (row[j] - centre[j]) * scale[j] + shift[j]
        else:
            for j in range(row.size):
                out[j] = multiply_add(row[j] - centre[j], scale[j], rest[j], shift[j])
        write_out(past, out, place)
    if past:
        fence()


@body
def forward_step(
    step, number, x, layout, training, weight, bias, eps, past, y, factors, sums, state, mean, variance, rstd
):
    """A step of a tile or a block; from it on all steps of a block that is one tile, so that x is read from
    memory once.
    """
    zero = x.dtype.type(0)
    down = sums.shape[1]
    block = number // down if step % 2 else number
    for each in range(step, OUTPUT + 1 if down == 1 else step + 1):
        if each == PIVOTS:
            choose_pivots(block, x, layout, mean)
        elif each == SUMS:
            tile_moments(zero, number, x, layout, mean, sums)
        elif each == SUMS_AGAIN:
            if state[block] == AGAIN:
                tile_moments(0.0, number, x, layout, mean, sums)
        elif each == OUTPUT:
            if state[block] == WIDE:
                normalize_tile(0.0, number, x, layout, training, factors, past, y)
            else:
                normalize_tile(zero, number, x, layout, training, factors, past, y)
        elif each == STATISTICS or state[block] == AGAIN or not training:
            final = each == STATISTICS_AGAIN
            if not training or merge_statistics(final, block, x, layout, eps, sums, mean, variance):
                given = (block, x, layout, training, weight, bias, eps)
                good = forward_factors(*given, mean, variance, rstd, factors)
                state[block] = NARROW if good else WIDE
            else:
                state[block] = AGAIN


def forward_types(T):
    return (
        *(LAYOUT, FLAG, read(T, 2), read(T, 1), read(T, 1), DOUBLE, FLAG),
        *(write(T, 2), write(DOUBLE, 3), write(DOUBLE, 4), write(INT, 1), write(DOUBLE, 2)),
    )


@task(forward_types, numbers=3)
def forward_task(
    first, step, number, layout, training, x, weight, bias, eps, past, y, factors, sums, state, statistics
):
    last = min(first + factors.shape[0], x.shape[0])
    each = statistics.shape[1] // x.shape[0]
    a, b = first * each, last * each
    forward_step(
        *(step, number, x[first:last], layout, training, weight, bias, eps, past, y[first:last], factors),
        *(sums, state, statistics[0, a:b], statistics[1, a:b], statistics[2, a:b]),
    )


@twins(forward_types, forward_task)
def forward(layout, training, x, weight, bias, eps, past, y, factors, sums, state, statistics):
    given = (training, x, weight, bias, eps, past, y, factors, sums, state, statistics)
    batch, down = factors.shape[0], sums.shape[1]
    for first in range(0, x.shape[0], batch):
        blocks = (min(first + batch, x.shape[0]) - first) * (state.size // batch)
        start = PIVOTS if training else STATISTICS_AGAIN
        for step in range(start, start + 1 if down == 1 else OUTPUT + 1):
            wanted = not training or (step != SUMS_AGAIN and step != STATISTICS_AGAIN)
            for block in range(blocks):
                wanted |= state[block] == AGAIN
            tasks = blocks * down if step % 2 else blocks
            if wanted:
                for number in prange(tasks):
                    forward_task(first, step, number, layout, *given)


@dataclass(frozen=True, slots=True)
class ColsKernel:
    """The kernel of the view Cols, made of one twin of each driver; inference is given the statistics.

    Training leaves short runs of channels to the kernel of rows.
    """

    forward_driver: Driver
    backward_driver: Driver
    training: bool
    rows: rows.RowsKernel | None = None

    def forward(
        self, plan: Cols, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, Statistics]:
        if self.rows is not None and (short := as_rows(plan)) is not None:
            return self.rows.forward(short, x, weight, bias)
        y = empty(x.shape, x.dtype)
        statistics = new_statistics(plan.statistics, x, running)
        if x.size:
            shape = (plan.Z, plan.A * plan.M)
            self.forward_driver[x.dtype](
                layout_of(plan),
                self.training,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, (plan.channels,)),
                affine(bias, 0, x.dtype, (plan.channels,)),
                plan.eps,
                past_cache(y, layout_of(plan)[-1]),
                y.reshape(shape),
                *scratch(plan, 4),
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
        if self.rows is not None and (short := as_rows(plan)) is not None:
            return self.rows.vjp(short, needs, cotangent, arrays, aux)
        x, weight, bias = arrays[:3]
        need_x, need_affine = needs[0], needs[1] or needs[2]
        dx = empty(x.shape if need_x else (0,), x.dtype)
        totals = np.zeros((2, 1, plan.channels))
        if x.size and any(needs):
            shape = (plan.Z, plan.A * plan.M)
            self.backward_driver[x.dtype](
                layout_of(plan),
                (need_x, need_affine),
                self.training,
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, (plan.channels,)),
                aux,
                *scratch(plan, 4),
                past_cache(dx, layout_of(plan)[-1]),
                dx.reshape(shape if need_x else (0, 0)),
                totals,
            )
        return gradients(needs, dx, totals, weight, bias)


sequential = ColsKernel(forward.sequential, backward.sequential, training=True, rows=rows.sequential)
parallel = ColsKernel(forward.parallel, backward.parallel, training=True, rows=rows.parallel)
sequential_inference = ColsKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = ColsKernel(forward.parallel, backward.parallel, training=False)
