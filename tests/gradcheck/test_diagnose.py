"""Every known mistake of every norm, made in NumPy, is named; what is no such mistake is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from gradcheck.axes import Arrays, Configuration
from gradcheck.diagnose import Diagnosis, diagnose
from gradcheck.terms import Mask, Norm, for_configuration

TRAINED = {
    "batch_norm": Configuration("batch_norm", (4, 3, 5), channel_axis=1),
    "batch_norm, channels last": Configuration("batch_norm", (5, 6, 4), channel_axis=-1),
    "layer_norm": Configuration("layer_norm", (4, 3, 5), tail=2),
    "layer_norm of one slice": Configuration("layer_norm", (7,), tail=1),
    "instance_norm": Configuration("instance_norm", (2, 3, 6), channel_axis=1),
    "group_norm": Configuration("group_norm", (2, 6, 3), channel_axis=1, groups=2),
}
RMS = Configuration("rms_norm", (4, 6), tail=1)
INFERENCE = Configuration("batch_norm", (4, 3, 5), channel_axis=1, mode="inference")


@dataclasses.dataclass
class Values:
    """What a backward pass has at hand, in the split shape."""

    x: np.ndarray
    centred: np.ndarray
    variance: np.ndarray
    rstd: np.ndarray
    x_hat: np.ndarray
    cotangent: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    axes: tuple[int, ...]
    mean: Callable[[np.ndarray], np.ndarray]
    eps: float

    @property
    def n(self) -> int:
        return self.x.size // self.mean(self.x).size

    def sum(self, v: np.ndarray) -> np.ndarray:
        return self.n * self.mean(v)

    def dx(
        self, g: np.ndarray | None = None, rstd: np.ndarray | None = None, *, k: tuple = (1, 1, 1)
    ) -> np.ndarray:
        """The formula with coefficients k."""
        g = self.cotangent * self.weight if g is None else g
        rstd = self.rstd if rstd is None else rstd
        return rstd * (k[0] * g - k[1] * self.mean(g) - k[2] * self.x_hat * self.mean(g * self.x_hat))


def values(c: Configuration, seed: int = 0, eps: float | None = None) -> tuple[Values, Arrays, Norm]:
    rng = np.random.default_rng(seed)
    arrays = c.draw(seed)
    family = (
        "inference_norm"
        if c.mode == "inference"
        else "rms_norm"
        if c.operation == "rms_norm"
        else "moment_norm"
    )
    norm = for_configuration(family, c, arrays)
    assert isinstance(norm, Norm)
    return at(c, arrays, rng.normal(size=c.shape), norm, c.eps if eps is None else eps), arrays, norm


def at(c: Configuration, arrays: Arrays, cotangent: np.ndarray, norm: Norm, eps: float) -> Values:
    axes = norm.reduced

    def split(array: np.ndarray | None, absent: float) -> np.ndarray:
        full = np.full(c.shape, absent) if array is None else array.reshape(norm.parameter_shape)
        return np.broadcast_to(full, c.shape).reshape(norm.split_shape)

    x = arrays.input.reshape(norm.split_shape)
    if c.mode == "inference":
        centred, variance = x - split(arrays.running_mean, 0), split(arrays.running_var, 1)
    else:
        centred = x - x.mean(axes, keepdims=True) if c.subtracts_mean else x
        variance = (centred**2).mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(variance + eps)
    return Values(
        x, centred, variance, rstd, centred * rstd, cotangent.reshape(x.shape), split(arrays.weight, 1),
        split(arrays.bias, 0), axes, lambda v: v.mean(axes, keepdims=True), eps,
    )  # fmt: skip


def diagnosed(
    norm: Norm,
    arrays: Arrays,
    v: Values,
    gradient: np.ndarray,
    position: int = 0,
    wrong: np.ndarray | None = None,
) -> Diagnosis:
    target = arrays.differentiable[position]
    assert target is not None
    inputs = arrays.differentiable
    cotangent = v.cotangent.reshape(norm.shape)
    found = diagnose(
        norm, position, inputs, norm.output(inputs), cotangent, gradient.reshape(target.shape), wrong
    )
    assert found is not None
    return found


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
    "sum in the mean path": (lambda v: v.dx(k=(1, v.n, 1)), "the mean path is a sum, not a mean: divide by N = {n}"),
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
    "no weight": (lambda v: v.dx(v.cotangent), "weight is not applied: multiply the cotangent by weight first"),
    "weight twice": (lambda v: v.dx(v.cotangent * v.weight**2), "weight is applied twice"),
    "centred x before the mean": (
        lambda v: v.rstd * (v.dx() / v.rstd + (v.x_hat - v.centred) * v.mean(v.cotangent * v.weight * v.x_hat)),
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


def remade(v: Values, rstd: np.ndarray) -> Values:
    return dataclasses.replace(v, rstd=rstd, x_hat=v.centred * rstd)


def uncentred(v: Values) -> Values:
    variance = v.mean(v.x**2)
    return remade(dataclasses.replace(v, centred=v.x, variance=variance), 1 / np.sqrt(variance + v.eps))


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
    again = lambda array: np.broadcast_to(array, norm.split_shape).reshape(c.shape).reshape(other.x.shape)
    other.rstd, other.x_hat = again(v.rstd), again(v.x_hat)
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


def summed(norm: Norm, full: np.ndarray) -> np.ndarray:
    return np.broadcast_to(full, norm.split_shape).reshape(norm.shape).sum(norm.shared)


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
        (right[:3].sum((0, 2)), "only the first 3 of the 4 indices of axis 0 are summed"),
        (right[:, :, :-1].sum((0, 2)), "only the first 4 of the 5 indices of axis 2 are summed"),
        (np.delete(right, 1, 0).sum((0, 2)), "index 1 of axis 0 is left out of the sum"),
        (0 * right.sum((0, 2)), "the gradient is zero"),
        (np.roll(right.sum((0, 2)), 1), "the gradient is that of another index: rolled by 1 along axis 0"),
    ):
        assert sentence in diagnosed(norm, arrays, v, wrong, position).sentence


def test_a_sum_over_the_wrong_axes() -> None:
    v, arrays, norm = values(Configuration("batch_norm", (3, 3, 4), channel_axis=1))
    found = diagnosed(norm, arrays, v, (v.cotangent * v.x_hat).sum((1, 2)), 1)
    assert found.sentence == "the sum is taken over axes 1 and 2 instead of axes 0 and 2"


RMS_DX: dict[str, tuple[Callable[[Values], np.ndarray], str]] = {
    "no rms path": (lambda v: v.dx(k=(1, 0, 0)), "the rms path is missing: subtract x̂ times"),
    "a mean path": (lambda v: v.dx(k=(1, 1, 1)), "the mean path does not belong here"),
    "N − 1": (lambda v: v.dx(k=(1, 0, v.n / (v.n - 1))), "the rms path is divided by N − 1 = 5 instead of N = 6"),
    "sum": (lambda v: v.dx(k=(1, 0, v.n)), "the rms path is a sum, not a mean"),
    "sign": (lambda v: v.dx(k=(1, 0, -1)), "the rms path is of the wrong sign"),
    "no weight": (lambda v: v.dx(v.cotangent, k=(1, 0, 1)), "weight is not applied: multiply"),
    "weight after": (lambda v: v.weight * v.dx(v.cotangent, k=(1, 0, 1)), "weight is not applied before the sums"),
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
    "transposed": (lambda m: 4.0 * m.T, "the mask has its axes 0 and 1 exchanged"),
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


def test_what_is_outside_of_the_family_is_refused() -> None:
    for c in (*TRAINED.values(), RMS, INFERENCE):
        v, arrays, norm = values(c)
        found = diagnosed(norm, arrays, v, np.tanh(3 * v.dx()))
        assert found.sentence.startswith(
            f"no combination of the known terms of {norm.name} explains this gradient"
        )
        assert found.residual > 1e-2
    x, kept, cotangent = masked()
    found = diagnose(Mask("dropout", 0.5), 0, (x,), 2.0 * x * kept, cotangent, np.sin(3 * cotangent * kept))
    assert found is not None and found.sentence.startswith("no combination of the known terms of dropout")


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
    assert "rounded to a lower precision" in found.sentence


def test_terms_that_cannot_be_told_apart() -> None:
    v, arrays, norm = values(Configuration("layer_norm", (3, 2), tail=1, eps=0.0))
    found = diagnosed(norm, arrays, v, v.dx(k=(1, 1, 0)) * 1.3)
    assert found.sentence.startswith("the terms cannot be told apart at these shapes")


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
