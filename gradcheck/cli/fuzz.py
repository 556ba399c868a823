"""`python cli.py fuzz`: draw configurations until one fails, and shrink it."""

from __future__ import annotations

import dataclasses
import os
import time

import click

from gradcheck import axes
from gradcheck.axes import Configuration
from gradcheck.cli import program
from gradcheck.judge import Verdict
from gradcheck.sweep import Result

__all__ = ["fuzz"]

FAILED = 1
WRONG = (Verdict.FAIL, Verdict.ERROR)


@click.command()
@click.option(
    "--op",
    "operations",
    multiple=True,
    type=click.Choice(axes.OPERATIONS),
    help="Only this operation. Repeatable.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    metavar="N",
    help="Configurations to draw.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**64 - 1),
    help="Of the configurations, and of the inputs, directions and masks.",
)
@click.pass_context
def fuzz(context: click.Context, /, operations: tuple[str, ...], examples: int, seed: int) -> None:
    """Draw configurations of the built-in operations, many of them corners, until one is FAIL or ERROR; then
    print the smallest that is, and the command that repeats it.
    """
    # As in `gradcheck`: threads that wait by spinning hold up a machine in use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from gradcheck.adapters.tinygrad_bn import check_configuration

    try:
        from gradcheck.strategies import smallest_failing
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise click.UsageError(
            "fuzz needs Hypothesis, which is not installed; pip install hypothesis"
        ) from None
    from rich.console import Console
    from rich.progress import Progress

    from gradcheck.report import table
    from gradcheck.report.groups import Outcome

    results: dict[Configuration, Result] = {}
    console = Console(stderr=True)
    began = time.perf_counter()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=examples)

        def fails(configuration: Configuration) -> bool:
            result = check_configuration(configuration, seed)
            results[configuration] = dataclasses.replace(result, program=program())
            failed = result.verdict in WRONG
            progress.update(task, advance=1, description="shrinking" if failed else None)
            return failed

        smallest = smallest_failing(fails, operations or axes.OPERATIONS, examples=examples, seed=seed)
    if smallest is not None:
        table.show(Outcome([results[smallest]], seed, results[smallest].seconds))
    counts = str(Outcome(list(results.values()), seed, time.perf_counter() - began))
    click.echo(counts, err=smallest is not None)
    context.exit(0 if smallest is None else FAILED)
