"""What gradients must be, and how far they may be from it for nothing but rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gradcheck import budget
from gradcheck.judge import Verdict
from gradcheck.subject import Arrays, Subject, Violation

__all__ = ["Difference", "Expected"]

UNDERFLOW = 16  # subnormal numbers that any result may be off by
SATURATED = 0.25  # an output that moves by so much of its size does not move in proportion to its inputs


@dataclass(frozen=True, slots=True)
class Difference:
    """How the bits of one gradient differ from those expected.

    The verdict is PASS where rounding explains it, and INCONCLUSIVE where it might explain anything.
    """

    input: str
    verdict: Verdict
    relative: float  # to the largest element
    text: str


@dataclass(slots=True)
class Expected:
    """The gradients of one call, with which others are compared.

    Rounding is measured when a difference is first met: most pairs repeat to the last bit. `stretch` is by
    how much further than a few ulp the inputs are moved for that, their effect being divided by it again:
    where the question is whether a backward repeats at all, its whims must not count as rounding.
    """

    subject: Subject
    inputs: Arrays
    output: np.ndarray
    cotangent: np.ndarray
    gradients: tuple[np.ndarray, ...]
    _measured: dict[int, list[float]] = field(default_factory=dict)

    def differences(
        self,
        got: tuple[np.ndarray, ...],
        rng: np.random.Generator,
        *,
        factor: float = 1.0,
        slack: float = 1.0,
        stretch: int = 1,
    ) -> list[Difference]:
        """Compare with `factor` times these gradients; `slack` times the usual rounding is allowed."""
        found = []
        for k, (gradient, own) in enumerate(zip(got, self.gradients, strict=True)):
            wanted = own if factor == 1 else np.asarray(own * own.dtype.type(factor))
            if gradient.tobytes() == wanted.tobytes():
                continue
            worst = budget.worst(gradient, wanted)
            subnormal = UNDERFLOW * max(1.0, abs(factor)) * float(np.finfo(own.dtype).smallest_subnormal)
            allowed = slack * abs(factor) * self._floor(k)
            for attempt in range(1 if stretch > 1 else 1 + budget.CONFIRMATIONS):
                if worst.error <= allowed + subnormal:
                    break
                measured = self._slack(rng, stretch, widen=attempt > 0)
                allowed = max(allowed, slack * abs(factor) * measured[k])
            verdict = Verdict.PASS if worst.error <= allowed + subnormal else Verdict.FAIL
            known = f"rounding explains {allowed:.1e}"
            if allowed == np.inf and np.isfinite(worst.error):
                verdict = Verdict.INCONCLUSIVE
                known = "resolution: what rounding explains is not known at so ill-conditioned an input"
            name, differing = self.subject.wanted_names()[k], int(np.count_nonzero(gradient != wanted))
            text = (
                f"the gradient of {name} differs by {worst.error:.1e} at {worst.where}: {_told_apart(worst)} "
                f"({differing} of {wanted.size} elements differ; {known})"
            )
            found.append(Difference(name, verdict, worst.error / (budget.largest(wanted) or 1.0), text))
        return found

    def _floor(self, k: int) -> float:
        gradient, x = self.gradients[k], self.subject.wanted()[k]
        count = max(self.cotangent.size, *(each.size for each in self.gradients))
        size = max(budget.largest(gradient), budget.uncancelled(self.cotangent, self.output, x))
        return budget.rounding_floor(gradient.dtype, count) * size

    def _slack(self, rng: np.random.Generator, stretch: int, *, widen: bool) -> list[float]:
        """What moving the arguments changes, times 16; `widen` moves them some more."""
        if widen or stretch not in self._measured:
            known = self._measured.get(stretch, [0.0] * len(self.gradients))
            moved, shift = [0.0] * len(self.gradients), 0.0
            runs = budget.jiggled_runs(self.subject, self.inputs, [self.cotangent], rng, stretch=stretch)
            try:
                for output, (gradients,) in runs:
                    shift = float(np.maximum(shift, budget.largest(output - self.output)))
                    for k, (new, old) in enumerate(zip(gradients, self.gradients, strict=True)):
                        moved[k] = max(moved[k], budget.largest(new - old))
            except Violation:  # not defined beside this point: nothing is known, and nobody accused
                moved = [np.inf] * len(self.gradients)
            # The output tells, which a backward that does not repeat has no part in.
            if stretch > 1 and not shift <= SATURATED * budget.largest(self.output):
                moved = [np.inf] * len(self.gradients)
            found = [budget.SAFETY * each / stretch for each in moved]
            self._measured[stretch] = [max(pair) for pair in zip(known, found, strict=True)]
        return self._measured[stretch]


def _told_apart(worst: budget.Worst) -> str:
    """Both numbers, with as many digits as it takes to see that they differ."""
    digits = 8 if f"{worst.got:.8g}" != f"{worst.wanted:.8g}" else 17
    return f"{worst.got:.{digits}g} instead of {worst.wanted:.{digits}g}"
