"""Which normalization or mask a function is, seen from its output, and from its derivative.

Every way to cut x into slices and to give the other inputs a part is tried; ε follows from the output itself.
A candidate counts if its forward pass gives the output to rounding and nothing contradicts its gradient.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.budget import SAFETY, jiggled, rounding_floor
from gradcheck.diagnosis.terms import Family, InferenceNorm, Inputs, Mask, MomentNorm, Norm, RmsNorm, listed

__all__ = ["Recognised", "gives", "recognise"]

LARGEST_EPS = 1.0
NEAR = 1e-3  # of the output: what is further off than this with any ε is another operation
NOISE = 1e-13  # of the variance: how well ε is known; UNSEEN times that at worst
UNSEEN = 1e3
MOST_OTHERS = 4  # inputs beside x that may be weight, bias and running statistics
RANKS = 5
# The kind, what is subtracted from N in its variance, whether ε is outside of the root: customary ones first.
KINDS: tuple[tuple[type[Norm], int, bool], ...] = (
    (MomentNorm, 0, False), (RmsNorm, 0, False), (MomentNorm, 1, False), (MomentNorm, 0, True),
    (MomentNorm, 1, True), (RmsNorm, 0, True),
)  # fmt: skip
WORK = 1 << 26  # elements of all candidates together
ROUND = 3  # digits of an ε that somebody chose


@dataclass(frozen=True, slots=True)
class Recognised:
    """The record of an operation, and what it is in words."""

    family: Family
    words: str


def recognise(
    inputs: Inputs, output: np.ndarray, contradicted: Callable[[Family], bool]
) -> Recognised | None:
    """Find the normalization or the mask that gives this output; None where there is none.

    Args:
        inputs: of the forward pass; x is the first floating array that has the shape of the output.
        output: of the forward pass, which is not all zero.
        contradicted: whether the derivative of the forward pass is another one than that of this operation,
            as it may be where several operations give the same output.
    """
    floats = {k: a for k, a in enumerate(inputs) if a is not None and a.dtype.kind == "f"}
    same = [k for k, a in floats.items() if a.shape == output.shape]
    if not same or not np.isfinite(output).all() or not output.any():
        return None
    position, y = same[0], np.asarray(output, np.float64)
    others = [k for k in floats if k != position]
    with np.errstate(all="ignore"):
        mask = _mask(floats[position], position, y)
        if mask is not None and not contradicted(mask.family):
            return mask
        if not 1 <= y.ndim <= RANKS or len(others) > MOST_OTHERS:
            return None
        statistics = _Statistics(inputs)
        for candidate in itertools.islice(_candidates(floats, position, others), WORK // y.size):
            fitted = _fitted(candidate, statistics, y)
            if fitted is None or not (_is_round(fitted.eps) or fitted.count < y.size):
                continue  # in a single slice some ε explains any factor
            if gives(fitted, inputs, y, output.dtype) and not contradicted(fitted):
                return Recognised(fitted, _in_words(fitted))
    return None


def _mask(given: np.ndarray, position: int, y: np.ndarray) -> Recognised | None:
    x = np.asarray(given, np.float64)
    kept = y[x != 0] != 0
    if not kept.any() or y[x == 0].any():
        return None
    ratio = (y[x != 0] / x[x != 0])[kept]
    scale = float(np.median(ratio))
    same = np.abs(ratio - scale) <= 8 * float(np.finfo(given.dtype).eps) * abs(scale)
    if kept.all() or not same.all():  # multiplied by a constant, no mask is seen
        return None
    words = f"a mask that keeps {int(kept.sum())} of {kept.size} elements, times {scale:.6g}"
    return Recognised(Mask("a mask", None, position), words)


def _candidates(inputs: Mapping[int, np.ndarray], position: int, others: Sequence[int]) -> Iterator[Norm]:
    """Records with ε = 0, the customary ones first."""
    shape = inputs[position].shape
    slices = list(_slices(shape))
    for kind, correction, eps_outside in KINDS:
        for (weight, bias), (name, reduced, groups, channel) in itertools.product(_roles(others), slices):
            for parameter_shape in _parameter_shapes(inputs, shape, (weight, bias), channel):
                its_name = "rms_norm" if kind is RmsNorm and name == "layer_norm" else name
                yield kind(
                    its_name, shape, reduced, parameter_shape, 0.0,
                    groups, position, weight, bias, correction, eps_outside,
                )  # fmt: skip
    for mean, variance in itertools.permutations(others, 2):
        m, v = inputs[mean], inputs[variance]
        if m.shape != v.shape or np.any(v < 0):
            continue
        for weight, bias in _roles([k for k in others if k not in (mean, variance)]):
            for parameter_shape in _parameter_shapes(inputs, shape, (mean, variance, weight, bias), None):
                reduced = tuple(axis for axis, n in enumerate(parameter_shape) if n == 1)
                yield InferenceNorm(
                    "normalization", shape, reduced, parameter_shape, 0.0, None, position, weight, bias,
                    running_mean=m, running_var=v,
                )  # fmt: skip


Slices = tuple[str, tuple[int, ...], tuple[int, int] | None, tuple[int, ...] | None]


def _slices(shape: tuple[int, ...]) -> Iterator[Slices]:
    """A name, the reduced axes, the groups, and the axes along which weight and bias usually vary."""
    rank = len(shape)
    axes = tuple(range(rank))
    for tail in range(1, rank + 1):
        yield "layer_norm", axes[-tail:], None, axes[-tail:]
    channels = list(dict.fromkeys(axis % rank for axis in (1, -1))) if rank > 1 else []
    for channel in channels:
        rest = tuple(axis for axis in axes if axis != channel)
        yield "batch_norm", rest, None, (channel,)
        if rank > 2:
            yield "instance_norm", rest[1:] if 0 in rest else rest, None, (channel,)
    for channel in channels:
        for groups in range(1, shape[channel] + 1):
            if shape[channel] % groups == 0 and channel != 0:
                reduced = tuple(axis for axis in range(rank + 1) if axis not in (0, channel))
                yield "group_norm", reduced, (channel, groups), (channel,)
    for k in range(1, rank + 1):
        for chosen in itertools.combinations(axes, k):
            yield "normalization", chosen, None, None


def _roles(others: Sequence[int]) -> Iterator[tuple[int | None, int | None]]:
    """Which inputs are weight and bias: as many as possible first, in their order first."""
    yield from itertools.permutations(others, 2)
    for one in others:
        yield one, None
        yield None, one
    yield None, None


def _parameter_shapes(
    inputs: Mapping[int, np.ndarray],
    shape: tuple[int, ...],
    positions: Sequence[int | None],
    usual: tuple[int, ...] | None,
) -> Iterator[tuple[int, ...]]:
    """The shapes in which all these inputs broadcast against x, each axis of theirs along one of x."""
    lengths = {tuple(n for n in inputs[k].shape if n > 1) for k in positions if k is not None}
    if len(lengths) > 1:
        return
    if not lengths or lengths == {()}:
        yield tuple(1 for _ in shape)
        return
    (own,) = lengths
    if usual is not None:
        if tuple(shape[axis] for axis in usual if shape[axis] > 1) == own:
            yield tuple(n if axis in usual else 1 for axis, n in enumerate(shape))
        return
    for axes in itertools.combinations(range(len(shape)), len(own)):
        if tuple(shape[axis] for axis in axes) == own:
            yield tuple(n if axis in axes else 1 for axis, n in enumerate(shape))


class _Statistics:
    """What many candidates share, made once: centred x, its variance, weight and bias, in split shapes."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._made: dict[Any, Any] = {}

    def centred(self, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
        """The centred x, and the variance."""
        if isinstance(norm, InferenceNorm):
            return self._centred(norm)
        key = type(norm), norm.reduced, norm.groups, norm.correction
        if key not in self._made:
            self._made[key] = self._centred(norm)
        return self._made[key]

    def _centred(self, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
        x = norm.split(np.asarray(self._inputs[norm.x], np.float64))
        mean, variance = norm.statistics(x)
        return x - mean, np.mean(variance, axis=norm.reduced, keepdims=True)

    def parameter(self, norm: Norm, position: int | None, absent: float) -> np.ndarray:
        """Weight or bias."""
        key = position, absent, norm.parameter_shape, norm.groups
        if key not in self._made:
            self._made[key] = norm.parameter(self._inputs, position, absent)
        return self._made[key]


def _fitted(norm: Norm, statistics: _Statistics, y: np.ndarray) -> Norm | None:
    """The record with the ε that its rstd, as seen in the output, tells; None where there is no such ε."""
    own = not isinstance(norm, InferenceNorm)
    if own and norm.count - norm.correction < 1 + isinstance(norm, MomentNorm):
        return None
    centred, variance = statistics.centred(norm)
    plain = centred * statistics.parameter(norm, norm.weight, 1.0)
    wanted = norm.split(y) - statistics.parameter(norm, norm.bias, 0.0)
    axes = norm.reduced
    seen = np.sum(plain * wanted, axis=axes, keepdims=True) / np.sum(plain * plain, axis=axes, keepdims=True)
    told = np.isfinite(seen) & (seen > 0)
    # The output is a multiple of the centred x in every slice, or this is not the record.
    off = np.abs(np.where(told, plain * seen - wanted, 0))
    if not told.any() or np.max(off) > NEAR * np.max(np.abs(wanted)):
        return None
    variance = variance[told]
    eps = 1 / seen[told] - np.sqrt(variance) if norm.eps_outside else 1 / seen[told] ** 2 - variance
    best = float(eps[np.argmin(variance)])  # where the variance is small, ε is known best
    noise = NOISE * float(np.min(variance))
    if not -UNSEEN * noise <= best <= LARGEST_EPS:
        return None
    return dataclasses.replace(norm, eps=_round(max(best, 0.0), noise))


def _is_round(eps: float) -> bool:
    return eps == float(f"{eps:.{ROUND - 1}e}")


def _round(eps: float, noise: float) -> float:
    """The number with fewest digits that is as near as its rounding allows."""
    if eps <= noise:
        return 0.0
    for digits in range(1, 6):
        rounded = float(f"{eps:.{digits - 1}e}")
        if abs(rounded - eps) <= 1e-9 * eps + UNSEEN * noise:
            return rounded
    return eps


def gives(norm: Norm, inputs: Inputs, y: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the record's forward pass gives this output, to what rounding of x explains."""
    x = inputs[norm.x]
    assert x is not None
    mine = norm.output(inputs)
    moved = list(inputs)
    moved[norm.x] = jiggled(x, np.random.default_rng(0))
    change = float(np.max(np.abs(norm.output(moved) - mine)))
    allowed = SAFETY * change + rounding_floor(dtype, norm.count) * float(np.max(np.abs(y)))
    return bool(np.max(np.abs(mine - y)) <= allowed)


def _in_words(norm: Norm) -> str:
    parts: list[Any] = [norm.name]
    if isinstance(norm, InferenceNorm):
        kept = [axis for axis, n in enumerate(norm.parameter_shape) if n > 1]
        parts.append(f"by running statistics along {listed(kept)}" if kept else "by running statistics")
    elif norm.groups is not None:
        parts.append(f"with {norm.groups[1]} groups of the channels of axis {norm.groups[0]}")
    else:
        parts.append(norm.where())
    parts.append(f"with eps {norm.eps:.6g}" + (" outside of the root" if norm.eps_outside else ""))
    if norm.correction:
        parts.append(f"and a variance over N − 1 = {norm.count - 1}")
    return " ".join(parts)
