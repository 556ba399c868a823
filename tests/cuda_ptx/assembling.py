"""A kernel's machine code, made without a GPU: numba-cuda compiles to PTX, NVIDIA's ptxas assembles it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from cuda.pathfinder import find_nvidia_binary_utility
from numba.cuda import dispatcher

from tinygrad_bn.kernels import cuda as package
from tinygrad_bn.kernels.cuda.compat import Launcher, Pointer, cuda, types

MODULES = {
    name: importlib.import_module(f"{package.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(package.__path__)
    if name != "simulator"
}
OUTPUTS = {"y", "dx"}
"""What kernels call an array of the input's size that they write."""
CAPABILITIES = ((8, 0), (9, 0))
"""Of an A100 and an H100."""
REGISTERS = 65536
"""Of a multiprocessor, for all threads of a block."""
GRANULE = 8  # they are given out to a thread in eights
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.\w+)*?\.v(\d)\.[a-z](\d+)")
ERROR = re.compile(r"ptxas error\s*: (?:Entry function '\S+' )?(.*)")  # without the mangled name
USED = re.compile(r"Used (\d+) registers")
MEMORY = re.compile(r"(\d+) bytes stack frame")  # spilled registers are in it


@dataclass(frozen=True)
class Assembly:
    """The PTX, and what the assembler says of it. local: bytes of memory of a thread, for what found no
    register and for arrays that must have addresses.
    """

    ptx: str
    registers: int
    local: int

    @property
    def double(self) -> list[str]:
        """The lines that have to do with float64."""
        return [line.strip() for line in self.ptx.splitlines() if ".f64" in line]

    def widest(self, which: str) -> int:
        """The bits of the widest vector that is read ("ld") or written ("st"); 0 without one."""
        found = ACCESS.findall(self.ptx)
        return max((int(n) * int(bits) for kind, n, bits in found if kind == which), default=0)


def assemble(kernel: Launcher, capability: tuple[int, int], folder: Path) -> Assembly:
    """Compile and assemble a kernel for a compute capability. `folder` is for files in between."""
    signature = types.void(*kernel.types)
    # The functions that a kernel calls are compiled for "the current device".
    pretended = SimpleNamespace(compute_capability=capability)
    with mock.patch.object(dispatcher, "get_current_device", return_value=pretended):
        ptx, _ = cuda.compile_ptx(
            kernel.function, signature, cc=capability, device=False, launch_bounds=kernel.bounds
        )
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = "sm_{}{}".format(*capability)
    done = subprocess.run(
        [find_nvidia_binary_utility("ptxas"), "-v", "-arch", target, "-o", folder / "kernel.cubin", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, ERROR.findall(done.stderr) or done.stderr
    used, memory = USED.findall(done.stderr), MEMORY.findall(done.stderr)
    return Assembly(ptx, max(map(int, used)), max(int(frame) for frame in memory))


def dtypes(kernel: Launcher) -> list[np.dtype]:
    """Of its arrays."""
    return [np.dtype(each.dtype) for each in kernel.signature if isinstance(each, Pointer)]


def faults(kernel: Launcher, found: Assembly) -> list[str]:
    """What a kernel's machine code must not have."""
    problems = []
    if found.double and not kernel.double and np.float64 not in dtypes(kernel):
        problems.append(f"calculates in float64: {found.double[:3]}")
    writes = OUTPUTS & inspect.signature(kernel.function).parameters.keys()
    for which, what in (("ld", "reads"), ("st", "writes")):
        if kernel.vectorized and (which == "ld" or writes) and found.widest(which) != 128:
            problems.append(f"{what} {found.widest(which)} bits at once, wanted 128")
    if found.local:
        problems.append(f"keeps {found.local} bytes in local memory, wanted registers alone")
    rounded = -(-found.registers // GRANULE) * GRANULE
    if rounded * kernel.threads > REGISTERS:
        problems.append(f"needs {rounded} registers in each of {kernel.threads} threads, over {REGISTERS}")
    return problems


@cache
def variants(module: str) -> list[Launcher]:
    """What a module compiles."""
    return list(getattr(MODULES[module], "variants", tuple)())


def faults_of_variant(module: str, number: int, capability: tuple[int, int]) -> list[str]:
    """Of one of them."""
    kernel = variants(module)[number]
    with tempfile.TemporaryDirectory() as folder:
        return faults(kernel, assemble(kernel, capability, Path(folder)))
