"""JAX functions of a user's: right ones pass, wrong ones fail with the reason, JAX is left as it was."""

from __future__ import annotations

import numpy as np
import pytest

import gradcheck
from gradcheck import Verdict

jax = pytest.importorskip("jax", reason="jax is not installed, an oracle here")
jnp = jax.numpy


@pytest.fixture(scope="module", name="inputs")
def drawn_inputs():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        return tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((4, 5), 5, 5))


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def with_vjp(scale=1.0, weighted=True, less=0):
    """layer_norm with a vjp of its own, wrong as the arguments say."""

    def forward(x, weight, bias):
        rstd = 1 / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return layer_norm(x, weight, bias), ((x - x.mean(-1, keepdims=True)) * rstd, rstd, weight)

    def backward(saved, cotangent):
        x_hat, rstd, weight = saved
        g = cotangent * weight if weighted else cotangent
        variance_path = x_hat * (g * x_hat).sum(-1, keepdims=True) / (x_hat.shape[-1] - less)
        dx = scale * rstd * (g - g.mean(-1, keepdims=True) - variance_path)
        return dx, (cotangent * x_hat).sum(0), cotangent.sum(0)

    function = jax.custom_vjp(layer_norm)
    function.defvjp(forward, backward)
    return function


def test_a_function_with_a_vjp_of_its_own_passes_in_either_precision(inputs):
    report = gradcheck.check(with_vjp(), inputs)
    assert report.verdict is Verdict.PASS and report.name == "layer_norm", report
    assert report.inputs[0] == "x (4, 5) float64"
    report = gradcheck.check(with_vjp(), [value.astype("float32") for value in inputs])
    assert report.verdict is Verdict.PASS, report
    assert jnp.ones(1).dtype == np.float32, "the 64-bit mode was left on"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"less": 1}, "divided by N − 1 = 4 instead of N = 5"),
        ({"weighted": False}, "weight"),
        ({"scale": -1.0}, "the sign is wrong"),
        ({"scale": 1 + 1e-7}, "FAIL"),
    ],
    ids=["N - 1", "weight forgotten", "sign", "tiny"],
)
def test_a_wrong_vjp_is_seen_for_what_is_wrong(inputs, wrong, reason):
    report = gradcheck.check(with_vjp(**wrong), inputs)
    assert report.verdict is Verdict.FAIL and reason in str(report), report
    assert {check.input for check in report.checks if check.verdict is Verdict.FAIL} == {"x"}


def test_a_wrong_custom_jvp_is_seen_by_its_transpose(inputs):
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda primals, tangents: (square(*primals), 3 * primals[0] * tangents[0]))
    report = gradcheck.check(square, inputs[:1])
    assert report.verdict is Verdict.FAIL and "a constant factor of 1.5" in str(report)
    assert any("JVP against VJP: not made" in note for note in report.notes)


def test_a_compiled_function_of_numpy_arrays_is_recognised(inputs):
    report = gradcheck.check(jax.jit(layer_norm), tuple(map(np.asarray, inputs)))
    assert report.verdict is Verdict.PASS and report.name == "layer_norm", report


def test_a_function_that_cannot_be_traced_runs_as_it_is_written(inputs):
    def branching(x):
        return x * x if x.sum() > 0 else x * x * x

    def of_numpy(x):
        return x * np.asarray(x).shape[0]

    assert gradcheck.check(branching, inputs[:1]).verdict is Verdict.PASS
    report = gradcheck.check(of_numpy, inputs[:1])
    assert report.verdict is Verdict.ERROR and "TracerArrayConversionError" in str(report)


def test_randomness_that_a_trace_would_freeze_is_stochastic(inputs):
    rng = np.random.default_rng(0)
    report = gradcheck.check(lambda x: x * rng.random(), inputs[:1])
    assert report.verdict is Verdict.INCONCLUSIVE and "stochastic" in str(report)


def test_a_state_that_a_trace_would_freeze_is_seen(inputs):
    """The pass that pulls back reads what the last forward pass left."""
    left = {}
    function = jax.custom_vjp(lambda x: jnp.tanh(x))

    def forward(x):
        left["y"] = np.tanh(np.asarray(x))
        return jnp.tanh(x), None

    function.defvjp(forward, lambda _, cotangent: (cotangent * (1 - left["y"] ** 2),))
    report = gradcheck.check(function, inputs[:1])
    assert report.verdict is Verdict.FAIL and "another call" in str(report), report


@pytest.mark.parametrize("new", ["key", "PRNGKey"])
def test_keys_are_passed_on(inputs, new):
    def dropout(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)

    report = gradcheck.check(dropout, (inputs[0], getattr(jax.random, new)(0)))
    assert report.verdict is Verdict.PASS, report
    # In 64-bit mode the mask would be another: it is judged in float32.
    report = gradcheck.check(dropout, (inputs[0].astype("float32"), getattr(jax.random, new)(0)))
    reason = "judged in float32, to 2e-3; with float64, forward raised TypeError: the function draws random"
    assert report.verdict is Verdict.PASS and reason in str(report.checks), report


def test_the_gradient_of_the_gradient(inputs):
    cube = jax.custom_vjp(lambda x: x**3)

    def detached(x, cotangent):
        return (3 * jax.lax.stop_gradient(x) ** 2 * cotangent,)

    cube.defvjp(lambda x: (x**3, x), detached)
    report = gradcheck.check(cube, inputs[:1], order=2)
    failed = {check.name for check in report.checks if check.verdict is Verdict.FAIL}
    assert "second order" in failed and "gradient" not in failed
    assert gradcheck.check(lambda x: x**3, inputs[:1], order=2).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x, x * 2), "returned tuple, wanted one jax.Array; check its 2 parts one at a time"),
        (lambda x: 1.0, "the function returned float"),
        (lambda x: x.reshape(7), "forward raised TypeError"),
    ],
    ids=["two arrays", "number", "exception"],
)
def test_what_cannot_be_checked_is_an_error_that_says_why(inputs, function, reason):
    report = gradcheck.check(function, inputs[:1])
    assert report.verdict is Verdict.ERROR and reason in str(report), report


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_without_axes_are_checked_too(inputs, dtype):
    with jax.enable_x64(True):
        x = inputs[0].astype(dtype)
    assert gradcheck.check(jnp.sin, (x[0, 0],)).verdict is Verdict.PASS
    assert gradcheck.check(lambda x: (x * x).sum(), (x,)).verdict is Verdict.PASS


def test_one_gradient_for_two_inputs_may_be_one_array(inputs):
    assert gradcheck.check(lambda a, b: a + b, (inputs[0], inputs[0])).verdict is Verdict.PASS


def test_a_backward_pass_that_raises_is_shown_with_its_line(inputs):
    function = jax.custom_vjp(lambda x: x * 2)

    def backward(_, cotangent):
        raise KeyError("lost")

    function.defvjp(lambda x: (x * 2, None), backward)
    reason = gradcheck.check(function, inputs[:1]).reasons[0]
    line = backward.__code__.co_firstlineno + 1
    assert reason == f"backward raised KeyError: 'lost', at test_jax_functions.py:{line}"


def test_bfloat16_is_refused():
    with pytest.raises(TypeError, match="input x has dtype bfloat16, which NumPy cannot calculate with"):
        gradcheck.check(jnp.tanh, (jnp.ones(3, jnp.bfloat16),))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_forward_rule_must_give_what_the_function_gives(dtype):
    """jax.vjp runs the rule only: a function that everybody else gets another value from would pass."""
    function = jax.custom_vjp(lambda x: jax.nn.gelu(x, approximate=False))
    function.defvjp(lambda x: (jax.nn.gelu(x), x), lambda x, c: jax.vjp(jax.nn.gelu, x)[1](c))
    report = gradcheck.check(function, [np.random.default_rng(0).normal(size=(4, 5)).astype(dtype)])
    assert report.verdict is Verdict.FAIL
    assert "without a gradient to record, the function gives another output" in report.reasons[0]
