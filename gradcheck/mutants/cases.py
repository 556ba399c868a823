"""The configurations that every mutant of an operation is checked in, the most telling first.

The list is the same for all: nobody tells the checker where to look.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradcheck.mutants.operations import Operation

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """A shape of x and what its values are like: standard normal · scale + shift.

    special: "constant slice" and "zero row" are about the first of x, and "value at the mean", which makes it
        −1, 0, 1; "zero weight" and "unit weight" are about the first entry; of "integers", x is −1, 0 or 1,
        and the first weight 1.
    zero: the inputs whose gradient is zero there by nature.
    """

    shape: tuple[int, ...]
    dtype: str = "float64"
    scale: float = 1.0
    shift: float = 0.0
    special: str = ""
    zero: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = f"scale {self.scale:g}" if self.scale != 1 else ""
        values += f" mean {self.shift:g}" if self.shift else ""
        dtype = "" if self.dtype == "float64" else self.dtype
        return " ".join(part for part in (str(self.shape), dtype, values.strip(), self.special) if part)

    def inputs(self, operation: Operation, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Inputs of this kind."""
        x, *others = operation.draw(self.shape, rng)
        x = x * self.scale + self.shift
        if self.special == "constant slice":
            x[0, 0] = x.flat[0]
        if self.special == "zero row":
            x[0] = 0
        if self.special == "zero weight":
            others[0].flat[0] = 0
        if self.special == "unit weight":
            others[0].flat[0] = 1
        if self.special == "value at the mean":
            x[0, 0, 0, :, 0] = -1, 0, 1
        if self.special == "integers":
            x = rng.integers(-1, 2, size=self.shape).astype(np.float64)
            if "weight" in operation.names:
                others[0].flat[0] = 1
        return tuple(a.astype(self.dtype) if a.dtype.kind == "f" else a for a in (x, *others))


CASES: dict[str, tuple[Case, ...]] = {
    "moment_norm": (  # [Z, A, S, K, L]
        Case((2, 2, 2, 3, 3)),
        Case((2, 1, 2, 3, 2), scale=3e-3),  # GroupNorm; ε visible
        Case((1, 5, 3, 1, 3)),  # BatchNorm, G = C
        Case((4, 1, 1, 5, 1)),  # LayerNorm, G = 1
        Case((1, 1, 2, 3, 5)),  # batch 1
        Case((2, 1, 1, 67, 1)),
        Case((1, 7, 3, 1, 11), scale=100),
        Case((2, 2, 2, 3, 3), "float32"),
        Case((2, 1, 2, 2, 3), special="constant slice"),
        Case((3, 1, 2, 2, 3), special="zero weight"),
        Case((1, 6, 3, 1, 1), shift=1e4),
        Case((1, 6, 3, 1, 1), shift=1e6),
        Case((2, 1, 2, 2, 5), "float32", shift=300),
        Case((3, 1, 2, 2, 3), special="integers"),
        Case((3, 1, 2, 2, 3), special="unit weight"),
        Case((2, 1, 2, 3, 1), special="value at the mean"),
        Case((3, 1, 2, 1, 1), zero=("x", "weight")),  # one value to each statistic
        Case((66, 1, 1, 2, 2)),
        Case((1, 66, 2, 1, 2)),
        Case((1, 1, 1, 4, 65)),
    ),
    "rms_norm": (
        Case((3, 5)),
        Case((5, 7), scale=3e-3),
        Case((1, 6)),
        Case((34, 3), scale=100),
        Case((2, 67)),
        Case((4, 4), "float32"),
        Case((3, 5), special="zero row"),
        Case((3, 5), special="zero row"),  # another batch that begins in the same way
        Case((3, 5), shift=1e4),
        Case((65, 3)),
        Case((3, 5), special="integers"),
        Case((3, 5), special="unit weight"),
        Case((0, 5)),
    ),
    "inference_norm": (
        Case((3, 4, 3)),
        Case((1, 3, 5)),
        Case((4, 2, 1), shift=1e4),
        Case((2, 3, 33), scale=100),
        Case((3, 3, 2), "float32"),
        Case((1, 4, 1)),
        Case((65, 2, 1)),
    ),
    "running_norm": (
        Case((3, 4, 3)),
        Case((1, 2, 5), scale=3e-3),
        Case((6, 2, 1)),
        Case((2, 3, 33), scale=100),
        Case((3, 3, 2), "float32"),
        Case((65, 2, 1)),
    ),
    "dropout": (
        Case((4, 5)),
        Case((4, 5)),  # the shape again, with another key
        Case((1, 7)),
        Case((2, 3, 11), scale=100),
        Case((3, 5), "float32"),
        Case((5, 4), special="integers"),
        Case((3, 3)),
        Case((2, 65)),
        Case((7, 1)),
    ),
    "channel_dropout": (
        Case((4, 3, 2)),
        Case((1, 5, 3)),
        Case((4, 5, 1)),
        Case((3, 3, 2), "float32"),
        Case((3, 4, 2), special="integers"),
    ),
}
