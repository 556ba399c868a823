"""Calls of fused operations for the property tests: shapes and attributes drawn, values from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinygrad_bn import namespace
from tinygrad_bn.registry import OpSpec

Shape = tuple[int, ...]
Configuration = tuple[tuple[Shape | None, ...], dict[str, Any]]
"""The shapes of the inputs, None for an absent one, and the attributes."""
LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "broadcast")
WORD = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Call:
    """One call of an operation; what is to shrink first stands first."""

    shapes: tuple[Shape | None, ...]
    attributes: Mapping[str, Any]
    layout: str = "contiguous"
    scale: float = 1.0
    offset: float = 0.0
    seed: int = 0

    def inputs(self, spec: OpSpec, dtype: Any = np.float64) -> list[np.ndarray | None]:
        """The input arrays. The first has the layout, scale and offset; a variance is positive."""
        rng = np.random.default_rng(self.seed)
        arrays: list[np.ndarray | None] = []
        for name, shape in zip(spec.inputs, self.shapes, strict=True):
            if shape is None:
                arrays.append(None)
                continue
            values = spread(rng, shape)
            if name.endswith("var"):
                values = 0.5 + np.abs(values)
            if not arrays:
                values = values * self.scale + self.offset
            arrays.append(laid_out(np.asarray(values, dtype), self.layout))
        return arrays

    def cotangent(self, dtype: Any = np.float64) -> np.ndarray:
        """All operations here give an output of the shape of their first input."""
        values = np.random.default_rng([self.seed, 1]).normal(size=self.shapes[0])
        return laid_out(np.asarray(values, dtype), self.layout)

    def with_attributes(self, **attributes: Any) -> Call:
        return replace(self, attributes={**self.attributes, **attributes})


def spread(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Numbers from −2 to 2 that keep apart: no group of them has a variance near 0."""
    size = prod(shape)
    places = rng.permutation(size) + rng.uniform(0.2, 0.8, size)
    return (4 * places / max(size, 1) - 2).reshape(shape)


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The values in another layout; broadcast, those of the first index for all."""
    if values.size == 0 or values.ndim == 0:
        return values
    if layout == "transposed":
        return np.ascontiguousarray(values.T).T
    if layout == "strided":
        return np.repeat(values, 2, axis=-1)[..., ::2]
    if layout == "reversed":
        return np.flip(np.flip(values).copy())
    if layout == "broadcast":
        return np.broadcast_to(values[:1], values.shape)
    return values


# Shapes and attributes of each operation


def eps(smallest: float = 0.0) -> st.SearchStrategy[float]:
    return st.sampled_from([value for value in (1e-5, 0.5, 1e-12, 0.0) if value >= smallest])


@st.composite
def trailing(draw: Any, least: int) -> Configuration:
    shape = draw(shapes(1, 4, least))
    tail = shape[draw(st.integers(0, len(shape) - 1)) :]
    return (shape, *draw(affine(tail))), {"normalized_shape": tail, "eps": draw(eps())}


@st.composite
def channels(
    draw: Any, least: int, ranks: tuple[int, int], running: bool = False, groups: bool = False
) -> Configuration:
    shape = draw(shapes(*ranks, least))
    attributes: dict[str, Any] = {"channel_axis": draw(st.sampled_from([1, -1]))}
    size = shape[attributes["channel_axis"]]
    if groups:
        divisors = [g for g in range(1, size + 1) if size % g == 0]
        attributes["num_groups"] = draw(st.sampled_from(divisors or [1]))
    statistics = ((size,), (size,)) if running else ()
    return (shape, *draw(affine((size,))), *statistics), {**attributes, "eps": draw(eps())}


@st.composite
def masked(draw: Any, least: int) -> Configuration:
    shape = draw(shapes(0, 4, least))
    mask_shape = tuple(n if draw(st.booleans()) else 1 for n in shape)
    p, scale = draw(st.sampled_from([0.5, 0.1, 0.0, 1.0, 1e-4])), draw(st.sampled_from([1.0, 2.0]))
    key = {"seed": draw(st.integers(0, 2**64 - 1)), "stream": draw(WORD), "call": draw(WORD)}
    return (shape,), {"p": p, "mask_shape": mask_shape, "scale": scale, **key}


@st.composite
def scaled(draw: Any, least: int) -> Configuration:
    return (draw(shapes(0, 4, least)),), {"factor": draw(st.sampled_from([0.75, 0.0, 1.0]))}


def shapes(low: int, high: int, least: int) -> st.SearchStrategy[Shape]:
    return st.lists(st.integers(least, 4), min_size=low, max_size=high).map(tuple)


def affine(shape: Shape) -> st.SearchStrategy[tuple[Shape | None, Shape | None]]:
    return st.tuples(*[st.sampled_from([None, shape])] * 2)


CONFIGURATIONS: Mapping[str, Callable[[int], st.SearchStrategy[Configuration]]] = {
    "norm::layer_norm": trailing,
    "norm::rms_norm": trailing,
    "norm::batch_norm": lambda least: channels(least, (2, 5)),
    "norm::batch_norm_inference": lambda least: channels(least, (2, 5), running=True),
    "norm::instance_norm": lambda least: channels(least, (3, 5)),
    "norm::group_norm": lambda least: channels(least, (2, 5), groups=True),
    "dropout::dropout": masked,
    "dropout::scale": scaled,
}


def configurations(spec: OpSpec, least: int = 1) -> st.SearchStrategy[Configuration]:
    """Shapes, no axis shorter than `least`, and attributes; without an entry above, those of the samples."""
    if spec.name in CONFIGURATIONS:
        return CONFIGURATIONS[spec.name](least)
    assert spec.samples is not None
    samples = [
        (
            tuple([None if value is None else np.shape(value) for value in sample.inputs]),
            dict(sample.attributes),
        )
        for sample in spec.samples(np.random.default_rng(0))
    ]
    return st.sampled_from(samples)


@st.composite
def calls(draw: Any, spec: OpSpec, least: int = 1, plain: bool = False) -> Call:
    """A call of the operation; a plain one is contiguous and of size 1, for difference quotients."""
    call = Call(*draw(configurations(spec, least)))
    if not plain:
        layout = draw(st.sampled_from(LAYOUTS))
        call = replace(call, layout=layout, scale=draw(st.sampled_from([1.0, 100.0, 1e-3])))
        call = replace(call, offset=draw(st.sampled_from([0.0, 1.0, 1e4])) * call.scale)
    call = replace(call, seed=draw(WORD))
    if call.attributes.get("eps") == 0.0 and 0 not in call.shapes[0] and constant_somewhere(spec, call):
        return call.with_attributes(eps=1e-5)  # 0 / 0 is NaN in any implementation
    return call


def constant_somewhere(spec: OpSpec, call: Call) -> bool:
    """Whether some group has no variance: its size is 1, or broadcasting made it constant."""
    attributes = {**call.attributes, "eps": 1.0}
    _, (_, variance) = spec.definition(namespace.arrays, *call.inputs(spec), **attributes)
    return bool(np.min(variance) <= 1e-20 * (call.scale + abs(call.offset)) ** 2)
