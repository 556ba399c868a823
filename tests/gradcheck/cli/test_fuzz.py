"""`python cli.py fuzz`: what fails is found, shrunk, and printed with the command that repeats it."""

from __future__ import annotations

import sys

import pytest

from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.axes import OPERATIONS
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import Result


@pytest.fixture
def pretend(monkeypatch):
    """Let the verdict of a configuration be what `judge` says; return the list of those that were checked."""

    def install(judge):
        checked = []

        def check_configuration(configuration, seed=0):
            checked.append(configuration)
            verdict = judge(configuration)
            if isinstance(verdict, BaseException):
                raise verdict
            return Result(configuration, seed, (Check("gradient", verdict, "", "input"),), (), (), 0.25)

        monkeypatch.setattr(adapter, "check_configuration", check_configuration)
        return checked

    return install


def test_where_all_pass_the_status_is_0_and_the_line_counts_them(run, pretend):
    checked = pretend(lambda c: Verdict.PASS)
    result = run("fuzz", "--examples", 100, "--seed", 3)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(f"{len(checked)} configurations: {len(checked)} PASS in ")
    assert 80 <= len(checked) == len(set(checked)) <= 100
    assert {c.operation for c in checked} == set(OPERATIONS)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.ERROR])
def test_the_smallest_failure_is_printed_with_its_command(run, pretend, verdict):
    pretend(lambda c: verdict if c.layout == "strided" and c.rank > 1 else Verdict.PASS)
    result = run("fuzz", "--op", "rms_norm", "--examples", 200, "--seed", 6)
    assert result.exit_code == 1
    assert f"\n{verdict}  rms_norm shape=1,1 tail=1 layout=strided\n" in result.stdout
    again = "python cli.py gradcheck --case 'rms_norm shape=1,1 tail=1 layout=strided' --seed 6"
    assert result.stdout.count("again: ") == 1 and f"  again: {again}\n" in result.stdout
    assert f" {verdict} in " in result.stderr


def test_the_seed_decides_what_is_drawn(run, pretend):
    runs = []
    for seed in (1, 1, 2):
        checked = pretend(lambda c: Verdict.PASS)
        run("fuzz", "--examples", 20, "--seed", seed)
        runs.append(checked)
    assert runs[0] == runs[1] != runs[2]


def test_what_is_neither_right_nor_wrong_is_counted_and_not_hunted(run, pretend):
    pretend(lambda c: Verdict.INCONCLUSIVE if c.dtype == "float32" else Verdict.VACUOUS)
    result = run("fuzz", "--op", "layer_norm", "--examples", 30)
    assert result.exit_code == 0
    assert " INCONCLUSIVE" in result.stdout and " VACUOUS" in result.stdout


def test_an_exception_of_the_checker_itself_is_not_taken_for_a_failure(run, pretend):
    pretend(lambda c: AssertionError("impossible"))
    with pytest.raises(AssertionError, match="impossible"):
        run("fuzz", "--examples", 5)


def test_without_hypothesis_it_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "gradcheck.strategies", raising=False)
    assert refused("fuzz") == "fuzz needs Hypothesis, which is not installed; pip install hypothesis"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--op", "softmax"), "'softmax' is not one of 'batch_norm'"),
        (("--examples", 0), "0 is not in the range x>=1"),
        (("--seed", -1), "is not in the range"),
        (("--target", "x.py:f"), "No such option"),
    ],
)
def test_wrong_usage_is_one_clear_line(refused, words, message):
    assert message in refused("fuzz", *words)
