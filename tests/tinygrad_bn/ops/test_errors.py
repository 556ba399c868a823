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
