"""Where arrays live: names of devices, what can be used here, and simulated arrays, which act like CuPy's."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinygrad_bn import devices, ops
from tinygrad_bn.devices import SimulatedArray


def simulated(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).view(SimulatedArray)


# Names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:0", "cuda"),
        ("cuda:1", "cuda:1"),
        ("cuda:10", "cuda:10"),
        ("cuda-sim", "cuda-sim"),
    ],
)
def test_a_device_has_one_name(given, name):
    assert devices.named(given) == name


@pytest.mark.parametrize(
    "wrong",
    ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:007", "cuda:00", "cuda:٣", "cuda-sim:1", "", None, 0],
)
def test_other_names_are_refused(wrong):
    with pytest.raises(ValueError, match=r"device is .*, wanted 'cpu', 'cuda' \(the first GPU\)"):
        devices.named(wrong)


def test_both_kinds_of_cuda_have_the_same_kernels():
    assert [devices.kind(name) for name in ("cpu", "cuda", "cuda:3", "cuda-sim")] == ["cpu", *["cuda"] * 3]


# What can be used here


def test_the_cpu_always_can():
    assert devices.problem("cpu") is None
    devices.check_available("cpu")


@pytest.fixture
def installed(monkeypatch):
    """Let only these modules be installed, and numba not be told to simulate."""
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)

    def install(*names):
        monkeypatch.setattr(devices, "_installed", lambda module: module in names)

    return install


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), r"CuPy is not installed; pip install 'tinygrad-bn\[cuda13\]'"),
        (("cupy",), r"numba-cuda is not installed; pip install 'tinygrad-bn\[cuda13\]'"),
    ],
)
def test_a_gpu_needs_two_packages(installed, names, why):
    installed(*names)
    with pytest.raises(devices.DeviceUnavailable, match=f"device cuda: {why}"):
        devices.check_available("cuda")


def pretend_cupy(monkeypatch, count):
    monkeypatch.setattr(
        devices,
        "_cupy",
        lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))),
    )


def test_a_gpu_needs_a_driver_and_to_be_there(installed, monkeypatch):
    installed("cupy", "numba_cuda")

    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    pretend_cupy(monkeypatch, no_driver)
    assert devices.problem("cuda").startswith("no GPU can be used (cudaErrorInsufficientDriver: ")
    pretend_cupy(monkeypatch, lambda: 1)
    assert devices.problem("cuda") is None
    assert devices.problem("cuda:1") == "there is no such GPU; this machine has 1"


def test_a_cupy_that_cannot_be_imported_is_told(installed, monkeypatch):
    installed("cupy", "numba_cuda")

    def broken():
        raise ImportError("a page of advice") from OSError("libcublas.so.12 is missing")

    monkeypatch.setattr(devices, "_cupy", broken)
    assert devices.problem("cuda").startswith("CuPy cannot be imported (libcublas.so.12 is missing); ")


@pytest.mark.parametrize("loaded", [False, True], ids=["before numba", "after numba"])
def test_the_simulator_must_be_on_when_numba_is_loaded(installed, monkeypatch, loaded):
    installed("greenlet")
    for on in (False, True):
        monkeypatch.setenv(
            "NUMBA_ENABLE_CUDASIM", "1" if on != loaded else "0"
        )  # too late where it is loaded
        numba = SimpleNamespace(config=SimpleNamespace(ENABLE_CUDASIM=int(on))) if loaded else None
        monkeypatch.setitem(sys.modules, "numba", numba)
        why = devices.problem("cuda-sim")
        assert (
            why is None if on else why.startswith("numba's simulator is off; start Python with NUMBA_ENABLE_")
        )
    installed()
    assert "pip install greenlet" in devices.problem("cuda-sim")


@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("2", True), ("01", True), ("0", False), ("00", False), ("", False), ("false", False),
     ("yes", False)],
)  # fmt: skip
def test_the_variable_is_read_as_numba_reads_it(installed, monkeypatch, value, on):
    installed("greenlet", "cupy", "numba_cuda")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", value)
    pretend_cupy(monkeypatch, lambda: 1)
    off = "numba's simulator is off; start Python with NUMBA_ENABLE_CUDASIM=1 in the environment"
    taken = "numba's simulator is on; start Python without NUMBA_ENABLE_CUDASIM"
    assert devices.problem("cuda-sim") == (None if on else off)
    assert devices.problem("cuda") == (taken if on else None)


@pytest.mark.parametrize("on", [0, 1])
def test_a_numba_that_is_loaded_is_asked_whether_it_simulates(installed, monkeypatch, on):
    installed("cupy", "numba_cuda")
    asked = []
    pretend_cupy(monkeypatch, lambda: asked.append("CuPy") or 1)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", str(1 - on))
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(ENABLE_CUDASIM=on)))
    assert devices.problem("cuda") == (
        "numba's simulator is on; start Python without NUMBA_ENABLE_CUDASIM" if on else None
    )
    assert asked == ([] if on else ["CuPy"])


# Simulated arrays


@pytest.mark.parametrize(
    "calculate",
    [
        lambda a: a + 1,
        lambda a: 2.0 * a,
        lambda a: a + a,
        np.exp,
        lambda a: a > 0,
        lambda a: a.T,
        lambda a: a[0],
        lambda a: a[0, 1],
        lambda a: a[np.array([0, 2])],
        lambda a: a.sum(),
        lambda a: a.mean(0),
        lambda a: a.mean(),
        lambda a: a.max(),
        lambda a: a.var(1),
        lambda a: a.any(),
        lambda a: a.reshape(-1),
        lambda a: a.astype(np.float32),
        lambda a: a.copy(),
        lambda a: a @ a.T,
        np.sum,
        lambda a: np.where(a > 0, a, 0.0),
        lambda a: np.concatenate([a, a]),
        lambda a: np.broadcast_to(a, (2, 3, 4)),
        lambda a: np.pad(a, 1),
        lambda a: np.multiply(a, 2, dtype=np.float64),
    ],
)
def test_what_is_calculated_from_one_is_one_with_the_same_values(calculate):
    array = simulated(3, 4)
    result, wanted = calculate(array), calculate(array.view(np.ndarray))
    assert type(result) is SimulatedArray and devices.device_of(result) == "cuda-sim"
    assert result.shape == np.shape(wanted) and result.dtype == np.asarray(wanted).dtype
    np.testing.assert_array_equal(devices.fetch(result), wanted)


def test_what_is_no_array_stays_what_it_is():
    array = simulated(3, 4)
    assert np.ndim(array) == 2 and np.shape(array) == (3, 4)
    assert np.may_share_memory(array, array[1:]) is True
    assert array.item(0) == float(array[0, 0])


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: b + a,
        lambda a, b: b * a[0, 0],
        lambda a, b: a + np.asarray(b[0, 0]),
        lambda a, b: np.where(b > 0, a, 0.0),
        lambda a, b: np.concatenate([a, b]),
        lambda a, b: np.add.at(a, ([0], [1]), b[:1, 0]),
        lambda a, b: np.add(a, a, out=b),
        lambda a, b: a.__setitem__(0, b[0]),
        lambda a, b: a > b,
    ],
)
def test_one_does_not_mix_with_a_numpy_array(mix):
    with pytest.raises(TypeError, match=r"a NumPy array of shape .* was given beside one on cuda-sim"):
        mix(simulated(3, 4), np.ones((3, 4)))


def test_numpys_numbers_mix_with_one():
    array = simulated(3)
    for number in (2, 2.0, np.float64(2), np.float32(2)):
        assert type(array * number) is SimulatedArray
    array += 1
    array[0] = 7.0
    assert type(array) is SimulatedArray and float(array[0]) == 7.0
    assert (array > np.array(6.0)).tolist() == [True, False, False]  # as CuPy admits


def test_results_are_written_into_one():
    array = simulated(3)
    out = np.zeros(3).view(SimulatedArray)
    assert np.exp(array, out=out) is out
    np.testing.assert_array_equal(devices.fetch(out), np.exp(devices.fetch(array)))
    np.add.at(out, np.array([0, 0]), 1.0)
    assert float(out[0]) == np.exp(devices.fetch(array))[0] + 2


# From one device to another


def test_arrays_are_known_wherever_they_live():
    assert devices.is_array(np.ones(2)) and not devices.on_device(np.ones(2))
    assert devices.is_array(simulated(2)) and devices.on_device(simulated(2))
    assert not devices.is_array(2.0) and not devices.is_array([1.0])
    array = simulated(2)
    assert devices.as_array(array) is array and type(devices.as_array([1.0])) is np.ndarray
    assert type(devices.as_array(np.ones(2).view(type("Special", (np.ndarray,), {})))) is np.ndarray
    assert devices.device_of(np.ones(2)) == "cpu"


def test_sending_copies_and_stays_where_it_is_there():
    there = devices.send(array := np.arange(6.0).reshape(2, 3), "cuda-sim")
    assert type(there) is SimulatedArray and not np.shares_memory(devices.fetch(there), array)
    assert devices.send(there, "cuda-sim") is there and devices.send(array, "cpu") is array
    back = devices.send(there, "cpu")
    assert type(back) is np.ndarray and devices.fetch(array) is array
    there[...] = 0.0
    np.testing.assert_array_equal(back, array)


def test_new_arrays_are_made_where_another_is():
    for like, kind in ((np.ones(1), np.ndarray), (simulated(1), SimulatedArray)):
        for array in (
            devices.empty((2, 3), np.float32, like),
            devices.zeros((2, 3), np.float32, like),
            devices.full((2, 3), 7.0, np.float32, like),
        ):
            assert type(array) is kind and array.shape == (2, 3) and array.dtype == np.float32
        assert array.tolist() == [[7.0] * 3] * 2


def test_a_view_has_the_strides_asked_for():
    for storage in (np.arange(12.0), np.arange(12.0).view(SimulatedArray)):
        view = devices.strided(storage, 11, (2, 3), (-48, -16))
        assert type(view) is type(storage) and view.tolist() == [[11, 9, 7], [5, 3, 1]]
        assert np.may_share_memory(view, storage)


def test_two_devices_are_told_with_the_way_out():
    devices.one_device("add", (("a", np.ones(2)), ("b", 3.0), ("c", None)))
    with pytest.raises(
        ValueError,
        match=r"add: the inputs are on different devices: a \(2,\) on cpu, b \(3,\) on cuda-sim; send them "
        r"to one: \.to\('cuda-sim'\) of a Tensor, tg\.tensor\(array, device='cuda-sim'\) of an array$",
    ):
        devices.one_device("add", (("a", np.ones(2)), ("b", simulated(3)), ("c", None)))


# CuPy cannot make an array without a GPU, but what it has can be seen


HOST = {"argsort", "array", "asarray", "errstate", "finfo", "full"}  # called on numbers and samples alone


def test_cupy_has_every_function_that_the_operations_call():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    sources = [path.read_text(encoding="utf-8") for path in Path(ops.__file__).parent.glob("*.py")]
    called = {name for text in sources for name in re.findall(r"\bnp\.([a-z_]+)\(", text)} - HOST
    assert {"add", "where", "matmul", "pad"} <= called
    assert [name for name in sorted(called) if not hasattr(cupy, name)] == []


def test_cupys_arrays_have_what_is_asked_of_them():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    wanted = (
        "astype", "base", "copy", "device", "fill", "flags", "get", "item", "max", "mean", "min", "nbytes",
        "reshape", "sum", "transpose", "view", "__array_function__", "__array_ufunc__",
        "__cuda_array_interface__", "__deepcopy__", "__dlpack__", "__dlpack_device__",
    )  # fmt: skip
    assert [name for name in wanted if not hasattr(cupy.ndarray, name)] == []
    assert cupy.ndarray.__hash__ is None  # so that the tape keeps a copy of one that is a key
    assert cupy.lib.stride_tricks.as_strided and cupy.from_dlpack and cupy.add.at
