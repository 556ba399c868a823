"""A Python file of the user's, loaded by its path."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gradcheck.cli.streams import aside

__all__ = ["Unloadable", "loaded", "one_line"]


class Unloadable(Exception):
    """A file that does not load. The message is one line; `trace` says where in the user's files it was."""

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


@contextlib.contextmanager
def loaded(path: str) -> Iterator[ModuleType]:
    """The module in a file. While it is in use, what it imports is looked for in its folder first.

    Raises:
        Unloadable: there is no such file, or running it raises.
    """
    file = Path(path).resolve()
    if not os.path.isfile(file):  # that of pathlib raises on a name that is too long
        raise Unloadable(f"there is no file {path}")
    if file.suffix != ".py":
        raise Unloadable(f"{path} is no Python module; wanted a file such as my_norm.py")
    if file.stem in sys.modules:
        if getattr(sys.modules[file.stem], "__file__", None) == str(file):
            yield sys.modules[file.stem]
            return
        raise Unloadable(f"{path} has the name of a module that is in use, {file.stem}; rename the file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # of a file that ends in .py there is always a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent))
    try:
        try:
            with aside():
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise Unloadable(f"{path} does not import: {one_line(error)}", _trace(error, file)) from None
        yield module
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the path itself
            sys.path.remove(str(file.parent))
        sys.modules.pop(file.stem, None)


def one_line(error: BaseException) -> str:
    """The exception as the last line of a traceback has it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _trace(error: BaseException, file: Path) -> str:
    """The part of the traceback that lies in the user's folder."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if Path(frame.filename).is_relative_to(file.parent)]
    return "".join(traceback.format_list(mine)).rstrip()
