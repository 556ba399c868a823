"""Timing cases: every library prepares the case, then they take turns for some rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .figures import Measurement, Timing
from .libraries import FLOOR, OURS
from .pool import Failed, Unserved, Workers

__all__ = ["DIRECTIONS", "Failure", "Settings", "measure", "run", "settings"]

DIRECTIONS = ("forward", "backward")
MOST_CALLS = 1000
PATIENCE = 2.0  # seconds on the clock for one library, after which it gets no further round
FEWEST = 3  # rounds that every library gets
ON_GPU = 0.004  # seconds of calls in a sample


@dataclass(frozen=True)
class Settings:
    """rounds: samples of each library. sample: about how many seconds of calls go into one. graph: on a GPU,
    replay the calls as CUDA graphs.
    """

    rounds: int = 12
    sample: float = 0.02
    graph: bool = False


def settings(device: str, rounds: int, graph: bool) -> Settings:
    """For a device. On a GPU calls are short, and what keeps it busy before each sample takes longer."""
    return Settings(rounds) if device == "cpu" else Settings(rounds, ON_GPU, graph)


@dataclass(frozen=True)
class Failure:
    """A library that could not do a case, and why, in one line."""

    case: Case
    threads: int
    library: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.library}: {self.case}, {self.case.dtype}, {self.case.place(self.threads)}: {self.reason}"
        )


def run(
    cases: Sequence[Case],
    peers: Sequence[str],
    threads: Sequence[int],
    settings: Settings,
    plugins: Sequence[str] = (),
) -> Iterator[Measurement | Failure]:
    """Both directions of every case, one number of threads after the other."""
    for count in threads:
        with Workers(count, plugins) as workers:
            for case in cases:
                yield from measure(case, peers, workers, settings)


def measure(
    case: Case, peers: Sequence[str], workers: Workers, settings: Settings
) -> Iterator[Measurement | Failure]:
    """The measurements of one case, and what failed. Without ours or the floor there is no measurement."""
    failures: list[Failure] = []

    def attempt(library: str, ask: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        try:
            return ask()
        except Unserved:
            return None
        except Failed as failed:
            alike = library == OURS and len(case.spec.inputs) > 1 and case.spec.call_at is None
            hint = "; all inputs had the shape of the first, declare others by call_at=" if alike else ""
            failures.append(Failure(case, workers.threads, library, f"{failed}{hint}"))
            return None

    estimates: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for library in (OURS, FLOOR, *peers):
            options: dict[str, Any] = {"graph": settings.graph}
            if library != FLOOR:
                options["save" if library == OURS else "expected"] = folder
            answer = attempt(library, lambda: workers.prepare(library, case, **options))  # noqa: B023 -- called at once
            if answer is not None:
                estimates[library] = answer
            elif library in (OURS, FLOOR):
                yield from failures
                return
    samples: dict[str, dict[str, list[dict[str, float]]]] = {
        e: {d: [] for d in DIRECTIONS} for e in estimates
    }
    for number in range(settings.rounds):
        order = list(samples)
        turn = number % len(order)
        for library in [*order[turn:], *order[:turn]]:
            for direction, taken in samples[library].items():
                calls = max(1, min(MOST_CALLS, round(settings.sample / estimates[library][direction])))
                if len(taken) >= FEWEST and sum(each["seconds"] for each in taken) * calls > PATIENCE:
                    continue
                request = {"direction": direction, "calls": calls}
                answer = attempt(library, lambda: workers[library].ask("sample", **request))  # noqa: B023
                if answer is None:
                    del samples[library]
                    break
                taken.append(answer)
    yield from failures
    if OURS in samples and FLOOR in samples:
        for direction in DIRECTIONS:
            timings = {library: _timing(each[direction]) for library, each in samples.items()}
            yield Measurement(case, workers.threads, direction, timings)


def _timing(samples: Sequence[Mapping[str, float]]) -> Timing:
    host = tuple(each["host"] for each in samples if "host" in each)
    return Timing(tuple(each["seconds"] for each in samples), host)
