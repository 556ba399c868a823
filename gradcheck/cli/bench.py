"""`python cli.py bench`: time the operations beside other libraries on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gradcheck.axes import DTYPES
from gradcheck.cli import arrays, plugins
from gradcheck.cli.loading import one_line
from gradcheck.cli.ops import setting
from gradcheck.cli.output import OutputFile

if TYPE_CHECKING:
    from tinygrad_bn.bench.baseline import Change
    from tinygrad_bn.bench.cases import Case
    from tinygrad_bn.bench.figures import Measurement
    from tinygrad_bn.bench.report import Report
    from tinygrad_bn.bench.speed import Failure

__all__ = ["bench"]

SLOWER, BROKEN, NOTHING_SELECTED = 1, 3, 4
FORMATS = ("terminal", "json", "markdown", "svg")
SUFFIXES = {"md": "markdown", "txt": "terminal"}

Command = Callable[..., None]


def _separated(text: Iterable[str]) -> list[str]:
    """The values of a repeatable option, each of which may have commas."""
    return list(dict.fromkeys(part.strip() for each in text for part in each.split(",") if part.strip()))


def _options(*chosen: str) -> Callable[[Command], Command]:
    """Options that several of the commands share, by name."""
    known = {
        "op": click.option(
            "--op", "operations", multiple=True, metavar="NAME",
            help="Only this operation, any that is registered. Repeatable.",
        ),
        "shape": click.option(
            "--shape", "shapes", multiple=True, metavar="64,256",
            help="Shape of the first input of --op, instead of the declared cases. Repeatable.",
        ),
        "attribute": click.option(
            "--attribute", "settings", multiple=True, metavar="NAME=VALUE",
            help="A keyword of the function at --shape, such as num_groups=4. Repeatable.",
        ),
        "against": click.option(
            "--against", "against", multiple=True, metavar="NAMES",
            help="torch, torch-compile, jax, numpy, or none; with commas, or repeated. Default: the installed.",
        ),
        "threads": click.option(
            "--threads", "threads", multiple=True, metavar="1,2", help="Default: 1, and as many as there are CPUs."
        ),
        "dtype": click.option(
            "--dtype", "dtypes", multiple=True, metavar="NAMES", default=("float32",), show_default=True,
            help=f"{' or '.join(DTYPES)}; with commas, or repeated.",
        ),
        "rounds": click.option(
            "--rounds", default=12, show_default=True, type=click.IntRange(1), help="Turns of each library."
        ),
        "seed": click.option(
            "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 2), help="Of the inputs."
        ),
        "format": click.option(
            "--format", "output_format", type=click.Choice(FORMATS),
            help="Default: by the suffix of --output, or terminal.",
        ),
        "output": click.option("--output", metavar="FILE", help="Write the report to a file instead of stdout."),
    }  # fmt: skip

    def decorate(command: Command) -> Command:
        for name in reversed(chosen):
            command = known[name](command)
        return command

    return decorate


@click.group(invoke_without_command=True)
@_options("op", "shape", "attribute")
@plugins.option
@_options("against", "threads", "dtype", "rounds", "seed")
@click.option("--save", metavar="FILE", help="Write the JSON report there too, as a baseline for --compare.")
@click.option("--compare", metavar="FILE", help="Exit with 1 where a case is slower than in this baseline.")
@_options("format", "output")
@click.pass_context
def bench(context: click.Context, /, **options: Any) -> None:
    """Time forward and backward passes beside torch, JAX and NumPy, and beside what memory allows at least.

    Without a command: the speed of operations, as a user calls them. Every library runs in a process of its
    own, in interleaved rounds, after its results were found equal to ours.
    """
    if context.invoked_subcommand is None:
        _speed(context, **options)


def _speed(
    context: click.Context,
    operations: Sequence[str],
    shapes: Sequence[str],
    settings: Sequence[str],
    plugin_paths: Sequence[str],
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
    from tinygrad_bn.bench import baseline, report, speed

    destination = _Destination(output, output_format)
    saved = None if save is None else OutputFile(save)
    declared = [spec.name for plugin in plugins.opened(context, plugin_paths) for spec in plugin.operations]
    cases = _cases(operations or declared, shapes, settings, dtypes, seed)
    counts, peers = _threads(threads), _peers(against)
    if not cases:
        click.echo("Nothing to time: no operation here declares cases; pass --op and --shape.", err=True)
        context.exit(NOTHING_SELECTED)
    _fits(cases, len(peers) + 2)
    shared = {"rounds": rounds, "seed": seed}
    then: dict[str, Any] = {}
    if compare is not None:
        try:
            then = baseline.read(compare)
            baseline.check(compare, then, shared, report.machine())
        except baseline.Incomparable as problem:
            raise click.UsageError(f"--compare: {problem}") from None
    measurements, failures = _run(cases, peers, counts, speed.Settings(rounds), plugin_paths)
    made = report.speed_report(measurements, failures, seed, shared)
    destination.write(made, measurements)
    if saved is not None:
        saved.write(made.as_json())
    slower = False
    if compare is not None:
        slower = _compared(compare, then, made)
    context.exit(BROKEN if failures else SLOWER if slower else 0)


class _Destination:
    """Where a report goes, and in which format."""

    def __init__(self, output: str | None, output_format: str | None, picture: bool = True):
        self._file = OutputFile(output)
        suffix = self._file.format((*FORMATS, *SUFFIXES))
        self._format = output_format or SUFFIXES.get(suffix or "", suffix) or FORMATS[0]
        if self._format == "svg" and not picture:
            raise click.UsageError("--format: this command has no picture; choose terminal, json or markdown")

    def write(self, report: Report, measurements: Sequence[Measurement] = ()) -> None:
        if self._format == "svg":
            from tinygrad_bn.bench.picture import draw

            text = draw(measurements)
        else:
            makers = {"json": report.as_json, "markdown": report.as_markdown, "terminal": report.as_text}
            text = makers[self._format]()
        self._file.write(text)


def _cases(
    operations: Sequence[str],
    shapes: Sequence[str],
    settings: Sequence[str],
    dtypes: Sequence[str],
    seed: int,
) -> list[Case]:
    """What the options select. Raises click.UsageError for what no operation can run."""
    from tinygrad_bn import REGISTRY
    from tinygrad_bn.bench.cases import Case, declared

    if shapes and not operations:
        raise click.UsageError("--shape: of which operation? Pass --op NAME too")
    if settings and not shapes:
        raise click.UsageError("--attribute goes with --shape; the declared cases have their own")
    wanted = _separated(dtypes)
    for dtype in wanted:
        if dtype not in DTYPES:
            raise click.UsageError(f"--dtype is {dtype!r}, wanted {' or '.join(DTYPES)}")
    specs = [plugins.registered(name) for name in operations] or list(REGISTRY)
    found: list[Case] = []
    for dtype, spec in itertools.product(wanted, specs):
        if dtype not in spec.dtypes:
            raise click.UsageError(f"--dtype: {spec.name} serves {', '.join(spec.dtypes)}, not {dtype}")
        keywords = dict(map(setting, settings))
        typed = [
            Case(spec.name, arrays.lengths(text, least=1), keywords, dtype, seed)
            for text in dict.fromkeys(shapes)
        ]
        these = typed or list(declared(spec, dtype, seed))
        if operations and not these:
            raise click.UsageError(f"--op: {spec.name} declares no cases; say --shape 64,256, or another")
        for case in these:
            _check(case)
        found += these
    return found


def _check(case: Case) -> None:
    try:
        case.check()
    except (TypeError, ValueError, LookupError) as problem:
        way_out = "" if isinstance(problem, ValueError) else "; see --attribute, and `ops show`"
        raise click.UsageError(f"--shape: {case} cannot be called ({one_line(problem)}){way_out}") from None


def _fits(cases: Sequence[Case], processes: int) -> None:
    """Refuse what would not fit in memory: each process holds five arrays of the input's size, and more."""
    import os

    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for case in cases:
        needed = 6 * processes * case.nbytes
        if needed > memory:
            raise click.UsageError(
                f"--shape: {case} needs about {needed / 2**30:,.0f} GiB in {processes} processes, this machine has "
                f"{memory / 2**30:,.0f}; choose a smaller shape, or fewer libraries with --against"
            )


def _threads(given: Sequence[str]) -> list[int]:
    from tinygrad_bn.bench.pool import cores

    most = len(cores())
    counts = []
    for text in _separated(given) or ["1", str(most)]:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise click.UsageError(f"--threads is {text!r}, wanted 1 to {most}, the CPUs of this machine")
        counts.append(int(text))
    return list(dict.fromkeys(counts))


def _peers(given: Sequence[str]) -> list[str]:
    """The libraries to compare with. Raises click.UsageError for one that is unknown or absent."""
    from tinygrad_bn.bench.libraries import PEERS, absence

    names = _separated(given)
    for name in names:
        if name not in (*PEERS, "none"):
            raise click.UsageError(f"--against: no library {name!r}; known are {', '.join(PEERS)}, and none")
        if name != "none" and (why := absence(name)) is not None:
            raise click.UsageError(f"--against: {why}")
    if names:
        return [name for name in names if name != "none"]
    missing = {name: why for name in PEERS if (why := absence(name)) is not None}
    for why in dict.fromkeys(missing.values()):
        click.echo(f"left out: {why}", err=True)
    return [name for name in PEERS if name not in missing]


def _run(
    cases: Sequence[Case],
    peers: Sequence[str],
    threads: Sequence[int],
    settings: Any,
    plugin_paths: Sequence[str],
) -> tuple[list[Measurement], list[Failure]]:
    """Measure, and say so: a line for each case, and for each failure."""
    from tinygrad_bn.bench import report, speed

    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for found in speed.run(cases, peers, threads, settings, plugin_paths):
        if isinstance(found, speed.Failure):
            failures.append(found)
            click.echo(f"failed: {found}", err=True)
            continue
        measurements.append(found)
        peer = "" if found.ratio is None else f", {found.best_peer} takes {report.number(found.ratio)} × that"
        click.echo(
            f"{found.case} {found.case.dtype} {found.direction}, threads {found.threads}: "
            f"{report.number(found.ours.best * 1e3)} ms, {report.number(found.over_floor)} × the floor{peer}",
            err=True,
        )
    return measurements, failures


def _compared(path: str, then: dict[str, Any], made: Report) -> bool:
    """Say on stderr what has changed since; whether anything is slower."""
    from tinygrad_bn.bench import baseline

    try:
        found = baseline.changes(path, then, made.as_record())
    except baseline.Incomparable as problem:
        raise click.UsageError(f"--compare: {problem}") from None
    for change in found:
        if change.slower or change.faster:
            word = "slower" if change.slower else "faster"
            click.echo(
                f"{word}: {change.what}: {change.after:.2f} × the floor, {change.before:.2f} before; a factor "
                f"{change.factor:.2f}, noise explains {change.allowed:.2f}",
                err=True,
            )
    slower = [change for change in found if change.slower]
    click.echo(f"{len(found)} compared, {len(slower)} slower", err=True)
    return bool(slower)
