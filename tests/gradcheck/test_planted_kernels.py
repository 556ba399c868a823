"""Errors planted in the kernels of every family: each is a FAIL, by the checks that are there to see it."""

from __future__ import annotations

import dataclasses
import importlib
import json

import planted
import pytest
from click.testing import CliRunner

from gradcheck import configurations
from gradcheck.adapters.tinygrad_bn import check_configuration
from gradcheck.axes import Configuration
from gradcheck.cli import cli
from gradcheck.diagnosis import findings
from gradcheck.judge import Verdict
from tinygrad_bn import fused, registry
from tinygrad_bn.registry import REGISTRY

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
    "dropout at inference": (
        "dropout shape=3,5 mask_axes=0,1 p=0.5 scaling=downscale_in_infer affine=none mode=inference"
    ),
}
NORMS = [family for family in FAMILIES if not family.startswith("dropout")]
TRAINING = [family for family in NORMS if not family.endswith("inference")]
CENTRED = [family for family in TRAINING if family != "rows uncentred"]

IN_BACKWARD = [
    *((family, "vjp without the mean") for family in CENTRED),
    *((family, "vjp N - 1") for family in TRAINING),
    *((family, "vjp eps outside the root") for family in NORMS),
    *((family, "vjp one element") for family in FAMILIES),
    ("dropout", "vjp another mask"),
    ("dropout", "vjp without the scale"),
]
IN_FORWARD = [
    *((family, "forward without the mean") for family in CENTRED),
    *((family, "forward N - 1") for family in TRAINING),
    *((family, "forward eps outside the root") for family in NORMS),
    *((family, "forward one element") for family in FAMILIES),
    ("dropout", "forward another mask"),
    ("dropout", "forward without the scale"),
]
STATE = [
    *((family, "forward statistic of the previous call") for family in TRAINING),
    *((family, "vjp statistic of the previous call") for family in TRAINING),
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
    """Forward and backward in turn, on the same input, give the right numbers; two open calls do not."""
    result, failing = check(monkeypatch, family, wrong, twins)
    assert result.verdict is Verdict.FAIL
    assert "own call" in failing
    reasons = [each.reason for each in result.checks if each.name == "own call" and each.reason]
    assert {reason.partition(":")[0] for reason in reasons} == set(twins)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [(family, wrong) for family, wrong in IN_BACKWARD if wrong in ("vjp N - 1", "vjp without the mean")],
)
def test_an_error_shows_in_float32_too(monkeypatch, family, wrong):
    result, failing = check(monkeypatch, family, wrong, TWINS, dtype="float32")
    assert result.verdict is Verdict.FAIL and "gradient" in failing


def test_an_error_that_needs_a_corner_is_seen_there(monkeypatch):
    """ε outside the root is 1e-5 of a gradient of ordinary size, and most of it where ε matters."""
    result, _ = check(monkeypatch, "rows", "vjp eps outside the root", TWINS, values="scale 1e-3", eps=1e-3)
    numeric = [each for each in result.checks if each.name == "gradient" and each.input == "input"]
    assert numeric[0].error > 0.1 * abs(numeric[0].numeric)


# Errors in what joins the pieces of long work: the change in the kernels' own source, and where it shows.
CHUNKS = ("range(0, values.size, CHUNK)", "range(0, min(values.size, CHUNK), CHUNK)")
ROWS = ("prange((x.shape[0] + step - 1) // step)", "prange(max(1, x.shape[0] // step))")
PIECES = {
    "chunks": ("sums.py", "add_moments", *CHUNKS, "layer_norm shape=8,2053 tail=1"),
    "the merge": ("sums.py", "merge_moments", "delta * delta * (", "0 * (", "layer_norm shape=8,2053 tail=1"),
    "blocks of a long row": (
        "rows_backward.py", "add_blocks", "totals[0, r] += totals[block, r]", "totals[0, r] += 0",
        "layer_norm shape=8,2053 tail=1",
    ),
    "blocks of rows": (
        "rows_backward.py", "differentiate_rows", "range(n, m, step)", "range(n, n + 1, step)",
        "layer_norm shape=19,523 tail=1",
    ),
    "rows of columns, two at a time": (
        "cols.py", "tile_moments", "total[j] += d0 + d1", "total[j] += d0 + d0",
        "batch_norm shape=1101,3 channel_axis=1",
    ),
    "tiles below each other": (
        "tiles.py", "add_tiles", "range(1, sums.shape[1])", "range(2, sums.shape[1])",
        "batch_norm shape=133,259 channel_axis=1",
    ),
    "sums of short stretches": (
        "sums.py", "contract", "total += part[j]", "total += part[0]",
        "batch_norm shape=17,349,3 channel_axis=1",
    ),
    "short stretches": (
        "tiles.py", "spread", "values[c // times : min(d, M) // times]", "values[: (min(d, M) - c) // times]",
        "batch_norm shape=17,349,3 channel_axis=1",
    ),
    "chunks backwards": (
        "split.py", "add_cotangent_sums", "range(k * L, k * L + L, CHUNK)", "range(k * L, k * L + 1, CHUNK)",
        "batch_norm shape=2,2,2053 channel_axis=1",
    ),
    "tasks of rows": ("rows.py", "forward", *ROWS, "layer_norm shape=19,523 tail=1"),
    "tasks of rows backwards": (
        "rows_backward.py", "shares_of", "(samples + step - 1) // step", "max(1, samples // step)",
        "layer_norm shape=1101,3 tail=1",
    ),
    "blocks of groups": (
        "rows_backward.py", "differentiate_samples", "weight[first:last]", "weight[: last - first]",
        "group_norm shape=17,1370,3 channel_axis=1 groups=685",
    ),
    "weights of a group": (
        "rows_backward.py", "sum_rows", "= weights[k], ", "= weights[0], ",
        "group_norm shape=17,1370,3 channel_axis=1 groups=685",
    ),
    "tiles": (
        "tiles.py", "tile_of", "block % across * columns", "0", "batch_norm shape=3,1027 channel_axis=1",
    ),
    "tasks of a mask": (
        "dropout.py", "multiply", "(x.size + TASK - 1) // TASK", "max(1, x.size // TASK)",
        "dropout shape=3,21851 mask_axes=0,1 p=0.5 scaling=upscale_in_train affine=none",
    ),
}  # fmt: skip
SHORT = {
    "rows": "layer_norm shape=3,5 tail=1",
    "rows_backward": "layer_norm shape=3,5 tail=1",
    "sums": FAMILIES["rows"],
    "split": FAMILIES["split of one channel"],
    "cols": FAMILIES["cols of one channel"],
    "tiles": FAMILIES["cols of one channel"],
    "dropout": FAMILIES["dropout"],
}


@pytest.mark.parametrize(("file", "function", "old", "new", "case"), PIECES.values(), ids=PIECES)
def test_an_error_past_the_first_piece_is_seen_by_the_default_sweep(
    monkeypatch, tmp_path, file, function, old, new, case
):
    # That it is seen is enough: to find the term would take thousands of calls on these long inputs.
    monkeypatch.setattr(findings, "find", lambda *_: ())
    planted.plant_in_source(monkeypatch, tmp_path, file, function, old, new)
    short = SHORT[file.removesuffix(".py")]
    if case.startswith("batch_norm") and file == "sums.py":
        short = FAMILIES["split of one channel"]
    assert check_configuration(Configuration.parse(short)).verdict is Verdict.PASS
    long = Configuration.parse(case)
    assert long in configurations.covering(long.operation)
    result = check_configuration(long)
    assert result.verdict is Verdict.FAIL
    assert "sequential kernel against definition" in " ".join(result.reasons)


# Kernels that are missing: never a PASS, whatever else could have computed the result.

CASES = {
    "layer_norm": ["layer_norm shape=4,5 tail=1"],
    "rms_norm": ["rms_norm shape=4,5 tail=1"],
    "batch_norm": ["batch_norm shape=3,2,4 channel_axis=1", "batch_norm shape=3,4,2 channel_axis=-1"],
    "batch_norm_inference": [
        "batch_norm shape=3,2,4 channel_axis=1 mode=inference",
        "instance_norm shape=3,4,2 channel_axis=-1 mode=inference",
    ],
    "instance_norm": [
        "instance_norm shape=3,2,4 channel_axis=1",
        "instance_norm shape=3,4,2 channel_axis=-1",
    ],
    "group_norm": [
        "group_norm shape=2,6,3 channel_axis=1 groups=2",
        "group_norm shape=2,6 channel_axis=1 groups=2",
    ],
    "dropout": [FAMILIES["dropout"]],
    "scale": [FAMILIES["dropout at inference"]],
}
KERNELS = [
    (spec, kernel) for spec in REGISTRY if spec.fused for kernel in spec.kernels if kernel.device == "cpu"
]
TARGETS = sorted({kernel.target for _, kernel in KERNELS})


def run_cases(operation):
    """Exit status and entries of `gradcheck` over the cases of an operation."""
    cases = [word for case in CASES[operation] for word in ("--case", case)]
    result = CliRunner().invoke(cli, ["gradcheck", *cases, "--format", "json"])
    return result.exit_code, json.loads(result.stdout)["checks"]


def test_every_registered_kernel_is_disabled_in_turn_below():
    assert {spec.short_name for spec, _ in KERNELS} == CASES.keys()
    assert len(KERNELS) >= 24 and len(TARGETS) >= 14


@pytest.mark.parametrize("operation", CASES)
def test_with_all_kernels_the_cases_pass_and_name_the_kernels(operation):
    status, entries = run_cases(operation)
    assert status == 0
    ran = {name for entry in entries for name in entry["kernels_forward"]}
    declared = {kernel.target for spec, kernel in KERNELS if spec.short_name == operation}
    assert ran == {f"{target}.forward float64" for target in declared}
    ran = {name for entry in entries for name in entry["kernels_vjp"]}
    assert ran == {f"{target}.vjp float64" for target in declared}


@pytest.mark.parametrize(
    ("spec", "kernel"), KERNELS, ids=[f"{spec.short_name}-{kernel.target}" for spec, kernel in KERNELS]
)
def test_a_kernel_that_is_not_declared_is_an_error(monkeypatch, spec, kernel):
    operation = getattr(importlib.import_module(spec.definition.__module__), f"_{spec.short_name}")
    left = tuple(each for each in spec.kernels if each != kernel)
    monkeypatch.setattr(operation, "spec", dataclasses.replace(spec, kernels=left))
    planted.forget_calls(monkeypatch)
    status, entries = run_cases(spec.short_name)
    verdicts = [entry["verdict"] for entry in entries]
    assert status == 1
    assert "ERROR" in verdicts and set(verdicts) <= {"ERROR", "PASS"}
    reasons = [reason for entry in entries for reason in entry["reasons"]]
    refusal = f"kernel={kernel.name!r} cannot run this call"
    assert all(refusal in reason for reason in reasons)


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_that_cannot_be_imported_is_an_error(monkeypatch, target):
    real = registry._resolve

    def resolve(name):
        if name == target:
            raise ImportError("no compiler here")
        return real(name)

    monkeypatch.setattr(registry, "_resolve", resolve)
    planted.forget_calls(monkeypatch)
    operation = next(spec.short_name for spec, kernel in KERNELS if kernel.target == target)
    status, entries = run_cases(operation)
    assert status == 1
    (bad,) = (entry for entry in entries if entry["verdict"] != "PASS")
    assert bad["verdict"] == "ERROR"
    twin = target.rpartition(":")[2].partition("_")[0]
    assert bad["reasons"] == [
        f"kernel: {twin}: RegistryError: kernel {twin!r}: {target} cannot be imported: no compiler here"
    ]
    assert target not in bad["kernels_forward"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_definition_in_place_of_a_kernel_is_never_accepted(monkeypatch, family):
    """Its numbers are perfect; but nothing would have been proved of any kernel."""
    monkeypatch.setattr(fused, "_choose", lambda *_: None)
    planted.forget_calls(monkeypatch)
    result = check_configuration(Configuration.parse(FAMILIES[family]))
    assert result.verdict is Verdict.ERROR
    assert "kernel: sequential: 0 compiled kernels ran in forward, wanted 1" in result.reasons
    assert "kernel: parallel: 0 compiled kernels ran in vjp, wanted 1" in result.reasons
    assert result.kernels_forward == result.kernels_vjp == ()


def test_one_kernel_under_both_names_is_an_error(monkeypatch):
    layer_norm = importlib.import_module("tinygrad_bn.ops.norms")._layer_norm
    one = layer_norm.spec.kernels[0]
    both = (one, dataclasses.replace(one, name="parallel"))
    monkeypatch.setattr(layer_norm, "spec", dataclasses.replace(layer_norm.spec, kernels=both))
    planted.forget_calls(monkeypatch)
    result = check_configuration(Configuration.parse(FAMILIES["rows"]))
    assert result.verdict is Verdict.ERROR
    assert "sequential and parallel are the same kernel in forward" in result.reasons[0]


@pytest.mark.parametrize("twin", TWINS)
def test_a_kernel_that_raises_in_some_calls_only_is_an_error_not_a_crash(monkeypatch, twin):
    """The checks call with other ε and inputs: whichever of them a kernel dislikes, the sweep goes on."""
    real = registry._resolve

    class Sometimes:
        def __init__(self, target):
            self.real, self.calls = real(target), 0

        def forward(self, *arguments):
            self.calls += 1
            if self.calls > 1:
                raise ZeroDivisionError("not again")
            return self.real.forward(*arguments)

        def vjp(self, *arguments):
            return self.real.vjp(*arguments)

    kernels = {twin: Sometimes(f"tinygrad_bn.kernels.cpu.rows:{twin}")}
    monkeypatch.setattr(
        registry, "_resolve", lambda target: kernels.get(target.rpartition(":")[2]) or real(target)
    )
    planted.forget_calls(monkeypatch)
    result = check_configuration(Configuration.parse(FAMILIES["rows"]))
    assert result.verdict is Verdict.ERROR
    assert any(f"{twin}: ZeroDivisionError: not again" in reason for reason in result.reasons)
