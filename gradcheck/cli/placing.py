"""`--device`: where the checked operations run."""

from __future__ import annotations

import os
import subprocess
import sys

import click

from gradcheck.cli import ARGUMENTS

__all__ = ["option", "prepare", "simulating"]

CPU, SIMULATOR, VARIABLE = "cpu", "cuda-sim", "NUMBA_ENABLE_CUDASIM"
AGAIN = "import sys; sys.argv[0] = {!r}; from gradcheck.cli import main; main()"


def _name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value == CPU:
        return value
    from tinygrad_bn import devices

    try:
        return devices.named(value)
    except ValueError as problem:
        raise click.UsageError(f"--device: {problem}") from None


option = click.option(
    "--device",
    default=CPU,
    show_default=True,
    metavar="NAME",
    callback=_name,
    help="Where the operations run: cpu, cuda, cuda:1 and so on, or cuda-sim, numba's simulator.",
)


def prepare(context: click.Context, device: str) -> None:
    """See to it that the device can be used here. Raises click.UsageError, which says why it cannot."""
    if device == CPU:
        return
    simulating(context, device)
    from tinygrad_bn import devices

    why = devices.problem(device)
    if why is not None:
        raise click.UsageError(f"--device {device}: {why}")


def simulating(context: click.Context, device: str) -> None:
    """Where the device is numba's simulator, tell numba. It must be told before it is loaded: if it is by
    now, the command runs in a process of its own, and this one ends with its exit status.
    """
    if device != SIMULATOR:
        return
    numba = sys.modules.get("numba")
    if numba is None:
        os.environ[VARIABLE] = "1"
    elif not numba.config.ENABLE_CUDASIM:
        context.exit(_anew(context.meta[ARGUMENTS]))


def _anew(arguments: list[str]) -> int:
    """The exit status of the same command in a process where numba is not loaded yet."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, VARIABLE: "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", AGAIN.format(sys.argv[0]), *arguments]
    return subprocess.run(command, env=environment, check=False).returncode
