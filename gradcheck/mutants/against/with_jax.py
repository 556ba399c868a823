"""jax.test_util.check_grads over a jax.custom_vjp that calls the pair through jax.pure_callback."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from gradcheck.mutants.against.checker import Checker, Wrapped, differentiable_positions
from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.operations import Operation

__all__ = ["checkers"]

DEFAULTS: dict[str, float] = {}
GRID = (
    {"eps": 1e-5, "atol": 1e-7, "rtol": 1e-7},
    {"eps": 1e-5, "atol": 1e-8, "rtol": 1e-8},
    {"eps": 1e-4, "atol": 1e-7, "rtol": 1e-7},
)


def checkers() -> list[Checker]:
    """At the defaults, and at every setting of the grid; reverse mode, all that a custom_vjp has."""
    return [_checker(setting, setting is DEFAULTS) for setting in (DEFAULTS, *GRID)]


def _checker(setting: dict[str, float], defaults: bool) -> Checker:
    def accuses(operation: Operation, pair: Pair, inputs: tuple[np.ndarray, ...], seed: int) -> bool:
        with (
            jax.enable_x64(True),
            jax.disable_jit(),
        ):  # without compiling, or each check takes ten times as long
            arguments = [jnp.asarray(inputs[index]) for index in differentiable_positions(operation)]
            try:
                check_grads(_function(Wrapped(operation, pair, inputs)), arguments, 1, ["rev"], **setting)
            except Exception:  # an AssertionError, or whatever the mutant makes JAX raise
                return True
        return False

    text = ", ".join(f"{name} {value:g}" for name, value in setting.items()) or "of the dtype"
    return Checker("jax", text, defaults, accuses)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """JAX logs what a callback raises, before it raises it too."""
    logger = logging.getLogger("jax._src.callback")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _function(wrapped: Wrapped) -> Any:
    def run_forward(*arrays: Any) -> tuple[np.ndarray, np.int32]:
        output, number = wrapped.forward(*(np.array(array) for array in arrays))
        return output, np.int32(number)

    def run_backward(number: Any, cotangent: Any) -> tuple[Any, ...]:
        return wrapped.backward(int(number), np.array(cotangent))

    def call(arrays: tuple[Any, ...]) -> Any:
        like = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
        return jax.pure_callback(run_forward, (like, jax.ShapeDtypeStruct((), jnp.int32)), *arrays)

    function = jax.custom_vjp(lambda *arrays: call(arrays)[0])

    def forward(*arrays: Any) -> Any:
        output, number = call(arrays)
        return output, (number, arrays)

    def backward(residuals: Any, cotangent: Any) -> Any:
        number, arrays = residuals
        like = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
        return jax.pure_callback(run_backward, like, number, cotangent)

    function.defvjp(forward, backward)
    return function
