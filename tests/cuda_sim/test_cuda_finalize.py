"""The kernels that join partial results, in the simulator: against float64 on the values they stand for."""

from typing import NamedTuple

import numpy as np
import pytest

from tinygrad_bn.kernels.cuda import finalize
from tinygrad_bn.kernels.cuda.simulator import thread_order

EPS = 1e-5
T = np.float32


class Layout(NamedTuple):
    Z: int
    count: int
    M: int
    B: int
    repeat: int
    full: int


ORDERS = pytest.mark.parametrize("order", ["forward", "backward"])
LAYOUTS = pytest.mark.parametrize(
    "layout",
    [
        Layout(Z=1, count=40, M=3, B=1, repeat=1, full=8),  # few threads for each statistic
        Layout(Z=2, count=7, M=4, B=2, repeat=1, full=3),  # a last tile that is short
        Layout(Z=1, count=5, M=6, B=3, repeat=3, full=9),  # one tile; one weight for neighbours
        Layout(Z=3, count=20, M=1, B=1, repeat=1, full=1),
        Layout(Z=1, count=40, M=9, B=9, repeat=3, full=2),  # a warp for each
        Layout(Z=2, count=300, M=2, B=1, repeat=2, full=1),  # a block for each
    ],
    ids=lambda layout: "-".join(map(str, layout)),
)


def tiles(values, full):
    """values [Z, count, M] in tiles of `full` along the second axis."""
    return [values[:, i : i + full] for i in range(0, values.shape[1], full)]


def moments_of(values, full):
    """What a streaming kernel leaves: [3, Z, tiles, M] in the type of arithmetic."""
    means = np.stack([tile.mean(axis=1) for tile in tiles(values, full)], axis=1)
    rounded = means.astype(T)
    squares = [((tile - means[:, i, None]) ** 2).sum(axis=1) for i, tile in enumerate(tiles(values, full))]
    return np.stack([rounded, (means - rounded).astype(T), np.stack(squares, axis=1).astype(T)])


@LAYOUTS
@ORDERS
def test_moments_of_tiles_give_the_statistics_of_their_values(layout, order):
    rng = np.random.default_rng(0)
    values = rng.normal(1e4, 1.0, (layout.Z, layout.count, layout.M)) + rng.normal(size=layout.M)
    moments = moments_of(values, layout.full)
    with thread_order(order):
        found = finalize.statistics_of_moments(moments, layout.B, layout.full, layout.count, EPS)
    mean, variance, rstd, shift = found
    grouped = values.reshape(layout.Z, layout.count, -1, layout.B)
    expected = grouped.mean(axis=(1, 3)).ravel()
    np.testing.assert_array_equal(mean, expected.astype(T))
    np.testing.assert_allclose(variance, grouped.var(axis=(1, 3)).ravel(), rtol=2e-6)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(variance.astype(float) + EPS), rtol=1e-6)
    np.testing.assert_allclose(mean - shift.astype(float) / rstd, expected, rtol=1e-11)


def test_what_a_large_mean_loses_in_float64_is_kept_too():
    """Means of three tiles of four values near 2⁵³, where float64 has no digit after the point."""
    large = 2.0**53
    moments = np.array([[large, large + 2, large + 6], [0.25, -0.5, 0.125], [1, 2, 3]]).reshape(3, 1, 3, 1)
    (mean,), (variance,), (rstd,), (shift,) = finalize.statistics_of_moments(moments, 1, 4, 12, EPS)
    means = np.array([0.25, 1.5, 6.125])
    assert mean - large - shift / rstd == pytest.approx(means.mean(), rel=1e-14)
    assert variance == pytest.approx(0.5 + means.var(), rel=1e-14)


@LAYOUTS
@ORDERS
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
def test_sums_of_tiles_give_means_and_gradients(layout, order, weighted):
    rng = np.random.default_rng(1)
    channels, count = layout.M // layout.repeat, layout.count * layout.B
    sums = rng.normal(size=(2, layout.Z, -(-layout.count // layout.full), layout.M)).astype(T)
    weight = rng.normal(size=channels).astype(T) if weighted else None
    affine = np.full((2, channels), np.nan, T)
    with thread_order(order):
        means = finalize.gradients_of_sums(
            *(sums, weight, tuple(affine), affine),
            need_means=True,
            B=layout.B,
            repeat=layout.repeat,
            count=count,
        )
    along, plain = sums.astype(float).sum(axis=2)  # [Z, M]
    factor = np.repeat(weight, layout.repeat) if weighted else 1
    for found, whole in zip(means, (plain, along), strict=True):
        wanted = (whole * factor).reshape(layout.Z, -1, layout.B).sum(axis=2).ravel() / count
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    for found, whole in zip(affine, (along, plain), strict=True):
        wanted = whole.sum(axis=0).reshape(channels, -1).sum(axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_only_what_is_needed_is_written():
    parts = np.ones((2, 2, 3, 4), T)
    affine = np.full((2, 4), np.nan, T)
    means = finalize.gradients_of_sums(
        parts, None, tuple(affine), affine, need_means=False, B=2, repeat=1, count=6
    )
    assert means.size == 0
    np.testing.assert_array_equal(affine, np.full((2, 4), 6))
    means = finalize.gradients_of_sums(parts, None, None, parts, need_means=True, B=2, repeat=1, count=6)
    np.testing.assert_array_equal(means, np.ones((2, 4)))


@pytest.mark.parametrize("storage", [np.float16, np.float32, np.float64])
def test_running_statistics(storage):
    rng = np.random.default_rng(2)
    mean, variance = rng.normal(1e3, 1, 130).astype(storage), rng.uniform(0.5, 2, 130)
    found = finalize.statistics_of_running(T, EPS, mean, variance)
    np.testing.assert_array_equal(found[0], mean.astype(T))
    np.testing.assert_array_equal(found[1], variance.astype(T))
    rstd = 1 / np.sqrt(variance + EPS)
    np.testing.assert_array_equal(found[2], rstd.astype(T))
    np.testing.assert_array_equal(found[3], ((found[0].astype(float) - mean) * rstd).astype(T))


def test_of_a_constant_and_of_what_is_not_finite():
    values = np.full((1, 6, 3), 3.7e5)
    values[0, 4, 1] = np.inf
    values[0, 4, 2] = np.nan
    with np.errstate(all="ignore"):
        moments = moments_of(values, 4)
    statistics = finalize.statistics_of_moments(moments, 1, 4, 6, 0.0)
    assert statistics[1, 0] == 0
    assert np.isinf(statistics[2, 0])
    assert np.isnan(statistics[1:, 1:]).all()
