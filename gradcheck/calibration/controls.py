"""Hard but correct cases, many draws of each: whatever the checker says of them, not FAIL or ERROR.

The controls of `gradcheck.mutants` as they are; and what norms find hard, for every norm in both dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.axes import DTYPES, Arrays, Configuration
from gradcheck.calibration.pairs import SMALL, pair_for
from gradcheck.harness import check_pair
from gradcheck.mutants import controls
from gradcheck.report import Report

__all__ = ["HARD_CASES", "HardCase", "reports"]

Inputs = tuple[np.ndarray, ...]
Drawn = tuple[Callable[..., Any], Callable[..., Any], Inputs]

NORMS = tuple(SMALL[name] for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"))
NEAR = 3e-8  # how near to a kink


@dataclass(frozen=True)
class HardCase:
    """Draws a pair and its inputs, anew for every seed; `dtype` converts them."""

    name: str
    draw: Callable[[np.random.Generator], Drawn]
    dtype: str | None = None


def reports(case: HardCase, seeds: range) -> Iterator[Report]:
    """The checker's reports on one case, a seed at a time."""
    for seed in seeds:
        forward, backward, inputs = case.draw(np.random.default_rng(seed))
        if case.dtype is not None:
            inputs = tuple(each.astype(case.dtype) for each in inputs)
        yield check_pair(forward, backward, inputs, name=case.name, seed=seed)


def _control(control: controls.Control, rng: np.random.Generator) -> Drawn:
    return *control.make(), control.inputs(rng)


def _norm(change: Callable[[Arrays], Arrays], rng: np.random.Generator) -> Drawn:
    """A norm, another one for every draw, with its inputs changed."""
    configuration = Configuration.parse(NORMS[rng.integers(len(NORMS))])
    pair = pair_for(configuration, change(configuration.draw(int(rng.integers(2**32)))))
    return pair.forward, pair.backward, pair.inputs


def _scaled(factor: float, arrays: Arrays) -> Arrays:
    return Arrays(arrays.input * factor, arrays.weight, arrays.bias)


def _shifted(mean: float, arrays: Arrays) -> Arrays:
    return Arrays(arrays.input + mean, arrays.weight, arrays.bias)


def _weighted(gamma: float, arrays: Arrays) -> Arrays:
    assert arrays.weight is not None
    return Arrays(arrays.input, arrays.weight * gamma, arrays.bias)


def _constant_row(arrays: Arrays) -> Arrays:
    arrays.input[0] = 0.5
    return arrays


def _kink(rng: np.random.Generator) -> Drawn:
    """max(x, 0), with one element of x within 3e-8 of 0."""
    x = rng.normal(size=(4, 5))
    x.reshape(-1)[rng.integers(x.size)] = rng.uniform(-NEAR, NEAR)
    return (lambda x: (np.maximum(x, 0), x > 0)), (lambda above, cotangent: (cotangent * above,)), (x,)


def _atomic_forward(rng: np.random.Generator) -> Drawn:
    """The sum over the rows, added up in another order at every call, as atomic additions are."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        total = np.zeros_like(x[0])
        for row in rng.permutation(x):
            total += row
        return total, x.shape

    def backward(shape: tuple[int, ...], cotangent: np.ndarray) -> tuple[np.ndarray]:
        return (np.broadcast_to(cotangent, shape).copy(),)

    return forward, backward, (rng.normal(size=(65, 3)),)


_DRAWN: dict[str, Callable[[np.random.Generator], Drawn]] = {
    "kink within 3e-8, drawn": _kink,
    "atomic order, forward": _atomic_forward,
    "norm, scale 1e-6": functools.partial(_norm, functools.partial(_scaled, 1e-6)),
    "norm, scale 1e4": functools.partial(_norm, functools.partial(_scaled, 1e4)),
    "norm, mean 3e6": functools.partial(_norm, functools.partial(_shifted, 3e6)),
    "norm, constant rows": functools.partial(_norm, _constant_row),
    "norm, weight 1e4": functools.partial(_norm, functools.partial(_weighted, 1e4)),
}

HARD_CASES = (
    *(HardCase(control.name, functools.partial(_control, control)) for control in controls.CONTROLS),
    *(HardCase(f"{name}, {dtype}", draw, dtype) for name, draw in _DRAWN.items() for dtype in DTYPES),
)
