"""Comparing with an earlier report of the same settings: what has become slower than noise explains."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .report import SCHEMA_VERSION

__all__ = ["Change", "Incomparable", "changes", "read"]

ALLOWED = 0.10
"""The same code, started again, differs by so much: where its arrays lie in memory differs."""
SIGMAS = 4.0
KEY = ("operation", "shape", "keywords", "dtype", "threads", "direction")


class Incomparable(Exception):
    """The baseline is of another schema, other settings or another machine. The message is one line."""


@dataclass(frozen=True)
class Change:
    """Our time ÷ floor, then and now. `allowed` is the factor up to which a change may be noise."""

    what: str
    before: float
    after: float
    allowed: float

    @property
    def factor(self) -> float:
        return self.after / self.before

    @property
    def slower(self) -> bool:
        return self.factor > self.allowed

    @property
    def faster(self) -> bool:
        return self.factor < 1 / self.allowed


def read(path: str) -> dict[str, Any]:
    """A report that `--save` wrote. Raises Incomparable."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise Incomparable(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "schema_version" not in found or "kind" not in found:
        raise Incomparable(f"{path} is no report of bench; write one with --save")
    if found["schema_version"] != SCHEMA_VERSION:
        raise Incomparable(
            f"{path} has schema version {found['schema_version']}, this is {SCHEMA_VERSION}; save it anew"
        )
    if found["kind"] != "speed":
        raise Incomparable(
            f"{path} is a report of bench {found['kind']}; --compare wants one of bench itself"
        )
    return found


def check(
    path: str, then: Mapping[str, Any], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> None:
    """Raise Incomparable unless the baseline was measured as this run will be."""
    for what, old, new in (("settings", then["settings"], settings), ("machine", then["machine"], machine)):
        for name in {*old, *new}:
            if old.get(name) != new.get(name):
                raise Incomparable(
                    f"{path} has other {what}: {name} is {old.get(name)} there, {new.get(name)} here; "
                    "measure both alike, or save it anew"
                )


def changes(path: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """One for each case of `now`, of which `then` may have more. Raises Incomparable where it lacks one.

    A change counts beyond exp(4·√(σ₁² + σ₂²)), where σ is the `noise` of a case in each report, and
    never below 1.1.
    """
    known = {_key(case): case for case in then["cases"]}
    found = []
    for case in now["cases"]:
        old = known.get(_key(case))
        what = " ".join([case["operation"], ",".join(map(str, case["shape"]))])
        what += "".join(f" {name}={value}" for name, value in case["keywords"].items())
        what += f" {case['dtype']} {case['direction']} threads {case['threads']}"
        if old is None:
            raise Incomparable(f"{path} has no case {what}; save it anew")
        noise = math.hypot(old["noise"], case["noise"])
        allowed = max(1 + ALLOWED, math.exp(SIGMAS * noise))
        found.append(Change(what, old["over_floor"], case["over_floor"], allowed))
    return found


def _key(case: Mapping[str, Any]) -> str:
    return json.dumps([case[name] for name in KEY], sort_keys=True)
