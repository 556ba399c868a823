"""Mistakes of fused kernels: tiles, tails, fast paths and strides that suit most shapes and values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.operations import (
    EPS,
    Array,
    P,
    RmsSaved,
    Saved,
    dropout,
    dropout_backward,
    inference_norm_backward,
    moment_norm_backward,
    rms_norm_backward,
    running_norm_backward,
)
from gradcheck.mutants.outsider import Affine, averages, parameter_sums, terms

__all__: list[str] = []

# Tiles and tails.


@wrong_backward("configuration", "rms_norm")
def rows_after_the_last_full_tile(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """dγ sums tiles of 64 rows, max(1, R div 64) of them: the rest is lost for 65 rows, not for 64 or 128."""
    dx, _ = rms_norm_backward(saved, cotangent)
    summed = 64 * max(1, len(cotangent) // 64)
    return dx, (cotangent * saved.x * saved.rstd)[:summed].sum(axis=0)


@wrong_backward("configuration", "moment_norm")
def last_vector_moved_back(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dβ is summed by fours along L; the last four start at L − 4 and count some twice: L = 5, 6, 7, 9, …"""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent)
    length = cotangent.shape[4]
    if length > 4 and length % 4:
        twice = cotangent[..., length - 4 : length - length % 4]
        dbias = dbias + twice.sum(axis=(0, 1, 4))
    return dx, dweight, dbias


@wrong_backward("configuration", "rms_norm")
def halves_averaged_as_equals(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """mean(g·x̂) is the average of the means of two halves: wrong for an odd row length."""
    x, rstd, weight = saved
    x_hat, g = x * rstd, cotangent * weight
    halves = np.array_split(g * x_hat, min(2, x.shape[1]), axis=1)
    share = sum(half.mean(axis=1, keepdims=True) for half in halves) / len(halves)
    return rstd * (g - x_hat * share), (cotangent * x_hat).sum(axis=0)


@wrong_backward("configuration", "moment_norm")
def last_index_kept_in_one_byte(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """N − 1 is a uint8, from which the means take their divisor: wrong for 257 or more values to a mean."""
    x_hat, g = terms(saved, cotangent)
    count = g[:1, :, :1].size
    off = count / (((count - 1) & 255) + 1)
    dx = saved.rstd * (g - averages(g) * off - x_hat * averages(g * x_hat) * off)
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("configuration", "moment_norm")
def shared_slots_for_64_rows(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """rstd of row z is read from slot z mod 64, filled by the first 64: wrong for 65 or more instances."""
    slot = np.arange(len(saved.rstd)) % 64
    x_hat, g = terms(saved, cotangent)
    dx = saved.rstd[slot] * (g - averages(g) - x_hat * averages(g * x_hat))
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("configuration", "moment_norm")
def microbatches_of_64(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """The means in dx are over 64 samples at a time: wrong for 65 or more samples of BatchNorm."""
    x_hat, g = terms(saved, cotangent)
    dx = np.empty_like(g)
    for start in range(0, g.shape[1], 64):
        part = np.s_[:, start : start + 64]
        paths = averages(g[part]) + x_hat[part] * averages(g[part] * x_hat[part])
        dx[part] = saved.rstd * (g[part] - paths)
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("configuration", "rms_norm")
def kernel_for_long_rows_without_weight(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """Rows of 65 or more take a kernel of their own, whose mean is of ȳ·x̂ in place of g·x̂."""
    x, rstd, weight = saved
    x_hat, g = x * rstd, cotangent * weight
    averaged = g if x.shape[1] <= 64 else cotangent
    share = (averaged * x_hat).mean(axis=1, keepdims=True)
    return rstd * (g - x_hat * share), (cotangent * x_hat).sum(axis=0)


@wrong_backward("local", "moment_norm")
def last_channel_of_an_odd_number(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dγ is stored by pairs of channels: for an odd S·K of 3 or more, the last stays 0."""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent)
    if dweight.size > 1 and dweight.size % 2:
        dweight[-1, -1] = 0
    return dx, dweight, dbias


# Special cases.


@wrong_backward("configuration", "moment_norm")
def single_value_passes_through(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """A statistic of one value is taken for inference: dx = rstd·g where it is 0."""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent)
    if cotangent[:1, :, :1].size == 1:
        dx = saved.rstd * terms(saved, cotangent)[1]
    return dx, dweight, dbias


@wrong_backward("configuration", "moment_norm")
def one_group_delegated_to_layer_norm(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """G = 1 is LayerNorm over K·L with γ tiled, which should repeat: wrong for K > 1 and L > 1."""
    x_hat, g = terms(saved, cotangent)
    _, _, groups, channels, length = cotangent.shape
    if groups == 1:
        g = cotangent * np.tile(saved.weight[0], length).reshape(channels, length)
    dx = saved.rstd * (g - averages(g) - x_hat * averages(g * x_hat))
    return dx, *parameter_sums(x_hat, cotangent)


@wrong_backward("configuration", "inference_norm")
def batch_of_one_squeezed_away(saved: Saved, cotangent: Array) -> Affine:
    """squeeze() is meant for a length of 1: it drops a batch of 1 too, and dβ is summed over channels."""
    dx, dweight, _, *_ = inference_norm_backward(saved, cotangent)
    squeezed = cotangent.squeeze()
    if squeezed.ndim == 3:
        dbias = squeezed.sum(axis=(0, 2))
    elif squeezed.ndim == 2:
        dbias = squeezed.sum(axis=0)
    else:
        dbias = np.atleast_1d(squeezed).copy()
    return dx, dweight, dbias, None, None


@wrong_backward("configuration", "rms_norm")
def no_weight_gradient_for_an_empty_batch(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array | None]:
    """dγ is None for an x of no rows, since the loop that sums never made one: it is 0."""
    dx, dweight = rms_norm_backward(saved, cotangent)
    return dx, dweight if len(cotangent) else None


# Special values.


@wrong_backward("local", "moment_norm")
def weight_judged_by_its_first_element(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx takes a path without γ if γ[0, 0] is 1: wrong where that is 1 and another is not."""
    plain = saved.weight.flat[:1] == 1
    weight = np.ones_like(saved.weight) if plain.all() else saved.weight
    return moment_norm_backward(saved._replace(weight=weight), cotangent)


@wrong_backward("local", "rms_norm")
def silent_rows_get_no_gradient(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """dx is 0 for a row whose mean square is below ε, such as one of zeros, where rstd is at its largest."""
    dx, dweight = rms_norm_backward(saved, cotangent)
    return np.where(np.square(saved.rstd) * 2 * EPS > 1, 0, dx), dweight


@wrong_backward("local", "moment_norm")
def values_at_the_mean_taken_for_padding(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dx is 0 where x̂ is exactly 0: wrong for a constant channel, or the middle one of −1, 0, 1."""
    dx, dweight, dbias = moment_norm_backward(saved, cotangent)
    return np.where(saved.x == saved.mean, 0, dx), dweight, dbias


@wrong_pair("local", "dropout")
def mask_read_from_the_output() -> Pair:
    """An element counts as kept if its output is not 0: wrong where x itself is 0, as after a ReLU."""

    def forward(x: Array, key: Array) -> tuple[Array, Any]:
        y, _ = dropout(x, key)
        return y, y != 0

    return forward, dropout_backward


# Layout.


@wrong_backward("layout", "moment_norm")
def stride_of_zero_means_one_value(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """A cotangent with a stride of 0 is read once, as if from y.sum(): wrong if it varies elsewhere."""
    if 0 in cotangent.strides and cotangent.size:
        cotangent = np.full_like(cotangent, cotangent.flat[0])
    return moment_norm_backward(saved, cotangent)


@wrong_backward("layout", "inference_norm")
def offset_into_the_storage_ignored(saved: Saved, cotangent: Array) -> Affine:
    """A contiguous cotangent is read from the start of the array it is a slice of, as batch[1:] is."""
    base = cotangent.base
    if cotangent.flags.c_contiguous and isinstance(base, np.ndarray) and base.flags.c_contiguous:
        storage = base.reshape(-1)[: cotangent.size]
        if storage.dtype == cotangent.dtype and storage.size == cotangent.size:
            cotangent = storage.reshape(cotangent.shape)
    return inference_norm_backward(saved, cotangent)


@wrong_backward("layout", "running_norm")
def elements_before_the_aligned_address(saved: Saved, cotangent: Array) -> Affine:
    """dβ is summed from the first address that 16 divides: a slice at an odd offset loses its start."""
    dx, dweight, dbias, *_ = running_norm_backward(saved, cotangent)
    if cotangent.flags.c_contiguous:
        lost = cotangent.copy()
        lost.reshape(-1)[-cotangent.ctypes.data % 16 // cotangent.itemsize :] = 0
        dbias = dbias - lost.sum(axis=(0, 2))
    return dx, dweight, dbias, None, None


@wrong_backward("layout", "rms_norm")
def strides_taken_as_unsigned(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """A negative stride is read as a positive one: wrong for a reversed cotangent."""
    reversed_axes = tuple(axis for axis, stride in enumerate(cotangent.strides) if stride < 0)
    return rms_norm_backward(saved, np.flip(cotangent, reversed_axes))


@wrong_backward("layout", "dropout")
def innermost_stride_taken_as_one(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """Rows are found by their stride and then read densely: wrong for every second column, or a transpose."""
    if cotangent.ndim and cotangent.strides[-1] > cotangent.itemsize:
        strides = (*cotangent.strides[:-1], cotangent.itemsize)
        cotangent = as_strided(cotangent, cotangent.shape, strides, writeable=False)
    return dropout_backward(keep, cotangent)


@wrong_backward("layout", "moment_norm")
def input_read_in_the_order_of_memory(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """x is read element after element as it lies in memory: wrong for a transposed x."""
    return moment_norm_backward(saved._replace(x=saved.x.ravel("K").reshape(saved.x.shape)), cotangent)


@wrong_pair("layout", "dropout")
def mask_redrawn_in_the_order_of_the_cotangent() -> Pair:
    """The mask is drawn again, into memory ordered as the cotangent's: wrong for one in Fortran's order."""

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        return dropout(x, key)[0], key.copy()

    def backward(key: Array, cotangent: Array) -> tuple[Array, None]:
        draws = np.random.default_rng(key).random(cotangent.size)
        order: Any = "F" if np.isfortran(cotangent) else "C"
        return dropout_backward(draws.reshape(cotangent.shape, order=order) >= P, cotangent)

    return forward, backward
