"""Fused operations: which kernel runs and why, and what it is told; one of a third party from end to end."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import Kernel, Registry, Sample, Tensor, fused, tensor
from tinygrad_bn import functional as F
from tinygrad_bn.fused import operation
from tinygrad_bn.kernels import views
from tinygrad_bn.ops.dropouts import _scale as scale
from tinygrad_bn.ops.norms import PARALLEL_FROM
from tinygrad_bn.ops.norms import _layer_norm as layer_norm

SEQUENTIAL, PARALLEL = (f"tinygrad_bn.kernels.cpu.rows:{name}" for name in ("sequential", "parallel"))
ELSEWHERE = "runs on cuda, the inputs are on cpu"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# An operation as a third party writes it: y = tanh(scale · x) · weight


class ScaledTanh:
    """The kernel: NumPy on arrays. Writes down how it is called."""

    def __init__(self):
        self.calls = []

    def forward(self, plan, x, weight):
        self.calls.append(("forward", plan))
        t = np.tanh(plan["scale"] * x)
        return (t if weight is None else t * weight), (t,)

    def vjp(self, plan, needs, cotangent, arrays, aux):
        self.calls.append(("vjp", needs))
        weight, (t,) = arrays[1], aux
        by_x = by_weight = None
        if needs[0]:
            by_x = cotangent * plan["scale"] * (1 - t * t) * (1 if weight is None else weight)
        if needs[1]:
            by_weight = np.sum(cotangent * t, axis=tuple(range(t.ndim - 1)))
        return by_x, by_weight


kernel = ScaledTanh()
careless = type("Careless", (ScaledTanh,), {"vjp": lambda self, *arguments: (None, None)})()


def samples(rng):
    return [Sample("matrix", (rng.normal(size=(2, 3)), rng.normal(size=3)), {"scale": 2.0})]


@pytest.fixture
def scaled_tanh():
    """Declared on a registry of its own."""
    kernel.calls.clear()
    registry = Registry(list)
    declared = declare(registry)
    assert registry.get("mine::scaled_tanh") is declared.spec
    yield declared
    assert "mine::scaled_tanh" not in tg.REGISTRY


def declare(registry, target="kernel", **declaration):
    kernels = (
        Kernel("numpy", f"{__name__}:{target}"),
        Kernel("large", f"{__name__}:{target}", preferred_from=1000),
        Kernel("single", f"{__name__}:{target}", dtypes=("float32",), preferred_from=10**6),
    )

    @operation(
        "mine::scaled_tanh",
        registry=registry,
        **{"kernels": kernels, "keeps": ((0, 1),), "samples": samples, **declaration},
    )
    def scaled_tanh(xp, x, weight, *, scale=1.0):
        """tanh(scale · x) · weight."""
        t = xp.tanh(x * scale)
        return (t if weight is None else t * weight), (t,)

    return scaled_tanh


def test_a_third_partys_operation_from_end_to_end(scaled_tanh):
    assert scaled_tanh.spec.inputs == ("x", "weight")
    assert scaled_tanh.spec.documentation == "tanh(scale · x) · weight."
    assert "test_fused.py:" in scaled_tanh.spec.origin
    (sample,) = scaled_tanh.spec.samples(np.random.default_rng(0))
    x, weight = (tensor(array, requires_grad=True) for array in sample.inputs)
    cotangent = tensor(normal(2, 3, seed=1), requires_grad=True)

    y = scaled_tanh(x, weight, **sample.attributes)
    np.testing.assert_array_equal(y.data, np.tanh(2 * x.data) * weight.data)
    assert kernel.calls == [("forward", {"scale": 2.0})]

    first = tg.grad(y, (x, weight), cotangent, create_graph=True)
    assert kernel.calls[1:] == [("vjp", (True, True))]
    by_definition = scaled_tanh(x, weight, kernel="definition", **sample.attributes)
    expected = tg.grad(by_definition, (x, weight), cotangent, create_graph=True)
    for one, other in zip(first, expected, strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-13)

    loss, expected_loss = (sum((g * g).sum() for g in gradients) for gradients in (first, expected))
    everything = (x, weight, cotangent)
    for one, other in zip(tg.grad(loss, everything), tg.grad(expected_loss, everything), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-12)
    assert [name for name, _ in kernel.calls] == ["forward", "vjp"]  # the second order is the definition's


def test_defaults_of_the_definition_reach_the_kernel(scaled_tanh):
    scaled_tanh(np.ones(3), None)
    assert kernel.calls == [("forward", {"scale": 1.0})]


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        (
            (np.ones(3), None),
            {"scael": 2.0},
            r"mine::scaled_tanh: got the keywords \['scael'\], wanted \['scale'\]; inputs go by position",
        ),
        ((np.ones(3),), {}, "mine::scaled_tanh: got 1 inputs, wanted 2: x, weight"),
        ((None, None), {}, "mine::scaled_tanh: x is None, wanted a Tensor or an array"),
        (
            (np.ones(3, int), None),
            {},
            "mine::scaled_tanh: x has dtype int64, wanted float32 or float64; convert it",
        ),
        ((np.ones(3, complex), None), {}, "x has dtype complex128, wanted float32 or float64"),
        ((np.ones(3, np.float16), None), {}, "x has dtype float16, wanted float32 or float64"),
        (
            (np.ones(3), np.ones(3, np.float32)),
            {},
            "weight has dtype float32, wanted float64; convert it with .astype()",
        ),
    ],
    ids=["keyword", "inputs", "none", "integers", "complex", "half", "mixed"],
)
@pytest.mark.parametrize("how", [None, "definition"])
def test_wrong_calls(scaled_tanh, inputs, attributes, message, how):
    with pytest.raises(TypeError, match=message):
        scaled_tanh(*inputs, kernel=how, **attributes)
    with pytest.raises(TypeError, match=message):
        scaled_tanh.explain(*inputs, kernel=how, **attributes)
    assert kernel.calls == []


def test_a_missing_attribute_is_an_error_on_either_way():
    for how in (None, "definition"):
        with pytest.raises(
            TypeError,
            match=r"norm::layer_norm: got the keywords \['eps'\], wanted \['eps', 'normalized_shape'\]",
        ):
            layer_norm(np.ones((2, 3)), None, None, kernel=how, eps=0.0)


def test_gradients_that_nobody_asked_for_are_not_computed(scaled_tanh):
    x, weight = tensor(normal(2, 3), requires_grad=True), tensor(normal(3), requires_grad=True)
    for inputs, wanted, needs in (
        ((x, weight), (x,), (True, False)),
        ((x, weight), (weight,), (False, True)),
        ((x, weight), (x, weight), (True, True)),
        ((x, None), (x,), (True, False)),
        ((x.detach(), weight), (weight,), (False, True)),
    ):
        kernel.calls.clear()
        tg.grad(scaled_tanh(*inputs).sum(), wanted)
        assert kernel.calls[1:] == [("vjp", needs)]
    kernel.calls.clear()
    assert not scaled_tanh(x.detach(), None).requires_grad


def test_a_kernel_that_gives_no_gradient_is_an_error():
    careless_tanh = declare(Registry(list), target="careless")
    x = tensor(normal(3), requires_grad=True)
    with pytest.raises(
        RuntimeError, match=rf"mine::scaled_tanh: {__name__}:careless.vjp float64 gave no gradient for x"
    ):
        careless_tanh(x, None).sum().backward()


def test_values_that_the_declaration_does_not_keep_show_as_nan():
    """The kernel's own vjp needs no x, but the definition's derivative does; a number would be worse."""
    forgetful = declare(Registry(list), keeps=((1,),))
    x = tensor(normal(3), requires_grad=True)
    (first,) = tg.grad(forgetful(x, None).sum(), x, create_graph=True)
    assert np.isfinite(first.data).all()
    assert np.isnan(tg.grad(first.sum(), x)[0].data).all()


def test_an_input_without_a_gradient_must_not_ask_for_one():
    running = tensor(np.ones(3), requires_grad=True)
    for how in (None, "definition"):
        with pytest.raises(
            ValueError,
            match=r"running_mean requires a gradient, but the operation has none for it; pass running_mean",
        ):
            F.batch_norm(normal(4, 3), running, np.ones(3), kernel=how)
    with tg.no_grad():
        F.batch_norm(normal(4, 3), running, np.ones(3))


def test_pickled_by_name():
    twin = pickle.loads(pickle.dumps(layer_norm))
    assert twin.spec is layer_norm.spec
    assert repr(twin) == "<operation norm::layer_norm>"


# Which kernel


def explain(x, how=None):
    return tg.explain("norm::layer_norm", x, None, None, kernel=how, normalized_shape=x.shape[1:], eps=1e-5)


def test_small_and_large_inputs():
    small, large = np.ones((2, 3), np.float32), np.ones((1, PARALLEL_FROM), np.float32)
    assert [line for line in str(explain(small)).splitlines() if not line.endswith(ELSEWHERE)] == [
        "norm::layer_norm",
        f"  {SEQUENTIAL:<52} runs",
        f"  {PARALLEL:<52} preferred from 65,536 elements, these are 6",
        f"  {'definition':<52} serves higher orders, and is the reference",
    ]
    assert explain(large).kernel.name == "parallel"
    assert dict(explain(large).reasons)[SEQUENTIAL] == "gives way to a later kernel"
    assert explain(large[:, :-1]).kernel.name == "sequential"


@pytest.mark.parametrize("name", ["sequential", "parallel", "definition"])
def test_a_kernel_asked_for_runs(name):
    x = tensor(normal(4, 3), requires_grad=True)
    with tg.record() as tape:
        y = F.layer_norm(x, 3, kernel=name)
        y.backward(normal(4, 3, seed=1))
    target = f"tinygrad_bn.kernels.cpu.rows:{name}"
    wanted = ([], []) if name == "definition" else ([f"{target}.forward float64"], [f"{target}.vjp float64"])
    assert (tape.kernels("forward"), tape.kernels("vjp")) == wanted
    explanation = explain(x, name)
    assert (explanation.kernel.name if explanation.kernel else "definition") == name
    reasons = dict(explanation.reasons)
    assert reasons.pop("definition" if name == "definition" else target).startswith("runs")
    for text in reasons.values():
        assert text.endswith(f"kernel={name!r} was asked for") or text.startswith(("serves", ELSEWHERE))


def test_an_unknown_kernel_is_an_error_that_names_those_there_are():
    with pytest.raises(
        ValueError, match=r"norm::layer_norm: kernel='quick' cannot run this call \("
    ) as caught:
        F.layer_norm(np.ones((2, 3)), 3, kernel="quick")
    assert f"{SEQUENTIAL}: is named 'sequential', kernel='quick' was asked for" in str(caught.value)
    assert str(caught.value).endswith("leave kernel= out, or pass 'definition'")


def test_a_kernel_that_cannot_run_says_why(scaled_tanh):
    with pytest.raises(
        ValueError, match=r"kernel='single' cannot run this call .*: serves float32, not float64"
    ):
        scaled_tanh(np.ones(3), None, kernel="single")
    scaled_tanh(np.ones(3, np.float32), None, kernel="single")
    assert scaled_tanh.explain(np.ones(3), None).kernel.name == "numpy"
    assert scaled_tanh.explain(np.ones(1000), None).kernel.name == "large"


def test_the_definition_runs_where_no_kernel_serves():
    single = declare(Registry(list), kernels=(Kernel("single", f"{__name__}:kernel", dtypes=("float32",)),))
    kernel.calls.clear()
    x = tensor([0.5, 1.0], requires_grad=True)
    y = single(x, None)
    assert kernel.calls == []
    np.testing.assert_allclose(tg.grad(y.sum(), x)[0].data, 1 - np.tanh(x.data) ** 2)
    explanation = single.explain(x, None)
    assert explanation.kernel is None
    assert [reason for _, reason in explanation.reasons] == [
        "serves float32, not float64",
        "runs: no kernel serves this call",
    ]


def test_each_view_has_kernels_of_its_own():
    for shape, view in (((4, 3), "cols"), ((4, 3, 2), "split")):
        explanation = tg.explain("batch_norm", normal(*shape), None, None, channel_axis=1, eps=0.0)
        assert explanation.kernel.target == f"tinygrad_bn.kernels.cpu.{view}:sequential"
        assert explanation.kernel.plan is getattr(views, view.title())
        other = {"cols": "split", "split": "cols"}[view]
        reasons = dict(explanation.reasons)
        assert (
            reasons[f"tinygrad_bn.kernels.cpu.{other}:sequential"]
            == f"serves the {other} view, this call is {view}"
        )


def test_a_call_is_not_mistaken_for_an_earlier_one():
    """What is remembered of a call, its view and the kernels that serve it, must tell these apart."""
    x = normal(4, 4, 4)
    calls = [
        (dtype, shape, axis, eps)
        for dtype in ("float32", "float64")
        for shape in ((4, 4, 4), (16, 4), (4, 16))
        for axis in (1, -1)
        for eps in (1e-5, 0.5, 0, 1)
    ]
    for dtype, shape, axis, eps in (*calls, *reversed(calls)):
        given = x.astype(dtype).reshape(shape)
        with tg.record() as tape:
            y = F.batch_norm(given, None, None, training=True, channel_axis=axis, eps=eps)
        expected = F.batch_norm(
            given, None, None, training=True, channel_axis=axis, eps=eps, kernel="definition"
        )
        tolerance = 1e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(y.data, expected.data, rtol=10 * tolerance, atol=tolerance)
        view = "split" if axis == 1 and len(shape) == 3 else "cols"
        assert tape.kernels("forward") == [f"tinygrad_bn.kernels.cpu.{view}:sequential.forward {dtype}"]


def test_an_argument_of_a_wrong_type_is_not_mistaken_for_an_equal_one():
    x = normal(4, 1, 3)
    for call, right, wrong, error in (
        (lambda n: F.layer_norm(x[..., :1], n), (1,), (True,), TypeError),
        (lambda n: F.layer_norm(x[..., :1], n), (1,), [1.0], TypeError),
        (lambda n: F.group_norm(x, n), 1, True, TypeError),
        (lambda axis: F.instance_norm(x, channel_axis=axis), 1, 1.0, TypeError),
        (lambda eps: F.rms_norm(x, 3, eps=eps), 1, True, ValueError),
        (lambda eps: F.rms_norm(x, 3, eps=eps), 1, [1], ValueError),
        (lambda axis: F.dropout(x, axis=axis), (1,), (True,), TypeError),
    ):
        expected = call(right).data
        with pytest.raises(error, match=r"is \[?(True|1.0|1)"):
            call(wrong)
        assert call(right).shape == expected.shape


def test_what_is_remembered_of_calls_has_a_bound(monkeypatch):
    monkeypatch.setattr(layer_norm, "_runs", {})
    monkeypatch.setattr(fused, "MOST_REMEMBERED", 3)
    for n in (*range(1, 8), *range(1, 8)):
        x = normal(5, n)
        expected = F.layer_norm(x, n, kernel="definition").data
        np.testing.assert_allclose(F.layer_norm(x, n).data, expected, atol=1e-12)
        assert 0 < len(layer_norm._runs) <= 3


def test_an_operation_declared_again_runs_its_new_kernels():
    registry = Registry(list)
    first = declare(registry, kernels=(Kernel("old", f"{__name__}:kernel"),))
    first(np.ones(3), None)
    second = declare(registry, kernels=(Kernel("new", f"{__name__}:kernel"),))
    assert second.explain(np.ones(3), None).kernel.name == "new"
    with tg.record() as tape:
        second(np.ones(3), None, kernel="new")
    assert len(tape.kernels("forward")) == 1
    with pytest.raises(ValueError, match="kernel='old' cannot run"):
        second(np.ones(3), None, kernel="old")


def test_explain_of_a_primitive():
    explanation = tg.explain("math::exp", np.ones(3))
    assert explanation.kernel is None
    assert str(explanation).endswith("runs: a primitive, NumPy on the CPU")
    with pytest.raises(LookupError, match="did you mean"):
        tg.explain("norm::layer_nrm", np.ones(3))


# The definition in place of the kernel

CALLS = {
    "layer_norm": (lambda x, **how: F.layer_norm(x, 4, **how), (3, 4)),
    "rms_norm": (lambda x, **how: F.rms_norm(x, 4, **how), (3, 4)),
    "batch_norm": (lambda x, **how: F.batch_norm(x, None, None, training=True, **how), (3, 4, 2)),
    "batch_norm inference": (lambda x, **how: F.batch_norm(x, np.zeros(4), np.ones(4), **how), (3, 4, 2)),
    "instance_norm": (lambda x, **how: F.instance_norm(x, **how), (3, 4, 2)),
    "group_norm": (lambda x, **how: F.group_norm(x, 2, **how), (3, 4, 2)),
    "dropout": (lambda x, **how: F.dropout(x, generator=tg.Generator(1), **how), (3, 4, 2)),
    "scale": (lambda x, **how: F.dropout(x, 0.25, False, mode="downscale_in_infer", **how), (3, 4, 2)),
}


@pytest.mark.parametrize(("call", "shape"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "form", [np.asarray, lambda a: tensor(a, requires_grad=True)], ids=["array", "tensor"]
)
def test_definition_and_kernel_agree(call, shape, form):
    """Also in what they return: statistics in float64 must not widen a float32 input."""
    results = []
    for how in ("sequential", "definition"):
        x = form(normal(*shape).astype("float32"))
        y = call(x, kernel=how)
        assert type(y) is Tensor
        assert y.dtype == "float32"
        assert not np.shares_memory(y.data, np.asarray(x))
        results.append([y.data])
        if isinstance(x, Tensor):
            (gradient,) = tg.grad(y, x, normal(*shape, seed=1))
            assert gradient.dtype == "float32"
            results[-1].append(gradient.data)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_the_definition_copies_raw_arrays():
    array, weight = normal(2, 3), tensor(np.ones(3), requires_grad=True)
    y = F.layer_norm(array, 3, weight, kernel="definition")
    expected = y.data.sum(axis=0)
    array[:] = 0
    np.testing.assert_allclose(tg.grad(y.sum(), weight)[0].data, expected)


def test_scale_by_its_definition_gives_a_tensor():
    assert type(scale(np.ones(2), kernel="definition", factor=0.5)) is Tensor


def test_arrays_of_another_byte_order_are_converted(scaled_tanh):
    np.testing.assert_array_equal(
        scaled_tanh(np.ones(3, ">f8"), None).data, scaled_tanh(np.ones(3), None).data
    )


@pytest.mark.parametrize("method", ["forward", "vjp"])
@pytest.mark.parametrize("change", [lambda a: a.astype("float32"), lambda a: a[..., None] + np.zeros(2)])
def test_what_a_kernel_returns_is_held_to_shape_and_dtype(scaled_tanh, monkeypatch, method, change):
    original = getattr(kernel, method)

    def changed(*arguments):
        first, *rest = original(*arguments)
        return (change(first), *rest)

    monkeypatch.setattr(kernel, method, changed)
    x = tensor(normal(2, 3), requires_grad=True)
    with pytest.raises((RuntimeError, ValueError), match=r"scaled_tanh: .*gave shape|cannot reshape"):
        scaled_tanh(x, None).sum().backward()


@pytest.mark.parametrize(
    "lend", [lambda arrays, aux: arrays[0], lambda arrays, aux: aux[0]], ids=["x", "aux"]
)
@pytest.mark.parametrize("sequence", [tuple, list])
def test_a_gradient_is_memory_of_its_own(scaled_tanh, monkeypatch, lend, sequence):
    def forward(plan, x, weight):
        y, aux = ScaledTanh().forward(plan, x, weight)
        return y, sequence(aux)

    monkeypatch.setattr(kernel, "forward", forward)
    monkeypatch.setattr(kernel, "vjp", lambda plan, needs, cotangent, arrays, aux: (lend(arrays, aux), None))
    x = tensor(normal(2, 3), requires_grad=True)
    y = scaled_tanh(x, None)
    saved = y._edge[0].saved
    held = (saved.inputs[0], saved.aux[0])
    y.sum().backward()
    assert not any(np.shares_memory(x.grad.data, array) for array in held)
    np.testing.assert_array_equal(x.grad.data, lend(held[:1], held[1:]))


def test_explain_says_what_it_takes(scaled_tanh):
    with pytest.raises(TypeError, match="explain: got layer_norm, wanted an operation or its name"):
        tg.explain(tg.functional.layer_norm, normal(2, 3), 3)
    shown = tg.explain(
        "layer_norm", normal(2, 3), normalized_shape=(3,), eps=1e-5
    )  # weight and bias left out
    assert shown.kernel is not None and shown.kernel.name == "sequential"


def test_a_kernel_that_cannot_be_imported_is_named():
    broken = declare(Registry(list), target="no_such_kernel")
    with pytest.raises(LookupError, match=r"kernel 'numpy': .*:no_such_kernel cannot be imported"):
        broken(normal(2, 3), None)
