"""torch, eager and compiled. Channels last is the same memory, seen as [N, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from ..cases import Case
from . import PRIMITIVES, Unserved
from .streams import TorchStream

__all__ = ["Compiled", "Torch"]


def _layer_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return F.layer_norm(x, k["normalized_shape"], weight, bias, k.get("eps", 1e-5))


def _rms_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    eps = k.get("eps")
    if eps is None and x.element_size() == 2:  # torch would take that of 16 bits
        eps = torch.finfo(torch.float32).eps
    return F.rms_norm(x, k["normalized_shape"], weight, eps) + bias


def _batch_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=k.get("eps", 1e-5))


def _batch_norm_inference(k: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=k.get("eps", 1e-5))


def _instance_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return F.instance_norm(x, None, None, weight, bias, eps=k.get("eps", 1e-5))


def _group_norm(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return F.group_norm(x, k["num_groups"], weight, bias, k.get("eps", 1e-5))


def _dropout(k: Any, x: Any) -> Any:
    return F.dropout(x, k.get("p", 0.5))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "norm::layer_norm": _layer_norm,
    "norm::rms_norm": _rms_norm,
    "norm::batch_norm": _batch_norm,
    "norm::batch_norm_inference": _batch_norm_inference,
    "norm::instance_norm": _instance_norm,
    "norm::group_norm": _group_norm,
    "dropout::dropout": _dropout,
}
NAMES = {"power": "pow"}


def _function(case: Case) -> Callable[..., Any]:
    spec = case.spec
    if spec.rng and case.arguments.keys() - {"p"}:
        raise Unserved
    if spec.name in FUNCTIONS:
        return partial(FUNCTIONS[spec.name], case.arguments)
    function = getattr(torch, NAMES.get(spec.short_name, spec.short_name), None)
    if spec.namespace not in PRIMITIVES or function is None:
        raise Unserved
    return partial(function, **case.arguments)


class Torch:
    """torch.nn.functional with inputs that require a gradient; backward by torch.autograd.grad."""

    stream = TorchStream

    def __init__(self, case: Case):
        self.case = case
        self.inputs = [self._tensor(array) for array in case.arrays()]
        self.wanted = [self.inputs[position] for position in case.spec.gradients]
        for tensor in self.wanted:
            tensor.requires_grad_()
        self.forward = self.record = partial(self._prepared(self._function(case)), *self.inputs)
        output = self.record()
        shape = self.numpy(output).shape
        self.cotangent = self._tensor(case.cotangent(shape))

    def _function(self, case: Case) -> Callable[..., Any]:
        return _function(case)

    def _prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        if array.dtype.name == "bfloat16":  # NumPy has it from a package that torch does not know
            made = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            made = torch.from_numpy(array)
        return self._swapped(made.to(self.case.device), -1, 1)

    def _swapped(self, tensor: torch.Tensor, source: int, target: int) -> torch.Tensor:
        if self.case.channels_last and tensor.ndim == len(self.case.shape):
            return tensor.movedim(source, target)
        return tensor

    def backward(self, output: torch.Tensor) -> Sequence[Any]:
        return torch.autograd.grad(output, self.wanted, self.cotangent)

    def numpy(self, value: torch.Tensor) -> np.ndarray:
        found = self._swapped(value.detach(), 1, -1).cpu()
        return (found.float() if found.dtype == torch.bfloat16 else found).numpy()


class Compiled(Torch):
    """The same functions through torch.compile, each for its shape, once."""

    _latest: ClassVar[tuple[Case, Any] | None] = None

    def _prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if Compiled._latest is None or Compiled._latest[0] != self.case:
            torch.compiler.reset()  # or the next shape would be compiled for any
            Compiled._latest = self.case, torch.compile(function, dynamic=False)
        return Compiled._latest[1]
