"""The family *split*: BatchNorm, InstanceNorm and GroupNorm, channels first, over [Z, A, S, K, L].

One task is one statistic (z, s): A stretches of K · L values, which are reduced, then normalized while they
are still in the cache. Channel c = s · K + k has one weight and one bias, constant along L::

    rstd = 1 / √(σ² + eps)        x̂ = (x − μ) rstd        y = x̂ · weight + bias

Backward, with g the cotangent times the weight::

    dx = rstd (g − mean(g) − x̂ · mean(g x̂))
    dweight = Σ_{z, a, l} cotangent · x̂          dbias = Σ_{z, a, l} cotangent

In inference μ and σ² are constants, so that dx = rstd g. Along one channel each pass is x or the cotangent
times a factor plus a constant; the mean is taken off first, so that a large one costs no accuracy. A task
near the ends of the range of float32 is done in float64: ``sums`` says how, and what range that gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from ..views import Split
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
from .sums import add_moments, cotangent_sums, fits, is_finite, reliable


@body
def normalize_statistic(zero, z, s, L, training, x, weight, bias, eps, y, mean, variance, rstd):
    """x and y are [Z, A, S, K * L]; training writes mean and variance, inference reads them.

    Whether the dtype of x was wide enough for it is returned.
    """
    T = type(zero)
    i = z * x.shape[2] + s
    K = x.shape[3] // L
    if training:
        count, centre, squares = 0, 0.0, 0.0
        for a in range(x.shape[1]):
            count, centre, squares = add_moments(zero, x[z, a, s], count, centre, squares)
        mean[i] = centre
        variance[i] = squares / count
    rstd[i] = 1.0 / np.sqrt(variance[i] + eps)
    in_range = reliable(rstd[i], x) and (reliable(variance[i], x) or not training)
    rounded = T(mean[i])
    for a in range(x.shape[1]):
        for k in range(K):
            values = x[z, a, s, k * L : k * L + L]
            out = y[z, a, s, k * L : k * L + L]
            factor = rstd[i] * weight[s * K + k]
            scale = T(factor)
            shift = T((rounded - mean[i]) * factor + bias[s * K + k])
            in_range &= fits(factor, x)
            for j in range(values.size):
                out[j] = (values[j] - rounded) * scale + shift
    return in_range


@twins(
    lambda T: (
        *(INT, FLAG, read(T, 4), read(T, 1), read(T, 1), DOUBLE),
        *(write(T, 4), write(DOUBLE, 2)),
    )
)
def forward(L, training, x, weight, bias, eps, y, statistics):
    mean, variance, rstd = statistics[0], statistics[1], statistics[2]
    S = x.shape[2]
    for task in prange(x.shape[0] * S):
        z, s = task // S, task % S
        zero = x.dtype.type(0)
        if not normalize_statistic(zero, z, s, L, training, x, weight, bias, eps, y, mean, variance, rstd):
            normalize_statistic(0.0, z, s, L, training, x, weight, bias, eps, y, mean, variance, rstd)


@body
def differentiate_statistic(
    zero, z, s, L, training, need, cotangent, x, weight, mean, rstd, dx, dweight, dbias
):
    """dweight and dbias are [Z, S * K]: the sums they take are also pieces of the two means of dx.

    Whether the dtype of x was wide enough for it is returned.
    """
    T = type(zero)
    i = z * x.shape[2] + s
    K = x.shape[3] // L
    need_x, need_affine = need
    in_range = reliable(rstd[i], x)
    rounded = T(mean[i])
    total = 0.0
    moment = 0.0
    if need_affine or training:
        for k in range(K):
            g_sum = 0.0
            gx_sum = 0.0
            for a in range(x.shape[1]):
                run = slice(k * L, k * L + L)
                one, other = cotangent_sums(zero, cotangent[z, a, s, run], x[z, a, s, run], rounded)
                g_sum += one
                gx_sum += other
            in_range &= is_finite(g_sum) and reliable(gx_sum, x)
            gx_sum = (gx_sum + (rounded - mean[i]) * g_sum) * rstd[i]
            total += weight[s * K + k] * g_sum
            moment += weight[s * K + k] * gx_sum
            dweight[z, s * K + k] = gx_sum
            dbias[z, s * K + k] = g_sum
    if need_x:
        count = x.shape[1] * x.shape[3]
        along = -rstd[i] * rstd[i] * moment / count
        in_range &= fits(along, x)
        slope = T(along)
        shift = T((rounded - mean[i]) * along - rstd[i] * total / count)
        for a in range(x.shape[1]):
            for k in range(K):
                run = slice(k * L, k * L + L)
                g = cotangent[z, a, s, run]
                values = x[z, a, s, run]
                out = dx[z, a, s, run]
                factor = rstd[i] * weight[s * K + k]
                in_range &= fits(factor, x)
                scale = T(factor)
                if training:
                    for j in range(g.size):
                        out[j] = g[j] * scale + ((values[j] - rounded) * slope + shift)
                else:
                    for j in range(g.size):
                        out[j] = g[j] * scale
    return in_range


@twins(
    lambda T: (
        *(INT, FLAG, FLAGS, read(T, 4), read(T, 4), read(T, 1), read(DOUBLE, 2)),
        *(write(T, 4), write(DOUBLE, 3)),
    )
)
def backward(L, training, need, cotangent, x, weight, statistics, dx, sums):
    mean, rstd = statistics[0], statistics[2]
    dweight, dbias = sums[0], sums[1]
    S = x.shape[2]
    for task in prange(x.shape[0] * S):
        z, s = task // S, task % S
        zero = x.dtype.type(0)
        if not differentiate_statistic(
            zero, z, s, L, training, need, cotangent, x, weight, mean, rstd, dx, dweight, dbias
        ):
            differentiate_statistic(
                0.0, z, s, L, training, need, cotangent, x, weight, mean, rstd, dx, dweight, dbias
            )


@dataclass(frozen=True, slots=True)
class SplitKernel:
    """The kernel of the view Split, made of one twin of each driver; inference is given the statistics."""

    forward_driver: Driver
    backward_driver: Driver
    training: bool

    def forward(
        self, plan: Split, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, Statistics]:
        y = empty(x.shape, x.dtype)
        statistics = new_statistics(plan.statistics, x, running)
        if x.size:
            shape = (plan.Z, plan.A, plan.S, plan.K * plan.L)
            self.forward_driver[x.dtype](
                plan.L,
                self.training,
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                affine(bias, 0, x.dtype, plan.channels),
                plan.eps,
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
        x, weight, bias = arrays[:3]
        need = (needs[0], needs[1] or needs[2])
        dx = empty(x.shape if needs[0] else (0,), x.dtype)
        sums = np.zeros((2, plan.Z, plan.channels))
        if x.size and any(need):
            shape = (plan.Z, plan.A, plan.S, plan.K * plan.L)
            self.backward_driver[x.dtype](
                plan.L,
                self.training,
                need,
                contiguous(cotangent, shape),
                contiguous(x, shape),
                affine(weight, 1, x.dtype, plan.channels),
                aux,
                dx.reshape(shape if needs[0] else (0, 0, 0, 0)),
                sums,
            )
        return gradients(needs, dx, sums, weight, bias)


sequential = SplitKernel(forward.sequential, backward.sequential, training=True)
parallel = SplitKernel(forward.parallel, backward.parallel, training=True)
sequential_inference = SplitKernel(forward.sequential, backward.sequential, training=False)
parallel_inference = SplitKernel(forward.parallel, backward.parallel, training=False)
