"""Gradients that depend on other calls, on chance, or on another mask than their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.named.pieces import STATISTICS, Gradients, pieces, right
from gradcheck.mutants.operations import (
    P,
    RmsSaved,
    Saved,
    dropout,
    inference_norm,
    moment_norm,
    rms_norm,
    running_norm,
)

Array = np.ndarray


def _rms_backward(saved: RmsSaved, cotangent: Array) -> Gradients:
    return tuple(right("rms_norm", saved, cotangent))


@wrong_pair("state", "moment_norm")
def statistics_of_the_latest_call() -> Pair:
    """Backward reads the statistics that the latest forward call left behind."""
    latest: dict[str, Saved] = {}

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, latest["saved"] = moment_norm(x, weight, bias)
        return y, latest["saved"]

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        other = latest["saved"]
        if other.rstd.shape == saved.rstd.shape:
            saved = saved._replace(mean=other.mean, rstd=other.rstd)
        return tuple(right("moment_norm", saved, cotangent))

    return forward, backward


@wrong_pair("state", "moment_norm")
def input_of_the_latest_call() -> Pair:
    """Backward reads the x of the latest forward call."""
    latest: dict[str, Array] = {}

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        latest["x"] = x
        return moment_norm(x, weight, bias)

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        x = latest["x"] if latest["x"].shape == saved.x.shape else saved.x
        return tuple(right("moment_norm", saved._replace(x=x), cotangent))

    return forward, backward


@wrong_pair("state", "moment_norm")
def rstd_cached_by_shape() -> Pair:
    """rstd is computed for the first x of each shape, and kept."""
    cache: dict[Any, Array] = {}

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, saved = moment_norm(x, weight, bias)
        return y, saved._replace(rstd=cache.setdefault((x.shape, x.dtype), saved.rstd))

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("moment_norm", saved, cotangent))

    return forward, backward


@wrong_pair("state", "rms_norm")
def statistics_cached_by_first_element() -> Pair:
    """rstd is kept for each x, known by its shape and first element."""
    cache: dict[Any, Array] = {}

    def forward(x: Array, weight: Array) -> Any:
        y, saved = rms_norm(x, weight)
        key = (x.shape, x.dtype, float(x.flat[0]))
        return y, saved._replace(rstd=cache.setdefault(key, saved.rstd))

    return forward, _rms_backward


@wrong_pair("state", "rms_norm")
def weight_of_the_first_call() -> Pair:
    """γ is converted once, at the first call of each length, and kept."""
    cache: dict[Any, Array] = {}

    def forward(x: Array, weight: Array) -> Any:
        y, saved = rms_norm(x, weight)
        return y, saved._replace(weight=cache.setdefault((weight.shape, weight.dtype), weight.copy()))

    return forward, _rms_backward


@wrong_pair("state", "rms_norm")
def gradient_accumulates() -> Pair:
    """dγ is added to that of the calls before."""
    total: dict[Any, Array] = {}

    def backward(saved: RmsSaved, cotangent: Array) -> Gradients:
        dx, dweight = right("rms_norm", saved, cotangent)
        key = (dweight.shape, dweight.dtype)
        total[key] = total.get(key, 0) + dweight
        return dx, total[key].copy()

    return rms_norm, backward


@wrong_pair("state", "moment_norm")
def second_backward_over_freed_values() -> Pair:
    """The saved mean is given up after the first backward pass over a context, and later ones take 0."""
    done: list[Saved] = []

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        if any(saved is other for other in done):
            return tuple(right("moment_norm", saved._replace(mean=0 * saved.mean), cotangent))
        done.append(saved)
        return tuple(right("moment_norm", saved, cotangent))

    return moment_norm, backward


@wrong_pair("state", "moment_norm")
def tenth_call_wrong() -> Pair:
    """Every tenth backward pass uses a workspace that was not cleared."""
    calls = {"backward": 0}

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        calls["backward"] += 1
        p = pieces(saved, cotangent)
        left = p.mean_path if calls["backward"] % 10 == 0 else 0
        return p.dx + p.rstd * left, p.dweight, p.dbias

    return moment_norm, backward


@wrong_pair("state", "running_norm")
def running_statistics_saved_by_reference() -> Pair:
    """Backward centres with the running mean, which forward saved without a copy."""

    def forward(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
        y, saved = running_norm(x, weight, bias, running_mean, running_var)
        return y, (saved, running_mean)

    def backward(kept: Any, cotangent: Array) -> Gradients:
        saved, running_mean = kept
        drift = 1e-3 * (running_mean.reshape(saved.mean.shape) - saved.mean)
        return tuple(right("running_norm", saved._replace(mean=saved.mean + drift), cotangent))

    return forward, backward


@wrong_pair("state", "inference_norm")
def inference_statistics_of_the_first_call() -> Pair:
    """rstd is folded into γ at the first call for each number of channels, and kept."""
    folded: dict[Any, Array] = {}

    def forward(x: Array, *others: Array) -> Any:
        y, saved = inference_norm(x, *others)
        return y, saved._replace(rstd=folded.setdefault((saved.rstd.shape, saved.rstd.dtype), saved.rstd))

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("inference_norm", saved, cotangent))

    return forward, backward


def _mask(key: Array, shape: tuple[int, ...]) -> Array:
    return np.asarray(np.random.default_rng(key).random(shape) >= P)


def _dropout_with(mask: Callable[[Array, Array], Array]) -> Pair:
    """Dropout whose backward pass takes its mask from a function of (keep, key)."""

    def forward(x: Array, key: Array) -> Any:
        y, keep = dropout(x, key)
        return y, (keep, key)

    def backward(saved: Any, cotangent: Array) -> Gradients:
        keep, key = saved
        return cotangent * mask(keep, key) / (1 - P), None

    return forward, backward


@wrong_pair("rng", "dropout")
def mask_redrawn() -> Pair:
    """Backward draws a mask of its own, another one at each call."""
    rng = np.random.default_rng(0)
    return _dropout_with(lambda keep, key: rng.random(keep.shape) >= P)


@wrong_pair("rng", "dropout")
def mask_of_the_next_key() -> Pair:
    """Backward draws its mask with the key of the next call."""
    return _dropout_with(lambda keep, key: _mask(key + 1, keep.shape))


@wrong_pair("rng", "dropout")
def mask_cached_by_shape() -> Pair:
    """The mask of the first call of each shape is kept for the backward passes of all."""
    cache: dict[Any, Array] = {}
    return _dropout_with(lambda keep, key: cache.setdefault(keep.shape, keep))


@wrong_pair("rng", "dropout")
def mask_drawn_for_the_transposed_shape() -> Pair:
    """Backward draws the right numbers for the transposed array."""
    return _dropout_with(lambda keep, key: _mask(key, keep.shape[::-1]).T)


@wrong_pair("rng", "dropout")
def mask_from_the_stream_after_the_first() -> Pair:
    """Backward draws on from where forward stopped in the same stream."""

    def mask(keep: Array, key: Array) -> Array:
        return np.asarray(np.random.default_rng(key).random((2, *keep.shape))[1] >= P)

    return _dropout_with(mask)


@wrong_pair("rng", "dropout")
def mask_compared_the_other_way() -> Pair:
    """Backward keeps what is below 1 − p, forward what is not below p."""
    return _dropout_with(lambda keep, key: np.random.default_rng(key).random(keep.shape) < 1 - P)


@wrong_pair("rng", "dropout")
def mask_of_another_probability() -> Pair:
    """Backward draws the mask with p = 0.3."""
    return _dropout_with(lambda keep, key: np.random.default_rng(key).random(keep.shape) >= 0.3)


@wrong_backward("rng", "dropout")
def mask_guessed_from_the_cotangent(keep: Array, cotangent: Array) -> Gradients:
    """The mask is not kept; backward takes what has a cotangent of zero or less than p for dropped."""
    return cotangent * (np.abs(cotangent) > P) / (1 - P), None


@wrong_pair("nondeterminism", "moment_norm")
def lost_update_in_dweight() -> Pair:
    """In one of six calls, two threads add to dγ at once, and one addition is lost."""
    rng = np.random.default_rng(0)

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        p = pieces(saved, cotangent)
        if rng.random() < 1 / 6:
            p.dweight[0, 0] -= cotangent[0, 0, 0, 0, 0] * p.x_hat[0, 0, 0, 0, 0]
        return p.dx, p.dweight, p.dbias

    return moment_norm, backward


@wrong_pair("nondeterminism", "moment_norm")
def sums_read_before_the_barrier() -> Pair:
    """In one of six calls, the last slice's mean is read before all threads have added to it."""
    rng = np.random.default_rng(0)

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        p = pieces(saved, cotangent)
        if rng.random() < 1 / 6:
            early = p.g[..., :1].sum(STATISTICS, keepdims=True) / (p.g.size / p.rstd.size)
            p.dx[-1] = (p.rstd * (p.g - 0.5 * early - p.variance_path))[-1]
        return p.dx, p.dweight, p.dbias

    return moment_norm, backward


@wrong_pair("nondeterminism", "rms_norm")
def row_not_written_in_time() -> Pair:
    """In one of six calls, the last row of dx holds what was in memory before."""
    rng = np.random.default_rng(0)

    def backward(saved: RmsSaved, cotangent: Array) -> Gradients:
        dx, dweight = right("rms_norm", saved, cotangent)
        if rng.random() < 1 / 6:
            dx[-1] = 0
        return dx, dweight

    return rms_norm, backward


@wrong_pair("nondeterminism", "rms_norm")
def addition_made_twice() -> Pair:
    """In one of eight calls, a row is added to dγ twice."""
    rng = np.random.default_rng(0)

    def backward(saved: RmsSaved, cotangent: Array) -> Gradients:
        dx, dweight = right("rms_norm", saved, cotangent)
        if rng.random() < 1 / 8:
            dweight += (cotangent * saved.x * saved.rstd)[0]
        return dx, dweight

    return rms_norm, backward
