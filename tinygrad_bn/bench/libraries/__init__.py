"""The libraries that are compared, each by the same few methods. A worker imports one of them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from typing import Any

__all__ = ["FLOOR", "OURS", "PEERS", "PRIMITIVES", "Unserved", "absence", "load"]

OURS, FLOOR = "tinygrad_bn", "floor"

# Name: the class, and the package that it needs.
LIBRARIES = {
    OURS: ("ours:Ours", "numpy"),
    FLOOR: ("floor:Floor", "numba"),
    "torch": ("torch:Torch", "torch"),
    "torch-compile": ("torch:Compiled", "torch"),
    "jax": ("jax:Jax", "jax"),
    "numpy": ("ours:Definition", "numpy"),
}
PEERS = tuple(name for name in LIBRARIES if name not in (OURS, FLOOR))
# The namespaces whose operations the peers have under the same names.
PRIMITIVES = ("math", "reduce", "linalg")


class Unserved(Exception):
    """The library has no such operation."""


def absence(name: str) -> str | None:
    """Why a peer cannot be measured here, and what to do; None where it can."""
    package = LIBRARIES[name][1]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; pip install {package}"
    compilers = (os.environ.get("CXX", "g++"), "c++", "clang++", "cl")
    if name == "torch-compile" and not any(map(shutil.which, compilers)):
        return "torch.compile needs a C++ compiler, and there is none; install g++"
    return None


def load(name: str) -> Any:
    """The class of that name, which makes `Class(case)`."""
    module, _, attribute = LIBRARIES[name][0].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
