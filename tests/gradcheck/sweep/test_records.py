"""What is read off the checks of one configuration: verdict, reasons, worst numbers, how to repeat it."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest

from gradcheck.axes import Configuration
from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.report import table
from gradcheck.report.groups import Outcome
from gradcheck.report.json import render
from gradcheck.sweep import Result, SampleCase

CASE = Configuration("layer_norm", (4, 5), tail=1)
GOOD = Check("gradient", Verdict.PASS, "", "input", error=1e-12, bar=1e-12, tolerance=2e-12, resolution=1e-11)
BETTER = Check(
    "gradient", Verdict.PASS, "", "bias", error=1e-13, bar=1e-12, tolerance=2e-12, resolution=1e-13
)
ZERO = Check(
    "gradient",
    Verdict.PASS,
    "zero, as declared",
    "weight",
    error=0.0,
    bar=1e-9,
    tolerance=0.0,
    resolution=None,
)
TWINS = Check("twins", Verdict.FAIL, "the bits differ")
OFF = Check("definition", Verdict.FAIL, "off", "input", error=1e-3, bar=1e-9, tolerance=0.0)
FAR = Check("definition", Verdict.FAIL, "far off", "weight", error=1.0, bar=1e-9, tolerance=0.0)
BROKEN = Check("call", Verdict.ERROR, "call raised")


def result(*checks, **changes):
    made = Result(CASE, 3, checks, ("a", "b"), ("c",), 0.5)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("verdict", Verdict)
def test_the_worst_verdict_counts(verdict):
    assert result(GOOD, Check("twins", verdict), BETTER).verdict is verdict


def test_reasons_are_the_worst_first_and_say_of_what():
    assert result(GOOD, OFF, TWINS, BROKEN, ZERO).reasons == (
        "call raised",
        "definition of input: off",
        "twins: the bits differ",
    )
    assert result(GOOD, ZERO).reasons == ()


def test_the_worst_of_a_pass_is_the_gradient_nearest_to_its_bar():
    near = Check("definition", Verdict.PASS, error=0.9, bar=0.5, tolerance=0.0)
    assert result(BETTER, GOOD, near).worst is GOOD
    assert result(near).worst is near
    assert result(TWINS).worst is None


def test_the_worst_of_a_failure_is_the_check_furthest_beyond_its_bar():
    assert result(GOOD, OFF, FAR, TWINS).worst is FAR
    assert result(GOOD, TWINS).worst is GOOD


def test_the_resolution_is_the_coarsest_of_the_gradients_that_are_not_zero_by_nature():
    assert result(GOOD, BETTER, ZERO, OFF).resolution == 1e-11
    assert result(ZERO).resolution is None
    assert result(TWINS).resolution is None


FLOAT32 = dataclasses.replace(CASE, dtype="float32")
ROUGH = Check(
    "float32 gradient", Verdict.PASS, "", "input", error=1e-5, bar=1e-4, tolerance=1e-6, resolution=3e-4
)
WRONG = Check("gradient", Verdict.FAIL, "off", "input", error=1.0, bar=1e-9, tolerance=0.0, resolution=1e-8)
FAR32 = Check("sequential kernel against definition", Verdict.FAIL, "off", error=2.0, bar=1.0, tolerance=0.0)


def test_the_figures_of_float32_are_those_of_the_float32_kernel():
    """Its mathematics is judged in float64, by another kernel than the one that the entry names."""
    passed = result(GOOD, ROUGH, configuration=FLOAT32)
    assert passed.worst is ROUGH and passed.resolution == ROUGH.resolution
    assert passed.as_json()["error"] == 1e-5
    assert result(WRONG, ROUGH, FAR32, configuration=FLOAT32).worst is FAR32
    assert result(WRONG, ROUGH, configuration=FLOAT32).worst is WRONG  # where nothing else failed


def test_the_command_is_one_line_for_a_shell():
    assert result(GOOD).command == "python cli.py gradcheck --case 'layer_norm shape=4,5 tail=1' --seed 3"
    source = ("--input", "it's mine.npz", "--array", "a b")
    assert result(GOOD, program="tgbn").command.startswith("tgbn gradcheck --case ")
    command = result(GOOD, source=source).command
    assert shlex.split(command)[3:7] == list(source)


def test_the_json_entry_of_a_pass_and_of_an_error():
    assert result(ZERO, TWINS, GOOD).as_json() == {
        "configuration": "layer_norm shape=4,5 tail=1",
        "operation": "layer_norm",
        "verdict": "FAIL",
        "reasons": ["twins: the bits differ"],
        "error": 1e-12,
        "bar": 1e-12,
        "tolerance": 2e-12,
        "resolution": 1e-11,
        "command": result(GOOD).command,
        "seed": 3,
        "checks": [
            {
                "name": "gradient", "verdict": "PASS", "reason": "zero, as declared", "input": "weight",
                "error": 0.0, "bar": 1e-9, "tolerance": 0.0,
            },
            {"name": "twins", "verdict": "FAIL", "reason": "the bits differ"},
            {
                "name": "gradient", "verdict": "PASS", "input": "input",
                "error": 1e-12, "bar": 1e-12, "tolerance": 2e-12, "resolution": 1e-11,
            },
        ],
        "kernels_forward": ["a", "b"],
        "kernels_vjp": ["c"],
        "seconds": 0.5,
        "source": [],
        "program": "python cli.py",
        "findings": [],
        "place": "",
        "notes": [],
        "device": "cpu",
    }  # fmt: skip
    entry = result(BROKEN).as_json()
    assert entry["verdict"] == "ERROR" and entry["reasons"] == ["call raised"]
    assert entry["error"] is entry["bar"] is entry["tolerance"] is entry["resolution"] is None
    json.dumps(entry, allow_nan=False)


FOUND = Finding(
    "input", (4, 5), (3, 2), 0.5, 0.25, 1e-13, 20, 20,
    pattern="constant along axis 1", terms=(("mean path", 0.0),), residual=float("nan"),
    sentence="the mean path is missing",
)  # fmt: skip
OFF_AT = Check("gradient", Verdict.FAIL, "analytic 0.5, numeric 0.25 ± 1e-13: off", "input")


def test_a_finding_stands_in_place_of_the_reason_that_it_explains():
    text = table.as_text(Outcome([result(OFF_AT, TWINS, findings=(FOUND,))], 3, 0.5))
    lines = [line.strip() for line in text.splitlines()]
    start = next(place for place, line in enumerate(lines) if line.startswith("dinput[3, 2]"))
    assert lines[start].endswith("analytic 0.5   numeric 0.25 ± 1e-13   ratio 2")
    assert lines[start + 1] == "20 of 20 elements differ; constant along axis 1"
    zero = dataclasses.replace(FOUND, analytic=-0.0)
    assert "   ratio" not in table.as_text(Outcome([result(OFF_AT, findings=(zero,))], 1, 0.5))
    assert lines[start + 3 : start + 5] == ["→ the mean path is missing", "twins: the bits differ"]
    assert "off" not in text
    assert "gradient of input: analytic 0.5" in table.as_text(Outcome([result(OFF_AT, TWINS)], 3, 0.5))


def test_a_finding_is_json_too_and_what_is_not_finite_in_it_is_named():
    report = json.loads(render(Outcome([result(OFF_AT, findings=(FOUND,))], 0, 0.5)))
    (finding,) = report["checks"][0]["findings"]
    assert finding["input"] == "input" and finding["index"] == [3, 2] and finding["residual"] == "NaN"
    assert finding["terms"] == [["mean path", 0.0]] and finding["sentence"] == "the mean path is missing"
    assert "norm" not in finding  # nothing was recognised


def test_the_result_of_a_sample_names_its_operation_in_the_command():
    sample = SampleCase("mine::norm", "(4, 3), numpy float32", "float32")
    made = result(GOOD, ROUGH, configuration=sample, source=("--plugin", "my norm.py"))
    assert made.command == "python cli.py gradcheck --plugin 'my norm.py' --op mine::norm --seed 3"
    assert made.worst is ROUGH
    assert made.as_json()["configuration"] == "mine::norm at (4, 3), numpy float32"
    assert "mine::norm  samples float32  1  1 PASS" in table.as_text(Outcome([made], 3, 0.5))
