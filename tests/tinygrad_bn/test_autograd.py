"""grad, vjp and jvp, to the third order, of primitives and through fused operations."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import functional as F
from tinygrad_bn import tensor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def differences(function, x, step=1e-5):
    """The gradient of a scalar function of an array, by central differences."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        shifted = x.copy()
        shifted[index] = x[index] + step
        above = float(function(shifted))
        shifted[index] = x[index] - step
        gradient[index] = (above - float(function(shifted))) / (2 * step)
    return gradient


def mask_once(x):
    return F.dropout(x, 0.5, generator=tg.Generator(3))


WEIGHT, BIAS = normal(4, seed=8), normal(4, seed=9)
SCALE, SHIFT = tensor(WEIGHT), tensor(BIAS)
FUSED = {
    "layer_norm": (lambda x: F.layer_norm(x, 4, SCALE, SHIFT), (3, 4)),
    "layer_norm without affine": (lambda x: F.layer_norm(x, (2, 3)), (2, 2, 3)),
    "rms_norm": (lambda x: F.rms_norm(x, 4, SCALE, bias=SHIFT), (3, 4)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, training=True), (2, 4, 3)),
    "batch_norm [N, C]": (lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, training=True), (5, 4)),
    "batch_norm channels last": (
        lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, True, channel_axis=-1),
        (2, 3, 4),
    ),
    "batch_norm inference": (lambda x: F.batch_norm(x, BIAS, WEIGHT**2, SCALE, SHIFT), (2, 4, 3)),
    "instance_norm": (lambda x: F.instance_norm(x, None, None, SCALE, SHIFT), (2, 4, 3)),
    "group_norm": (lambda x: F.group_norm(x, 2, SCALE, SHIFT), (2, 4, 3)),
    "dropout": (mask_once, (3, 4)),
}
fused = pytest.mark.parametrize(("function", "shape"), FUSED.values(), ids=FUSED)


# grad


def test_grad_does_not_touch_grad():
    x = tensor([1.0, 2.0], requires_grad=True)
    y = tensor([3.0, 4.0], requires_grad=True)
    by_x, by_y = tg.grad((x * y).sum(), [x, y])
    np.testing.assert_array_equal(by_x.data, [3, 4])
    np.testing.assert_array_equal(by_y.data, [1, 2])
    assert x.grad is y.grad is None
    assert not by_x.requires_grad


def test_several_outputs_with_cotangents():
    x = tensor([1.0, 2.0], requires_grad=True)
    total, squares = x.sum(), x * x
    (gradient,) = tg.grad([total, squares], x, [None, [10.0, 100.0]])
    np.testing.assert_array_equal(gradient.data, [21, 401])


def test_an_input_in_between():
    x = tensor([2.0], requires_grad=True)
    y = x * x
    (by_y, by_x) = tg.grad(y * y, (y, x))
    assert (by_y.item(), by_x.item()) == (8, 32)


def test_each_result_has_its_own_memory():
    x, y = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    cotangent = np.ones(1)
    results = tg.grad(x + y, (x, y, x), cotangent)
    for position, result in enumerate(results):
        assert not np.shares_memory(result.data, cotangent)
        assert not any(np.shares_memory(result.data, other.data) for other in results[:position])
    seed = tensor([1.0], requires_grad=True)
    (recorded,) = tg.grad(x + y, x, seed, create_graph=True)
    assert not np.shares_memory(recorded.data, seed.data)
    assert tg.grad(recorded, seed)[0].item() == 1  # it is still a function of the cotangent


def test_unused_inputs():
    x, y = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    with pytest.raises(
        RuntimeError,
        match=r"grad: no output depends on input 1 \(shape \(1,\)\); leave it out, or pass allow_unused",
    ):
        tg.grad(x * 2, (x, y))
    by_x, by_y = tg.grad(x * 2, (x, y), allow_unused=True)
    assert by_x.item() == 2
    assert by_y is None
    assert tg.grad([], [x], allow_unused=True) == (None,)


def test_retain_graph():
    x = tensor([3.0], requires_grad=True)
    y = x * x
    tg.grad(y, x, retain_graph=True)
    tg.grad(y, x)
    with pytest.raises(RuntimeError, match="math::multiply: its saved values were freed"):
        tg.grad(y, x)
    (first,) = tg.grad(x * x, x, create_graph=True)  # keeps the graph by default
    assert tg.grad(first, x)[0].item() == 2
    z = x * x
    tg.grad(z, x, retain_graph=False, create_graph=True)
    with pytest.raises(RuntimeError, match="freed"):
        tg.grad(z, x)


def test_create_graph_records_also_in_no_grad():
    x = tensor(normal(2, 3), requires_grad=True)
    y = (F.layer_norm(x, 3) ** 3).sum() + (x**3).sum()
    with tg.no_grad():
        (first,) = tg.grad(y, x, create_graph=True)
    assert first.requires_grad


def test_grad_errors():
    x = tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match="grad: got 2 grad_outputs for 1 outputs"):
        tg.grad(x.sum(), x, [None, None])
    with pytest.raises(ValueError, match=r"grad: the cotangent has shape \(1,\), the output has \(2,\)"):
        tg.grad(x * x, x, [np.ones(1)])
    with pytest.raises(ValueError, match=r"grad: the output has shape \(2,\)"):
        tg.grad(x * x, x)
    with pytest.raises(
        RuntimeError, match=r"grad \(inputs\): this tensor of shape \(1,\) is not on the tape"
    ):
        tg.grad(x.sum(), tensor([1.0]))
    with pytest.raises(TypeError, match="grad: expected a Tensor, got float"):
        tg.grad(1.0, x)


# Orders


@pytest.mark.parametrize(
    ("function", "derivatives"),
    [
        (lambda x: x * x * x, (lambda x: 3 * x**2, lambda x: 6 * x, lambda x: 6 + 0 * x)),
        (lambda x: x**4, (lambda x: 4 * x**3, lambda x: 12 * x**2, lambda x: 24 * x)),
        (lambda x: 2.0**x, tuple(lambda x, n=n: np.log(2) ** n * 2**x for n in (1, 2, 3))),
        (lambda x: x.exp(), (np.exp, np.exp, np.exp)),
        (lambda x: x.log(), (lambda x: 1 / x, lambda x: -1 / x**2, lambda x: 2 / x**3)),
        (lambda x: 1 / x, (lambda x: -1 / x**2, lambda x: 2 / x**3, lambda x: -6 / x**4)),
        (lambda x: x.sqrt(), (lambda x: 0.5 * x**-0.5, lambda x: -0.25 * x**-1.5, lambda x: 0.375 * x**-2.5)),
        (
            lambda x: x.tanh(),
            (
                lambda x: 1 - np.tanh(x) ** 2,
                lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2),
                lambda x: (1 - np.tanh(x) ** 2) * (6 * np.tanh(x) ** 2 - 2),
            ),
        ),
    ],
    ids=["cube", "power", "exponent", "exp", "log", "reciprocal", "sqrt", "tanh"],
)
def test_three_orders_of_primitives(function, derivatives):
    array = np.array([0.5, 1.25, 2.0])
    x = tensor(array, requires_grad=True)
    value = function(x)
    for derivative in derivatives:
        (value,) = tg.grad(value.sum(), x, create_graph=True)
        np.testing.assert_allclose(value.data, derivative(array), rtol=1e-13)


def test_powers_at_zero():
    x = tensor([0.0], requires_grad=True)
    for exponent, wanted in ((0, (0, 0)), (1, (1, 0)), (2, (0, 2)), (3, (0, 0))):
        (first,) = tg.grad(x**exponent, x, create_graph=True)
        (second,) = tg.grad(first, x, allow_unused=True)
        assert (first.item(), 0 if second is None else second.item()) == wanted


@fused
def test_first_order_bits_do_not_depend_on_create_graph(function, shape):
    x = tensor(normal(*shape), requires_grad=True)
    cotangent = tensor(normal(*shape, seed=1))
    plain, recorded = (tg.grad(function(x), x, cotangent, create_graph=flag)[0] for flag in (False, True))
    assert plain.data.tobytes() == recorded.data.tobytes()
    assert recorded.requires_grad
    assert not plain.requires_grad


def first_gradient(function, array, cotangent, create_graph=False):
    x = tensor(array, requires_grad=True)
    return x, tg.grad(function(x), x, cotangent, create_graph=create_graph)[0]


@pytest.mark.parametrize("name", FUSED)
def test_penalty_on_the_norm_of_a_gradient(name):
    """(‖∂/∂x Σ v·f(x)‖ − 1)², as in WGAN-GP, against differences of the kernel's first-order gradient."""
    function, shape = FUSED[name]
    array, cotangent = normal(*shape), tensor(normal(*shape, seed=1))

    def penalty(array):
        _, gradient = first_gradient(function, array, cotangent)
        return (np.linalg.norm(gradient.data) - 1) ** 2

    x, gradient = first_gradient(function, array, cotangent, create_graph=True)
    norm = (gradient * gradient).sum().sqrt()
    (analytic,) = tg.grad((norm - 1) ** 2, x, allow_unused=True)
    expected = differences(penalty, array)
    if name in ("dropout", "batch_norm inference"):  # linear: the gradient does not depend on x
        assert analytic is None
        assert (expected == 0).all()
    else:
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(analytic.data, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm", "group_norm"])
def test_third_order_through_a_kernel(name):
    """Along fixed directions: D³ f [u, v] against differences of D² f [u], recorded from the kernel's vjp."""
    function, shape = FUSED[name]
    u, v, w = (tensor(normal(*shape, seed=seed)) for seed in (1, 2, 3))

    def second(array, create_graph):
        x = tensor(array, requires_grad=True)
        (first,) = tg.grad(function(x), x, u, create_graph=True)
        return x, tg.grad((first * v).sum(), x, create_graph=create_graph)[0]

    x, recorded = second(normal(*shape), True)
    (third,) = tg.grad((recorded * w).sum(), x)
    expected = differences(lambda array: np.sum(second(array, False)[1].data * w.data), normal(*shape))
    np.testing.assert_allclose(third.data, expected, rtol=1e-5, atol=1e-6)


def test_third_order_of_rms_norm_in_closed_form():
    """One element and eps = 1: y = x / √(x² + 1), whose derivatives are known."""
    array = np.array([[0.5], [-1.0], [2.0]])
    x = tensor(array, requires_grad=True)
    value = F.rms_norm(x, 1, eps=1.0)
    root = array**2 + 1
    for expected in (root**-1.5, -3 * array * root**-2.5, (12 * array**2 - 3) * root**-3.5):
        (value,) = tg.grad(value.sum(), x, create_graph=True)
        np.testing.assert_allclose(value.data, expected, rtol=1e-12)


# A tensor passed twice


def test_a_tensor_passed_twice_to_a_primitive():
    x = tensor([3.0], requires_grad=True)
    (first,) = tg.grad(x * x, x, create_graph=True)
    (second,) = tg.grad(first, x)
    assert (first.item(), second.item()) == (6, 2)
    (joined,) = tg.grad((F.concatenate([x, x]) * [2.0, 5.0]).sum(), x)
    assert joined.item() == 7


@pytest.mark.parametrize("shared", [(1, 2), (0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_a_tensor_passed_twice_to_a_fused_operation(shared):
    """Against the same operation on copies: every derivative is the sum over the uses."""
    others, cotangent = [normal(4, seed=5 + position) for position in range(3)], tensor(normal(4, seed=1))

    def orders(array, apart):
        w = tensor(array, requires_grad=True)
        inputs = [(w * 1.0 if apart else w) if p in shared else others[p] for p in range(3)]
        loss = (F.layer_norm(inputs[0], 4, *inputs[1:]) ** 2 * cotangent).sum()
        (first,) = tg.grad(loss, w, create_graph=True)
        (second,) = tg.grad((first * first).sum(), w, create_graph=True)
        (third,) = tg.grad((second * cotangent).sum(), w)
        return loss, first, second, third

    array = normal(4) + 0.5
    together = orders(array, apart=False)
    for one, other in zip(together, orders(array, apart=True), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-11, atol=1e-12)
    numeric = differences(lambda a: orders(a, apart=False)[0], array)
    np.testing.assert_allclose(together[1].data, numeric, rtol=1e-6, atol=1e-7)
    numeric = differences(lambda a: np.sum(orders(a, apart=False)[1].data ** 2), array)
    np.testing.assert_allclose(together[2].data, numeric, rtol=1e-6, atol=1e-7)
    numeric = differences(lambda a: np.sum(orders(a, apart=False)[2].data * cotangent.data), array)
    np.testing.assert_allclose(together[3].data, numeric, rtol=1e-5, atol=1e-6)


def test_the_second_order_by_one_input_leaves_out_the_others():
    """weight = f(x): the derivative by x counts what goes through weight once."""
    array, cotangent = normal(2, 4), tensor(normal(2, 4, seed=1))

    def gradient(array, create_graph=False):
        x = tensor(array, requires_grad=True)
        y = F.layer_norm(x, 4, x[0] * 2, x[1].exp())
        return x, tg.grad(y, x, cotangent, create_graph=create_graph)[0]

    x, first = gradient(array, True)
    (second,) = tg.grad((first * first).sum(), x)
    expected = differences(lambda a: np.sum(gradient(a)[1].data ** 2), array)
    np.testing.assert_allclose(second.data, expected, rtol=1e-6, atol=1e-6)


def test_the_second_order_by_the_cotangent():
    """The vjp is linear in the cotangent, so its own transpose is the Jacobian."""
    x = tensor(normal(2, 4), requires_grad=True)
    cotangent = tensor(normal(2, 4, seed=1), requires_grad=True)
    direction = normal(2, 4, seed=2)
    (first,) = tg.grad(F.layer_norm(x, 4), x, cotangent, create_graph=True)
    (transposed,) = tg.grad(first, cotangent, direction)
    _, forward = tg.jvp(lambda x: F.layer_norm(x, 4), (x,), (direction,))
    np.testing.assert_allclose(transposed.data, forward.data, rtol=1e-12)


# vjp and jvp


def test_vjp_of_several_outputs_may_be_pulled_again():
    (product, difference), pull = tg.vjp(lambda x, y: (x * y, x - y), np.array([2.0]), 3)
    assert (product.item(), difference.item()) == (6, -1)
    for scale in (1.0, 2.0):
        by_x, by_y = pull([scale], [10 * scale])  # y was the number 3: a scalar
        np.testing.assert_array_equal(by_x.data, [13 * scale])
        assert by_y.shape == ()
        assert by_y.item() == -8 * scale


def test_vjp_of_what_has_no_influence_is_zero():
    _, pull = tg.vjp(lambda x, y: x * 2, np.ones(2, np.float32), np.ones(3))
    by_x, by_y = pull(np.ones(2))
    assert by_x.dtype == "float32"
    np.testing.assert_array_equal(by_y.data, np.zeros(3))
    output, pull = tg.vjp(lambda x: (x * 2, tensor([5.0])), np.ones(2))
    np.testing.assert_array_equal(pull(np.ones(2), np.ones(1))[0].data, [2, 2])
    assert not output[1].requires_grad
    _, pull = tg.vjp(lambda x: tensor([5.0]), np.ones(2))
    np.testing.assert_array_equal(pull(np.ones(1))[0].data, [0, 0])


def test_vjp_of_the_identity_does_not_hand_out_the_cotangent():
    cotangent = np.ones(2)
    _, pull = tg.vjp(lambda x: x, np.zeros(2))
    assert not np.shares_memory(pull(cotangent)[0].data, cotangent)


def test_vjp_errors():
    _, pull = tg.vjp(lambda x: x * 2, 1.0)
    with pytest.raises(ValueError, match="vjp: got 2 cotangents for 1 outputs"):
        pull(1.0, 1.0)
    with pytest.raises(TypeError, match="vjp: the function gave a float, wanted a Tensor"):
        tg.vjp(lambda x: x.item(), 1.0)


def test_vjp_works_inside_no_grad():
    with tg.no_grad():
        _, pull = tg.vjp(lambda x: x**3, 2.0)
        (first,) = pull(1.0, create_graph=True)
    assert first.item() == 12
    assert first.requires_grad


def test_a_gradient_by_what_the_pull_back_was_made_from():
    outer = tensor([2.0], requires_grad=True)
    _, pull = tg.vjp(lambda x: x**3, outer)
    (first,) = pull([1.0], create_graph=True)
    assert tg.grad(first, outer)[0].item() == 12


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (lambda x: x**3, lambda x, u: 3 * x**2 * u),
        (lambda x: x * 2 + 1, lambda x, u: 2 * u),
        (lambda x: x.sum(), lambda x, u: u.sum()),
        (lambda x: x[::-1].exp(), lambda x, u: np.exp(x[::-1]) * u[::-1]),
        (lambda x: tensor(np.ones(2)), lambda x, u: np.zeros(2)),
        (lambda x: x, lambda x, u: u),
    ],
    ids=["power", "affine", "sum", "indexing", "constant", "identity"],
)
def test_jvp_in_closed_form(function, derivative):
    array, direction = normal(3), normal(3, seed=1)
    output, tangent = tg.jvp(function, (array,), (direction,))
    np.testing.assert_allclose(tangent.data, derivative(array, direction), rtol=1e-13)
    np.testing.assert_array_equal(output.data, function(tensor(array)).data)


def test_jvp_with_several_inputs_and_outputs():
    outputs, tangents = tg.jvp(
        lambda x, y: (x * y, x.sum()), ([2.0, 3.0], [5.0, 7.0]), ([1.0, 0.0], [0.0, 10.0])
    )
    np.testing.assert_array_equal(outputs[0].data, [10, 21])
    np.testing.assert_array_equal(tangents[0].data, [5, 30])
    assert tangents[1].item() == 1


@fused
def test_jvp_through_kernels_against_differences(function, shape):
    array, direction = normal(*shape), normal(*shape, seed=1)
    output, tangent = tg.jvp(function, (array,), (direction,))
    step = 1e-5
    expected = (
        function(tensor(array + step * direction)).data - function(tensor(array - step * direction)).data
    ) / (2 * step)
    np.testing.assert_allclose(tangent.data, expected, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(output.data, function(tensor(array)).data)


@fused
def test_jvp_and_vjp_are_transposed(function, shape):
    array, u, v = (normal(*shape, seed=seed) for seed in range(3))
    _, tangent = tg.jvp(function, (array,), (u,))
    _, pull = tg.vjp(function, array)
    np.testing.assert_allclose(np.sum(tangent.data * v), np.sum(pull(v)[0].data * u), rtol=1e-11)


def test_jvp_of_jvp():
    """Forward over forward; the same function through a kernel and through its definition."""
    (x,), (u,) = ([2.0],), ([1.0],)

    def along(function):
        return lambda x: tg.jvp(function, (x,), (u,))[1]

    assert tg.jvp(along(lambda x: x**3), (x,), (u,))[1].item() == 12
    assert tg.jvp(along(along(lambda x: x**4)), (x,), (u,))[1].item() == 48
    values = [
        tg.jvp(along(lambda x, kernel=kernel: F.rms_norm(x, 1, eps=1.0, kernel=kernel)), (x,), (u,))[1].item()
        for kernel in (None, "definition")
    ]
    np.testing.assert_allclose(values, -6 * 5**-2.5, rtol=1e-13)


def test_hessian_vector_product_forward_over_reverse():
    direction = normal(3)

    def gradient(x):
        return tg.grad((x**3).sum(), x, create_graph=True)[0]

    _, product = tg.jvp(gradient, (np.array([1.0, 2.0, 3.0]),), (direction,))
    np.testing.assert_allclose(product.data, 6 * np.array([1, 2, 3]) * direction)


def test_jvp_keeps_float32():
    output, tangent = tg.jvp(lambda x: F.layer_norm(x, 3), (normal(2, 3).astype("float32"),), (normal(2, 3),))
    assert (output.dtype, tangent.dtype) == ("float32", "float32")


def test_jvp_errors():
    with pytest.raises(ValueError, match="jvp: got 2 tangents for 1 inputs"):
        tg.jvp(lambda x: x, (1.0,), (1.0, 2.0))
    with pytest.raises(ValueError, match=r"jvp: tangent 1 has shape \(2,\), its input has \(3,\)"):
        tg.jvp(lambda x, y: x, (1.0, np.ones(3)), (1.0, np.ones(2)))


def test_outputs_of_plain_inputs_are_off_the_tape():
    """The tape that jvp and vjp need is their own business; connected inputs stay connected."""
    y, dy = tg.jvp(lambda a: a * a, [np.ones(2)], [np.ones(2)])
    assert not y.requires_grad and not dy.requires_grad
    (first, second), _ = tg.vjp(lambda a: (a * a, a + 1), np.ones(2))
    assert not first.requires_grad and not second.requires_grad
    x = tensor([1.0, 2.0], requires_grad=True)
    assert tg.jvp(lambda a: a * a, [x], [np.ones(2)])[0].requires_grad
