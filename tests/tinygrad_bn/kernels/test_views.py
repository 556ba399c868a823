from __future__ import annotations

from math import prod

import numpy as np
import pytest

from tinygrad_bn.kernels.views import (
    Cols,
    Rows,
    Split,
    as_rows,
    batch_norm_view,
    group_norm_view,
    instance_norm_view,
    layer_norm_view,
)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (layer_norm_view((2, 3, 4), 1, 1e-5), Rows(6, 4, 1e-5)),
        (layer_norm_view((2, 3, 4), 3, 0.0, centred=False), Rows(1, 24, 0.0, False)),
        (layer_norm_view((0, 4), 1, 1e-5), Rows(0, 4, 1e-5)),
        (batch_norm_view((2, 3, 4, 5), 1, 1e-5), Split(1, 2, 3, 1, 20, 1e-5)),
        (batch_norm_view((32, 6, 255), 1, 1e-5), Cols(1, 32, 1530, 255, 1e-5, repeat=255)),
        (batch_norm_view((31, 6, 248), 1, 1e-5), Split(1, 31, 6, 1, 248, 1e-5)),
        (batch_norm_view((33, 6, 256), 1, 1e-5), Split(1, 33, 6, 1, 256, 1e-5)),
        (batch_norm_view((32, 4, 255), 1, 1e-5), Split(1, 32, 4, 1, 255, 1e-5)),
        (batch_norm_view((2, 4, 5, 3), -1, 1e-5), Cols(1, 40, 3, 1, 1e-5)),
        (batch_norm_view((2, 3), 1, 1e-5), Cols(1, 2, 3, 1, 1e-5)),
        (batch_norm_view((2, 3, 1, 1), 1, 1e-5), Cols(1, 2, 3, 1, 1e-5)),
        (instance_norm_view((2, 3, 4, 5), 1, 1e-5), Split(2, 1, 3, 1, 20, 1e-5)),
        (instance_norm_view((2, 4, 5, 3), -1, 1e-5), Cols(2, 20, 3, 1, 1e-5)),
        (group_norm_view((2, 6, 4), 3, 1, 1e-5), Split(2, 1, 3, 2, 4, 1e-5)),
        (group_norm_view((2, 4, 6), 3, -1, 1e-5), Cols(2, 4, 6, 2, 1e-5)),
        (group_norm_view((2, 6), 3, 1, 1e-5), Cols(2, 1, 6, 2, 1e-5)),
    ],
)
def test_view_of_an_operation(view, expected):
    assert repr(view) == repr(expected)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("shape", [(2, 6, 5, 12), (3, 6, 1, 6), (0, 6, 2, 6), (2, 6, 0, 6)])
def test_every_view_holds_all_elements_and_all_statistics(shape, channel_axis):
    channels = shape[channel_axis]
    for view, statistics in [
        (batch_norm_view(shape, channel_axis, 1e-5), channels),
        (instance_norm_view(shape, channel_axis, 1e-5), shape[0] * channels),
        (group_norm_view(shape, 2, channel_axis, 1e-5), shape[0] * 2),
    ]:
        assert prod(view.shape) == prod(shape)
        assert view.statistics == statistics
        assert view.channels == channels


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (group_norm_view((4, 6), 3, 1, 0.5), Rows(12, 2, 0.5, groups=3)),
        (group_norm_view((16, 6, 3, 3), 3, 1, 0.5), Rows(48, 18, 0.5, groups=3, repeat=9)),
        (instance_norm_view((16, 6, 5), 1, 0.5), Rows(96, 5, 0.5, groups=6, repeat=5)),
        (group_norm_view((15, 6, 3, 3), 3, 1, 0.5), None),  # few samples
        (group_norm_view((16, 6, 8, 8), 3, 1, 0.5), None),  # long stretches
        (group_norm_view((4, 2, 6), 3, -1, 0.5), None),
        (batch_norm_view((4, 6), 1, 0.5), None),
    ],
)
def test_short_runs_of_channels_are_rows(view, expected):
    assert repr(as_rows(view)) == repr(expected)
    if expected is not None:
        assert (expected.statistics, expected.channels) == (view.statistics, view.channels)


def test_group_statistics_are_those_of_the_view():
    x = np.random.default_rng(0).standard_normal((2, 6, 5))
    view = group_norm_view(x.shape, 3, 1, 1e-5)
    assert np.array_equal(x.reshape(view.shape).mean(axis=(1, 3, 4)), x.reshape(2, 3, 10).mean(axis=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer_norm_view((2, 3), 0, 1e-5), "normalized_ndim is 0, but must lie between 1 and"),
        (lambda: layer_norm_view((2, 3), 3, 1e-5), "normalized_ndim is 3"),
        (lambda: batch_norm_view((2, 3), 0, 1e-5), "channel_axis is 0, but must be 1"),
        (
            lambda: instance_norm_view((3,), 1, 1e-5),
            r"x has shape \(3,\), but must have at least a batch and",
        ),
        (lambda: group_norm_view((2, 6), 4, 1, 1e-5), "num_groups is 4, but must be positive and divide"),
        (lambda: group_norm_view((2, 6), 0, 1, 1e-5), "num_groups is 0"),
    ],
)
def test_impossible_views_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
