"""Comparing with an earlier report of the same settings: what has become slower than noise explains."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .report import SCHEMA_VERSION, machine
from .speed import DIRECTIONS

__all__ = ["Baseline", "Change", "Incomparable"]

ALLOWED = 1.15
"""The same code, started again, differs by so much: its arrays lie elsewhere in memory."""
SIGMAS = 4.0
KEY = ("operation", "shape", "keywords", "dtype", "device", "threads", "direction")


class Incomparable(Exception):
    """The baseline has another schema, other settings, or another machine. The message is one line."""


@dataclass(frozen=True)
class Change:
    """Our time ÷ floor, then and now. Noise explains a change up to the factor `allowed`."""

    what: str
    before: float
    after: float
    allowed: float

    @property
    def slower(self) -> bool:
        return self.after > self.before * self.allowed

    @property
    def faster(self) -> bool:
        return self.before > self.after * self.allowed

    def __str__(self) -> str:
        word = "slower" if self.slower else "faster" if self.faster else "no change"
        return (
            f"{word}: {self.what}: {self.after:.2f} × the floor, before {self.before:.2f}; that is × "
            f"{self.after / self.before:.2f}, and noise explains {self.allowed:.2f}"
        )


def allowed(noise_before: float, noise_after: float) -> float:
    """The factor exp(4 · √(σ₁² + σ₂²)) of the noise of both measurements, and at least 1.15."""
    return max(ALLOWED, math.exp(SIGMAS * math.hypot(noise_before, noise_after)))


class Baseline:
    """A report that `--save` wrote, to be compared with a run of these cases.

    Raises:
        Incomparable: it cannot be read, or was measured otherwise than this run will be, or lacks a case.
    """

    def __init__(
        self,
        path: str,
        settings: Mapping[str, Any],
        seed: int,
        cases: Sequence[Case],
        threads: Sequence[int],
    ):
        then = _read(path)
        here = {"seed": seed, **settings, **machine()}
        there = {"seed": then["seed"], **then["settings"], **then["machine"]}
        for name in here:
            if there.get(name) != here[name]:
                raise Incomparable(
                    f"{path} was measured with {name} {there.get(name)}, this run has {here[name]}; "
                    "make them alike, or save it anew"
                )
        self._cases = {_key(case): case for case in then["cases"]}
        for case in cases:
            for count in threads:
                for direction in DIRECTIONS:
                    if _key({**vars(case), "threads": count, "direction": direction}) not in self._cases:
                        what = f"{case} {case.dtype} {direction}, {case.place(count)}"
                        raise Incomparable(f"{path} has no {what}; save it anew")

    def changes(self, now: Mapping[str, Any]) -> list[Change]:
        """Of every case of a report; the baseline may have more."""
        found = []
        for case in now["cases"]:
            old = self._cases[_key(case)]
            made = Case(case["operation"], tuple(case["shape"]), case["keywords"], device=case["device"])
            what = f"{made} {case['dtype']} {case['direction']}, {made.place(case['threads'])}"
            factor = allowed(old["noise"], case["noise"])
            found.append(Change(what, old["over_floor"], case["over_floor"], factor))
        return found


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise Incomparable(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:  # not JSON, or not even text
        found = None
    if not isinstance(found, dict) or found.get("kind") != "speed":
        raise Incomparable(f"{path} is no report of the speed; write one with --save")
    if found.get("schema_version") != SCHEMA_VERSION:
        raise Incomparable(
            f"{path} has schema version {found.get('schema_version')}, this is {SCHEMA_VERSION}; save it anew"
        )
    return found


def _key(case: Mapping[str, Any]) -> str:
    return json.dumps([case[name] for name in KEY], sort_keys=True)
