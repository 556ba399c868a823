"""What every device needs: Python, NumPy, numba, and a folder for compiled kernels."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from gradcheck.cli.doctor.probe import Finding, ok, wrong

__all__ = ["interpreter", "kernel_cache", "numba_release", "numpy_release", "threading_layer"]

PYTHON = (3, 11)
OLDEST = {"numpy": (2, 0), "numba": (0, 61)}


def interpreter() -> Finding:
    """Python, and which."""
    version = platform.python_version()
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return wrong(f"{version}, wanted {wanted} or newer", f"make PYTHON=/path/to/python{wanted} test")
    return ok(f"{version}, {sys.executable}")


def numpy_release() -> Finding:
    """NumPy, by importing it."""
    try:
        import numpy as np
    except ImportError as problem:
        return _unusable("numpy", problem, "pip install --force-reinstall numpy")
    return _new_enough("numpy", np.__version__)


def numba_release() -> Finding:
    """numba, by importing it; it refuses releases of NumPy that it was not made for."""
    try:
        import llvmlite
        import numba
    except ImportError as problem:
        return _unusable("numba", problem, _install_for_numba(str(problem)))
    found = _new_enough("numba", numba.__version__)
    return found if found.mend else ok(f"{numba.__version__}, llvmlite {llvmlite.__version__}")


def threading_layer() -> Finding:
    """What runs the parallel kernels, by starting it."""
    if (found := numba_release()).mend:
        return wrong("numba cannot be used", found.mend)
    import numba

    try:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    except ValueError as problem:  # of a layer that the user demands
        return wrong(_line(problem), "unset NUMBA_THREADING_LAYER")
    return ok(f"{numba.threading_layer()}, {numba.config.NUMBA_NUM_THREADS} threads")


def kernel_cache() -> Finding:
    """The folder where numba keeps what it has compiled of this package, as numba finds it."""
    if (found := numba_release()).mend:
        return wrong("numba cannot be used", found.mend)
    import numba

    from tinygrad_bn.kernels.cpu import arrays

    wanted = os.environ.get("NUMBA_CACHE_DIR")
    elsewhere = f'export NUMBA_CACHE_DIR="{Path(tempfile.gettempdir(), "numba-cache")}"'
    try:
        folder = numba.njit(cache=True)(arrays.contiguous).stats.cache_path
    except RuntimeError:
        return wrong("no folder can be written, so every process compiles the kernels anew", elsewhere)
    if wanted and Path(os.path.realpath(wanted)) not in Path(os.path.realpath(folder)).parents:
        return wrong(f"NUMBA_CACHE_DIR={wanted} cannot be written; {folder} is used", elsewhere)
    return ok(folder)


def _unusable(package: str, problem: ImportError, repair: str) -> Finding:
    if isinstance(problem, ModuleNotFoundError) and problem.name == package:
        return wrong("not installed", f"pip install {package}")
    return wrong(f"cannot be imported: {_line(problem)}", repair)


def _install_for_numba(problem: str) -> str:
    """What mends an import of numba: the NumPy that this release was made for, or numba itself."""
    if "numpy" in problem.lower():
        needs = metadata.requires("numba") or ()
        for each in needs:
            if each.startswith("numpy"):
                return f'pip install "{each}"'
    return "pip install --force-reinstall numba"


def _new_enough(package: str, version: str) -> Finding:
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[package]:
        oldest = ".".join(map(str, OLDEST[package]))
        return wrong(f"{version}, wanted {oldest} or newer", f'pip install --upgrade "{package}>={oldest}"')
    return ok(version)


def _line(problem: BaseException) -> str:
    return " ".join(str(problem).split())
