"""Which directions are tried, what a common one shows, and where a gradient is judged that a kink hides."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.calibration.controls import HARD_CASES
from gradcheck.derivatives.directional import Direction
from gradcheck.derivatives.gradient import check_gradients
from gradcheck.derivatives.point import Point
from gradcheck.subject import make_subject


def rng(seed=0):
    return np.random.default_rng(seed)


def relu(x):
    return np.maximum(x, 0), x > 0


def relu_backward(positive, cotangent):
    return (cotangent * positive,)


def gradients_of(forward, backward, inputs, seed=0):
    return check_gradients(make_subject(forward, backward, inputs), rng(seed))


# --- directions


def test_three_inputs_take_four_ladders_and_one_measurement_of_noise():
    subject = make_subject(batch_norm, norm_backward, batch_norm_inputs(rng()))
    gradients = check_gradients(subject, rng())
    assert [check.name for check in gradients.checks] == ["gradient"] * 3 + ["gradients together"]
    base, jiggles, noise, ladder = 1, 3, 14, 18
    assert subject.evaluations == base + jiggles + noise + 4 * ladder


def test_one_input_gets_two_directions_and_no_common_one():
    gradients = gradients_of(relu, relu_backward, (rng().standard_normal((3, 4)),))
    assert [check.name for check in gradients.checks] == ["gradient"]


@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
def test_an_error_in_one_input_is_named_and_the_others_stay_clean(wrong):
    def backward(saved, cotangent):
        named = dict(zip(("x", "weight", "bias"), norm_backward(saved, cotangent), strict=True))
        named[wrong] = named[wrong] * (1 + 1e-6)
        return tuple(named.values())

    checks = gradients_of(batch_norm, backward, batch_norm_inputs(rng())).checks
    assert {check.input: check.verdict for check in checks} == {
        name: Verdict.FAIL if name == wrong else Verdict.PASS for name in ("x", "weight", "bias")
    }


class Blind(Direction):
    """A direction of one input alone that happens to be orthogonal to the error."""

    def __init__(self, point, indices, rng, like=None):
        super().__init__(point, indices, rng, like)
        if len(self.indices) == 1:
            self.evidence.analytic[:] = self.evidence.numeric


def test_an_error_that_only_the_common_direction_shows_is_an_error_all_the_same(monkeypatch):
    monkeypatch.setattr("gradcheck.derivatives.gradient.Direction", Blind)
    checks = gradients_of(
        batch_norm,
        lambda saved, c: tuple(1.001 * each for each in norm_backward(saved, c)),
        batch_norm_inputs(rng()),
    ).checks
    assert [check.verdict for check in checks] == [Verdict.PASS] * 3 + [Verdict.FAIL]
    assert checks[-1].name == "gradients together"
    assert checks[-1].input is None


def test_swapped_elements_are_seen_though_every_sixth_direction_is_blind_to_them():
    def backward(saved, cotangent):
        dx, dweight, dbias = norm_backward(saved, cotangent)
        dx[[0, 1], 0] = dx[[1, 0], 0]
        return dx, dweight, dbias

    inputs = batch_norm_inputs(rng())
    seen = [
        any(
            check.verdict is Verdict.FAIL for check in gradients_of(batch_norm, backward, inputs, seed).checks
        )
        for seed in range(60)
    ]
    assert sum(seen) >= 56  # one direction alone would see about 50


def test_the_noise_of_one_input_does_not_blur_another():
    """What comes from x is rounded on its way to six decimals, what comes from bias is not."""

    def forward(x, bias):
        return np.round(np.tanh(x), 6) + bias, np.tanh(x)

    inputs = rng().standard_normal((3, 4)), rng(1).standard_normal(4)
    subject = make_subject(forward, lambda y, c: (c * (1 - y * y), c.sum(0)), inputs)
    first, second, *_ = check_gradients(subject, rng()).checks
    assert first.verdict is Verdict.INCONCLUSIVE
    assert second.verdict is Verdict.PASS
    assert not second.reason, "it was judged at the input itself"


def test_a_direction_keeps_the_memory_layout_of_every_input():
    layouts = []

    def forward(x, y):
        layouts.append((x.flags.f_contiguous, y.flags.c_contiguous))
        return x * y, (x, y)

    x, y = np.asfortranarray(rng().standard_normal((3, 4))), rng().standard_normal((3, 4))
    point = Point.of(make_subject(forward, lambda saved, c: (c * saved[1], c * saved[0]), (x, y)), rng())
    Direction(point, [0, 1], rng())
    assert set(layouts) == {(True, True)}


def test_tangents_are_zero_where_an_input_stays_and_none_without_a_gradient():
    inputs = (*batch_norm_inputs(rng())[:2], np.arange(4))
    subject = make_subject(
        lambda x, weight, index: (x * weight[index], (x, weight)),
        lambda saved, c: (c * saved[1], (c * saved[0]).sum(0), None),
        inputs,
        differentiable=(0, 1),
    )
    x, weight, index = Direction(Point.of(subject, rng()), [0], rng()).tangents()
    assert x.all() and not weight.any() and index is None


@pytest.mark.parametrize("decimals", [3, 4, 5, 6, 7])
def test_an_output_that_is_rounded_to_few_digits_accuses_nobody(decimals):
    def forward(x, bias):
        return np.round(np.tanh(x), decimals) + bias, np.tanh(x)

    for seed in range(10):
        inputs = rng(seed).standard_normal((3, 4)), rng(seed).standard_normal(4)
        found = gradients_of(forward, lambda y, c: (c * (1 - y * y), c.sum(0)), inputs, seed).checks
        verdicts = [check.verdict for check in found]
        assert verdicts == [Verdict.INCONCLUSIVE, Verdict.PASS], found


# --- beside a kink


@pytest.mark.parametrize("seed", range(5))
def test_sums_that_one_direction_does_not_move_are_no_stairs(seed):
    """½ − ½ is 0: along the first direction some of the sums stand still, along the second they move."""
    x = np.random.default_rng(seed).standard_normal((4, 5))
    report = gradcheck.check_pair(
        lambda x: (np.cumsum(x, 0), None),
        lambda _, cotangent: (np.cumsum(cotangent[::-1], 0)[::-1].copy(),),
        (x,),
    )
    assert report.verdict is Verdict.PASS, report


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_batch_of_one_has_no_gradient_and_a_backward_that_returns_one_fails(dtype):
    """The output is exactly zero, and stays so: that is known to the last digit, not a want of resolution."""

    def forward(x):
        centred = x - x.mean(0)
        rstd = 1 / np.sqrt((centred**2).mean(0) + x.dtype.type(1e-5))
        return centred * rstd, rstd

    x = np.random.default_rng(0).standard_normal((1, 5)).astype(dtype)
    assert gradcheck.check_pair(forward, lambda rstd, c: (c * rstd,), (x,)).verdict is Verdict.FAIL
    assert gradcheck.check_pair(forward, lambda rstd, c: (c * 0,), (x,)).verdict is Verdict.VACUOUS
    assert gradcheck.check_pair(forward, lambda rstd, c: (c * 0,), (x,), zero=("x",)).verdict is Verdict.PASS


def test_a_gradient_at_a_kink_is_judged_beside_it():
    x = rng().standard_normal((4, 5))
    x[1, 2] = 0
    report = gradcheck.check_pair(relu, relu_backward, (x,))
    (check,) = [check for check in report.checks if check.name == "gradient"]
    assert check.verdict is Verdict.PASS
    assert check.reason.startswith("judged beside the input, with x moved by 5 % of its spread; at it: ")
    assert "in 1 of 20 elements, first at (1, 2)" in check.reason


@pytest.mark.parametrize("error", [1e-3, 1e-6])
@pytest.mark.parametrize("distance", [0.0, 1e-17, 1e-13, 1e-10, 1e-7])
def test_a_kink_does_not_hide_a_small_error(distance, error):
    for seed in range(5):
        x = rng(seed).standard_normal(20)
        x[3] = distance
        (check,) = gradients_of(relu, lambda positive, c: (c * positive * (1 + error),), (x,), seed).checks
        assert check.verdict is Verdict.FAIL, f"seed {seed}: {check}"


def test_the_other_inputs_stay_where_they_are_when_one_is_moved():
    x, weight = np.array([0.0, 1.0, -2.0]), np.array([1.0, 2.0, 3.0])
    gradients = gradients_of(
        lambda x, weight: (np.maximum(x, 0) * weight, (x, weight)),
        lambda saved, c: (c * (saved[0] > 0) * saved[1], c * np.maximum(saved[0], 0)),
        (x, weight),
    )
    (place,) = gradients.elsewhere.values()
    assert list(gradients.elsewhere) == ["x"]
    assert np.array_equal(place.inputs[1], weight)
    assert 0 < np.max(np.abs(place.inputs[0] - x)) < 0.5


def test_an_error_beside_the_input_says_where_it_was_seen():
    sign = lambda x: np.where(x < 0, -1.0, 1.0)  # noqa: E731
    (check,) = gradients_of(
        lambda x: (np.abs(x), x), lambda x, c: (c * sign(x) * 1.0001,), (np.zeros(4),)
    ).checks
    assert check.verdict is Verdict.FAIL
    assert "judged beside the input" in check.reason


def test_kinks_everywhere_are_inconclusive_and_say_so():
    def sawtooth(x):
        return np.abs((1e9 * x) % 1 - 0.5), x

    report = gradcheck.check_pair(
        sawtooth, lambda x, c: (c * 1e9 * np.sign((1e9 * x) % 1 - 0.5),), (rng().standard_normal(6),)
    )
    (check,) = [check for check in report.checks if check.name == "gradient"]
    assert check.verdict is Verdict.INCONCLUSIVE
    assert "3 inputs beside it, moved by 5 %, are no better" in check.reason


def test_the_calls_beside_the_input_are_counted():
    at_kink, away = (
        gradcheck.check_pair(relu, relu_backward, (np.array([-1.0, value, 2.0]),)) for value in (0.0, 0.5)
    )
    assert at_kink.evaluations > away.evaluations + 18
    assert at_kink.vjps > away.vjps


# --- the edge of the domain


def strict_root(x):
    if np.any(x < 0):
        raise ValueError("x must be at least 0")
    return np.sqrt(x), np.sqrt(x)


def root_backward(y, cotangent):
    return (cotangent / (2 * y),)


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-6])
def test_smaller_steps_stay_inside_a_domain_whose_edge_raises(smallest):
    report = gradcheck.check_pair(strict_root, root_backward, (np.array([smallest, 1.0, 2.0]),))
    (check,) = [check for check in report.checks if check.name == "gradient"]
    assert check.verdict is Verdict.PASS, str(report)
    assert not check.reason, "it was judged at the input itself"


def test_a_forward_that_raises_beside_the_input_is_no_error():
    def only_here(x):
        if not np.allclose(x, [1.0, 2.0], rtol=0, atol=1e-14):
            raise ValueError("nowhere else")
        return x * x, x

    report = gradcheck.check_pair(only_here, lambda x, c: (2 * c * x,), (np.array([1.0, 2.0]),))
    (check,) = [check for check in report.checks if check.name == "gradient"]
    assert check.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "at points beside this input forward raised ValueError: nowhere else" in check.reason


def test_an_output_whose_shape_depends_on_the_values_is_an_error():
    def forward(x):
        return x[x > -1e-3], x

    report = gradcheck.check_pair(
        forward, lambda x, c: (np.where(x > -1e-3, 1.0, 0.0) * c.sum(),), (np.array([0.0, 1.0]),)
    )
    assert report.verdict is Verdict.ERROR
    assert "forward's output has shape (2,), but (1,) beside this input" in str(report)


@pytest.mark.parametrize("seed", range(4))
def test_twelve_decades_are_settled_beside_the_input(seed):
    x = np.array([1e-6, 1.0, -2.0, 1e6])
    report = gradcheck.check_pair(lambda x: (1 / x, x.copy()), lambda x, c: (-c / x**2,), (x,), seed=seed)
    assert report.verdict is Verdict.PASS, str(report)


# --- hard, but correct


def hard(name, seed):
    x, weight, bias = batch_norm_inputs(rng(seed))
    changed = {
        "scale 1e-6": lambda: (1e-6 * x, weight, bias),
        "scale 1e4": lambda: (1e4 * x, weight, bias),
        "mean 3e6": lambda: (x + 3e6, weight, bias),
        "weight 1e4": lambda: (x, 1e4 * weight, bias),
        "constant column": lambda: (np.where(np.arange(4) == 1, 0.7, x), weight, bias),
    }
    return changed[name]()


@pytest.mark.parametrize("name", ["scale 1e-6", "scale 1e4", "mean 3e6", "weight 1e4", "constant column"])
def test_hard_inputs_are_no_false_alarm(name):
    for seed in range(8):
        report = gradcheck.check_pair(batch_norm, norm_backward, hard(name, seed), seed=seed)
        # The last digits of numbers this far from zero leave the derivative known to about 1e-7.
        worst = Verdict.INCONCLUSIVE if name == "mean 3e6" else Verdict.PASS
        assert report.verdict <= worst, str(report)


class AtomicSums:
    """A column sum whose terms arrive in another order at every call, as with atomic additions on a GPU."""

    def __init__(self, factor=1.0):
        self.order, self.factor = rng(99), factor

    def total(self, terms):
        result = np.zeros(terms.shape[1])
        for row in self.order.permutation(len(terms)):
            result = result + terms[row]
        return result

    def forward(self, x, weight):
        y = x * weight
        return y - self.total(y) / len(y), (x, weight)

    def backward(self, saved, cotangent):
        x, weight = saved
        g = cotangent - self.total(cotangent) / len(cotangent)
        return g * weight * self.factor, self.total(g * x)


def test_sums_in_random_order_pass_and_do_not_hide_an_error():
    inputs = rng().standard_normal((12, 3)), rng(1).standard_normal(3)
    for seed in range(5):
        for factor, verdict in ((1.0, Verdict.PASS), (1 + 1e-6, Verdict.FAIL)):
            pair = AtomicSums(factor)
            report = gradcheck.check_pair(pair.forward, pair.backward, inputs, seed=seed)
            assert report.verdict is verdict, str(report)


@pytest.mark.parametrize("seed", [2183, 2552])
def test_bars_hold_where_extrapolations_agree_by_chance(seed):
    """Norms far from zero, where rounding errors line up along few-bit directions: far from an alarm."""
    (case,) = (each for each in HARD_CASES if each.name == "norm, mean 3e6, float32")
    forward, backward, inputs = case.draw(np.random.default_rng(seed))
    inputs = tuple(each.astype(np.float32).astype(np.float64) for each in inputs)
    subject = make_subject(forward, backward, inputs)
    for check in check_gradients(subject, np.random.default_rng([seed, 1])).checks:
        assert check.verdict is Verdict.PASS
        assert check.error < 0.5 * (2 * check.bar + check.tolerance), check
