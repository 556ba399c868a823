"""Sweeps over executors of every kind: the same results, and a result for whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import get_context

import pytest
import troubles
from troubles import alive, figures, reasons, wait_until

from gradcheck.adapters.tinygrad_bn import cases
from gradcheck.judge import Verdict
from gradcheck.sweep import SampleCase, SweepStopped, Task, run, workers
from gradcheck.sweep.lines import source_fingerprint
from tinygrad_bn.registry import REGISTRY

GOOD = [f"good {number}" for number in range(4)]


@pytest.mark.parametrize("order", [1, -1])
def test_threads_give_the_figures_of_this_process_in_any_order(tasks, here, order):
    with ThreadPoolExecutor(2) as executor:
        assert figures(run(tasks[::order], executor)) == here


def test_a_pool_of_processes_gives_the_same_figures(tasks, here):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        assert figures(run(tasks, executor)) == here


def test_a_process_of_one_device_does_not_serve_another():
    """numba's simulator must be asked for when a process starts."""
    pytest.importorskip("greenlet", reason="greenlet is not installed")
    sample = SampleCase("math::exp", next(case.name for case in cases(REGISTRY.get("math::exp"))))
    tasks = [Task(sample, seed, device=device) for seed in (0, 1) for device in ("cpu", "cuda-sim")]
    with ThreadPoolExecutor(1) as executor:
        results = list(run(tasks, executor))
    assert {(result.seed, result.device) for result in results} == {(t.seed, t.device) for t in tasks}
    assert {result.verdict for result in results} == {Verdict.PASS}


def test_a_task_that_is_there_twice_is_carried_out_once(tasks):
    with ThreadPoolExecutor(1) as executor:
        assert len(list(run(tasks[:1] * 2, executor))) == 1


def test_whatever_a_worker_does_is_a_result_and_the_sweep_goes_on(plugin):
    bad = ["exits", "is killed", "hangs", "raises"]
    order = [name for pair in zip(bad, GOOD, strict=True) for name in pair]
    with ThreadPoolExecutor(2) as executor:
        results = list(run(troubles.tasks(plugin, *order), executor, timeout=3))
    assert reasons(results) == {
        "exits": ("worker ended with exit status 7",),
        "is killed": ("worker was killed by SIGKILL",),
        "hangs": ("worker took longer than the timeout of 3 s and was killed",),
        "raises": ("worker ended with exit status 1",),
        **dict.fromkeys(GOOD, ()),
    }
    for result in results:
        assert result.verdict is (Verdict.PASS if result.reasons == () else Verdict.ERROR)
        assert result.seed == 3 and result.source == ("--plugin", str(plugin))
    hung = next(result for result in results if "hangs" in str(result.configuration))
    assert 3 <= hung.seconds < 10
    assert not alive(plugin)


def test_a_worker_that_is_killed_from_outside_costs_one_task(plugin):
    def kill():
        os.kill(wait_until(lambda: alive(plugin))[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(1) as executor:
        found = reasons(run(troubles.tasks(plugin, "good 0", "hangs", "good 1"), executor))
    killer.join()
    assert found == {"good 0": (), "hangs": ("worker was killed by SIGKILL",), "good 1": ()}


def test_an_idle_worker_that_is_gone_costs_nothing(plugin, monkeypatch):
    monkeypatch.setattr(workers, "IDLE", 0.0)  # each ends after its task, at any time in or before the next
    with ThreadPoolExecutor(1) as executor:
        results = list(run(troubles.tasks(plugin, *GOOD), executor))
    assert [result.reasons for result in results] == [()] * 4


def test_a_worker_that_dies_between_two_tasks_costs_neither(plugin):
    first, second = (task.as_json() for task in troubles.tasks(plugin, "good 0", "good 1"))
    source = source_fingerprint()
    try:
        assert workers.carry_out(first, None, "sweep", source)["verdict"] == "PASS"
        workers._thread.worker._process.kill()
        assert workers.carry_out(second, None, "sweep", source)["verdict"] == "PASS"
    finally:
        workers.end_all("sweep")


def test_what_the_checked_code_prints_and_reads_is_not_taken_for_an_answer(plugin, capfd):
    with ThreadPoolExecutor(1) as executor:
        (result,) = run(troubles.tasks(plugin, "talks"), executor)
    assert result.verdict is Verdict.PASS
    streams = capfd.readouterr()
    assert "out loud\n''\n" in streams.err and streams.out == ""


def test_a_task_that_cannot_be_carried_out_says_why(plugin, tmp_path):
    (lost,) = troubles.tasks(tmp_path / "nowhere.py", "good 0")
    (unknown,) = troubles.tasks(plugin, "perfect")
    with ThreadPoolExecutor(1) as executor:
        results = {result.source: result for result in run([lost, unknown], executor)}
    (reason,) = results[lost.source].reasons
    assert reason.startswith("worker raised PluginError: --plugin: there is no file ")
    assert results[unknown.source].reasons == ("worker raised KeyError: 'perfect, numpy float64'",)


def test_leaving_a_sweep_ends_its_workers(plugin):
    with ThreadPoolExecutor(2) as executor:
        results = run(troubles.tasks(plugin, "good 0", "hangs", "good 1", "good 2"), executor)
        assert next(results).verdict is Verdict.PASS
        wait_until(lambda: alive(plugin))
        results.close()
        assert not alive(plugin)


class Broken(Executor):
    """Carries out as many tasks as it is told to; then something befalls it."""

    def __init__(self, count, error):
        self.left, self.error = count, error

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        self.left -= 1
        if self.left < 0:
            future.set_exception(self.error)
        else:
            future.set_result(function(*args, **kwargs))
        return future


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenExecutor("it is gone"), r"^BrokenExecutor: it is gone$"),
        (CancelledError(), r"^the executor cancelled what was left; has its scheduler ended\?$"),
    ],
    ids=str,
)
def test_a_broken_executor_stops_the_sweep(tasks, error, message):
    with pytest.raises(SweepStopped, match=message):
        list(run(tasks[:3], Broken(0, error)))


def test_what_an_executor_says_of_one_task_is_its_result(tasks):
    results = list(run(tasks[:2], Broken(1, ValueError("too heavy"))))
    assert sorted(result.reasons for result in results) == [(), ("worker was lost: ValueError: too heavy",)]


def test_workers_of_another_version_are_refused(tasks, monkeypatch):
    monkeypatch.setattr(workers, "source_fingerprint", lambda: "another")
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(SweepStopped, match="have another version of gradc"),
    ):
        list(run(tasks[:1], executor))


def test_a_worker_that_does_not_start_stops_the_sweep(tasks, monkeypatch, capfd):
    monkeypatch.setattr(workers, "PROGRAM", "gradcheck.nonsense")
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(SweepStopped, match="does not start: it ended with"),
    ):
        list(run(tasks[:1], executor))
    assert "No module named gradcheck.nonsense" in capfd.readouterr().err
