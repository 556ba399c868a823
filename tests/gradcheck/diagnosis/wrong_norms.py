"""What a backward pass of a normalization has at hand, to make one wrong with, and its diagnosis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from gradcheck.axes import Arrays, Configuration
from gradcheck.diagnosis.diagnose import Diagnosis, diagnose
from gradcheck.diagnosis.terms import Norm, for_configuration

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


def remade(v: Values, rstd: np.ndarray) -> Values:
    return dataclasses.replace(v, rstd=rstd, x_hat=v.centred * rstd)


def uncentred(v: Values) -> Values:
    variance = v.mean(v.x**2)
    return remade(dataclasses.replace(v, centred=v.x, variance=variance), 1 / np.sqrt(variance + v.eps))


def summed(norm: Norm, full: np.ndarray) -> np.ndarray:
    return np.broadcast_to(full, norm.split_shape).reshape(norm.shape).sum(norm.shared)
