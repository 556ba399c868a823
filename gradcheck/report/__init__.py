"""The record of one checked pair."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.report import terminal


class GradcheckError(AssertionError):
    """A report that is not a PASS; its text is the report."""


@dataclass(frozen=True, slots=True)
class Report:
    """Every question asked of one pair, with the answers.

    `evaluations` counts calls of forward, `vjps` calls of backward. `findings` says of each wrong gradient
    where and in which term it is wrong, `notes` what else the reader should know, and `again` is a line that
    repeats the check. `place` is where a backward pass that is not right is written, as file:line. `unseen`
    is the share of backward runs in which a race may show and yet have been missed, with 95 % confidence;
    None where the runs were not compared. `str(report)` is meant to be read.
    """

    name: str
    inputs: tuple[str, ...]
    checks: tuple[Check, ...]
    evaluations: int
    vjps: int
    seconds: float
    seed: int
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    again: str = ""
    unseen: float | None = None
    place: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the checks."""
        return max(check.verdict for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not PASS, worst first; empty for a PASS."""
        failing = [check for check in self.checks if check.verdict is not Verdict.PASS]
        return tuple(check.reason for check in sorted(failing, key=lambda check: -check.verdict))

    def raise_if_failed(self) -> None:
        """Raise GradcheckError, an AssertionError, unless the verdict is PASS."""
        if self.verdict is not Verdict.PASS:
            raise GradcheckError(str(self))

    def __str__(self) -> str:
        return terminal.render(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: pictures where jinja2 is installed, and the text where it is not."""
        from gradcheck.report import html

        return html.fragment(self) if html.available() else f"<pre>{escape(str(self))}</pre>"
