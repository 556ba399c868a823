"""Whether a pair repeats: forward, backward over one context and over several, calls in between.

Sums whose order changes from run to run agree to rounding only: that is legal, and noted. A race that loses
updates, a context that wears out, or the state of another call, is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gradcheck import budget
from gradcheck.contract.case import Case
from gradcheck.contract.expected import Difference, Expected
from gradcheck.contract.watch import Run
from gradcheck.judge import Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["backward_repeats", "calls_are_independent", "forward_repeats", "unseen_rate"]

SAME = 16  # backward passes over one context
FRESH = 5  # over contexts of their own; with the first, and two of `calls_are_independent`, 24 in all
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
    apart = _output_apart(case, case.again.output)
    if apart:
        reason = (
            f"stochastic: forward gives another output on the same inputs ({apart}); "
            "fix the seed inside forward, so that every call draws the same numbers"
        )
        raise Violation(Verdict.INCONCLUSIVE, reason)


def _output_apart(case: Case, again: np.ndarray) -> str:
    """How an output on the same inputs differs from the first beyond rounding, which is remembered."""
    if again.tobytes() == case.output.tobytes():
        return ""
    if again.shape != case.output.shape:
        return f"of shape {again.shape} after {case.output.shape}"
    worst = budget.worst(again, case.output)
    if worst.error <= _output_slack(case):
        case.forward_apart = max(case.forward_apart, worst.error / (budget.largest(case.output) or 1.0))
        return ""
    return f"they differ by {worst.error:.1e} at {worst.where}: {worst.got:.8g} and {worst.wanted:.8g}"


def _output_slack(case: Case) -> float:
    subject, stretch = case.subject, STRETCH[case.subject.dtype]
    moved = 0.0
    try:
        for output, _ in budget.jiggled_runs(subject, subject.inputs, [], case.rng, stretch=stretch):
            moved = max(moved, budget.largest(output - case.output))
    except Violation:  # not defined beside this point: what it says is not known
        pass
    floor = budget.rounding_floor(subject.dtype, case.output.size) * budget.largest(case.output)
    return max(floor, budget.SAFETY * moved / stretch)


def backward_repeats(case: Case) -> None:
    """The same backward gives the same gradients, over its context and over contexts of their own."""
    same = (case.run.backward(case.cotangent) for _ in range(SAME))
    _require_alike(case, same, "a second backward over the same context gives another result")
    what = "backward gives another result after the same forward"
    _require_alike(case, _fresh(case, FRESH), what)
    _require_alike(case, _stressed(case), f"{what}, under stress")
    case.agreeing = 1 + SAME + FRESH + case.subject.stress


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


def _require_alike(case: Case, runs: Iterable[tuple[np.ndarray, ...]], what: str) -> None:
    differing: list[int] = []
    first, count = None, 0
    for count, gradients in enumerate(runs, 1):
        wrong = _wrong(case, case.expected, gradients)
        if wrong is not None:
            differing.append(count)
            first = first or wrong
    if first is None:
        return
    when = f"in {len(differing)} of {count} repetitions"
    if differing == list(range(1, count + 1)):
        when = "every time but the first"
    elif differing == list(range(differing[0], count + 1)):
        when = f"from repetition {differing[0]} of {count} on"
    raise Violation(first.verdict, f"{what}, {when}: {first.text}", input=first.input, fatal=False)


def _wrong(case: Case, expected: Expected, gradients: tuple[np.ndarray, ...]) -> Difference | None:
    """The first difference that rounding does not explain; the others are remembered."""
    found = expected.differences(gradients, case.rng, stretch=STRETCH[case.subject.dtype])
    wrong = next((each for each in found if each.verdict is not Verdict.PASS), None)
    if wrong is None:
        case.backward_apart = max([case.backward_apart, *(each.relative for each in found)])
    return wrong


def calls_are_independent(case: Case) -> None:
    """Calls of forward on A, and twice on B, then backward of A and B; then A in the arrays that held B."""
    subject, cotangent = case.subject, case.another_cotangent()
    found = _elsewhere(case, cotangent)
    if found is None:
        return
    other, alone = found
    first = Run.forward(subject, subject.inputs)
    before = first.output.tobytes()
    own = _copies(other)
    second = Run.forward(subject, own)
    if first.output.tobytes() != before:
        raise Violation(
            Verdict.ERROR, "the next forward overwrites the output of the one before; return a new array"
        )
    Run.forward(subject, own)  # where two buffers take turns, the first context is overwritten now
    what = "backward depends on another call of forward than its own"
    _require_own(case, case.expected, first, what)
    _require_own(case, alone, second, what)
    for array, values in zip(own, subject.inputs, strict=True):
        if array is not None and values is not None:
            array[...] = values
    third = Run.forward(subject, own)
    what = "something is kept of an array that has been written in place since"
    apart = _output_apart(case, third.output)
    if apart:
        raise Violation(Verdict.FAIL, f"{what}: forward gives an output of the past ({apart})", fatal=False)
    _require_own(case, case.expected, third, what)
    if case.agreeing:
        case.agreeing += 2


def _require_own(case: Case, expected: Expected, run: Run, what: str) -> None:
    wrong = _wrong(case, expected, run.backward(expected.cotangent))
    if wrong is not None:
        raise Violation(wrong.verdict, f"{what}: {wrong.text}", input=wrong.input, fatal=False)


def _copies(inputs: Arrays) -> Arrays:
    return tuple(None if array is None else array.copy(order="K") for array in inputs)


def _may_roll(subject: Subject, constant: np.ndarray) -> bool:
    """Whether an input without a gradient may be rolled: a mask, statistics, a key, but no table of indices.

    A kernel that trusts its indices would read foreign memory. Integers that are larger than every array here
    are indices of none.
    """
    if constant.dtype.kind in "bf":
        return True
    sizes = [array.size for array in subject.inputs if array is not None]
    return constant.dtype.kind in "iu" and constant.size > 0 and bool(constant.min() > max(sizes))


def _elsewhere(case: Case, cotangent: np.ndarray) -> tuple[Arrays, Expected] | None:
    """Other inputs of the same shapes, with their gradients: the same values elsewhere, or scaled."""
    subject = case.subject

    def scaled(array: np.ndarray) -> np.ndarray:
        return np.asarray(array * array.dtype.type(1.0625))

    def rolled(array: np.ndarray) -> np.ndarray:
        moved = np.roll(array, 1)
        return moved if not np.array_equal(moved, array) else scaled(array)

    moved = subject.moved(rolled)
    rest = set(range(len(moved))) - set(subject.differentiable)
    with_rest = tuple(
        np.roll(array, 1) if array is not None and index in rest and _may_roll(subject, array) else array
        for index, array in enumerate(moved)
    )
    for inputs in (with_rest, moved, subject.moved(scaled)):
        expected = case.at(inputs, cotangent)
        if expected is not None:
            return inputs, expected
    return None
