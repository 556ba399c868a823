"""The family *cols* on a CUDA device: BatchNorm, InstanceNorm and GroupNorm, channels last, over [Z, A, M].

The formulas are those of the CPU's `cols`. `streaming`, whose kernels are in `columns`, reads x twice: for
the moments of chunks of rows, which `finalize` merges, and to normalize. Its backward pass reads x and the
cotangent twice. `resident` serves single rows, in which the values of a statistic lie together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..views import Cols, Split
from . import columns as kernels
from . import split_resident
from .compat import Launcher, processors
from .finalize import gradients_of_sums, statistics_of_moments, statistics_of_running
from .launch import arithmetic, contiguous, new, stored, width
from .rows import affine_gradient
from .vectors import per_vector

THREADS = 256
FEW_THREADS = 64  # for a z of no more vectors
SPAN = 512  # bytes of a row that a block reads, at least, where the row has them
BLOCKS = 8  # for each multiprocessor: as many as it can hold, or nearly
MOST_ROWS = 256  # of a chunk for each thread: longer sums would lose digits


@dataclass(frozen=True, slots=True)
class Grid:
    """How x is divided; see `columns`. joined: rows of the view that are read as one."""

    width: int
    joined: int
    threads: int
    rows: int
    length: int
    chunk: int
    down: int
    across: int
    columns: int
    blocks: int

    @property
    def tiles(self) -> int:
        """Of one z, for `finalize`."""
        return self.down * self.joined

    @property
    def arguments(self) -> tuple[int, ...]:
        return self.rows, self.length, self.chunk, self.down, self.across, self.columns


def joined_rows(plan: Cols, storage: np.dtype) -> int:
    """How many rows make a whole number of vectors; 1 where they do not divide the rows."""
    wide = per_vector(storage)
    joined = wide // math.gcd(plan.M, wide)
    return joined if plan.A % joined == 0 else 1


@lru_cache(maxsize=1024)
def grid(plan: Cols, itemsize: int, width: int, joined: int, blocks: int) -> Grid:
    """The division of an x that is not empty into about as many `blocks`, or fewer where it is small."""
    rows, length = plan.A // joined, plan.M * joined
    vectors = length // width
    threads = FEW_THREADS if rows * vectors <= FEW_THREADS else THREADS
    most = min(threads, max(SPAN // (width * itemsize), threads // rows))
    across = -(-vectors // most)
    columns = -(-vectors // across)
    lanes = threads // columns
    once = lanes * kernels.ROWS
    down = -(-blocks // (plan.Z * across))
    chunk = min(-(-rows // (down * once)) * once, lanes * MOST_ROWS)
    down = -(-rows // chunk)
    return Grid(width, joined, threads, rows, length, chunk, down, across, columns, plan.Z * down * across)


def divided(plan: Cols, storage: np.dtype) -> Grid:
    """The division of an x of a dtype, as kernels see it."""
    joined = joined_rows(plan, storage)
    wide = width(plan.M * joined, storage)
    return grid(plan, storage.itemsize, wide, joined, BLOCKS * processors())


@dataclass(frozen=True, slots=True)
class ColsKernel:
    """The kernel of the view Cols; inference is given the statistics."""

    training: bool

    def forward(
        self, plan: Cols, x: Any, weight: Any, bias: Any, *running: Any
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        y = new(x.shape, x.dtype, x)
        given, factor, term = (stored(contiguous(x if a is None else a)) for a in (x, weight, bias))
        T = arithmetic(given.dtype)
        division = divided(plan, given.dtype) if x.size else None
        if not self.training:
            statistics = statistics_of_running(T, plan.eps, *running)
        elif division is None:
            statistics = new((4, plan.statistics), T, x)
            statistics[...] = np.nan
        else:
            moments = new((3, plan.Z, division.tiles, plan.M), T, x)
            kernels.moments(given.dtype, division.width, division.threads)(
                division.blocks, given, moments, moments.size // 3, *division.arguments
            )
            statistics = statistics_of_moments(
                moments, plan.B, division.chunk, plan.A, plan.eps, division.joined
            )
        if division is not None:
            kernels.normalize(given.dtype, division.width, division.threads)(
                division.blocks,
                *(given, factor, term, statistics, stored(y), weight is not None, bias is not None),
                *(plan.statistics, plan.M, plan.B, plan.repeat, *division.arguments),
            )
        return y, (statistics[0], statistics[1], statistics)

    def vjp(
        self, plan: Cols, needs: Sequence[bool], cotangent: Any, arrays: Sequence[Any], aux: Sequence[Any]
    ) -> tuple[Any, Any, Any]:
        x, weight, bias = arrays[:3]
        statistics = aux[2]
        need_affine = needs[1] or needs[2]
        dx = new(x.shape if needs[0] else (1,), x.dtype, x)
        dweight, dbias = (affine_gradient(like, plan.channels, x) for like in (weight, bias))
        if x.size and any(needs):
            g, given, factor = (
                stored(contiguous(a)) for a in (cotangent, x, x if weight is None else weight)
            )
            division = divided(plan, given.dtype)
            owners = (plan.statistics, plan.M, plan.B, plan.repeat)
            means = statistics  # which inference does not read
            if self.training or need_affine:
                sums = new((2, plan.Z, division.tiles, plan.M), statistics.dtype, x)
                kernels.gradient_sums(given.dtype, division.width, division.threads)(
                    division.blocks,
                    *(g, given, statistics, sums, sums.size // 2, *owners, *division.arguments),
                )
                means = gradients_of_sums(
                    *(sums, None if weight is None else factor),
                    (stored(dweight), stored(dbias)) if need_affine else None,
                    given,
                    need_means=self.training and needs[0],
                    B=plan.B,
                    repeat=plan.repeat,
                    count=plan.A * plan.B,
                )
            if needs[0]:
                kernels.differentiate(given.dtype, division.width, division.threads, self.training)(
                    division.blocks,
                    *(g, given, factor, statistics, means, stored(dx), weight is not None),
                    *(*owners, *division.arguments),
                )
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None)


@lru_cache(maxsize=1024)
def as_split(plan: Cols) -> Split:
    """The same x, seen by the other family."""
    return Split(plan.Z, plan.A, plan.M // plan.B, plan.B // plan.repeat, plan.repeat, plan.eps)


def too_long(plan: Cols, dtype: np.dtype) -> str | None:
    """Why `resident` cannot serve a call."""
    return split_resident.too_long(as_split(plan), dtype)


class ResidentCols:
    """The kernel of the view Cols for single rows, as GroupNorm has without spatial axes."""

    def forward(self, plan: Cols, *arrays: Any) -> tuple[Any, tuple[Any, ...]]:
        return split_resident.resident.forward(as_split(plan), *arrays)

    def vjp(self, plan: Cols, *arguments: Any) -> tuple[Any, Any, Any]:
        return split_resident.resident.vjp(as_split(plan), *arguments)


resident = ResidentCols()
streaming = ColsKernel(training=True)
streaming_inference = ColsKernel(training=False)


def variants() -> Iterator[Launcher]:
    """For the tests that compile: every kernel. One of few threads differs from it in that number alone."""
    for storage in map(np.dtype, ("float32", "float64", "float16", "uint16")):
        for wide in (per_vector(storage), 1):
            yield kernels.moments(storage, wide, THREADS)
            yield kernels.normalize(storage, wide, THREADS)
            yield kernels.gradient_sums(storage, wide, THREADS)
            for training in (True, False):
                yield kernels.differentiate(storage, wide, THREADS, training)
