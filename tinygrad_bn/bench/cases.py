"""What is timed: an operation, the shape of its first input, and the keywords of its public function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from .. import ops  # noqa: F401 -- declares the built-in operations
from ..dispatch import Primitive
from ..fused import Fused, explain
from ..registry import REGISTRY, OpSpec

__all__ = ["Case", "declared", "small"]

NO_KERNEL = "no kernel has this name"
SMALL = (
    *(
        "math::add",
        "math::multiply",
        "math::divide",
        "math::exp",
        "math::relu",
        "reduce::sum",
        "reduce::mean",
    ),
    *(
        "linalg::matmul",
        "norm::batch_norm",
        "norm::batch_norm_inference",
        "norm::layer_norm",
        "norm::rms_norm",
    ),
    *("norm::instance_norm", "norm::group_norm", "dropout::dropout"),
)

# Forward and backward, where it is not 2 and 3. A channel of BatchNorm is spread over the whole batch: no
# block keeps it between the statistics and what follows from them, so that all is read twice.
MOVED = {"norm::batch_norm": (3, 5)}


@dataclass(frozen=True)
class Case:
    """One call to be timed. The inputs are drawn from `seed`; `mean` is that of the first one.

    Everything in it can be written as JSON, so that each process makes the same call by itself.
    """

    operation: str
    shape: tuple[int, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0
    mean: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype == "bfloat16":
            importlib.import_module("ml_dtypes")  # from which NumPy has it

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Case:
        keywords = {name: _tuples(value) for name, value in fields["keywords"].items()}
        return cls(**{**fields, "shape": tuple(fields["shape"]), "keywords": keywords})

    def __str__(self) -> str:
        words = [self.operation.partition("::")[2], ",".join(map(str, self.shape))]
        return " ".join([*words, *(f"{name}={value}" for name, value in self.keywords.items())])

    @cached_property
    def spec(self) -> OpSpec:
        return REGISTRY.get(self.operation)

    def place(self, threads: int) -> str:
        """On how many threads of the CPU, or on which GPU."""
        return f"{threads} thread{'s' * (threads > 1)}" if self.device == "cpu" else self.device

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize

    @cached_property
    def _call(self) -> tuple[Sequence[tuple[int, ...]], Mapping[str, Any]]:
        spec = self.spec
        if spec.call_at is not None:
            return spec.call_at(self.shape, self.keywords)
        return (self.shape,) * len(spec.inputs), self.keywords

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The keywords of the public function, those that follow from the shape among them."""
        return self._call[1]

    def arrays_moved(self, direction: str) -> int | None:
        """Arrays of the input's size that a GPU must read and write in a pass; None if it is not fused."""
        if not self.spec.fused:
            return None
        forward, backward = (2, 2) if self.spec.rng else MOVED.get(self.operation, (2, 3))
        return forward if direction == "forward" else backward

    @property
    def channels_last(self) -> bool:
        return self.keywords.get("channel_axis") == -1 and len(self.shape) > 2

    def arrays(self) -> list[np.ndarray]:
        """The inputs. The first is normal around `mean`, for a fused operation; all others lie in 0.5 … 1.5,
        where every operation is defined.
        """
        rng = np.random.default_rng(self.seed + 2)
        found = [(0.5 + rng.random(shape, np.float64)).astype(self.dtype) for shape in self._call[0][1:]]
        if not self.spec.fused:
            return [(0.5 + rng.random(self.shape, np.float64)).astype(self.dtype), *found]
        return [self._normal(self.seed, self.shape) + np.dtype(self.dtype).type(self.mean), *found]

    def cotangent(self, shape: tuple[int, ...]) -> np.ndarray:
        """The cotangent of an output of that shape."""
        return self._normal(self.seed + 1, shape)

    def _normal(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.float64 if self.dtype == "float64" else np.float32
        values = np.random.default_rng(seed).standard_normal(shape, drawn)
        return np.asarray(values).astype(self.dtype, copy=False)

    def bound(self, inputs: Sequence[Any], **extra: Any) -> Callable[[], Any]:
        """The call as a user writes it, on these inputs."""
        spec, keywords = self.spec, {**self.arguments, **extra}
        if spec.public:
            module, _, name = spec.public.partition(":")
            function = getattr(importlib.import_module(module), name)
            return partial(function, **dict(zip(spec.inputs, inputs, strict=True)), **keywords)
        operation = Fused(spec) if spec.fused else Primitive(spec)
        return partial(operation, *([inputs] if spec.variadic else inputs), **keywords)

    def check(self) -> None:
        """Raise what the operation raises for an impossible shape or keyword; a primitive is run."""
        # The shapes and keywords of 16-bit floats, which the CPU does not serve, are those of others.
        dtype = np.float32 if np.dtype(self.dtype).itemsize == 2 else self.dtype
        inputs = [np.broadcast_to(np.ones((), dtype), shape) for shape in self._call[0]]
        if not self.spec.fused:
            self.bound(inputs)()
            return
        if not self.spec.public:
            explain(self.operation, *inputs, **self.arguments)
            return
        try:
            self.bound(inputs, kernel=NO_KERNEL)()  # which is looked at last
        except ValueError as error:
            if repr(NO_KERNEL) not in str(error):
                raise

    def of_size(self, elements: int) -> Case:
        """The same with another length of the first axis, so that it has about as many elements."""
        rest = math.prod(self.shape[1:])
        return replace(self, shape=(max(1, round(elements / rest)), *self.shape[1:]))


def declared(spec: OpSpec, dtype: str = "float32", seed: int = 0) -> Iterator[Case]:
    """The cases that an operation declares."""
    for each in spec.bench_cases:
        yield Case(spec.name, tuple(each.shape), dict(each.keywords), dtype, seed)


def small(seed: int = 0) -> list[Case]:
    """Calls of 1,000 elements, at which the cost of the tape shows."""
    shapes = {"norm::instance_norm": (2, 10, 50), "norm::group_norm": (2, 10, 50)}
    keywords = {"norm::group_norm": {"num_groups": 5}}
    return [Case(name, shapes.get(name, (20, 50)), keywords.get(name, {}), "float32", seed) for name in SMALL]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
