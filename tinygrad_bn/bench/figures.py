"""What follows from the times: best and median, ratios, their summary, and how noisy they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .libraries import FLOOR, OURS

__all__ = ["Measurement", "Summary", "Timing", "geometric_mean", "number", "summaries"]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one mean for each round. host: of a GPU's calls, until they were started."""

    seconds: tuple[float, ...]
    host: tuple[float, ...] = ()

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def call(self) -> float:
        """What a call costs the host at the least, which on a GPU does not wait for the result."""
        return min(self.host or self.seconds)


@dataclass(frozen=True)
class Measurement:
    """One direction of one case on some threads, by every library that serves it."""

    case: Case
    threads: int
    direction: str
    timings: dict[str, Timing]

    @property
    def ours(self) -> Timing:
        return self.timings[OURS]

    @property
    def floor(self) -> Timing:
        return self.timings[FLOOR]

    @property
    def peers(self) -> dict[str, Timing]:
        return {name: timing for name, timing in self.timings.items() if name not in (OURS, FLOOR)}

    @property
    def best_peer(self) -> str | None:
        """The peer whose best time is the shortest."""
        return min(self.peers, key=lambda name: self.peers[name].best, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time in units of ours, by best times: above 1, ours is faster."""
        return None if self.best_peer is None else self.peers[self.best_peer].best / self.ours.best

    @property
    def median_ratio(self) -> float | None:
        """The same by medians, each library's own."""
        if not self.peers:
            return None
        return min(peer.median for peer in self.peers.values()) / self.ours.median

    @property
    def over_floor(self) -> float:
        """Our time in units of the floor, by best times."""
        return self.ours.best / self.floor.best

    @property
    def of_copy(self) -> float | None:
        """The share of the copy's bandwidth that our best time comes to, if we moved no more than is needed.

        On a GPU, where the floor is a copy: it moves the input twice. None elsewhere, and where it is unknown
        how much is needed.
        """
        moved = self.case.arrays_moved(self.direction)
        if self.case.device == "cpu" or moved is None:
            return None
        return moved / 2 * self.floor.best / self.ours.best

    @property
    def noise(self) -> float:
        """The standard error of log(ours / floor), estimated from the rounds.

        Both are timed in each round, so what slows the machine down for a while cancels. Of the median of n
        values with the scaled median absolute deviation s, the standard error is 1.25 · s / √n.
        """
        logs = [
            math.log(ours / floor) for ours, floor in zip(self.ours.seconds, self.floor.seconds, strict=False)
        ]
        middle = statistics.median(logs)
        deviation = 1.4826 * statistics.median(abs(value - middle) for value in logs)
        return 1.2533 * deviation / math.sqrt(len(logs))

    def __str__(self) -> str:
        peer = "" if self.ratio is None else f", best peer {self.best_peer} ÷ ours {number(self.ratio)}"
        return (
            f"{self.case} {self.case.dtype} {self.direction}, {self.case.place(self.threads)}: "
            f"{number(self.ours.best * 1e3)} ms, ours ÷ floor {number(self.over_floor)}{peer}"
        )

    def as_json(self) -> dict[str, Any]:
        def timing(of: Timing) -> dict[str, float]:
            host = {"host": min(of.host)} if of.host else {}
            return {"best": of.best, "median": of.median, "rounds": len(of.seconds), **host}

        case = self.case
        return {
            "operation": case.operation, "shape": list(case.shape), "keywords": dict(case.keywords),
            "dtype": case.dtype, "device": case.device, "threads": self.threads, "direction": self.direction,
            "floor": timing(self.floor), "ours": timing(self.ours),
            "peers": {name: timing(of) for name, of in self.peers.items()},
            "best_peer": self.best_peer, "ratio": self.ratio,
            "median_ratio": self.median_ratio,
            "over_floor": self.over_floor, "noise": self.noise, "of_copy": self.of_copy,
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """All cases of a family (the operation's namespace), a dtype, a direction, and a number of threads.

    `mean` is the geometric mean of best peer ÷ ours, `worst` the smallest; None where there was no peer.
    """

    family: str
    dtype: str
    threads: int
    direction: str
    count: int
    mean: float | None
    worst: float | None
    worst_case: str
    mean_over_floor: float
    worst_over_floor: float


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def number(value: float | None, digits: int = 3) -> str:
    """To three digits, without an exponent; empty for None."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def summaries(measurements: Sequence[Measurement]) -> list[Summary]:
    """One for each group, in the order of the measurements."""
    groups: dict[tuple[str, str, int, str], list[Measurement]] = {}
    for each in measurements:
        key = (each.case.spec.namespace, each.case.dtype, each.threads, each.direction)
        groups.setdefault(key, []).append(each)
    found = []
    for key, group in groups.items():
        compared = [(each.ratio, str(each.case)) for each in group if each.ratio is not None]
        worst, worst_case = min(compared, default=(None, ""))
        found.append(
            Summary(
                *key,
                len(group),
                geometric_mean(ratio for ratio, _ in compared) if compared else None,
                worst,
                worst_case,
                geometric_mean(each.over_floor for each in group),
                max(each.over_floor for each in group),
            )
        )
    return found
