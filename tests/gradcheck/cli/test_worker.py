"""Carrying out tasks: which kernels are loaded before, and what cannot be carried out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradcheck import axes
from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.axes import Configuration
from gradcheck.cli.worker import Performer
from gradcheck.judge import Verdict
from gradcheck.sweep import Task

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from gradcheck import configurations
from gradcheck.cli.worker import Performer
from gradcheck.judge import Verdict
from gradcheck.sweep import Task
from tinygrad_bn.kernels.cpu.jit import Driver

tasks = [Task(case) for case in configurations.covering(sys.argv[1])]
bare = (case for case in configurations.exhaustive(sys.argv[1]) if case.affine == "none")
alone = [Task(case) for case in bare if case.rank == 4 and case.groups in (1, case.shape[1])]
perform = Performer()
perform.prepare(tasks[0])

def late(self, dtype):
    raise AssertionError(f"{self._source.__module__}.{self._source.__name__} {dtype} was not loaded before")

Driver._load = late
for task in [*tasks[::8], *alone[::8]]:
    assert perform(task).verdict is Verdict.PASS, perform(task).reasons
"""


@pytest.mark.parametrize("operation", axes.OPERATIONS)
def test_every_kernel_that_an_operation_needs_is_loaded_before(operation):
    """Also those of operations that it is compared with: GroupNorm with one group is LayerNorm."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, operation],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_array_of_a_task_is_the_one_of_its_shape(tmp_path):
    path = tmp_path / "x.npz"
    rng = np.random.default_rng(0)
    np.savez(path, one=rng.normal(size=(4, 3)), other=rng.normal(size=(2, 5)))
    for name, shape in (("one", (4, 3)), ("other", (2, 5))):
        configuration = Configuration("rms_norm", shape, tail=1, values="given")
        result = Performer()(Task(configuration, source=("--input", str(path), "--array", name)))
        assert result.verdict is Verdict.PASS and f"--array {name}" in result.command


def test_memory_that_runs_out_is_a_result(monkeypatch):
    def check_configuration(*_):
        raise MemoryError

    monkeypatch.setattr(adapter, "check_configuration", check_configuration)
    result = Performer()(Task(Configuration("rms_norm", (3,), tail=1), program="tgbn"))
    assert result.verdict is Verdict.ERROR and result.command.startswith("tgbn gradcheck --case ")
    assert result.reasons == ("worker ran out of memory; choose a smaller shape",)
