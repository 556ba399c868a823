"""Every known mistake in the gradients of weight, bias and masks is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from wrong_norms import INFERENCE, RMS, TRAINED, Values, diagnosed, summed, values

from gradcheck.axes import Configuration
from gradcheck.diagnosis.diagnose import diagnose
from gradcheck.diagnosis.terms import Mask

DWEIGHT: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "x for x̂": (lambda v: v.x, "x is in the place of x̂"),
    "centred": (lambda v: v.centred, "x̂ is not multiplied by rstd: the centred x is in its place"),
    "times weight": (lambda v: v.x_hat * v.weight, "it is multiplied by weight"),
    "the output": (
        lambda v: v.x_hat * v.weight + v.bias,
        "the output, with weight and bias, is in the place of x̂",
    ),
    "that of bias": (lambda v: v.x_hat**0, "the gradient of bias is in its place"),
    "rstd twice": (lambda v: v.x_hat * v.rstd, "x̂ is multiplied by rstd twice"),
    "sign": (lambda v: -v.x_hat, "the gradient is of the wrong sign"),
    "N − 1": (
        lambda v: v.centred / np.sqrt(v.variance * v.n / (v.n - 1) + v.eps),
        "x̂: the variance is divided by N − 1",
    ),
}
DBIAS: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "times weight": (lambda v: v.weight, "it is multiplied by weight"),
    "that of weight": (lambda v: v.x_hat, "the gradient of weight is in its place"),
    "sign": (lambda v: -(v.x_hat**0), "the gradient is of the wrong sign"),
    "times rstd": (lambda v: v.rstd, "it is multiplied by rstd"),
}


@pytest.mark.parametrize(
    "name", ["batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm", "inference"]
)
def test_mistakes_in_the_gradients_of_weight_and_bias(name: str) -> None:
    v, arrays, norm = values({**TRAINED, "rms_norm": RMS, "inference": INFERENCE}[name])
    for position, mistakes in ((1, DWEIGHT), (2, DBIAS)):
        for mistake, (factor, sentence) in mistakes.items():
            if (name, mistake) == ("rms_norm", "centred"):
                sentence = "x is in the place of x̂"  # nothing is centred there
            if (name, mistake) == ("inference", "N − 1"):
                continue
            found = diagnosed(norm, arrays, v, summed(norm, v.cotangent * factor(v)), position)
            assert sentence in found.sentence, mistake
            assert found.residual < 1e-13


@pytest.mark.parametrize(("position", "factor"), [(1, "x_hat"), (2, "one")])
def test_sums_of_too_little_or_divided(position: int, factor: str) -> None:
    v, arrays, norm = values(TRAINED["batch_norm"])
    right = v.cotangent * (v.x_hat if factor == "x_hat" else 1)
    for wrong, sentence in (
        (right.mean((0, 2)), "the gradient is a mean, not a sum: do not divide by 20"),
        (right.mean(0).sum(1), "the gradient is divided by 4, the length of axis 0"),
        (right[:3].sum((0, 2)), "index 3 of axis 0 is left out of the sum"),
        (right[:, :, :-2].sum((0, 2)), "only the first 3 of the 5 indices of axis 2 are summed"),
        (np.delete(right, 1, 0).sum((0, 2)), "index 1 of axis 0 is left out of the sum"),
        (0 * right.sum((0, 2)), "the gradient is zero"),
        (np.roll(right.sum((0, 2)), 1), "the gradient is that of another index: rolled by 1 along axis 0"),
    ):
        assert sentence in diagnosed(norm, arrays, v, wrong, position).sentence


def test_a_sum_over_the_wrong_axes() -> None:
    v, arrays, norm = values(Configuration("batch_norm", (3, 3, 4), channel_axis=1))
    found = diagnosed(norm, arrays, v, (v.cotangent * v.x_hat).sum((1, 2)), 1)
    assert found.sentence == "the sum is taken over axes 1 and 2 instead of axes 0 and 2"


def masked(scale: float = 2.0, shape: tuple[int, ...] = (4, 4)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.normal(size=shape), rng.random(shape) < 1 / scale, rng.normal(size=shape)


MASK: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "not scaled": (lambda m: m, "the survivors are not scaled: multiply by 4"),
    "twice": (lambda m: 16 * m, "the survivors are scaled twice: multiply by 4 once"),
    "p": (lambda m: 0.75 * m, "the survivors are multiplied by p = 0.75 instead of 4"),
    "1 − p": (lambda m: 0.25 * m, "the survivors are multiplied by 1 − p = 0.25 instead of 4"),
    "1/p": (lambda m: m / 0.75, "the survivors are multiplied by 1/p = 1.33333 instead of 4"),
    "no mask": (lambda m: m**0 * 4.0, "the mask is not applied"),
    "nothing": (lambda m: m**0 * 1.0, "the mask is not applied, and nothing is scaled"),
    "complement": (lambda m: 4.0 * (1 - m), "the complement of the mask is applied"),
    "transposed": (lambda m: 4.0 * m.T, "the mask is in the memory order of axes 0 and 1 exchanged"),
    "rolled": (
        lambda m: 4.0 * np.roll(m, 1, 1),
        "the mask is that of another index: rolled by 1 along axis 1",
    ),
    "shared": (lambda m: 4.0 * m[:1], "the mask of index 0 of axis 0 is used for all of that axis"),
    "another": (
        lambda m: 4.0 * (np.random.default_rng(1).random(m.shape) < 0.5),
        "another mask than that of the forward pass is applied",
    ),
    "factor": (lambda m: 3.0 * m, "the gradient is multiplied by 0.75"),
}


@pytest.mark.parametrize("mistake", MASK)
def test_mistakes_of_masks(mistake: str) -> None:
    x, kept, cotangent = masked(4.0)
    wrong, sentence = MASK[mistake]
    found = diagnose(
        Mask("dropout", 0.75), 0, (x,), 4.0 * x * kept, cotangent, cotangent * wrong(kept.astype(float))
    )
    assert found is not None and found.sentence.startswith(sentence)
    assert found.residual < 1e-14


def test_what_is_no_mask_is_refused() -> None:
    x, kept, cotangent = masked()
    found = diagnose(Mask("dropout", 0.5), 0, (x,), 2.0 * x * kept, cotangent, np.sin(3 * cotangent * kept))
    assert found is not None and found.sentence.startswith("no combination of the known terms of dropout")
