"""The canonical views: BatchNorm, LayerNorm, InstanceNorm and GroupNorm as three reduction problems.

A view is the plan that a kernel is given. It says how to read a contiguous array, without copying it, as an
array of two, three or five axes, and which of those are reduced (G: groups):

====== ================== ============================ ============================ =========================
view   x is read as       reduced                      statistics                   affine index
====== ================== ============================ ============================ =========================
Rows   [R, B]             B                            [R]                          (r % G * B + b) // repeat
Split  [Z, A, S, K, L]    A, K, L                      [Z * S]                      s * K + k
Cols   [Z, A, M]          A and B neighbours along M   [Z * M // B], index m // B   m // repeat
====== ================== ============================ ============================ =========================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

# A model makes the same few calls again and again, and the view of a small one would cost more than its
# kernel. Equal arguments give the same view, and what is remembered of a view is found by which one it is:
# a call looks several times, and to hash all fields each time would show.
remembered = lru_cache(maxsize=1024)

# Channels first in stretches that are shorter than SHORT, and not too few of them, are read as columns, whose
# loops are long, where a sample has LONG values or more.
SHORT, LONG = 256, 1024
# In many samples whose stretches are this short, each statistic of one run of them is read as a row.
VERY_SHORT, MANY = 32, 16


@dataclass(frozen=True, eq=False)
class Rows:
    """x as ``[rows, length]``: each row is normalized; ``centred=False`` is RMSNorm.

    Row r belongs to group r % groups. A weight is that of a group and of ``repeat`` neighbours along the row:
    more than one only where `as_rows` reads short runs of channels as rows.
    """

    rows: int
    length: int
    eps: float
    centred: bool = True
    groups: int = 1
    repeat: int = 1

    @cached_property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.length)

    @cached_property
    def statistics(self) -> int:
        return self.rows

    @cached_property
    def channels(self) -> int:
        return self.groups * self.length // self.repeat


@dataclass(frozen=True, eq=False)
class Split:
    """x as ``[Z, A, S, K, L]``, one statistic for each (z, s): channels first."""

    Z: int
    A: int
    S: int
    K: int
    L: int
    eps: float

    @cached_property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.Z, self.A, self.S, self.K, self.L)

    @cached_property
    def statistics(self) -> int:
        return self.Z * self.S

    @cached_property
    def channels(self) -> int:
        return self.S * self.K


@dataclass(frozen=True, eq=False)
class Cols:
    """x as ``[Z, A, M]``, one statistic for each z and each B neighbours along M: channels last.

    A weight serves ``repeat`` neighbours along M: more than one where short stretches of channels first are
    read as columns.
    """

    Z: int
    A: int
    M: int
    B: int
    eps: float
    repeat: int = 1

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        return (self.Z, self.A, self.M)

    @cached_property
    def statistics(self) -> int:
        return self.Z * (self.M // self.B)

    @cached_property
    def channels(self) -> int:
        return self.M // self.repeat


@remembered
def layer_norm_view(shape: tuple[int, ...], normalized_ndim: int, eps: float, centred: bool = True) -> Rows:
    """The view of LayerNorm, or RMSNorm where not ``centred``, over the last ``normalized_ndim`` axes."""
    if not 1 <= normalized_ndim <= len(shape):
        raise ValueError(
            f"layer_norm_view: normalized_ndim is {normalized_ndim}, but must lie between 1 and the number "
            f"of axes of x, {len(shape)} for shape {shape}"
        )
    first = len(shape) - normalized_ndim
    return Rows(prod(shape[:first]), prod(shape[first:]), eps, centred)


@remembered
def batch_norm_view(shape: tuple[int, ...], channel_axis: int, eps: float) -> Split | Cols:
    """The view of BatchNorm: one statistic for each channel, over the batch and all spatial axes."""
    batch, channels, spatial = _batch_channels_spatial("batch_norm_view", shape, channel_axis)
    if channel_axis == -1 or spatial == 1:
        return Cols(1, batch * spatial, channels, 1, eps)
    if spatial < min(SHORT, 8 * batch) and channels * spatial >= LONG:
        return Cols(1, batch, channels * spatial, spatial, eps, repeat=spatial)
    return Split(1, batch, channels, 1, spatial, eps)


@remembered
def instance_norm_view(shape: tuple[int, ...], channel_axis: int, eps: float) -> Split | Cols:
    """The view of InstanceNorm: one statistic for each sample and channel, over all spatial axes."""
    batch, channels, spatial = _batch_channels_spatial("instance_norm_view", shape, channel_axis)
    if channel_axis == -1 or spatial == 1:
        return Cols(batch, spatial, channels, 1, eps)
    return Split(batch, 1, channels, 1, spatial, eps)


@remembered
def group_norm_view(shape: tuple[int, ...], num_groups: int, channel_axis: int, eps: float) -> Split | Cols:
    """The view of GroupNorm: one statistic for each sample and group of neighbouring channels."""
    batch, channels, spatial = _batch_channels_spatial("group_norm_view", shape, channel_axis)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm_view: num_groups is {num_groups}, but must be positive and divide the number of "
            f"channels, {channels} for shape {shape} with channel_axis {channel_axis}"
        )
    members = channels // num_groups
    if channel_axis == -1 or spatial == 1:
        return Cols(batch, spatial, channels, max(members, 1), eps)
    return Split(batch, 1, num_groups, members, spatial, eps)


@remembered
def as_rows(view: Split | Cols) -> Rows | None:
    """The same problem as rows, where each statistic is that of one run of neighbours in short stretches of
    channels; otherwise None.
    """
    if view.A != 1:
        return None
    if isinstance(view, Cols):
        return Rows(view.statistics, view.B, view.eps, groups=view.M // view.B, repeat=view.repeat)
    if view.L >= VERY_SHORT or view.Z < MANY:
        return None
    return Rows(view.statistics, view.K * view.L, view.eps, groups=view.S, repeat=view.L)


def _batch_channels_spatial(caller: str, shape: tuple[int, ...], channel_axis: int) -> tuple[int, int, int]:
    if channel_axis not in (1, -1):
        raise ValueError(
            f"{caller}: channel_axis is {channel_axis}, but must be 1 (channels first) or -1 (channels last)"
        )
    if len(shape) < 2:
        raise ValueError(f"{caller}: x has shape {shape}, but must have at least a batch and a channel axis")
    spatial = shape[2:] if channel_axis == 1 else shape[1:-1]
    return shape[0], shape[channel_axis], prod(spatial)
