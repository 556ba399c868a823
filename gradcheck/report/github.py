"""Failures as annotations of GitHub Actions, which it shows beside the line of the backward pass."""

from __future__ import annotations

import re

from gradcheck.report.groups import Outcome, explained, failures
from gradcheck.sweep import Result

__all__ = ["render"]


def render(outcome: Outcome) -> str:
    """A workflow command on each line, the worst verdict first; then, as a notice, how many there are."""
    lines = [_annotation(result) for result in failures(outcome.results)]
    kind = "warning" if outcome.interrupted else "notice"
    return "\n".join([*lines, f"::{kind} title=gradcheck::{_data(str(outcome))}"])


def _annotation(result: Result) -> str:
    found = re.fullmatch(r"(.+):(\d+)", result.place)
    where = {} if found is None else {"file": found[1], "line": found[2]}
    properties = {**where, "title": f"{result.verdict} {result.configuration}"}
    given = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    lines = [*(" ".join(line.split()) for line in explained(result)), f"again: {result.command}"]
    return f"::error {given}::{_data(chr(10).join(lines))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
