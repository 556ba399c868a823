"""One page that holds a whole sweep, and the part of it that shows one check in a notebook.

The page needs neither the network nor scripts to be read: pictures are inside it, figures are text.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gradcheck.judge import Verdict
from gradcheck.regime import regimes
from gradcheck.report import Report
from gradcheck.report.groups import Outcome, failures, groups, worst
from gradcheck.report.html.entry import SYMBOLS, of_report, of_result
from gradcheck.sweep import Result
from gradcheck.sweep.lines import versions

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["MISSING", "available", "fragment", "page"]

MISSING = "HTML needs jinja2, which is not installed; pip install jinja2"
SHOWN = 40
"""How many failures are shown with their pictures: of each operation those that differ in kind come first."""


def available() -> bool:
    """Whether jinja2 is installed."""
    return importlib.util.find_spec("jinja2") is not None


def page(outcome: Outcome) -> str:
    """The page. Raises ModuleNotFoundError where jinja2 is missing."""
    failed = failures(outcome.results)
    shown = _telling(failed)
    anchors = {id(result): f"f{number}" for number, result in enumerate([*shown, *_others(failed, shown)], 1)}
    counts = Counter(result.verdict for result in outcome.results)
    return (
        _environment()
        .get_template("page.html")
        .render(
            outcome=outcome,
            counts=[(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]],
            rows=list(_rows(outcome.results, anchors)),
            regimes=list(regimes(outcome.results).values()),
            entries=[of_result(result, anchors[id(result)]) for result in shown],
            others=[(anchors[id(result)], result) for result in _others(failed, shown)],
            versions=versions(),
        )
    )


def fragment(report: Report) -> str:
    """One check, with its style. Raises ModuleNotFoundError where jinja2 is missing."""
    return _environment().get_template("fragment.html").render(entry=of_report(report))


@functools.cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise ModuleNotFoundError(MISSING, name="jinja2") from None
    environment = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(symbols=SYMBOLS, verdicts=tuple(Verdict))
    environment.filters["small"] = lambda value: "–" if value is None else f"{value:.0e}"
    return environment


def _telling(failed: Sequence[Result]) -> list[Result]:
    """The failures to show in full: the first of each operation and kind, then others, the worst first."""
    kinds: dict[tuple[Any, ...], Result] = {}
    for result in failed:
        sentences = [finding.sentence for finding in result.findings]
        reason = result.reasons[0].partition(":")[0]
        kinds.setdefault((result.configuration.operation, result.verdict, reason, *sentences), result)
    chosen = {id(result) for result in [*kinds.values(), *failed][:SHOWN]}
    more = (result for result in failed if id(result) not in chosen)
    chosen |= {id(result) for result, _ in zip(more, range(SHOWN - len(chosen)), strict=False)}
    return [result for result in failed if id(result) in chosen]


def _others(failed: Iterable[Result], shown: Iterable[Result]) -> list[Result]:
    chosen = {id(result) for result in shown}
    return [result for result in failed if id(result) not in chosen]


def _rows(results: Sequence[Result], anchors: dict[int, str]) -> Iterable[dict[str, Any]]:
    """The rows of the matrix: of each group, its cells and what a table in the terminal says."""
    for operation, name, group in groups(results):
        error, allowed = worst(group)
        counts = Counter(result.verdict for result in group)
        resolutions = [result.resolution for result in group if result.resolution is not None]
        yield {
            "operation": operation,
            "family": name,
            "counts": [(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]],
            "error": error,
            "allowed": allowed,
            "resolution": max(resolutions, default=None),
            "seconds": sum(result.seconds for result in group),
            "cells": [(result, anchors.get(id(result)), *worst([result])) for result in group],
        }
