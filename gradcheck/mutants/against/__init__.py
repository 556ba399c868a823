"""The same mutants through the gradient checkers of torch, JAX and autograd.

Each checker is asked at its defaults and at the best of a small grid of settings: that which catches most of
a sample of the mutants, among those that accuse at most FALSE_ALARMS of the right pairs. All see the same
inputs, in float64, and only what can be said to all of them: forward, backward, inputs.
"""

from __future__ import annotations

import importlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from gradcheck.harness import check_pair
from gradcheck.mutants.against.checker import Checker
from gradcheck.mutants.cases import CASES, Case
from gradcheck.mutants.matrix import CAUGHT
from gradcheck.mutants.mutant import Mutant, Pair
from gradcheck.mutants.operations import OPERATIONS, Operation

__all__ = ["compare"]

FALSE_ALARMS = 0.05
DRAWS = 3  # of every configuration, for the false alarms
SAMPLE = 6  # the settings are chosen on every sixth mutant
TIMED = 15
TIMED_CASE = Case((2, 2, 2, 3, 3))

Points = dict[str, list[tuple[int, tuple[np.ndarray, ...]]]]
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(slots=True)
class Row:
    """The figures of one checker."""

    checker: Checker
    anywhere: list[str]  # the mutants caught in some configuration
    first: int  # caught in the first one
    false64: tuple[int, int]
    false32: tuple[int, int]
    milliseconds: float


def compare(libraries: Sequence[str], mutants: Sequence[Mutant], seed: int, progress: Progress) -> str:
    """The confusion table: what each checker catches, whom it accuses wrongly, and how long it takes."""
    chosen = [_ours()]
    for library in libraries:
        module = importlib.import_module(f"gradcheck.mutants.against.with_{library}")
        by_name: dict[str, list[Checker]] = {}
        for checker in module.checkers():
            by_name.setdefault(checker.library, []).append(checker)
        for group in by_name.values():
            defaults = next(checker for checker in group if checker.defaults)
            chosen += dict.fromkeys(
                (defaults, _tuned(group, mutants[::SAMPLE], seed))
            )  # once, if it is the best
    times = _times(chosen, seed)
    rows = [
        _row(checker, mutants, seed, milliseconds)
        for checker, milliseconds in progress(list(zip(chosen, times, strict=True)))
    ]
    return _text(rows, mutants, libraries, seed)


def _ours() -> Checker:
    def accuses(operation: Operation, pair: Pair, inputs: tuple[np.ndarray, ...], seed: int) -> bool:
        report = check_pair(
            *pair,
            inputs,
            differentiable=operation.differentiable,
            input_names=operation.names,
            explain=False,
            state=operation.state,
            seed=seed,
        )
        return report.verdict in CAUGHT

    return Checker("gradcheck", "there are none", True, accuses)


def _tuned(group: Sequence[Checker], sample: Sequence[Mutant], seed: int) -> Checker:
    """The setting that catches most of the sample among those with few false alarms."""
    accepted = {checker.setting: _accepted(checker, seed) for checker in group}
    most = (1 - FALSE_ALARMS) * sum(len(_cases(operation, "float64")) for operation in OPERATIONS.values())
    sound = [c for c in group if sum(len(points) for points in accepted[c.setting].values()) >= most]

    def caught(checker: Checker) -> int:
        points = accepted[checker.setting]
        return sum(_caught(checker, mutant, points, seed) is not None for mutant in sample)

    return max(sound or group, key=caught)


def _row(checker: Checker, mutants: Sequence[Mutant], seed: int, milliseconds: float) -> Row:
    points = _accepted(checker, seed)
    found = {mutant.name: _caught(checker, mutant, points, seed) for mutant in mutants}
    return Row(
        checker,
        [name for name, at in found.items() if at is not None],
        sum(at == 0 for at in found.values()),
        _false_alarms(checker, "float64", seed),
        _false_alarms(checker, "float32", seed),
        milliseconds,
    )


def _accepted(checker: Checker, seed: int) -> Points:
    """Of each operation the inputs at which the right pair is not accused, with the number of the case.

    To accuse a wrong pair where the right one is accused too is no catch.
    """
    return {
        name: [
            (number, inputs)
            for number, case in enumerate(_cases(operation, "float64"))
            for inputs in [case.inputs(operation, np.random.default_rng(seed + number))]
            if not checker.accuses(operation, (operation.forward, operation.backward), inputs, seed)
        ]
        for name, operation in OPERATIONS.items()
    }


def _caught(checker: Checker, mutant: Mutant, points: Points, seed: int) -> int | None:
    """The number of the first case in which the mutant is accused, or None."""
    pair = mutant.make()
    for number, inputs in points[mutant.operation.name]:
        given = tuple(array.copy() for array in inputs)
        with np.errstate(all="ignore"):
            if checker.accuses(mutant.operation, pair, given, seed):
                return number
    return None


def _cases(operation: Operation, dtype: str) -> list[Case]:
    return [case for case in CASES[operation.name] if case.dtype == dtype]


def _false_alarms(checker: Checker, dtype: str, seed: int) -> tuple[int, int]:
    """How many checks of right pairs accuse, of how many."""
    accused = total = 0
    for operation in OPERATIONS.values():
        right = operation.forward, operation.backward
        for case in _cases(operation, dtype):
            for draw in range(DRAWS):
                inputs = case.inputs(operation, np.random.default_rng([seed, draw]))
                accused += checker.accuses(operation, right, inputs, seed)
                total += 1
    return accused, total


def _times(checkers: Sequence[Checker], seed: int) -> list[float]:
    """Milliseconds for a right BatchNorm-like pair, the checkers taking turns; the median of each."""
    operation = OPERATIONS["moment_norm"]
    inputs = TIMED_CASE.inputs(operation, np.random.default_rng(seed))
    taken: list[list[float]] = [[] for _ in checkers]
    for _ in range(TIMED):
        for times, checker in zip(taken, checkers, strict=True):
            began = time.perf_counter()
            checker.accuses(operation, (operation.forward, operation.backward), inputs, seed)
            times.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(times) for times in taken]


def _text(rows: Sequence[Row], mutants: Sequence[Mutant], libraries: Sequence[str], seed: int) -> str:
    lines = [
        f"{len(mutants)} named mutants in float64: accused where the right pair is not, in any case,",
        f"and in the first alone; tuned: the best setting with at most {FALSE_ALARMS:.0%} false alarms",
        "",
        f"{'checker':<12}{'settings':<40}{'any':>5}{'first':>7}{'false f64':>11}{'false f32':>11}{'ms':>8}",
    ]
    for row in rows:
        setting = ("" if row.checker.defaults else "tuned: ") + row.checker.setting
        lines.append(
            f"{row.checker.library:<12}{setting:<40}{len(row.anywhere):>5}{row.first:>7}"
            f"{_of(row.false64):>11}{_of(row.false32):>11}{row.milliseconds:>8.1f}"
        )
    ours = set(rows[0].anywhere)
    missed = {
        name: [r.checker.library for r in rows[1:] if name in r.anywhere] for r in rows for name in r.anywhere
    }
    lines += ["", "Caught by another and not by gradcheck:"]
    lines += [
        f"  {name}: {', '.join(dict.fromkeys(others))}" for name, others in missed.items() if name not in ours
    ] or ["  none"]
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", *libraries))
    return "\n".join([*lines, "", f"seed {seed}; Python {platform.python_version()}, {shown}"])


def _of(alarms: tuple[int, int]) -> str:
    accused, total = alarms
    return f"{accused}/{total}"
