"""`with record() as trace:` shows what the tape does: a line per operation, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Entry", "Trace", "current", "record"]


@dataclass(frozen=True)
class Entry:
    """One operation that ran.

    phase: "forward" or "vjp".
    kernel: what computed it: the kernel's dotted name, method and dtype, or "primitive". Where a definition
        runs instead of a kernel, the primitives that it is made of are recorded.
    saved: bytes that the tape keeps of it for the backward pass (0 for a vjp).
    milliseconds: wall time.
    """

    phase: str
    operation: str
    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    saved: int
    milliseconds: float

    def __str__(self) -> str:
        shapes = " ".join(str(shape).replace(" ", "") for shape in self.shapes)
        return (
            f"{self.phase:<8}{self.operation:<28}{shapes:<32}{self.dtype:<9}"
            f"{self.saved:>12,} B{self.milliseconds:>10.3f} ms  {self.kernel}"
        )


class Trace(list[Entry]):
    """The entries in the order in which they ran; prints as a table."""

    def kernels(self, phase: str) -> list[str]:
        """The compiled kernels that ran in a phase, in order."""
        return [entry.kernel for entry in self if entry.phase == phase and ":" in entry.kernel]

    def __str__(self) -> str:
        return "\n".join(map(str, self))


_current: ContextVar[Trace | None] = ContextVar("tinygrad_bn_trace", default=None)
current = _current.get


@contextmanager
def record() -> Iterator[Trace]:
    """Collect an `Entry` for every operation inside the block."""
    trace = Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
