"""Where a report goes: stdout, or a file that is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

__all__ = ["OutputFile"]


class OutputFile:
    """The destination of a report; None is stdout. `option` is what error messages call it.

    Raises:
        click.UsageError: at once where the file could not be written, before any work is wasted.
    """

    def __init__(self, path: str | None, option: str = "--report") -> None:
        self._option = option
        self.path = None if path is None else Path(os.path.realpath(path))
        if self.path is None:
            return
        if os.path.isdir(self.path) or not path:  # of pathlib's, some raise on a name that is too long
            raise click.UsageError(f"{option}: {path or 'the empty path'} is a folder; name a file in it")
        folder = self.path.parent
        if not os.path.isdir(folder):
            raise click.UsageError(f"{option}: there is no folder {folder}; make it, or choose another path")
        try:
            if not self._replaceable:
                return
            if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
                raise PermissionError(0, "it is read-only")
            descriptor, probe = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}.")
            os.close(descriptor)
            os.unlink(probe)
        except OSError as error:
            raise self._unwritable(error) from None

    def format(self, known: Sequence[str]) -> str | None:
        """The format that the suffix names, or None."""
        suffix = "" if self.path is None else self.path.suffix.removeprefix(".").lower()
        return suffix if suffix in known else None

    def write(self, text: str) -> None:
        """Write everything, beside the file first, so that an interruption leaves the old one or none."""
        if self.path is None:
            click.echo(text)
            return
        try:
            if self._replaceable:
                self._replace(self.path, text + "\n")
            else:
                self.path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def _replaceable(self) -> bool:
        """Whether the path is or becomes an ordinary file: a device or a pipe must not be replaced by one."""
        assert self.path is not None
        return os.path.isfile(self.path) or not os.path.exists(self.path)

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def _unwritable(self, error: OSError) -> click.UsageError:
        return click.UsageError(
            f"{self._option}: {self.path} cannot be written ({error.strerror}); choose another path"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
