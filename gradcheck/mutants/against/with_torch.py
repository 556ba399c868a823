"""torch.autograd.gradcheck, slow and fast, over a torch.autograd.Function that calls the pair."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch.autograd import gradcheck as torch_gradcheck

from gradcheck.mutants.against.checker import Checker, Wrapped, differentiable_positions
from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.operations import Operation

__all__ = ["checkers"]

DEFAULTS = {"eps": 1e-6, "atol": 1e-5, "rtol": 1e-3}
GRID = (
    {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-7},
    {"eps": 1e-5, "atol": 1e-7, "rtol": 1e-9},
    {"eps": 1e-5, "atol": 1e-9, "rtol": 1e-7},
)


def checkers() -> list[Checker]:
    """Both modes at their defaults, and at every setting of the grid."""
    return [
        _checker(setting, fast, setting is DEFAULTS)
        for fast in (False, True)
        for setting in (DEFAULTS, *GRID)
    ]


def _checker(setting: dict[str, float], fast: bool, defaults: bool) -> Checker:
    def accuses(operation: Operation, pair: Pair, inputs: tuple[np.ndarray, ...], seed: int) -> bool:
        wrapped = Wrapped(operation, pair, inputs)
        tensors = [
            torch.from_numpy(inputs[index].copy()).requires_grad_()
            for index in differentiable_positions(operation)
        ]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float32 will likely fail: whether it does is asked here
            torch.manual_seed(seed)
            try:
                return not torch_gradcheck(
                    lambda *given: _Function.apply(wrapped, *given), tensors, fast_mode=fast, **setting
                )
            except Exception:  # a GradcheckError, or whatever the mutant makes torch raise
                return True

    text = "eps {eps:g}, atol {atol:g}, rtol {rtol:g}".format(**setting)
    return Checker(f"torch {'fast' if fast else 'slow'}", text, defaults, accuses)


class _Function(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    @staticmethod
    def forward(context: Any, wrapped: Wrapped, *tensors: torch.Tensor) -> torch.Tensor:
        output, number = wrapped.forward(*(tensor.numpy() for tensor in tensors))
        context.wrapped, context.number = wrapped, number
        return torch.from_numpy(np.ascontiguousarray(output))

    @staticmethod
    def backward(context: Any, cotangent: torch.Tensor) -> Any:
        gradients = context.wrapped.backward(context.number, cotangent.numpy())
        return None, *(None if g is None else torch.from_numpy(np.asarray(g)) for g in gradients)
