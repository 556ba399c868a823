"""The kill matrix as text and as JSON."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from gradcheck.judge import Verdict
from gradcheck.mutants.matrix import Outcome

__all__ = ["as_json", "as_text", "faults", "summary", "versions"]

SCHEMA_VERSION = 1
COLUMNS = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.VACUOUS, Verdict.PASS)


def faults(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What speaks against the checker or the set: survivors without a reason, and right pairs accused."""
    return [outcome for outcome in outcomes if outcome.caught != outcome.to_be_caught]


def as_text(outcomes: Sequence[Outcome], seed: int) -> str:
    """The matrix kind × verdict, then every survivor with its reason."""
    lines = [_row("", "all", *(str(verdict) for verdict in COLUMNS), "not to be caught")]
    for source in dict.fromkeys(outcome.source for outcome in outcomes):
        lines += ["", source]
        those = [outcome for outcome in outcomes if outcome.source == source]
        kinds = dict.fromkeys(outcome.kind for outcome in those)
        for kind in kinds:
            lines.append(_counts(kind, [outcome for outcome in those if outcome.kind == kind]))
        if len(kinds) > 1:
            lines.append(_counts("together", those))
    wrong = faults(outcomes)
    lines += _listed("Faults", wrong)
    survivors = [o for o in outcomes if o.source != "controls" and not o.caught and o not in wrong]
    lines += _by_reason(survivors)
    lines += ["", f"seed {seed}; " + ", ".join(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines)


def as_json(outcomes: Sequence[Outcome], seed: int) -> str:
    """An object with schema_version, seed, versions, and outcomes: one object for each pair."""
    entries = [
        {
            "source": outcome.source,
            "kind": outcome.kind,
            "operation": outcome.operation,
            "name": outcome.name,
            "mistake": outcome.mistake,
            "verdict": str(outcome.verdict),
            "configuration": outcome.case,
            "reason": outcome.reason,
            "checks": outcome.checks,
            "seconds": outcome.seconds,
            "invisible": outcome.invisible,
            "fault": outcome.caught != outcome.to_be_caught,
        }
        for outcome in outcomes
    ]
    document = {"schema_version": SCHEMA_VERSION, "seed": seed, "versions": versions(), "outcomes": entries}
    return json.dumps(document, indent=1)


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """One line: how many were caught of those to be caught, how many false alarms, how long."""
    wanted = [outcome for outcome in outcomes if outcome.to_be_caught]
    rest = len(outcomes) - len(wanted)
    accused = sum(outcome.caught for outcome in outcomes if not outcome.to_be_caught)
    caught = sum(outcome.caught for outcome in wanted)
    return f"{caught} of {len(wanted)} caught, {accused} of {rest} others accused, in {seconds:.0f} s"


def versions() -> dict[str, str]:
    """Those of Python and NumPy."""
    return {"Python": platform.python_version(), "NumPy": metadata.version("numpy")}


def _counts(label: str, outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    spared = sum(not outcome.to_be_caught for outcome in outcomes)
    return _row("  " + label, len(outcomes), *(counts[verdict] or "" for verdict in COLUMNS), spared or "")


def _row(label: str, *cells: Any) -> str:
    widths = (6, 7, 6, 14, 9, 6, 18)
    return f"{label:<16}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _by_reason(survivors: Sequence[Outcome]) -> list[str]:
    """The survivors that need not be caught, below the reason that they share."""
    lines = ["", f"Survivors that no check can see: {len(survivors)}"] if survivors else []
    for reason in dict.fromkeys(outcome.invisible for outcome in survivors):
        lines.append(f"  {reason}:")
        lines += [f"    {o.name}: {o.mistake}" for o in survivors if o.invisible == reason]
    return lines


def _listed(title: str, outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return []
    lines = ["", f"{title}: {len(outcomes)}"]
    for outcome in outcomes:
        lines.append(f"  {outcome.verdict}  {outcome.kind}: {outcome.name}: {outcome.mistake}")
        why = " ".join((outcome.case, outcome.reason)).strip()
        lines += [f"        {why}"] if why else []
    return lines
