"""`python cli.py fuzz`: draw configurations until one fails, and shrink it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from gradcheck import axes
from gradcheck.cli import program
from gradcheck.judge import Verdict
from gradcheck.sweep import Result

if TYPE_CHECKING:
    from gradcheck.axes import Configuration

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

    def check(configuration: Configuration) -> Result:
        return dataclasses.replace(check_configuration(configuration, seed), program=program())

    began = time.perf_counter()
    try:
        results, smallest = _search(operations or axes.OPERATIONS, examples, seed, check)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise click.UsageError(
            "fuzz needs Hypothesis, which is not installed; pip install 'tinygrad-bn[fuzz]'"
        ) from None
    from gradcheck.report import table

    if smallest is not None:
        table.show([smallest], smallest.seconds)
    click.echo(table.summary(results, time.perf_counter() - began), err=smallest is not None)
    context.exit(0 if smallest is None else FAILED)


def _search(
    operations: Sequence[str], examples: int, seed: int, check: Callable[[Configuration], Result]
) -> tuple[list[Result], Result | None]:
    """All results, and the smallest of the failures, or None."""
    import hypothesis
    from rich.console import Console
    from rich.progress import Progress

    from gradcheck.strategies import configurations

    results: dict[Configuration, Result] = {}
    failures: list[Result] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=examples)

        def example(configuration: Configuration) -> None:
            if configuration not in results:  # Hypothesis comes back to some, above all while it shrinks
                results[configuration] = check(configuration)
            result = results[configuration]
            progress.update(task, advance=1, description="shrinking" if failures else "checking")
            if result.verdict in WRONG:
                failures.append(result)
                raise _FoundError

        search = hypothesis.given(configurations(operations))(example)
        search = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            verbosity=hypothesis.Verbosity.quiet,
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=False,
        )(hypothesis.seed(seed)(search))
        try:
            search()
        except _FoundError:
            return list(results.values()), failures[-1]  # the last call is the smallest example once more
    return list(results.values()), None


class _FoundError(Exception):
    """An example failed. It carries nothing, so that to Hypothesis all failures are one."""
