"""The one place that imports `numba.cuda`: what differs between its releases, and between a GPU and the
simulator.

A kernel is written once. On a GPU it is compiled by the package `numba-cuda`; where the environment variable
`NUMBA_ENABLE_CUDASIM=1` was set before numba was loaded, its source runs as Python in numba's simulator,
under the scheduler of `simulator.py`. Kernels take addresses rather than arrays: seven parameters less for
each, and no work on the host for their layout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import numba
import numpy as np

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
"""Whether kernels run in the simulator."""

if not SIMULATED and importlib.util.find_spec("numba_cuda") is None:
    raise ImportError(
        "the CUDA kernels need the package numba-cuda; pip install 'tinygrad-bn[cuda13]' (or [cuda12], by "
        "the driver), or set NUMBA_ENABLE_CUDASIM=1 before Python starts to run them in numba's simulator"
    )

if not hasattr(np, "row_stack"):  # numba-cuda asks NumPy 2.5, which has lost it, for it
    np.row_stack = np.vstack  # noqa: NPY201

from numba import cuda, types  # noqa: E402 -- after the repair

if SIMULATED:
    from numba.cuda.simulator import kernel as _simulated_kernels
    from numba.cuda.simulator import kernelapi as _simulated_interface

    from . import simulator

    simulator.install(_simulated_kernels, _simulated_interface, cuda)
else:
    from numba.cuda.extending import intrinsic

    # Otherwise each grid of less than 128 blocks warns, and small inputs have no more.
    numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

__all__ = [
    "INT", "SIMULATED", "Launcher", "Pointer", "cuda", "device", "intrinsic", "kernel", "processors", "types",
]  # fmt: skip

MOST_BLOCKS = 2**31 - 1
INT = np.dtype(np.int64)
"""In the signature of a kernel: a size or an index, which may exceed 2³¹."""


@dataclass(frozen=True)
class Pointer:
    """In the signature of a kernel: the address of values of a dtype. bfloat16 is stored as its bits,
    uint16.
    """

    dtype: np.dtype


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    if SIMULATED:
        simulator.simulate(function)
        return function
    return cuda.jit(device=True)(function)


@dataclass(frozen=True)
class Launcher:
    """A kernel for blocks of `threads` threads: `launcher(blocks, *arguments)` starts it on the caller's
    stream.

    signature: for each argument a `Pointer`, given a contiguous device array of its dtype; the dtype of a
        number; or a tuple of one dtype, again and again, given so many numbers.
    vectorized: whether it reads and writes 16 bytes at once.
    double: whether it calculates in float64 though the values are not; only what runs once per statistic
        does.
    """

    function: Callable[..., None]
    threads: int
    signature: tuple[Any, ...]
    vectorized: bool = False
    double: bool = False
    _conversions: tuple[Callable[[Any], Any], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_conversions", tuple(map(_conversion, self.signature)))

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__qualname__.partition('.')[0]}"

    @property
    def bounds(self) -> tuple[int, int]:
        """The threads of a block, and the blocks for which a multiprocessor must have registers: one, or the
        assembler may rather spill than keep out a second.
        """
        return self.threads, 1

    @property
    def types(self) -> tuple[Any, ...]:
        """The signature in numba's types."""
        return tuple(map(_typed, self.signature))

    def __call__(self, blocks: int, *arguments: Any) -> None:
        if not blocks:  # a grid of no blocks is an error to the driver
            return
        if blocks > MOST_BLOCKS:
            raise ValueError(
                f"{self.name}: {blocks:,} blocks, a grid has at most {MOST_BLOCKS:,}; split the input"
            )
        if len(arguments) != len(self._conversions):
            raise TypeError(f"{self.name}: got {len(arguments)} arguments, wanted {len(self._conversions)}")
        given = []
        for position, (convert, argument) in enumerate(zip(self._conversions, arguments, strict=True)):
            try:
                given.append(convert(argument))
            except Exception as error:
                error.add_note(f"in argument {position} of the kernel {self.name}")
                raise
        self._compiled[blocks, self.threads, _stream()](*given)

    @cached_property
    def _compiled(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        # Not linked by nvJitLink: what runs is what the tests of machine code look at.
        return cuda.jit(types.void(*self.types), launch_bounds=self.bounds, lto=False)(self.function)


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


def _typed(argument: Any) -> Any:
    """The type of numba for what stands in a signature."""
    if isinstance(argument, Pointer):
        return types.CPointer(_typed(argument.dtype))
    if isinstance(argument, tuple):
        return types.UniTuple(_typed(argument[0]), len(argument))
    return getattr(types, np.dtype(argument).name)


def _conversion(argument: Any) -> Callable[[Any], Any]:
    """What makes of an argument what the kernel gets."""
    if isinstance(argument, Pointer):
        return partial(_address, argument.dtype)
    if isinstance(argument, tuple):
        convert = _conversion(argument[0])
        return lambda values: tuple([convert(value) for _, value in zip(argument, values, strict=True)])
    return np.dtype(argument).type


def _address(dtype: np.dtype, array: Any) -> Any:
    """Where an array begins; in the simulator its memory, which refuses what lies outside."""
    if array.dtype != dtype:
        raise TypeError(f"got an array of {array.dtype}, wanted {dtype}")
    if not array.flags.c_contiguous:
        raise ValueError(f"got an array of strides {array.strides}, wanted a contiguous one")
    return simulator.Memory(array) if SIMULATED else array.data.ptr


def _stream() -> Any:
    """The stream that CuPy works on, which is the caller's."""
    if SIMULATED:
        return 0
    import cupy

    pointer = cupy.cuda.get_current_stream().ptr
    return _numba_stream(pointer) if pointer else 0


@lru_cache(maxsize=128)  # numba finds the configuration of a launch again by the object
def _numba_stream(pointer: int) -> Any:
    return cuda.external_stream(pointer)
