"""Dropout. The mask is a function of (seed, stream, call number) and of the element's index, in the format
of `kernels/philox.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..devices import device_of, send
from ..fused import operation
from ..kernels import philox
from ..kernels.masks import Mask, Scale
from ..random import Generator, default_generator
from ..registry import BenchCase, Kernel, Sample
from ..tensor import CUDA_DTYPES, Tensor
from .checks import as_index, check_input

__all__ = ["dropout"]

MODULE, CUDA = "tinygrad_bn.kernels.cpu.dropout", "tinygrad_bn.kernels.cuda.dropout"
MODES = ("upscale_in_train", "downscale_in_infer")
PARALLEL_FROM = 1 << 16


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, mask_shape in (
        ((7,), (7,)),
        ((3, 5), (3, 5)),
        ((3, 4, 5), (3, 4, 1)),
        ((2, 3, 4), (2, 1, 4)),
        ((), ()),
    ):
        for p, scale in ((0.5, 2.0), (0.25, 1.0), (0.0, 1.0), (1.0, 1.0)):
            attributes = {"p": p, "mask_shape": mask_shape, "seed": 7, "stream": 0, "call": 3, "scale": scale}
            yield Sample(f"{shape} mask {mask_shape} p {p}", (rng.normal(size=shape),), attributes)


def _hard(rng: np.random.Generator) -> Iterator[Sample]:
    attributes = {
        "mask_shape": (40,),
        "seed": 2**64 - 1,
        "stream": 2**32 - 1,
        "call": 2**32 - 1,
        "scale": 1.0,
    }
    for p in (1e-3, 0.5, 1 - 1e-3):
        yield Sample(f"p {p}", (rng.normal(size=40) * 1e4,), {**attributes, "p": p})


def _errors(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.normal(size=(3, 4))
    yield Sample("p above 1", (x,), {"p": 1.5}, ValueError, "p")
    yield Sample("p NaN", (x,), {"p": float("nan")}, ValueError, "p")
    yield Sample("p that rounds to 0", (x,), {"p": 1e-12}, ValueError, "p")
    yield Sample("mode", (x,), {"mode": "sideways"}, ValueError, "mode is 'sideways'")
    yield Sample("axis", (x,), {"axis": 2}, ValueError, "axis is 2")
    yield Sample("a list", ([1.0, 2.0],), {}, TypeError, "input is list")
    yield Sample("generator", (x,), {"generator": 3}, TypeError, "generator is int")


@operation(
    "dropout::dropout",
    kernels=(
        Kernel("sequential", f"{MODULE}:sequential", plan=Mask),
        Kernel("parallel", f"{MODULE}:parallel", plan=Mask, preferred_from=PARALLEL_FROM),
        Kernel("cuda", f"{CUDA}:dropout", device="cuda", plan=Mask, dtypes=CUDA_DTYPES),
    ),
    plan=lambda shapes, a: Mask(
        shapes[0], a["mask_shape"], a["seed"], a["stream"], a["call"], philox.quantise(a["p"]), a["scale"]
    ),
    keeps=((),),
    samples=_samples,
    hard_samples=_hard,
    error_samples=_errors,
    terms="mask",
    rng=True,
    bench_cases=(BenchCase((32, 64, 56, 56)), BenchCase((1000, 1000)), BenchCase((10,))),
    public="tinygrad_bn.functional:dropout",
)
def _dropout(xp, input, *, p, mask_shape, seed, stream, call, scale):
    """y = x · scale where the mask of (seed, stream, call) keeps, 0 elsewhere."""
    mask = send(philox.keep_mask(seed, stream, call, p, mask_shape), device_of(input))
    return xp.where(mask, input * scale, 0.0), ()


@operation(
    "dropout::scale",
    kernels=(
        Kernel("sequential", f"{MODULE}:sequential_scale", plan=Scale),
        Kernel("parallel", f"{MODULE}:parallel_scale", plan=Scale, preferred_from=PARALLEL_FROM),
        Kernel("cuda", f"{CUDA}:scale", device="cuda", plan=Scale, dtypes=CUDA_DTYPES),
    ),
    plan=lambda shapes, attributes: Scale(attributes["factor"]),
    keeps=((),),
    samples=lambda rng: [
        Sample(f"{shape}", (rng.normal(size=shape),), {"factor": 0.75}) for shape in ((7,), (3, 4, 5), ())
    ],
    terms="mask",
)
def _scale(xp, input, *, factor):
    """y = x · factor: dropout at inference where training did not scale the survivors."""
    return input * factor, ()


def dropout(
    input: Any,
    p: float = 0.5,
    training: bool = True,
    *,
    mode: str = "upscale_in_train",
    axis: int | Sequence[int] | None = None,
    generator: Generator | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Dropout: zero each element with probability p.

    | mode | training | inference |
    |---|---|---|
    | "upscale_in_train" | y = mask · x / (1 − p) | y = x |
    | "downscale_in_infer" | y = mask · x | y = (1 − p) · x |

    p counts for each element by itself: 12 elements at p = 0.5 need not give six zeros. It is rounded to a
    multiple of 2⁻¹⁶ (2⁻³² where that would change p or 1 − p by more than 0.1 %), and the same rounded p
    scales. A dropped element is 0 even where x is NaN or infinite.

    Args:
        input: any shape, float32 or float64.
        p: the probability of dropping, 0 to 1, both exact.
        training: draw a mask; each such call takes one call number of the generator.
        axis: the axes along which the mask varies; the elements along the others share a decision. Default:
            all.
            For input [N, C, H, W], axis=(0, 1) drops whole feature maps.
        generator: where the mask comes from; default: the one that `manual_seed` sets.
        kernel: "sequential", "parallel" (on the CPU), "cuda" (on a GPU) or "definition"; default: by device
            and size.

    Raises:
        ValueError: p, mode or axis is out of range. TypeError: another dtype or type.

    Source: Srivastava et al., Dropout, 2014, section 4.
    """
    check_input("dropout", input)
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(
            f"dropout: generator is {type(generator).__name__}, wanted a tinygrad_bn.Generator or None"
        )
    axes = () if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    arguments = (p, mode, axis is None, *axes)
    if training:
        draw = partial(_draw, generator or default_generator())
        return _dropout.remembered((input,), _attributes, arguments, kernel, draw)[0]
    _attributes((input.shape,), *arguments)
    _dropout.check((input,), kernel)
    if mode == "upscale_in_train":
        return _identity(input)
    return _scale(input, kernel=kernel, factor=1.0 - philox.quantise(p).p)


def _draw(generator: Generator) -> dict[str, Any]:
    """The attributes that differ from call to call."""
    seed, stream, call = generator.next_call()
    return {"seed": seed, "stream": stream, "call": call}


def _identity(input: Any) -> Tensor:
    return input if isinstance(input, Tensor) else Tensor(input)


def _attributes(shapes: Any, p: Any, mode: Any, every_axis: bool, *axes: Any) -> dict[str, Any]:
    """Those of a mask whose key is not drawn yet."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"dropout: mode is {mode!r}, wanted {' or '.join(map(repr, MODES))}")
    quantised = philox.quantise(p)
    scale = quantised.survivor_scale if mode == "upscale_in_train" else 1.0
    mask_shape = shapes[0] if every_axis else _mask_shape(shapes[0], axes)
    return {"p": p, "mask_shape": mask_shape, "scale": scale, "seed": 0, "stream": 0, "call": 0}


def _mask_shape(shape: tuple[int, ...], given: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the mask: 1 along the axes that share a decision."""
    axes = [as_index("dropout", "axis", a, "an integer, a tuple of them, or None") for a in given]
    for a in axes:
        if not -len(shape) <= a < len(shape):
            raise ValueError(
                f"dropout: axis is {a}, wanted {-len(shape)} to {len(shape) - 1} for an input of shape "
                f"{shape}"
            )
    varying = {a % len(shape) for a in axes}
    return tuple(n if a in varying else 1 for a, n in enumerate(shape))
