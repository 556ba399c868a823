from __future__ import annotations

import dataclasses

import pytest

from tinygrad_bn.kernels.masks import Mask, runs
from tinygrad_bn.kernels.philox import quantise

HALF = quantise(0.5)


@pytest.mark.parametrize(
    ("shape", "mask_shape", "expected"),
    [
        ((), (), ((1, 1),)),
        ((1, 1), (1, 1), ((1, 1),)),
        ((5,), (5,), ((5, 1),)),
        ((5,), (1,), ((5, 0),)),
        ((2, 3, 4), (2, 3, 4), ((24, 1),)),
        ((2, 3, 4, 5), (2, 3, 1, 1), ((6, 1), (20, 0))),
        ((2, 3, 4, 5), (2, 1, 1, 5), ((2, 5), (12, 0), (5, 1))),
        ((2, 3, 4, 5), (1, 3, 1, 5), ((2, 0), (3, 5), (4, 0), (5, 1))),
        ((2, 3, 4, 5), (1, 3, 4, 1), ((2, 0), (12, 1), (5, 0))),
        ((2, 1, 3), (2, 1, 1), ((2, 1), (3, 0))),
        ((2, 1, 3, 4), (2, 1, 3, 1), ((6, 1), (4, 0))),
    ],
)
def test_runs(shape, mask_shape, expected):
    assert runs(shape, mask_shape) == expected


@pytest.mark.parametrize(
    ("shape", "mask_shape"), [((2, 3), (2, 2)), ((2, 3), (3,)), ((2, 3), (1, 2, 3)), ((2, 0), (2, 3))]
)
def test_a_mask_must_broadcast_axis_by_axis(shape, mask_shape):
    with pytest.raises(ValueError, match="Mask: mask_shape"):
        Mask(shape, mask_shape, 0, 0, 0, HALF, 2.0)


@pytest.mark.parametrize(("field", "value"), [("seed", 2**64), ("stream", 2**32), ("call", -1)])
def test_a_mask_checks_its_integers(field, value):
    plan = Mask((2,), (2,), 0, 0, 0, HALF, 2.0)
    with pytest.raises(ValueError, match=f"Mask: {field}"):
        dataclasses.replace(plan, **{field: value})


def test_decisions():
    assert Mask((2, 3, 4), (2, 3, 1), 0, 0, 0, HALF, 2.0).decisions == 6
    assert Mask((), (), 0, 0, 0, HALF, 2.0).decisions == 1
