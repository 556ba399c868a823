"""How exact float32 results are, ours beside torch's, on the same inputs: the distance from the definition in
float64, in units of u · max|result|, where u = 2⁻²⁴ is the rounding error of float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .libraries import OURS
from .pool import Unserved, Workers

__all__ = ["Accuracy", "accuracies", "accuracy_cases"]

UNIT = 2.0**-24
DEFINITION = "numpy"
LONG = 10_000_000
LAST: Mapping[str, Any] = {"channel_axis": -1}
# Operation, shape, and one whose statistics are each of 10 million elements.
SHAPES: tuple[tuple[str, tuple[int, ...], tuple[int, ...] | None, Mapping[str, Any]], ...] = (
    ("norm::batch_norm", (64, 32, 16, 16), (100, 1, LONG // 100), {}),
    ("norm::batch_norm", (64, 16, 16, 32), (100, LONG // 100, 1), LAST),
    ("norm::batch_norm_inference", (64, 32, 16, 16), None, {}),
    ("norm::instance_norm", (16, 32, 32, 32), (1, 1, LONG), {}),
    ("norm::group_norm", (16, 32, 16, 16), (1, 2, LONG // 2), {}),
    ("norm::layer_norm", (256, 1024), (1, LONG), {}),
    # Without eps each precision has its own, and that of float32 is as large as the errors.
    ("norm::rms_norm", (256, 1024), (1, LONG), {"eps": 1e-6}),
)


@dataclass(frozen=True)
class Accuracy:
    """The largest error of one result, by library."""

    case: Case
    result: str
    errors: Mapping[str, float]


def accuracy_cases(seed: int) -> Iterator[Case]:
    """Around a mean of 0 and of 10,000; and long sums."""
    for operation, shape, long, keywords in SHAPES:
        for each, mean, groups in ((shape, 0.0, 8), (shape, 1e4, 8), (long, 0.0, 1)):
            if each is not None:
                more = {"num_groups": groups} if operation == "norm::group_norm" else {}
                yield Case(operation, each, {**keywords, **more}, "float32", seed, mean)


def accuracies(case: Case, libraries: Sequence[str], workers: Workers) -> Iterator[Accuracy]:
    """Of the output and of each gradient. Raises pool.Failed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folders = {library: Path(name, library) for library in (DEFINITION, OURS, *libraries)}
        for library, folder in list(folders.items()):
            folder.mkdir()
            try:
                workers.prepare(library, case, save=str(folder), reference=library == DEFINITION)
            except Unserved:
                del folders[library]
        reference = folders.pop(DEFINITION)
        results = ["output", *(f"gradient of {case.spec.inputs[p]}" for p in case.spec.gradients)]
        for position, result in enumerate(results):
            exact = np.load(reference / f"{position}.npy")
            scale = UNIT * float(np.max(np.abs(exact)))
            errors = {
                library: float(np.max(np.abs(np.load(folder / f"{position}.npy") - exact))) / scale
                for library, folder in folders.items()
            }
            yield Accuracy(case, result, errors)
