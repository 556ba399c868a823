"""A sweep as a table for people, then each failure with the command that repeats it."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradcheck.axes import DTYPES, MODES
from gradcheck.configurations import family
from gradcheck.judge import Verdict
from gradcheck.regime import regimes
from gradcheck.report import terminal
from gradcheck.sweep import Result

__all__ = ["as_svg", "as_text", "show", "summary"]

COLOURS = {
    Verdict.PASS: "green",
    Verdict.VACUOUS: "yellow",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold red",
}
WIDTH = 110
SHOWN = 20
"""How many failures are shown in full."""


def show(results: Sequence[Result], seconds: float) -> None:
    """Print to stdout, in colour where that is a terminal."""
    _print(Console(width=None if Console().is_terminal else WIDTH, highlight=False), results, seconds)


def as_text(results: Sequence[Result], seconds: float) -> str:
    """The same as plain text."""
    file = io.StringIO()
    _print(Console(file=file, width=WIDTH, highlight=False), results, seconds)
    return file.getvalue().rstrip()


def as_svg(results: Sequence[Result], seconds: float) -> str:
    """The same as a picture."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, highlight=False)
    if all(result.verdict is Verdict.PASS for result in results):  # else the longest line is a failure's
        console.width = console.measure(_table(results)).maximum
    _print(console, results, seconds)
    picture = console.export_svg(title="python cli.py gradcheck")
    # Fonts would be fetched from the network.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def summary(results: Sequence[Result], seconds: float) -> str:
    """One line: how many configurations, how many of each verdict, how long."""
    counts = Counter(result.verdict for result in results)
    shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    plural = "" if len(results) == 1 else "s"
    return f"{len(results)} configuration{plural}: {shown} in {seconds:.1f} s"


def _print(console: Console, results: Sequence[Result], seconds: float) -> None:
    console.print(_table(results))
    failures = sorted(
        (r for r in results if r.verdict is not Verdict.PASS), key=lambda result: -result.verdict
    )
    for result in failures[:SHOWN]:
        console.print()
        console.print(
            Text.assemble((str(result.verdict), COLOURS[result.verdict]), f"  {result.configuration}"),
            soft_wrap=True,
        )
        for line in (*_finding_lines(result), *_other_reasons(result)[:3], f"again: {result.command}"):
            console.print(Text(f"  {line}"), soft_wrap=True)
    if len(failures) > SHOWN:
        console.print(f"\n… and {len(failures) - SHOWN} more; --format json has their reasons")
    for result in failures[SHOWN:]:
        console.print(Text(f"{result.verdict!s:<12}  {result.command}"), soft_wrap=True)
    for line in regimes(results).values():
        console.print()
        console.print(Text(line, style=COLOURS[Verdict.FAIL]), soft_wrap=True)
    worst = max((result.verdict for result in results), default=Verdict.PASS)
    console.print()
    console.print(Text(summary(results, seconds), style=COLOURS[worst]), soft_wrap=True)


def _finding_lines(result: Result) -> list[str]:
    return [line for finding in result.findings for line in terminal.finding_lines(finding)]


def _other_reasons(result: Result) -> tuple[str, ...]:
    """The reasons of which no finding says more."""
    found = tuple(f"gradient of {finding.input}: " for finding in result.findings)
    return tuple(reason for reason in result.reasons if not reason.startswith(found))


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("operation")
    table.add_column("configurations", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("verdicts", no_wrap=True)
    for name in ("worst error", "allowed", "resolution", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for (operation, name), group in _rows(results):
        counts = Counter(result.verdict for result in group)
        verdicts = Text(" ").join(Text(f"{counts[v]} {v}", style=COLOURS[v]) for v in Verdict if counts[v])
        error, allowed = _worst(group)
        resolution = max((r.resolution for r in group if r.resolution is not None), default=None)
        table.add_row(
            operation if operation != previous else "",
            name,
            str(len(group)),
            verdicts,
            error,
            allowed,
            "" if resolution is None else f"{resolution:.0e}",
            f"{sum(result.seconds for result in group):.1f} s",
        )
        previous = operation
    return table


def _rows(results: Sequence[Result]) -> Iterator[tuple[tuple[str, str], list[Result]]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.configuration.operation, family(result.configuration)), []).append(result)
    order = list(dict.fromkeys(operation for operation, _ in groups))

    def place(item: tuple[tuple[str, str], list[Result]]) -> tuple[Any, ...]:
        (operation, name), (first, *_) = item
        c = first.configuration
        return order.index(operation), name.startswith("corners"), MODES.index(c.mode), DTYPES.index(c.dtype)

    yield from sorted(groups.items(), key=place)


def _worst(group: Sequence[Result]) -> tuple[str, str]:
    """The error that came nearest to what is allowed, and what is allowed there."""
    checks = [(result.verdict, check) for result in group if (check := result.worst) is not None]
    if not checks:
        return "", ""
    _, check = max(checks, key=lambda item: (item[0], item[1].strain))
    return f"{check.error or 0:.1e}", f"{check.allowed:.1e}"
