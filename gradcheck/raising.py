"""What is said of a function that raised, with the line of the user's that did."""

from __future__ import annotations

import os
import sys
import traceback

__all__ = ["raised"]

# Whose lines lead nobody to a mistake of their own.
LIBRARIES = {"gradcheck", "tinygrad_bn", "torch", "jax", "jaxlib", "numpy"} | sys.stdlib_module_names


def raised(role: str, error: Exception, hint: str = "") -> str:
    """Such as `backward raised IndexError: index 9 is out of bounds, at my_norm.py:12`, then a hint."""
    place = _place(error)
    return f"{role} raised {type(error).__name__}: {error}{f', at {place}' if place else ''}{hint}"


def _place(error: Exception) -> str:
    """file:line of the innermost frame that is the user's; empty where none is."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            return f"{os.path.basename(frame.f_code.co_filename)}:{line}"
    return ""
