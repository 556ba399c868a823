"""Where the tasks of a sweep run: in this process, in others, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click

from gradcheck.cli.streams import aside
from gradcheck.sweep import Result, SweepStopped, Task, run

__all__ = ["Execution", "Stopped", "options"]

Results = Generator[Result, None, None]

CONNECTING = 5
"""Seconds until a scheduler is not there."""
STOPPED = 3


class Stopped(click.ClickException):
    """The executor broke in the middle of a sweep."""

    exit_code = STOPPED


@dataclass(frozen=True)
class Execution:
    """The options that say where tasks run.

    Raises:
        click.UsageError: options that contradict each other.
    """

    jobs: int | None
    dask: str | None
    timeout: float | None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.dask is not None:
            raise click.UsageError("--jobs starts processes here, --dask uses those of a cluster; pass one")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[Sequence[Task]], Results]]:
        """A function that carries out tasks; the processes that it uses end with the context.

        Raises:
            click.UsageError: the scheduler is not there.
        """
        if self.jobs is None and self.dask is None and self.timeout is None:
            yield _here
            return
        with self._executor() as executor:
            yield lambda tasks: self._elsewhere(tasks, executor)

    @contextlib.contextmanager
    def _executor(self) -> Iterator[Executor]:
        if self.dask is not None:
            with _client(self.dask) as client:
                yield client.get_executor()
        else:
            with ThreadPoolExecutor(self.jobs or 1) as executor:
                yield executor

    def _elsewhere(self, tasks: Sequence[Task], executor: Executor) -> Results:
        with contextlib.closing(run(tasks, executor, timeout=self.timeout)) as results:
            try:
                yield from results
            except SweepStopped as problem:
                raise Stopped(f"the sweep stopped: {problem}") from None


def _here(tasks: Sequence[Task]) -> Results:
    # The parallel kernels run on tiny inputs here. Threads that wait for each other by spinning, as OpenMP's
    # do unless told otherwise before they start, make that several times slower on a machine in use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from gradcheck.cli.worker import Performer

    perform = Performer()
    for task in tasks:
        with aside():
            perform.prepare(task)
            result = perform(task)
        yield result


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler there. Raises click.UsageError."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        if error.name not in ("distributed", "dask"):
            raise
        raise click.UsageError(
            "--dask needs distributed, which is not installed; pip install distributed"
        ) from None
    # A connection that fails is told in one line, below or by the sweep that it stops.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECTING)
    except (OSError, ValueError, TypeError) as error:
        raise click.UsageError(
            f"--dask: no scheduler at {address} ({_first_line(error)}); start one with `dask scheduler`"
        ) from None
    with client:
        if not client.scheduler_info()["workers"]:
            click.echo(f"The scheduler at {address} has no workers yet; waiting for one.", err=True)
        yield client


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of an Execution to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--jobs", metavar="N", type=click.IntRange(1), help="Run in so many processes instead of this one."
    ),
    click.option("--dask", metavar="ADDRESS", help="Run on the workers of this Dask scheduler."),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(0, min_open=True),
        help="A check that takes longer is an ERROR. Runs in a process of its own.",
    ),
)
