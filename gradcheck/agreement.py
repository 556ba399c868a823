"""Two ways to compute the same thing: a pair against a trusted one, and facts that every normalization obeys.

What may differ is measured, not chosen: both sides are run again with their arguments moved by a few units in
the last place, and 16 times the largest change is granted, plus 8·u·√n of the largest value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from gradcheck import budget
from gradcheck.axes import Arrays, Configuration
from gradcheck.judge import Check, Verdict

__all__ = ["Evaluate", "check_facts", "check_repeated", "check_trusted", "check_twins", "same_bits"]

Values = dict[str, np.ndarray]
"""The output of a call and the gradients of its inputs, by name; "output" first."""

Evaluate = Callable[[Configuration, Arrays, np.ndarray], Values]
"""Run an operation on arrays and pull a cotangent back through it."""


def check_trusted(
    configuration: Configuration,
    arrays: Arrays,
    cotangent: np.ndarray,
    evaluations: Mapping[str, Evaluate],
    trusted: Evaluate,
    rng: np.random.Generator,
) -> list[Check]:
    """Each evaluation against a trusted one, which runs in float64 on the same numbers."""
    exact = dataclasses.replace(configuration, dtype="float64")
    wanted, granted = _measured(exact, arrays, cotangent, trusted, np.dtype(configuration.dtype), rng)
    checks = []
    for name, evaluate in evaluations.items():
        checks += _compare(evaluate(configuration, arrays, cotangent), wanted, granted, name)
    return checks


def check_twins(
    configuration: Configuration, arrays: Arrays, cotangent: np.ndarray, one: Evaluate, other: Evaluate
) -> Check:
    """Two kernels that must give the same bits."""
    first, second = one(configuration, arrays, cotangent), other(configuration, arrays, cotangent)
    differing = [name for name in {**first, **second} if not same_bits(first.get(name), second.get(name))]
    if not differing:
        return Check("twins", Verdict.PASS)
    reason = f"the sequential and the parallel kernel differ in the bits of {', '.join(differing)}"
    return Check("twins", Verdict.FAIL, reason)


def check_repeated(
    configuration: Configuration, arrays: Arrays, cotangent: np.ndarray, kernel: str, evaluate: Evaluate
) -> Check:
    """A kernel that must give the same bits in every call."""
    first, second = (evaluate(configuration, arrays, cotangent) for _ in range(2))
    differing = [name for name in first if not same_bits(first[name], second.get(name))]
    if not differing:
        return Check("same bits", Verdict.PASS)
    reason = f"two calls of the {kernel} kernel differ in the bits of {', '.join(differing)}"
    return Check("same bits", Verdict.FAIL, reason)


def same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether both are there, alike in shape and dtype, and equal bit by bit."""
    if one is None or other is None:
        return False
    return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()


def check_facts(
    configuration: Configuration,
    arrays: Arrays,
    cotangent: np.ndarray,
    evaluate: Evaluate,
    rng: np.random.Generator,
) -> list[Check]:
    """What holds of a normalization whatever its formula: sums, invariances, equality with relatives."""
    if configuration.operation == "dropout" or configuration.mode == "inference":
        return []
    dtype = np.dtype(configuration.dtype)
    values, granted = _measured(configuration, arrays, cotangent, evaluate, dtype, rng)
    checks = []
    if configuration.subtracts_mean and configuration.layout != "broadcast":
        checks.append(_zero_sum(configuration, values["input"], granted["input"]))
    for name, other, moved in _relatives(configuration, arrays):
        theirs, allowed = _measured(other, moved, cotangent, evaluate, dtype, rng)
        wanted = {"output": theirs["output"]}
        checks += _compare(values, wanted, {"output": granted["output"] + allowed["output"]}, name)
    for name, parts in _equals(configuration, arrays, cotangent):
        each = [evaluate(*part) for part in parts]
        joined = {key: np.concatenate([values[key] for values in each]) for key in ("output", "input")}
        checks += _compare(values, joined, {key: 2 * granted[key] for key in joined}, name)
    return checks


def _zero_sum(configuration: Configuration, gradient: np.ndarray, granted: float) -> Check:
    sums = gradient.reshape(configuration.split_shape).sum(axis=configuration.reduced, dtype=np.float64)
    error, bar = budget.largest(sums), granted * configuration.count
    verdict = Verdict.PASS if error <= bar else Verdict.FAIL
    reason = ""
    if verdict is Verdict.FAIL:
        reason = f"the gradient of input sums to {error:.3g} over the normalized axes, wanted 0 ± {bar:.1g}"
    return Check("zero sum", verdict, reason, "input", error=error, bar=bar, tolerance=0.0)


def _relatives(configuration: Configuration, arrays: Arrays) -> Iterator[tuple[str, Configuration, Arrays]]:
    """Calls with the same output: f(4x; 16ε) = f(x; ε), and f(x + c) = f(x) where the mean is subtracted."""
    scaled = dataclasses.replace(configuration, eps=16 * configuration.eps)
    yield "scale invariance", scaled, dataclasses.replace(arrays, input=4 * arrays.input)
    if configuration.subtracts_mean:
        shift = arrays.input.dtype.type(np.round(np.std(arrays.input)) or 1)
        yield "shift invariance", configuration, dataclasses.replace(arrays, input=arrays.input + shift)


def _equals(
    c: Configuration, arrays: Arrays, cotangent: np.ndarray
) -> Iterator[tuple[str, list[tuple[Configuration, Arrays, np.ndarray]]]]:
    """Other operations with the same output and gradient of the input: one call, or one for each sample."""
    if c.layout == "broadcast":
        return
    if c.groups == 1 and c.affine == "none":
        norm = dataclasses.replace(c, operation="layer_norm", tail=c.rank - 1, groups=None, channel_axis=None)
        yield "one group is layer_norm", [(norm, arrays, cotangent)]
    if c.groups is not None and c.groups == c.channels and c.rank > 2 and c.count > 1:
        norm = dataclasses.replace(c, operation="instance_norm", groups=None)
        yield "a group for each channel is instance_norm", [(norm, arrays, cotangent)]
    if c.operation == "instance_norm":
        parts = []
        for n in range(c.shape[0]):
            norm = dataclasses.replace(c, operation="batch_norm", shape=(1, *c.shape[1:]))
            sample = dataclasses.replace(arrays, input=arrays.input[n : n + 1])
            parts.append((norm, sample, cotangent[n : n + 1]))
        yield "batch_norm of each sample alone", parts


def _measured(
    configuration: Configuration,
    arrays: Arrays,
    cotangent: np.ndarray,
    evaluate: Evaluate,
    precision: np.dtype,
    rng: np.random.Generator,
) -> tuple[Values, dict[str, float]]:
    """The values, and how far rounding in `precision` may move each, as moving the arguments shows."""
    own = np.dtype(configuration.dtype)
    arrays, cotangent = arrays.astype(own), cotangent.astype(own)
    values = evaluate(configuration, arrays, cotangent)
    floor = budget.rounding_floor(precision, cotangent.size)
    granted = {name: floor * budget.largest(value) for name, value in values.items()}
    granted["input"] = max(granted["input"], floor * _uncancelled(configuration, arrays, cotangent))
    inputs = {name: getattr(arrays, name) for name in values if name != "output"}
    # The copies of an expanded element are rounded each for itself, and so are moved each for itself.
    inputs["input"] = np.broadcast_to(arrays.input, configuration.shape)
    for _ in range(budget.REPEATS):
        jiggled = {name: budget.jiggled(array, rng, precision) for name, array in inputs.items()}
        moved = budget.jiggled_cotangent(cotangent, rng, precision)
        new = evaluate(configuration, dataclasses.replace(arrays, **jiggled), moved)
        new["input"] = new["input"].sum(axis=_expanded(configuration, arrays), keepdims=True)
        for name, value in new.items():
            granted[name] = max(granted[name], budget.SAFETY * budget.largest(value - values[name]))
    return values, granted


def _expanded(configuration: Configuration, arrays: Arrays) -> tuple[int, ...]:
    """The axes along which the operation expands its input, and sums the gradient."""
    lengths = zip(configuration.shape, arrays.input.shape, strict=True)
    return tuple(axis for axis, (wide, own) in enumerate(lengths) if wide != own)


def _uncancelled(configuration: Configuration, arrays: Arrays, cotangent: np.ndarray) -> float:
    """The direct term of the input's gradient, |ȳ|·|weight|/σ, from which others are subtracted.

    Of an expanded input, as many of them as are summed.
    """
    size = budget.largest(cotangent) * (1.0 if arrays.weight is None else budget.largest(arrays.weight))
    size *= cotangent.size // arrays.input.size
    if configuration.operation == "dropout":
        return size
    if arrays.running_var is not None:
        variance = arrays.running_var
    else:
        x = np.broadcast_to(arrays.input, configuration.shape).reshape(configuration.split_shape)
        x = x.astype(np.float64)
        moment = np.var if configuration.subtracts_mean else lambda x, axis: np.mean(x * x, axis=axis)
        variance = moment(x, axis=configuration.reduced)
    deviation = float(np.sqrt(np.min(variance) + configuration.eps))
    return size / deviation if deviation > 0 else size


def _compare(got: Values, wanted: Values, granted: dict[str, float], name: str) -> list[Check]:
    checks = []
    for key in wanted:
        what = "the output" if key == "output" else f"the gradient of {key}"
        value = got.get(key)
        if value is None or value.shape != wanted[key].shape:
            found = "is missing" if value is None else f"has shape {value.shape}"
            reason = f"{name}: {what} {found}, wanted shape {wanted[key].shape}"
            checks.append(Check(name, Verdict.ERROR, reason, None if key == "output" else key))
            continue
        worst, bar = budget.worst(value, wanted[key]), granted[key]
        verdict, reason = Verdict.PASS, ""
        if not worst.error <= bar:
            verdict = Verdict.FAIL
            expected = f"{worst.wanted:.8g} ± {bar:.1g}"
            reason = f"{name}: {what} is {worst.got:.8g} at {worst.where}, wanted {expected}"
        checks.append(
            Check(
                name,
                verdict,
                reason,
                None if key == "output" else key,
                analytic=worst.got,
                numeric=worst.wanted,
                error=worst.error,
                bar=bar,
                tolerance=0.0,
            )
        )
    return checks
