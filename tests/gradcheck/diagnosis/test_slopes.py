"""An operation that gives the output at one point, but has another derivative, is not what is diagnosed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradcheck import check_pair
from gradcheck.diagnosis.slopes import Slopes
from gradcheck.diagnosis.terms import Mask, MomentNorm, Norm, RmsNorm
from gradcheck.subject import make_subject

RNG = np.random.default_rng(2)
ONES, WEIGHT = np.ones((4, 5)), RNG.normal(size=5)


def slopes(forward: Callable[..., Any], *inputs: np.ndarray) -> Slopes:
    subject = make_subject(lambda *given: (forward(*given), None), lambda saved, cotangent: (), inputs)
    output, _ = subject.run_forward(subject.inputs)
    return Slopes(subject, output, RNG.normal(size=output.shape), np.random.default_rng(0))


def rms_norm(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return np.asarray(weight * x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5))


def record(kind: type[Norm], weight: int | None = None, eps: float = 1e-5) -> Norm:
    return kind("it", (4, 5), (1,), (1, 5), eps, weight=weight)


@pytest.mark.parametrize("x", [RNG.normal(size=(4, 5)), 1e6 + RNG.normal(size=(4, 5)), ONES, 1e-9 * ONES])
def test_the_operation_itself_is_not_contradicted(x: np.ndarray) -> None:
    assert not slopes(rms_norm, x, WEIGHT).contradict(record(RmsNorm, 1))
    assert not slopes(rms_norm, x).contradict(record(RmsNorm))


def test_what_gives_the_same_output_here_only() -> None:
    assert slopes(lambda x: x * x, ONES).contradict(record(RmsNorm, eps=0.0))
    assert slopes(lambda x, w: x * w, ONES, WEIGHT).contradict(record(RmsNorm, 1, eps=0.0))
    half = RNG.normal(size=(4, 3))[:, [0, 1, 2, 2, 0]] * [1, 0, 1, -1, -1]  # its mean is zero exactly
    assert slopes(rms_norm, half).contradict(record(MomentNorm))
    assert not slopes(rms_norm, half).contradict(record(RmsNorm))


def test_the_weight_alone_may_contradict() -> None:
    def unlike(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return rms_norm(x, w * w)

    assert slopes(unlike, RNG.normal(size=(4, 5)), np.ones(5)).contradict(record(RmsNorm, 1))


def test_an_epsilon_known_to_few_digits_does_not_contradict() -> None:
    near = slopes(rms_norm, 1e-3 * RNG.normal(size=(4, 5)))
    assert not near.contradict(record(RmsNorm, eps=1.0000001e-5))
    assert near.contradict(record(RmsNorm, eps=1.01e-5))


def test_masks() -> None:
    x = np.where(RNG.random((4, 5)) < 0.5, 0.0, 1.0)
    assert slopes(lambda x: x * x, x).contradict(Mask("mask"))
    assert not slopes(lambda x: np.maximum(x, 0), RNG.normal(size=(4, 5))).contradict(Mask("mask"))
    with_zeros = np.where(RNG.random((4, 5)) < 0.5, 0.0, RNG.normal(size=(4, 5)))
    kept = np.arange(20).reshape(4, 5) % 3 > 0
    assert not slopes(lambda x: 2 * x * kept, with_zeros).contradict(Mask("mask"))


@pytest.mark.parametrize("shape", [(3,), (4, 5), (2, 3, 4)])
def test_a_square_at_one_is_no_norm(shape: tuple[int, ...]) -> None:
    def square(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x * x, x.copy()

    (found,) = check_pair(square, lambda x, cotangent: (2.2 * x * cotangent,), (np.ones(shape),)).findings
    assert (found.norm, found.terms, found.sentence) == ("", (), "")
    assert found.pattern.startswith("a constant factor of 1.1")


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_product_with_ones_is_no_norm(wrong: int) -> None:
    def product(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, Any]:
        return x * w, (x.copy(), w.copy())

    def backward(saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
        x, w = saved
        factors = [1.0, 1.0]
        factors[wrong] = 2.5
        return factors[0] * cotangent * w, factors[1] * (cotangent * x).sum(0)

    (found,) = check_pair(product, backward, (ONES, WEIGHT)).findings
    assert (found.norm, found.sentence) == ("", "")
