"""Configurations at random: half from the list of all, half of random shapes, groups, axes and values."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gradcheck import configurations
from gradcheck.axes import (
    AFFINES,
    CHANNELLED,
    LAYOUTS,
    MODES,
    OPERATIONS,
    RANKS,
    SCALINGS,
    VALUES,
    Configuration,
)

__all__ = ["random_configuration"]

LENGTHS = (1, 2, 2, 3, 3, 4, 5, 6, 7, 8)
LONG = (16, 33, 65, 67, 131)  # instead of one length, now and then
MOST = 1500  # elements
DRAWN = tuple(values for values in VALUES if values != "given")


def random_configuration(rng: np.random.Generator, dtype: str, *, ordinary: bool = False) -> Configuration:
    """One configuration of any operation; `ordinary`: Gaussian values and ε = 1e-5."""
    operation = str(rng.choice(OPERATIONS))
    while True:
        if rng.random() < 0.5:
            listed = _listed(operation, dtype)
            found = listed[rng.integers(len(listed))]
        else:
            found = Configuration(operation, **_settings(operation, dtype, rng, ordinary))
        small = found.problem is None and np.prod(found.shape) <= MOST
        if small and (not ordinary or (found.values, found.eps) == ("normal", Configuration.eps)):
            return found


@functools.cache
def _listed(operation: str, dtype: str) -> list[Configuration]:
    return [each for each in configurations.exhaustive(operation) if each.dtype == dtype]


def _settings(operation: str, dtype: str, rng: np.random.Generator, ordinary: bool) -> dict[str, Any]:
    """Settings that may contradict each other: then the configuration has a problem."""
    shape = [int(length) for length in rng.choice(LENGTHS, size=rng.choice(RANKS[operation]))]
    if rng.random() < 0.2:
        shape[rng.integers(len(shape))] = int(rng.choice(LONG))
    settings: dict[str, Any] = {"shape": tuple(shape), "dtype": dtype, "mode": str(rng.choice(MODES))}
    settings["layout"] = str(rng.choice(LAYOUTS))
    if operation == "dropout":
        axes = rng.random(len(shape)) < 0.7
        mask = {
            "mask_axes": tuple(map(int, np.flatnonzero(axes))),
            "p": round(float(rng.uniform(0.05, 0.8)), 2),
        }
        return settings | mask | {"affine": "none", "scaling": str(rng.choice(SCALINGS))}
    settings["affine"] = str(rng.choice(AFFINES))
    if not ordinary and rng.random() < 0.5:
        settings |= {"values": str(rng.choice(DRAWN)), "eps": float(rng.choice((1e-5, 1e-3, 1e-12)))}
    if operation not in CHANNELLED:
        return settings | {"tail": int(rng.integers(1, len(shape) + 1))}
    settings["channel_axis"] = int(rng.choice((1, -1)))
    if operation == "group_norm":
        channels = shape[settings["channel_axis"]]
        settings["groups"] = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    return settings
