"""The family *split*: BatchNorm, InstanceNorm and GroupNorm, channels first, over [Z, A, S, K, L].

Statistic (z, s) is that of A stretches of K · L values, which are reduced, then normalized while they are
still in the cache. One task is one statistic, or neighbouring ones of short stretches. Channel c = s · K + k
has one weight and one bias, constant along L::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias

Backward, with g the cotangent times the weight::

    dx = rstd (g − mean(g) − x̂ · mean(g x̂))
    dweight = Σ_{z, a, l} cotangent · x̂          dbias = Σ_{z, a, l} cotangent

In inference μ and σ² are constants, so that dx = rstd g. Along one channel each pass is x or the cotangent
times a factor plus a constant; the mean is taken off first, so that a large one costs no accuracy. Statistics
near the ends of the range of float32 are done in float64: ``sums`` says how, and what range that gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from ..views import Split, as_rows
from . import rows
from .arrays import (
    Array,
    Gradients,
    Statistics,
    affine,
    contiguous,
    gradients,
    new_statistics,
)
from .jit import DOUBLE, FLAG, FLAGS, INT, Driver, allocating, body, read, task, twins, write
from .memory import empty
from .stores import fence, past_cache, write_out
from .sums import (
    CHUNK,
    add_moments,
    centre_of,
    constant,
    fits,
    is_finite,
    limits_of,
    merge_moments,
    multiply_add,
    reliable,
    row_moments,
    times_rest,
    two_parts,
)

# Statistics over short stretches go through each pass together, so many of them and so many values at most:
# what is done once for a statistic is done for many at a time, and their values stay in the second-level
# cache.
MOST_TOGETHER = 32
TASK = 65536
# Blocks of fewer values are not worth a task each: to call one takes as long as some hundred values.
LEAST_TASK = 16384


@body
def blocks_of(x):
    """In how many blocks the statistics of a sample are done."""
    S, size = x.shape[2], x.shape[3]
    together = min(MOST_TOGETHER, TASK // (x.shape[1] * size)) if size <= CHUNK else 1
    return S if together <= 1 else (S + together - 1) // together


@body
def tasks_of(x):
    """How many blocks a task has, and how many tasks there are."""
    blocks = x.shape[0] * blocks_of(x)
    together = max(1, LEAST_TASK * blocks // x.size)
    return together, (blocks + together - 1) // together


@body
def block_of(number, blocks, x):
    """A block: its sample, and the first and the last of its statistics."""
    S, block = x.shape[2], number % blocks
    return number // blocks, block * S // blocks, (block + 1) * S // blocks


@allocating
def room_for(past, out):
    """Room for what is to be written past the cache, like the first such piece of output; else that piece."""
    return np.empty_like(out) if past else out


@body
def scale_runs(zero, L, x, centre, scale, shift, y):
    """Each row of x holds runs of L values, one channel each."""
    T = type(zero)
    K = x.shape[1] // L
    for r in range(x.shape[0]):
        for k in range(K):
            run, out = x[r, k * L : k * L + L], y[r, k * L : k * L + L]
            c = r * K + k
            factor, rest = two_parts(zero, scale[c])
            pivot, constant = T(centre[c]), T(shift[c])
            for j in range(run.size):
                out[j] = multiply_add(run[j] - pivot, factor, rest, constant)


@body
def normalize_statistics(
    zero, z, s, e, L, training, x, weight, bias, eps, past, y, mean, variance, rstd, scratch, room
):
    """Statistics s … e − 1 of sample z; x and y are [Z, A, S, K * L].

    Training writes mean and variance, inference reads them. For how many the dtype of x was not wide
    enough is returned; the last row of scratch [4, channels] says for which.
    """
    limits = limits_of(x)
    T = type(zero)
    A, S, size = x.shape[1], x.shape[2], x.shape[3]
    K = size // L
    first, last = z * S + s, z * S + e
    means, variances, rstds, outside = mean[first:last], variance[first:last], rstd[first:last], scratch[3]
    centre, scale, shift = scratch[0], scratch[1], scratch[2]
    if training:
        if e - s == 1:
            count, one_mean, squares = 0, 0.0, 0.0
            for a in range(A):
                count, one_mean, squares = add_moments(zero, x[z, a, s], count, one_mean, squares)
            means[0], variances[0] = one_mean, squares / count
        else:
            row_moments(zero, x[z, 0, s:e], True, means, variances, rstds)
            for a in range(1, A):
                row_moments(zero, x[z, a, s:e], True, centre[: e - s], scale[: e - s], shift[: e - s])
                for r in range(e - s):
                    _count, means[r], variances[r] = merge_moments(
                        a, means[r], variances[r], 1, centre[r], scale[r]
                    )
            for r in range(e - s):
                variances[r] /= A
    for r in range(e - s):
        rstds[r] = 1.0 / np.sqrt(variances[r] + eps)
    bad = 0
    for r in range(e - s):
        rounded = T(centre_of(means[r], variances[r]))
        in_range = reliable(rstds[r], limits)
        if training and not reliable(variances[r], limits):
            in_range &= constant(x[z, 0, s + r, 0], means[r], variances[r], eps)
        for c in range(r * K, r * K + K):
            factor = rstds[r] * weight[s * K + c]
            centre[c] = rounded
            scale[c] = factor
            shift[c] = (rounded - means[r]) * factor + bias[s * K + c]
            in_range &= fits(factor, limits)
        outside[r] = not in_range
        bad += not in_range
    for a in range(A):
        place = y[z, a, s:e]
        out = room[: e - s] if past else place
        scale_runs(zero, L, x[z, a, s:e], centre, scale, shift, out)
        write_out(past, out, place)
    return bad


@allocating
def normalize_block(z, s, e, L, training, x, weight, bias, eps, past, y, mean, variance, rstd):
    """As normalize_statistics, in the dtype of x, or float64 where that is too narrow for a statistic."""
    given = (L, training, x, weight, bias, eps, past, y, mean, variance, rstd)
    scratch, room = np.empty((4, (e - s) * (x.shape[3] // L))), room_for(past, y[z, 0, s:e])
    if normalize_statistics(x.dtype.type(0), z, s, e, *given, scratch, room):
        again = np.empty((4, x.shape[3] // L))
        for r in range(e - s):
            if scratch[3, r] != 0:
                normalize_statistics(0.0, z, s + r, s + r + 1, *given, again, room)
    if past:
        fence()


def forward_types(T):
    return INT, FLAG, read(T, 4), read(T, 1), read(T, 1), DOUBLE, FLAG, write(T, 4), write(DOUBLE, 2)


@task(forward_types)
def normalize_task(number, L, training, x, weight, bias, eps, past, y, statistics):
    mean, variance, rstd = statistics[0], statistics[1], statistics[2]
    blocks, together = blocks_of(x), tasks_of(x)[0]
    for block in range(number * together, min((number + 1) * together, x.shape[0] * blocks)):
        z, s, e = block_of(block, blocks, x)
        normalize_block(z, s, e, L, training, x, weight, bias, eps, past, y, mean, variance, rstd)


@twins(forward_types, normalize_task)
def forward(L, training, x, weight, bias, eps, past, y, statistics):
    for number in prange(tasks_of(x)[1]):
        normalize_task(number, L, training, x, weight, bias, eps, past, y, statistics)


@body
def add_cotangent_sums(zero, L, cotangent, x, centre, plain, moment):
    """Add the sums of the cotangent and of cotangent * (x − centre) over each run to those in float64."""
    T = type(zero)
    K = x.shape[1] // L
    for r in range(x.shape[0]):
        for k in range(K):
            c = r * K + k
            pivot = T(centre[c])
            for start in range(k * L, k * L + L, CHUNK):
                stop = min(start + CHUNK, k * L + L)
                g, values = cotangent[r, start:stop], x[r, start:stop]
                total = zero
                total_moment = zero
                for j in range(g.size):
                    total += g[j]
                    total_moment += g[j] * (values[j] - pivot)
                plain[c] += total
                moment[c] += total_moment


@body
def differentiate_runs(zero, L, training, cotangent, x, centre, scale, slope, shift, dx):
    T = type(zero)
    K = x.shape[1] // L
    for r in range(x.shape[0]):
        for k in range(K):
            start, stop = k * L, k * L + L
            g, run, out = cotangent[r, start:stop], x[r, start:stop], dx[r, start:stop]
            c = r * K + k
            pivot, factor, along, constant = T(centre[c]), T(scale[c]), T(slope[c]), T(shift[c])
            if training:
                for j in range(g.size):
                    out[j] = g[j] * factor + ((run[j] - pivot) * along + constant)
            else:
                for j in range(g.size):
                    out[j] = g[j] * factor


@allocating
def differentiate_statistics(
    zero, z, s, e, L, training, need, cotangent, x, weight, mean, rstd, past, dx, dweight, dbias, scratch
):
    """Statistics s … e − 1 of sample z.

    dweight and dbias are [Z, S * K]: the sums they take are also pieces of the two means of dx. For how many
    the dtype of x was not wide enough is returned; the last row of scratch [5, channels] says for which.
    """
    limits = limits_of(x)
    T = type(zero)
    A, S, size = x.shape[1], x.shape[2], x.shape[3]
    K = size // L
    first = z * S + s
    need_x, need_affine = need
    centre, scale, slope, shift, outside = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    g_sum, gx_sum = dbias[z, s * K : e * K], dweight[z, s * K : e * K]
    if need_affine or training:
        for r in range(e - s):
            for c in range(r * K, r * K + K):
                centre[c] = mean[first + r]
                g_sum[c] = 0
                gx_sum[c] = 0
        for a in range(A):
            add_cotangent_sums(zero, L, cotangent[z, a, s:e], x[z, a, s:e], centre, g_sum, gx_sum)
    bad = 0
    for r in range(e - s):
        i = first + r
        rest = T(mean[i]) - mean[i]
        in_range = reliable(rstd[i], limits)
        total = 0.0
        moment = 0.0
        if need_affine or training:
            for c in range(r * K, r * K + K):
                in_range &= is_finite(g_sum[c]) and reliable(gx_sum[c], limits)
                gx_sum[c] = (gx_sum[c] + times_rest(rest, g_sum[c])) * rstd[i]
                total += weight[s * K + c] * g_sum[c]
                moment += weight[s * K + c] * gx_sum[c]
        along = -rstd[i] * rstd[i] * moment / (A * size)
        in_range &= fits(along, limits)
        for c in range(r * K, r * K + K):
            scale[c] = rstd[i] * weight[s * K + c]
            slope[c] = along
            shift[c] = times_rest(rest, along) - rstd[i] * total / (A * size)
            in_range &= fits(scale[c], limits)
        outside[r] = not in_range
        bad += not in_range
    if need_x:
        room = room_for(past, dx[z, 0, s:e])
        for a in range(A):
            g, values, place = cotangent[z, a, s:e], x[z, a, s:e], dx[z, a, s:e]
            out = room[: e - s] if past else place
            differentiate_runs(zero, L, training, g, values, centre, scale, slope, shift, out)
            write_out(past, out, place)
    return bad


@allocating
def differentiate_block(
    z, s, e, L, training, need, cotangent, x, weight, mean, rstd, past, dx, dweight, dbias
):
    """As differentiate_statistics, in the dtype of x, or float64 where that is too narrow for a statistic."""
    given = (L, training, need, cotangent, x, weight, mean, rstd, past, dx, dweight, dbias)
    scratch = np.empty((5, (e - s) * (x.shape[3] // L)))
    if differentiate_statistics(x.dtype.type(0), z, s, e, *given, scratch):
        again = np.empty((5, x.shape[3] // L))
        for r in range(e - s):
            if scratch[4, r] != 0:
                differentiate_statistics(0.0, z, s + r, s + r + 1, *given, again)
    if past:
        fence()


def backward_types(T):
    return (
        *(INT, FLAG, FLAGS, read(T, 4), read(T, 4), read(T, 1), read(DOUBLE, 2), FLAG),
        *(write(T, 4), write(DOUBLE, 3)),
    )


@task(backward_types)
def differentiate_task(number, L, training, need, cotangent, x, weight, statistics, past, dx, sums):
    mean, rstd = statistics[0], statistics[2]
    blocks, together = blocks_of(x), tasks_of(x)[0]
    for block in range(number * together, min((number + 1) * together, x.shape[0] * blocks)):
        z, s, e = block_of(block, blocks, x)
        differentiate_block(
            *(z, s, e, L, training, need, cotangent, x, weight, mean, rstd, past, dx, sums[0], sums[1])
        )


@task(backward_types, numbers=0)
def add_samples(L, training, need, cotangent, x, weight, statistics, past, dx, sums):
    """The sums over all samples, in the place of those of the first."""
    for z in range(1, x.shape[0]):
        for p in range(2):
            total, part = sums[p, 0], sums[p, z]
            for c in range(part.size):
                total[c] += part[c]


@twins(backward_types, differentiate_task, add_samples)
def backward(L, training, need, cotangent, x, weight, statistics, past, dx, sums):
    for number in prange(tasks_of(x)[1]):
        differentiate_task(number, L, training, need, cotangent, x, weight, statistics, past, dx, sums)
    add_samples(L, training, need, cotangent, x, weight, statistics, past, dx, sums)


@dataclass(frozen=True, slots=True)
class SplitKernel:
    """The kernel of the view Split, made of one twin of each driver; inference is given the statistics.

    Training leaves short runs of channels to the kernel of rows.
    """

    forward_driver: Driver
    backward_driver: Driver
    training: bool
    rows: rows.RowsKernel | None = None

    def forward(
        self, plan: Split, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, Statistics]:
        if self.rows is not None and (short := as_rows(plan)) is not None:
            return self.rows.forward(short, x, weight, bias)
        y = empty(x.shape, x.dtype)
        statistics = new_statistics(plan.statistics, x, running)
        if x.size:
            shape = (plan.Z, plan.A, plan.S, plan.K * plan.L)
            self.forward_driver[x.dtype](
                plan.L,
                self.training,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, (plan.channels,)),
                affine(bias, 0, x.dtype, (plan.channels,)),
                plan.eps,
                past_cache(y, max(TASK, plan.K * plan.L)),
                y.reshape(shape),
                statistics,
            )
        return y, statistics

    def vjp(
        self,
        plan: Split,
        needs: Sequence[bool],
        cotangent: Array,
        arrays: Sequence[Any],
        aux: Statistics,
    ) -> Gradients:
        if self.rows is not None and (short := as_rows(plan)) is not None:
            return self.rows.vjp(short, needs, cotangent, arrays, aux)
        x, weight, bias = arrays[:3]
        need = (needs[0], needs[1] or needs[2])
        dx = empty(x.shape if needs[0] else (0,), x.dtype)
        sums = np.zeros((2, max(1, plan.Z), plan.channels))
        if x.size and any(need):
            shape = (plan.Z, plan.A, plan.S, plan.K * plan.L)
            self.backward_driver[x.dtype](
                plan.L,
                self.training,
                need,
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, (plan.channels,)),
                aux,
                past_cache(dx, max(TASK, plan.K * plan.L)),
                dx.reshape(shape if needs[0] else (0, 0, 0, 0)),
                sums,
            )
        return gradients(needs, dx, sums, weight, bias)


sequential = SplitKernel(forward.sequential, backward.sequential, training=True, rows=rows.sequential)
parallel = SplitKernel(forward.parallel, backward.parallel, training=True, rows=rows.parallel)
sequential_inference = SplitKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = SplitKernel(forward.parallel, backward.parallel, training=False)
