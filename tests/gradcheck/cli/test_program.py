"""The program as it is started from a shell: its streams, signals and plugins."""

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

ROOT = Path(__file__).parents[3]
CASE = ("--case", "rms_norm shape=4,5 tail=1")


def start(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "cli.py", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_check_from_the_shell_prints_json_and_nothing_else():
    status, out, err = finish(start("gradcheck", *CASE, "--format", "json"))
    assert status == 0, err
    assert json.loads(out)["checks"][0]["verdict"] == "PASS"
    assert err.startswith("1 configuration: 1 PASS in ") and err.count("\n") == 1


def test_no_colour_in_a_pipe_or_where_it_is_not_wanted():
    status, out, err = finish(start("gradcheck", *CASE, TERM="xterm-256color", NO_COLOR="1"))
    assert (status, err) == (0, "") and "\x1b" not in out and out.startswith("operation")


def test_wrong_usage_from_the_shell():
    status, out, err = finish(start("gradcheck", "--op", "layer_norn"))
    assert (status, out) == (2, "")
    assert err == "Error: --op: no operation 'layer_norn'; did you mean layer_norm?\n"


def into(stdout, words):
    command = (sys.executable, "-W", "error", "cli.py", *words)
    done = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


# What click writes before a command begins, what it writes in one, and what rich writes.
WRITERS = pytest.mark.parametrize(
    "words", [("--help",), ("ops", "explain", "layer_norm"), ("gradcheck", *CASE)], ids=lambda words: words[0]
)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes without a reader")
@WRITERS
def test_a_reader_that_went_away_is_no_failed_check(words):
    nobody, stdout = os.pipe()
    os.close(nobody)
    try:
        assert into(stdout, words) == (141, "")
    finally:
        os.close(stdout)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@WRITERS
def test_stdout_on_a_full_device_is_one_line(words):
    with open("/dev/full", "w") as stdout:
        status, err = into(stdout, words)
    assert status == 2
    assert err == "Error: stdout cannot be written (No space left on device); send it elsewhere\n"


def test_what_goes_into_a_pipe_is_utf_8_whatever_the_locale():
    status, out, err = finish(start("ops", "show", "layer_norm", PYTHONIOENCODING="cp1252"))
    assert (status, err) == (0, "") and "√(Var[x] + ε)" in out


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_control_c_ends_with_130_without_a_traceback_and_reports_what_is_there(tmp_path):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("this run is a background job, and whatever it starts ignores the signal")
    report = tmp_path / "report.json"
    report.write_text("old")
    process = start("gradcheck", "--op", "batch_norm", "--exhaustive", "--report", str(report))
    time.sleep(3)
    for _ in range(5):  # one that arrives inside the compiler's callbacks is lost
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            break
    status, out, err = finish(process)
    assert status == 130
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    if err == "Interrupted.\n":  # the kernels were still being compiled
        assert report.read_text() == "old"
    else:
        done = len(json.loads(report.read_text())["checks"])
        (last,) = err.splitlines()
        assert out.splitlines()[-1].startswith(f"interrupted after {done} of ")
        assert last.startswith(f"Interrupted: {done} of ")


def test_a_plugin_that_does_not_load_is_shown_and_breaks_nothing_else(tmp_path):
    about = tmp_path / "their_ops-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-ops\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[tinygrad_bn.ops]\ntheirs = nowhere_at_all:register\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, out, err = finish(start("ops", "list", PYTHONPATH=path))
    assert status == 0 and "norm::layer_norm" in out
    assert err == (
        "theirs::*  BROKEN: their-ops 1.2: ModuleNotFoundError: No module named 'nowhere_at_all'\n"
    )
    status, _, err = finish(start("ops", "show", "theirs::op", PYTHONPATH=path))
    assert status == 2
    assert (
        "the plugin that provides it, their-ops 1.2, did not load (ModuleNotFoundError"
        in err.splitlines()[-1]
    )
