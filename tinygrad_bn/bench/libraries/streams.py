"""The stream of a GPU that a library's calls go to: events on it, and graphs of what went there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["CupyStream", "Stream", "TorchStream"]

BALLAST = 1 << 30
"""Bytes of the memory that is written to keep the device busy; that takes 0.1 to 0.5 ms on a large GPU."""


class Stream(Protocol):
    """cache_bytes: of the second-level cache."""

    cache_bytes: int

    def occupy(self) -> None:
        """Keep the device busy for a while, and its second-level cache full of something else."""

    def mark(self) -> Any:
        """An event after all that was started so far."""

    def seconds(self, first: Any, last: Any) -> float:
        """Between two events, once the second has happened."""

    def wait(self) -> None:
        """Until the device has done everything."""

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A function that replays, as a graph, what the device does in a call. Its results live as long."""


class CupyStream:
    """Of CuPy, and of the kernels of numba.cuda, which follow it."""

    def __init__(self, index: int = 0):
        import cupy

        self._cupy = cupy
        device = cupy.cuda.Device(index)
        device.use()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stream.use()
        self._ballast = cupy.empty(BALLAST, "uint8")
        self.cache_bytes = int(device.attributes["L2CacheSize"])

    def occupy(self) -> None:
        self._ballast.data.memset_async(0, BALLAST, self._stream)

    def mark(self) -> Any:
        event = self._cupy.cuda.Event()
        event.record(self._stream)
        return event

    def seconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return self._cupy.cuda.get_elapsed_time(first, last) / 1e3

    def wait(self) -> None:
        self._stream.synchronize()

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        self._stream.begin_capture()
        try:
            kept = call()
        finally:
            graph = self._stream.end_capture()

        def replay() -> Any:
            graph.launch(self._stream)
            return kept

        return replay


class TorchStream:
    """Of torch. Both passes run on it: of one on another stream no graph could be captured here."""

    def __init__(self, index: int = 0):
        import torch

        self._torch = torch
        torch.cuda.set_device(index)
        self._stream = torch.cuda.Stream()
        torch.cuda.set_stream(self._stream)
        self._ballast = torch.empty(BALLAST, dtype=torch.uint8, device="cuda")
        self.cache_bytes = int(torch.cuda.get_device_properties(index).L2_cache_size)

    def occupy(self) -> None:
        self._ballast.zero_()

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def wait(self) -> None:
        self._stream.synchronize()

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            kept = call()

        def replay() -> Any:
            graph.replay()
            return kept

        return replay
