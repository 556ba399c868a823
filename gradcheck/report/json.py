"""A sweep as JSON, for machines. Numbers that are not finite become null: JSON has none."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from gradcheck.sweep import SCHEMA_VERSION, Result

__all__ = ["render"]

PACKAGES = ("numpy", "numba", "llvmlite")


def render(results: Sequence[Result], seed: int, versions: Mapping[str, str]) -> str:
    """An object with schema_version, seed, versions, and checks: one object per configuration.

    versions: those of what was checked; those of Python and the packages below are added.
    """
    report = {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "versions": {**_versions(), **versions},
        "checks": [_finite(result.as_json()) for result in results],
    }
    return json.dumps(report, indent=1, allow_nan=False)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # installed by other means than a Python package
            continue
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
