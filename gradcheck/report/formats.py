"""The formats of a report: their names, their suffixes, and who writes them."""

from __future__ import annotations

import importlib
import importlib.util

from gradcheck.report.groups import Outcome

__all__ = ["AS_THEY_COME", "FORMATS", "SUFFIXES", "missing", "render"]

AS_THEY_COME = "jsonl"
"""The format in which each result is written at once, by gradcheck.sweep."""

_WRITERS = {
    "terminal": "table:as_text",
    "json": "json:render",
    "junit": "junit:render",
    "github": "github:render",
    "html": "html:page",
    "svg": "table:as_svg",
}
FORMATS = (*_WRITERS, AS_THEY_COME)
SUFFIXES = {
    ".txt": "terminal",
    ".json": "json",
    ".jsonl": AS_THEY_COME,
    ".xml": "junit",
    ".html": "html",
    ".svg": "svg",
}


def missing(name: str) -> str:
    """What has to be installed before this format can be written; empty where nothing has."""
    if name == "html" and importlib.util.find_spec("jinja2") is None:
        return importlib.import_module("gradcheck.report.html").MISSING
    return ""


def render(outcome: Outcome, name: str) -> str:
    """The whole report in this format."""
    module, _, function = _WRITERS[name].partition(":")
    return getattr(importlib.import_module(f"gradcheck.report.{module}"), function)(outcome)
