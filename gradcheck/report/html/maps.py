"""The maps of a wrong gradient: analytic, numeric, and the logarithm of their distance."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np

from gradcheck.diagnosis.findings import Elements, Finding
from gradcheck.report.html import png
from gradcheck.report.layout import arranged, described

__all__ = ["Map", "Row", "maps", "worst_elements"]

# From the most negative to the most positive: blue, nearly white, orange; told apart by the colour-blind too.
DIVERGING = ((33, 84, 150), (126, 173, 219), (244, 244, 240), (240, 170, 102), (164, 74, 4))
# From none to the largest error.
RISING = ((248, 245, 235), (247, 200, 120), (228, 110, 60), (150, 30, 70), (50, 5, 60))
COLOURS = 250
BLANK, UNKNOWN, INFINITE = COLOURS, COLOURS + 1, COLOURS + 2
SPECIAL = ((255, 255, 255), (150, 150, 150), (0, 0, 0))
SHOWN = 10
"""How many elements are written out."""


@dataclass(frozen=True)
class Map:
    """One picture.

    kind: names its scale of colours in the style sheet. image: a data URI. width, height: in elements.
    low, high: what the ends of the scale mean. text: what it shows, for those who do not see it.
    """

    title: str
    kind: str
    image: str
    width: int
    height: int
    low: str
    high: str
    text: str


@dataclass(frozen=True)
class Row:
    """An element in figures."""

    index: str
    analytic: str
    numeric: str
    error: str


def maps(finding: Finding) -> tuple[Map, ...]:
    """Analytic and numeric on one scale, symmetric around zero, then the error on a logarithmic one."""
    elements = finding.elements
    if elements is None:
        return ()
    analytic, numeric, bar = _numbers(elements)
    finite = np.abs([*analytic, *numeric])
    largest = float(np.max(finite[np.isfinite(finite)], initial=0.0)) or 1.0
    where, reading = arranged(elements), described(elements, finding.shape)
    pictures = [
        _map(
            title,
            "diverging",
            values / largest / 2 + 0.5,
            where,
            f"{-largest:.2g}",
            f"{largest:.2g}",
            reading,
        )
        for title, values in (("analytic", analytic), ("numeric", numeric))
    ]
    return (*pictures, _log_error(np.abs(analytic - numeric), bar, where, reading))


def _log_error(error: np.ndarray, bar: np.ndarray, where: np.ndarray, reading: str) -> Map:
    """The error from the smallest that could have been seen up to the largest."""
    known = bar[np.isfinite(bar) & (bar > 0)]
    seen = error[np.isfinite(error) & (error > 0)]
    floor = float(np.min(known)) if known.size else float(np.min(seen, initial=1e-16))
    top = max(float(np.max(seen, initial=0.0)), 10 * floor)
    with np.errstate(all="ignore"):
        level = np.log(error / floor) / math.log(top / floor)
    level = np.where(error <= floor, 0.0, level)
    return _map("log error", "rising", level, where, f"≤ {floor:.0e}", f"{top:.0e}", reading)


def _map(
    title: str, kind: str, level: np.ndarray, where: np.ndarray, low: str, high: str, reading: str
) -> Map:
    """level: one number for each element, from 0 to 1."""
    with np.errstate(all="ignore"):
        colours = np.clip(np.round(level * (COLOURS - 1)), 0, COLOURS - 1)
    colours = np.where(np.isnan(level), UNKNOWN, np.where(np.isinf(level), INFINITE, np.nan_to_num(colours)))
    pixels = np.append(colours.astype(np.uint8), BLANK)[where]  # −1 is the last
    image = png.encoded(pixels, _palette(DIVERGING if kind == "diverging" else RISING), BLANK)
    notes = [f"{title}: from {low} to {high}; {reading}"]
    notes += ["grey: no value"] if np.isnan(level).any() else []
    notes += ["black: infinite"] if np.isinf(level).any() else []
    uri = "data:image/png;base64," + base64.b64encode(image).decode()
    height, width = where.shape
    return Map(title, kind, uri, width, height, low, high, "; ".join(notes))


def _palette(anchors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    at = np.linspace(0, len(anchors) - 1, COLOURS)
    channels = [np.interp(at, range(len(anchors)), channel) for channel in zip(*anchors, strict=True)]
    return np.concatenate([np.round(np.transpose(channels)), SPECIAL])


def worst_elements(finding: Finding) -> tuple[Row, ...]:
    """The elements that are furthest off, worst first, in figures."""
    elements = finding.elements
    if elements is None:
        return ()
    analytic, numeric, bar = _numbers(elements)
    distance = np.abs(analytic - numeric)
    order = np.argsort(-np.where(np.isnan(distance), np.inf, distance), kind="stable")[:SHOWN]
    indices = np.transpose(np.unravel_index(order, elements.shape)) if elements.shape else [()]
    return tuple(
        Row(
            ", ".join(str(axis[i]) for axis, i in zip(elements.grid, index, strict=True)) or "–",
            f"{analytic[k]:.8g}",
            f"{numeric[k]:.8g} ± {bar[k]:.1g}",
            f"{analytic[k] - numeric[k]:.2g}",
        )
        for k, index in zip(order, indices, strict=True)
    )


def _numbers(elements: Elements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(elements.analytic), np.array(elements.numeric), np.array(elements.bar)
