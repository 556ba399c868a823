"""The arguments of check_pair and check: what they accept, and how they refuse the rest."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict

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
        ((), {}, ValueError, "inputs is empty"),
        (([1.0, 2.0],), {}, TypeError, "input x must be a NumPy array or None; got list"),
        ((None,), {}, ValueError, "no input is left to differentiate"),
        ((np.ones(3, np.float16),), {}, TypeError, "float16; only float32 and float64"),
        ((np.ones(3, complex),), {}, TypeError, "complex128; only float32 and float64"),
        ((np.array([None]),), {}, TypeError, "object; only float32 and float64"),
        ((np.ones(3),), {"zero": "x"}, TypeError, r"zero must be a collection.*\('x',\)"),
        ((np.ones(3),), {"zero": ("y",)}, ValueError, "zero names 'y'; the inputs are x"),
        ((np.ones(3),), {"differentiable": (4,)}, ValueError, "differentiable names 4"),
        ((np.ones(3),), {"input_names": ("a", "b")}, ValueError, "input_names must be 1 different names"),
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


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"mix dtypes \(a float32, b float64\)"):
        gradcheck.check_pair(
            tanh, tanh_backward, (np.ones(2, np.float32), np.ones(2)), input_names=("a", "b")
        )


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


def test_the_cost_does_not_depend_on_the_size():
    counts = set()
    for rows in (6, 600):
        report = gradcheck.check_pair(batch_norm, norm_backward, batch_norm_inputs(RNG(), (rows, 4)))
        counts.add((report.evaluations, report.vjps))
    assert len(counts) == 1
    assert counts.pop()[0] < 260


def test_check_finds_the_adapter_that_recognises_the_inputs(monkeypatch):
    class Box:
        def __init__(self, array):
            self.array = array

    def pair(fn, inputs, differentiable):
        return fn.forward, fn.backward, [box.array for box in inputs], "boxed"

    adapter = types.ModuleType("gradcheck.adapters.boxes")
    adapter.recognises = lambda inputs: any(isinstance(value, Box) for value in inputs)
    adapter.pair = pair
    monkeypatch.setitem(sys.modules, "gradcheck.adapters.boxes", adapter)
    monkeypatch.setattr("gradcheck.harness.ADAPTERS", ("boxes",))
    operation = types.SimpleNamespace(forward=lambda x: (x * 1, None), backward=lambda s, c: (c,))
    report = gradcheck.check(operation, (Box(RNG().standard_normal(4)),))
    assert report.name == "boxed"
    assert report.verdict is Verdict.PASS, "a framework may hand the cotangent on"
    with pytest.raises(TypeError, match=r"numpy\.ndarray.*check_pair"):
        gradcheck.check(operation, (np.ones(3),))
