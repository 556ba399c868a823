"""The view Split where a statistic is one run of memory that fits registers: InstanceNorm and GroupNorm of
channels first, and BatchNorm of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..views import Split
from . import resident as kernels
from .launch import arithmetic, contiguous, new, stored, width
from .resident import BACKWARD_BYTES, FORWARD_BYTES, SHARED, layout, longest
from .rows import affine_gradient, sum_partials


def too_long(plan: Split, dtype: np.dtype) -> str | None:
    """Why `resident` cannot serve a call."""
    if plan.A != 1:
        return f"holds a statistic's values in one run of memory, these lie in {plan.A}"
    length = plan.K * plan.L
    wide = width(plan.L, dtype)
    if length > longest(dtype, wide):
        return (
            f"holds up to {longest(dtype, wide):,} values of a statistic in registers, these are {length:,}"
        )
    if plan.K > 1:
        form = layout(dtype, 1, length, wide, BACKWARD_BYTES)
        if kernels.shared_bytes(dtype, form) > SHARED:
            return (
                f"holds sums in shared memory, which is too small for those of a group of {length:,} values"
            )
    return None


@dataclass(frozen=True, slots=True)
class ResidentSplit:
    """The kernel of the view Split for statistics that fit the registers of a block."""

    def forward(self, plan: Split, x: Any, weight: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
        y = new(x.shape, x.dtype, x)
        rows, length = plan.statistics, plan.K * plan.L
        statistics = new((4, rows), arithmetic(stored(x).dtype), x)
        if length == 0:
            statistics[...] = np.nan
        elif rows:
            given, factor, term = (stored(contiguous(x if a is None else a)) for a in (x, weight, bias))
            form = layout(given.dtype, rows, length, width(plan.L, given.dtype), FORWARD_BYTES)
            kernels.forward(given.dtype, form, by_channel=True)(
                -(-rows // form.rows),
                *(given, factor, term, stored(y), statistics),
                *(rows, length, plan.S, plan.K, plan.L, weight is not None, bias is not None, True),
                *(1 / length, plan.eps),
            )
        return y, (statistics[0], statistics[1], statistics)

    def vjp(
        self, plan: Split, needs: Sequence[bool], cotangent: Any, arrays: Sequence[Any], aux: Sequence[Any]
    ) -> tuple[Any, Any, Any]:
        x, weight, bias = arrays
        need_affine = needs[1] or needs[2]
        rows, length = plan.statistics, plan.K * plan.L
        dx = new(x.shape if needs[0] else (1,), x.dtype, x)
        dweight, dbias = (affine_gradient(like, plan.channels, x) for like in (weight, bias))
        if rows and length and any(needs):
            g, given, factor = (
                stored(contiguous(a)) for a in (cotangent, x, x if weight is None else weight)
            )
            form = layout(given.dtype, rows, length, width(plan.L, given.dtype), BACKWARD_BYTES)
            sums = new((2, rows * plan.K) if need_affine else (1,), aux[2].dtype, x)
            kernels.backward_channels(given.dtype, form, grouped=plan.K > 1)(
                -(-rows // form.rows),
                *(g, given, factor, stored(dx), aux[2], sums, rows, length, plan.S, plan.K, plan.L),
                *(weight is not None, needs[0], need_affine, 1 / length),
            )
            if need_affine:
                sum_partials(sums.reshape(2, plan.Z, plan.channels), dweight, dbias)
        elif need_affine:
            dweight[...] = 0
            dbias[...] = 0
        return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None)


resident = ResidentSplit()
