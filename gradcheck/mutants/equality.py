"""Which automatic mutants are no mutants: decided by their numbers, without the checker."""

from __future__ import annotations

import numpy as np

from gradcheck.mutants.cases import CASES, Case
from gradcheck.mutants.mutant import Mutant

__all__ = ["CALLS", "EQUAL", "equals_the_right_one"]

CALLS = 300
ROUNDING = 1e-12  # of the largest element of a gradient; the calls below are well conditioned
LARGEST = (4, 4, 4, 4, 6)
EQUAL = f"equals the right pair to rounding in {CALLS} random calls"


def equals_the_right_one(mutant: Mutant, seed: int) -> bool:
    """Whether all gradients are the right ones in CALLS random calls: of shapes, values and scales."""
    rng = np.random.default_rng(seed)
    operation = mutant.operation
    forward, backward = mutant.make()
    rank = len(CASES[operation.name][0].shape)
    for _ in range(CALLS):
        shape = tuple(int(rng.integers(1, longest + 1)) for longest in LARGEST[-rank:])
        special = str(rng.choice(["", "", "zero weight"])) if "weight" in operation.names else ""
        case = Case(shape, scale=float(rng.choice([1.0, 1.0, 3e-3, 100.0])), special=special)
        inputs = case.inputs(operation, rng)
        output, saved = operation.forward(*inputs)
        cotangent = rng.normal(size=output.shape)
        wanted = operation.backward(saved, cotangent)
        try:
            with np.errstate(all="ignore"):
                got = backward(forward(*inputs)[1], cotangent)
            if not all(_close(a, b) for a, b in zip(got, wanted, strict=True)):
                return False
        except Exception:
            return False
    return True


def _close(got: object, wanted: np.ndarray | None) -> bool:
    if wanted is None or not isinstance(got, np.ndarray) or got.shape != wanted.shape:
        return got is wanted
    return bool(np.all(np.abs(got - wanted) <= ROUNDING * np.max(np.abs(wanted), initial=0)))
