"""The family *rows* on a CUDA device: LayerNorm and RMSNorm, which normalize each row of [R, B].

The formulas are those of the CPU's `rows`. `resident` holds a row in registers; rows of any length are served
by `rows_streaming`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..views import Rows
from . import resident as kernels
from .compat import INT, Launcher, Pointer, cuda, kernel, processors
from .launch import arithmetic, contiguous, new, stored, width
from .resident import BACKWARD_BYTES, FORWARD_BYTES, layout, longest
from .vectors import store

COLUMNS, SLICES = 32, 8  # of a block that adds up partial sums: neighbouring columns, and parts of each


@cache
def add_partials(storage: np.dtype, slices: int) -> Launcher:
    """The sums over the blocks of partials [2, blocks, length], in a fixed order → dweight and dbias."""
    T = arithmetic(storage)
    threads = COLUMNS * slices
    store_one = store(1)

    @kernel(threads, Pointer(np.dtype(T)), *[Pointer(storage)] * 2, *[INT] * 2)
    def add_partials(partials, dweight, dbias, blocks, length):
        scratch = cuda.shared.array(threads, T)
        result = cuda.local.array(1, T)
        thread = cuda.threadIdx.x
        column = np.int64(cuda.blockIdx.x) * COLUMNS + thread % COLUMNS
        for which in range(2):
            total = T(0)
            if column < length:
                for block in range(thread // COLUMNS, blocks, slices):
                    total += partials[(which * blocks + block) * length + column]
            cuda.syncthreads()
            scratch[thread] = total
            cuda.syncthreads()
            if thread < COLUMNS and column < length:
                for part in range(1, slices):
                    total += scratch[part * COLUMNS + thread]
                result[0] = total
                if which == 0:
                    store_one(dweight, column, result, 0)
                else:
                    store_one(dbias, column, result, 0)

    return add_partials


def sum_partials(partials: Any, dweight: Any, dbias: Any) -> None:
    """dweight and dbias from the partial sums [2, blocks, length] of each."""
    _, blocks, length = partials.shape
    slices = SLICES if blocks > SLICES else 1
    add_partials(stored(dweight).dtype, slices)(
        -(-length // COLUMNS), partials, stored(dweight), stored(dbias), blocks, length
    )


@dataclass(frozen=True, slots=True)
class ResidentRows:
    """The kernel of the view Rows for rows that fit the registers of a block."""

    def forward(self, plan: Rows, x: Any, weight: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
        y = new(x.shape, x.dtype, x)
        statistics = new((4, plan.rows), arithmetic(stored(x).dtype), x)
        if plan.length == 0:
            statistics[...] = np.nan
        elif plan.rows:
            given, factor, term = (stored(contiguous(x if a is None else a)) for a in (x, weight, bias))
            wide = width(plan.length, given.dtype)
            form = layout(given.dtype, plan.rows, plan.length, wide, FORWARD_BYTES)
            kernels.forward(given.dtype, form, by_channel=False)(
                -(-plan.rows // form.rows),
                *(given, factor, term, stored(y), statistics),
                *(plan.rows, plan.length, 1, 1, 1, weight is not None, bias is not None, plan.centred),
                *(1 / plan.length, plan.eps),
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
            g, given, factor = (
                stored(contiguous(a)) for a in (cotangent, x, x if weight is None else weight)
            )
            wide = width(plan.length, given.dtype)
            form = layout(given.dtype, plan.rows, plan.length, wide, BACKWARD_BYTES)
            blocks = persistent_blocks(plan.rows, form.rows, form.threads)
            partials = new((2, blocks, plan.length) if need_affine else (1,), aux[2].dtype, x)
            kernels.backward_rows(given.dtype, form)(
                blocks,
                *(g, given, factor, stored(dx), aux[2], partials, plan.rows, plan.length),
                *(weight is not None, plan.centred, needs[0], need_affine, 1 / plan.length),
            )
            if need_affine:
                sum_partials(partials, dweight, dbias)
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None)


def persistent_blocks(rows: int, in_block: int, threads: int) -> int:
    """As many blocks as go over all rows side by side: about 1024 threads for each multiprocessor."""
    return min(-(-rows // in_block), processors() * max(1, 1024 // threads))


def affine_gradient(like: Any, size: int, x: Any) -> Any:
    """Room for the gradient of weight or bias, in its shape; where it is absent, flat."""
    return new((size,) if like is None else like.shape, x.dtype, x)


resident = ResidentRows()


def too_long(plan: Rows, dtype: np.dtype) -> str | None:
    """Why `resident` cannot serve a call."""
    most = longest(dtype, width(plan.length, dtype))
    if plan.length > most:
        return f"holds rows of up to {most:,} values in registers, these have {plan.length:,}"
    return None
