"""Every sample that a fused operation declares: kernels against the definition, and the gradient check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from tinygrad_bn import Tensor
from tinygrad_bn.fused import Fused
from tinygrad_bn.namespace import arrays
from tinygrad_bn.registry import OpSpec, Sample

SAMPLES = [
    pytest.param(spec, sample, id=f"{spec.name} {kind} {sample.name}")
    for spec in tinygrad_bn.REGISTRY
    if spec.fused
    for kind, samples in (("ordinary", spec.samples), ("hard", spec.hard_samples))
    if samples is not None
    for sample in samples(np.random.default_rng(0))
]


@pytest.mark.parametrize(("spec", "sample"), SAMPLES)
def test_sample(spec: OpSpec, sample: Sample):
    operation = Fused(spec)
    constant = sample.inputs[len(spec.gradients) :]

    def function(*inputs: Any) -> Tensor:
        return operation(*inputs, *constant, **sample.attributes)

    def definition(*inputs: Any) -> np.ndarray:
        return spec.definition(arrays, *inputs, *constant, **sample.attributes)[0]

    inputs = [None if value is None else Tensor(value) for value in sample.inputs[: len(spec.gradients)]]
    for kernel in spec.kernels:
        if kernel.refusal(spec.plan(_shapes(sample), sample.attributes), np.dtype("float64"), "cpu") is None:
            got = operation(*inputs, *constant, kernel=kernel.name, **sample.attributes)
            wanted = definition(*sample.inputs[: len(spec.gradients)])
            np.testing.assert_allclose(got.data, wanted, rtol=1e-9, atol=1e-9)
    report = gradcheck.check(function, inputs, reference=definition, name=sample.name)
    # A sample may drop every element, or be constant: then the gradient of an input may be nothing.
    assert report.verdict in (gradcheck.Verdict.PASS, gradcheck.Verdict.VACUOUS), str(report)


def _shapes(sample: Sample) -> tuple[Any, ...]:
    return tuple(None if value is None else value.shape for value in sample.inputs)


def test_there_are_samples_of_every_fused_operation():
    named = {parameter.values[0].name for parameter in SAMPLES}
    assert named == {spec.name for spec in tinygrad_bn.REGISTRY if spec.fused}
