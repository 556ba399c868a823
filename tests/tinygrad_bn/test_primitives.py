"""Every primitive operation of the registry, at each of its samples.

Values, first and second derivatives, dtypes, layouts, purity.

Derivatives are compared with central differences along a random direction, for a random cotangent.
"""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import tensor
from tinygrad_bn.dispatch import Primitive

STEP = 1e-5

CALLS = {
    f"{spec.name} {sample.name}": (Primitive(spec), sample)
    for spec in tg.REGISTRY
    if not spec.fused
    for sample in spec.samples(np.random.default_rng(0))
}
each = pytest.mark.parametrize(("operation", "sample"), CALLS.values(), ids=CALLS)


def run(operation, arrays, attributes, dtype="float64", create=tensor):
    """The output, and the inputs that have a gradient, as leaves."""
    spec = operation.spec
    leaves, values = [], []
    for position, array in enumerate(arrays):
        if spec.variadic or position in spec.gradients:
            value = create(array.astype(dtype) if array.dtype != dtype else array)
            value.requires_grad = True
            leaves.append(value)
        else:
            value = array
        values.append(value)
    return (operation(values, **attributes) if spec.variadic else operation(*values, **attributes)), leaves


def differentiable(operation, sample):
    spec = operation.spec
    return [p for p in range(len(sample.inputs)) if spec.variadic or p in spec.gradients]


def directions(operation, sample, seed):
    """A random direction for each input that has a gradient, and the inputs moved along it."""
    rng = np.random.default_rng(seed)
    moving = {p: rng.normal(size=np.shape(sample.inputs[p])) for p in differentiable(operation, sample)}

    def moved(step):
        return [np.asarray(a + step * moving[p] if p in moving else a) for p, a in enumerate(sample.inputs)]

    return list(moving.values()), moved


def dot(left, right):
    return sum(float(np.sum(np.asarray(a) * np.asarray(b))) for a, b in zip(left, right, strict=True))


def test_there_are_as_many_primitives_as_rules_to_check():
    assert len({operation.name for operation, _ in CALLS.values()}) >= 28
    assert len(CALLS) > 100


@each
def test_first_derivative(operation, sample):
    along, moved = directions(operation, sample, 1)
    output, leaves = run(operation, moved(0.0), sample.attributes)
    cotangent = np.random.default_rng(2).normal(size=output.shape)
    analytic = dot(tg.grad(output, leaves, cotangent), along)
    above, below = (run(operation, moved(step), sample.attributes)[0].data for step in (STEP, -STEP))
    numeric = float(np.sum((above - below) / (2 * STEP) * cotangent))
    assert analytic == pytest.approx(numeric, rel=1e-7, abs=1e-7)


@each
def test_second_derivative(operation, sample):
    """Of the gradient, by the inputs and the cotangent, against differences of the first-order gradient."""
    along, moved = directions(operation, sample, 1)
    rng = np.random.default_rng(3)
    output_shape = run(operation, moved(0.0), sample.attributes)[0].shape
    start, change = rng.normal(size=output_shape), rng.normal(size=output_shape)
    weights = [rng.normal(size=v.shape) for v in along]

    def first(step, create_graph=False):
        output, leaves = run(operation, moved(step), sample.attributes)
        cotangent = tensor(start + step * change, requires_grad=True)
        gradients = tg.grad(output, leaves, cotangent, create_graph=create_graph)
        return gradients, [*leaves, cotangent]

    gradients, inputs = first(0.0, create_graph=True)
    second = tg.grad(gradients, inputs, weights, allow_unused=True)
    analytic = sum(dot([g.data], [v]) for g, v in zip(second, [*along, change], strict=True) if g is not None)
    numeric = (dot(first(STEP)[0], weights) - dot(first(-STEP)[0], weights)) / (2 * STEP)
    assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@each
def test_first_order_bits_do_not_depend_on_create_graph(operation, sample):
    output, leaves = run(operation, [np.asarray(a) for a in sample.inputs], sample.attributes)
    cotangent = np.random.default_rng(2).normal(size=output.shape)
    plain = tg.grad(output, leaves, cotangent, retain_graph=True)
    recorded = tg.grad(output, leaves, cotangent, create_graph=True)
    for one, other in zip(plain, recorded, strict=True):
        assert one.data.tobytes() == other.data.tobytes()


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes(operation, sample, dtype):
    output, leaves = run(operation, [np.asarray(a) for a in sample.inputs], sample.attributes, dtype)
    assert output.dtype == sample.attributes.get("dtype", dtype)
    for create_graph in (False, True):
        gradients = tg.grad(
            output, leaves, np.ones(output.shape), retain_graph=True, create_graph=create_graph
        )
        for gradient, leaf in zip(gradients, leaves, strict=True):
            assert gradient.dtype == dtype
            assert gradient.shape == leaf.shape


@each
def test_inputs_and_cotangents_are_not_changed(operation, sample):
    """They are read-only here, so that writing to one raises, and compared afterwards."""
    arrays = [np.array(a) for a in sample.inputs]
    for array in arrays:
        array.flags.writeable = False
    output, leaves = run(operation, arrays, sample.attributes, create=tg.Tensor.wrap)
    cotangent = np.random.default_rng(2).normal(size=output.shape)
    cotangent.flags.writeable = False
    before = output.numpy()
    for create_graph in (False, True):
        tg.grad(output, leaves, cotangent, retain_graph=True, create_graph=create_graph)
    np.testing.assert_array_equal(output.data, before)
    for array, given in zip(arrays, sample.inputs, strict=True):
        np.testing.assert_array_equal(array, given)


def strided(array):
    """The same values with gaps, backwards and transposed in memory."""
    spread = np.empty(tuple(2 * n for n in array.shape[::-1]), array.dtype).T
    view = spread[(..., *(slice(None, None, -2) for _ in array.shape))]
    view[...] = array
    return view


@each
def test_memory_layout_does_not_matter(operation, sample):
    results = []
    for layout in (np.asarray, strided):
        arrays = [layout(np.asarray(a)) for a in sample.inputs]
        output, leaves = run(operation, arrays, sample.attributes, create=tg.Tensor.wrap)
        cotangent = layout(np.random.default_rng(2).normal(size=output.shape))
        results.append([output, *tg.grad(output, leaves, cotangent)])
    for plain, other in zip(*results, strict=True):
        np.testing.assert_allclose(plain.data, other.data, rtol=1e-14, atol=1e-14)


@each
def test_the_output_shares_memory_only_where_declared(operation, sample):
    arrays = [np.array(a) for a in sample.inputs]
    output, leaves = run(operation, arrays, sample.attributes, create=tg.Tensor.wrap)
    for leaf in leaves:
        shared = np.shares_memory(output.data, leaf.data)
        assert operation.spec.view or not shared
        if shared:
            assert output._version is leaf._version


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_equal_elements_share_the_derivative(name):
    a, b = tensor([1.0, 2.0], requires_grad=True), tensor([1.0, 1.0], requires_grad=True)
    by_a, by_b = tg.grad(getattr(tg.functional, name)(a, b).sum(), (a, b))
    wanted = {"maximum": ([0.5, 1.0], [0.5, 0.0]), "minimum": ([0.5, 0.0], [0.5, 1.0])}[name]
    np.testing.assert_array_equal([by_a.data, by_b.data], wanted)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_equal_extremes_share_the_derivative(name):
    x = tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]], requires_grad=True)
    (gradient,) = tg.grad(getattr(tg.functional, name)(x, axis=1).sum(), x)
    wanted = {"amax": [0.0, 0.0, 1.0], "amin": [1.0, 0.0, 0.0]}[name]
    np.testing.assert_allclose(gradient.data, [[1 / 3] * 3, wanted])


def test_derivatives_at_kinks():
    x = tensor([0.0], requires_grad=True)
    assert tg.grad(x.abs(), x)[0].item() == 0
    assert tg.grad(x.relu(), x)[0].item() == 0
    exponent = tensor([2.0], requires_grad=True)
    assert tg.grad(x**exponent, exponent)[0].item() == 0
    assert np.isnan(tensor([np.nan]).relu().item())


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_mean_has_the_bits_of_numpy_s(axis, dtype):
    x = np.random.default_rng(0).normal(size=(7, 5, 11)).astype(dtype)
    for keepdims in (False, True):
        found = tg.REGISTRY.get("reduce::mean").definition(x, axis, keepdims)
        wanted = np.mean(x, axis, keepdims=keepdims)
        assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()
