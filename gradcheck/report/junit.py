"""A sweep as JUnit XML, the part that its readers agree on: a suite per operation, a case per result."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from gradcheck.judge import Verdict
from gradcheck.report.groups import Outcome, explained
from gradcheck.sweep import Result

__all__ = ["render"]

# What XML 1.0 cannot hold, not even escaped.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(outcome: Outcome) -> str:
    """The document. A verdict that is not PASS is a failure, or an error if it is ERROR."""
    root = ElementTree.Element("testsuites", {"name": "gradcheck", **_counts(outcome.results)})
    operations: dict[str, list[Result]] = {}
    for result in outcome.results:
        operations.setdefault(result.configuration.operation, []).append(result)
    for operation, results in operations.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(operation), **_counts(results)})
        suite.extend(map(_case, results))
    if outcome.interrupted:
        root.append(_unfinished(outcome))
        for name in ("tests", "errors"):
            root.set(name, str(int(root.attrib[name]) + 1))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _unfinished(outcome: Outcome) -> ElementTree.Element:
    """A case that is an error: readers look at cases alone, and one that is missing cannot fail."""
    counts = {"tests": "1", "failures": "0", "errors": "1", "time": "0"}
    suite = ElementTree.Element("testsuite", {"name": "sweep", **counts})
    case = ElementTree.SubElement(suite, "testcase", classname="gradcheck", name="every configuration")
    ElementTree.SubElement(case, "error", message=str(outcome), type="interrupted")
    return suite


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
        lines += [f"backward pass: {result.place}"] if result.place else []
        lines.append(f"again: {result.command}")
        found = ElementTree.SubElement(case, kind, message=_clean(message), type=str(result.verdict))
        found.text = _clean("\n".join(lines))
    return case


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
