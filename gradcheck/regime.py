"""Where an operation fails: the setting, or the two, that tell the failures of a sweep from what passed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

from gradcheck.axes import CHANNELLED, Configuration
from gradcheck.judge import Verdict
from gradcheck.sweep import Result, SampleCase

__all__ = ["regimes"]

Case = Configuration | SampleCase
SETTINGS = ("dtype", "mode", "layout", "affine", "values", "eps", "channel_axis", "rank", "groups", "tail")
OF_MASKS = ("p", "scaling", "mask_axes")
SIZES: dict[str, Callable[[Configuration], int]] = {
    "values in a statistic": lambda c: c.count,
    "elements": lambda c: math.prod(c.shape),
    "elements along the last axis": lambda c: c.shape[-1],
    "elements along the first axis": lambda c: c.shape[0],
}
FEWEST = 2
"""Failures below which no rule is sought: any setting would do."""


def regimes(results: Sequence[Result]) -> dict[str, str]:
    """In words, for each operation of which several checks failed, where it fails.

        {"layer_norm": "layer_norm fails only where layout=broadcast (4 of 64)"}

    INCONCLUSIVE and VACUOUS count on neither side. The rule is what separates these results: of few results,
    several rules may by chance.
    """
    cases: dict[str, tuple[list[Case], list[Case]]] = {}
    for result in results:
        failed, passed = cases.setdefault(result.configuration.operation, ([], []))
        if result.verdict in (Verdict.FAIL, Verdict.ERROR):
            failed.append(result.configuration)
        elif result.verdict is Verdict.PASS:
            passed.append(result.configuration)
    return {
        operation: f"{operation} fails {_where(failed, passed)} ({len(failed)} of {len(failed + passed)})"
        for operation, (failed, passed) in cases.items()
        if len(failed) >= FEWEST
    }


def _where(failed: Sequence[Case], passed: Sequence[Case]) -> str:
    if not passed:
        return "everywhere"
    of_failed, of_passed = [_traits(case) for case in failed], [_traits(case) for case in passed]
    always, never = set.intersection(*of_failed), set().union(*of_failed)
    order = list(dict.fromkeys(itertools.chain.from_iterable(map(_ordered, (*failed, *passed)))))
    shared = [trait for trait in order if trait in always]
    rules = [trait for trait in shared if not any(trait in traits for traits in of_passed)]
    rules = rules or list(_thresholds(failed, passed))
    if rules:
        equally = f", or equally: {rules[1]}" if len(rules) > 1 else ""
        return f"only where {rules[0]}{equally}"
    spared = [t for t in order if t not in never and all(t in traits for traits in of_passed)]
    if spared:
        return f"everywhere but where {spared[0]}"
    for one, other in itertools.combinations(shared, 2):
        if not any({one, other} <= traits for traits in of_passed):
            return f"only where {one} and {other}"
    return _mostly(shared, of_failed, of_passed)


def _mostly(shared: Sequence[str], failed: Collection[set[str]], passed: Collection[set[str]]) -> str:
    """The setting of all failures that the fewest passing ones have, where it tells them apart at all."""
    spared = {trait: sum(trait in traits for traits in passed) for trait in shared}
    best = min(shared, key=lambda trait: spared[trait], default=None)
    if best is None or spared[best] == len(passed):
        return "here and there: no one setting tells where"
    return f"only where {best}, though not always: {spared[best]} such pass"


def _thresholds(failed: Sequence[Case], passed: Sequence[Case]) -> Iterator[str]:
    """Sizes that all failures are above or below, and nothing else is."""
    configurations = [c for c in (*failed, *passed) if isinstance(c, Configuration)]
    if len(configurations) < len(failed) + len(passed):
        return
    for words, size in SIZES.items():
        if words == "values in a statistic" and configurations[0].operation == "dropout":
            continue
        bad, good = ([size(c) for c in part if isinstance(c, Configuration)] for part in (failed, passed))
        if min(bad) > max(good):
            yield f"there are {min(bad)} or more {words} (elsewhere at most {max(good)})"
        elif max(bad) < min(good):
            yield f"there are {max(bad)} or fewer {words} (elsewhere at least {min(good)})"


def _traits(case: Case) -> set[str]:
    return set(_ordered(case))


def _ordered(case: Case) -> Iterator[str]:
    """What holds of a case, in words, the plainest first."""
    if isinstance(case, SampleCase):
        yield f"dtype={case.dtype}"
        return
    if case.operation in CHANNELLED and case.shape[0] == 1:
        yield "the batch is 1"
    if case.groups is not None and case.groups == case.channels:
        yield "groups = channels"
    if case.tail == case.rank:
        yield "all axes are normalized"
    for name in (*SETTINGS, *OF_MASKS):
        value = getattr(case, name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(" ", "_")
            yield f"{name}={text}"
    if case.operation != "dropout" and case.mode == "training":
        yield f"a statistic has an {'odd' if case.count % 2 else 'even'} number of values"
