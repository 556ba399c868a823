"""The whole set, and a choice from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from gradcheck.mutants import outsider, outsider_calls, outsider_shapes
from gradcheck.mutants.automatic import automatic_mutants
from gradcheck.mutants.controls import CONTROLS
from gradcheck.mutants.matrix import Outcome, judge_control, judge_mutant
from gradcheck.mutants.mutant import Mutant, mutants_of
from gradcheck.mutants.named import NAMED

__all__ = ["CONTROL", "OUTSIDER", "Job", "choose", "chosen_mutants"]

CONTROL = "control"

# Written by somebody who had not read the checker.
OUTSIDER: tuple[Mutant, ...] = tuple(
    mutant for module in (outsider, outsider_calls, outsider_shapes) for mutant in mutants_of(module)
)


@dataclass(frozen=True, slots=True)
class Job:
    """One pair to be judged, and a line that says which."""

    label: str
    judge: Callable[[], Outcome]


def chosen_mutants(kinds: Collection[str], operations: Collection[str]) -> Iterator[tuple[str, Mutant]]:
    """(source, mutant) for those of these kinds and operations; an empty collection leaves out none."""
    sources = {"named": NAMED, "by an outsider": OUTSIDER, "automatic": automatic_mutants()}
    for source, mutants in sources.items():
        for mutant in mutants:
            if mutant.kind in (kinds or (mutant.kind,)) and mutant.operation.name in (
                operations or (mutant.operation.name,)
            ):
                yield source, mutant


def choose(kinds: Collection[str], operations: Collection[str], seed: int) -> list[Job]:
    """What is to be judged; the controls belong to no operation."""
    jobs = [
        Job(
            f"{source}: {mutant.operation.name}, {mutant.kind}: {mutant.name}: {mutant.mistake}",
            functools.partial(judge_mutant, mutant, source, seed),
        )
        for source, mutant in chosen_mutants(kinds, operations)
    ]
    if not operations and CONTROL in (kinds or (CONTROL,)):
        jobs += [
            Job(f"controls: {control.name}: {control.why}", functools.partial(judge_control, control, seed))
            for control in CONTROLS
        ]
    return jobs
