"""Calling a primitive operation and pulling back through it.

`Primitive` is both ends of an operation that has rules: called, it runs the array function and puts a node
on the tape; `pull`, which the tape calls, applies the rules. The rules are themselves made of primitives,
so under `create_graph` they run on Tensors and are recorded. What fused operations do instead stands in
`fused.py`; both share how values are saved and traced."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from . import devices, namespace, trace
from .registry import REGISTRY, OpSpec, Registry
from .rules import Aval, restore
from .tape import Edge, Node, is_grad_enabled
from .tensor import Tensor, aval_of

__all__ = [
    "Primitive",
    "Saved",
    "keep",
    "operand",
    "origin_of",
    "owned",
    "primitive",
    "unwrap",
    "write_trace",
]


class Saved:
    """What a node keeps: inputs (arrays, or an `Aval` in place of one), the output if it is read,
    attributes that nobody changes, auxiliary arrays of a kernel; and the version that each array had.
    """

    __slots__ = ("attributes", "aux", "inputs", "needs", "output", "run", "versions")

    def __init__(
        self,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any],
        versions: list[tuple[int, list[int], int]],
        output: Any = None,
        aux: Sequence[Any] = (),
        run: Any = None,
        needs: tuple[bool, ...] = (),
    ):
        self.inputs = inputs
        self.attributes = attributes
        self.versions = versions
        self.output = output
        self.aux = aux
        self.run = run  # which kernel, and its plan
        self.needs = needs  # of a recorded vjp: which gradients it gave

    def check_versions(self, spec: OpSpec) -> None:
        """Raise RuntimeError where a saved array was written to through a tensor since."""
        for position, cell, version in self.versions:
            if cell[0] != version:
                output = position == len(self.inputs)
                what = "the output" if output else self._called(spec, position)
                array = self.output if output else self.inputs[position]
                raise RuntimeError(
                    f"{spec.name}: {what} (shape {array.shape}, {array.dtype}) was changed in place after "
                    f"the tape saved it (version {version} then, {cell[0]} now); change a copy instead, or "
                    "wait until after the backward pass"
                )

    def _called(self, spec: OpSpec, position: int) -> str:
        if spec.variadic or position < len(spec.inputs):
            return f"input {spec.input_name(position)!r}"
        return "the cotangent"

    def wrapped(self, node: Node) -> tuple[list[Any], Tensor | None]:
        """The inputs and the output as Tensors at their places on the tape, for a pass that is itself
        recorded.

        They share the versions of the tensors that they were, so that the new nodes notice a change too.
        """
        cells = {position: cell for position, cell, _ in self.versions}
        inputs = [
            Tensor.wrap(value, edge, cells[position]) if position in cells else value
            for position, (value, edge) in enumerate(zip(self.inputs, node.parents, strict=True))
        ]
        if self.output is None:
            return inputs, None
        return inputs, Tensor.wrap(self.output, (node, 0), cells[len(inputs)])

    @property
    def nbytes(self) -> int:
        kept = (*self.inputs, self.output, *self.aux)
        return sum(array.nbytes for array in kept if devices.is_array(array))


def owned(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes, a mapping of this call's own, with values that nobody else can change: index arrays
    and lists, which have no hash, are copied.
    """
    try:
        hash(tuple(attributes.values()))
    except TypeError:
        return {name: _own(value) for name, value in attributes.items()}
    return attributes


def _own(value: Any) -> Any:
    if type(value) is tuple:
        return tuple([_own(part) for part in value])
    return copy.deepcopy(value) if isinstance(value, list) or devices.is_array(value) else value


def unwrap(
    values: Iterable[Any], convert: Callable[[Any], Any]
) -> tuple[list[Any], list[Edge | None], list[Any]]:
    """The arrays of a call's inputs; where they are on the tape; and each as an `Aval`, or as it is where it
    is no array. `convert` serves those that are no tensors; lists go to the device of the others.
    """
    arrays: list[Any] = []
    edges: list[Edge | None] = []
    avals: list[Any] = []
    lists: list[int] | None = None
    for value in values:
        if type(value) is Tensor:
            arrays.append(value._array)
            edges.append(value._edge)
            avals.append(value._aval or value.aval)
            continue
        if type(value) is not np.ndarray and isinstance(value, (list, tuple)):
            lists = [*(lists or ()), len(arrays)]
            value = np.asarray(value)
        array = convert(value)
        arrays.append(array)
        edges.append(None)
        known = array is not None and (type(array) is np.ndarray or devices.is_array(array))
        avals.append(aval_of(array) if known else array)
    if lists is not None:
        for array in arrays:
            if type(array) is not np.ndarray and devices.on_device(array):
                for position in lists:
                    arrays[position] = devices.send(arrays[position], devices.device_of(array))
                    avals[position] = aval_of(arrays[position])
                break
    return arrays, edges, avals


def keep(
    values: Sequence[Any], arrays: Sequence[Any], kept: list[Any], read: Iterable[int]
) -> list[tuple[int, list[int], int]]:
    """Make of the avals `kept` what a node saves of its inputs: arrays, at the positions `read`, which are
    read again. The versions of the tensors among these.

    An array that is not a tensor's has no version by which a change could be noticed, so the tape keeps a
    copy of its own."""
    versions = []
    for position in read:
        value = values[position]
        if type(value) is Tensor:
            kept[position] = arrays[position]
            version = value._version
            versions.append((position, version, version[0]))
        elif type(kept[position]) is Aval:
            kept[position] = arrays[position].copy()
    return versions


def operand(value: Any) -> Any:
    """The operand that is no tensor: an array, or a Python number, which does not promote float32 as NumPy's
    scalars would.
    """
    return value.item() if isinstance(value, np.generic) else value


class Primitive:
    """An operation with rules, callable on Tensors, arrays and numbers. Made by `@primitive`."""

    def __init__(self, spec: OpSpec):
        functools.update_wrapper(self, spec.definition)
        self.spec = spec
        self.name = spec.name
        parameters = list(inspect.signature(spec.definition).parameters.values())[len(spec.inputs) :]
        self._arity = len(spec.inputs)
        self._variadic = spec.variadic
        self._ruleless = [] if spec.variadic else [p for p, rule in enumerate(spec.vjps) if rule is None]
        self._all_read: Collection[int] | None = None  # what `_read` gives where all inputs are on the tape
        if spec.keeps is not None:
            self._all_read = {p for read in spec.keeps for p in read}
        self._attributes = [p.name for p in parameters]
        self._defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def __call__(self, *values: Any, **attributes: Any) -> Tensor:
        if len(values) != self._arity:
            values, attributes = self._bound(values, attributes)
        attributes = {**self._defaults, **attributes} if attributes else self._defaults
        if self._variadic:
            values = tuple(values[0])
        tracing = trace.current()
        start = perf_counter() if tracing is not None else 0.0
        arrays, edges, avals = unwrap(values, operand)
        try:
            definition = self.spec.definition
            given = [arrays] if self._variadic else arrays
            output = definition(*given) if attributes is self._defaults else definition(*given, **attributes)
            if type(output) is not np.ndarray:
                if devices.on_device(output):
                    devices.one_device(self.name, self._named(arrays))
                else:  # a number: the sum over everything
                    output = np.asarray(output)
            result = Tensor.wrap(output)
        except (TypeError, ValueError, IndexError) as error:
            raise self._explained(error, arrays) from None
        if self.spec.view:
            result = self._view(result, values[0], arrays[0])
        saved = None
        for position in self._ruleless:
            edges[position] = None
        if any(edges) and is_grad_enabled():
            read = self._all_read if all(edges) else None
            if read is None:
                read = self._read(edges)
            versions = keep(values, arrays, avals, read) if read else []
            output = None
            if self.spec.keeps_output:
                output = result._array
                versions.append((len(avals), result._version, result._version[0]))
            kept_attributes = attributes if attributes is self._defaults else owned(attributes)
            saved = Saved(avals, kept_attributes, versions, output)
            result._edge = (Node(self, tuple(edges), saved), 0)
        if tracing is not None:
            write_trace(tracing, "forward", self.name, "primitive", arrays, result._array, saved, start)
        return result

    def _bound(
        self, arguments: tuple[Any, ...], attributes: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs, and the attributes by name, where not all arguments are inputs."""
        values, rest = arguments[: self._arity], arguments[self._arity :]
        if len(values) < self._arity or len(rest) > len(self._attributes):
            raise TypeError(
                f"{self.name}: got {len(arguments)} arguments, wanted {inspect.signature(self)}, inputs by "
                "position"
            )
        return values, {**dict(zip(self._attributes, rest, strict=False)), **attributes}

    def _explained(self, error: Exception, arrays: Sequence[Any]) -> Exception:
        """What NumPy says of bad arguments, with the operation's name and its inputs."""
        try:
            devices.one_device(self.name, self._named(arrays))
        except ValueError as apart:
            return apart
        got = ", ".join(
            f"{name} {array.shape} {array.dtype}" if devices.is_array(array) else f"{name} {array!r}"
            for name, array in self._named(arrays)
        )
        kind = type(error) if type(error) in (TypeError, ValueError, IndexError) else ValueError
        return kind(f"{self.name}: {error} (inputs: {got})")

    def _named(self, arrays: Sequence[Any]) -> list[tuple[str, Any]]:
        """Each input with its name."""
        return [(self.spec.input_name(position), array) for position, array in enumerate(arrays)]

    def _view(self, result: Tensor, value: Any, array: Any) -> Tensor:
        """The result, which shares the version of the input if it shares its memory."""
        output = result._array
        if output.base is not array and not (
            devices.is_array(array)
            and devices.on_device(array) == devices.on_device(output)
            and np.may_share_memory(output, array)
        ):
            return result
        if type(value) is not Tensor:  # whoever holds the array could change it behind the tape's back
            return Tensor(output)
        result._version = value._version
        return result

    def _read(self, edges: Sequence[Edge | None]) -> Collection[int]:
        """The positions of the inputs that the rules of those on the tape read."""
        keeps = self.spec.keeps
        if keeps is None:
            return range(len(edges))
        return {p for edge, read in zip(edges, keeps, strict=False) if edge is not None for p in read}

    def pull(
        self, node: Node, cotangents: Sequence[Any], needs: tuple[bool, ...], create_graph: bool
    ) -> list[Any]:
        """Apply the rules of the inputs that need a cotangent."""
        spec, saved = self.spec, node.saved
        tracing = trace.current()
        start = perf_counter() if tracing is not None else 0.0
        saved.check_versions(spec)
        xp, inputs, output = namespace.arrays, saved.inputs, saved.output
        if create_graph:
            xp = namespace.tensors
            inputs, output = saved.wrapped(node)
        results: list[Any] = []
        for position, needed in enumerate(needs):
            if not needed:
                results.append(None)
                continue
            rule = spec.vjps(position) if spec.variadic else spec.vjps[position]
            given = saved.inputs[position]
            cotangent = rule(xp, cotangents[0], output, *inputs, **saved.attributes)
            results.append(restore(xp, cotangent, given.shape, given.dtype))
        if tracing is not None:
            write_trace(tracing, "vjp", self.name, "primitive", saved.inputs, cotangents[0], None, start)
        return results

    def __reduce__(self) -> Any:
        return _by_name, (self.name,)

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


def primitive(
    name: str, *, registry: Registry = REGISTRY, **declaration: Any
) -> Callable[[Callable[..., Any]], Primitive]:
    """Declare an array function with rules: `@primitive("math::exp", vjps=(rule,), samples=...)`.

    The first parameters, as many as there are rules, are the inputs, the others attributes. The fields of the
    declaration are those of `OpSpec`. A built-in operation also joins the namespaces under the function's
    name, as it is for arrays, as an operation for Tensors; those of others do not, for `xp` has one meaning.
    """

    def declare(function: Callable[..., Any]) -> Primitive:
        vjps = declaration["vjps"]
        declaration.setdefault("keeps", ((),) * (0 if callable(vjps) else len(vjps)))
        spec = OpSpec(
            name=name,
            definition=function,
            inputs=tuple(inspect.signature(function).parameters)[: 1 if callable(vjps) else len(vjps)],
            documentation=inspect.getdoc(function) or "",
            origin=origin_of(function),
            **declaration,
        )
        result = Primitive(registry.register(spec))
        if function.__module__.startswith(f"{__package__}.ops."):
            namespace.arrays.define(function.__name__, function)
            namespace.tensors.define(function.__name__, result)
        return result

    return declare


def origin_of(function: Callable[..., Any]) -> str:
    """Where a function stands, as `file:line`."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def write_trace(
    tracing: trace.Trace,
    phase: str,
    operation: str,
    kernel: str,
    arrays: Sequence[Any],
    output: Any,
    saved: Saved | None,
    start: float,
) -> None:
    """Add an entry to the trace of a `record()` block."""
    tracing.append(
        trace.Entry(
            phase=phase,
            operation=operation,
            kernel=kernel,
            shapes=tuple(getattr(array, "shape", ()) for array in arrays if array is not None),
            dtype=str(output.dtype),
            saved=saved.nbytes if saved is not None else 0,
            milliseconds=(perf_counter() - start) * 1e3,
        )
    )


def _by_name(name: str) -> Primitive:
    return Primitive(REGISTRY.get(name))
