"""Thread blocks in numba's CUDA simulator, one thread at a time, in an order that is chosen.

numba starts a thread of the operating system for each CUDA thread: slow, and in an order that chance decides.
Here the threads of a block are greenlets. Each runs until it waits: at a barrier for its block, at a shuffle
for its warp. Who runs first is fixed, `forward` or `backward`, so that a result which depends on it, as one
does where a barrier is missing, differs between the two. More is refused than a GPU refuses, where it would
go on and be wrong:

- an index outside of an array, or a negative one; a vector at an address that is no multiple of its size;
- a barrier that some threads of the block, or of the warp, never reach;
- what was never written: new shared and local memory holds NaN.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

try:
    from greenlet import getcurrent, greenlet
except ImportError as error:
    raise ImportError(
        "numba's simulator of CUDA is used here with the package greenlet; pip install greenlet"
    ) from error

__all__ = ["DivergentBarrier", "Memory", "install", "simulate", "thread_order"]

WARP = 32
BLOCK = "the barrier of the block"


class DivergentBarrier(RuntimeError):
    """Some threads wait where the others never come."""


class Memory:
    """The values of a contiguous array as a kernel sees them: one after the other, and none outside."""

    __slots__ = ("_address", "_size", "_values", "dtype")

    def __init__(self, array: np.ndarray):
        self._values = array.view(np.ndarray).reshape(-1)
        self._size = array.size
        self._address = array.ctypes.data
        self.dtype = array.dtype

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._size:
            raise IndexError(f"read at {index} of an array of {self._size} values")
        return self._values[index]

    def __setitem__(self, index: int, value: Any) -> None:
        if not 0 <= index < self._size:
            raise IndexError(f"write at {index} of an array of {self._size} values")
        self._values[index] = value

    def check_aligned(self, index: int, size: int) -> None:
        """Refuse a vector whose address is no multiple of its size in bytes, as a GPU does."""
        if (self._address + int(index) * self.dtype.itemsize) % size:
            raise ValueError(f"{size} bytes at once from {index} of an array of {self.dtype} are not aligned")


# The threads of a block

_backward = False


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """Let the threads of a block run first to last ("forward") or last to first ("backward")."""
    global _backward
    if order not in ("forward", "backward"):
        raise ValueError(f"thread_order: order is {order!r}, wanted 'forward' or 'backward'")
    kept, _backward = _backward, order == "backward"
    try:
        yield
    finally:
        _backward = kept


class Thread(greenlet):  # type: ignore[misc]
    """One thread of a block. What it waits for: the barrier of the block, or a shuffle of its warp."""

    def __init__(self, run: Callable[[], None], block: Any, place: Any, number: int):
        super().__init__(run)
        self.blockIdx, self.threadIdx, self.thread_id = block, place, number
        self.waits: Any = None
        self.members = 0
        self.value: Any = None
        self.others: dict[int, Any] = {}

    def wait(self, reason: Any) -> None:
        """Let the others run until the scheduler resumes this thread."""
        self.waits = reason
        self.parent.switch()

    def syncthreads(self) -> None:
        self.wait((BLOCK, _caller(3)))

    def exchange(self, members: int, value: Any, depth: int) -> dict[int, Any]:
        """The values of the lanes of the warp that take part, by lane."""
        self.members, self.value = int(members) & 0xFFFFFFFF, value
        self.wait(("shuffle", _caller(depth)))
        return self.others


def _caller(depth: int) -> tuple[str, int]:
    frame = sys._getframe(depth)
    return frame.f_code.co_filename, frame.f_lineno


class Block:
    """Runs the threads of one block; in the place of numba's `BlockManager`."""

    def __init__(self, function: Callable[..., None], grid: Any, shape: tuple[int, ...], debug: bool):
        self._function, self._shape = function, shape

    def run(self, place: tuple[int, ...], *arguments: Any) -> None:
        interface = _simulator.kernels._get_kernel_context()
        interface.shared.forget()
        point = _simulator.interface.Dim3
        block = point(*place)

        def run() -> None:
            with np.errstate(all="ignore"):  # a GPU says nothing of infinity and NaN
                self._function(*arguments)

        threads = [
            Thread(run, block, point(x, y, z), number)
            for number, (z, y, x) in enumerate(np.ndindex(*self._shape[::-1]))
        ]
        running = threads[::-1] if _backward else threads
        with _inside(interface):
            try:
                while running:
                    running = self._resume(running)
            finally:
                for thread in threads:
                    if not thread.dead:
                        thread.throw()

    def _resume(self, running: list[Thread]) -> list[Thread]:
        """Run each thread until it waits or ends; those that are left."""
        for thread in running:
            if thread.waits is None:
                try:
                    thread.switch()
                except Exception as error:
                    error.add_note(f"in thread {thread.threadIdx} of block {thread.blockIdx}")
                    raise
        running = [thread for thread in running if not thread.dead]
        if not _release_warps(running) and running:
            _release_block(running, len(running) < self._count)
        return running

    @property
    def _count(self) -> int:
        return int(np.prod(self._shape))


def _release_warps(running: list[Thread]) -> bool:
    """Let those warps go on whose lanes have all come to the same shuffle; whether there was one."""
    warps: dict[int, list[Thread]] = {}
    for thread in running:
        if thread.waits[0] != BLOCK:
            warps.setdefault(thread.thread_id // WARP, []).append(thread)
    for lanes in warps.values():
        values = {lane.thread_id % WARP: lane.value for lane in lanes}
        present = sum(1 << lane for lane in values)
        for lane in lanes:
            if lane.members != present or lane.waits != lanes[0].waits:
                raise DivergentBarrier(
                    f"thread {lane.thread_id} waits at {_at(lane)} for the lanes {lane.members:#x} of its "
                    f"warp; {present:#x} have come, and thread {lanes[0].thread_id} to {_at(lanes[0])}"
                )
        for lane in lanes:
            lane.waits, lane.others = None, values
    return bool(warps)


def _release_block(running: list[Thread], some_ended: bool) -> None:
    """Let a block go on whose threads have all come to the same barrier."""
    first = running[0]
    for thread in running:
        if thread.waits != first.waits:
            raise DivergentBarrier(
                f"thread {first.thread_id} waits at {_at(first)}, thread {thread.thread_id} at {_at(thread)}"
            )
    if some_ended:
        raise DivergentBarrier(
            f"thread {first.thread_id} waits at {_at(first)}, but another thread of its block has ended"
        )
    for thread in running:
        thread.waits = None


def _at(thread: Thread) -> str:
    what, (file, line) = thread.waits
    return f"{what} in {file}:{line}"


# Memory of a block or a thread


class Shared:
    """Shared memory, told apart by the place in the source that asks for it, and new for every block."""

    def __init__(self, dynshared_size: int = 0):
        self._arrays: dict[Any, np.ndarray] = {}

    def array(self, shape: Any, dtype: Any) -> np.ndarray:
        frame = sys._getframe(1)
        key = frame.f_code, frame.f_lasti
        if key not in self._arrays:
            self._arrays[key] = _poisoned(shape, dtype)
        return self._arrays[key]

    def forget(self) -> None:
        self._arrays.clear()


class Local:
    """The registers or the local memory of a thread."""

    def array(self, shape: Any, dtype: Any) -> np.ndarray:
        return _poisoned(shape, dtype)


def _poisoned(shape: Any, dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype)


# What a warp can do, which numba's simulator lacks


def _shuffle_xor(self: Any, members: int, value: Any, lanes: int) -> Any:
    thread = getcurrent()
    return thread.exchange(members, value, 3)[(thread.thread_id % WARP) ^ lanes]


def _shuffle(self: Any, members: int, value: Any, lane: int) -> Any:
    return getcurrent().exchange(members, value, 3)[lane]


def _shuffle_down(self: Any, members: int, value: Any, lanes: int) -> Any:
    thread = getcurrent()
    values = thread.exchange(members, value, 3)
    return values.get(thread.thread_id % WARP + lanes, value)


def _synchronize_warp(self: Any, members: int = 0xFFFFFFFF) -> None:
    getcurrent().exchange(members, None, 3)


# How it gets into numba's simulator

_simulator = SimpleNamespace(kernels=None, interface=None, cuda=None)
_namespaces: list[dict[str, Any]] = []


def install(kernels: Any, interface: Any, cuda: Any) -> None:
    """Put this scheduler, and what warps can do, into the modules of numba's simulator."""
    _simulator.kernels, _simulator.interface, _simulator.cuda = kernels, interface, cuda
    kernels.BlockManager = Block
    interface.threading = SimpleNamespace(current_thread=getcurrent, Lock=threading.Lock)
    interface.FakeCUDAShared, interface.FakeCUDALocal = Shared, Local
    for name, function in {
        "shfl_sync": _shuffle,
        "shfl_xor_sync": _shuffle_xor,
        "shfl_down_sync": _shuffle_down,
        "syncwarp": _synchronize_warp,
    }.items():
        setattr(interface.FakeCUDAModule, name, function)


def simulate(function: Callable[..., Any]) -> None:
    """Let a function of a kernel see the simulated `cuda` while a block runs."""
    if not any(namespace is function.__globals__ for namespace in _namespaces):
        _namespaces.append(function.__globals__)


@contextlib.contextmanager
def _inside(interface: Any) -> Iterator[None]:
    real = _simulator.cuda
    swapped = [namespace for namespace in _namespaces if namespace.get("cuda") is real]
    for namespace in swapped:
        namespace["cuda"] = interface
    try:
        yield
    finally:
        for namespace in swapped:
            namespace["cuda"] = real
