"""The one place that imports `numba.cuda`: what differs between its releases, and between a GPU and the simulator.

A kernel is written once. On a GPU it is compiled by the package `numba-cuda`; where the environment variable
`NUMBA_ENABLE_CUDASIM=1` was set before numba was loaded, its source runs as Python in numba's simulator, under
the scheduler of `simulator.py`. Kernels take addresses rather than arrays: seven parameters less for each, and
no work on the host for their layout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numba
import numpy as np

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
"""Whether kernels run in the simulator."""

if not SIMULATED and importlib.util.find_spec("numba_cuda") is None:
    raise ImportError(
        "the CUDA kernels need the package numba-cuda; pip install 'tinygrad-bn[cuda13]' (or [cuda12], by the "
        "driver), or set NUMBA_ENABLE_CUDASIM=1 before Python starts to run them in numba's simulator"
    )

if not hasattr(np, "row_stack"):  # numba-cuda asks NumPy 2.5, which has lost it, for it
    np.row_stack = np.vstack

from numba import cuda, types  # noqa: E402 -- after the repair

if SIMULATED:
    from numba.cuda.simulator import kernel as _simulated_kernels
    from numba.cuda.simulator import kernelapi as _simulated_interface

    from . import simulator

    simulator.install(_simulated_kernels, _simulated_interface, cuda)

__all__ = [
    "INT",
    "SIMULATED",
    "Launcher",
    "Pointer",
    "Real",
    "cuda",
    "device",
    "kernel",
    "processors",
    "types",
]

INT = np.dtype(np.int64)
"""In the signature of a kernel: a size or an index, which may exceed 2³¹."""


@dataclass(frozen=True)
class Pointer:
    """In the signature of a kernel: the address of values of a dtype. bfloat16 is stored as its bits, uint16."""

    dtype: np.dtype


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    if SIMULATED:
        simulator.simulate(function)
        return function
    return cuda.jit(device=True)(function)


@dataclass(frozen=True)
class Launcher:
    """A kernel for blocks of `threads` threads: `launcher(blocks, *arguments)` starts it on the caller's stream.

    signature: for each argument a `Pointer`, given a device array, or the dtype of a number.
    vectorized: whether it reads and writes 16 bytes at once.
    double: whether it calculates in float64 though the values are not; only what runs once per statistic does.
    """

    function: Callable[..., None]
    threads: int
    signature: tuple[Any, ...]
    vectorized: bool = False
    double: bool = False
    _numbers: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = tuple(None if isinstance(a, Pointer) else np.dtype(a).type for a in self.signature)
        object.__setattr__(self, "_numbers", numbers)

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__qualname__.partition('.')[0]}"

    @property
    def types(self) -> tuple[Any, ...]:
        """The signature in numba's types."""
        return tuple(
            types.CPointer(_typed(argument.dtype)) if isinstance(argument, Pointer) else _typed(argument)
            for argument in self.signature
        )

    def __call__(self, blocks: int, *arguments: Any) -> None:
        if not blocks:  # a grid of no blocks is an error to the driver
            return
        given = [
            _address(argument) if number is None else number(argument)
            for number, argument in zip(self._numbers, arguments, strict=True)
        ]
        self._compiled[blocks, self.threads, _stream()](*given)

    @cached_property
    def _compiled(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        return cuda.jit(types.void(*self.types), launch_bounds=self.threads)(self.function)


def kernel(
    threads: int, *signature: Any, vectorized: bool = False, double: bool = False
) -> Callable[[Callable[..., None]], Launcher]:
    """Make a function a kernel. It is compiled when first launched."""

    def decorate(function: Callable[..., None]) -> Launcher:
        if SIMULATED:
            simulator.simulate(function)
        return Launcher(function, threads, signature, vectorized, double)

    return decorate


def processors() -> int:
    """The number of multiprocessors of the device in use; the simulator has two."""
    return 2 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def _typed(dtype: Any) -> Any:
    return getattr(types, np.dtype(dtype).name)


def _address(array: Any) -> Any:
    """Where a contiguous array begins; in the simulator its memory, which refuses what lies outside."""
    if SIMULATED:
        return simulator.Memory(array)
    return array.data.ptr


def _stream() -> Any:
    """The stream that CuPy works on, which is the caller's."""
    if SIMULATED:
        return 0
    import cupy

    pointer = cupy.cuda.get_current_stream().ptr
    return cuda.external_stream(pointer) if pointer else 0
