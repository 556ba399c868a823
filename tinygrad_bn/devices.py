"""Where arrays live: on the CPU, on a GPU, or in numba's CUDA simulator.

| device | arrays | what runs there |
|---|---|---|
| "cpu" | `numpy.ndarray` | NumPy, and numba's kernels |
| "cuda", "cuda:1", … | `cupy.ndarray` | CuPy, and numba.cuda's kernels over the same memory |
| "cuda-sim" | `SimulatedArray` | NumPy, and numba.cuda's kernels in its simulator: no GPU needed |

The array functions are written on NumPy's, which hands arrays of the other kinds to whoever made them.
Nothing moves from one device to another unless `send` or `fetch` is called. CuPy is imported when it is
first needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = [
    "CPU", "SIMULATOR", "DeviceUnavailable", "SimulatedArray", "as_array", "check_available", "device_of",
    "empty", "fetch", "from_gpu", "full", "is_array", "kind", "named", "on_device", "one_device", "problem",
    "send", "strided", "zeros",
]  # fmt: skip

CPU = "cpu"
SIMULATOR = "cuda-sim"
GPU = re.compile(r"cuda(?::(0|[1-9][0-9]{0,2}))?")
VARIABLE = "NUMBA_ENABLE_CUDASIM"

COMPARISONS = frozenset(
    (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)
)  # to which CuPy admits NumPy's numbers in an array


class DeviceUnavailable(RuntimeError):
    """A device that cannot be used here; the message says what is missing, and what mends it."""


# Names


def named(device: Any) -> str:
    """The name of a device, written in the one way that names are compared in: "cuda" is the first GPU.

    Raises:
        ValueError: there is no device of that name.
    """
    if device in (CPU, SIMULATOR):
        return str(device)
    found = GPU.fullmatch(device) if isinstance(device, str) else None
    if found is None:
        raise ValueError(
            f"device is {device!r}, wanted 'cpu', 'cuda' (the first GPU), 'cuda:1' (the second, and so on) "
            "or 'cuda-sim' (numba's simulator)"
        )
    return _gpu(int(found[1] or 0))


def _gpu(index: int) -> str:
    return f"cuda:{index}" if index else "cuda"


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def kind(device: str) -> str:
    """Whose kernels serve a device: "cpu" or "cuda"."""
    return "cpu" if device == CPU else "cuda"


def problem(device: str) -> str | None:
    """Why a device cannot be used in this process, and what mends it; None where it can."""
    if device == CPU:
        return None
    return _problem_of_simulator() if device == SIMULATOR else _problem_of_gpu(_index(device))


def check_available(device: str) -> None:
    """Raise DeviceUnavailable unless the device can be used in this process."""
    why = problem(device)
    if why is not None:
        raise DeviceUnavailable(f"device {device}: {why}")


def _simulates() -> bool:
    """Whether numba simulates, or will once it is loaded: then it reads the variable, as an integer."""
    numba = sys.modules.get("numba")
    if numba is not None:
        return bool(numba.config.ENABLE_CUDASIM)
    try:
        return int(os.environ.get(VARIABLE, "0")) != 0
    except ValueError:  # of which numba warns
        return False


def _problem_of_simulator() -> str | None:
    if not _simulates():
        return f"numba's simulator is off; start Python with {VARIABLE}=1 in the environment"
    if not _installed("greenlet"):
        return "greenlet, which runs the simulator's threads, is not installed; pip install greenlet"
    return None


def _problem_of_gpu(index: int) -> str | None:
    if _simulates():
        return f"numba's simulator is on; start Python without {VARIABLE}"
    if not _installed("cupy"):
        return "CuPy is not installed; pip install 'tinygrad-bn[cuda13]' (or [cuda12], as the driver is)"
    if not _installed("numba_cuda"):
        return (
            "numba-cuda is not installed; pip install 'tinygrad-bn[cuda13]' (or [cuda12], as the driver is)"
        )
    try:
        count = _cupy().cuda.runtime.getDeviceCount()
    except ImportError as error:
        why = error.__cause__ or error  # CuPy puts a page of advice around the cause
        return f"CuPy cannot be imported ({why}); `python cli.py doctor` says what is missing"
    except Exception as error:  # CUDARuntimeError: no driver, one that is too old, or no device
        return f"no GPU can be used ({error}); `python cli.py doctor` says what is missing"
    if index >= count:
        return f"there is no such GPU; this machine has {count}"
    return None


def _installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _cupy() -> Any:
    import cupy

    return cupy


# Arrays


class SimulatedArray(np.ndarray):
    """An array as it would be on a GPU, in the memory of the CPU: what the device "cuda-sim" holds.

    It behaves like CuPy's arrays where NumPy's differ: what is calculated from it is one of these, also a sum
    over everything, which is an array of rank 0 and no number; and it does not mix with NumPy's arrays. What
    it cannot do is refuse `numpy.asarray`. Its elements are read and written one by one through `fetch`, or
    by a kernel, which sees the memory as `array.view(numpy.ndarray)`.
    """

    @property
    def device(self) -> str:  # type: ignore[override]
        return SIMULATOR

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **keywords: Any
    ) -> Any:
        given = (inputs[0], *inputs[2:]) if method == "at" else (*inputs, *out)  # indices come from anywhere
        if ufunc in COMPARISONS:
            given = tuple([value for value in given if np.ndim(value)])
        _refuse_mixture(ufunc.__name__, given)
        if out:
            keywords["out"] = _bare(out)
        result = getattr(ufunc, method)(*_bare(inputs), **keywords)
        if not out:
            return _simulated(result)
        return out[0] if len(out) == 1 else out

    def __array_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any, kwargs: Any
    ) -> Any:
        _refuse_mixture(func.__name__, (args, kwargs))
        return _simulated(func(*_bare(args), **_bare(kwargs)))

    def __getitem__(self, key: Any) -> Any:
        return _simulated(super().__getitem__(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_mixture("assignment", (value,))
        super().__setitem__(key, value)


def _refuse_mixture(operation: str, values: Any) -> None:
    if isinstance(values, dict):
        values = values.values()
    for value in values:
        if isinstance(value, (tuple, list, dict)):
            _refuse_mixture(operation, value)
        elif isinstance(value, np.ndarray) and not isinstance(value, SimulatedArray):
            raise TypeError(
                f"{operation}: a NumPy array of shape {value.shape} was given beside one on {SIMULATOR}"
            )


def _bare(value: Any) -> Any:
    """The same over NumPy's arrays, wherever in it there are simulated ones."""
    if isinstance(value, SimulatedArray):
        return value.view(np.ndarray)
    if type(value) in (tuple, list):
        return type(value)([_bare(part) for part in value])
    return {key: _bare(part) for key, part in value.items()} if type(value) is dict else value


def _simulated(value: Any) -> Any:
    """The same over simulated arrays; NumPy's numbers become arrays of rank 0."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(SimulatedArray)
    if type(value) in (tuple, list):
        return type(value)([_simulated(part) for part in value])
    return value


def on_device(value: Any) -> bool:
    """Whether a value is an array on another device than the CPU."""
    if isinstance(value, np.generic):  # the sum over everything is one: a short way out for what is frequent
        return False
    if isinstance(value, SimulatedArray):
        return True
    cupy = sys.modules.get("cupy")  # where nobody has imported it, there are none of its arrays
    return cupy is not None and isinstance(value, cupy.ndarray)


def is_array(value: Any) -> bool:
    """Whether a value is an array, on any device."""
    return isinstance(value, np.ndarray) or on_device(value)


def as_array(value: Any) -> Any:
    """An array as it is, wherever it lives; numbers and sequences as an array on the CPU."""
    return value if type(value) is np.ndarray or on_device(value) else np.asarray(value)


def device_of(array: Any) -> str:
    """The device of an array, or of a Tensor."""
    device = array.device
    return device if type(device) is str else _gpu(device.id)


def one_device(operation: str, arrays: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError where arrays, given with the names of their arguments, live on different devices."""
    there = [(name, array, device_of(array)) for name, array in arrays if is_array(array)]
    if len({device for _, _, device in there}) > 1:
        got = ", ".join(f"{name} {array.shape} on {device}" for name, array, device in there)
        to = next(device for _, _, device in there if device != CPU)
        raise ValueError(
            f"{operation}: the inputs are on different devices: {got}; send them to one: .to({to!r}) of a "
            f"Tensor, tg.tensor(array, device={to!r}) of an array"
        )


# From one device to another


def send(array: Any, device: str) -> Any:
    """The array on a device: itself where it is there, and else a copy. `device` as `named` gives it."""
    if device_of(array) == device:
        return array
    if device == CPU:
        return fetch(array)
    if device == SIMULATOR:
        return np.array(fetch(array), order="K").view(SimulatedArray)
    cupy = _cupy()
    with cupy.cuda.Device(_index(device)):
        return cupy.asarray(array if isinstance(array, cupy.ndarray) else fetch(array))


def fetch(array: Any) -> np.ndarray:
    """The array on the CPU: itself where it is there, and else a copy, for which the device is waited for."""
    if type(array) is np.ndarray:
        return array
    if isinstance(array, np.ndarray):
        return np.array(array, order="K")
    return array.get(order="A")


def from_gpu(array: Any, device: str) -> Any:
    """CuPy's array over the memory of another library's on a GPU, by way of DLPack."""
    cupy = _cupy()
    with cupy.cuda.Device(_index(device)):
        return cupy.from_dlpack(array)


def strided(storage: Any, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of an array of rank 1, from the element `start` on; strides in bytes."""
    if isinstance(storage, np.ndarray):
        view = np.lib.stride_tricks.as_strided(storage.view(np.ndarray)[start:], shape, strides)
        return view.view(type(storage))
    return _cupy().lib.stride_tricks.as_strided(storage[start:], shape, strides)


def in_use(array: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which the device of an array is the one that CuPy and numba-cuda work on."""
    return contextlib.nullcontext() if isinstance(array, np.ndarray) else array.device


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """An uninitialised array on the device of `like`."""
    if type(like) is np.ndarray:
        return np.empty(shape, dtype)
    if isinstance(like, SimulatedArray):
        return np.empty(shape, dtype).view(SimulatedArray)
    return _cupy().empty(shape, dtype)  # on the device in use, which CuPy wants to be that of the arrays


def zeros(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """An array of zeros on the device of `like`."""
    return np.zeros(shape, dtype) if type(like) is np.ndarray else full(shape, 0.0, dtype, like)


def full(shape: tuple[int, ...], value: float, dtype: Any, like: Any) -> Any:
    """An array of one value on the device of `like`."""
    array = empty(shape, dtype, like)
    array.fill(value)
    return array
