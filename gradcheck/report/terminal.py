"""A report as plain text for a terminal or an assertion message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.judge import Check, Verdict

if TYPE_CHECKING:
    from gradcheck.report import Report

LABEL = 26


def render(report: Report) -> str:
    """The verdict and the subject, one line per gradient, one per other finding, and what it cost."""
    lines = [f"{report.verdict}  {report.name}   {', '.join(report.inputs)}"]
    quiet = 0
    for check in report.checks:
        if check.name != "gradient" and check.verdict is Verdict.PASS and not check.reason:
            quiet += 1
            continue
        numbers, reason = _numbers(check), f"{check.verdict}: {check.reason}" if check.reason else ""
        if reason and numbers and check.name == "gradient" and check.verdict is Verdict.FAIL:
            numbers = ""  # its reason has them
        texts = [text for text in (numbers, reason) if text]
        for label, text in zip((_label(check), ""), texts, strict=False):
            lines.append(f"  {label:<{LABEL}}{text}")
    spent = f"{report.evaluations} forward and {report.vjps} backward calls, {1e3 * report.seconds:.1f} ms"
    lines.append(f"  {quiet} other checks passed; {spent}; seed {report.seed}")
    return "\n".join(line.rstrip() for line in lines)


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
