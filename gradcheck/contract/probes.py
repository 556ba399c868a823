"""The promises of a pair that need no derivative: what it returns, leaves alone, repeats, and how it scales.

Each probe raises a Violation for a promise broken. The probes run on the inputs' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gradcheck.contract import repetition
from gradcheck.contract.case import Case, first_run
from gradcheck.contract.expected import Difference, Expected
from gradcheck.contract.layouts import LAYOUTS, expansions
from gradcheck.contract.linearity import linear_in_the_cotangent
from gradcheck.contract.masks import masks_agree
from gradcheck.contract.watch import Run
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["Probed", "probe"]

ACCUMULATED = 1.0


class Probed(NamedTuple):
    """The answers, whether numbers may be taken from the pair at all, and what the reader should know.

    unseen: in what share of the runs a race may show and yet be missed; None where runs were not compared.
    """

    checks: list[Check]
    sound: bool
    notes: tuple[str, ...] = ()
    unseen: float | None = None


def probe(subject: Subject, rng: np.random.Generator) -> Probed:
    """Run the probes."""
    try:
        case = first_run(subject, rng)
    except Violation as broken:
        return Probed([_as_check("call", broken)], False)
    checks, sound = [Check("call", Verdict.PASS)], True
    told = False
    for name, question in PROBES.items():
        if told and name in FOLLOWING:
            continue
        try:
            question(case)
        except Violation as broken:
            checks.append(_as_check(name, broken))
            told |= name in TELLING and broken.verdict is Verdict.FAIL
            if broken.fatal:
                sound = False
                break
        else:
            checks.append(Check(name, Verdict.PASS))
    unseen = repetition.unseen_rate(case.agreeing) if case.agreeing else None
    return Probed(checks, sound, _notes(case), unseen)


def _notes(case: Case) -> tuple[str, ...]:
    notes = [
        f"{who} is not bit-reproducible: runs differ by {apart:.1e} of the largest element, within rounding, "
        "as sums in a changing order do"
        for who, apart in (("forward", case.forward_apart), ("backward", case.backward_apart))
        if apart
    ]
    if case.refused:
        more = f", and {len(case.refused) - 1} others" if len(case.refused) > 1 else ""
        notes.append(f"memory layouts: forward refuses some, which were not checked{more}: {case.refused[0]}")
    if case.subject.generator.used:
        notes.append(
            "np.random: every forward started from one state of NumPy's global generator, "
            "every backward from the state that its own forward left"
        )
    return tuple(notes)


def _as_check(name: str, broken: Violation) -> Check:
    return Check(name, broken.verdict, broken.reason, broken.input)


def _aliasing(case: Case) -> None:
    """No gradient shares memory with an input, a saved value, the cotangent or another gradient.

    A framework may hand the cotangent on, as long as accumulating into one gradient leaves the others alone.
    """
    subject, run = case.subject, case.again or Run.forward(case.subject, case.subject.inputs)
    cotangent = case.cotangent.copy()
    gradients = run.backward(cotangent)
    inputs = zip(subject.names, subject.inputs, strict=True)
    foreign = [(f"input {name}", array) for name, array in inputs if array is not None]
    foreign += [("a saved array", array) for array in run.saved]
    foreign += [("an array of the state", array) for array in run.context.state]
    foreign += [] if subject.framework else [("the cotangent", cotangent)]
    names = subject.wanted_names()
    for name, gradient in zip(names, gradients, strict=True):
        for what, array in foreign:
            if np.shares_memory(gradient, array):
                reason = f"the gradient of {name} shares memory with {what}; return a copy"
                raise Violation(Verdict.ERROR, reason, input=name)
    for k, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
        for other, second in zip(names[:k], gradients[:k], strict=True):
            if np.shares_memory(gradient, second) and (
                not subject.framework or _accumulating_changes(gradient, second)
            ):
                reason = f"the gradients of {other} and {name} share memory: adding to one changes the other"
                raise Violation(Verdict.ERROR, reason, input=name)


def _accumulating_changes(gradient: np.ndarray, other: np.ndarray) -> bool:
    if not gradient.flags.writeable:
        return False
    before = other.tobytes()
    gradient += gradient.dtype.type(ACCUMULATED)
    return other.tobytes() != before


def _returned_arrays_last(case: Case) -> None:
    """What backward returned stays as it is when backward runs again."""
    case.run.backward(case.second)
    for name, kept, old in zip(
        case.subject.wanted_names(), case.returned, case.expected.gradients, strict=True
    ):
        if kept.tobytes() != old.tobytes():
            reason = f"the gradient of {name} changed after it was returned, when backward ran again"
            raise Violation(Verdict.ERROR, f"{reason}; return a new array", input=name)


def _layouts(case: Case) -> None:
    """The same numbers in another memory layout give the same gradients: as cotangent, as inputs, as both.

    A kernel that looks at the strides of its first input alone is seen when the others are laid out anew.
    """
    subject, inputs, run = case.subject, case.subject.inputs, case.run
    misread: dict[str, Difference] = {}
    foremost, *others = (k for k, array in enumerate(inputs) if array is not None and k not in subject.state)

    def compare(what: str, run: Run, cotangent: np.ndarray, expected: Expected) -> None:
        try:
            got = run.backward(cotangent)
        except Violation as broken:
            reason = f"for {what}, {broken.reason}"
            raise Violation(broken.verdict, reason, input=broken.input, fatal=broken.fatal) from broken
        wrong = [each for each in expected.differences(got, case.rng) if each.verdict is not Verdict.PASS]
        if wrong:
            misread[what] = wrong[0]

    def forward(what: str, moved: Arrays) -> Run | None:
        """A run on these inputs; None where forward refuses them, which is no wrong gradient."""
        try:
            return Run.forward(subject, moved)
        except Violation as broken:
            if broken.__cause__ is None:
                raise
            case.refused.append(f"{what}: {broken.reason}")
            return None

    for label, lay in LAYOUTS.items():
        compare(f"a {label} cotangent", run, lay(case.cotangent), case.expected)
        if case.cotangent.ndim or any(x.ndim for x in subject.wanted()):
            moved = forward(f"{label} inputs", subject.moved(lay))
            if moved is not None:
                compare(f"{label} inputs", moved, case.cotangent, case.expected)
                compare(f"{label} inputs and cotangent", moved, lay(case.cotangent), case.expected)
        if others:
            what = f"{label} inputs other than {subject.names[foremost]}"
            moved = forward(what, _laid(inputs, others, lay))
            if moved is not None:
                compare(what, moved, case.cotangent, case.expected)
    for label, expanded in expansions(case.cotangent):
        dense = expanded.copy()
        expected = Expected(subject, inputs, case.output, dense, run.backward(dense))
        compare(f"a cotangent {label}", run, expanded, expected)
    spread = subject.moved(lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim else array)
    dense_inputs = tuple(None if array is None else array.copy() for array in spread)
    at_dense = case.at(dense_inputs, case.cotangent)
    if at_dense is not None:
        try:
            moved = Run.forward(subject, spread)
            compare("inputs expanded along axis 0 (stride 0)", moved, case.cotangent, at_dense)
        except Violation:  # the points next to one that the harness made up need not be legal either
            pass
    if misread:
        first = next(iter(misread.values()))
        reason = f"a memory layout is misread, only for {', '.join(misread)}: {first.text}"
        raise Violation(first.verdict, reason, input=first.input, fatal=False)


def _laid(inputs: Arrays, chosen: Sequence[int], lay: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return tuple(
        lay(array) if array is not None and index in chosen else array for index, array in enumerate(inputs)
    )


PROBES: dict[str, Callable[[Case], None]] = {
    "forward repeats": repetition.forward_repeats,
    "memory is not shared": _aliasing,
    "returned arrays last": _returned_arrays_last,
    "backward repeats": repetition.backward_repeats,
    "calls are independent": repetition.calls_are_independent,
    "masks agree": masks_agree,
    "memory layouts": _layouts,
    "linear in the cotangent": linear_in_the_cotangent,
}
# Each of the last questions would be answered by a fault in an earlier one of the first, and accuse it twice.
TELLING = {"backward repeats", "calls are independent", "masks agree"}
FOLLOWING = {"calls are independent", "memory layouts", "linear in the cotangent"}
