"""Hypothesis strategies over the axis configurations, weighted toward the corners where kernels break.

A failing example shrinks in the order in which it is drawn: operation, shape, axes and groups, then memory
layout, dtype and mode, then the kind of values. The numbers themselves are not drawn: they follow from the
configuration and a seed, so that an example is cheap and repeats anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, assume, given, settings
from hypothesis import strategies as st

from gradcheck.axes import (
    CHANNELLED,
    DTYPES,
    LAYOUTS,
    MODES,
    OPERATIONS,
    RANKS,
    SCALINGS,
    VALUES,
    Configuration,
)

__all__ = ["NormInputs", "axis_configurations", "norm_inputs", "smallest_failing"]

# Ones and twos are corners. The long lengths leave an odd piece over in a kernel that works in pieces of 16,
# 64, 128 or 1024; at most one axis is long, and the others short then, so that an example stays quick.
LENGTHS = (1, 1, 2, 2, 3, 4, 5, 6, 7)
LONG = (17, 65, 67, 131, 1027)
DRAWN = tuple(values for values in VALUES if values != "given")
INFERS = ("batch_norm", "instance_norm", "dropout")
NORM_INPUTS = ("layer_norm", "rms_norm", "batch_norm", "instance_norm")
PROBABILITIES = (0.5, 0.25, 1 / 3, 0.001, 0.999, 0.0, 1.0)


class NormInputs(NamedTuple):
    """Inputs of a normalization: weight and bias have the shape that the operation wants, or are None; `axes`
    are those over which the statistics are taken.
    """

    x: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    axes: tuple[int, ...]


def axis_configurations(
    operation: str | Sequence[str] = OPERATIONS, *, dtypes: Sequence[str] = DTYPES
) -> st.SearchStrategy[Configuration]:
    """Configurations of an operation, or of several.

    Args:
        operation: one of gradcheck.axes.OPERATIONS, or some of them.
        dtypes: those of the input.
    """
    names = (operation,) if isinstance(operation, str) else tuple(operation)
    if not names or not set(names) <= set(OPERATIONS):
        raise ValueError(f"operation is {operation!r}, wanted one or more of {', '.join(OPERATIONS)}")
    return st.sampled_from(names).flatmap(lambda name: _configurations(name, RANKS[name], dtypes))


@st.composite
def norm_inputs(
    draw: st.DrawFn, operation: str = "layer_norm", *, rank: int | None = None, dtype: str = "float64"
) -> NormInputs:
    """Inputs for a normalization of your own, in training, with the same corners.

    Args:
        operation: whose shapes to draw: "layer_norm" and "rms_norm" normalize the last axes; "batch_norm" and
            "instance_norm" have their channels at axis 1 or the last.
        rank: of x; by default every rank that the operation has.
        dtype: of all arrays.
    """
    if operation not in NORM_INPUTS:
        raise ValueError(f"operation is {operation!r}, wanted one of {', '.join(NORM_INPUTS)}")
    if rank is not None and rank not in RANKS[operation]:
        raise ValueError(f"rank is {rank}, wanted one of {RANKS[operation]} for {operation}")
    ranks = RANKS[operation] if rank is None else (rank,)
    case = draw(_configurations(operation, ranks, (dtype,), ("training",)))
    arrays = case.draw(draw(st.integers(0, 2**32 - 1))).astype(dtype)
    x = case.lay_out(np.broadcast_to(arrays.input, case.shape))
    return NormInputs(x, arrays.weight, arrays.bias, case.reduced)


def smallest_failing(
    fails: Callable[[Configuration], bool],
    operation: str | Sequence[str] = OPERATIONS,
    *,
    examples: int = 200,
    seed: int = 0,
) -> Configuration | None:
    """Draw configurations until one fails, and shrink it; None where none of them does.

    Args:
        fails: whether a configuration fails; asked once about each.
        operation: as for axis_configurations.
        examples: how many to draw; some may be the same.
        seed: what is drawn follows from it. Nothing is kept for the next call.
    """
    known: dict[Configuration, bool] = {}
    found: list[Configuration] = []

    def example(configuration: Configuration) -> None:
        if configuration not in known:
            known[configuration] = fails(configuration)
        if known[configuration]:
            found.append(configuration)
            raise _FoundError

    search = given(axis_configurations(operation))(example)
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        quiet(hypothesis.seed(seed)(search))()
    except _FoundError:
        return found[-1]  # the last call was the smallest example once more
    return None


class _FoundError(Exception):
    """An example failed. It carries nothing, so that to Hypothesis all failures are one."""


@st.composite
def _configurations(
    draw: st.DrawFn, name: str, ranks: Sequence[int], dtypes: Sequence[str], modes: Sequence[str] = MODES
) -> Configuration:
    shape = draw(_shapes(ranks))
    chosen: dict[str, Any] = draw(_masks(shape)) if name == "dropout" else draw(_axes(name, shape))
    chosen["layout"] = draw(st.sampled_from(LAYOUTS))
    chosen["dtype"] = draw(st.sampled_from(tuple(dtypes)))
    if name in INFERS and chosen.get("scaling") != "upscale_in_train":
        chosen["mode"] = draw(st.sampled_from(tuple(modes)))
    if name != "dropout":
        chosen["affine"] = draw(st.sampled_from(("both", "none", "weight", "bias")))
        chosen["values"] = draw(st.sampled_from(DRAWN))
        chosen["eps"] = draw(st.sampled_from((Configuration.eps, Configuration.eps, 1e-3, 0.0)))
    configuration = Configuration(name, shape, **chosen)
    assume(configuration.problem is None)
    return configuration


@st.composite
def _shapes(draw: st.DrawFn, ranks: Sequence[int]) -> tuple[int, ...]:
    shape = draw(st.lists(st.sampled_from(LENGTHS), min_size=min(ranks), max_size=max(ranks)))
    if draw(st.integers(0, 4)) == 4:
        shape = [min(length, 3 if len(shape) < 4 else 2) for length in shape]
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from(LONG))
    return tuple(shape)


@st.composite
def _axes(draw: st.DrawFn, operation: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if operation not in CHANNELLED:
        return {"tail": draw(st.integers(1, len(shape)))}
    axis = draw(st.sampled_from((1, -1)))
    if operation != "group_norm":
        return {"channel_axis": axis}
    channels = shape[axis]
    divisors = [divisor for divisor in range(1, channels + 1) if channels % divisor == 0]
    return {"channel_axis": axis, "groups": draw(st.sampled_from((*divisors, channels)))}


@st.composite
def _masks(draw: st.DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    mask_axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    return {
        "mask_axes": tuple(sorted(mask_axes)),
        "p": draw(st.sampled_from(PROBABILITIES)),
        "scaling": draw(st.sampled_from(SCALINGS)),
        "affine": "none",
    }
