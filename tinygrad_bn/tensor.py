"""`Tensor`: an array with a place on the tape. No mathematics here: operators call the operations in
`ops/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np

from . import devices
from .kernels.cpu.memory import owns
from .namespace import tensors as ops
from .rules import Aval, aval
from .tape import LEAF, Edge, Node, is_grad_enabled, no_grad, sweep

__all__ = ["DTYPES", "Tensor", "tensor"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
CUDA_DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Names of those on a CUDA device: two of 16 bits in memory, and float32 in the fused kernels, besides."""


class Tensor:
    """An n-dimensional array of float32 or float64, on CUDA devices also of float16 or bfloat16, that can be
    differentiated.

    data: anything `numpy.asarray` accepts, or an array on another device; it is copied, so that nobody
        changes it behind the tape's back. Integers and booleans become float64. Other dtypes (complex,
        object; on the CPU also float16 and bfloat16) are a TypeError.
    dtype: one of these; default: that of `data`. "bfloat16" is the package ml-dtypes'.
    device: "cpu", "cuda", "cuda:1" or "cuda-sim"; default: that of `data`. What is calculated from a tensor,
        and its gradient, stay on its device. RuntimeError where the device cannot be used here.
    requires_grad: record what is done with this tensor, and give it a `.grad` in `backward`.

    Changing a tensor in place (`t[...] = v`, `t += v`, `t.copy_(v)`, `t.data = v`) counts up a version that
    it shares with its views; a backward pass that needs an array which was changed since it was saved
    raises an error. `.data` is a read-only view for that reason; CuPy has no such views, so that of a tensor
    on a GPU can be written to, which the tape does not see.
    """

    __slots__ = ("__weakref__", "_array", "_aval", "_edge", "_version", "grad")

    __array_ufunc__ = None  # so that ndarray + Tensor reaches Tensor.__radd__
    __hash__ = object.__hash__  # == compares elements; a tensor is a dictionary key by identity

    def __init__(
        self, data: Any, dtype: Any = None, *, device: str | None = None, requires_grad: bool = False
    ):
        source = array_of(data)
        array = source.copy(order="K") if devices.on_device(source) else np.array(source, order="K")
        if dtype is not None and (array.dtype.kind in "fiub" or array.dtype.name in CUDA_DTYPES):
            array = array.astype(_known(dtype), copy=False)
        elif array.dtype.kind in "iub":
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        wanted = None if device is None else _available(device)
        _check_dtype(array, wanted)
        self._array = array if wanted is None else devices.send(array, wanted)
        self._aval: Aval | None = None
        self._edge: Edge | None = None
        self._version = [0]
        self.grad: Tensor | None = None
        if requires_grad:
            self.requires_grad = True

    def __init_subclass__(cls) -> None:
        raise TypeError(f"{cls.__name__}: Tensor has no subclasses; hold a Tensor in a class of your own")

    @classmethod
    def wrap(cls, array: Any, edge: Edge | None = None, version: list[int] | None = None) -> Tensor:
        """A tensor *over* `array`, without a copy: what operations return, and a way to share memory with
        NumPy or CuPy.

        Writing to a shared array other than through a tensor is not seen by the version counter.
        """
        if type(array) is not np.ndarray:
            array = devices.as_array(array)
        if array.dtype not in DTYPES:
            _check_dtype(array)
        self = object.__new__(cls)
        self._array = array
        self._aval = None
        self._edge = edge
        self._version = [0] if version is None else version
        self.grad = None
        return self

    # What it is

    @property
    def data(self) -> Any:
        """The values, as a view on their device, read-only unless that is a GPU. Assigning to it copies new
        values in, in place.
        """
        view = self._array.view()
        if isinstance(view, np.ndarray):
            view.flags.writeable = False
        return view

    @data.setter
    def data(self, values: Any) -> None:
        with no_grad():
            self.copy_(values)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def aval(self) -> Aval:
        """What is left of this tensor where its values are not kept: the same object for equal ones."""
        if self._aval is None:
            self._aval = aval_of(self._array)
        return self._aval

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def device(self) -> str:
        return devices.CPU if type(self._array) is np.ndarray else devices.device_of(self._array)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self._edge is None or self._edge[0].op is LEAF

    @property
    def requires_grad(self) -> bool:
        return self._edge is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if bool(value) == self.requires_grad:
            return
        if not self.is_leaf:
            raise RuntimeError("requires_grad: only a leaf can stop requiring a gradient; use detach()")
        self._edge = (Node(LEAF, saved=ref(self)), 0) if value else None

    def item(self) -> float:
        """The value of a tensor with one element, as a Python float."""
        return self._array.item()

    def numpy(self) -> np.ndarray:
        """The values as an array of their own on the CPU; `data` is a view where they are."""
        array = devices.fetch(self._array)
        return array.copy() if array is self._array else array

    def to(self, device: str) -> Tensor:
        """The tensor on a device: itself where it is there, and else a copy. Differentiable: the gradient
        comes back to this tensor's device.

        Raises:
            ValueError: there is no such device. RuntimeError: it cannot be used here; the message says why.
        """
        wanted = _available(device)
        return self if wanted == self.device else ops.to_device(self, device=wanted, origin=self.device)

    def detach(self) -> Tensor:
        """The same values (shared memory, shared version) without a place on the tape."""
        return Tensor.wrap(self._array, version=self._version)

    # Differentiation

    def backward(
        self, grad: Any = None, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Add the gradient of this tensor to the `.grad` of every leaf it depends on.

        grad: the cotangent, of this tensor's shape; may be left out where there is one element.
        retain_graph: keep the saved values for another backward pass; default: `create_graph`.
        create_graph: record the backward pass itself, so that gradients can be differentiated again.
        """
        seeds = [(edge_of(self, "backward"), cotangent_for(self, grad, "backward", create_graph))]
        retain = create_graph if retain_graph is None else retain_graph
        found = sweep(seeds, retain_graph=retain, create_graph=create_graph)
        leaves = {edge: edge[0].saved() for edge in found}  # None where nobody holds that tensor any more
        kept = [edge for edge, leaf in leaves.items() if leaf is not None]
        for edge, total in zip(kept, own_gradients([found[edge] for edge in kept], seeds), strict=True):
            leaf = leaves[edge]
            leaf.grad = total if leaf.grad is None else leaf.grad + total

    def register_hook(self, hook: Callable[[Tensor], Any]) -> Callable[[], None]:
        """Call `hook(gradient)` whenever the gradient of this tensor has been computed; a result other than
        None replaces it.

        Returns a function that removes the hook.
        """
        node, index = edge_of(self, "register_hook")
        # A hook that held the tensor would make a reference circle.
        shape, dtype, device = self.shape, self.dtype, self.device

        def call(cotangent: Any) -> Any:
            recorded = isinstance(cotangent, Tensor)
            # The cotangent may be another tensor's too, or end as a .grad: the hook gets a copy that it may
            # keep and change.
            result = hook(cotangent if recorded else Tensor(cotangent))
            if result is None:
                return None
            result = result if isinstance(result, Tensor) else Tensor(result, dtype)
            if result.shape != shape:
                raise ValueError(
                    f"register_hook: the hook gave a gradient of shape {result.shape}, wanted {shape}"
                )
            if result.device != device:
                raise ValueError(
                    f"register_hook: the hook gave a gradient on {result.device}, wanted it on {device}; "
                    f"send it there with .to({device!r})"
                )
            return result.astype(dtype) if recorded else result._array.astype(dtype)

        entry = (index, call)
        node.hooks = [*(node.hooks or ()), entry]

        def remove() -> None:
            node.hooks = [kept for kept in node.hooks or () if kept is not entry]

        return remove

    # Changing in place

    def copy_(self, values: Any) -> Tensor:
        """Write `values` (broadcast, cast to this dtype) into this tensor's memory."""
        self[...] = values
        return self

    def __setitem__(self, key: Any, values: Any) -> None:
        if is_grad_enabled() and (
            self.requires_grad or (isinstance(values, Tensor) and values.requires_grad)
        ):
            raise RuntimeError(
                f"in-place change of a tensor of shape {self.shape} while gradients are recorded: the tape "
                "could not follow it; use an operation such as where(), or change it inside `with no_grad():`"
            )
        array = array_of(values)
        if type(self._array) is not np.ndarray or devices.on_device(array):
            array = devices.send(devices.as_array(array), self.device)  # a copy is what was asked for
        self._array[key] = array
        self._version[0] += 1

    def __iadd__(self, other: Any) -> Tensor:
        return self.copy_(self + other)

    def __isub__(self, other: Any) -> Tensor:
        return self.copy_(self - other)

    def __imul__(self, other: Any) -> Tensor:
        return self.copy_(self * other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self.copy_(self / other)

    # Operators

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return ops.power(self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return ops.power(base, self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __getitem__(self, key: Any) -> Tensor:
        return ops.getitem(self, key=key)

    # Comparisons give arrays of booleans on the tensor's device: they have no gradient

    def __eq__(self, other: object) -> Any:
        return self._array == self._beside(other)

    def __ne__(self, other: object) -> Any:
        return self._array != self._beside(other)

    def __lt__(self, other: Any) -> Any:
        return self._array < self._beside(other)

    def __le__(self, other: Any) -> Any:
        return self._array <= self._beside(other)

    def __gt__(self, other: Any) -> Any:
        return self._array > self._beside(other)

    def __ge__(self, other: Any) -> Any:
        return self._array >= self._beside(other)

    def _beside(self, other: Any) -> Any:
        """The array, or whatever it is, that this tensor is compared with."""
        other = array_of(other)
        if type(other) is not type(self._array):
            devices.one_device("comparison", (("left", self._array), ("right", other)))
        return other

    # The operations that read best as methods

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return ops.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return ops.amax(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return ops.amin(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        return ops.reshape(self, shape=_one_or_many(shape))

    def transpose(self, *axes: Any) -> Tensor:
        """Permute the axes; without arguments, reverse them (as NumPy does, and unlike torch)."""
        return ops.transpose(self, axes=_one_or_many(axes) if axes else None)

    @property
    def T(self) -> Tensor:  # noqa: N802 -- NumPy's name
        return ops.transpose(self)

    def expand(self, *shape: Any) -> Tensor:
        """Repeat along axes of length 1, without copying, to `shape`."""
        return ops.broadcast_to(self, shape=_one_or_many(shape))

    def astype(self, dtype: Any) -> Tensor:
        return ops.astype(self, dtype=_known(dtype))

    def exp(self) -> Tensor:
        return ops.exp(self)

    def log(self) -> Tensor:
        return ops.log(self)

    def sqrt(self) -> Tensor:
        return ops.sqrt(self)

    def tanh(self) -> Tensor:
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        return ops.sigmoid(self)

    def relu(self) -> Tensor:
        return ops.relu(self)

    def abs(self) -> Tensor:
        return ops.abs(self)

    # Python's and NumPy's protocols

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.device != devices.CPU:
            raise TypeError(
                f"this tensor of shape {self.shape} is on {self.device}, and NumPy calculates on the CPU; "
                "fetch it with .numpy()"
            )
        return np.array(self.data, dtype=dtype, copy=copy)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Of a tensor on a GPU; others have no such attribute."""
        interface = getattr(self._array, "__cuda_array_interface__", None)
        if interface is None:
            raise AttributeError(f"__cuda_array_interface__: this tensor is on {self.device}, not on a GPU")
        self._check_exportable("__cuda_array_interface__")
        return interface

    def __dlpack__(self, **arguments: Any) -> Any:
        self._check_exportable("__dlpack__")
        return self.data.__dlpack__(**arguments)  # read-only: a write from outside would not be seen

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def _check_exportable(self, protocol: str) -> None:
        if self.requires_grad:
            raise BufferError(
                f"{protocol}: this tensor is on the tape, which others cannot follow; export detach() instead"
            )

    def __reduce__(self) -> Any:
        # The values travel by way of the CPU.
        return _rebuild, (devices.fetch(self._array), self.requires_grad, self.grad, self.device)

    def __repr__(self) -> str:
        values = np.array2string(devices.fetch(self._array), separator=", ", prefix="Tensor(")
        device = "" if self.device == devices.CPU else f", device={self.device}"
        made = "" if self.is_leaf else f", from={self._edge[0].op.name}"  # type: ignore[index]
        grad = ", requires_grad=True" if self.is_leaf and self.requires_grad else ""
        return f"Tensor({values}, dtype={self.dtype}{device}{grad}{made})"


def _one_or_many(lengths: tuple[Any, ...]) -> Any:
    """What was given for a shape or axes: one sequence, or several integers."""
    return lengths[0] if len(lengths) == 1 and not isinstance(lengths[0], int) else lengths


def _available(device: str) -> str:
    """The device by its one name, or an error that says why it cannot be used here."""
    wanted = devices.named(device)
    devices.check_available(wanted)
    return wanted


def tensor(data: Any, dtype: Any = None, *, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """`Tensor(data, dtype, device=..., requires_grad=...)`, under the name that torch gives it."""
    return Tensor(data, dtype, device=device, requires_grad=requires_grad)


def array_of(value: Any) -> Any:
    """The array of a tensor; anything else as it is."""
    return value._array if isinstance(value, Tensor) else value


def aval_of(array: Any) -> Aval:
    """What is left of an array: the same object for equal ones."""
    device = devices.CPU if type(array) is np.ndarray else devices.device_of(array)
    return aval(array.shape, array.dtype, device)


def edge_of(value: Any, operation: str) -> Edge:
    """The tensor's place on the tape, or an error that says why it has none."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: expected a Tensor, got {type(value).__name__}")
    if value._edge is None:
        raise RuntimeError(
            f"{operation}: this tensor of shape {value.shape} is not on the tape; give an input of its "
            "computation requires_grad=True, and compute it outside no_grad()"
        )
    return value._edge


def cotangent_for(output: Tensor, given: Any, operation: str, create_graph: bool) -> Any:
    """The cotangent that starts a sweep at `output`: a Tensor under `create_graph`, an array otherwise."""
    made = output._array
    if given is None:
        if made.size != 1:
            raise ValueError(
                f"{operation}: the output has shape {output.shape}; only one element has a gradient without "
                "a cotangent: pass one of that shape, or reduce the output first, e.g. with .sum()"
            )
        given = devices.full(output.shape, 1.0, made.dtype, like=made)
    array = array_of(given)
    if type(array) is not np.ndarray or type(made) is not np.ndarray:
        if not devices.is_array(array):  # numbers have no place yet
            array = given = devices.send(np.asarray(array, made.dtype), output.device)
        devices.one_device(operation, (("output", made), ("cotangent", array)))
    if array.shape != made.shape:
        raise ValueError(f"{operation}: the cotangent has shape {array.shape}, the output has {output.shape}")
    if create_graph:
        given = given if isinstance(given, Tensor) else Tensor(given, output.dtype)
        return given if given.dtype == output.dtype else given.astype(output.dtype)
    return array if array.dtype == made.dtype else array.astype(made.dtype)


def own_gradients(found: Sequence[Any], seeds: Sequence[tuple[Edge, Any]]) -> list[Any]:
    """The cotangents that a sweep from `seeds` found, as Tensors; None stays None.

    A rule may pass one array to several parents, or a view of it. Those who asked may write to a gradient,
    so each gets memory that is neither another one's nor a seed's, at the same place on the tape."""
    taken = {id(array_of(cotangent)) for _, cotangent in seeds}
    results: list[Any] = []
    for cotangent in found:
        if cotangent is None:
            results.append(None)
            continue
        recorded = type(cotangent) is Tensor
        array = cotangent._array if recorded else cotangent
        place = id(array)
        if place in taken or not owns(array):
            results.append(Tensor.wrap(array.copy(), cotangent._edge if recorded else None))
        else:
            results.append(cotangent if recorded else Tensor.wrap(array))
        taken.add(place)
    return results


def _known(dtype: Any) -> Any:
    """The dtype, which NumPy knows by the name "bfloat16" only where ml_dtypes is loaded."""
    if type(dtype) is str and dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")
        except ModuleNotFoundError:
            raise TypeError(
                "Tensor: dtype 'bfloat16' needs ml_dtypes, which is not installed; pip install ml-dtypes"
            ) from None
    return dtype


def _check_dtype(array: Any, device: str | None = None) -> None:
    """Raise TypeError unless a tensor on the device, by default that of the array, may have its dtype."""
    if array.dtype in DTYPES:
        return
    on_cpu = devices.kind(device or devices.device_of(array)) == devices.CPU
    if on_cpu or array.dtype.name not in CUDA_DTYPES:
        more = (
            f", or with .astype('float32') before .to('cpu'): {' and '.join(CUDA_DTYPES[:2])} are for CUDA "
            "devices alone"
        )
        raise TypeError(
            f"Tensor: got dtype {array.dtype}, wanted float32 or float64; convert it, e.g. with "
            "dtype='float32'"
            f"{more if array.dtype.name in CUDA_DTYPES else ''}"
        )


def _rebuild(
    array: np.ndarray, requires_grad: bool, grad: Tensor | None, device: str = devices.CPU
) -> Tensor:
    """A copy or an unpickled tensor is a leaf: the values travel, the graph stays behind."""
    result = Tensor(array, device=device, requires_grad=requires_grad)
    result.grad = grad
    return result
