"""Mistakes of derivation: a wrong term, axis or index, ε in the wrong place, too few digits.

Many are right at the shape or with the parameters that their author tried: K = 1, γ = 1, β = 0, a square x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.operations import (
    EPS,
    MOMENTUM,
    Array,
    P,
    RmsSaved,
    Saved,
    dropout,
    dropout_backward,
    inference_norm_backward,
    moment_norm,
    moment_norm_backward,
    rms_norm_backward,
    running_norm_backward,
)

__all__ = ["Affine", "averages", "parameter_sums", "terms"]

Affine = tuple[Array, Array, Array, None, None]  # the gradients of a norm with running statistics


def averages(values: Array) -> Array:
    """The means over what the statistics of the moment norm are over."""
    return values.mean(axis=(1, 3, 4), keepdims=True)


def terms(saved: Saved, cotangent: Array) -> tuple[Array, Array]:
    """x̂ and g = ȳ·γ of the moment norm."""
    return (saved.x - saved.mean) * saved.rstd, cotangent * saved.weight[:, :, None]


def parameter_sums(x_hat: Array, cotangent: Array) -> tuple[Array, Array]:
    """dγ and dβ of the moment norm."""
    return (cotangent * x_hat).sum(axis=(0, 1, 4)), cotangent.sum(axis=(0, 1, 4))


# Formula.


@wrong_backward("formula", "moment_norm")
def weight_in_front_of_the_means(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx = rstd·γ·(ȳ − mean(ȳ) − x̂·mean(ȳ·x̂)), as for BatchNorm: right only where K = 1."""
    x_hat, _ = terms(saved, cotangent)
    inner = cotangent - averages(cotangent) - x_hat * averages(cotangent * x_hat)
    return saved.rstd * saved.weight[:, :, None] * inner, *parameter_sums(x_hat, cotangent)


@wrong_backward("formula", "rms_norm")
def layer_norm_backward_for_rms(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """dx has LayerNorm's term mean(g), though RMSNorm subtracts no mean."""
    dx, dweight = rms_norm_backward(saved, cotangent)
    return dx - saved.rstd * (cotangent * saved.weight).mean(axis=1, keepdims=True), dweight


@wrong_backward("formula", "rms_norm")
def weight_stored_as_an_offset_from_one(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """The backward pass is for a model whose scale is 1 + γ; the forward pass scales by γ."""
    return rms_norm_backward(saved._replace(weight=1 + saved.weight), cotangent)


@wrong_backward("formula", "moment_norm")
def weight_gradient_from_the_scaled_cotangent(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dγ = Σ g·x̂, since g is at hand when the sums are made: right as long as γ is still 1."""
    x_hat, g = terms(saved, cotangent)
    dx, _, dbias = moment_norm_backward(saved, cotangent)
    return dx, parameter_sums(x_hat, g)[0], dbias


@wrong_backward("formula", "moment_norm")
def scale_taken_as_positive(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx is computed with |γ|: wrong for a negative weight alone."""
    return moment_norm_backward(saved._replace(weight=np.abs(saved.weight)), cotangent)


@wrong_pair("formula", "moment_norm")
def x_hat_from_the_output_without_the_bias() -> Pair:
    """x̂ is recovered from the output as y/γ: right as long as β is still 0."""

    def forward(x: Array, weight: Array, bias: Array) -> tuple[Array, Any]:
        y, saved = moment_norm(x, weight, bias)
        return y, (y.copy(), saved.rstd, weight)

    def backward(saved: Any, cotangent: Array) -> tuple[Array, Array, Array]:
        y, rstd, weight = saved
        return moment_norm_backward(Saved(y / weight[:, :, None] / rstd, 0 * rstd, rstd, weight), cotangent)

    return forward, backward


@wrong_pair("local", "moment_norm")
def x_hat_from_the_output_of_a_zero_weight() -> Pair:
    """x̂ is recovered as (y − β)/γ, and set to 0 where γ is 0: dγ there stays 0, and γ never moves."""

    def forward(x: Array, weight: Array, bias: Array) -> tuple[Array, Any]:
        y, saved = moment_norm(x, weight, bias)
        return y, (y.copy(), bias, saved.rstd, weight)

    def backward(saved: Any, cotangent: Array) -> tuple[Array, Array, Array]:
        y, bias, rstd, weight = saved
        zero = weight == 0
        x_hat = (y - bias[:, :, None]) / np.where(zero, 1, weight)[:, :, None]
        x_hat[:, :, zero] = 0
        return moment_norm_backward(Saved(x_hat / rstd, 0 * rstd, rstd, weight), cotangent)

    return forward, backward


@wrong_backward("formula", "running_norm")
def momentum_passed_for_epsilon(saved: Saved, cotangent: Array) -> Affine:
    """The positional arguments eps and momentum are exchanged: rstd is recomputed with ε = 0.1."""
    rstd = 1 / np.sqrt(averages(np.square(saved.x - saved.mean)) + MOMENTUM)
    return running_norm_backward(saved._replace(rstd=rstd), cotangent)


@wrong_backward("formula", "running_norm")
def rstd_of_the_running_update(saved: Saved, cotangent: Array) -> Affine:
    """rstd is recomputed from the unbiased variance, the one that went into running_var."""
    count = saved.x[:, :, 0].size
    variance = np.square(saved.x - saved.mean).sum(axis=(1, 3, 4), keepdims=True) / max(count - 1, 1)
    return running_norm_backward(saved._replace(rstd=1 / np.sqrt(variance + EPS)), cotangent)


@wrong_backward("formula", "dropout")
def scale_of_the_realised_rate(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """dx is scaled by how many elements were in fact kept, not by 1/(1 − p)."""
    return cotangent * keep * (keep.size / max(int(keep.sum()), 1)), None


# ε, and constants that are nearly right.


@wrong_backward("tiny", "rms_norm")
def projected_as_if_epsilon_were_zero(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """dx is made orthogonal to x, g − x̂·(g·x̂)/(x̂·x̂): with ε it is not, plainly so for small x."""
    x, rstd, weight = saved
    x_hat, g = x * rstd, cotangent * weight
    square = np.square(x_hat).sum(axis=1, keepdims=True)
    share = (g * x_hat).sum(axis=1, keepdims=True) / np.where(square == 0, 1, square)
    return rstd * (g - x_hat * share), (cotangent * x_hat).sum(axis=0)


@wrong_backward("tiny", "moment_norm")
def epsilon_counted_twice(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """σ² is taken back from rstd as 1/rstd², which has ε in it already, and ε is added again."""
    return moment_norm_backward(saved._replace(rstd=1 / np.sqrt(1 / saved.rstd**2 + EPS)), cotangent)


@wrong_backward("tiny", "dropout")
def scale_typed_in_with_seven_digits(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """1/(1 − p) is the constant 1.333333."""
    return cotangent * keep * round(1 / (1 - P), 6), None


@wrong_backward("tiny", "moment_norm")
def reciprocal_of_the_count_in_single(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """The means are sums times a float32 1/N: exact where N is a power of two, else off by 3e-8."""
    x_hat, g = terms(saved, cotangent)
    reciprocal = float(np.float32(1 / max(g[:1, :, :1].size, 1)))
    sums = [v.sum(axis=(1, 3, 4), keepdims=True) * reciprocal for v in (g, g * x_hat)]
    return saved.rstd * (g - sums[0] - x_hat * sums[1]), *parameter_sums(x_hat, cotangent)


# Digits.


@wrong_backward("numerics", "rms_norm")
def rstd_kept_in_single(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """rstd goes through a float32 buffer, whatever the dtype of x."""
    rstd = saved.rstd.astype(np.float32).astype(saved.rstd.dtype)
    return rms_norm_backward(saved._replace(rstd=rstd), cotangent)


@wrong_backward("numerics", "moment_norm")
def variance_from_the_raw_moments(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """rstd is recomputed with σ² = E[x²] − μ²: few digits are left where the mean is 1e6 times σ."""
    variance = np.maximum(averages(np.square(saved.x)) - np.square(saved.mean), 0)
    return moment_norm_backward(saved._replace(rstd=1 / np.sqrt(variance + EPS)), cotangent)


@wrong_backward("numerics", "inference_norm")
def one_newton_step_too_few(saved: Saved, cotangent: Array) -> Affine:
    """rstd is a half-precision estimate and a single Newton step, off by up to 4e-7."""
    estimate = saved.rstd.astype(np.float16).astype(saved.rstd.dtype)
    rstd = estimate * (1.5 - 0.5 * np.square(estimate / saved.rstd))
    return inference_norm_backward(saved._replace(rstd=rstd), cotangent)


@wrong_backward(
    "numerics",
    "inference_norm",
    invisible="errs by rounding of the largest element, as every cumulative sum does, right ones included",
)
def bias_from_differences_of_a_prefix_sum(saved: Saved, cotangent: Array) -> Affine:
    """dβ is a difference of prefix sums over channels: those after a channel of 1e8 have lost 8 digits."""
    dx, dweight, dbias, *_ = inference_norm_backward(saved, cotangent)
    ends = np.cumsum(dbias)
    dbias[1:] = ends[1:] - ends[:-1]
    return dx, dweight, dbias, None, None


# Axes.


@wrong_backward("axis", "moment_norm")
def mean_path_of_each_sample(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """mean(g) is over K and L but not over A: right for a batch of 1 and where A = 1 by nature."""
    x_hat, g = terms(saved, cotangent)
    dx = saved.rstd * (g - g.mean(axis=(3, 4), keepdims=True) - x_hat * averages(g * x_hat))
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("axis", "moment_norm")
def parameters_averaged_over_instances(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dγ and dβ are averaged over Z, as gradients of replicas are: right for BatchNorm, where Z = 1."""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent)
    return dx, dweight / max(len(saved.x), 1), dbias / max(len(saved.x), 1)


@wrong_backward("axis", "rms_norm")
def divided_by_the_number_of_rows(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """mean(g·x̂) is a sum along the row divided by len(x): right for a square x."""
    x, rstd, weight = saved
    x_hat, g = x * rstd, cotangent * weight
    share = (g * x_hat).sum(axis=1, keepdims=True) / max(len(x), 1)
    return rstd * (g - x_hat * share), (cotangent * x_hat).sum(axis=0)


@wrong_backward("axis", "inference_norm")
def channel_axis_found_by_its_length(saved: Saved, cotangent: Array) -> Affine:
    """The channels are the first axis as long as γ: the batch, where it has as many samples as channels."""
    dx = saved.rstd * saved.weight[:, None] * cotangent
    channel = cotangent.shape.index(len(saved.weight))
    others = tuple(axis for axis in range(3) if axis != channel)
    dweight = (cotangent * (saved.x - saved.mean) * saved.rstd).sum(axis=others)
    return dx, dweight, cotangent.sum(axis=others), None, None


@wrong_backward("axis", "moment_norm")
def length_left_out_of_the_count(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """mean(g·x̂) is divided by A·K: right where L = 1, as in LayerNorm."""
    x_hat, g = terms(saved, cotangent)
    dx = saved.rstd * (g - averages(g) - x_hat * averages(g * x_hat) * g.shape[4])
    return dx, *parameter_sums(x_hat, cotangent)


# Indices.


@wrong_backward("index", "moment_norm")
def channels_interleaved_over_groups(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx reads γ of channel k·S + s, not s·K + k: right where there is one group, or one channel in each."""
    groups, channels = saved.weight.shape
    weight = np.ascontiguousarray(saved.weight).reshape(channels, groups).T
    return moment_norm_backward(saved._replace(weight=weight), cotangent)


@wrong_backward("index", "moment_norm")
def statistics_read_with_the_strides_exchanged(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx reads rstd at s·Z + z, not z·S + s: right where Z = 1 or S = 1."""
    x_hat, g = terms(saved, cotangent)
    instances, _, groups, _, _ = saved.rstd.shape
    rstd = saved.rstd.reshape(groups, instances).T.reshape(saved.rstd.shape)
    dx = rstd * (g - averages(g) - x_hat * averages(g * x_hat))
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("index", "inference_norm")
def channel_of_an_element_as_if_channels_came_last(saved: Saved, cotangent: Array) -> Affine:
    """dβ counts element i for channel i mod C, not (i div L) mod C: right for inputs without a length."""
    dx, dweight, _, *_ = inference_norm_backward(saved, cotangent)
    dbias = np.zeros_like(saved.weight)
    np.add.at(dbias, np.arange(cotangent.size) % max(len(dbias), 1), cotangent.reshape(-1))
    return dx, dweight, dbias, None, None


@wrong_backward("index", "channel_dropout")
def mask_tiled_where_it_should_repeat(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """The decisions are laid out one after the other L times, not each L times in a row: right for L = 1."""
    return dropout_backward(np.tile(keep.reshape(-1), cotangent.shape[2]).reshape(cotangent.shape), cotangent)


@wrong_pair("index", "dropout")
def mask_bits_padded_in_each_row() -> Pair:
    """The mask is packed row by row and unpacked as one run of bits: right for rows of 8, 16, 24, …"""

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        y, keep = dropout(x, key)
        return y, np.packbits(keep, axis=-1)

    def backward(packed: Array, cotangent: Array) -> tuple[Array, None]:
        keep = np.unpackbits(packed.reshape(-1))[: cotangent.size].reshape(cotangent.shape)
        return dropout_backward(keep.astype(bool), cotangent)

    return forward, backward
