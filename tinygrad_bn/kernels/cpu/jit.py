"""How the CPU kernels are compiled: drivers, tasks and bodies, one dtype at a time.

A *driver* is what the host calls: loops over tasks, in two twins, a sequential and a parallel one. A *task*
is one piece of the work, given by its number; it calls *bodies*, which are parts of its code. Drivers reach
a task by its address, so that both twins run the same code, and it is compiled once. The tasks depend on the
shape of the problem alone, and their partial results are combined in their order, so that the twins give
the same bits whatever the number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import binding
from numba import types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

# Tasks are shared by drivers, and compiled by one thread at a time.
_LOCK = threading.RLock()
# Vectorizes sums and contracts to fused multiply-adds, but assumes nothing about NaN and infinity, which
# propagate.
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}


class Restrict(Compiler):  # type: ignore[misc]
    """Numba's compiler, told that an array which is written shares no memory with another one.

    Otherwise a loop that is vectorized begins with a test of every such pair, each time: on short rows these
    tests take longer than the loop.
    """

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


# Called by compiled code alone.
BODY: dict[str, Any] = {
    **OPTIONS,
    "pipeline_class": Restrict,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}
INT = types.int64
DOUBLE = types.float64
FLAG = types.boolean
FLAGS = types.Tuple((FLAG, FLAG))


def read(dtype: types.Type, ndim: int) -> types.Array:
    """The type of an input array. Read-only serves writable arrays as well: one compiled variant, not two."""
    return types.Array(dtype, ndim, "C", readonly=True)


def write(dtype: types.Type, ndim: int) -> types.Array:
    """The type of an array that a kernel fills."""
    return types.Array(dtype, ndim, "C")


def body(function: Callable[..., Any], **more: Any) -> Any:
    """Compile a function for the use of tasks. It is kept in their caches and has none of its own.

    What it writes to must be no part of another argument. With numba's runtime (nrt) the arrays of a call are
    counted references, and every slice that is handed to a body costs two atomic operations: a third of the
    time on rows of a hundred values. So it counts none: it makes and returns no arrays, but hands on those
    that its caller holds.
    """
    return numba.njit(**{**BODY, **more})(function)


def allocating(function: Callable[..., Any]) -> Any:
    """As body, for one that makes arrays or returns one, and so counts references."""
    return body(function, _nrt=True)


def as_written(function: Callable[..., Any]) -> Any:
    """As body, but the terms of a sum are grouped as they are written, whatever the caller allows."""
    return body(function, fastmath=OPTIONS["fastmath"] - {"reassoc"})


Signature = Callable[[types.Type], tuple]


class _Cached:
    """A function compiled for a dtype of x, and kept in numba's disk cache.

    The signature is explicit, hence the arrays must be contiguous and aligned (see ``arrays.contiguous``):
    numba checks the layout but silently accepts an unaligned array.
    """

    def __init__(self, source: Callable[..., None], signature: Signature, kind: str, options: dict[str, Any]):
        self._source = source
        self._signature = signature
        self._kind = kind
        self._options = options
        self._compiled: dict[np.dtype, Any] = {}

    def _loaded(self, dtype: np.dtype) -> bool:
        """Take it from the disk cache; False where it is not there. Where there is no cache it may not be."""
        if dtype in self._compiled:
            return True
        dispatcher = self._dispatcher(dtype)
        if not _enable_cache(dispatcher):
            return True
        signature = self._types(dtype)
        if dispatcher._cache.load_overload(signature, dispatcher.targetctx) is None:
            return False
        self._compile(dtype)
        return True

    def _compile(self, dtype: np.dtype) -> None:
        """Compile it, or take it from the disk cache."""
        if dtype not in self._compiled:
            dispatcher = self._dispatcher(dtype)
            _enable_cache(dispatcher)
            dispatcher.compile(self._types(dtype))
            dispatcher.disable_compile()
            self._compiled[dtype] = dispatcher

    def _types(self, dtype: np.dtype) -> tuple:
        return self._signature(numba.from_dtype(dtype))

    def _dispatcher(self, dtype: np.dtype) -> Any:
        return numba.njit(**self._options)(self._distinct_copy(dtype))

    def _name(self, dtype: np.dtype) -> str:
        return f"{self._source.__name__}_{self._kind}_{np.dtype(dtype).name}_{_fingerprint()}"

    def _distinct_copy(self, dtype: np.dtype) -> FunctionType:
        """The source under a name of its own, because numba's disk cache goes by name and file.

        Its key knows neither ``parallel`` nor the files that bodies come from: without the kind in the name
        one twin would be loaded for the other, without the fingerprint old code would outlive a change of a
        body, and without the dtype two processes that save at once would write one index file.
        """
        source = self._source
        assert isinstance(source, FunctionType)
        name = self._name(dtype)
        copy = FunctionType(
            source.__code__, source.__globals__, name, source.__defaults__, source.__closure__
        )
        copy.__qualname__ = name
        copy.__module__ = source.__module__
        return copy


def _enable_cache(dispatcher: Any) -> bool:
    """Whether there is a cache: where no folder can be written, each process compiles anew."""
    with contextlib.suppress(RuntimeError):
        dispatcher.enable_caching()
        return True
    return False


class Task(_Cached):
    """One piece of the work of a driver, found by its numbers; the rest of its arguments are the driver's.

    `call` stands for it in the source of drivers. It is compiled to a call of a symbol, whose address must be
    known before the driver is compiled or loaded.
    """

    def __init__(
        self, source: Callable[..., None], signature: Signature, numbers: int, options: dict[str, Any]
    ):
        super().__init__(source, lambda T: (INT,) * numbers + signature(T), "task", options)

        @intrinsic  # type: ignore[untyped-decorator]
        def call(_context: Any, *arguments: types.Type) -> Any:
            dtype = next(each.dtype for each in arguments if isinstance(each, types.Array))
            return self._typed(as_dtype(dtype))

        self.call = call

    def _compile(self, dtype: np.dtype) -> None:
        super()._compile(dtype)
        (compiled,) = self._compiled[dtype].overloads.values()
        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        binding.add_symbol(self._symbol(dtype), address)

    def _symbol(self, dtype: np.dtype) -> str:
        return f"{self._source.__module__}.{self._name(dtype)}"

    def _typed(self, dtype: np.dtype) -> tuple[Any, Callable[..., Any]]:
        """The signature of a call, and what makes its code."""
        wanted = self._types(dtype)

        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            convention = context.call_conv
            function = cgutils.get_or_insert_function(
                builder.module, convention.get_function_type(types.none, wanted), self._symbol(dtype)
            )
            values = cgutils.unpack_tuple(builder, arguments[0])
            status, _ = convention.call_function(builder, function, types.none, wanted, values)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.none(types.StarArgTuple(wanted)), codegen


def task(signature: Signature, numbers: int = 1, **more: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a task of drivers of types ``signature(dtype)``: before their arguments it has so many numbers.

    Like a body, it counts no references, and what it writes to must be no part of another argument. Of the
    arrays that it is given the first is in the dtype.
    """

    def decorate(source: Callable[..., None]) -> Any:
        if numba.config.DISABLE_JIT:
            return source
        made = Task(source, signature, numbers, {**BODY, **more})
        made.call.task = made
        return made.call

    return decorate


class Driver(_Cached):
    """A twin of a driver, compiled for a dtype when first asked for: ``driver[x.dtype](x, …)``."""

    def __init__(
        self, source: Callable[..., None], signature: Signature, parallel: bool, tasks: tuple[Task, ...]
    ):
        # The loops of a parallel driver are given no counted references, but do not compile without nrt. The
        # GIL is kept. It protects the workqueue threading layer, which aborts when two Python threads enter
        # it; and without it a small kernel beside a busy Python thread is much slower.
        kind = "parallel" if parallel else "sequential"
        super().__init__(source, signature, kind, {**OPTIONS, "parallel": parallel, "_nrt": parallel})
        self._tasks = tasks

    def __getitem__(self, dtype: np.dtype) -> Any:
        try:
            return self._compiled[dtype]
        except KeyError:
            if dtype not in (np.float32, np.float64):
                raise TypeError(
                    f"{self._source.__name__}: dtype is {dtype}, but the CPU kernels are made for float32 "
                    "and float64: convert x and its weight and bias"
                ) from None
            if numba.config.DISABLE_JIT:
                raise RuntimeError(
                    f"{self._source.__name__}: NUMBA_DISABLE_JIT is set, but the CPU kernels only run "
                    'compiled: unset it, or call with kernel="definition"'
                ) from None
            with _LOCK:
                self._compile(dtype)
            return self._compiled[dtype]

    def load(self, dtype: np.dtype) -> bool:
        """Take it from the disk cache; False where it is not there. Where there is no cache it may not be."""
        with _LOCK:
            return all(task._loaded(dtype) for task in self._tasks) and self._loaded(dtype)

    def _compile(self, dtype: np.dtype) -> None:
        for each in self._tasks:
            each._compile(dtype)
        super()._compile(dtype)


class Twins(NamedTuple):
    """Two drivers made of one source."""

    sequential: Driver
    parallel: Driver


def twins(signature: Signature, *tasks: Any) -> Callable[[Callable[..., None]], Twins]:
    """Make the twins of a driver of types ``signature(dtype)``, which loops over these tasks by prange."""

    def decorate(source: Callable[..., None]) -> Twins:
        called = () if numba.config.DISABLE_JIT else tuple(each.task for each in tasks)
        return Twins(Driver(source, signature, False, called), Driver(source, signature, True, called))

    return decorate


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):  # without those of other devices
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
