"""autograd.test_util.check_grads over a primitive that calls the pair."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from autograd import test_util
from autograd.extend import defvjp_argnums, primitive

from gradcheck.mutants.against.checker import Checker, Wrapped, differentiable_positions
from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.operations import Operation

__all__ = ["checkers"]

DEFAULTS = {"EPS": 1e-6, "TOL": 1e-6, "RTOL": 1e-6}
GRID = (
    {"EPS": 1e-5, "TOL": 1e-7, "RTOL": 1e-7},
    {"EPS": 1e-5, "TOL": 1e-8, "RTOL": 1e-8},
    {"EPS": 1e-4, "TOL": 1e-7, "RTOL": 1e-7},
)


def checkers() -> list[Checker]:
    """At the defaults, and at every setting of the grid, which are constants of its module."""
    return [_checker(setting, setting is DEFAULTS) for setting in (DEFAULTS, *GRID)]


def _checker(setting: dict[str, float], defaults: bool) -> Checker:
    def accuses(operation: Operation, pair: Pair, inputs: tuple[np.ndarray, ...], seed: int) -> bool:
        function = _function(Wrapped(operation, pair, inputs))
        arguments = [inputs[index] for index in differentiable_positions(operation)]
        with mock.patch.dict(vars(test_util), setting), _seeded(seed):
            try:
                test_util.check_grads(function, modes=["rev"], order=1)(*arguments)
            except Exception:  # an AssertionError, or whatever the mutant makes autograd raise
                return True
        return False

    text = ", ".join(f"{name} {value:g}" for name, value in setting.items())
    return Checker("autograd", text, defaults, accuses)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """autograd draws from NumPy's global generator, which is left as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _function(wrapped: Wrapped) -> Any:
    numbers: dict[int, tuple[np.ndarray, int]] = {}  # by the identity of the output, which is kept alive here

    def forward(*arrays: np.ndarray) -> np.ndarray:
        output, number = wrapped.forward(*arrays)
        numbers[id(output)] = output, number
        return output

    def make(argnums: Any, output: np.ndarray, arguments: Any, options: Any) -> Any:
        number = numbers[id(output)][1]

        def vjp(cotangent: np.ndarray) -> tuple[Any, ...]:
            gradients = wrapped.backward(number, cotangent)
            return tuple(gradients[index] for index in argnums)

        return vjp

    function = primitive(forward)
    defvjp_argnums(function, make)
    return function
