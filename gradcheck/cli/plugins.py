"""Operations from outside: of a plugin file, or of an installed package; each is checked at its samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import click

from gradcheck.cli.loading import Unloadable, loaded, one_line
from gradcheck.cli.streams import aside

if TYPE_CHECKING:
    from tinygrad_bn.registry import OpSpec

__all__ = ["PLUGIN_ERROR", "Plugin", "PluginError", "opened", "opening", "option", "registered"]

PLUGIN_ERROR = 3


class PluginError(click.ClickException):
    """A plugin that does not load: one line, and the exit status of an internal error."""

    exit_code = PLUGIN_ERROR


@dataclass(frozen=True)
class Plugin:
    """A file that was loaded, and the operations that it declared."""

    path: str
    operations: tuple[OpSpec, ...]


option = click.option(
    "--plugin",
    "plugin_paths",
    multiple=True,
    metavar="FILE",
    help="The operations that this Python file declares. Repeatable.",
)


def opened(context: click.Context, paths: Sequence[str]) -> list[Plugin]:
    """Load plugin files for as long as the command runs. Raises PluginError."""
    return [context.with_resource(opening(path)) for path in dict.fromkeys(paths)]


@contextlib.contextmanager
def opening(path: str) -> Iterator[Plugin]:
    """Load a plugin file for as long as it is in use. Raises PluginError."""
    from tinygrad_bn import REGISTRY

    before = {spec.name: spec for spec in REGISTRY}
    with contextlib.ExitStack() as stack:
        try:
            module = stack.enter_context(loaded(path))
            _declare(module)
        except Unloadable as problem:
            if problem.trace:
                click.echo(problem.trace, err=True)
            raise PluginError(f"--plugin: {problem}") from None
        except Exception as error:
            raise PluginError(f"--plugin: {path}: declare(registry) raised {one_line(error)}") from None
        # An installed package may have declared them already, from the same file.
        specs: list[OpSpec] = list(REGISTRY)
        declared = tuple(
            spec
            for spec in specs
            if before.get(spec.name) is not spec or spec.definition.__module__ == module.__name__
        )
        if not declared:
            raise PluginError(
                f"--plugin: {path} declares no operation; use @operation in it, or define declare(registry)"
            )
        yield Plugin(path, declared)


def _declare(module: ModuleType) -> None:
    """Call the function that an entry point would name, where the file has one."""
    from tinygrad_bn import REGISTRY

    declare = getattr(module, "declare", None)
    if callable(declare):
        with aside():
            declare(REGISTRY)


def registered(name: str) -> OpSpec:
    """The registered operation of that name. Raises click.UsageError, or PluginError."""
    from tinygrad_bn import REGISTRY
    from tinygrad_bn.registry import RegistryError

    try:
        return REGISTRY.get(name)
    except RegistryError as problem:
        broken = name.partition("::")[0] in {plugin.namespace for plugin in REGISTRY.broken}
        kind = PluginError if broken else click.UsageError
        raise kind(f"--op: {problem}") from None
