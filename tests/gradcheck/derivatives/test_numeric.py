"""The numeric derivative lies within its own bar of the truth, and the bar is tight where it can be."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from pairs import norm

from gradcheck.derivatives.numeric import Estimate, Line, direction, glance, length, magnitude


def line(function, x, seed=0, count=3):
    rng = np.random.default_rng(seed)
    base = function(x)
    cotangents = rng.standard_normal((count, base.size))
    u = direction(x, rng)
    return Line(function, x, u, base, cotangents), u, cotangents


def complex_step(function, x, u, cotangents):
    """Im f(x + i·t·u)/t: exact to the conditioning of f, which must be analytic."""
    t = 1e-30
    return cotangents @ np.imag(function(x + 1j * t * u)).reshape(-1) / t


def normalize(x, eps=1e-5):
    centre = x - x.mean(1, keepdims=True)
    return centre / np.sqrt((centre * centre).mean(1, keepdims=True) + eps)


FUNCTIONS = {
    "exp": np.exp,
    "tanh": np.tanh,
    "cube": lambda x: x**3,
    "reciprocal": lambda x: 1 / (x * x + 0.1),
    "normalize": normalize,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bar_covers_the_error(name):
    function = FUNCTIONS[name]
    covered, tight = 0, 0
    for seed in range(60):
        x = np.random.default_rng(1000 + seed).standard_normal((3, 5))
        curve, u, cotangents = line(function, x, seed)
        estimate = curve.ladder()
        exact = complex_step(function, x, u, cotangents)
        scale = np.abs(cotangents) @ curve.slope
        error = np.abs(estimate.value - exact)
        covered += np.sum(error <= 2 * estimate.bar + 1e-15 * scale)
        tight += np.sum(estimate.bar <= 1e-8 * scale)
    assert covered == 180
    assert tight >= 170


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_bar_covers_the_error_far_from_zero(mean, scale):
    x = mean + scale * np.random.default_rng(3).standard_normal((4, 6))
    curve, u, cotangents = line(normalize, x)
    estimate = curve.ladder()
    # The exact derivative at rounded inputs is itself only as good as their last digits.
    unknown = 100 * 2.0**-52 * mean / scale * (np.abs(cotangents) @ curve.slope)
    assert np.all(
        np.abs(estimate.value - complex_step(normalize, x, u, cotangents)) <= 2 * estimate.bar + unknown
    )


def test_smaller_steps_find_what_the_first_ladder_cannot_see():
    x = np.zeros((1, 4))
    x[0] = 0.5
    curve, u, cotangents = line(lambda x: normalize(x, 1e-10), x)
    exact = complex_step(lambda x: normalize(x, 1e-10), x, u, cotangents)
    coarse, fine = curve.ladder(), curve.ladder(-16)
    assert np.all(coarse.bar > 0.1 * np.abs(coarse.value)), "the first ladder must know that it does not know"
    combined = coarse.overruled_by(fine)
    assert np.allclose(combined.value, exact, rtol=1e-8)


def test_a_finer_ladder_overrules_a_coarser_one_only_where_they_disagree():
    curve, _, _ = line(np.tanh, np.random.default_rng(0).standard_normal((2, 3)))
    coarse, fine = curve.ladder(), curve.ladder(-8)
    assert np.array_equal(coarse.overruled_by(fine).value, coarse.value), (
        "they agree, and the coarser is tighter"
    )


def test_the_finer_of_two_that_disagree_is_believed_though_its_bar_is_wider():
    def estimate(value, bar):
        return Estimate(np.array([value]), np.array([bar]), np.array([bar]), np.zeros(1), np.ones(1), shift=0)

    assert estimate(1.0, 1e-12).overruled_by(estimate(2.0, 1e-6)).value == 2.0
    assert estimate(1.0, 1e-12).overruled_by(estimate(1.0 + 1e-6, 1e-6)).value == 1.0
    assert estimate(1.0, 1e-6).overruled_by(estimate(1.0 + 1e-6, 1e-12)).value == 1.0 + 1e-6


def test_noise_is_measured_also_where_the_operation_rounds_to_float32():
    x = np.random.default_rng(0).standard_normal((4, 6))
    smooth, _, cotangents = line(np.tanh, x)
    rough, _, _ = line(lambda x: np.tanh(x.astype(np.float32)).astype(np.float64), x)
    size = np.sqrt(cotangents**2 @ np.tanh(x).reshape(-1) ** 2)
    assert np.all(smooth.noise < 1e-14 * size)
    assert np.all(rough.noise > 1e-9 * size)


def test_strong_curvature_is_not_mistaken_for_noise():
    for eps in (1e-12, 1e-16):
        curve, _, _ = line(functools.partial(normalize, eps=eps), np.zeros((2, 4)))
        assert np.all(curve.noise < 1e-8)


def test_points_outside_the_domain_are_left_out():
    x = np.array([0.05, 1.0, 2.0])
    with np.errstate(invalid="ignore"):
        curve, u, cotangents = line(np.sqrt, x)
        estimate = curve.ladder()
        assert np.isnan(np.sqrt(x - 0.25 * np.abs(u))).any(), "the coarsest steps leave the domain"
    assert np.isfinite(estimate.bar).all()
    assert np.allclose(estimate.value, cotangents @ (u / (2 * np.sqrt(x))), rtol=1e-9)


def test_a_slope_that_jumps_is_measured():
    x = np.array([0.0, 1.0, -1.0])
    curve, u, cotangents = line(np.abs, x)
    assert np.allclose(curve.ladder().kink, np.abs(cotangents) @ [abs(u[0]), 0, 0], rtol=1e-6)


@pytest.mark.parametrize("shift", [0, -8, -16])
def test_a_kink_that_the_steps_straddle_is_never_known_better_than_its_jump(shift):
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal(8)
        x[0] = 2.0 ** (shift - 10) * np.random.default_rng(seed).uniform(-1, 1)
        curve, u, cotangents = line(np.abs, x, seed)
        estimate = curve.ladder(shift)
        error = np.abs(estimate.value - cotangents @ (np.sign(x) * u))
        assert np.all(error <= 2 * (estimate.bar + estimate.kink) + 1e-15 * np.abs(estimate.value)), seed


def test_a_far_kink_costs_nothing():
    x = np.array([1e-2, 1.0, -1.0])
    curve, u, cotangents = line(np.abs, x)
    estimate = curve.ladder(-8)
    assert not estimate.kink.any()
    assert np.all(estimate.bar < 1e-9)
    assert np.all(np.abs(estimate.value - cotangents @ (np.sign(x) * u)) <= 2 * estimate.bar)


def test_a_value_that_is_not_finite_makes_the_bar_infinite():
    x = np.array([1e-300, 1.0, 2.0])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        curve, _, _ = line(lambda x: np.log(np.maximum(x, 0)), x)
        estimate = curve.ladder()
    assert np.isinf(estimate.bar).all()
    assert np.isfinite(curve.slope).all() and np.isfinite(estimate.kink).all()


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
def test_sizes_whose_squares_leave_the_range_are_measured(exponent):
    scale = 2.0**exponent
    x = np.random.default_rng(0).standard_normal((3, 4))
    assert magnitude(scale * x) == scale * magnitude(x)
    assert length(scale * x) == pytest.approx(scale * np.sqrt(np.sum(x * x)), rel=1e-14)
    plain, u, _ = line(np.tanh, x)
    curve = Line(
        lambda y: scale * np.tanh(y / scale), scale * x, scale * u, scale * np.tanh(x), plain._cotangents
    )
    one, other = plain.ladder(), curve.ladder()
    assert np.allclose(other.value, scale * one.value, rtol=1e-10, atol=0)
    assert np.allclose(other.bar, scale * one.bar, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (np.zeros(3), 1.0),
        (np.full(3, 5.0), 4.0),
        (np.array([-1.0, 1.0]), 1.0),
        (1e4 + np.array([-1e-3, 1e-3]), 2.0**-10),
    ],
)
def test_directions_are_as_large_as_the_spread(x, wanted):
    assert magnitude(x) == wanted
    u = direction(x, np.random.default_rng(0))
    assert set(np.abs(u / wanted)) <= {0.5, 1.0, 1.5}


def test_directions_keep_the_memory_layout():
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4)))
    assert direction(x, np.random.default_rng(0)).flags.f_contiguous


def test_a_ladder_takes_18_evaluations_and_the_noise_usually_14():
    calls = []

    def counted(x):
        calls.append(1)
        return normalize(x)

    curve, _, _ = line(counted, np.random.default_rng(0).standard_normal((3, 5)))
    assert len(calls) == 1 + 14
    curve.ladder()
    assert len(calls) == 1 + 14 + 18


def test_the_correct_forward_of_the_pairs_is_the_formula():
    x = np.random.default_rng(0).standard_normal((3, 5))
    assert np.allclose(norm((1,), 1)(x)[0], normalize(x))


def test_the_place_of_a_kink_is_known():
    x = np.array([[0.5, 1.0], [2.0**-12, -1.0]])
    curve, _, _ = line(np.abs, x)
    curve.ladder()
    assert curve.jumps.tolist() == [False, False, True, False]


def test_a_smooth_function_has_no_kinks():
    curve, _, _ = line(normalize, np.random.default_rng(0).standard_normal((3, 5)))
    curve.ladder()
    assert not curve.jumps.any()


def test_a_line_like_another_does_not_measure_its_noise_again():
    calls = []

    def counted(x):
        calls.append(1)
        return np.tanh(x)

    x = np.random.default_rng(0).standard_normal(5)
    cotangents = np.random.default_rng(1).standard_normal((3, 5))
    u, v = (direction(x, np.random.default_rng(seed)) for seed in (2, 3))
    first = Line(counted, x, u, np.tanh(x), cotangents)
    measured = len(calls)
    second = Line(counted, x, v, np.tanh(x), cotangents, like=first)
    assert measured == len(calls) == 14
    assert np.array_equal(second.noise, first.noise)


def test_elements_that_stay_do_not_limit_the_steps():
    """A direction of one element alone may take steps that would be lost next to the size of another."""
    x = np.array([1e12, 1.0, -0.5])
    u = np.array([0.0, 0.5, 1.0])
    cotangents = np.random.default_rng(1).standard_normal((2, 3))
    curve = Line(np.tanh, x, u, np.tanh(x), cotangents)
    assert curve.admits(-24)
    assert np.allclose(curve.ladder().value, cotangents @ (u / np.cosh(np.minimum(x, 9)) ** 2), rtol=1e-10)


def test_the_rounding_of_the_steps_is_part_of_the_noise():
    """Where x + t·u is rounded, so is the difference of two such points, though the output is smooth."""
    x = np.array([1e6 + 1 / 3, -1.0, 1.0])
    u, cotangents = 0.7 * direction(x, np.random.default_rng(1)), np.ones((1, 3))
    curve = Line(lambda x: x - 1e6, x, u, x - 1e6, cotangents)
    curve.noise = np.full(1, 1e-30)
    assert curve.ladder().noise > 1e-10


@pytest.mark.parametrize("decimals", [3, 4, 5, 6])
def test_an_output_that_is_rounded_to_few_digits_climbs_stairs(decimals):
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((3, 4))
        rough, *_ = line(lambda x: np.round(np.tanh(x), decimals), x, seed)
        smooth, *_ = line(np.tanh, x, seed)
        rough.ladder(), smooth.ladder()
        assert not smooth.climbs_stairs()
        assert rough.climbs_stairs() or decimals == 6


def test_a_jump_of_the_output_does_not_look_like_a_large_gradient():
    x = np.array([1.0, 2.0])
    curve = Line(lambda x: x + 1e-6 * (x >= 1), x, np.ones(2), x + 1e-6, np.ones((1, 2)))
    for shift in (0, -8, -16, -24):
        curve.ladder(shift)
    assert np.all(curve.slope < 3)


def test_a_line_that_is_rougher_than_the_one_it_is_like_measures_its_own_noise():
    def forward(x):
        return np.array([x[0], 1e6 + np.tanh(x[1])])

    x, cotangents = np.array([0.3, 0.7]), np.random.default_rng(0).standard_normal((3, 2))
    quiet, loud = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    first = Line(forward, x, quiet, forward(x), cotangents)
    first.noise = first.noise * 1e-6  # its forward pass happens to be exact
    second = Line(forward, x, loud, forward(x), cotangents, like=first)
    assert np.array_equal(second.noise, first.noise)
    second.ladder()
    own = Line(forward, x, loud, forward(x), cotangents)
    assert np.array_equal(second.noise, own.noise)


@pytest.mark.parametrize("seed", range(5))
def test_a_glance_takes_six_calls_and_is_near_where_its_bar_is_small(seed):
    rng, calls = np.random.default_rng(seed), []
    x, cotangent = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    u = direction(x, rng)

    def value(moved):
        calls.append(moved)
        return np.tanh(moved)

    numeric, bar = glance(value, x, u, cotangent)
    exact = float(np.sum(cotangent * u / np.cosh(x) ** 2))
    assert len(calls) == 6
    assert abs(numeric - exact) <= bar + 1e-13 and bar < 1e-6
