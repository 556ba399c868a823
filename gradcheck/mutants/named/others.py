"""Wrong formulas of RMSNorm, inference and dropout; and formulas of the wrong mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.named.pieces import Gradients, pieces, right
from gradcheck.mutants.operations import (
    EPS,
    P,
    RmsSaved,
    Saved,
    inference_norm,
    moment_norm,
    running_norm,
)

Array = np.ndarray


@wrong_backward("formula", "rms_norm")
def rms_mean_subtracted(saved: RmsSaved, cotangent: Array) -> Gradients:
    """LayerNorm's formula: the mean of g is subtracted too."""
    dx, dweight = right("rms_norm", saved, cotangent)
    g = cotangent * saved.weight
    return dx - saved.rstd * g.mean(axis=1, keepdims=True), dweight


@wrong_backward("formula", "rms_norm")
def rms_constant_rstd(saved: RmsSaved, cotangent: Array) -> Gradients:
    """rstd is treated as a constant."""
    _, dweight = right("rms_norm", saved, cotangent)
    return saved.rstd * cotangent * saved.weight, dweight


@wrong_backward("formula", "rms_norm")
def rms_power_of_rstd(saved: RmsSaved, cotangent: Array) -> Gradients:
    """rstd² in place of rstd³ in the second term."""
    x, rstd, weight = saved
    g = cotangent * weight
    dx = rstd * g - x * rstd**2 * (g * x).mean(axis=1, keepdims=True)
    return dx, right("rms_norm", saved, cotangent)[1]


@wrong_backward("formula", "rms_norm")
def rms_dweight_from_the_output(saved: RmsSaved, cotangent: Array) -> Gradients:
    """dγ = Σ ȳ·y: γ is in it once too often."""
    dx, dweight = right("rms_norm", saved, cotangent)
    return dx, dweight * saved.weight


@wrong_backward("formula", "rms_norm")
def rms_weight_after_the_sums(saved: RmsSaved, cotangent: Array) -> Gradients:
    """γ is applied to dx in the end."""
    plain = saved._replace(weight=np.ones_like(saved.weight))
    dx, dweight = right("rms_norm", plain, cotangent)
    return dx * saved.weight, dweight


@wrong_backward("formula", "inference_norm")
def inference_weight_forgotten(saved: Saved, cotangent: Array) -> Gradients:
    """dx = rstd·ȳ."""
    _, *rest = right("inference_norm", saved, cotangent)
    return saved.rstd * cotangent, *rest


@wrong_backward("formula", "inference_norm")
def inference_divided_by_the_variance(saved: Saved, cotangent: Array) -> Gradients:
    """dx = γ·ȳ/σ²."""
    dx, *rest = right("inference_norm", saved, cotangent)
    return dx * saved.rstd, *rest


@wrong_backward("formula", "inference_norm")
def inference_dweight_uncentred(saved: Saved, cotangent: Array) -> Gradients:
    """dγ = Σ ȳ·x·rstd."""
    dx, _, dbias, *rest = right("inference_norm", saved, cotangent)
    return dx, (cotangent * saved.x * saved.rstd).sum(axis=(0, 2)), dbias, *rest


@wrong_backward("formula", "dropout")
def dropout_scale_forgotten(keep: Array, cotangent: Array) -> Gradients:
    """The survivors are not divided by 1 − p."""
    return cotangent * keep, None


@wrong_backward("formula", "dropout")
def dropout_scaled_twice(keep: Array, cotangent: Array) -> Gradients:
    """The survivors are divided by (1 − p)²."""
    return cotangent * keep / (1 - P) ** 2, None


@wrong_backward("formula", "dropout")
def dropout_scaled_by_p(keep: Array, cotangent: Array) -> Gradients:
    """The survivors are divided by p."""
    return cotangent * keep / P, None


@wrong_backward("formula", "channel_dropout")
def dropout_mask_inverted(keep: Array, cotangent: Array) -> Gradients:
    """The dropped channels get the gradient."""
    return cotangent * ~keep / (1 - P), None


@wrong_backward("formula", "running_norm")
def gradient_times_momentum(saved: Saved, cotangent: Array) -> Gradients:
    """Only the new statistic's share of the running one is thought to depend on x."""
    dx, *rest = right("running_norm", saved, cotangent)
    return 0.1 * dx, *rest


@wrong_backward("mode", "moment_norm")
def inference_formula_in_training(saved: Saved, cotangent: Array) -> Gradients:
    """dx = rstd·g: the statistics are treated as constants."""
    p = pieces(saved, cotangent)
    return p.rstd * p.g, p.dweight, p.dbias


@wrong_backward("mode", "inference_norm")
def training_formula_at_inference(saved: Saved, cotangent: Array) -> Gradients:
    """The running statistics are differentiated as if they were the batch's."""
    dx, *rest = right("inference_norm", saved, cotangent)
    x_hat = (saved.x - saved.mean) * saved.rstd
    path = dx.mean(axis=(0, 2), keepdims=True) + x_hat * (dx * x_hat).mean(axis=(0, 2), keepdims=True)
    return dx - path, *rest


@wrong_backward("mode", "inference_norm")
def inference_dweight_with_batch_statistics(saved: Saved, cotangent: Array) -> Gradients:
    """dγ uses the mean of the batch."""
    dx, _, dbias, *rest = right("inference_norm", saved, cotangent)
    centred = saved.x - saved.x.mean(axis=(0, 2), keepdims=True)
    return dx, (cotangent * centred * saved.rstd).sum(axis=(0, 2)), dbias, *rest


@wrong_backward("mode", "running_norm")
def running_norm_frozen(saved: Saved, cotangent: Array) -> Gradients:
    """The gradient of a frozen norm: dx = rstd·γ·ȳ."""
    _, *rest = right("running_norm", saved, cotangent)
    scale = (saved.rstd * saved.weight[:, :, None]).reshape(1, -1, 1)
    return scale * cotangent, *rest


@wrong_pair("mode", "running_norm")
def backward_with_running_statistics() -> Pair:
    """Backward normalizes with the running statistics, forward with the batch's."""

    def forward(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
        y, saved = running_norm(x, weight, bias, running_mean, running_var)
        mean = running_mean.reshape(saved.mean.shape).copy()
        return y, saved._replace(mean=mean, rstd=1 / np.sqrt(running_var.reshape(mean.shape) + EPS))

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("running_norm", saved, cotangent))

    return forward, backward


@wrong_pair("mode", "inference_norm")
def batch_statistics_at_inference() -> Pair:
    """Forward normalizes with the statistics of the batch, backward with the running ones."""

    def forward(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
        _, saved = inference_norm(x, weight, bias, running_mean, running_var)
        y, _ = moment_norm(x[None, :, :, None, :], weight[:, None], bias[:, None])
        return y.reshape(x.shape), saved

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("inference_norm", saved, cotangent))

    return forward, backward


@wrong_backward("mode", "dropout")
def dropout_gradient_of_evaluation(keep: Array, cotangent: Array) -> Gradients:
    """Backward passes everything, as dropout does at inference."""
    return cotangent.copy(), None
