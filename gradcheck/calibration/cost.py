"""What a check costs: a float64 BatchNorm of growing size, beside torch's own checker on the same one."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcheck.axes import Configuration
from gradcheck.calibration.pairs import pair_for
from gradcheck.harness import check, check_pair
from gradcheck.report import Report

__all__ = ["SHAPES", "TORCH_SLOW", "Cost", "costs", "has_torch"]

SHAPES = {60: (5, 4, 3), 240: (20, 4, 3), 960: (20, 8, 6), 3840: (40, 16, 6)}
NUMPY, TORCH = "check_pair, NumPy", "check, torch"
TORCH_SLOW, TORCH_FAST = "torch gradcheck, slow", "torch gradcheck, fast"
PATIENCE = 10.0  # seconds for one checker at one size, after which it gets no further round
FEWEST = 3  # rounds that every one gets

Run = Callable[[], Report | None]


@dataclass(frozen=True)
class Cost:
    """Of one checker at one size: seconds, best and median, and how often it called the function."""

    elements: int
    checker: str
    rounds: int
    best: float
    median: float
    forwards: int
    backwards: int | None


def has_torch() -> bool:
    """Whether there is something to compare with."""
    return importlib.util.find_spec("torch") is not None


def costs(elements: int, rounds: int, seed: int) -> list[Cost]:
    """Time every checker at one size, in interleaved rounds, after a first one that does not count.

    torch gets one thread: on so few elements more of them only wait for each other.
    """
    with _one_thread() if has_torch() else contextlib.nullcontext():
        return _costs(elements, rounds, seed)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _costs(elements: int, rounds: int, seed: int) -> list[Cost]:
    configuration = Configuration("batch_norm", SHAPES[elements], channel_axis=1)
    pair = pair_for(configuration, configuration.draw(seed))
    runs: dict[str, Run] = {
        NUMPY: lambda: check_pair(pair.forward, pair.backward, pair.inputs, input_names=pair.names, seed=seed)
    }
    calls = [0]
    if has_torch():
        runs |= _of_torch(pair.inputs, calls, seed)
    counts, seconds = {}, {name: list[float]() for name in runs}
    for name, run in runs.items():
        calls[0] = 0
        report = run()
        counts[name] = (calls[0], None) if report is None else (report.evaluations, report.vjps)
    for _ in range(rounds):
        for name, run in runs.items():
            if len(seconds[name]) >= FEWEST and sum(seconds[name]) > PATIENCE:
                continue
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return [
        Cost(elements, name, len(taken), min(taken), statistics.median(taken), *counts[name])
        for name, taken in seconds.items()
    ]


def _of_torch(inputs: tuple[np.ndarray, ...], calls: list[int], seed: int) -> dict[str, Run]:
    import torch

    def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
        calls[0] += 1
        return torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)

    tensors = tuple(torch.from_numpy(each.copy()).requires_grad_() for each in inputs)

    def ours() -> Report:
        return check(batch_norm, tensors, seed=seed)

    def theirs(fast: bool) -> Run:
        def run() -> None:
            torch.autograd.gradcheck(batch_norm, tensors, fast_mode=fast)

        return run

    return {TORCH: ours, TORCH_SLOW: theirs(False), TORCH_FAST: theirs(True)}
