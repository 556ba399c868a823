"""Errors planted in the kernels of every family: each must be a FAIL, by the checks that are there to see it."""

from __future__ import annotations

import dataclasses

import planted
import pytest

from gradcheck.adapters.tinygrad_bn import check_configuration
from gradcheck.axes import Configuration
from gradcheck.judge import Verdict

TWINS = ("sequential", "parallel")
FAMILIES = {
    "rows": "layer_norm shape=4,5 tail=1",
    "rows uncentred": "rms_norm shape=4,5 tail=1",
    "split": "group_norm shape=2,6,3 channel_axis=1 groups=2",
    "split of one channel": "batch_norm shape=3,2,4 channel_axis=1",
    "cols": "group_norm shape=2,3,6 channel_axis=-1 groups=2",
    "cols of one channel": "batch_norm shape=5,6 channel_axis=1",
    "split at inference": "batch_norm shape=2,4,3 channel_axis=1 mode=inference",
    "cols at inference": "instance_norm shape=2,3,4 channel_axis=-1 mode=inference",
    "dropout": "dropout shape=3,5 mask_axes=0,1 p=0.5 scaling=upscale_in_train affine=none",
}
NORMS = [family for family in FAMILIES if family != "dropout"]
TRAINING = [family for family in NORMS if not family.endswith("inference")]
CENTRED = [family for family in TRAINING if family != "rows uncentred"]

IN_BACKWARD = [
    *((family, "vjp without the mean") for family in CENTRED),
    *((family, "vjp N - 1") for family in TRAINING),
    *((family, "vjp eps outside the root") for family in NORMS),
    *((family, "vjp statistic of the previous call") for family in TRAINING),
    *((family, "vjp one element") for family in FAMILIES),
    ("dropout", "vjp another mask"),
    ("dropout", "vjp without the scale"),
]
IN_FORWARD = [
    *((family, "forward without the mean") for family in CENTRED),
    *((family, "forward N - 1") for family in TRAINING),
    *((family, "forward eps outside the root") for family in NORMS),
    *((family, "forward stale statistic") for family in TRAINING),
    *((family, "forward one element") for family in FAMILIES),
    ("dropout", "forward another mask"),
    ("dropout", "forward without the scale"),
]
STATE = [
    *((family, "vjp statistic of the latest call") for family in TRAINING),
    ("dropout", "vjp mask of the latest call"),
]


def check(monkeypatch, family, wrong, twins, **changes):
    """The result on planted kernels, and the names of the checks that failed."""
    planted.plant(monkeypatch, wrong, twins)
    configuration = dataclasses.replace(Configuration.parse(FAMILIES[family]), **changes)
    result = check_configuration(configuration)
    return result, {each.name for each in result.checks if each.verdict is Verdict.FAIL}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_an_error_the_planted_kernels_pass(monkeypatch, family, dtype):
    """Otherwise the rest of this file would prove nothing."""
    result, _ = check(monkeypatch, family, "", (), dtype=dtype)
    assert result.reasons == () and result.verdict is Verdict.PASS


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_plant_they_pass(family):
    assert check_configuration(Configuration.parse(FAMILIES[family])).verdict is Verdict.PASS


@pytest.mark.parametrize("twins", [("sequential",), TWINS], ids=["sequential", "both"])
@pytest.mark.parametrize(("family", "wrong"), IN_BACKWARD)
def test_an_error_in_the_backward_pass_is_seen_by_the_numeric_check(monkeypatch, family, wrong, twins):
    result, failing = check(monkeypatch, family, wrong, twins)
    assert result.verdict is Verdict.FAIL
    assert failing >= {"gradient", "sequential kernel against definition"}
    assert ("twins" in failing) == (twins != TWINS)


@pytest.mark.parametrize(("family", "wrong"), IN_BACKWARD)
def test_an_error_in_the_backward_pass_of_the_parallel_twin_is_seen(monkeypatch, family, wrong):
    result, failing = check(monkeypatch, family, wrong, ("parallel",))
    assert result.verdict is Verdict.FAIL
    assert failing >= {"parallel kernel against definition", "twins"}
    assert "gradient" not in failing


@pytest.mark.parametrize(
    "twins", [("sequential",), ("parallel",), TWINS], ids=["sequential", "parallel", "both"]
)
@pytest.mark.parametrize(("family", "wrong"), IN_FORWARD)
def test_an_error_in_the_forward_pass_is_seen(monkeypatch, family, wrong, twins):
    result, failing = check(monkeypatch, family, wrong, twins)
    assert result.verdict is Verdict.FAIL
    assert failing >= {f"{twin} kernel against definition" for twin in twins}
    assert ("gradient" in failing) == ("sequential" in twins)


@pytest.mark.parametrize(
    "twins", [("sequential",), ("parallel",), TWINS], ids=["sequential", "parallel", "both"]
)
@pytest.mark.parametrize(("family", "wrong"), STATE)
def test_state_shared_between_calls_is_seen(monkeypatch, family, wrong, twins):
    """Forward and backward in turn give the right numbers; only two open calls show what is shared."""
    result, failing = check(monkeypatch, family, wrong, twins)
    assert result.verdict is Verdict.FAIL
    assert failing <= {"own forward", "calls are independent"} and "own forward" in failing
    assert {
        each.reason.partition(":")[0] for each in result.checks if each.name == "own forward" and each.reason
    } == set(twins)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [(family, wrong) for family, wrong in IN_BACKWARD if wrong in ("vjp N - 1", "vjp without the mean")],
)
def test_an_error_shows_in_float32_too(monkeypatch, family, wrong):
    result, failing = check(monkeypatch, family, wrong, TWINS, dtype="float32")
    assert result.verdict is Verdict.FAIL and "gradient" in failing


def test_an_error_that_needs_a_corner_is_seen_there(monkeypatch):
    """ε outside the root of a backward pass is 1e-5 of a gradient of ordinary size, and most of it where ε matters."""
    result, _ = check(monkeypatch, "rows", "vjp eps outside the root", TWINS, values="scale 1e-3", eps=1e-3)
    numeric = [each for each in result.checks if each.name == "gradient" and each.input == "input"]
    assert numeric[0].error > 0.1 * abs(numeric[0].numeric)
