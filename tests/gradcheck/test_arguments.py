"""The arguments of check_pair and check: what they accept, and how they refuse the rest."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.adapters import Pair

RNG = functools.partial(np.random.default_rng, 20)


def verdict_of(forward, backward, inputs, **options):
    return gradcheck.check_pair(forward, backward, inputs, **options).verdict


def tanh(x):
    y = np.tanh(x)
    return y, y


def tanh_backward(y, cotangent):
    return (cotangent * (1 - y * y),)


def test_absent_and_fixed_inputs():
    x, _, bias = batch_norm_inputs(RNG())
    assert verdict_of(batch_norm, norm_backward, (x, None, bias)) is Verdict.PASS
    labels = RNG().integers(0, 4, 6)

    def pick(x, labels):
        return x[np.arange(len(x)), labels], (x.shape, labels)

    def pick_backward(saved, cotangent):
        shape, labels = saved
        dx = np.zeros(shape)
        dx[np.arange(len(dx)), labels] = cotangent
        return dx, None

    assert verdict_of(pick, pick_backward, (x, labels), differentiable=("x",)) is Verdict.PASS
    with pytest.raises(TypeError, match=r"input labels has dtype int64.*differentiable="):
        gradcheck.check_pair(pick, pick_backward, (x, labels))


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (np.ones(3), {}, TypeError, r"inputs must be a tuple of arrays; got ndarray; write \(x,\)"),
        (3.0, {}, TypeError, r"got float; write \(x,\)"),
        ((np.ones(3) for _ in range(1)), {}, TypeError, r"got generator; write tuple\(inputs\)"),
        ({"x": np.ones(3)}, {}, TypeError, r"got dict; write tuple\(inputs.values\(\)\).*input_names="),
        ((), {}, ValueError, "inputs is empty"),
        (([1.0, 2.0],), {}, TypeError, r"must be a NumPy array or None; got list; write np.array\("),
        ((2.0,), {}, TypeError, r"must be a NumPy array or None; got float; write np.array\("),
        ((np.float64(2),), {}, TypeError, r"must be a NumPy array or None; got float64; write np.array\("),
        (({"w": np.ones(3)},), {}, TypeError, "got dict; give each array as an input, and put them together"),
        (("relu",), {}, TypeError, "got str; settings that are no numbers.*functools.partial"),
        (
            (types.SimpleNamespace(toarray=None),),
            {},
            TypeError,
            r"got SimpleNamespace; write its toarray\(\)",
        ),
        ((types.SimpleNamespace(shape=(3,)),), {}, TypeError, r"tensors there is check\(fn, inputs\)"),
        ((None,), {}, ValueError, "no input is left to differentiate"),
        ((np.ones(3, complex),), {}, TypeError, "complex128; float16.*real and imaginary parts"),
        ((np.array([None]),), {}, TypeError, "object; float16, float32 and float64 can be checked: convert"),
        ((np.array(["a"]),), {}, TypeError, "<U1; float16, float32 and float64 can be checked: convert"),
        ((np.ones(3, int),), {}, TypeError, "int64, which has no derivative; convert it to float64"),
        ((np.ones(3, bool),), {}, TypeError, "bool, which has no derivative"),
        ((np.ones(3),), {"differentiable": ()}, ValueError, "no input is left to differentiate"),
        ((np.ones(3),), {"differentiable": (-1,)}, ValueError, r"names -1; the inputs are x \(0 to 0\)"),
        ((np.ones(3),), {"differentiable": "x"}, TypeError, r"differentiable must be a collection.*\('x',\)"),
        ((np.ones(3),), {"differentiable": 1.5}, TypeError, "differentiable must be a collection.*got float"),
        ((np.ones(3), None), {"differentiable": (1,)}, ValueError, "names x1, but that input is None"),
        ((np.ones(3),), {"stress": -1}, ValueError, "stress must be an integer of at least 0; got -1"),
        ((np.ones(3),), {"stress": 1e3}, TypeError, "stress must be an integer of at least 0; got 1000.0"),
        ((np.ones(3),), {"jvp": 3}, TypeError, "jvp must be callable; got int"),
        ((np.ones(3),), {"zero": "x"}, TypeError, r"zero must be a collection.*\('x',\)"),
        ((np.ones(3),), {"zero": ("y",)}, ValueError, "zero names 'y'; the inputs are x"),
        ((np.ones(3),), {"differentiable": (4,)}, ValueError, "differentiable names 4"),
        ((np.ones(3),), {"input_names": ("a", "b")}, ValueError, "input_names must be 1 different names"),
        ((np.ones(3),) * 2, {"input_names": ("a", "a")}, ValueError, "must be 2 different names"),
        ((np.ones(3),), {"input_names": (1,)}, TypeError, r"input_names must be names; got \[1\]"),
        ((np.ones(3),), {"input_names": "x"}, TypeError, r"input_names must be a collection.*\('x',\)"),
        ((np.ones(3),), {"seed": None}, TypeError, "seed must be an integer of at least 0; got None"),
        ((np.ones(3),), {"seed": "a"}, TypeError, "seed must be an integer of at least 0; got 'a'"),
        ((np.ones(3),), {"seed": True}, TypeError, "seed must be an integer of at least 0; got True"),
        ((np.ones(3),), {"seed": -1}, ValueError, "seed must be an integer of at least 0; got -1"),
        ((np.ma.ones(3),), {}, TypeError, "input x is a masked array, and its mask would be lost"),
        ((np.ones(3),), {"reference": 3}, TypeError, "reference must be callable; got int"),
    ],
)
def test_bad_arguments_are_named(inputs, options, error, message):
    with pytest.raises(error, match=message):
        gradcheck.check_pair(tanh, tanh_backward, inputs, **options)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here")
def test_longdouble_is_refused():
    with pytest.raises(TypeError, match=r"input x has dtype \w+; .*convert it to float64"):
        gradcheck.check_pair(tanh, tanh_backward, (np.ones(3, np.longdouble),))


def test_bfloat16_is_refused():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with pytest.raises(TypeError, match=r"input x has dtype bfloat16; .*convert it to float32"):
        gradcheck.check_pair(tanh, tanh_backward, (np.ones(3, bfloat16),))


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"mix dtypes \(a float32, b float64\)"):
        gradcheck.check_pair(
            tanh, tanh_backward, (np.ones(2, np.float32), np.ones(2)), input_names=("a", "b")
        )


@pytest.mark.parametrize(
    ("x", "verdict", "reason"),
    [
        (np.ones((0, 3)), Verdict.VACUOUS, "nothing to check: x has shape (0, 3) and no elements"),
        (np.array([1, np.nan]), Verdict.INCONCLUSIVE, "input x holds NaN or infinity"),
        (np.array([1, -np.inf]), Verdict.INCONCLUSIVE, "input x holds NaN or infinity"),
    ],
)
def test_inputs_without_a_derivative_are_no_one_s_fault(x, verdict, reason):
    report = gradcheck.check_pair(tanh, tanh_backward, (x,))
    assert report.verdict is verdict
    assert reason in report.reasons[0]


def test_infinity_in_an_input_without_gradient_is_allowed():
    def forward(scores, mask):
        weights = np.exp(scores + mask)
        return weights, weights

    inputs = RNG().standard_normal((3, 3)), np.triu(np.full((3, 3), -np.inf), 1)
    backward = lambda weights, c: (c * weights, None)  # noqa: E731
    assert verdict_of(forward, backward, inputs, differentiable=("scores",)) is Verdict.PASS


def test_an_output_without_elements_is_vacuous():
    report = gradcheck.check_pair(lambda x: (x[:0], None), lambda s, c: (np.zeros(3),), (np.ones(3),))
    assert report.verdict is Verdict.VACUOUS
    assert "forward's output has shape (0,)" in report.reasons[0]


def test_names_and_positions_may_come_from_generators():
    options = {"input_names": iter(("a", "b")), "differentiable": iter(("a", 1))}
    x = RNG().standard_normal((2, 3))
    report = gradcheck.check_pair(lambda a, b: (a * b, (a, b)), product_backward, tuple(x), **options)
    assert report.verdict is Verdict.PASS


def product_backward(saved, cotangent):
    a, b = saved
    return cotangent * b, cotangent * a


def test_the_caller_s_arrays_are_never_touched():
    x = RNG().standard_normal((4, 5))
    before = x.copy()

    def forward(x):
        x += 1
        return x * 1, None

    assert verdict_of(forward, lambda s, c: (c.copy(),), (x,)) is Verdict.ERROR
    assert np.array_equal(x, before)


def test_the_same_seed_gives_the_same_report():
    inputs = batch_norm_inputs(RNG())
    first, again, other = (
        gradcheck.check_pair(batch_norm, norm_backward, inputs, seed=seed).checks for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_without_axes_stay_arrays(dtype):
    def forward(x, scale):
        assert all(isinstance(value, np.ndarray) for value in (x, scale))
        return np.asarray(x * x * scale), (x, scale)

    def backward(saved, cotangent):
        assert isinstance(cotangent, np.ndarray)
        x, scale = saved
        return np.asarray(2 * x * scale * cotangent), np.asarray(x * x * cotangent)

    report = gradcheck.check_pair(forward, backward, (np.array(1.5, dtype), np.array(0.7, dtype)))
    assert report.verdict is Verdict.PASS, str(report)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"tolerance": 1e-3},
            r"check\(\) takes no tolerance: the errors are measured, .*; its options are order, ",
        ),
        ({"orders": 2}, r"check\(\) takes no orders; its options are order, .*differentiable, .*seed$"),
        ({"framework": False}, r"check\(\) takes no framework; its options are "),
    ],
)
def test_an_unknown_option_of_check_is_refused_with_those_that_there_are(options, reason):
    with pytest.raises(TypeError, match=reason):
        gradcheck.check(tinygrad_bn.Tensor.tanh, (tinygrad_bn.tensor(np.ones(3)),), **options)


def test_arrays_inside_of_an_input_are_not_taken_for_constants_unless_the_caller_says_so():
    def scaled(x, parameters):
        return x * parameters["scale"][0]

    inputs = (tinygrad_bn.tensor(RNG().standard_normal(3)), {"scale": [tinygrad_bn.tensor(2 * np.ones(3))]})
    with pytest.raises(TypeError, match=r"input 1 is a dict of arrays; give each array as an input, .*able="):
        gradcheck.check(scaled, inputs)
    assert gradcheck.check(scaled, inputs, differentiable=("x",)).verdict is Verdict.PASS


def test_an_exception_is_shown_with_the_line_of_the_user_s_that_it_came_from():
    def backward(y, cotangent):
        return (np.reshape(cotangent, 99),)

    report = gradcheck.check_pair(tanh, backward, (np.ones(3),))
    line = backward.__code__.co_firstlineno + 1
    assert report.reasons[0].endswith(f"size 3 into shape (99,), at test_arguments.py:{line}"), str(report)


def test_the_cost_does_not_depend_on_the_size():
    counts = set()
    for rows in (6, 600):
        drawn = [batch_norm_inputs(np.random.default_rng(seed), (rows, 4)) for seed in range(3)]
        reports = [gradcheck.check_pair(batch_norm, norm_backward, inputs) for inputs in drawn]
        counts.add(min((report.evaluations, report.vjps) for report in reports))  # some draws need one more
    assert len(counts) == 1
    assert counts.pop()[0] < 260


def test_check_finds_the_adapter_that_recognises_the_inputs(monkeypatch):
    class Box:
        def __init__(self, array):
            self.array = array

    def pair(fn, inputs, differentiable):
        return Pair(fn.forward, fn.backward, [box.array for box in inputs], "boxed", (0,))

    adapter = types.ModuleType("gradcheck.adapters.boxes")
    adapter.recognises = lambda fn, inputs: any(isinstance(value, Box) for value in inputs)
    adapter.pair = pair
    monkeypatch.setitem(sys.modules, "gradcheck.adapters.boxes", adapter)
    monkeypatch.setattr("gradcheck.harness.ADAPTERS", ("boxes",))
    operation = types.SimpleNamespace(forward=lambda x: (x * 1, None), backward=lambda s, c: (c,))
    report = gradcheck.check(operation, (Box(RNG().standard_normal(4)),))
    assert report.name == "boxed"
    assert report.verdict is Verdict.PASS, "a framework may hand the cotangent on"
    with pytest.raises(TypeError, match=r"numpy\.ndarray.*check_pair"):
        gradcheck.check(operation, (np.ones(3),))
