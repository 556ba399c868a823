"""What is checked: a forward and a backward pass with their inputs, every result held to the contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradcheck import arguments
from gradcheck.arguments import names_of, positions
from gradcheck.contract.randomness import GlobalGenerator
from gradcheck.judge import Verdict
from gradcheck.raising import raised

__all__ = [
    "Arrays", "Context", "Subject", "Violation", "as_dtype", "as_float64", "make_subject", "names_of",
    "positions",
]  # fmt: skip

Arrays = tuple[np.ndarray | None, ...]

NO_RETURN = "; does it end without a return?"
SEVERAL = "; join several outputs into one array, or check them one at a time"


class Violation(Exception):
    """A promise that the pair broke, and the verdict; a fatal one leaves nothing to go on with."""

    def __init__(
        self, verdict: Verdict, reason: str, *, input: str | None = None, fatal: bool = True
    ) -> None:
        super().__init__(reason)
        self.verdict, self.reason, self.input, self.fatal = verdict, reason, input, fatal


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a forward leaves for its backward: `saved`, its copies of the state, that of the generator."""

    saved: Any
    state: tuple[np.ndarray, ...]
    generator: Any


@dataclasses.dataclass(slots=True)
class Subject:
    """A pair, private copies of its inputs, and what is known about them.

    `differentiable`, `zero` and `state` are positions in `inputs`; forward alone may write to the state.
    `framework` allows a framework's aliasing.
    `stress` is how many more repetitions of backward are wanted, `terms` the family of the operation.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: Arrays
    names: tuple[str, ...]
    differentiable: tuple[int, ...]
    zero: frozenset[int]
    framework: bool
    state: frozenset[int] = frozenset()
    jvp: Callable[..., Any] | None = None
    stress: int = 0
    terms: Any = None
    generator: GlobalGenerator = dataclasses.field(default_factory=GlobalGenerator)
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

    def in_dtype(self, dtype: Any) -> Subject:
        """The same pair on copies of the floating inputs in another precision."""
        return dataclasses.replace(self, inputs=as_dtype(self.inputs, dtype), evaluations=0, vjps=0)

    def in_float64(self) -> Subject:
        """The same pair on float64 copies of the floating inputs."""
        return self.in_dtype(np.float64)

    def run_forward(self, inputs: Arrays) -> tuple[np.ndarray, Context]:
        """Call forward, with a copy of the state; return (output, context), or raise a Violation."""
        self.evaluations += 1
        given = inputs
        state: tuple[np.ndarray, ...] = ()
        if self.state:
            given = tuple(
                array.copy() if array is not None and index in self.state else array
                for index, array in enumerate(inputs)
            )
            state = tuple(array for index in sorted(self.state) if (array := given[index]) is not None)
        try:
            result, left = self.generator.call("forward", None, lambda: self.forward(*given))
        except Exception as error:
            raise Violation(Verdict.ERROR, raised("forward", error, self._misfit())) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise Violation(
                Verdict.ERROR,
                f"forward must return a tuple (output, saved); it returned {_other_than_two(result)}",
            )
        output = _as_array(result[0], "forward's output", SEVERAL)
        if output.dtype != self.dtype:
            reason = f"forward's output has dtype {output.dtype}; its inputs have {self.dtype}"
            way_out = (
                "; return real and imaginary parts as the last axis"
                if output.dtype.kind == "c"
                else f"; convert it to {self.dtype}"
            )
            raise Violation(Verdict.ERROR, reason + way_out)
        return output, Context(result[1], state, left)

    def run_backward(self, context: Context, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        """Call backward; return the gradients of the wanted inputs in their order, or raise a Violation."""
        self.vjps += 1
        before = [array.tobytes() for array in context.state]
        try:
            gradients, _ = self.generator.call(
                "backward", context.generator, lambda: self.backward(context.saved, cotangent)
            )
        except Exception as error:
            hint = "" if arguments.binds(self.backward, 2) else "; it is called as backward(saved, cotangent)"
            raise Violation(Verdict.ERROR, raised("backward", error, hint)) from error
        if context.state:
            self._require_state(context.state, before)
        if not isinstance(gradients, tuple):
            raise Violation(
                Verdict.ERROR,
                f"backward must return a tuple of gradients; it returned {_other_than_tuple(gradients)}",
            )
        if len(gradients) != len(self.inputs):
            reason = f"backward returned {len(gradients)} gradients for {len(self.inputs)} inputs"
            raise Violation(Verdict.ERROR, f"{reason}; return one entry per input, None where there is none")
        return tuple(self._gradient(index, gradients[index]) for index in self.differentiable)

    def _require_state(self, state: tuple[np.ndarray, ...], before: list[bytes]) -> None:
        """Require backward to leave alone what forward may write to: one step is to move it once."""
        present = [index for index in sorted(self.state) if self.inputs[index] is not None]
        for index, array, old in zip(present, state, before, strict=True):
            if array.tobytes() != old:
                name = self.names[index]
                reason = (
                    f"backward modified the state {name}, which is forward's to write; "
                    "does it run forward again? work on a copy"
                )
                raise Violation(Verdict.ERROR, reason)

    def accepts(self, inputs: Arrays, cotangent: np.ndarray) -> bool:
        """Whether the pair is defined, and finite, at inputs that the caller did not give."""
        try:
            output, saved = self.run_forward(inputs)
            gradients = self.run_backward(saved, cotangent)
        except Violation:
            return False
        return all(np.isfinite(array).all() for array in (output, *gradients))

    def _misfit(self) -> str:
        """What is to be said of a forward that cannot be called with these inputs."""
        count = len(self.inputs)
        if arguments.binds(self.forward, count):
            return ""
        if arguments.binds(self.forward, 2) and arguments.binds(self.backward, count):
            return "; are forward and backward swapped?"
        return f"; it is called as forward(*inputs), with {count} inputs"

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


def _as_array(value: Any, what: str, several: str = "", input: str | None = None) -> np.ndarray:
    # NumPy turns results without axes into its scalars, so those count as arrays; Python's floats do not.
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    way_out = ""
    if isinstance(value, (tuple, list)):
        way_out = several
    elif isinstance(value, (int, float, complex)):
        way_out = "; write np.asarray(…) around it"
    reason = f"{what} must be a NumPy array; it is {type(value).__name__}{way_out}"
    raise Violation(Verdict.ERROR, reason, input=input)


def _other_than_two(result: Any) -> str:
    if result is None:
        return f"None{NO_RETURN}"
    if isinstance(result, tuple):
        return f"a tuple of {len(result)}{SEVERAL}"
    return f"{type(result).__name__}; write (output, None) where nothing is saved"


def _other_than_tuple(gradients: Any) -> str:
    if gradients is None:
        return f"NoneType{NO_RETURN}"
    way_out = "; write tuple(…)" if isinstance(gradients, list) else "; write (gradient,) for one input"
    return f"{type(gradients).__name__}{way_out}"


def as_dtype(inputs: Arrays, dtype: Any) -> Arrays:
    """The inputs with every floating array converted; others and None as they are."""
    return tuple(
        array.astype(dtype) if array is not None and array.dtype.kind == "f" else array for array in inputs
    )


def as_float64(inputs: Arrays) -> Arrays:
    """The inputs with every floating array converted to float64; others and None as they are."""
    return as_dtype(inputs, np.float64)


def make_subject(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[np.ndarray | None],
    *,
    differentiable: Iterable[int | str] | None = None,
    zero: Iterable[int | str] = (),
    state: Iterable[int | str] = (),
    jvp: Callable[..., Any] | None = None,
    stress: int = 0,
    terms: Any = None,
    input_names: Sequence[str] | None = None,
    name: str | None = None,
    framework: bool = False,
) -> Subject:
    """Validate the caller's arguments; a TypeError or ValueError names the argument and the way out."""
    arguments.validate_callables(forward=forward, backward=backward)
    if jvp is not None:
        arguments.validate_callables(jvp=jvp)
    arguments.validate_inputs(inputs)
    arguments.validate_count("stress", stress)
    names = names_of(forward, len(inputs), input_names)
    arguments.validate_arrays(names, inputs)
    kept = positions(state, names, "state")
    if differentiable is None:
        wanted = tuple(k for k, value in enumerate(inputs) if value is not None and k not in kept)
    else:
        wanted = positions(differentiable, names, "differentiable")
    both = [names[index] for index in wanted if index in kept]
    if both:
        raise ValueError(
            f"{both[0]} is in state= and in differentiable=; what a call overwrites has no gradient: "
            "leave it out of one of them"
        )
    arguments.validate_wanted({names[index]: inputs[index] for index in wanted})
    return Subject(
        name=name or str(getattr(forward, "__name__", type(forward).__name__)),
        forward=forward,
        backward=backward,
        inputs=tuple(None if value is None else np.array(value, order="K") for value in inputs),
        names=names,
        differentiable=wanted,
        zero=frozenset(positions(zero, names, "zero")),
        framework=framework,
        state=frozenset(kept),
        jvp=jvp,
        stress=stress,
        terms=terms,
    )
