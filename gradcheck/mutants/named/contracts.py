"""Gradients with the right numbers that break a promise: of memory, dtype, shape, linearity or layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcheck.mutants.mutant import Pair, wrong_backward, wrong_pair
from gradcheck.mutants.named.pieces import PARAMETERS, Gradients, expand, pieces, right
from gradcheck.mutants.operations import P, RmsSaved, Saved, inference_norm, moment_norm, rms_norm

Array = np.ndarray


@wrong_backward("contract", "moment_norm")
def cotangent_scaled_in_place(saved: Saved, cotangent: Array) -> Gradients:
    """ȳ is multiplied by γ in place."""
    p = pieces(saved, cotangent)
    if cotangent.flags.writeable:
        cotangent *= expand(saved.weight)
    return p.dx, p.dweight, p.dbias


@wrong_backward("contract", "moment_norm")
def saved_mean_overwritten(saved: Saved, cotangent: Array) -> Gradients:
    """The array of the saved mean is reused for the mean of g."""
    p = pieces(saved, cotangent)
    saved.mean[...] = p.mean_path
    return p.dx, p.dweight, p.dbias


@wrong_pair("contract", "moment_norm")
def input_centred_in_place() -> Pair:
    """Forward subtracts the mean from x itself."""

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y, saved = moment_norm(x, weight, bias)
        if x.flags.writeable:
            x -= saved.mean
        return y, saved._replace(x=x.copy(), mean=0 * saved.mean)

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        return tuple(right("moment_norm", saved, cotangent))

    return forward, backward


@wrong_backward("contract", "moment_norm")
def weight_updated_by_backward(saved: Saved, cotangent: Array) -> Gradients:
    """Backward takes the step of the optimizer: it changes γ."""
    p = pieces(saved, cotangent)
    if saved.weight.flags.writeable:
        np.subtract(saved.weight, 1e-3 * p.dweight, out=saved.weight)
    return p.dx, p.dweight, p.dbias


@wrong_pair("contract", "moment_norm")
def result_in_a_shared_buffer() -> Pair:
    """dx is written to a buffer that the next call of the same shape overwrites."""
    buffers: dict[Any, Array] = {}

    def backward(saved: Saved, cotangent: Array) -> Gradients:
        p = pieces(saved, cotangent)
        buffer = buffers.setdefault((p.dx.shape, p.dx.dtype), np.empty_like(p.dx))
        buffer[...] = p.dx
        return buffer, p.dweight, p.dbias

    return moment_norm, backward


@wrong_pair("contract", "rms_norm")
def output_in_a_shared_buffer() -> Pair:
    """y is written to a buffer that the next forward call of the same shape overwrites."""
    buffers: dict[Any, Array] = {}

    def forward(x: Array, weight: Array) -> Any:
        y, saved = rms_norm(x, weight)
        buffer = buffers.setdefault((y.shape, y.dtype), np.empty_like(y))
        buffer[...] = y
        return buffer, saved

    def backward(saved: RmsSaved, cotangent: Array) -> Gradients:
        return tuple(right("rms_norm", saved, cotangent))

    return forward, backward


@wrong_pair("contract", "rms_norm")
def result_in_the_saved_array() -> Pair:
    """dx is returned in the memory of a saved array."""

    def forward(x: Array, weight: Array) -> Any:
        y, saved = rms_norm(x, weight)
        return y, (saved, np.empty_like(x))

    def backward(kept: Any, cotangent: Array) -> Gradients:
        saved, scratch = kept
        dx, dweight = right("rms_norm", saved, cotangent)
        scratch[...] = dx
        return scratch, dweight

    return forward, backward


@wrong_backward("contract", "dropout")
def cotangent_handed_on(keep: Array, cotangent: Array) -> Gradients:
    """dx is computed in the memory of the cotangent."""
    np.multiply(cotangent, keep / (1 - P), out=cotangent, where=cotangent.flags.writeable, casting="unsafe")
    return cotangent, None


@wrong_backward("contract", "moment_norm")
def workspaces_overlap(saved: Saved, cotangent: Array) -> Gradients:
    """dγ and dβ are parts of one workspace, which overlap by one element."""
    p = pieces(saved, cotangent)
    size, shape = p.dbias.size, p.dbias.shape
    workspace = np.empty(2 * size - 1, p.dx.dtype)
    workspace[:size] = p.dweight.reshape(-1)
    workspace[size - 1 :] = p.dbias.reshape(-1)
    return p.dx, workspace[:size].reshape(shape), workspace[size - 1 :].reshape(shape)


@wrong_backward("contract", "moment_norm")
def gradient_in_float32(saved: Saved, cotangent: Array) -> Gradients:
    """dx is returned in float32, whatever x is."""
    p = pieces(saved, cotangent)
    return p.dx.astype(np.float32), p.dweight, p.dbias


@wrong_backward("contract", "moment_norm")
def gradient_in_float64(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is returned in float64, whatever γ is."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight.astype(np.float64), p.dbias


@wrong_backward("contract", "moment_norm")
def dweight_with_an_axis_too_many(saved: Saved, cotangent: Array) -> Gradients:
    """dγ keeps the reduced axes."""
    p = pieces(saved, cotangent)
    return p.dx, (cotangent * p.x_hat).sum(PARAMETERS, keepdims=True), p.dbias


@wrong_backward("contract", "rms_norm")
def dweight_of_each_row(saved: RmsSaved, cotangent: Array) -> Gradients:
    """dγ is not summed over the rows."""
    return right("rms_norm", saved, cotangent)[0], cotangent * saved.x * saved.rstd


@wrong_backward("contract", "rms_norm")
def gradients_in_a_list(saved: RmsSaved, cotangent: Array) -> Any:
    """The gradients are returned in a list."""
    return right("rms_norm", saved, cotangent)


@wrong_backward("contract", "moment_norm")
def dbias_not_returned(saved: Saved, cotangent: Array) -> Gradients:
    """Only two gradients are returned for three inputs."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight


@wrong_backward("contract", "inference_norm")
def dweight_is_none(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is None: the layer is thought to be frozen at inference."""
    dx, _, dbias, *rest = right("inference_norm", saved, cotangent)
    return dx, None, dbias, *rest


@wrong_backward("contract", "moment_norm")
def weight_decay_included(saved: Saved, cotangent: Array) -> Gradients:
    """dγ contains the weight decay, and so is not linear in ȳ."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight + 1e-4 * saved.weight, p.dbias


@wrong_backward("contract", "moment_norm")
def gradient_clipped(saved: Saved, cotangent: Array) -> Gradients:
    """dx is clipped to ±100."""
    p = pieces(saved, cotangent)
    return np.clip(p.dx, -100, 100), p.dweight, p.dbias


@wrong_backward("contract", "rms_norm")
def small_gradients_flushed(saved: RmsSaved, cotangent: Array) -> Gradients:
    """Elements of dx below 1e-4 are set to zero."""
    dx, dweight = right("rms_norm", saved, cotangent)
    dx[np.abs(dx) < 1e-4] = 0
    return dx, dweight


@wrong_backward("contract", "dropout")
def cotangent_of_zero_divided(keep: Array, cotangent: Array) -> Gradients:
    """The cotangent is normalized and scaled back: NaN for a cotangent of zeros."""
    size = np.sqrt(np.square(cotangent).sum())
    return cotangent / size * keep / (1 - P) * size, None


@wrong_backward("layout", "moment_norm")
def cotangent_read_in_memory_order(saved: Saved, cotangent: Array) -> Gradients:
    """The cotangent is read as it lies in memory: wrong unless it is in row order."""
    p = pieces(saved, cotangent.ravel(order="K").reshape(cotangent.shape))
    return p.dx, p.dweight, p.dbias


@wrong_backward("layout", "moment_norm")
def input_read_in_memory_order(saved: Saved, cotangent: Array) -> Gradients:
    """x is read as it lies in memory."""
    p = pieces(saved._replace(x=saved.x.ravel(order="K").reshape(saved.x.shape)), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("layout", "moment_norm")
def expanded_cotangent_counted_once(saved: Saved, cotangent: Array) -> Gradients:
    """A cotangent with stride 0 along an axis is summed as if the axis had length 1."""
    p = pieces(saved, cotangent)
    expanded = tuple(a for a, n in enumerate(cotangent.strides) if n == 0 and cotangent.shape[a] > 1)
    once = np.prod([cotangent.shape[a] for a in expanded if a in PARAMETERS], initial=1)
    return p.dx, p.dweight, p.dbias / once


@wrong_backward("layout", "moment_norm")
def fast_path_for_contiguous_cotangents(saved: Saved, cotangent: Array) -> Gradients:
    """The general path, for cotangents that are not contiguous, forgets the mean path."""
    p = pieces(saved, cotangent)
    path = p.variance_path + (p.mean_path if cotangent.flags.c_contiguous else 0)
    return p.rstd * (p.g - path), p.dweight, p.dbias


@wrong_backward("layout", "rms_norm")
def negative_strides_lost(saved: RmsSaved, cotangent: Array) -> Gradients:
    """Of each stride the size is used, not the sign."""
    signs = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in cotangent.strides)
    return tuple(right("rms_norm", saved, cotangent[signs]))


@wrong_backward("layout", "rms_norm")
def gaps_between_columns_ignored(saved: RmsSaved, cotangent: Array) -> Gradients:
    """The columns of x are taken to lie next to each other."""
    x = saved.x
    if x.strides[1] > x.itemsize:
        x = np.lib.stride_tricks.as_strided(x, strides=(x.strides[0], x.itemsize))
    return tuple(right("rms_norm", saved._replace(x=x), cotangent))


@wrong_backward("layout", "dropout")
def mask_applied_in_memory_order(keep: Array, cotangent: Array) -> Gradients:
    """The mask is applied in the order of memory, so that a transposed cotangent meets another mask."""
    if not cotangent.flags.c_contiguous:
        keep = keep.reshape(-1).reshape(keep.shape, order="F")
    return cotangent * keep / (1 - P), None


@wrong_pair("layout", "inference_norm")
def column_order_input_misread() -> Pair:
    """Backward takes x in column order for channels last, and swaps channels and positions."""

    def forward(x: Array, *others: Array) -> Any:
        y, saved = inference_norm(x, *others)
        return y, (saved, x.flags.f_contiguous and not x.flags.c_contiguous)

    def backward(kept: Any, cotangent: Array) -> Gradients:
        saved, swapped = kept
        x = np.swapaxes(saved.x, 1, 2).reshape(saved.x.shape) if swapped else saved.x
        return tuple(right("inference_norm", saved._replace(x=x), cotangent))

    return forward, backward
