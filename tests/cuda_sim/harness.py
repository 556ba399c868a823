"""One check for every CUDA kernel, run in numba's simulator, against a definition in float64.

    check(rows.resident, plan, Norm(plan), (x, weight, None), "float16")

`check` runs `forward` and `vjp` of a kernel object and asserts that

- the output, the auxiliary mean and variance, and every gradient are what the definition and its derivative
  give in float64 for the same (stored) inputs, as near as the dtype lets them be: half a unit in the last
  place of what is stored, and `slack` units of the arithmetic, relative to the sum of the magnitudes of the
  terms before they cancel;
- a second call gives the same bits, and so do threads that run last to first;
- dtype and shape are right, inputs are not written to, and results share no memory with them.

`check_needs` does so for every choice of the gradients that are wanted, `check_layouts` for inputs that are
not contiguous, or begin where no vector may. All take the same arguments:

    kernel      an object with `forward(plan, *arrays) -> (output, aux)` and
                `vjp(plan, needs, cotangent, arrays, aux) -> gradients`
    plan        what it is told about the call
    definition  `Norm(view)` or `Norm(view, running=True)` for a view of `kernels/views.py`; or
                `Operation(name, attributes)`, which also makes the plan: `operation.plan(inputs)`
    inputs      NumPy arrays, None for an absent one; they are rounded to `dtype` first
    dtype       of `STORAGES`
    cotangent   default: normal
    slack       of the tolerance; a test that must raise it says why

`example(view)` draws inputs for a view. Empty inputs, NaN and infinity are cases like others.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import tinygrad_bn
from tinygrad_bn import namespace
from tinygrad_bn.devices import SimulatedArray
from tinygrad_bn.kernels.cuda.simulator import thread_order
from tinygrad_bn.kernels.views import Rows, Split
from tinygrad_bn.registry import REGISTRY

STORAGES = ("float64", "float32", "float16", "bfloat16")
SLACK = 16.0


# Definitions


class Operation:
    """A registered operation with its attributes. For what is elementwise: its scale is its value."""

    def __init__(self, name: str, attributes: Mapping[str, Any]):
        self.spec, self.attributes = REGISTRY.get(name), attributes
        self.differentiable = self.spec.gradients

    def __call__(self, xp, *inputs):
        return self.spec.definition(xp, *inputs, **self.attributes)

    def plan(self, inputs):
        return self.spec.plan(tuple(None if a is None else np.shape(a) for a in inputs), self.attributes)

    def scales(self, inputs, cotangent, results):
        return tuple(None if value is None else abs(value) for value in results)


class Norm:
    """What a view of `kernels/views.py` means: (x − mean) / √(variance + eps) · weight + bias.

    The inputs are x, weight and bias; with `running`, also the mean and the variance to be used.
    """

    differentiable = (0, 1, 2)

    def __init__(self, view: Any, running: bool = False):
        self.view, self.running = view, running
        if isinstance(view, Rows):
            self.shape, self.axes, self.affine = view.shape, (1,), (1, -1)
        elif isinstance(view, Split):
            self.shape, self.axes, self.affine = view.shape, (1, 3, 4), (1, 1, view.S, view.K, 1)
        else:
            groups, neighbours = view.M // view.B, view.B // view.repeat
            self.shape = (view.Z, view.A, groups, neighbours, view.repeat)
            self.axes, self.affine = (1, 3, 4), (1, 1, groups, neighbours, 1)
        self.centred = getattr(view, "centred", True)

    def __call__(self, xp, x, weight, bias, *running):
        given = x.shape
        x = xp.reshape(x, self.shape)
        if self.running:
            mean, variance = (xp.reshape(value, self.affine) for value in running)
        else:
            mean = xp.mean(x, self.axes, True)
            mean = mean if self.centred else mean * 0
            variance = xp.mean((x - mean) * (x - mean), self.axes, True)
        y = (x - mean) / xp.sqrt(variance + self.view.eps)
        if weight is not None:
            y = y * xp.reshape(weight, self.affine)
        if bias is not None:
            y = y + xp.reshape(bias, self.affine)
        return xp.reshape(y, given), (mean, variance)

    def scales(self, inputs, cotangent, results):
        """The magnitudes of the terms of each result."""
        x, weight, bias = (None if a is None else np.asarray(a) for a in inputs[:3])
        _, mean, variance, *_ = results
        weight = np.ones(()) if weight is None else abs(weight).reshape(self.affine)
        bias = np.zeros(()) if bias is None else abs(bias).reshape(self.affine)
        rstd = 1 / np.sqrt(variance + self.view.eps)
        normalized = abs(x.reshape(self.shape) - mean) * rstd
        g = abs(cotangent.reshape(self.shape))
        dx = g * weight
        if not self.running:
            dx = dx + self._mean(dx) + normalized * self._mean(dx * normalized)
        others = tuple(axis for axis in range(len(self.shape)) if self.affine[axis] == 1)
        sums = (np.sum(g * (normalized + 1), axis=others), np.sum(g, axis=others))
        gradients = [
            None if a is None else s.reshape(a.shape) for a, s in zip(inputs[1:3], sums, strict=True)
        ]
        output = ((normalized + 1) * weight + bias).reshape(x.shape)
        statistics = (abs(mean) + np.sqrt(variance), variance)
        return (output, *statistics, (rstd * dx).reshape(x.shape), *gradients, *[None] * len(inputs[3:]))

    def _mean(self, values):
        return np.mean(values, self.axes, keepdims=True)


def example(view: Any, *, running: bool = False, mean: float = 1.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs for a view: x about `mean`, weight, bias; with `running`, also a mean and a variance."""
    rng = np.random.default_rng(seed)
    channels = view.length if isinstance(view, Rows) else view.channels
    x = mean + rng.normal(size=view.shape)
    affine = (rng.normal(size=channels) + 1, rng.normal(size=channels))
    return (x, *affine, *([rng.normal(size=channels), rng.random(channels) + 0.5] if running else []))


# Values and their tolerance


def stored(array: Any, dtype: str) -> np.ndarray | None:
    """An array rounded to a dtype of storage, in memory that nobody may write to."""
    if array is None:
        return None
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(np.dtype(dtype))
    return on_device(array)


def on_device(array: np.ndarray) -> Any:
    """The array as one of the simulated device, which nobody may write to."""
    array = array.view(SimulatedArray)
    array.flags.writeable = False
    return array


def same_bits(first: Any, second: Any) -> bool:
    """Whether two arrays, or tuples of them, are of the same dtype and shape and agree in every bit."""
    if first is None or second is None:
        return first is second
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


def unit(dtype: Any) -> float:
    """The distance from 1 to the next number in the arithmetic on values of a dtype."""
    return float(np.finfo(np.float64 if dtype == np.float64 else np.float32).eps)


def assert_near(name: str, got: Any, wanted: np.ndarray, errors: np.ndarray) -> None:
    """got is wanted rounded to its dtype, up to `errors` before; NaN and infinity are the same."""
    got, storage = np.asarray(got), ml_dtypes.finfo(got.dtype)
    wanted, errors = wanted.reshape(got.shape), errors.reshape(got.shape)
    with np.errstate(all="ignore"):
        rounding = float(storage.eps) / 2 * 1.01 * abs(wanted) + float(storage.smallest_subnormal)
        limit = rounding + errors
        special = ~np.isfinite(wanted.astype(got.dtype)).astype(bool)
        off = ~(abs(got.astype(np.float64) - wanted) <= limit)
        off[special] = ~np.equal(got[special], wanted.astype(got.dtype)[special]) & ~(
            np.isnan(got[special]) & np.isnan(wanted[special])
        )
    if off.any():
        worst = tuple(map(int, np.argwhere(off)[0]))
        raise AssertionError(
            f"{name}, {got.dtype}: {off.sum()} of {off.size} elements are off; at {worst} got "
            f"{got[worst]!r}, wanted {wanted[worst]!r} ± {limit[worst]:.1e}"
        )


# Calls


@dataclass(frozen=True)
class Results:
    """What a kernel gave for a call."""

    output: Any
    aux: tuple[Any, ...]
    gradients: tuple[Any, ...]

    def __iter__(self):
        return iter((self.output, self.aux, self.gradients))


@dataclass(frozen=True)
class Call:
    """A call of an operation on stored inputs, and what it should give."""

    definition: Any
    inputs: tuple[Any, ...]
    cotangent: Any
    wanted: tuple[Any, ...]  # output, aux …, gradients …, as the scales
    scales: tuple[Any, ...]
    statistics: int

    @property
    def every(self) -> tuple[bool, ...]:
        """Needs of all gradients that there are."""
        given = self.definition.differentiable
        return tuple(position in given and a is not None for position, a in enumerate(self.inputs))

    def assert_right(self, results: Results, needs: Sequence[bool], slack: float) -> None:
        """Compare the results with those wanted, and gradients that nobody needs with None."""
        error = slack * unit(self.inputs[0].dtype)
        assert_near("the output", results.output, self.wanted[0], error * self.scales[0])
        for i in range(self.statistics):
            name, at = ("mean", "variance")[i], 1 + i
            assert_near(f"the {name}", results.aux[i], self.wanted[at], error * self.scales[at])
        gradients = (*results.gradients, *[None] * (len(needs) - len(results.gradients)))
        for position, (needed, gradient) in enumerate(zip(needs, gradients, strict=True)):
            if not needed:
                assert gradient is None, f"a gradient of input {position} that nobody needs was made"
                continue
            given, at = self.inputs[position], 1 + self.statistics + position
            assert gradient is not None, f"no gradient of input {position}"
            assert gradient.size == given.size and gradient.dtype == self.inputs[0].dtype, gradient
            name = f"the gradient of input {position}"
            assert_near(name, gradient, self.wanted[at], error * self.scales[at])


def call(definition: Any, inputs: Sequence[Any], dtype: str, cotangent: Any = None) -> Call:
    """The call, with what the definition and its derivative give for it in float64."""
    inputs = tuple(stored(a, dtype) for a in inputs)
    wide = [None if a is None else np.asarray(a, np.float64) for a in inputs]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        output, aux = definition(namespace.arrays, *wide)
        if cotangent is None:
            cotangent = np.random.default_rng(9).normal(size=output.shape)
        cotangent = stored(cotangent, dtype)
        wide_cotangent = np.asarray(cotangent, np.float64)
        gradients = _gradients(definition, wide, wide_cotangent)
        wanted = (np.asarray(output), *map(np.asarray, aux), *gradients)
        scales = definition.scales(wide, wide_cotangent, wanted)
    return Call(definition, inputs, cotangent, wanted, scales, len(aux))


def _gradients(definition: Any, wide: Sequence[Any], cotangent: np.ndarray) -> list[Any]:
    tensors = [None if a is None else tinygrad_bn.Tensor(a, requires_grad=True) for a in wide]
    given = [i for i in definition.differentiable if tensors[i] is not None]
    output, _ = definition(namespace.tensors, *tensors)
    found = tinygrad_bn.grad(output, [tensors[i] for i in given], cotangent)
    gradients: list[Any] = [None] * len(wide)
    for position, gradient in zip(given, found, strict=True):
        gradients[position] = gradient.numpy()
    return gradients


def run(kernel: Any, plan: Any, inputs: Sequence[Any], cotangent: Any, needs: Sequence[bool]) -> Results:
    """Forward and backward; the inputs stay as they are, and the results are memory of their own."""
    output, aux = kernel.forward(plan, *inputs)
    assert output.shape == inputs[0].shape and output.dtype == inputs[0].dtype, output
    gradients = tuple(kernel.vjp(plan, tuple(needs), cotangent, tuple(inputs), aux))
    for result in (output, *gradients):
        if result is not None:
            assert type(result) is type(inputs[0]) and result.flags.writeable
            assert not any(np.shares_memory(result, a) for a in (*inputs, cotangent) if a is not None)
    return Results(output, aux, gradients)


def check(
    kernel: Any,
    plan: Any,
    definition: Any,
    inputs: Sequence[Any],
    dtype: str = "float32",
    *,
    cotangent: Any = None,
    slack: float = SLACK,
) -> Results:
    """Values, thread orders and repetition; what was found."""
    made = call(definition, inputs, dtype, cotangent)
    arguments = kernel, plan, made.inputs, made.cotangent, made.every
    first = run(*arguments)
    made.assert_right(first, made.every, slack)
    assert same_bits(tuple(run(*arguments)), tuple(first)), "a second call gives other bits"
    with thread_order("backward"):
        assert same_bits(tuple(run(*arguments)), tuple(first)), (
            "the bits depend on the order of the threads: a barrier is missing"
        )
    return first


def check_needs(
    kernel: Any,
    plan: Any,
    definition: Any,
    inputs: Sequence[Any],
    dtype: str = "float32",
    *,
    cotangent: Any = None,
    slack: float = SLACK,
) -> None:
    """Every choice of the gradients that are wanted."""
    made = call(definition, inputs, dtype, cotangent)
    for needs in itertools.product(*[(False, True) if possible else (False,) for possible in made.every]):
        made.assert_right(run(kernel, plan, made.inputs, made.cotangent, needs), needs, slack)


def check_layouts(
    kernel: Any,
    plan: Any,
    definition: Any,
    inputs: Sequence[Any],
    dtype: str = "float32",
    *,
    cotangent: Any = None,
    slack: float = SLACK,
) -> None:
    """The same values, lying in memory in other ways."""
    made = call(definition, inputs, dtype, cotangent)
    for name, laid in LAYOUTS.items():
        moved = [None if a is None else on_device(laid(a)) for a in (*made.inputs, made.cotangent)]
        try:
            results = run(kernel, plan, moved[:-1], moved[-1], made.every)
            made.assert_right(results, made.every, slack)
        except Exception as error:
            error.add_note(f"where the inputs are {name}")
            raise


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def _strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * n for n in array.shape], array.dtype)[
        tuple(slice(None, None, 2) for _ in array.shape)
    ]
    wide[...] = array
    return wide


def _reversed(array: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(array).copy())


def _shifted(array: np.ndarray, by: int) -> np.ndarray:
    """Contiguous, beginning `by` bytes behind a multiple of 64 bytes."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + by
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": _transposed,
    "every other element": _strided,
    "reversed": _reversed,
    "aligned to their elements alone": lambda array: _shifted(array, array.itemsize),
    "not aligned": lambda array: _shifted(array, 1),
}
