"""Arithmetic on indices."""

from __future__ import annotations

import numpy as np

from .compat import device


@device
def quotient(a, b):
    """a // b of numbers that are not negative. A division takes 25 instructions, and is often needless."""
    return np.int64(np.uint64(a) // np.uint64(b)) if a >= b else np.int64(0)
