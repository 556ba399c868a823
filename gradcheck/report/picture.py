"""A small picture of where the error of a gradient sits, in characters: the darker, the larger."""

from __future__ import annotations

import sys

import numpy as np

from gradcheck.diagnosis.findings import Finding
from gradcheck.report.layout import arranged, described

__all__ = ["picture"]

SHADES = "·░▒▓█"
PLAIN = ".-+*#"
ROWS, COLUMNS = 8, 48
RIGHT, LARGEST, UNKNOWN, BETWEEN = 0, 4, -1, -2
ASPECT = 8.0  # in characters, which are higher than wide
DECADES = 3.0
"""Errors down to this many decades below the largest have shades of their own."""


def picture(finding: Finding) -> list[str]:
    """At most eight lines, with one character for each element, or for the worst of several.

    The first shade is right, the last the largest error. Nothing where all elements are alike.
    """
    elements = finding.elements
    if elements is None or len(elements.analytic) < 2:
        return []
    levels = _levels(*(np.array(part) for part in (elements.analytic, elements.numeric, elements.bar)))
    if len(set(levels.tolist())) == 1:
        return []
    grid = np.append(levels, BETWEEN)[arranged(elements, ASPECT)]
    characters = dict(enumerate(_shades())) | {UNKNOWN: "?", BETWEEN: " "}
    lines = ["".join(characters[level] for level in row) for row in _worst_of_each_block(grid).tolist()]
    return [*lines[:-1], f"{lines[-1]}   {described(elements, finding.shape)}"]


def _levels(analytic: np.ndarray, numeric: np.ndarray, bar: np.ndarray) -> np.ndarray:
    """How wrong each element is, from RIGHT to LARGEST."""
    with np.errstate(all="ignore"):
        error = np.where(np.isfinite(analytic), np.abs(analytic - numeric), np.inf)
        wrong = error > 2 * bar
        largest = np.max(error[wrong & np.isfinite(error)], initial=0.0)
        level = LARGEST + np.round((LARGEST - 1) * np.log10(error / largest) / DECADES)
    level = np.where(np.isinf(error), LARGEST, np.clip(np.nan_to_num(level), 1, LARGEST))
    unknown = np.isnan(error) | ~np.isfinite(bar)
    levels: np.ndarray = np.where(unknown, UNKNOWN, np.where(wrong, level, RIGHT)).astype(int)
    return levels


def _worst_of_each_block(grid: np.ndarray) -> np.ndarray:
    rows, columns = (-(-n // most) for n, most in zip(grid.shape, (ROWS, COLUMNS), strict=True))
    height, width = (-(-n // each) for n, each in zip(grid.shape, (rows, columns), strict=True))
    padded = np.full((height * rows, width * columns), BETWEEN)
    padded[: grid.shape[0], : grid.shape[1]] = grid
    worst: np.ndarray = padded.reshape(height, rows, width, columns).max(axis=(1, 3))
    return worst


def _shades() -> str:
    """Those that stdout can print."""
    try:
        SHADES.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return SHADES
