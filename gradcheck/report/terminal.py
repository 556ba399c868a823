"""A report as plain text for a terminal or an assertion message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.report.picture import picture

if TYPE_CHECKING:
    from gradcheck.report import Report

LABEL = 26  # the width of the first column, with the two blanks that end it


def render(report: Report) -> str:
    """The verdict and the subject, what was found out about each gradient, other findings, and the cost."""
    lines = [f"{report.verdict}  {report.name}   {', '.join(report.inputs)}"]
    found = {finding.input: finding for finding in report.findings}
    quiet = 0
    for check in report.checks:
        if check.name != "gradient" and check.verdict is Verdict.PASS and not check.reason:
            quiet += 1
            continue
        if check.name == "gradient" and check.verdict is Verdict.FAIL and check.input in found:
            lines += [f"  {line}" for line in finding_lines(found[check.input])]
        else:
            lines += _check_lines(check)
    lines += [f"  note: {note}" for note in report.notes]
    lines.append(f"  {quiet} other checks passed; {spent(report)}")
    if report.verdict is not Verdict.PASS and report.again:
        lines.append(f"  again: {report.again}")
    return "\n".join(line.rstrip() for line in lines)


def spent(report: Report) -> str:
    """What the report cost, and what it could not see."""
    time = f"{1e3 * report.seconds:.1f} ms" if report.seconds < 1 else f"{report.seconds:.1f} s"
    text = f"{report.evaluations} forward and {report.vjps} backward calls, {time}; seed {report.seed}"
    if report.unseen is None:
        return text
    rate = f"{100 * report.unseen:.2g} %"
    return f"{text}\n  a race in fewer than {rate} of the runs would not be seen (stress= repeats more)"


def finding_lines(finding: Finding, small: bool = False) -> list[str]:
    """The worst element of a wrong gradient, the pattern of the error, the terms, the mistake in words.

    small: without the picture.
    """
    element = (
        f"d{finding.input}[{', '.join(map(str, finding.index))}]" if finding.index else f"d{finding.input}"
    )
    numbers = f"analytic {finding.analytic:.8g}   numeric {finding.numeric:.8g} ± {finding.bar:.1g}"
    apart = abs(finding.analytic - finding.numeric)
    if finding.analytic and finding.numeric and apart > 1e-3 * abs(finding.numeric):
        numbers += f"   ratio {finding.analytic / finding.numeric:.4g}"
    extent = f"{finding.differing} of {finding.compared} elements differ"
    lines = [
        _labelled(element, numbers),
        _labelled("", f"{extent}; {finding.pattern}" if finding.pattern else extent),
    ]
    lines += [] if small else [_labelled("", line) for line in picture(finding)]
    if finding.norm:
        lines.append(_labelled("recognised", finding.norm))
    if finding.terms:
        terms = "   ".join(f"{name} {coefficient(value)}" for name, value in finding.terms)
        lines.append(_labelled("terms", f"{terms}   residual {finding.residual or 0.0:.0e}"))
    if finding.sentence:
        lines.append(f"→ {finding.sentence}")
    return lines


def coefficient(value: float) -> str:
    """Four digits, or as many as show how far from −1, 0 or 1 it is: the diagnosis took out the noise."""
    whole = float(round(value))
    apart = 0.1 * abs(value - whole) if abs(whole) <= 1 else math.inf
    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if abs(float(text) - value) <= apart), repr(value))


def _check_lines(check: Check) -> list[str]:
    numbers, reason = _numbers(check), f"{check.verdict}: {check.reason}" if check.reason else ""
    if reason and numbers and check.name == "gradient" and check.verdict is Verdict.FAIL:
        numbers = ""  # its reason has them
    texts = [text for text in (numbers, reason) if text]
    return ["  " + _labelled(label, text) for label, text in zip((_label(check), ""), texts, strict=False)]


def _labelled(label: str, text: str) -> str:
    return f"{label:<{LABEL - 2}}  {text}"


def _label(check: Check) -> str:
    if check.name == "gradient" and check.input is not None:
        return f"d{check.input}"
    return check.name if check.input is None else f"{check.name} d{check.input}"


def _numbers(check: Check) -> str:
    if check.analytic is None or check.numeric is None or check.bar is None:
        return ""
    if check.name != "gradient":
        return f"got {check.analytic:.8g}   wanted {check.numeric:.8g}"
    numbers = f"analytic {check.analytic:.8g}   numeric {check.numeric:.8g} ± {check.bar:.1g}"
    return numbers if check.resolution is None else f"{numbers}   resolution {check.resolution:.1g}"
