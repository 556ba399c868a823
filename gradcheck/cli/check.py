"""`python cli.py gradcheck`: check the gradients of operations, or of a function in a file of the user's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gradcheck import axes
from gradcheck.cli import arrays, executing, placing, plugins, program, reports, target
from gradcheck.cli.executing import Execution
from gradcheck.cli.reports import Reports
from gradcheck.cli.selection import Job, NothingSelected, Selection
from gradcheck.cli.streams import aside
from gradcheck.cli.sweeping import swept
from gradcheck.cli.target import Target
from gradcheck.judge import Verdict
from gradcheck.report.groups import Outcome
from gradcheck.sweep import SampleCase, Task

if TYPE_CHECKING:
    from tinygrad_bn.registry import OpSpec

__all__ = ["gradcheck"]

FAILED, NOTHING_SELECTED = 1, 4


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
    help=f"Only this operation: {', '.join(axes.OPERATIONS)}, or any that is registered. Repeatable.",
)
@plugins.option
@click.option("--rank", "ranks", multiple=True, type=int, help="Only inputs of this rank. Repeatable.")
@_only("--dtype", "dtypes", "dtype", target.DTYPES)
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
@target.options
@placing.option
@executing.options
@click.option(
    "--resume",
    metavar="FILE.jsonl",
    help="Go on with an interrupted sweep: run what has no result in the file, and add it.",
)
@click.option("--list", "only_list", is_flag=True, default=False, help="Print what would run, and stop.")
@reports.options
@click.pass_context
def gradcheck(
    context: click.Context,
    /,
    report_paths: tuple[str, ...],
    output_format: str | None,
    seed: int,
    **options: Any,
) -> None:
    """Check analytic gradients against numeric ones: of the built-in operations, over their axis
    configurations, of the operations of plugins, at their samples, or of a function in a file of yours.

    Each configuration is checked for itself: the kernel's gradient against the numeric derivative of its own
    forward pass, float32 against float64, the sequential and the parallel kernel against the definition and
    each other, and facts such as "the gradient sums to zero over the normalized axes". On another device than
    the CPU every kernel that serves is compared with the definition, and with itself in a second call.
    """
    of_target = {option.name: options.pop(option.name) for option in _of_target(context)}
    common = {name: options[name] for name in ("dtypes", "input_path")}
    if options["only_list"] and (report_paths or output_format):
        raise click.UsageError("--list prints names to stdout; leave --format and --report out")
    if of_target["text"] is None:
        _refuse_given(context, of_target, "is an option of --target FILE.py:FUNCTION; pass that too")
    else:
        _refuse_given(context, options.keys() - common, "does not go with --target; leave one of them out")
    wanted = Reports(
        report_paths, output_format
    )  # before the work, so that an unwritable path does not waste it
    if of_target["text"] is None:
        _sweep(context, wanted, seed, **options)
    else:
        _target(context, wanted, seed, Target(**of_target, **common))


def _target(context: click.Context, wanted: Reports, seed: int, target: Target) -> None:
    """Check one function; what is printed for people is its report, not a table with one row."""
    if wanted.lines:
        raise click.UsageError(f"--report: {wanted.lines[0]} is for sweeps; of a target write .json")
    report = target.check(seed)
    outcome = Outcome([target.result(report)], seed, report.seconds, planned=1)
    wanted.write(outcome, str(report))
    context.exit(0 if report.verdict is Verdict.PASS else FAILED)


def _of_target(context: click.Context) -> list[click.Parameter]:
    names = {field.name for field in dataclasses.fields(Target)} - {"dtypes", "input_path"}
    return [parameter for parameter in context.command.params if parameter.name in names]


def _refuse_given(context: click.Context, names: Collection[str], why: str) -> None:
    """Refuse the first of these options that was given."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in names:
            raise click.UsageError(f"{parameter.opts[0]} {why}")


def _sweep(
    context: click.Context,
    wanted: Reports,
    seed: int,
    only_list: bool,
    plugin_paths: tuple[str, ...],
    resume: str | None,
    device: str,
    **options: Any,
) -> None:
    execution = Execution(**{field.name: options.pop(field.name) for field in dataclasses.fields(Execution)})
    loaded = plugins.opened(context, plugin_paths)
    declared = tuple(spec for plugin in loaded for spec in plugin.operations)
    selection = Selection(**options, declared=declared, device=device)
    try:
        jobs = selection.jobs()
    except NothingSelected as why:
        click.echo(f"Nothing to check: {why}.", err=True)
        context.exit(NOTHING_SELECTED)
    if only_list:
        at_samples = [spec.name for spec in selection.registered]
        click.echo("\n".join([*(str(configuration) for configuration, _ in jobs), *at_samples]))
        others = f", {len(at_samples)} at samples" if at_samples else ""
        click.echo(f"{len(jobs)} configurations{others}", err=True)
        return
    placing.prepare(context, device)
    sources = {spec.name: ("--plugin", plugin.path) for plugin in loaded for spec in plugin.operations}
    operations = [(spec, sources.get(spec.name, ())) for spec in selection.registered]
    tasks = _tasks(jobs, operations, seed, device)
    start = time.perf_counter()
    found = swept(tasks, execution, wanted.lines, resume)
    outcome = Outcome(
        found.results,
        seed,
        time.perf_counter() - start,
        planned=found.planned,
        interrupted=found.status is not None,
    )
    wanted.write(outcome)
    if found.status is not None:
        click.echo(found.unfinished, err=True)
        context.exit(found.status)
    context.exit(0 if outcome.verdict is Verdict.PASS else FAILED)


def _tasks(
    jobs: Sequence[Job], operations: Sequence[tuple[OpSpec, tuple[str, ...]]], seed: int, device: str
) -> list[Task]:
    """A task for each configuration, and for each sample of the operations; none of them twice."""
    tasks = [
        Task(configuration, seed, () if batch is None else batch.source, program(), device)
        for configuration, batch in jobs
    ]
    if operations:
        from gradcheck.adapters.tinygrad_bn import cases

        for spec, source in operations:
            with aside():
                samples = [SampleCase(spec.name, case.name, case.dtype) for case in cases(spec, seed, device)]
            tasks += [Task(sample, seed, source, program(), device) for sample in samples]
    return list(dict.fromkeys(tasks))
