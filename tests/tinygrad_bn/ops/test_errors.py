"""Every error that an operation declares is raised by its public function, names it, and changes nothing."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

import tinygrad_bn
from tinygrad_bn.registry import OpSpec, Sample

DECLARED = [
    (spec, sample)
    for spec in tinygrad_bn.REGISTRY
    if spec.error_samples is not None
    for sample in spec.error_samples(np.random.default_rng(0))
]


def public(spec: OpSpec) -> Any:
    module, _, name = spec.public.partition(":")
    return getattr(importlib.import_module(module), name)


def arrays(*collections: Any) -> list[np.ndarray]:
    return [value for values in collections for value in values if isinstance(value, np.ndarray)]


@pytest.mark.parametrize(
    ("spec", "sample"), DECLARED, ids=[f"{spec.name}-{sample.name}" for spec, sample in DECLARED]
)
def test_declared_errors(spec: OpSpec, sample: Sample):
    given = dict(zip(spec.inputs, sample.inputs, strict=False))
    before = [array.copy() for array in arrays(given.values(), sample.attributes.values())]
    assert sample.raises is not None and sample.match
    with pytest.raises(sample.raises, match=sample.match) as caught:
        public(spec)(**given, **sample.attributes)
    assert re.search(rf"\b{public(spec).__name__}\b", str(caught.value)), "the operation is not named"
    assert type(caught.value) is sample.raises
    for was, now in zip(before, arrays(given.values(), sample.attributes.values()), strict=True):
        np.testing.assert_array_equal(was, now)


def test_every_fused_operation_with_a_public_function_declares_errors():
    public_ones = [spec for spec in tinygrad_bn.REGISTRY if spec.fused and spec.public]
    assert [spec.name for spec in public_ones if spec.error_samples is None] == []
    assert len(DECLARED) > 30


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("layer_norm", {"normalized_shape": 5.0}, "normalized_shape is 5.0"),
        ("layer_norm", {"normalized_shape": "35"}, "normalized_shape is '35'"),
        ("group_norm", {"num_groups": True}, "num_groups is True"),
        ("group_norm", {"num_groups": 1, "channel_axis": 1.0}, "channel_axis is 1.0"),
        ("dropout", {"axis": 1.5}, "axis is 1.5"),
    ],
)
def test_arguments_of_a_wrong_type(name: str, arguments: dict[str, Any], match: str):
    with pytest.raises(TypeError, match=rf"{name}: {match}"):
        getattr(tinygrad_bn.functional, name)(np.ones((4, 3, 5)), **arguments)


@pytest.mark.parametrize(
    ("arguments", "raises", "match"),
    [
        ({"momentum": None, "num_batches_tracked": 1.5}, TypeError, "num_batches_tracked is 1.5"),
        ({"momentum": None, "num_batches_tracked": np.array([2, 3])}, TypeError, "num_batches_tracked is"),
        ({"momentum": [0.1]}, ValueError, r"momentum is \[0.1\]"),
        ({"momentum": True}, ValueError, "momentum is True"),
        ({"convention": ["torch"]}, ValueError, r"convention is \['torch'\]"),
        ({"eps": True}, ValueError, "eps is True"),
    ],
)
def test_settings_of_a_wrong_type(arguments: dict[str, Any], raises: type[Exception], match: str):
    def call(**arguments):
        tinygrad_bn.functional.batch_norm(
            np.ones((4, 3)), np.zeros(3), np.ones(3), training=True, **arguments
        )

    call(momentum=1, eps=1)  # which is remembered, and True == 1
    with pytest.raises(raises, match=f"batch_norm: {match}"):
        call(**{"momentum": 1, "eps": 1, **arguments})


def test_numpy_integers_are_integers():
    x = np.arange(24.0).reshape(2, 4, 3)
    assert tinygrad_bn.functional.group_norm(x, np.int64(2), channel_axis=np.int64(1)).shape == x.shape
    assert tinygrad_bn.functional.dropout(x, axis=np.int64(1)).shape == x.shape
