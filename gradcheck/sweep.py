"""Many checks: what is run, and the record that each one leaves."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gradcheck.axes import Configuration
from gradcheck.judge import Check, Verdict

__all__ = ["SCHEMA_VERSION", "Result", "run"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """What was found about one configuration.

    kernels_forward, kernels_vjp: the compiled kernels that ran. source: the user's array the check ran on, as words of the command line.
    """

    configuration: Configuration
    seed: int
    checks: tuple[Check, ...]
    kernels_forward: tuple[str, ...]
    kernels_vjp: tuple[str, ...]
    seconds: float
    source: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the checks."""
        return max(check.verdict for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not PASS, worst first."""
        bad = sorted((check for check in self.checks if check.verdict is not Verdict.PASS), key=lambda check: -check.verdict)
        return tuple(f"{check.name}{f' of {check.input}' if check.input else ''}: {check.reason}" for check in bad)

    @property
    def worst(self) -> Check | None:
        """The check that came nearest to its bar, or went furthest beyond it, among the gradients; among all where it failed."""
        measured = [check for check in self.checks if check.error is not None]
        gradients = [check for check in measured if check.name == "gradient"]
        failed = [check for check in measured if check.verdict is self.verdict is not Verdict.PASS]
        return max(failed or gradients or measured, key=lambda check: check.strain, default=None)

    @property
    def resolution(self) -> float | None:
        """The coarsest resolution among the gradients: the smallest relative error that would have been seen. None where all are zero."""
        found = (c.resolution for c in self.checks if c.name == "gradient" and c.resolution is not None)
        return max((resolution for resolution in found if math.isfinite(resolution)), default=None)

    @property
    def command(self) -> str:
        """The command that repeats this check."""
        case = shlex.quote(str(self.configuration))
        return " ".join(["python cli.py gradcheck", *map(shlex.quote, self.source), f"--case {case} --seed {self.seed}"])

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
            "error": worst.error if worst else None,
            "bar": worst.bar if worst else None,
            "tolerance": worst.tolerance if worst else None,
            "resolution": self.resolution,
            "seconds": self.seconds,
            "command": self.command,
        }


def run(configurations: Iterable[Configuration], check: Callable[[Configuration], Result]) -> Iterator[Result]:
    """Check one configuration after the other, giving each result as it comes."""
    for configuration in configurations:
        yield check(configuration)
