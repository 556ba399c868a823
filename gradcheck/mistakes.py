"""The known mistakes of each family of gradients: what the terms are if one is made, and its name in words.

Each is yielded as a Hypothesis. The first of a family is the right formula, whose words are empty; a term that
is left out, has the wrong sign or factor, needs no hypothesis of its own: the coefficients show it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.terms import (
    InferenceNorm,
    Inputs,
    Mask,
    MomentNorm,
    Norm,
    Pieces,
    RmsNorm,
    axes_in_words,
    listed,
)

__all__ = ["Hypothesis", "of_mask", "of_parameter", "of_x", "with_eps"]

MOST_INDICES = 256  # of an axis whose partial sums are tried one by one
PLAIN = {"bias": "cotangent", "weight": "cotangent · x̂"}


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A mistake in words, the terms of the gradient if it is made, and the coefficients that go with it.

    complexity: 0 of the right formula, 1 of a mistake, more of one that was fitted.
    """

    words: str
    terms: Mapping[str, np.ndarray]
    expected: Mapping[str, float]
    complexity: int = 1


AtEps = Callable[[float], Hypothesis]
Residual = Callable[[float], np.ndarray]
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
    for change in itertools.chain(_rstd(right), _x_hat(right, last)):
        yield hypothesis(*change)
    for words, other in _other_records(norm):
        pieces = other.pieces(inputs, cotangent)
        if type(other) is type(norm):  # made in rstd alone, and derived from that
            yield hypothesis(words, dataclasses.replace(pieces, variance_factor=right.variance_factor), other)
        yield hypothesis(words, pieces, other)
    for change in itertools.chain(_axes(norm, right, last), _cotangent(norm, right)):
        yield hypothesis(*change)
    for words, other in _other_slices(norm):
        pieces = other.pieces(inputs, cotangent)
        yield hypothesis(f"the statistics and means are taken {words}", pieces, other)
        if other.groups != norm.groups:
            yield hypothesis(f"the means are taken {words}", _saved(norm, right, other, pieces), other)
    for words, move in _moves(range(len(shape)), shape):
        moved = {name: move(term) for name, term in norm.terms(right, shape).items()}
        yield Hypothesis(f"the gradient is {words}", moved, norm.expected)


def with_eps(norm: Norm, role: str, inputs: Inputs, cotangent: np.ndarray) -> list[tuple[str, AtEps]]:
    """The right formula as a function of ε, and where that ε is; once with x̂ made again, once with x̂ kept."""

    def everywhere(eps: float) -> Hypothesis:
        other = dataclasses.replace(norm, eps=eps)
        return next((of_x if role == "x" else _parameter_of(role))(other, inputs, cotangent))

    def in_rstd(eps: float) -> Hypothesis:
        right = norm.pieces(inputs, cotangent)
        x = inputs[norm.x]
        assert x is not None
        rstd = dataclasses.replace(norm, eps=eps).pieces(inputs, cotangent).rstd
        return Hypothesis("", norm.terms(dataclasses.replace(right, rstd=rstd), x.shape), norm.expected)

    if role == "bias":
        return []
    return [("", everywhere)] + ([(" in rstd, but not in x̂", in_rstd)] if role == "x" else [])


def _weight(norm: Norm, inputs: Inputs, p: Pieces) -> Iterator[Change]:
    plain, twice = p.cotangent, p.cotangent * p.weight**2
    yield "weight is not applied: multiply the cotangent by weight first", p.weighted(plain)
    yield (
        "weight is not applied before the sums: multiply the cotangent by weight before the means are taken, "
        "not after",
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
    if norm.bias is not None and inputs[norm.bias] is not None:
        yield "bias is in the place of weight", p.weighted(p.cotangent * p.bias)
    assert norm.weight is not None
    weight = inputs[norm.weight]
    assert weight is not None
    kept = weight.reshape(norm.parameter_shape)
    for words, move in _moves(range(kept.ndim), kept.shape):
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


def _x_hat(p: Pieces, path: str) -> Iterator[Change]:
    """The variance path, or the rms path, with something else in the place of x̂."""
    output = p.x_hat * p.weight + p.bias
    for value, words in (
        (p.centred, "the centred x, not multiplied by rstd"),
        (p.x, "x itself, neither centred nor multiplied by rstd"),
        (p.x * p.rstd, "x times rstd, not centred"),
        (p.x_hat * p.weight, "x̂ times weight"),
        (output, "the output, with weight and bias"),
        (p.x_hat * p.rstd, "x̂ times rstd"),
        (p.x_hat * p.rstd**2, "x̂ times the square of rstd"),
    ):
        place = f"x̂ in the {path} is {words}"
        yield place, dataclasses.replace(p, outer=value, inner=value)
        yield f"{place}, inside the mean", dataclasses.replace(p, inner=value)
        yield f"{place}, before the mean", dataclasses.replace(p, outer=value)


def _other_records(norm: Norm) -> Iterator[tuple[str, Norm]]:
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


def _axes(norm: Norm, p: Pieces, path: str) -> Iterator[Change]:
    """Right statistics, but means of the cotangent over other axes."""
    instead = f"instead of {norm.where().removeprefix('over ')}"
    for axes in _subsets(norm.split_shape):
        if axes != _long(norm.reduced, norm.split_shape):
            words = f"taken {axes_in_words(axes, norm.groups)} {instead}"
            yield f"the means are {words}", p.over(axes)
            yield f"the mean in the mean path is {words}", dataclasses.replace(p, mean_axes=axes)
            yield f"the mean in the {path} is {words}", dataclasses.replace(p, variance_axes=axes)


def _other_slices(norm: Norm) -> Iterator[tuple[str, Norm]]:
    """Records with statistics over other axes, or of other groups."""
    if isinstance(norm, InferenceNorm):
        return
    instead = f"instead of {norm.where().removeprefix('over ')}"
    for axes in _subsets(norm.split_shape):
        if axes != _long(norm.reduced, norm.split_shape):
            words = f"{axes_in_words(axes, norm.groups)} {instead}"
            yield words, dataclasses.replace(norm, reduced=axes)
    if norm.groups is not None:
        axis, groups = norm.groups
        for other in range(1, norm.shape[axis] + 1):
            if norm.shape[axis] % other == 0 and other != groups:
                words = f"in groups of {norm.shape[axis] // other} channels instead of {norm.shape[axis] // groups}"
                yield words, dataclasses.replace(norm, groups=(axis, other))


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
    for words, move in _moves(range(len(norm.shape)), norm.shape):
        yield f"the cotangent is {words}", p.weighted(move(p.cotangent) * p.weight)
        if not isinstance(norm, InferenceNorm):
            x_hat = move(p.x_hat)
            yield f"x̂ is {words}", dataclasses.replace(p, outer=x_hat, inner=x_hat)
        rstd = np.broadcast_to(p.rstd, norm.shape)
        yield f"rstd is {words}", dataclasses.replace(p, rstd=move(rstd))


def of_parameter(norm: Norm, role: str, inputs: Inputs, cotangent: np.ndarray) -> Iterator[Hypothesis]:
    """The right formula for the gradient of weight or bias, then the mistakes."""
    position = norm.weight if role == "weight" else norm.bias
    assert position is not None
    parameter = inputs[position]
    assert parameter is not None
    p = norm.pieces(inputs, cotangent)

    def merged(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array, norm.split_shape).reshape(norm.shape)

    def hypothesis(words: str, summed: np.ndarray) -> Hypothesis:
        total = summed.sum(axis=norm.shared, keepdims=True)
        return Hypothesis(
            words, {PLAIN[role]: total.reshape(parameter.shape)}, {PLAIN[role]: 1.0}, 1 if words else 0
        )

    values = _weight_factors(p) if role == "weight" else _bias_factors(p)
    right = merged(p.cotangent * values.pop(""))
    yield hypothesis("", right)
    for words, value in values.items():
        yield hypothesis(words, merged(p.cotangent * value))
    if role == "weight":
        for words, other in itertools.chain(_other_records(norm), _other_slices(norm)):
            if not words.startswith("this is"):
                words = (
                    f"x̂: {words}"
                    if words.startswith(("the variance", "ε"))
                    else f"the statistics are taken {words}"
                )
            pieces = other.pieces(inputs, cotangent)
            again = np.broadcast_to(pieces.cotangent * pieces.x_hat, other.split_shape).reshape(norm.shape)
            yield hypothesis(words, again)
    for words, part in _parts_of_sum(norm, right):
        yield hypothesis(words, part)
    kept = [axis for axis in range(len(norm.shape)) if axis not in norm.shared]
    for others in itertools.permutations(range(len(norm.shape)), len(kept)):
        if list(others) != kept and [norm.shape[a] for a in others] == [norm.shape[a] for a in kept]:
            summed_axes = [axis for axis in range(len(norm.shape)) if axis not in others]
            moved = np.transpose(right, [*others, *summed_axes]).reshape(*parameter.shape, -1).sum(axis=-1)
            words = (
                f"the sum is taken over {listed(summed_axes)} instead of {listed(norm.shared)}"
                if norm.shared
                else (f"the axes of the sum are swapped: {listed(others)} in the place of {listed(kept)}")
            )
            yield Hypothesis(words, {PLAIN[role]: moved}, {PLAIN[role]: 1.0})
    total = right.sum(axis=norm.shared, keepdims=True).reshape(parameter.shape)
    for words, move in _moves(range(parameter.ndim), parameter.shape):
        yield Hypothesis(f"the gradient is {words}", {PLAIN[role]: move(total)}, {PLAIN[role]: 1.0})


def _parameter_of(role: str) -> Callable[[Norm, Inputs, np.ndarray], Iterator[Hypothesis]]:
    return lambda norm, inputs, cotangent: of_parameter(norm, role, inputs, cotangent)


def _weight_factors(p: Pieces) -> dict[str, np.ndarray]:
    x_hat = p.x_hat
    return {
        "": x_hat,
        "x is in the place of x̂: subtract the mean and multiply by rstd": p.x,
        "x̂ is not multiplied by rstd: the centred x is in its place": p.centred,
        "x̂ is not centred: x times rstd is in its place": p.x * p.rstd,
        "x̂ is multiplied by rstd twice": x_hat * p.rstd,
        "x̂ is divided by rstd, not multiplied": p.centred / p.rstd,
        "it is multiplied by weight: use the cotangent as it is": x_hat * p.weight,
        "the output, with weight and bias, is in the place of x̂": x_hat * p.weight + p.bias,
        "bias is not subtracted where x̂ is made of the output": x_hat
        + p.bias / np.where(p.weight, p.weight, 1),
        "the gradient of bias is in its place: multiply by x̂ before the sum": np.ones_like(x_hat),
        "it is multiplied by rstd in the place of x̂": np.broadcast_to(p.rstd, x_hat.shape),
    }


def _bias_factors(p: Pieces) -> dict[str, np.ndarray]:
    return {
        "": np.ones_like(p.cotangent),
        "it is multiplied by weight: use the cotangent as it is": p.weight,
        "the gradient of weight is in its place: do not multiply by x̂": p.x_hat,
        "it is multiplied by rstd: use the cotangent as it is": p.rstd,
        "it is multiplied by x: use the cotangent as it is": p.x,
    }


def _parts_of_sum(norm: Norm, right: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The sum over a part of an axis."""
    for axis in norm.shared:
        n = norm.shape[axis]
        if not 1 < n <= MOST_INDICES:
            continue
        index = np.arange(n)
        of_axis = f"of the {n} indices of axis {axis}"
        for k in range(1, n):
            for keep, words in (
                (index < k, f"only the first {k} {of_axis} {'is' if k == 1 else 'are'} summed"),
                (index >= k, f"only the last {n - k} {of_axis} {'is' if n - k == 1 else 'are'} summed"),
            ):
                yield words, np.compress(keep, right, axis)
        for k in range(n):
            yield f"only index {k} of axis {axis} is summed", np.compress(index == k, right, axis)
            yield f"index {k} of axis {axis} is left out of the sum", np.compress(index != k, right, axis)
        for start in (0, 1):
            yield (
                f"only every second index of axis {axis} is summed",
                np.compress(index % 2 == start, right, axis),
            )


def of_mask(
    mask: Mask, kept: np.ndarray, scale: float, cotangent: np.ndarray, gradient: np.ndarray
) -> Iterator[Hypothesis]:
    """The right formula for the gradient of dropout, then the mistakes; `kept` and `scale` of the forward pass."""
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
    for factor, tail in ((scale, ""), (1.0, ", and nothing is scaled")):
        ones = np.full_like(seen, factor)
        yield hypothesis(f"the mask is not applied{tail}", ones)
        yield hypothesis(f"the complement of the mask is applied{tail}", (1 - seen) * factor)
        for words, move in _moves(range(seen.ndim), seen.shape):
            yield hypothesis(f"the mask is {words}{tail}", move(seen) * factor)
        for axes in itertools.permutations(range(seen.ndim)):
            if list(axes) != sorted(axes) and tuple(seen.shape[a] for a in axes) == seen.shape:
                moved = listed([k for k, a in enumerate(axes) if a != k])
                yield hypothesis(f"the mask has its {moved} exchanged{tail}", seen.transpose(axes) * factor)
        for axis, n in enumerate(seen.shape):
            if n > 1:
                first = np.take(seen, [0], axis)
                words = f"the mask of index 0 of axis {axis} is used for all of that axis{tail}"
                yield hypothesis(words, np.broadcast_to(first * factor, seen.shape))
    other = (gradient != 0).astype(np.float64)
    apart = int(np.sum((other != seen) & (cotangent != 0)))
    yield hypothesis(
        f"another mask than that of the forward pass is applied ({apart} of {seen.size} elements differ): keep "
        "the mask, or its seed, and do not draw again",
        other * scale,
    )


Move = Callable[[np.ndarray], np.ndarray]


def _moves(axes: Any, shape: tuple[int, ...]) -> Iterator[tuple[str, Move]]:
    """An array with its indices moved along one axis."""
    for axis in axes:
        if shape[axis] > 1:
            for k in (1, -1) if shape[axis] > 2 else (1,):
                yield f"that of another index: rolled by {k} along axis {axis}", _rolled(k, axis)
            if shape[axis] > 2:
                yield f"reversed along axis {axis}", lambda array, axis=axis: np.flip(array, axis)


def _rolled(k: int, axis: int) -> Move:
    return lambda array: np.roll(array, k, axis)


def _subsets(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every choice of axes that are longer than 1, the small ones first."""
    long = _long(tuple(range(len(shape))), shape)
    for k in range(1, len(long) + 1):
        yield from itertools.combinations(long, k)


def _long(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if shape[axis] > 1)
