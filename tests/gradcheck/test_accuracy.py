"""Low precision: judged in float64, then compared with the float64 results; and right pairs are let alone."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import along, batch_norm, batch_norm_inputs, norm, norm_backward

import gradcheck
from gradcheck import Verdict, accuracy
from gradcheck.subject import make_subject

F16, F32, F64 = np.float16, np.float32, np.float64
EPS = 1e-5


def inputs(dtype, shape=(6, 8), *, scale=1.0, mean=0.0, weight=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * scale + mean
    parameters = (rng.standard_normal(shape[-1]) * weight, rng.standard_normal(shape[-1]))
    return tuple(array.astype(dtype) for array in (x, *parameters))


def working(dtype):
    """What a kernel for float16 computes in."""
    return np.promote_types(dtype, np.float32)


def layer_norm(x, weight, bias):
    """float16 stored, float32 inside."""
    wide = [array.astype(working(x.dtype)) for array in (x, weight, bias)]
    output, saved = norm((1,), 1, eps=EPS)(*wide)
    return output.astype(x.dtype), saved


def layer_norm_backward(saved, cotangent):
    gradients = norm_backward(saved, cotangent.astype(saved.x_hat.dtype))
    return tuple(gradient.astype(cotangent.dtype) for gradient in gradients)


def named(report, name):
    return [check for check in report.checks if check.name == name]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", [(6, 8), (3, 2), (2, 1), (5, 130), (1, 7)])
def test_a_right_float16_norm_passes(shape, seed):
    zero = ("x", "weight") if shape[1] == 1 else ()
    report = gradcheck.check_pair(
        layer_norm, layer_norm_backward, inputs(F16, shape, seed=seed), seed=seed, zero=zero
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert named(report, "float16 output") and len(named(report, "float16 gradient")) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 1e-3}, {"scale": 100.0}, {"scale": 1e4}, {"mean": 100.0}, {"weight": 1e3}, {"weight": 3e-3},
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_a_right_float16_norm_is_not_blamed_at_the_ends_of_its_range(settings, seed):
    report = gradcheck.check_pair(layer_norm, layer_norm_backward, inputs(F16, **settings, seed=seed))
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), str(report)


def test_a_gradient_beyond_float16_is_not_blamed():
    def forward(x, weight):
        return x * weight * x.dtype.type(64), (x, weight)

    def backward(saved, cotangent):
        x, weight = (array.astype(working(array.dtype)) for array in saved)
        gradients = cotangent * weight * 64, (cotangent * x).sum(0) * 64
        return tuple(gradient.astype(cotangent.dtype) for gradient in gradients)

    x = np.full((200, 3), 30000, F16)
    report = gradcheck.check_pair(forward, backward, (x, np.array([1e-4, 1e-5, 1e-6], F16)))
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "the gradient of weight is about" in report.reasons[0]
    assert "at the end of float16" in report.reasons[0]


def test_a_gradient_that_overflows_for_some_cotangents_is_not_blamed():
    def forward(x):
        return (x.astype(working(x.dtype)) * 2e6).astype(x.dtype), None

    def backward(saved, cotangent):
        return ((cotangent.astype(working(cotangent.dtype)) * 2e6).astype(cotangent.dtype),)

    verdicts = {
        gradcheck.check_pair(forward, backward, (np.full(3, 0.01, F16),), seed=seed).verdict
        for seed in range(30)
    }
    assert verdicts == {Verdict.PASS, Verdict.INCONCLUSIVE}


def test_a_needless_float16_overflow_fails():
    def backward(x, cotangent):
        return (cotangent * F16(60000) / F16(60000) * 8 * x,)

    def forward(x):
        return 4 * x * x, x

    x = np.random.default_rng(0).standard_normal((4, 5)).astype(F16)
    report = gradcheck.check_pair(forward, backward, (x,))
    assert report.verdict is Verdict.FAIL, str(report)
    assert "while forward is finite" in report.reasons[0] or "instead of" in report.reasons[0]


def stalling(x, weight, bias):
    """Sums in float16, one element after the other: they stand still when they are large."""
    if x.dtype != F16:
        return layer_norm(x, weight, bias)
    total, squares = F16(0), F16(0)
    for column in x.T:
        total = (total + column).astype(F16)
    mean = total / F16(x.shape[1])
    for column in (x - mean[:, None]).T:
        squares = (squares + column * column).astype(F16)
    rstd = (1 / np.sqrt(squares / F16(x.shape[1]) + F16(EPS)))[:, None]
    x_hat = (x - mean[:, None]) * rstd
    _, saved = layer_norm(x, weight, bias)
    return x_hat * along(weight, 2, 1) + along(bias, 2, 1), saved


def test_float16_sums_are_flagged_where_they_stall_and_not_before():
    short = gradcheck.check_pair(stalling, layer_norm_backward, inputs(F16, (3, 16)))
    assert short.verdict is Verdict.PASS, str(short)
    rough = gradcheck.check_pair(stalling, layer_norm_backward, inputs(F16, (3, 40), mean=8.0))
    (output,) = named(rough, "float16 output")
    assert output.verdict is Verdict.PASS and 2e-3 < output.error / output.scale < 0.1, str(rough)
    x, weight, bias = inputs(F16, (2, 4096), scale=0.05)
    x += np.where(np.arange(4096) % 2, F16(0.9), F16(-0.9))  # 4096 squares of 0.81 end at 2048
    long = gradcheck.check_pair(stalling, layer_norm_backward, (x, weight, bias))
    (output,) = named(long, "float16 output")
    assert output.verdict is Verdict.FAIL, str(long)
    assert "where the inputs' last digits explain" in output.reason


def test_a_wrong_formula_in_float16_is_judged_in_float64():
    def backward(saved, cotangent):
        gradients = norm_backward(saved, cotangent.astype(saved.x_hat.dtype))
        return tuple((each * (1 + 1e-6)).astype(cotangent.dtype) for each in gradients)

    report = gradcheck.check_pair(layer_norm, backward, inputs(F16))
    assert report.verdict is Verdict.FAIL
    assert all(check.verdict is Verdict.PASS for check in named(report, "float16 gradient"))


def only(*dtypes):
    """A pair that knows these dtypes alone."""

    def forward(x):
        if x.dtype not in dtypes:
            raise TypeError(f"no kernel for {x.dtype}")
        return x * x, x.copy()

    return forward, lambda x, cotangent: (2 * x * cotangent,)


@pytest.mark.parametrize(
    ("known", "dtype", "verdict", "judged"),
    [
        ((F16, F32), F16, Verdict.PASS, F32),
        ((F32,), F32, Verdict.PASS, F32),
        ((F16, F64), F16, Verdict.PASS, F64),
        ((F16,), F16, Verdict.INCONCLUSIVE, F16),
    ],
)
def test_the_mathematics_is_judged_in_the_widest_precision_there_is(known, dtype, verdict, judged):
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(dtype)
    pair = only(*map(np.dtype, known))
    report = gradcheck.check_pair(*pair, (x,))
    assert report.verdict is verdict, str(report)
    twin, check = accuracy.exact_twin(make_subject(*pair, (x,)))
    assert twin.dtype == judged
    assert (check is None) is (judged is F64)
    if verdict is Verdict.INCONCLUSIVE:
        assert "takes float16 only" in report.reasons[0] and "no kernel for float64" in report.reasons[0]


def test_zeros_from_a_float16_backward_fail():
    def forward(x):
        return x * x, x.copy()

    def lazy(x, cotangent):
        return (2 * x * cotangent if x.dtype == F64 else np.zeros_like(x),)

    x = np.random.default_rng(0).standard_normal((4, 5)).astype(F16)
    report = gradcheck.check_pair(forward, lazy, (x,))
    (check,) = named(report, "float16 gradient")
    assert check.verdict is Verdict.FAIL
    assert " instead of " in check.reason


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"scale": 1e-6}, {"scale": 1e4}, {"mean": 3e6}, {"mean": 1e4}, {"weight": 1e4}, {"shape": (5, 2)},
        {"shape": (1, 3)}, {"shape": (3, 1)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_right_pairs_are_never_blamed(settings, dtype, seed):
    arrays = inputs(dtype, **settings, seed=seed)
    for axes in ((1,), (0,)):
        forward = norm(axes, 1, eps=EPS)
        report = gradcheck.check_pair(forward, norm_backward, arrays, seed=seed)
        assert report.verdict not in (Verdict.FAIL, Verdict.ERROR), str(report)


@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_constant_rows_are_never_blamed(dtype):
    x, weight, bias = inputs(dtype)
    x[2] = 0.1
    report = gradcheck.check_pair(layer_norm, layer_norm_backward, (x, weight, bias))
    assert report.verdict not in (Verdict.FAIL, Verdict.ERROR), str(report)


def test_a_reference_cannot_write_to_the_inputs():
    def reference(x, running):
        running += 1
        return (running[0] + 1) * x

    pair = lambda x, running: (2 * x, None), lambda s, c: (2 * c, None)
    inputs = np.random.default_rng(0).standard_normal(4), np.zeros(3, int)
    subject = make_subject(*pair, inputs, differentiable=("x",))
    (check,) = accuracy.check_reference(subject, reference, np.random.default_rng(0))
    assert check.verdict is Verdict.PASS, check.reason
    assert check.resolution < 1e-12, "every call of the reference gave the same"


@pytest.mark.parametrize("beside", [1e-4, 1e-2, 1.0])
def test_a_wrong_float32_kernel_beside_a_kink_fails(beside):
    """Nothing that float32 rounds lies on the other side of it: a kink is no excuse there."""

    def forward(x):
        return x + np.maximum(x - level, 0) / 2, x > level

    def backward(above, cotangent):
        gradient = cotangent + cotangent * above / 2
        if gradient.dtype == F32:
            gradient[1] *= F32(1 + 1e-4)
        return (gradient,)

    level = 0.25
    x = np.array([level + beside, -1.5, 2.0, 0.7], F32)
    subject = make_subject(forward, backward, (x,))
    checks = accuracy.check_low_precision(
        subject, subject.in_float64(), np.random.default_rng(0), output=True
    )
    assert [check.verdict for check in checks] == [Verdict.PASS, Verdict.FAIL], checks


@pytest.mark.parametrize("seed", [1, 2, 65, 196])
def test_a_kink_that_float32_and_float64_see_from_either_side_is_not_blamed(seed):
    """An output within rounding of a kink: for the last two seeds, the first jiggled runs all miss it."""

    def forward(x, weight, bias):
        output, saved = batch_norm(x, weight, bias)
        return np.maximum(output, 0), (saved, output > 0)

    def backward(saved, cotangent):
        return norm_backward(saved[0], cotangent * saved[1])

    x, weight, bias = batch_norm_inputs(np.random.default_rng(seed), (5, 6), np.float32)
    exact, _ = batch_norm(x.astype(np.float64), weight.astype(np.float64), np.zeros(6))
    bias[0] = -exact[np.argmax(np.abs(exact[:, 0])), 0]
    subject = make_subject(forward, backward, (x, weight, bias))
    rng = np.random.default_rng(seed)
    checks = accuracy.check_low_precision(subject, subject.in_float64(), rng, output=True)
    assert Verdict.FAIL not in {check.verdict for check in checks}, checks
