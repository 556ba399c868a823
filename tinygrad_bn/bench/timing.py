"""How long a call takes: on the CPU by the clock, on a GPU between two events of its stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from .libraries.streams import Stream

__all__ = ["OnDevice", "OnHost", "copies_needed"]

ABOVE_CACHE = 2
"""The inputs that take turns exceed the second-level cache so many times."""
MOST_COPIES = 32  # of inputs that are tiny
OCCUPIED = 1e-4  # seconds for which one `Stream.occupy` lasts, at the least
MARGIN = 2  # the host may be slower than it was
MOST_OCCUPATIONS = 300  # what is started later waits for room in the queue


class OnHost:
    """Each call on the clock by itself, after one that is not.

    A forward pass whose results are kept comes before each backward pass, off the clock. Results are dropped
    off the clock too.
    """

    def __init__(self, library: Any):
        self._library = library

    def sample(self, direction: str, calls: int) -> dict[str, float]:
        """The mean time of some calls."""
        library, clock = self._library, time.perf_counter
        total = 0.0
        if direction == "forward":
            output = library.forward()
            for _ in range(calls):
                output = None
                start = clock()
                output = library.forward()  # noqa: F841 -- or dropping it would be timed
                total += clock() - start
        else:
            recorded = library.record()
            gradients = library.backward(recorded)
            for _ in range(calls):
                recorded = gradients = None
                recorded = library.record()
                start = clock()
                gradients = library.backward(recorded)  # noqa: F841 -- as above
                total += clock() - start
        return {"seconds": total / calls}


class OnDevice:
    """Rounds of calls, each on inputs of its own, so that none finds its input in the cache.

    A round is timed between two events. The stream is occupied before it until the host has started all of
    its calls: so the events measure the device alone, and the time of the host, which is another figure, does
    not come between. With `graph` the round is captured once and replayed.

    copies: the library's case, made so often; see `copies_needed`.
    """

    def __init__(self, copies: Sequence[Any], stream: Stream, graph: bool = False):
        self._copies, self._stream = copies, stream
        self._rounds: dict[str, Callable[[], Any]] = {}
        self._host: dict[str, float] = {}
        for direction in ("forward", "backward"):
            for _ in range(2):  # the first compiles
                self._ready(direction)
                start = time.perf_counter()
                self._call(direction)
                self._host[direction] = time.perf_counter() - start
            if graph:
                self._ready(direction)
                self._rounds[direction] = stream.captured(lambda: self._call(direction))  # noqa: B023 -- called at once

    def sample(self, direction: str, calls: int) -> dict[str, float]:
        """The mean times of some calls: `seconds` on the device, `host` until they were started."""
        stream, clock = self._stream, time.perf_counter
        rounds = math.ceil(calls / len(self._copies))
        device = host = 0.0
        for _ in range(rounds):
            if direction in self._rounds:
                run = self._rounds[direction]
            else:
                self._ready(direction)
                run = lambda: self._call(direction)  # noqa: E731
            stream.wait()
            needed = 1 + math.ceil(MARGIN * self._host[direction] / OCCUPIED)
            for _ in range(min(needed, MOST_OCCUPATIONS)):
                stream.occupy()
            first = stream.mark()
            start = clock()
            results = run()  # noqa: F841 -- their memory must not be used again in this round
            self._host[direction] = clock() - start
            device += stream.seconds(first, stream.mark())
            host += self._host[direction]
        count = rounds * len(self._copies)
        return {"seconds": device / count, "host": host / count}

    def _ready(self, direction: str) -> None:
        """Make what the calls need, off the clock."""
        self._recorded = [c.record() for c in self._copies] if direction == "backward" else []

    def _call(self, direction: str) -> list[Any]:
        if direction == "forward":
            return [copy.forward() for copy in self._copies]
        return [copy.backward(made) for copy, made in zip(self._copies, self._recorded, strict=True)]


def copies_needed(nbytes: int, cache_bytes: int) -> int:
    """How many inputs of a size take turns, so that together they exceed twice the second-level cache."""
    return min(MOST_COPIES, 1 + ABOVE_CACHE * cache_bytes // max(1, nbytes))
