"""How far two gradients may be apart for nothing but rounding."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck import Verdict, budget
from gradcheck.contract.expected import Expected
from gradcheck.subject import make_subject

COUNT = 64  # elements: more than budget.SAMPLES, so that a round makes the fewest moves


def crossing_rarely(seed):
    """A pair whose slope is 2 beyond a kink that one move in 16 reaches, and what is expected before it."""
    low = np.ones(COUNT)
    high = low + 3 * np.spacing(1.0)

    def forward(x):
        return x * 1.0, x

    def backward(x, cotangent):
        beyond = x[0] > high[0] and x[1] > high[1]  # both moved by 4 ulp, and upwards
        return (cotangent * (2.0 if beyond else 1.0),)

    cotangent = np.random.default_rng(seed).standard_normal(COUNT)
    subject = make_subject(forward, backward, (low,))
    return Expected(subject, (low,), low, cotangent, (cotangent.copy(),))


def verdicts():
    found = []
    for seed in range(20):
        expected = crossing_rarely(seed)
        (difference,) = expected.differences((2 * expected.cotangent,), np.random.default_rng(seed))
        found.append(difference.verdict)
    return found


def test_a_gradient_from_beyond_a_kink_that_few_moves_reach_is_not_accused(monkeypatch):
    with_rounds = verdicts().count(Verdict.FAIL)
    monkeypatch.setattr(budget, "CONFIRMATIONS", 0)
    without = verdicts().count(Verdict.FAIL)
    assert without >= 14  # (15/16)³ of 20 is 16
    assert with_rounds <= 8  # (15/16)²⁷ of 20 is 3.5


@pytest.mark.parametrize(("factor", "digits"), [(1 + 1e-3, 8), (1 + 1e-10, 17)])
def test_numbers_that_differ_are_printed_so_that_they_differ(factor, digits):
    x = np.full(3, 10.438869)
    subject = make_subject(lambda x: (x * 1.0, x), lambda x, c: (c,), (x,))
    expected = Expected(subject, (x,), x, x, (x,))
    (difference,) = expected.differences((x * factor,), np.random.default_rng(0))
    assert f"{x[0] * factor:.{digits}g} instead of {x[0]:.{digits}g} " in difference.text
