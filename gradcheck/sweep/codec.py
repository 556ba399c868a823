"""Records as JSON and back, without loss.

A dataclass becomes an object without the fields that are None or empty by default and in fact, an enumeration
its name; tuples and arrays become lists. NaN and the infinities, which JSON does not have, become the strings
"NaN", "Infinity" and "-Infinity". Reading back goes by the annotations of the fields, and trusts nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["decode", "decode_record", "encode"]

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """A record, or a value in one, as what `json.dumps(…, allow_nan=False)` takes."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):  # before the integers: some are both
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else _name(value)
    if isinstance(value, int):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return encode(value.tolist())
    if isinstance(value, (tuple, list)):
        return [encode(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: encode(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: encode(entry) for field, entry in fields if not _is_default(field, entry)}
    raise TypeError(f"a record holds a {type(value).__name__}, which has no form in JSON")


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default
    return type(value) is type(default) and isinstance(value, (type(None), str, tuple)) and value == default


def decode(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `encode` made this of. Raises ValueError where it is none."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        (kind,) = (each for each in inner if each is not type(None))
        return decode(kind, value)
    if origin is tuple and isinstance(value, list):
        if inner[-1:] == (Ellipsis,):
            return tuple(decode(inner[0], entry) for entry in value)
        return tuple(decode(each, entry) for each, entry in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: decode(inner[1], entry) for key, entry in value.items()}
    if kind is float and isinstance(value, (float, int, str)) and not isinstance(value, bool):
        return _float(value)
    if kind is np.ndarray and isinstance(value, list):
        return np.array(_finite_or_not(value))
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in kind.__members__:
        return kind[value]
    if dataclasses.is_dataclass(kind):
        return decode_record(kind, value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"wanted {getattr(kind, '__name__', kind)}, got {value!r:.60}")


def decode_record(kind: Any, value: Any, **known: Any) -> Any:
    """The same of a dataclass, of which some fields are known. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object, got {value!r:.60}")
    hints = _hints(kind)
    try:
        return kind(**known, **{name: decode(hints[name], entry) for name, entry in value.items()})
    except (KeyError, TypeError) as error:  # fields that it does not have, or lacks
        raise ValueError(f"no {kind.__name__}: {error}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _float(value: float | str) -> float:
    if not isinstance(value, str):
        return float(value)
    if value not in NOT_FINITE:
        raise ValueError(f"wanted a number, got {value!r}")
    return NOT_FINITE[value]


def _finite_or_not(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_not(entry) for entry in value]
    return _float(value) if isinstance(value, str) else value
