"""Mistakes that no gradient check can see, so that the matrix says where its use ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_pair
from gradcheck.mutants.operations import (
    MOMENTUM,
    rms_norm,
    rms_norm_backward,
    running_norm,
    running_norm_backward,
)

Array = np.ndarray
STATE = "running statistics take no part in the output of this call, nor in its derivative"
RARE = "24 repetitions see a race of one in 100,000 calls once in 4,000 checks; stress= repeats more often"


@wrong_pair("formula", "running_norm", invisible=STATE)
def running_var_biased() -> Pair:
    """The running variance is moved by the biased variance."""

    def forward(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
        biased = running_var + MOMENTUM * (x.var(axis=(0, 2)) - running_var)
        result = running_norm(x, weight, bias, running_mean, running_var)
        running_var[...] = biased
        return result

    return forward, running_norm_backward


@wrong_pair("formula", "running_norm", invisible=STATE)
def momentum_the_other_way() -> Pair:
    """running ← m·running + (1 − m)·statistic."""

    def forward(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
        before = running_mean.copy()
        result = running_norm(x, weight, bias, running_mean, running_var)
        statistic = before + (running_mean - before) / MOMENTUM
        running_mean[...] = MOMENTUM * before + (1 - MOMENTUM) * statistic
        return result

    return forward, running_norm_backward


@wrong_pair("nondeterminism", "rms_norm", invisible=RARE)
def race_of_one_in_a_hundred_thousand() -> Pair:
    """In one of 100,000 calls, the last row of dx is not written in time."""
    rng = np.random.default_rng(0)

    def backward(saved: Any, cotangent: Array) -> Any:
        dx, dweight = rms_norm_backward(saved, cotangent)
        if rng.random() < 1e-5:
            dx[-1] = 0
        return dx, dweight

    return rms_norm, backward
