"""The measuring process's side of a worker: start it with its threads under control, ask it, stop it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cases import Case

__all__ = ["Failed", "Unserved", "Worker", "Workers", "cores"]

TIMEOUT = 600.0
PATIENCE = 5.0  # seconds for a process that has closed its end to be gone
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
CAN_STOP = hasattr(signal, "SIGSTOP")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Failed(Exception):
    """A request that the library answered with an error, or did not answer. The message is one line."""


class Unserved(Exception):
    """The library has no such operation."""


def cores() -> list[int]:
    """The CPUs that this process may use, those first that do not share a core with one before them."""
    if not hasattr(os, "sched_getaffinity"):  # as on macOS and Windows
        return list(range(os.cpu_count() or 1))
    first: dict[str, int] = {}
    usable = sorted(os.sched_getaffinity(0))
    for cpu in usable:
        siblings = str(cpu)
        with contextlib.suppress(OSError):
            siblings = Path(TOPOLOGY.format(cpu)).read_text().strip()
        first.setdefault(siblings, cpu)
    return [*first.values(), *(cpu for cpu in usable if cpu not in first.values())]


class Worker:
    """One library in a process of its own, on `threads` CPUs.

    Between requests the process is stopped, where the system can do that: threads that wait by spinning, as
    those of OpenMP do for a while, would take a core from the library whose turn it is.
    """

    def __init__(self, library: str, threads: int, plugins: Sequence[str] = (), **environment: str):
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        controlled = dict.fromkeys(THREAD_VARIABLES, str(threads))
        with _only_on(cores()[:threads]):
            # In a process group of its own, Ctrl-C does not reach it: it is ended by `close`. And should the
            # measuring process be killed, the system ends the group, stopped as it is.
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", library, *plugins],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **controlled, **environment},
                process_group=0 if CAN_STOP else None,
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises Failed, Unserved."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self._signal("SIGCONT")
        try:
            process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            process.stdin.flush()
            answered = not CAN_STOP or select.select([process.stdout], [], [], TIMEOUT)[0]
            line = process.stdout.readline() if answered else None
        except BrokenPipeError:
            line = b""
        if not line:
            if line is not None:  # it is ending by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
            last_words = self.close()
            raise Failed(f"no answer within {TIMEOUT:.0f} s" if line is None else last_words)
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "unserved" in answer:
            raise Unserved
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    @property
    def closed(self) -> bool:
        return self._stderr.closed

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> str:
        """End the process, at once. How it ended: by which signal or status, and the last line it wrote."""
        self._process.kill()
        self._process.communicate()
        status = self._process.returncode
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        with self._stderr:
            self._stderr.seek(0)
            lines = [line.strip() for line in self._stderr if line.strip()]
        return f"its process ended by {how}" + (f": {lines[-1]}" if lines else "")

    def _signal(self, name: str) -> None:
        if CAN_STOP:
            self._process.send_signal(getattr(signal, name))


class Workers:
    """Workers by library, started when first asked; one that has died is started anew."""

    def __init__(self, threads: int, plugins: Sequence[str] = (), **environment: str):
        self.threads = threads
        self._plugins, self._environment = plugins, environment
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            if not worker.closed:
                worker.close()

    def __getitem__(self, library: str) -> Worker:
        if library not in self._workers or self._workers[library].closed:
            self._workers[library] = Worker(library, self.threads, self._plugins, **self._environment)
        return self._workers[library]

    def prepare(self, library: str, case: Case, **options: Any) -> dict[str, Any]:
        """Let a library prepare a case. Raises Failed, Unserved."""
        return self[library].ask("prepare", case=asdict(case), **options)


@contextlib.contextmanager
def _only_on(cpus: Sequence[int]) -> Iterator[None]:
    """Processes that are started meanwhile may run on these CPUs alone, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
