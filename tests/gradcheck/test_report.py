"""A report is readable, picks the worst verdict, and raises unless everything passed."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Check, GradcheckError, Report, Verdict
from gradcheck.diagnosis.findings import Finding
from gradcheck.report import terminal


def report(*checks):
    return Report(
        "my_op", ("x (4, 3) float64", "weight (3,)"), checks, evaluations=190, vjps=60, seconds=0.005, seed=7
    )


GRADIENT = Check("gradient", Verdict.PASS, input="x", analytic=0.4, numeric=0.4, bar=2e-13, resolution=4e-13)


@pytest.mark.parametrize("verdict", Verdict)
def test_the_worst_check_decides_and_only_pass_does_not_raise(verdict):
    result = report(
        GRADIENT, Check("linear in the cotangent", verdict, "because"), Check("call", Verdict.PASS)
    )
    assert result.verdict is verdict
    if verdict is Verdict.PASS:
        result.raise_if_failed()
        assert result.reasons == ()
    else:
        with pytest.raises(GradcheckError, match=rf"(?s){verdict.name}  my_op.*because"):
            result.raise_if_failed()
    assert issubclass(GradcheckError, AssertionError)


def test_reasons_are_the_worst_first():
    vacuous, error = Check("gradient", Verdict.VACUOUS, "empty"), Check("call", Verdict.ERROR, "broken")
    assert report(vacuous, GRADIENT, error).reasons == ("broken", "empty")


def test_the_text_of_a_pass():
    assert str(report(GRADIENT, Check("call", Verdict.PASS))).splitlines() == [
        "PASS  my_op   x (4, 3) float64, weight (3,)",
        "  dx                        analytic 0.4   numeric 0.4 ± 2e-13   resolution 4e-13",
        "  1 other checks passed; 190 forward and 60 backward calls, 5.0 ms; seed 7",
    ]


def test_the_text_of_a_failure_names_what_and_why():
    def without_mean(saved, cotangent):
        return norm_backward(saved, cotangent, mean_path=False)

    result = gradcheck.check_pair(
        batch_norm, without_mean, batch_norm_inputs(np.random.default_rng(0)), name="bn"
    )
    lines = str(result).splitlines()
    assert lines[0] == "FAIL  bn   x (6, 4) float64, weight (4,), bias (4,)"
    assert lines[1].startswith("  dx[") and "analytic" in lines[1] and "±" in lines[1]
    assert lines[2].endswith("24 of 24 elements differ; constant along axis 0")
    (at,) = (number for number, line in enumerate(lines) if line.startswith("  → the mean path is missing"))
    assert lines[at + 1].startswith("  dweight") and "FAIL" not in lines[at + 1]
    assert lines[-1].startswith("  again: gradcheck.check_pair(forward, without_mean, inputs, seed=0)")


def test_the_last_line_says_how_rare_a_race_stays_unseen():
    text = str(dataclasses.replace(report(GRADIENT), unseen=0.117))
    *_, spent, rate = text.splitlines()
    assert spent.endswith("5.0 ms; seed 7")
    assert rate == "  a race in fewer than 12 % of the runs would not be seen (stress= repeats more)"


def test_a_long_check_tells_its_time_in_seconds():
    *_, spent = str(dataclasses.replace(report(GRADIENT), seconds=279.07)).splitlines()
    assert spent.endswith("backward calls, 279.1 s; seed 7")


@pytest.mark.parametrize(
    ("coefficient", "text"),
    [
        (1.0, "1"), (-1.0, "-1"), (0.0, "0"), (1.2, "1.2"), (5 / 6, "0.8333"), (1 + 1e-6, "1.000001"),
        (1 - 1e-6, "0.999999"), (-1 - 3e-9, "-1.000000003"), (2e-7, "2e-07"), (20 / 3, "6.667"),
        (99999.0, "1e+05"),
    ],
)  # fmt: skip
def test_a_coefficient_shows_how_far_from_one_it_is(coefficient, text):
    finding = Finding("x", (3,), (0,), 1.0, 2.0, 0.0, 1, 3, terms=(("direct", coefficient),), residual=0.0)
    assert f"direct {text}   residual" in "\n".join(terminal.finding_lines(finding))


def test_a_failed_comparison_of_values_names_the_element():
    check = Check("reference", Verdict.FAIL, "off by 5 u·max at (1, 2)", analytic=1.0, numeric=1.1, bar=0.0)
    assert "reference                 got 1   wanted 1.1" in str(report(check))


def test_reports_pickle():
    result = report(GRADIENT)
    assert pickle.loads(pickle.dumps(result)) == result


def test_two_blanks_follow_a_label_that_fills_its_column():
    for length in (terminal.LABEL - 3, terminal.LABEL - 2, terminal.LABEL - 1, terminal.LABEL, 40):
        name = "n" * length
        check = Check(name, Verdict.FAIL, "because")
        assert f"  {name}  " in str(report(check)) and f"{name}  FAIL: because" in str(report(check)).replace(
            "   ", "  "
        )
