"""The times as a picture: bars on a logarithmic axis, in units of the floor. For light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .figures import Measurement, number
from .libraries import FLOOR, OURS
from .speed import DIRECTIONS

__all__ = ["draw"]

# Told apart in grey as well; ours is the strong one.
COLOURS = {
    OURS: ("#0b6bcb", "#58a6ff"),
    "torch": ("#d9730d", "#e08a3c"),
    "torch-compile": ("#e8a87c", "#b9734a"),
    "jax": ("#4a9b7f", "#5fb89a"),
    "liger": ("#7a5fb8", "#a68fd8"),
    "numpy": ("#a8a8a8", "#808080"),
}
LABEL, PANEL, GAP, VALUE = 260, 330, 30, 46  # widths
BAR, SPACE, TOP = 9, 10, 66  # heights


def draw(measurements: Sequence[Measurement]) -> str:
    """A panel for each direction side by side, a section for each dtype and number of threads."""
    sections: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        sections.setdefault((each.case.dtype, each.case.place(each.threads)), []).append(each)
    libraries = [name for name in COLOURS if any(name in each.timings for each in measurements)]
    longest = max(
        (t.best / each.floor.best for each in measurements for t in each.timings.values()), default=10
    )
    decades = max(1, math.ceil(math.log10(longest) - 1e-9))
    parts, y = [], 0.0
    for (dtype, place), group in sections.items():
        drawn, height = _section(group, libraries, decades, y, f"{dtype}, {place}")
        parts += drawn
        y += height
    width = LABEL + 2 * PANEL + GAP + VALUE
    size = f'viewBox="0 0 {width} {y:.0f}" width="{width}" height="{y:.0f}"'
    font = 'font-family="system-ui, sans-serif" font-size="11"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">',
        "<title>Time per call in units of the memory floor; shorter is faster</title>",
        _style(),
        '<rect class="page" width="100%" height="100%"/>',
    ]
    return "\n".join([*head, *parts, "</svg>"])


def _style() -> str:
    def colours(dark: bool) -> str:
        return " ".join(f".{name}{{fill:{pair[dark]}}}" for name, pair in COLOURS.items())

    light = ".page{fill:#fff} text{fill:#1f2328} .faint{fill:#59636e} line{stroke:#d1d9e0}"
    dark = ".page{fill:#0d1117} text{fill:#e6edf3} .faint{fill:#9198a1} line{stroke:#3d444d}"
    return (
        f"<style>{light} {colours(False)} .ours{{font-weight:600}} "
        f"@media (prefers-color-scheme: dark){{{dark} {colours(True)}}}</style>"
    )


def _section(
    group: Sequence[Measurement], libraries: Sequence[str], decades: int, top: float, title: str
) -> tuple[list[str], float]:
    """A heading with the legend, then the cases; and its height."""
    parts = [f'<text x="12" y="{top + 22:.0f}" font-size="14" font-weight="600">{escape(title)}</text>']
    x = LABEL
    for library in libraries:
        parts.append(f'<rect class="{library}" x="{x}" y="{top + 13:.0f}" width="10" height="10" rx="2"/>')
        parts.append(f'<text x="{x + 14}" y="{top + 22:.0f}">{library}</text>')
        x += 34 + 7 * len(library)
    rows: dict[str, dict[str, Measurement]] = {}
    for each in group:
        rows.setdefault(str(each.case), {})[each.direction] = each
    y = top + TOP
    heights = len(rows) * (BAR * len(libraries) + SPACE)
    for column, direction in enumerate(DIRECTIONS):
        parts += _axis(LABEL + column * (PANEL + GAP), y, heights, decades, direction)
    for name, directions in rows.items():
        middle = y + BAR * len(libraries) / 2 + 4
        parts.append(f'<text x="{LABEL - 10}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>')
        for column, direction in enumerate(DIRECTIONS):
            if direction in directions:
                left = LABEL + column * (PANEL + GAP)
                parts += _bars(directions[direction], libraries, left, y, decades)
        y += BAR * len(libraries) + SPACE
    return parts, y - top + 16


def _axis(left: float, top: float, height: float, decades: int, direction: str) -> Iterator[str]:
    yield (
        f'<text x="{left}" y="{top - 22:.0f}" font-weight="600">{direction}'
        f'<tspan class="faint" font-weight="400"> · time ÷ {FLOOR}, shorter is faster</tspan></text>'
    )
    for power in range(decades + 1):
        x = left + PANEL * power / decades
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4:.0f}" y2="{top + height:.0f}"/>'
        place = f'x="{x:.1f}" y="{top - 8:.0f}" text-anchor="middle"'
        yield f'<text class="faint" {place} font-size="9">{10**power:,}</text>'


def _bars(each: Measurement, libraries: Sequence[str], left: float, y: float, decades: int) -> Iterator[str]:
    for row, library in enumerate(libraries):
        timing = each.timings.get(library)
        if timing is None:
            continue
        times = timing.best / each.floor.best
        length = max(1.5, PANEL * math.log10(max(times, 1.0)) / decades)
        top = y + row * BAR
        size = f'width="{length:.1f}" height="{BAR - 1}"'
        yield f'<rect class="{library}" x="{left}" y="{top:.1f}" {size} rx="1"/>'
        place = f'x="{left + length + 4:.1f}" y="{top + BAR - 1.5:.1f}"'
        emphasis = "ours" if library == OURS else "faint"
        yield f'<text class="{emphasis}" {place} font-size="8">{number(times, 2)}</text>'
