"""What a sweep is made of: a task for each configuration or sample, and the record that its check leaves."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from gradcheck.axes import Configuration
from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.sweep.codec import decode, decode_record, encode

__all__ = ["SCHEMA_VERSION", "Result", "SampleCase", "Task"]

SCHEMA_VERSION = 2
"""Of a result as JSON, and of the files that hold results."""


@dataclass(frozen=True)
class SampleCase:
    """One sample of a registered operation, as its declaration names it, run by one of its kernels.

    command, selected_by: the command that checks it, and the words that select it; by default those that
        name the operation.
    """

    operation: str
    sample: str
    dtype: str = "float64"
    mode: str = "training"
    command: str = "gradcheck"
    selected_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.operation} at {self.sample}"

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line that select it: together with the operation's other samples."""
        return self.selected_by or ("--op", self.operation)


@dataclass(frozen=True)
class Task:
    """One check of a sweep, in words: neither an array nor a function has to travel to where it is made.

    configuration: what is checked. seed: of inputs, directions and masks.
    source: the words of the command line that name the file of the input or of the operation, where there
        is one; where the check runs, the file must be found by the same name.
    program: how the command line is called, for the command that repeats the check.
    device: where the kernels run.
    """

    configuration: Configuration | SampleCase
    seed: int = 0
    source: tuple[str, ...] = ()
    program: str = "python cli.py"
    device: str = "cpu"

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the other tasks of a sweep; its result has the same."""
        return (*_on(self.device), *self.source, str(self.configuration))

    def as_json(self) -> dict[str, Any]:
        """As an object, for `from_json`."""
        return {**_of_configuration(self.configuration), **_of_others(self)}

    @classmethod
    def from_json(cls, entry: Any) -> Task:
        """The task that was written so. Raises ValueError where it is none."""
        return _read(cls, entry)


@dataclass(frozen=True)
class Result:
    """What was found about one configuration or sample.

    kernels_forward, kernels_vjp: the compiled kernels that ran. source: the words of the command line that
    name the user's array or file, where there is one. program: how the command line is called. findings: of
    each wrong gradient, where and in which term it is wrong. place: file:line of a vjp that is not right.
    notes: what else the reader should know. device: where the kernels ran.
    """

    configuration: Configuration | SampleCase
    seed: int
    checks: tuple[Check, ...]
    kernels_forward: tuple[str, ...]
    kernels_vjp: tuple[str, ...]
    seconds: float
    source: tuple[str, ...] = ()
    program: str = "python cli.py"
    findings: tuple[Finding, ...] = ()
    place: str = ""
    notes: tuple[str, ...] = ()
    device: str = "cpu"

    @classmethod
    def of_error(cls, task: Task, reason: str, seconds: float = 0.0) -> Result:
        """The result of a task that could not be carried out."""
        checks = (Check("worker", Verdict.ERROR, reason),)
        return cls(
            task.configuration, task.seed, checks, (), (), seconds,
            source=task.source, program=task.program, device=task.device,
        )  # fmt: skip

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the checks."""
        return max(check.verdict for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not PASS, worst first."""
        bad = [check for check in self.checks if check.verdict is not Verdict.PASS]
        named = [(f"{check.name} of {check.input}" if check.input else check.name, check) for check in bad]
        named.sort(key=lambda item: -item[1].verdict)
        return tuple(
            check.reason if check.reason.startswith(check.name) else f"{name}: {check.reason}"
            for name, check in named
        )

    @property
    def _own(self) -> list[Check]:
        """The checks with an error that ran the kernels named: of float32, not those of its float64 form."""
        measured = [check for check in self.checks if check.error is not None]
        if self.configuration.dtype == "float64":
            return measured
        return [check for check in measured if check.name != "gradient"] or measured

    @property
    def _gradients(self) -> list[Check]:
        own = "gradient" if self.configuration.dtype == "float64" else "float32 gradient"
        return [check for check in self._own if check.name == own]

    @property
    def worst(self) -> Check | None:
        """The gradient nearest to its bar; where a check failed, the one furthest beyond its bar."""
        for checks in (self._own, self.checks):
            failed = [check for check in checks if check.verdict is self.verdict is not Verdict.PASS]
            measured = [check for check in failed if check.error is not None]
            if measured:
                break
        return max(measured or self._gradients or self._own, key=lambda check: check.strain, default=None)

    @property
    def resolution(self) -> float | None:
        """The smallest relative error that every gradient would have shown; None where all are zero."""
        found = (check.resolution for check in self._gradients)
        return max((resolution for resolution in found if resolution is not None), default=None)

    @property
    def command(self) -> str:
        """The command that repeats this check."""
        words = (*_on(self.device), *self.source, *self.configuration.words, "--seed", str(self.seed))
        command = self.configuration.command if isinstance(self.configuration, SampleCase) else "gradcheck"
        return f"{self.program} {command} {shlex.join(words)}"

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the other results of a sweep; its task has the same."""
        return (*_on(self.device), *self.source, str(self.configuration))

    def as_json(self) -> dict[str, Any]:
        """As an object that holds everything, for `from_json`, and what is read off it, for other readers.

        Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity". In `checks` and
        `findings`, fields that are absent are null or empty.
        """
        worst = self.worst
        read_off = {
            "operation": self.configuration.operation,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "error": worst.error if worst else None,
            "bar": worst.bar if worst else None,
            "tolerance": worst.tolerance if worst else None,
            "resolution": self.resolution,
            "command": self.command,
        }
        return {**_of_configuration(self.configuration), **encode(read_off), **_of_others(self)}

    @classmethod
    def from_json(cls, entry: Any) -> Result:
        """The result that was written so. Raises ValueError where it is none."""
        return _read(cls, entry)


def _on(device: str) -> tuple[str, ...]:
    """The words of a command line that choose a device."""
    return () if device == "cpu" else ("--device", device)


def _of_configuration(configuration: Configuration | SampleCase) -> dict[str, Any]:
    """Its text; and the parts of a sample, which its text does not tell."""
    parts = {"sample": encode(configuration)} if isinstance(configuration, SampleCase) else {}
    return {"configuration": str(configuration), **parts}


def _of_others(record: Task | Result) -> dict[str, Any]:
    """The fields after the configuration, those with their default value too."""
    return {field.name: encode(getattr(record, field.name)) for field in dataclasses.fields(record)[1:]}


def _read(kind: Any, entry: Any) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"wanted an object, got {entry!r:.60}")
    if "sample" in entry:
        configuration = decode(SampleCase, entry["sample"])
    else:
        configuration = Configuration.parse(decode(str, entry.get("configuration")))
    names = {field.name for field in dataclasses.fields(kind)[1:]}
    values = {name: value for name, value in entry.items() if name in names}
    return decode_record(kind, values, configuration=configuration)
