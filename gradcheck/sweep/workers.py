"""The processes that carry out tasks: one for each thread of whatever executor runs a sweep.

The checked code never runs in the executor's own processes, so that a crash or a hang costs one task and one
process, which is replaced, whether the executor is a pool of threads here or a cluster. Tasks and results
travel to and from it as lines of JSON, through pipes: nothing is unpickled, and the `__main__` of the program
is not imported again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from gradcheck.sweep.lines import source_fingerprint
from gradcheck.sweep.records import Result, Task

__all__ = ["WorkerUnavailable", "carry_out", "end_all"]

PROGRAM = "gradcheck.cli.worker"
IDLE = 30.0
"""Seconds after which a process that has nothing to do ends: a cluster outlives the sweep."""

CLOSING = 5.0
"""Seconds within which a process that says no more has ended."""

# Threads that wait by spinning are slow where they outnumber the cores. Two make the parallel kernels
# parallel; more would take the cores of the neighbours.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "NUMBA_NUM_THREADS": "2"}

# What must be set where a device is to be used, before its library is loaded.
OF_DEVICE = {"cuda-sim": {"NUMBA_ENABLE_CUDASIM": "1"}}


class WorkerUnavailable(RuntimeError):
    """A process does not start, or runs another version of the program; the message says which."""


def carry_out(entry: dict[str, Any], timeout: float | None, sweep: str, source: str) -> dict[str, Any]:
    """The result of a task, both as JSON, made in the process of this thread. This is what an executor runs.

    Args:
        timeout: seconds that the check may take; starting a process and compiling kernels do not count.
        sweep: a name that the processes of another sweep do not have.
        source: the fingerprint of the program that began the sweep.

    Raises:
        WorkerUnavailable: there is no such process here.
    """
    if source != source_fingerprint():
        raise WorkerUnavailable(
            "the workers have another version of gradcheck or tinygrad_bn than the program that began the "
            "sweep; install the same on both sides"
        )
    worker: _Worker | None = getattr(_thread, "worker", None)
    if worker is None or worker.sweep != sweep:
        if worker is not None:
            worker.end()
        worker = _thread.worker = _Worker(sweep)
    return worker.carry_out(entry, timeout)


def end_all(sweep: str) -> None:
    """End the processes that threads of this one keep for a sweep, whatever they are doing."""
    for worker in list(_workers):
        if worker.sweep == sweep:
            worker.end()


class _Died(Exception):
    """The process ended; the message says how."""


class _Worker:
    """A process, started when there is something to do, and anew when it has died."""

    def __init__(self, sweep: str) -> None:
        self.sweep = sweep
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._busy = threading.Lock()
        self._rest = threading.Timer(0, lambda: None)
        self._over = False
        _workers.add(self)

    def carry_out(self, task: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """The result of a task: an ERROR where the process died of it, or was killed at the timeout."""
        with self._busy:
            self._rest.cancel()
            try:
                return self._result(task, timeout)
            finally:
                self._rest = threading.Timer(IDLE, self._retire)
                self._rest.daemon = True
                self._rest.start()

    def end(self) -> None:
        """End the process, whatever it is doing, for good."""
        self._over = True
        self._kill()
        self._rest.cancel()
        with self._busy:
            self._close()

    def _retire(self) -> None:
        if self._busy.acquire(blocking=False):
            try:
                self._kill()
                self._close()
            finally:
                self._busy.release()

    def _result(self, task: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        began = time.perf_counter()
        late = threading.Event()
        try:
            answer = self._handed_over(task)
            began = time.perf_counter()
            if "result" not in answer:
                with self._limited(timeout, late):
                    answer = self._answer()
        except _Died as died:
            self._close()
            seconds = time.perf_counter() - began
            reason = (
                f"took longer than the timeout of {timeout:g} s and was killed" if late.is_set() else died
            )
            return Result.of_error(Task.from_json(task), f"worker {reason}", seconds).as_json()
        return answer["result"]

    def _handed_over(self, task: dict[str, Any]) -> dict[str, Any]:
        """What the process says when it begins with the task, or, where it cannot, the result."""
        for last in (False, True):
            try:
                process = self._running(task["device"])
                assert process.stdin is not None
                process.stdin.write(json.dumps(task).encode() + b"\n")
                process.stdin.flush()
                return self._answer()
            except (_Died, OSError):  # of something else: it had not begun
                self._kill()
                self._close()
                if last:
                    raise
        raise AssertionError  # not reached

    def _running(self, device: str) -> subprocess.Popen[bytes]:
        """The process, with what must be set for the device."""
        environment = OF_DEVICE.get(device, {})
        if self._process is not None and environment != self._environment:
            self._kill()
            self._close()
        if self._process is None:
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**ENVIRONMENT, **os.environ, **environment, "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is for the program that runs the sweep, which ends this one
            )
            self._environment = environment
            if self._over:
                self._kill()
            try:
                ready = self._answer()["ready"]
            except _Died as died:
                self._close()
                raise WorkerUnavailable(f"{sys.executable} -m {PROGRAM} does not start: it {died}") from None
            if ready != source_fingerprint():
                self._kill()
                self._close()
                raise WorkerUnavailable("the source of gradcheck or tinygrad_bn was changed during the sweep")
        return self._process

    def _answer(self) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            try:
                raise _Died(_how(process.wait(CLOSING)))
            except subprocess.TimeoutExpired:
                self._kill()
                raise _Died("closed its pipe") from None
        return json.loads(line)

    @contextlib.contextmanager
    def _limited(self, timeout: float | None, late: threading.Event) -> Iterator[None]:
        """Kill the process after so many seconds, and set `late`."""
        if timeout is None:
            yield
            return

        def stop() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill(self) -> None:
        """Kill the process, and what it has started, such as a compiler."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):  # what was not read any more
                process.communicate()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


_thread = threading.local()
_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()
