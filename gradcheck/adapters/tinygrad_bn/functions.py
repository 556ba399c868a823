"""Functions on `tinygrad_bn.Tensor`, and registered operations by name, as pairs that can be checked.

Every call starts from the state that the default Generator had when the check began, the backward pass from
the one that its own forward pass left; between calls the Generator is the caller's.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import tinygrad_bn
from gradcheck.adapters import Pair, shared
from gradcheck.contract.randomness import GlobalGenerator
from tinygrad_bn import OpSpec, Tensor, devices
from tinygrad_bn.dispatch import Primitive
from tinygrad_bn.fused import Fused

__all__ = ["Adapted", "by_name", "operation_of", "pair", "public_function", "recognises"]

NO_KERNEL = "JVP against VJP: not made, no compiled kernel ran, and primitives have one rule for both"


def recognises(fn: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether these inputs, or else this function, are this framework's."""
    return shared.recognises("tinygrad_bn", fn, inputs)


def pair(
    fn: Callable[..., Any], inputs: Sequence[Any], differentiable: Collection[int] | None = None
) -> Pair:
    """A function on Tensors as a Pair.

    Args:
        fn: takes the inputs, returns one Tensor.
        inputs: Tensors, all on one device; floating arrays become Tensors there too, other arrays go there,
            and everything else is passed on as it is.
        differentiable: positions of the inputs to check; by default all that are floating.

    Raises:
        TypeError: inputs of another framework, or none that is floating. ValueError: Tensors on two devices.
    """
    shared.require_one_framework(inputs)
    tensors = {f"input {n}": value.data for n, value in enumerate(inputs) if isinstance(value, Tensor)}
    devices.one_device("check", tensors.items())
    device = next(map(devices.device_of, tensors.values()), devices.CPU)
    arrays = shared.input_arrays(fn, inputs, _as_array)
    if differentiable is None and isinstance(fn, Named) and not fn.spec.variadic:
        floating = shared.wanted_positions(fn, arrays, None)
        differentiable = [position for position in fn.spec.gradients if position in floating]
    wanted = shared.wanted_positions(fn, arrays, differentiable)
    return Adapted(fn, inputs, wanted, device=device).pair(arrays)


def _as_array(value: Any) -> np.ndarray | None:
    owner = shared.framework_of(value)
    if owner not in (None, "tinygrad_bn"):  # of an operation given by name
        kind = type(value).__name__
        raise TypeError(
            f"is a {kind} of {owner}; operations of tinygrad_bn take its Tensors, or NumPy arrays"
        )
    return value.numpy() if isinstance(value, Tensor) else None


class Adapted:
    """A function on Tensors, on arrays of which those at the positions `wanted` get a gradient.

    `lay_out` moves the first input in memory, from which a Tensor takes its own layout. The function runs on
    `device`; the arrays are NumPy's.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        wanted: tuple[int, ...],
        lay_out: Callable[[np.ndarray], np.ndarray] | None = None,
        device: str = devices.CPU,
    ) -> None:
        self.fn, self.inputs, self.wanted, self.lay_out, self.device = fn, inputs, wanted, lay_out, device
        self.start = tinygrad_bn.default_generator().state

    def pair(self, arrays: list[np.ndarray | None]) -> Pair:
        """Both passes, and forward mode where it comes from another source than the backward pass."""
        jvp = self.jvp if self.runs_kernels(arrays) else None
        place = () if self.device == devices.CPU else (f"on {self.device}",)
        return Pair(
            forward=functools.update_wrapper(functools.partial(self.forward), self.fn, updated=()),
            backward=self.backward,
            inputs=arrays,
            name=getattr(self.fn, "__name__", type(self.fn).__name__),
            differentiable=self.wanted,
            jvp=jvp,
            second=functools.partial(self.second, arrays),
            plain=self.plain,
            some=functools.partial(self.some, arrays),
            remarks=place if jvp else (*place, NO_KERNEL),
        )

    def forward(self, *arrays: np.ndarray | None) -> tuple[np.ndarray, Any]:
        with _drawing_from(self.start), tinygrad_bn.enable_grad():
            tensors = self.tensors(arrays)
            for position in self.wanted:
                tensors[position].requires_grad = True
            output = self.output_of(tensors)
            drawn = tinygrad_bn.default_generator().state
        return devices.fetch(output.data), (output, [tensors[position] for position in self.wanted], drawn)

    def backward(self, saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        output, leaves, drawn = saved
        with _drawing_from(drawn):
            along = self._there(cotangent)
            gradients = tinygrad_bn.grad(output, leaves, along, retain_graph=True, allow_unused=True)
        found: list[np.ndarray | None] = [None] * len(self.inputs)
        for position, leaf, gradient in zip(self.wanted, leaves, gradients, strict=True):
            # What the output does not depend on has gradient zero; the numbers tell whether that is right.
            zeros = np.zeros(leaf.shape, leaf.dtype)
            found[position] = zeros if gradient is None else devices.fetch(gradient.data)
        return tuple(found)

    def plain(self, *arrays: np.ndarray | None) -> np.ndarray:
        """The output, with nothing recorded."""
        with _drawing_from(self.start), tinygrad_bn.no_grad():
            return devices.fetch(self.output_of(self.tensors(arrays)).data)

    def some(self, arrays: list[np.ndarray | None], positions: tuple[int, ...]) -> Pair:
        """The Pair of which only these inputs require a gradient."""
        fewer = Adapted(self.fn, self.inputs, positions, self.lay_out, self.device)
        fewer.start = self.start
        return Pair(fewer.forward, fewer.backward, arrays, "", positions)

    def jvp(self, arrays: Sequence[np.ndarray | None], tangents: Sequence[np.ndarray | None]) -> np.ndarray:
        """The derivative of the output along the tangents, by the definitions of the operations."""
        along = [position for position in self.wanted if tangents[position] is not None]
        with _drawing_from(self.start):
            tensors = self.tensors(arrays)

            def of_moved(*moved: Any) -> Any:
                for position, tensor in zip(along, moved, strict=True):
                    tensors[position] = tensor
                return self.output_of(tensors)

            primals = [tensors[position] for position in along]
            moving = [self._there(tangents[position]) for position in along]
            return devices.fetch(tinygrad_bn.jvp(of_moved, primals, moving)[1].data)

    def second(self, arrays: list[np.ndarray | None], cotangent: np.ndarray) -> Pair:
        """The Pair of (*inputs, cotangent) ↦ the gradients, joined into one vector."""

        def gradients(*tensors: Any) -> Any:
            *primals, direction = tensors
            wanted = [primals[position] for position in self.wanted]
            found = tinygrad_bn.grad(
                self.output_of(primals), wanted, direction, create_graph=True, allow_unused=True
            )
            parts = [
                Tensor.wrap(devices.zeros((x.size,), x.dtype, like=x.data))
                if gradient is None
                else gradient.reshape(x.size)
                for x, gradient in zip(wanted, found, strict=True)
            ]
            return tinygrad_bn.functional.concatenate(parts)

        name = f"gradient of {getattr(self.fn, '__name__', type(self.fn).__name__)}"
        wanted = (*self.wanted, len(self.inputs))
        joined = Adapted(gradients, [*self.inputs, None], wanted, self.lay_out, self.device)
        return Pair(joined.forward, joined.backward, [*arrays, cotangent], name, joined.wanted)

    def tensors(self, arrays: Sequence[np.ndarray | None]) -> list[Any]:
        """The arguments of a call: Tensors for floating arrays, over the memory in which they lie."""
        if self.lay_out is not None and arrays[0] is not None:
            arrays = (self.lay_out(arrays[0]), *arrays[1:])
        there = [None if array is None else self._there(array) for array in arrays]
        return [
            given if array is None else Tensor.wrap(array) if array.dtype.kind == "f" else array
            for array, given in zip(there, self.inputs, strict=True)
        ]

    def _there(self, array: Any) -> Any:
        """The array on the device, laid out in memory as it is here."""
        return array if self.device == devices.CPU else _laid_out_alike(array, self.device)

    def output_of(self, tensors: Sequence[Any]) -> Any:
        return shared.one_output(self.fn(*tensors), Tensor, "tinygrad_bn.Tensor")

    def runs_kernels(self, arrays: Sequence[np.ndarray | None]) -> bool:
        """Whether a call runs compiled kernels; False where it raises, which the check will tell."""
        copies = [None if array is None else array.copy() for array in arrays]
        with tinygrad_bn.record() as trace, contextlib.suppress(Exception):
            GlobalGenerator().call("trial", None, lambda: self.forward(*copies))
        return bool(trace.kernels("forward"))


def _laid_out_alike(array: np.ndarray, device: str) -> Any:
    """A copy on a device, with the strides of the array and what lies between its elements."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.dtype != array.dtype or not owner.flags.forc or not array.size:
        return devices.send(array, device)
    storage = devices.send(owner.ravel(order="K"), device)
    offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    return devices.strided(storage, offset // array.itemsize, array.shape, array.strides)


@contextlib.contextmanager
def _drawing_from(state: dict[str, int]) -> Iterator[None]:
    """Let the default Generator start from a state, and put it back as it was."""
    generator = tinygrad_bn.default_generator()
    kept = generator.state
    generator.state = state
    try:
        yield
    finally:
        generator.state = kept


class Named:
    """A registered operation, with its attributes, as a function of its inputs alone."""

    def __init__(self, spec: OpSpec, attributes: Mapping[str, Any]) -> None:
        public = public_function(spec)
        problem = _problem(spec, public or spec.definition, attributes)
        if problem and public is not None and not _problem(spec, spec.definition, attributes):
            public = problem = None
        if problem:
            raise TypeError(problem)
        self.spec, self.attributes, self.public = spec, attributes, public
        self.operation = operation_of(spec)
        self.__name__ = spec.short_name
        if not spec.variadic:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            self.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in spec.inputs])

    def __call__(self, *inputs: Any) -> Any:
        spec = self.spec
        if self.public is not None:
            return self.public(**dict(zip(spec.inputs, inputs, strict=False)), **self.attributes)
        if spec.variadic:
            return self.operation(inputs, **self.attributes)
        absent = [None] * (len(spec.inputs) - len(inputs)) if spec.fused else []
        return self.operation(*inputs, *absent, **self.attributes)


def by_name(name: str, attributes: Mapping[str, Any]) -> Named:
    """A registered operation as a function of its inputs alone.

    It is the public function, where there is one that takes these attributes, and else the operation itself.

    Args:
        name: such as "norm::layer_norm"; the namespace may be left out.
        attributes: keyword arguments.

    Raises:
        RegistryError: there is no such operation; it says which may be meant.
        TypeError: an attribute is unknown or missing.
    """
    return Named(tinygrad_bn.REGISTRY.get(name), attributes)


def operation_of(spec: OpSpec) -> Fused | Primitive:
    """The operation that a record describes."""
    return Fused(spec) if spec.fused else Primitive(spec)


def public_function(spec: OpSpec) -> Callable[..., Any] | None:
    """What users call, where that is another function than the operation itself."""
    if not spec.public:
        return None
    module, _, attribute = spec.public.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _problem(spec: OpSpec, function: Callable[..., Any], attributes: Mapping[str, Any]) -> str | None:
    """Why a function does not take these attributes, or None where it does."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in ("xp", *spec.inputs)]
    wanted = f"its attributes are {', '.join(known) or 'none'}"
    for name in attributes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            return f"{spec.name} has no attribute {name!r}; {hint}{wanted}"
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in required if name not in attributes]
    if missing:
        return f"{spec.name} needs {', '.join(missing)}; pass attributes={{{missing[0]!r}: …}}; {wanted}"
    return None
