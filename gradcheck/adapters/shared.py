"""What the adapters have in common: whose the inputs are, which get a gradient, and what is refused."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gradcheck.arguments import instead_of, names_of

__all__ = [
    "described",
    "framework_of",
    "import_framework",
    "input_arrays",
    "one_output",
    "recognises",
    "refuse_class",
    "require_one_framework",
    "wanted_positions",
]

FRAMEWORKS = {"jax": "jax", "jaxlib": "jax", "tinygrad_bn": "tinygrad_bn", "torch": "torch"}


def framework_of(value: Any) -> str | None:
    """The framework of a tensor, a function or a layer, found without importing any; None for none."""
    owner = getattr(value, "__self__", None)  # of a bound method, such as MyFunction.apply
    for candidate in (value, owner):
        bases = candidate.__mro__ if isinstance(candidate, type) else type(candidate).__mro__
        for base in bases:
            found = FRAMEWORKS.get(base.__module__.partition(".")[0])
            if found is not None:
                return found
    return None


def described(fn: Any) -> Any:
    """What to read the names of a function's inputs from.

    Of a torch module, and of an autograd.Function or its `apply`, that is `forward`, without the context.
    """
    owner: Any = getattr(fn, "__self__", fn)
    if framework_of(owner) != "torch" or not hasattr(owner, "forward"):
        return fn
    if not isinstance(owner, type):
        return owner.forward
    function: Any = owner
    has_context = function.setup_context.__module__.startswith("torch.")
    return functools.partial(function.forward, None) if has_context else function.forward


def recognises(framework: str, fn: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether an input is a tensor of this framework; where none is of any, whether the function is its."""
    found = {framework_of(value) for value in inputs} - {None}
    return framework in (found or {framework_of(fn)})


def import_framework(name: str) -> ModuleType:
    """Import a framework; an ImportError says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to check functions of {name}, gradcheck needs {name}, which cannot be imported ({error}); "
            f"install it, for instance with pip install {name}"
        ) from error


def refuse_class(fn: Any) -> None:
    """TypeError for a class, such as that of a layer, other than an autograd.Function."""
    if isinstance(fn, type) and not hasattr(fn, "setup_context"):
        raise TypeError(f"fn is the class {fn.__name__}, wanted a function; call it first: {fn.__name__}(…)")


def require_one_framework(inputs: Sequence[Any]) -> None:
    """TypeError where the inputs are tensors of several frameworks."""
    of = [(place, framework_of(value)) for place, value in enumerate(inputs)]
    found = [(place, framework) for place, framework in of if framework is not None]
    if len({framework for _, framework in found}) > 1:
        listed = ", ".join(f"input {place} of {framework}" for place, framework in found)
        raise TypeError(f"the inputs are of several frameworks ({listed}); convert them to those of one")


def input_arrays(
    fn: Any, inputs: Sequence[Any], to_array: Callable[[Any], np.ndarray | None]
) -> list[np.ndarray | None]:
    """The inputs as arrays, None for what `to_array` has none for.

    TypeError: what `to_array` refuses, in words that follow "input x", and a dtype that NumPy lacks.
    """
    arrays: list[np.ndarray | None] = []
    for name, value in zip(names_of(described(fn), len(inputs), None), inputs, strict=True):
        try:
            array = value if isinstance(value, np.ndarray) else to_array(value)
        except TypeError as error:
            raise TypeError(f"input {name} {error}") from None
        if array is not None and array.dtype.kind == "V":
            raise TypeError(
                f"input {name} has dtype {array.dtype}, which NumPy cannot calculate with; check the same "
                "function at float32 or float16"
            )
        arrays.append(array)
    return arrays


def wanted_positions(
    fn: Any, arrays: Sequence[np.ndarray | None], differentiable: Collection[int] | None
) -> tuple[int, ...]:
    """The positions asked for; where none are, those of all floating arrays. TypeError: there is none."""
    if differentiable is not None:
        return tuple(sorted(differentiable))
    floating = tuple(i for i, array in enumerate(arrays) if array is not None and array.dtype.kind == "f")
    if not floating:
        names = names_of(described(fn), len(arrays), None)
        for name, array in zip(names, arrays, strict=True):
            if array is not None:
                wanted = instead_of(array.dtype)
                raise TypeError(f"no input can be differentiated: {name} has dtype {array.dtype}{wanted}")
    return floating


def one_output(output: Any, kind: type, name: str) -> Any:
    """The output, which must be one tensor; the TypeError becomes the reason of a verdict."""
    if isinstance(output, kind):
        return output
    reason = f"the function returned {type(output).__name__}, wanted one {name}"
    if isinstance(output, (int, float)):
        reason += "; leave out float(…), int(…) and .item()"
    elif isinstance(output, (tuple, list)):
        reason += f"; check its {len(output)} parts one at a time: lambda *inputs: fn(*inputs)[0]"
    raise TypeError(reason)
