"""Tasks and results survive the way through JSON, whatever they hold; what is no record is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcheck import configurations
from gradcheck.axes import OPERATIONS
from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import Result, SampleCase, Task
from gradcheck.sweep.codec import decode, encode

EVERY = [case for operation in OPERATIONS for case in configurations.exhaustive(operation)]
CASES = st.sampled_from(EVERY) | st.builds(SampleCase, st.text(), st.text())
WORDS = st.lists(st.text(), max_size=2).map(tuple)


def drawn(kind):
    """Tuples of records with every field drawn, those with a default too."""
    return st.lists(st.builds(kind, **{field.name: ... for field in dataclasses.fields(kind)})).map(tuple)


RESULTS = st.builds(Result, CASES, checks=drawn(Check).filter(bool), source=WORDS, findings=drawn(Finding))


def through_json(record):
    return type(record).from_json(json.loads(json.dumps(record.as_json(), allow_nan=False)))


def test_every_configuration_reads_back():
    assert len(EVERY) > 3000
    for case in EVERY:
        task = Task(case, 7, ("--input", "x.npy"))
        assert through_json(task) == task


@given(RESULTS)
def test_every_result_reads_back_to_the_last_bit(result):
    assert repr(through_json(result)) == repr(result)  # NaN equals nothing, but has one repr
    assert through_json(result).key == result.key


def test_the_results_that_are_drawn_hold_everything():
    """The test above is worth what its results hold: checks, findings, and numbers that are not finite."""
    seen: set[str] = set()

    @given(RESULTS)
    def look(result):
        seen.update("finding" for _ in result.findings)
        seen.update(check.verdict.name for check in result.checks)
        seen.update(re.findall('"(NaN|-?Infinity)"', json.dumps(result.as_json())))

    look()
    assert seen >= {"finding", "NaN", "Infinity", "-Infinity", *Verdict.__members__}


@dataclass(frozen=True)
class Curve:
    """What a record may hold beside what it holds today."""

    steps: np.ndarray
    errors: tuple[tuple[float, ...], ...] = ()
    names: dict[str, float] = dataclasses.field(default_factory=dict)
    chosen: int | None = None


def test_arrays_and_nested_numbers_read_back():
    curve = Curve(np.array([[1e-3, math.nan], [math.inf, -0.0]]), ((0.1, -math.inf), ()), {"a": 1.0}, 3)
    again = decode(Curve, json.loads(json.dumps(encode(curve), allow_nan=False)))
    assert again.steps.dtype == np.float64 and again.steps.tobytes() == curve.steps.tobytes()
    assert dataclasses.replace(again, steps=curve.steps) == curve
    for values in (np.array([True, False]), np.array([[3], [4]])):
        again = decode(Curve, encode(Curve(values))).steps
        assert again.dtype == values.dtype and np.array_equal(again, values)


CHECK = {"name": "gradient", "verdict": "PASS"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Check, {**CHECK, "verdict": "PERFECT"}, "wanted Verdict, got 'PERFECT'"),
        (Check, {**CHECK, "verdict": 0}, "wanted Verdict, got 0"),
        (Check, {**CHECK, "error": "1e-3"}, "wanted a number, got '1e-3'"),
        (Check, {**CHECK, "error": [1.0]}, r"wanted float, got \[1.0\]"),
        (Check, {**CHECK, "colour": "red"}, "no Check: 'colour'"),
        (Check, {"name": "gradient"}, "no Check: .*'verdict'"),
        (Check, ["gradient"], r"wanted an object, got \['gradient'\]"),
        (Finding, {"input": 3}, "wanted str, got 3"),
        (tuple[str, float], ["a"], "argument 2 is shorter"),
        (tuple[int, ...], [True], "wanted int, got True"),
    ],
)
def test_what_is_no_record_is_refused(kind, value, message):
    with pytest.raises(ValueError, match=message):
        decode(kind, value)


@pytest.mark.parametrize(
    "entry",
    [3, {}, {"configuration": 3}, {"configuration": "softmax shape=3"}, {"sample": {}}, {"sample": 1}],
)
def test_what_is_no_task_is_refused(entry):
    with pytest.raises(ValueError, match=r"wanted|no SampleCase|is no operation"):
        Task.from_json(entry)


def test_a_value_without_a_form_is_refused():
    with pytest.raises(TypeError, match="a record holds a set, which has no form in JSON"):
        encode({"terms": {1, 2}})
