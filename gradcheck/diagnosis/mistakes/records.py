"""The formulas of other normalizations than that of the forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradcheck.diagnosis.mistakes.common import long, subsets
from gradcheck.diagnosis.terms import InferenceNorm, MomentNorm, Norm, RmsNorm, axes_in_words

__all__ = ["other_records", "other_slices"]


def other_records(norm: Norm) -> Iterator[tuple[str, Norm]]:
    """The formula of another kind of normalization."""
    if isinstance(norm, MomentNorm):
        yield "this is the formula of RMSNorm: the mean is not subtracted", _as(RmsNorm, norm)
    elif isinstance(norm, RmsNorm):
        yield "this is the formula with a mean subtracted, which RMSNorm does not do", _as(MomentNorm, norm)
    elif isinstance(norm, InferenceNorm):
        words = (
            "this is the formula of training: mean and variance of the batch in the place of the running ones"
        )
        yield words, _as(MomentNorm, norm)
    if not isinstance(norm, InferenceNorm):
        n = norm.count
        used, right = (
            (f"N = {n}", f"N − 1 = {n - 1}") if norm.correction else (f"N − 1 = {n - 1}", f"N = {n}")
        )
        yield (
            f"the variance is divided by {used}, but by {right} in the forward pass",
            dataclasses.replace(norm, correction=1 - norm.correction),
        )
    wrong, right = ("inside", "outside") if norm.eps_outside else ("outside", "inside")
    yield (
        f"ε is {wrong} of the root, but {right} in the forward pass",
        dataclasses.replace(norm, eps_outside=not norm.eps_outside),
    )


def _as(kind: type[Norm], norm: Norm) -> Norm:
    fields = {f.name: getattr(norm, f.name) for f in dataclasses.fields(Norm)}
    return kind(**fields)


def other_slices(norm: Norm) -> Iterator[tuple[str, Norm]]:
    """Records with statistics over other axes, or of other groups."""
    if isinstance(norm, InferenceNorm):
        return
    instead = f"instead of {norm.where().removeprefix('over ')}"
    for axes in subsets(norm.split_shape):
        if axes != long(norm.reduced, norm.split_shape):
            words = f"{axes_in_words(axes, norm.groups)} {instead}"
            yield words, dataclasses.replace(norm, reduced=axes)
    if norm.groups is not None:
        axis, groups = norm.groups
        for other in range(1, norm.shape[axis] + 1):
            if norm.shape[axis] % other == 0 and other != groups:
                sizes = norm.shape[axis] // other, norm.shape[axis] // groups
                words = "in groups of {} channels instead of {}".format(*sizes)
                yield words, dataclasses.replace(norm, groups=(axis, other))
