"""Tensors on another device: every operation gives there what it gives on the CPU, and it stays there.

The device is numba's simulator, whose arrays NumPy calculates with. No kernel runs here."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import Tensor, devices, tensor
from tinygrad_bn import functional as F
from tinygrad_bn.devices import SimulatedArray
from tinygrad_bn.dispatch import Primitive
from tinygrad_bn.fused import Fused
from tinygrad_bn.registry import REGISTRY

BUILT_IN = [
    spec for spec in REGISTRY if spec.namespace in ("math", "array", "reduce", "linalg", "norm", "dropout")
]


@pytest.fixture(autouse=True)
def available(monkeypatch):
    """Let tensors be put on the simulator, whether or not this process could run kernels in it."""
    monkeypatch.setattr(devices, "problem", lambda device: None)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def there(*values, **options):
    return tensor(values[0] if len(values) == 1 else values, device="cuda-sim", **options)


# Every operation


def calls(spec):
    for number, sample in enumerate(spec.samples(np.random.default_rng(0))):
        yield pytest.param(spec, sample, id=f"{spec.name} {number}")


def placed(sample, spec, device):
    """The inputs of a sample on a device: those that have a gradient as tensors on the tape."""
    inputs = []
    wanted = range(len(sample.inputs)) if spec.variadic else spec.gradients
    for position, value in enumerate(sample.inputs):
        value = None if value is None else np.asarray(value)
        if value is not None and position in wanted:
            value = tensor(value, device=device, requires_grad=True)
        inputs.append(value if value is None or isinstance(value, Tensor) else devices.send(value, device))
    return inputs


def run(spec, sample, device, create_graph):
    """The output, and the gradients along a cotangent that is the same on every device."""
    inputs = placed(sample, spec, device)
    attributes = {**sample.attributes, **({"origin": device} if spec.short_name == "to_device" else {})}
    if spec.fused:
        output = Fused(spec)(*inputs, kernel="definition", **attributes)
    elif spec.variadic:
        output = Primitive(spec)(inputs, **attributes)
    else:
        output = Primitive(spec)(*inputs, **attributes)
    cotangent = devices.send(normal(*output.shape, seed=1), output.device)
    leaves = [value for value in inputs if isinstance(value, Tensor)]
    found = tg.grad(output, leaves, cotangent, create_graph=create_graph, allow_unused=True)
    if create_graph:
        live = [each for each in found if each is not None and each.requires_grad]
        along = [devices.send(normal(*each.shape, seed=2), device) for each in live]
        if live:
            found = (*found, *tg.grad(live, leaves, along, allow_unused=True))
    return output, found


@pytest.mark.parametrize("create_graph", [False, True], ids=["first order", "second order"])
@pytest.mark.parametrize(("spec", "sample"), [call for spec in BUILT_IN for call in calls(spec)])
def test_an_operation_gives_the_same_bits_and_stays_on_its_device(spec, sample, create_graph):
    output, gradients = run(spec, sample, "cuda-sim", create_graph)
    wanted, wanted_gradients = run(spec, sample, "cpu", create_graph)
    back = "cpu" if spec.short_name == "to_device" else "cuda-sim"
    assert output.device == back and type(output._array) is (np.ndarray if back == "cpu" else SimulatedArray)
    np.testing.assert_array_equal(output.numpy(), wanted.numpy())
    for gradient, expected in zip(gradients, wanted_gradients, strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            assert gradient.device == "cuda-sim" and gradient.dtype == expected.dtype
            np.testing.assert_array_equal(gradient.numpy(), expected.numpy())


def test_a_whole_backward_pass_stays_on_the_device():
    x, w = there(normal(4, 3), requires_grad=True), there(normal(3, 2, seed=1), requires_grad=True)
    y = F.stack([x @ w, 2 * (x @ w)])[..., 0]
    loss = (y.tanh() / 3 - y[0].mean()).sum()
    loss.backward()
    assert {t.device for t in (y, loss, x.grad, w.grad)} == {"cuda-sim"}
    assert type(loss._array) is SimulatedArray and loss.shape == ()


def test_forward_mode_and_higher_orders_stay_there():
    x = there(normal(4, 5))

    def norm(x):
        return F.layer_norm(x, 5, kernel="definition")

    output, along = tg.jvp(norm, [x], [there(normal(4, 5, seed=1))])
    assert output.device == along.device == "cuda-sim"
    on_cpu = tg.jvp(norm, [x.to("cpu")], [tensor(normal(4, 5, seed=1))])
    np.testing.assert_array_equal(along.numpy(), on_cpu[1].numpy())
    _, pull = tg.vjp(lambda x, unused: x * x, x, x)
    assert [g.device for g in pull(there(normal(4, 5)))] == ["cuda-sim"] * 2


# What a tensor is


def test_it_is_made_there_and_says_so():
    x = there(1.0, 2.0, requires_grad=True)
    assert x.device == "cuda-sim" and type(x.data) is SimulatedArray
    assert repr(x) == "Tensor([1., 2.], dtype=float64, device=cuda-sim, requires_grad=True)"
    assert "device" not in repr(tensor([1.0])) and tensor([1.0]).device == "cpu"
    assert tensor(x).device == tensor(x.data).device == "cuda-sim"  # where its values are
    assert tensor(x, device="cpu").device == "cpu" and tensor([1], device="cuda-sim").dtype == np.float64


BFLOAT16 = """
import sys
import tinygrad_bn as tg
from tinygrad_bn import devices
devices.problem = lambda device: None
assert "ml_dtypes" not in sys.modules
MAKE
"""


@pytest.mark.parametrize(
    "make",
    [
        "x = tg.tensor([1.0], 'bfloat16', device='cuda-sim')",
        "x = tg.tensor([1.0], device='cuda-sim').astype('bfloat16')",
    ],
)
def test_bfloat16_is_known_by_its_name(make):
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    program = BFLOAT16.replace("MAKE", f"{make}; assert x.dtype.name == 'bfloat16'")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_bfloat16_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for make in (lambda: tensor([1.0], "bfloat16", device="cuda-sim"), lambda: there(1.0).astype("bfloat16")):
        with pytest.raises(TypeError, match=r"'bfloat16' needs ml_dtypes, .*; pip install ml-dtypes$"):
            make()


def test_halves_are_refused_on_the_cpu_with_the_way_out():
    message = (
        r"Tensor: got dtype float16, wanted float32 or float64; convert it, e\.g\. with dtype='float32', or "
        r"with \.astype\('float32'\) before \.to\('cpu'\): float16 and bfloat16 are for CUDA devices alone"
    )
    half = there(1.0, 2.0).astype(np.float16)
    for make in (
        lambda: tensor(np.ones(2, np.float16)),
        lambda: tg.from_dlpack(np.ones(2, np.float16)),
        lambda: tensor(half, device="cpu"),
        lambda: half.to("cpu"),
    ):
        with pytest.raises(TypeError, match=message):
            make()
    assert half.astype("float32").to("cpu").device == "cpu"


def test_making_one_copies(recwarn):
    values = normal(3).view(SimulatedArray)
    x = tensor(values)
    values[...] = 0.0
    assert x.numpy().all()
    assert Tensor.wrap(values).data.tolist() == [0.0] * 3  # over the same memory


def test_its_values_are_fetched_when_they_are_asked_for():
    x = there(normal(2, 3))
    assert type(x.numpy()) is np.ndarray and x.sum().item() == float(x.sum()) == x.numpy().sum()
    assert bool((x * 0 + 1).mean()) and len(x) == 2 and [row.device for row in x] == ["cuda-sim"] * 2
    with pytest.raises(
        TypeError, match=r"on cuda-sim, and NumPy calculates on the CPU; fetch it with .numpy\(\)"
    ):
        np.asarray(x)


def test_its_data_is_read_only_there_too():
    x = there(1.0, 2.0)
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 3.0
    x.data = [3.0, 4.0]
    assert x.numpy().tolist() == [3.0, 4.0]


def test_comparisons_give_arrays_there():
    x = there(1.0, -1.0)
    assert type(x > 0) is SimulatedArray and (x == x).tolist() == [True, True]
    with pytest.raises(ValueError, match=r"comparison: .* left \(2,\) on cuda-sim, right \(2,\) on cpu"):
        _ = x > x.to("cpu")


def test_it_is_changed_in_place_from_anywhere():
    x = there(normal(3))
    x[0] = 7.0
    x[1:] = tensor([8.0, 9.0])  # a copy is what is asked for
    assert x.numpy().tolist() == [7.0, 8.0, 9.0] and x.device == "cuda-sim"
    on_cpu = tensor([0.0, 0.0, 0.0])
    on_cpu.copy_(x)
    assert on_cpu.device == "cpu" and on_cpu.numpy().tolist() == [7.0, 8.0, 9.0]
    x += 1
    assert x.device == "cuda-sim" and x.numpy().tolist() == [8.0, 9.0, 10.0]


def test_a_change_of_a_saved_array_is_noticed():
    x = there(normal(3), requires_grad=True)
    y = (x * x).sum()
    with tg.no_grad():
        x.detach()[0] = 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_come_back_to_the_device(again):
    x = there(normal(3), requires_grad=True)
    (x * x).sum().backward()
    other = again(x)
    assert other.device == other.grad.device == "cuda-sim" and other.requires_grad
    np.testing.assert_array_equal(other.numpy(), x.numpy())


def test_a_pickle_of_a_device_that_is_not_here_is_an_error(monkeypatch):
    data = pickle.dumps(there(normal(3)))
    monkeypatch.setattr(devices, "problem", lambda device: "it is off")
    with pytest.raises(RuntimeError, match="device cuda-sim: it is off"):
        pickle.loads(data)


def test_the_tape_counts_what_it_saves_there():
    x = there(normal(4, 5), requires_grad=True)
    with tg.record() as trace:
        _ = x * x
    assert trace[0].saved == 2 * x.data.nbytes


# From one device to another


def test_sending_is_differentiable_and_the_gradient_comes_back():
    x = tensor(normal(3), requires_grad=True)
    y = x.to("cuda-sim")
    assert y.device == "cuda-sim" and not np.shares_memory(devices.fetch(y._array), x._array)
    (y * y).sum().backward()
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.numpy())
    (second,) = tg.grad(tg.grad((x.to("cuda-sim") ** 3).sum(), x, create_graph=True)[0].sum(), x)
    assert second.device == "cpu"
    np.testing.assert_allclose(second.numpy(), 6 * x.numpy(), rtol=1e-15)


def test_sending_to_where_it_is_gives_the_tensor_itself():
    x, y = tensor(normal(3)), there(normal(3))
    assert x.to("cpu") is x and y.to("cuda-sim") is y and y.to("cpu").to("cuda-sim") is not y


@pytest.mark.parametrize("wrong", ["gpu", "cuda:x", None, 3])
def test_an_unknown_device_is_refused(wrong):
    with pytest.raises(ValueError, match=r"device is .*, wanted 'cpu', 'cuda'"):
        tensor([1.0]).to(wrong)
    if wrong is not None:  # which is where the data is
        with pytest.raises(ValueError, match=r"device is .*, wanted 'cpu', 'cuda'"):
            tensor([1.0], device=wrong)


def test_a_device_that_cannot_be_used_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: None if device == "cpu" else "there is no driver")
    for send in (tensor([1.0]).to, lambda device: tensor([1.0], device=device)):
        with pytest.raises(RuntimeError, match="device cuda: there is no driver"):
            send("cuda:0")


x, y = normal(2, 3), normal(2, 3, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, b: a + b,
            r"math::add: .* a \(2, 3\) on cuda-sim, b \(2, 3\) on cpu; .*\.to\('cuda-sim'\)",
        ),
        (lambda a, b: b @ a.T, r"linalg::matmul: .* a \(2, 3\) on cpu, b \(3, 2\) on cuda-sim"),
        (lambda a, b: a * b.sum(), r"math::multiply: .* b \(\) on cpu"),
        (lambda a, b: b.sum() * a, r"math::multiply: .* a \(\) on cpu"),
        (lambda a, b: a + b.data, r"math::add: "),
        (lambda a, b: F.concatenate([a, b]), r"array::concatenate: .* parts\[1\] \(2, 3\) on cpu"),
        (lambda a, b: F.where(b > 0, a, 0.0), r"math::where: .* condition \(2, 3\) on cpu"),
        (lambda a, b: F.layer_norm(a, 3, b[0]), r"norm::layer_norm: .* weight \(3,\) on cpu"),
        (lambda a, b: F.layer_norm(b, 3, a[0]), r"norm::layer_norm: .* weight \(3,\) on cuda-sim"),
        (
            lambda a, b: F.batch_norm(a, b[0].data, b[1].data ** 2),
            r"norm::batch_norm_inference: .* running_mean ",
        ),
        (
            lambda a, b: F.batch_norm(a, b[0].detach(), b[0].detach(), training=True),
            r"batch_norm: .* input \(2, 3\) on cuda-sim, running_mean \(3,\) on cpu",
        ),
        (
            lambda a, b: F.batch_norm(b, a[0].data, a[0].data, training=True),
            r"batch_norm: .* input \(2, 3\) on cpu, running_mean \(3,\) on cuda-sim",
        ),
        (
            lambda a, b: (a * a).backward(b),
            r"backward: .* output \(2, 3\) on cuda-sim, cotangent \(2, 3\) on cpu",
        ),
        (
            lambda a, b: tg.grad(b * b, b, a.data),
            r"grad: .* output \(2, 3\) on cpu, cotangent \(2, 3\) on cuda",
        ),
        (lambda a, b: tg.jvp(lambda a: a * a, [a], [b]), r"on different devices"),
    ],
)
def test_tensors_on_two_devices_are_an_error(call, message):
    with pytest.raises(ValueError, match="the inputs are on different devices") as caught:
        call(there(x, requires_grad=True), tensor(y, requires_grad=True))
    assert caught.match(message)


def test_a_call_that_is_remembered_for_one_device_is_refused_on_two():
    a, b = there(x), tensor(y)
    F.layer_norm(b, 3, b[0])
    with pytest.raises(ValueError, match="the inputs are on different devices"):
        F.layer_norm(b, 3, a[0])


def test_numbers_and_lists_have_no_place_yet():
    a = there(x, requires_grad=True)
    (a * a).backward([[1.0] * 3] * 2)
    assert a.grad.device == "cuda-sim" and (a + 1.0).device == (np.float64(2) * a.sum()).device == "cuda-sim"


@pytest.mark.parametrize(
    "calculate",
    [
        lambda a: a / [1.0, 2.0, 3.0],
        lambda a: [1.0, 2.0, 3.0] - a,
        lambda a: a * (2, 3, 4),
        lambda a: [[1.0, 2.0]] @ a,
        lambda a: F.where([True, False, True], a, a * a),
        lambda a: F.where([True, False, True], 0.0, a),
        lambda a: F.where([True, False, True], a, [1.0, 2.0, 3.0]),
        lambda a: F.concatenate([[[1.0, 2.0, 3.0]], a]),
        lambda a: F.layer_norm(a, 3, [1.0, 2.0, 3.0], kernel="definition"),
    ],
)
def test_lists_go_with_a_tensor_of_any_device(calculate):
    given = [tensor(x, requires_grad=True), there(x, requires_grad=True)]
    wanted, found = [calculate(a) for a in given]
    assert found.device == "cuda-sim"
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    for output in (wanted, found):
        (output * output).sum().backward()
    np.testing.assert_array_equal(given[1].grad.numpy(), given[0].grad.numpy())


def test_a_hook_keeps_the_gradient_on_its_device():
    a = there(x, requires_grad=True)
    seen = []
    remove = a.register_hook(lambda gradient: seen.append(gradient.device) or gradient * 2)
    (a * a).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), 4 * x)
    remove()
    a.register_hook(lambda gradient: gradient.to("cpu"))
    with pytest.raises(ValueError, match=r"the hook gave a gradient on cpu, wanted it on cuda-sim"):
        (a * a).sum().backward()
    assert seen == ["cuda-sim"]


# Norms and dropout


@pytest.mark.parametrize("wrapped", [False, True], ids=["arrays", "tensors"])
def test_running_statistics_are_updated_there(wrapped):
    def statistics(device):
        found = [devices.send(values, device) for values in (np.zeros(3), np.ones(3))]
        return [Tensor.wrap(each) for each in found] if wrapped else found

    ours, theirs = statistics("cuda-sim"), statistics("cpu")
    a = there(normal(4, 3, 5))
    F.batch_norm(a, *ours, training=True, kernel="definition")
    F.batch_norm(a.to("cpu"), *theirs, training=True, kernel="definition")
    for one, other in zip(ours, theirs, strict=True):
        assert devices.device_of(one) == "cuda-sim"
        values = one.numpy() if wrapped else devices.fetch(one)
        np.testing.assert_array_equal(values, other.numpy() if wrapped else other)
    inference = F.batch_norm(a, *ours, kernel="definition")
    assert inference.device == "cuda-sim"


def test_dropout_has_the_same_mask_there():
    a = there(normal(4, 50))
    mask = {"p": 0.5, "axis": 1}
    found = F.dropout(a, **mask, generator=tg.Generator(7), kernel="definition")
    wanted = F.dropout(a.to("cpu"), **mask, generator=tg.Generator(7), kernel="definition")
    assert found.device == "cuda-sim"
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    assert F.dropout(a, training=False) is a
    scaled = F.dropout(a, training=False, mode="downscale_in_infer", kernel="definition")
    assert scaled.device == "cuda-sim"


# Other libraries


def test_only_a_gpu_has_the_cuda_array_interface():
    for each in (tensor([1.0]), there(1.0, 2.0)):
        assert not hasattr(each, "__cuda_array_interface__")
        with pytest.raises(AttributeError, match=r"this tensor is on .*, not on a GPU"):
            _ = each.__cuda_array_interface__


def test_memory_of_numpy_becomes_a_tensor_without_a_copy():
    array = normal(2, 3)
    found = tg.from_dlpack(array)
    assert type(found) is Tensor and np.shares_memory(found.data, array)
    with pytest.raises(TypeError, match="float16"):
        tg.from_dlpack(np.ones(2, np.float16))


def test_what_has_no_dlpack_is_refused():
    with pytest.raises(TypeError, match="from_dlpack: got list, wanted an array that has __dlpack_device__"):
        tg.from_dlpack([1.0])
    elsewhere = type("Elsewhere", (), {"__dlpack_device__": lambda self: (7, 0)})()
    with pytest.raises(BufferError, match="memory of the kind 7 is neither the CPU's nor a CUDA GPU's"):
        tg.from_dlpack(elsewhere)


def test_read_only_memory_stays_read_only():
    array = normal(3)
    array.flags.writeable = False
    try:
        found = tg.from_dlpack(array)
    except BufferError:  # NumPy before 2.1 exports none
        pytest.skip("this NumPy does not export read-only arrays")
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0


def test_torch_shares_memory_in_both_directions():
    torch = pytest.importorskip("torch", reason="torch is not installed, an oracle here")
    theirs = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    ours = tg.from_dlpack(theirs)
    theirs[0, 0] = 7.0
    assert ours.numpy()[0, 0] == 7.0
    back = torch.from_dlpack(Tensor.wrap(np.ones(3)))
    assert back.tolist() == [1.0] * 3
    with pytest.raises(BufferError, match="on the tape"):
        torch.from_dlpack(tensor([1.0], requires_grad=True))
    with pytest.raises(TypeError, match="float16"):
        tg.from_dlpack(theirs.half())
