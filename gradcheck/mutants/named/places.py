"""Gradients that are wrong at one place, right at the wrong place, or summed over the wrong axes."""

from __future__ import annotations

import numpy as np

from gradcheck.mutants.mutant import wrong_backward
from gradcheck.mutants.named.pieces import PARAMETERS, STATISTICS, Gradients, expand, pieces, right
from gradcheck.mutants.operations import P, RmsSaved, Saved

Array = np.ndarray


@wrong_backward("local", "moment_norm")
def last_element_zero(saved: Saved, cotangent: Array) -> Gradients:
    """The loop stops one element early."""
    p = pieces(saved, cotangent)
    p.dx.flat[-1] = 0
    return p.dx, p.dweight, p.dbias


@wrong_backward("local", "moment_norm")
def one_element_slightly_off(saved: Saved, cotangent: Array) -> Gradients:
    """One element in the middle is off by 1e-5."""
    p = pieces(saved, cotangent)
    p.dx.flat[p.dx.size // 2] *= 1 + 1e-5
    return p.dx, p.dweight, p.dbias


@wrong_backward("local", "moment_norm")
def first_sample_without_paths(saved: Saved, cotangent: Array) -> Gradients:
    """The first slice gets the direct term only."""
    p = pieces(saved, cotangent)
    p.dx[0, 0] = (p.rstd * p.g)[0, 0]
    return p.dx, p.dweight, p.dbias


@wrong_backward("local", "moment_norm")
def last_channel_of_dweight_lost(saved: Saved, cotangent: Array) -> Gradients:
    """The last entry of dγ is never written."""
    p = pieces(saved, cotangent)
    p.dweight[-1, -1] = 0
    return p.dx, p.dweight, p.dbias


@wrong_backward("local", "moment_norm")
def dbias_misses_the_last_position(saved: Saved, cotangent: Array) -> Gradients:
    """dβ sums all positions but the last of each channel, if there are two or more."""
    p = pieces(saved, cotangent)
    length = cotangent.shape[-1]
    return p.dx, p.dweight, cotangent[..., : max(length - 1, 1)].sum(PARAMETERS)


@wrong_backward("local", "moment_norm")
def first_channel_with_the_weight_of_the_last(saved: Saved, cotangent: Array) -> Gradients:
    """Channel 0 of each group takes γ of the last channel in the direct term."""
    p = pieces(saved, cotangent)
    g = p.g.copy()
    g[:, :, :, 0] = cotangent[:, :, :, 0] * saved.weight[:, -1, None]
    g[:, :, 0] = cotangent[:, :, 0] * saved.weight[-1, :, None]
    return p.rstd * (g - p.mean_path - p.variance_path), p.dweight, p.dbias


@wrong_backward("local", "moment_norm")
def largest_input_saturates(saved: Saved, cotangent: Array) -> Gradients:
    """The element with the largest |x̂| is taken to be clipped, and gets no gradient."""
    p = pieces(saved, cotangent)
    p.dx.flat[np.argmax(np.abs(p.x_hat))] = 0
    return p.dx, p.dweight, p.dbias


@wrong_backward("local", "rms_norm")
def rms_last_row_unwritten(saved: RmsSaved, cotangent: Array) -> Gradients:
    """The last row of dx is that of the row before, if there is one."""
    dx, dweight = right("rms_norm", saved, cotangent)
    dx[-1] = dx[max(len(dx) - 2, 0)] if len(dx) > 1 else dx[-1]
    return dx, dweight


@wrong_backward("local", "dropout")
def dropout_keeps_the_last_element(keep: Array, cotangent: Array) -> Gradients:
    """The last element always gets a gradient."""
    kept = keep.copy()
    kept.flat[-1] = True
    return cotangent * kept / (1 - P), None


@wrong_backward("local", "inference_norm")
def inference_first_channel_skipped(saved: Saved, cotangent: Array) -> Gradients:
    """The channels are counted from 1: channel 0 gets no dγ."""
    dx, dweight, *rest = right("inference_norm", saved, cotangent)
    dweight[0] = 0
    return dx, dweight, *rest


@wrong_backward("index", "moment_norm")
def dx_rolled_by_one(saved: Saved, cotangent: Array) -> Gradients:
    """dx is written one element too late."""
    p = pieces(saved, cotangent)
    return np.roll(p.dx, 1), p.dweight, p.dbias


@wrong_backward("index", "moment_norm")
def dx_reversed_along_positions(saved: Saved, cotangent: Array) -> Gradients:
    """The positions of each channel are written backwards."""
    p = pieces(saved, cotangent)
    return p.dx[..., ::-1].copy(), p.dweight, p.dbias


@wrong_backward("index", "moment_norm")
def positions_before_channels(saved: Saved, cotangent: Array) -> Gradients:
    """dx is computed with the positions first, and copied out as if the channels were."""
    p = pieces(saved, cotangent)
    return np.swapaxes(p.dx, 3, 4).reshape(p.dx.shape).copy(), p.dweight, p.dbias


@wrong_backward("index", "moment_norm")
def dweight_with_groups_inside(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is stored as [K, S] and read as [S, K]: c % G in place of c // (C/G)."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight.T.reshape(p.dweight.shape).copy(), p.dbias


@wrong_backward("index", "moment_norm")
def weight_with_groups_inside(saved: Saved, cotangent: Array) -> Gradients:
    """γ is read as [K, S]."""
    p = pieces(saved._replace(weight=saved.weight.T.reshape(saved.weight.shape)), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("index", "moment_norm")
def rstd_of_the_next_slice(saved: Saved, cotangent: Array) -> Gradients:
    """The factor in front of dx is that of the next slice."""
    p = pieces(saved, cotangent)
    rstd = np.roll(p.rstd, 1).reshape(p.rstd.shape)
    return p.dx / p.rstd * rstd, p.dweight, p.dbias


@wrong_backward("index", "moment_norm")
def dbias_reversed(saved: Saved, cotangent: Array) -> Gradients:
    """dβ is written backwards."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight, np.flip(p.dbias).copy()


@wrong_backward("index", "rms_norm")
def rms_weight_off_by_one(saved: RmsSaved, cotangent: Array) -> Gradients:
    """γ is read one column to the left."""
    rolled = saved._replace(weight=np.roll(saved.weight, 1))
    return right("rms_norm", rolled, cotangent)[0], right("rms_norm", saved, cotangent)[1]


@wrong_backward("index", "dropout")
def dropout_mask_shifted(keep: Array, cotangent: Array) -> Gradients:
    """The mask is read one element too early."""
    return cotangent * np.roll(keep, -1) / (1 - P), None


@wrong_backward("index", "dropout")
def dropout_mask_in_column_order(keep: Array, cotangent: Array) -> Gradients:
    """The mask is written row by row and read column by column."""
    return cotangent * keep.reshape(-1).reshape(keep.shape, order="F") / (1 - P), None


@wrong_backward("axis", "moment_norm")
def paths_without_the_batch(saved: Saved, cotangent: Array) -> Gradients:
    """The means go over K and L, and not over A."""
    p = pieces(saved, cotangent)
    path = p.g.mean((3, 4), keepdims=True) + p.x_hat * (p.g * p.x_hat).mean((3, 4), keepdims=True)
    return p.rstd * (p.g - path), p.dweight, p.dbias


@wrong_backward("axis", "moment_norm")
def paths_without_the_positions(saved: Saved, cotangent: Array) -> Gradients:
    """The means go over A and K, and not over L."""
    p = pieces(saved, cotangent)
    path = p.g.mean((1, 3), keepdims=True) + p.x_hat * (p.g * p.x_hat).mean((1, 3), keepdims=True)
    return p.rstd * (p.g - path), p.dweight, p.dbias


@wrong_backward("axis", "moment_norm")
def paths_per_channel(saved: Saved, cotangent: Array) -> Gradients:
    """The means go over A and L, and not over the channels of a group."""
    p = pieces(saved, cotangent)
    path = p.g.mean((1, 4), keepdims=True) + p.x_hat * (p.g * p.x_hat).mean((1, 4), keepdims=True)
    return p.rstd * (p.g - path), p.dweight, p.dbias


@wrong_backward("axis", "moment_norm")
def mean_path_over_all_groups(saved: Saved, cotangent: Array) -> Gradients:
    """The mean of g goes over the groups too."""
    p = pieces(saved, cotangent)
    path = p.g.mean((1, 2, 3, 4), keepdims=True)
    return p.rstd * (p.g - path - p.variance_path), p.dweight, p.dbias


@wrong_backward("axis", "moment_norm")
def variance_path_over_all_samples(saved: Saved, cotangent: Array) -> Gradients:
    """mean(g·x̂) goes over Z too."""
    p = pieces(saved, cotangent)
    path = p.x_hat * (p.g * p.x_hat).mean((0, *STATISTICS), keepdims=True)
    return p.rstd * (p.g - p.mean_path - path), p.dweight, p.dbias


@wrong_backward("axis", "moment_norm")
def dbias_of_the_first_sample(saved: Saved, cotangent: Array) -> Gradients:
    """dβ is not summed over Z."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight, cotangent[:1].sum(PARAMETERS)


@wrong_backward("axis", "moment_norm")
def dweight_shared_by_the_group(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is averaged over the channels of a group."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight.mean(1, keepdims=True) + 0 * p.dweight, p.dbias


@wrong_backward("axis", "rms_norm")
def rms_mean_over_columns(saved: RmsSaved, cotangent: Array) -> Gradients:
    """mean(g·x̂) goes over the rows of a column."""
    x_hat, g = saved.x * saved.rstd, cotangent * saved.weight
    dx = saved.rstd * (g - x_hat * (g * x_hat).mean(axis=0, keepdims=True))
    return dx, right("rms_norm", saved, cotangent)[1]


@wrong_backward("axis", "channel_dropout")
def channel_mask_along_channels(keep: Array, cotangent: Array) -> Gradients:
    """The mask of a sample is shared by its channels in place of its positions."""
    shared = np.broadcast_to(keep[:, :1], cotangent.shape)
    return cotangent * shared / (1 - P), None


@wrong_backward("axis", "inference_norm")
def inference_parameters_over_positions(saved: Saved, cotangent: Array) -> Gradients:
    """dβ sums the positions of the first sample only."""
    dx, dweight, _, *rest = right("inference_norm", saved, cotangent)
    return dx, dweight, cotangent[0].sum(axis=1), *rest


@wrong_backward("axis", "moment_norm")
def weight_of_the_first_group(saved: Saved, cotangent: Array) -> Gradients:
    """γ of the first group is used for all."""
    p = pieces(saved, cotangent)
    g = cotangent * expand(saved.weight[:1])
    path = g.mean(STATISTICS, keepdims=True) + p.x_hat * (g * p.x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (g - path), p.dweight, p.dbias
