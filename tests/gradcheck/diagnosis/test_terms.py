"""The terms of every family add up to the gradient of the correct norms, in every axis configuration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from norms import Norm as Oracle

from gradcheck.axes import Configuration
from gradcheck.configurations import product
from gradcheck.diagnosis.mistakes import of_parameter, of_x
from gradcheck.diagnosis.terms import Mask, Norm, axes_in_words, for_configuration


def family_of(c: Configuration) -> str:
    return (
        "inference_norm"
        if c.mode == "inference"
        else "rms_norm"
        if c.operation == "rms_norm"
        else "moment_norm"
    )


def ordinary(operation: str) -> list[Configuration]:
    return [c for c in product(operation) if c.dtype == "float64" and c.layout in ("contiguous", "broadcast")]


@pytest.mark.parametrize("operation", ["batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm"])
def test_the_terms_add_up(operation: str) -> None:
    rng = np.random.default_rng(0)
    for c in ordinary(operation)[::3]:
        if c.mode == "inference":
            continue  # the oracle is of training
        arrays, cotangent = c.draw(0), rng.normal(size=c.shape)
        norm = for_configuration(family_of(c), c, arrays)
        assert isinstance(norm, Norm)
        right = Oracle()(c, arrays, cotangent)
        inputs = arrays.differentiable
        assert np.allclose(norm.output(inputs), right["output"], rtol=1e-13, atol=1e-13)
        for position, name in enumerate(("input", "weight", "bias")):
            if inputs[position] is None:
                assert name == "input" or norm.role(position) is None
                continue
            role = norm.role(position)
            assert role is not None
            first = next(
                of_x(norm, inputs, cotangent)
                if position == 0
                else of_parameter(norm, role, inputs, cotangent)
            )
            total = sum(first.expected[term] * array for term, array in first.terms.items())
            assert np.allclose(total, right[name], rtol=1e-12, atol=1e-12), f"{c}: {name}"


def test_inference_is_linear_in_x() -> None:
    rng = np.random.default_rng(0)
    for c in ordinary("batch_norm"):
        if c.mode == "inference" and c.layout == "contiguous":
            arrays = c.draw(0)
            norm = for_configuration("inference_norm", c, arrays)
            assert isinstance(norm, Norm)
            x, *others = arrays.differentiable
            assert x is not None
            u, cotangent = rng.normal(size=c.shape), rng.normal(size=c.shape)
            change = norm.output((x + u, *others)) - norm.output((x, *others))
            direct = next(of_x(norm, (x, *others), cotangent)).terms["direct"]
            assert np.sum(direct * u) == pytest.approx(float(np.sum(change * cotangent)), rel=1e-9)


@pytest.mark.parametrize(("correction", "eps_outside"), [(1, False), (0, True), (1, True)])
@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_other_kinds_of_variance(operation: str, correction: int, eps_outside: bool) -> None:
    c = Configuration(operation, (3, 5), tail=1, eps=0.1)
    arrays, rng = c.draw(0), np.random.default_rng(0)
    norm = for_configuration(family_of(c), c, arrays)
    assert isinstance(norm, Norm)
    norm = dataclasses.replace(norm, correction=correction, eps_outside=eps_outside)
    x, *others = arrays.differentiable
    assert x is not None
    cotangent, h = rng.normal(size=c.shape), 1e-5
    first = next(of_x(norm, (x, *others), cotangent))
    total = sum((first.expected[name] * term for name, term in first.terms.items()), np.zeros(c.shape))
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        slope = (norm.output((x + step, *others)) - norm.output((x - step, *others))) / (2 * h)
        assert np.sum(slope * cotangent) == pytest.approx(total[index], rel=1e-6, abs=1e-8)


def test_masks_and_unknown_families() -> None:
    c = Configuration("dropout", (4, 5), mask_axes=(0, 1), p=0.25, scaling="upscale_in_train", affine="none")
    mask = for_configuration("mask", c, c.draw(0))
    assert mask == Mask("dropout", 0.25)
    assert (mask.role(0), mask.role(1)) == ("x", None)
    with pytest.raises(ValueError, match="family is 'sum', wanted one of moment_norm"):
        for_configuration("sum", c, c.draw(0))


@pytest.mark.parametrize(
    ("axes", "groups", "words"),
    [
        ((1,), None, "over axis 1"),
        ((0, 2, 3), None, "over axes 0, 2 and 3"),
        ((2, 3), (1, 2), "over each group of channels and axis 2"),
        ((2,), (1, 2), "over each group of channels"),
        ((1, 2, 3), (1, 2), "over axis 1 and axis 2"),
        ((), None, "over nothing"),
    ],
)
def test_axes_in_words(axes: tuple[int, ...], groups: tuple[int, int] | None, words: str) -> None:
    assert axes_in_words(axes, groups) == words
