"""A process that runs one library: `python -m tinygrad_bn.bench.worker LIBRARY [PLUGIN.py …]`.

It reads requests from stdin, one JSON object a line, and answers each with one on stdout. What the library
itself prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..registry import REGISTRY
from . import libraries
from .cases import Case
from .libraries.streams import Stream
from .timing import OnDevice, OnHost, copies_needed

__all__ = ["main"]

DIRECTIONS = ("forward", "backward")
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-3, "float64": 1e-8}
"""Of the largest value: wrong formulas are further off, and rounding in another order is not."""


class Worker:
    """The library, and the case that it has prepared."""

    def __init__(self, name: str):
        self.name = name
        self.current: Any = None
        self.timer: OnHost | OnDevice | None = None
        self._streams: dict[str, Stream] = {}

    def prepare(
        self, case: Mapping[str, Any], reference: bool = False, graph: bool = False, **files: str
    ) -> dict[str, Any]:
        """Make the inputs and run both passes, which compiles what is to be compiled; how long each takes.

        save: a folder for the results. expected: one where another library saved its own, which these must
        equal. graph: replay the passes as CUDA graphs.
        """
        self.current = self.timer = None  # before the next inputs are made
        made = Case.from_json(case)
        library = libraries.load(self.name, made.device)
        if made.device != "cpu" and made.device not in self._streams:  # before anything is started on it
            self._streams[made.device] = library.stream(int(made.device.partition(":")[2] or 0))
        self.current = library(made, **({"reference": True} if reference else {}))
        if "save" in files or "expected" in files:
            self._results(made, **files)
        self.timer = OnHost(self.current)
        if made.device != "cpu":
            stream = self._streams[made.device]
            more = copies_needed(made.nbytes, stream.cache_bytes) - 1
            self.timer = OnDevice([self.current, *(library(made) for _ in range(more))], stream, graph)
        for direction in DIRECTIONS:
            self.sample(direction, 1)
        return {direction: self.sample(direction, 1)["seconds"] for direction in DIRECTIONS}

    def sample(self, direction: str, calls: int) -> dict[str, float]:
        """The mean time of some calls."""
        assert self.timer is not None, "prepare a case first"
        return self.timer.sample(direction, calls)

    def memory(self) -> dict[str, int | None]:
        """Of the case that is prepared; of ours alone."""
        from .memory import measure

        return measure(self.current)

    def _results(self, case: Case, save: str = "", expected: str = "") -> None:
        library = self.current
        recorded = library.record()
        output = library.numpy(recorded)
        found = [_wide(each) for each in (output, *map(library.numpy, library.backward(recorded)))]
        if save:
            for position, array in enumerate(found):
                np.save(Path(save, f"{position}.npy"), array)
        elif case.spec.rng:
            _check_mask(case, found[0], found[1])
        else:
            # Gradients of a norm are about as large as the cotangents, which are drawn of size 1. Where they
            # are far smaller, as of rows of one value, rounding is all that cancellation has left.
            least = 1.0 if (case.spec.terms or "").endswith("norm") else 0.0
            for position, array in enumerate(found):
                wanted = np.load(Path(expected, f"{position}.npy"), mmap_mode="r")
                what = "the output" if position == 0 else f"gradient {position} of {len(found) - 1}"
                _check_equal(case, what, array, wanted, least if position else 0.0)


def _wide(array: np.ndarray) -> np.ndarray:
    """16-bit floats as float32: a file would not know bfloat16 again."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _check_equal(case: Case, what: str, found: np.ndarray, wanted: np.ndarray, least: float = 0.0) -> None:
    """Raises AssertionError; `least` is the smallest scale that an error is held to."""
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} has shape {found.shape}, tinygrad_bn's has {wanted.shape}")
    scale = float(np.max(np.abs(wanted), initial=least))
    error = float(np.max(np.abs(found - wanted), initial=0.0))
    if not error <= TOLERANCE[case.dtype] * scale:
        raise AssertionError(
            f"{what} differs from tinygrad_bn's by {error:.2g}, where the largest is {scale:.2g}"
        )


def _check_mask(case: Case, output: np.ndarray, gradient: np.ndarray) -> None:
    """A mask of one's own cannot be compared; but the share that it keeps and the scale can be."""
    p = case.arguments.get("p", 0.5)
    x, cotangent = _wide(case.arrays()[0]), _wide(case.cotangent(output.shape))
    kept = output != 0
    sigma = max(float(np.sqrt(p * (1 - p) / output.size)), 1e-12)
    if abs(float(kept.mean()) - (1 - p)) > 6 * sigma:
        raise AssertionError(f"it keeps {kept.mean():.3f} of the elements at p = {p}")
    for what, array, source in (("the output", output, x), ("the gradient", gradient, cotangent)):
        _check_equal(case, what, array, np.where(kept, source / (1 - p) if p < 1 else 0, 0))


def _load_plugin(path: str) -> None:
    """Declare the operations of a plugin file, which the command has loaded without an error."""
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if callable(getattr(module, "declare", None)):
        module.declare(REGISTRY)


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, *plugins = sys.argv[1:]
    for path in plugins:
        _load_plugin(path)
    worker = Worker(name)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except libraries.Unserved:
            answer = {"unserved": True}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
