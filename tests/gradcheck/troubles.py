"""A plugin whose kernel ends its process, hangs, or raises, at samples that say which; to test sweeps."""

from __future__ import annotations

import dataclasses
import os
import time

from gradcheck.sweep import SampleCase, Task

SOURCE = '''
import os
import signal
import sys

import numpy as np
from tinygrad_bn import Kernel, Sample, operation


class NumpyKernel:
    def forward(self, plan, x):
        match plan["trouble"]:
            case "exits":
                os._exit(7)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                open(plan["beside"] + str(os.getpid()), "w").close()
                while True:
                    pass
            case "raises":
                raise SystemExit("no more")
            case "talks":
                print("out loud")
                print(repr(sys.stdin.read()))
        return 2 * x, ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        return (2 * cotangent,)


kernel = NumpyKernel()


def samples(rng):
    beside = __file__ + "."
    for number in range(4):
        yield Sample(f"good {number}", (rng.normal(size=5),), {"trouble": "", "beside": beside})
    for trouble in ("exits", "is killed", "hangs", "raises", "talks"):
        yield Sample(trouble, (rng.normal(size=5),), {"trouble": trouble, "beside": beside})


kernels = (Kernel("numpy", "%(name)s:kernel", dtypes=("float64",)),)


@operation("%(name)s::double", kernels=kernels, samples=samples)
def double(xp, x, *, trouble, beside):
    """y = 2x."""
    return 2 * x, ()
'''

NAME = "troublesome"


def write(folder):
    """The plugin, in a folder."""
    path = folder / f"{NAME}.py"
    path.write_text(SOURCE % {"name": NAME})
    return path


def tasks(path, *samples):
    """The tasks at samples of the plugin."""
    cases = (SampleCase(f"{NAME}::double", f"{sample}, numpy float64") for sample in samples)
    return [Task(case, 3, ("--plugin", str(path))) for case in cases]


def alive(path):
    """The processes that have said that they hang, and still are there."""
    found = []
    for said in path.parent.glob(f"{path.name}.*"):
        pid = int(said.suffix[1:])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        found.append(pid)
    return found


def wait_until(condition, seconds=60):
    """Until the condition holds, and what it gives; a test that waits for what never comes fails."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return found


def reasons(results):
    """Those of each sample, by its name."""
    return {result.configuration.sample.partition(",")[0]: result.reasons for result in results}


def figures(results):
    """Everything in the results but the time that they took, in an order of its own."""
    return sorted(repr(dataclasses.replace(result, seconds=0.0)) for result in results)
