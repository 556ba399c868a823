"""`bench` from end to end, on tiny shapes; no time is asserted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradcheck.cli import cli
from tinygrad_bn import REGISTRY, registry

ROOT = Path(__file__).parents[3]
QUICK = ("--against", "numpy", "--threads", "1", "--rounds", "1")
LAYER_NORM = ("--op", "layer_norm", "--shape", "3,4", *QUICK)
COMMON = '''
import os, signal, sys
import numpy as np
from tinygrad_bn import BenchCase, Kernel, Sample, operation

class Double:
    def forward(self, plan, x):
        if x.shape[0] == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return x * FACTOR, ()
    def vjp(self, plan, needs, cotangent, arrays, aux):
        return (cotangent * 2,)

double = Double()

@operation(
    "NAME::double", kernels=(Kernel("numpy", __name__ + ":double"),), keeps=((),),
    bench_cases=(BenchCase((2, 3)),), samples=lambda rng: [Sample("some", (rng.normal(size=3),))],
)
def definition(xp, x):
    """y = 2 x"""
    return x * 2, ()
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file with an operation of a third party, whose kernel multiplies by `factor`; it dies at 13 rows.

    The registry forgets it after the test.
    """
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_specs", dict(REGISTRY._specs))

    def write(name, factor):
        path = tmp_path / f"{name}.py"
        path.write_text(COMMON.replace("NAME", name).replace("FACTOR", str(factor)))
        return str(path)

    yield write
    registry._resolve.cache_clear()


def test_a_bench_as_json(run):
    result = run("bench", *LAYER_NORM, "--format", "json", "--threads", "1", "--dtype", "float32,float64")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    found = [(c["operation"], c["dtype"], c["direction"], c["threads"]) for c in record["cases"]]
    assert found == [
        ("norm::layer_norm", dtype, direction, 1)
        for dtype in ("float32", "float64")
        for direction in ("forward", "backward")
    ]
    for case in record["cases"]:
        assert list(case["peers"]) == ["numpy"] and case["best_peer"] == "numpy"
        assert 0 < case["ours"]["best"] <= case["ours"]["median"] and case["floor"]["best"] > 0
        assert case["ratio"] == case["peers"]["numpy"]["best"] / case["ours"]["best"]
    lines = result.stderr.splitlines()
    assert len(lines) == 4 and lines[0].startswith("layer_norm 3,4 float32 forward, 1 thread: ")


@pytest.mark.parametrize(
    ("suffix", "start"), [("md", "**forward"), ("svg", "<svg"), ("txt", "forward, float32")]
)
def test_the_suffix_chooses_the_format(run, tmp_path, suffix, start):
    path = tmp_path / f"report.{suffix}"
    result = run("bench", *LAYER_NORM, "--output", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert path.read_text().startswith(start)


def test_an_operation_of_a_third_party_is_timed_beside_its_definition(run, plugin):
    result = run("bench", "--plugin", plugin("third", 2), *QUICK)
    assert result.exit_code == 0, result.output
    assert "double 2,3" in result.stdout and "numpy" in result.stdout


def test_a_peer_that_disagrees_is_reported_and_never_timed(run, plugin):
    result = run("bench", "--plugin", plugin("wrong", 3), *QUICK, "--format", "json")
    assert result.exit_code == 3
    assert "failed: numpy: double 2,3, float32, 1 thread: AssertionError: the output differs" in result.stderr
    record = json.loads(result.stdout)
    assert [case["peers"] for case in record["cases"]] == [{}, {}]
    (failure,) = record["failures"]
    assert (failure["library"], failure["operation"], failure["shape"]) == ("numpy", "wrong::double", [2, 3])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_case_whose_process_dies_is_reported_and_the_rest_goes_on(run, plugin):
    path = plugin("mortal", 2)
    shapes = ("--shape", "13,2", "--shape", "4,2")
    result = run("bench", "--plugin", path, "--op", "mortal::double", *shapes, *QUICK)
    assert result.exit_code == 3
    assert (
        "failed: tinygrad_bn: double 13,2, float32, 1 thread: its process ended by SIGKILL" in result.stderr
    )
    assert "double 4,2" in result.stdout and "double 13,2" not in result.stdout


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The words of a run of tiny cases, and what it saved."""
    path = tmp_path_factory.mktemp("bench") / "baseline.json"
    words = (*LAYER_NORM[:-1], "5")
    done = CliRunner().invoke(cli, ["bench", *words, "--save", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return words, path.read_text()


@pytest.fixture
def saved(baseline, tmp_path):
    """A baseline of tiny cases, with a function that changes it, and the words of the run."""
    words, text = baseline
    path = tmp_path / "baseline.json"
    path.write_text(text)

    def change(edit):
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))

    return path, change, words


def test_compare_fails_where_a_case_is_slower_and_only_there(run, saved):
    path, change, words = saved

    def scale(factor):
        def edit(record):
            for case in record["cases"]:
                case["over_floor"] *= factor

        return edit

    change(scale(1e6))
    faster = run("bench", *words, "--compare", path)
    assert faster.exit_code == 0 and "2 compared, 0 slower" in faster.stderr
    assert faster.stderr.count("faster: layer_norm 3,4") == 2
    change(scale(1e-12))
    slower = run("bench", *words, "--compare", path)
    assert slower.exit_code == 1 and "2 compared, 2 slower" in slower.stderr
    assert "slower: layer_norm 3,4 float32 forward, 1 thread: " in slower.stderr


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(schema_version=99), "has schema version 99, this is 2; save it anew"),
        (lambda r: r.update(kind="tape"), "is no report of the speed; write one with --save"),
        (lambda r: r.update(seed=8), "was measured with seed 8, this run has 0"),
        (lambda r: r["settings"].update(rounds=7), "was measured with rounds 7, this run has 5"),
        (lambda r: r["machine"].update(processor="abacus"), "was measured with processor abacus"),
        (lambda r: r["cases"].pop(), "has no layer_norm 3,4 float32 backward, 1 thread; save it anew"),
    ],
    ids=["schema", "kind", "seed", "settings", "machine", "case"],
)
def test_a_baseline_of_something_else_is_refused(saved, refused, edit, message):
    path, change, words = saved
    change(edit)
    assert message in refused("bench", *words, "--compare", path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--against", "tourch"),
            "--against: no library 'tourch'; known are torch, torch-compile, jax, numpy",
        ),
        (("--against", "none,numpy"), "--against: none is given beside numpy; leave one of them out"),
        (("--shape", "3,4"), "--shape: of which operation? Pass --op NAME too"),
        (("--op", "layer_nrm"), "no operation 'layer_nrm'; did you mean layer_norm"),
        (("--op", "batch_norm", "--shape", "5"), "--shape: batch_norm 5 cannot be called: ValueError"),
        (("--op", "group_norm", "--shape", "4,6"), "missing 1 required positional argument: 'num_groups'"),
        (("--op", "getitem", "--shape", "4,6"), "missing 1 required positional argument: 'key'"),
        (("--op", "sum", "--shape", "4,6", "--attribute", "axis=7"), "axis 7 is out of bounds"),
        (("--op", "layer_norm", "--shape", "9000000,9000000"), "GiB in 3 processes, this machine has"),
        (("--op", "layer_norm", "--shape", "3,x"), "--shape is '3,x', wanted lengths such as 4,3,5"),
        (("--attribute", "num_groups=2"), "--attribute goes with --shape"),
        (("--op", "exp"), "--op: math::exp declares no cases; pass --shape"),
        (("--threads", "1,1000"), "--threads is '1000', wanted 1 to "),
        (("--threads", "many"), "--threads is 'many', wanted 1 to "),
        (("--dtype", "float16"), "--dtype is 'float16', wanted"),
        (("--output", "/nowhere/at/all.json"), "--output: there is no folder /nowhere/at"),
        (("--output", "times.xlsx"), "names no format (txt, json, md, svg); pass --format too"),
        (("--save", "/nowhere/at/all.json"), "--save: there is no folder /nowhere/at"),
        (("--compare", "/nowhere.json"), "--compare: /nowhere.json cannot be read"),
        (("--save", "x.json", "--rounds", "2"), "--rounds: a baseline needs 5 or more"),
        (("--op", "layer_norm", "memory"), "--op stands before memory, which has options of its own"),
        (("memory", "--format", "svg"), "--format: svg is for the speed alone"),
        (("accuracy", "--op", "exp"), "--op: no accuracy is measured of math::exp"),
        (("growth", "--op", "rms_norm", "--elements", "9"), "--elements: 9 is too few for norm::rms_norm"),
    ],
)
def test_bad_input_is_one_line(refused, words, message):
    against = (
        ()
        if "--against" in words or words[-1] == "memory" or words[0] in ("memory", "accuracy", "growth")
        else ("--against", "numpy")
    )
    assert message in refused("bench", *against, *words)


def test_an_absent_library_is_named_with_its_command(refused, monkeypatch):
    from tinygrad_bn.bench import libraries

    monkeypatch.setitem(libraries.LIBRARIES, "jax", ("jax:Jax", "no_such_package"))
    message = refused("bench", "--against", "jax")
    assert message == "--against: no_such_package is not installed; pip install no_such_package"


def test_memory_is_that_of_the_statistics(run):
    result = run("bench", "memory", "--op", "layer_norm", "--shape", "100,100", "--format", "json")
    assert result.exit_code == 0, result.output
    (case,) = json.loads(result.stdout)["cases"]
    assert case["input"] == 40_000
    assert case["saved"] == 3 * 8 * 100  # the mean, the variance and 1 / deviation of each row, in float64
    assert case["saved"] <= case["forward"] < 20_000


def test_tape_growth_accuracy_and_startup_give_a_row_each(run, monkeypatch):
    from tinygrad_bn.bench import accuracy, cases

    monkeypatch.setattr(cases, "SMALL", ("math::add", "norm::rms_norm"))
    monkeypatch.setattr(accuracy, "SHAPES", (("norm::rms_norm", (3, 5), None, {}),))
    result = run("bench", "tape", "--against", "numpy", "--rounds", "1", "--format", "json")
    assert [c["operation"] for c in json.loads(result.stdout)["cases"]] == ["math::add"] * 2 + [
        "norm::rms_norm"
    ] * 2
    words = (
        "--op",
        "rms_norm",
        "--elements",
        "2048",
        "--elements",
        "4096",
        "--threads",
        "1",
        "--rounds",
        "1",
    )
    result = run("bench", "growth", *words, "--format", "json")
    assert [c["shape"] for c in json.loads(result.stdout)["cases"]] == [[2, 1024]] * 2 + [[4, 1024]] * 2
    result = run("bench", "accuracy", "--against", "none", "--format", "json")
    errors = json.loads(result.stdout)["errors"]
    assert [(e["mean"], e["result"]) for e in errors[:2]] == [(0, "output"), (0, "gradient of input")]
    assert len(errors) == 8 and all(0 <= each["tinygrad_bn"] < 10 for each in errors)
    result = run("bench", "accuracy", "--against", "none", "--format", "markdown")
    header, _, *rows = [line.split("|")[1:-1] for line in result.stdout.splitlines() if line.startswith("|")]
    wanted = ["", "mean", "output", *(f"gradient of {name}" for name in ("input", "weight", "bias"))]
    assert [cell.strip() for cell in header] == wanted
    assert [row[1].strip() for row in rows] == ["0", "10,000"] and all(map(float, rows[1][2:]))
    result = run("bench", "startup", "--rounds", "1")
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == ["--help", "import"]


def test_startup_is_that_of_modules_that_are_bytecode(monkeypatch):
    """Compiling the sources takes longer than all the rest; an installation has done so."""
    from tinygrad_bn.bench import startup

    seen = []

    def run(program, *words, PYTHONPYCACHEPREFIX, PYTHONDONTWRITEBYTECODE):  # noqa: N803 -- their names
        assert PYTHONDONTWRITEBYTECODE == ""
        seen.append(PYTHONPYCACHEPREFIX)
        seconds = 1.0 if len(seen) > 2 else 9.0  # the first of each compiles
        return f"{seconds} {seconds}"

    monkeypatch.setattr(startup, "_run", run)
    found = startup.start_times(3)
    assert len(seen) == 8 and len(set(seen)) == 1
    assert [start.processor.best for start in found] == [1.0, 1.0]
    assert max(found[1].wall.seconds) == 1.0 and len(found[1].wall.seconds) == 3


def test_compile_times_a_new_process_with_an_empty_cache_and_one_with_a_full_one(run, monkeypatch):
    from tinygrad_bn.bench import startup
    from tinygrad_bn.bench.cases import Case

    found = startup.compilation([Case("math::exp", (10, 10))], 1)  # which has nothing to compile
    assert found.what == "math::exp" and min(found.cold, found.warm) > 0 and found.variants == 0
    given = []
    known = startup.Compilation("norm::rms_norm", 2.0, 1.0, 7)
    monkeypatch.setattr(startup, "compilation", lambda cases, threads: given.append(cases) or known)
    result = run("bench", "compile", "--op", "rms_norm", "--no-sweep", "--format", "json")
    expected = {"what": "norm::rms_norm", "cold": 2.0, "warm": 1.0, "variants": 7}
    assert json.loads(result.stdout)["compilations"] == [expected]
    assert [str(case) for case in given[0]] == ["rms_norm 4096,1024"]


@pytest.mark.parametrize("library", ["torch", "torch-compile", "jax"])
def test_a_peer_in_a_process_of_its_own(run, library):
    from tinygrad_bn.bench.libraries import absence

    if (why := absence(library)) is not None:
        pytest.skip(f"oracle: {why}")
    words = ("--op", "rms_norm", "--shape", "3,4", "--threads", "1", "--rounds", "1", "--against", library)
    result = run("bench", *words)
    assert result.exit_code == 0, result.output
    assert f"best peer {library}" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_control_c_ends_the_workers_too(plugin):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("this run is a background job, and whatever it starts ignores the signal")
    path = plugin("endless", 2)
    words = ("bench", "--plugin", path, "--op", "endless::double", "--shape", "3", *QUICK[:-1], "100000")
    process = subprocess.Popen(
        [sys.executable, "cli.py", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while len(_workers(path)) < 3 and process.poll() is None:
        time.sleep(0.1)
    time.sleep(0.5)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "Interrupted.\n")
    assert _workers(path) == []


def _workers(path):
    """The processes of workers that were given this plugin."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path("/proc", entry, "cmdline").read_text()
            if "tinygrad_bn.bench.worker" in command and path in command:
                found.append(entry)
    return found


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU. What would be measured on it is made up, and the cases are kept."""
    from tinygrad_bn import devices
    from tinygrad_bn.bench import libraries, report, speed
    from tinygrad_bn.bench.figures import Measurement, Timing

    monkeypatch.setattr(devices, "problem", lambda device: None)
    monkeypatch.setattr(libraries, "absence", lambda name, device: None)
    monkeypatch.setattr(report, "gpu", lambda device: {"device": device, "gpu": "Abacus 1"})
    runs = []

    def run(cases, peers, threads, settings, plugins=()):
        runs.append((cases, peers, settings))
        for case in cases:
            for direction in ("forward", "backward"):
                timing = Timing((2e-4,), (3e-5,))
                yield Measurement(case, 1, direction, dict.fromkeys(("tinygrad_bn", "floor", *peers), timing))

    monkeypatch.setattr(speed, "run", run)
    return runs


def test_on_a_gpu_the_declared_cases_exceed_its_cache_and_others_are_as_they_are_typed(run, gpu):
    result = run("bench", "--device", "cuda", "--op", "layer_norm", "--graph", "--format", "json")
    assert result.exit_code == 0, result.output
    ((cases, peers, settings),) = gpu
    assert peers == ["torch", "torch-compile", "liger"] and settings.graph
    assert all(case.device == "cuda" and 0.9 < case.elements / 2**25 < 1.1 for case in cases)
    assert json.loads(result.stdout)["settings"] == {
        "rounds": 12, "device": "cuda", "gpu": "Abacus 1", "graph": True,
    }  # fmt: skip
    words = ("--device", "cuda:1", "--op", "rms_norm", "--shape", "3,4", "--against", "torch")
    result = run("bench", *words, "--dtype", "float32,float16")
    assert (gpu[1][0][0].shape, gpu[1][0][0].device) == ((3, 4), "cuda:1")
    assert [case.dtype for case in gpu[1][0]] == ["float32", "float16"]
    assert "rms_norm 3,4 float32 forward, cuda:1: 0.200 ms" in result.stderr


def test_tape_on_a_gpu_is_the_time_of_the_host(run, gpu):
    result = run("bench", "tape", "--device", "cuda", "--against", "torch")
    assert result.exit_code == 0, result.output
    assert "30.0" in result.stdout and "200" not in result.stdout.partition("Abacus")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "tpu"), "--device is 'tpu': wanted cpu, cuda (the first GPU), cuda:1, …"),
        (("--device", "cuda-sim"), "--device is 'cuda-sim': the times of a simulator say nothing; wanted"),
        (("--device", "cuda", "--threads", "1"), "--threads is of the CPU; leave it out with --device cuda"),
        (("--graph",), "--graph replays CUDA graphs; pass --device cuda too"),
        (("--device", "cuda", "--against", "jax"), "no library 'jax' on cuda; known are torch"),
        (("tape", "--device", "tpu"), "--device is 'tpu'"),
        (("--device", "cuda", "--dtype", "int8"), "'int8', wanted float64 or float32 or float16 or bfloat16"),
        (("--device", "cuda", "--op", "exp", "--dtype", "float16"), "math::exp serves float32, float64, not"),
    ],
)  # fmt: skip
def test_options_that_contradict_the_device_are_one_line(refused, gpu, words, message):
    assert message in refused("bench", *words)


def test_without_a_driver_the_device_is_refused_in_one_line(refused):
    from tinygrad_bn import devices

    if devices.problem("cuda") is None:
        pytest.skip("there is a GPU here")
    assert refused("bench", "--device", "cuda").startswith("--device cuda: ")
