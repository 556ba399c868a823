"""Memory for large outputs, used again once the last array in it is gone.

The C library gives large blocks back to the system when they are freed, at once or when a few have gathered.
The next output is then new memory, whose pages the system has to clear and map at the first write; that can
take longer than the kernel. So a block that was an output is kept, and lent again for one of about its size.

Nobody can see it. The array that `empty` returns has a `_Loan` as its base. Whatever else looks into its
memory, views, memoryviews, DLPack, arrays of other libraries, holds that array. Python deletes the loan when
the last of these is gone, and then, never earlier, the block is free again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from itertools import count
from math import prod
from typing import Any

import numpy as np

__all__ = ["VARIABLE", "Pool", "empty", "owns", "release_memory"]

Shape = tuple[int, ...]

VARIABLE = "TGBN_KEEP_MIB"
MIB = 1 << 20
SMALLEST = MIB  # bytes; below, the C library keeps what is freed, and a loan costs more than asking it
MOST = 1024 * MIB
SHARE = 16
MOST_BLOCKS = 64  # each is looked at when one is wanted
# What a container may use, which can be less than the machine has.
CONTAINER = "/sys/fs/cgroup/memory.max"

# A store waits for loads of addresses that agree with its own in the last 12 bits. Output and input therefore
# begin at different places in a page, multiples of a cache line: 1,088 apart, modulo 4,096, for neighbours.
PAGE = 4096
APART = 1088


class _Block:
    __slots__ = ("address", "memory", "size")

    def __init__(self, size: int, place: int):
        self.memory = np.empty(size + PAGE, np.uint8)
        first = self.memory.ctypes.data
        self.address = first + (place * APART - first) % PAGE
        self.size = size


class _Loan:
    """What keeps a block lent: the base of the one array that covers it."""

    __slots__ = ("__array_interface__", "_block", "_pool")

    def __init__(self, pool: Pool, block: _Block, shape: Shape, dtype: np.dtype):
        self._pool = pool
        self._block = block
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self._pool.take_back(self._block)


class Pool:
    """Free blocks, of no more than `limit` bytes together.

    There is no lock. A loan may be deleted at any moment, in any thread, in the middle of these very methods
    and while Python shuts down; a lock could then be held by the thread that waits for it, or by one that a
    fork has left behind. Each step on the list is one call of its methods, which no other thread sees half
    done, and whoever removes a block has it alone.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._most = MOST_BLOCKS  # at shutdown a module's names are gone
        self._free: list[_Block] = []  # the one that came back first is first
        self._places = count(1)

    def empty(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """An array of a free block, or of a new one; its contents are whatever was there."""
        size = prod(shape) * dtype.itemsize
        block = self._found(size)
        if block is None:
            try:
                block = _Block(size, next(self._places))
            except MemoryError:
                if not self.release():
                    raise
                block = _Block(size, next(self._places))
        return np.asarray(_Loan(self, block, shape, dtype))

    def _found(self, size: int) -> _Block | None:
        """The free block used last, which caches know best, of those that are at most an eighth too large."""
        for block in reversed(self._free.copy()):
            if size <= block.size <= size + size // 8:
                try:
                    self._free.remove(block)
                except ValueError:  # another thread has it
                    continue
                return block
        return None

    def take_back(self, block: _Block) -> None:
        """Keep a block, and drop the oldest ones beyond the limit."""
        if block.size > self.limit:
            return
        self._free.append(block)
        while self.free_bytes > self.limit or len(self._free) > self._most:
            try:
                self._free.pop(0)
            except IndexError:  # other threads dropped them
                return

    @property
    def free_bytes(self) -> int:
        return sum([block.size for block in self._free.copy()])

    def release(self) -> int:
        """Drop every free block; the bytes that were in them."""
        released = 0
        while self._free:
            try:
                released += self._free.pop().size
            except IndexError:  # other threads dropped them
                break
        return released


@cache
def _shared() -> Pool:
    return Pool(_limit())


def _limit() -> int:
    """What the environment says, or 1 GiB, in small machines and containers a sixteenth of the memory."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        if not (given.isascii() and given.isdigit()):
            raise ValueError(
                f"{VARIABLE}: got {given!r}, wanted a whole number, the MiB of memory to keep for outputs; "
                "0 keeps none"
            )
        return int(given) * MIB
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows does not say
        return MOST // 4
    with suppress(OSError, ValueError), open(CONTAINER) as file:  # no such file, or no limit in it
        memory = min(memory, int(file.read()))
    return min(MOST, memory // SHARE)


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """As `numpy.empty`, for outputs of kernels: where they are large, in memory that nobody uses any more."""
    if prod(shape) * dtype.itemsize < SMALLEST:
        return np.empty(shape, dtype)
    return _shared().empty(shape, dtype)


def owns(array: Any) -> bool:
    """Whether an array is no view of another one: it owns its memory, or has borrowed all of it here."""
    base = array.base
    return base is None or type(base) is _Loan


def release_memory() -> int:
    """Give the memory that is kept for large outputs of CPU kernels back to the C library; how many bytes
    that were.

    Arrays and tensors are untouched. Free memory is kept up to 1 GiB, or a sixteenth of the machine's memory
    where that is less; the environment variable `TGBN_KEEP_MIB` sets another limit, and 0 keeps none.
    """
    return _shared().release()
