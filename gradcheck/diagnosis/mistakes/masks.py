"""The known mistakes in the gradient of dropout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradcheck.diagnosis.mistakes.common import Hypothesis, moves
from gradcheck.diagnosis.terms import Mask

__all__ = ["of_mask"]


def of_mask(
    mask: Mask, kept: np.ndarray, scale: float, cotangent: np.ndarray, gradient: np.ndarray
) -> Iterator[Hypothesis]:
    """The right formula for the gradient of dropout, then the mistakes.

    `kept` and `scale` are those of the forward pass.
    """
    p = mask.p if mask.p is not None else 1 - 1 / scale if scale > 1 else 0.0
    seen = kept.astype(np.float64)

    def hypothesis(words: str, factor: np.ndarray) -> Hypothesis:
        return Hypothesis(words, {"masked": cotangent * factor}, {"masked": 1.0}, 1 if words else 0)

    yield hypothesis("", seen * scale)
    if scale != 1:
        yield hypothesis(f"the survivors are not scaled: multiply by {scale:.6g}", seen)
        yield hypothesis(f"the survivors are scaled twice: multiply by {scale:.6g} once", seen * scale**2)
    for factor, words in (
        (p, "p"),
        (1 - p, "1 − p"),
        (1 / p if p else 1.0, "1/p"),
        (1 / (1 - p) if p < 1 else 1.0, "1/(1 − p)"),
    ):
        if factor not in (1, scale):
            words = f"the survivors are multiplied by {words} = {factor:.6g} instead of {scale:.6g}"
            yield hypothesis(words, seen * factor)
    if kept.any():
        rate = kept.size / int(kept.sum())
        words = f"the scale is that of the share that was in fact kept, {rate:.6g} instead of {scale:.6g}"
        yield hypothesis(words, seen * rate)
    for factor, tail in ((scale, ""), (1.0, ", and nothing is scaled")):
        ones = np.full_like(seen, factor)
        yield hypothesis(f"the mask is not applied{tail}", ones)
        yield hypothesis(f"the complement of the mask is applied{tail}", (1 - seen) * factor)
        for words, move in moves(range(seen.ndim), seen.shape):
            yield hypothesis(f"the mask is {words}{tail}", move(seen) * factor)
        for axis, n in enumerate(seen.shape):
            if n > 1:
                first = np.take(seen, [0], axis)
                words = f"the mask of index 0 of axis {axis} is used for all of that axis{tail}"
                yield hypothesis(words, np.broadcast_to(first * factor, seen.shape))
    other = (gradient != 0).astype(np.float64)
    apart = int(np.sum((other != seen) & (cotangent != 0)))
    differ = f"({apart} of {seen.size} elements differ)"
    if mask.drawn:
        words = (
            f"another mask than that of the forward pass is applied {differ}: keep the mask, or its seed, "
            "and do not draw again"
        )
    else:
        words = f"backward lets through other elements than forward {differ}: look at the condition"
    yield hypothesis(words, other * scale)
