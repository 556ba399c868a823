"""`python cli.py mutants`: grade the checker with a set of wrong gradients."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

import click

from gradcheck.cli.output import OutputFile
from gradcheck.mutants.mutant import EDITS, KINDS
from gradcheck.mutants.operations import OPERATIONS

__all__ = ["mutants"]

FAILED, NOTHING_SELECTED = 1, 4
CONTROL = "control"
LIBRARIES = ("torch", "jax", "autograd")

T = TypeVar("T")


@click.command()
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice((*KINDS, *EDITS, CONTROL)),
    metavar="KIND",
    help="Only this kind of mistake; 'control' for the right pairs. Repeatable.",
)
@click.option(
    "--operation",
    "operations",
    multiple=True,
    type=click.Choice(tuple(OPERATIONS)),
    help="Only mutants of this operation. Repeatable.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32), help="Of inputs and directions."
)
@click.option("--list", "only_list", is_flag=True, help="Print what would run, and stop.")
@click.option(
    "--against",
    metavar="LIBRARIES",
    help="Compare with the checkers of other libraries: torch,jax,autograd, or some of them.",
)
@click.option("--format", "output_format", type=click.Choice(("terminal", "json")), help="Default: terminal.")
@click.option("--report", "report_path", metavar="FILE", help="Write the report to a file instead of stdout.")
@click.pass_context
def mutants(
    context: click.Context,
    kinds: tuple[str, ...],
    operations: tuple[str, ...],
    seed: int,
    only_list: bool,
    against: str | None,
    output_format: str | None,
    report_path: str | None,
) -> None:
    """Grade the checker: wrong gradients that it must catch, and right ones that it must not accuse.

    Each is checked in every configuration of its operation, until one catches it. Exit status 1 if a mutant
    survives that a check can see, or a right pair is accused.
    """
    from gradcheck.mutants import collection, report

    destination = OutputFile(report_path)
    as_json = (output_format or destination.format(("json",))) == "json"
    jobs = collection.choose(kinds, operations, seed)
    if not jobs:
        click.echo("Nothing to grade: no mutant is of this kind and operation.", err=True)
        context.exit(NOTHING_SELECTED)
    if only_list:
        click.echo("\n".join(job.label for job in jobs))
        click.echo(f"{len(jobs)} pairs", err=True)
        return
    if against is not None:
        if as_json:
            raise click.UsageError("--against prints a table; leave --format out")
        destination.write(_compared(against, kinds, operations, seed))
        return
    began = time.perf_counter()
    outcomes = [job.judge() for job in _shown(jobs)]
    destination.write(report.as_json(outcomes, seed) if as_json else report.as_text(outcomes, seed))
    click.echo(report.summary(outcomes, time.perf_counter() - began), err=True)
    context.exit(FAILED if report.faults(outcomes) else 0)


def _shown(jobs: Sequence[T]) -> Iterable[T]:
    """The jobs, with a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(jobs, "grading", console=console, transient=True, disable=not console.is_terminal)


def _compared(against: str, kinds: Sequence[str], operations: Sequence[str], seed: int) -> str:
    """The table of --against."""
    from gradcheck.mutants.against import compare
    from gradcheck.mutants.collection import chosen_mutants

    libraries = tuple(dict.fromkeys(part.strip() for part in against.split(",")))
    for library in libraries:
        if library not in LIBRARIES:
            raise click.UsageError(f"--against is {library!r}, wanted some of {', '.join(LIBRARIES)}")
        if importlib.util.find_spec(library) is None:
            raise click.UsageError(f"--against: {library} is not installed; pip install {library}")
    wrong = [m for _, m in chosen_mutants(kinds, operations) if m.kind in KINDS and not m.invisible]
    if not wrong:
        raise click.UsageError("--against compares on named mutants; none is of this kind and operation")
    return compare(libraries, wrong, seed, progress=_shown)
