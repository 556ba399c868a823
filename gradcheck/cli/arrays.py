"""Inputs: shapes that are typed, the user's own arrays, and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from gradcheck.axes import DTYPES

__all__ = ["DATASETS", "Batch", "Unusable", "from_dataset", "from_file", "lengths", "read"]

DATASETS = ("digits",)
DIGITS = 24


class Unusable(Exception):
    """An input that cannot be checked; the message says why, and how to mend it."""


@dataclass(frozen=True, eq=False)
class Batch:
    """An array to check at. name: for the reader. source: the words of the command line that name it."""

    name: str
    values: np.ndarray
    source: tuple[str, ...]


def lengths(text: str, *, least: int) -> tuple[int, ...]:
    """The value of --shape: lengths with commas between. Raises click.UsageError."""
    try:
        found = tuple(map(int, text.removesuffix(",").split(","))) if text.strip() else ()
    except ValueError:
        raise click.UsageError(f"--shape is {text!r}, wanted lengths such as 4,3,5") from None
    if any(n < least for n in found):
        raise click.UsageError(f"--shape is {text!r}, wanted lengths of {least} or more")
    return found


def from_file(path: str, only: str | None) -> Iterator[Batch]:
    """The arrays of a file, each to be the input of a configuration. Raises Unusable."""
    return map(_checked, read(path, only))


def read(path: str, only: str | None) -> Iterator[Batch]:
    """The array of an .npy file, or those of an .npz file. Nothing is unpickled. Raises Unusable."""
    try:
        file = open(path, "rb")  # noqa: SIM115 -- closed below; NumPy leaves damaged files open
    except FileNotFoundError:
        raise Unusable(f"--input: there is no file {path}") from None
    except OSError as error:
        raise Unusable(f"--input: {path} cannot be read: {error.strerror}") from None
    with file:
        try:
            loaded = np.load(file, allow_pickle=False)
        except Exception:  # damage shows as any of a dozen types, of NumPy, zipfile, zlib and tokenize
            raise Unusable(
                f"--input: {path} is damaged, or no file of plain arrays; write it with numpy.save or savez"
            ) from None
        name = Path(path).name
        if not isinstance(loaded, np.ndarray):
            for member in _members(path, loaded.files, only):
                values = _member(path, loaded, member)
                yield Batch(f"{name}:{member}", values, ("--input", path, "--array", member))
        elif only is not None:
            raise Unusable(f"--array: {path} holds a single array; leave --array out")
        else:
            yield Batch(name, loaded, ("--input", path))


def _members(path: str, names: list[str], only: str | None) -> list[str]:
    """The arrays of an .npz file that are wanted."""
    if not names:
        raise Unusable(f"--input: {path} holds no arrays; write some with numpy.savez")
    if only is not None and only not in names:
        raise Unusable(f"--array: {path} has no array {only!r}; it has {', '.join(names)}")
    return names if only is None else [only]


def _member(path: str, archive: Mapping[str, Any], member: str) -> np.ndarray:
    try:
        values = archive[member]
    except Exception:  # as above
        values = None
    if not isinstance(values, np.ndarray):  # bytes, where a member is no array file
        raise Unusable(
            f"--input: {member!r} in {path} is damaged, or no plain array; write it with numpy.savez"
        )
    return values


def from_dataset(name: str) -> Iterator[Batch]:
    """Real digits, grey 0 to 1: as feature vectors [N, 64], and as images [N, 1, 8, 8]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Unusable(
            f"--data: {name} needs scikit-learn, which is not installed; pip install scikit-learn"
        ) from None
    pixels = load_digits().data[:DIGITS] / 16
    yield Batch(f"{name} as vectors", pixels, ("--data", name))
    yield Batch(f"{name} as images", pixels.reshape(DIGITS, 1, 8, 8), ("--data", name))


def _checked(batch: Batch) -> Batch:
    """The batch, if it can be the input of a configuration."""
    name, values, (option, *_) = batch.name, batch.values, batch.source
    another = ", or choose another with --array NAME" if "--array" in batch.source else ""
    if values.dtype.name not in DTYPES:
        raise Unusable(
            f"{option}: {name} has dtype {values.dtype}, wanted {' or '.join(DTYPES)}; "
            f"convert it with .astype('float64'){another}"
        )
    if values.ndim == 0 or values.size == 0:
        raise Unusable(
            f"{option}: {name} has shape {values.shape}, wanted at least one axis and one element; "
            f"reshape it{another}"
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise Unusable(
            f"{option}: {name} is {values[where]} at {where} ({len(bad)} of {values.size} elements are not "
            f"finite); a derivative there is not defined: remove or replace them{another}"
        )
    return batch
