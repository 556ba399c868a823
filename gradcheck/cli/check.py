"""`python cli.py gradcheck`: check the gradients of the built-in operations in many configurations."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from gradcheck import axes
from gradcheck.cli import arrays, program
from gradcheck.cli.output import OutputFile
from gradcheck.cli.selection import Job, NothingSelected, Selection
from gradcheck.judge import Verdict
from gradcheck.sweep import Result

__all__ = ["gradcheck"]

FAILED, NOTHING_SELECTED = 1, 4
FORMATS = ("terminal", "json", "svg")


def _only(
    flag: str, name: str, what: str, choices: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        flag, name, multiple=True, type=click.Choice(choices), help=f"Only this {what}. Repeatable."
    )


@click.command()
@click.option(
    "--op",
    "operations",
    multiple=True,
    metavar="NAME",
    help=f"Only this operation: {', '.join(axes.OPERATIONS)}. Repeatable.",
)
@click.option("--rank", "ranks", multiple=True, type=int, help="Only inputs of this rank. Repeatable.")
@_only("--dtype", "dtypes", "dtype", axes.DTYPES)
@_only("--mode", "modes", "mode", axes.MODES)
@_only("--layout", "layouts", "memory layout", axes.LAYOUTS)
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="TEXT",
    help="Only this configuration, as a report names it. Repeatable.",
)
@click.option(
    "--exhaustive/--no-exhaustive",
    default=False,
    help="All combinations, thousands, instead of every pair of settings.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**64 - 1),
    help="Of inputs, directions and masks.",
)
@click.option(
    "--input", "input_path", metavar="FILE", help="Check at your own array: .npy, or every array of an .npz."
)
@click.option("--array", "array_name", metavar="NAME", help="Only this array of the .npz file.")
@click.option(
    "--data",
    "dataset",
    type=click.Choice(arrays.DATASETS),
    help="Check at real data: a batch of scikit-learn's digit images.",
)
@click.option("--list", "only_list", is_flag=True, default=False, help="Print what would run, and stop.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    help="Default: by the suffix of --output, or terminal.",
)
@click.option("--output", metavar="FILE", help="Write the report to a file instead of stdout.")
@click.pass_context
def gradcheck(
    context: click.Context,
    /,
    seed: int,
    only_list: bool,
    output_format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Check analytic gradients against numeric ones, over the axis configurations of the built-in operations.

    Each configuration is checked for itself: the kernel's gradient against the numeric derivative of its own
    forward pass, float32 against float64, the sequential and the parallel kernel against the definition and
    each other, and facts such as "the gradient sums to zero over the normalized axes".
    """
    selection = Selection(**options)
    if only_list and (output or output_format):
        raise click.UsageError("--list prints names to stdout; leave --format and --output out")
    destination = OutputFile(output)  # before the work, so that an unwritable path does not waste it
    try:
        jobs = selection.jobs()
    except NothingSelected as why:
        click.echo(f"Nothing to check: {why}.", err=True)
        context.exit(NOTHING_SELECTED)
    if only_list:
        click.echo("\n".join(str(configuration) for configuration, _ in jobs))
        click.echo(f"{len(jobs)} configurations", err=True)
        return
    start = time.perf_counter()
    results = list(_run(jobs, seed))
    chosen_format = output_format or destination.format(FORMATS) or FORMATS[0]
    _write(results, chosen_format, destination, seed, time.perf_counter() - start)
    context.exit(0 if all(result.verdict is Verdict.PASS for result in results) else FAILED)


def _run(jobs: Sequence[Job], seed: int) -> Iterator[Result]:
    """Run the checks, with a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    # The parallel kernels run on tiny inputs here. Threads that wait for each other by spinning, as OpenMP's
    # do unless told otherwise before they start, make that several times slower on a machine in use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from gradcheck.adapters.tinygrad_bn import check_configuration

    console = Console(stderr=True)
    hidden = not console.is_terminal
    for configuration, batch in track(
        jobs, "checking gradients", console=console, transient=True, disable=hidden
    ):
        given = () if batch is None else (batch.values, batch.source)
        try:
            result = check_configuration(configuration, seed, *given)
        except MemoryError:
            raise click.UsageError(
                f"{configuration}: does not fit in memory; choose a smaller shape"
            ) from None
        yield dataclasses.replace(result, program=program())


def _write(
    results: list[Result], chosen_format: str, destination: OutputFile, seed: int, seconds: float
) -> None:
    from gradcheck.report import table

    if chosen_format == "terminal" and destination.path is None:
        table.show(results, seconds)
        return
    if chosen_format == "json":
        import tinygrad_bn
        from gradcheck.report.json import render

        text = render(results, seed, {"tinygrad_bn": tinygrad_bn.__version__})
    else:
        text = table.as_svg(results, seconds) if chosen_format == "svg" else table.as_text(results, seconds)
    destination.write(text)
    click.echo(table.summary(results, seconds), err=True)
