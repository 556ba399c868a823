"""Kernels in plain NumPy, on the canonical views, each with one way to be wrong; and how to plant them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_bn import kernels, registry
from tinygrad_bn.fused import Fused
from tinygrad_bn.kernels import views
from tinygrad_bn.ops import dropouts, norms


class Layout(NamedTuple):
    """How a view sees arrays: x in `shape`, reduced over `axes`, parameters in `parameters`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    parameters: tuple[int, ...]


def layout(plan: Any) -> Layout:
    if isinstance(plan, views.Rows):
        return Layout((plan.rows, plan.length), (1,), (1, plan.length))
    if isinstance(plan, views.Split):
        return Layout(plan.shape, (1, 3, 4), (1, 1, plan.S, plan.K, 1))
    groups = plan.M // plan.B
    return Layout((plan.Z, plan.A, groups, plan.B), (1, 3), (1, 1, groups, plan.B))


@dataclasses.dataclass
class Norm:
    """A right kernel for training or inference, except for what `wrong` names."""

    training: bool
    wrong: str = ""
    statistics: Any = None  # what a kernel that forgets to keep them per call would use

    def forward(self, plan, x, weight, bias, *running):
        shape, axes, parameters = layout(plan)
        seen = x.reshape(shape).astype(np.float64)
        if self.training:
            centred = getattr(plan, "centred", True)
            mean = seen.mean(axes, keepdims=True) * centred
            squares = ((seen - mean) ** 2).sum(axes, keepdims=True)
            count = seen.size // mean.size
            variance = squares / (count - (self.wrong == "forward N - 1"))
        else:
            mean, variance = (each.astype(np.float64).reshape(parameters) for each in running)
        rstd = 1 / np.sqrt(variance + plan.eps)
        y = (seen - mean) * rstd
        if self.wrong == "forward eps outside the root":
            y = (seen - mean) / (np.sqrt(variance) + plan.eps)
        if self.wrong == "forward without the mean":
            y = seen * rstd
        if self.wrong == "forward statistic of the previous call":
            stale, self.statistics = self.statistics, rstd
            y = y if stale is None or stale.shape != rstd.shape else (seen - mean) * stale
        y = y * (1 if weight is None else weight.reshape(parameters))
        y = y + (0 if bias is None else bias.reshape(parameters))
        if self.wrong == "forward one element":
            y.reshape(-1)[-1] *= 1 + 1e-5
        aux = tuple(each.reshape(-1) for each in (mean, variance, rstd))
        if self.wrong == "vjp statistic of the previous call":
            stale, self.statistics = self.statistics, aux
            aux = aux if stale is None or stale[2].shape != aux[2].shape else stale
        if self.wrong == "vjp statistic of the latest call":
            self.statistics = aux
        return y.astype(x.dtype).reshape(x.shape), aux

    def vjp(self, plan, needs, cotangent, arrays, aux):
        x, weight = arrays[:2]
        shape, axes, parameters = layout(plan)
        if self.wrong == "vjp statistic of the latest call" and self.statistics[2].shape == aux[2].shape:
            aux = self.statistics
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
        mean, variance, rstd = (each.reshape(kept) for each in aux)
        if self.wrong == "vjp eps outside the root":
            rstd = 1 / (np.sqrt(variance) + plan.eps)
        x_hat = (x.reshape(shape).astype(np.float64) - mean) * rstd
        ybar = cotangent.reshape(shape).astype(np.float64)
        g = ybar * (1 if weight is None else weight.reshape(parameters))
        count = x.size // mean.size if mean.size else 1
        dx = g
        if self.training:
            if self.wrong != "vjp without the mean":
                dx = dx - g.mean(axes, keepdims=True) * getattr(plan, "centred", True)
            less = self.wrong == "vjp N - 1"
            dx = dx - x_hat * (g * x_hat).sum(axes, keepdims=True) / (count - less)
        dx = dx * rstd
        if self.wrong == "vjp one element":
            dx.reshape(-1)[dx.size // 2] *= 1 + 1e-5
        others = tuple(axis for axis, n in enumerate(parameters) if n == 1)
        gradients = (dx, (ybar * x_hat).sum(others), ybar.sum(others))
        shapes = (x.shape, -1, -1)
        return tuple(
            gradient.astype(x.dtype).reshape(shape) if needed else None
            for gradient, shape, needed in zip(gradients, shapes, needs, strict=False)
        )


@dataclasses.dataclass
class Dropout:
    """The real kernel, except for what `wrong` names."""

    real: Any
    wrong: str = ""
    bits: Any = None

    def forward(self, plan, x):
        y, aux = self.real.forward(plan, x)
        if self.wrong == "forward one element":
            y.reshape(-1)[np.flatnonzero(y)[0]] *= 1 + 1e-5
        if self.wrong == "forward without the scale":
            y = y / y.dtype.type(plan.scale)
        if self.wrong == "forward another mask":
            y = self.real.forward(dataclasses.replace(plan, call=plan.call + 1), x)[0]
        if self.wrong == "vjp mask of the latest call":
            self.bits = aux
        return y, aux

    def vjp(self, plan, needs, cotangent, arrays, aux):
        if self.wrong == "vjp mask of the latest call":
            aux = self.bits
        if self.wrong == "vjp another mask":
            x = np.zeros(cotangent.shape, cotangent.dtype)
            _, aux = self.real.forward(dataclasses.replace(plan, call=plan.call + 1), x)
        (dx,) = self.real.vjp(plan, needs, cotangent, arrays, aux)
        if self.wrong == "vjp one element":
            dx.reshape(-1)[np.flatnonzero(dx)[:1]] *= 1 + 1e-5
        if self.wrong == "vjp without the scale":
            dx = dx / dx.dtype.type(plan.scale)
        return (dx,)


def plant(monkeypatch, wrong, twins):
    """Put a NumPy kernel in place of every registered kernel; those of `twins` are wrong."""
    real = registry._resolve

    def resolve(target):
        module, _, name = target.partition(":")
        mine = wrong if name.partition("_")[0] in twins else ""
        if module.endswith(".dropout"):
            return Dropout(real(target), mine)
        return Norm(training=not name.endswith("_inference"), wrong=mine)

    monkeypatch.setattr(registry, "_resolve", functools.cache(resolve))
    forget_calls(monkeypatch)


def forget_calls(monkeypatch):
    """Have operations remember nothing of calls before this test, and after it nothing of those in it."""
    for operation in (*vars(norms).values(), *vars(dropouts).values()):
        if isinstance(operation, Fused):
            monkeypatch.setattr(operation, "_runs", {})


def plant_in_source(monkeypatch, folder, file, function, old, new):
    """Run, as the sequential kernels, those compiled from their own source with a change in one function."""
    package = f"kernels_{folder.name}".replace("-", "_")
    copy = folder / package
    shutil.copytree(Path(kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "cpu" / file
    before, start, after = path.read_text(encoding="utf-8").partition(f"def {function}(")
    assert old in after, f"the source of {function} has changed: plant another error"
    path.write_text(before + start + after.replace(old, new, 1), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    driver = importlib.import_module(f"{package}.cpu.jit").Driver
    driver._compile = functools.partialmethod(_compile, driver._compile, function)
    real = registry._resolve

    def resolve(target):
        return real(target.replace(kernels.__name__, package) if ":sequential" in target else target)

    monkeypatch.setattr(registry, "_resolve", resolve)
    forget_calls(monkeypatch)


def _compile(driver, real, edited, dtype):
    """Compile a driver if it reaches the edited function; else take the real one, which is compiled."""
    source = driver._source
    if _reaches(source, edited):
        real(driver, dtype)
    else:
        module = importlib.import_module(f"{kernels.__name__}.cpu.{source.__module__.rpartition('.')[2]}")
        driver._compiled[dtype] = getattr(module, source.__name__).sequential[dtype]


def _reaches(function, name):
    """Whether a function of a kernel is the one of that name, or calls it, itself or through others."""
    called = [function.__globals__.get(each) for each in function.__code__.co_names]
    sources = [
        each.task._source if hasattr(each, "task") else getattr(each, "py_func", None) for each in called
    ]
    return function.__name__ == name or any(_reaches(source, name) for source in sources if source)
