"""NumPy's global generator: frozen for a pair that draws from it, left alone for the caller."""

from __future__ import annotations

import numpy as np
import pytest

import gradcheck
from gradcheck import Verdict
from gradcheck.contract import randomness
from gradcheck.contract.randomness import GlobalGenerator

X = np.random.default_rng(0).standard_normal((6, 7))


@pytest.fixture(autouse=True)
def a_known_state():
    before = np.random.get_state()
    np.random.seed(11)
    yield
    np.random.set_state(before)


def draw():
    return (np.random.random(X.shape) < 0.6) / 0.6


def dropout(x):
    mask = draw()
    return x * mask, mask


def test_a_mask_drawn_in_forward_and_kept_passes():
    report = gradcheck.check_pair(dropout, lambda mask, c: (c * mask,), (X,))
    assert report.verdict is Verdict.PASS, str(report)
    assert any(note.startswith("np.random: every forward started from one state") for note in report.notes)


def test_a_mask_drawn_again_in_backward_fails():
    report = gradcheck.check_pair(dropout, lambda mask, c: (c * draw(),), (X,))
    assert report.verdict is Verdict.FAIL
    assert any(reason.startswith("backward uses another mask than its forward") for reason in report.reasons)


def test_a_backward_that_continues_its_forward_repeats():
    """Two draws in forward, of which backward can repeat the second: it starts where its forward stopped."""
    drawn = []

    def backward(saved, cotangent):
        drawn.append(np.random.random())
        return (cotangent * 1,)

    report = gradcheck.check_pair(lambda x: (x * np.random.random(), np.random.random()), backward, (X,))
    assert len(set(drawn)) == 1
    assert not any(reason.startswith("stochastic") for reason in report.reasons)


def test_random_numbers_in_backward_alone_are_frozen_too():
    drawn = []

    def backward(saved, cotangent):
        drawn.append(np.random.random())
        return (cotangent * 2,)

    report = gradcheck.check_pair(lambda x: (x * 2, None), backward, (X,))
    assert len(set(drawn)) == 1
    assert report.verdict is Verdict.PASS, str(report)


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_the_generator_as_it_was(fails):
    def backward(mask, cotangent):
        np.random.random(3)
        if fails:
            raise RuntimeError("no")
        return (cotangent * mask,)

    expected = np.random.RandomState(11).random(3)
    gradcheck.check_pair(dropout, backward, (X,))
    assert np.array_equal(np.random.random(3), expected)


def test_a_pair_that_draws_nothing_is_watched_once(monkeypatch):
    reads, real = [], randomness._read
    monkeypatch.setattr(randomness, "_read", lambda: reads.append(1) or real())
    monkeypatch.setattr(randomness, "_write", lambda state: pytest.fail("the state was not to be touched"))
    gradcheck.check_pair(lambda x: (x * 2, None), lambda s, c: (c * 2,), (X,))
    assert len(reads) == 3, "before the first call, after the first forward and after the first backward"


def test_calls_start_where_they_are_told():
    generator = GlobalGenerator()
    first, left = generator.call("forward", None, np.random.random)
    again, _ = generator.call("forward", None, np.random.random)
    follows, _ = generator.call("backward", left, np.random.random)
    both = np.random.RandomState(11).random(2)
    assert [first, again, follows] == [both[0], both[0], both[1]]
    assert generator.used
