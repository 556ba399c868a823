"""How long it takes to start: the command line, the import, and the compilation of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cases import Case
from .figures import Timing
from .libraries import OURS
from .pool import Workers

__all__ = ["Compilation", "Start", "compilation", "start_times", "sweep"]

COMMAND_LINE = "from gradcheck.cli import main; main()"
TIMED = f"import atexit, time; atexit.register(lambda: print(time.process_time())); {COMMAND_LINE}"
# The second import takes NumPy as it finds it.
IMPORT = """
import numpy, time
clocks = time.perf_counter, time.process_time
start = [clock() for clock in clocks]
import tinygrad_bn
print(*(clock() - then for clock, then in zip(clocks, start)))
"""
ENOUGH = 100_000


@dataclass(frozen=True)
class Start:
    """Seconds by the clock, and seconds that a processor worked: on a busy machine the first are more."""

    what: str
    wall: Timing
    processor: Timing


@dataclass(frozen=True)
class Compilation:
    """Seconds from an empty cache and from a full one, and how many compiled functions that then holds."""

    what: str
    cold: float
    warm: float
    variants: int


def start_times(rounds: int) -> list[Start]:
    """Of `--help`, and of `import tinygrad_bn` beyond NumPy's import, each in new processes.

    They find the modules as bytecode, as after an installation, whatever PYTHONDONTWRITEBYTECODE says.
    """
    help_, import_ = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bytecode = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(1 + rounds):  # the first writes it
            start = time.perf_counter()
            worked = float(_run(TIMED, "--help", **bytecode).split()[-1])
            help_.append((time.perf_counter() - start, worked))
            import_.append(tuple(map(float, _run(IMPORT, **bytecode).split())))
    return [
        Start(what, *map(Timing, zip(*taken[1:], strict=True)))
        for what, taken in (("--help", help_), ("import tinygrad_bn, after numpy", import_))
    ]


def _run(program: str, *words: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    ).stdout


def compilation(cases: Sequence[Case], threads: int) -> Compilation:
    """Of an operation: the first calls at its cases, in a new process whose cache is empty, and again in
    another one. Importing numba counts. Raises pool.Failed.
    """

    def calls(folder: str) -> None:
        with Workers(threads, NUMBA_CACHE_DIR=folder) as workers:
            for case in cases:
                workers.prepare(OURS, case.of_size(ENOUGH))

    return _cold_and_warm(cases[0].operation, calls)


def sweep() -> Compilation:
    """Of `python cli.py gradcheck`, whole."""
    return _cold_and_warm("gradcheck", lambda folder: _run(COMMAND_LINE, "gradcheck", NUMBA_CACHE_DIR=folder))


def _cold_and_warm(what: str, run: Callable[[str], object]) -> Compilation:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        taken = []
        for _ in ("cold", "warm"):
            start = time.perf_counter()
            run(folder)
            taken.append(time.perf_counter() - start)
        cold, warm = taken
        return Compilation(what, cold, warm, sum(1 for _ in Path(folder).rglob("*.nbc")))
