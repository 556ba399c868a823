"""What the tape holds, and for how long; and what it notices of changes in place."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import functional as F
from tinygrad_bn import tensor
from tinygrad_bn.tape import Node


def leaf(*values):
    return tensor(values, requires_grad=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def nodes() -> int:
    return sum(type(thing) is Node for thing in gc.get_objects())


@pytest.fixture
def no_collector():
    """Without the cyclic collector, what a circle holds stays alive."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("swept", [False, True])
def test_dropping_the_last_output_frees_its_nodes(no_collector, create_graph, hooked, swept):
    x = tensor(normal(4, 3), requires_grad=True)
    w = tensor(normal(3), requires_grad=True)
    before = nodes()
    h = F.dropout(F.layer_norm(x, 3, w, w), generator=tg.Generator(0)) @ normal(3, 2)
    if hooked:
        h.register_hook(lambda g: g * 2)
    y = (h.tanh() * x[:, :1]).sum()
    during = nodes()
    assert during >= before + 7
    if swept:
        gradients = tg.grad(y, (x, w), create_graph=create_graph)
        if create_graph:
            assert nodes() > during
            tg.grad((gradients[0] * gradients[0]).sum(), (x, w))
        del gradients
    del h, y
    assert nodes() == before


def test_saved_arrays_are_freed_by_backward(no_collector):
    x = leaf(1.0, 2.0)
    y = x.exp()
    saved = weakref.ref(y._array)
    total = y.sum()
    del y
    assert saved() is not None
    total.backward()
    assert saved() is None


def test_a_long_chain_is_differentiated_and_dropped():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward()
    assert x.grad.item() == 1
    del y


def test_a_leaf_that_nobody_holds_is_passed_over():
    x = leaf(1.0)
    y = x * leaf(2.0)
    y.backward()
    assert x.grad.item() == 2


# Changes in place

CHANGES = {
    "setitem": lambda x: x.__setitem__(0, 5.0),
    "+=": lambda x: x.__iadd__(1.0),
    "-=": lambda x: x.__isub__(1.0),
    "*=": lambda x: x.__imul__(2.0),
    "/=": lambda x: x.__itruediv__(2.0),
    "copy_": lambda x: x.copy_([7.0, 8.0]),
    "data": lambda x: setattr(x, "data", [7.0, 8.0]),
    "through detach": lambda x: x.detach().copy_([7.0, 8.0]),
    "through a slice": lambda x: x[1:].copy_(9.0),
    "through a reshape": lambda x: x.reshape(2, 1).copy_(9.0),
    "through a transpose": lambda x: x.reshape(2, 1).T.copy_(9.0),
    "through astype": lambda x: x.astype("float64").copy_(9.0),
}
SAVING = {
    "math::multiply: input 'a'": lambda x: x * x,
    "math::log: input 'x'": lambda x: x.log(),
    "linalg::matmul: input 'a'": lambda x: x @ x,
    "norm::layer_norm: input 'input'": lambda x: F.layer_norm(x, 2),
    "norm::rms_norm: input 'weight'": lambda x: F.rms_norm(tensor(normal(3, 2)), 2, x),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_way_to_change_a_saved_tensor_is_noticed(change):
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    before = x.numpy()
    with tg.no_grad():
        change(x)
    assert (x.data != before).any()
    with pytest.raises(
        RuntimeError,
        match=r"math::multiply: input 'a' \(shape \(2,\), float64\) was changed in place after the tape "
        r"saved it \(version 0 then, 1 now\); change a copy instead",
    ):
        y.backward()


@pytest.mark.parametrize("message", SAVING)
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_operation_and_the_input_are_named(message, create_graph):
    x = leaf(1.0, 2.0)
    y = SAVING[message](x).sum()
    x.data = [3.0, 4.0]
    with pytest.raises(RuntimeError, match=message.replace("(", r"\(")):
        y.backward(create_graph=create_graph)


def test_a_changed_output_is_noticed():
    x = leaf(1.0, 2.0)
    y = x.exp()
    total = y.sum()
    y.data = [0.0, 0.0]
    with pytest.raises(
        RuntimeError, match=r"math::exp: the output \(shape \(2,\), float64\) was changed in place"
    ):
        total.backward()


def test_a_view_changes_with_its_base():
    x = leaf(1.0, 2.0)
    view = x[:1]
    y = (view * view).sum()
    x.data = [3.0, 4.0]
    with pytest.raises(RuntimeError, match="math::multiply: input 'a'"):
        y.backward()


def test_a_change_between_the_first_and_the_second_backward_pass_is_noticed():
    """The nodes of a recorded pass save the same arrays; x², in the rule, is one that y did not have."""
    x = leaf(2.0)
    (first,) = tg.grad(x**3, x, create_graph=True)
    x.data = [0.0]
    with pytest.raises(RuntimeError, match="math::power: input 'a'"):
        first.backward()


def test_a_changed_cotangent_of_a_recorded_fused_pass_is_noticed():
    x = tensor(normal(2, 3), requires_grad=True)
    cotangent = tensor(normal(2, 3, seed=1))
    (first,) = tg.grad(F.layer_norm(x, 3), x, cotangent, create_graph=True)
    cotangent[0] = 0.0
    with pytest.raises(
        RuntimeError, match=r"norm::layer_norm: the cotangent \(shape \(2, 3\), float64\) was changed"
    ):
        tg.grad((first * first).sum(), x)


def test_what_nobody_saved_may_change():
    x, weight, bias = leaf(1.0, 2.0), leaf(1.0, 1.0), leaf(0.0, 0.0)
    y = F.layer_norm(x + 1, 2, weight, bias).sum()
    x.data = [3.0, 4.0]
    bias.data = [1.0, 1.0]
    y.backward()
    np.testing.assert_array_equal(bias.grad.data, [1, 1])


def test_what_no_rule_that_is_needed_reads_may_change():
    """The derivative of x · c by x does not depend on x, so the tape neither keeps x nor minds."""
    x, c = leaf(1.0, 2.0), tensor([3.0, 4.0])
    y = (x * c).sum()
    x.data = [5.0, 6.0]
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [3, 4])


def test_changes_while_recording_are_errors():
    x, plain = leaf(1.0, 2.0), tensor([1.0, 2.0])
    for change in (lambda: x.__setitem__(0, 1.0), lambda: plain.__setitem__(0, x[0]), lambda: x.copy_(plain)):
        with pytest.raises(
            RuntimeError, match=r"in-place change of a tensor of shape \(2,\).*`with no_grad\(\):`"
        ):
            change()
    with pytest.raises(RuntimeError, match="in-place change"):
        x += 1
    plain += 1
    plain[0] = 7
    np.testing.assert_array_equal(plain.data, [7, 3])


def test_changing_in_place_keeps_memory_and_dtype():
    x = tensor([1.0, 2.0], "float32")
    same, memory = x, x.data
    x += np.ones(2)
    x.data = [5.0, 6.0]
    assert x is same
    assert x.dtype == "float32"
    np.testing.assert_array_equal(memory, [5, 6])


def test_raw_arrays_are_copied_by_the_tape():
    x, array = leaf(1.0, 2.0), np.array([3.0, 4.0])
    y = (x * array).sum() + (x * F.reshape(array, (2,))).sum() + (x * F.getitem(array, slice(None))).sum()
    array[:] = 0
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [9, 12])


def test_raw_arrays_of_fused_operations_are_copied_by_the_tape():
    gradients = []
    for change in (False, True):
        array = normal(2, 3)
        weight = leaf(1.0, 2.0, 3.0)
        y = F.layer_norm(array, 3, weight)
        if change:
            array[:] = 0
        y.backward(normal(2, 3, seed=1))
        gradients.append(weight.grad.data)
    np.testing.assert_array_equal(*gradients)
