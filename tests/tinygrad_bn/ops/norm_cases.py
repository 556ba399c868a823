"""What the tests of the normalizations share: configurations, inputs, calls forward and back, a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_bn import Tensor, functional

KERNELS = ("sequential", "parallel", "definition")
AFFINE = {"none": (False, False), "weight": (True, False), "bias": (False, True), "both": (True, True)}
TRAINING: Mapping[str, Any] = {"running_mean": None, "running_var": None, "training": True}


@dataclass(frozen=True)
class Case:
    """One normalization of one shape: the public function's name, and the keywords that choose the axes."""

    operation: str
    shape: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"-{value}" for _, value in self.options)
        return f"{self.operation}-{'x'.join(map(str, self.shape))}{shown}".replace(" ", "")

    @property
    def channel_axis(self) -> int:
        return dict(self.options).get("channel_axis", 1)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        return dict(self.options).get("normalized_shape") or (self.shape[self.channel_axis],)

    @property
    def grouped(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape in which the input is normalized, and the axes over which."""
        options = dict(self.options)
        rank = len(self.shape)
        if "normalized_shape" in options:
            return self.shape, tuple(range(rank - len(options["normalized_shape"]), rank))
        axis, groups = self.channel_axis % rank, options.get("num_groups")
        if groups is None:
            kept = (axis,) if self.operation == "batch_norm" else (0, axis)
            return self.shape, tuple(a for a in range(rank) if a not in kept)
        shape = (*self.shape[:axis], groups, self.shape[axis] // groups, *self.shape[axis + 1 :])
        return shape, tuple(a for a in range(rank + 1) if a not in (0, axis))

    def __call__(self, x: Any, weight: Any = None, bias: Any = None, **options: Any) -> Tensor:
        """The public function; BatchNorm in training."""
        given = {**(TRAINING if self.operation == "batch_norm" else {}), **dict(self.options), **options}
        return getattr(functional, self.operation)(x, weight=weight, bias=bias, **given)

    def draw(
        self, dtype: Any = np.float64, affine: str = "both", seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]:
        """x, weight, bias and a cotangent."""
        rng = np.random.default_rng(seed)
        x, cotangent = rng.normal(size=(2, *self.shape)).astype(dtype)
        weight, bias = (
            rng.normal(size=self.parameters).astype(dtype) if present else None for present in AFFINE[affine]
        )
        return x, weight, bias, cotangent

    def scales(
        self, x: np.ndarray, weight: np.ndarray | None, cotangent: np.ndarray, eps: float
    ) -> dict[str, float]:
        """How large the terms of each result are before they cancel: what its rounding is measured by.

        In a group of one or two values, or where bias undoes what weight did, little is left of them.
        """
        shape, axes = self.grouped
        x = x.astype(np.float64).reshape(shape)
        variance = (x**2).mean(axes) if self.operation == "rms_norm" else x.var(axes)
        rstd = 1 / np.sqrt(variance.min() + eps)
        largest = 1.0 if weight is None else np.abs(weight).max()
        normalized, along = np.abs(x).max() * rstd, np.abs(cotangent).max()
        return {
            "y": normalized * largest,
            "dx": along * largest * rstd,
            "dweight": along * normalized,
            "dbias": along,
        }


def batch_norms() -> list[Case]:
    shapes = ((6, 3), (4, 3, 5), (3, 4, 2, 3), (2, 3, 2, 3, 2), (5, 3, 17, 19))
    return [Case("batch_norm", shape, (("channel_axis", axis),)) for shape in shapes for axis in (1, -1)]


def instance_norms() -> list[Case]:
    shapes = ((4, 3, 5), (3, 4, 2, 3), (2, 3, 2, 3, 2), (5, 3, 17, 19))
    return [Case("instance_norm", shape, (("channel_axis", axis),)) for shape in shapes for axis in (1, -1)]


def group_norms() -> list[Case]:
    """Every divisor of the channels, on every rank."""
    cases = []
    for shape in ((5, 6), (3, 6, 4), (2, 6, 3, 2), (2, 6, 2, 3, 2), (2, 6, 17, 19)):
        for axis in (1, -1):
            moved = shape if axis == 1 else (shape[0], *shape[2:], shape[1])
            options = ((("num_groups", groups), ("channel_axis", axis)) for groups in (1, 2, 3, 6))
            cases += [Case("group_norm", moved, chosen) for chosen in options]
    return cases


def trailing_norms(operation: str) -> list[Case]:
    """Every tail of a shape as `normalized_shape`."""
    shapes = ((3, 2, 4, 5), (7,), (70, 131))
    tails = [(shape, shape[first:]) for shape in shapes for first in range(len(shape))]
    return [Case(operation, shape, (("normalized_shape", tail),)) for shape, tail in tails]


def all_norms() -> list[Case]:
    trailing = [*trailing_norms("layer_norm"), *trailing_norms("rms_norm")]
    return [*batch_norms(), *instance_norms(), *group_norms(), *trailing]


ONE_OF_EACH = (
    Case("batch_norm", (4, 3, 5)),
    Case("instance_norm", (4, 3, 5)),
    Case("group_norm", (4, 6, 5), (("num_groups", 2),)),
    Case("layer_norm", (4, 3, 5), (("normalized_shape", (3, 5)),)),
    Case("rms_norm", (4, 3, 5), (("normalized_shape", (5,)),)),
)


def forward_and_back(
    function: Any, x: Any, weight: Any, bias: Any, cotangent: Any, **options: Any
) -> dict[str, np.ndarray]:
    """y and the gradients of those inputs that are there, by name."""
    given = {"x": x, "weight": weight, "bias": bias}
    tensors = {name: tensor_over(value) for name, value in given.items() if value is not None}
    y = function(tensors["x"], tensors.get("weight"), tensors.get("bias"), **options)
    y.backward(cotangent)
    return {"y": y.numpy(), **{f"d{name}": tensor.grad.numpy() for name, tensor in tensors.items()}}


def tensor_over(array: np.ndarray) -> Tensor:
    """A leaf that wants a gradient, over the array's own memory and layout."""
    leaf = Tensor.wrap(array)
    leaf.requires_grad = True
    return leaf


def assert_close(got: Any, want: Any, units: float, scale: float = 0.0, dtype: Any = None) -> None:
    """Equal within `units` roundings, in got's dtype, of the largest value, or of `scale` if larger."""
    got, want = np.asarray(got), np.asarray(want)
    scale = max(np.abs(want[np.isfinite(want)]).max(initial=0.0), scale)
    atol = units * np.finfo(got.dtype if dtype is None else dtype).eps * scale
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
