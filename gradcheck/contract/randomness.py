"""NumPy's global generator, np.random.*: kept from making every call of a pair another function."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

__all__ = ["GlobalGenerator"]

Result = TypeVar("Result")


@dataclass(slots=True)
class GlobalGenerator:
    """Calls forward from one state always, backward from the state that its own forward left behind.

    Reading the state costs more than a small forward pass. So the first forward and the first backward are
    watched; only where one of them moves the state is it set around every call. Between calls it is
    the caller's.
    """

    callers: Any = None  # the state that the caller must find again
    watched: frozenset[str] = frozenset()
    used: bool = False

    def call(self, role: str, state: Any, function: Callable[[], Result]) -> tuple[Result, Any]:
        """Call a function from a state; return its result and the state it left (None: nobody looks)."""
        if not self.used and role in self.watched:
            return function(), None
        if self.callers is None:
            self.callers = _read()
        if state is not None:
            _write(state)
        try:
            result = function()
        finally:
            left = _read()
            self.used = self.used or pickle.dumps(left) != pickle.dumps(self.callers)
            if self.used:
                _write(self.callers)
        self.watched |= {role}
        return result, left if self.used else None


def _read() -> Any:
    return np.random.get_state(legacy=False)  # noqa: NPY002 - it is the legacy generator that is meant


def _write(state: Any) -> None:
    np.random.set_state(state)  # noqa: NPY002
