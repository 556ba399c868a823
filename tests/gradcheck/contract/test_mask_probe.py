"""Masks: another one in backward is found, and zeros of other kinds are no mask."""

from __future__ import annotations

import numpy as np
import pytest

import gradcheck
from gradcheck import Verdict


def masked(forward_mask, backward_mask):
    return lambda x: (x * forward_mask, None), lambda s, c: (c * backward_mask,)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_another_mask_in_backward_fails(dtype):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 7)).astype(dtype)
    one, other = (2 * (rng.random(x.shape) < 0.5).astype(dtype) for _ in range(2))
    assert gradcheck.check_pair(*masked(one, one), (x,)).verdict is Verdict.PASS
    report = gradcheck.check_pair(*masked(one, other), (x,))
    (check,) = (check for check in report.checks if check.name == "masks agree")
    leaking, blocked = np.sum((one == 0) & (other != 0)), np.sum((one != 0) & (other == 0))
    assert check.verdict is Verdict.FAIL
    assert f"not zero at {leaking} elements that forward drops, and zero at {blocked} that it" in check.reason


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (lambda x: (np.maximum(x, 0), x > 0), lambda m, c: (c * m,)),
        (lambda x: (np.clip(x, -0.5, 0), (x > -0.5) & (x < 0)), lambda m, c: (c * m,)),
        (lambda x: (np.roll(np.maximum(x, 0), 1), x > 0), lambda m, c: (np.roll(c, -1) * m,)),
        (lambda x: (np.sort(np.maximum(x, 0)), x), lambda x, c: (c[np.argsort(np.argsort(x))] * (x > 0),)),
        (lambda x: (x * (x == x.max()), x == x.max()), lambda m, c: (c * m,)),
        (lambda x: (np.maximum(x, 0)[::-1].copy(), x > 0), lambda m, c: (c[::-1] * m,)),
    ],
)  # fmt: skip
def test_zeros_of_other_kinds_are_no_mask(forward, backward):
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(9)
        report = gradcheck.check_pair(forward, backward, (x,))
        (check,) = (check for check in report.checks if check.name == "masks agree")
        assert check.verdict is Verdict.PASS, str(report)


def test_outputs_that_happen_to_be_zero_are_no_mask():
    def forward(x):
        return np.clip(x, 0, 3) - 1, (x > 0) & (x < 3)

    x = np.array([1.0, 1.0, 5.0, 2.0, 4.0])
    report = gradcheck.check_pair(forward, lambda inside, c: (c * inside,), (x,))
    assert report.verdict is Verdict.PASS, str(report)


DTYPES = [np.float64, np.float32, np.float16]


def judged(forward, backward, x, seed=0):
    report = gradcheck.check_pair(forward, backward, (x,), seed=seed)
    (check,) = (check for check in report.checks if check.name == "masks agree")
    return check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 7), (9,)])
def test_a_mask_read_from_the_output_fails(dtype, shape):
    """It is right wherever x is not 0, and no element of this x is."""
    rng = np.random.default_rng(1)
    mask = (rng.random(shape) < 0.6).astype(dtype) / dtype(0.6)

    def forward(x):
        return x * mask, x * mask != 0

    x = rng.standard_normal(shape).astype(dtype)
    check = judged(forward, lambda kept, c: (c * kept / dtype(0.6),), x)
    assert check.verdict is Verdict.FAIL
    assert "backward takes its mask from values: where x is 0 and forward keeps it" in check.reason
    half = -(-int(np.count_nonzero(mask)) // 2)
    assert f"({half} of {half} elements differ)" in check.reason
    assert judged(forward, lambda _, c: (c * mask,), x).verdict is Verdict.PASS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("forward", "slope"),
    [
        (lambda x: np.maximum(x, 0), lambda x: x > 0),
        (lambda x: np.minimum(x, 0), lambda x: x < 0),
        (lambda x: x * (np.abs(x) > 0.5), lambda x: np.abs(x) > 0.5),  # hard shrinkage
        (lambda x: x * (np.abs(x) >= np.median(np.abs(x))), lambda x: np.abs(x) >= np.median(np.abs(x))),
        (lambda x: np.abs(x) * (x > 0.1), lambda x: x > 0.1),
    ],
)  # fmt: skip
def test_masks_that_depend_on_x_may_close_at_zero(dtype, forward, slope):
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(9).astype(dtype)
        check = judged(lambda x: (forward(x).astype(dtype), slope(x)), lambda m, c: (c * m,), x, seed)
        assert check.verdict is Verdict.PASS, check


def test_a_mask_of_values_is_not_said_to_be_another_one():
    """Where x is 0 the output does not tell what forward keeps; the pattern does."""
    x = np.random.default_rng(5).standard_normal((4, 5))
    x[1, 2] = x[3, 3] = 0
    kept = np.random.default_rng(6).random(x.shape) < 0.7
    kept[1, 2] = kept[3, 3] = True

    def forward(x):
        output = np.where(kept, x / 0.7, 0)
        return output, output.copy()

    report = gradcheck.check_pair(forward, lambda y, c: (np.where(y != 0, c / 0.7, 0),), (x,))
    (found,) = report.findings
    assert (found.pattern, found.sentence) == ("only where x is zero", "")
    assert "backward takes its mask from values" in report.reasons[0]
