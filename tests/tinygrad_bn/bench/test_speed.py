"""What the measurement of a case says of a library that fails at it."""

from __future__ import annotations

import pytest

from tinygrad_bn.bench import speed
from tinygrad_bn.bench.cases import Case
from tinygrad_bn.bench.pool import Failed


class Failing:
    threads = 1

    def prepare(self, library, case, **options):
        raise Failed("ValueError: shapes do not fit")


@pytest.mark.parametrize(
    ("operation", "hint"),
    [("math::add", "; all inputs had the shape of the first, declare others by call_at="), ("math::exp", "")],
)
def test_shapes_that_were_guessed_are_said_to_be(operation, hint):
    (failure,) = speed.measure(Case(operation, (2, 3)), (), Failing(), speed.Settings())
    assert failure.reason == "ValueError: shapes do not fit" + hint
