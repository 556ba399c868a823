"""The sweep over correct code, and that it would see a false alarm."""

from __future__ import annotations

import dataclasses

import pytest

from gradcheck import Verdict
from gradcheck.calibration import alarms
from gradcheck.calibration.alarms import STRESSES, Sweep
from gradcheck.calibration.controls import HARD_CASES, HardCase, reports


def test_correct_code_is_not_accused():
    outcomes = list(Sweep("float64").run(range(1, 8)))
    assert {outcome.verdict for outcome in outcomes} <= {Verdict.PASS, Verdict.VACUOUS}
    assert {outcome.subject for outcome in outcomes} == {"numpy", "tinygrad_bn"}


def test_a_number_repeats_its_outcome():
    sweep = Sweep("float32", stress=True, seed=3)
    (alone,) = sweep.run(range(7, 8))
    assert alone == list(sweep.run(range(5, 8)))[2]
    assert alone != next(Sweep("float32", stress=True, seed=4).run(range(7, 8)))


def test_processes_give_the_same_in_the_same_order():
    sweep, numbers = Sweep("float64"), range(1, 4)
    assert list(sweep.run(numbers, jobs=2)) == list(sweep.run(numbers))


def test_under_stress_every_kind_is_met(monkeypatch):
    met = set()
    stressed = alarms._stressed

    def noting(configuration, stress, rng, seed):
        met.add(stress)
        return stressed(configuration, stress, rng, seed)

    monkeypatch.setattr(alarms, "_stressed", noting)
    outcomes = list(Sweep("float32", stress=True).run(range(1, 40, 2)))
    assert met == set(STRESSES)
    assert not any(alarms.is_alarm(outcome) for outcome in outcomes)
    assert all(any(outcome.text.endswith(stress) for stress in STRESSES) for outcome in outcomes)


@pytest.fixture
def wrong_pairs(monkeypatch):
    """The pairs that the sweep takes for correct are wrong by a relative 1e-6."""
    right = alarms.pair_for

    def wrong(*arguments):
        pair = right(*arguments)

        def backward(saved, cotangent):
            dx, *others = pair.backward(saved, cotangent)
            return dx * dx.dtype.type(1 + 1e-6), *others

        return dataclasses.replace(pair, backward=backward)

    monkeypatch.setattr(alarms, "pair_for", wrong)


def test_an_alarm_is_counted_and_repeated_by_its_line(wrong_pairs, run):
    result = run("calibrate", "alarms", "--count", 3)
    assert result.exit_code == 1
    assert "FAIL  " in result.stdout and "false alarms: 2 (66.67%)" in result.stdout
    again = next(line for line in result.stdout.splitlines() if "again: " in line)
    words = again.partition("again: ")[2].split()[2:]
    repeated = run(*words)
    assert repeated.exit_code == 1 and "1 configurations" in repeated.stdout


def test_without_an_alarm_the_command_succeeds(run):
    result = run("calibrate", "alarms", "--count", 2, "--dtype", "float32")
    assert result.exit_code == 0
    assert "false alarms: 0 (0.00%), with 95 % confidence below" in result.stdout


@pytest.mark.parametrize("case", HARD_CASES, ids=lambda case: case.name)
def test_hard_but_correct_cases_are_not_accused(case):
    assert [report.reasons for report in reports(case, range(2)) if report.verdict >= Verdict.FAIL] == []


def test_a_hard_case_that_fails_is_named(monkeypatch, run):
    def draw(rng):
        return (lambda x: (x * x, x)), (lambda x, cotangent: (cotangent * x,)), (rng.normal(size=3),)

    wrong = HardCase("wrong", draw, "float64")
    monkeypatch.setattr("gradcheck.calibration.controls.HARD_CASES", (wrong,))
    result = run("calibrate", "controls", "--seeds", 2)
    assert result.exit_code == 1 and "false alarm: wrong, seed 1: " in result.stdout
