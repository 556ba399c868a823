"""`python cli.py gradcheck`: check the gradients of the built-in operations in many configurations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import click

from gradcheck import axes
from gradcheck.axes import Configuration
from gradcheck.cli import arrays
from gradcheck.cli.output import OutputFile
from gradcheck.judge import Verdict
from gradcheck.sweep import Result, run

__all__ = ["gradcheck"]

FAILED, NOTHING_SELECTED = 1, 4
FORMATS = ("terminal", "json", "svg")


def _rank(context: click.Context, parameter: click.Parameter, values: Sequence[int]) -> Sequence[int]:
    lowest, highest = min(map(min, axes.RANKS.values())), max(map(max, axes.RANKS.values()))
    for value in values:
        if not lowest <= value <= highest:
            raise click.BadParameter(f"{value} is not a rank that an operation has; wanted {lowest} to {highest}")
    return values


@click.command()
@click.option("--op", "operations", multiple=True, metavar="NAME", help=f"Only this operation: {', '.join(axes.OPERATIONS)}. Repeatable.")
@click.option("--rank", "ranks", multiple=True, type=int, callback=_rank, help="Only inputs of this rank. Repeatable.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(axes.DTYPES), help="Only this dtype. Repeatable.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(axes.MODES), help="Only training or inference. Repeatable.")
@click.option("--layout", "layouts", multiple=True, type=click.Choice(axes.LAYOUTS), help="Only this memory layout. Repeatable.")
@click.option("--case", "cases", multiple=True, metavar="TEXT", help="Only this configuration, as a report names it. Repeatable.")
@click.option("--exhaustive/--no-exhaustive", default=False, help="All combinations, thousands, instead of every pair of settings.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of inputs, directions and masks.")
@click.option("--input", "input_path", metavar="FILE", help="Check at your own array: .npy, or every array of an .npz.")
@click.option("--array", "array_name", metavar="NAME", help="Only this array of the .npz file.")
@click.option("--data", "dataset", type=click.Choice(arrays.DATASETS), help="Check at real data: a batch of scikit-learn's digit images.")
@click.option("--list", "only_list", is_flag=True, default=False, help="Print what would run, and stop.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), default=None, help="Default: by the suffix of --output, or terminal.")
@click.option("--output", metavar="FILE", default=None, help="Write the report to a file instead of stdout.")
@click.pass_context
def gradcheck(
    context: click.Context,
    operations: tuple[str, ...],
    ranks: tuple[int, ...],
    dtypes: tuple[str, ...],
    modes: tuple[str, ...],
    layouts: tuple[str, ...],
    cases: tuple[str, ...],
    exhaustive: bool,
    seed: int,
    input_path: str | None,
    array_name: str | None,
    dataset: str | None,
    only_list: bool,
    output_format: str | None,
    output: str | None,
) -> None:
    """Check analytic gradients against numeric ones, over the axis configurations of the built-in operations.

    Each configuration is checked for itself: the kernel's gradient against the numeric derivative of the kernel's own forward pass,
    float32 against float64, the sequential and the parallel kernel against the definition and each other, and facts such as
    "the gradient sums to zero over the normalized axes".
    """
    for name in operations:
        if name not in axes.OPERATIONS:
            raise click.UsageError(f"no operation {name!r} to check; {_suggest(name)}")
    batches = _batches(input_path, array_name, dataset)
    selected = []
    for batch in batches:
        for configuration in _candidates(batch, cases, exhaustive, operations or axes.OPERATIONS):
            wanted = (
                (operations, configuration.operation),
                (ranks, configuration.rank),
                (dtypes, configuration.dtype),
                (modes, configuration.mode),
                (layouts, configuration.layout),
            )
            if all(not allowed or value in allowed for allowed, value in wanted):
                selected.append((configuration, batch))
    if not selected:
        click.echo("Nothing to check: no configuration has all of these settings; --list shows what there is.", err=True)
        context.exit(NOTHING_SELECTED)
    if only_list:
        click.echo("\n".join(str(configuration) for configuration, _ in selected))
        click.echo(f"{len(selected)} configurations", err=True)
        return
    destination = OutputFile(output)  # before the work, so that an unwritable path does not waste it
    chosen_format = output_format or destination.format(FORMATS) or FORMATS[0]
    start = time.perf_counter()
    results = list(_progress(selected, seed))
    _write(results, chosen_format, destination, seed, time.perf_counter() - start)
    context.exit(0 if all(result.verdict is Verdict.PASS for result in results) else FAILED)


def _batches(input_path: str | None, array_name: str | None, dataset: str | None) -> list[arrays.Batch | None]:
    """The arrays to check at; [None] where the inputs are drawn."""
    if input_path is not None and dataset is not None:
        raise click.UsageError("--input and --data each say where the input comes from; pass one of them")
    if array_name is not None and input_path is None:
        raise click.UsageError("--array names an array of an .npz file; pass --input FILE.npz with it")
    try:
        if input_path is not None:
            return [*arrays.from_file(input_path, array_name)]
        return [*arrays.from_dataset(dataset)] if dataset is not None else [None]
    except arrays.Unusable as problem:
        raise click.UsageError(str(problem)) from None


def _candidates(
    batch: arrays.Batch | None, cases: Sequence[str], exhaustive: bool, operations: Sequence[str]
) -> Iterator[Configuration]:
    """What could be checked, before the filters."""
    if cases:
        for text in cases:
            try:
                configuration = Configuration.parse(text)
            except ValueError as problem:
                raise click.UsageError(f"--case: {problem}") from None
            given = configuration.values == "given"
            if given and (batch is None or batch.values.shape != configuration.shape):
                shape = "none was given" if batch is None else f"{batch.name} has shape {batch.values.shape}"
                raise click.UsageError(f"--case: values=given needs an --input of shape {configuration.shape}; {shape}")
            if not given and batch is not None:
                raise click.UsageError("--case: this configuration draws its own input; leave --input and --data out")
            yield configuration
    elif batch is not None:
        yield from axes.of_shape(batch.values.shape, batch.values.dtype.name)
    else:
        for operation in operations:
            yield from (*axes.product(operation), *axes.corners(operation)) if exhaustive else axes.covering(operation)


def _progress(selected: Sequence[tuple[Configuration, arrays.Batch | None]], seed: int) -> Iterator[Result]:
    """Run the checks, with a progress bar on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import track

    from gradcheck.adapters.tinygrad_bn import check_configuration

    batch_of: dict[Configuration, arrays.Batch | None] = {}

    def check(configuration: Configuration) -> Result:
        batch = batch_of[configuration]
        if batch is None:
            return check_configuration(configuration, seed)
        return check_configuration(configuration, seed, batch.values, batch.source)

    console = Console(stderr=True)
    bar: Callable[..., Iterator[Result]] = track
    for batch in dict.fromkeys(batch for _, batch in selected):
        mine = [configuration for configuration, owner in selected if owner is batch]
        batch_of.update(dict.fromkeys(mine, batch))
        title = "checking gradients" if batch is None else f"checking at {batch.name}"
        yield from bar(run(mine, check), title, total=len(mine), console=console, transient=True, disable=not console.is_terminal)


def _write(results: list[Result], chosen_format: str, destination: OutputFile, seed: int, seconds: float) -> None:
    from gradcheck.report import table

    if chosen_format == "json":
        from gradcheck.report.json import render

        destination.write(render(results, seed))
    elif chosen_format == "svg":
        destination.write(table.as_svg(results, seconds))
    elif destination.path is not None:
        destination.write(table.as_text(results, seconds))
    else:
        table.show(results, seconds)
        return
    click.echo(table.summary(results, seconds), err=True)


def _suggest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, axes.OPERATIONS, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(axes.OPERATIONS)}"


