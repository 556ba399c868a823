"""Which configurations there are: every ordinary one, the corners, and those that a default run checks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradcheck.axes import (
    AFFINES,
    CHANNELLED,
    DTYPES,
    LAYOUTS,
    MODES,
    RANKS,
    SCALINGS,
    VALUES,
    Configuration,
)
from gradcheck.sweep import SampleCase

__all__ = ["corners", "covering", "exhaustive", "family", "of_shape", "product"]

CPU = "cpu"
CHANNELS = 6
DRAWN = tuple(values for values in VALUES if values != "given")


def exhaustive(operation: str, device: str = CPU) -> list[Configuration]:
    """Every ordinary configuration of an operation, and every corner of the kernels of a device."""
    return [*product(operation), *corners(operation, device)]


def covering(operation: str, device: str = CPU) -> list[Configuration]:
    """Part of `product(operation)` in which all its pairs of settings occur, and every corner of a device's
    kernels.
    """
    return [*_covering(list(product(operation))), *corners(operation, device)]


def _covering(configurations: list[Configuration]) -> list[Configuration]:
    """Some of these, in their order, in which every pair of settings occurs that occurs in all of them."""
    order = np.random.default_rng(0).permutation(len(configurations))
    occurs: Counter[Any] = Counter()
    chosen: dict[int, set[Any]] = {}
    for position in map(int, order):
        c = configurations[position]
        met = {(c.rank, c.mask_axes), *itertools.combinations(_settings(c), 2)}
        if any(pair not in occurs for pair in met):
            occurs.update(met)
            chosen[position] = met
    for position, met in list(chosen.items()):  # those that came first may have become superfluous
        if all(occurs[pair] > 1 for pair in met):
            occurs.subtract(met)
            del chosen[position]
    return [configurations[position] for position in sorted(chosen)]


def _settings(c: Configuration) -> tuple[tuple[str, Any], ...]:
    """What is varied, by name. Of the axes of a mask their number: how they lie matters in itself alone."""
    masked = None if c.mask_axes is None else len(c.mask_axes)
    return (
        ("rank", c.rank), ("channel_axis", c.channel_axis), ("groups", c.groups), ("tail", c.tail),
        ("masked", masked), ("affine", c.affine), ("mode", c.mode), ("dtype", c.dtype), ("layout", c.layout),
        ("scaling", c.scaling), ("p", c.p), ("values", c.values), ("eps", c.eps),
    )  # fmt: skip


def product(operation: str) -> Iterator[Configuration]:
    """Every ordinary configuration of an operation: all its settings in all combinations."""
    for place in _places(operation):
        for affine, mode, dtype, layout in itertools.product(
            ("none",) if operation == "dropout" else AFFINES, MODES, DTYPES, LAYOUTS
        ):
            configuration = Configuration(
                operation, **place, affine=affine, mode=mode, dtype=dtype, layout=layout
            )
            if configuration.problem is None:
                yield configuration


def _places(operation: str) -> Iterator[dict[str, Any]]:
    """Shapes of every rank with the axes, groups or masks that the operation can have on them."""
    for rank in RANKS[operation]:
        if operation in CHANNELLED:
            for channel_axis in (1, -1):
                shape = _channelled_shape(rank, channel_axis)
                for groups in _divisors(CHANNELS) if operation == "group_norm" else [None]:
                    yield {"shape": shape, "channel_axis": channel_axis, "groups": groups}
        elif operation == "dropout":
            shape = (3, 4, 5, 2)[:rank]
            for k in range(1, rank + 1):
                for mask_axes in itertools.combinations(range(rank), k):
                    for p, scaling in itertools.product((0.25, 0.5), SCALINGS):
                        yield {"shape": shape, "mask_axes": mask_axes, "p": p, "scaling": scaling}
        else:
            shape = ((7,), (4, 5), (3, 2, 4), (2, 3, 2, 3))[rank - 1]
            for tail in range(1, rank + 1):
                yield {"shape": shape, "tail": tail}


def _channelled_shape(rank: int, channel_axis: int) -> tuple[int, ...]:
    batch, spatial = (5, 2, 2, 2)[rank - 2], ((), (3,), (3, 2), (2, 3, 2))[rank - 2]
    return (batch, CHANNELS, *spatial) if channel_axis == 1 else (batch, *spatial, CHANNELS)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def corners(operation: str, device: str = CPU) -> Iterator[Configuration]:
    """Where correct-looking code breaks: short, odd and long reductions, ε that matters, ill values."""
    if operation == "dropout":
        yield from _masks()
    else:
        for number, (shape, place) in enumerate(_corner_places(operation)):
            # Each shape in both dtypes; where there are two channel axes, one in each.
            for dtype in DTYPES if "tail" in place else [DTYPES[number % 2]]:
                configuration = Configuration(operation, shape, dtype=dtype, **place)
                if configuration.problem is None:
                    yield configuration
        for mode in MODES:
            yield from _covering(list(_ill_values(operation, mode)))
    for shape, place in (_past_one_piece if device == CPU else _past_one_block)(operation):
        for dtype in DTYPES:
            yield Configuration(operation, shape, dtype=dtype, **place)


def _masks() -> Iterator[Configuration]:
    """Dropout of nothing, of everything, of a third and of very few, over lengths that fill no byte."""
    shapes = ((1,), (17,), (3, 43), (2, 131))
    for (i, p), (j, shape) in itertools.product(enumerate((0.0, 1.0, 0.001, 1 / 3)), enumerate(shapes)):
        yield _mask(shape, p, DTYPES[(i + j) % 2])  # each p and each shape in both
    yield _mask((3, 2731), 0.999, "float64")  # few survive of many


def _mask(shape: tuple[int, ...], p: float, dtype: str) -> Configuration:
    place: dict[str, Any] = {"mask_axes": tuple(range(len(shape))), "p": p, "scaling": "upscale_in_train"}
    return Configuration("dropout", shape, dtype=dtype, affine="none", **place)


def _ill_values(operation: str, mode: str) -> Iterator[Configuration]:
    """Every kind of values with every ε, at every place and in every dtype: all combinations."""
    if operation == "group_norm":
        places = [{"channel_axis": axis, "groups": groups} for axis in (1, -1) for groups in (2, 4)]
    elif operation in CHANNELLED:
        places = [{"channel_axis": axis} for axis in (1, -1)]
    else:
        places = [{"tail": 1}]
    for place, values, eps, dtype in itertools.product(places, DRAWN, (1e-5, 1e-3, 0.0), DTYPES):
        shape = (4, 5) if "tail" in place else (3, 4, 5) if place["channel_axis"] == 1 else (3, 5, 4)
        settings: dict[str, Any] = {**place, "mode": mode, "dtype": dtype, "values": values, "eps": eps}
        configuration = Configuration(operation, shape, **settings)
        if (values, eps) != ("normal", Configuration.eps) and configuration.problem is None:
            yield configuration


# The compiled kernels work piece by piece, and what joins the pieces runs only where there is more than one:
# a run of values is summed in chunks of 2048, and few rows that are longer are differentiated in blocks of so
# many columns; rows are handed out in tasks of 8192 values, their gradients summed over at most 64 rows, in
# blocks of 4096 values, by which the groups of short stretches are shared out too; channels last are joined
# to rows of about 512, two of which are summed at a time, and cut into tiles of 128 rows by 1024 columns, or
# 2048 where there are more rows, as short stretches of channels first are; masks are drawn, and spread over
# elements, in tasks of 65536.
# These shapes are a little longer, with an odd last piece.


def _past_one_piece(operation: str) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    first: dict[str, Any] = {"channel_axis": 1}
    last: dict[str, Any] = {"channel_axis": -1}
    if operation == "dropout":
        common: dict[str, Any] = {"p": 0.5, "affine": "none"}
        yield (3, 21851), {"mask_axes": (0, 1), "scaling": "upscale_in_train", **common}
        yield (41, 3, 541), {"mask_axes": (0, 2), "scaling": "upscale_in_train", **common}
        yield (65539,), {"mask_axes": (0,), "scaling": "downscale_in_infer", "mode": "inference", **common}
    elif operation in ("layer_norm", "rms_norm"):
        yield (8, 2053), {"tail": 1}
        yield (1101, 3), {"tail": 1}
        yield (19, 523), {"tail": 1}
    elif operation == "batch_norm":
        yield (2, 2, 2053), first
        yield (3, 1027), first
        yield (1101, 3), first
        yield (133, 259), first
        yield (17, 349, 3), first
        yield (2, 2, 2053), {**first, "mode": "inference"}
        yield (1101, 3), {**first, "mode": "inference"}
        yield (17, 349, 3), {**first, "mode": "inference"}
    elif operation == "instance_norm":
        yield (2, 2, 2053), first
        yield (17, 1367, 3), first
        yield (2, 733, 3), last
    else:
        yield (2, 4, 1031), {**first, "groups": 2}
        yield (17, 1370, 3), {**first, "groups": 685}
        yield (2, 733, 6), {**last, "groups": 3}


# Those of a CUDA device hold at most 2048 values of a tile, 32 short rows or 8 elements for each of 256
# threads in a block, and its simulator has time for little more.


def _past_one_block(operation: str) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    first: dict[str, Any] = {"channel_axis": 1}
    last: dict[str, Any] = {"channel_axis": -1}
    if operation == "dropout":
        common: dict[str, Any] = {"p": 0.5, "affine": "none"}
        yield (3, 691), {"mask_axes": (0, 1), "scaling": "upscale_in_train", **common}
        yield (11, 3, 67), {"mask_axes": (0, 2), "scaling": "upscale_in_train", **common}
        yield (2051,), {"mask_axes": (0,), "scaling": "downscale_in_infer", "mode": "inference", **common}
    elif operation in ("layer_norm", "rms_norm"):
        yield (2, 1031), {"tail": 1}
        yield (67, 3), {"tail": 1}
    elif operation == "batch_norm":
        for mode in MODES:
            yield (2, 2, 1031), {**first, "mode": mode}
            yield (131, 3), {**first, "mode": mode}
            yield (17, 35, 3), {**first, "mode": mode}
        yield (9, 67), first
    elif operation == "instance_norm":
        yield (1, 2, 1031), first
        yield (2, 131, 3), last
    else:
        yield (1, 4, 517), {**first, "groups": 2}
        yield (2, 131, 6), {**last, "groups": 3}


def _corner_places(operation: str) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Batch 1; statistics of m values for m = 1, 2, odd, ≥ 64, ≥ 130; one channel, one group, all groups."""
    if operation in ("layer_norm", "rms_norm"):
        one_axis = [(1, 5), (3, 1), (3, 2), (2, 67), (2, 131)]
        for shape, tail in [*((shape, 1) for shape in one_axis), ((1, 3, 43), 2), ((5, 1, 1), 2)]:
            yield shape, {"tail": tail}
        return
    samples = [(1, 3, 5), (3, 1, 3), (2, 3, 1), (1, 2, 2), (1, 2, 67), (1, 2, 131), (3, 2, 44), (2, 4, 3, 22)]
    if operation == "batch_norm":
        samples += [(2, 3), (67, 2), (131, 1)]
    for batch, channels, *spatial in samples:
        for groups in sorted({1, channels}) if operation == "group_norm" else [None]:
            yield (batch, channels, *spatial), {"channel_axis": 1, "groups": groups}
            yield (batch, *spatial, channels), {"channel_axis": -1, "groups": groups}


def of_shape(shape: tuple[int, ...], dtype: str) -> list[Configuration]:
    """Every way to apply the operations to an array of the user's, of that shape and dtype."""
    common: dict[str, Any] = {"shape": shape, "dtype": dtype, "values": "given"}
    candidates = []
    for channel_axis, mode in itertools.product((1, -1), MODES):
        if len(shape) > 1:
            place: dict[str, Any] = {"channel_axis": channel_axis, "mode": mode, **common}
            divisors = _divisors(shape[channel_axis])
            candidates += [Configuration(operation, **place) for operation in ("batch_norm", "instance_norm")]
            for groups in sorted({1, divisors[len(divisors) // 2], divisors[-1]}):
                candidates.append(Configuration("group_norm", groups=groups, **place))
    for tail in range(1, len(shape) + 1):
        candidates += [
            Configuration(operation, tail=tail, **common) for operation in ("layer_norm", "rms_norm")
        ]
    mask: dict[str, Any] = {"mask_axes": tuple(range(len(shape))), "p": 0.5, "affine": "none"}
    for scaling, mode in itertools.product(SCALINGS, MODES):
        candidates.append(Configuration("dropout", scaling=scaling, mode=mode, **mask, **common))
    return [c for c in candidates if c.problem is None]


def family(configuration: Configuration | SampleCase) -> str:
    """What is counted together in a table, of the configurations or samples of one operation."""
    c = configuration
    if isinstance(c, SampleCase):
        return f"samples {c.dtype}"
    if c.values == "given":
        return f"{c.mode}, given array"
    ordinary = any(place["shape"] == c.shape for place in _places(c.operation))
    ordinary &= c.values == "normal" and c.eps == Configuration.eps
    return f"{c.mode if ordinary else 'corners'} {c.dtype}"
