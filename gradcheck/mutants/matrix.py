"""The kill matrix: every mutant through the checker, in every configuration until one catches it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from gradcheck.harness import check_pair
from gradcheck.judge import Verdict
from gradcheck.mutants.cases import CASES, Case
from gradcheck.mutants.controls import Control
from gradcheck.mutants.equality import EQUAL, equals_the_right_one
from gradcheck.mutants.mutant import EDITS, Mutant, Pair
from gradcheck.mutants.operations import Operation
from gradcheck.report import Report

__all__ = ["CAUGHT", "CONTROLS", "Outcome", "check_case", "judge_control", "judge_mutant"]

CAUGHT = (Verdict.FAIL, Verdict.ERROR)
CONTROLS = "controls"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the checker said of one pair.

    source: the part of the set that it comes from.
    verdict: of the configuration that caught it, or else the worst of all.
    case: the configuration, and the reason given there.
    checks: how many configurations were checked.
    invisible: why it need not be caught.
    """

    source: str
    name: str
    kind: str
    operation: str
    mistake: str
    verdict: Verdict
    case: str
    reason: str
    checks: int
    seconds: float
    invisible: str = ""

    @property
    def caught(self) -> bool:
        """Whether the verdict accuses the pair."""
        return self.verdict in CAUGHT

    @property
    def to_be_caught(self) -> bool:
        """Whether it is wrong where a check can see it."""
        return self.source != CONTROLS and not self.invisible


def judge_mutant(mutant: Mutant, source: str, seed: int) -> Outcome:
    """Check a mutant in the cases of its operation, up to the first that catches it.

    The pair is made once: what it remembers, it remembers from one configuration to the next.
    """
    began = time.perf_counter()
    pair = mutant.make()
    worst: tuple[Verdict, str, str] = (Verdict.PASS, "", "")
    count = 0
    for case in CASES[mutant.operation.name]:
        count += 1
        report = check_case(mutant.operation, pair, case, seed + count)
        if report.verdict > worst[0]:
            worst = report.verdict, str(case), report.reasons[0]
        if report.verdict in CAUGHT:
            break
    equal = mutant.kind in EDITS and equals_the_right_one(mutant, seed)
    return Outcome(
        source, mutant.name, mutant.kind, mutant.operation.name, mutant.mistake,
        *worst, count, time.perf_counter() - began, EQUAL if equal else mutant.invisible,
    )  # fmt: skip


def check_case(operation: Operation, pair: Pair, case: Case, seed: int) -> Report:
    """One check of a pair that claims to be an operation, as a user would make it, for its verdict alone."""
    inputs = case.inputs(operation, np.random.default_rng(seed))
    return check_pair(
        *pair,
        inputs,
        reference=lambda *arrays: operation.forward(*arrays)[0],
        differentiable=operation.differentiable,
        input_names=operation.names,
        name=operation.name,
        state=operation.state,
        zero=case.zero,
        explain=False,
        seed=seed,
    )


def judge_control(control: Control, seed: int) -> Outcome:
    """Check a control; `caught` is then a false alarm."""
    began = time.perf_counter()
    inputs = control.inputs(np.random.default_rng(seed))
    report = check_pair(*control.make(), inputs, explain=False, seed=seed)
    reason = report.reasons[0] if report.reasons else ""
    seconds = time.perf_counter() - began
    return Outcome(CONTROLS, control.name, "control", "", control.why, report.verdict, "", reason, 1, seconds)
