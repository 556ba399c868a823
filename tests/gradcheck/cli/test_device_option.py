"""`--device`: where the checked operations run, what is said where they cannot, and that it is kept."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_gradcheck_command import pretend
from test_program import finish, start

from gradcheck.cli import placing
from gradcheck.judge import Verdict
from tinygrad_bn import devices

CASES = [f"layer_norm shape={n},5 tail=1" for n in (3, 4)]
WORDS = ("gradcheck", *(word for case in CASES for word in ("--case", case)))
EXP = ("gradcheck", "--op", "math::exp")


@pytest.fixture
def everywhere(monkeypatch):
    """Let every device be there, also the simulator in a process that has loaded numba without it."""
    monkeypatch.setattr(placing, "simulating", lambda context, device: None)
    monkeypatch.setattr(devices, "problem", lambda device: None)


# What is refused


@pytest.mark.parametrize("command", [EXP, ("ops", "explain", "math::exp")], ids=["gradcheck", "ops explain"])
def test_an_unknown_device_is_refused(refused, command):
    assert refused(*command, "--device", "gpu") == (
        "--device: device is 'gpu', wanted 'cpu', 'cuda' (the first GPU), 'cuda:1' (the second, and so on) "
        "or 'cuda-sim' (numba's simulator)"
    )


def test_a_device_that_is_not_there_is_told_in_one_line(refused, monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: "no GPU can be used (no driver)")
    assert refused(*EXP, "--device", "cuda") == "--device cuda: no GPU can be used (no driver)"


def test_a_target_runs_where_its_framework_puts_it(refused):
    words = ("gradcheck", "--target", "my.py:norm", "--shape", "3", "--device", "cuda")
    assert refused(*words).startswith("--device does not go with --target")


def test_what_would_run_is_listed_without_the_device(run, monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: "no driver")
    assert run(*WORDS, "--device", "cuda", "--list").stdout.splitlines() == CASES


# What is reported


def test_results_say_where_they_ran_and_repeat_there(run, everywhere, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.FAIL)
    found = run(*WORDS, "--device", "cuda:0", "--format", "json")
    assert found.exit_code == 1 and "2 configurations on cuda: 1 PASS, 1 FAIL in " in found.stderr
    entries = json.loads(found.stdout)["checks"]
    assert [entry["device"] for entry in entries] == ["cuda", "cuda"]
    for entry in entries:
        _, _, *words = shlex.split(entry["command"])
        assert words[:3] == ["gradcheck", "--device", "cuda"]
    pretend(monkeypatch, Verdict.FAIL)
    table = run(*words)
    assert (
        f"again: {entries[-1]['command']}\n" in table.stdout and "1 configuration on cuda: " in table.stdout
    )


def test_on_the_cpu_nothing_is_said_of_it(run, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.FAIL)
    assert "device" not in run(*WORDS).stdout
    pretend(monkeypatch, Verdict.PASS, Verdict.FAIL)
    entry = json.loads(run(*WORDS, "--format", "json", "--device", "cpu").stdout)["checks"][0]
    assert entry["device"] == "cpu" and "--device" not in entry["command"]


def test_a_sweep_is_resumed_on_its_device_alone(run, refused, everywhere, monkeypatch, tmp_path):
    path = tmp_path / "sweep.jsonl"
    pretend(monkeypatch, Verdict.PASS, KeyboardInterrupt())
    stopped = run(*WORDS, "--device", "cuda", "--report", path)
    assert stopped.exit_code == 130
    for other in ((), ("--device", "cuda-sim")):
        assert "is of another sweep" in refused(*WORDS, *other, "--resume", path)
    pretend(monkeypatch, Verdict.PASS)
    found = run(*WORDS, "--device", "cuda", "--resume", path)
    assert found.exit_code == 0 and "2 configurations on cuda: 2 PASS in " in found.stdout


# The simulator


def test_before_numba_is_loaded_the_simulator_is_switched_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    placing.simulating(None, "cuda-sim")
    assert os.environ["NUMBA_ENABLE_CUDASIM"] == "1"


def test_afterwards_the_command_runs_in_a_process_of_its_own(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(ENABLE_CUDASIM=0)))
    called = []

    def instead(command, env, check):
        called.append((command, env))
        return SimpleNamespace(returncode=4)

    monkeypatch.setattr(subprocess, "run", instead)
    words = (*EXP, "--seed", "7", "--device", "cuda-sim")
    assert run(*words).exit_code == 4
    ((python, _, program, *given), environment) = called[0]
    assert python == sys.executable and given == list(words) and "gradcheck.cli" in program
    assert environment["NUMBA_ENABLE_CUDASIM"] == "1"
    monkeypatch.setattr(sys.modules["numba"].config, "ENABLE_CUDASIM", 1)
    monkeypatch.setattr(devices, "problem", lambda device: None)
    assert run(*words, "--list").exit_code == 0 and len(called) == 1


def test_such_a_process_gives_what_the_program_gives():
    pytest.importorskip("greenlet", reason="greenlet is not installed")
    code = "import numba, sys; sys.argv = ['cli.py', *sys.argv[1:]]; from gradcheck.cli import main; main()"
    words = (*EXP, "--device", "cuda-sim", "--format", "json")
    anew = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    status, out, _ = finish(start(*words))
    entries, again = (json.loads(text)["checks"] for text in (anew.stdout, out))
    assert status == anew.returncode == 0
    assert [{**entry, "seconds": 0} for entry in entries] == [{**entry, "seconds": 0} for entry in again]
    assert {entry["device"] for entry in entries} == {"cuda-sim"}
    assert entries[0]["command"] == "python cli.py gradcheck --device cuda-sim --op math::exp --seed 0"


def test_the_processes_of_jobs_are_simulators_too():
    pytest.importorskip("greenlet", reason="greenlet is not installed")
    status, out, err = finish(start(*EXP, "--device", "cuda-sim", "--jobs", "2"))
    assert status == 0, out + err
    assert " configurations on cuda-sim: " in out


# The operations


def test_explain_takes_the_inputs_to_be_on_the_device(run, monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: "no GPU can be used (no driver)")
    lines = run("ops", "explain", "layer_norm", "--device", "cuda").stdout.splitlines()
    kernels = dict(line.split(None, 1) for line in lines[1:])
    assert kernels["tinygrad_bn.kernels.cpu.rows:parallel"] == "runs on cpu, the inputs are on cuda"
    on_cuda = [reason for target, reason in kernels.items() if ".cuda." in target]
    assert {*on_cuda, kernels["definition"]} == {"device cuda: no GPU can be used (no driver)"}
    assert len(on_cuda) > 1
    assert "device cuda: no GPU" in run("ops", "explain", "math::exp", "--device", "cuda").stdout


def test_show_tells_the_kernels_of_both_devices(run):
    kernels = run("ops", "show", "layer_norm").stdout
    assert "cuda resident: tinygrad_bn.kernels.cuda.rows:resident (" in kernels
    assert "rows view, up to a limit)" in kernels and "cpu sequential: " in kernels
