"""Primitive operations: declared, called, saved and pulled back; and the namespaces that they join."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import Registry, Sample, Tensor, namespace, tensor
from tinygrad_bn import functional as F
from tinygrad_bn.dispatch import primitive
from tinygrad_bn.rules import Aval, restore


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def samples(rng):
    return [Sample("one", (rng.normal(size=3),))]


@pytest.fixture
def registry():
    """A registry without plugins; the namespaces must come out as they went in."""
    before = dict(vars(namespace.arrays)), dict(vars(namespace.tensors))
    yield Registry(list)
    assert (dict(vars(namespace.arrays)), dict(vars(namespace.tensors))) == before


def declare(registry, **changes):
    """softplus, y = log(1 + eˣ)."""
    calls = []

    def rule(xp, g, y, x, sharpness):
        calls.append((xp, g, y, x, sharpness))
        return g * (1 - xp.exp(-sharpness * y))

    @primitive(
        "mine::softplus",
        registry=registry,
        **{"vjps": (rule,), "keeps_output": True, "samples": samples, **changes},
    )
    def softplus(x, sharpness=1.0):
        """log(1 + exp(sharpness · x)) / sharpness."""
        return np.log1p(np.exp(sharpness * x)) / sharpness

    return softplus, calls


def test_a_declared_primitive_from_end_to_end(registry):
    softplus, calls = declare(registry)
    assert registry.get("softplus") is softplus.spec
    assert softplus.spec.inputs == ("x",)
    assert softplus.spec.documentation.startswith("log(1")
    assert "test_dispatch.py:" in softplus.spec.origin
    assert repr(softplus) == "<operation mine::softplus>"
    x = tensor([0.5, 1.0], requires_grad=True)
    y = softplus(x, sharpness=2.0)
    (first,) = tg.grad(y.sum(), x, create_graph=True)
    np.testing.assert_allclose(first.data, 1 / (1 + np.exp(-2 * x.data)))
    (second,) = tg.grad(first.sum(), x)
    sigmoid = first.data
    np.testing.assert_allclose(second.data, 2 * sigmoid * (1 - sigmoid))
    xp, _, output, given, sharpness = calls[0]
    assert xp is namespace.tensors
    assert type(output) is Tensor
    assert type(given) is Aval
    assert (given.shape, given.dtype) == ((2,), "float64")
    assert sharpness == 2.0


def test_an_ordinary_pass_runs_the_rules_on_arrays(registry):
    softplus, calls = declare(registry)
    x = tensor([0.5, 1.0], requires_grad=True)
    softplus(x, 3.0).sum().backward()
    xp, *values, sharpness = calls[0]
    assert xp is namespace.arrays
    assert not any(isinstance(value, Tensor) for value in values)
    assert sharpness == 3.0


def test_rules_that_nobody_needs_are_not_run(registry):
    ran = []

    @primitive(
        "mine::product",
        registry=registry,
        vjps=(
            lambda xp, g, y, a, b: ran.append("a") or g * b,
            lambda xp, g, y, a, b: ran.append("b") or g * a,
        ),
        keeps=((1,), (0,)),
        samples=samples,
    )
    def product(a, b):
        return a * b

    a, b = tensor([2.0], requires_grad=True), tensor([3.0], requires_grad=True)
    assert tg.grad(product(a, b), b)[0].item() == 2
    assert ran == ["b"]
    product(a, 3.0).backward()
    assert ran == ["b", "a"]


def test_what_a_rule_does_not_keep_it_cannot_read(registry):
    @primitive("mine::square", registry=registry, vjps=(lambda xp, g, y, x: g * 2.0 * x,), samples=samples)
    def square(x):
        return x * x

    x = tensor([2.0, 3.0], requires_grad=True)
    with pytest.raises((TypeError, ValueError)):
        square(x).sum().backward()


def test_no_derivative_is_no_gradient(registry):
    @primitive(
        "mine::choose",
        registry=registry,
        vjps=(None, lambda xp, g, y, c, x: xp.where(c > 0, g, 0.0)),
        keeps=((), (0,)),
        samples=samples,
    )
    def choose(c, x):
        return np.where(c > 0, x, 0.0)

    c, x = tensor([1.0, -1.0], requires_grad=True), tensor([2.0, 3.0], requires_grad=True)
    by_c, by_x = tg.grad(choose(c, x).sum(), (c, x), allow_unused=True)
    assert by_c is None
    np.testing.assert_array_equal(by_x.data, [1, 0])


def test_a_number_of_inputs_that_varies(registry):
    def rule(position):
        return lambda xp, g, y, *parts: g * parts[position - 1]

    @primitive("mine::product_of_two", registry=registry, vjps=rule, keeps=None, samples=samples)
    def product_of_two(parts):
        return parts[0] * parts[1]

    a, b = tensor([2.0], requires_grad=True), tensor([3.0], requires_grad=True)
    y = product_of_two([a, b])
    assert [g.item() for g in tg.grad(y, (a, b), retain_graph=True)] == [3, 2]
    b.data = [5.0]
    with pytest.raises(RuntimeError, match=r"mine::product_of_two: input 'parts\[1\]' \(shape"):
        y.backward()


def test_operations_are_pickled_by_name():
    for one in (F.exp, F.concatenate):
        twin = pickle.loads(pickle.dumps(one))
        assert twin.spec is one.spec
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(F.exp))([0.0]).data, [1])


def test_operations_take_arrays_lists_and_numbers():
    for value in (np.array([1.0, 4.0]), [1.0, 4.0], tensor([1.0, 4.0])):
        result = F.sqrt(value)
        assert type(result) is Tensor
        np.testing.assert_array_equal(result.data, [1, 2])
    assert F.sqrt(4.0).item() == 2
    assert not F.sqrt([1.0]).requires_grad


def test_a_view_of_a_view_knows_whose_memory_it_is():
    """A change of x, of a view of it or of a view of that is one change for all; a copy is its own."""
    x = tensor(normal(4, 6))
    views = [x.reshape(24)[2:].reshape(2, 11), x.T[1:3], x.reshape(4, 6), F.broadcast_to(x[1], (3, 6))]
    copies = [x.T.reshape(24), x[[0, 2]], x[np.ones(4, bool)], x.T[:, [0]]]
    for one in views:
        assert one._version is x._version
        assert np.shares_memory(one.data, x.data)
    for one in copies:
        assert one._version is not x._version
        assert not np.shares_memory(one.data, x.data)


# Namespaces


def test_a_primitive_joins_both_namespaces():
    assert namespace.tensors.exp is F.exp
    assert namespace.arrays.exp is F.exp.spec.definition
    assert namespace.arrays.names() == namespace.tensors.names()


def test_the_array_namespace_serves_complex_numbers():
    for name in ("exp", "log", "sqrt", "tanh", "sum", "mean", "reshape", "negative"):
        arguments = (np.array([1 + 2j]), (1, 1)) if name == "reshape" else (np.array([1 + 2j]),)
        assert getattr(namespace.arrays, name)(*arguments).dtype == "complex128"


def test_an_unknown_function_names_those_there_are():
    with pytest.raises(
        AttributeError, match=r"xp.var is not an array function .*'arrays'.* a definition may use: abs, add, "
    ):
        _ = namespace.arrays.var
    assert repr(namespace.arrays).startswith("<namespace arrays: ")


def test_only_built_in_operations_join_the_namespaces(registry):
    """A foreign `exp` would serve every rule; the fixture sees that none is left behind."""

    @primitive(
        "mine::exp",
        registry=registry,
        vjps=(lambda xp, g, y, x: xp.exp(x) * g,),
        keeps=((0,),),
        samples=samples,
    )
    def exp(x):
        return np.exp(x)

    x = tensor([0.0, 1.0], requires_grad=True)
    exp(x).sum().backward()
    np.testing.assert_allclose(x.grad.data, np.exp([0.0, 1.0]))


def test_bad_arguments_are_reported_with_the_operation_and_its_inputs():
    x = tensor(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"math::add: .*\(inputs: a \(2, 3\) float32, b \(7,\) float64\)"):
        x + np.ones(7)
    with pytest.raises(TypeError, match=r"math::add: Tensor: got dtype complex.* b 1j\)"):
        x + 1j
    with pytest.raises(ValueError, match=r"reduce::sum: axis 5 is out of bounds"):
        F.sum(x, axis=5)
    with pytest.raises(TypeError, match=r"array::concatenate: axis is None"):
        F.concatenate([x, x], axis=None)
    with pytest.raises(TypeError, match=r"math::where: got 0 arguments, .* inputs by position"):
        F.where(condition=x > 0, a=x, b=x)


# Bringing a cotangent back


@pytest.mark.parametrize(
    ("cotangent", "shape"),
    [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((2, 3), (2, 1)), ((2, 3), ()), ((4, 2, 3), (1, 3)),
     ((), (2, 3)), ((1, 3), (2, 3)), ((0, 3), (1, 3)), ((0, 3), (3,))],
)  # fmt: skip
@pytest.mark.parametrize("xp", [namespace.arrays, namespace.tensors], ids=["arrays", "tensors"])
def test_restore_is_the_transpose_of_broadcasting(cotangent, shape, xp):
    values = np.random.default_rng(0).normal(size=cotangent)
    given = values if xp is namespace.arrays else tensor(values)
    result = restore(xp, given, shape, np.dtype("float32"))
    assert result.shape == shape
    assert result.dtype == "float32"
    other = np.random.default_rng(1).normal(size=shape)
    if np.broadcast_shapes(shape, cotangent) == cotangent:
        np.testing.assert_allclose(
            np.sum(np.asarray(result) * other), np.sum(values * np.broadcast_to(other, cotangent)), rtol=1e-5
        )
    else:  # constant along the axes that it lacks
        np.testing.assert_allclose(np.asarray(result), np.broadcast_to(values, shape), rtol=1e-6)
