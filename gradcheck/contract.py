"""The promises of a pair that need no derivative: what it returns, leaves alone, repeats, and how it scales.

Each probe raises a Violation for the first promise broken. The probes run on the inputs' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck import budget
from gradcheck.judge import Check, Verdict
from gradcheck.subject import Arrays, Subject, Violation

REPEATS_SAME = 16  # backward passes over one context
REPEATS_FRESH = 7  # over contexts of their own; with the first, 24 in all
UNDERFLOW = 16  # subnormal numbers that any result may be off by
ACCUMULATED = 1.0


@dataclass(slots=True)
class Case:
    """The first run of the pair, which the probes compare every later one with."""

    subject: Subject
    rng: np.random.Generator
    cotangent: np.ndarray
    output: np.ndarray
    saved: Any
    gradients: tuple[np.ndarray, ...]  # copies of what backward returned
    returned: tuple[np.ndarray, ...]  # the arrays themselves: they may be buffers that later calls overwrite
    slack: list[float]
    lowered: bool  # whether the cotangent is small lest a gradient overflow

    @property
    def inputs(self) -> Arrays:
        return self.subject.inputs

    def backward_of(self, inputs: Arrays, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gradients from a context of their own."""
        _, saved = forward_kept(self.subject, inputs)
        return backward_kept(self.subject, inputs, saved, cotangent)

    def compare(self, gradients: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], what: str) -> None:
        """Require equal bits."""
        for name, got, want in zip(self.subject.wanted_names(), gradients, wanted, strict=True):
            if got.tobytes() != want.tobytes():
                apart = _relative(got, want)
                raise Violation(
                    Verdict.FAIL,
                    f"{what}: the gradient of {name} differs by {apart:.1e}",
                    input=name,
                    fatal=False,
                )

    def compare_rounded(
        self,
        gradients: tuple[np.ndarray, ...],
        wanted: tuple[np.ndarray, ...],
        allowed: list[float],
        what: str,
    ) -> None:
        """Require equality up to the rounding that was measured."""
        for name, got, want, slack in zip(
            self.subject.wanted_names(), gradients, wanted, allowed, strict=True
        ):
            error = float(np.max(np.abs(got - want)))
            if not error <= slack + UNDERFLOW * float(np.finfo(got.dtype).smallest_subnormal):
                reason = (
                    f"{what}: the gradient of {name} is off by {error:.1e}; rounding explains {slack:.1e}"
                )
                raise Violation(Verdict.FAIL, reason, input=name, fatal=False)


def probe(subject: Subject, rng: np.random.Generator) -> tuple[list[Check], bool]:
    """Run the probes; return their checks and whether numbers may be taken from the pair at all."""
    try:
        case = _first_run(subject, rng)
    except Violation as broken:
        return [_as_check("call", broken)], False
    checks = [Check("call", Verdict.PASS)]
    for name, question in PROBES.items():
        try:
            question(case)
        except Violation as broken:
            checks.append(_as_check(name, broken))
            if broken.fatal:
                return checks, False
        else:
            checks.append(Check(name, Verdict.PASS))
    return checks, True


def _as_check(name: str, broken: Violation) -> Check:
    return Check(name, broken.verdict, broken.reason, broken.input)


def forward_kept(subject: Subject, inputs: Arrays) -> tuple[np.ndarray, Any]:
    """Call forward and require the inputs to be left as they were."""
    before = _fingerprints(inputs)
    output, saved = subject.run_forward(inputs)
    _require_kept(subject, inputs, before, "forward")
    return output, saved


def backward_kept(
    subject: Subject, inputs: Arrays, saved: Any, cotangent: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Call backward and require inputs, cotangent and saved arrays to be left as they were."""
    before, kept = _fingerprints(inputs), list(_arrays_in(saved, walk_objects=not subject.framework))
    cotangent_before, saved_before = cotangent.tobytes(), [array.tobytes() for array in kept]
    gradients = subject.run_backward(saved, cotangent)
    _require_kept(subject, inputs, before, "backward")
    if cotangent.tobytes() != cotangent_before:
        raise Violation(Verdict.ERROR, "backward modified its cotangent; work on a copy")
    if [array.tobytes() for array in kept] != saved_before:
        raise Violation(
            Verdict.ERROR, "backward modified an array that forward saved; a second backward would be wrong"
        )
    return gradients


def _require_kept(subject: Subject, inputs: Arrays, before: list[bytes | None], who: str) -> None:
    for name, old, new in zip(subject.names, before, _fingerprints(inputs), strict=True):
        if old != new:
            raise Violation(Verdict.ERROR, f"{who} modified its input {name}; work on a copy", input=name)


def _fingerprints(inputs: Arrays) -> list[bytes | None]:
    return [None if array is None else array.tobytes() for array in inputs]


def _arrays_in(saved: Any, *, walk_objects: bool, depth: int = 4) -> Iterator[np.ndarray]:
    """The arrays in what forward saved; a framework's objects hold graphs, so those are not walked."""
    if isinstance(saved, np.ndarray):
        yield saved
        return
    if isinstance(saved, dict):
        inner = list(saved.values())
    elif isinstance(saved, (tuple, list)):
        inner = list(saved)
    elif walk_objects and not callable(saved):
        inner = list(getattr(saved, "__dict__", {}).values())
    else:
        return
    if depth:
        for item in inner:
            yield from _arrays_in(item, walk_objects=walk_objects, depth=depth - 1)


def _first_run(subject: Subject, rng: np.random.Generator) -> Case:
    _require_something(subject.wanted(), subject.wanted_names())
    for index, array in enumerate(subject.inputs):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            name = subject.names[index]
            raise Violation(
                Verdict.INCONCLUSIVE,
                f"input {name} holds NaN or infinity: there is no derivative there",
                input=name,
            )
    output, saved = forward_kept(subject, subject.inputs)
    output = output.copy()  # it may be a buffer that later calls overwrite
    _require_something([output], ["forward's output"])
    if not np.isfinite(output).all():
        bad = int(np.count_nonzero(~np.isfinite(output)))
        reason = f"forward's output holds NaN or infinity ({bad} of {output.size} elements)"
        raise Violation(Verdict.INCONCLUSIVE, reason)
    cotangent = np.asarray(rng.standard_normal(output.shape).astype(subject.dtype))
    returned = backward_kept(subject, subject.inputs, saved, cotangent)
    gradients = first = _copies(returned)
    lowered = not budget.has_room(output, *gradients)
    if lowered:
        cotangent = budget.lowered(cotangent)
        returned = backward_kept(subject, subject.inputs, saved, cotangent)
        gradients = _copies(returned)
    for name, gradient, smaller in zip(subject.wanted_names(), first, gradients, strict=True):
        # Infinity is right where the gradient itself is too large for its dtype.
        held = np.where(np.isfinite(smaller / budget.LOWERED), gradient, smaller)
        if not np.isfinite(held).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(held))[0])
            reason = f"the gradient of {name} is {held[where]} at {where}, while forward is finite"
            raise Violation(Verdict.FAIL, reason, input=name)
    allowed = budget.slack(subject, subject.inputs, output, cotangent, gradients, rng)
    return Case(subject, rng, cotangent, output, saved, gradients, returned, allowed, lowered)


def _copies(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(array.copy() for array in arrays)


def _require_something(arrays: list[np.ndarray], names: list[str]) -> None:
    for array, name in zip(arrays, names, strict=True):
        if not array.size:
            raise Violation(
                Verdict.VACUOUS, f"nothing to check: {name} has shape {array.shape} and no elements"
            )


def _aliasing(case: Case) -> None:
    """No gradient shares memory with an input, a saved value, the cotangent or another gradient.

    A framework may hand the cotangent on, as long as accumulating into one gradient leaves the others alone.
    """
    subject = case.subject
    _, saved = subject.run_forward(subject.inputs)
    cotangent = case.cotangent.copy()
    gradients = subject.run_backward(saved, cotangent)
    inputs = [(f"input {name}", array) for name, array in zip(subject.names, subject.inputs, strict=True)]
    kept = [("a saved array", array) for array in _arrays_in(saved, walk_objects=not subject.framework)]
    foreign = inputs + kept + ([] if subject.framework else [("the cotangent", cotangent)])
    for name, gradient in zip(case.subject.wanted_names(), gradients, strict=True):
        for what, array in foreign:
            if array is not None and np.shares_memory(gradient, array):
                raise Violation(
                    Verdict.ERROR,
                    f"the gradient of {name} shares memory with {what}; return a copy",
                    input=name,
                )
    names = subject.wanted_names()
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


def _repeated_forward(case: Case) -> None:
    again, _ = forward_kept(case.subject, case.inputs)
    if again.tobytes() != case.output.tobytes():
        apart = _relative(again, case.output)
        reason = (
            f"stochastic: forward gives another output on the same inputs (they differ by {apart:.1e}); "
            "fix the seed inside forward, so that every call draws the same numbers"
        )
        raise Violation(Verdict.INCONCLUSIVE, reason)


def _repeated_backward(case: Case) -> None:
    for _ in range(REPEATS_SAME):
        again = backward_kept(case.subject, case.inputs, case.saved, case.cotangent)
        case.compare(again, case.gradients, "a second backward over the same context gives another result")
    for _ in range(REPEATS_FRESH):
        again = case.backward_of(case.inputs, case.cotangent)
        case.compare(again, case.gradients, "backward gives another result after the same forward")


def _returned_arrays_last(case: Case) -> None:
    for name, kept, old in zip(case.subject.wanted_names(), case.returned, case.gradients, strict=True):
        if kept.tobytes() != old.tobytes():
            reason = f"the gradient of {name} changed after it was returned, when backward ran again"
            raise Violation(Verdict.ERROR, f"{reason}; return a new array", input=name)


def _interleaved(case: Case) -> None:
    """forward A, forward B, backward A, backward B, against each alone."""
    subject, cotangent = case.subject, _another_cotangent(case)
    other = _other_inputs(case, cotangent)
    if other is None:
        return
    alone = _copies(case.backward_of(other, cotangent))
    output, saved = forward_kept(subject, case.inputs)
    before = output.tobytes()
    _, saved_other = forward_kept(subject, other)
    if output.tobytes() != before:
        raise Violation(
            Verdict.ERROR, "the next forward overwrites the output of the one before; return a new array"
        )
    for inputs, context, direction, wanted in (
        (case.inputs, saved, case.cotangent, case.gradients),
        (other, saved_other, cotangent, alone),
    ):
        gradients = backward_kept(subject, inputs, context, direction)
        case.compare(gradients, wanted, "backward depends on another call of forward than its own")


def _another_cotangent(case: Case) -> np.ndarray:
    """An independent cotangent, of the size that the gradients of this case can bear."""
    drawn = np.asarray(case.rng.standard_normal(case.output.shape).astype(case.subject.dtype))
    return budget.lowered(drawn) if case.lowered else drawn


def _other_inputs(case: Case, cotangent: np.ndarray) -> Arrays | None:
    """Other inputs of the same shapes: the same values elsewhere, or, if the pair dislikes them, scaled."""

    def rolled(array: np.ndarray) -> np.ndarray:
        moved = np.roll(array, 1)
        return moved if not np.array_equal(moved, array) else scaled(array)

    def scaled(array: np.ndarray) -> np.ndarray:
        return np.asarray(array * array.dtype.type(1.0625))

    for other in (case.subject.moved(rolled), case.subject.moved(scaled)):
        if case.subject.accepts(other, cotangent):
            return other
    return None


def _layouts(case: Case) -> None:
    """The same numbers in another memory layout give the same gradients: as cotangent, then as inputs."""
    subject, inputs = case.subject, case.inputs
    for label, lay in LAYOUTS.items():
        got = case.backward_of(inputs, lay(case.cotangent))
        case.compare_rounded(got, case.gradients, case.slack, f"a {label} cotangent is misread")
        got = case.backward_of(subject.moved(lay), case.cotangent)
        case.compare_rounded(got, case.gradients, case.slack, f"{label} inputs are misread")
    for label, expanded in _expansions(case.cotangent):
        dense = expanded.copy()
        wanted = case.backward_of(inputs, dense)
        allowed = budget.slack(subject, inputs, case.output, dense, wanted, case.rng)
        got = case.backward_of(inputs, expanded)
        case.compare_rounded(got, wanted, allowed, f"a cotangent {label} (stride 0) is misread")
    spread = subject.moved(lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim else array)
    dense_inputs = tuple(None if array is None else array.copy() for array in spread)
    if subject.accepts(dense_inputs, case.cotangent):
        wanted = case.backward_of(dense_inputs, case.cotangent)
        try:
            allowed = budget.slack(subject, dense_inputs, case.output, case.cotangent, wanted, case.rng)
        except Violation:  # a point next to one that the harness made up need not be legal either
            return
        got = case.backward_of(spread, case.cotangent)
        case.compare_rounded(got, wanted, allowed, "inputs expanded along axis 0 (stride 0) are misread")


def _strided(array: np.ndarray) -> np.ndarray:
    if not array.ndim:
        return array
    # NaN in the gaps, so that a kernel that walks the memory instead of the strides is seen.
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": lambda array: np.array(array, order="F"),
    "strided": _strided,
    "reversed": lambda array: np.flip(np.flip(array).copy()),
}


def _expansions(cotangent: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if cotangent.ndim:
        yield "expanded from one number", np.broadcast_to(cotangent.reshape(-1)[:1], cotangent.shape)
    if cotangent.ndim > 1:
        yield "expanded along axis 0", np.broadcast_to(cotangent[:1], cotangent.shape)


def _linear(case: Case) -> None:
    subject = case.subject
    zero = backward_kept(subject, case.inputs, case.saved, np.zeros_like(case.cotangent))
    for name, gradient in zip(case.subject.wanted_names(), zero, strict=True):
        if np.any(gradient != 0):
            reason = f"not linear in the cotangent: the gradient of {name} is not zero for a zero cotangent"
            raise Violation(Verdict.FAIL, reason, input=name, fatal=False)
    for factor in (-1.0, 2.0**8, 2.0**-8):
        scale = subject.dtype.type(factor)
        wanted = tuple(np.asarray(gradient * scale) for gradient in case.gradients)
        if not all(np.isfinite(gradient).all() for gradient in wanted):
            continue
        got = backward_kept(subject, case.inputs, case.saved, np.asarray(case.cotangent * scale))
        allowed = [abs(factor) * slack for slack in case.slack]
        case.compare_rounded(got, wanted, allowed, f"not linear in the cotangent: scaled by {factor:g}")
    second = _another_cotangent(case)
    apart = backward_kept(subject, case.inputs, case.saved, second)
    wanted = tuple(np.asarray(a + b) for a, b in zip(case.gradients, apart, strict=True))
    both = np.asarray(case.cotangent + second)
    got = backward_kept(subject, case.inputs, case.saved, both)
    rounding = budget.slack(subject, case.inputs, case.output, both, got, case.rng)
    allowed = [16 * max(pair) for pair in zip(case.slack, rounding, strict=True)]
    case.compare_rounded(
        got, wanted, allowed, "not linear in the cotangent: the gradients of two do not add up"
    )


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.max(np.abs(b)))
    return float(np.max(np.abs(a - b))) / scale if scale > 0 else float(np.max(np.abs(a)))


PROBES: dict[str, Callable[[Case], None]] = {
    "returned arrays last": _returned_arrays_last,
    "forward repeats": _repeated_forward,
    "memory is not shared": _aliasing,
    "backward repeats": _repeated_backward,
    "calls are independent": _interleaved,
    "memory layouts": _layouts,
    "linear in the cotangent": _linear,
}
