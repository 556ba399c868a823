"""Norms and masks are recognised by their output, with the right parts for the inputs; others are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from norms import Norm as Oracle

from gradcheck.axes import Configuration
from gradcheck.diagnosis.recognise import recognise
from gradcheck.diagnosis.terms import (
    Family,
    InferenceNorm,
    Mask,
    MomentNorm,
    Norm,
    RmsNorm,
    for_configuration,
)

RNG = np.random.default_rng(5)
BATCH = Configuration("batch_norm", (4, 3, 5), channel_axis=1)


def never(family: Family) -> bool:
    return False


def recognised(c: Configuration, oracle: Oracle = Oracle()) -> tuple[Norm, str]:  # noqa: B008
    arrays, cotangent = c.draw(1), np.random.default_rng(0).normal(size=c.shape)
    output = oracle(c, arrays, cotangent)["output"]
    found = recognise([a for a in arrays.differentiable if a is not None], output, never)
    assert found is not None and isinstance(found.family, Norm)
    return found.family, found.words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_norm shape=4,3,5 channel_axis=1", "batch_norm over axes 0 and 2 with eps 1e-05"),
        ("batch_norm shape=3,4,2,5 channel_axis=-1", "batch_norm over axes 0, 1 and 2 with eps 1e-05"),
        ("batch_norm shape=9,4 channel_axis=1 affine=none", "batch_norm over axis 0 with eps 1e-05"),
        ("layer_norm shape=4,3,5 tail=2 eps=0.001", "layer_norm over axes 1 and 2 with eps 0.001"),
        ("layer_norm shape=4,6 tail=1 affine=weight", "layer_norm over axis 1 with eps 1e-05"),
        ("layer_norm shape=4,6 tail=1 affine=bias eps=0", "layer_norm over axis 1 with eps 0"),
        ("layer_norm shape=7 tail=1 eps=0.00023", "layer_norm over axis 0 with eps 0.00023"),
        ("layer_norm shape=4,6 tail=1 values=mean_1e4", "layer_norm over axis 1 with eps 1e-05"),
        ("instance_norm shape=2,3,6 channel_axis=1", "instance_norm over axis 2 with eps 1e-05"),
        (
            "group_norm shape=2,6,3 channel_axis=1 groups=2",
            "group_norm with 2 groups of the channels of axis 1 with eps 1e-05",
        ),
        ("rms_norm shape=4,6 tail=1", "rms_norm over axis 1 with eps 1e-05"),
        ("rms_norm shape=2,3,4 tail=2", "rms_norm over axes 1 and 2 with eps 1e-05"),
    ],
)
def test_every_norm(text: str, words: str) -> None:
    c = Configuration.parse(text)
    norm, got = recognised(c)
    assert got == words
    family = "rms_norm" if c.operation == "rms_norm" else "moment_norm"
    wanted = for_configuration(family, c, c.draw(1))
    assert isinstance(wanted, Norm)
    assert (type(norm), norm.groups, norm.reduced) == (type(wanted), wanted.groups, wanted.reduced)
    assert norm.eps == pytest.approx(c.eps, rel=1e-6)


def test_a_variance_over_n_minus_1_and_an_epsilon_outside_of_the_root() -> None:
    norm, words = recognised(BATCH, dataclasses.replace(Oracle(), correction=1))
    assert words == "batch_norm over axes 0 and 2 with eps 1e-05 and a variance over N − 1 = 19"
    assert norm.correction == 1
    norm, words = recognised(BATCH, dataclasses.replace(Oracle(), eps_outside=True))
    assert words == "batch_norm over axes 0 and 2 with eps 1e-05 outside of the root"
    assert norm.eps_outside


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (3, 4, 1, 2), (4, 3, 2, 1)])
def test_running_statistics_in_any_order(order: tuple[int, ...]) -> None:
    c = dataclasses.replace(BATCH, mode="inference")
    arrays = c.draw(0)
    norm = for_configuration("inference_norm", c, arrays)
    assert isinstance(norm, InferenceNorm)
    output = norm.output(arrays.differentiable)
    named = (arrays.input, arrays.weight, arrays.bias, arrays.running_mean, arrays.running_var)
    found = recognise([named[0], *(named[k] for k in order)], output, never)
    assert found is not None and isinstance(found.family, InferenceNorm)
    assert found.words == "normalization by running statistics along axis 1 with eps 1e-05"
    assert found.family.running_var is arrays.running_var
    assert found.family.weight == 1 + order.index(1)


def test_running_statistics_that_take_no_part() -> None:
    arrays = dataclasses.replace(BATCH, affine="none").draw(0)
    centred = arrays.input - arrays.input.mean((0, 2), keepdims=True)
    output = centred / np.sqrt((centred**2).mean((0, 2), keepdims=True) + 1e-5)
    found = recognise((arrays.input, RNG.normal(size=3), RNG.random(3)), output, never)
    assert found is not None and isinstance(found.family, MomentNorm)
    assert (found.family.weight, found.family.bias) == (None, None)


def test_weight_that_broadcasts_by_itself() -> None:
    x, weight = RNG.normal(size=(4, 3, 5)), RNG.normal(size=(3, 1))
    centred = x - x.mean((0, 2), keepdims=True)
    output = weight * centred / np.sqrt((centred**2).mean((0, 2), keepdims=True) + 1e-5)
    found = recognise((x, weight), output, never)
    assert found is not None and isinstance(found.family, Norm)
    assert (found.family.weight, found.family.parameter_shape) == (1, (1, 3, 1))


def test_of_several_candidates_the_derivative_decides() -> None:
    x = RNG.normal(size=(3, 6))
    x = np.concatenate([x, -x], axis=1)  # its mean is zero exactly
    output = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
    for contradicted, words in (
        (never, "layer_norm"),
        (lambda norm: isinstance(norm, MomentNorm), "rms_norm"),
    ):
        found = recognise((x,), output, contradicted)
        assert found is not None and found.words == f"{words} over axis 1 with eps 1e-05"
    assert recognise((x,), output, lambda family: True) is None


def test_masks() -> None:
    x = RNG.normal(size=(4, 5))
    kept = RNG.random(x.shape) < 0.5
    found = recognise((x,), x * kept * 2, never)
    assert found is not None and isinstance(found.family, Mask)
    assert found.words == f"a mask that keeps {kept.sum()} of 20 elements, times 2"


def test_other_functions() -> None:
    x, w = RNG.normal(size=(4, 5)), RNG.normal(size=5)
    for output in (
        np.tanh(x),
        3 * x,
        x + w,
        np.exp(x) / np.exp(x).sum(1, keepdims=True),
        0 * x,
        x @ x.T,
        x * x,
    ):
        assert recognise((x, w), output, never) is None
    assert recognise((np.arange(4),), x, never) is None
    assert recognise((x,), x * np.nan, never) is None


def test_the_classes_of_what_is_recognised() -> None:
    assert isinstance(recognised(Configuration("rms_norm", (4, 6), tail=1))[0], RmsNorm)
    assert isinstance(recognised(Configuration("layer_norm", (4, 6), tail=1))[0], MomentNorm)
