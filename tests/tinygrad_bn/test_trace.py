"""`record()`: what ran, which kernel, and what the tape keeps."""

from __future__ import annotations

import contextvars

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import functional as F
from tinygrad_bn import tensor, trace

KERNEL = "tinygrad_bn.kernels.cpu.rows:sequential"


@pytest.fixture
def x():
    return tensor(np.random.default_rng(0).normal(size=(4, 3)), requires_grad=True)


def test_primitives_forward_and_backward(x):
    with tg.record() as tape:
        y = x * np.ones(3)
        y.exp().sum().backward()
    assert [(e.phase, e.operation, e.kernel) for e in tape] == [
        ("forward", "math::multiply", "primitive"),
        ("forward", "math::exp", "primitive"),
        ("forward", "reduce::sum", "primitive"),
        ("vjp", "reduce::sum", "primitive"),
        ("vjp", "math::exp", "primitive"),
        ("vjp", "math::multiply", "primitive"),
    ]
    assert [e.saved for e in tape] == [3 * 8, 12 * 8, 0, 0, 0, 0]
    assert tape[0].shapes == ((4, 3), (3,))
    assert all(e.dtype == "float64" and e.milliseconds > 0 for e in tape)
    assert tape.kernels("forward") == tape.kernels("vjp") == []


def test_kernels_are_named_with_method_and_dtype(x):
    weight = tensor(np.ones(3), requires_grad=True)
    with tg.record() as tape:
        F.layer_norm(x, 3, weight, weight).backward(np.ones((4, 3)))
    assert tape.kernels("forward") == [f"{KERNEL}.forward float64"]
    assert tape.kernels("vjp") == [f"{KERNEL}.vjp float64"]
    forward = tape[0]
    assert (forward.operation, forward.shapes) == ("norm::layer_norm", ((4, 3), (3,), (3,)))
    assert forward.saved == 12 * 8 + 3 * 8 + 3 * 4 * 8  # x, weight; mean, variance, rstd of four rows


def test_the_definition_shows_as_its_primitives(x):
    with tg.record() as tape:
        F.layer_norm(x, 3, kernel="definition")
    assert tape.kernels("forward") == []
    assert {e.operation for e in tape} >= {"reduce::mean", "math::subtract", "math::sqrt", "math::divide"}


def test_a_recorded_pass_shows_the_kernel_once_and_the_definition_after(x):
    y = F.layer_norm(x, 3)
    with tg.record() as first:
        (gradient,) = tg.grad(y, x, tensor(np.ones((4, 3))), create_graph=True)
    assert first.kernels("vjp") == [f"{KERNEL}.vjp float64"]
    with tg.record() as second:
        tg.grad((gradient * gradient).sum(), x)
    assert second.kernels("vjp") == []
    assert any(e.operation == "reduce::mean" for e in second)


def test_nothing_is_saved_without_recording(x):
    with tg.record() as tape, tg.no_grad():
        x.exp()
        F.layer_norm(x, 3)
    assert [e.saved for e in tape] == [0, 0]


def test_absent_inputs_have_no_shape_and_numbers_an_empty_one(x):
    with tg.record() as tape:
        F.layer_norm(x, 3)
        x * 2.0
    assert [e.shapes for e in tape] == [((4, 3),), ((4, 3), ())]


def test_a_trace_is_local_nests_and_ends(x):
    assert trace.current() is None
    with tg.record() as outer:
        x.exp()
        with tg.record() as inner:
            x.exp()
        contextvars.Context().run(x.exp)
        with pytest.raises(ZeroDivisionError), tg.record():
            raise ZeroDivisionError
        x.tanh()
    assert trace.current() is None
    x.exp()
    assert [e.operation for e in outer] == ["math::exp", "math::tanh"]
    assert [e.operation for e in inner] == ["math::exp"]


def test_the_table(x):
    with tg.record() as tape:
        x.exp()
        F.layer_norm(x, 3)
    lines = str(tape).splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:5] == ["forward", "math::exp", "(4,3)", "float64", "96"]
    assert lines[1].endswith(f"{KERNEL}.forward float64")
