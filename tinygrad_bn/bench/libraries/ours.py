"""tinygrad_bn itself, and the definition that its kernels accelerate, run on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ... import autograd, devices
from ...tape import no_grad
from ...tensor import Tensor, array_of
from ..cases import Case
from .streams import CupyStream

__all__ = ["Definition", "Ours"]


class Ours:
    """The public function on tensors that require a gradient.

    `forward` is the call that is timed; `record` the one before a timed `backward`. `reference` makes the
    inputs wider, to float64, after they are drawn.
    """

    stream = CupyStream
    options: dict[str, Any] = {}  # noqa: RUF012 -- never changed

    def __init__(self, case: Case, reference: bool = False):
        self.case = case
        self.inputs: list[Any] = []
        for position, array in enumerate(case.arrays()):
            wanted = case.spec.variadic or position in case.spec.gradients
            wide = array.astype(np.float64) if reference else array
            there = devices.send(wide, case.device)
            self.inputs.append(Tensor(there, requires_grad=True) if wanted else there)
        self.wanted = [value for value in self.inputs if isinstance(value, Tensor)]
        self.forward = self.record = case.bound(self.inputs, **(self.options if case.spec.fused else {}))
        output = self.record()
        self.cotangent = Tensor(case.cotangent(output.shape).astype(output.dtype), device=case.device)

    def backward(self, output: Tensor) -> Sequence[Any]:
        return autograd.grad(output, self.wanted, self.cotangent)

    def numpy(self, value: Tensor) -> np.ndarray:
        return value.numpy()


class Definition(Ours):
    """The definition: forward without the tape, that of a primitive on arrays; backward through the tape, by
    NumPy too.
    """

    options = {"kernel": "definition"}  # noqa: RUF012

    def __init__(self, case: Case, reference: bool = False):
        super().__init__(case, reference)
        spec, arrays = case.spec, [array_of(value) for value in self.inputs]
        if spec.fused:
            self.forward = partial(self._without_tape, self.record)
        else:
            self.forward = partial(
                spec.definition, *([arrays] if spec.variadic else arrays), **case.arguments
            )

    @staticmethod
    def _without_tape(call: Any) -> Any:
        with no_grad():
            return call()
