"""The NumPy pairs of configurations are right, and the configurations at random are all kinds of them."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn
from gradcheck import configurations
from gradcheck.axes import NORMS, OPERATIONS, Configuration
from gradcheck.calibration.draws import random_configuration
from gradcheck.calibration.pairs import SMALL, pair_for, plain
from tinygrad_bn import Tensor, functional

NAMES = ("input", "weight", "bias")


def by_definition(c, arrays, cotangent):
    """Output and gradients from the definitions of tinygrad_bn, by its tape."""
    inputs = [Tensor(each, requires_grad=True) for each in arrays.differentiable if each is not None]
    named = dict(zip([name for name in NAMES if getattr(arrays, name) is not None], inputs, strict=True))
    settings = {"eps": c.eps, "kernel": "definition", **named}
    if c.tail is not None:
        output = getattr(functional, c.operation)(normalized_shape=c.parameters, **settings)
    elif c.groups is not None:
        output = functional.group_norm(num_groups=c.groups, channel_axis=c.channel_axis, **settings)
    else:
        norm = getattr(functional, c.operation)
        switch = "training" if c.operation == "batch_norm" else "use_input_stats"
        running = {"running_mean": arrays.running_mean, "running_var": arrays.running_var}
        output = norm(channel_axis=c.channel_axis, **running, **{switch: c.mode == "training"}, **settings)
    gradients = tinygrad_bn.grad(output, inputs, cotangent)
    return {"output": output.data, **{name: each.data for name, each in zip(named, gradients, strict=True)}}


@pytest.mark.parametrize("operation", NORMS)
def test_they_agree_with_the_definitions(operation):
    listed = [plain(c) for c in configurations.covering(operation) if c.dtype == "float64"]
    listed = [c for c in listed if np.prod(c.shape) < 500 and c.problem is None]
    assert len({(c.rank, c.channel_axis, c.groups, c.tail) for c in listed}) > 5
    for c in listed:
        arrays = c.draw(0)
        cotangent = np.random.default_rng(1).normal(size=c.shape)
        pair = pair_for(c, arrays)
        output, saved = pair.forward(*pair.inputs)
        mine = dict(zip(("input", *pair.names[1:]), pair.backward(saved, cotangent), strict=True))
        for name, value in by_definition(c, arrays, cotangent).items():
            got = output if name == "output" else mine[name]
            size = np.max(np.abs(value)) + 1
            np.testing.assert_allclose(got, value, rtol=0, atol=1e-9 * size, err_msg=f"{name}: {c}")


def test_at_inference_they_use_the_running_statistics_along_the_channels():
    for channel_axis, shape in ((1, (2, 3, 4)), (-1, (2, 4, 3))):
        c = Configuration("batch_norm", shape, channel_axis=channel_axis, mode="inference")
        arrays = c.draw(0)
        pair = pair_for(c, arrays)
        along = (slice(None), None) if channel_axis == 1 else (slice(None),)
        mean, var, weight, bias = (
            each[along] for each in (arrays.running_mean, arrays.running_var, arrays.weight, arrays.bias)
        )
        expected = (arrays.input - mean) / np.sqrt(var + 1e-5) * weight + bias
        np.testing.assert_allclose(pair.forward(*pair.inputs)[0], expected, rtol=1e-13)


@pytest.mark.parametrize("mask_axes", [(0, 1), (0, 1, 2)])
def test_masks_are_shared_by_channel_or_by_none(mask_axes):
    settings = {"p": 0.5, "scaling": "upscale_in_train", "affine": "none", "mode": "training"}
    c = plain(Configuration("dropout", (8, 9, 5), mask_axes=mask_axes, **settings))
    pair = pair_for(c, c.draw(0))
    kept = pair.forward(*pair.inputs)[0] != 0
    assert c.mask_axes == mask_axes and 0 < kept.mean() < 1
    assert (kept.all(2) | ~kept.any(2)).all() == (mask_axes == (0, 1))


def test_small_configurations_are_of_every_operation():
    parsed = [Configuration.parse(text) for text in SMALL.values()]
    assert {c.operation for c in parsed} == set(OPERATIONS)
    assert {c.mode for c in parsed} == {"training", "inference"}


@pytest.mark.parametrize("ordinary", [False, True])
def test_configurations_at_random_are_valid_and_of_all_kinds(ordinary):
    rng = np.random.default_rng(0)
    drawn = [random_configuration(rng, "float32", ordinary=ordinary) for _ in range(600)]
    assert {c.problem for c in drawn} == {None} and {c.dtype for c in drawn} == {"float32"}
    assert {c.operation for c in drawn} == set(OPERATIONS)
    assert {c.rank for c in drawn} == {1, 2, 3, 4, 5} and {c.mode for c in drawn} == {"training", "inference"}
    assert ({c.values for c in drawn} == {"normal"}) == ordinary
    assert len({c.shape for c in drawn}) > 150
