"""The kill matrix: mutants of every kind are caught, right pairs are not accused, and the command says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from gradcheck.cli import cli
from gradcheck.judge import Verdict
from gradcheck.mutants import collection, report
from gradcheck.mutants.automatic import automatic_mutants
from gradcheck.mutants.cases import CASES
from gradcheck.mutants.controls import CONTROLS
from gradcheck.mutants.matrix import CAUGHT, Outcome, check_case, judge_control, judge_mutant
from gradcheck.mutants.mutant import KINDS, Mutant
from gradcheck.mutants.named import NAMED
from gradcheck.mutants.operations import OPERATIONS


def run(*words):
    return CliRunner().invoke(cli, ["mutants", *words], catch_exceptions=False)


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_of_every_kind_are_caught(kind):
    """Three of each; `python cli.py mutants` runs them all."""
    chosen = [mutant for mutant in NAMED if mutant.kind == kind and not mutant.invisible][:3]
    outcomes = [judge_mutant(mutant, "named", seed=0) for mutant in chosen]
    assert [outcome.name for outcome in outcomes if not outcome.caught] == []


def test_automatic_mutants_are_caught_unless_they_equal_the_right_pair():
    outcomes = [judge_mutant(mutant, "automatic", seed=0) for mutant in automatic_mutants()[::40]]
    assert len(outcomes) > 20
    assert report.faults(outcomes) == []


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_control_is_not_accused(control):
    assert not judge_control(control, seed=1).caught


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_right_pair_is_not_accused_in_any_case(name):
    operation = OPERATIONS[name]
    for case in CASES[name]:
        verdict = check_case(operation, (operation.forward, operation.backward), case, seed=3).verdict
        assert verdict not in CAUGHT, case


def test_a_mutant_remembers_from_one_case_to_the_next():
    right = OPERATIONS["rms_norm"]
    shapes = []

    def forward(x, weight):
        shapes.append(x.shape)
        return right.forward(x, weight)

    judge_mutant(Mutant("m", "state", right, lambda: (forward, right.backward), "None."), "named", seed=0)
    assert {case.shape for case in CASES["rms_norm"]} <= set(shapes)


def outcome(**fields):
    given = {
        "source": "named", "name": "m", "kind": "tiny", "operation": "rms_norm", "mistake": "Wrong.",
        "verdict": Verdict.FAIL, "case": "(3, 5)", "reason": "off", "checks": 1, "seconds": 0.1,
    }  # fmt: skip
    return Outcome(**(given | fields))


def test_faults():
    caught, survivor = outcome(), outcome(verdict=Verdict.INCONCLUSIVE)
    excused = outcome(verdict=Verdict.PASS, invisible="equal")
    excuse_void = outcome(invisible="equal")
    fine = outcome(source="controls", verdict=Verdict.INCONCLUSIVE)
    accused = outcome(source="controls", verdict=Verdict.ERROR)
    everyone = [caught, survivor, excused, excuse_void, fine, accused]
    assert report.faults(everyone) == [survivor, excuse_void, accused]
    assert report.summary(everyone, 2.0) == "1 of 2 caught, 2 of 4 others accused, in 2 s"


def test_the_text_has_a_line_for_each_kind_and_each_survivor():
    text = report.as_text([outcome(), outcome(verdict=Verdict.PASS, name="s", reason="", case="")], seed=5)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("tiny  ")]
    assert line.split() == ["tiny", "2", "1", "1"]
    assert "Faults: 1\n  PASS  tiny: s: Wrong." in text
    assert "seed 5; Python 3" in text and f"NumPy {np.__version__}" in text


def test_the_command_on_a_small_choice():
    result = run("--kind", "layout", "--operation", "dropout")
    assert result.exit_code == 0, result.output
    assert "named" in result.stdout and "layout" in result.stdout
    assert "caught, 0 of 0 others accused" in result.stderr


def test_the_command_as_json(tmp_path):
    path = tmp_path / "matrix.json"
    result = run(
        "--kind", "rng", "--operation", "channel_dropout", "--kind", "formula", "--report", str(path)
    )
    assert result.exit_code == 0 and result.stdout == ""
    document = json.loads(path.read_text())
    assert document["schema_version"] == 1 and document["seed"] == 0
    assert all(entry["verdict"] == "FAIL" and not entry["fault"] for entry in document["outcomes"])


def test_the_command_lists():
    result = run("--kind", "control", "--list")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(CONTROLS)


def test_the_command_without_a_choice():
    assert run("--kind", "control", "--operation", "dropout").exit_code == 4


def test_a_survivor_is_exit_status_1(monkeypatch):
    right = OPERATIONS["dropout"]
    hidden = Mutant("hidden", "tiny", right, lambda: (right.forward, right.backward), "None at all.")
    monkeypatch.setattr(collection, "NAMED", (hidden,))
    result = run("--kind", "tiny", "--operation", "dropout")
    assert result.exit_code == 1
    assert "hidden: None at all." in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "tensorflow"), "wanted some of torch, jax, autograd"),
        (("--kind", "enormous"), "'enormous' is not one of"),
    ],
)
def test_wrong_usage(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("--against", "jax", "--kind", "rng")
    assert result.exit_code == 2
    assert "jax is not installed; pip install jax" in result.stderr
