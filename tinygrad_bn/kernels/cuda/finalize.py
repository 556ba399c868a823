"""What the partial results of many blocks come to: one statistic or channel, for a few threads or a block.

A kernel that streams over x leaves one partial result for each *tile* it reads, in the type of arithmetic.
What is here joins them in float64, in an order that is always the same; they are so few that float64 costs
nothing. All partial results are laid out alike, as the tiles of Z arrays of M neighbours:

======= ================== =================================================
moments [3, Z, tiles, M]   the mean, rounded; what that lost; Σ (x − mean)²
sums    [2, Z, tiles, M]   Σ cotangent · x̂; Σ cotangent
======= ================== =================================================

A statistic is made of the tiles of B neighbours along M, in the order z · (M / B) + m // B. A channel, with
one weight and one bias, is made of the tiles of `repeat` neighbours and all z, at m // repeat.

====== =========================== =========================== ========
view   moments                     sums                        `repeat`
====== =========================== =========================== ========
Split  M = S, B = 1                M = S · K, B = K            1
Cols   M and B of the view         M and B of the view         its own
Rows   Z = 1, M = rows, B = 1      likewise, for means alone   1
====== =========================== =========================== ========

The results are `statistics` [4, statistics] (mean, variance, rstd and shift: x̂ = (x − mean) · rstd + shift),
`means` [2, statistics] (of the cotangent times the weight, and of that times x̂), and the gradients of weight
and bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from .compat import INT, Launcher, Pointer, cuda, kernel
from .launch import arithmetic, contiguous, new, stored
from .sums import WARP, row_sums
from .vectors import load, store

F = np.float64
THREADS = 128
LANES = (4, WARP, 2 * THREADS)


def lanes_for(parts: int) -> int:
    """How many threads join so many partial results: as few as keep the longest wait short."""
    few, warp, block = LANES
    return few if parts <= 4 * few else warp if parts <= 8 * warp else block


@cache
def merge_moments(T: type, lanes: int) -> Launcher:
    """The moments of tiles → statistics [4, Z * M / B].

    A tile holds `full` values of each neighbour, the last one what is left of `count`; the last `joined` ones
    share that, where so many are made at once (see `columns`). With the mean of the first tile as pivot, d =
    mean of a tile − pivot is a small number, and no digit of a large mean is lost::

        mean = pivot + Σ n d / Σ n        variance = Σ (M₂ + n (d − mean of d)²) / Σ n
    """
    threads = max(lanes, THREADS)
    in_block = threads // lanes
    add = row_sums(lanes, F)
    real = np.dtype(T)

    @kernel(threads, *[Pointer(real)] * 2, *[INT] * 7, np.dtype(F), double=T is not F)
    def merge_moments(moments, statistics, Z, tiles, M, B, full, count, joined, eps):
        lane = cuda.threadIdx.x % lanes
        item = np.int64(cuda.blockIdx.x) * in_block + cuda.threadIdx.x // lanes
        groups = M // B
        items = Z * groups
        plane = Z * tiles * M
        z = item // groups
        first = z * tiles * M + (item - z * groups) * B
        parts = tiles * B if item < items else 0
        last = F(count // joined - (tiles // joined - 1) * full)
        inverse = F(1) / (F(count) * F(B))
        pivot = F(0)
        if item < items:
            pivot = F(moments[first])
        total = F(0)
        for part in range(lane, parts, lanes):
            tile = part // B
            at = first + tile * M + part - tile * B
            n = F(full) if tile < tiles - joined else last
            total += n * ((F(moments[at]) - pivot) + F(moments[plane + at]))
        total, _ = add(total, total)
        centre = total * inverse
        squares = F(0)
        for part in range(lane, parts, lanes):
            tile = part // B
            at = first + tile * M + part - tile * B
            n = F(full) if tile < tiles - joined else last
            deviation = ((F(moments[at]) - pivot) + F(moments[plane + at])) - centre
            squares += F(moments[2 * plane + at]) + n * deviation * deviation
        squares, _ = add(squares, squares)
        if item < items and lane == 0:
            variance = squares * inverse
            rstd = F(1) / F(math.sqrt(variance + eps))
            mean = T(pivot + centre)
            statistics[item] = mean
            statistics[items + item] = T(variance)
            statistics[2 * items + item] = T(rstd)
            statistics[3 * items + item] = T(((F(mean) - pivot) - centre) * rstd)

    return merge_moments


@cache
def merge_sums(storage: np.dtype, lanes: int) -> Launcher:
    """The sums of tiles → means [2, statistics] for dx, and dweight and dbias of each channel.

    statistics and channels: how many of each are wanted, or 0. inverse: 1 / the number of values of a
    statistic.
    """
    T = arithmetic(storage)
    threads = max(lanes, THREADS)
    in_block = threads // lanes
    add = row_sums(lanes, F)
    load_one, store_one = load(1), store(1)
    real = np.dtype(T)

    @kernel(
        threads,
        Pointer(real),
        Pointer(storage),
        Pointer(real),
        *[Pointer(storage)] * 2,
        *[INT] * 8,
        np.dtype(F),
        double=T is not F,
    )
    def merge_sums(
        sums, weight, means, dweight, dbias, statistics, channels, Z, tiles, M, B, repeat, has_weight, inverse
    ):
        lane = cuda.threadIdx.x % lanes
        item = np.int64(cuda.blockIdx.x) * in_block + cuda.threadIdx.x // lanes
        plane = Z * tiles * M
        factor = cuda.local.array(1, F)
        result = cuda.local.array(2, T)
        factor[0] = F(1)
        along = F(0)
        offset = F(0)
        if item < statistics:
            groups = M // B
            z = item // groups
            m = (item - z * groups) * B
            for part in range(lane, tiles * B, lanes):
                tile = part // B
                member = m + part - tile * B
                at = (z * tiles + tile) * M + member
                if has_weight:
                    load_one(weight, member // repeat, factor, 0)
                along += F(sums[at]) * factor[0]
                offset += F(sums[plane + at]) * factor[0]
        elif item < statistics + channels:
            for part in range(lane, Z * tiles * repeat, lanes):
                row = part // repeat
                at = row * M + (item - statistics) * repeat + part - row * repeat
                along += F(sums[at])
                offset += F(sums[plane + at])
        along, offset = add(along, offset)
        if lane == 0:
            if item < statistics:
                means[item] = T(offset * inverse)
                means[statistics + item] = T(along * inverse)
            elif item < statistics + channels:
                result[0] = T(along)
                result[1] = T(offset)
                store_one(dweight, item - statistics, result, 0)
                store_one(dbias, item - statistics, result, 1)

    return merge_sums


@cache
def of_running(storage: np.dtype, T: type) -> Launcher:
    """running_mean and running_var → statistics [4, channels]."""
    load_one = load(1)

    @kernel(THREADS, *[Pointer(storage)] * 2, Pointer(np.dtype(T)), INT, np.dtype(F), double=T is not F)
    def of_running(running_mean, running_var, statistics, channels, eps):
        c = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        given = cuda.local.array(2, F)
        if c < channels:
            load_one(running_mean, c, given, 0)
            load_one(running_var, c, given, 1)
            rstd = F(1) / F(math.sqrt(given[1] + eps))
            mean = T(given[0])
            statistics[c] = mean
            statistics[channels + c] = T(given[1])
            statistics[2 * channels + c] = T(rstd)
            statistics[3 * channels + c] = T((F(mean) - given[0]) * rstd)

    return of_running


def statistics_of_moments(moments: Any, B: int, full: int, count: int, eps: float, joined: int = 1) -> Any:
    """statistics [4, Z * M / B] of moments [3, Z, tiles, M]; see `merge_moments`."""
    _, Z, tiles, M = moments.shape
    statistics = new((4, Z * (M // B)), moments.dtype, moments)
    lanes = lanes_for(tiles * B)
    in_block = max(1, THREADS // lanes)
    merge_moments(moments.dtype.type, lanes)(
        -(-statistics.shape[1] // in_block), moments, statistics, Z, tiles, M, B, full, count, joined, eps
    )
    return statistics


def statistics_of_running(T: type, eps: float, running_mean: Any, running_var: Any) -> Any:
    """statistics [4, channels] of what inference is given; in float64, float32 or 16 bits, both alike."""
    mean, variance = (stored(contiguous(array)) for array in (running_mean, running_var))
    if variance.dtype != mean.dtype:
        mean, variance = (array.astype(F) for array in (running_mean, running_var))
    statistics = new((4, mean.size), T, mean)
    of_running(mean.dtype, T)(-(-mean.size // THREADS), mean, variance, statistics, mean.size, eps)
    return statistics


def gradients_of_sums(
    sums: Any,
    weight: Any,
    affine: tuple[Any, Any] | None,
    like: Any,
    *,
    need_means: bool,
    B: int,
    repeat: int,
    count: int,
) -> Any:
    """means [2, Z * M / B] of sums [2, Z, tiles, M], without room for any where they are not needed.

    weight, and dweight and dbias in `affine`, which are written: as kernels see them, or None; of M / repeat
    values. like: any array as kernels see it, of the same dtype. count: the number of values of a statistic.
    """
    _, Z, tiles, M = sums.shape
    statistics = Z * (M // B) if need_means else 0
    channels = 0 if affine is None else M // repeat
    dweight, dbias = affine or (like, like)
    means = new((2, statistics), sums.dtype, sums)
    lanes = lanes_for(max(tiles * B if statistics else 0, Z * tiles * repeat if channels else 0))
    in_block = max(1, THREADS // lanes)
    merge_sums(like.dtype, lanes)(
        -(-(statistics + channels) // in_block),
        *(sums, like if weight is None else weight, means, dweight, dbias, statistics, channels),
        *(Z, tiles, M, B, repeat, weight is not None, 1 / count),
    )
    return means


def variants() -> Iterator[Launcher]:
    """For the tests that compile: every kernel."""
    for lanes in LANES:
        for T in (np.float32, np.float64):
            yield merge_moments(T, lanes)
        for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
            yield merge_sums(storage, lanes)
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for T in (np.float32, np.float64):
            yield of_running(storage, T)
