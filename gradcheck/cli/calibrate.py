"""`python cli.py calibrate`: how far the checker itself can be trusted, measured on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from gradcheck.axes import DTYPES
from gradcheck.cli import Group
from gradcheck.judge import Verdict

if TYPE_CHECKING:
    from gradcheck.calibration.alarms import Outcome, Sweep
    from gradcheck.calibration.coverage import Coverage

__all__ = ["calibrate"]

FAILED = 1
SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of everything drawn."
)
HEADER = "".join(f"{verdict!s:>14}" for verdict in Verdict)


@click.group(cls=Group)
def calibrate() -> None:
    """How far the checker itself can be trusted: false alarms, hard cases, the error bar, the cost."""


@calibrate.command()
@click.option(
    "--count", default=1000, show_default=True, type=click.IntRange(1), help="How many configurations."
)
@click.option("--dtype", default="float64", show_default=True, type=click.Choice(DTYPES))
@click.option("--stress/--no-stress", default=False, show_default=True, help="Make every one of them hard.")
@SEED
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option(
    "--only", metavar="NUMBER", type=click.IntRange(0), help="Only the configuration of this number."
)
@click.pass_context
def alarms(
    context: click.Context, count: int, dtype: str, stress: bool, seed: int, jobs: int, only: int | None
) -> None:
    """Check correct code in configurations drawn at random, and count what is said of it.

    Exit status 1: more false alarms, or more INCONCLUSIVE, than the checker promises.
    """
    from gradcheck.calibration.alarms import Sweep, bounds, is_alarm
    from gradcheck.calibration.rates import tally, upper_bound

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for `gradcheck`: small inputs, many threads
    sweep = Sweep(dtype, stress, seed)
    numbers = range(count) if only is None else range(only, only + 1)
    outcomes = list(_followed(sweep.run(numbers, jobs), len(numbers)))
    for outcome in outcomes:
        if outcome.verdict is not Verdict.PASS and (is_alarm(outcome) or only is not None):
            click.echo(
                f"{outcome.verdict}  {outcome.text}\n  {outcome.reason}\n  again: {_again(sweep, outcome)}"
            )
    click.echo(
        f"{len(outcomes):,} configurations, {dtype}{', stress' if stress else ''}; {_setting(seed, 'numpy')}"
    )
    click.echo(f"{'':<12}{HEADER}")
    for subject in ("numpy", "tinygrad_bn"):
        click.echo(f"{subject:<12}" + tally(each.verdict for each in outcomes if each.subject == subject))
    promised = bounds(sweep)
    accused = [each for each in outcomes if is_alarm(each)]
    undecided = [each for each in outcomes if each.verdict is Verdict.INCONCLUSIVE]
    questions = (
        ("false alarms", accused, promised.alarms),
        ("INCONCLUSIVE", undecided, promised.inconclusive),
    )
    for name, found, limit in questions:
        bound = upper_bound(len(found), len(outcomes))
        rate = len(found) / len(outcomes)
        click.echo(
            f"{name}: {len(found)} ({rate:.2%}), with 95 % confidence below {bound:.2%}; promised {limit:.2%}"
        )
    over = any(len(found) > limit * len(outcomes) for _, found, limit in questions)
    context.exit(FAILED if over else 0)


def _again(sweep: Sweep, outcome: Outcome) -> str:
    from gradcheck.cli import program

    what = f"--dtype {sweep.dtype}{' --stress' if sweep.stress else ''} --seed {sweep.seed}"
    return f"{program()} calibrate alarms {what} --only {outcome.number}"


def _followed(outcomes: Iterable[Outcome], count: int) -> Iterator[Outcome]:
    """With a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(
        outcomes, "checking correct code", count, console=console, transient=True, disable=hidden
    )


def _setting(seed: int, *packages: str) -> str:
    from gradcheck.calibration.rates import versions

    return f"seed {seed}, {versions(*packages)}"


@calibrate.command()
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(1), help="Draws of each case.")
@SEED
@click.pass_context
def controls(context: click.Context, seeds: int, seed: int) -> None:
    """Check hard but correct cases: kinks, noise, large means, constant rows. None may FAIL.

    Exit status 1: one was accused.
    """
    from gradcheck.calibration.controls import HARD_CASES, reports
    from gradcheck.calibration.rates import ALARMS, tally

    drawn = range(seed, seed + seeds)
    click.echo(f"{seeds} draws of each; {_setting(seed, 'numpy')}")
    click.echo(f"{'':<32}{HEADER}")
    accused = []
    for case in HARD_CASES:
        found = list(reports(case, drawn))
        click.echo(f"{case.name:<32}" + tally(report.verdict for report in found))
        bad = [report for report in found if report.verdict in ALARMS]
        accused += [f"{case.name}, seed {report.seed}: {report.reasons[0]}" for report in bad]
    for line in accused:
        click.echo(f"false alarm: {line}")
    context.exit(FAILED if accused else 0)


@calibrate.command()
@click.option(
    "--oracle",
    "oracles",
    multiple=True,
    type=click.Choice(("complex", "mpmath")),
    help="Exact derivatives by the complex step, or in 50 digits. Repeatable; default: both.",
)
@click.option("--seeds", default=20, show_default=True, type=click.IntRange(1), help="Draws of each regime.")
@SEED
def coverage(oracles: Sequence[str], seeds: int, seed: int) -> None:
    """Compare D ± e with exact derivatives: how often the bar holds, and how tight it is."""
    from gradcheck.calibration.coverage import Coverage, MissingError
    from gradcheck.calibration.coverage import coverage as measured

    for oracle in oracles or ("complex", "mpmath"):
        packages = ("numpy", "mpmath") if oracle == "mpmath" else ("numpy",)
        try:
            rows = list(measured(oracle, range(seed, seed + seeds)))
        except MissingError as missing:
            raise click.UsageError(f"{missing}; or choose --oracle complex") from None
        click.echo(f"against {oracle}; {seeds} draws of each regime; {_setting(seed, *packages)}")
        columns = ("numbers", "≤ e", "≤ 2e", "≤ 2e + τ", "worst/e", "e/error", "e/scale")
        click.echo(f"{'':<27}" + "".join(f"{column:>10}" for column in columns))
        for row in (*rows, Coverage.joined(rows, "all", "")):
            click.echo(_coverage_line(row))
        click.echo()


def _coverage_line(row: Coverage) -> str:
    fractions = (row.within(1), row.within(2), row.allowed)
    cells = [f"{row.error.size:,}", *(f"{fraction:.2%}" for fraction in fractions)]
    cells += [f"{row.worst:.2g}", f"{row.slack:.2g}", f"{row.resolution:.1e}"]
    return f"{row.operation + '  ' + row.regime:<27}" + "".join(f"{cell:>10}" for cell in cells)


@calibrate.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="Of each checker.")
@click.option(
    "--elements",
    "sizes",
    multiple=True,
    type=click.Choice((60, 240, 960, 3840)),
    help="Only this size. Repeatable.",
)
@SEED
@click.option(
    "--format",
    "output_format",
    default="terminal",
    show_default=True,
    type=click.Choice(("terminal", "json")),
)
def cost(rounds: int, sizes: Sequence[int], seed: int, output_format: str) -> None:
    """Time a float64 check of BatchNorm beside torch's own, and count the calls of the function."""
    from gradcheck.calibration.cost import SHAPES, TORCH_SLOW, costs, has_torch
    from gradcheck.calibration.rates import versions

    if not has_torch():
        click.echo(
            "torch is not installed: timing the NumPy pair alone. For the comparison: pip install torch",
            err=True,
        )
    packages = ("numpy", "torch") if has_torch() else ("numpy",)
    rows: list[dict[str, Any]] = []
    for elements in sizes or SHAPES:
        found = costs(elements, rounds, seed)
        slow = next((each for each in found if each.checker == TORCH_SLOW), None)
        for each in found:
            best, median = (each.best / slow.best, each.median / slow.median) if slow else (None, None)
            rows.append(dataclasses.asdict(each) | {"best_ratio": best, "median_ratio": median})
    if output_format == "json":
        report = {"schema_version": 1, "seed": seed, "versions": versions(*packages), "costs": rows}
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"BatchNorm, float64; {_setting(seed, *packages)}; ratios: to torch gradcheck, slow")
    columns = ("rounds", "best ms", "ratio", "median ms", "ratio", "forward", "backward")
    click.echo(f"{'elements':>8}  {'checker':<22}" + "".join(f"{column:>10}" for column in columns))
    for row in rows:
        times = (row["best"] * 1e3, row["best_ratio"], row["median"] * 1e3, row["median_ratio"])
        numbers = ("" if time is None else f"{time:.3f}" for time in times)
        cells = (
            row["rounds"],
            *numbers,
            row["forwards"],
            "" if row["backwards"] is None else row["backwards"],
        )
        click.echo(f"{row['elements']:>8}  {row['checker']:<22}" + "".join(f"{cell!s:>10}" for cell in cells))
