"""Sample, hard and error inputs of the normalizations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..registry import Sample

__all__ = [
    "batch", "batch_errors", "batch_hard", "group", "group_errors", "group_hard", "inference",
    "inference_errors", "inference_hard",
    "instance", "instance_errors", "instance_hard", "trailing", "trailing_errors", "trailing_hard",
]  # fmt: skip

if TYPE_CHECKING:  # numpy.random takes 10 ms to import
    Rng = np.random.Generator
Case = tuple[tuple[int, ...], Mapping[str, Any]]
"""A shape, and the attributes that go with it."""

AFFINE = {"both": (True, True), "weight": (True, False), "bias": (False, True), "none": (False, False)}

TRAILING: list[Case] = [
    ((4, 5), {"normalized_shape": (5,)}),
    ((2, 3, 4), {"normalized_shape": (3, 4)}),
    ((7,), {"normalized_shape": (7,)}),
]
BATCH: list[Case] = [
    ((6, 3), {"channel_axis": 1}),
    ((3, 2, 4), {"channel_axis": 1}),
    ((2, 3, 2, 3), {"channel_axis": -1}),
]
INSTANCE: list[Case] = [((2, 3, 5), {"channel_axis": 1}), ((2, 3, 2, 3), {"channel_axis": -1})]
GROUP: list[Case] = [
    ((3, 6), {"num_groups": 2, "channel_axis": 1}),
    ((2, 4, 3), {"num_groups": 2, "channel_axis": 1}),
    ((2, 2, 3, 4), {"num_groups": 2, "channel_axis": -1}),
]


def _parameters(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of weight and bias."""
    return attributes.get("normalized_shape") or (shape[attributes["channel_axis"]],)


def _sample(
    rng: Rng,
    name: str,
    shape: tuple[int, ...],
    attributes: Mapping[str, Any],
    affine: str,
    eps: float,
    running: bool,
) -> Sample:
    parameters = _parameters(shape, attributes)
    weight, bias = (rng.normal(size=parameters) if present else None for present in AFFINE[affine])
    statistics = (rng.normal(size=parameters), rng.uniform(0.5, 2.0, parameters)) if running else ()
    return Sample(name, (rng.normal(size=shape), weight, bias, *statistics), {**attributes, "eps": eps})


def _plain(cases: list[Case], running: bool = False) -> Callable[[Rng], Iterator[Sample]]:
    """Every case, with every choice of weight and bias."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape, attributes in cases:
            for affine in AFFINE:
                yield _sample(rng, f"{shape} {affine}", shape, attributes, affine, 1e-5, running)

    return samples


def _hard(cases: list[Case], running: bool = False) -> Callable[[Rng], Iterator[Sample]]:
    """Values at which formulas that are right on paper go wrong: ε = 0, ε that matters, a large mean, a
    large scale, a constant slice.
    """

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape, attributes in cases:
            for name, eps, change in (
                ("eps 0", 0.0, lambda x: x),
                ("scale 1e-3", 1e-5, lambda x: x * 1e-3),
                ("scale 100", 1e-5, lambda x: x * 100),
                ("mean 1e4", 1e-5, lambda x: x + 1e4),
                ("constant", 1e-5, lambda x: np.ones_like(x) * 0.5),
            ):
                plain = _sample(rng, f"{shape} {name}", shape, attributes, "both", eps, running)
                yield Sample(plain.name, (change(plain.inputs[0]), *plain.inputs[1:]), plain.attributes)

    return samples


def _errors(
    *cases: tuple[str, tuple[Any, ...], Mapping[str, Any], type[Exception], str],
) -> Callable[[Rng], Iterable[Sample]]:
    def samples(rng: Rng) -> Iterator[Sample]:
        for name, shapes, attributes, raises, match in cases:
            inputs = tuple(rng.normal(size=s) if isinstance(s, tuple) else s for s in shapes)
            yield Sample(name, inputs, attributes, raises, match)

    return samples


trailing, trailing_hard = _plain(TRAILING), _hard(TRAILING)
batch, batch_hard = _plain(BATCH), _hard(BATCH)
instance, instance_hard = _plain(INSTANCE), _hard(INSTANCE)
group, group_hard = _plain(GROUP), _hard(GROUP)
inference, inference_hard = _plain(BATCH, running=True), _hard(BATCH, running=True)

trailing_errors = _errors(
    ("shape", ((4, 5), None, None), {"normalized_shape": (4,)}, ValueError, "normalized_shape"),
    ("empty shape", ((4, 5), None, None), {"normalized_shape": ()}, ValueError, "normalized_shape"),
    ("weight", ((4, 5), (4,), None), {"normalized_shape": 5}, ValueError, "weight has shape"),
    ("negative eps", ((4, 5), None, None), {"normalized_shape": 5, "eps": -1.0}, ValueError, "eps"),
    ("integers", (np.ones((4, 5), int), None, None), {"normalized_shape": 5}, TypeError, "dtype int64"),
    ("a list", ([[1.0, 2.0]], None, None), {"normalized_shape": 2}, TypeError, "input is list"),
    (
        "mixed dtypes",
        ((4, 5), np.ones(5, np.float32), None),
        {"normalized_shape": 5},
        TypeError,
        "weight has dtype float32",
    ),
)

_TRAINING = {"running_mean": None, "running_var": None, "training": True}
batch_errors = _errors(
    ("rank 1", ((4,), None, None), _TRAINING, ValueError, "rank 1"),
    ("rank 6", ((2,) * 6, None, None), _TRAINING, ValueError, "rank 6"),
    ("one value", ((1, 3), None, None), _TRAINING, ValueError, "one value per channel"),
    (
        "channel axis",
        ((4, 3, 2), None, None),
        {**_TRAINING, "channel_axis": 2},
        ValueError,
        "channel_axis is 2",
    ),
    ("bias", ((4, 3), None, (4,)), _TRAINING, ValueError, "bias has shape"),
    (
        "one of two",
        ((4, 3), None, None),
        {**_TRAINING, "running_mean": np.zeros(3)},
        ValueError,
        "without running_var",
    ),
    ("momentum", ((4, 3), None, None), {**_TRAINING, "momentum": 1.5}, ValueError, "momentum is 1.5"),
    (
        "convention",
        ((4, 3), None, None),
        {**_TRAINING, "convention": "caffe"},
        ValueError,
        "convention is 'caffe'",
    ),
    (
        "cumulative without a count",
        ((4, 3), None, None),
        {**_TRAINING, "running_mean": np.zeros(3), "running_var": np.ones(3), "momentum": None},
        ValueError,
        "num_batches_tracked",
    ),
)
inference_errors = _errors(
    (
        "no statistics",
        ((4, 3), None, None, None, None),
        {"training": False},
        ValueError,
        "running_mean and running_var are None",
    ),
    (
        "shape of statistics",
        ((4, 3), None, None, (4,), (4,)),
        {},
        ValueError,
        r"running_mean has shape \(4,\)",
    ),
)
instance_errors = _errors(
    ("rank 2", ((4, 3), None, None), {}, ValueError, "rank 2"),
    ("one element", ((4, 3, 1), None, None), {}, ValueError, "one spatial element"),
    (
        "no statistics",
        ((4, 3, 2), None, None),
        {"use_input_stats": False},
        ValueError,
        "use_input_stats=False needs them",
    ),
)
group_errors = _errors(
    ("groups", ((2, 4, 3), None, None), {"num_groups": 3}, ValueError, "num_groups is 3"),
    ("no groups", ((2, 4, 3), None, None), {"num_groups": 0}, ValueError, "num_groups is 0"),
    ("one value", ((1, 4), None, None), {"num_groups": 4}, ValueError, "one value per group"),
    ("weight", ((2, 4, 3), (2,), None), {"num_groups": 2}, ValueError, "weight has shape"),
)
