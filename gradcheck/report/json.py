"""A sweep as JSON, for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gradcheck.sweep import SCHEMA_VERSION, Result
from gradcheck.sweep.lines import versions

__all__ = ["render"]


def render(results: Sequence[Result], seed: int) -> str:
    """An object with schema_version, seed, versions, and checks: one object per configuration."""
    report = {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "versions": versions(),
        "checks": [result.as_json() for result in results],
    }
    return json.dumps(report, indent=1, allow_nan=False)
