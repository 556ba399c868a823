"""What the options of `bench` mean: cases, libraries, threads, and where the report goes."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gradcheck.axes import DTYPES
from gradcheck.cli import arrays, plugins
from gradcheck.cli.loading import one_line
from gradcheck.cli.ops import setting
from gradcheck.cli.output import OutputFile

if TYPE_CHECKING:
    from tinygrad_bn.bench.cases import Case
    from tinygrad_bn.bench.figures import Measurement
    from tinygrad_bn.bench.report import Report
    from tinygrad_bn.registry import OpSpec

__all__ = ["BROKEN", "Destination", "options", "read_cases", "read_device", "read_peers", "read_threads"]

BROKEN = 3
SUFFIXES = {"txt": "terminal", "json": "json", "md": "markdown", "svg": "svg"}
ON_GPU = 2**25
"""Elements of a declared case on a GPU: 128 MiB of float32 exceed the second-level cache."""
HALVES = ("float16", "bfloat16")
COPIES = 6  # arrays of the input's size in each process: input, output, cotangent, gradient, and others

Command = Callable[..., None]
OPTIONS: dict[str, Callable[[Command], Command]] = {
    "op": click.option(
        "--op", "operations", multiple=True, metavar="NAME",
        help="Only this operation, any that is registered. Repeatable.",
    ),
    "shape": click.option(
        "--shape", "shapes", multiple=True, metavar="64,256",
        help="Shape of the first input of --op, instead of the declared cases. Repeatable.",
    ),
    "attribute": click.option(
        "--attribute", "keywords", multiple=True, metavar="NAME=VALUE",
        help="A keyword of the function at --shape, such as num_groups=4. Repeatable.",
    ),
    "plugin": plugins.option,
    "device": click.option(
        "--device", default="cpu", show_default=True, metavar="NAME",
        help="cpu, or cuda: the first GPU (cuda:1 is the second), timed by its events.",
    ),
    "graph": click.option(
        "--graph/--no-graph", default=False, show_default=True,
        help="On a GPU: replay the calls as CUDA graphs, which the host need not start one by one.",
    ),
    "against": click.option(
        "--against", "against", multiple=True, metavar="NAMES",
        help="torch, torch-compile, jax, numpy or none; on a GPU torch, torch-compile, liger or none; with "
        "commas, or repeated. Default: all installed.",
    ),
    "threads": click.option(
        "--threads", "threads", multiple=True, metavar="1,2",
        help="Default: 1, and as many as there are CPUs.",
    ),
    "dtype": click.option(
        "--dtype", "dtypes", multiple=True, metavar="NAMES", default=("float32",), show_default=True,
        help=f"{' or '.join(DTYPES)}, on a GPU also {' or '.join(HALVES)}; with commas, or repeated.",
    ),
    "rounds": click.option(
        "--rounds", default=12, show_default=True, type=click.IntRange(1), help="Turns of each library."
    ),
    "seed": click.option(
        "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of the inputs."
    ),
    "format": click.option(
        "--format", "output_format", type=click.Choice(list(SUFFIXES.values())),
        help="Default: by the suffix of --output, or terminal. svg: of the speed alone.",
    ),
    "output": click.option("--output", metavar="FILE", help="Write the report there instead of to stdout."),
}  # fmt: skip


def options(*names: str) -> Callable[[Command], Command]:
    """Options that several commands share."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate


class Destination:
    """Where a report goes, and in which format. Raises click.UsageError where it cannot be written."""

    def __init__(self, output: str | None, output_format: str | None, picture: bool = False):
        self._file = OutputFile(output, "--output")
        suffix = self._file.format(tuple(SUFFIXES))
        if output is not None and suffix is None and output_format is None:
            raise click.UsageError(
                f"--output: the suffix of {output} names no format ({', '.join(SUFFIXES)}); pass --format too"
            )
        self._format = output_format or SUFFIXES[suffix or "txt"]
        if self._format == "svg" and not picture:
            raise click.UsageError("--format: svg is for the speed alone; choose terminal, json or markdown")

    def write(self, report: Report, measurements: Sequence[Measurement] = ()) -> None:
        if self._format == "svg":
            from tinygrad_bn.bench.picture import draw

            self._file.write(draw(measurements))
            return
        makers = {"json": report.as_json, "markdown": report.as_markdown, "terminal": report.as_text}
        self._file.write(makers[self._format]())


def _separated(text: Iterable[str]) -> list[str]:
    """The values of a repeatable option, each of which may have commas."""
    return list(dict.fromkeys(part.strip() for each in text for part in each.split(",") if part.strip()))


def read_cases(
    operations: Sequence[str],
    shapes: Sequence[str],
    keywords: Sequence[str],
    dtypes: Sequence[str],
    seed: int,
    processes: int,
    device: str = "cpu",
) -> list[Case]:
    """The cases that are selected; without an operation, all that are declared. On a GPU those are enlarged.

    Raises click.UsageError for what no operation can run, and for what `processes` could not hold in memory.
    """
    from tinygrad_bn import REGISTRY
    from tinygrad_bn.bench.cases import Case, declared

    if shapes and not operations:
        raise click.UsageError("--shape: of which operation? Pass --op NAME too")
    if keywords and not shapes:
        raise click.UsageError("--attribute goes with --shape; the declared cases have their own")
    wanted = _read_dtypes(dtypes, device)
    named = [plugins.registered(name) for name in dict.fromkeys(operations)]
    lengths = [arrays.lengths(text, least=1) for text in dict.fromkeys(shapes)]
    attributes = dict(map(setting, keywords))
    found: list[Case] = []
    for dtype, spec in itertools.product(wanted, named or REGISTRY):
        served = _served(spec, device)
        if named and dtype not in served:
            raise click.UsageError(f"--dtype: {spec.name} serves {', '.join(served)}, not {dtype}")
        typed = [Case(spec.name, shape, attributes, dtype, seed) for shape in lengths]
        these = typed or list(declared(spec, dtype, seed))
        if device != "cpu":
            sized = these if typed else [case.of_size(ON_GPU) for case in these]
            these = [replace(case, device=device) for case in sized]
        if named and not these:
            raise click.UsageError(f"--op: {spec.name} declares no cases; pass --shape 64,256, or any other")
        for case in these:
            _check(case, processes)
        found += these
    return found


def _read_dtypes(given: Sequence[str], device: str) -> list[str]:
    known = DTYPES if device == "cpu" else (*DTYPES, *HALVES)
    wanted = _separated(given)
    for dtype in wanted:
        if dtype not in known:
            on = "" if device == "cpu" else f" on {device}"
            raise click.UsageError(f"--dtype is {dtype!r}, wanted {' or '.join(known)}{on}")
    if "bfloat16" in wanted:
        try:
            importlib.import_module("ml_dtypes")  # gives it to NumPy
        except ModuleNotFoundError:
            raise click.UsageError(
                "--dtype: bfloat16 needs ml_dtypes, which is not installed; pip install ml-dtypes"
            ) from None
    return wanted


def _served(spec: OpSpec, device: str) -> list[str]:
    """The dtypes of an operation on a device: those of its kernels there come on top."""
    if device == "cpu":
        return list(spec.dtypes)
    there = [name for kernel in spec.kernels if kernel.device != "cpu" for name in kernel.dtypes]
    return list(dict.fromkeys((*spec.dtypes, *there)))


def _check(case: Case, processes: int) -> None:
    if hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed = COPIES * processes * case.nbytes
        if needed > memory:
            raise click.UsageError(
                f"--shape: {case} needs about {needed / 2**30:,.0f} GiB in {processes} processes, this "
                f"machine has {memory / 2**30:,.0f}; choose a smaller one, or fewer libraries with --against"
            )
    try:
        case.check()
    except (TypeError, ValueError, LookupError) as problem:
        see = "; see --attribute" if isinstance(problem, TypeError) else ""
        raise click.UsageError(f"--shape: {case} cannot be called: {one_line(problem)}{see}") from None


def read_device(name: str, threads: Sequence[str] = (), graph: bool = False) -> str:
    """The device of that name. Raises click.UsageError where it cannot be used, or an option contradicts."""
    from tinygrad_bn import devices

    try:
        device = devices.named(name)
    except ValueError:
        device = ""
    if device in ("", devices.SIMULATOR):
        what = "the times of a simulator say nothing; " if device else ""
        raise click.UsageError(f"--device is {name!r}: {what}wanted cpu, cuda (the first GPU), cuda:1, …")
    if device == devices.CPU:
        if graph:
            raise click.UsageError("--graph replays CUDA graphs; pass --device cuda too")
        return device
    if threads:
        raise click.UsageError(f"--threads is of the CPU; leave it out with --device {device}")
    if (why := devices.problem(device)) is not None:
        raise click.UsageError(f"--device {device}: {why}")
    return device


def read_threads(given: Sequence[str]) -> list[int]:
    """The numbers of threads, one after the other."""
    from tinygrad_bn.bench.pool import cores

    most = len(cores())
    texts = _separated(given) or ["1", str(most)]
    for text in texts:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise click.UsageError(f"--threads is {text!r}, wanted 1 to {most}, the CPUs that may be used")
    return list(dict.fromkeys(map(int, texts)))


def read_peers(given: Sequence[str], device: str = "cpu") -> list[str]:
    """The libraries to compare with. Raises click.UsageError for one that is unknown or absent."""
    from tinygrad_bn.bench.libraries import absence, peers

    known, names = peers(device), _separated(given)
    for name in names:
        if name not in (*known, "none"):
            on = "" if device == "cpu" else f" on {device}"
            raise click.UsageError(
                f"--against: no library {name!r}{on}; known are {', '.join(known)}, and none"
            )
        if name != "none" and (why := absence(name, device)) is not None:
            raise click.UsageError(f"--against: {why}")
    others = [name for name in names if name != "none"]
    if others and "none" in names:
        raise click.UsageError(f"--against: none is given beside {others[0]}; leave one of them out")
    if names:
        return others
    absent = {name: why for name in known if (why := absence(name, device)) is not None}
    for why in dict.fromkeys(absent.values()):
        click.echo(f"left out: {why}", err=True)
    return [name for name in known if name not in absent]
