"""Calls of a pair with their arguments watched: what no call may write to is compared byte by byte after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.judge import Verdict
from gradcheck.subject import Arrays, Context, Subject, Violation

__all__ = ["Run"]


@dataclass(slots=True)
class Run:
    """One forward pass, and any number of backward passes over what it saved."""

    subject: Subject
    inputs: Arrays
    output: np.ndarray
    context: Context
    saved: list[np.ndarray]  # the arrays in what forward saved
    _inputs_before: list[bytes | None]

    @classmethod
    def forward(cls, subject: Subject, inputs: Arrays) -> Run:
        """Call forward and require the inputs to be left as they were."""
        before = _bytes_of(inputs)
        output, context = subject.run_forward(inputs)
        # What is declared as state may be written to, and may be saved.
        saved = [
            array
            for array in _arrays_in(context.saved, walk_objects=not subject.framework)
            if not any(np.may_share_memory(array, state) for state in context.state)
        ]
        run = cls(subject, inputs, output, context, saved, before)
        run._require_inputs("forward")
        return run

    def backward(self, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        """Call backward and require inputs, cotangent and saved arrays to be left as they were."""
        before = cotangent.tobytes()
        # As it is now: whether it matters that another forward wrote to it, the gradients will tell.
        saved_before = [array.tobytes() for array in self.saved]
        gradients = self.subject.run_backward(self.context, cotangent)
        self._require_inputs("backward")
        if cotangent.tobytes() != before:
            raise Violation(Verdict.ERROR, "backward modified its cotangent; work on a copy")
        if [array.tobytes() for array in self.saved] != saved_before:
            raise Violation(
                Verdict.ERROR,
                "backward modified an array that forward saved; a second backward would be wrong",
            )
        return gradients

    def _require_inputs(self, who: str) -> None:
        after = _bytes_of(self.inputs)
        if after == self._inputs_before:
            return
        name = next(
            name
            for name, old, new in zip(self.subject.names, self._inputs_before, after, strict=True)
            if old != new
        )
        reason = f"{who} modified its input {name}; work on a copy, or declare it with state=({name!r},)"
        raise Violation(Verdict.ERROR, reason, input=name)


def _bytes_of(inputs: Arrays) -> list[bytes | None]:
    return [None if array is None else array.tobytes() for array in inputs]


def _arrays_in(saved: Any, *, walk_objects: bool, depth: int = 4) -> Iterator[np.ndarray]:
    """The arrays in what forward saved; a framework's objects hold graphs, so those are not walked."""
    if isinstance(saved, np.ndarray):
        yield saved
        return
    if isinstance(saved, dict):
        inner = list(saved.values())
    elif isinstance(saved, (tuple, list)):
        inner = list(saved)
    elif walk_objects and not callable(saved):
        inner = list(getattr(saved, "__dict__", {}).values())
    else:
        return
    if depth:
        for item in inner:
            yield from _arrays_in(item, walk_objects=walk_objects, depth=depth - 1)
