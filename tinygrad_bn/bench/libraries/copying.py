"""The device's own copy of the input: the bandwidth in whose fractions the operations on a GPU are told."""

from __future__ import annotations

from typing import Any

import cupy

from ...devices import send
from ..cases import Case
from .streams import CupyStream

__all__ = ["Copy"]


class Copy:
    """The same copy in both directions: it reads as many bytes as the input has, and writes as many."""

    stream = CupyStream

    def __init__(self, case: Case):
        self.source = send(case.arrays()[0], case.device)
        self.target = cupy.empty_like(self.source)

    def forward(self) -> None:
        self.target.data.copy_from_device_async(self.source.data, self.source.nbytes)

    def record(self) -> None:
        """Nothing: the copy needs nothing."""

    def backward(self, recorded: Any) -> None:
        self.forward()
