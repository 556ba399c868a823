"""Every operation as a function.

Norms and dropout have torch's names and argument order; array functions have NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .devices import as_array
from .ops.activations import relu, sigmoid, tanh
from .ops.arithmetic import (
    abs,
    add,
    divide,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
    where,
)  # fmt: skip
from .ops.dropouts import dropout
from .ops.linalg import matmul
from .ops.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from .ops.reductions import amax, amin, mean, sum
from .ops.shaping import astype, broadcast_to, concatenate, getitem, pad, reshape, scatter, transpose
from .tensor import Tensor

__all__ = [
    "abs", "add", "amax", "amin", "astype", "batch_norm", "broadcast_to", "concatenate", "divide",
    "dropout", "exp", "getitem", "group_norm", "instance_norm", "layer_norm", "log", "matmul", "maximum",
    "mean", "minimum", "multiply", "negative", "pad", "power", "relu", "reshape", "rms_norm", "scatter",
    "sigmoid", "sqrt", "stack", "subtract", "sum", "tanh", "transpose", "where",
]  # fmt: skip


def stack(parts: Sequence[Any], axis: int = 0) -> Tensor:
    """Arrays of one shape side by side along a new axis."""
    parts = [part if isinstance(part, Tensor) else as_array(part) for part in parts]
    if not parts:
        raise ValueError("stack: got no arrays, wanted at least one")
    rank = parts[0].ndim + 1
    if not -rank <= axis < rank:
        raise ValueError(f"stack: axis is {axis}, wanted {-rank} to {rank - 1} for arrays of rank {rank - 1}")
    key = (slice(None),) * (axis % rank)
    return concatenate([getitem(part, (*key, None)) for part in parts], axis)
