"""A report in the format of a name; the module that writes it is imported then."""

from __future__ import annotations

import importlib

from gradcheck.report.groups import Outcome

__all__ = ["render"]

WRITERS = {
    "terminal": "table:as_text",
    "json": "json:render",
    "junit": "junit:render",
    "github": "github:render",
    "html": "html:page",
    "svg": "table:as_svg",
}


def render(outcome: Outcome, name: str) -> str:
    """The whole report in this format."""
    module, _, function = WRITERS[name].partition(":")
    return getattr(importlib.import_module(f"gradcheck.report.{module}"), function)(outcome)
