"""A sweep from the command line: its results, recorded as they come, kept when it is interrupted."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gradcheck.cli.executing import Execution, Stopped
from gradcheck.sweep import Header, Lines, Mismatch, Recorded, Result, Task, read

__all__ = ["Swept", "swept"]

INTERRUPTED = 130


@dataclass(frozen=True)
class Swept:
    """What came out of a sweep: the results, in the order of the tasks. Of one that did not end: the exit
    status, and how much there is of it, in words."""

    results: list[Result]
    planned: int
    status: int | None = None
    unfinished: str = ""


def swept(
    tasks: Sequence[Task], execution: Execution, lines: Sequence[Path] = (), resume: str | None = None
) -> Swept:
    """Carry out the tasks, with a progress bar where stderr is a terminal.

    Args:
        lines: files to write each result to as it comes.
        resume: such a file, of which the tasks without a result are carried out.

    Raises:
        click.UsageError: the scheduler is not there, or a file is that of another sweep or cannot be written.
        KeyboardInterrupt: there was one before the first result; after it, what is there is returned.
    """
    results: list[Result] = []
    records: list[_Record] = []
    status = None
    with contextlib.ExitStack() as stack:
        found = None
        if resume is not None:
            found = _read(resume, Header.of(tasks))
            results += found.results
        for path in lines:
            _refuse_to_overwrite(path, resume)
        perform = stack.enter_context(execution.opened())  # before a file is touched
        if resume is not None and found is not None:
            records.append(
                stack.enter_context(_Record("--resume", resume, lambda: Lines.after(resume, found)))
            )
        for path in lines:
            if not _same(path, resume):
                opening = functools.partial(Lines, path, Header.of(tasks))
                records.append(stack.enter_context(_Record("--report", path, opening)))
                for result in results:
                    records[-1].write(result)
        done = {result.key for result in results}
        left = [task for task in tasks if task.key not in done]
        try:
            with contextlib.closing(perform(left)) as performed:
                for result in _followed(performed, len(results), len(tasks)):
                    for each in records:
                        each.write(result)
                    results.append(result)
        except KeyboardInterrupt:
            if not results:
                raise
            status = INTERRUPTED
        except Stopped as problem:
            problem.show()
            status = problem.exit_code
    place = {task.key: number for number, task in enumerate(tasks)}
    results.sort(key=lambda result: place[result.key])
    if status is None:
        return Swept(results, len(tasks))
    return Swept(
        results, len(tasks), status, _unfinished(len(results), len(tasks), resume or next(iter(lines), None))
    )


def _followed(results: Iterator[Result], done: int, planned: int) -> Iterator[Result]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        results,
        "checking gradients",
        completed=done,
        total=planned,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _unfinished(done: int, planned: int, path: str | Path | None) -> str:
    """How much there is of a sweep that did not end, and how to have the rest."""
    text = f"Interrupted: {_progress(done, planned)}"
    return f"{text}; go on with the same options and --resume {path}" if path else f"{text}."


def _progress(done: int, planned: int) -> str:
    return f"{done} of {planned} configuration{'' if planned == 1 else 's'} done"


def _same(one: Path, other: str | None) -> bool:
    return other is not None and os.path.realpath(one) == os.path.realpath(other)


def _read(path: str, header: Header) -> Recorded:
    """The results in a file of the same sweep."""
    try:
        found = read(path)
        found.header.require(header, path)
    except FileNotFoundError:
        raise click.UsageError(
            f"--resume: there is no file {path}; begin one with --report FILE.jsonl"
        ) from None
    except OSError as error:
        raise click.UsageError(f"--resume: {path} cannot be read ({error.strerror})") from None
    except Mismatch as problem:
        raise click.UsageError(f"--resume: {problem}") from None
    torn = "; its last line is torn, and that configuration runs again" if found.torn else ""
    click.echo(f"{path}: {_progress(len(found.results), found.header.planned)}{torn}", err=True)
    return found


def _refuse_to_overwrite(path: Path, resume: str | None) -> None:
    """An interrupted sweep would be lost; anything else is a report, which is replaced like any other."""
    if _same(path, resume):
        return
    try:
        found = read(path)
    except (Mismatch, OSError):
        return
    if not found.complete:
        done = _progress(len(found.results), found.header.planned)
        raise click.UsageError(
            f"--report: {path} holds an interrupted sweep ({done}); go on with --resume {path}, or delete it"
        )


class _Record:
    """A file of results; one that cannot be written is wrong usage."""

    def __init__(self, option: str, path: str | Path, opening: Callable[[], Lines]) -> None:
        self._name = f"{option}: {path}"
        with self._writable():
            self._lines = opening()

    def write(self, result: Result) -> None:
        with self._writable():
            self._lines.write(result)

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise click.UsageError(f"{self._name} cannot be written ({error.strerror})") from None
