"""The family *split* on a CUDA device: BatchNorm, InstanceNorm and GroupNorm, channels first.

The formulas are those of the CPU's `split`. `streaming` serves statistics of any size, `streaming_inference`
those that are given. Each pass over x is cut into *tiles*, which are read into registers at once::

    forward     moments of tiles → statistics → y
    backward    sums of tiles → means, dweight, dbias → dx

A pass sees x as [Z, A, C, L]: for each z and each of C channels, A runs of L neighbours. C is S · K; for the
moments, which are those of a whole statistic, S, and the run K · L. The vectors of a channel are numbered
through its runs, and a tile is as many of them as its threads hold: it spans many short runs, or a part of
a long one. Tiles are taken in the order z, number, channel, which is nearly that of memory; y and dx are made
in the opposite order, and begin with what the pass before has left in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..views import Split
from .compat import INT, Launcher, Pointer, cuda, device, kernel
from .finalize import gradients_of_sums, statistics_of_moments, statistics_of_running
from .indices import quotient
from .launch import arithmetic, contiguous, new, stored, width
from .rows import affine_gradient
from .sums import WARP, row_sums
from .vectors import load, per_vector, store

BLOCK = 256  # threads for a tile of a large channel
SHORT_BLOCK = 128  # threads of a block whose warps have a tile each
REGISTERS = 64  # bytes of x that a thread holds
MOST, MOST_SHORT = 8, 4  # vectors of x that a thread holds


@dataclass(frozen=True)
class Tile:
    """What `lanes` threads hold, each of them `per` vectors of `width` values."""

    width: int
    per: int
    lanes: int

    @property
    def threads(self) -> int:
        return max(self.lanes, SHORT_BLOCK)

    @property
    def in_block(self) -> int:
        return self.threads // self.lanes

    @property
    def vectors(self) -> int:
        return self.per * self.lanes

    @property
    def values(self) -> int:
        """Of x, in the registers of one thread."""
        return self.per * self.width


def tile_for(storage: np.dtype, values: int, width: int) -> Tile:
    """The tile for channels of so many values: a warp's, if one is enough."""
    per = min(MOST, REGISTERS // (width * np.dtype(arithmetic(storage)).itemsize))
    short = Tile(width, min(per, MOST_SHORT), WARP)
    return short if values <= short.vectors * width else Tile(width, per, BLOCK)


@dataclass(frozen=True, slots=True)
class Cut:
    """[Z, A, C, L] cut into tiles: so many of each channel, and what kernels are told of it."""

    tile: Tile
    tiles: int
    blocks: int
    numbers: tuple[int, ...]


@lru_cache(maxsize=1024)
def cut(storage: np.dtype, wide: int, Z: int, A: int, C: int, L: int) -> Cut:
    """The tiles of [Z, A, C, L], in which no length is 0; `wide` values can be read at once.

    A thread goes from one of its vectors to the next `lanes` further on: by `step` values of x, and within
    the run by `turn` vectors; beyond the end of a run, by (C − 1) · L values more.
    """
    tile = tile_for(storage, A * L, wide)
    tiles = -(-A * L // (tile.vectors * wide))
    items = Z * tiles * C
    run = L // wide
    runs, turn = divmod(tile.lanes, run)
    step = runs * C * L + turn * wide
    return Cut(tile, tiles, -(-items // tile.in_block), (A, C, run, tiles, items, turn, step))


NUMBERS = (INT,) * 7


FAR = 1 << 30  # vectors: further than a tile reaches, and safe in 32 bits


@cache
def locate(tile: Tile) -> Any:
    """A function that finds where the vectors of a thread begin, and writes it to `at`.

    It returns the item, its z and its channel, the thread's number among those of the tile, and how many of
    the tile's vectors there are, the others being beyond the end of the channel.
    """
    width, per, in_block, vectors = tile.width, tile.per, tile.in_block, tile.vectors
    last, shift = tile.lanes - 1, tile.lanes.bit_length() - 1  # lanes are a power of two

    @device
    def locate(at, block, A, C, run, tiles, items, turn, step):
        lane = cuda.threadIdx.x & last
        item = block * in_block + (cuda.threadIdx.x >> shift)
        row = quotient(item, C)
        channel = item - row * C
        z = quotient(row, tiles)
        first = (row - z * tiles) * vectors
        left = np.int32(min(A * run - first, vectors)) if item < items else np.int32(0)
        v = first + lane
        a = quotient(v, run)
        j = v - a * run
        place = (((z * A + a) * C + channel) * run + j) * width
        to_end = np.int32(min(run - j, FAR))
        whole = np.int32(min(run, FAR))
        turn = np.int32(turn)
        turned = step + (C - 1) * run * width
        for k in range(per):
            at[k] = place
            to_end = np.int32(to_end - turn)
            if to_end > 0:
                place += step
            else:
                to_end = np.int32(to_end + whole)
                place += turned
        return item, z, channel, lane, left

    return locate


@cache
def moments(storage: np.dtype, tile: Tile) -> Launcher:
    """x → the moments [3, Z, tiles, C] of its tiles.

    The mean of a tile is made in two steps, as a sum of values near 10⁴ would lose what a small variance
    needs: m, which need not be exact, and the mean of x − m, which is small. Not centred, the mean is 0.
    """
    T, width, per, values, lanes = arithmetic(storage), tile.width, tile.per, tile.values, tile.lanes
    add, find, load_vector = row_sums(lanes, T), locate(tile), load(width)

    @kernel(tile.threads, Pointer(storage), Pointer(np.dtype(T)), INT, *NUMBERS, vectorized=width > 1)
    def moments(x, partials, centred, A, C, run, tiles, items, turn, step):
        at = cuda.local.array(per, np.int64)
        registers = cuda.local.array(values, T)
        item, _z, _channel, lane, left = find(
            at, np.int64(cuda.blockIdx.x), A, C, run, tiles, items, turn, step
        )
        for k in range(per):
            if k * lanes + lane < left:
                load_vector(x, at[k], registers, k * width)
            else:
                for i in range(width):
                    registers[k * width + i] = T(0)
        inverse = T(1) / T(max(left, 1) * width)
        mean = T(0)
        if centred:
            for i in range(values):
                mean += registers[i] * inverse
            mean, _ = add(mean, mean)
        total = T(0)
        squares = T(0)
        for k in range(per):
            if k * lanes + lane < left:
                for i in range(width):
                    deviation = registers[k * width + i] - mean
                    total += deviation
                    squares += deviation * deviation
        total, squares = add(total, squares)
        if item < items and lane == 0:
            rest = total * inverse if centred else T(0)
            squares -= total * rest
            if squares < T(0):  # rounding, where all values are equal
                squares = T(0)
            partials[item] = mean
            partials[items + item] = rest
            partials[2 * items + item] = squares

    return moments


@cache
def normalize(storage: np.dtype, tile: Tile) -> Launcher:
    """x and the statistics → y."""
    T, width, per, values, lanes = arithmetic(storage), tile.width, tile.per, tile.values, tile.lanes
    find, load_vector, store_vector, load_one = locate(tile), load(width), store(width), load(1)

    @kernel(
        tile.threads,
        *[Pointer(storage)] * 3,
        Pointer(np.dtype(T)),
        Pointer(storage),
        *[INT] * 4,
        *NUMBERS,
        vectorized=width > 1,
    )
    def normalize(
        x, weight, bias, statistics, y, has_weight, has_bias, count, K, A, C, run, tiles, items, turn, step
    ):
        at = cuda.local.array(per, np.int64)
        registers = cuda.local.array(values, T)
        affine = cuda.local.array(2, T)
        block = np.int64(cuda.gridDim.x) - 1 - cuda.blockIdx.x
        item, z, channel, lane, left = find(at, block, A, C, run, tiles, items, turn, step)
        for k in range(per):
            if k * lanes + lane < left:
                load_vector(x, at[k], registers, k * width)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        affine[0] = T(1)
        affine[1] = T(0)
        if item < items:
            statistic = quotient(z * C + channel, K) if K > 1 else z * C + channel
            mean = statistics[statistic]
            rstd = statistics[2 * count + statistic]
            shift = statistics[3 * count + statistic]
            if has_weight:
                load_one(weight, channel, affine, 0)
            if has_bias:
                load_one(bias, channel, affine, 1)
        for k in range(per):
            if k * lanes + lane < left:
                for i in range(k * width, k * width + width):
                    registers[i] = ((registers[i] - mean) * rstd + shift) * affine[0] + affine[1]
                store_vector(y, at[k], registers, k * width)

    return normalize


@cache
def cotangent_sums(storage: np.dtype, tile: Tile) -> Launcher:
    """The cotangent, x and the statistics → the sums [2, Z, tiles, C] of tiles."""
    T, width, per, values, lanes = arithmetic(storage), tile.width, tile.per, tile.values, tile.lanes
    add, find, load_vector = row_sums(lanes, T), locate(tile), load(width)

    @kernel(
        tile.threads,
        *[Pointer(storage)] * 2,
        *[Pointer(np.dtype(T))] * 2,
        *[INT] * 2,
        *NUMBERS,
        vectorized=width > 1,
    )
    def cotangent_sums(cotangent, x, statistics, partials, count, K, A, C, run, tiles, items, turn, step):
        at = cuda.local.array(per, np.int64)
        g = cuda.local.array(values, T)
        registers = cuda.local.array(values, T)
        item, z, channel, lane, left = find(
            at, np.int64(cuda.blockIdx.x), A, C, run, tiles, items, turn, step
        )
        for k in range(per):
            if k * lanes + lane < left:
                load_vector(cotangent, at[k], g, k * width)
                load_vector(x, at[k], registers, k * width)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        if item < items:
            statistic = quotient(z * C + channel, K) if K > 1 else z * C + channel
            mean = statistics[statistic]
            rstd = statistics[2 * count + statistic]
            shift = statistics[3 * count + statistic]
        along = T(0)
        plain = T(0)
        for k in range(per):
            if k * lanes + lane < left:
                for i in range(k * width, k * width + width):
                    along += g[i] * ((registers[i] - mean) * rstd + shift)
                    plain += g[i]
        along, plain = add(along, plain)
        if item < items and lane == 0:
            partials[item] = along
            partials[items + item] = plain

    return cotangent_sums


@cache
def differentiate(storage: np.dtype, tile: Tile, training: bool) -> Launcher:
    """The cotangent, x, the statistics and the means → dx. Inference reads the cotangent and rstd alone."""
    T, width, per, values, lanes = arithmetic(storage), tile.width, tile.per, tile.values, tile.lanes
    find, load_vector, store_vector, load_one = locate(tile), load(width), store(width), load(1)

    @kernel(
        tile.threads,
        *[Pointer(storage)] * 3,
        *[Pointer(np.dtype(T))] * 2,
        Pointer(storage),
        *[INT] * 3,
        *NUMBERS,
        vectorized=width > 1,
    )
    def differentiate(
        cotangent, x, weight, statistics, means, dx, has_weight, count, K, A, C, run, tiles, items, turn, step
    ):
        at = cuda.local.array(per, np.int64)
        g = cuda.local.array(values, T)
        registers = cuda.local.array(values, T)
        factor = cuda.local.array(1, T)
        block = np.int64(cuda.gridDim.x) - 1 - cuda.blockIdx.x
        item, z, channel, lane, left = find(at, block, A, C, run, tiles, items, turn, step)
        for k in range(per):
            if k * lanes + lane < left:
                load_vector(cotangent, at[k], g, k * width)
                if training:
                    load_vector(x, at[k], registers, k * width)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        offset = T(0)
        slope = T(0)
        factor[0] = T(1)
        if item < items:
            statistic = quotient(z * C + channel, K) if K > 1 else z * C + channel
            rstd = statistics[2 * count + statistic]
            if training:
                mean = statistics[statistic]
                shift = statistics[3 * count + statistic]
                offset = means[statistic]
                slope = means[count + statistic]
            if has_weight:
                load_one(weight, channel, factor, 0)
        for k in range(per):
            if k * lanes + lane < left:
                for i in range(k * width, k * width + width):
                    value = g[i] * factor[0]
                    if training:
                        value = value - offset - ((registers[i] - mean) * rstd + shift) * slope
                    g[i] = value * rstd
                store_vector(dx, at[k], g, k * width)

    return differentiate


@dataclass(frozen=True, slots=True)
class StreamingSplit:
    """The kernel of the view Split for statistics of any size; inference is given the statistics."""

    training: bool

    def forward(
        self, plan: Split, x: Any, weight: Any, bias: Any, *running: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        y = new(x.shape, x.dtype, x)
        given, out = stored(contiguous(x)), stored(y)
        T = arithmetic(given.dtype)
        if not self.training:
            statistics = statistics_of_running(T, plan.eps, *running)
        elif given.size:
            statistics = self._statistics(plan, given, T)
        else:
            statistics = new((4, plan.statistics), T, x)
            statistics[...] = np.nan
        if given.size:
            form = cut_channels(plan, given.dtype)
            normalize(given.dtype, form.tile)(
                form.blocks,
                given,
                *(given if a is None else stored(contiguous(a)) for a in (weight, bias)),
                *(statistics, out, weight is not None, bias is not None, plan.statistics, plan.K),
                *form.numbers,
            )
        return y, (statistics[0], statistics[1], statistics)

    def _statistics(self, plan: Split, x: Any, T: type) -> Any:
        length = plan.K * plan.L
        form = cut(x.dtype, width(length, x.dtype), plan.Z, plan.A, plan.S, length)
        partials = new((3, plan.Z, form.tiles, plan.S), T, x)
        moments(x.dtype, form.tile)(form.blocks, x, partials, True, *form.numbers)
        full = form.tile.vectors * form.tile.width
        return statistics_of_moments(partials, 1, full, plan.A * length, plan.eps)

    def vjp(
        self, plan: Split, needs: Sequence[bool], cotangent: Any, arrays: Sequence[Any], aux: Sequence[Any]
    ) -> tuple[Any, Any, Any]:
        x, weight, bias = arrays[:3]
        need_x, need_affine = needs[0], needs[1] or needs[2]
        statistics = aux[2]
        dx = new(x.shape, x.dtype, x) if need_x else None
        like = bias if weight is None else weight
        dweight, dbias = (affine_gradient(like, plan.channels, x) for _ in range(2))
        if x.size:
            g, given = (stored(contiguous(array)) for array in (cotangent, x))
            factor = None if weight is None else stored(contiguous(weight))
            means = statistics  # not read in inference
            need_means = need_x and self.training
            if need_means or need_affine:
                form = cut_channels(plan, given.dtype)
                partials = new((2, plan.Z, form.tiles, plan.channels), statistics.dtype, x)
                cotangent_sums(given.dtype, form.tile)(
                    *(form.blocks, g, given, statistics, partials, plan.statistics, plan.K), *form.numbers
                )
                means = gradients_of_sums(
                    *(partials, factor, (stored(dweight), stored(dbias)) if need_affine else None, given),
                    need_means=need_means,
                    B=plan.K,
                    repeat=1,
                    count=plan.A * plan.K * plan.L,
                )
            if need_x:
                out = stored(dx)
                form = cut_channels(plan, given.dtype)
                differentiate(given.dtype, form.tile, self.training)(
                    *(form.blocks, g, given, given if factor is None else factor, statistics, means, out),
                    *(weight is not None, plan.statistics, plan.K, *form.numbers),
                )
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return dx, dweight if needs[1] else None, dbias if needs[2] else None


def cut_channels(plan: Split, storage: np.dtype) -> Cut:
    """The tiles of the channels of an x of a dtype, as kernels see it."""
    return cut(storage, width(plan.L, storage), plan.Z, plan.A, plan.channels, plan.L)


streaming = StreamingSplit(training=True)
streaming_inference = StreamingSplit(training=False)


def variants() -> Iterator[Launcher]:
    """For the tests that compile: every kernel, for short and long channels, with and without vectors."""
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for wide in (per_vector(storage), 1):
            for values in (1, 1 << 20):
                tile = tile_for(storage, values, wide)
                yield moments(storage, tile)
                yield normalize(storage, tile)
                yield cotangent_sums(storage, tile)
                yield differentiate(storage, tile, training=True)
                yield differentiate(storage, tile, training=False)
