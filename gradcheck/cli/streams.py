"""stdout and stderr: reports go to the one, talk to the other; one that takes nothing is no bug of ours."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["aside", "guard"]

UNWRITABLE, UNREAD = 2, 141


def aside() -> contextlib.AbstractContextManager[object]:
    """What a user's code prints is talk: it goes to stderr, and stdout holds the report alone."""
    return contextlib.redirect_stdout(sys.stderr)


def guard() -> None:
    """Make stdout and stderr take every character, and end the program in one line where stdout takes none.

    A file or a pipe gets UTF-8, whatever the locale; a terminal shows `?` for what it lacks.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    if sys.stdout is not None:
        sys.stdout = _Guarded(sys.stdout)


class _Guarded:
    """stdout, of which a failed write is neither a bug nor a check that failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._ending():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._ending():
            self._stream.flush()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:  # for what is still held, of which Python would complain
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if isinstance(error, BrokenPipeError):  # as into `head`
                raise SystemExit(UNREAD) from None
            print(f"Error: stdout cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
            raise SystemExit(UNWRITABLE) from None
