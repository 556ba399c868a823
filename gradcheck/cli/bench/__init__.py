"""`python cli.py bench`: time the operations beside other libraries on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gradcheck.cli import Group, plugins
from gradcheck.cli.bench import others
from gradcheck.cli.bench.options import (
    BROKEN,
    Destination,
    options,
    read_cases,
    read_device,
    read_peers,
    read_threads,
)
from gradcheck.cli.output import OutputFile

if TYPE_CHECKING:
    from tinygrad_bn.bench.baseline import Baseline, Change
    from tinygrad_bn.bench.cases import Case

__all__ = ["bench"]

SLOWER = 1
FEWEST_ROUNDS = 5


@click.group(cls=Group, invoke_without_command=True)
@options(
    "op", "shape", "attribute", "plugin", "device", "graph", "against", "threads", "dtype", "rounds", "seed"
)
@click.option("--save", metavar="FILE", help="Write the JSON report there too, as a baseline for --compare.")
@click.option("--compare", metavar="FILE", help="Exit status 1 where a case is slower than in this baseline.")
@options("format", "output")
@click.pass_context
def bench(context: click.Context, /, **given: Any) -> None:
    """Time forward and backward passes beside torch, JAX and NumPy, and beside the least that memory allows.

    On a GPU, with --device cuda, beside torch and Liger, and in fractions of the device's own copy.

    Without a command: the speed of operations, as a user calls them. Every library runs in a process of its
    own, in interleaved rounds, after its results were found equal to ours.
    """
    if context.invoked_subcommand is None:
        _speed(context, **given)
        return
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} stands before {context.invoked_subcommand}, which has options of its "
                "own; write them behind it"
            )


for command in others.COMMANDS:
    bench.add_command(command)


def _speed(
    context: click.Context,
    operations: Sequence[str],
    shapes: Sequence[str],
    keywords: Sequence[str],
    plugin_paths: Sequence[str],
    device: str,
    graph: bool,
    against: Sequence[str],
    threads: Sequence[str],
    dtypes: Sequence[str],
    rounds: int,
    seed: int,
    save: str | None,
    compare: str | None,
    output_format: str | None,
    output: str | None,
) -> None:
    from tinygrad_bn.bench import report, speed

    destination = Destination(output, output_format, picture=True)
    saved = None if save is None else OutputFile(save, "--save")
    declared = [spec.name for plugin in plugins.opened(context, plugin_paths) for spec in plugin.operations]
    device = read_device(device, threads, graph)
    # The host of a GPU starts calls on one thread, but its driver and its compilers have some too.
    counts = read_threads(threads) if device == "cpu" else read_threads(())[-1:]
    peers = read_peers(against, device)
    cases = read_cases(operations or declared, shapes, keywords, dtypes, seed, len(peers) + 2, device)
    if (save or compare) and rounds < FEWEST_ROUNDS:
        raise click.UsageError(f"--rounds: a baseline needs {FEWEST_ROUNDS} or more, to know its noise")
    settings = {"rounds": rounds, **report.gpu(device), **({"graph": True} if graph else {})}
    then = None if compare is None else _baseline(compare, settings, seed, cases, counts)
    found = speed.run(cases, peers, counts, speed.settings(device, rounds, graph), plugin_paths)
    measurements, failures = others.followed(found)
    made = report.speed_report(measurements, failures, seed, settings)
    destination.write(made, measurements)
    if saved is not None:
        saved.write(made.as_json())
    slower = then is not None and _compared(then.changes(made.as_record()))
    context.exit(BROKEN if failures else SLOWER if slower else 0)


def _baseline(
    path: str, settings: Mapping[str, Any], seed: int, cases: Sequence[Case], threads: Sequence[int]
) -> Baseline:
    from tinygrad_bn.bench.baseline import Baseline, Incomparable

    try:
        return Baseline(path, settings, seed, cases, threads)
    except Incomparable as problem:
        raise click.UsageError(f"--compare: {problem}") from None


def _compared(changes: Sequence[Change]) -> bool:
    """Say on stderr what has changed; whether anything is slower."""
    for change in changes:
        if change.slower or change.faster:
            click.echo(str(change), err=True)
    slower = sum(change.slower for change in changes)
    click.echo(f"{len(changes)} compared, {slower} slower", err=True)
    return slower > 0
