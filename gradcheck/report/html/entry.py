"""What a page shows of one check, whether of a sweep's configuration or of a function in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.report import Report, terminal
from gradcheck.report.groups import other_reasons
from gradcheck.report.html.maps import Map, Row, maps, worst_elements
from gradcheck.report.html.plot import Plot, plot
from gradcheck.sweep import Result

__all__ = ["SYMBOLS", "Entry", "of_report", "of_result"]

SYMBOLS = {
    Verdict.PASS: "✓",
    Verdict.VACUOUS: "○",
    Verdict.INCONCLUSIVE: "?",
    Verdict.FAIL: "✗",
    Verdict.ERROR: "!",
}


@dataclass(frozen=True)
class Found:
    """What was found out about one wrong gradient. terms: name, coefficient, and whether that is 1."""

    input: str
    extent: str
    pattern: str
    norm: str
    terms: tuple[tuple[str, str, bool], ...]
    residual: str
    sentence: str
    maps: tuple[Map, ...]
    elements: tuple[Row, ...]


@dataclass(frozen=True)
class Gradient:
    """The verdict on one gradient, with its figures as text, and the curve where it did not pass."""

    input: str
    verdict: Verdict
    analytic: str
    numeric: str
    resolution: str
    plot: Plot | None


@dataclass(frozen=True)
class Entry:
    """One check, in words and pictures. anchor: its name within the page."""

    anchor: str
    title: str
    verdict: Verdict
    gradients: tuple[Gradient, ...]
    found: tuple[Found, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    place: str
    kernels: tuple[str, ...]
    command: str
    cost: str

    @property
    def symbol(self) -> str:
        """The sign of the verdict, which does not hang on its colour."""
        return SYMBOLS[self.verdict]


def of_result(result: Result, anchor: str) -> Entry:
    """The entry of a configuration or a sample."""
    return Entry(
        anchor=anchor,
        title=str(result.configuration),
        verdict=result.verdict,
        gradients=_gradients(result.checks),
        found=tuple(map(_found, result.findings)),
        reasons=other_reasons(result),
        notes=result.notes,
        place=result.place,
        kernels=tuple(dict.fromkeys((*result.kernels_forward, *result.kernels_vjp))),
        command=result.command,
        cost=f"{result.seconds:.2f} s; seed {result.seed}",
    )


def of_report(report: Report) -> Entry:
    """The entry of a function that was checked by itself."""
    explained = {finding.input for finding in report.findings}
    reasons = [
        f"{check.name}{f' of {check.input}' if check.input else ''}: {check.reason}"
        for check in sorted(report.checks, key=lambda check: -check.verdict)
        if check.reason and not (check.name == "gradient" and check.input in explained)
    ]
    return Entry(
        anchor="",
        title=f"{report.name}   {', '.join(report.inputs)}",
        verdict=report.verdict,
        gradients=_gradients(report.checks),
        found=tuple(map(_found, report.findings)),
        reasons=tuple(reasons),
        notes=report.notes,
        place=report.place,
        kernels=(),
        command=report.again,
        cost=terminal.spent(report),
    )


def _gradients(checks: Sequence[Check]) -> tuple[Gradient, ...]:
    return tuple(
        Gradient(
            input=check.input,
            verdict=check.verdict,
            analytic=f"{check.analytic:.8g}",
            numeric=f"{check.numeric:.8g} ± {check.bar or 0:.1g}",
            resolution="" if check.resolution is None else f"{check.resolution:.1g}",
            plot=None if check.curve is None else plot(check.curve),
        )
        for check in checks
        if check.name == "gradient"
        and check.input
        and check.analytic is not None
        and check.numeric is not None
    )


def _found(finding: Finding) -> Found:
    return Found(
        input=finding.input,
        extent=f"{finding.differing} of {finding.compared} elements differ",
        pattern=finding.pattern,
        norm=finding.norm,
        terms=tuple((name, terminal.coefficient(value), value == 1) for name, value in finding.terms),
        residual=f"{finding.residual or 0.0:.0e}" if finding.terms else "",
        sentence=finding.sentence,
        maps=maps(finding),
        elements=worst_elements(finding),
    )
