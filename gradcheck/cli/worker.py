"""Carrying out the tasks of a sweep; and the program that does so for another process.

`python -m gradcheck.cli.worker` reads tasks from stdin and says on stdout what becomes of them, a JSON object
on each line: that it is ready, that a task begins, and its result. It ends when stdin does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gradcheck.axes import Configuration
from gradcheck.cli import arrays, plugins
from gradcheck.cli.loading import one_line
from gradcheck.sweep import Result, SampleCase, Task
from gradcheck.sweep.lines import source_fingerprint

if TYPE_CHECKING:
    from gradcheck.adapters.tinygrad_bn.samples import Case

__all__ = ["Performer", "main"]

CPU = "cpu"
KERNELS = "tinygrad_bn.kernels.cpu."
EQUAL = {"group_norm": ("layer_norm", "instance_norm"), "instance_norm": ("batch_norm",)}
"""Other operations that one is compared with."""


class Performer:
    """Carries out tasks, one after the other; what they have in common is read once."""

    def __init__(self) -> None:
        self._batches: dict[tuple[str, ...], list[arrays.Batch]] = {}
        self._cases: dict[tuple[str, int, str], dict[str, Case]] = {}
        self._prepared: set[str] = set()

    def prepare(self, task: Task) -> None:
        """See to it that the kernels are loaded, not compiled here: then figures are the same everywhere.

        Those of other devices are compiled where they run. Raises DeviceUnavailable.
        """
        operation = task.configuration.operation
        if task.device != CPU:
            from tinygrad_bn import devices

            devices.check_available(task.device)
        elif operation not in self._prepared:
            self._prepared.add(operation)
            families = _families(operation)
            if families:
                from tinygrad_bn.kernels.cpu.compiling import compile_elsewhere

                for family in sorted(families):
                    compile_elsewhere(family)

    def __call__(self, task: Task) -> Result:
        """The result of a task. What it checks cannot raise; its source can."""
        case = task.configuration
        try:
            if isinstance(case, SampleCase):
                made = self._sample(task, case)
            else:
                made = self._configuration(task, case)
        except MemoryError:
            return Result.of_error(task, "worker ran out of memory; choose a smaller shape")
        return dataclasses.replace(made, program=task.program)

    def _configuration(self, task: Task, configuration: Configuration) -> Result:
        from gradcheck.adapters.tinygrad_bn import check_configuration

        given = self._given(task.source, configuration) if task.source else None
        return check_configuration(configuration, task.seed, given, task.source, task.device)

    def _given(self, source: tuple[str, ...], configuration: Configuration) -> np.ndarray:
        """The input of a configuration: the array of its shape among those that the source names."""
        if source not in self._batches:
            option, name, *array = source
            found = arrays.from_file(name, array[-1] if array else None) if option == "--input" else None
            self._batches[source] = list(found or arrays.from_dataset(name))
        return next(
            batch.values for batch in self._batches[source] if batch.values.shape == configuration.shape
        )

    def _sample(self, task: Task, sample: SampleCase) -> Result:
        from gradcheck.adapters.tinygrad_bn import cases

        key = (sample.operation, task.seed, task.device)
        if key not in self._cases:
            found = cases(plugins.registered(sample.operation), task.seed, task.device)
            self._cases[key] = {case.name: case for case in found}
        report = self._cases[key][sample.sample].check()
        return Result(
            sample, task.seed, report.checks, (), (), report.seconds, task.source,
            findings=report.findings, place=report.place, notes=report.notes, device=task.device,
        )  # fmt: skip


def _families(operation: str) -> set[str]:
    """The modules of compiled kernels that the checks of an operation run."""
    from tinygrad_bn import REGISTRY

    names = {operation.rpartition("::")[-1]}
    names |= {other for name in names for other in EQUAL.get(name, ())}
    names |= {f"{name}_inference" for name in names} | ({"scale"} if "dropout" in names else set())
    wanted = (spec for spec in REGISTRY if spec.name == operation or spec.name.rpartition("::")[-1] in names)
    targets = {kernel.target.partition(":")[0] for spec in wanted for kernel in spec.kernels}
    families = {target.removeprefix(KERNELS) for target in targets if target.startswith(KERNELS)}
    return families | {"rows"} if families & {"split", "cols"} else families  # which they call for short runs


def main() -> None:
    """Serve until stdin ends."""
    # The checked code may print, and read: these are not the streams that the tasks go by.
    orders = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders, lines), daemon=True).start()
    performer = Performer()
    with contextlib.ExitStack() as opened:
        opened_paths: set[str] = set()
        _say(answers, ready=source_fingerprint())
        while True:
            task = Task.from_json(json.loads(lines.get()))
            began = time.perf_counter()
            try:
                match task.source:
                    case ("--plugin", path) if path not in opened_paths:
                        opened.enter_context(plugins.opening(path))
                        opened_paths.add(path)
                performer.prepare(task)
                _say(answers, begins=True)
                result = performer(task)
            except Exception as error:
                seconds = time.perf_counter() - began
                result = Result.of_error(task, f"worker raised {one_line(error)}", seconds)
            _say(answers, result=result.as_json())


def _read(orders: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on the lines of a stream; its end is that of this process, whatever is being checked."""
    for line in iter(orders.readline, b""):
        lines.put(line)
    os._exit(0)


def _say(answers: IO[str], **what: Any) -> None:
    answers.write(json.dumps(what, allow_nan=False) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
