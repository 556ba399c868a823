"""A sweep's results in groups, as its tables show them, and in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradcheck.axes import DTYPES, MODES
from gradcheck.configurations import family
from gradcheck.judge import Verdict
from gradcheck.report import terminal
from gradcheck.sweep import Result

__all__ = ["Outcome", "explained", "failures", "groups", "other_reasons", "worst"]


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep.

    seconds: how long it took. planned: how many checks there were to be; None where that is not known.
    interrupted: whether it was stopped before all were made.
    """

    results: Sequence[Result]
    seed: int
    seconds: float
    planned: int | None = None
    interrupted: bool = False

    @property
    def verdict(self) -> Verdict:
        """The worst verdict; of no results, PASS."""
        return max((result.verdict for result in self.results), default=Verdict.PASS)

    def __str__(self) -> str:
        """One line: how many configurations, where if not on the CPU, how many of each verdict, how long, and
        whether that is all.
        """
        counts = Counter(result.verdict for result in self.results)
        shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        others = dict.fromkeys(result.device for result in self.results if result.device != "cpu")
        place = f" on {' and '.join(others)}" if others else ""
        number = f"{len(self.results)} configuration{'' if len(self.results) == 1 else 's'}{place}"
        if not self.interrupted:
            return f"{number}: {shown} in {self.seconds:.1f} s"
        whole = "" if self.planned is None else f" of {self.planned}"
        checked = f": {shown}" if shown else ""
        done = f"{len(self.results)}{whole} configurations{place}"
        return f"interrupted after {done}{checked} in {self.seconds:.1f} s"


def groups(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """(operation, family, results) for each row of a table, in its order."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.configuration.operation, family(result.configuration)), []).append(result)
    order = list(dict.fromkeys(operation for operation, _ in found))

    def place(item: tuple[tuple[str, str], list[Result]]) -> tuple[Any, ...]:
        (operation, name), (first, *_) = item
        c = first.configuration
        return order.index(operation), name.startswith("corners"), MODES.index(c.mode), DTYPES.index(c.dtype)

    for (operation, name), group in sorted(found.items(), key=place):
        yield operation, name, group


def worst(group: Sequence[Result]) -> tuple[str, str]:
    """The error that came nearest to what is allowed, and what is allowed there; or nothing."""
    checks = [(result.verdict, check) for result in group if (check := result.worst) is not None]
    if not checks:
        return "", ""
    _, check = max(checks, key=lambda item: (item[0], item[1].strain))
    return f"{check.error or 0:.1e}", f"{check.allowed:.1e}"


def failures(results: Sequence[Result]) -> list[Result]:
    """Those that are not PASS, the worst verdict first."""
    return sorted((r for r in results if r.verdict is not Verdict.PASS), key=lambda r: -r.verdict)


def other_reasons(result: Result) -> tuple[str, ...]:
    """The reasons of which no finding says more."""
    found = tuple(f"gradient of {finding.input}: " for finding in result.findings)
    return tuple(reason for reason in result.reasons if not reason.startswith(found))


def explained(result: Result) -> Iterator[str]:
    """Why the verdict is not PASS, in lines of text: the mistake in words first, where it was found."""
    yield from (finding.sentence for finding in result.findings if finding.sentence)
    for finding in result.findings:
        yield from (line for line in terminal.finding_lines(finding, small=True) if not line.startswith("→"))
    yield from other_reasons(result)
