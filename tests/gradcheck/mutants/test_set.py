"""The set itself: large enough, of all kinds, unambiguous; and what counts as equal to the right pair."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from gradcheck.mutants.automatic import automatic_mutants
from gradcheck.mutants.collection import OUTSIDER, choose, chosen_mutants
from gradcheck.mutants.equality import equals_the_right_one
from gradcheck.mutants.mutant import EDITS, KINDS, Mutant, wrong_backward
from gradcheck.mutants.named import NAMED
from gradcheck.mutants.operations import OPERATIONS


def test_the_set_is_as_large_as_it_says():
    assert len(NAMED) >= 80
    assert len(OUTSIDER) >= 40
    assert len(NAMED) + len(OUTSIDER) >= 120
    assert len(automatic_mutants()) >= 500
    assert {mutant.kind for mutant in NAMED} == set(KINDS)
    assert {mutant.kind for mutant in automatic_mutants()} == set(EDITS)


def test_no_two_mutants_have_one_name():
    names = [mutant.name for mutant in (*NAMED, *OUTSIDER, *automatic_mutants())]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_no_two_automatic_mutants_make_the_same_edit_in_a_row():
    for before, after in zip(automatic_mutants(), automatic_mutants()[1:], strict=False):
        assert (before.operation, before.mistake) != (after.operation, after.mistake)


def test_every_mutant_makes_a_pair_anew():
    for mutant in (*NAMED, *OUTSIDER):
        forward, backward = mutant.make()
        assert callable(forward) and callable(backward)
        assert mutant.kind in KINDS


def test_a_mutant_needs_a_known_kind_and_a_mistake():
    def backward(saved, cotangent):
        """Says something."""

    assert wrong_backward("tiny", "rms_norm")(backward).mistake == "Says something."
    with pytest.raises(ValueError, match="kind is 'huge', wanted one of formula, tiny"):
        wrong_backward("huge", "rms_norm")(backward)
    with pytest.raises(ValueError, match="needs a docstring that says the mistake"):
        wrong_backward("tiny", "rms_norm")(lambda saved, cotangent: None)


def automatic(mistake, operation):
    (found,) = [
        mutant
        for mutant in automatic_mutants()
        if mutant.mistake == mistake and mutant.operation.name == operation and "backward" in mutant.name
    ]
    return found


def test_an_automatic_mutant_does_what_it_says():
    inputs = OPERATIONS["inference_norm"].draw((3, 4, 2), np.random.default_rng(0))
    cotangent = np.random.default_rng(1).normal(size=(3, 4, 2))
    mutant = automatic(
        "cotangent.sum(axis=(0, 2)) → (1 + 1e-6) * cotangent.sum(axis=(0, 2))", "inference_norm"
    )
    assert mutant.kind == "factor"
    forward, backward = mutant.make()
    dx, dweight, dbias, *_ = backward(forward(*inputs)[1], cotangent)
    right = OPERATIONS["inference_norm"]
    want_dx, want_dweight, want_dbias, *_ = right.backward(right.forward(*inputs)[1], cotangent)
    np.testing.assert_array_equal(dx, want_dx)
    np.testing.assert_array_equal(dweight, want_dweight)
    np.testing.assert_allclose(dbias / want_dbias, 1 + 1e-6, rtol=1e-14)


def test_a_mutated_forward_saves_other_values_and_returns_the_right_output():
    for mutant in automatic_mutants():
        if mutant.name.startswith("rms_norm.forward") and mutant.kind == "factor":
            inputs = OPERATIONS["rms_norm"].draw((3, 4), np.random.default_rng(0))
            output, saved = mutant.make()[0](*inputs)
            wanted, right = OPERATIONS["rms_norm"].forward(*inputs)
            np.testing.assert_array_equal(output, wanted)
            assert any((a != b).any() for a, b in zip(saved, right, strict=True))


def twin(factor):
    right = OPERATIONS["rms_norm"]

    def backward(saved, cotangent):
        dx, dweight = right.backward(saved, cotangent)
        return dx * factor, dweight

    return Mutant("twin", "factor", right, lambda: (right.forward, backward), "dx scaled.")


def test_what_equals_the_right_pair_to_rounding():
    assert equals_the_right_one(twin(1.0), seed=0)
    assert equals_the_right_one(twin(1 + 2e-16), seed=0)
    assert not equals_the_right_one(twin(1 + 1e-9), seed=0)
    assert not equals_the_right_one(twin(np.nan), seed=0)
    raising = dataclasses.replace(
        twin(1.0), make=lambda: (OPERATIONS["rms_norm"].forward, lambda s, c: 1 / 0)
    )
    assert not equals_the_right_one(raising, seed=0)


def test_the_choice():
    chosen = list(chosen_mutants(("layout", "roll"), ("rms_norm",)))
    assert {mutant.kind for _, mutant in chosen} == {"layout", "roll"}
    assert {mutant.operation.name for _, mutant in chosen} == {"rms_norm"}
    assert {source for source, _ in chosen} == {"named", "by an outsider", "automatic"}
    assert choose(("control",), ("rms_norm",), seed=0) == []
    assert len(choose(("control",), (), seed=0)) >= 15
