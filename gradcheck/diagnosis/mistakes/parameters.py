"""The known mistakes in the gradients of weight and bias."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from gradcheck.diagnosis.mistakes.common import Hypothesis, moves
from gradcheck.diagnosis.mistakes.records import other_records, other_slices
from gradcheck.diagnosis.terms import Inputs, Norm, Pieces, listed

__all__ = ["of_parameter"]

MOST_INDICES = 256  # of an axis whose partial sums are tried one by one
PLAIN = {"bias": "cotangent", "weight": "cotangent · x̂"}


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
        for words, other in itertools.chain(other_records(norm), other_slices(norm)):
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
    for words, move in moves(range(parameter.ndim), parameter.shape):
        yield Hypothesis(f"the gradient is {words}", {PLAIN[role]: move(total)}, {PLAIN[role]: 1.0})


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
        for k in range(2, n - 1):
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
