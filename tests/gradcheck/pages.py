"""The blocks of the how-to pages, and their console output with what changes from run to run taken out."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
# Times, what a search cost, errors at the level of rounding; and what follows from the cotangent drawn:
# the element that is furthest off, the values, and how dark the picture of the error is.
CHANGING = re.compile(
    r"[\d.]+ (?:ms|s|forward|backward)\b|[\d.]+e[-+]\d+|-?\d+\.\d{3,}|[·░▒▓█]+|(?<=dx\[)[\d, ]+(?=\])"
)


def blocks(page, language):
    """The code blocks of a page that are of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE)


def steady(text):
    """The lines of an output, what changes in them blotted out, and the blanks that align it."""
    return [" ".join(CHANGING.sub("#", line).split()) for line in text.splitlines()]
