"""gradcheck: a verdict on hand-written gradients that can be trusted.

report = gradcheck.check_pair(forward, backward, (x, weight, bias))
print(report)
report.raise_if_failed()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcheck.harness import check, check_pair
    from gradcheck.judge import Check, Verdict
    from gradcheck.report import GradcheckError, Report

__all__ = ["Check", "GradcheckError", "Report", "Verdict", "check", "check_pair"]

# The pytest plugin imports this package in every run of pytest, with or without a gradient to check: names
# are looked up when they are used, so that nobody waits for NumPy who does not use it.
_HOMES = {
    "Check": "gradcheck.judge",
    "GradcheckError": "gradcheck.report",
    "Report": "gradcheck.report",
    "Verdict": "gradcheck.judge",
    "check": "gradcheck.harness",
    "check_pair": "gradcheck.harness",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
