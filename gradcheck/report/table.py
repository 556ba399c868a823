"""A sweep as a table for people, then each failure with the command that repeats it."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradcheck.judge import Verdict
from gradcheck.regime import regimes
from gradcheck.report import terminal
from gradcheck.report.groups import Outcome, failures, groups, other_reasons, worst
from gradcheck.sweep import Result

__all__ = ["as_svg", "as_text", "show"]

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


def show(outcome: Outcome) -> None:
    """Print to stdout, in colour where that is a terminal."""
    _print(Console(width=None if Console().is_terminal else WIDTH, highlight=False), outcome)


def as_text(outcome: Outcome) -> str:
    """The same as plain text."""
    file = io.StringIO()
    _print(Console(file=file, width=WIDTH, highlight=False), outcome)
    return file.getvalue().rstrip()


def as_svg(outcome: Outcome) -> str:
    """The same as a picture."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, highlight=False)
    if outcome.verdict is Verdict.PASS:  # else the longest line is a failure's
        console.width = console.measure(_table(outcome.results)).maximum
    _print(console, outcome)
    picture = console.export_svg(title="python cli.py gradcheck")
    # Fonts would be fetched from the network.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def _print(console: Console, outcome: Outcome) -> None:
    console.print(_table(outcome.results))
    failed = failures(outcome.results)
    for result in failed[:SHOWN]:
        console.print()
        console.print(
            Text.assemble((str(result.verdict), COLOURS[result.verdict]), f"  {result.configuration}"),
            soft_wrap=True,
        )
        for line in (*_finding_lines(result), *other_reasons(result)[:3], f"again: {result.command}"):
            console.print(Text(f"  {line}"), soft_wrap=True)
    if len(failed) > SHOWN:
        console.print(f"\n… and {len(failed) - SHOWN} more; --format json has their reasons")
    for result in failed[SHOWN:]:
        console.print(Text(f"{result.verdict!s:<12}  {result.command}"), soft_wrap=True)
    for line in regimes(outcome.results).values():
        console.print()
        console.print(Text(line, style=COLOURS[Verdict.FAIL]), soft_wrap=True)
    console.print()
    console.print(Text(str(outcome), style=COLOURS[outcome.verdict]), soft_wrap=True)


def _finding_lines(result: Result) -> list[str]:
    return [line for finding in result.findings for line in terminal.finding_lines(finding)]


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("operation")
    table.add_column("configurations", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("verdicts", no_wrap=True)
    for name in ("worst error", "allowed", "resolution", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for operation, name, group in groups(results):
        counts = Counter(result.verdict for result in group)
        verdicts = Text(" ").join(Text(f"{counts[v]} {v}", style=COLOURS[v]) for v in Verdict if counts[v])
        error, allowed = worst(group)
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
