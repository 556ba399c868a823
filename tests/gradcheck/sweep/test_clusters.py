"""Sweeps on a Dask cluster, and over MPI ranks: real ones, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import troubles
from click.testing import CliRunner
from pages import blocks
from troubles import alive, figures, reasons, wait_until

from gradcheck.cli import cli
from gradcheck.sweep import read, run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def test_a_dask_cluster_gives_the_figures_of_this_process(cluster, tasks, here):
    with cluster.get_client() as client:
        assert figures(run(tasks, client.get_executor())) == here


def test_trouble_on_a_dask_cluster_costs_one_task_each(cluster, plugin):
    names = ["is killed", "good 0", "hangs", "good 1"]
    with cluster.get_client() as client:
        found = reasons(run(troubles.tasks(plugin, *names), client.get_executor(), timeout=3))
    assert found == {
        "is killed": ("worker was killed by SIGKILL",),
        "hangs": ("worker took longer than the timeout of 3 s and was killed",),
        "good 0": (),
        "good 1": (),
    }
    assert not alive(plugin)


def test_a_dask_worker_that_is_killed_loses_and_repeats_nothing(cluster, plugin):
    """The scheduler hands its task to another, where it hangs again, and is ended at the timeout."""
    psutil = pytest.importorskip("psutil", reason="distributed, which needs it, is not installed")

    def kill():
        psutil.Process(wait_until(lambda: alive(plugin))[0]).parent().kill()

    killer = threading.Thread(target=kill)
    killer.start()
    names = ["good 0", "hangs", "good 1", "good 2"]
    with cluster.get_client() as client:
        results = list(run(troubles.tasks(plugin, *names), client.get_executor(), timeout=3))
    killer.join()
    assert len(results) == 4
    assert reasons(results) == {
        "hangs": ("worker took longer than the timeout of 3 s and was killed",),
        **dict.fromkeys(["good 0", "good 1", "good 2"], ()),
    }
    assert len(list(plugin.parent.glob(f"{plugin.name}.*"))) > 1 and not alive(plugin)


def test_the_command_line_uses_a_dask_cluster(cluster, tasks, here, tmp_path):
    path = tmp_path / "sweep.jsonl"
    cases = [word for task in tasks for word in task.configuration.words]
    words = ["gradcheck", *cases, "--seed", "3", "--dask", cluster.scheduler_address, "--report", str(path)]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0 and f"{len(tasks)} configurations: " in result.stdout
    assert figures(read(path).results) == here


PROGRAM = """
import sys

import troubles
from mpi4py.futures import MPIPoolExecutor

from gradcheck import sweep
from gradcheck.axes import Configuration

if __name__ == "__main__":
    path, plugin, *cases = sys.argv[1:]
    tasks = [sweep.Task(Configuration.parse(case), seed=3) for case in cases]
    trouble = troubles.tasks(plugin, "is killed", "good 0", "hangs", "good 1")
    with MPIPoolExecutor() as executor, sweep.Lines(path, sweep.Header.of([*tasks, *trouble])) as lines:
        assert executor.num_workers == 1
        for result in sweep.run([*tasks, *trouble], executor, timeout=3):
            lines.write(result)
"""


@pytest.fixture
def over_mpi(tmp_path):
    """Run a program over two MPI ranks, in a folder of its own; it must print nothing, and end well."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpiexec = Path(sysconfig.get_path("scripts"), "mpiexec")
    if not mpiexec.exists():
        pytest.skip("the mpich wheel is not installed")

    def run(text, *words):
        (tmp_path / "over_mpi.py").write_text(text)
        done = subprocess.run(
            [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py.futures", "over_mpi.py", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "gradcheck")])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr

    return run


def test_the_program_of_the_page_runs_over_mpi(over_mpi, tmp_path):
    (program,) = (text for text in blocks("run-a-sweep-on-many-processes.md", "python") if "mpi4py" in text)
    over_mpi(program)
    found = read(tmp_path / "sweep.jsonl")
    assert found.complete and {result.configuration.operation for result in found.results} == {"rms_norm"}


def test_two_mpi_ranks_give_the_figures_of_this_process(tasks, here, plugin, tmp_path, over_mpi):
    path = tmp_path / "sweep.jsonl"
    over_mpi(PROGRAM, path, plugin, *(str(task.configuration) for task in tasks))
    found = read(path)
    assert found.complete
    assert figures(r for r in found.results if r.configuration in {t.configuration for t in tasks}) == here
    assert reasons(r for r in found.results if r.source) == {
        "is killed": ("worker was killed by SIGKILL",),
        "hangs": ("worker took longer than the timeout of 3 s and was killed",),
        "good 0": (),
        "good 1": (),
    }
    assert not alive(plugin)
