"""False alarms: what the checker says of correct code, over configurations drawn at random.

Every fourth configuration is one of tinygrad_bn's own kernels, the others are NumPy pairs. Under stress they
are made as hard as float32 allows: statistics of two values, constant rows, kinks, mean 1e4, scales from
1e-3 to 1e4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from gradcheck.axes import VALUES, Configuration
from gradcheck.calibration.draws import random_configuration
from gradcheck.calibration.pairs import RightPair, pair_for, plain
from gradcheck.calibration.rates import ALARMS
from gradcheck.harness import check_pair
from gradcheck.judge import Verdict

__all__ = ["Bounds", "Outcome", "Sweep", "bounds"]

BATCH = 20
STRESSES = ("two values", "constant row", "kink", "mean 1e4", "scale")


@dataclass(frozen=True)
class Bounds:
    """The largest rates that are accepted: of false alarms, and of INCONCLUSIVE."""

    alarms: float
    inconclusive: float


@dataclass(frozen=True)
class Outcome:
    """What was said of one configuration: `number` is its own, `subject` what was checked there."""

    number: int
    subject: str
    text: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Sweep:
    """Which configurations: the numbers 0, 1, 2, … of a seed, each repeatable alone."""

    dtype: str = "float64"
    stress: bool = False
    seed: int = 0

    def run(self, numbers: range, jobs: int = 1) -> Iterator[Outcome]:
        """Check these, in their order, in so many processes."""
        if jobs == 1:
            yield from map(self.outcome, numbers)
            return
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            parts = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
            for outcomes in pool.map(partial(_run_all, self), parts):
                yield from outcomes

    def outcome(self, number: int) -> Outcome:
        """Draw and check one."""
        rng = np.random.default_rng([self.seed, number, self.stress])
        ordinary = self.dtype == "float32" and not self.stress
        configuration = random_configuration(rng, self.dtype, ordinary=ordinary)
        if number % 4 == 0:
            return self._of_kernels(number, configuration)
        configuration, stress = plain(configuration), ""
        if self.stress:
            stress = str(rng.choice(STRESSES))
            values = stress if stress in VALUES else "normal"
            configuration = dataclasses.replace(configuration, values=values)
            configuration = _with_two_values(configuration) if stress == "two values" else configuration
        pair = _stressed(configuration, stress, rng, number)
        report = check_pair(
            pair.forward,
            pair.backward,
            pair.inputs,
            differentiable=pair.differentiable,
            zero=pair.zero,
            input_names=pair.names,
            name=configuration.operation,
            seed=number,
        )
        text = f"{configuration}" + (f", {stress}" if stress else "")
        return Outcome(number, "numpy", text, report.verdict, "; ".join(report.reasons))

    def _of_kernels(self, number: int, configuration: Configuration) -> Outcome:
        from gradcheck.adapters.tinygrad_bn import check_configuration

        result = check_configuration(configuration, number)
        return Outcome(number, "tinygrad_bn", str(configuration), result.verdict, "; ".join(result.reasons))


def bounds(sweep: Sweep) -> Bounds:
    """What the checker promises: nothing in ordinary cases, one in a thousand under stress."""
    return Bounds(1e-3, 0.05) if sweep.stress else Bounds(0.0, 0.005)


def is_alarm(outcome: Outcome) -> bool:
    """Whether correct code was accused."""
    return outcome.verdict in ALARMS


def _run_all(sweep: Sweep, numbers: range) -> list[Outcome]:
    return [sweep.outcome(number) for number in numbers]


def _with_two_values(c: Configuration) -> Configuration:
    """The same operation over two values per statistic, where it has statistics."""
    if c.mode == "inference" or c.operation == "dropout":
        return c
    if c.tail is not None:
        return dataclasses.replace(c, shape=(*c.shape[:-1], 2), tail=1)
    if c.operation == "group_norm":
        spatial = (1,) * (c.rank - 2)
        shape = (3, 6, *spatial) if c.channel_axis == 1 else (3, *spatial, 6)
        return dataclasses.replace(c, shape=shape, groups=3)
    two = (1, 3, 2) if c.channel_axis == 1 else (1, 2, 3)
    return dataclasses.replace(c, shape=two)


def _stressed(c: Configuration, stress: str, rng: np.random.Generator, seed: int) -> RightPair:
    arrays = c.draw(seed)
    if stress == "scale":
        arrays.input[...] *= 10 ** rng.uniform(-3, 4)
    pair = pair_for(c, arrays.astype(c.dtype), seed)
    return _kinked(pair, rng) if stress == "kink" else pair


def _kinked(pair: RightPair, rng: np.random.Generator) -> RightPair:
    """y + max(y − level, 0)/2: the kink lies as near to one element of the output as 1e-9 to 0.1."""
    y, _ = pair.forward(*pair.inputs)
    beside = rng.choice((-1, 1)) * 10 ** rng.uniform(-9, -1)
    level = float(y.reshape(-1)[rng.integers(y.size)] + beside)

    def forward(*inputs: np.ndarray) -> tuple[np.ndarray, object]:
        y, saved = pair.forward(*inputs)
        return y + np.maximum(y - level, 0) / 2, (saved, y > level)

    def backward(saved: tuple[object, np.ndarray], cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        inner, above = saved
        return pair.backward(inner, cotangent + cotangent * above / 2)

    return dataclasses.replace(pair, forward=forward, backward=backward)
