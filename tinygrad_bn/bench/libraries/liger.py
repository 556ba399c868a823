"""Liger's kernels in Triton, a GPU's alone: LayerNorm, RMSNorm and GroupNorm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from liger_kernel.transformers import functional as liger

from ..cases import Case
from . import Unserved
from .torch import Torch

__all__ = ["Liger"]


def _layer_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return liger.liger_layer_norm(x, weight, bias, k.get("eps", 1e-5))


def _rms_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    """Not in place: that would overwrite the cotangent."""
    eps = k.get("eps")
    return liger.liger_rms_norm(x, weight, 2.0**-23 if eps is None else eps, in_place=False) + bias


def _group_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    flat = x.reshape(*x.shape[:2], -1)
    normalized = liger.liger_group_norm(flat, weight, bias, x.shape[1], k["num_groups"], k.get("eps", 1e-5))
    return normalized.reshape(x.shape)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "norm::layer_norm": _layer_norm,
    "norm::rms_norm": _rms_norm,
    "norm::group_norm": _group_norm,
}


class Liger(Torch):
    """Liger's functions on torch's tensors, in the layouts and dtypes that they serve."""

    def _function(self, case: Case) -> Callable[..., Any]:
        if case.operation not in FUNCTIONS or case.channels_last or case.dtype == "float64":
            raise Unserved
        if len(case.arguments.get("normalized_shape", (1,))) > 1:  # it normalizes the last axis
            raise Unserved
        return partial(FUNCTIONS[case.operation], case.arguments)
