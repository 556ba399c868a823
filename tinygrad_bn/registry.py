"""What an operation is (`OpSpec`), and where operations are found (`Registry`).

Declaring an operation writes one record, and everything else reads that record: dispatch, `explain`, the
property tests, `ops show`. Kernels are named by dotted strings and imported at their first call, so a
declaration costs nothing.

Packages add operations through the entry-point group `tinygrad_bn.ops`: the entry's name is the namespace,
its value a function that takes the registry. A package that fails to load takes only its own namespace with
it.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import devices

__all__ = [
    "API_VERSION", "REGISTRY", "BenchCase", "Broken", "Kernel", "OpSpec", "Registry", "RegistryError",
    "Sample",
]  # fmt: skip

API_VERSION = 1
ENTRY_POINT_GROUP = "tinygrad_bn.ops"


class RegistryError(LookupError):
    """An operation is unknown, declared twice, or declared incompletely."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


@dataclass(frozen=True)
class Sample:
    """One call of an operation: a name for reports, the input arrays (None for an absent one), and the
    attributes.

    An error sample says in `raises` and `match` which exception the public function must raise for it.
    """

    name: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    raises: type[Exception] | None = None
    match: str = ""


Samples = Callable[["np.random.Generator"], Iterable[Sample]]  # quoted: numpy.random takes 10 ms to import


@dataclass(frozen=True)
class BenchCase:
    """A call worth timing, in the words of whoever asks for it: the shape of the first input, and keywords of
    the public function. `OpSpec.call_at` completes it.
    """

    shape: tuple[int, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)


CallAt = Callable[[tuple[int, ...], Mapping[str, Any]], tuple[tuple[tuple[int, ...], ...], Mapping[str, Any]]]


@dataclass(frozen=True)
class Kernel:
    """A fused implementation: an object with `forward(plan, *arrays) -> (output, aux)` and
    `vjp(plan, needs, cotangent, arrays, aux) -> gradients`, named by a dotted string `module:object`.
    Gradients are one per input, None where `needs` is False; inputs at the end that have no gradient may be
    left out.

    name: what `kernel=` selects it by; kernels of one operation that serve different plans may share a name.
    plan: the type of plan that it serves; None: any.
    preferred_from: the size of the first input from which it is chosen over the kernels before it.
    device: "cpu", or "cuda" for GPUs and for their simulator.
    limit: a function `limit(plan, dtype) -> str | None`, or its dotted string: why the kernel cannot run a
        call though it is of its kind, such as one whose rows are too long; None where it can.
    """

    name: str
    target: str
    device: str = "cpu"
    plan: type | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    preferred_from: int = 0
    limit: str | Callable[[Any, np.dtype], str | None] | None = None

    def resolve(self) -> Any:
        """Import the kernel; RegistryError where its dotted string leads nowhere."""
        try:
            return _resolve(self.target)
        except (ImportError, AttributeError) as error:
            raise RegistryError(f"kernel {self.name!r}: {self.target} cannot be imported: {error}") from error

    def refusal(self, plan: Any, dtype: Any, device: str) -> str | None:
        """Why this kernel cannot run such a call, or None where it can."""
        return self.mismatch(plan, dtype, device) or self.beyond(plan, dtype)

    def beyond(self, plan: Any, dtype: Any) -> str | None:
        """Why the limit of this kernel keeps it from running a call of its kind, or None."""
        if self.limit is None:
            return None
        limit = _resolve(self.limit) if isinstance(self.limit, str) else self.limit
        return limit(plan, np.dtype(dtype))

    def mismatch(self, plan: Any, dtype: Any, device: str) -> str | None:
        """Why this kernel serves other calls than those of such a plan, dtype and device, or None."""
        if devices.kind(device) != self.device:
            return f"runs on {self.device}, the inputs are on {device}"
        if np.dtype(dtype).name not in self.dtypes:
            return f"serves {', '.join(self.dtypes)}, not {np.dtype(dtype).name}"
        if self.plan is not None and type(plan) is not self.plan:
            return f"serves the {self.plan.__name__.lower()} view, this call is {type(plan).__name__.lower()}"
        return None


@functools.cache
def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class OpSpec:
    """One operation.

    name: `namespace::operation`.
    definition: the array function. Of a primitive: `definition(*arrays, **attributes) -> output`. Of a fused
        operation: `definition(xp, *inputs, **attributes) -> (output, aux)`, written on `xp` alone.
    inputs: names of the inputs, in order; attributes are keywords.
    vjps: rules of a primitive, one per input, `rule(xp, cotangent, output, *inputs, **attributes)`; None
        where there is no derivative. A function `position -> rule` where the input is a sequence of arrays.
        Empty for a fused operation.
    keeps: for each rule, the positions of the inputs on whose values its result depends; of the others only
        shape and dtype are kept. A fused operation has one rule, the vjp of its kernels; what that reads from
        `aux` instead, such as an output, still depends on the inputs it was made from. None: on all.
    keeps_output: whether it reads the output's values.
    view: whether the output may share memory with the first input.
    kernels: accelerations of a fused operation, in the order of preference for growing size.
    plan: `plan(shapes, attributes) -> plan`, what a kernel is told about a call; default: the attributes.
    differentiable: positions of the inputs that have a gradient; default: all.
    samples, hard_samples, error_samples: functions of a NumPy Generator, giving `Sample`s.
    terms: name of the family of gradient terms, for the diagnosis of a wrong gradient.
    shape_rule: `shape_rule(shapes, attributes) -> shape` of a fused operation's output, to which its kernels
        are held; default: the shape of the first input.
    state: names of arguments of the public function that it writes to.
    rng: whether it takes a seed and a call number.
    properties: named facts that tests check, e.g. {"shift_invariant": True}.
    bench_cases: calls worth timing.
    call_at: `call_at(shape, keywords) -> (shapes, keywords)`, the shapes of all inputs and the keywords of
        the public function where the first input has that shape and those keywords are given; default:
        every input has the shape, and there are no other keywords.
    public: dotted string of the function that users call, where that is another than the operation itself;
        it takes the inputs and the attributes of error samples as keywords.
    """

    name: str
    definition: Callable[..., Any]
    inputs: tuple[str, ...]
    vjps: Any = ()
    keeps: tuple[tuple[int, ...], ...] | None = None
    keeps_output: bool = False
    view: bool = False
    kernels: tuple[Kernel, ...] = ()
    plan: Callable[[Any, Mapping[str, Any]], Any] | None = None
    differentiable: tuple[int, ...] | None = None
    samples: Samples | None = None
    hard_samples: Samples | None = None
    error_samples: Samples | None = None
    terms: str | None = None
    shape_rule: Callable[[Any, Mapping[str, Any]], tuple[int, ...]] | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    state: tuple[str, ...] = ()
    rng: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict)
    bench_cases: tuple[BenchCase, ...] = ()
    call_at: CallAt | None = None
    documentation: str = ""
    public: str = ""
    api_version: int = API_VERSION
    origin: str = ""

    @property
    def fused(self) -> bool:
        """Whether the operation is a definition with kernels, rather than a primitive with rules."""
        return not self.vjps

    @property
    def variadic(self) -> bool:
        """Whether the operation takes one sequence of arrays, such as the parts of a concatenation."""
        return callable(self.vjps)

    @property
    def namespace(self) -> str:
        return self.name.partition("::")[0]

    @property
    def short_name(self) -> str:
        return self.name.partition("::")[2]

    @property
    def gradients(self) -> tuple[int, ...]:
        """Positions of the inputs that have a gradient."""
        if self.differentiable is not None:
            return self.differentiable
        return tuple(range(len(self.inputs)))

    def serving(self, plan: Any, dtype: np.dtype, device: str) -> tuple[Kernel, ...]:
        """The kernels that serve calls of this kind up to their limits, in the order of preference; found
        once for each kind.
        """
        kind = type(plan), dtype, device
        if kind not in self._serving:
            serving = [kernel for kernel in self.kernels if kernel.mismatch(plan, dtype, device) is None]
            self._serving[kind] = tuple(serving)
        return self._serving[kind]

    @functools.cached_property
    def _serving(self) -> dict[tuple[type, np.dtype, str], tuple[Kernel, ...]]:
        return {}

    def input_name(self, position: int) -> str:
        """The name of an input; where their number varies, with its position."""
        return f"{self.inputs[0]}[{position}]" if self.variadic else self.inputs[position]

    @property
    def owner(self) -> tuple[str, str]:
        """Who declares it: the same owner may declare it again (a notebook cell, a reload), another may
        not.
        """
        return self.definition.__module__, self.definition.__qualname__


@dataclass(frozen=True)
class Broken:
    """A plugin that did not load."""

    namespace: str
    distribution: str
    version: str
    error: str


class Registry:
    """Operations by name, the built-in ones and those of plugins.

    entry_points: what lists the plugins; for tests. strict: let a broken plugin raise.
    """

    def __init__(self, entry_points: Callable[[], Iterable[Any]] | None = None, *, strict: bool = False):
        self.strict = strict
        self._specs: dict[str, OpSpec] = {}
        self._entry_points = entry_points or _installed
        self._pending: dict[str, list[Any]] | None = None
        self._broken: dict[str, Broken] = {}
        self._replaced: dict[
            str, OpSpec | None
        ] = {}  # what the plugin being loaded has replaced, to be put back if it fails
        self._lock = threading.RLock()

    def register(self, spec: OpSpec) -> OpSpec:
        """Add an operation; declaring the same one again replaces it."""
        namespace, separator, short = spec.name.partition("::")
        if not (separator and namespace.isidentifier() and short.isidentifier()):
            raise RegistryError(
                f"operation name {spec.name!r}: wanted 'namespace::operation', both Python identifiers"
            )
        if spec.api_version != API_VERSION:
            raise RegistryError(
                f"{spec.name}: declared for registry version {spec.api_version}, this is version "
                f"{API_VERSION}; install matching versions of the plugin and tinygrad_bn"
            )
        if spec.keeps is not None and not all(isinstance(read, tuple) for read in spec.keeps):
            raise RegistryError(
                f"{spec.name} ({spec.origin}): keeps is {spec.keeps!r}, wanted a tuple of positions for each "
                "rule, such as ((0, 1),) for a fused operation whose vjp reads the first two inputs"
            )
        if spec.gradients and spec.samples is None:
            raise RegistryError(
                f"{spec.name} ({spec.origin}): a differentiable operation needs samples=, a function of a "
                "NumPy Generator that gives Samples; without them its gradient could never be checked"
            )
        known = self._specs.get(spec.name)
        if known is not None and known.owner != spec.owner:
            raise RegistryError(
                f"{spec.name} is declared twice: at {known.origin} and at {spec.origin}; "
                "rename one, or declare it in a namespace of your own, such as 'mine::" + short + "'"
            )
        self._replaced.setdefault(spec.name, known)
        self._specs[spec.name] = spec
        return spec

    def get(self, name: str) -> OpSpec:
        """The operation of that name; the namespace may be left out where the rest is unambiguous."""
        namespace, separator, _ = name.partition("::")
        self._load(namespace if separator else None)
        if name in self._specs:
            return self._specs[name]
        matches = [spec for spec in self._specs.values() if not separator and spec.short_name == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise RegistryError(f"operation {name!r} is ambiguous: {', '.join(m.name for m in matches)}")
        raise RegistryError(self._unknown(name, namespace if separator else None))

    def __iter__(self) -> Any:
        self._load(None)
        return iter(sorted(self._specs.values(), key=lambda spec: spec.name))

    def __len__(self) -> int:
        self._load(None)
        return len(self._specs)

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except RegistryError:
            return False
        return True

    @property
    def broken(self) -> tuple[Broken, ...]:
        """The plugins that did not load."""
        self._load(None)
        return tuple(self._broken.values())

    def _load(self, namespace: str | None) -> None:
        """Load the plugins of `namespace`, or all; each once."""
        with self._lock:
            if self._pending is None:
                self._pending = {}
                for entry in self._entry_points():
                    self._pending.setdefault(entry.name, []).append(entry)
            for name in [namespace] if namespace else list(self._pending):
                for entry in self._pending.pop(name, ()):
                    self._load_plugin(entry)

    def _load_plugin(self, entry: Any) -> None:
        # This plugin may ask for operations of another one, which are not its own.
        outer, self._replaced = self._replaced, {}
        try:
            entry.load()(self)
            foreign = [name for name in self._replaced if name.partition("::")[0] != entry.name]
            if foreign:  # nobody would find them there: a namespace is loaded when it is asked for
                raise RegistryError(f"registers {', '.join(foreign)}, outside its namespace {entry.name!r}")
        except Exception as error:
            for name, known in self._replaced.items():  # half a plugin is worse than none
                if known is None:
                    del self._specs[name]
                else:
                    self._specs[name] = known
            self._broken[entry.name] = Broken(
                entry.name,
                getattr(entry.dist, "name", "unknown"),
                getattr(entry.dist, "version", "unknown"),
                f"{type(error).__name__}: {error}",
            )
            if self.strict:
                raise
        finally:
            self._replaced = outer

    def _unknown(self, name: str, namespace: str | None) -> str:
        import difflib

        failed = self._broken.get(namespace) if namespace else None
        if failed is not None:
            return (
                f"operation {name!r}: the plugin that provides it, {failed.distribution} {failed.version}, "
                f"did not load ({failed.error}); reinstall or remove it"
            )
        candidates = list(self._specs) + [spec.short_name for spec in self._specs.values()]
        close = difflib.get_close_matches(name, candidates, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`python cli.py ops list` shows all"
        missing = "".join(
            f"; {b.distribution} {b.version} (namespace {b.namespace!r}) did not load"
            for b in self._broken.values()
        )
        return f"no operation {name!r}; {hint}{'' if namespace else missing}"


def _installed() -> Iterable[Any]:
    """The entry points of installed packages."""
    from importlib import metadata  # 20 ms that only those pay who look for plugins

    return metadata.entry_points(group=ENTRY_POINT_GROUP)


REGISTRY = Registry()
