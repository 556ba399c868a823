"""The line of Python that repeats a check, and where the functions under test are written."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

__all__ = ["place_of", "place_of_vjp", "repeating_line"]


def repeating_line(entrance: str, functions: Mapping[str, Any], seed: int, options: Mapping[str, Any]) -> str:
    """Such as `gradcheck.check_pair(forward, backward, inputs, seed=7)   # forward is at my_norm.py:12`.

    functions: what is called by its parameter's name, a registered operation by its own.
    options: further arguments; those that print as Python are written out.
    """
    names = {role: _written(role, function) for role, function in functions.items()}
    plain = (bool, int, str, tuple, list, dict)
    given = [f"{key}={value!r}" for key, value in options.items() if value and isinstance(value, plain)]
    line = f"gradcheck.{entrance}({', '.join([*names.values(), 'inputs', *given, f'seed={seed}'])})"
    for role, function in functions.items():
        place = place_of(function)
        if place:
            return f"{line}   # {names[role]} is at {place}"
    return line


def _written(role: str, function: Any) -> str:
    if isinstance(function, str):
        return repr(function)
    name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if inspect.ismethod(function) and isinstance(owner, type):  # such as the apply of an autograd.Function
        return f"{owner.__name__}.{name}"
    return name if name.isidentifier() else role


def place_of_vjp(function: Any) -> str:
    """Where the backward pass of a framework's function is written, or else the function; as place_of."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and hasattr(owner, "backward"):  # the apply of an autograd.Function
        return place_of(owner.backward)
    rule = getattr(function, "bwd", None)  # of a custom_vjp
    declared = getattr(getattr(function, "spec", None), "definition", None)  # of a registered operation
    return place_of(next((each for each in (rule, declared) if callable(each)), function))


def place_of(function: Any) -> str:
    """file:line, the file as seen from the current folder; empty where there is no source."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    written = owner if isinstance(owner, type) else inspect.unwrap(function) if callable(function) else None
    try:
        file, (_, line) = inspect.getsourcefile(written), inspect.getsourcelines(written)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return ""
    if file is None:
        return ""
    seen = os.path.relpath(file)
    return f"{file if seen.startswith('..') else seen}:{max(line, 1)}"
