"""The analytic side at one input: gradients through a few cotangents, and how rounding moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck import budget
from gradcheck.judge import Verdict
from gradcheck.subject import Subject, Violation

__all__ = ["Point", "draw_cotangents"]


def draw_cotangents(output: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Two Gaussian cotangents and one that is 1 at one element: never constant, never of one sign."""
    one_hot = np.zeros_like(output)
    one_hot[np.unravel_index(rng.integers(output.size), output.shape)] = 1
    gaussian = [np.asarray(rng.standard_normal(output.shape).astype(output.dtype)) for _ in range(2)]
    return [*gaussian, one_hot]


@dataclass(frozen=True, slots=True)
class Point:
    """A pair at its inputs.

    output: of forward.
    cotangents: [cotangents, output elements], in float64.
    gradients: by wanted input, [cotangents, input elements], in float64.
    jiggled: the same with all arguments moved by a few ulp: by wanted input, [runs, cotangents, elements].
    """

    subject: Subject
    output: np.ndarray
    cotangents: np.ndarray
    gradients: list[np.ndarray]
    jiggled: list[np.ndarray]

    @classmethod
    def of(cls, subject: Subject, rng: np.random.Generator) -> Point:
        """Run the pair; a Violation says why it cannot be judged there."""
        output, saved = subject.run_forward(subject.inputs)
        output = output.copy()  # it may be a buffer that later calls overwrite
        if not np.isfinite(output).all():
            raise Violation(Verdict.INCONCLUSIVE, "forward's output holds NaN or infinity")
        cotangents = draw_cotangents(output, rng)
        gradients = [subject.run_backward(saved, cotangent) for cotangent in cotangents]
        if not budget.has_room(output, *(each for run in gradients for each in run)):
            cotangents = [budget.lowered(cotangent) for cotangent in cotangents]
            gradients = [subject.run_backward(saved, cotangent) for cotangent in cotangents]
        try:
            jiggled = _jiggled(subject, cotangents, rng)
        except Violation as broken:
            reason = f"resolution: {broken.reason}, at an input 4 ulp beside this one"
            raise Violation(Verdict.INCONCLUSIVE, reason) from broken
        rows = [_rows([run[k] for run in gradients]) for k in range(len(subject.differentiable))]
        return cls(subject, output, _rows(cotangents), rows, jiggled)

    def more_jiggled(self, rng: np.random.Generator) -> list[np.ndarray]:
        """As many runs again, moved by other ulp."""
        dtype, shape = self.output.dtype, self.output.shape
        return _jiggled(self.subject, [row.astype(dtype).reshape(shape) for row in self.cotangents], rng)


def _jiggled(
    subject: Subject, cotangents: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    runs = [moved for _, moved in budget.jiggled_runs(subject, subject.inputs, cotangents, rng)]
    wanted = range(len(subject.differentiable))
    return [np.array([_rows([each[k] for each in run]) for run in runs]) for k in wanted]


def _rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([array.reshape(-1) for array in arrays], dtype=np.float64)
