"""Whether an operation that gives the output has the derivative of the forward pass too.

At a single point many operations give the same output: at x = 1 RMSNorm is x². One numeric derivative along a
random direction of each input tells them apart.
"""

from __future__ import annotations

import numpy as np

from gradcheck.derivatives.numeric import Line, direction
from gradcheck.diagnosis import mistakes
from gradcheck.diagnosis.terms import Family, Mask, Norm
from gradcheck.subject import Subject

__all__ = ["Slopes"]

SLACK = 1e-6  # of the terms along the direction: no two operations are as near to each other


class Slopes:
    """Numeric derivatives of one forward pass seen through a cotangent, each made when it is asked for."""

    def __init__(
        self, subject: Subject, output: np.ndarray, cotangent: np.ndarray, rng: np.random.Generator
    ) -> None:
        self._subject, self._output, self._cotangent, self._rng = subject, output, cotangent, rng
        self._made: dict[int, tuple[np.ndarray, float, float]] = {}

    def contradict(self, family: Family) -> bool:
        """Whether a right gradient of this operation is not the derivative of the forward pass."""
        if isinstance(family, Mask):
            x = self._array(family.x)
            factor = np.divide(self._output, x, out=np.zeros_like(x), where=x != 0)
            return self._contradicts(family.x, (self._cotangent * factor)[None])
        positions = [k for k in (family.x, family.weight, family.bias) if k is not None]
        return any(self._contradicts(k, self._terms(family, k)) for k in positions)

    def _terms(self, norm: Norm, position: int) -> np.ndarray:
        inputs, role = self._subject.inputs, norm.role(position)
        if role == "x":
            right = next(mistakes.of_x(norm, inputs, self._cotangent))
        else:
            right = next(mistakes.of_parameter(norm, str(role), inputs, self._cotangent))
        columns, expected = right.columns()
        return columns * expected[:, None]

    def _contradicts(self, position: int, terms: np.ndarray) -> bool:
        """Whether terms, whose sum a gradient would be, do not add up to the numeric derivative."""
        if position not in self._made:
            self._made[position] = self._derivative(position)
        u, numeric, bar = self._made[position]
        along = terms.reshape(len(terms), -1) * u.ravel()
        apart = abs(float(along.sum()) - numeric)
        return bool(apart > 2 * bar + SLACK * np.abs(along).sum())

    def _derivative(self, position: int) -> tuple[np.ndarray, float, float]:
        """A direction, the derivative along it, and its bar."""
        subject, x = self._subject, self._array(position)
        # What a mask does at zero, the output does not tell; other operations are as well known without.
        u = np.where(x == 0, 0, direction(x, self._rng)) if x.any() else direction(x, self._rng)

        def value(moved: np.ndarray) -> np.ndarray:
            return subject.run_forward(subject.replaced(position, moved))[0]

        cotangents = self._cotangent.reshape(1, -1).astype(np.float64)
        estimate = Line(value, x, u, self._output, cotangents).ladder()
        return u, float(estimate.value[0]), float(estimate.bar[0] + estimate.kink[0])

    def _array(self, position: int) -> np.ndarray:
        array = self._subject.inputs[position]
        assert array is not None  # positions in a record are those of arrays
        return array
