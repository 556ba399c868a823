"""Elementwise arithmetic, powers, and the choice between elements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..dispatch import primitive
from ..registry import Sample
from .samples import elementwise, pairs

__all__ = [
    "abs", "add", "divide", "exp", "log", "maximum", "minimum", "multiply", "negative", "power",
    "sqrt", "subtract", "where",
]  # fmt: skip


@primitive(
    "math::add",
    vjps=(lambda xp, g, y, a, b: g, lambda xp, g, y, a, b: g),
    samples=pairs(),
)
def add(a, b):
    """a + b, elementwise, with broadcasting."""
    return np.add(a, b)


@primitive(
    "math::subtract",
    vjps=(lambda xp, g, y, a, b: g, lambda xp, g, y, a, b: -g),
    samples=pairs(),
)
def subtract(a, b):
    """a − b, elementwise, with broadcasting."""
    return np.subtract(a, b)


@primitive(
    "math::multiply",
    vjps=(lambda xp, g, y, a, b: g * b, lambda xp, g, y, a, b: g * a),
    keeps=((1,), (0,)),
    samples=pairs(),
)
def multiply(a, b):
    """a · b, elementwise, with broadcasting."""
    return np.multiply(a, b)


@primitive(
    "math::divide",
    vjps=(lambda xp, g, y, a, b: g / b, lambda xp, g, y, a, b: -g * (y / b)),
    keeps=((1,), (1,)),
    keeps_output=True,
    samples=pairs(gap=0.5),
)
def divide(a, b):
    """a / b, elementwise, with broadcasting."""
    return np.divide(a, b)


@primitive("math::negative", vjps=(lambda xp, g, y, x: -g,), samples=elementwise())
def negative(x):
    """−x."""
    return np.negative(x)


def _power_base(xp, g, y, a, b):
    if isinstance(b, (int, float)):
        lowered = b - 1 if b else 1.0  # a⁰ is constant, also at a = 0, where a⁻¹ is not finite
    else:
        lowered = xp.where((b == 0) & (a == 0), 1.0, b - 1)
    return g * b * a**lowered


def _powers(rng: np.random.Generator) -> Iterator[Sample]:
    yield from pairs(0.5, 2.0)(rng)
    for exponent in (-1.0, 0.0, 1.0, 2.0, 3.0):
        yield Sample(f"exponent {exponent:g}", (rng.uniform(0.5, 2.0, 4), np.full(4, exponent)))


@primitive(
    "math::power",
    vjps=(_power_base, lambda xp, g, y, a, b: g * y * xp.log(xp.where(a > 0, a, 1.0))),
    keeps=((0, 1), (0, 1)),
    keeps_output=True,
    samples=_powers,
)
def power(a, b):
    """aᵇ, elementwise, with broadcasting. The derivative by b is taken as 0 where a ≤ 0."""
    return np.power(a, b)


@primitive("math::exp", vjps=(lambda xp, g, y, x: g * y,), keeps_output=True, samples=elementwise())
def exp(x):
    """eˣ."""
    return np.exp(x)


@primitive("math::log", vjps=(lambda xp, g, y, x: g / x,), keeps=((0,),), samples=elementwise(0.5, 3.0))
def log(x):
    """The natural logarithm of x."""
    return np.log(x)


@primitive(
    "math::sqrt", vjps=(lambda xp, g, y, x: g * 0.5 / y,), keeps_output=True, samples=elementwise(0.5, 3.0)
)
def sqrt(x):
    """√x."""
    return np.sqrt(x)


@primitive(
    "math::abs",
    vjps=(lambda xp, g, y, x: xp.where(x > 0, g, xp.where(x < 0, -g, 0.0)),),
    keeps=((0,),),
    samples=elementwise(gap=0.1),
)
def abs(x):
    """|x|; the derivative at 0 is taken as 0."""
    return np.abs(x)


def _distinct(rng: np.random.Generator) -> Iterator[Sample]:
    for sample in pairs()(rng):
        a, b = sample.inputs
        yield Sample(sample.name, (np.floor(a * 4) / 4, np.floor(b * 4) / 4 + 0.125))


@primitive(
    "math::maximum",
    vjps=(
        lambda xp, g, y, a, b: g * ((a > b) + 0.5 * (a == b)),
        lambda xp, g, y, a, b: g * ((b > a) + 0.5 * (a == b)),
    ),
    keeps=((0, 1), (0, 1)),
    samples=_distinct,
)
def maximum(a, b):
    """The larger of a and b; equal elements share the derivative."""
    return np.maximum(a, b)


@primitive(
    "math::minimum",
    vjps=(
        lambda xp, g, y, a, b: g * ((a < b) + 0.5 * (a == b)),
        lambda xp, g, y, a, b: g * ((b < a) + 0.5 * (a == b)),
    ),
    keeps=((0, 1), (0, 1)),
    samples=_distinct,
)
def minimum(a, b):
    """The smaller of a and b; equal elements share the derivative."""
    return np.minimum(a, b)


def _choices(rng: np.random.Generator) -> Iterator[Sample]:
    for shapes in (((3, 4), (3, 4), (3, 4)), ((3, 1), (4,), (3, 4)), ((2, 3), (), (3,))):
        condition, a, b = (rng.normal(size=shape) for shape in shapes)
        yield Sample(f"condition {shapes[0]}, a {shapes[1]}, b {shapes[2]}", (condition > 0, a, b))


@primitive(
    "math::where",
    vjps=(None, lambda xp, g, y, c, a, b: xp.where(c, g, 0.0), lambda xp, g, y, c, a, b: xp.where(c, 0.0, g)),
    keeps=((), (0,), (0,)),
    differentiable=(1, 2),
    samples=_choices,
)
def where(condition, a, b):
    """a where `condition` holds, b elsewhere, with broadcasting."""
    return np.where(condition, a, b)
