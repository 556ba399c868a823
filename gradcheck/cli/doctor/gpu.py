"""What the CUDA kernels need, on a GPU or in numba's simulator.

The driver is asked through its own C interface, so that it can be told from what is wrong with a package.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gradcheck.cli.doctor.probe import Finding, absent, ok, wrong

__all__ = ["bindings", "cupy", "device", "driver", "numba_cuda", "ptxas", "simulator", "toolkit"]

NO_DEVICE = 100
MAJOR, MINOR = 75, 76  # attributes of a device: its compute capability
DROPPED_BY_13 = (7, 5)
"""CUDA 13 compiles for this compute capability and newer ones."""
KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def simulator() -> Finding:
    """numba's simulator: numba has it, and greenlet makes it fast and deterministic."""
    version = _version("greenlet")
    if version is None:
        return absent(
            "greenlet is not installed; only to run CUDA kernels without a GPU", "pip install greenlet"
        )
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return ok(f"greenlet {version}; NUMBA_ENABLE_CUDASIM is set, which hides the GPU")
    return ok(f"greenlet {version}")


def driver() -> Finding:
    """The driver, and the newest CUDA that it can run."""
    library = _library()
    if library is None:
        if KERNEL_MODULE.exists():
            return wrong(
                "the system has an NVIDIA driver, but libcuda.so.1 is not here; a container gets it with",
                "docker run --gpus all …",
            )
        return absent("no NVIDIA driver; only a GPU needs one")
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    if version.value < 12000:
        return wrong(
            f"serves CUDA {_dotted(version.value)}, wanted 12 or newer; on Ubuntu:",
            "sudo apt install nvidia-driver-580",
        )
    return ok(f"serves CUDA {_dotted(version.value)}")


def device() -> Finding:
    """The GPUs: name, compute capability, memory."""
    library = _library()
    if library is None:
        return absent("no driver to ask")
    status = library.cuInit(0)
    if status == NO_DEVICE:
        return absent("the driver sees no GPU")
    if status != 0:
        return wrong(
            f"the driver cannot start: {_error(library, status)}; its own tool says more:", "nvidia-smi"
        )
    found = [_described(library, each) for each in range(_count(library))]
    return ok("; ".join(found))


def numba_cuda() -> Finding:
    """The package that compiles the kernels."""
    version = _version("numba-cuda")
    if version is None:
        return absent("not installed; only a GPU needs it", _install())
    import numpy as np

    if hasattr(np, "row_stack"):
        return ok(version)
    return ok(f"{version}; asks for numpy.row_stack, which NumPy {np.__version__} has not: it is put back")


def bindings() -> Finding:
    """cuda-bindings, through which numba-cuda calls the driver."""
    version = _version("cuda-bindings")
    if version is None:
        return absent("cuda-bindings is not installed; comes with numba-cuda", _install())
    import cuda.bindings.driver  # noqa: F401 -- it may be broken

    return _fitting(f"cuda-bindings {version}", int(version.partition(".")[0]))


def toolkit() -> Finding:
    """The compiler's libraries, NVVM, NVRTC and nvJitLink; numba-cuda compiles, which needs no GPU."""
    if importlib.util.find_spec("cuda") is None or _version("cuda-pathfinder") is None:
        return absent("not looked for: cuda-pathfinder, which finds it, is not installed", _install())
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    found = {}
    for name in ("nvvm", "nvrtc", "nvJitLink"):
        try:
            found[name] = load_nvidia_dynamic_lib(name).abs_path or name
        except DynamicLibNotFoundError:
            return wrong(f"{name} is not to be found", _install())
    numbers = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(found["nvrtc"]).nvrtcVersion(*map(ctypes.byref, numbers))
    version = ".".join(str(number.value) for number in numbers)
    compiles = ""
    if _version("numba-cuda") is not None:
        os.environ.pop("NUMBA_ENABLE_CUDASIM", None)  # in this process alone
        from tinygrad_bn.kernels.cuda.compat import cuda, types

        cuda.compile_ptx(lambda: None, types.void(), cc=(8, 0), device=False)
        compiles = ", compiles"
    place = os.path.commonpath(filter(os.path.isabs, found.values()))
    return _fitting(f"CUDA {version}{compiles}, in {place}", numbers[0].value)


def ptxas() -> Finding:
    """The assembler, for tests that look at the machine code."""
    if importlib.util.find_spec("cuda") is not None and _version("cuda-pathfinder") is not None:
        from cuda.pathfinder import find_nvidia_binary_utility

        path = find_nvidia_binary_utility("ptxas")
        if path is not None:
            return ok(path)
    return absent("only `make test-cuda-ptx` needs it, and installs it")


def cupy() -> Finding:
    """CuPy, on which primitive operations run; made for the same CUDA as the toolkit."""
    names = [name for name in ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x") if _version(name)]
    if not names:
        return absent("not installed; only a GPU needs it", _install())
    if len(names) > 1:
        return wrong(
            f"{' and '.join(names)} overwrite each other", f"pip uninstall --yes {' '.join(names[:-1])}"
        )
    import cupy

    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    found = _fitting(f"{names[0]} {cupy.__version__}", major)
    bound = _version("cuda-bindings")
    if found.status == "ok" and bound is not None and int(bound.partition(".")[0]) != major:
        return wrong(f"{found.text} is for CUDA {major}, numba-cuda has bindings {bound}", _install())
    return found


@cache
def _library() -> Any:
    """The driver's library, or None."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _count(library: Any) -> int:
    number = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(number))
    return number.value


def _capability(library: Any, position: int) -> tuple[int, int]:
    handle, value = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(handle), position)
    found = []
    for attribute in (MAJOR, MINOR):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        found.append(value.value)
    return found[0], found[1]


def _described(library: Any, position: int) -> str:
    handle, name, total = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(handle), position)
    library.cuDeviceGetName(name, len(name), handle)
    library.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    capability = ".".join(map(str, _capability(library, position)))
    label = "cuda" if position == 0 else f"cuda:{position}"
    memory = f"{total.value / 2**30:.0f} GiB"
    return f"{label} is {name.value.decode(errors='replace')}, compute capability {capability}, {memory}"


def _error(library: Any, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    return f"error {status}" + (f", {text.value.decode(errors='replace')}" if text.value else "")


def _newest() -> int:
    """The major release of CUDA to install: what the driver and every GPU can run; 13 where there is none."""
    library = _library()
    if library is None or library.cuInit(0) != 0:
        return 13
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    old = any(_capability(library, each) < DROPPED_BY_13 for each in range(_count(library)))
    return 12 if old or version.value < 13000 else 13


def _install(major: int | None = None) -> str:
    major = major or _newest()
    return f'pip install "numba-cuda[cu{major}]" "cupy-cuda{major}x[ctk]"'


def _fitting(what: str, major: int) -> Finding:
    """Whether what is made for a release of CUDA runs on this driver and these GPUs."""
    newest = _newest()
    if major > newest:
        return wrong(
            f"{what} is too new for the driver or the GPU, which run CUDA {newest}", _install(newest)
        )
    return ok(what)


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
