"""Compiling the kernels in a process of their own, so that those that run them load them from the disk cache.

In the process that compiles a task, its calls of bodies reach the code of the bodies themselves; in one that
loads it, the copies that were saved with it, which LLVM has optimized once more. Either is right, but their
sums are grouped differently, and differ in the last bits. Where figures are to be the same in every process,
all of them must load:

    python -m tinygrad_bn.kernels.cpu.compiling rows 0 2

compiles the first half of the drivers of `rows`, so that two processes compile them in half the time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from .jit import Twins

__all__ = ["compile_elsewhere", "drivers"]

MOST_PROCESSES = 4  # each takes about 200 MB
DTYPES = np.dtype(np.float32), np.dtype(np.float64)


def drivers(family: str) -> list[tuple[Twins, np.dtype]]:
    """The twins of every driver of a module beside this one, with each dtype that they are made for."""
    module = importlib.import_module(f".{family}", __package__)
    return [(found, dtype) for found in vars(module).values() if isinstance(found, Twins) for dtype in DTYPES]


def compile_elsewhere(family: str) -> None:
    """Load the drivers of a module; compile those that the disk cache lacks, in other processes, once.

    Processes that want the same wait for the first. What cannot be compiled is left to the first call, which
    says why.
    """
    wanted = drivers(family)
    if _load(wanted):
        return
    with _locked(Path(__file__).with_name(f"{family}.py")):
        if _load(wanted):
            return
        paths = os.pathsep.join(filter(None, sys.path))
        shares = min(os.cpu_count() or 1, MOST_PROCESSES)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, family, str(share), str(shares)],
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for share in range(shares)
        ]
        try:
            for process in processes:
                process.wait()
        finally:  # whoever interrupts this one means those too
            for process in processes:
                process.kill()


def _load(wanted: list[tuple[Twins, np.dtype]]) -> bool:
    return all(driver.load(dtype) for twins, dtype in wanted for driver in twins)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine, where it can lock files; nothing is written."""
    with open(path, "rb") as file:
        _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the processes may compile the same, each for itself
        return
    with contextlib.suppress(OSError):  # a network file system may not lock what is open for reading only
        fcntl.flock(file, fcntl.LOCK_EX)


if __name__ == "__main__":
    family, share, shares = sys.argv[1], *map(int, sys.argv[2:])
    for twins, dtype in drivers(family)[share::shares]:  # which have their tasks in common
        for driver in twins:
            driver[dtype]
