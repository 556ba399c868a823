"""Shapes: reshape, transpose, broadcast, index, concatenate, pad, cast."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..devices import as_array, send, zeros
from ..dispatch import primitive
from ..registry import Sample
from .samples import calls

__all__ = [
    "astype", "broadcast_to", "concatenate", "getitem", "pad", "reshape", "scatter", "to_device", "transpose",
]  # fmt: skip


@primitive(
    "array::reshape",
    vjps=(lambda xp, g, y, x, shape: xp.reshape(g, x.shape),),
    view=True,
    samples=calls((((2, 6),), {"shape": (3, 4)}), (((4,),), {"shape": (2, -1)}), (((1,),), {"shape": ()})),
)
def reshape(x, shape):
    """The same elements in row-major order in another shape; one length may be −1."""
    return as_array(x).reshape(shape)


def _transpose(xp, g, y, x, axes):
    return xp.transpose(
        g, None if axes is None else tuple(int(a) for a in np.argsort(np.array(axes) % x.ndim))
    )


@primitive(
    "array::transpose",
    vjps=(_transpose,),
    view=True,
    samples=calls(
        (((2, 3),), {}),
        (((2, 3, 4),), {"axes": (2, 0, 1)}),
        (((2, 3, 4),), {"axes": (-1, 1, 0)}),
        (((),), {}),
    ),
)
def transpose(x, axes=None):
    """The axes in another order; None reverses them."""
    return as_array(x).transpose(axes)


@primitive(
    "array::broadcast_to",
    vjps=(lambda xp, g, y, x, shape: g,),
    view=True,
    samples=calls((((3, 1),), {"shape": (2, 3, 4)}), (((),), {"shape": (3,)}), (((2,),), {"shape": (2,)})),
)
def broadcast_to(x, shape):
    """x repeated along new axes and axes of length 1, as a view."""
    return np.broadcast_to(x, shape)


@primitive(
    "array::astype",
    vjps=(lambda xp, g, y, x, dtype: g,),
    view=True,
    samples=calls((((2, 3),), {"dtype": "float64"})),
)
def astype(x, dtype):
    """x as float32 or float64; without a copy where it is so already. The gradient has x's dtype."""
    return as_array(x).astype(dtype, copy=False)


@primitive(
    "array::to_device",
    vjps=(lambda xp, g, y, x, device, origin: xp.to_device(g, device=origin, origin=device),),
    view=True,
    samples=calls((((2, 3),), {"device": "cpu", "origin": "cpu"})),
)
def to_device(x, device, origin):
    """x on `device`; without a copy where it is there already. The gradient goes back to x's, `origin`."""
    return send(as_array(x), device)


def _keys(rng: np.random.Generator) -> Iterator[Sample]:
    keys = {
        "an integer": 1,
        "slices": (slice(None, None, -1), slice(1, None, 2)),
        "a new axis": (None, slice(None), 0),
        "repeated integers": np.array([0, 2, 2]),
        "a mask": rng.normal(size=(3, 4)) > 0,
        "integers and a slice": (np.array([[0, 1], [2, 2]]), slice(0, 2)),
        "an ellipsis": (..., -1),
    }
    for name, key in keys.items():
        yield Sample(name, (rng.normal(size=(3, 4)),), {"key": key})


@primitive(
    "array::getitem",
    vjps=(lambda xp, g, y, x, key: xp.scatter(g, key, x.shape),),
    view=True,
    samples=_keys,
)
def getitem(x, key):
    """x[key], with NumPy's basic and advanced indexing."""
    return x[key]


def _is_basic(key: object) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        p is None or p is ... or (isinstance(p, (slice, int, np.integer)) and not isinstance(p, bool))
        for p in parts
    )


def _scattered(rng: np.random.Generator) -> Iterator[Sample]:
    for sample in _keys(rng):
        key = sample.attributes["key"]
        yield Sample(
            sample.name, (rng.normal(size=sample.inputs[0][key].shape),), {"key": key, "shape": (3, 4)}
        )


@primitive(
    "array::scatter",
    vjps=(lambda xp, g, y, values, key, shape: xp.getitem(g, key),),
    samples=_scattered,
)
def scatter(values, key, shape):
    """Zeros of `shape`, with `values` added at `key`; what is named twice is added twice. The transpose of
    indexing.
    """
    values = as_array(values)
    result = zeros(shape, values.dtype, like=values)
    if _is_basic(key):
        result[key] = values
    else:
        np.add.at(result, key, values)
    return result


def _part(position: int):
    def rule(xp, g, y, *parts, axis):
        start = sum(part.shape[axis] for part in parts[:position])
        key = [slice(None)] * parts[position].ndim
        key[axis] = slice(start, start + parts[position].shape[axis])
        return xp.getitem(g, tuple(key))

    return rule


@primitive(
    "array::concatenate",
    vjps=_part,
    samples=calls((((2, 3), (1, 3)), {}), (((2, 3), (2, 1), (2, 2)), {"axis": -1}), (((4,),), {})),
)
def concatenate(parts, axis=0):
    """The arrays of a sequence one after the other along an axis."""
    if axis is None:
        raise TypeError("axis is None, wanted an integer; flatten the parts with reshape(-1) instead")
    return np.concatenate(parts, axis=axis)


def _widths(pad_width, ndim: int) -> tuple[tuple[int, int], ...]:
    return tuple((int(before), int(after)) for before, after in np.broadcast_to(pad_width, (ndim, 2)))


def _pad(xp, g, y, x, pad_width, value):
    widths = _widths(pad_width, x.ndim)
    return xp.getitem(
        g, tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
    )


@primitive(
    "array::pad",
    vjps=(_pad,),
    samples=calls(
        (((3,),), {"pad_width": 2}),
        (((2, 3),), {"pad_width": ((0, 1), (2, 0))}),
        (((2, 3),), {"pad_width": (1, 2), "value": 3.0}),
    ),
)
def pad(x, pad_width, value=0.0):
    """x with `value` around it; `pad_width` as in numpy.pad: a number, (before, after), or one such pair
    for each axis.
    """
    return np.pad(x, _widths(pad_width, np.ndim(x)), constant_values=value)
