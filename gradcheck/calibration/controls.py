"""Hard but correct cases: whatever the checker says of them, it must not be FAIL or ERROR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.axes import Arrays, Configuration
from gradcheck.calibration.pairs import SMALL, pair_for
from gradcheck.harness import check_pair
from gradcheck.report import Report

__all__ = ["CONTROLS", "Control", "reports"]

Inputs = tuple[np.ndarray, ...]
Make = Callable[[np.random.Generator], tuple[Callable[..., Any], Callable[..., Any], Inputs]]

NORMS = tuple(SMALL[name] for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"))
NEAR = 3e-8  # how near to a kink


@dataclass(frozen=True)
class Control:
    """One hard case: `make` draws its pair and inputs, anew for every seed."""

    name: str
    make: Make


def reports(control: Control, dtype: str, seeds: range) -> Iterator[Report]:
    """The checker's reports on one case, a seed at a time."""
    for seed in seeds:
        forward, backward, inputs = control.make(np.random.default_rng(seed))
        single = tuple(each.astype(dtype) for each in inputs)
        yield check_pair(forward, backward, single, name=control.name, seed=seed)


def _norm(change: Callable[[Arrays], Arrays]) -> Make:
    """A norm, another one for every draw, with its inputs changed."""

    def make(rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
        configuration = Configuration.parse(NORMS[rng.integers(len(NORMS))])
        arrays = configuration.draw(int(rng.integers(2**32)))
        pair = pair_for(configuration, change(arrays))
        return pair.forward, pair.backward, pair.inputs

    return make


def _scaled(factor: float) -> Make:
    return _norm(lambda arrays: Arrays(arrays.input * factor, arrays.weight, arrays.bias))


def _shifted(mean: float) -> Make:
    return _norm(lambda arrays: Arrays(arrays.input + mean, arrays.weight, arrays.bias))


def _weighted(gamma: float) -> Make:
    def change(arrays: Arrays) -> Arrays:
        assert arrays.weight is not None
        return Arrays(arrays.input, arrays.weight * gamma, arrays.bias)

    return _norm(change)


def _constant_row(arrays: Arrays) -> Arrays:
    arrays.input[0] = 0.5
    return arrays


def _kink(rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
    """max(x, 0), with one element of x within 3e-8 of 0."""
    x = rng.normal(size=(4, 5))
    x.reshape(-1)[rng.integers(x.size)] = rng.uniform(-NEAR, NEAR)
    return (lambda x: (np.maximum(x, 0), x > 0)), (lambda above, cotangent: (cotangent * above,)), (x,)


def _unfrozen_dropout(rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
    """Another mask at every call of forward, kept for its own backward pass."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = (rng.random(x.shape) < 0.75).astype(x.dtype) / x.dtype.type(0.75)
        return x * kept, kept

    return forward, (lambda kept, cotangent: (cotangent * kept,)), (rng.normal(size=(4, 5)),)


def _atomic_sums(rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
    """x·w + b whose sums over the rows are taken in another order at every call, as atomic additions are."""

    def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Any]:
        return x * weight + bias, (x, weight)

    def backward(saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        x, weight = saved
        order = rng.permutation(len(x))
        return cotangent * weight, _in_turn((cotangent * x)[order]), _in_turn(cotangent[order])

    return forward, backward, (rng.normal(size=(257, 3)), rng.normal(size=3), rng.normal(size=3))


def _atomic_forward(rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
    """The sum over the rows, its output summed in another order at every call."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        return _in_turn(x[rng.permutation(len(x))]), x.shape

    def backward(shape: tuple[int, ...], cotangent: np.ndarray) -> tuple[np.ndarray]:
        return (np.broadcast_to(cotangent, shape).copy(),)

    return forward, backward, (rng.normal(size=(65, 3)),)


def _in_turn(rows: np.ndarray) -> np.ndarray:
    total = np.zeros_like(rows[0])
    for row in rows:
        total += row
    return total


CONTROLS = (
    Control("kink within 3e-8", _kink),
    Control("unfrozen dropout", _unfrozen_dropout),
    Control("atomic-order sums, backward", _atomic_sums),
    Control("atomic-order sums, forward", _atomic_forward),
    Control("scale 1e-6", _scaled(1e-6)),
    Control("scale 1e4", _scaled(1e4)),
    Control("mean 3e6", _shifted(3e6)),
    Control("constant rows", _norm(_constant_row)),
    Control("weight 1e4", _weighted(1e4)),
)
