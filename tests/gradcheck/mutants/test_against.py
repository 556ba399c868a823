"""The other libraries' checkers are wrapped fairly: they accept the right pair and see a gross error."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from gradcheck.mutants import against
from gradcheck.mutants.cases import CASES
from gradcheck.mutants.named.formula import rstd_missing
from gradcheck.mutants.named.others import dropout_scale_forgotten
from gradcheck.mutants.operations import OPERATIONS


def checkers(library):
    pytest.importorskip(library, reason=f"{library} is the oracle" if library == "torch" else None)
    return importlib.import_module(f"gradcheck.mutants.against.with_{library}").checkers()


@pytest.mark.parametrize("library", ["torch", "jax", "autograd"])
def test_the_right_pair_is_accepted_and_a_gross_error_is_not(library):
    for checker in checkers(library):
        if not checker.defaults:
            continue
        for wrong in (rstd_missing, dropout_scale_forgotten):
            operation = wrong.operation
            inputs = CASES[operation.name][0].inputs(operation, np.random.default_rng(0))
            assert not checker.accuses(operation, (operation.forward, operation.backward), inputs, 0)
            assert checker.accuses(operation, wrong.make(), inputs, 0)


@pytest.mark.parametrize("library", ["torch", "jax", "autograd"])
def test_state_is_left_alone(library):
    operation = OPERATIONS["running_norm"]
    inputs = CASES["running_norm"][0].inputs(operation, np.random.default_rng(0))
    before = [array.copy() for array in inputs]
    checker = next(checker for checker in checkers(library) if checker.defaults)
    assert not checker.accuses(operation, (operation.forward, operation.backward), inputs, 0)
    for array, old in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_autograd_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    operation = OPERATIONS["dropout"]
    inputs = CASES["dropout"][0].inputs(operation, np.random.default_rng(0))
    for checker in checkers("autograd"):
        checker.accuses(operation, (operation.forward, operation.backward), inputs, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_table(monkeypatch):
    monkeypatch.setattr(against, "DRAWS", 1)
    monkeypatch.setattr(against, "TIMED", 1)
    pytest.importorskip("autograd", reason="autograd is compared with")
    mutants = [rstd_missing, dropout_scale_forgotten]
    text = against.compare(("autograd",), mutants, 0, progress=iter)
    rows = [line.split() for line in text.splitlines() if line.startswith(("gradcheck ", "autograd "))]
    assert rows[0][0] == "gradcheck" and {row[0] for row in rows[1:]} == {"autograd"}
    assert "2 named mutants" in text and "Caught by another and not by gradcheck:\n  none" in text
