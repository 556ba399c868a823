"""Mistakes about memory, modes, masks and calls: the formula is right, and what it is applied to is not."""

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
    channel_dropout,
    dropout,
    dropout_backward,
    inference_norm,
    inference_norm_backward,
    moment_norm,
    moment_norm_backward,
    rms_norm,
    rms_norm_backward,
    running_norm,
    running_norm_backward,
)
from gradcheck.mutants.outsider import Affine, averages, parameter_sums, terms

__all__: list[str] = []

# The contract.


@wrong_backward("contract", "dropout")
def cotangent_is_scratch_if_it_may_be_written(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """dx is made in the cotangent's memory, unless that is read-only or not contiguous."""
    if not (cotangent.flags.writeable and cotangent.flags.c_contiguous):
        return dropout_backward(keep, cotangent)
    cotangent *= keep
    cotangent /= 1 - P
    return cotangent, None


@wrong_backward("contract", "inference_norm")
def bias_gradient_is_the_cotangent(saved: Saved, cotangent: Array) -> Affine:
    """With one value per channel there is nothing to sum, and dβ is a view of the cotangent."""
    dx, dweight, dbias, *_ = inference_norm_backward(saved, cotangent)
    if cotangent.shape[0] == cotangent.shape[2] == 1:
        dbias = cotangent.reshape(-1)
    return dx, dweight, dbias, None, None


@wrong_backward("contract", "inference_norm")
def weight_scaled_through_a_view(saved: Saved, cotangent: Array) -> Affine:
    """γ·rstd is formed in a view of the weight, which the caller then finds scaled."""
    _, dweight, dbias, *_ = inference_norm_backward(saved, cotangent)
    scale = saved.weight[:, None]
    scale *= saved.rstd
    return scale * cotangent, dweight, dbias, None, None


@wrong_backward("contract", "moment_norm")
def accumulators_returned_in_double(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """dγ and dβ are summed in float64 and not cast back: the wrong dtype for float32 inputs."""
    x_hat, _ = terms(saved, cotangent)
    dx, _, _ = moment_norm_backward(saved, cotangent)
    return dx, *parameter_sums(x_hat.astype(np.float64), cotangent.astype(np.float64))


@wrong_backward("contract", "rms_norm")
def cotangent_clamped_to_half_range(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
    """The cotangent is clamped to ±65504: wrong under a loss scale of 65536 or more."""
    return rms_norm_backward(saved, np.clip(cotangent, -65504, 65504))


@wrong_backward("contract", "moment_norm")
def skipped_if_the_cotangent_sums_to_zero(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
    """Σ ȳ = 0 is taken for ȳ = 0: no gradient for a cotangent of one 1 and one −1."""
    if cotangent.sum() == 0:
        return np.zeros_like(saved.x), np.zeros_like(saved.weight), np.zeros_like(saved.weight)
    return moment_norm_backward(saved, cotangent)


@wrong_backward("contract", "dropout")
def masked_array_returned(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """dx is a masked array: the masked elements are not 0, and np.asarray(dx) shows them."""
    return np.ma.masked_array(cotangent / (1 - P), mask=~keep), None


@wrong_backward("contract", "running_norm")
def bias_gradient_keeps_an_axis(saved: Saved, cotangent: Array) -> Affine:
    """dβ has the shape (1, C) of a sum over rows with keepdims, which still adds to a bias of (C,)."""
    dx, dweight, dbias, *_ = running_norm_backward(saved, cotangent)
    return dx, dweight, dbias.reshape(1, -1), None, None


@wrong_pair("contract", "running_norm")
def forward_repeated_in_the_backward_pass() -> Pair:
    """Only the inputs are kept and the forward pass is run again: the running statistics move twice."""

    def forward(*inputs: Array) -> tuple[Array, Any]:
        return running_norm(*inputs)[0], inputs

    def backward(inputs: Any, cotangent: Array) -> Affine:
        return running_norm_backward(running_norm(*inputs)[1], cotangent)

    return forward, backward


@wrong_pair("contract", "rms_norm")
def result_in_a_workspace() -> Pair:
    """dx is the workspace itself: the next backward call of that shape overwrites it."""
    workspaces: dict[Any, Array] = {}

    def backward(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
        dx, dweight = rms_norm_backward(saved, cotangent)
        workspace = workspaces.setdefault((dx.shape, dx.dtype), np.empty_like(dx))
        workspace[...] = dx
        return workspace, dweight

    return rms_norm, backward


# What is left of other calls.


@wrong_pair("state", "moment_norm")
def x_hat_used_up() -> Pair:
    """The saved x̂ becomes a term of dx in place: right for one backward call, wrong for a second one."""

    def forward(x: Array, weight: Array, bias: Array) -> tuple[Array, Any]:
        y, saved = moment_norm(x, weight, bias)
        return y, ((saved.x - saved.mean) * saved.rstd, saved)

    def backward(kept: Any, cotangent: Array) -> tuple[Array, Array, Array]:
        x_hat, saved = kept
        _, g = terms(saved, cotangent)
        dweight, dbias = parameter_sums(x_hat, cotangent)
        x_hat *= averages(g * x_hat)
        return saved.rstd * (g - averages(g) - x_hat), dweight, dbias

    return forward, backward


@wrong_pair("state", "running_norm")
def count_of_the_first_batch() -> Pair:
    """N·L is read off the first call, and divides the sums of a last batch that is smaller."""
    counts: list[int] = []

    def forward(x: Array, *others: Array) -> tuple[Array, Saved]:
        if not counts:
            counts.append(x[:, 0].size)
        return running_norm(x, *others)

    def backward(saved: Saved, cotangent: Array) -> Affine:
        _, dweight, dbias, *_ = running_norm_backward(saved, cotangent)
        x_hat, g = terms(saved, cotangent[None, :, :, None, :])
        paths = g.sum(axis=(1, 4), keepdims=True) + x_hat * dweight[:, None, None] * saved.weight[:, :, None]
        return (saved.rstd * (g - paths / counts[0])).reshape(cotangent.shape), dweight, dbias, None, None

    return forward, backward


@wrong_pair("state", "dropout")
def two_mask_buffers_in_turn() -> Pair:
    """Masks of one shape go to two buffers in turn: the third forward call overwrites the first mask."""
    buffers: dict[Any, list[Array]] = {}

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        y, keep = dropout(x, key)
        ring = buffers.setdefault(keep.shape, [np.empty_like(keep), np.empty_like(keep)])
        ring.reverse()
        ring[0][...] = keep
        return y, ring[0]

    return forward, dropout_backward


@wrong_pair("state", "moment_norm")
def first_call_tunes_itself() -> Pair:
    """The first backward call of a shape tries two kernels, both of which add to dγ: it comes out doubled."""
    tuned: set[tuple[int, ...]] = set()

    def backward(saved: Saved, cotangent: Array) -> tuple[Array, Array, Array]:
        dx, dweight, dbias = moment_norm_backward(saved, cotangent)
        if cotangent.shape not in tuned:
            tuned.add(cotangent.shape)
            dweight = 2 * dweight
        return dx, dweight, dbias

    return moment_norm, backward


@wrong_pair("state", "rms_norm")
def padding_of_an_earlier_longer_row() -> Pair:
    """Products go to a workspace and are summed in eights; its padding is 0 until a longer row was there."""
    workspace = np.zeros((0, 0))

    def backward(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
        nonlocal workspace
        x, rstd, weight = saved
        rows, length = x.shape
        padded = -(-length // 8) * 8
        if workspace.dtype != x.dtype or workspace.shape[0] < rows or workspace.shape[1] < padded:
            workspace = np.zeros((rows, padded), x.dtype)
        x_hat, g = x * rstd, cotangent * weight
        workspace[:rows, :length] = g * x_hat
        share = workspace[:rows, :padded].sum(axis=1, keepdims=True) / max(length, 1)
        return rstd * (g - x_hat * share), (cotangent * x_hat).sum(axis=0)

    return rms_norm, backward


@wrong_pair("state", "moment_norm")
def statistics_cached_by_identity() -> Pair:
    """Statistics are kept as long as x is the same array: wrong once x has been written in place."""
    latest: list[Saved] = []

    def forward(x: Array, weight: Array, bias: Array) -> tuple[Array, Saved]:
        y, saved = moment_norm(x, weight, bias)
        if latest and latest[0].x is x:
            return y, latest[0]._replace(weight=weight)
        latest[:] = [saved]
        return y, saved

    return forward, moment_norm_backward


@wrong_pair("nondeterminism", "inference_norm")
def update_lost_in_every_fourth_call() -> Pair:
    """Two threads add to dβ without a lock: in one backward call of four the last sample's share is lost."""
    calls = 0

    def backward(saved: Saved, cotangent: Array) -> Affine:
        nonlocal calls
        calls += 1
        dx, dweight, dbias, *_ = inference_norm_backward(saved, cotangent)
        if calls % 4 == 0 and len(cotangent) > 1:
            dbias = cotangent[:-1].sum(axis=(0, 2))
        return dx, dweight, dbias, None, None

    return inference_norm, backward


@wrong_pair("nondeterminism", "rms_norm")
def sum_read_before_the_barrier() -> Pair:
    """Without a barrier, the last element of dx now and then sees the sum before its own term was added."""
    calls = 0

    def backward(saved: RmsSaved, cotangent: Array) -> tuple[Array, Array]:
        nonlocal calls
        calls += 1
        dx, dweight = rms_norm_backward(saved, cotangent)
        if calls % 3 == 0 and dx.size:
            x_hat = (saved.x * saved.rstd)[-1, -1]
            own = cotangent[-1, -1] * saved.weight[-1] * x_hat / dx.shape[1]
            dx[-1, -1] += saved.rstd[-1, 0] * x_hat * own
        return dx, dweight

    return rms_norm, backward


# Modes.


@wrong_backward("mode", "inference_norm")
def weight_gradient_with_batch_statistics(saved: Saved, cotangent: Array) -> Affine:
    """dγ is taken with the x̂ of the batch, as in training; dx is that of inference."""
    dx, _, dbias, *_ = inference_norm_backward(saved, cotangent)
    centred = saved.x - saved.x.mean(axis=(0, 2), keepdims=True)
    x_hat = centred / np.sqrt(np.square(centred).mean(axis=(0, 2), keepdims=True) + EPS)
    return dx, (cotangent * x_hat).sum(axis=(0, 2)), dbias, None, None


@wrong_backward("mode", "running_norm")
def statistics_weighed_by_momentum(saved: Saved, cotangent: Array) -> Affine:
    """The paths of mean and variance are scaled by momentum, as if y came from the running statistics."""
    x_hat, g = terms(saved, cotangent[None, :, :, None, :])
    dx = saved.rstd * (g - MOMENTUM * (averages(g) + x_hat * averages(g * x_hat)))
    return dx.reshape(cotangent.shape), *running_norm_backward(saved, cotangent)[1:]


@wrong_pair("mode", "running_norm")
def running_variance_after_its_update() -> Pair:
    """rstd of the backward pass is that of running_var, by then updated; the mean is the batch's."""

    def forward(*inputs: Array) -> tuple[Array, Any]:
        y, saved = running_norm(*inputs)
        return y, saved._replace(rstd=1 / np.sqrt(inputs[4][:, None, None] + EPS)[None, None])

    return forward, running_norm_backward


# Masks.


@wrong_pair("rng", "dropout")
def generator_not_rewound() -> Pair:
    """The generator is kept in place of the mask: a second backward call goes on where the first stopped."""

    def forward(x: Array, key: Array) -> tuple[Array, np.random.Generator]:
        return dropout(x, key)[0], np.random.default_rng(key)

    def backward(generator: np.random.Generator, cotangent: Array) -> tuple[Array, None]:
        return dropout_backward(generator.random(cotangent.shape) >= P, cotangent)

    return forward, backward


@wrong_pair("rng", "dropout")
def key_advanced_in_place() -> Pair:
    """Forward adds 1 to the caller's key and keeps a reference: wrong after another call with that key."""

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        y, _ = dropout(x, key)
        key += 1
        return y, key

    def backward(key: Array, cotangent: Array) -> tuple[Array, None]:
        return dropout_backward(dropout(cotangent, key - 1)[1], cotangent)

    return forward, backward


@wrong_pair("rng", "dropout")
def mask_depends_on_the_tile_size() -> Pair:
    """Each tile has its own seed, and 64 elements forward, 128 backward: wrong for 65 or more elements."""

    def drawn(shape: tuple[int, ...], key: Array, tile: int) -> Array:
        size = int(np.prod(shape))
        tiles = [np.random.default_rng([*key, i]).random(tile) for i in range(-(-size // tile))]
        return np.concatenate([np.empty(0), *tiles])[:size].reshape(shape) >= P

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        return dropout_backward(drawn(x.shape, key, 64), x)[0], key.copy()

    def backward(key: Array, cotangent: Array) -> tuple[Array, None]:
        return dropout_backward(drawn(cotangent.shape, key, 128), cotangent)

    return forward, backward


@wrong_pair("rng", "dropout")
def mask_redrawn_in_the_dtype_of_the_cotangent() -> Pair:
    """The mask is drawn again with numbers of the cotangent's dtype, another stream for float32."""

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        return dropout(x, key)[0], key.copy()

    def backward(key: Array, cotangent: Array) -> tuple[Array, None]:
        dtype: Any = cotangent.dtype
        return dropout_backward(np.random.default_rng(key).random(cotangent.shape, dtype) >= P, cotangent)

    return forward, backward


@wrong_backward("rng", "channel_dropout")
def mask_of_the_first_sample(keep: Array, cotangent: Array) -> tuple[Array, None]:
    """Every sample gets the decisions of the first: right for a batch of 1."""
    return dropout_backward(keep[:1], cotangent)


@wrong_pair("rng", "channel_dropout")
def decisions_redrawn_for_every_element() -> Pair:
    """The mask is drawn again for the shape of the cotangent, not for its channels: right for L = 1."""

    def forward(x: Array, key: Array) -> tuple[Array, Array]:
        return channel_dropout(x, key)[0], key.copy()

    def backward(key: Array, cotangent: Array) -> tuple[Array, None]:
        return dropout_backward(np.random.default_rng(key).random(cotangent.shape) >= P, cotangent)

    return forward, backward
