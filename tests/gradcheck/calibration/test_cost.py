"""What a check costs."""

from __future__ import annotations

import json

import pytest

from gradcheck.calibration import cost


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(cost, "has_torch", lambda: False)


def test_the_number_of_calls_does_not_grow_with_the_input(without_torch):
    (small,), (large,) = (cost.costs(elements, rounds=2, seed=0) for elements in (60, 3840))
    assert (small.forwards, small.backwards) == (large.forwards, large.backwards)
    assert small.rounds == 2 and 0 < small.best <= small.median


def test_beside_torch_every_checker_gets_its_rounds():
    pytest.importorskip("torch")
    found = {each.checker: each for each in cost.costs(60, rounds=1, seed=0)}
    assert set(found) == {cost.NUMPY, cost.TORCH, cost.TORCH_SLOW, cost.TORCH_FAST}
    assert found[cost.TORCH_SLOW].forwards > 2 * 66  # twice for every element of x, weight and bias
    # It is asked for fewer gradients too: once for all, without any, each of three alone, and all but each.
    assert found[cost.TORCH].forwards == found[cost.NUMPY].forwards + 8


def test_without_torch_the_command_says_so_and_goes_on(without_torch, run):
    result = run("calibrate", "cost", "--rounds", 1, "--elements", 60, "--format", "json")
    assert result.exit_code == 0 and "pip install torch" in result.stderr
    report = json.loads(result.stdout)
    (row,) = report["costs"]
    assert (report["schema_version"], row["elements"], row["checker"]) == (1, 60, cost.NUMPY)
    assert row["best_ratio"] is None and row["forwards"] > 0


def test_the_table_has_a_row_for_each(without_torch, run):
    result = run("calibrate", "cost", "--rounds", 1, "--elements", 60, "--elements", 240)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["60", "240"]
