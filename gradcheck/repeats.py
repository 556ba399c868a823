"""Whether a pair repeats: forward, backward over one context and over several, calls in between.

Sums whose order changes from run to run agree to rounding only: that is legal, and noted. A race that loses
updates, a context that wears out, or the state of another call, is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gradcheck import budget
from gradcheck.case import Case
from gradcheck.expected import Expected
from gradcheck.judge import Verdict
from gradcheck.subject import Arrays, Violation
from gradcheck.watch import Run

__all__ = ["backward_repeats", "calls_are_independent", "forward_repeats", "require_alike", "unseen_rate"]

SAME = 16  # backward passes over one context
FRESH = 6  # over contexts of their own; with the first and that of the aliasing probe, 24 in all
CONFIDENCE = 0.95
# How far inputs are moved beyond a few ulp to see what rounding does, in powers of two by dtype.
STRETCH = {np.dtype(np.float64): 2**10, np.dtype(np.float32): 2**7, np.dtype(np.float16): 2**5}
LARGEST_BLOCK = 2**14  # elements of the arrays that put the memory allocator under pressure


def unseen_rate(runs: int) -> float:
    """How often a difference may show and still have been missed: (1 − p)ⁿ = 5 % for n agreeing runs."""
    return 1 - (1 - CONFIDENCE) ** (1 / runs)


def forward_repeats(case: Case) -> None:
    """Forward gives the same output again."""
    case.again = Run.forward(case.subject, case.subject.inputs)
    again = case.again.output
    if again.tobytes() == case.output.tobytes():
        return
    if again.shape == case.output.shape:
        worst, size = budget.worst(again, case.output), budget.largest(case.output)
        if worst.error <= _output_slack(case):
            case.notes.append(
                f"forward is not bit-reproducible: two runs differ by {worst.error / size:.1e} of the "
                "largest element, within rounding, as sums in a changing order do"
            )
            return
        apart = f"they differ by {worst.error:.1e} at {worst.where}: {worst.got:.8g} and {worst.wanted:.8g}"
    else:
        apart = f"of shape {again.shape} after {case.output.shape}"
    reason = (
        f"stochastic: forward gives another output on the same inputs ({apart}); "
        "fix the seed inside forward, so that every call draws the same numbers"
    )
    raise Violation(Verdict.INCONCLUSIVE, reason)


def _output_slack(case: Case) -> float:
    subject, stretch = case.subject, STRETCH[case.subject.dtype]
    moved = max(
        budget.largest(output - case.output)
        for output, _ in budget.jiggled_runs(subject, subject.inputs, [], case.rng, stretch=stretch)
    )
    floor = budget.rounding_floor(subject.dtype, case.output.size) * budget.largest(case.output)
    return max(floor, budget.SAFETY * moved / stretch)


def backward_repeats(case: Case) -> None:
    """The same backward gives the same gradients, over its context and over contexts of their own."""
    same = (case.run.backward(case.cotangent) for _ in range(SAME))
    require_alike(case, case.expected, same, "a second backward over the same context gives another result")
    what = "backward gives another result after the same forward"
    require_alike(case, case.expected, _fresh(case, FRESH), what)
    require_alike(case, case.expected, _stressed(case), f"{what}, under stress")
    runs = 2 + SAME + FRESH + case.subject.stress
    more = "" if case.subject.stress else "; stress=1000 for rarer ones"
    case.notes.append(
        f"{runs} backward runs agree: a difference that shows in more than {100 * unseen_rate(runs):.2g} % "
        f"of the runs would have been seen ({100 * CONFIDENCE:.0f} %){more}"
    )


def _fresh(case: Case, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    for _ in range(count):
        yield Run.forward(case.subject, case.subject.inputs).backward(case.cotangent)


def _stressed(case: Case) -> Iterator[tuple[np.ndarray, ...]]:
    """Repetitions while the memory is in use elsewhere, and other backward passes come in between."""
    occupied: list[np.ndarray] = []
    for k in range(case.subject.stress):
        occupied.append(np.full(case.rng.integers(1, LARGEST_BLOCK), np.nan))
        if len(occupied) > 8:
            occupied.pop(int(case.rng.integers(len(occupied))))
        if k % 3 == 0:
            case.run.backward(case.second)
        if k % 2:
            yield case.run.backward(case.cotangent)
        else:
            yield from _fresh(case, 1)


def require_alike(case: Case, expected: Expected, runs: Iterable[tuple[np.ndarray, ...]], what: str) -> None:
    differing, first, count, relative = [], None, 0, 0.0
    for count, gradients in enumerate(runs, 1):
        found = expected.differences(gradients, case.rng, stretch=STRETCH[case.subject.dtype])
        beyond = next((each for each in found if each.beyond), None)
        relative = max([relative, *(each.relative for each in found)])
        if beyond is not None:
            differing.append(count)
            first = first or beyond
    if first is not None:
        when = f"in {len(differing)} of {count} repetitions"
        if differing == list(range(1, count + 1)):
            when = "every time but the first"
        elif differing == list(range(differing[0], count + 1)):
            when = f"from repetition {differing[0]} of {count} on"
        reason = f"{what}, {when}: {first.text}"
        raise Violation(Verdict.FAIL, reason, input=first.input, fatal=False)
    if relative:
        case.notes.append(
            f"backward is not bit-reproducible: runs differ by {relative:.1e} of the largest element, "
            "within rounding, as sums in a changing order do"
        )


def calls_are_independent(case: Case) -> None:
    """forward A, forward B, backward A, backward B, against each alone."""
    subject, cotangent = case.subject, case.another_cotangent()
    found = _elsewhere(case, cotangent)
    if found is None:
        return
    other, alone = found
    first = Run.forward(subject, subject.inputs)
    before = first.output.tobytes()
    second = Run.forward(subject, other)
    if first.output.tobytes() != before:
        raise Violation(
            Verdict.ERROR, "the next forward overwrites the output of the one before; return a new array"
        )
    what = "backward depends on another call of forward than its own"
    for run, expected in ((first, case.expected), (second, alone)):
        gradients = run.backward(expected.cotangent)
        found_here = expected.differences(gradients, case.rng, stretch=STRETCH[subject.dtype])
        for difference in found_here:
            if difference.beyond:
                reason = f"{what}: {difference.text}"
                raise Violation(Verdict.FAIL, reason, input=difference.input, fatal=False)


def _elsewhere(case: Case, cotangent: np.ndarray) -> tuple[Arrays, Expected] | None:
    """Other inputs of the same shapes, with their gradients: the same values elsewhere, or scaled."""

    def scaled(array: np.ndarray) -> np.ndarray:
        return np.asarray(array * array.dtype.type(1.0625))

    def rolled(array: np.ndarray) -> np.ndarray:
        moved = np.roll(array, 1)
        return moved if not np.array_equal(moved, array) else scaled(array)

    for move in (rolled, scaled):
        inputs = case.subject.moved(move)
        expected = case.at(inputs, cotangent)
        if expected is not None:
            return inputs, expected
    return None
