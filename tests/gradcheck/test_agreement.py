"""Facts hold for right operations, and each one fails for an operation that breaks it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from norms import Norm

from gradcheck import configurations
from gradcheck.agreement import check_facts, check_trusted, check_twins
from gradcheck.axes import Configuration
from gradcheck.judge import Verdict

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
LAYER = Configuration("layer_norm", (4, 5), tail=1)
ONE_GROUP = Configuration("group_norm", (2, 6, 3), channel_axis=1, groups=1, affine="none")
ALL_GROUPS = Configuration("group_norm", (2, 6, 3), channel_axis=-1, groups=3)
INSTANCE = Configuration("instance_norm", (2, 6, 3), channel_axis=1)


def facts(configuration, evaluate, seed=0):
    rng = np.random.default_rng(seed)
    arrays = configuration.draw(seed).astype(configuration.dtype)
    cotangent = rng.normal(size=configuration.shape).astype(configuration.dtype)
    return {
        (check.name, check.input): check
        for check in check_facts(configuration, arrays, cotangent, evaluate, rng)
    }


def failing(checks):
    return {name for (name, _), check in checks.items() if check.verdict is not Verdict.PASS}


def trusted(configuration, evaluate, reference=None, seed=0):
    rng = np.random.default_rng(seed)
    arrays = configuration.draw(seed).astype(configuration.dtype)
    cotangent = rng.normal(size=configuration.shape).astype(configuration.dtype)
    return check_trusted(configuration, arrays, cotangent, {"mine": evaluate}, reference or Norm(), rng)


@pytest.mark.parametrize("operation", NORMS)
def test_facts_hold_for_right_operations_everywhere(operation):
    chosen = [c for c in configurations.covering(operation) if c.mode == "training"]
    found = {str(c): [check.reason for check in facts(c, Norm()).values() if check.reason] for c in chosen}
    assert {text: reasons for text, reasons in found.items() if reasons} == {}


@pytest.mark.parametrize("operation", NORMS)
def test_float32_agrees_with_float64_for_right_operations_everywhere(operation):
    chosen = [c for c in configurations.covering(operation) if c.mode == "training"]
    found = {str(c): [check.reason for check in trusted(c, Norm()) if check.reason] for c in chosen}
    assert {text: reasons for text, reasons in found.items() if reasons} == {}


def test_which_facts_are_asked():
    everywhere = {("zero sum", "input"), ("scale invariance", None), ("shift invariance", None)}
    assert facts(LAYER, Norm()).keys() == everywhere
    assert facts(dataclasses.replace(LAYER, operation="rms_norm"), Norm()).keys() == {
        ("scale invariance", None)
    }
    one, each, alone = (
        "one group is layer_norm",
        "a group for each channel is instance_norm",
        "batch_norm of each sample alone",
    )
    assert facts(ONE_GROUP, Norm()).keys() == everywhere | {(one, None), (one, "input")}
    assert facts(ALL_GROUPS, Norm()).keys() == everywhere | {(each, None), (each, "input")}
    assert facts(INSTANCE, Norm()).keys() == everywhere | {(alone, None), (alone, "input")}
    assert facts(dataclasses.replace(INSTANCE, mode="inference"), Norm()) == {}


@pytest.mark.parametrize("configuration", [LAYER, ONE_GROUP, ALL_GROUPS, INSTANCE], ids=str)
def test_a_gradient_that_does_not_sum_to_zero(configuration):
    checks = facts(configuration, Norm(mean_path=1 - 1e-8))
    assert "zero sum" in failing(checks)
    assert "sums to" in checks["zero sum", "input"].reason


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_eps_outside_the_root_is_not_scale_invariant(operation):
    c = dataclasses.replace(LAYER, operation=operation)
    assert failing(facts(c, Norm(eps_outside=True))) == {"scale invariance"}


def test_a_mean_that_is_not_the_mean_is_not_shift_invariant():
    assert "shift invariance" in failing(facts(LAYER, Norm(mean_factor=1 - 1e-9)))


@pytest.mark.parametrize(
    ("configuration", "name"),
    [
        (ONE_GROUP, "one group is layer_norm"),
        (ALL_GROUPS, "a group for each channel is instance_norm"),
        (INSTANCE, "batch_norm of each sample alone"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("wrong", "input"), [(Norm(output_factor=1 + 1e-10), None), (Norm(mean_path=1 - 1e-8), "input")]
)
def test_an_operation_that_differs_from_its_relative(configuration, name, wrong, input):
    def evaluate(c, arrays, cotangent):
        return (wrong if c.operation == configuration.operation else Norm())(c, arrays, cotangent)

    check = facts(configuration, evaluate)[name, input]
    assert check.verdict is Verdict.FAIL
    assert check.error > check.bar and "wanted" in check.reason


@pytest.mark.parametrize(
    ("wrong", "inputs"),
    [
        (Norm(output_factor=1 + 1e-9), {None}),
        (Norm(dweight_factor=1 + 1e-9), {"weight"}),
        (Norm(mean_path=1 - 1e-9), {"input"}),
        (Norm(correction=1), {None, "input", "weight"}),
    ],
)
@pytest.mark.parametrize("configuration", [LAYER, INSTANCE, ALL_GROUPS], ids=str)
def test_a_little_off_the_definition_fails_for_what_is_off(configuration, wrong, inputs):
    checks = trusted(configuration, wrong)
    assert {check.input for check in checks if check.verdict is Verdict.FAIL} == inputs
    assert {check.input for check in checks} == {None, "input", "weight", "bias"}


def test_a_float32_result_is_allowed_the_rounding_of_float32_and_no_more():
    single = dataclasses.replace(LAYER, dtype="float32")
    assert all(check.verdict is Verdict.PASS for check in trusted(single, Norm()))
    assert any(check.verdict is Verdict.FAIL for check in trusted(single, Norm(output_factor=1 + 1e-4)))


@pytest.mark.parametrize("seed", [1, 44, 92, 110, 111])
def test_the_mean_of_an_expanded_input_may_be_rounded_either_way(seed):
    """Moving both its copies together does not move the mean against them, as rounding does."""
    text = "layer_norm shape=4,2 tail=2 affine=weight layout=broadcast values=mean_1e4"
    last_digit = 1 + np.finfo(np.float64).eps
    checks = trusted(Configuration.parse(text), Norm(mean_factor=last_digit), seed=seed)
    assert {check.verdict for check in checks} == {Verdict.PASS}, checks


def test_a_wrong_gradient_of_an_expanded_input_fails():
    c = dataclasses.replace(LAYER, layout="broadcast")
    checks = trusted(c, Norm(mean_path=1 - 1e-9))
    assert {check.input for check in checks if check.verdict is Verdict.FAIL} == {"input"}


@pytest.mark.parametrize("key", ["output", "input", "weight", "bias"])
def test_a_nan_is_a_failure(key):
    def evaluate(c, arrays, cotangent):
        values = Norm()(c, arrays, cotangent)
        values[key] = values[key].copy()
        values[key].reshape(-1)[-1] = np.nan
        return values

    (check,) = (check for check in trusted(LAYER, evaluate) if check.verdict is not Verdict.PASS)
    assert check.verdict is Verdict.FAIL and check.input == (None if key == "output" else key)
    assert "is nan at" in check.reason


@pytest.mark.parametrize("key", ["output", "input", "bias"])
def test_a_missing_or_misshapen_result_is_an_error(key):
    def missing(c, arrays, cotangent):
        values = Norm()(c, arrays, cotangent)
        del values[key]
        return values

    def misshapen(c, arrays, cotangent):
        values = Norm()(c, arrays, cotangent)
        return {**values, key: values[key][None]}

    for evaluate, word in ((missing, "is missing"), (misshapen, "has shape (1, ")):
        (check,) = (check for check in trusted(LAYER, evaluate) if check.verdict is not Verdict.PASS)
        assert check.verdict is Verdict.ERROR and word in check.reason


def change(key, new):
    def evaluate(c, arrays, cotangent):
        values = Norm()(c, arrays, cotangent)
        return new({**values}, key)

    return evaluate


def nudged(values, key):
    values[key] = values[key].copy()
    values[key].reshape(-1)[0] = np.nextafter(values[key].reshape(-1)[0], np.inf)
    return values


CHANGES = {
    "one bit": nudged,
    "missing": lambda values, key: {name: value for name, value in values.items() if name != key},
    "another dtype": lambda values, key: {**values, key: values[key].view(np.int64)},
    "another shape": lambda values, key: {**values, key: values[key][None]},
}


@pytest.mark.parametrize("new", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("key", ["output", "input", "weight", "bias"])
@pytest.mark.parametrize("first", [True, False])
def test_twins_differ_in_one_bit(key, new, first):
    arrays, cotangent = LAYER.draw(0), np.ones(LAYER.shape)
    pair = (Norm(), change(key, new))
    check = check_twins(LAYER, arrays, cotangent, *(pair if first else pair[::-1]))
    assert check.verdict is Verdict.FAIL
    assert check.reason.endswith(f"differ in the bits of {key}")
    assert check_twins(LAYER, arrays, cotangent, Norm(), Norm()).verdict is Verdict.PASS
