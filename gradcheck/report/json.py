"""A sweep as JSON, for machines. `schema.json`, beside this file, is its JSON Schema."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from gradcheck.report.groups import Outcome
from gradcheck.sweep import SCHEMA_VERSION
from gradcheck.sweep.lines import versions

__all__ = ["render", "schema"]


def render(outcome: Outcome) -> str:
    """An object with what the sweep was, and one object per configuration."""
    report = {
        "schema_version": SCHEMA_VERSION,
        "seed": outcome.seed,
        "versions": versions(),
        "planned": outcome.planned,
        "interrupted": outcome.interrupted,
        "checks": [result.as_json() for result in outcome.results],
    }
    return json.dumps(report, indent=1, allow_nan=False)


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of what `render` makes; `$defs/result` is that of a line of JSON lines."""
    text = resources.files(__package__ or "").joinpath("schema.json").read_text(encoding="utf-8")
    return json.loads(text)
