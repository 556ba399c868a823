"""The libraries that are compared, each by the same few methods. A worker imports one of them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from typing import Any

__all__ = ["FLOOR", "OURS", "PRIMITIVES", "Unserved", "absence", "load", "peers"]

OURS, FLOOR = "tinygrad_bn", "floor"

# Name: the class, and the package that it needs. On the CPU, and on a GPU.
LIBRARIES = {
    OURS: ("ours:Ours", "numpy"),
    FLOOR: ("floor:Floor", "numba"),
    "torch": ("torch:Torch", "torch"),
    "torch-compile": ("torch:Compiled", "torch"),
    "jax": ("jax:Jax", "jax"),
    "numpy": ("ours:Definition", "numpy"),
}
ON_GPU = {
    OURS: ("ours:Ours", "cupy"),
    FLOOR: ("copying:Copy", "cupy"),
    "torch": ("torch:Torch", "torch"),
    "torch-compile": ("torch:Compiled", "torch"),
    "liger": ("liger:Liger", "liger_kernel"),
}
PROJECTS = {"liger_kernel": "liger-kernel"}  # that have another name than the package
# The namespaces whose operations the peers have under the same names.
PRIMITIVES = ("math", "reduce", "linalg")


class Unserved(Exception):
    """The library has no such operation."""


def _serving(device: str) -> Mapping[str, tuple[str, str]]:
    return LIBRARIES if device == "cpu" else ON_GPU


def peers(device: str = "cpu") -> tuple[str, ...]:
    """The libraries that are compared with ours on a device."""
    return tuple(name for name in _serving(device) if name not in (OURS, FLOOR))


def absence(name: str, device: str = "cpu") -> str | None:
    """Why a peer cannot be measured here, and what to do; None where it can."""
    package = _serving(device)[name][1]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; pip install {PROJECTS.get(package, package)}"
    if device != "cpu":
        build = metadata.version("torch")
        return f"torch {build} is a build for the CPU alone" if build.endswith("+cpu") else None
    compilers = (os.environ.get("CXX", "g++"), "c++", "clang++", "cl")
    if name == "torch-compile" and not any(map(shutil.which, compilers)):
        return "torch.compile needs a C++ compiler, and there is none; install g++"
    return None


def load(name: str, device: str = "cpu") -> Any:
    """The class of that name for a device, which makes `Class(case)`."""
    module, _, attribute = _serving(device)[name][0].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
