"""Reports to look at: of a sweep that passes, of one with ten kinds of mistakes, and of an interrupted one.

python -m gradcheck.report.examples FOLDER

What is checked are the pairs of gradcheck.mutants: the right ones, and a mutant of each of ten kinds.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gradcheck.harness import check_pair
from gradcheck.judge import Verdict
from gradcheck.mutants.cases import CASES
from gradcheck.mutants.mutant import Pair
from gradcheck.mutants.named import NAMED
from gradcheck.mutants.operations import OPERATIONS, Operation
from gradcheck.report import formats
from gradcheck.report.groups import Outcome
from gradcheck.sweep import Result, SampleCase

__all__ = ["main", "outcomes", "write"]

SUFFIXES = {
    "terminal": "txt", "json": "json", "junit": "xml", "github": "github", "html": "html", "svg": "svg",
}  # fmt: skip
KINDS = ("formula", "tiny", "local", "index", "axis", "contract", "state", "mode", "rng", "numerics")
"""One mistake of each is shown."""
SHOWN = len(KINDS)
SEED = 0
UNTIL_INTERRUPTED = 9


@functools.cache
def outcomes() -> dict[str, Outcome]:
    """The three sweeps by name."""
    checked = (result for operation in OPERATIONS.values() for result in _right(operation))
    right = [result for result in checked if result.verdict is Verdict.PASS]  # one has nothing to check
    wrong = [_wrong(kind) for kind in KINDS]
    return {
        "passing": _outcome(right),
        "failing": _outcome([*right, *wrong]),
        "interrupted": _outcome([*wrong[:3], *right][:UNTIL_INTERRUPTED], planned=len(right) + len(wrong)),
    }


def _outcome(results: Sequence[Result], planned: int | None = None) -> Outcome:
    seconds = sum(result.seconds for result in results)
    return Outcome(results, SEED, seconds, planned or len(results), interrupted=planned is not None)


def _right(operation: Operation) -> Iterator[Result]:
    for number in range(len(CASES[operation.name])):
        yield _check(operation, (operation.forward, operation.backward), number)


def _wrong(kind: str) -> Result:
    """The first mutant of this kind, in the first case that shows it."""
    for mutant in NAMED:
        if mutant.kind == kind and not mutant.invisible:
            operation, pair = mutant.operation, mutant.make()
            for number in range(len(CASES[operation.name])):
                result = _check(operation, pair, number, kind, mutant.name)
                if result.verdict is not Verdict.PASS:
                    return result
    raise AssertionError(f"no mutant of the kind {kind} is caught")


def _check(operation: Operation, pair: Pair, number: int, kind: str = "control", name: str = "") -> Result:
    case = CASES[operation.name][number]
    inputs = case.inputs(operation, np.random.default_rng(SEED + number))
    report = check_pair(
        *pair,
        inputs,
        differentiable=operation.differentiable,
        input_names=operation.names,
        name=operation.name,
        state=operation.state,
        zero=case.zero,
        seed=SEED,
    )
    sample = SampleCase(
        operation.name,
        f"{case}, {name or 'right'}",
        str(inputs[0].dtype),
        command="mutants",
        selected_by=("--kind", kind, *(("--operation", operation.name) if name else ())),
    )
    return Result(
        sample, SEED, report.checks, (), (), report.seconds,
        findings=report.findings, place=report.place, notes=report.notes,
    )  # fmt: skip


def write(folder: Path) -> list[Path]:
    """Write the three in every format."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, outcome in outcomes().items():
        for kind, suffix in SUFFIXES.items():
            path = folder / f"{name}.{suffix}"
            path.write_text(formats.render(outcome, kind) + "\n", encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    """The command."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m gradcheck.report.examples FOLDER")
    began = time.perf_counter()
    written = write(Path(sys.argv[1]))
    print(*written, sep="\n")
    print(f"{len(written)} reports in {time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
