"""The arguments of a check, read and refused: every message says what was got, wanted, and the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "binds", "instead_of", "names_of", "positions", "validate_arrays", "validate_callables", "validate_count",
    "validate_flat", "validate_inputs", "validate_options", "validate_wanted",
]  # fmt: skip

TOLERANCES = ("tolerance", "tol", "atol", "rtol", "eps")
ONE_BY_ONE = "give each array as an input, and put them together inside: lambda w, b: fn({'w': w, 'b': b})"
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def validate_callables(**functions: Any) -> None:
    """Require every argument to be callable."""
    for role, function in functions.items():
        if not callable(function):
            raise TypeError(f"{role} must be callable; got {type(function).__name__}")


def validate_count(argument: str, value: Any) -> None:
    """Require an integer of at least 0."""
    wanted = f"{argument} must be an integer of at least 0; got {value!r}"
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(wanted)
    if value < 0:
        raise ValueError(wanted)


def validate_inputs(inputs: Any) -> None:
    """Require a tuple or list that holds something."""
    if not isinstance(inputs, (tuple, list)):
        way_out = "write (x,) for one input"
        if isinstance(inputs, dict):
            way_out = "write tuple(inputs.values()), and the names as input_names="
        elif isinstance(inputs, Iterable) and not hasattr(inputs, "shape"):
            way_out = "write tuple(inputs)"
        raise TypeError(f"inputs must be a tuple of arrays; got {type(inputs).__name__}; {way_out}")
    if not inputs:
        raise ValueError("inputs is empty; a gradient check needs at least one array")


def validate_options(options: Collection[str], entrance: Callable[..., Any]) -> None:
    """Require every option of `check` to be one of those that it passes on to an entrance."""
    parameters = inspect.signature(entrance).parameters.values()
    passed_on = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "framework"]
    known = ["order", "attributes", *passed_on]
    for name in options:
        if name not in known:
            why = ": the errors are measured, there is nothing to set" if name in TOLERANCES else ""
            raise TypeError(f"check() takes no {name}{why}; its options are {', '.join(known)}")


def validate_flat(inputs: Sequence[Any]) -> None:
    """Require the arrays to be inputs of their own: those inside of another value would be constants."""
    for place, value in enumerate(inputs):
        if isinstance(value, (dict, tuple, list)) and _holds_arrays(value):
            raise TypeError(
                f"input {place} is a {type(value).__name__} of arrays; {ONE_BY_ONE}, or name the inputs to "
                "check in differentiable= where these are constants"
            )


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, (dict, tuple, list)):
        return any(map(_holds_arrays, value.values() if isinstance(value, dict) else value))
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def validate_arrays(names: tuple[str, ...], inputs: Sequence[Any]) -> None:
    """Require every input to be an array, or None."""
    for label, value in zip(names, inputs, strict=True):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"input {label} is a masked array, and its mask would be lost; "
                "give the values and the mask as two inputs, with differentiable= naming the first"
            )
        if value is not None and not isinstance(value, np.ndarray):
            got = type(value).__name__
            raise TypeError(f"input {label} must be a NumPy array or None; got {got}; {_array_of(value)}")


def _array_of(value: Any) -> str:
    if isinstance(value, (dict, tuple, list)) and _holds_arrays(value):
        return ONE_BY_ONE
    if isinstance(value, str):
        return "settings that are no numbers belong into the function: functools.partial(forward, …)"
    if hasattr(value, "toarray"):
        return "write its toarray(), or its stored values as the input"
    if hasattr(value, "shape") and not isinstance(value, np.generic):
        return "for a framework's tensors there is check(fn, inputs)"
    return "write np.array(…, dtype=np.float64)"


def validate_wanted(wanted: dict[str, np.ndarray | None]) -> None:
    """Require the inputs that get a gradient to be arrays of one floating dtype."""
    if not wanted:
        raise ValueError("no input is left to differentiate; give an array, or name one in differentiable=")
    for label, array in wanted.items():
        if array is None:
            raise ValueError(f"differentiable names {label}, but that input is None")
        if array.dtype not in FLOATS:
            raise TypeError(f"input {label} has dtype {array.dtype}{instead_of(array.dtype)}")
    dtypes = {label: array.dtype for label, array in wanted.items() if array is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{label} {dtype}" for label, dtype in dtypes.items())
        raise TypeError(
            f"the inputs mix dtypes ({listed}); convert them to one, or leave some out of differentiable="
        )


def instead_of(dtype: np.dtype) -> str:
    """What to do about a dtype that is not checked."""
    if dtype.kind in "iub":
        return ", which has no derivative; convert it to float64, or leave it out of differentiable="
    wanted = "; float16, float32 and float64 can be checked"
    if dtype.kind == "c":
        return f"{wanted}: give real and imaginary parts as the last axis of a real input"
    if dtype.kind == "f" or "float" in dtype.name:
        nearest = "float64" if dtype.itemsize > 4 else "float32"
        return f"{wanted}: convert it to {nearest}, whose values include or approximate them all"
    return f"{wanted}: convert it, or leave it out of differentiable="


def positions(chosen: Iterable[int | str], names: tuple[str, ...], argument: str) -> tuple[int, ...]:
    """Translate names and indices of inputs to sorted positions."""
    if isinstance(chosen, (str, int)):
        raise TypeError(f"{argument} must be a collection of input names or indices; write ({chosen!r},)")
    if not isinstance(chosen, Iterable):
        raise TypeError(
            f"{argument} must be a collection of input names or indices; got {type(chosen).__name__}"
        )
    found = set()
    for item in chosen:
        if isinstance(item, str) and item in names:
            found.add(names.index(item))
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool) and 0 <= item < len(names):
            found.add(int(item))
        else:
            raise ValueError(
                f"{argument} names {item!r}; the inputs are {', '.join(names)} (0 to {len(names) - 1})"
            )
    return tuple(sorted(found))


def names_of(forward: Callable[..., Any], count: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the inputs: those given, or those of forward's parameters."""
    if given is not None:
        if isinstance(given, str):
            raise TypeError(f"input_names must be a collection of names; write ({given!r},)")
        names = tuple(given)
        if len(names) != count or len(set(names)) != count:
            raise ValueError(f"input_names must be {count} different names; got {list(names)}")
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"input_names must be names; got {list(names)}")
        return names
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= count:
        return tuple(positional[:count])
    return tuple(f"x{index}" for index in range(count))


def binds(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments; True where it does not say."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
