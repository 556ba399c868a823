"""The wrong elements are found, their numbers are right to their bars, at a bounded cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradcheck.diagnosis.localise import Place, localise
from gradcheck.diagnosis.patterns import describe
from gradcheck.subject import make_subject

Change = Callable[[np.ndarray], np.ndarray]


def cubed(change: Change) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An elementwise cube over the sum of the inputs, whose gradient is changed afterwards."""

    def forward(x: np.ndarray) -> Any:
        return x * x * x + np.sin(x), x

    def backward(x: np.ndarray, cotangent: np.ndarray) -> Any:
        return (change((3 * x**2 + np.cos(x)) * cotangent),)

    return forward, backward


def located(shape: tuple[int, ...], change: Change, dtype: type = np.float64) -> tuple[Place, str, int]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    subject = make_subject(
        *cubed(change), (x,), differentiable=None, zero=(), input_names=None, name=None, framework=False
    )
    output, saved = subject.run_forward((x,))
    cotangent = rng.normal(size=shape).astype(dtype)
    (gradient,) = subject.run_backward(saved, cotangent)
    place = localise(subject, 0, output, cotangent, gradient, rng)
    return place, describe(place, x, output), subject.evaluations


def at(*index: Any, error: float = 0.5) -> Change:
    def change(gradient: np.ndarray) -> np.ndarray:
        gradient = gradient.copy()
        gradient[index] *= 1 + error
        return gradient

    return change


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5), (2, 3, 2, 2, 2)])
def test_the_numbers_are_right_to_their_bars(shape: tuple[int, ...]) -> None:
    place, _, _ = located(shape, lambda gradient: gradient)
    assert place.complete
    assert not place.wrong.any()
    assert np.all(place.bar < 1e-8)


@pytest.mark.parametrize("error", [0.5, 1e-6])
def test_one_element_of_few(error: float) -> None:
    place, words, calls = located((3, 4, 5), at(2, 1, 3, error=error))
    assert place.index == (2, 1, 3)
    assert place.wrong.sum() == 1
    assert words == "only element (2, 1, 3)"
    assert place.analytic[2, 1, 3] == pytest.approx(place.numeric[2, 1, 3] * (1 + error), rel=1e-9)
    assert calls <= 400


def test_every_element_of_hundreds_is_looked_at() -> None:
    place, words, calls = located((10, 8, 10), at(slice(None), 4))
    assert place.complete and place.wrong.sum() == 100
    assert words == "only index 4 of axis 1: a constant factor of 1.5"
    assert calls <= 2300


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ((slice(None), 8), "only index 8 of axis 1: a constant factor of 1.5"),
        ((slice(None), slice(None), -1), "only the last index of axis 2: a constant factor of 1.5"),
        (
            (slice(None), slice(None), slice(13, None)),
            "only elements from index 13 on along axis 2: a constant factor of 1.5",
        ),
        ((7, 3, 15), "only element (7, 3, 15)"),
        ((), "a constant factor of 1.5"),
    ],
)
def test_many_elements_are_bisected(index: tuple[Any, ...], words: str) -> None:
    place, got, calls = located((12, 10, 20), at(*index))
    assert got == words
    assert not place.complete
    assert place.wrong.all()
    assert calls <= 2300


def test_a_tiny_error_of_one_element_of_many() -> None:
    place, words, _ = located((2000,), at(1234, error=1e-5))
    assert place.index == (1234,)
    assert words == "only element (1234)"


def test_a_gradient_that_is_not_finite() -> None:
    for shape in ((4, 5), (40, 50)):
        place, words, _ = located(shape, at(1, error=np.nan))
        assert place.index[0] == 1
        assert words == "only index 1 of axis 0: not finite"


def test_float32_has_wider_bars() -> None:
    place, _, _ = located((3, 4), lambda gradient: gradient, np.float32)
    assert not place.wrong.any()
    assert 1e-6 < np.max(place.bar) < 1e-1
    place, words, _ = located((3, 4), at(1, 2), np.float32)
    assert words == "only element (1, 2)"
