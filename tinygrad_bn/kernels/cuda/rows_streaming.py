"""Rows of any length: in tiles, whose partial results are put together between two passes.

Forward: the moments of each tile, merged to the statistics of the row; then y. Backward: for each tile of a
row the sums of g · weight and g · weight · x̂, with g the cotangent; then dx by blocks of columns, which go
down the rows with their sums of dweight and dbias in registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..views import Rows
from .compat import INT, Launcher, Pointer, cuda, kernel, processors
from .finalize import gradients_of_sums, statistics_of_moments
from .launch import arithmetic, contiguous, new, stored, width
from .rows import SLICES, add_partials, affine_gradient, sum_partials
from .split import cut, moments
from .sums import WARP, row_sums
from .vectors import load, per_vector, store

MOST_THREADS = 256
PER = 4  # vectors of a thread in a tile


def block(length: int, wide: int) -> int:
    """The threads of a block: a warp where that holds a row."""
    return WARP if length <= WARP * PER * wide else MOST_THREADS


def tile_size(threads: int, wide: int) -> int:
    """The values of a tile."""
    return threads * PER * wide


@cache
def apply(storage: np.dtype, threads: int, wide: int) -> Launcher:
    """x and the statistics → y; a block for each tile of each row."""
    T, tile = arithmetic(storage), tile_size(threads, wide)
    load_vector, store_vector = load(wide), store(wide)

    @kernel(threads, *[Pointer(storage)] * 4, Pointer(np.dtype(T)), *[INT] * 5, vectorized=wide > 1)
    def streaming_forward(x, weight, bias, y, statistics, rows, length, tiles, has_weight, has_bias):
        row = np.int64(cuda.blockIdx.x) // tiles
        first = np.int64(cuda.blockIdx.x) % tiles * tile
        start = row * length
        mean = statistics[row]
        rstd = statistics[2 * rows + row]
        shift = statistics[3 * rows + row]
        values = cuda.local.array(wide, T)
        factor = cuda.local.array(wide, T)
        term = cuda.local.array(wide, T)
        for i in range(wide):
            factor[i] = T(1)
            term[i] = T(0)
        for k in range(PER):
            j = first + (k * threads + cuda.threadIdx.x) * wide
            if j < length:
                load_vector(x, start + j, values, 0)
                if has_weight:
                    load_vector(weight, j, factor, 0)
                if has_bias:
                    load_vector(bias, j, term, 0)
                for i in range(wide):
                    values[i] = ((values[i] - mean) * rstd + shift) * factor[i] + term[i]
                store_vector(y, start + j, values, 0)

    return streaming_forward


@cache
def tile_sums(storage: np.dtype, threads: int, wide: int) -> Launcher:
    """x and the cotangent → for each tile of each row [2, tiles, rows] the sums of g · weight · x̂ and of
    g · weight.
    """
    T, tile = arithmetic(storage), tile_size(threads, wide)
    load_vector, add = load(wide), row_sums(threads, T)

    @kernel(threads, *[Pointer(storage)] * 3, *[Pointer(np.dtype(T))] * 2, *[INT] * 4, vectorized=wide > 1)
    def streaming_sums(cotangent, x, weight, statistics, sums, rows, length, tiles, has_weight):
        row = np.int64(cuda.blockIdx.x) // tiles
        which = np.int64(cuda.blockIdx.x) % tiles
        start = row * length
        mean = statistics[row]
        rstd = statistics[2 * rows + row]
        shift = statistics[3 * rows + row]
        values = cuda.local.array(wide, T)
        g = cuda.local.array(wide, T)
        factor = cuda.local.array(wide, T)
        for i in range(wide):
            factor[i] = T(1)
        total = T(0)
        moment = T(0)
        for k in range(PER):
            j = which * tile + (k * threads + cuda.threadIdx.x) * wide
            if j < length:
                load_vector(x, start + j, values, 0)
                load_vector(cotangent, start + j, g, 0)
                if has_weight:
                    load_vector(weight, j, factor, 0)
                for i in range(wide):
                    weighted = g[i] * factor[i]
                    total += weighted
                    moment += weighted * ((values[i] - mean) * rstd + shift)
        total, moment = add(total, moment)
        if cuda.threadIdx.x == 0:
            sums[which * rows + row] = moment
            sums[(tiles + which) * rows + row] = total

    return streaming_sums


@cache
def differentiate(storage: np.dtype, threads: int, wide: int) -> Launcher:
    """x, the cotangent and the means over each row → dx, and the partial sums [2, chunks, length] of dweight
    and dbias over chunks of rows. A block for each chunk of each tile of columns, one vector to a thread.
    """
    T = arithmetic(storage)
    load_vector, store_vector = load(wide), store(wide)

    @kernel(
        threads,
        *[Pointer(storage)] * 4,
        *[Pointer(np.dtype(T))] * 3,
        *[INT] * 7,
        vectorized=wide > 1,
    )
    def streaming_backward(
        cotangent,
        x,
        weight,
        dx,
        statistics,
        means,
        partials,
        rows,
        length,
        chunks,
        has_weight,
        centred,
        need_x,
        need_affine,
    ):
        chunk = np.int64(cuda.blockIdx.x) % chunks
        j = (np.int64(cuda.blockIdx.x) // chunks * threads + cuda.threadIdx.x) * wide
        values = cuda.local.array(wide, T)
        g = cuda.local.array(wide, T)
        factor = cuda.local.array(wide, T)
        dweight = cuda.local.array(wide, T)
        dbias = cuda.local.array(wide, T)
        for i in range(wide):
            factor[i] = T(1)
            dweight[i] = T(0)
            dbias[i] = T(0)
        if j < length:
            if has_weight:
                load_vector(weight, j, factor, 0)
            for row in range(chunk, rows, chunks):
                mean = statistics[row]
                rstd = statistics[2 * rows + row]
                shift = statistics[3 * rows + row]
                load_vector(x, row * length + j, values, 0)
                load_vector(cotangent, row * length + j, g, 0)
                for i in range(wide):
                    values[i] = (values[i] - mean) * rstd + shift
                    dweight[i] += g[i] * values[i]
                    dbias[i] += g[i]
                if need_x:
                    offset = means[row] if centred else T(0)
                    along = means[rows + row]
                    for i in range(wide):
                        g[i] = rstd * (g[i] * factor[i] - offset - values[i] * along)
                    store_vector(dx, row * length + j, g, 0)
            if need_affine:
                for i in range(wide):
                    partials[chunk * length + j + i] = dweight[i]
                    partials[(chunks + chunk) * length + j + i] = dbias[i]

    return streaming_backward


def variants() -> Iterator[Launcher]:
    """For the tests that compile."""
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for wide in (per_vector(storage), 1):
            for threads in (WARP, MOST_THREADS):
                yield apply(storage, threads, wide)
                yield tile_sums(storage, threads, wide)
                yield differentiate(storage, threads, wide)
        for slices in (1, SLICES):
            yield add_partials(storage, slices)


def statistics_of_rows(plan: Rows, x: Any) -> Any:
    """The statistics [4, rows]; to the kernel of the view Split a row is a channel of one run."""
    form = cut(x.dtype, width(plan.length, x.dtype), 1, 1, plan.rows, plan.length)
    partials = new((3, 1, form.tiles, plan.rows), arithmetic(x.dtype), x)
    moments(x.dtype, form.tile)(form.blocks, x, partials, plan.centred, *form.numbers)
    full = form.tile.vectors * form.tile.width
    return statistics_of_moments(partials, 1, full, plan.length, plan.eps)


@dataclass(frozen=True, slots=True)
class StreamingRows:
    """The kernel of the view Rows for rows of any length."""

    def forward(self, plan: Rows, x: Any, weight: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
        y = new(x.shape, x.dtype, x)
        if x.size == 0:
            statistics = new((4, plan.rows), arithmetic(stored(x).dtype), x)
            statistics[...] = np.nan
        else:
            given, factor, term = (stored(contiguous(x if a is None else a)) for a in (x, weight, bias))
            statistics = statistics_of_rows(plan, given)
            wide = width(plan.length, given.dtype)
            threads = block(plan.length, wide)
            tiles = -(-plan.length // tile_size(threads, wide))
            apply(given.dtype, threads, wide)(
                plan.rows * tiles,
                *(given, factor, term, stored(y), statistics, plan.rows, plan.length, tiles),
                *(weight is not None, bias is not None),
            )
        return y, (statistics[0], statistics[1], statistics)

    def vjp(
        self, plan: Rows, needs: Sequence[bool], cotangent: Any, arrays: Sequence[Any], aux: Sequence[Any]
    ) -> tuple[Any, Any, Any]:
        x, weight, bias = arrays
        need_affine = needs[1] or needs[2]
        dx = new(x.shape if needs[0] else (1,), x.dtype, x)
        dweight, dbias = (affine_gradient(like, plan.length, x) for like in (weight, bias))
        if plan.length and plan.rows and any(needs):
            statistics = aux[2]
            T = statistics.dtype
            g, given, factor = (
                stored(contiguous(a)) for a in (cotangent, x, x if weight is None else weight)
            )
            wide = width(plan.length, given.dtype)
            threads = block(plan.length, wide)
            means = statistics  # not read where dx is not needed
            if needs[0]:
                tiles = -(-plan.length // tile_size(threads, wide))
                sums = new((2, tiles, plan.rows), T, x)
                tile_sums(given.dtype, threads, wide)(
                    plan.rows * tiles,
                    *(g, given, factor, statistics, sums, plan.rows, plan.length, tiles, weight is not None),
                )
                means = gradients_of_sums(
                    *(sums.reshape(2, 1, tiles, plan.rows), None, None, given),
                    need_means=True,
                    B=1,
                    repeat=1,
                    count=plan.length,
                )
            blocks = -(-plan.length // (threads * wide))
            chunks = min(plan.rows, max(1, 8 * processors() // blocks))
            partials = new((2, chunks, plan.length) if need_affine else (1,), T, x)
            differentiate(given.dtype, threads, wide)(
                blocks * chunks,
                *(g, given, factor, stored(dx), statistics, means, partials),
                *(plan.rows, plan.length, chunks, weight is not None, plan.centred),
                *(needs[0], need_affine),
            )
            if need_affine:
                sum_partials(partials, dweight, dbias)
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None)


streaming = StreamingRows()
