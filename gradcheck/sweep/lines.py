"""The results of a sweep as JSON lines, one by one as they come: a file that survives an interruption.

The first line is the header, each line after it a result. A line counts once it ends; one that was cut off by
a crash is not there, and its configuration is run again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from gradcheck.sweep.codec import decode, encode
from gradcheck.sweep.records import SCHEMA_VERSION, Result, Task

__all__ = ["Header", "Lines", "Mismatch", "Recorded", "read", "source_fingerprint", "versions"]

PACKAGES = ("numpy", "numba", "llvmlite")
FRAMEWORK = "tinygrad_bn"
FILES = ("--input", "--plugin")  # the words of a source that are followed by a path


class Mismatch(Exception):
    """A file that is not, or does not belong to, this sweep; the message says how it differs."""


@dataclass(frozen=True)
class Header:
    """What a file of results is about.

    seed: that of every task. planned: how many tasks there are.
    sweep: a fingerprint of the tasks, whatever their order, and of the files that they name.
    versions: those of Python and of the packages that figures depend on.
    source: a fingerprint of the source of gradcheck and tinygrad_bn, which change between versions too.
    """

    schema_version: int
    seed: int
    planned: int
    sweep: str
    versions: dict[str, str]
    source: str

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Header:
        """The header for these tasks, run by this program. Raises ValueError unless they have one seed."""
        seeds = {task.seed for task in tasks} or {0}
        if len(seeds) > 1:
            raise ValueError(f"the tasks of a sweep have one seed; got {len(seeds)} among {len(tasks)} tasks")
        return cls(
            SCHEMA_VERSION, seeds.pop(), len(tasks), _fingerprint(tasks), versions(), source_fingerprint()
        )

    def require(self, now: Header, path: str) -> None:
        """Raise Mismatch unless a sweep with the header `now` can go on with the file of this one."""
        ours, theirs = ({**each.versions, "the source": each.source} for each in (now, self))
        apart = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        if apart:
            name = apart[0]
            raise Mismatch(
                f"{path} was written with {name} {theirs.get(name, 'absent')}, "
                f"this is {ours.get(name, 'absent')}; {AGAIN}"
            )
        if self.seed != now.seed:
            raise Mismatch(f"{path} has seed {self.seed}, this is --seed {now.seed}; {AGAIN}")
        if self.sweep != now.sweep:
            raise Mismatch(
                f"{path} is of another sweep ({self.planned} configurations, here {now.planned}), or a file "
                f"that it reads has changed; {AGAIN}"
            )


AGAIN = "give the options that it was started with, or start anew with another file"


@dataclass(frozen=True)
class Recorded:
    """What a file holds. size: up to the end of the last whole line. torn: what is left of one after it."""

    header: Header
    results: tuple[Result, ...]
    size: int
    torn: int

    @property
    def complete(self) -> bool:
        """Whether every task has its result."""
        return len(self.results) == self.header.planned


def read(path: str | Path) -> Recorded:
    """The header and the results in a file. Raises Mismatch where it is none, or OSError."""
    data = Path(path).read_bytes()
    whole, _, torn = data.rpartition(b"\n")
    first, *rest = whole.split(b"\n")
    header = _header(path, first)
    results: dict[tuple[str, ...], Result] = {}
    for number, line in enumerate(rest, 2):
        try:
            result = Result.from_json(json.loads(line))
        except ValueError as problem:  # of the JSON, or of what it says
            raise Mismatch(f"{path}, line {number}: no result: {problem}") from None
        if result.key in results:
            raise Mismatch(f"{path}, line {number}: the result of {result.configuration} is there twice")
        results[result.key] = result
    return Recorded(header, tuple(results.values()), len(data) - len(torn), len(torn))


def _header(path: str | Path, line: bytes) -> Header:
    try:
        entry = json.loads(line)
        schema = entry["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise Mismatch(f"{path} is no file of a sweep: its first line has no schema_version") from None
    if schema != SCHEMA_VERSION:
        raise Mismatch(f"{path} has schema version {schema!r}, this program reads {SCHEMA_VERSION}; {AGAIN}")
    try:
        return decode(Header, entry)
    except ValueError as problem:
        raise Mismatch(f"{path}, line 1: {problem}") from None


class Lines:
    """A file that results are written to as they come; each is there, whole, when `write` returns.

    Raises:
        OSError: the file cannot be written, now or later.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        """Begin a new file, in place of any that is there."""
        self._file: FileIO = open(path, "wb", buffering=0)  # noqa: SIM115 -- closed by `close`
        self._write(encode(header))

    @classmethod
    def after(cls, path: str | Path, recorded: Recorded) -> Lines:
        """Go on where `recorded`, the content of the file, ends; a torn line is cut off."""
        lines = cls.__new__(cls)
        lines._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        lines._file.truncate(recorded.size)
        lines._file.seek(0, os.SEEK_END)
        return lines

    def write(self, result: Result) -> None:
        """Add a result."""
        self._write(result.as_json())

    def _write(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, allow_nan=False, separators=(",", ":"))
        left = memoryview(text.encode() + b"\n")
        while left:  # in one call, which no signal interrupts, unless the disk is full
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def versions() -> dict[str, str]:
    """Of Python, of the packages that figures depend on, and of what is checked."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # installed by other means than a Python package
            continue
    # Not by its metadata: a checkout need not be installed.
    return {**found, FRAMEWORK: importlib.import_module(FRAMEWORK).__version__}


@functools.cache  # of what runs, should the files be changed later
def source_fingerprint() -> str:
    """Of every file of the two packages."""
    digest = hashlib.sha256()
    ours = Path(__file__).parents[1]
    theirs = Path(str(importlib.import_module(FRAMEWORK).__file__)).parent
    for folder in (ours, theirs):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _fingerprint(tasks: Iterable[Task]) -> str:
    digest = hashlib.sha256()
    keys = sorted(task.key for task in tasks)
    digest.update(json.dumps(keys).encode())
    pairs = (pair for *words, _ in keys for pair in itertools.pairwise(words))
    paths = {path for flag, path in pairs if flag in FILES}
    for path in sorted(paths):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:12]
