"""How often something happened, and how often it may happen at most."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterable
from importlib import metadata

from gradcheck.judge import Verdict

__all__ = ["ALARMS", "tally", "upper_bound", "versions"]

ALARMS = (Verdict.FAIL, Verdict.ERROR)
CONFIDENCE = 0.95


def upper_bound(events: int, trials: int) -> float:
    """The 95 % upper bound of a rate (Clopper and Pearson, 1934): 3/n, nearly, where nothing happened.

    It is the p for which so few events, or fewer, would be seen in one of twenty runs.
    """
    if trials == 0 or events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, trials: int, p: float) -> float:
    """The probability of at most so many events, each of probability 0 < p < 1."""
    logarithms = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(p) + (trials - k) * math.log1p(-p)
        for k in range(events + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, logarithms))


def tally(verdicts: Iterable[Verdict]) -> str:
    """A count of each verdict, as one row of a table."""
    count = Counter(verdicts)
    return "".join(f"{count[verdict]:>14,}" for verdict in Verdict)


def versions(*packages: str) -> str:
    """Those of Python and of installed packages, for the foot of a table."""
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)]
    )
