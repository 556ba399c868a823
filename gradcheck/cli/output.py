"""Where a report goes: stdout, or a file that is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

__all__ = ["OutputFile"]


class OutputFile:
    """The destination of a report; None is stdout. Raises click.UsageError at once where the file could not be written."""

    def __init__(self, path: str | None):
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        if self.path.is_dir():
            raise click.UsageError(f"--output: {path} is a folder, wanted a file")
        if not self.path.parent.is_dir():
            raise click.UsageError(f"--output: there is no folder {self.path.parent} to write {self.path.name} in")
        target = self.path if self.path.exists() else self.path.parent
        if not os.access(target, os.W_OK) or not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise click.UsageError(f"--output: {path} cannot be written: no permission; choose another path")

    def format(self, known: Sequence[str]) -> str | None:
        """The format that the suffix names, or None."""
        suffix = "" if self.path is None else self.path.suffix.removeprefix(".")
        return suffix if suffix in known else None

    def write(self, text: str) -> None:
        """Write everything, beside the file first, so that an interruption leaves the old one or none."""
        if self.path is None:
            click.echo(text)
            return
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(name, 0o666 & ~mask)
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise click.UsageError(f"--output: {self.path} cannot be written: {error.strerror}") from None
