"""Calling a fused operation: a definition with kernels, and the way back through both.

A `Fused` call runs one kernel and is one node, which is pulled back by the kernel's vjp. Under
`create_graph` that vjp is recorded in its turn, as a node of `_FusedVjp`, whose own pull-back
differentiates the definition. So first-order gradients are the same bits with and without `create_graph`,
and higher orders come from the definition. Where no kernel serves, or `kernel="definition"` is asked for,
the definition runs on Tensors and the tape records its primitives; `explain` says which and why."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from . import devices, namespace, trace
from .autograd import grad
from .dispatch import Saved, keep, origin_of, owned, unwrap, write_trace
from .registry import REGISTRY, Kernel, OpSpec, Registry
from .rules import Aval
from .tape import Edge, Node, enable_grad, is_grad_enabled
from .tensor import Tensor, array_of

__all__ = ["DEFINITION", "Explanation", "Fused", "explain", "operation"]

DEFINITION = "definition"
"""`kernel=DEFINITION` runs the definition instead of a kernel."""
MOST_REMEMBERED = 1024
"""Calls of an operation that are remembered: more than a model makes, fewer than anyone would notice."""


class _Run:
    """What a call runs: the kernel, its imported target and its plan; the attributes, and the shape that the
    output must have. Without a kernel it is the definition.
    """

    __slots__ = ("attributes", "kernel", "plan", "shape", "target")

    def __init__(
        self,
        kernel: Kernel | None,
        target: Any,
        plan: Any,
        attributes: Mapping[str, Any],
        shape: tuple[int, ...],
    ):
        self.kernel = kernel
        self.target = target
        self.plan = plan
        self.attributes = attributes
        self.shape = shape

    def drawn(self, attributes: Mapping[str, Any]) -> _Run:
        """The same with attributes that differ from call to call."""
        plan = self.plan.drawn(**attributes)
        return _Run(self.kernel, self.target, plan, {**self.attributes, **attributes}, self.shape)

    def elsewhere(self, operation: str, method: str, array: Any, *arguments: Any) -> Any:
        """What a method of the kernel gives, on the device of an array, which need not be the one in use."""
        try:
            with devices.in_use(array):
                return getattr(self.target, method)(self.plan, *arguments)
        except MemoryError as error:
            raise MemoryError(
                f"{operation}: no memory is left on {devices.device_of(array)} for "
                f"{self.label(method, array.dtype)} of shape {array.shape} ({error}); use smaller batches, "
                "or drop tensors that are not needed"
            ) from error

    def label(self, method: str, dtype: Any) -> str:
        assert self.kernel is not None
        return f"{self.kernel.target}.{method} {np.dtype(dtype).name}"


@dataclass(frozen=True)
class Explanation:
    """Which kernel a call runs, and why each other one does not. `kernel` is None where the definition
    runs.
    """

    operation: str
    kernel: Kernel | None
    reasons: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join([self.operation, *(f"  {name:<52} {reason}" for name, reason in self.reasons)])


class Fused:
    """A fused operation: `op(*inputs, kernel=None, **attributes)` on Tensors and arrays. Made by
    `@operation`.
    """

    def __init__(self, spec: OpSpec):
        functools.update_wrapper(self, spec.definition)
        self.spec = spec
        self.name = spec.name
        self._vjp = _FusedVjp(spec)
        self._dtypes = frozenset(map(np.dtype, spec.dtypes))
        self._elsewhere = {name for k in spec.kernels if k.device != devices.CPU for name in k.dtypes}
        self._constant = [p for p in range(len(spec.inputs)) if p not in spec.gradients]
        self._runs: dict[tuple[Any, ...], _Run] = {}
        self._read = range(len(spec.inputs)) if spec.keeps is None else spec.keeps[0]
        parameters = inspect.signature(spec.definition).parameters.values()
        keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        self._attributes = {p.name for p in keywords}
        self._defaults = {p.name: p.default for p in keywords if p.default is not inspect.Parameter.empty}

    def __call__(self, *inputs: Any, kernel: str | None = None, **attributes: Any) -> Tensor:
        """The output alone."""
        return self.call(inputs, attributes, kernel)[0]

    def call(
        self, inputs: tuple[Any, ...], attributes: Mapping[str, Any], kernel: str | None = None
    ) -> tuple[Tensor, Sequence[Any]]:
        """The output, and the auxiliary arrays (such as mean and variance), which are not differentiable.

        kernel: the name of the kernel to run, or "definition"; default: by size.
        """
        arrays, edges, avals = self._arrays(inputs)
        return self._ran(
            inputs, arrays, edges, avals, self._resolved(arrays, self._bound(attributes), kernel)
        )

    def remembered(
        self,
        inputs: tuple[Any, ...],
        attributes: Callable[..., Mapping[str, Any]],
        arguments: tuple[Any, ...],
        kernel: str | None = None,
        draw: Callable[[], Mapping[str, Any]] | None = None,
    ) -> tuple[Tensor, Sequence[Any]]:
        """As `call`, with the attributes that `attributes(shapes, *arguments)` makes of checked arguments.

        A model makes the same few calls again and again: what it comes to for inputs of these shapes and
        dtypes is found once. Arguments are told apart by value and type, except 0.0 and -0.0.

        draw: gives, once everything is checked, those attributes that differ from call to call. No kernel is
            chosen by them; the plan takes them by a method `drawn`.
        """
        arrays, edges, avals = unwrap(inputs, _native)
        if self._constant:
            self._check_constant(edges)
        key = (attributes, kernel, *avals, *arguments, *map(type, arguments))
        try:
            run = self._runs.get(key)
        except TypeError:  # an argument has no hash: most likely it is wrong, and the check says so
            key, run = (), None
        if run is None:
            self._check_inputs(arrays)
            run = self._resolved(arrays, attributes(_shapes(arrays), *arguments), kernel)
            if len(self._runs) >= MOST_REMEMBERED:
                self._runs.clear()
            if key:
                self._runs[key] = run
        return self._ran(inputs, arrays, edges, avals, run if draw is None else run.drawn(draw()))

    def _resolved(self, arrays: Sequence[Any], attributes: Mapping[str, Any], kernel: str | None) -> _Run:
        """What a call comes to."""
        self._check_dtypes(arrays)
        attributes = owned(attributes)
        plan = _plan(self.spec, arrays, attributes)
        chosen = _choose(self.spec, plan, arrays[0], _device(arrays[0]), kernel)
        target = None if chosen is None else chosen.resolve()
        return _Run(chosen, target, plan, attributes, self._shape(arrays, attributes))

    def _ran(
        self,
        inputs: tuple[Any, ...],
        arrays: Sequence[Any],
        edges: Sequence[Edge | None],
        avals: list[Any],
        run: _Run,
    ) -> tuple[Tensor, Sequence[Any]]:
        """The output and the auxiliary arrays, on the tape."""
        if run.kernel is None:
            return self._defined(inputs, arrays, run.attributes)
        tracing = trace.current()
        start = perf_counter() if tracing is not None else 0.0
        array = arrays[0]
        if type(array) is np.ndarray:
            output, aux = run.target.forward(run.plan, *arrays)
        else:
            output, aux = run.elsewhere(self.name, "forward", array, *arrays)
        if output.shape != run.shape or output.dtype != array.dtype or type(output) is not type(array):
            self._check(output, run, "forward", run.shape, array.dtype, array)
        result = Tensor.wrap(output)
        saved = None
        if any(edges) and is_grad_enabled():
            versions = keep(inputs, arrays, avals, self._read)
            saved = Saved(avals, run.attributes, versions, None, aux, run)
            result._edge = (Node(self, tuple(edges), saved), 0)
        if tracing is not None:
            write_trace(
                tracing,
                "forward",
                self.name,
                run.label("forward", output.dtype),
                arrays,
                output,
                saved,
                start,
            )
        return result, aux

    def _defined(
        self, inputs: Sequence[Any], arrays: Sequence[Any], attributes: Mapping[str, Any]
    ) -> tuple[Tensor, Sequence[Any]]:
        """The output and the auxiliary arrays by the definition, which the tape records as primitives."""
        tensors = [
            v if type(v) is Tensor or a is None else Tensor(a) for v, a in zip(inputs, arrays, strict=True)
        ]
        output, aux = self.spec.definition(namespace.tensors, *tensors, **attributes)
        if output.dtype != arrays[0].dtype:  # an input without a gradient may be wider
            output = output.astype(arrays[0].dtype)
        return output, tuple(value.data if isinstance(value, Tensor) else value for value in aux)

    def _shape(self, arrays: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape that the output must have."""
        if self.spec.shape_rule is None:
            return arrays[0].shape
        return self.spec.shape_rule(_shapes(arrays), attributes)

    def _check(
        self, array: Any, run: _Run, method: str, shape: tuple[int, ...], dtype: np.dtype, beside: Any
    ) -> None:
        """Refuse what a kernel must not return: nobody would notice a broadcast or a promotion."""
        if array.shape != shape or array.dtype != dtype:
            raise RuntimeError(
                f"{self.name}: {run.label(method, dtype)} gave shape {array.shape}, {array.dtype}; "
                f"wanted {shape}, {dtype}"
            )
        if type(array) is not type(beside) and devices.device_of(array) != devices.device_of(beside):
            there, wanted = devices.device_of(array), devices.device_of(beside)
            raise RuntimeError(
                f"{self.name}: {run.label(method, dtype)} gave an array on {there}, wanted it on {wanted}"
            )

    def check(self, inputs: Sequence[Any], kernel: str | None) -> None:
        """Raise what a call would raise for its inputs or an unknown kernel, without importing a kernel."""
        self._check_dtypes(self._arrays(inputs)[0])
        if kernel is None or kernel == DEFINITION:
            return
        names = list(dict.fromkeys(known.name for known in self.spec.kernels))
        if kernel not in names:
            raise ValueError(
                f"{self.name}: kernel is {kernel!r}, wanted one of {', '.join([*names, DEFINITION])}"
            )

    def _arrays(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Edge | None], list[Any]]:
        """What `unwrap` gives for the inputs, which are on one device."""
        spec = self.spec
        if len(inputs) != len(spec.inputs):
            raise TypeError(
                f"{spec.name}: got {len(inputs)} inputs, wanted {len(spec.inputs)}: {', '.join(spec.inputs)}"
            )
        arrays, edges, avals = unwrap(inputs, _native)
        self._check_inputs(arrays)
        self._check_constant(edges)
        return arrays, edges, avals

    def _check_inputs(self, arrays: Sequence[Any]) -> None:
        """The first input is present, and all are on its device."""
        spec = self.spec
        if arrays[0] is None:
            raise TypeError(f"{spec.name}: {spec.inputs[0]} is None, wanted a Tensor or an array")
        for array in arrays:
            if type(array) is not np.ndarray and array is not None:
                devices.one_device(spec.name, zip(spec.inputs, arrays, strict=True))
                return

    def _check_constant(self, edges: Sequence[Edge | None]) -> None:
        """Nobody asks for the gradient of an input that has none."""
        spec = self.spec
        for position in self._constant:
            if edges[position] is not None and is_grad_enabled():
                name = spec.inputs[position]
                raise ValueError(
                    f"{spec.name}: {name} requires a gradient, but the operation has none for it; pass "
                    f"{name}.detach()"
                )

    def _check_dtypes(self, arrays: Sequence[Any]) -> None:
        """Inputs that have a gradient share the dtype of the first."""
        spec, wanted = self.spec, arrays[0].dtype
        for position in spec.gradients:
            array = arrays[position]
            if array is not None and (
                array.dtype != wanted or not (array.dtype in self._dtypes or self._stored(array))
            ):
                raise TypeError(
                    f"{spec.name}: {spec.inputs[position]} has dtype {array.dtype}, wanted "
                    f"{wanted if position else ' or '.join(spec.dtypes)}; convert it with .astype()"
                )

    def _stored(self, array: Any) -> bool:
        """Whether kernels of another device than the CPU serve an array there, as 16-bit floats."""
        return array.dtype.name in self._elsewhere and devices.on_device(array)

    def _bound(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with the definition's defaults; a kernel would not notice a wrong or a missing
        one.
        """
        bound = {**self._defaults, **attributes}
        if bound.keys() != self._attributes:
            raise TypeError(
                f"{self.name}: got the keywords {sorted(attributes)}, wanted "
                f"{sorted(self._attributes)}; inputs go by position"
            )
        return bound

    def pull(
        self, node: Node, cotangents: Sequence[Any], needs: tuple[bool, ...], create_graph: bool
    ) -> Sequence[Any]:
        """Run the kernel's vjp; record it where the pass is recorded."""
        spec, saved = self.spec, node.saved
        tracing = trace.current()
        start = perf_counter() if tracing is not None else 0.0
        saved.check_versions(spec)
        cotangent = cotangents[0]
        array = cotangent._array if type(cotangent) is Tensor else devices.as_array(cotangent)
        run = saved.run
        aux = saved.aux
        arrays = tuple([None if type(value) is Aval else value for value in saved.inputs])
        if type(array) is np.ndarray:
            results = list(run.target.vjp(run.plan, needs, array, arrays, aux))
        else:
            results = list(run.elsewhere(self.name, "vjp", array, needs, array, arrays, aux))
        results += [None] * (len(needs) - len(results))
        held = {id(aux), *map(id, arrays)}
        if type(aux) is not type(array):
            held.update(map(id, aux))
        for position, given in enumerate(saved.inputs):
            if needs[position]:
                gradient = results[position]
                if gradient is None:
                    label = run.label("vjp", array.dtype)
                    raise RuntimeError(f"{spec.name}: {label} gave no gradient for {spec.inputs[position]}")
                shape = given.shape
                if gradient.shape != shape:  # kernels see weight as [M]
                    gradient = results[position] = gradient.reshape(shape)
                elif id(gradient) in held:  # whoever gets a gradient may write to it
                    gradient = results[position] = gradient.copy()
                if gradient.dtype != given.dtype or type(gradient) is not type(array):
                    self._check(gradient, run, "vjp", shape, given.dtype, array)
        if tracing is not None:
            write_trace(
                tracing, "vjp", spec.name, run.label("vjp", array.dtype), saved.inputs, array, None, start
            )
        if not create_graph:
            return results
        versions = [*saved.versions, (len(needs), cotangent._version, cotangent._version[0])]
        parents = (*node.parents, cotangent._edge)
        kept = Saved((*saved.inputs, array), saved.attributes, versions, needs=needs)
        recorded = Node(self._vjp, parents, kept, outputs=len(results))
        return [
            None if result is None else Tensor.wrap(result, (recorded, position))
            for position, result in enumerate(results)
        ]

    def explain(
        self, *inputs: Any, kernel: str | None = None, device: str | None = None, **attributes: Any
    ) -> Explanation:
        """Which kernel this call would run, and why each other one would not.

        device: where the inputs are taken to be, instead of where they are.
        """
        arrays, attributes = self._arrays(inputs)[0], self._bound(attributes)
        self._check_dtypes(arrays)
        plan, array = _plan(self.spec, arrays, attributes), arrays[0]
        there = _device(array) if device is None else devices.named(device)
        why_not = None if there == _device(array) else devices.problem(there)
        if why_not is not None:
            return Explanation(self.name, None, _unavailable(self.spec, plan, array, there, why_not))
        chosen = _choose(self.spec, plan, array, there, kernel)
        return Explanation(self.name, chosen, _reasons(self.spec, plan, array, there, kernel, chosen))

    def __reduce__(self) -> Any:
        return _by_name, (self.name,)

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class _FusedVjp:
    """The pull-back of a fused operation as an operation of its own: (inputs, cotangent) -> gradients."""

    def __init__(self, spec: OpSpec):
        self.spec = spec
        self.name = f"vjp of {spec.name}"

    def pull(
        self, node: Node, cotangents: Sequence[Any], needs: tuple[bool, ...], create_graph: bool
    ) -> Sequence[Any]:
        """Differentiate the definition twice: once for the gradients that were recorded, once along
        `cotangents`.
        """
        spec, saved = self.spec, node.saved
        saved.check_versions(spec)
        with enable_grad():
            copies = self._copies(saved, node.parents, create_graph)
            *primals, cotangent = copies
            output, _ = spec.definition(namespace.tensors, *primals, **saved.attributes)
            first = [p for p, wanted in zip(primals, saved.needs, strict=True) if wanted]
            gradients = grad(output, first, cotangent, create_graph=True, allow_unused=True)
            given = [c for c, wanted in zip(cotangents, saved.needs, strict=True) if wanted]
            pairs = [
                (g, c)
                for g, c in zip(gradients, given, strict=True)
                if g is not None and c is not None and g.requires_grad
            ]
            wanted_inputs = [copy for copy, needed in zip(copies, needs, strict=True) if needed]
            results = grad(
                [g for g, _ in pairs],
                wanted_inputs,
                [c for _, c in pairs],
                True,
                create_graph,
                allow_unused=True,
            )
        found = iter(results)
        return [_as_cotangent(next(found), create_graph) if needed else None for needed in needs]

    def _copies(self, saved: Saved, parents: Sequence[Edge | None], create_graph: bool) -> list[Any]:
        """The inputs and the cotangent, each at a place of its own on the tape: a tensor that was passed
        twice counts once for each use, and what one input was computed from does not leak into the
        derivative by another.
        """
        copies: list[Any] = []
        cells = {position: cell for position, cell, _ in saved.versions}
        for position, (value, edge) in enumerate(zip(saved.inputs, parents, strict=True)):
            if type(value) is Aval:  # the gradient does not depend on its values; if it does, NaN shows it
                value = devices.full(value.shape, np.nan, value.dtype, like=saved.inputs[-1])
            differentiable = position == len(parents) - 1 or position in self.spec.gradients
            if not devices.is_array(value) or not differentiable:
                copies.append(value)
            elif create_graph and edge is not None:
                connected = Tensor.wrap(value, edge, cells.get(position))
                copies.append(connected.reshape(connected.shape))
            else:
                leaf = Tensor.wrap(value)
                leaf.requires_grad = True
                copies.append(leaf)
        return copies


def _as_cotangent(value: Tensor | None, create_graph: bool) -> Any:
    return value if value is None or create_graph else value._array


def explain(
    operation: Any, *inputs: Any, kernel: str | None = None, device: str | None = None, **attributes: Any
) -> Explanation:
    """Which kernel a call of an operation with these inputs and attributes would run, and why no other.

    operation: the operation or its name; inputs at the end that are absent may be left out.
    device: where the inputs are taken to be, instead of where they are.
    """
    if isinstance(operation, str):
        spec = REGISTRY.get(operation)
        if not spec.fused:
            return Explanation(spec.name, None, ((spec.origin, _of_primitive(inputs, device)),))
        operation = Fused(spec)
    if not isinstance(operation, Fused):
        name = getattr(operation, "__name__", type(operation).__name__)
        raise TypeError(
            f"explain: got {name}, wanted an operation or its name, with its inputs and attributes: "
            'explain("norm::layer_norm", x, normalized_shape=(5,), eps=1e-5)'
        )
    absent = [None] * (len(operation.spec.inputs) - len(inputs))
    return operation.explain(*inputs, *absent, kernel=kernel, device=device, **attributes)


def _of_primitive(inputs: Sequence[Any], device: str | None) -> str:
    """What runs a primitive on the device of its inputs."""
    arrays = [array for array in map(array_of, inputs) if devices.is_array(array)]
    there = devices.named(device) if device else _device(arrays[0]) if arrays else devices.CPU
    if there == devices.CPU:
        return "runs: a primitive, NumPy on the CPU"
    why_not = devices.problem(there) if device else None
    if why_not is not None:
        return f"device {there}: {why_not}"
    return f"runs: a primitive, {'NumPy' if there == devices.SIMULATOR else 'CuPy'} on {there}"


def _plan(spec: OpSpec, arrays: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """What a kernel is told about the call."""
    if spec.plan is None:
        return attributes
    return spec.plan(_shapes(arrays), attributes)


def _shapes(arrays: Sequence[Any]) -> tuple[tuple[int, ...] | None, ...]:
    return tuple([None if array is None else array.shape for array in arrays])


def _native(value: Any) -> Any:
    """An input that is no tensor as an array of this machine's byte order; None where it is absent."""
    if type(value) is not np.ndarray:
        if value is None:
            return None
        value = devices.as_array(value)
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _device(array: Any) -> str:
    return devices.CPU if type(array) is np.ndarray else devices.device_of(array)


def _choose(spec: OpSpec, plan: Any, array: Any, device: str, requested: str | None) -> Kernel | None:
    """The kernel that runs: the one asked for, or the last that serves and is preferred at this size. None
    for the definition.
    """
    chosen = None
    if requested != DEFINITION:
        for kernel in spec.serving(plan, array.dtype, device):
            if array.size >= kernel.preferred_from if requested is None else requested == kernel.name:
                within = kernel.limit is None or kernel.beyond(plan, array.dtype) is None
                chosen = kernel if within else chosen
        if chosen is None and requested is not None:
            why = _reasons(spec, plan, array, device, requested, None)
            raise ValueError(
                f"{spec.name}: kernel={requested!r} cannot run this call "
                f"({'; '.join(f'{n}: {r}' for n, r in why[:-1])}); "
                f"leave kernel= out, or pass {DEFINITION!r}"
            )
    return chosen


def _reasons(
    spec: OpSpec, plan: Any, array: Any, device: str, requested: str | None, chosen: Kernel | None
) -> tuple[tuple[str, str], ...]:
    """For each kernel and the definition, why it runs or does not."""
    reasons = []
    for kernel in spec.kernels:
        reason = kernel.refusal(plan, array.dtype, device)
        if reason is None and kernel is chosen:
            reason = "runs"
        elif reason is None and requested is not None:
            reason = f"is named {kernel.name!r}, kernel={requested!r} was asked for"
        elif reason is None:
            few = array.size < kernel.preferred_from
            reason = (
                f"preferred from {kernel.preferred_from:,} elements, these are {array.size:,}"
                if few
                else "gives way to a later kernel"
            )
        reasons.append((kernel.target, reason))
    if chosen is not None:
        last = "serves higher orders, and is the reference"
    else:
        last = "runs: asked for" if requested == DEFINITION else "runs: no kernel serves this call"
    return (*reasons, (DEFINITION, last))


def _unavailable(spec: OpSpec, plan: Any, array: Any, device: str, why: str) -> tuple[tuple[str, str], ...]:
    """The reasons where the inputs are taken to be on a device that cannot be used here."""
    general = f"device {device}: {why}"
    kernels = [(k.target, k.mismatch(plan, array.dtype, device) or general) for k in spec.kernels]
    return (*kernels, (DEFINITION, general))


def _by_name(name: str) -> Fused:
    return Fused(REGISTRY.get(name))


def operation(
    name: str, *, registry: Registry = REGISTRY, **declaration: Any
) -> Callable[[Callable[..., Any]], Fused]:
    """Declare a definition as a fused operation: `@operation("norm::layer_norm", kernels=..., samples=...)`.

    The definition's first parameter is the namespace `xp`; the other positional ones are the inputs (None
    where an optional one is absent), keywords are attributes; it returns `(output, aux)`. The fields of the
    declaration are those of `OpSpec`.
    """

    def declare(definition: Callable[..., Any]) -> Fused:
        parameters = list(inspect.signature(definition).parameters.values())[1:]
        spec = OpSpec(
            name=name,
            definition=definition,
            inputs=tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY),
            documentation=inspect.getdoc(definition) or "",
            origin=origin_of(definition),
            **declaration,
        )
        return Fused(registry.register(spec))

    return declare
