"""Gradients that are wrong only for some shapes or values, and right wherever one usually looks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.named.pieces import PARAMETERS, STATISTICS, Gradients, expand, pieces, right
from gradcheck.mutants.operations import P, RmsSaved, Saved, moment_norm

Array = np.ndarray


@wrong_backward("configuration", "moment_norm")
def batch_of_one_is_inference(saved: Saved, cotangent: Array) -> Gradients:
    """With one sample the statistics are taken for constants."""
    p = pieces(saved, cotangent)
    alone = cotangent.shape[0] * cotangent.shape[1] == 1
    return (p.rstd * p.g if alone else p.dx), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def odd_length_loses_its_tail(saved: Saved, cotangent: Array) -> Gradients:
    """Positions are read in pairs: the last of an odd number (3 or more) is left out of the mean path."""
    p = pieces(saved, cotangent)
    length = cotangent.shape[-1]
    even = length - length % 2 if length >= 3 else length
    path = p.g[..., :even].sum(STATISTICS, keepdims=True) * (p.rstd.size / p.g.size)
    return p.rstd * (p.g - path - p.variance_path), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def slices_beyond_one_block(saved: Saved, cotangent: Array) -> Gradients:
    """In slices of 65 elements or more, those after the first 64 are left out of the variance path."""
    p = pieces(saved, cotangent)
    product = np.moveaxis(p.g * p.x_hat, 2, 1).reshape(p.rstd.shape[0], p.rstd.shape[2], -1)
    inner = product[..., :64].sum(-1).reshape(p.rstd.shape) / product.shape[-1]
    return p.rstd * (p.g - p.mean_path - p.x_hat * inner), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def one_group_without_mean_path(saved: Saved, cotangent: Array) -> Gradients:
    """A fast path for G = 1 forgets the mean path."""
    p = pieces(saved, cotangent)
    path = 0 * p.mean_path if cotangent.shape[2] == 1 else p.mean_path
    return p.rstd * (p.g - path - p.variance_path), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def one_channel_per_group(saved: Saved, cotangent: Array) -> Gradients:
    """A fast path for G = C applies γ to dγ too."""
    p = pieces(saved, cotangent)
    factor = saved.weight if cotangent.shape[3] == 1 else 1
    return p.dx, p.dweight * factor, p.dbias


@wrong_backward("configuration", "moment_norm")
def one_position(saved: Saved, cotangent: Array) -> Gradients:
    """Without positions (L = 1), dβ is averaged over the batch."""
    p = pieces(saved, cotangent)
    average = cotangent.shape[4] == 1
    return p.dx, p.dweight, cotangent.mean(PARAMETERS) if average else p.dbias


@wrong_backward("configuration", "moment_norm")
def more_than_two_channels(saved: Saved, cotangent: Array) -> Gradients:
    """γ of the third channel of a group and those after it is taken for 1."""
    weight = saved.weight.copy()
    weight[:, 2:] = 1
    p = pieces(saved._replace(weight=weight), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def count_not_a_power_of_two(saved: Saved, cotangent: Array) -> Gradients:
    """The mean path divides by the next power of two."""
    p = pieces(saved, cotangent)
    n = p.g.size // p.rstd.size
    padded = 1 << (n - 1).bit_length()
    return p.rstd * (p.g - p.mean_path * (n / padded) - p.variance_path), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def small_variance_treated_as_constant(saved: Saved, cotangent: Array) -> Gradients:
    """Slices with a variance below 2ε are taken for constant, and lose the variance path."""
    p = pieces(saved, cotangent)
    path = np.where(p.rstd > 1 / np.sqrt(3e-5), 0, p.variance_path)
    return p.rstd * (p.g - p.mean_path - path), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def large_inputs_clipped(saved: Saved, cotangent: Array) -> Gradients:
    """Inputs beyond ±50 are taken to be clipped, and get no gradient."""
    p = pieces(saved, cotangent)
    return np.where(np.abs(saved.x) > 50, 0, p.dx).astype(p.dx.dtype), p.dweight, p.dbias


@wrong_backward("configuration", "moment_norm")
def constant_slice_without_gradient(saved: Saved, cotangent: Array) -> Gradients:
    """A slice whose elements are all equal gets zeros, where rstd·(g − mean(g)) is right."""
    p = pieces(saved, cotangent)
    spread = np.ptp(saved.x, axis=STATISTICS, keepdims=True)
    return np.where(spread == 0, 0, p.dx).astype(p.dx.dtype), p.dweight, p.dbias


@wrong_pair("configuration", "moment_norm")
def x_hat_from_the_output() -> Pair:
    """x̂ = (y − β)/γ saves memory, and is lost where γ is 0."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, saved = moment_norm(x, weight, bias)
        return y, (y.copy(), saved, bias)

    def backward(kept: Any, cotangent: Array) -> Gradients:
        y, saved, bias = kept
        safe = np.where(saved.weight == 0, 1, saved.weight)
        x_hat = (y - expand(bias)) / expand(safe)
        g = cotangent * expand(saved.weight)
        path = g.mean(STATISTICS, keepdims=True) + x_hat * (g * x_hat).mean(STATISTICS, keepdims=True)
        return saved.rstd * (g - path), (cotangent * x_hat).sum(PARAMETERS), cotangent.sum(PARAMETERS)

    return forward, backward


@wrong_backward("configuration", "moment_norm")
def weight_taken_as_positive(saved: Saved, cotangent: Array) -> Gradients:
    """Backward uses |γ|."""
    p = pieces(saved._replace(weight=np.abs(saved.weight)), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("configuration", "rms_norm")
def rms_row_beyond_the_vector(saved: RmsSaved, cotangent: Array) -> Gradients:
    """Columns after the last multiple of four get the direct term only, in rows of 5 or more."""
    dx, dweight = right("rms_norm", saved, cotangent)
    width = dx.shape[1]
    if width >= 5 and width % 4:
        tail = slice(width - width % 4, None)
        dx[:, tail] = (saved.rstd * cotangent * saved.weight)[:, tail]
    return dx, dweight


@wrong_backward("configuration", "rms_norm")
def rms_more_rows_than_blocks(saved: RmsSaved, cotangent: Array) -> Gradients:
    """dγ sums the first 32 rows."""
    dx, dweight = right("rms_norm", saved, cotangent)
    if len(cotangent) > 32:
        dweight = (cotangent * saved.x * saved.rstd)[:32].sum(axis=0)
    return dx, dweight


@wrong_backward("configuration", "rms_norm")
def rms_zero_row(saved: RmsSaved, cotangent: Array) -> Gradients:
    """A row of zeros gets no gradient, where rstd·g is right."""
    dx, dweight = right("rms_norm", saved, cotangent)
    empty = ~saved.x.any(axis=1, keepdims=True)
    return np.where(empty, 0, dx).astype(dx.dtype), dweight


@wrong_backward("configuration", "dropout")
def dropout_tail_of_a_byte(keep: Array, cotangent: Array) -> Gradients:
    """The mask is packed to whole bytes: elements after the last multiple of eight are taken for dropped."""
    kept = keep.reshape(-1).copy()
    kept[kept.size - kept.size % 8 :] = False
    return cotangent * kept.reshape(keep.shape) / (1 - P), None


@wrong_backward("configuration", "channel_dropout")
def channel_dropout_of_one_sample(keep: Array, cotangent: Array) -> Gradients:
    """With one sample, the first channel's decision is used for all."""
    mask = keep if len(keep) > 1 else keep[:, :1]
    return cotangent * mask / (1 - P), None


@wrong_backward("configuration", "inference_norm")
def inference_variance_below_one(saved: Saved, cotangent: Array) -> Gradients:
    """The running variance is clamped to 1 from below in dx."""
    _, *rest = right("inference_norm", saved, cotangent)
    return np.minimum(saved.rstd, 1) * saved.weight[:, None] * cotangent, *rest


@wrong_backward("configuration", "running_norm")
def running_norm_of_one_position(saved: Saved, cotangent: Array) -> Gradients:
    """For x of [N, C, 1], dx is computed as if each sample were a batch."""
    dx, *rest = right("running_norm", saved, cotangent)
    return (dx if cotangent.shape[2] > 1 else np.zeros_like(dx)), *rest
