"""Errors of a few parts in a million; ε in the wrong place; and too few digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.named.pieces import PARAMETERS, STATISTICS, Gradients, expand, pieces, right
from gradcheck.mutants.operations import EPS, P, RmsSaved, Saved, moment_norm

Array = np.ndarray


def _with_rstd(saved: Saved, cotangent: Array, rstd: Array) -> Gradients:
    """The gradients where backward computes another rstd than forward did."""
    p = pieces(saved._replace(rstd=rstd), cotangent)
    return p.dx, p.dweight, p.dbias


def _variance(saved: Saved) -> Array:
    return np.asarray(np.square(saved.x - saved.mean).mean(STATISTICS, keepdims=True))


@wrong_backward("tiny", "moment_norm")
def dx_off_by_a_millionth(saved: Saved, cotangent: Array) -> Gradients:
    """dx is 1 + 1e-6 times what it should be."""
    p = pieces(saved, cotangent)
    return p.dx * (1 + 1e-6), p.dweight, p.dbias


@wrong_backward("tiny", "moment_norm")
def dweight_off_by_a_millionth(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is 1 + 1e-6 times what it should be."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight * (1 + 1e-6), p.dbias


@wrong_backward("tiny", "moment_norm")
def dbias_off_by_a_millionth(saved: Saved, cotangent: Array) -> Gradients:
    """dβ is 1 − 1e-6 times what it should be."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight, p.dbias * (1 - 1e-6)


@wrong_backward("tiny", "moment_norm")
def variance_path_off_by_a_millionth(saved: Saved, cotangent: Array) -> Gradients:
    """The variance path is 1 + 1e-6 times what it should be."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.mean_path - (1 + 1e-6) * p.variance_path), p.dweight, p.dbias


@wrong_backward("tiny", "moment_norm")
def mean_path_off_by_a_millionth(saved: Saved, cotangent: Array) -> Gradients:
    """The mean path is 1 − 1e-6 times what it should be."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - (1 - 1e-6) * p.mean_path - p.variance_path), p.dweight, p.dbias


@wrong_backward("tiny", "moment_norm")
def eps_outside_the_root(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes 1/(σ + ε)."""
    return _with_rstd(saved, cotangent, 1 / (np.sqrt(_variance(saved)) + EPS))


@wrong_backward("tiny", "moment_norm")
def eps_squared(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes 1/√(σ² + ε²)."""
    return _with_rstd(saved, cotangent, 1 / np.sqrt(_variance(saved) + EPS**2))


@wrong_backward("tiny", "moment_norm")
def eps_twice(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes 1/√(σ² + 2ε)."""
    return _with_rstd(saved, cotangent, 1 / np.sqrt(_variance(saved) + 2 * EPS))


@wrong_backward("tiny", "moment_norm")
def eps_of_another_library(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes ε = 1e-6, forward 1e-5."""
    return _with_rstd(saved, cotangent, 1 / np.sqrt(_variance(saved) + 1e-6))


@wrong_backward("tiny", "moment_norm")
def variance_clamped_at_eps(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes 1/√max(σ², ε)."""
    return _with_rstd(saved, cotangent, 1 / np.sqrt(np.maximum(_variance(saved), EPS)))


@wrong_backward("tiny", "moment_norm")
def eps_left_out_of_the_variance_path(saved: Saved, cotangent: Array) -> Gradients:
    """The variance path divides by σ² in place of σ² + ε, as if mean(x̂²) were 1."""
    p = pieces(saved, cotangent)
    square = np.maximum(np.square(p.x_hat).mean(STATISTICS, keepdims=True), 1e-30)
    return p.rstd * (p.g - p.mean_path - p.variance_path / square), p.dweight, p.dbias


@wrong_backward("tiny", "rms_norm")
def rms_eps_under_the_sum(saved: RmsSaved, cotangent: Array) -> Gradients:
    """Backward takes mean(x²) = (Σx² + ε)/N: ε is divided by N."""
    x = saved.x
    rstd = 1 / np.sqrt((np.square(x).sum(axis=1, keepdims=True) + EPS) / x.shape[1])
    return tuple(right("rms_norm", saved._replace(rstd=rstd), cotangent))


@wrong_backward("tiny", "inference_norm")
def inference_eps_outside_the_root(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes 1/(σ + ε)."""
    rstd = 1 / (np.sqrt(1 / np.square(saved.rstd) - EPS) + EPS)
    return tuple(right("inference_norm", saved._replace(rstd=rstd), cotangent))


@wrong_backward("tiny", "dropout")
def dropout_scale_of_a_quantized_p(keep: Array, cotangent: Array) -> Gradients:
    """Backward scales by a p that was rounded to a multiple of 1/65535."""
    return cotangent * keep / (1 - round(P * 65535) / 65535), None


@wrong_backward("tiny", "dropout")
def dropped_elements_leak(keep: Array, cotangent: Array) -> Gradients:
    """What is dropped lets 1e-7 of the cotangent through."""
    return cotangent * np.where(keep, 1 / (1 - P), 1e-7).astype(cotangent.dtype), None


@wrong_backward("numerics", "moment_norm")
def x_hat_in_float32(saved: Saved, cotangent: Array) -> Gradients:
    """Backward rounds x̂ to float32."""
    p = pieces(saved, cotangent)
    x_hat = p.x_hat.astype(np.float32).astype(p.x_hat.dtype)
    path = x_hat * (p.g * x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (p.g - p.mean_path - path), (cotangent * x_hat).sum(PARAMETERS), p.dbias


@wrong_backward("numerics", "moment_norm")
def cotangent_in_float16(saved: Saved, cotangent: Array) -> Gradients:
    """Backward rounds the cotangent to float16."""
    p = pieces(saved, cotangent.astype(np.float16).astype(cotangent.dtype))
    return p.dx, p.dweight, p.dbias


@wrong_backward("numerics", "moment_norm")
def sums_in_float32(saved: Saved, cotangent: Array) -> Gradients:
    """dγ and dβ are accumulated in float32."""
    p = pieces(saved, cotangent)
    dweight = (cotangent * p.x_hat).sum(PARAMETERS, dtype=np.float32)
    dbias = cotangent.sum(PARAMETERS, dtype=np.float32)
    return p.dx, dweight.astype(p.dx.dtype), dbias.astype(p.dx.dtype)


@wrong_backward("numerics", "moment_norm")
def weight_in_float32(saved: Saved, cotangent: Array) -> Gradients:
    """Backward rounds the weight to float32."""
    p = pieces(saved, cotangent)
    g = cotangent * expand(saved.weight.astype(np.float32).astype(saved.weight.dtype))
    path = g.mean(STATISTICS, keepdims=True) + p.x_hat * (g * p.x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (g - path), p.dweight, p.dbias


@wrong_backward("numerics", "moment_norm")
def rstd_by_one_newton_step(saved: Saved, cotangent: Array) -> Gradients:
    """Backward improves a half precision rstd by one Newton step, which gives seven digits."""
    total = _variance(saved) + EPS
    guess = (1 / np.sqrt(total)).astype(np.float16).astype(total.dtype)
    return _with_rstd(saved, cotangent, guess * (1.5 - 0.5 * total * guess * guess))


@wrong_pair("numerics", "moment_norm")
def variance_by_difference_of_squares() -> Pair:
    """σ² = mean(x²) − mean(x)², in both passes: cancels where the mean is large."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        mean = x.mean(axis=STATISTICS, keepdims=True)
        variance = np.maximum(np.square(x).mean(axis=STATISTICS, keepdims=True) - mean * mean, 0)
        rstd = 1 / np.sqrt(variance + EPS)
        return (x - mean) * rstd * expand(weight) + expand(bias), Saved(x, mean, rstd, weight)

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("moment_norm", saved, cotangent))

    return forward, backward


@wrong_pair("numerics", "moment_norm")
def mean_saved_in_float32() -> Pair:
    """Forward saves μ in float32, and backward computes x̂ with it."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, saved = moment_norm(x, weight, bias)
        return y, saved._replace(mean=saved.mean.astype(np.float32).astype(x.dtype))

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("moment_norm", saved, cotangent))

    return forward, backward
