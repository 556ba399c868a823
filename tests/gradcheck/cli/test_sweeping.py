"""`gradcheck --jobs`, `--dask`, `--timeout`, `--report FILE.jsonl` and `--resume`."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time

import pytest
import troubles
from test_gradcheck_command import pretend
from test_program import finish, start
from troubles import alive, wait_until

from gradcheck.judge import Verdict
from gradcheck.sweep import Lines, read

CASES = [f"layer_norm shape={n},5 tail=1" for n in (3, 4, 6, 7)]
WORDS = ("gradcheck", *(word for case in CASES for word in ("--case", case)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


@pytest.fixture
def interrupted(run, path, monkeypatch):
    """A file with two results of four."""
    pretend(monkeypatch, Verdict.PASS, Verdict.FAIL, KeyboardInterrupt())
    result = run(*WORDS, "--seed", 3, "--report", path)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        f"Interrupted: 2 of 4 configurations done; go on with the same options and --resume {path}"
    )
    return path


def configurations(path):
    return [str(result.configuration) for result in read(path).results]


# The file


def test_results_are_written_as_they_come(run, path, monkeypatch):
    pretend(monkeypatch, *[Verdict.PASS] * 4)
    seen = []
    write = Lines.write

    def look(lines, result):
        write(lines, result)
        seen.append(configurations(path))

    monkeypatch.setattr(Lines, "write", look)
    result = run(*WORDS, "--report", path)
    assert result.exit_code == 0 and "4 configurations: 4 PASS in " in result.stdout
    assert seen == [CASES[:1], CASES[:2], CASES[:3], CASES]
    assert read(path).complete


def test_an_interrupted_sweep_goes_on_without_repeating_or_losing_one(run, interrupted, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.PASS)  # a third would fail
    report = interrupted.with_name("report.json")
    result = run(*WORDS, "--seed", 3, "--resume", interrupted, "--report", report)
    assert result.exit_code == 1  # the FAIL of before
    (first,) = result.stderr.splitlines()
    summary = result.stdout.splitlines()[-1]
    assert first == f"{interrupted}: 2 of 4 configurations done"
    assert summary.startswith("4 configurations: 3 PASS, 1 FAIL in ")
    assert configurations(interrupted) == CASES and read(interrupted).complete
    assert [check["configuration"] for check in json.loads(report.read_text())["checks"]] == CASES


def test_a_finished_sweep_that_is_resumed_runs_nothing(run, path, monkeypatch):
    pretend(monkeypatch, *[Verdict.PASS] * 4)
    run(*WORDS, "--report", path)
    before = path.read_bytes()
    result = run(*WORDS, "--resume", path)
    assert result.exit_code == 0 and "4 PASS" in result.stdout
    assert path.read_bytes() == before


def test_a_torn_line_is_told_and_its_configuration_runs_again(run, interrupted, monkeypatch):
    interrupted.write_bytes(interrupted.read_bytes()[:-9])
    pretend(monkeypatch, *[Verdict.PASS] * 3)
    result = run(*WORDS, "--seed", 3, "--resume", interrupted)
    assert result.exit_code == 0
    told = "1 of 4 configurations done; its last line is torn, and that configuration runs again"
    assert result.stderr == f"{interrupted}: {told}\n"
    assert configurations(interrupted) == CASES


def test_results_go_on_in_another_file_too(run, interrupted, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.PASS)
    other = interrupted.with_name("other.jsonl")
    run(*WORDS, "--seed", 3, "--resume", interrupted, "--report", other)
    assert configurations(other) == configurations(interrupted) == CASES


def test_the_same_file_may_be_named_twice(run, interrupted, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.PASS)
    assert run(*WORDS, "--seed", 3, "--resume", interrupted, "--report", interrupted).exit_code == 1
    assert configurations(interrupted) == CASES


def changed(**entries):
    """A change of the header."""

    def change(path):
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(json.dumps({**json.loads(first), **entries}).encode() + b"\n" + rest)

    return change


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (None, (*WORDS, "--seed", 4), "has seed 3, this is --seed 4; give the options that it was started w"),
        (None, (*WORDS[:-2], "--seed", 3), "is of another sweep (4 configurations, here 3), or a file that"),
        (changed(schema_version=1), (*WORDS, "--seed", 3), "has schema version 1, this program reads 2;"),
        (changed(versions={"python": "2.7"}), (*WORDS, "--seed", 3), "was written with python 2.7, this is "),
        (changed(source="old"), (*WORDS, "--seed", 3), "was written with the source old, this is "),
        (lambda path: path.write_text("{}"), WORDS, "is no file of a sweep"),
        (lambda path: path.unlink(), WORDS, "; begin one with --report FILE.jsonl"),
        (lambda path: [path.unlink(), path.mkdir()], WORDS, "cannot be read (Is a directory)"),
    ],
    ids=["seed", "selection", "schema", "python", "source", "no sweep", "no file", "folder"],
)
def test_a_file_of_another_sweep_is_refused_and_left_alone(
    refused, interrupted, monkeypatch, change, words, message
):
    pretend(monkeypatch)
    if change is not None:
        change(interrupted)
    before = interrupted.read_bytes() if interrupted.is_file() else None
    said = refused(*words, "--resume", interrupted)
    assert said.startswith("--resume: ") and message in said
    assert before is None or interrupted.read_bytes() == before


def test_an_interrupted_sweep_is_not_overwritten_and_a_finished_one_is(
    refused, run, interrupted, monkeypatch
):
    pretend(monkeypatch)
    before = interrupted.read_bytes()
    assert refused(*WORDS, "--seed", 3, "--report", interrupted) == (
        f"--report: {interrupted} holds an interrupted sweep (2 of 4 configurations done); "
        f"go on with --resume {interrupted}, or delete it"
    )
    assert interrupted.read_bytes() == before
    pretend(monkeypatch, *[Verdict.PASS] * 6)
    run(*WORDS, "--seed", 3, "--resume", interrupted)
    assert run(*WORDS, "--report", interrupted).exit_code == 0
    assert read(interrupted).header.seed == 0


def test_a_disk_that_is_full_ends_the_sweep_in_one_line(refused, path, monkeypatch):
    pretend(monkeypatch, *[Verdict.PASS] * 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lines, "write", full)
    assert (
        refused(*WORDS, "--report", path) == f"--report: {path} cannot be written (No space left on device)"
    )


# Where it runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--jobs", 0), "'--jobs': 0 is not in the range x>=1"),
        (("--timeout", 0), "'--timeout': 0.0 is not in the range x>0"),
        (
            ("--jobs", 2, "--dask", "tcp://127.0.0.1:1"),
            "--jobs starts processes here, --dask uses those of a",
        ),
        (
            ("--format", "jsonl"),
            "--format jsonl writes results as they come, to a file; pass --report FILE.jsonl",
        ),
        (("--target", "x.py:f", "--jobs", 2), "--jobs does not go with --target; leave one of them out"),
        (("--target", "x.py:f", "--resume", "x.jsonl"), "--resume does not go with --target"),
    ],
)
def test_options_that_do_not_fit_are_refused(refused, words, message):
    assert message in refused("gradcheck", *words)


def test_dask_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = refused(*WORDS, "--dask", "tcp://127.0.0.1:1")
    assert said == "--dask needs distributed, which is not installed; pip install distributed"


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:{}", "127.0.0.1:{}", "nonsense://{}", "tcp://no.invalid:1"]
)
def test_a_scheduler_that_is_not_there_is_one_line_in_a_few_seconds(address, path):
    pytest.importorskip("distributed", reason="distributed is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])
    began = time.monotonic()
    status, out, err = finish(start(*WORDS, "--dask", address, "--report", str(path)))
    assert (status, out) == (2, "") and err.startswith(f"Error: --dask: no scheduler at {address} (")
    assert err.count("\n") == 1 and time.monotonic() - began < 15
    assert not path.exists()


def test_what_befalls_a_worker_is_reported_like_any_other_failure(tmp_path):
    plugin = troubles.write(tmp_path)
    path = tmp_path / "sweep.jsonl"
    words = ("gradcheck", "--plugin", str(plugin), "--jobs", "2", "--timeout", "2", "--report", str(path))
    status, out, _ = finish(start(*words))
    assert status == 1
    assert "9 configurations: 5 PASS, 4 ERROR in " in out
    assert not alive(plugin)
    found = {reason for result in read(path).results for reason in result.reasons}
    assert found == {
        "worker ended with exit status 7",
        "worker was killed by SIGKILL",
        "worker took longer than the timeout of 2 s and was killed",
        "worker ended with exit status 1",
    }
    failed = next(result for result in read(path).results if result.reasons)
    assert failed.command == f"python cli.py gradcheck --plugin {plugin} --op troublesome::double --seed 0"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_control_c_leaves_a_valid_file_and_no_process_and_the_sweep_goes_on(tmp_path):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("this run is a background job, and whatever it starts ignores the signal")
    plugin, path = troubles.write(tmp_path), tmp_path / "sweep.jsonl"
    words = ("gradcheck", "--plugin", str(plugin), "--jobs", "2")
    process = start(*words, "--report", str(path))
    wait_until(lambda: process.poll() is not None or (alive(plugin) and len(read(path).results) > 3))
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130 and " of 9 configurations: " in out and not alive(plugin)
    done = read(path).results
    assert err.splitlines()[-1] == (
        f"Interrupted: {len(done)} of 9 configurations done; go on with the same options and --resume {path}"
    )
    status, _, err = finish(start(*words, "--timeout", "1", "--resume", str(path)))
    assert status == 1 and err.splitlines()[0] == f"{path}: {len(done)} of 9 configurations done"
    assert read(path).complete and read(path).results[: len(done)] == done


def test_a_program_that_is_killed_leaves_a_valid_file_and_no_process(tmp_path):
    plugin, path = troubles.write(tmp_path), tmp_path / "sweep.jsonl"
    process = start("gradcheck", "--plugin", str(plugin), "--jobs", "2", "--report", str(path))
    wait_until(lambda: process.poll() is not None or alive(plugin))
    process.kill()
    finish(process)
    wait_until(lambda: not alive(plugin))
    assert not read(path).complete
