"""The commands of `bench` beside the speed: memory, tape, growth, accuracy, startup, compile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from gradcheck.cli import plugins
from gradcheck.cli.bench.options import (
    BROKEN,
    Destination,
    options,
    read_cases,
    read_device,
    read_peers,
    read_threads,
)

if TYPE_CHECKING:
    from tinygrad_bn.bench.cases import Case
    from tinygrad_bn.bench.figures import Measurement
    from tinygrad_bn.bench.speed import Failure

__all__ = ["COMMANDS", "followed"]

DECADES = (100_000, 1_000_000, 10_000_000, 100_000_000)


def followed(found: Iterable[Measurement | Failure]) -> tuple[list[Measurement], list[Failure]]:
    """What was measured and what failed, each with a line on stderr when it is known."""
    from tinygrad_bn.bench.speed import Failure

    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for each in found:
        click.echo(f"failed: {each}" if isinstance(each, Failure) else str(each), err=True)
        if isinstance(each, Failure):
            failures.append(each)
        else:
            measurements.append(each)
    return measurements, failures


class _Failures:
    """Of commands that go on after one: `with failures.of(case): …`, and the exit status at the end."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def of(self, what: object) -> Iterator[None]:
        from tinygrad_bn.bench.pool import Failed

        try:
            yield
        except Failed as why:
            self.count += 1
            click.echo(f"failed: {what}: {why}", err=True)
        else:
            click.echo(f"done: {what}", err=True)

    @property
    def status(self) -> int:
        return BROKEN if self.count else 0


@click.command()
@options("op", "shape", "attribute", "dtype", "seed", "format", "output")
@click.pass_context
def memory(
    context: click.Context,
    operations: Sequence[str],
    shapes: Sequence[str],
    keywords: Sequence[str],
    dtypes: Sequence[str],
    seed: int,
    output_format: str | None,
    output: str | None,
) -> None:
    """What each pass allocates beyond inputs, output and gradients, and what the tape keeps between them."""
    from tinygrad_bn.bench.libraries import OURS
    from tinygrad_bn.bench.pool import Workers
    from tinygrad_bn.bench.report import Report, Table

    destination = Destination(output, output_format)
    cases = read_cases(operations, shapes, keywords, dtypes, seed, 1)
    found: list[dict[str, Any]] = []
    rows = []
    names = ("input", "saved", "forward", "backward", "resident_forward", "resident_backward")
    failures = _Failures()
    with Workers(read_threads(())[-1]) as workers:
        for case in cases:
            with failures.of(case):
                workers.prepare(OURS, case)
                sizes = {"input": case.nbytes, **workers[OURS].ask("memory")}
                found.append({**asdict(case), **sizes})
                rows.append(
                    (str(case), *("" if (n := sizes[k]) is None else f"{n / 1024:,.1f}" for k in names))
                )
    table = Table("Memory in KiB", ("", *(name.replace("_", " ") for name in names)), rows)
    destination.write(Report("memory", seed, {}, {"cases": found}, [table]))
    context.exit(failures.status)


@click.command()
@options("device", "against", "rounds", "seed", "format", "output")
@click.pass_context
def tape(
    context: click.Context,
    device: str,
    against: Sequence[str],
    rounds: int,
    seed: int,
    output_format: str | None,
    output: str | None,
) -> None:
    """The time of operations on 1,000 elements, where the cost of the tape shows, on one thread.

    On a GPU, that of the host until a call is started.
    """
    from tinygrad_bn.bench import figures, report, speed
    from tinygrad_bn.bench.cases import small

    destination = Destination(output, output_format)
    device = read_device(device)
    peers = read_peers(against or ("torch",), device)
    cases = [replace(case, device=device) for case in small(seed)]
    measurements, failures = followed(speed.run(cases, peers, [1], speed.Settings(rounds)))
    results = {"cases": [each.as_json() for each in measurements]}
    columns = ("microseconds", "", "tinygrad_bn", *peers, *(f"ours ÷ {peer}" for peer in peers))
    rows = []
    for each in measurements:
        times = [each.peers[peer].call if peer in each.peers else None for peer in peers]
        ratios = [None if time is None else each.ours.call / time for time in times]
        cells = [figures.number(None if t is None else t * 1e6) for t in (each.ours.call, *times)]
        rows.append((str(each.case), each.direction, *cells, *map(figures.number, ratios)))
    table = report.Table("Operations on 1,000 elements; best times", columns, rows)
    settings = {"rounds": rounds, **report.gpu(device)}
    destination.write(report.Report("tape", seed, settings, results, [table]))
    context.exit(BROKEN if failures else 0)


@click.command()
@options("op", "threads", "dtype", "rounds", "seed", "format", "output")
@click.option(
    "--elements",
    "sizes",
    multiple=True,
    type=click.IntRange(1),
    default=DECADES,
    show_default="100 thousand to 100 million",
    help="About this many. Repeatable.",
)
@click.pass_context
def growth(
    context: click.Context,
    operations: Sequence[str],
    threads: Sequence[str],
    dtypes: Sequence[str],
    rounds: int,
    seed: int,
    sizes: Sequence[int],
    output_format: str | None,
    output: str | None,
) -> None:
    """Our time in units of the floor, from small inputs to large ones: a longer first axis."""
    from tinygrad_bn.bench import figures, report, speed

    destination = Destination(output, output_format)
    sizes = sorted(set(sizes))
    counts = read_threads(threads) if threads else read_threads(())[-1:]
    chosen: dict[tuple[str, str], Case] = {}
    declared = read_cases(operations, (), (), dtypes, seed, 2)
    for case in declared:
        if case.elements <= min(sizes) * 1.1 * case.shape[0]:  # else a sample alone is larger
            chosen.setdefault((case.operation, case.dtype), case)
    missing = [case.operation for case in declared if (case.operation, case.dtype) not in chosen]
    if missing and (operations or not chosen):
        raise click.UsageError(
            f"--elements: {min(sizes)} is too few for {missing[0]}, a sample of which is larger; give more"
        )
    cases = [case.of_size(size) for case in chosen.values() for size in sizes]
    measurements, failures = followed(speed.run(cases, (), counts, speed.Settings(rounds)))
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for each in measurements:
        key = (each.case.operation, each.case.dtype, each.threads, each.direction)
        groups.setdefault(key, []).append(each)
    rows = []
    for (operation, dtype, count, direction), group in groups.items():
        found = {each.case.elements: each.over_floor for each in group}
        smallest, *_ = grown = [chosen[operation, dtype].of_size(n) for n in sizes]
        cells = [figures.number(found.get(case.elements)) for case in grown]
        what = f"{smallest} {dtype}, {direction}, {smallest.place(count)}"
        rows.append((what, *cells, figures.number(max(found.values()) / min(found.values()))))
    columns = ("at the smallest size", *(f"{n:,}" for n in sizes), "largest ÷ smallest")
    table = report.Table("Our time ÷ floor, by elements", columns, rows)
    results = {"cases": [each.as_json() for each in measurements]}
    destination.write(report.Report("growth", seed, {"rounds": rounds}, results, [table]))
    context.exit(BROKEN if failures else 0)


@click.command()
@options("op", "against", "seed", "format", "output")
@click.pass_context
def accuracy(
    context: click.Context,
    operations: Sequence[str],
    against: Sequence[str],
    seed: int,
    output_format: str | None,
    output: str | None,
) -> None:
    """Errors of float32 results, in units of u · max|result|: around a mean of 0, one of 10,000, and in sums
    of 10 million.
    """
    from tinygrad_bn.bench import accuracy, figures, report
    from tinygrad_bn.bench.pool import Workers

    destination = Destination(output, output_format)
    peers = read_peers(against or ("torch",))
    wanted = {plugins.registered(name).name for name in operations}
    cases = [case for case in accuracy.accuracy_cases(seed) if not wanted or case.operation in wanted]
    if not cases:
        raise click.UsageError(f"--op: no accuracy is measured of {', '.join(sorted(wanted))}; name a norm")
    found: list[accuracy.Accuracy] = []
    failures = _Failures()
    with Workers(read_threads(())[-1]) as workers:
        for case in cases:
            with failures.of(f"{case}, mean {case.mean:g}"):
                found += accuracy.accuracies(case, peers, workers)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for each in found:
        cell = "/".join(map(figures.number, each.errors.values()))
        cells.setdefault((str(each.case), f"{each.case.mean:,.0f}"), {})[each.result] = cell
    names = list(dict.fromkeys(each.result for each in found))
    rows = [(*key, *(row.get(name, "") for name in names)) for key, row in cells.items()]
    title = f"Largest error of float32 in units of u · max|result|: {'/'.join(['tinygrad_bn', *peers])}"
    table = report.Table(title, ("", "mean", *names), rows)
    results = {"errors": [{**asdict(each.case), "result": each.result, **each.errors} for each in found]}
    destination.write(report.Report("accuracy", seed, {}, results, [table]))
    context.exit(failures.status)


@click.command()
@options("rounds", "format", "output")
def startup(rounds: int, output_format: str | None, output: str | None) -> None:
    """The time that `--help` takes, and `import tinygrad_bn` beyond NumPy's own import."""
    from tinygrad_bn.bench import report
    from tinygrad_bn.bench.startup import start_times

    destination = Destination(output, output_format)
    found = start_times(rounds)
    rows, records = [], []
    for each in found:
        times = {"best": each.wall.best, "median": each.wall.median, "processor": each.processor.best}
        rows.append((each.what, *(f"{seconds * 1e3:.0f}" for seconds in times.values())))
        records.append({"what": each.what, **times})
    table = report.Table("Start-up, in milliseconds", ("", "best", "median", "of a processor"), rows)
    destination.write(report.Report("startup", 0, {"rounds": rounds}, {"startup": records}, [table]))


@click.command("compile")
@options("op", "dtype", "format", "output")
@click.option(
    "--sweep/--no-sweep", default=True, show_default=True, help="Also the whole `gradcheck`, for minutes."
)
@click.pass_context
def compilation(
    context: click.Context,
    operations: Sequence[str],
    dtypes: Sequence[str],
    sweep: bool,
    output_format: str | None,
    output: str | None,
) -> None:
    """The time of the first calls of each operation, from an empty cache of kernels and from a full one."""
    from tinygrad_bn.bench import report
    from tinygrad_bn.bench.startup import compilation as measured
    from tinygrad_bn.bench.startup import sweep as measured_sweep

    destination = Destination(output, output_format)
    groups: dict[str, list[Case]] = {}
    for case in read_cases(operations, (), (), dtypes, 0, 1):
        groups.setdefault(case.operation, []).append(case)
    found = []
    failures = _Failures()
    for name, cases in groups.items():
        with failures.of(name):
            found.append(measured(cases, read_threads(())[-1]))
    if sweep:
        with failures.of("gradcheck"):
            found.append(measured_sweep())
    rows = [(each.what, f"{each.cold:.1f}", f"{each.warm:.1f}", str(each.variants)) for each in found]
    table = report.Table("First calls, in seconds", ("", "cold", "warm", "compiled functions"), rows)
    results = {"compilations": [asdict(each) for each in found]}
    destination.write(report.Report("compile", 0, {}, results, [table]))
    context.exit(failures.status)


COMMANDS = (memory, tape, growth, accuracy, startup, compilation)
