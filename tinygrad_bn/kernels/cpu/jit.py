"""How the CPU kernels are compiled: one source for each driver, a sequential and a parallel twin, one dtype
at a time.

A *body* does the work of one task; a *driver* is a thin loop over tasks that calls it. The tasks depend on
the shape of the problem alone, and their partial results are combined in their order, so that the twins
give the same bits whatever the number of threads.
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
from numba import types
from numba.core.compiler import Compiler

# Vectorizes sums and contracts to fused multiply-adds, but assumes nothing about NaN and infinity, which
# propagate.
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}

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


class Restrict(Compiler):  # type: ignore[misc]
    """Numba's compiler, told that an array which is written shares no memory with another one.

    Otherwise a loop that is vectorized begins with a test of every such pair, each time: on short rows these
    tests take longer than the loop.
    """

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def body(function: Callable[..., Any], **more: Any) -> Any:
    """Compile a function for the use of drivers. It is kept in their caches and has none of its own.

    What it writes to must be no part of another argument. Like a driver, it counts no references to arrays:
    it makes none and returns none, but hands on those that its caller holds.
    """
    options = {"_nrt": False, **OPTIONS, **more}
    return numba.njit(pipeline_class=Restrict, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(
        function
    )


def allocating(function: Callable[..., Any]) -> Any:
    """As body, for one that makes arrays or returns one, and so counts references."""
    return body(function, _nrt=True)


def as_written(function: Callable[..., Any]) -> Any:
    """As body, but the terms of a sum are grouped as they are written, whatever the caller allows."""
    return body(function, fastmath=OPTIONS["fastmath"] - {"reassoc"})


class Driver:
    """A driver, compiled for a dtype when first asked for: ``driver[x.dtype](x, …)``.

    The signature is explicit, hence the arrays must be contiguous and aligned (see ``arrays.contiguous``):
    numba checks the layout but silently accepts an unaligned array.
    """

    def __init__(
        self,
        source: Callable[..., None],
        signature: Callable[[types.Type], tuple],
        parallel: bool,
        twin: Driver | None = None,
    ):
        self._source = source
        self._signature = signature
        self._parallel = parallel
        self._compiled: dict[np.dtype, Any] = {}
        self._pair = (self,) if twin is None else (twin, self)
        self._lock = threading.RLock()
        for each in self._pair:
            each._pair, each._lock = self._pair, self._lock

    def __getitem__(self, dtype: np.dtype) -> Any:
        try:
            return self._compiled[dtype]
        except KeyError:
            self._load(dtype)
            return self._compiled[dtype]

    def _load(self, dtype: np.dtype) -> None:
        """Take this twin from the cache; where it is not there, compile both.

        In the process that compiles a driver, its calls of bodies reach the code of the bodies themselves; in
        one that loads it, the copies that were saved with it, which LLVM has optimized once more. Either is
        right, but their sums are grouped differently: a twin of each kind would differ in the last bits.
        """
        if dtype not in (np.float32, np.float64):
            raise TypeError(
                f"{self._source.__name__}: dtype is {dtype}, but the CPU kernels are made for float32 and "
                "float64: convert x and its weight and bias"
            )
        with self._lock:
            if dtype in self._compiled:
                return
            self._compiled[dtype] = self._compile(dtype, cached=True)
            if self._compiled[dtype].stats.cache_hits:
                return
            for twin in self._pair:
                if twin is not self:
                    other = twin._compile(dtype, cached=True)
                    hit = other.stats.cache_hits
                    twin._compiled[dtype] = twin._compile(dtype, cached=False) if hit else other

    def load(self, dtype: np.dtype) -> bool:
        """Take it from the disk cache; False where it is not there. Where there is no cache it may not be."""
        with self._lock:
            if dtype in self._compiled:
                return True
            dispatcher = self._dispatcher(dtype)
            try:
                dispatcher.enable_caching()
            except RuntimeError:  # as below
                return True
            signature = self._signature(numba.from_dtype(dtype))
            if dispatcher._cache.load_overload(signature, dispatcher.targetctx) is None:
                return False
            self._load(dtype)
            return True

    @property
    def pair(self) -> tuple[Driver, ...]:
        """Both twins of its source."""
        return self._pair

    @property
    def dtypes(self) -> tuple[np.dtype, ...]:
        """Those that make a difference to its types."""
        single, double = np.dtype(np.float32), np.dtype(np.float64)
        alike = self._signature(numba.from_dtype(single)) == self._signature(numba.from_dtype(double))
        return (double,) if alike else (single, double)

    def _dispatcher(self, dtype: np.dtype) -> Any:
        # With numba's runtime (nrt) the arrays of a call are counted references, and every slice that is
        # handed to a body costs two atomic operations: a third of the time on rows of a hundred values. The
        # loops of a parallel driver are given no such arrays anyway, but do not compile without the runtime.
        options = {"parallel": self._parallel, "_nrt": self._parallel, **OPTIONS}
        return numba.njit(**options)(self._distinct_copy(dtype))

    def _compile(self, dtype: np.dtype, *, cached: bool) -> Any:
        # The GIL is kept. It protects the workqueue threading layer, which aborts when two Python threads
        # enter it; and without it a small kernel beside a busy Python thread is much slower.
        dispatcher = self._dispatcher(dtype)
        if cached:
            with contextlib.suppress(RuntimeError):  # where no folder can be written, compile anew each time
                dispatcher.enable_caching()
        dispatcher.compile(self._signature(numba.from_dtype(dtype)))
        dispatcher.disable_compile()
        return dispatcher

    def _distinct_copy(self, dtype: np.dtype) -> FunctionType:
        """The source under a name of its own, because numba's disk cache goes by name and file.

        Its key knows neither ``parallel`` nor the files that bodies come from: without the twin in the name
        one twin would be loaded for the other, without the fingerprint old code would outlive a change of a
        body, and without the dtype two processes that save at once would write one index file.
        """
        source = self._source
        assert isinstance(source, FunctionType)
        twin = "parallel" if self._parallel else "sequential"
        name = f"{source.__name__}_{twin}_{np.dtype(dtype).name}_{_fingerprint()}"
        copy = FunctionType(
            source.__code__, source.__globals__, name, source.__defaults__, source.__closure__
        )
        copy.__qualname__ = name
        copy.__module__ = source.__module__
        return copy


class Twins(NamedTuple):
    """Two drivers made of one source."""

    sequential: Driver
    parallel: Driver


def twins(signature: Callable[[types.Type], tuple]) -> Callable[[Callable[..., None]], Twins]:
    """Make the twins of a driver of types ``signature(dtype)``, which loops over ``numba.prange``."""

    def decorate(source: Callable[..., None]) -> Twins:
        sequential = Driver(source, signature, False)
        return Twins(sequential, Driver(source, signature, True, twin=sequential))

    return decorate


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):  # without those of other devices
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
