"""The family *split* on a CUDA device: BatchNorm, InstanceNorm and GroupNorm, channels first, [Z, A, S, K, L].

The formulas are those of the CPU's `split`. `streaming` serves statistics of any size, `streaming_inference` those
that are given. Each pass over x is cut into *tiles*, which are read into registers at once::

    forward     moments of tiles → statistics → y
    backward    sums of tiles → means, dweight, dbias → dx

A pass sees x as [Z, A, C, L]: for each z and each of C channels, A runs of L neighbours (C = S · K; the moments
need no more than C = S, L = K · L). The vectors of a channel are numbered through its runs, and a tile is as
many of them as its threads hold: one tile spans many short runs, one long run many tiles. Tiles are taken in the
order z, number, channel, which is nearly that of memory; y and dx are made in the opposite one, and begin with
what the pass before has left in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..views import Split
from .compat import INT, Launcher, Pointer, cuda, device, kernel
from .finalize import gradients_of_sums, statistics_of_moments, statistics_of_running
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


@dataclass(frozen=True)
class Cut:
    """[Z, A, C, L] cut into tiles. `numbers` is what kernels are told of it.

    A thread goes from one of its vectors to the next `lanes` further on: by `step` values of x and, within the
    run, by `turn` vectors; from the end of a run to the next one it is (C − 1) · L values more.
    """

    tile: Tile
    Z: int
    A: int
    C: int
    L: int

    @property
    def tiles(self) -> int:
        """Of one channel."""
        return -(-self.A * self.L // (self.tile.vectors * self.tile.width))

    @property
    def items(self) -> int:
        return self.Z * self.tiles * self.C

    @property
    def blocks(self) -> int:
        return -(-self.items // self.tile.in_block)

    @property
    def numbers(self) -> tuple[int, ...]:
        runs, turn = divmod(self.tile.lanes, self.L // self.tile.width)
        step = runs * self.C * self.L + turn * self.tile.width
        return self.A, self.C, self.L, self.tiles, self.items, turn, step


NUMBERS = (INT,) * 7


@cache
def locate(tile: Tile) -> Any:
    """A function that finds the vectors of a thread, and writes where each begins, or −1 where there is none.

    It returns the item, its z and its channel, and how many of its channel's vectors come from here on.
    """
    width, per, lanes, in_block, vectors = tile.width, tile.per, tile.lanes, tile.in_block, tile.vectors

    @device
    def locate(at, block, A, C, L, tiles, items, turn, step):
        item = block * in_block + cuda.threadIdx.x // lanes
        row = item // C
        channel = item - row * C
        z = row // tiles
        first = (row - z * tiles) * vectors
        run = L // width
        left = A * run - first if item < items else 0
        v = first + cuda.threadIdx.x % lanes
        a = v // run
        j = v - a * run
        place = ((z * A + a) * C + channel) * L + j * width
        for k in range(per):
            at[k] = place if k * lanes + cuda.threadIdx.x % lanes < left else -1
            j += turn
            place += step
            if j >= run:
                j -= run
                place += (C - 1) * L
        return item, z, channel, left

    return locate


@cache
def moments(storage: np.dtype, tile: Tile) -> Launcher:
    """x → the moments [3, Z, tiles, C] of its tiles.

    The mean of a tile is made in two steps, as a sum of values near 10⁴ would lose what a small variance needs:
    m, which need not be exact, and the mean of x − m, which is small.
    """
    T, width, per, values, vectors = arithmetic(storage), tile.width, tile.per, tile.values, tile.vectors
    lanes = tile.lanes
    add, find, load_vector = row_sums(lanes, T), locate(tile), load(width)

    @kernel(tile.threads, Pointer(storage), Pointer(np.dtype(T)), *NUMBERS, vectorized=width > 1)
    def moments(x, partials, A, C, L, tiles, items, turn, step):
        at = cuda.local.array(per, np.int64)
        registers = cuda.local.array(values, T)
        item, _z, _channel, left = find(at, np.int64(cuda.blockIdx.x), A, C, L, tiles, items, turn, step)
        for k in range(per):
            if at[k] >= 0:
                load_vector(x, at[k], registers, k * width)
            else:
                for i in range(width):
                    registers[k * width + i] = T(0)
        inverse = T(1) / T(max(min(left, vectors), 1) * width)
        mean = T(0)
        for i in range(values):
            mean += registers[i] * inverse
        mean, _ = add(mean, mean)
        total = T(0)
        squares = T(0)
        for k in range(per):
            if at[k] >= 0:
                for i in range(width):
                    deviation = registers[k * width + i] - mean
                    total += deviation
                    squares += deviation * deviation
        total, squares = add(total, squares)
        if item < items and cuda.threadIdx.x % lanes == 0:
            rest = total * inverse
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
    T, width, per, values = arithmetic(storage), tile.width, tile.per, tile.values
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
        x, weight, bias, statistics, y, has_weight, has_bias, count, K, A, C, L, tiles, items, turn, step
    ):
        at = cuda.local.array(per, np.int64)
        registers = cuda.local.array(values, T)
        affine = cuda.local.array(2, T)
        block = np.int64(cuda.gridDim.x) - 1 - cuda.blockIdx.x
        item, z, channel, _left = find(at, block, A, C, L, tiles, items, turn, step)
        for k in range(per):
            if at[k] >= 0:
                load_vector(x, at[k], registers, k * width)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        affine[0] = T(1)
        affine[1] = T(0)
        if item < items:
            statistic = (z * C + channel) // K
            mean = statistics[statistic]
            rstd = statistics[2 * count + statistic]
            shift = statistics[3 * count + statistic]
            if has_weight:
                load_one(weight, channel, affine, 0)
            if has_bias:
                load_one(bias, channel, affine, 1)
        for k in range(per):
            if at[k] >= 0:
                for i in range(k * width, k * width + width):
                    registers[i] = ((registers[i] - mean) * rstd + shift) * affine[0] + affine[1]
                store_vector(y, at[k], registers, k * width)

    return normalize


@cache
def sums(storage: np.dtype, tile: Tile) -> Launcher:
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
    def sums(cotangent, x, statistics, partials, count, K, A, C, L, tiles, items, turn, step):
        at = cuda.local.array(per, np.int64)
        g = cuda.local.array(values, T)
        registers = cuda.local.array(values, T)
        item, z, channel, _left = find(at, np.int64(cuda.blockIdx.x), A, C, L, tiles, items, turn, step)
        for k in range(per):
            if at[k] >= 0:
                load_vector(cotangent, at[k], g, k * width)
                load_vector(x, at[k], registers, k * width)
        mean = T(0)
        rstd = T(0)
        shift = T(0)
        if item < items:
            statistic = (z * C + channel) // K
            mean = statistics[statistic]
            rstd = statistics[2 * count + statistic]
            shift = statistics[3 * count + statistic]
        along = T(0)
        plain = T(0)
        for k in range(per):
            if at[k] >= 0:
                for i in range(k * width, k * width + width):
                    along += g[i] * ((registers[i] - mean) * rstd + shift)
                    plain += g[i]
        along, plain = add(along, plain)
        if item < items and cuda.threadIdx.x % lanes == 0:
            partials[item] = along
            partials[items + item] = plain

    return sums


@cache
def differentiate(storage: np.dtype, tile: Tile, training: bool) -> Launcher:
    """The cotangent, x, the statistics and the means → dx. In inference only the cotangent and rstd are read."""
    T, width, per, values = arithmetic(storage), tile.width, tile.per, tile.values
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
        cotangent, x, weight, statistics, means, dx, has_weight, count, K, A, C, L, tiles, items, turn, step
    ):
        at = cuda.local.array(per, np.int64)
        g = cuda.local.array(values, T)
        registers = cuda.local.array(values, T)
        factor = cuda.local.array(1, T)
        block = np.int64(cuda.gridDim.x) - 1 - cuda.blockIdx.x
        item, z, channel, _left = find(at, block, A, C, L, tiles, items, turn, step)
        for k in range(per):
            if at[k] >= 0:
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
            statistic = (z * C + channel) // K
            rstd = statistics[2 * count + statistic]
            if training:
                mean = statistics[statistic]
                shift = statistics[3 * count + statistic]
                offset = means[statistic]
                slope = means[count + statistic]
            if has_weight:
                load_one(weight, channel, factor, 0)
        for k in range(per):
            if at[k] >= 0:
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
            statistics = statistics_of_running(*running, T, plan.eps)
        elif given.size:
            statistics = self._statistics(plan, given, T)
        else:
            statistics = new((4, plan.statistics), T, x)
            statistics[...] = np.nan
        if given.size:
            cut = cut_channels(plan, given, out)
            normalize(given.dtype, cut.tile)(
                cut.blocks,
                given,
                *(given if a is None else stored(contiguous(a)) for a in (weight, bias)),
                *(statistics, out, weight is not None, bias is not None, plan.statistics, plan.K),
                *cut.numbers,
            )
        return y, (statistics[0], statistics[1], statistics)

    def _statistics(self, plan: Split, x: Any, T: type) -> Any:
        length = plan.K * plan.L
        tile = tile_for(x.dtype, plan.A * length, width(length, x))
        cut = Cut(tile, plan.Z, plan.A, plan.S, length)
        partials = new((3, plan.Z, cut.tiles, plan.S), T, x)
        moments(x.dtype, tile)(cut.blocks, x, partials, *cut.numbers)
        return statistics_of_moments(partials, 1, tile.vectors * tile.width, plan.A * length, plan.eps)

    def vjp(
        self, plan: Split, needs: Sequence[bool], cotangent: Any, arrays: Sequence[Any], aux: Sequence[Any]
    ) -> tuple[Any, Any, Any]:
        x, weight, bias = arrays[:3]
        need_x, need_affine = needs[0], needs[1] or needs[2]
        statistics = aux[2]
        dx = new(x.shape, x.dtype, x) if need_x else None
        like = bias if weight is None else weight
        dweight, dbias = (
            affine_gradient(like, plan.channels, x) if need else None for need in [need_affine] * 2
        )
        if x.size:
            g, given = (stored(contiguous(array)) for array in (cotangent, x))
            factor = None if weight is None else stored(contiguous(weight))
            means = statistics  # not read in inference
            need_means = need_x and self.training
            if need_means or need_affine:
                cut = cut_channels(plan, g, given)
                partials = new((2, plan.Z, cut.tiles, plan.channels), statistics.dtype, x)
                sums(given.dtype, cut.tile)(
                    *(cut.blocks, g, given, statistics, partials, plan.statistics, plan.K), *cut.numbers
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
                cut = cut_channels(plan, g, given, out)
                differentiate(given.dtype, cut.tile, self.training)(
                    *(cut.blocks, g, given, given if factor is None else factor, statistics, means, out),
                    *(weight is not None, plan.statistics, plan.K, *cut.numbers),
                )
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return dx, dweight if needs[1] else None, dbias if needs[2] else None


def cut_channels(plan: Split, *arrays: Any) -> Cut:
    """The tiles in which all of the arrays can be read or written."""
    tile = tile_for(arrays[0].dtype, plan.A * plan.L, width(plan.L, *arrays))
    return Cut(tile, plan.Z, plan.A, plan.channels, plan.L)


streaming = StreamingSplit(training=True)
streaming_inference = StreamingSplit(training=False)


def variants() -> Iterator[Launcher]:
    """For the tests that compile: every kernel, for short and long channels, with and without vectors."""
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for width in (per_vector(storage), 1):
            for values in (1, 1 << 20):
                tile = tile_for(storage, values, width)
                yield moments(storage, tile)
                yield normalize(storage, tile)
                yield sums(storage, tile)
                yield differentiate(storage, tile, training=True)
                yield differentiate(storage, tile, training=False)
