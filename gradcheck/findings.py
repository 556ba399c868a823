"""What is found out about a gradient that is wrong: where, in which pattern, and in which of its terms."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One wrong gradient.

    input, shape: the input whose gradient it is.
    index: the element that is furthest off, with its `analytic` and `numeric` value, the latter known to
        ± `bar`.
    differing, compared: how many of the elements that were looked at are wrong.
    pattern: the shape of the error in words; empty where it has none.
    norm: the operation that was recognised in a function that is not registered; empty where it was known.
    terms, residual: the coefficient of each named term in the wrong gradient, and what part of it they leave
        unexplained; () and None where the family of the operation is not known.
    sentence: the mistake in words, or that no combination of terms explains it.
    """

    input: str
    shape: tuple[int, ...]
    index: tuple[int, ...]
    analytic: float
    numeric: float
    bar: float
    differing: int
    compared: int
    pattern: str = ""
    norm: str = ""
    terms: tuple[tuple[str, float], ...] = ()
    residual: float | None = None
    sentence: str = ""
