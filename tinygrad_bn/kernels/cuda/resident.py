"""Rows that fit the registers of their threads: read once, normalized, written.

A *row* is what one statistic is made of, contiguous in memory: a row of the view Rows, or a (z, s) of the
view Split where A is 1. `lanes` threads hold it, each `per` vectors of `width` neighbours; several short rows
share a block. Mean and variance are made in two passes over the registers. A sum of values near 10⁴ loses
what a small variance needs: so the first mean need not be exact, and what it lacks, the mean of the
deviations from it, is found beside their squares.

Weight and bias go along the row (Rows), or there is one for each of the K stretches of L neighbours (Split),
at (row mod S) · K + j // L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .compat import INT, Launcher, Pointer, cuda, device, kernel
from .indices import quotient, short_quotient
from .launch import arithmetic
from .sums import WARP, row_sums
from .vectors import load, per_vector, store

MOST_LANES = 512  # which leaves 128 registers to each thread
SHORT_BLOCK = 128  # threads of a block of several short rows
FORWARD_BYTES = 128  # in the registers of a thread: x, in the dtype of arithmetic
BACKWARD_BYTES = 64  # likewise: of x, the cotangent, and the sums of dweight and dbias
MOST_LOADS = 12  # in a thread: more values one by one than that do not stay in registers
SHARED = 48 << 10  # bytes that a block may have without asking


@dataclass(frozen=True)
class Layout:
    """How a row is spread: `lanes` of a block's threads hold `per` vectors of `width` values each."""

    width: int
    per: int
    lanes: int
    threads: int

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.threads // self.lanes

    @property
    def values(self) -> int:
        """Of a row, in the registers of one thread."""
        return self.per * self.width


def longest(storage: np.dtype, width: int) -> int:
    """The length of the longest rows that fit, both ways, where `width` values are moved at once."""
    return MOST_LANES * min(BACKWARD_BYTES // np.dtype(arithmetic(storage)).itemsize, MOST_LOADS * width)


@cache
def layout(storage: np.dtype, rows: int, length: int, width: int, most_bytes: int) -> Layout:
    """The layout of rows, no longer than the longest, with at most so many bytes of them in a thread.

    Few threads with several vectors each hide the latency of memory as well as many threads, and have less to
    add up between them: part of a warp for a short row, about 128 threads for a long one.
    """
    vectors = max(1, -(-length // width))
    most = min(most_bytes // np.dtype(arithmetic(storage)).itemsize // width, MOST_LOADS)
    if vectors <= most * WARP:
        lanes = 4
        while lanes < WARP and (4 * lanes <= vectors or most * lanes < vectors):
            lanes *= 2
    else:
        per = min(most, max(1, vectors // SHORT_BLOCK))
        lanes = -(-vectors // (per * WARP)) * WARP
    threads = lanes if lanes > WARP else WARP if rows * lanes <= WARP else SHORT_BLOCK
    return Layout(width, -(-vectors // lanes), lanes, threads)


@cache
def forward(storage: np.dtype, form: Layout, by_channel: bool) -> Launcher:
    """x → y and the statistics [4, rows]: mean, variance, rstd, shift."""
    T, width, per, lanes, values = arithmetic(storage), form.width, form.per, form.lanes, form.values
    in_block = form.rows
    add = row_sums(lanes, T)
    load_vector, store_vector, load_one = load(width), store(width), load(1)

    @kernel(
        form.threads,
        *[Pointer(storage)] * 4,
        Pointer(np.dtype(T)),
        *[INT] * 8,
        *[np.dtype(T)] * 2,
        vectorized=width > 1,
    )
    def resident_forward(
        x, weight, bias, y, statistics, rows, length, S, K, L, has_weight, has_bias, centred, inverse, eps
    ):
        lane = cuda.threadIdx.x % lanes
        row = np.int64(cuda.blockIdx.x) * in_block + cuda.threadIdx.x // lanes
        inside = row < rows
        start = row * length
        first = (row - quotient(row, S) * S) * K if by_channel else np.int64(0)
        registers = cuda.local.array(values, T)
        factor = cuda.local.array(width, T)
        term = cuda.local.array(width, T)
        for k in range(per):
            j = (k * lanes + lane) * width
            if inside and j < length:
                load_vector(x, start + j, registers, k * width)
            else:
                for i in range(width):
                    registers[k * width + i] = T(0)
        mean = T(0)
        if centred:
            for i in range(values):
                mean += registers[i] * inverse
            mean, _ = add(mean, mean)
        total = T(0)
        squares = T(0)
        for k in range(per):
            if inside and (k * lanes + lane) * width < length:
                for i in range(width):
                    deviation = registers[k * width + i] - mean
                    total += deviation
                    squares += deviation * deviation
        total, squares = add(total, squares)
        rest = total * inverse if centred else T(0)
        squares -= total * rest
        if squares < T(0):  # rounding, where all values are equal
            squares = T(0)
        near = mean
        mean = near + rest
        rest = (near - mean) + rest
        variance = squares * inverse
        rstd = T(1) / T(math.sqrt(variance + eps))
        shift = -rest * rstd
        if inside and lane == 0:
            statistics[row] = mean
            statistics[rows + row] = variance
            statistics[2 * rows + row] = rstd
            statistics[3 * rows + row] = shift
        for k in range(per):
            j = (k * lanes + lane) * width
            if inside and j < length:
                for i in range(width):
                    factor[i] = T(1)
                    term[i] = T(0)
                if by_channel:
                    channel = first + short_quotient(j, L)
                    if has_weight:
                        load_one(weight, channel, factor, 0)
                    if has_bias:
                        load_one(bias, channel, term, 0)
                    for i in range(1, width):
                        factor[i] = factor[0]
                        term[i] = term[0]
                else:
                    if has_weight:
                        load_vector(weight, j, factor, 0)
                    if has_bias:
                        load_vector(bias, j, term, 0)
                for i in range(width):
                    normalized = (registers[k * width + i] - mean) * rstd + shift
                    registers[k * width + i] = normalized * factor[i] + term[i]
                store_vector(y, start + j, registers, k * width)

    return resident_forward


@cache
def backward_rows(storage: np.dtype, form: Layout) -> Launcher:
    """x and the cotangent → dx, and for each block its partial sums [2, blocks, length] of dweight and dbias.

    As many blocks as the device can hold go over all rows, with their sums in registers: x and the cotangent
    are read once, and the partial sums are few.
    """
    T, width, per, lanes, values = arithmetic(storage), form.width, form.per, form.lanes, form.values
    in_block, threads = form.rows, form.threads
    add = row_sums(lanes, T)
    load_vector, store_vector = load(width), store(width)
    add_up = _over_rows(form, T)

    @kernel(
        threads,
        *[Pointer(storage)] * 4,
        *[Pointer(np.dtype(T))] * 2,
        *[INT] * 6,
        np.dtype(T),
        vectorized=width > 1,
    )
    def resident_backward_rows(
        cotangent,
        x,
        weight,
        dx,
        statistics,
        partials,
        rows,
        length,
        has_weight,
        centred,
        need_x,
        need_affine,
        inverse,
    ):
        thread = cuda.threadIdx.x
        lane = thread % lanes
        block = np.int64(cuda.blockIdx.x)
        blocks = np.int64(cuda.gridDim.x)
        g = cuda.local.array(values, T)
        normalized = cuda.local.array(values, T)
        factor = cuda.local.array(width, T)
        dweight = cuda.local.array(values, T)
        dbias = cuda.local.array(values, T)
        for i in range(width):
            factor[i] = T(1)
        for i in range(values):
            dweight[i] = T(0)
            dbias[i] = T(0)
        first = block * in_block
        while first < rows:  # the same for all threads of a block: they meet at the sums
            row = first + thread // lanes
            inside = row < rows
            start = row * length
            mean = T(0)
            rstd = T(0)
            shift = T(0)
            if inside:
                mean = statistics[row]
                rstd = statistics[2 * rows + row]
                shift = statistics[3 * rows + row]
            for k in range(per):  # all loads before the first use
                j = (k * lanes + lane) * width
                if inside and j < length:
                    load_vector(x, start + j, normalized, k * width)
                    load_vector(cotangent, start + j, g, k * width)
                else:
                    for i in range(k * width, k * width + width):
                        normalized[i] = T(0)
                        g[i] = T(0)
            total = T(0)
            moment = T(0)
            for k in range(per):
                j = (k * lanes + lane) * width
                if has_weight and j < length:
                    load_vector(weight, j, factor, 0)
                for i in range(width):
                    at = k * width + i
                    normalized[at] = (normalized[at] - mean) * rstd + shift
                    dweight[at] += g[at] * normalized[at]
                    dbias[at] += g[at]
                    g[at] *= factor[i]
                    total += g[at]
                    moment += g[at] * normalized[at]
            if need_x:
                total, moment = add(total, moment)
                offset = total * inverse if centred else T(0)
                along = moment * inverse
                for k in range(per):
                    j = (k * lanes + lane) * width
                    if inside and j < length:
                        for i in range(k * width, k * width + width):
                            g[i] = rstd * (g[i] - offset - normalized[i] * along)
                        store_vector(dx, start + j, g, k * width)
            first += blocks * in_block
        if need_affine:
            if in_block > 1:
                add_up(dweight)
                add_up(dbias)
            if thread < lanes:
                for k in range(per):
                    j = (k * lanes + lane) * width
                    if j < length:
                        for i in range(width):
                            partials[block * length + j + i] = dweight[k * width + i]
                            partials[(blocks + block) * length + j + i] = dbias[k * width + i]

    return resident_backward_rows


@cache
def _over_rows(form: Layout, T: type) -> Any:
    """A function that adds the registers of the other rows of a block to those of its first, in order."""
    threads, lanes, values, rows = form.threads, form.lanes, form.values, form.rows
    size = threads * values

    @device
    def add_up(registers):
        scratch = cuda.shared.array(size, T)
        thread = cuda.threadIdx.x
        cuda.syncthreads()
        for i in range(values):
            scratch[i * threads + thread] = registers[i]
        cuda.syncthreads()
        if thread < lanes:
            for i in range(values):
                for row in range(1, rows):
                    registers[i] += scratch[i * threads + row * lanes + thread]

    return add_up


def shared_bytes(storage: np.dtype, form: Layout) -> int:
    """What `backward_channels` needs where there are several channels to a row: for two sums of each vector, and
    of each warp.
    """
    return 2 * (form.per * form.threads + form.threads // WARP) * np.dtype(arithmetic(storage)).itemsize


@cache
def backward_channels(storage: np.dtype, form: Layout, grouped: bool) -> Launcher:
    """x and the cotangent → dx and, for each row and each of its K channels, the sums [2, rows · K] of the
    cotangent times x̂ and of the cotangent.

    grouped: whether K is more than 1. The sums of each vector are then left in shared memory, where part of a
    warp adds up those of a channel.
    """
    T, width, per, lanes, values = arithmetic(storage), form.width, form.per, form.lanes, form.values
    in_block, threads = form.rows, form.threads
    slots = per * lanes
    size = 2 * slots * in_block if grouped else 1
    group = min(lanes, WARP)
    groups = lanes // group
    add, add_in_group = row_sums(lanes, T), row_sums(group, T)
    load_vector, store_vector, load_one = load(width), store(width), load(1)

    @kernel(
        threads,
        *[Pointer(storage)] * 4,
        *[Pointer(np.dtype(T))] * 2,
        *[INT] * 8,
        np.dtype(T),
        vectorized=width > 1,
    )
    def resident_backward_channels(
        cotangent,
        x,
        weight,
        dx,
        statistics,
        sums,
        rows,
        length,
        S,
        K,
        L,
        has_weight,
        need_x,
        need_affine,
        inverse,
    ):
        thread = cuda.threadIdx.x
        lane = thread % lanes
        row = np.int64(cuda.blockIdx.x) * in_block + thread // lanes
        inside = row < rows
        start = row * length
        first = (row - quotient(row, S) * S) * K
        g = cuda.local.array(values, T)
        normalized = cuda.local.array(values, T)
        factor = cuda.local.array(1, T)
        factor[0] = T(1)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        if inside:
            mean = statistics[row]
            rstd = statistics[2 * rows + row]
            shift = statistics[3 * rows + row]
        total = T(0)
        moment = T(0)
        if grouped:
            scratch = cuda.shared.array(size, T)
            mine = thread // lanes * 2 * slots
        for k in range(per):  # all loads before the first use
            j = (k * lanes + lane) * width
            if inside and j < length:
                load_vector(x, start + j, normalized, k * width)
                load_vector(cotangent, start + j, g, k * width)
        for k in range(per):
            if inside and (k * lanes + lane) * width < length:
                plain = T(0)
                along = T(0)
                for i in range(k * width, k * width + width):
                    normalized[i] = (normalized[i] - mean) * rstd + shift
                    plain += g[i]
                    along += g[i] * normalized[i]
                if grouped:
                    scratch[mine + k * lanes + lane] = plain
                    scratch[mine + slots + k * lanes + lane] = along
                else:
                    total += plain
                    moment += along
        if grouped:
            cuda.syncthreads()
            vectors = L // width
            for c in range(lane // group, K, groups):
                plain = T(0)
                along = T(0)
                if inside:
                    for v in range(c * vectors + lane % group, (c + 1) * vectors, group):
                        plain += scratch[mine + v]
                        along += scratch[mine + slots + v]
                plain, along = add_in_group(plain, along)
                if inside and lane % group == 0:
                    if need_affine:
                        sums[row * K + c] = along
                        sums[(rows + row) * K + c] = plain
                    if has_weight:
                        load_one(weight, first + c, factor, 0)
                    total += plain * factor[0]
                    moment += along * factor[0]
            total, moment = add(total, moment)
        else:
            total, moment = add(total, moment)
            if inside and lane == 0 and need_affine:
                sums[row] = moment
                sums[rows + row] = total
            if inside and has_weight:
                load_one(weight, first, factor, 0)
            total *= factor[0]
            moment *= factor[0]
        if need_x:
            offset = total * inverse
            along = moment * inverse
            for k in range(per):
                j = (k * lanes + lane) * width
                if inside and j < length:
                    if grouped and has_weight:
                        load_one(weight, first + short_quotient(j, L), factor, 0)
                    for i in range(k * width, k * width + width):
                        g[i] = rstd * (g[i] * factor[0] - offset - normalized[i] * along)
                    store_vector(dx, start + j, g, k * width)

    return resident_backward_channels


def variants() -> Iterator[Launcher]:
    """For the tests that compile: every kernel, of short, middling and the longest rows, with and without
    vectors.
    """
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for width in (per_vector(storage), 1):
            for length in (96, 1024, longest(storage, width)):
                form = layout(storage, 1024, length, width, FORWARD_BYTES)
                for by_channel in (False, True):
                    yield forward(storage, form, by_channel)
                form = layout(storage, 1024, length, width, BACKWARD_BYTES)
                yield backward_rows(storage, form)
                for grouped in (False, True):
                    if not grouped or shared_bytes(storage, form) <= SHARED:
                        yield backward_channels(storage, form, grouped)
