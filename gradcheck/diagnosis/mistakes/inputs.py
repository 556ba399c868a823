"""The known mistakes in the gradient of the input of a normalization."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from gradcheck.diagnosis.mistakes.common import Hypothesis, long, moves, subsets
from gradcheck.diagnosis.mistakes.records import other_records, other_slices
from gradcheck.diagnosis.terms import InferenceNorm, Inputs, Norm, Pieces, axes_in_words

__all__ = ["of_x"]

Change = tuple[str, Pieces]


def of_x(norm: Norm, inputs: Inputs, cotangent: np.ndarray) -> Iterator[Hypothesis]:
    """The right formula for the gradient of x, then the mistakes, the likely ones first."""
    x = inputs[norm.x]
    assert x is not None
    shape = x.shape
    right = norm.pieces(inputs, cotangent)
    last = list(norm.expected)[-1]

    def hypothesis(words: str, pieces: Pieces, its: Norm = norm) -> Hypothesis:
        return Hypothesis(words, its.terms(pieces, shape), its.expected, 1 if words else 0)

    yield hypothesis("", right)
    if norm.has_weight(inputs):
        for change in _weight(norm, inputs, right):
            yield hypothesis(*change)
    for change in itertools.chain(_rstd(right), _x_hat(norm, right, last)):
        yield hypothesis(*change)
    for words, other in other_records(norm):
        pieces = other.pieces(inputs, cotangent)
        if type(other) is type(norm):  # made in rstd alone, and derived from that
            yield hypothesis(words, dataclasses.replace(pieces, variance_factor=right.variance_factor), other)
            yield hypothesis(f"{words}: in rstd, not in x̂", dataclasses.replace(right, rstd=pieces.rstd))
        yield hypothesis(words, pieces, other)
    for change in itertools.chain(_axes(norm, right, last), _cotangent(norm, right)):
        yield hypothesis(*change)
    for words, other in other_slices(norm):
        pieces = other.pieces(inputs, cotangent)
        yield hypothesis(f"the statistics and means are taken {words}", pieces, other)
        if other.groups != norm.groups:
            yield hypothesis(f"the means are taken {words}", _saved(norm, right, other, pieces), other)
    for words, move in moves(range(len(shape)), shape):
        moved = {name: move(term) for name, term in norm.terms(right, shape).items()}
        yield Hypothesis(f"the gradient is {words}", moved, norm.expected)


def _weight(norm: Norm, inputs: Inputs, p: Pieces) -> Iterator[Change]:
    plain, twice = p.cotangent, p.cotangent * p.weight**2
    yield "weight is not applied: multiply the cotangent by weight first", p.weighted(plain)
    yield (
        "weight is not applied before the sums: multiply the cotangent by weight before the means, not after",
        dataclasses.replace(p.weighted(plain), rstd=p.rstd * p.weight),
    )
    yield (
        "weight is not applied inside the means, only in the direct term",
        dataclasses.replace(p, averaged=plain, projected=plain),
    )
    yield (
        "weight is applied inside the means, but not in the direct term",
        dataclasses.replace(p, direct=plain),
    )
    yield "weight is not applied in the mean path", dataclasses.replace(p, averaged=plain)
    yield "weight is not applied in the variance path", dataclasses.replace(p, projected=plain)
    yield "weight is applied twice", p.weighted(twice)
    yield "weight is applied twice, once after the sums", dataclasses.replace(p, rstd=p.rstd * p.weight)
    if np.all(p.weight != 0):
        yield "the cotangent is divided by weight, not multiplied", p.weighted(p.cotangent / p.weight)
    yield "1 + weight is in the place of weight", p.weighted(p.cotangent * (1 + p.weight))
    if np.any(p.weight < 0):
        yield "the absolute value of weight is in its place", p.weighted(p.cotangent * np.abs(p.weight))
    if norm.bias is not None and inputs[norm.bias] is not None:
        yield "bias is in the place of weight", p.weighted(p.cotangent * p.bias)
    assert norm.weight is not None
    weight = inputs[norm.weight]
    assert weight is not None
    kept = weight.reshape(norm.parameter_shape)
    for words, move in moves(range(kept.ndim), kept.shape):
        yield f"weight is {words}", p.weighted(p.cotangent * norm.split(move(kept)))
    if weight.ndim == 1:
        (own,) = [axis for axis, n in enumerate(norm.parameter_shape) if n > 1] or [0]
        for axis, n in enumerate(norm.shape):
            if n == weight.size and axis != own:
                along = np.moveaxis(kept, own, axis)
                yield (
                    f"weight is indexed along axis {axis} instead of axis {own}",
                    p.weighted(p.cotangent * norm.split(along)),
                )


def _rstd(p: Pieces) -> Iterator[Change]:
    r = p.rstd
    factors = (
        (1 / r, "rstd is missing{}: multiply by 1/√(variance + ε)"),
        (r, "rstd is applied twice{}"),
        (1 / r**2, "σ is in the place of rstd{}: divide by √(variance + ε), do not multiply"),
        (r**2, "rstd is applied three times{}"),
    )
    for factor, words in factors:
        yield words.format(""), dataclasses.replace(p, rstd=r * factor)
    for factor, words in factors:
        yield words.format(" in the direct term"), dataclasses.replace(p, direct=p.direct * factor)
        yield words.format(" in the mean path"), dataclasses.replace(p, averaged=p.averaged * factor)


def _x_hat(norm: Norm, p: Pieces, path: str) -> Iterator[Change]:
    """The variance path, or the rms path, with something else in the place of x̂."""
    output = p.x_hat * p.weight + p.bias
    for value, words in (
        (p.centred, "the centred x, not multiplied by rstd"),
        (p.x, "x itself, neither centred nor multiplied by rstd"),
        (p.x * p.rstd, "x times rstd, not centred"),
        (p.x_hat * p.weight, "x̂ times weight"),
        (output, "the output, with weight and bias"),
        (output / np.where(p.weight, p.weight, 1), "the output over weight, with bias not subtracted"),
        (p.centred / np.sqrt(norm.statistics(p.x)[1]), "the centred x over σ, without ε"),
        (p.x_hat * p.rstd, "x̂ times rstd"),
        (p.x_hat * p.rstd**2, "x̂ times the square of rstd"),
    ):
        place = f"x̂ in the {path} is {words}"
        yield place, dataclasses.replace(p, outer=value, inner=value)
        yield f"{place}, inside the mean", dataclasses.replace(p, inner=value)
        yield f"{place}, before the mean", dataclasses.replace(p, outer=value)


def _axes(norm: Norm, p: Pieces, path: str) -> Iterator[Change]:
    """Right statistics, but means of the cotangent over other axes."""
    instead = f"instead of {norm.where().removeprefix('over ')}"
    for axes in subsets(norm.split_shape):
        if axes != long(norm.reduced, norm.split_shape):
            words = f"taken {axes_in_words(axes, norm.groups)} {instead}"
            yield f"the means are {words}", p.over(axes)
            yield f"the mean in the mean path is {words}", dataclasses.replace(p, mean_axes=axes)
            yield f"the mean in the {path} is {words}", dataclasses.replace(p, variance_axes=axes)


def _saved(norm: Norm, right: Pieces, other: Norm, pieces: Pieces) -> Pieces:
    """The other record's means with the statistics of the right one, as if they had been saved."""

    def again(array: np.ndarray) -> np.ndarray:
        return other.split(np.broadcast_to(array, norm.split_shape).reshape(norm.shape))

    x_hat = again(right.x_hat)
    return dataclasses.replace(pieces, rstd=again(right.rstd), outer=x_hat, inner=x_hat)


def _cotangent(norm: Norm, p: Pieces) -> Iterator[Change]:
    for axes in dict.fromkeys([(axis,) for axis in range(len(norm.split_shape))] + [norm.reduced]):
        for reduce, words in ((np.sum, "summed"), (np.mean, "averaged")):
            value = reduce(p.direct, axis=axes, keepdims=True)
            yield f"the cotangent is {words} {axes_in_words(axes, norm.groups)} first", p.weighted(value)
            yield (
                f"the cotangent of the direct term is {words} {axes_in_words(axes, norm.groups)} first",
                dataclasses.replace(p, direct=value),
            )
    if norm.groups is not None:  # the axes of the split shape are not those that the user knows
        return
    for words, move in moves(range(len(norm.shape)), norm.shape):
        yield f"the cotangent is {words}", p.weighted(move(p.cotangent) * p.weight)
        if not isinstance(norm, InferenceNorm):
            x_hat = move(p.x_hat)
            yield f"x̂ is {words}", dataclasses.replace(p, outer=x_hat, inner=x_hat)
        rstd = np.broadcast_to(p.rstd, norm.shape)
        yield f"rstd is {words}", dataclasses.replace(p, rstd=move(rstd))
