"""The record that a check leaves: of a configuration, or of one sample of a registered operation."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from gradcheck.axes import Configuration
from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict

__all__ = ["SCHEMA_VERSION", "Result", "SampleCase"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SampleCase:
    """One sample of a registered operation, as its declaration names it, run by one of its kernels."""

    operation: str
    sample: str
    dtype: str = "float64"
    mode: str = "training"

    def __str__(self) -> str:
        return f"{self.operation} at {self.sample}"

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line that select it: together with the operation's other samples."""
        return "--op", self.operation


@dataclass(frozen=True)
class Result:
    """What was found about one configuration or sample.

    kernels_forward, kernels_vjp: the compiled kernels that ran. source: the words of the command line that
    name the user's array or file, where there is one. program: how the command line is called. findings: of
    each wrong gradient, where and in which term it is wrong. place: file:line of a vjp that is not right.
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
        words = (*self.source, *self.configuration.words, "--seed", str(self.seed))
        return f"{self.program} gradcheck {shlex.join(words)}"

    def as_json(self) -> dict[str, Any]:
        """The entry in the list `checks` of a JSON report."""
        worst = self.worst
        return {
            "operation": self.configuration.operation,
            "configuration": str(self.configuration),
            "kernel_forward": ", ".join(self.kernels_forward),
            "kernel_vjp": ", ".join(self.kernels_vjp),
            "verdict": str(self.verdict),
            "reasons": list(self.reasons),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "error": worst.error if worst else None,
            "bar": worst.bar if worst else None,
            "tolerance": worst.tolerance if worst else None,
            "resolution": self.resolution,
            "seconds": self.seconds,
            "command": self.command,
        }
