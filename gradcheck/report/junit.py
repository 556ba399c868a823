"""A sweep as JUnit XML, as far as its readers agree on it: a suite for each operation, a case for each check."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence

from gradcheck.judge import Verdict
from gradcheck.report.groups import Outcome, explained
from gradcheck.sweep import Result

__all__ = ["render"]

# What XML 1.0 cannot hold, not even escaped.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(outcome: Outcome) -> str:
    """The document. A verdict that is not PASS is a failure, or an error if it is ERROR."""
    root = ElementTree.Element("testsuites", name="gradcheck", **_counts(outcome.results))
    operations: dict[str, list[Result]] = {}
    for result in outcome.results:
        operations.setdefault(result.configuration.operation, []).append(result)
    for operation, results in operations.items():
        suite = ElementTree.SubElement(root, "testsuite", name=operation, **_counts(results))
        for result in results:
            suite.append(_case(result))
    if outcome.interrupted:  # readers look at cases alone: one that is missing would look like one that passed
        suite = ElementTree.SubElement(root, "testsuite", name="sweep", tests="1", failures="0", errors="1")
        case = ElementTree.SubElement(suite, "testcase", classname="gradcheck", name="every configuration")
        ElementTree.SubElement(case, "error", message=str(outcome), type="interrupted")
        root.set("tests", str(len(outcome.results) + 1))
        root.set("errors", str(int(root.get("errors", "0")) + 1))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _counts(results: Sequence[Result]) -> dict[str, str]:
    failed = [result.verdict for result in results if result.verdict is not Verdict.PASS]
    errors = failed.count(Verdict.ERROR)
    return {
        "tests": str(len(results)),
        "failures": str(len(failed) - errors),
        "errors": str(errors),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }


def _case(result: Result) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=f"gradcheck.{_clean(result.configuration.operation)}",
        name=_clean(str(result.configuration)),
        time=f"{result.seconds:.3f}",
    )
    if result.verdict is not Verdict.PASS:
        kind = "error" if result.verdict is Verdict.ERROR else "failure"
        message, *_ = lines = list(explained(result))
        found = ElementTree.SubElement(case, kind, message=_clean(message), type=str(result.verdict))
        found.text = _clean("\n".join(_with_place(result, lines)))
    return case


def _with_place(result: Result, lines: Iterable[str]) -> Iterable[str]:
    yield from lines
    if result.place:
        yield f"backward pass: {result.place}"
    yield f"again: {result.command}"


def _clean(text: str) -> str:
    return FORBIDDEN.sub("�", text)
