"""Functions of JAX arrays as pairs that can be checked: plain ones, jit-ted ones, custom_vjp, custom_jvp.

float64 inputs are run in JAX's 64-bit mode, which is switched on for each call and leaves the caller's
configuration alone. Both passes are compiled once for each dtype where the function can be traced and traces
alike every time; where it cannot, or draws from a generator of Python's, they run as written. A function that
draws by a key draws other numbers in 64-bit mode, so it is judged in the precision of its inputs. JAX arrays
have no strides and cannot be written to: memory layouts and modified inputs are nothing to ask about here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from gradcheck.adapters import Pair, shared
from gradcheck.contract.randomness import GlobalGenerator

jax = shared.import_framework("jax")

__all__ = ["pair", "recognises"]

DOUBLE, AS_IT_IS = jax.enable_x64(True), nullcontext()
REMARK = "JVP against VJP: not made, JAX derives one from the other, or has one of them only (custom_vjp)"


def recognises(fn: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether these inputs, or else this function, are JAX's."""
    return shared.recognises("jax", fn, inputs)


def pair(
    fn: Callable[..., Any], inputs: Sequence[Any], differentiable: Collection[int] | None = None
) -> Pair:
    """A JAX function as a Pair.

    Args:
        fn: a function of JAX arrays.
        inputs: JAX arrays; NumPy arrays become such, everything else, keys among it, is passed on as it is.
        differentiable: positions of the inputs to check; by default all that are floating.

    Raises:
        TypeError: inputs of several frameworks, or of a dtype that NumPy does not have; or no floating one.
    """
    shared.require_one_framework(inputs)
    arrays = shared.input_arrays(fn, inputs, _as_array)
    wanted = shared.wanted_positions(fn, arrays, differentiable)
    name = getattr(fn, "__name__", type(fn).__name__)
    return _adapt(fn, name, inputs, arrays, wanted)


def _adapt(
    fn: Callable[..., Any],
    name: str,
    inputs: Sequence[Any],
    arrays: list[np.ndarray | None],
    wanted: tuple[int, ...],
) -> Pair:
    def as_given(values: Sequence[Any]) -> list[Any]:
        return [
            given if value is None else jax.numpy.asarray(value)
            for value, given in zip(values, inputs, strict=True)
        ]

    def linearized(values: Sequence[Any]) -> tuple[Any, Callable[..., Any]]:
        """The output, and the function that pulls a cotangent back to the wanted inputs."""
        arguments = as_given(values)

        def of_wanted(*primals: Any) -> Any:
            moved = list(arguments)
            for position, primal in zip(wanted, primals, strict=True):
                moved[position] = primal
            return shared.one_output(fn(*moved), jax.Array, "jax.Array")

        return jax.vjp(of_wanted, *[arguments[position] for position in wanted])

    run, pull, draws = _compiled(linearized, arrays)
    given = _precision_of(arrays)

    def forward(*values: np.ndarray | None) -> tuple[np.ndarray, Any]:
        precision = _precision_of(values)
        if draws and precision is not given:
            raise TypeError("the function draws random numbers, and JAX draws others in 64-bit mode")
        with precision:
            output, pullback = run(values)
        return np.array(output), (pullback, precision)

    def backward(saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        pullback, precision = saved
        with precision:
            gradients = pull(pullback, cotangent)
        found: list[np.ndarray | None] = [None] * len(arrays)
        for position, gradient in zip(wanted, gradients, strict=True):
            found[position] = np.array(gradient)  # a copy: JAX may share its immutable memory at will
        return tuple(found)

    def plain(*values: np.ndarray | None) -> np.ndarray:
        """The output of the function itself, not of the forward rule of its custom_vjp."""
        with _precision_of(values):
            return np.array(shared.one_output(fn(*as_given(values)), jax.Array, "jax.Array"))

    def second(cotangent: np.ndarray) -> Pair:
        def gradients(*values: Any) -> Any:
            _, pullback = linearized(values[:-1])
            return jax.numpy.concatenate([gradient.reshape(-1) for gradient in pullback(values[-1])])

        joined = [*arrays, cotangent]
        return _adapt(gradients, f"gradient of {name}", [*inputs, None], joined, (*wanted, len(arrays)))

    functools.update_wrapper(forward, fn, updated=())  # for the names of its inputs
    return Pair(forward, backward, arrays, name, wanted, second=second, plain=plain, remarks=(REMARK,))


def _compiled(
    linearized: Callable[..., Any], arrays: Sequence[np.ndarray | None]
) -> tuple[Callable[..., Any], Callable[..., Any], bool]:
    """Both passes, compiled where that cannot change them, and whether they are seen to draw by a key."""

    def pull(pullback: Any, cotangent: Any) -> Any:
        return pullback(jax.numpy.asarray(cotangent))

    def traces() -> list[tuple[str, list[bytes]]]:
        return [_trace(linearized, arrays) for _ in range(2)]

    try:
        (one, other), _ = GlobalGenerator().call("trial", None, traces)
    except Exception:  # it cannot be traced, or it is broken, which the check will report
        return linearized, pull, False
    draws = "random_bits" in one[0]
    if one != other:  # randomness of Python's, which would be frozen
        return linearized, pull, draws
    return jax.jit(linearized), jax.jit(pull), draws


def _trace(linearized: Callable[..., Any], arrays: Sequence[np.ndarray | None]) -> tuple[str, list[bytes]]:
    """Both passes as the text of a program, and its constants."""

    def both(values: Sequence[Any]) -> Any:  # a new function each time, or JAX would remember its trace
        output, pullback = linearized(values)
        return output, pullback(jax.numpy.ones_like(output))

    with _precision_of(arrays):
        program = jax.make_jaxpr(both)(arrays)
    constants = [jax.random.key_data(c) if _is_key(c) else c for c in program.consts]
    return str(program), [np.asarray(constant).tobytes() for constant in constants]


def _precision_of(arrays: Sequence[np.ndarray | None]) -> AbstractContextManager[Any]:
    """JAX's 64-bit mode for float64 arrays; for others as the caller has it."""
    double = any(array is not None and array.dtype == np.float64 for array in arrays)
    return DOUBLE if double else AS_IT_IS


def _as_array(value: Any) -> np.ndarray | None:
    """None for what is no array, and for a key, which NumPy cannot hold."""
    return np.asarray(value) if isinstance(value, jax.Array) and not _is_key(value) else None


def _is_key(value: Any) -> bool:
    return jax.numpy.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)
