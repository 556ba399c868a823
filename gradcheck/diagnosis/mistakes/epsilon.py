"""The right formula with another ε than that of the forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from gradcheck.diagnosis.mistakes.common import Hypothesis
from gradcheck.diagnosis.mistakes.inputs import of_x
from gradcheck.diagnosis.mistakes.parameters import of_parameter
from gradcheck.diagnosis.terms import Inputs, Norm

__all__ = ["AtEps", "with_eps"]

AtEps = Callable[[float], Hypothesis]


def with_eps(norm: Norm, role: str, inputs: Inputs, cotangent: np.ndarray) -> list[tuple[str, AtEps]]:
    """The right formula as a function of ε, and where that ε is; once with x̂ made again, once with x̂ kept."""

    def everywhere(eps: float) -> Hypothesis:
        other = dataclasses.replace(norm, eps=eps)
        its = of_x(other, inputs, cotangent) if role == "x" else of_parameter(other, role, inputs, cotangent)
        return next(its)

    def in_rstd(eps: float) -> Hypothesis:
        right = norm.pieces(inputs, cotangent)
        x = inputs[norm.x]
        assert x is not None
        rstd = dataclasses.replace(norm, eps=eps).pieces(inputs, cotangent).rstd
        return Hypothesis("", norm.terms(dataclasses.replace(right, rstd=rstd), x.shape), norm.expected)

    if role == "bias":
        return []
    found: list[tuple[str, AtEps]] = [("", everywhere)]
    if role == "x":
        found.append((" in rstd, but not in x̂", in_rstd))
    return found
