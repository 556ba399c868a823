"""What is checked: a forward and a backward pass with their inputs, every result held to the contract."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradcheck.judge import Verdict

Arrays = tuple[np.ndarray | None, ...]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Violation(Exception):
    """A promise that the pair broke, and the verdict; a fatal one leaves nothing to go on with."""

    def __init__(
        self, verdict: Verdict, reason: str, *, input: str | None = None, fatal: bool = True
    ) -> None:
        super().__init__(reason)
        self.verdict, self.reason, self.input, self.fatal = verdict, reason, input, fatal


@dataclasses.dataclass(slots=True)
class Subject:
    """A pair, private copies of its inputs, and what is known about them.

    `differentiable` and `zero` are positions in `inputs`; `framework` allows a framework's aliasing.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: Arrays
    names: tuple[str, ...]
    differentiable: tuple[int, ...]
    zero: frozenset[int]
    framework: bool
    evaluations: int = 0
    vjps: int = 0

    @property
    def dtype(self) -> np.dtype:
        """The common type of the inputs that get a gradient."""
        return self._input(self.differentiable[0]).dtype

    def _input(self, index: int) -> np.ndarray:
        array = self.inputs[index]
        assert array is not None  # positions in `differentiable` are of arrays: `positions` saw to it
        return array

    def wanted(self) -> list[np.ndarray]:
        """The inputs that get a gradient."""
        return [self._input(index) for index in self.differentiable]

    def wanted_names(self) -> list[str]:
        """Their names."""
        return [self.names[index] for index in self.differentiable]

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        """The inputs, with `move` applied to those that get a gradient."""
        return tuple(
            move(array) if array is not None and index in self.differentiable else array
            for index, array in enumerate(self.inputs)
        )

    def replaced(self, index: int, array: np.ndarray) -> Arrays:
        """The inputs, with another array at one position."""
        return (*self.inputs[:index], array, *self.inputs[index + 1 :])

    def in_float64(self) -> Subject:
        """The same pair on float64 copies of the floating inputs."""
        return dataclasses.replace(self, inputs=as_float64(self.inputs), evaluations=0, vjps=0)

    def run_forward(self, inputs: Arrays) -> tuple[np.ndarray, Any]:
        """Call forward; return (output, saved), or raise a Violation."""
        self.evaluations += 1
        try:
            result = self.forward(*inputs)
        except Exception as error:
            raise Violation(Verdict.ERROR, f"forward raised {type(error).__name__}: {error}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
            raise Violation(Verdict.ERROR, f"forward must return a tuple (output, saved); it returned {got}")
        output = _as_array(result[0], "forward's output")
        if output.dtype != self.dtype:
            raise Violation(
                Verdict.ERROR, f"forward's output has dtype {output.dtype}; its inputs have {self.dtype}"
            )
        return output, result[1]

    def run_backward(self, saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        """Call backward; return the gradients of the wanted inputs in their order, or raise a Violation."""
        self.vjps += 1
        try:
            gradients = self.backward(saved, cotangent)
        except Exception as error:
            raise Violation(Verdict.ERROR, f"backward raised {type(error).__name__}: {error}") from error
        if not isinstance(gradients, tuple):
            raise Violation(
                Verdict.ERROR,
                f"backward must return a tuple of gradients; it returned {type(gradients).__name__}",
            )
        if len(gradients) != len(self.inputs):
            raise Violation(
                Verdict.ERROR, f"backward returned {len(gradients)} gradients for {len(self.inputs)} inputs"
            )
        return tuple(self._gradient(index, gradients[index]) for index in self.differentiable)

    def accepts(self, inputs: Arrays, cotangent: np.ndarray) -> bool:
        """Whether the pair is defined, and finite, at inputs that the caller did not give."""
        try:
            output, saved = self.run_forward(inputs)
            gradients = self.run_backward(saved, cotangent)
        except Violation:
            return False
        return all(np.isfinite(array).all() for array in (output, *gradients))

    def _gradient(self, index: int, gradient: Any) -> np.ndarray:
        name, array = self.names[index], self._input(index)
        if gradient is None:
            reason = (
                f"the gradient of {name} is None; return an array, or leave {name} out with differentiable="
            )
            raise Violation(Verdict.ERROR, reason, input=name)
        got = _as_array(gradient, f"the gradient of {name}", input=name)
        if got.shape != array.shape:
            reason = f"the gradient of {name} has shape {got.shape}; {name} has {array.shape}"
            raise Violation(Verdict.ERROR, reason, input=name)
        if got.dtype != array.dtype:
            reason = f"the gradient of {name} has dtype {got.dtype}; {name} has {array.dtype}"
            raise Violation(Verdict.ERROR, reason, input=name)
        return got


def _as_array(value: Any, what: str, input: str | None = None) -> np.ndarray:
    # NumPy turns results without axes into its scalars, so those count as arrays; Python's floats do not.
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    raise Violation(Verdict.ERROR, f"{what} must be a NumPy array; it is {type(value).__name__}", input=input)


def as_float64(inputs: Arrays) -> Arrays:
    """The inputs with every floating array converted to float64; others and None as they are."""
    return tuple(
        array.astype(np.float64) if array is not None and array.dtype.kind == "f" else array
        for array in inputs
    )


def make_subject(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[np.ndarray | None],
    *,
    differentiable: Iterable[int | str] | None,
    zero: Iterable[int | str],
    input_names: Sequence[str] | None,
    name: str | None,
    framework: bool,
) -> Subject:
    """Validate the caller's arguments; a TypeError or ValueError names the argument and the way out."""
    for role, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"{role} must be callable; got {type(function).__name__}")
    if not isinstance(inputs, (tuple, list)):
        raise TypeError(
            f"inputs must be a tuple of arrays; got {type(inputs).__name__}; write (x,) for one input"
        )
    if not inputs:
        raise ValueError("inputs is empty; a gradient check needs at least one array")
    names = names_of(forward, len(inputs), input_names)
    for label, value in zip(names, inputs, strict=True):
        if value is not None and not isinstance(value, np.ndarray):
            raise TypeError(f"input {label} must be a NumPy array or None; got {type(value).__name__}")
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"input {label} is a masked array, and its mask would be lost; "
                "give the values and the mask as two inputs, with differentiable= naming the first"
            )
    if differentiable is None:
        wanted = tuple(index for index, value in enumerate(inputs) if value is not None)
    else:
        wanted = positions(differentiable, names, "differentiable")
    if not wanted:
        raise ValueError("no input is left to differentiate; give an array, or name one in differentiable=")
    _validate_wanted({names[index]: inputs[index] for index in wanted})
    return Subject(
        name=name or _function_name(forward),
        forward=forward,
        backward=backward,
        inputs=tuple(None if value is None else np.array(value, order="K") for value in inputs),
        names=names,
        differentiable=wanted,
        zero=frozenset(positions(zero, names, "zero")),
        framework=framework,
    )


def positions(chosen: Iterable[int | str], names: tuple[str, ...], argument: str) -> tuple[int, ...]:
    """Translate names and indices of inputs to sorted positions."""
    if isinstance(chosen, (str, int)):
        raise TypeError(f"{argument} must be a collection of input names or indices; write ({chosen!r},)")
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


def _validate_wanted(wanted: dict[str, np.ndarray | None]) -> None:
    for label, array in wanted.items():
        if array is None:
            raise ValueError(f"differentiable names {label}, but that input is None")
        if array.dtype.kind in "iub":
            raise TypeError(
                f"input {label} has dtype {array.dtype}, which has no derivative; "
                f"convert it to float64, or leave it out of differentiable="
            )
        if array.dtype not in FLOATS:
            raise TypeError(
                f"input {label} has dtype {array.dtype}; only float32 and float64 can be checked so far"
            )
    dtypes = {label: array.dtype for label, array in wanted.items() if array is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{label} {dtype}" for label, dtype in dtypes.items())
        raise TypeError(
            f"the inputs mix dtypes ({listed}); convert them to one, or leave some out of differentiable="
        )


def names_of(forward: Callable[..., Any], count: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the inputs: those given, or those of forward's parameters."""
    if given is not None:
        if isinstance(given, str):
            raise TypeError(f"input_names must be a collection of names; write ({given!r},)")
        if len(given) != count or len(set(given)) != count:
            raise ValueError(f"input_names must be {count} different names; got {list(given)}")
        return tuple(given)
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= count:
        return tuple(positional[:count])
    return tuple(f"x{index}" for index in range(count))


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
