"""Backward passes that are wrong at the input itself and right all around it, and some that are not."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import layer_norm, norm, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.derivatives.directional import Direction
from gradcheck.derivatives.point import Point
from gradcheck.judge import OUTLIER
from gradcheck.subject import make_subject


def rng(seed=0):
    return np.random.default_rng(seed)


def constant_row():
    x, weight, bias = rng().standard_normal((4, 6)), rng(1).standard_normal(6), rng(2).standard_normal(6)
    x[1] = 0.5
    return x, weight, bias


def element_at_the_mean():
    """Of a move by 4 ulp a part leaves the middle element at the mean."""
    x = np.array([[-1.0, 0.0, 1.0], [2.0, 5.0, 1.5], [1.0, 2.0, -0.3]])
    return x, rng(1).standard_normal(3), rng(2).standard_normal(3)


def first_weight_one():
    x, weight, bias = rng().standard_normal((4, 6)), rng(1).standard_normal(6), rng(2).standard_normal(6)
    weight[0] = 1
    return x, weight, bias


def zeros_for_constant_rows(saved, dx):
    return np.where(np.abs(saved.x_hat).max(1, keepdims=True) == 0, 0, dx)


def zero_at_the_mean(saved, dx):
    return np.where(saved.x_hat == 0, 0, dx)


def another_path_at_one(saved, dx):
    return dx * (1 + 1e-6) if saved.weight[0] == 1 else dx


JUMPS = {
    "zeros for constant rows": (constant_row, zeros_for_constant_rows),
    "zero at the mean": (element_at_the_mean, zero_at_the_mean),
    "another path where a weight is 1": (first_weight_one, another_path_at_one),
}


def check_of_x(draw, change, seed, forward=layer_norm):
    def backward(saved, cotangent):
        dx, *others = norm_backward(saved, cotangent)
        return change(saved, dx), *others

    report = gradcheck.check_pair(forward, backward, draw(), seed=seed, explain=False)
    return next(check for check in report.checks if check.name == "gradient")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", JUMPS)
def test_a_backward_that_jumps_exactly_at_the_input_fails(what, seed):
    check = check_of_x(*JUMPS[what], seed)
    assert check.verdict is Verdict.FAIL, check
    assert check.reason.endswith(f"({OUTLIER})"), check.reason


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-3])
@pytest.mark.parametrize("draw", [constant_row, element_at_the_mean, first_weight_one])
def test_a_right_backward_passes_there(draw, eps):
    for seed in range(4):
        check = check_of_x(draw, lambda saved, dx: dx, seed, norm((1,), 1, eps=eps))
        assert check.verdict is not Verdict.FAIL, check


@pytest.mark.parametrize("first", [True, False])
def test_a_tie_is_a_kink_that_a_backward_may_take_from_either_side(first):
    """Moved by a few ulp it takes the other side as often, but there the forward pass is not smooth."""

    def forward(x):
        return x.max(1), x

    def backward(x, cotangent):
        at = x.argmax(1) if first else x.shape[1] - 1 - x[:, ::-1].argmax(1)
        dx = np.zeros_like(x)
        dx[np.arange(len(x)), at] = cotangent
        return (dx,)

    x = np.array([[1.0, 1.0, 0.2], [0.3, -1.0, 0.3], [0.0, 0.0, -2.0]])
    for seed in range(20):
        (check,) = (
            check
            for check in gradcheck.check_pair(forward, backward, (x,), seed=seed).checks
            if check.name == "gradient"
        )
        assert check.verdict is Verdict.PASS, check


@pytest.mark.parametrize("seed", [2, 8])
def test_rounding_that_is_the_same_along_the_line_accuses_nobody(seed):
    """ȳ moves alone: x stays, and with it the rounding of its mean, which no noise along ȳ shows."""

    def forward(x, cotangent):
        """The gradients of a norm over two elements: of x zero but for eps and that rounding, of bias not."""
        centre = x - x.mean()
        x_hat = centre / np.sqrt((centre**2).mean() + 1e-12)
        g = cotangent - cotangent.mean()
        return np.append(g - x_hat * (g * x_hat).mean(), cotangent.sum()), x

    def backward(x, cotangent):
        centre = (x - x[::-1]) / 2  # exact: the derivatives along g = (1, −1) are as small as eps
        variance = (centre**2).mean()
        share = 1e-12 / (variance + 1e-12)
        of_x = cotangent[:2]
        return np.zeros_like(x), (of_x - of_x.mean()) * share + cotangent[2]  # of x, nobody asks

    x = 1e4 + rng(seed).standard_normal(2)
    subject = make_subject(forward, backward, (x, rng(seed + 50).standard_normal(2)))
    evidence = Direction(Point.of(subject, rng(seed)), [1], rng(seed)).evidence
    error = np.abs(evidence.analytic - evidence.numeric)
    assert np.all(error <= 2 * evidence.bar + evidence.tolerance), evidence
    assert np.all(evidence.bar < 1e-10)  # no more than that rounding
