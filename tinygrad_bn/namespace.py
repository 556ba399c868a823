"""The array functions `xp` that definitions and rules are written on.

There are two namespaces with the same names: `arrays` works on NumPy arrays (also complex ones), `tensors`
on Tensors and records what it does. A definition or a rule takes one of them as `xp` and so serves both.
Each primitive operation, where it is declared in `ops/`, puts its two faces here; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Namespace", "arrays", "tensors"]


class Namespace:
    """Array functions by name, as attributes."""

    def __init__(self, name: str):
        self._name = name

    def define(self, name: str, function: Callable[..., Any]) -> None:
        """Add `function`, or replace it where the same operation is declared again."""
        setattr(self, name, function)

    def names(self) -> list[str]:
        """The functions that a definition may use."""
        return sorted(name for name in vars(self) if not name.startswith("_"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"xp.{name} is not an array function of this framework (namespace {self._name!r}); "
            f"a definition may use: {', '.join(self.names())}"
        )

    def __repr__(self) -> str:
        return f"<namespace {self._name}: {len(self.names())} functions>"


arrays = Namespace("arrays")
tensors = Namespace("tensors")
