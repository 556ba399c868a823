"""check_pair as a whole: what it must accept, what it must catch, and what it must refuse to judge."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from pairs import (
    Saved,
    batch_norm,
    batch_norm_inputs,
    layer_norm,
    norm,
    norm_backward,
    rms_backward,
)

import gradcheck
from gradcheck import Verdict

RNG = functools.partial(np.random.default_rng, 20)


def verdict_of(forward, backward, inputs, **options):
    return gradcheck.check_pair(forward, backward, inputs, **options).verdict


# --- correct pairs


def masked(mask):
    def forward(x):
        return x * mask.astype(x.dtype) * x.dtype.type(2), None

    return forward, lambda saved, cotangent: (
        cotangent * mask.astype(cotangent.dtype) * cotangent.dtype.type(2),
    )


def matmul(a, b):
    return a @ b, (a, b)


def matmul_backward(saved, cotangent):
    a, b = saved
    return cotangent @ b.T, a.T @ cotangent


PLAIN = {
    "tanh": (lambda x: (np.tanh(x), np.tanh(x)), lambda y, c: (c * (1 - y * y),)),
    "exp": (lambda x: (np.exp(x), np.exp(x)), lambda y, c: (c * y,)),
    "sum": (lambda x: (x.sum(), x.shape), lambda shape, c: (np.broadcast_to(c, shape).copy(),)),
    "mask": masked(RNG().random((4, 5)) < 0.5),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_functions_pass(name, dtype):
    report = gradcheck.check_pair(*PLAIN[name], (RNG().standard_normal((4, 5)).astype(dtype),))
    assert report.verdict is Verdict.PASS, str(report)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_matmul_passes(dtype):
    inputs = RNG().standard_normal((3, 4)).astype(dtype), RNG().standard_normal((4, 2)).astype(dtype)
    report = gradcheck.check_pair(matmul, matmul_backward, inputs, reference=lambda a, b: a @ b)
    assert report.verdict is Verdict.PASS, str(report)


def test_a_zero_dimensional_input_passes():
    assert verdict_of(*PLAIN["tanh"], (np.array(0.3),)) is Verdict.PASS


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("scale", "mean"), [(1e-3, 0.0), (1.0, 0.0), (1e2, 0.0), (1e4, 0.0), (1e-3, 1.0), (1.0, 1e4), (1e4, 1e4)]
)
def test_scales_and_means_pass(scale, mean, dtype):
    x, weight, bias = batch_norm_inputs(RNG(), (8, 3))
    inputs = tuple(array.astype(dtype) for array in (mean + scale * x, weight, bias))
    report = gradcheck.check_pair(batch_norm, norm_backward, inputs, reference=lambda *a: batch_norm(*a)[0])
    assert report.verdict is Verdict.PASS, str(report)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_a_constant_row_passes(eps):
    x = RNG().standard_normal((4, 6))
    x[1] = 0.7
    forward = norm((1,), 1, eps=eps)
    assert (
        verdict_of(forward, norm_backward, (x, RNG().standard_normal(6), RNG().standard_normal(6)))
        is Verdict.PASS
    )


def random_case(seed, dtype):
    rng = np.random.default_rng(seed)
    kind = rng.integers(4)
    shape = tuple(int(n) for n in rng.integers(3, 7, size=2 if kind < 3 else 4))
    axes, centred = [((1,), True), ((1,), False), ((0,), True), ((0, 2, 3), True)][kind]
    x = rng.standard_normal(shape) * rng.choice([1e-3, 1.0, 1e2, 1e4]) + rng.choice([0.0, 0.0, 10.0])
    if rng.random() < 0.2:
        x[0] = x.flat[0]
    weight = rng.standard_normal(shape[1]) if rng.random() < 0.8 else None
    bias = rng.standard_normal(shape[1]) if rng.random() < 0.8 else None
    inputs = tuple(None if array is None else array.astype(dtype) for array in (x, weight, bias))
    backward = norm_backward if centred else rms_backward
    return norm(axes, 1, centred=centred, eps=float(rng.choice([1e-3, 1e-5]))), backward, inputs


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_false_alarm_in_300_configurations(dtype):
    unsettled = 0
    for seed in range(300):
        report = gradcheck.check_pair(*random_case(seed, dtype), seed=seed)
        assert report.verdict < Verdict.FAIL, f"seed {seed}\n{report}"
        unsettled += report.verdict is Verdict.INCONCLUSIVE
    assert unsettled <= 12


# --- wrong derivatives


def spoiled(change):
    """The right backward pass of batch_norm, its result then changed."""

    def backward(saved, cotangent):
        return change(saved, cotangent, *norm_backward(saved, cotangent))

    return backward


def one_element(saved, cotangent, dx, dweight, dbias):
    dx[2, 1] *= 1 + 1e-6
    return dx, dweight, dbias


def n_minus_one(saved, cotangent, dx, dweight, dbias):
    g = cotangent * saved.weight
    n = len(g)
    return dx - saved.rstd * saved.x_hat * (g * saved.x_hat).sum(0) * (1 / (n - 1) - 1 / n), dweight, dbias


def without_gamma(saved, cotangent, dx, dweight, dbias):
    return norm_backward(saved._replace(weight=np.ones_like(saved.weight)), cotangent)[0], dweight, dbias


def wrong_axis(saved, cotangent, dx, dweight, dbias):
    return norm_backward(saved._replace(axes=(1,)), cotangent)[0], dweight, dbias


def eps_outside_root(saved, cotangent, dx, dweight, dbias):
    deviation = np.sqrt(1 / saved.rstd**2 - 1e-5)
    return norm_backward(saved._replace(rstd=1 / (deviation + 1e-5)), cotangent)[0], dweight, dbias


def larger_eps(saved, cotangent, dx, dweight, dbias):
    rstd = 1 / np.sqrt(1 / saved.rstd**2 - 1e-5 + 1e-3)
    return norm_backward(saved._replace(rstd=rstd), cotangent)[0], dweight, dbias


WRONG = {
    "mean path missing": functools.partial(norm_backward, mean_path=False),
    "variance path missing": functools.partial(norm_backward, variance_path=False),
    "N - 1": spoiled(n_minus_one),
    "eps outside the root": spoiled(eps_outside_root),
    "eps 1e-3 for 1e-5": spoiled(larger_eps),
    "factor 1 + 1e-6": spoiled(lambda s, c, dx, dw, db: (dx * (1 + 1e-6), dw, db)),
    "weight off by 1 + 1e-6": spoiled(lambda s, c, dx, dw, db: (dx, dw * (1 + 1e-6), db)),
    "one element": spoiled(one_element),
    "gamma forgotten": spoiled(without_gamma),
    "wrong axis": spoiled(wrong_axis),
    "sign": spoiled(lambda s, c, dx, dw, db: (-dx, dw, db)),
    "zeros": spoiled(lambda s, c, dx, dw, db: (0 * dx, dw, db)),
    "bias from the wrong sum": spoiled(lambda s, c, dx, dw, db: (dx, dw, db / len(c))),
    "NaN": spoiled(lambda s, c, dx, dw, db: (np.where(dx == dx.max(), np.nan, dx), dw, db)),
    "abs": spoiled(lambda s, c, dx, dw, db: (np.abs(dx), dw, db)),
    "clip": spoiled(lambda s, c, dx, dw, db: (np.clip(dx, -20, 20), dw, db)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("bug", WRONG)
def test_wrong_derivatives_fail(bug, dtype):
    report = gradcheck.check_pair(batch_norm, WRONG[bug], batch_norm_inputs(RNG(), dtype=dtype))
    assert report.verdict is Verdict.FAIL, str(report)


def test_another_mask_in_the_backward_fails():
    forward, _ = masked(RNG().random((4, 5)) < 0.5)
    _, backward = masked(np.random.default_rng(1).random((4, 5)) < 0.5)
    assert verdict_of(forward, backward, (RNG().standard_normal((4, 5)),)) is Verdict.FAIL


def test_a_wrong_float32_branch_fails():
    def backward(saved, cotangent):
        (dx,) = PLAIN["tanh"][1](saved, cotangent)
        return (dx * cotangent.dtype.type(1.0001) if cotangent.dtype == np.float32 else dx,)

    inputs = (RNG().standard_normal((4, 5)).astype(np.float32),)
    assert verdict_of(PLAIN["tanh"][0], backward, inputs) is Verdict.FAIL


def test_float32_that_its_inputs_do_not_determine_is_inconclusive():
    x = np.full((3, 6), 333.3, np.float32)
    assert x[0].mean() != x[0, 0], "the mean of a constant row rounds, so the row is not centred to zero"
    report = gradcheck.check_pair(norm((1,), 1), norm_backward, (x, None, None))
    (check,) = [check for check in report.checks if check.name == "float32 output"]
    assert check.verdict is Verdict.INCONCLUSIVE, str(report)
    assert check.reason.startswith("resolution: off by 0.00965 from zero at (0, 0)")


def test_float32_only_callables_are_judged_in_float32():
    def forward(x):
        y = np.tanh(x.astype(np.float32))
        return y, y

    inputs = (RNG().standard_normal((4, 5)).astype(np.float32),)
    assert verdict_of(forward, PLAIN["tanh"][1], inputs) is Verdict.PASS
    assert verdict_of(forward, lambda y, c: (c * (1 - y),), inputs) is Verdict.FAIL


# --- the reference


def one_pass_batch_norm(x, weight, bias):
    variance = (x * x).mean(0) - x.mean(0) ** 2
    rstd = 1 / np.sqrt(variance + x.dtype.type(1e-5))
    x_hat = (x - x.mean(0)) * rstd
    return x_hat * weight + bias, Saved(x_hat, rstd, weight, bias, (0,), 1)


@pytest.mark.parametrize(("mean", "dtype"), [(1e4, np.float64), (1e3, np.float32)])
def test_the_reference_catches_a_cancelling_variance(mean, dtype):
    x, weight, bias = batch_norm_inputs(RNG(), (32, 3))
    inputs = tuple(array.astype(dtype) for array in (x + mean, weight, bias))
    report = gradcheck.check_pair(
        one_pass_batch_norm, norm_backward, inputs, reference=lambda *arrays: batch_norm(*arrays)[0]
    )
    (check,) = [check for check in report.checks if check.name == "reference"]
    assert check.verdict is Verdict.FAIL, str(report)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (lambda x: np.tanh(x)[0], "reference has shape"),
        (lambda x: x.nothing, "reference raised AttributeError"),
    ],
)
def test_a_broken_reference_is_an_error(reference, reason):
    report = gradcheck.check_pair(*PLAIN["tanh"], (RNG().standard_normal((4, 5)),), reference=reference)
    assert report.verdict is Verdict.ERROR
    assert reason in report.reasons[0]


# --- what cannot be judged


def test_zeros_for_a_vanishing_gradient_are_vacuous_not_passed():
    def forward(x):
        y, _ = layer_norm(x)
        return np.asarray(y.sum()), x

    report = gradcheck.check_pair(forward, lambda x, c: (np.zeros_like(x),), (RNG().standard_normal((4, 5)),))
    assert report.verdict is Verdict.VACUOUS, str(report)


def test_zero_as_declared_passes_and_a_false_declaration_fails():
    one_per_group = RNG().standard_normal((5, 1)), RNG().standard_normal(1), RNG().standard_normal(1)
    assert verdict_of(layer_norm, norm_backward, one_per_group) is Verdict.VACUOUS
    report = gradcheck.check_pair(layer_norm, norm_backward, one_per_group, zero=("x", "weight"))
    assert report.verdict is Verdict.PASS, str(report)
    assert [check.reason for check in report.checks if check.input == "x"] == ["zero, as declared"]
    assert verdict_of(layer_norm, norm_backward, batch_norm_inputs(RNG()), zero=("x",)) is Verdict.FAIL


def relu(x):
    return np.maximum(x, 0), x > 0


def relu_backward(positive, cotangent):
    return (cotangent * positive,)


def test_relu_away_from_its_kink_passes_however_near():
    x = RNG().standard_normal((4, 5))
    x[0, :3] = 1e-2, -1e-3, 1e-4
    assert verdict_of(relu, relu_backward, (x,)) is Verdict.PASS


def test_a_kink_does_not_excuse_a_wrong_gradient():
    x = RNG().standard_normal((4, 5))
    x[1, 2] = 0
    assert verdict_of(relu, lambda positive, c: (-c * positive,), (x,)) is Verdict.FAIL


def pool(x):
    windows = x.reshape(-1, 4)
    return windows.max(1), windows.argmax(1)


def pool_backward(largest, cotangent):
    gradient = np.zeros((len(largest), 4))
    gradient[np.arange(len(largest)), largest] = cotangent
    return (gradient.reshape(-1),)


KINKED = {
    "relu": (relu, relu_backward),
    "abs": (lambda x: (np.abs(x), np.sign(x)), lambda sign, c: (c * sign,)),
    "max": (pool, pool_backward),
}


def near_kinks(name, distance, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(40)
    if name == "max":
        for window in x.reshape(-1, 4)[:3]:
            window[0] = window[1:].max() + distance * rng.standard_normal()
    else:
        x[:3] = distance * rng.standard_normal(3)
    return x


@pytest.mark.parametrize("distance", [1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12])
@pytest.mark.parametrize("name", KINKED)
def test_a_kink_next_to_the_input_is_no_false_alarm(name, distance):
    for seed in range(15):
        report = gradcheck.check_pair(*KINKED[name], (near_kinks(name, distance, seed),), seed=seed)
        assert report.verdict is Verdict.PASS, f"seed {seed}\n{report}"


@pytest.mark.parametrize("name", KINKED)
def test_a_far_kink_does_not_excuse_a_wrong_gradient(name):
    forward, backward = KINKED[name]
    for seed in range(10):
        x = near_kinks(name, 1e-3, seed)
        assert verdict_of(forward, backward, (x,), seed=seed) is Verdict.PASS
        wrong = verdict_of(forward, lambda s, c: ((1 + 1e-6) * backward(s, c)[0],), (x,), seed=seed)
        assert wrong is Verdict.FAIL


def test_ties_are_not_called_zero():
    def forward(x):
        return x.max(-1), (x.argmax(-1), x.shape)

    def backward(saved, cotangent):
        largest, shape = saved
        gradient = np.zeros(shape)
        gradient[np.arange(len(largest)), largest] = cotangent
        return (gradient,)

    x = np.round(np.random.default_rng(13).normal(size=(4, 6)))
    assert verdict_of(forward, backward, (x,), seed=13) is Verdict.PASS


# --- what the range of the numbers does not hold


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e-200, 1e200, 1e300])
def test_sizes_whose_squares_leave_the_range_are_judged(scale):
    x = scale * RNG().uniform(-2, 2, (3, 4))
    assert verdict_of(lambda x: (2 * x, None), lambda s, c: (2 * c,), (x,)) is Verdict.PASS
    assert verdict_of(lambda x: (2 * x, None), lambda s, c: (2.001 * c,), (x,)) is Verdict.FAIL


@pytest.mark.parametrize(
    ("forward", "backward", "x"),
    [
        (lambda x: (1 / x, x.copy()), lambda x, c: (-c / x**2,), [1e-6, 1.0, -2.0, 1e6]),
        (lambda x: (np.log(x), x.copy()), lambda x, c: (c / x,), [1e-300, 1.0, 2.0]),
    ],
)
def test_what_has_no_value_next_to_the_input_accuses_nobody(forward, backward, x):
    for seed in range(10):
        assert verdict_of(forward, backward, (np.array(x),), seed=seed) <= Verdict.INCONCLUSIVE


def test_a_float64_operation_that_rounds_to_float32_is_inconclusive():
    def forward(x):
        y = np.tanh(x.astype(np.float32)).astype(np.float64)
        return y, y

    report = gradcheck.check_pair(forward, PLAIN["tanh"][1], (RNG().standard_normal((4, 5)),))
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "low precision" in report.reasons[0]


def test_unfrozen_dropout_is_stochastic():
    rng = RNG()

    def forward(x):
        mask = rng.random(x.shape) < 0.5
        return x * mask, mask

    report = gradcheck.check_pair(forward, lambda mask, c: (c * mask,), (RNG().standard_normal((4, 5)),))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reasons[0].startswith("stochastic")


@pytest.mark.parametrize(
    ("value", "reason"), [(-1.0, "forward's output holds NaN"), (np.nan, "input x holds NaN")]
)
def test_values_that_are_not_finite_are_inconclusive(value, reason):
    x = np.array([1.0, 2.0, value])
    report = gradcheck.check_pair(lambda x: (np.log(x), x), lambda x, c: (c / x,), (x,))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert reason in report.reasons[0]


def test_empty_arrays_are_vacuous():
    report = gradcheck.check_pair(*PLAIN["exp"], (np.zeros((0, 3)),))
    assert report.verdict is Verdict.VACUOUS
    assert "x has shape (0, 3)" in report.reasons[0]


# --- inputs that hide a mistake


@pytest.mark.parametrize(
    ("weight", "bias", "hiding", "them"),
    [
        (None, None, "", ""),
        (1.0, None, "weight is all ones", "it"),
        (None, 0.0, "bias is all zeros", "it"),
        (1.0, 0.0, "weight is all ones, bias is all zeros", "them"),
    ],
)
def test_constant_inputs_are_noted_and_change_no_verdict(weight, bias, hiding, them):
    x, *drawn = batch_norm_inputs(RNG())
    constants = [None if value is None else np.full(4, value) for value in (weight, bias)]
    others = (one if constant is None else constant for one, constant in zip(drawn, constants, strict=True))
    report = gradcheck.check_pair(batch_norm, norm_backward, (x, *others))
    assert report.verdict is Verdict.PASS
    note = f"{hiding}: a backward pass that forgets {them} may pass; draw {them} at random"
    assert report.notes == ((note,) if hiding else ())


def test_a_single_input_and_one_without_elements_hide_nothing():
    report = gradcheck.check_pair(
        lambda x: (2 * x, None), lambda saved, cotangent: (2 * cotangent,), (np.ones(3),)
    )
    assert report.verdict is Verdict.PASS and report.notes == ()
    empty = np.ones((0, 4)), np.full(4, 2.0), np.full(4, 3.0)
    assert not any("is all" in note for note in gradcheck.check_pair(batch_norm, norm_backward, empty).notes)
