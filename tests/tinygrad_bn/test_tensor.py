"""Tensor: values, dtypes, operators, `.grad`, hooks, and the protocols of Python and NumPy."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import Tensor, tensor
from tinygrad_bn import functional as F


def leaf(*values, dtype=None):
    return tensor(values, dtype, requires_grad=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# What it is


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([1, 2], "float64"),
        ([True, False], "float64"),
        (3, "float64"),
        (1.5, "float64"),
        (np.float32(1), "float32"),
        (np.ones(2, np.float32), "float32"),
        (np.ones(2, np.uint8), "float64"),
        (np.ones((2, 0)), "float64"),
    ],
)
def test_default_dtypes(data, dtype):
    assert tensor(data).dtype == dtype
    assert tensor(data).shape == np.shape(data)
    np.testing.assert_array_equal(tensor(data).data, data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_asked_for(dtype):
    for data in ([1, 2], np.ones(2, np.float16), np.ones(2, np.float32), np.ones(2), tensor([1.0, 1.0])):
        assert tensor(data, dtype).dtype == dtype


@pytest.mark.parametrize(
    ("data", "dtype", "got"),
    [
        (np.ones(2, np.float16), None, "float16"),
        ([1j], None, "complex128"),
        ([1j], "float64", "complex128"),
        ([None], None, "object"),
        ("text", None, "<U4"),
        ([1.0], "float16", "float16"),
        ([1.0], "int64", "int64"),
    ],
)
def test_other_dtypes_are_errors(data, dtype, got):
    with pytest.raises(TypeError, match=f"Tensor: got dtype {got}, wanted float32 or float64; convert it"):
        tensor(data, dtype)


def test_data_is_copied():
    array = np.ones(2)
    for value in (tensor(array), tensor(tensor(array)), tensor(array, "float64")):
        assert not np.shares_memory(value.data, array)
    source = tensor([1.0])
    assert not np.shares_memory(tensor(source).data, source.data)
    assert tensor(leaf(1.0)).requires_grad is False


def test_data_is_read_only():
    x = tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(x)[0] = 3


def test_attributes():
    x = tensor(normal(2, 3))
    assert (x.shape, x.ndim, x.size, x.device, len(x)) == ((2, 3), 2, 6, "cpu", 2)
    assert x.is_leaf and not x.requires_grad and x.grad is None
    y = (x.detach() * leaf(1.0)).sum()
    assert y.requires_grad and not y.is_leaf


def test_requires_grad_of_a_leaf_can_be_switched():
    x = tensor([1.0])
    x.requires_grad = True
    y = x * 2
    x.requires_grad = False
    assert not (x * 2).requires_grad
    y.requires_grad = True  # it is so already
    with pytest.raises(RuntimeError, match="only a leaf can stop requiring a gradient; use detach"):
        y.requires_grad = False


def test_numbers():
    x = tensor([[2.5]])
    assert x.item() == float(x) == 2.5
    assert type(x.item()) is type(float(x)) is float
    assert bool(x) and not bool(tensor(0.0))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="size 1"):
        tensor([1.0, 2.0]).item()
    with pytest.raises(TypeError):
        len(tensor(1.0))


def test_repr():
    assert repr(tensor([1.0, 2.0])) == "Tensor([1., 2.], dtype=float64)"
    x = leaf(1.0, dtype="float32")
    assert repr(x) == "Tensor([1.], dtype=float32, requires_grad=True)"
    assert repr(x * 2) == "Tensor([2.], dtype=float32, from=math::multiply)"


def test_numpy_is_a_copy_and_detach_shares():
    x = leaf(1.0, 2.0)
    assert not np.shares_memory(x.numpy(), x.data)
    assert x.numpy().flags.writeable
    y = x.detach()
    assert np.shares_memory(y.data, x.data)
    assert not y.requires_grad
    assert not (y * 2).requires_grad


# Operators

ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}


@pytest.mark.parametrize("symbol", ARITHMETIC)
@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2,))]
)
def test_operators_both_ways(symbol, shapes):
    apply = ARITHMETIC[symbol]
    a, b = (np.abs(normal(*shape, seed=seed)) + 0.5 for seed, shape in enumerate(shapes))
    expected = apply(a, b)
    for left, right in ((tensor(a), tensor(b)), (tensor(a), b), (a, tensor(b))):
        result = apply(left, right)
        assert type(result) is Tensor
        np.testing.assert_array_equal(result.data, expected)
    x, y = tensor(a, requires_grad=True), tensor(b, requires_grad=True)
    apply(x, y).sum().backward()
    assert x.grad.shape == a.shape
    assert y.grad.shape == b.shape


@pytest.mark.parametrize("symbol", ARITHMETIC)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2), True], ids=repr)
def test_numbers_do_not_promote(symbol, dtype, number):
    x = tensor([1.5, 2.5], dtype, requires_grad=True)
    for result in (ARITHMETIC[symbol](x, number), ARITHMETIC[symbol](number, x)):
        assert type(result) is Tensor
        assert result.dtype == dtype
        (gradient,) = tg.grad(result.sum(), x)
        assert gradient.dtype == dtype


def test_mixed_dtypes_promote_and_gradients_are_cast_back():
    x, y = leaf(1.0, 2.0, dtype="float32"), leaf(3.0, 4.0, dtype="float64")
    result = x * y
    assert result.dtype == "float64"
    result.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == ("float32", "float64")
    np.testing.assert_array_equal(x.grad.data, [3, 4])
    assert (x * np.ones(2)).dtype == "float64"
    assert (np.ones(2, np.float32) * x).dtype == "float32"


def test_unary_operators():
    x = tensor([-1.0, 2.0])
    np.testing.assert_array_equal((-x).data, [1, -2])
    np.testing.assert_array_equal(abs(x).data, [1, 2])
    assert +x is x


def test_comparisons_are_arrays_of_booleans():
    x, y = tensor([1.0, 2.0, 3.0]), tensor([2.0, 2.0, 2.0])
    for other in (y, y.numpy(), 2.0):
        for result, expected in (
            (x < other, [1, 0, 0]),
            (x <= other, [1, 1, 0]),
            (x > other, [0, 0, 1]),
            (x >= other, [0, 1, 1]),
            (x == other, [0, 1, 0]),
            (x != other, [1, 0, 1]),
            (other > x, [1, 0, 0]),
            (other == x, [0, 1, 0]),
        ):
            assert type(result) is np.ndarray
            assert result.dtype == bool
            np.testing.assert_array_equal(result, np.array(expected, bool))


def test_a_tensor_is_a_key_by_identity():
    x, y = tensor([1.0]), tensor([1.0])
    assert {x: "x", y: "y"}[y] == "y"


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((3,), (3,)), ((5, 1, 2, 3), (4, 3, 2)), ((3,), (2, 3, 4)), ((2, 2, 3), (3,))],
)
def test_matmul(left, right):
    a, b = normal(*left), normal(*right, seed=1)
    for x, y in ((tensor(a), tensor(b)), (a, tensor(b)), (tensor(a), b)):
        assert type(x @ y) is Tensor
        np.testing.assert_array_equal((x @ y).data, a @ b)


KEYS = {
    "integer": 1,
    "negative slice": (slice(None, None, -1), slice(1, 3)),
    "new axis": (None, ..., 0),
    "integers": ([0, 2, 2], [1, 0, 0]),
    "mask": np.arange(12).reshape(3, 4) % 3 == 0,
    "integers and slice": (slice(1, 3), np.array([[0, 3], [3, 3]])),
    "ellipsis": ...,
    "empty": slice(0, 0),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_indexing(key):
    array = normal(3, 4)
    x = tensor(array, requires_grad=True)
    np.testing.assert_array_equal(x[key].data, array[key])
    weights = normal(*array[key].shape, seed=1)
    (x[key] * weights).sum().backward()
    expected = np.zeros((3, 4))
    np.add.at(expected, key, weights)  # what is read twice counts twice
    np.testing.assert_allclose(x.grad.data, expected)


@pytest.mark.parametrize(
    "index", [np.array([0, 1]), [0, 1], ([0, 1], slice(None))], ids=["array", "list", "tuple"]
)
def test_an_index_that_changes_later_does_not_change_the_gradient(index):
    x = tensor(normal(3, 2), requires_grad=True)
    total = x[index].sum()
    (index[0] if isinstance(index, tuple) else index)[0] = 2
    total.backward()
    np.testing.assert_array_equal(x.grad.data, [[1, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (), np.int64(1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(name, axis, keepdims):
    array = normal(2, 3, 4)
    result = getattr(tensor(array), name)(axis, keepdims)
    np.testing.assert_array_equal(result.data, getattr(array, name)(axis, keepdims=keepdims))


def test_shapes():
    array = normal(2, 6)
    x = tensor(array)
    for result, expected in (
        (x.reshape(3, 4), array.reshape(3, 4)),
        (x.reshape((3, -1)), array.reshape(3, -1)),
        (x.reshape(-1), array.reshape(-1)),
        (x.T, array.T),
        (x.transpose(), array.T),
        (x.transpose(1, 0), array.T),
        (x.transpose((0, 1)), array),
        (x.expand(3, 2, 6), np.broadcast_to(array, (3, 2, 6))),
        (x.expand((1, 2, 6)), array[None]),
        (x.astype("float32"), array.astype("float32")),
        (F.concatenate([x, x], axis=1), np.concatenate([array, array], axis=1)),
        (F.stack([x, x], axis=-1), np.stack([array, array], axis=-1)),
        (F.pad(x, (1, 2), value=3.0), np.pad(array, (1, 2), constant_values=3.0)),
        (F.where(array > 0, x, 0.0), np.where(array > 0, array, 0)),
    ):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result.data, expected)


def test_functions_as_methods():
    array = np.abs(normal(4)) + 0.5
    x = tensor(array)
    for name in ("exp", "log", "sqrt", "tanh", "abs"):
        np.testing.assert_array_equal(getattr(x, name)().data, getattr(np, name)(array))
    np.testing.assert_allclose(x.sigmoid().data, 1 / (1 + np.exp(-array)), rtol=1e-15)
    np.testing.assert_array_equal((x - 1).relu().data, np.maximum(array - 1, 0))


def test_iteration_is_over_the_first_axis_and_differentiable():
    x = tensor(normal(3, 2), requires_grad=True)
    first, second, third = x
    (first.sum() + 3 * third.sum()).backward()
    np.testing.assert_array_equal(x.grad.data, [[1, 1], [0, 0], [3, 3]])
    np.testing.assert_array_equal(second.data, x.data[1])


def test_wrong_calls():
    with pytest.raises(TypeError, match=r"array::reshape: got 3 arguments, wanted \(x, shape\)"):
        F.reshape(tensor([1.0]), 1, 2)
    with pytest.raises(TypeError, match=r"math::add: got 1 arguments, wanted \(a, b\)"):
        F.add(tensor([1.0]))
    with pytest.raises(TypeError, match="got dtype int64, wanted float32 or float64"):
        tensor([1.0]).astype(int)


# backward and .grad


def test_backward_accumulates():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [5, 7])
    assert type(x.grad) is Tensor
    assert not x.grad.requires_grad


def test_backward_with_a_cotangent():
    x = leaf(1.0, 2.0, dtype="float32")
    for cotangent in ([10.0, 100.0], np.array([10.0, 100.0]), tensor([10.0, 100.0])):
        x.grad = None
        (x * x).backward(cotangent)
        np.testing.assert_array_equal(x.grad.data, [20, 400])
        assert x.grad.dtype == "float32"


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("form", [np.array, tensor])
def test_no_two_gradients_share_memory(create_graph, form):
    a, b, c, d = (leaf(1.0, 2.0) for _ in range(4))
    cotangent = form([3.0, 4.0])
    (a + b + c.reshape(2) + d[::-1]).backward(cotangent, create_graph=create_graph)
    gradients = [t.grad._array for t in (a, b, c, d)]
    assert all(array.flags.writeable for array in gradients)
    arrays = [*gradients, np.asarray(cotangent)]
    for position, one in enumerate(arrays):
        for other in arrays[:position]:
            assert not np.shares_memory(one, other)
    with tg.no_grad():
        a.grad *= 0
    np.testing.assert_array_equal(b.grad.data, [3, 4])


def test_the_cotangent_of_a_leaf_itself():
    x = leaf(1.0, 2.0)
    cotangent = np.ones(2)
    x.backward(cotangent)
    cotangent[:] = 7
    np.testing.assert_array_equal(x.grad.data, [1, 1])


def test_create_graph_makes_grad_differentiable():
    x = leaf(2.0, 3.0)
    (x**3).sum().backward(create_graph=True)
    first, x.grad = x.grad, None
    first.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [12, 18])


def test_backward_errors():
    x = leaf(1.0, 2.0)
    with pytest.raises(
        ValueError, match=r"backward: the output has shape \(2,\).*pass one of that shape, or reduce"
    ):
        (x * x).backward()
    with pytest.raises(ValueError, match=r"backward: the cotangent has shape \(3,\), the output has \(2,\)"):
        (x * x).backward(np.ones(3))
    with pytest.raises(
        RuntimeError, match=r"backward: this tensor of shape \(1,\) is not on the tape; give an input"
    ):
        tensor([1.0]).backward()
    with tg.no_grad(), pytest.raises(RuntimeError, match=r"compute it outside no_grad\(\)"):
        (x * x).backward([1.0, 1.0])


def test_the_second_backward_needs_retain_graph():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [4, 8])
    with pytest.raises(RuntimeError, match="reduce::sum: its saved values were freed"):
        y.backward()


def test_nothing_is_recorded_in_no_grad():
    x = leaf(1.0)
    with tg.no_grad():
        assert not (x * 2).requires_grad
        assert not F.layer_norm(tensor(normal(2, 3), requires_grad=True), 3).requires_grad
    assert (x * 2).requires_grad


# Hooks


def test_hooks_on_leaves_and_in_between():
    seen = []
    x = leaf(1.0, 2.0)
    y = x * x
    y.register_hook(lambda g: seen.append(("y", g.numpy())))
    x.register_hook(lambda g: seen.append(("x", g.numpy())))
    (y.sum() + (3 * y).sum()).backward()
    assert [name for name, _ in seen] == ["y", "x"]
    np.testing.assert_array_equal(seen[0][1], [4, 4])
    np.testing.assert_array_equal(seen[1][1], [8, 16])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "form",
    [lambda g: g * 10, lambda g: g.numpy() * 10, lambda g: [10.0, 10.0]],
    ids=["Tensor", "array", "list"],
)
def test_a_hook_replaces(form, create_graph):
    x = leaf(1.0, 2.0, dtype="float32")
    y = x + 1
    y.register_hook(form)
    y.sum().backward(create_graph=create_graph)
    np.testing.assert_array_equal(x.grad.data, [10, 10])
    assert type(x.grad) is Tensor
    assert x.grad.dtype == "float32"


def test_hooks_are_removed():
    x = leaf(1.0)
    doubled = x.register_hook(lambda g: 2 * g)
    tripled = x.register_hook(lambda g: 3 * g)
    assert tg.grad(x * 1, x)[0].item() == 6
    doubled()
    assert tg.grad(x * 1, x)[0].item() == 3
    tripled()
    tripled()
    assert tg.grad(x * 1, x)[0].item() == 1


def test_a_hook_may_keep_and_change_what_it_gets():
    kept = []

    def hook(gradient):
        kept.append(gradient)
        gradient *= 0  # its own copy: b gets the same cotangent

    a, b = leaf(1.0), leaf(2.0)
    a.register_hook(hook)
    cotangent = np.ones(1)
    (a + b).backward(cotangent)
    assert (a.grad.item(), b.grad.item(), cotangent[0]) == (1, 1, 1)
    assert not np.shares_memory(kept[0].data, a.grad.data)


def test_wrong_hooks():
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: g.sum())
    with pytest.raises(
        ValueError, match=r"register_hook: the hook gave a gradient of shape \(\), wanted \(2,\)"
    ):
        (x * x).sum().backward()
    with pytest.raises(RuntimeError, match="register_hook: this tensor"):
        tensor([1.0]).register_hook(print)


# Protocols


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies_are_leaves_with_their_grad(copied):
    x = leaf(1.0, 2.0, dtype="float32")
    (x * x).sum().backward()
    twin = copied(x)
    assert type(twin) is Tensor
    assert (twin.dtype, twin.requires_grad, twin.is_leaf) == ("float32", True, True)
    np.testing.assert_array_equal(twin.data, x.data)
    np.testing.assert_array_equal(twin.grad.data, x.grad.data)
    assert not np.shares_memory(twin.data, x.data)
    twin.data = [0.0, 0.0]
    (x * x).sum().backward()
    assert twin.grad.data[0] == 2
    assert copied(x * 2).is_leaf
    assert not copied(x.detach()).requires_grad


def test_array_protocol():
    x = tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.data)
    assert np.asarray(x, "float32").dtype == "float32"
    assert np.array(x).flags.writeable
    assert not np.shares_memory(np.array(x, copy=True), x.data)
    with pytest.raises(ValueError, match="copy"):
        np.array(x, dtype="float32", copy=False)
    np.testing.assert_array_equal(np.linalg.norm(x), np.sqrt(5))


def test_numpy_leaves_operators_to_the_tensor():
    assert Tensor.__array_ufunc__ is None
    with pytest.raises(TypeError, match="__array_ufunc__"):
        np.add(tensor([1.0]), 1.0)


def test_dlpack_roundtrip():
    x = tensor(normal(2, 3), "float32")
    array = np.from_dlpack(x)
    assert np.shares_memory(array, x.data)
    assert not array.flags.writeable  # a write would go past the version counter
    np.testing.assert_array_equal(array, x.data)
    assert x.__dlpack_device__() == (1, 0)
    assert Tensor.wrap(np.from_dlpack(x)).dtype == "float32"
    recorded = leaf(1.0)
    with pytest.raises(BufferError, match=r"this tensor is on the tape.*export detach\(\)"):
        np.from_dlpack(recorded)
    np.testing.assert_array_equal(np.from_dlpack(recorded.detach()), [1])


def test_wrap_shares_memory():
    array = np.ones(2)
    x = Tensor.wrap(array)
    x += 1
    np.testing.assert_array_equal(array, [2, 2])
    assert type(Tensor.wrap(np.ma.masked_array([1.0])).data) is np.ndarray


def test_another_byte_order_is_converted():
    x = tensor(np.array([1.0, 2.0], ">f8"))
    assert x.dtype == np.float64 and x.dtype.isnative
    np.testing.assert_array_equal(x.data, [1, 2])


def test_there_are_no_subclasses():
    with pytest.raises(TypeError, match="Parameter: Tensor has no subclasses"):
        type("Parameter", (Tensor,), {})
