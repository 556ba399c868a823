"""Kernels that read [Z, A, M] in rows of columns: threads side by side read neighbouring vectors of a row.

A block serves one z, a chunk of its rows, and a tile of `columns` vectors of each row. Its threads are so
many columns and, below each other, `threads // columns` lanes; a lane takes every `lanes`-th row of the
chunk, ROWS of them at once. Sums over rows are made in registers, then over the lanes in shared memory.

Where M is no multiple of a vector, several rows are read as one: a row is `length` values long, a multiple of
M, and a column belongs to the column modulo M of the view.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .compat import INT, Launcher, Pointer, cuda, device, kernel
from .launch import arithmetic
from .vectors import load, store

ROWS = 4  # that a thread reads at once: what is on the way from memory hides its latency

GRID = (*[INT] * 3, *[np.dtype(np.uint32)] * 3)  # what is divided by is short: 64 bits are divided slowly
"""The last arguments of every kernel: the rows of one z, their length, the rows of a chunk, the chunks of one
z, the tiles of a row, the vectors of a tile.
"""
OWNERS = (INT,) * 4
"""Before them, where statistics are read: the number of statistics, and M, B and repeat of the view."""


@cache
def _place(threads: int, width: int) -> Any:
    @device
    def place(block, rows, length, chunk, down, across, columns):
        """Where a thread works: the number of its chunk among those of all z, z, the first row of the chunk
        and the one after its last, the thread's lane, the number of lanes, and its first column.
        """
        thread = np.uint32(cuda.threadIdx.x)
        part = np.int64(block // across)
        z = np.int64(np.uint32(part) // down)
        first = (part - z * down) * chunk
        lane = np.int64(thread // columns)
        lanes = np.int64(np.uint32(threads) // columns)
        column = ((block - part * across) * columns + thread - lane * columns) * width
        return part, z, first, min(first + chunk, rows), lane, lanes, column

    return place


@cache
def _owners(width: int) -> Any:
    @device
    def owners(z, column, length, M, B, repeat, statistic, channel):
        """The number of the statistic and of the weight that each of `width` columns belongs to."""
        m = column if length == M else column % M
        s = m // B if B > 1 else m
        c = m // repeat if repeat > 1 else m
        first = z * (M // B) if B > 1 else z * M
        s_ends = (s + 1) * B
        c_ends = (c + 1) * repeat
        for i in range(width):
            statistic[i] = first + s
            channel[i] = c
            m += 1
            if m == s_ends:
                s += 1
                s_ends += B
            if m == c_ends:
                c += 1
                c_ends += repeat
            if m == M:  # the next of joined rows
                m, s, c, s_ends, c_ends = 0, 0, 0, B, repeat

    return owners


@cache
def _over_lanes(threads: int, count: int, T: type) -> Any:
    size = threads * count

    @device
    def over_lanes(values, lane, lanes, columns):
        """Replace `count` values by their sums over the lanes: a tree, whatever the number of lanes."""
        scratch = cuda.shared.array(size, T)
        thread = cuda.threadIdx.x
        cuda.syncthreads()  # the sums before these have been read
        for i in range(count):
            scratch[i * threads + thread] = values[i]
        cuda.syncthreads()
        left = lanes
        while left > 1:
            half = (left + 1) // 2
            if lane + half < left:
                for i in range(count):
                    values[i] += scratch[i * threads + thread + half * columns]
                    scratch[i * threads + thread] = values[i]
            left = half
            cuda.syncthreads()
        for i in range(count):
            values[i] = scratch[i * threads + thread - lane * columns]

    return over_lanes


@cache
def moments(storage: np.dtype, width: int, threads: int) -> Launcher:
    """x → moments [3, Z, tiles, M]: of each column of a chunk the mean, rounded, the rest of it, and
    the sum of squared deviations from it.

    A thread makes the moments of ROWS values in two passes over its registers and merges them into those so
    far (Chan, Golub, LeVeque 1979). All are of differences from a pivot, the first value of the chunk: near
    10⁴ a float32 has no digits left for what a variance needs. A pivot that is one of n values is no further
    than √n deviations from their mean.
    """
    T = arithmetic(storage)
    load_vector, store_vector, place = load(width), store(width), _place(threads, width)
    over_lanes = _over_lanes(threads, width, T)

    def merge(rows: int) -> Any:
        values, inverse = rows * width, T(1 / rows)

        @device
        def merge(x, start, step, pivot, count, mean, squares):
            registers = cuda.local.array(values, T)
            for k in range(rows):
                load_vector(x, start + k * step, registers, k * width)
            share = T(rows) / (count + T(rows))
            for i in range(width):
                total = T(0)
                for k in range(rows):
                    registers[k * width + i] -= pivot[i]
                    total += registers[k * width + i]
                total *= inverse
                distance = total - mean[i]
                added = distance * distance * (count * share)
                for k in range(rows):
                    deviation = registers[k * width + i] - total
                    added += deviation * deviation
                mean[i] += distance * share
                squares[i] += added

        return merge

    several, one = merge(ROWS), merge(1)

    @kernel(threads, Pointer(storage), Pointer(np.dtype(T)), INT, *GRID, vectorized=width > 1)
    def cols_moments(x, partials, plane, rows, length, chunk, down, across, columns):
        part, z, first, last, lane, lanes, column = place(
            np.uint32(cuda.blockIdx.x), rows, length, chunk, down, across, columns
        )
        pivot = cuda.local.array(width, T)
        mean = cuda.local.array(width, T)
        squares = cuda.local.array(width, T)
        for i in range(width):
            pivot[i] = T(0)
            mean[i] = T(0)
            squares[i] = T(0)
        count = T(0)
        inside = column < length and lane < lanes
        if inside:
            start = z * rows * length + column
            load_vector(x, start + first * length, pivot, 0)
            row = first + lane
            while row + (ROWS - 1) * lanes < last:
                several(x, start + row * length, lanes * length, pivot, count, mean, squares)
                count += T(ROWS)
                row += ROWS * lanes
            while row < last:
                one(x, start + row * length, 0, pivot, count, mean, squares)
                count += T(1)
                row += lanes
        total = cuda.local.array(width, T)
        for i in range(width):
            total[i] = count * mean[i]
        over_lanes(total, lane, lanes, columns)
        inverse = T(1) / T(last - first)
        for i in range(width):
            total[i] *= inverse
            distance = mean[i] - total[i]
            squares[i] += count * distance * distance
        over_lanes(squares, lane, lanes, columns)
        if inside and lane == 0:
            at = part * length + column
            store_vector(partials, 2 * plane + at, squares, 0)
            for i in range(width):
                rounded = pivot[i] + total[i]
                rest = rounded - pivot[i]
                squares[i] = (pivot[i] - (rounded - rest)) + (total[i] - rest)
                total[i] = rounded
            store_vector(partials, at, total, 0)
            store_vector(partials, plane + at, squares, 0)

    return cols_moments


@cache
def normalize(storage: np.dtype, width: int, threads: int) -> Launcher:
    """x and the statistics → y."""
    T = arithmetic(storage)
    load_vector, load_one, store_vector = load(width), load(1), store(width)
    place, owners = _place(threads, width), _owners(width)

    def pass_of(rows: int) -> Any:
        values = rows * width

        @device
        def normalize_rows(x, y, start, step, mean, rstd, factor, term):
            registers = cuda.local.array(values, T)
            for k in range(rows):
                load_vector(x, start + k * step, registers, k * width)
            for k in range(rows):
                for i in range(width):
                    normalized = (registers[k * width + i] - mean[i]) * rstd[i]
                    registers[k * width + i] = normalized * factor[i] + term[i]
                store_vector(y, start + k * step, registers, k * width)

        return normalize_rows

    several, one = pass_of(ROWS), pass_of(1)

    @kernel(
        threads,
        *[Pointer(storage)] * 3,
        Pointer(np.dtype(T)),
        Pointer(storage),
        *[INT] * 2,
        *OWNERS,
        *GRID,
        vectorized=width > 1,
    )
    def cols_normalize(
        x,
        weight,
        bias,
        statistics,
        y,
        has_weight,
        has_bias,
        count,
        M,
        B,
        repeat,
        rows,
        length,
        chunk,
        down,
        across,
        columns,
    ):
        # What the pass before has read last may still be in the cache: from the last block to the first.
        _, z, first, last, lane, lanes, column = place(
            np.uint32(cuda.gridDim.x - 1 - cuda.blockIdx.x), rows, length, chunk, down, across, columns
        )
        if column < length and lane < lanes:
            statistic = cuda.local.array(width, np.int64)
            channel = cuda.local.array(width, np.int64)
            owners(z, column, length, M, B, repeat, statistic, channel)
            mean = cuda.local.array(width, T)
            rstd = cuda.local.array(width, T)
            factor = cuda.local.array(width, T)
            term = cuda.local.array(width, T)
            for i in range(width):
                factor[i] = T(1)
                term[i] = T(0)
                if has_weight:
                    load_one(weight, channel[i], factor, i)
                if has_bias:
                    load_one(bias, channel[i], term, i)
                mean[i] = statistics[statistic[i]]
                rstd[i] = statistics[2 * count + statistic[i]]
                term[i] += statistics[3 * count + statistic[i]] * factor[i]
            start = z * rows * length + column
            row = first + lane
            while row + (ROWS - 1) * lanes < last:
                several(x, y, start + row * length, lanes * length, mean, rstd, factor, term)
                row += ROWS * lanes
            while row < last:
                one(x, y, start + row * length, 0, mean, rstd, factor, term)
                row += lanes

    return cols_normalize


@cache
def gradient_sums(storage: np.dtype, width: int, threads: int) -> Launcher:
    """x and the cotangent → sums [2, Z, tiles, M]: of each column of a chunk the sums of the
    cotangent times x̂, and of the cotangent.
    """
    T = arithmetic(storage)
    both = 2 * width
    load_vector, store_vector = load(width), store(width)
    place, owners = _place(threads, width), _owners(width)
    over_lanes = _over_lanes(threads, both, T)

    def pass_of(rows: int) -> Any:
        values = rows * width

        @device
        def add_rows(cotangent, x, start, step, mean, totals):
            g = cuda.local.array(values, T)
            registers = cuda.local.array(values, T)
            for k in range(rows):
                load_vector(cotangent, start + k * step, g, k * width)
                load_vector(x, start + k * step, registers, k * width)
            for i in range(width):
                moment = T(0)
                total = T(0)
                for k in range(rows):
                    moment += g[k * width + i] * (registers[k * width + i] - mean[i])
                    total += g[k * width + i]
                totals[i] += moment
                totals[width + i] += total

        return add_rows

    several, one = pass_of(ROWS), pass_of(1)

    @kernel(
        threads,
        *[Pointer(storage)] * 2,
        *[Pointer(np.dtype(T))] * 2,
        INT,
        *OWNERS,
        *GRID,
        vectorized=width > 1,
    )
    def cols_sums(
        cotangent,
        x,
        statistics,
        partials,
        plane,
        count,
        M,
        B,
        repeat,
        rows,
        length,
        chunk,
        down,
        across,
        columns,
    ):
        part, z, first, last, lane, lanes, column = place(
            np.uint32(cuda.blockIdx.x), rows, length, chunk, down, across, columns
        )
        statistic = cuda.local.array(width, np.int64)
        channel = cuda.local.array(width, np.int64)
        mean = cuda.local.array(width, T)
        totals = cuda.local.array(both, T)
        for i in range(both):
            totals[i] = T(0)
        inside = column < length and lane < lanes
        if inside:
            owners(z, column, length, M, B, repeat, statistic, channel)
            for i in range(width):
                mean[i] = statistics[statistic[i]]
            start = z * rows * length + column
            row = first + lane
            while row + (ROWS - 1) * lanes < last:
                several(cotangent, x, start + row * length, lanes * length, mean, totals)
                row += ROWS * lanes
            while row < last:
                one(cotangent, x, start + row * length, 0, mean, totals)
                row += lanes
        over_lanes(totals, lane, lanes, columns)
        if inside and lane == 0:
            for i in range(width):
                rstd = statistics[2 * count + statistic[i]]
                shift = statistics[3 * count + statistic[i]]
                totals[i] = rstd * totals[i] + shift * totals[width + i]
            store_vector(partials, part * length + column, totals, 0)
            store_vector(partials, plane + part * length + column, totals, width)

    return cols_sums


@cache
def differentiate(storage: np.dtype, width: int, threads: int, training: bool) -> Launcher:
    """The cotangent, x, the statistics and the means of `finalize` → dx; in inference x is not read."""
    T = arithmetic(storage)
    load_vector, load_one, store_vector = load(width), load(1), store(width)
    place, owners = _place(threads, width), _owners(width)

    def pass_of(rows: int) -> Any:
        values = rows * width

        @device
        def differentiate_rows(cotangent, x, dx, start, step, mean, rstd, factor, along, offset):
            g = cuda.local.array(values, T)
            registers = cuda.local.array(values, T)
            for k in range(rows):
                load_vector(cotangent, start + k * step, g, k * width)
                if training:
                    load_vector(x, start + k * step, registers, k * width)
            for k in range(rows):
                for i in range(width):
                    at = k * width + i
                    g[at] *= factor[i]
                    if training:
                        normalized = (registers[at] - mean[i]) * rstd[i]
                        g[at] = (g[at] - offset[i]) - normalized * along[i]
                    g[at] *= rstd[i]
                store_vector(dx, start + k * step, g, k * width)

        return differentiate_rows

    several, one = pass_of(ROWS), pass_of(1)

    @kernel(
        threads,
        *[Pointer(storage)] * 3,
        *[Pointer(np.dtype(T))] * 2,
        Pointer(storage),
        INT,
        *OWNERS,
        *GRID,
        vectorized=width > 1,
    )
    def cols_differentiate(
        cotangent,
        x,
        weight,
        statistics,
        means,
        dx,
        has_weight,
        count,
        M,
        B,
        repeat,
        rows,
        length,
        chunk,
        down,
        across,
        columns,
    ):
        _, z, first, last, lane, lanes, column = place(
            np.uint32(cuda.gridDim.x - 1 - cuda.blockIdx.x), rows, length, chunk, down, across, columns
        )
        if column < length and lane < lanes:
            statistic = cuda.local.array(width, np.int64)
            channel = cuda.local.array(width, np.int64)
            owners(z, column, length, M, B, repeat, statistic, channel)
            mean = cuda.local.array(width, T)
            rstd = cuda.local.array(width, T)
            factor = cuda.local.array(width, T)
            along = cuda.local.array(width, T)
            offset = cuda.local.array(width, T)
            for i in range(width):
                factor[i] = T(1)
                if has_weight:
                    load_one(weight, channel[i], factor, i)
                rstd[i] = statistics[2 * count + statistic[i]]
                if training:
                    mean[i] = statistics[statistic[i]]
                    along[i] = means[count + statistic[i]]
                    offset[i] = means[statistic[i]] + statistics[3 * count + statistic[i]] * along[i]
            start = z * rows * length + column
            row = first + lane
            while row + (ROWS - 1) * lanes < last:
                several(
                    cotangent,
                    x,
                    dx,
                    start + row * length,
                    lanes * length,
                    mean,
                    rstd,
                    factor,
                    along,
                    offset,
                )
                row += ROWS * lanes
            while row < last:
                one(cotangent, x, dx, start + row * length, 0, mean, rstd, factor, along, offset)
                row += lanes

    return cols_differentiate
