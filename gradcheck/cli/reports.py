"""The reports that a command line asks for: one on stdout, and one in each file of --report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from gradcheck.cli.output import OutputFile
from gradcheck.report.groups import Outcome

__all__ = ["Reports", "options"]

FORMATS = ("terminal", "json", "junit", "github", "html", "svg", "jsonl")
SUFFIXES = {
    ".txt": "terminal", ".json": "json", ".jsonl": "jsonl", ".xml": "junit", ".html": "html", ".svg": "svg",
}  # fmt: skip
DEFAULT, AS_THEY_COME = "terminal", "jsonl"


class Reports:
    """Where a sweep is reported.

    Raises:
        click.UsageError: at once where a report could not be written, before any work is wasted.
    """

    def __init__(self, paths: Sequence[str], stdout: str | None) -> None:
        if stdout == AS_THEY_COME:
            raise click.UsageError(
                "--format jsonl writes results as they come, to a file; pass --report FILE.jsonl"
            )
        self.stdout = stdout or DEFAULT
        self._files = [(OutputFile(path), _format(path, stdout)) for path in paths]
        seen: dict[str, str] = {}
        for path in paths:
            other = seen.setdefault(os.path.realpath(path), path)
            if other is not path and os.path.realpath(path) != os.path.realpath(os.devnull):
                raise click.UsageError(f"--report: {other} and {path} are the same file; leave one out")
        if "html" in (self.stdout, *(name for _, name in self._files)):
            from gradcheck.report import html

            if not html.available():
                raise click.UsageError(f"--report: {html.MISSING}")

    @property
    def lines(self) -> list[Path]:
        """The files that each result is written to as it comes."""
        return [file.path for file, name in self._files if name == AS_THEY_COME and file.path is not None]

    def write(self, outcome: Outcome, text: str | None = None) -> None:
        """Write the files, each whole or not at all, then stdout; if that is data, one line to stderr too.

        text: what people read in place of the table.
        """
        from gradcheck.report import formats

        for file, name in self._files:
            if name != AS_THEY_COME:
                plain = text if name == DEFAULT else None
                file.write(formats.render(outcome, name) if plain is None else plain)
        if self.stdout == DEFAULT and text is not None:
            click.echo(text)
        elif self.stdout == DEFAULT:
            from gradcheck.report import table

            table.show(outcome)
        else:
            click.echo(formats.render(outcome, self.stdout))
            click.echo(str(outcome), err=True)


def _format(path: str, given: str | None) -> str:
    """By the suffix; where that names none, the one of stdout, if it was given."""
    name = SUFFIXES.get(Path(path).suffix.lower(), given)
    if name is None:
        raise click.UsageError(
            f"--report: the suffix of {path} names no format ({', '.join(SUFFIXES)}); pass --format too"
        )
    return name


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of Reports to a command."""
    report = click.option(
        "--report",
        "report_paths",
        metavar="FILE",
        multiple=True,
        help=f"Write a report too, in the format of the suffix: {', '.join(SUFFIXES)}. Repeatable.",
    )
    stdout = click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        help="Of stdout, and of a --report whose suffix names none. Default: terminal.",
    )
    return report(stdout(command))
