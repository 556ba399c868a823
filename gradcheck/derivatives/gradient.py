"""The gradients of a pair against its numeric derivatives: which directions are tried, and where.

1. All inputs move at once, along one random direction: one look at every gradient, which names none. The
   noise of the forward pass is measured on the way.
2. Each input moves alone: its verdict speaks of it alone. Where the common look is not clean, or there is
   only one input, it gets a second direction, and where it does not pass, its own measurement of noise.
3. An input that is still undecided, for a kink at it or near it, is moved a little and judged there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck.derivatives.directional import GOAL, Direction
from gradcheck.derivatives.numeric import magnitude
from gradcheck.derivatives.point import Point
from gradcheck.judge import UNKNOWN, Check, Evidence, Verdict, judge
from gradcheck.subject import Subject, Violation

__all__ = ["GOAL", "Gradients", "beside", "check_gradients"]

REDRAWS = 3
BESIDE = 0.05  # how far an input is moved away from where nothing is decided, in units of its spread


@dataclass(frozen=True, slots=True)
class Gradients:
    """The checks, and what they were made from.

    point, directions: the analytic side, and the direction of each wanted input moved alone.
    elsewhere: by name, the pair at the inputs where a gradient was judged, if not at those given.
    """

    checks: list[Check]
    point: Point
    directions: list[Direction]
    elsewhere: dict[str, Subject]


def check_gradients(subject: Subject, rng: np.random.Generator) -> Gradients:
    """Judge the gradient of every wanted input at the precision of the subject's dtype."""
    point = Point.of(subject, rng)
    everything = Direction(point, subject.differentiable, rng)
    together = _judge(point, [everything])
    alone = len(subject.differentiable) == 1
    directions, checks, elsewhere = [], {}, {}
    for index in subject.differentiable:
        own = [everything if alone else Direction(point, [index], rng, like=everything)]
        checks[index] = _judge(point, own)
        if checks[index].verdict >= Verdict.INCONCLUSIVE and not alone:
            own = [Direction(point, [index], rng)]  # the noise may be another input's, or hidden by it
            checks[index] = _judge(point, own)
        if checks[index].verdict < Verdict.INCONCLUSIVE and (alone or together.verdict is not Verdict.PASS):
            own.append(Direction(point, [index], rng, like=own[0]))
            checks[index] = _judge(point, own)
        directions.append(own[0])
    found = []
    # An error that only the common direction shows has no name, but it is one where all inputs are clear.
    nameless = together.verdict is Verdict.FAIL and all(
        check.verdict < Verdict.INCONCLUSIVE for check in checks.values()
    )
    if not alone and (together.verdict is Verdict.PASS or nameless):
        found = [dataclasses.replace(together, name="gradients together", input=None)]
    for index, check in checks.items():
        if check.verdict is Verdict.INCONCLUSIVE:
            checks[index], place = _judge_beside(subject, index, check, rng)
            if place is not None:
                elsewhere[subject.names[index]] = place
    return Gradients([*checks.values(), *found], point, directions, elsewhere)


def _judge(point: Point, looks: Sequence[Direction]) -> Check:
    """Apply the decision table to the directions of one input, or of all at once."""
    subject, indices = point.subject, looks[0].indices
    return judge(
        Evidence.join([look.evidence for look in looks]),
        goal=GOAL[subject.dtype],
        input=", ".join(subject.names[index] for index in indices),
        zero=subject.zero.issuperset(indices),
        jumps=np.logical_or.reduce([look.jumps for look in looks]),
        unknown=next((look.unknown for look in looks if look.unknown), UNKNOWN),
    )


def beside(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with every element moved at random, by 5 % of its spread."""
    moved = np.empty_like(x)
    moved[...] = x + (BESIDE * magnitude(x) * rng.standard_normal(x.shape)).astype(x.dtype)
    return moved


def _judge_beside(
    subject: Subject, index: int, check: Check, rng: np.random.Generator
) -> tuple[Check, Subject | None]:
    """Judge one input's gradient where that input is moved by 5 % of its spread; also say where that was.

    A FAIL there must be seen twice: it may be an accident of whatever spoilt the verdict at the input.
    """
    decided: list[tuple[Check, Subject]] = []
    name, x = subject.names[index], subject.wanted()[subject.differentiable.index(index)]
    for _ in range(REDRAWS):
        there = dataclasses.replace(subject, inputs=subject.replaced(index, beside(x, rng)))
        try:
            point = Point.of(there, rng)
            first = Direction(point, [index], rng)
            judged = _judge(point, [first, Direction(point, [index], rng, like=first)])
        except Violation:
            continue  # the pair need not be defined there
        finally:
            subject.evaluations, subject.vjps = there.evaluations, there.vjps
        if judged.verdict is not Verdict.INCONCLUSIVE:
            said = f"{judged.reason}; " if judged.reason else ""
            where = f"judged beside the input, with {name} moved by 5 % of its spread"
            reason = f"{said}{where}; at it: {check.reason}"
            decided.append((dataclasses.replace(judged, reason=reason), there))
            if judged.verdict is not decided[0][0].verdict:
                break
            if judged.verdict is not Verdict.FAIL or len(decided) > 1:
                return decided[0]
    reason = f"{check.reason}; {REDRAWS} inputs beside it, moved by 5 %, are no better"
    return dataclasses.replace(check, reason=reason), None
