"""Running the tasks of a sweep, wherever an executor takes them."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed

from gradcheck.sweep.lines import source_fingerprint
from gradcheck.sweep.records import Result, Task
from gradcheck.sweep.workers import WorkerUnavailable, carry_out, end_all

__all__ = ["SweepStopped", "run"]


class SweepStopped(RuntimeError):
    """The executor takes no more tasks; those without a result were not checked. The message says why."""


def run(
    tasks: Iterable[Task], executor: Executor, *, timeout: float | None = None
) -> Generator[Result, None, None]:
    """Carry out every task once; give each result as soon as it is there, whatever the order.

    The executor only hands tasks out: each of its threads, here or elsewhere, keeps a process that does the
    work. Verdicts and figures are the same whatever the executor, and whatever the order.

    Args:
        tasks: a task that is there twice is carried out once.
        executor: any of `concurrent.futures`: `ThreadPoolExecutor(n)` for n processes here, that of a Dask
            client, mpi4py's. It stays open.
        timeout: seconds that a check may take.

    Returns:
        A Result for each task. That of one whose process crashed, was killed, or took too long is an ERROR
        that says so.

    Raises:
        SweepStopped: the executor broke. What was given until then counts.
    """
    sweep, source = uuid.uuid4().hex, source_fingerprint()
    pending: dict[Future, Task] = {}
    try:
        for task in dict.fromkeys(tasks):
            pending[executor.submit(carry_out, task.as_json(), timeout, sweep, source)] = task
        for future in as_completed(list(pending)):
            yield _result(future, pending.pop(future))
    finally:
        for future in pending:
            future.cancel()
        end_all(sweep)


def _result(future: Future, task: Task) -> Result:
    try:
        return Result.from_json(future.result())
    except CancelledError as error:
        raise SweepStopped("the executor cancelled what was left; has its scheduler ended?") from error
    except (BrokenExecutor, WorkerUnavailable) as error:
        raise SweepStopped(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # of the executor, about this task
        return Result.of_error(task, f"worker was lost: {type(error).__name__}: {error}")
