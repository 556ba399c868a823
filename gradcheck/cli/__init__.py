"""The command line: one file per command, imported when it is called."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gradcheck.cli import streams

__all__ = ["ARGUMENTS", "Group", "cli", "main", "program"]

# Where each command stands, and its line in `--help`, which so imports none of them.
COMMANDS = {
    "gradcheck": ("gradcheck.cli.check:gradcheck", "Check analytic gradients against numeric ones."),
    "fuzz": ("gradcheck.cli.fuzz:fuzz", "Draw configurations until one fails; print the smallest that does."),
    "calibrate": ("gradcheck.cli.calibrate:calibrate", "How far the checker can be trusted, measured."),
    "mutants": ("gradcheck.cli.mutants:mutants", "Grade the checker with gradients known to be wrong."),
    "bench": ("gradcheck.cli.bench:bench", "Time the operations beside torch, JAX and NumPy."),
    "doctor": ("gradcheck.cli.doctor:doctor", "What is installed here, what is missing, and how to mend it."),
    "ops": ("gradcheck.cli.ops:ops", "The operations: list them, show one, explain which kernel runs."),
}
INTERNAL_ERROR, INTERRUPTED = 3, 130

ARGUMENTS = "gradcheck.arguments"
"""Where a context keeps the words of the command line."""


def program() -> str:
    """How the program was called, for a command that can be pasted."""
    return "tgbn" if Path(sys.argv[0]).stem == "tgbn" else "python cli.py"


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Wrong usage in one line: click would print the usage of the command, known or not, above it."""
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(" ".join(error.format_message().split())) from None


class Group(click.Group):
    """A group of which a call without a command, or with another, is told the commands that there are."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command:
            raise click.UsageError(f"no command; wanted {self._known(context)}; --help says more")
        return super().parse_args(context, args)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(context, name) is None:
            close = difflib.get_close_matches(name, self.list_commands(context), n=1)
            hint = f"did you mean {close[0]}?" if close else f"wanted {self._known(context)}"
            raise click.UsageError(f"no command {name!r}; {hint}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # click would end each after 45 characters
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=200))
                    for name, command in sorted(self.commands.items())
                ]
            )

    def _known(self, context: click.Context) -> str:
        *others, last = self.list_commands(context)
        return f"{', '.join(others)} or {last}"


class _Lazy(Group):
    """A group whose commands are imported when they are called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = list(args)  # which parsing takes away
        with _one_line():
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = words
        return context

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            with _one_line():
                return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            context.exit(INTERRUPTED)


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import tinygrad_bn  # not by its metadata: a checkout need not be installed

        click.echo(tinygrad_bn.__version__)
        context.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def cli() -> None:
    """Fused normalization and dropout operations, and the proof that their gradients are right.

    Data goes to stdout, talk to stderr. Exit status: 0 all passed, 1 a check failed, 2 wrong usage,
    3 internal error or broken plugin, 4 nothing selected, 130 interrupted,
    141 nobody reads stdout.
    """


def main() -> None:
    """Run the command line; an unexpected exception is an internal error: traceback and exit status 3."""
    streams.guard()
    try:
        cli(prog_name=program())
    except Exception:
        traceback.print_exc()
        click.echo("This is a bug in the program, not in what you asked for.", err=True)
        sys.exit(INTERNAL_ERROR)
