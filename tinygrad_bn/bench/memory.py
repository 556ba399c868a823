"""What an operation allocates: the most at once in each pass, and what the tape keeps between them."""

from __future__ import annotations

import contextlib
import ctypes
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dispatch import Saved
from ..kernels.cpu.memory import release_memory
from ..tensor import Tensor

__all__ = ["measure"]

PROCESS = Path("/proc/self")


def measure(library: Any) -> dict[str, int | None]:
    """Bytes beyond the inputs, the output and the gradients: `saved` by the tape for the backward pass, and
    at most at once in each pass.

    `forward` and `backward` count what Python and NumPy allocate, exactly. `resident_forward` and
    `resident_backward` are by how much the process grew, which counts what compiled code allocates too,
    in whole pages; None where the system does not tell.
    """
    found: dict[str, int | None] = {}
    output, found["forward"] = _traced(library.forward)
    found["saved"] = sum(array.nbytes for array in _kept(output, library.inputs))
    _, found["backward"] = _traced(lambda: library.backward(output))
    del output
    output, found["resident_forward"] = _resident(library.forward)
    _, found["resident_backward"] = _resident(lambda: library.backward(output))
    return found


def _kept(output: Tensor, inputs: Sequence[Any]) -> list[np.ndarray]:
    """The arrays that the nodes behind an output hold, without those of the inputs and the output."""
    known = [output.data, *(value.data if isinstance(value, Tensor) else value for value in inputs)]
    found: list[np.ndarray] = []
    nodes = [output._edge[0]] if output._edge else []
    for node in nodes:
        nodes += [edge[0] for edge in node.parents if edge is not None and edge[0] not in nodes]
        saved = node.saved
        if not isinstance(saved, Saved):  # a leaf
            continue
        for array in (*saved.inputs, saved.output, *saved.aux):
            if isinstance(array, np.ndarray) and not any(np.shares_memory(array, k) for k in known):
                known.append(array)
                found.append(array)
    return found


def _size(result: Any) -> int:
    return sum(each.data.nbytes for each in (result if isinstance(result, (tuple, list)) else [result]))


def _traced(call: Callable[[], Any]) -> tuple[Any, int]:
    release_memory()  # or the result might lie in memory that was allocated before
    tracemalloc.start()
    try:
        result = call()
        return result, max(tracemalloc.get_traced_memory()[1] - _size(result), 0)
    finally:
        tracemalloc.stop()


def _resident(call: Callable[[], Any]) -> tuple[Any, int | None]:
    release_memory()  # as above
    try:
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what was freed counts no more
        (PROCESS / "clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        result = call()
        return result, max(_status("VmHWM") - before - _size(result), 0)
    except OSError:
        return call(), None


def _status(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
