"""Randomness as an explicit, replayable argument: a seed, a stream and a call number name one mask."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from .kernels.philox import as_word

__all__ = ["Generator", "Key", "default_generator", "manual_seed"]

CALLS = 1 << 32


class Key(NamedTuple):
    """What names one mask for ever: the 64-bit seed, the 32-bit stream and the 32-bit call number."""

    seed: int
    stream: int
    call: int


class Generator:
    """A counter of calls: each `next_call` gives a key that no other call of this seed and stream gets.

    It holds no random state: the call number goes into the Philox counter, so a mask can be made again from
    its key, and a run from `state`. Streams of one seed are independent: one for each layer or worker.

    Args:
        seed: integer in [0, 2**64).
        stream: integer in [0, 2**32).

    Raises:
        TypeError, ValueError: seed or stream is not such an integer.
    """

    __slots__ = ("__weakref__", "_call", "_lock", "_seed", "_stream")

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._lock = threading.Lock()
        self._set(seed, stream, 0)

    def _set(self, seed: Any, stream: Any, call: Any) -> None:
        seed = as_word("Generator", "seed", seed, 64)
        stream = as_word("Generator", "stream", stream, 32)
        # 2**32 itself is the state of a generator that has given every call number.
        call = CALLS if call == CALLS else as_word("Generator", "call", call, 32)
        with self._lock:
            self._seed, self._stream, self._call = seed, stream, call

    def next_call(self) -> Key:
        """The key of the next call; safe to use from several threads, each of which gets keys of its own.

        Raises:
            OverflowError: all 2**32 call numbers are used up.
        """
        with self._lock:
            if self._call == CALLS:
                raise OverflowError(
                    f"{self!r}: all 2**32 call numbers are used; go on with another stream, "
                    f"Generator({self._seed}, stream={(self._stream + 1) % CALLS})"
                )
            key = Key(self._seed, self._stream, self._call)
            self._call += 1
            return key

    @property
    def state(self) -> dict[str, int]:
        """Seed, stream and the number of the next call, as plain integers; set it to go on from there.

        Raises (when set):
            TypeError, ValueError: not a dict with the keys seed, stream and call, or a value out of range.
        """
        with self._lock:
            return {"seed": self._seed, "stream": self._stream, "call": self._call}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"Generator: state must be a dict, got {state!r} of type {type(state).__name__}")
        if set(state) != {"seed", "stream", "call"}:
            raise ValueError(f"Generator: state must have the keys seed, stream and call, got {list(state)}")
        self._set(**state)

    def __eq__(self, other: object) -> bool:
        return self.state == other.state if isinstance(other, Generator) else NotImplemented

    # Equal now need not be equal after the next call.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, stream={self._stream}, call={self._call})"

    # A lock can be neither pickled nor copied.
    def __getstate__(self) -> dict[str, int]:
        return self.state

    def __setstate__(self, state: dict[str, int]) -> None:
        self._lock = threading.Lock()
        self.state = state


_default = Generator(0)


def default_generator() -> Generator:
    """The generator used where none is given; seed 0, stream 0 until `manual_seed`."""
    return _default


def manual_seed(seed: int) -> Generator:
    """Start the default generator again, at call 0 of stream 0 of `seed`, and return it.

    Raises:
        TypeError, ValueError: seed is not an integer in [0, 2**64).
    """
    _default.state = {"seed": seed, "stream": 0, "call": 0}
    return _default
