"""Each probe runs in a process of its own, `python -m gradcheck.cli.doctor.probe NAME`, which prints what it
found as JSON: a library that crashes, hangs or ends the process is a finding like any other.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass

__all__ = ["PROBES", "Finding", "Probe", "absent", "examine", "ok", "wrong"]

PATIENCE = 60.0
"""Seconds. Importing torch or waking a driver takes some; hanging takes longer."""


@dataclass(frozen=True)
class Finding:
    """status: ok, absent (what is optional and not there) or wrong. mend: one command, or nothing."""

    status: str
    text: str
    mend: str = ""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def absent(text: str, mend: str = "") -> Finding:
    return Finding("absent", text, mend)


def wrong(text: str, mend: str) -> Finding:
    return Finding("wrong", text, mend)


@dataclass(frozen=True)
class Probe:
    """The function `module:name` beside this file, and the devices that need what it looks for."""

    target: str
    serves: tuple[str, ...] = ()


EVERYWHERE = ("cpu", "cuda", "cuda-sim")
PROBES = {
    "Python": Probe("cpu:interpreter", EVERYWHERE),
    "NumPy": Probe("cpu:numpy_release", EVERYWHERE),
    "numba": Probe("cpu:numba_release", EVERYWHERE),
    "threading layer": Probe("cpu:threading_layer", ("cpu",)),
    "kernel cache": Probe("cpu:kernel_cache", ("cpu",)),
    "simulator": Probe("gpu:simulator", ("cuda-sim",)),
    "driver": Probe("gpu:driver", ("cuda",)),
    "device": Probe("gpu:device", ("cuda",)),
    "numba-cuda": Probe("gpu:numba_cuda", ("cuda",)),
    "bindings": Probe("gpu:bindings", ("cuda",)),
    "toolkit": Probe("gpu:toolkit", ("cuda",)),
    "ptxas": Probe("gpu:ptxas"),
    "CuPy": Probe("gpu:cupy", ("cuda",)),
    "torch": Probe("others:torch"),
    "JAX": Probe("others:jax"),
}


def examine(name: str) -> Finding:
    """Run a probe in a process of its own."""
    command = [sys.executable, "-m", __name__, name]
    again = shlex.join(["python", "-m", __name__, name])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return wrong(f"no answer within {PATIENCE:.0f} s; this shows more:", again)
    if done.returncode == 0:
        return Finding(**json.loads(done.stdout.splitlines()[-1]))
    code = done.returncode
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return wrong(f"looking for it {how}" + (f": {lines[-1]}" if lines else "") + "; this shows more:", again)


def main() -> None:
    module, _, function = PROBES[sys.argv[1]].target.partition(":")
    found = getattr(importlib.import_module(f"gradcheck.cli.doctor.{module}"), function)()
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
