"""Every known mistake in the gradient of x is named, for every norm; what is no such mistake is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from wrong_norms import INFERENCE, RMS, TRAINED, Values, at, diagnosed, remade, summed, uncentred, values

from gradcheck.axes import Configuration
from gradcheck.diagnosis.diagnose import diagnose

DX: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "no mean path": (lambda v: v.dx(k=(1, 0, 1)), "the mean path is missing: subtract the mean of"),
    "no variance path": (lambda v: v.dx(k=(1, 1, 0)), "the variance path is missing: subtract x̂ times"),
    "neither path": (lambda v: v.dx(k=(1, 0, 0)), "the mean path and the variance path are missing"),
    "sign of the mean path": (lambda v: v.dx(k=(1, -1, 1)), "the mean path is of the wrong sign"),
    "sign of the variance path": (lambda v: v.dx(k=(1, 1, -1)), "the variance path is of the wrong sign"),
    "sign": (lambda v: -v.dx(), "the whole gradient is of the wrong sign"),
    "N − 1 in the variance path": (
        lambda v: v.dx(k=(1, 1, v.n / (v.n - 1))),
        "the variance path is divided by N − 1 = {n1} instead of N = {n}",
    ),
    "N − 1 in the mean path": (
        lambda v: v.dx(k=(1, v.n / (v.n - 1), 1)),
        "the mean path is divided by N − 1 = {n1} instead of N = {n}",
    ),
    "N − 1 in both": (
        lambda v: v.dx(k=(1, v.n / (v.n - 1), v.n / (v.n - 1))),
        "the mean path and the variance path are divided by N − 1 = {n1} instead of N = {n}",
    ),
    "sum in the mean path": (lambda v: v.dx(k=(1, v.n, 1)), "the mean path is a sum, not a mean: divide"),
    "sum in the variance path": (lambda v: v.dx(k=(1, 1, v.n)), "the variance path is a sum, not a mean"),
    "half the variance path": (lambda v: v.dx(k=(1, 1, 0.5)), "the variance path is halved"),
    "variance path twice": (lambda v: v.dx(k=(1, 1, 2)), "the variance path is counted twice"),
    "a factor of the mean path": (lambda v: v.dx(k=(1, 0.7, 1)), "the mean path is multiplied by 0.7"),
    "a factor": (lambda v: 0.7 * v.dx(), "the whole gradient is multiplied by 0.7"),
    "a tiny factor": (lambda v: v.dx() * (1 + 1e-6), "the whole gradient is multiplied by 1 + 1e-06"),
    "zero": (lambda v: 0 * v.dx(), "the gradient is zero"),
    "no rstd": (lambda v: v.dx(rstd=np.ones(())), "rstd is missing: multiply by 1/√(variance + ε)"),
    "rstd twice": (lambda v: v.dx(rstd=v.rstd**2), "rstd is applied twice"),
    "rstd cubed": (lambda v: v.dx(rstd=v.rstd**3), "rstd is applied three times"),
    "σ for rstd": (lambda v: v.dx(rstd=1 / v.rstd), "σ is in the place of rstd: divide"),
    "no rstd in the mean path": (
        lambda v: v.dx(k=(1, 0, 1)) - v.mean(v.cotangent * v.weight),
        "rstd is missing in the mean path",
    ),
    "no weight": (lambda v: v.dx(v.cotangent), "weight is not applied: multiply the cotangent"),
    "weight twice": (lambda v: v.dx(v.cotangent * v.weight**2), "weight is applied twice"),
    "centred x before the mean": (
        lambda v: v.dx() + v.rstd * (v.x_hat - v.centred) * v.mean(v.cotangent * v.weight * v.x_hat),
        "x̂ in the variance path is the centred x, not multiplied by rstd",
    ),
    "x inside the mean": (
        lambda v: v.dx(k=(1, 1, 0)) - v.rstd * v.x_hat * v.mean(v.cotangent * v.weight * v.x),
        "x̂ in the variance path is x itself, neither centred nor multiplied by rstd, inside the mean",
    ),
    "the output for x̂": (
        lambda v: (
            v.dx(k=(1, 1, 0))
            - v.rstd
            * (y := v.x_hat * v.weight + v.bias)
            * v.mean(v.cotangent * v.weight * y)
        ),
        "x̂ in the variance path is the output, with weight and bias",
    ),
    "ε outside": (
        lambda v: remade(v, 1 / (np.sqrt(v.variance) + v.eps)).dx(),
        "ε is outside of the root, but inside in the forward pass",
    ),
    "N − 1 in the variance": (
        lambda v: remade(v, 1 / np.sqrt(v.variance * v.n / (v.n - 1) + v.eps)).dx(),
        "the variance is divided by N − 1 = {n1}, but by N = {n} in the forward pass",
    ),
    "rms formula": (
        lambda v: uncentred(v).dx(k=(1, 0, 1)),
        "this is the formula of RMSNorm: the mean is not subtracted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", DX)
@pytest.mark.parametrize("name", TRAINED)
def test_mistakes_in_the_gradient_of_x(name: str, mistake: str) -> None:
    v, arrays, norm = values(TRAINED[name])
    wrong, sentence = DX[mistake]
    found = diagnosed(norm, arrays, v, np.broadcast_to(wrong(v), norm.split_shape))
    assert sentence.format(n=v.n, n1=v.n - 1) in found.sentence
    assert found.residual < 1e-13 or mistake == "zero"


# Weight that varies within a slice, as in LayerNorm and GroupNorm, can be forgotten in one place.
INSIDE = {
    "after the sums": (
        lambda v: v.weight * v.dx(v.cotangent),
        "weight is not applied before the sums",
    ),
    "not inside the means": (
        lambda v: (
            v.dx() + v.rstd * (v.mean(h := v.cotangent * (v.weight - 1)) + v.x_hat * v.mean(h * v.x_hat))
        ),
        "weight is not applied inside the means, only in the direct term",
    ),
    "not in the mean path": (
        lambda v: v.dx() + v.rstd * v.mean(v.cotangent * (v.weight - 1)),
        "weight is not applied in the mean path",
    ),
    "twice, once after": (lambda v: v.weight * v.dx(), "weight is applied twice, once after the sums"),
}


@pytest.mark.parametrize("mistake", INSIDE)
@pytest.mark.parametrize("name", ["layer_norm", "layer_norm of one slice", "group_norm"])
def test_weight_in_the_wrong_place(name: str, mistake: str) -> None:
    v, arrays, norm = values(TRAINED[name])
    wrong, sentence = INSIDE[mistake]
    found = diagnosed(norm, arrays, v, wrong(v))
    assert sentence in found.sentence
    assert found.residual < 1e-13


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    ("eps", "text"), [(1e-3, "0.001 here"), (0.0, "it is left out here"), (2.3e-4, "0.00023 here")]
)
def test_another_epsilon(name: str, eps: float, text: str) -> None:
    v, arrays, norm = values(TRAINED[name], eps=eps)
    if name == "layer_norm of one slice" and eps not in (0, 1e-3):
        return  # there it is a factor like any other
    for position, gradient in ((0, v.dx()), (1, summed(norm, v.cotangent * v.x_hat))):
        found = diagnosed(norm, arrays, v, gradient, position)
        assert found.sentence == f"ε differs: {text}, 1e-05 in the forward pass"
        assert found.residual < 1e-13


def test_another_epsilon_in_rstd_alone() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    found = diagnosed(norm, arrays, v, v.dx(rstd=1 / np.sqrt(v.variance + 1e-3)))
    assert found.sentence == "ε differs in rstd, but not in x̂: 0.001 here, 1e-05 in the forward pass"


def test_means_over_other_axes() -> None:
    v, arrays, norm = values(TRAINED["batch_norm"])
    v.mean = lambda a: a.mean(1, keepdims=True)
    assert (
        "the means are taken over axis 1 instead of axes 0 and 2"
        in diagnosed(norm, arrays, v, v.dx()).sentence
    )
    v, arrays, norm = values(TRAINED["group_norm"])
    v.mean = lambda a: a.mean(3, keepdims=True)
    sentence = diagnosed(norm, arrays, v, v.dx()).sentence
    assert "the means are taken over axis 2 instead of each group of channels and axis 2" in sentence


def test_statistics_over_other_axes() -> None:
    for name, changes, words in (
        (
            "batch_norm",
            {"reduced": (2,)},
            "the statistics and means are taken over axis 2 instead of axes 0 and 2",
        ),
        (
            "layer_norm",
            {"reduced": (2,)},
            "the statistics and means are taken over axis 2 instead of axes 1 and 2",
        ),
        ("group_norm", {"groups": (1, 3)}, "taken in groups of 2 channels instead of 3"),
    ):
        c = TRAINED[name]
        v, arrays, norm = values(c)
        other = dataclasses.replace(norm, **changes)
        wrong = at(c, arrays, v.cotangent.reshape(c.shape), other, c.eps).dx()
        assert words in diagnosed(norm, arrays, v, wrong).sentence


def test_the_means_of_other_groups() -> None:
    c = TRAINED["group_norm"]
    v, arrays, norm = values(c)
    other = at(c, arrays, v.cotangent.reshape(c.shape), dataclasses.replace(norm, groups=(1, 3)), c.eps)
    other.rstd = np.broadcast_to(v.rstd, norm.split_shape).reshape(other.x.shape)
    other.x_hat = v.x_hat.reshape(other.x.shape)
    sentence = diagnosed(norm, arrays, v, other.dx()).sentence
    assert sentence == "the means are taken in groups of 2 channels instead of 3"


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (lambda w: np.roll(w, 1), "weight is that of another index: rolled by 1 along axis 1"),
        (lambda w: w[::-1], "weight is reversed along axis 1"),
    ],
)
def test_weight_of_another_index(move: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    v, arrays, norm = values(TRAINED["batch_norm"])
    weight = move(arrays.weight).reshape(1, 3, 1)
    assert words in diagnosed(norm, arrays, v, v.dx(v.cotangent * weight)).sentence


def test_weight_along_another_axis() -> None:
    v, arrays, norm = values(Configuration("batch_norm", (4, 4, 3), channel_axis=1))
    found = diagnosed(norm, arrays, v, v.dx(v.cotangent * arrays.weight.reshape(4, 1, 1)))
    assert found.sentence == "weight is indexed along axis 0 instead of axis 1"


def test_the_gradient_of_another_sample() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    found = diagnosed(norm, arrays, v, np.roll(v.dx(), 1, 0))
    assert found.sentence == "the gradient is that of another index: rolled by 1 along axis 0"


def test_a_cotangent_that_was_summed() -> None:
    v, arrays, norm = values(TRAINED["batch_norm"])
    g = (v.cotangent * v.weight).sum(0, keepdims=True) + np.zeros(v.x.shape)
    assert "the cotangent is summed over axis 0 first" in diagnosed(norm, arrays, v, v.dx(g)).sentence


RMS_DX: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "no rms path": (lambda v: v.dx(k=(1, 0, 0)), "the rms path is missing: subtract x̂ times"),
    "a mean path": (lambda v: v.dx(k=(1, 1, 1)), "the mean path does not belong here"),
    "N − 1": (lambda v: v.dx(k=(1, 0, v.n / (v.n - 1))), "the rms path is divided by N − 1 = 5"),
    "sum": (lambda v: v.dx(k=(1, 0, v.n)), "the rms path is a sum, not a mean"),
    "sign": (lambda v: v.dx(k=(1, 0, -1)), "the rms path is of the wrong sign"),
    "no weight": (lambda v: v.dx(v.cotangent, k=(1, 0, 1)), "weight is not applied: multiply"),
    "weight after": (lambda v: v.weight * v.dx(v.cotangent, k=(1, 0, 1)), "weight is not applied before"),
    "no rstd": (lambda v: v.dx(rstd=1.0, k=(1, 0, 1)), "rstd is missing"),
    "ε outside": (
        lambda v: remade(v, 1 / (np.sqrt(v.variance) + v.eps)).dx(k=(1, 0, 1)),
        "ε is outside of the root",
    ),
    "x inside": (
        lambda v: v.dx(k=(1, 0, 0)) - v.rstd * v.x_hat * v.mean(v.cotangent * v.weight * v.x),
        "x̂ in the rms path is the centred x, not multiplied by rstd, inside the mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", RMS_DX)
def test_mistakes_of_rms_norm(mistake: str) -> None:
    v, arrays, norm = values(RMS)
    wrong, sentence = RMS_DX[mistake]
    found = diagnosed(norm, arrays, v, wrong(v))
    assert sentence in found.sentence
    assert found.residual < 1e-13


INFERENCE_DX: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "training": (
        lambda v: v.dx(),
        "the mean path and the variance path do not belong here: this is the formula of training",
    ),
    "no rstd": (lambda v: v.cotangent * v.weight, "rstd is missing"),
    "no weight": (lambda v: v.cotangent * v.rstd, "weight is not applied"),
    "rstd twice": (lambda v: v.cotangent * v.weight * v.rstd**2, "rstd is applied twice"),
    "ε": (
        lambda v: v.cotangent * v.weight / np.sqrt(v.variance + 1e-3),
        "ε differs: 0.001 here, 1e-05 in the forward pass",
    ),
    "mean path": (lambda v: v.dx(k=(1, 1, 0)), "the mean path does not belong here"),
}


@pytest.mark.parametrize("mistake", INFERENCE_DX)
def test_mistakes_of_inference(mistake: str) -> None:
    v, arrays, norm = values(INFERENCE)
    wrong, sentence = INFERENCE_DX[mistake]
    found = diagnosed(norm, arrays, v, wrong(v))
    assert sentence in found.sentence
    assert found.residual < 1e-13


def test_statistics_of_the_batch_at_inference() -> None:
    v, arrays, norm = values(INFERENCE)
    trained = at(dataclasses.replace(INFERENCE, mode="training"), arrays, v.cotangent, norm, v.eps)
    found = diagnosed(norm, arrays, v, trained.dx())
    assert found.sentence.startswith("this is the formula of training: mean and variance of the batch")


def test_what_is_outside_of_the_family_is_refused() -> None:
    for c in (*TRAINED.values(), RMS, INFERENCE):
        v, arrays, norm = values(c)
        found = diagnosed(norm, arrays, v, np.tanh(3 * v.dx()))
        assert found.sentence.startswith(
            f"no combination of the known terms of {norm.name} explains this gradient"
        )
        assert found.residual > 1e-2


def test_a_local_mistake_is_no_mistake_of_a_term() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    gradient = v.dx()
    gradient[3, 2, 4] *= 1.5
    wrong = np.zeros(norm.shape, bool)
    wrong[3, 2, 4] = True
    found = diagnosed(norm, arrays, v, gradient, wrong=wrong)
    assert "the other 59 elements follow the formula of layer_norm to rounding" in found.sentence


def test_rounding_to_float32_is_no_mistake_of_a_term() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    found = diagnosed(norm, arrays, v, v.dx().astype(np.float32).astype(np.float64))
    assert found.sentence.startswith("all terms of layer_norm are there, to")
    assert "is something rounded to float32 on the way?" in found.sentence


def test_values_at_other_places() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    found = diagnosed(norm, arrays, v, np.roll(v.dx(), 7))
    assert found.sentence.startswith(
        "these are the values that the formula of layer_norm gives, at other places"
    )


def test_terms_that_cannot_be_told_apart() -> None:
    v, arrays, norm = values(Configuration("layer_norm", (3, 2), tail=1, eps=0.0))
    found = diagnosed(norm, arrays, v, v.dx(k=(1, 1, 0)) * 1.3)
    assert found.sentence.startswith("the terms cannot be told apart at these shapes")


def test_float32() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    inputs = tuple(None if array is None else array.astype(np.float32) for array in arrays.differentiable)
    x, weight = (np.asarray(array, np.float64) for array in inputs[:2])
    rounded = dataclasses.replace(arrays, input=x, weight=weight)
    cotangent = v.cotangent.astype(np.float32)
    v = at(TRAINED["layer_norm"], rounded, cotangent.astype(np.float64), norm, v.eps)
    wrong = v.dx(k=(1, 0, 1)).astype(np.float32)
    found = diagnose(norm, 0, inputs, norm.output(inputs), cotangent, wrong)
    assert found is not None and found.sentence.startswith("the mean path is missing")
    assert found.terms == (("direct", 1.0), ("mean path", 0.0), ("variance path", 1.0))


def test_two_mistakes_at_once() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    found = diagnosed(norm, arrays, v, v.dx(v.cotangent, k=(1, 0, 1)))
    assert found.sentence.startswith(
        "weight is not applied: multiply the cotangent by weight first; the mean path"
    )


@pytest.mark.parametrize("values_", ["mean 1e4", "scale 100", "scale 1e-3", "spike", "constant row"])
def test_ill_conditioned_inputs(values_: str) -> None:
    for c in TRAINED.values():
        c = dataclasses.replace(c, values=values_)
        if c.problem is None:
            v, arrays, norm = values(c)
            assert "the mean path is missing" in diagnosed(norm, arrays, v, v.dx(k=(1, 0, 1))).sentence


def test_a_forward_pass_with_n_minus_1_wants_it_in_the_variance_path() -> None:
    v, arrays, norm = values(TRAINED["layer_norm"])
    norm = dataclasses.replace(norm, correction=1)
    v = remade(v, 1 / np.sqrt(v.variance * v.n / (v.n - 1) + v.eps))
    found = diagnosed(norm, arrays, v, v.dx())
    assert found.sentence == (
        "the variance path is divided by N = 15, but the forward pass divides the variance by N − 1 = 14"
    )


@pytest.mark.parametrize("off", [0.0, 8e-13])
@pytest.mark.parametrize("name", TRAINED)
def test_a_right_gradient_has_no_mistake(name: str, off: float) -> None:
    """Such as a weight applied after the means and not before, where it is constant in each of them."""
    v, arrays, norm = values(TRAINED[name])
    found = diagnosed(norm, arrays, v, (1 + off) * v.dx())
    assert found.sentence == "every term is right, to the 1e-12 that rounding explains at this input"
    assert found.terms == (("direct", 1.0), ("mean path", 1.0), ("variance path", 1.0))
